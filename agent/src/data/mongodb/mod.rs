//! MongoDB, and servers that speak its wire protocol. Documents travel as raw BSON and are never decoded.
//!
//! A stream is one collection: its documents one behind the other, each beginning with its own length, as BSON has
//! it. Options and indexes stand in the driver's facts. Reads are not at one instant: snapshot reads of replica sets
//! need sessions that could not be tried here, so that a copy of a server that is written to says `inconsistent`
//! unless `--freeze` holds its writes.

mod binding;
mod catalog;
mod connect;
mod copy;
mod load;

use std::collections::BTreeMap;

use async_trait::async_trait;
use mongodb::bson::doc;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel, DataKind, StreamInfo},
    secret::Secret,
};
use ocopea_repository::{DataReader, DataWriter};

use self::connect::{Connected, connect, within};
use super::{
    ContainerView, Copied, DataService, Held, Inspected, Loaded, Login, LoginOf, ParsedBinding, Prepared, Recognised,
    Subject,
};

/// The port that servers listen on unless told otherwise.
const PORT: u16 = 27017;

/// The driver.
pub struct MongoDb;

#[async_trait]
impl DataService for MongoDb {
    fn kind(&self) -> DataKind {
        DataKind::MongoDb
    }

    fn recognise(&self, container: &ContainerView) -> Option<Recognised> {
        let (repository, _, _) = crate::configs::rewrite::split_image(&container.image);
        let image = repository.rsplit('/').next().unwrap_or_default();
        const SERVERS: [&str; 8] = [
            "mongo", "mongodb", "mongod", "percona-server-mongodb", "mongodb-community-server", "mongodb-enterprise-server",
            "mongodb-sharded", "ferretdb",
        ];
        let by_image = SERVERS.contains(&image);
        let runs_server = container.command.first().is_some_and(|c| c.rsplit('/').next() == Some("mongod"));
        if !by_image && !runs_server && !container.ports.contains(&PORT) {
            return None;
        }
        let env = |names: &[&str]| names.iter().find_map(|name| container.env.get(*name));
        let user = env(&["MONGO_INITDB_ROOT_USERNAME", "MONGODB_ROOT_USER"]).map_or("root", Secret::reveal).to_owned();
        let administrator = env(&["MONGO_INITDB_ROOT_PASSWORD", "MONGODB_ROOT_PASSWORD"]).map(|password| Login {
            of: LoginOf::Administrator,
            user,
            password: password.clone(),
            database: None,
            options: BTreeMap::new(),
        });
        let data_path = if repository.contains("bitnami") { "/bitnami/mongodb" } else { "/data/db" };
        let port = if container.ports.contains(&PORT) { PORT } else { container.ports.first().copied().unwrap_or(PORT) };
        Some(Recognised { port, administrator, data_path: Some(data_path.to_owned()) })
    }

    fn parse_binding(&self, name: &str, value: &str) -> Option<ParsedBinding> {
        binding::parse(name, value)
    }

    fn rewrite_binding(&self, value: &str, hosts: &BTreeMap<String, String>) -> String {
        binding::rewrite(value, hosts)
    }

    async fn inspect(&self, subject: &Subject) -> Result<Inspected, TaskFailure> {
        let connected = connect(subject).await?;
        let (facts, gaps) = catalog::read(subject, &connected).await?;
        let bytes = catalog::bytes(subject, &connected, &facts).await?;
        let mut features = Vec::new();
        if facts.collections.iter().any(|c| c.view) {
            features.push("views".to_owned());
        }
        Ok(Inspected {
            version: Some(connected.version.clone()),
            bytes,
            streams: Some(facts.collections.iter().filter(|c| !c.view).count() as u64),
            features,
            consistency: consistency(&connected, 0),
            gaps,
        })
    }

    async fn prepare(&self, subject: &Subject, freeze: bool) -> Result<Box<dyn Prepared>, TaskFailure> {
        let connected = connect(subject).await?;
        let (_, gaps) = catalog::read(subject, &connected).await?;
        if let Some(gap) = gaps.first() {
            return Err(TaskFailure::permanent("data.unsupported", format!("can't save \"{}\"", subject.name), format!("{}: {}", gap.what, gap.why)).next(gap.next.clone()));
        }
        Ok(Box::new(Holder { subject: subject.clone(), connected, freeze, since: None }))
    }

