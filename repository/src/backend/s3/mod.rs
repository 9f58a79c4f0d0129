//! A bucket of any service that speaks S3, through `object_store` over the workspace's own HTTP client.
//!
//! - [`transport`] bounds every wait and turns answers that are no success into [`fault`]s;
//! - [`calls`] tries requests again, counted, and looks at every answer's length and range;
//! - [`listing`] is whole or an error;
//! - [`upload`] keeps memory bounded; [`unfinished`] tidies after those that died;
//! - [`probe`] finds out what the service can; [`claims`] stands in where it has no conditional writes;
//! - [`keys`] renews the keys that requests are signed with, from [`sources`].
//!
//! Names of blobs are digests and packs are read back after they were written, so nothing here has to be believed: a
//! service that keeps something else than it was given is found out before an image is visible.

mod calls;
mod claims;
mod fault;
mod keys;
mod listing;
mod place;
mod probe;
mod sources;
mod transport;
mod unfinished;
mod upload;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::{
    image::{Location, StoreKeys, StoreLimits},
    seams::Seams,
};

pub use keys::{GivesKeys, KeySource, WebIdentity};
pub use place::parse_location;
pub use transport::Patience;

use self::{
    calls::{Calls, Failed},
    claims::CLAIMS,
    fault::Fault,
    keys::{Lent, Renewing},
    place::Place,
    sources::Context,
    transport::{Seen, Transport},
    upload::{S3Upload, TEMPORARY},
};
use super::{
    Backend, Deletion, Entry, Put, StoreAbilities, Upload, check_name,
    limited::{LimitedBackend, Throttle, Throttles},
};
use crate::error::{Error, Result};

/// Bytes at which a pack ends: three of them fit into the memory that uploads may hold.
const PACK: u64 = 12 << 20;
/// Stands for whose the keys are, where they came with tasks.
const LENT: &str = "lent";
/// Stores that one process keeps open.
const MOST_OPEN: usize = 64;
/// What a creation that stopped, and a probe, may leave.
pub(crate) const MADE_BY_PROBE: [&str; 2] = ["probe", "claims"];

/// How a process gets at stores behind a network. Cheap to clone; clones share what is open.
#[derive(Clone, Default)]
pub struct StoreAccess {
    /// Where the keys come from.
    pub keys: KeySource,
    /// Whether tasks bring the keys to agents, which then need none of their own. They travel sealed. Where they were
    /// lent for a time, agents ask for newer ones.
    pub shared_with_agents: bool,
    /// Certificate authorities beside the machine's own, PEM. Empty: those of the file that `AWS_CA_BUNDLE` names.
    pub roots: Vec<u8>,
    /// How long and how often stores are asked.
    pub patience: Patience,
    /// What every process may ask of them; told to agents with each task.
    pub limits: StoreLimits,
    open: Arc<tokio::sync::Mutex<HashMap<String, Open>>>,
    pub(crate) throttles: Arc<Throttles>,
}

/// A place that is open.
struct Open {
    backend: S3Backend,
    /// Where its keys came with tasks.
    lent: Option<Arc<Lent>>,
}

