//! The coordinator's view of a repository: refs, records, notes, keys, pins, collection. Never streams.

mod commit;
mod keys;
mod layout;
mod notes;
mod pins;
mod types;

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use ocopea_protocol::{
    ids::ImageId,
    image::{BaseAccess, ImageAccess, Location, StoreKeys},
    names::Digest,
    seams::Seams,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use commit::{parts, reachable, reachable_from_record};
pub(crate) use keys::repository_key_name;
pub(crate) use layout::{INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_NAME, derive_index_json, index_json_images};
pub(crate) use notes::read_note;
pub(crate) use pins::{Pin, pin_objects, read_all as read_pins};
pub use types::*;

use crate::{
    Error, Keyring, Record, Result, StoreAbilities, StoreAccess, WrappedKey,
    backend::{self, Backend, Put},
    oci,
    store::{LONGEST_MANIFEST, Store, blob_name},
};

/// The self-description.
pub(crate) const DESCRIPTION: &str = "ocopea-repository";
/// Space that is given up when the store is full, so that a collection can work.
pub(crate) const RESERVE: &str = "reserve";
pub(crate) const RESERVE_BYTES: usize = 1 << 20;
/// What a creation that stopped may leave at a place, and what a file system puts there by itself.
const MADE_BY_CREATION: &[&str] = &["tmp", "keys", RESERVE, OCI_LAYOUT_NAME, INDEX_JSON, "lost+found"];

/// A repository that was opened with its keys. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) location: Location,
    /// Of its description; once that is there.
    pub(crate) id: std::sync::OnceLock<Uuid>,
    /// How its store is got at, where it lies behind a network.
    pub(crate) stores: StoreAccess,
    pub(crate) store: Store,
    pub(crate) keyring: std::sync::RwLock<Keyring>,
    /// One at a time of this process rewrites `index.json`.
    pub(crate) layout: tokio::sync::Mutex<()>,
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// One verification at a time: more of them would only be in each other's way.
    pub(crate) verifying: tokio::sync::Mutex<()>,
}

/// What stands in [`DESCRIPTION`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Description {
    version: u32,
    format: String,
    id: Uuid,
}

/// Refuses a place without a repository, and a repository of a newer format.
pub(crate) async fn check_format(store: &Store) -> Result<Description> {
    match store.get_small::<Description>(DESCRIPTION).await {
        Ok(description) if description.format == DESCRIPTION => Ok(description),
        Ok(_) => Err(Error::damaged(DESCRIPTION, "it describes something else")),
        Err(Error::Missing { .. }) => Err(Error::NoRepository { place: "the given place".to_owned() }),
        Err(error) => Err(error),
    }
}

/// A location for people.
pub fn place(location: &Location) -> String {
    match location {
        Location::Directory { path } => path.clone(),
        Location::S3 { endpoint, bucket, prefix, .. } => {
            format!("s3://{bucket}/{prefix} at {endpoint}").replace("/ at", " at")
        }
    }
}

impl Repository {
    /// Makes a repository at an empty place, or where an earlier creation stopped before its end.
    pub async fn create(location: &Location, stores: &StoreAccess, keyring: &Keyring, seams: &Seams) -> Result<Self> {
        let backend = backend::open(location, stores, seams, true).await?;
        if !backend::holds_only(location, stores, seams, MADE_BY_CREATION).await? {
            return Err(Error::Occupied { place: place(location) });
        }
        Self::create_in(backend, location, stores, keyring, seams).await
    }

    /// Makes a repository in `backend`; `location` is what agents get.
    ///
    /// The description comes last. Without it there is no repository, and everything that creation makes before is
    /// made again in the same way, so a creation that stopped anywhere is taken to its end by the next one.
    pub async fn create_over(
        backend: Arc<dyn Backend>,
        location: &Location,
        keyring: &Keyring,
        seams: &Seams,
    ) -> Result<Self> {
        Self::create_in(backend, location, &StoreAccess::default(), keyring, seams).await
    }