    async fn copy(&self, subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
        copy::copy(subject, snapshot, writer).await
    }

    async fn load(&self, subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
        load::load(subject, reader, saved).await
    }

    async fn unfreeze(&self, subject: &Subject) -> Result<(), TaskFailure> {
        let connected = connect(subject).await?;
        let admin = connected.client.database("admin");
        let state = within(subject, "look after", async { admin.run_command(doc! {"currentOp": 1}).await }).await;
        // A server that doesn't know the word was never locked by us.
        let locked = state.is_ok_and(|state| state.get_bool("fsyncLock").unwrap_or(false));
        if locked {
            within(subject, "release the writes of", async { admin.run_command(doc! {"fsyncUnlock": 1}).await }).await?;
        }
        Ok(())
    }
}

fn consistency(connected: &Connected, frozen_ms: u64) -> Consistency {
    let why = if connected.hello.get_str("setName").is_ok() {
        "replica set: read while it may be written to, without a shared snapshot (use --freeze)"
    } else {
        "not a snapshot: single server (use --freeze)"
    };
    Consistency { level: ConsistencyLevel::Inconsistent, why: why.to_owned(), changed: Vec::new(), changed_count: 0, frozen_ms }
}

/// Holds nothing, or with `--freeze` the server's writes.
struct Holder {
    subject: Subject,
    connected: Connected,
    freeze: bool,
    since: Option<std::time::Duration>,
}

#[async_trait]
impl Prepared for Holder {
    async fn open(mut self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure> {
        if self.freeze {
            let admin = self.connected.client.database("admin");
            let locked = within(&self.subject, "hold the writes of", async {
                admin.run_command(doc! {"fsync": 1, "lock": true}).await
            })
            .await;
            if let Err(failure) = locked {
                return Err(failure.next("this server can't hold its writes: scale its writers to zero, or save without --freeze"));
            }
            self.since = Some(self.subject.seams.clock.monotonic());
        }
        Ok(self)
    }
}

/// How long writes are held at most: a save that takes longer fails rather than stop an application for good.
const LONGEST_FREEZE: std::time::Duration = std::time::Duration::from_secs(300);

#[async_trait]
impl Held for Holder {
    fn snapshot(&self) -> String {
        serde_json::json!({"frozen": self.since.is_some()}).to_string()
    }

    async fn check(&mut self) -> Result<(), TaskFailure> {
        let held = self.since.map(|since| self.subject.seams.clock.monotonic().saturating_sub(since));
        if held.is_some_and(|held| held > LONGEST_FREEZE) {
            self.unlock().await?;
            return Err(TaskFailure::permanent(
                "save.freeze-too-long",
                format!("can't hold the writes of \"{}\" any longer", self.subject.name),
                format!("they were held for {} s", LONGEST_FREEZE.as_secs()),
            )
            .next("save without --freeze, or while less is to be copied"));
        }
        Ok(())
    }

    async fn release(mut self: Box<Self>) -> Result<u64, TaskFailure> {
        let held = self.since.map(|since| self.subject.seams.clock.monotonic().saturating_sub(since));
        self.unlock().await?;
        Ok(held.map_or(0, |held| u64::try_from(held.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Holder {
    async fn unlock(&mut self) -> Result<(), TaskFailure> {
        if self.since.take().is_some() {
            let admin = self.connected.client.database("admin");
            // Not through `within`: a stopped task must let go all the more.
            let unlocked = self.subject.seams.timeout(connect::ANSWER, async { admin.run_command(doc! {"fsyncUnlock": 1}).await });
            match unlocked.await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(connect::failure(&self.subject, "release the writes of", &error)),
                None => return Err(TaskFailure::retryable("data.hangs", format!("can't release the writes of \"{}\"", self.subject.name), "no answer")),
            }
        }
        Ok(())
    }
}