impl fmt::Debug for StoreAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreAccess").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl StoreAccess {
    /// With keys from there.
    pub fn with_keys(keys: KeySource) -> Self {
        Self { keys, ..Self::default() }
    }

    /// The same for another repository: with other keys and limits, sharing what the process may move in all.
    pub fn for_repository(&self, keys: KeySource, limits: StoreLimits) -> Self {
        // What is open is told apart by static keys alone: another source is another process's, as it were.
        Self { keys, limits, open: Arc::default(), ..self.clone() }
    }

    /// What this process may move in all, in bytes per second, to and from all stores.
    pub fn limit_process(&self, upload: Option<u64>, download: Option<u64>) {
        self.throttles.limit(upload, download);
    }

    /// The same with the keys that a task brought, if it brought some.
    pub(crate) fn or_own(&self, brought: Option<&StoreKeys>) -> Self {
        match brought {
            Some(keys) => Self { keys: KeySource::Static(keys.clone()), ..self.clone() },
            None => self.clone(),
        }
    }

    fn roots(&self) -> Result<Vec<u8>> {
        match std::env::var_os("AWS_CA_BUNDLE") {
            Some(path) if self.roots.is_empty() && !path.is_empty() => std::fs::read(&path)
                .map_err(|error| Error::Misuse(format!("AWS_CA_BUNDLE names {}: {error}", path.display()))),
            _ => Ok(self.roots.clone()),
        }
    }

    /// Opens a bucket, and finds out what its service can. Opened once more, it is the one that is open already.
    pub(crate) async fn open_s3(&self, location: &Location, seams: &Seams) -> Result<S3Backend> {
        let (name, place) = self.named(location, &self.identity())?;
        // One at a time: several tasks that begin at once need one probe.
        let mut open = self.open.lock().await;
        if let Some(open) = open.get(&name) {
            return Ok(open.backend.clone());
        }
        let backend = S3Backend::open(place, self, self.throttles.of(location), seams).await?;
        keep(&mut open, name, Open { backend: backend.clone(), lent: None });
        Ok(backend)
    }

    /// Opens a bucket with keys that a task brought; `way` asks for newer ones for as long as it lives.
    pub(crate) async fn open_lent(
        &self,
        location: &Location,
        brought: &StoreKeys,
        way: &Arc<dyn GivesKeys>,
        seams: &Seams,
    ) -> Result<S3Backend> {
        let (name, place) = self.named(location, LENT)?;
        let mut open = self.open.lock().await;
        if let Some(Open { backend, lent: Some(lent) }) = open.get(&name) {
            lent.add(way);
            backend.calls.common.keys.offer(brought);
            return Ok(backend.clone());
        }
        let lent = Arc::new(Lent::new(brought.clone()));
        lent.add(way);
        let access = Self { keys: KeySource::Custom(lent.clone()), ..self.clone() };
        let backend = S3Backend::open(place, &access, self.throttles.of(location), seams).await?;
        keep(&mut open, name, Open { backend: backend.clone(), lent: Some(lent) });
        Ok(backend)
    }

    /// Another one who works with a store, bounded by what the process and the store's users may.
    pub(crate) fn limited(
        &self,
        inner: Arc<dyn Backend>,
        location: &Location,
        limits: &StoreLimits,
        seams: &Seams,
    ) -> Arc<dyn Backend> {
        Arc::new(LimitedBackend::new(inner, location, &self.throttles, limits, seams))
    }

    fn named(&self, location: &Location, whose: &str) -> Result<(String, Place)> {
        let Location::S3 { endpoint, region, bucket, prefix, path_style } = location else {
            return Err(Error::Misuse("a directory was to be opened as a bucket".to_owned()));
        };
        let name = format!("{endpoint}\n{region}\n{bucket}\n{prefix}\n{path_style}\n{whose}");
        Ok((name, Place::new(endpoint, region, bucket, prefix, *path_style)?))
    }

    /// Tells keys apart without holding them.
    fn identity(&self) -> String {
        match &self.keys {
            KeySource::Static(keys) => {
                let secret =
                    format!("{}\n{}", keys.secret.reveal(), keys.token.as_ref().map_or("", |token| token.reveal()));
                format!("{} {}", keys.id, blake3::hash(secret.as_bytes()).to_hex())
            }
            // A process has one source of its own.
            _ => String::new(),
        }
    }

    /// The keys to be brought to agents; others than `refused`, where the source has others.
    pub(crate) async fn to_share(
        &self,
        location: &Location,
        refused: Option<&str>,
        seams: &Seams,
    ) -> Result<Option<StoreKeys>> {
        if !self.shared_with_agents || !matches!(location, Location::S3 { .. }) {
            return Ok(None);
        }
        let backend = self.open_s3(location, seams).await?;
        let renewing = &backend.calls.common.keys;
        if refused.is_some() && renewing.id().as_deref() == refused {
            renewing.renew(refused).await;
        }
        let keys = renewing.keys().await;
        keys.map(Some).map_err(|fault| backend.calls.failed("read", "the keys", Failed { fault, tries: 1 }))
    }
}

fn keep(open: &mut HashMap<String, Open>, name: String, one: Open) {
    if open.len() >= MOST_OPEN {
        open.clear();
    }
    open.insert(name, one);
}