    async fn create_in(
        backend: Arc<dyn Backend>,
        location: &Location,
        stores: &StoreAccess,
        keyring: &Keyring,
        seams: &Seams,
    ) -> Result<Self> {
        let repository = Self::with(backend, location, stores, keyring, seams);
        let store = &repository.inner.store;
        let occupied = || Error::Occupied { place: place(location) };
        if store.backend.head(DESCRIPTION).await?.is_some() {
            return Err(occupied());
        }
        // A repository that lost its description still has what its images consist of: that is damage, not a place
        // for a new one.
        for kept in ["refs/", "blobs/", "notes/", "keys/teams/", "pins/", "condemned/", "staging/"] {
            if !store.backend.list(kept).await?.is_empty() {
                return Err(occupied());
            }
        }
        repository.add_repository_keys().await?;
        store.backend.replace(RESERVE, vec![0u8; RESERVE_BYTES].into()).await?;
        store.backend.create(OCI_LAYOUT_NAME, OCI_LAYOUT.into()).await?;
        repository.refresh_layout(None).await?;
        // Last: whoever finds it finds everything else too.
        let description = Description { version: 1, format: DESCRIPTION.to_owned(), id: seams.uuid() };
        match store.create_small(DESCRIPTION, &description).await? {
            Put::Created => {
                repository.forget_foreign_keys().await?;
                repository.inner.id.get_or_init(|| description.id);
                Ok(repository)
            }
            Put::Existed => Err(occupied()),
        }
    }

    /// Opens a repository.
    pub async fn open(location: &Location, stores: &StoreAccess, keyring: &Keyring, seams: &Seams) -> Result<Self> {
        let backend = backend::open(location, stores, seams, false).await?;
        Self::open_in(backend, location, stores, keyring, seams).await
    }

    /// Opens the repository in `backend`; `location` is what agents get.
    pub async fn open_over(
        backend: Arc<dyn Backend>,
        location: &Location,
        keyring: &Keyring,
        seams: &Seams,
    ) -> Result<Self> {
        Self::open_in(backend, location, &StoreAccess::default(), keyring, seams).await
    }

    async fn open_in(
        backend: Arc<dyn Backend>,
        location: &Location,
        stores: &StoreAccess,
        keyring: &Keyring,
        seams: &Seams,
    ) -> Result<Self> {
        let repository = Self::with(backend, location, stores, keyring, seams);
        let description = check_format(&repository.inner.store).await.map_err(|error| match error {
            Error::NoRepository { .. } => Error::NoRepository { place: place(location) },
            other => other,
        })?;
        repository.inner.id.get_or_init(|| description.id);
        repository.check_keyring().await?;
        Ok(repository)
    }

    /// Removes what writers that died left unfinished. Only for those who know that nobody else writes now.
    pub async fn discard_unfinished(&self) -> Result<()> {
        self.store().backend.discard_unfinished(i64::MAX).await
    }

    fn with(
        backend: Arc<dyn Backend>,
        location: &Location,
        stores: &StoreAccess,
        keyring: &Keyring,
        seams: &Seams,
    ) -> Self {
        let inner = Inner {
            location: location.clone(),
            id: std::sync::OnceLock::new(),
            stores: stores.clone(),
            store: Store::new(backend, seams.clone()),
            keyring: std::sync::RwLock::new(keyring.clone()),
            layout: tokio::sync::Mutex::new(()),
            collecting: tokio::sync::Mutex::new(()),
            verifying: tokio::sync::Mutex::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The id that it has wherever it lies: a copy of it has the same.
    pub fn id(&self) -> Uuid {
        self.inner.id.get().copied().unwrap_or_default()
    }

    /// Where it lies.
    pub fn location(&self) -> &Location {
        &self.inner.location
    }

    /// How its store is got at.
    pub fn stores(&self) -> &StoreAccess {
        &self.inner.stores
    }

    /// What its store can.
    pub fn abilities(&self) -> StoreAbilities {
        self.store().backend.abilities()
    }

    /// The keys that it is used with. Secret.
    pub fn keyring(&self) -> Keyring {
        self.inner.keyring.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// All saved images.
    pub async fn images(&self) -> Result<Vec<ImageRef>> {
        let mut images = Vec::new();
        for entry in self.store().backend.list("refs/").await? {
            match self.read_ref(&entry.name).await {
                Ok(reference) => images.push(reference),
                // Deleted since it was listed.
                Err(Error::Missing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }

    /// One saved image.
    pub async fn image(&self, image: ImageId) -> Result<Option<ImageRef>> {
        match self.read_ref(&ref_name(image)).await {
            Ok(reference) => Ok(Some(reference)),
            Err(Error::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn read_ref(&self, name: &str) -> Result<ImageRef> {
        let reference: RefObject = self.store().get_small(name).await?;
        if ref_name(reference.image) != name {
            return Err(Error::damaged(name, format!("it names image {}", reference.image)));
        }
        Ok(reference.into())
    }

    /// Reads and decrypts a record.
    pub async fn read_record(&self, record: &Digest) -> Result<Record> {
        let key = self.unwrap(&self.wrapped_key(record).await?).await?;
        crate::record::read(self.store(), &key, record).await
    }

    /// The wrapped key of a saved image, from its record's manifest.
    pub async fn wrapped_key(&self, record: &Digest) -> Result<WrappedKey> {
        let name = blob_name(record);
        let manifest: oci::Manifest = oci::parse(&name, &self.store().get_blob(record, LONGEST_MANIFEST).await?)?;
        let wrapped = manifest.annotations.get(oci::KEY_ANNOTATION);
        let wrapped = wrapped.ok_or_else(|| Error::damaged(&name, "it is not the manifest of a record"))?;
        oci::parse(&name, wrapped.as_bytes())
    }

    /// What agents need to write a new image; `base` is the record whose chunks may be used again (pin it first). A
    /// base that is gone or broken costs space, not the save; one of another team has nothing that could be used.
    pub async fn access_to_write(&self, key: &WrappedKey, base: Option<&Digest>) -> Result<ImageAccess> {
        let base = match base {
            Some(record) => match self.base_access(key, record).await {
                Ok(base) => base,
                Err(error) if error.is_of_one_object() => {
                    tracing::warn!(%error, base = %record, "the base can't be opened: everything is stored anew");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let hash_key = self.team_keys(key.team).await?.hash_key;
        let location = self.inner.location.clone();
        let store_keys = self.store_keys(None).await?;
        let limits = self.inner.stores.limits;
        Ok(ImageAccess { location, image_key: self.unwrap(key).await?, hash_key, base, store_keys, limits })
    }

    /// The keys of its store that agents get, where they have none of their own; `refused` is the id of those that the
    /// store refuses already.
    pub async fn store_keys(&self, refused: Option<&str>) -> Result<Option<StoreKeys>> {
        self.inner.stores.to_share(&self.inner.location, refused, &self.store().seams).await
    }

    async fn base_access(&self, key: &WrappedKey, record: &Digest) -> Result<Option<BaseAccess>> {
        let wrapped = self.wrapped_key(record).await?;
        if wrapped.team != key.team {
            return Ok(None);
        }
        let image_key = self.unwrap(&wrapped).await?;
        let components = crate::record::read(self.store(), &image_key, record).await?.data_manifests();
        Ok(Some(BaseAccess { image_key, components }))
    }

    /// What agents need to read a saved image.
    pub async fn access_to_read(&self, record: &Digest) -> Result<ImageAccess> {
        self.access_to_write(&self.wrapped_key(record).await?, None).await
    }

    /// Every image with its record and notes, to rebuild a catalog. An error with a ref's name concerns that image; the
    /// rest goes on. One without a name ends it.
    pub fn reindex(&self) -> BoxStream<'_, (Option<String>, Result<Reindexed>)> {
        let listed = stream::once(async { self.store().backend.list("refs/").await });
        let names = listed.flat_map(|listed| match listed {
            Ok(entries) => stream::iter(entries).map(Ok).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        });
        names
            .then(move |entry| async move {
                match entry {
                    Ok(entry) => {
                        let one = self.reindexed(&entry.name).await;
                        (Some(entry.name), one)
                    }
                    Err(error) => (None, Err(error)),
                }
            })
            .boxed()
    }

    async fn reindexed(&self, name: &str) -> Result<Reindexed> {
        let reference = self.read_ref(name).await?;
        let key = self.wrapped_key(&reference.record).await?;
        let record = self.read_record(&reference.record).await?;
        let notes = self.notes(&reference.record).await?;
        Ok(Reindexed { reference, record, key, notes })
    }
}

/// What stands in a ref.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefObject {
    version: u32,
    image: ImageId,
    team: ocopea_protocol::ids::TeamId,
    record: Digest,
    index: Digest,
    index_size: u64,
}

impl From<RefObject> for ImageRef {
    fn from(object: RefObject) -> Self {
        let RefObject { version: _, image, team, record, index, index_size } = object;
        Self { image, team, record, index, index_size }
    }
}

impl From<ImageRef> for RefObject {
    fn from(reference: ImageRef) -> Self {
        let ImageRef { image, team, record, index, index_size } = reference;
        Self { version: 1, image, team, record, index, index_size }
    }
}

pub(crate) fn ref_name(image: ImageId) -> String {
    format!("refs/{image}")
}

/// Whatever stands in small objects, to be read by the fuzzer.
#[cfg(feature = "fuzzing")]
#[derive(Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "read, never looked at")]
pub(crate) enum Small {
    Ref(RefObject),
    Team(keys::TeamObject),
    Key(keys::RepositoryKeyObject),
    Pin(pins::PinObject),
    Condemned(crate::collect::Condemned),
    Description(Description),
}