/// Objects in a bucket.
#[derive(Clone)]
pub struct S3Backend {
    calls: Calls,
    abilities: StoreAbilities,
    /// One at a time of this process ends unfinished uploads.
    tidying: Arc<tokio::sync::Mutex<()>>,
}

impl S3Backend {
    async fn open(place: Place, access: &StoreAccess, throttle: Arc<Throttle>, seams: &Seams) -> Result<Self> {
        let told = place.to_string();
        let failed = |fault: Fault| fault.into_error("open", "the store", &told, 1);
        let roots = access.roots()?;
        let seen = Arc::new(Seen::default());
        let transport = Transport::new(&roots, access.patience, seams, seen.clone()).map_err(failed)?;
        let context = Context {
            variable: Arc::new(|name| std::env::var(name).ok()),
            client: Some(transport.client()),
            region: place.region.clone(),
            seams: Some(seams.clone()),
        };
        let keys = Arc::new(Renewing::new(access.keys.clone(), context, seams));
        let calls = Calls::new(place, transport, keys, seen, (access.patience, throttle), seams)?;
        let (calls, abilities) = probe::probe(&calls).await?;
        tracing::info!(place = %told, ?abilities, "the store was looked at");
        Ok(Self { calls, abilities, tidying: Arc::default() })
    }

    /// Requests that were sent once more, since the store was opened.
    pub fn retries(&self) -> u64 {
        self.calls.retries()
    }

    pub(crate) async fn holds_only(&self, names: &[&str]) -> Result<bool> {
        let names: Vec<&str> = names.iter().copied().chain(MADE_BY_PROBE).collect();
        self.calls.holds_only(&names).await
    }

    fn at<'a>(&'a self, action: &'static str, name: &'a str) -> impl Fn(Failed) -> Error + 'a {
        move |failed| self.calls.failed(action, name, failed)
    }
}

#[async_trait]
impl Backend for S3Backend {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put> {
        check_name(name)?;
        if self.abilities.conditional_writes {
            self.calls.create(name, &bytes).await.map_err(self.at("write", name))
        } else {
            self.calls.claim(name, &bytes).await
        }
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        check_name(name)?;
        self.calls.put(name, bytes.into()).await.map_err(self.at("write", name))
    }

    async fn upload(&self, name: Option<&str>) -> Result<Box<dyn Upload>> {
        if let Some(name) = name {
            check_name(name)?;
        }
        Ok(Box::new(S3Upload::new(self.calls.clone(), name.map(str::to_owned))))
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        check_name(name)?;
        match self.calls.get(name, limit).await.map_err(self.at("read", name))? {
            Ok(bytes) => Ok(bytes),
            Err(_) => Err(Error::damaged(name, format!("it is longer than {limit} bytes"))),
        }
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        check_name(name)?;
        self.calls.range(name, offset, length).await.map_err(self.at("read", name))
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>> {
        check_name(name)?;
        self.calls.head(name).await.map_err(self.at("look at", name))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        check_name(prefix.trim_end_matches('/'))?;
        self.calls.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if !self.abilities.conditional_writes && !name.starts_with("blobs/") {
            // What was claimed for it would be taken for a claim to the next of this name.
            self.calls.forget(&format!("{CLAIMS}{name}/"), None).await;
        }
        self.calls.delete(name).await.map_err(self.at("delete", name))
    }

    async fn discard_unfinished(&self, before: i64) -> Result<()> {
        let _one = self.tidying.lock().await;
        self.calls.end_unfinished(before).await?;
        for place in [TEMPORARY, CLAIMS, probe::PROBE] {
            for entry in self.calls.list(place).await? {
                if entry.modified < before {
                    match self.calls.delete(&entry.name).await.map_err(self.at("delete", &entry.name)) {
                        Err(error) if !error.is_about_rights() => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn abilities(&self) -> StoreAbilities {
        let mut abilities = self.abilities.clone();
        // Versions may have been turned on since.
        if abilities.deletion == Deletion::Frees && self.calls.common.seen.hides.load(Relaxed) {
            abilities.deletion = Deletion::Hides;
        }
        abilities
    }

    fn pack_target(&self) -> u64 {
        PACK
    }
}
