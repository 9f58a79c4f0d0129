//! The holder: a replica set's snapshot, a single server's held writes, or neither, and it says so.
//!
//! All reads of a replica set name one cluster time; the list of collections and indexes, which no snapshot covers, is
//! read before that time and after the copy and must agree. A server without snapshots is read as it stands, unless
//! `--freeze` holds its writes: then a watchdog lets go after a limit whatever happens to the save.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use mongodb::{
    Client,
    bson::{Document, doc},
};
use ocopea_protocol::failure::TaskFailure;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    catalog::{self, Facts},
    connect::{self, Connected, Purpose, RIGHTS, UNKNOWN, code, connect, number, run, within},
    older::Disguise,
    raw,
};
use crate::data::{Held, LONGEST_FREEZE, Prepared, Subject, frozen_too_long};

/// How long the server may take to let go of its writes.
const LET_GO: Duration = Duration::from_secs(30);
/// The longest snapshot text that is read.
const LONGEST: usize = 64 * 1024;
/// How long a server keeps old versions unless told otherwise.
pub(super) const WINDOW: u64 = 300;

/// What copy tasks are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    version: u32,
    /// Whether the server's writes are held.
    pub(super) frozen: bool,
    /// The cluster time that every read names.
    pub(super) at: Option<(u32, u32)>,
    /// Digest of the list of collections and indexes before that time.
    pub(super) catalog: String,
    /// For people: why it is no plain snapshot.
    pub(super) why: String,
}

impl Snapshot {
    pub(super) fn parse(subject: &Subject, text: &str) -> Result<Self, TaskFailure> {
        let bad = |why: String| {
            let cause = format!("the holder's snapshot can't be read: {why}");
            TaskFailure::permanent("data.snapshot", format!("can't save \"{}\"", subject.name), cause)
        };
        if text.len() > LONGEST {
            return Err(bad("it is too long".to_owned()));
        }
        let snapshot: Self = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if snapshot.version != 1 {
            return Err(bad(format!("its version is {}", snapshot.version)));
        }
        Ok(snapshot)
    }

    /// Whether it is a replica set's snapshot; one with nothing to read has no time.
    pub(super) fn is_one_instant(&self) -> bool {
        self.at.is_some() || (!self.frozen && self.why.is_empty())
    }
}

/// Whether a server can be read at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instant {
    /// At this cluster time; `None` when there is nothing to read.
    Snapshot(Option<(u32, u32)>),
    /// It can't, and why.
    None(String),
}

/// Asks the server for a time at which everything can be read.
pub(super) async fn instant(subject: &Subject, connected: &Connected, facts: &Facts) -> Result<Instant, TaskFailure> {
    if !connected.is_replica_set() {
        return Ok(Instant::None("single server: no snapshot (use --freeze)".to_owned()));
    }
    let Some(one) = facts.collections.iter().find(|one| !one.view && !one.is_capped()) else {
        return Ok(Instant::Snapshot(None));
    };
    let command = read_of(&one.name, doc! {"level": "snapshot"});
    let verb = "open a snapshot of";
    let refusal = match catalog::first_answer(subject, connected, &one.database, verb, command).await {
        Ok(answer) => match answer.as_deref().and_then(at_cluster_time) {
            Some(at) => return Ok(Instant::Snapshot(Some(at))),
            None => "it names no cluster time".to_owned(),
        },
        Err(failure) if failure.is_retryable() || ["cancelled", RIGHTS].contains(&failure.code.as_str()) => {
            return Err(failure);
        }
        Err(failure) => failure.cause,
    };
    Ok(Instant::None(format!(
        "replica set without snapshot reads ({refusal}): read while it may be written to (use --freeze)"
    )))
}

/// Seconds and increment of the time that an answer was read at.
fn at_cluster_time(answer: &[u8]) -> Option<(u32, u32)> {
    let cursor = raw::get(answer, "cursor")?;
    let at = raw::get(cursor.value, "atClusterTime").filter(|at| at.kind == 0x11)?;
    let (increment, time) = (at.value.first_chunk::<4>()?, at.value.last_chunk::<4>()?);
    Some((u32::from_le_bytes(*time), u32::from_le_bytes(*increment)))
}

fn read_of(collection: &str, concern: Document) -> Document {
    doc! {"find": collection, "limit": 1, "singleBatch": true, "projection": {"_id": 1}, "readConcern": concern}
}

/// For how many seconds the server keeps what a snapshot needs.
pub(super) async fn window(subject: &Subject, connected: &Connected) -> Result<u64, TaskFailure> {
    let command = doc! {"getParameter": 1, "minSnapshotHistoryWindowInSeconds": 1};
    match run(subject, connected, "admin", "ask for the snapshot window of", command).await {
        Ok(answer) => Ok(answer.get("minSnapshotHistoryWindowInSeconds").and_then(number).unwrap_or(WINDOW)),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(_) => Ok(WINDOW),
    }
}

/// Connected, rights proven, and sure that it can hold what it shall hold.
pub(super) struct Ready {
    subject: Subject,
    connected: Connected,
    facts: Facts,
    freeze: bool,
}

/// See `DataService::prepare`.
pub(super) async fn prepare(subject: &Subject, freeze: bool) -> Result<Ready, TaskFailure> {
    let connected = connect(subject, Purpose::Save).await?;
    let catalog = catalog::read(subject, &connected).await?;
    let mut gaps = catalog.gaps;
    if !connected.is_router() {
        gaps.extend(catalog::rights(subject, &connected, &catalog.facts).await?);
    }
    if let Some(gap) = gaps.iter().find(|gap| gap.blocking) {
        let all: Vec<String> =
            gaps.iter().filter(|gap| gap.blocking).take(20).map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
        let code = if connected.sees_all && !gap.why.contains("may not read") { "data.unsupported" } else { RIGHTS };
        return Err(TaskFailure::permanent(code, format!("can't save \"{}\"", subject.name), all.join("; "))
            .next(gap.next.clone()));
    }
    let mut freeze = freeze;
    if freeze {
        // A snapshot needs no freeze: writers go on and the copy doesn't see them.
        freeze = matches!(instant(subject, &connected, &catalog.facts).await?, Instant::None(_));
    }
    if freeze {
        can_freeze(subject, &connected).await?;
    }
    Ok(Ready { subject: subject.clone(), connected, facts: catalog.facts, freeze })
}

/// Whether writes are held at this moment, by whomever.
async fn is_locked(subject: &Subject, connected: &Connected) -> Result<bool, TaskFailure> {
    let state =
        run(subject, connected, "admin", "look after the writes of", doc! {"currentOp": 1, "$ownOps": true}).await?;
    Ok(state.get_bool("fsyncLock").unwrap_or(false))
}

fn no_freeze(subject: &Subject, cause: String) -> TaskFailure {
    TaskFailure::permanent("save.freeze", format!("can't hold the writes of \"{}\"", subject.name), cause)
        .next("scale what writes to it to zero and save without --freeze")
}

/// Finds out, without holding anything, whether this server can hold its writes.
async fn can_freeze(subject: &Subject, connected: &Connected) -> Result<(), TaskFailure> {
    match is_locked(subject, connected).await {
        Ok(false) => {}
        Ok(true) => {
            return Err(TaskFailure::retryable(
                "save.freeze",
                format!("can't hold the writes of \"{}\"", subject.name),
                "they are held already, by another backup perhaps",
            )
            .next("when nothing else holds them: db.fsyncUnlock()"));
        }
        Err(failure) if failure.code == UNKNOWN => {
            return Err(no_freeze(subject, "this server has no fsyncLock".to_owned()));
        }
        Err(failure) => return Err(failure),
    }
    // Unlocking what isn't locked is an error that tells the command is known and allowed.
    match run(subject, connected, "admin", "hold the writes of", doc! {"fsyncUnlock": 1}).await {
        Err(failure) if failure.code == UNKNOWN => Err(no_freeze(subject, "this server has no fsyncLock".to_owned())),
        Err(failure) if failure.code == RIGHTS => {
            Err(no_freeze(subject, format!("{} may not: {}", connected.whom, failure.cause)).next(
                "grant its user the role hostManager, or scale what writes to it to zero and save without --freeze",
            ))
        }
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        _ => Ok(()),
    }
}

#[async_trait]
impl Prepared for Ready {
    async fn open(self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure> {
        let Self { subject, connected, facts, freeze } = *self;
        let mut snapshot =
            Snapshot { version: 1, frozen: false, at: None, catalog: facts.digest(), why: String::new() };
        let mut lock = None;
        if freeze {
            let admin = connected.client.database("admin");
            let locked = within(&subject, "hold the writes of", async {
                admin.run_command(doc! {"fsync": 1, "lock": true}).await
            });
            locked.await.map_err(
                |failure| if failure.code == UNKNOWN { no_freeze(&subject, failure.cause) } else { failure },
            )?;
            lock = Some(Lock::new(&subject, &connected));
            snapshot.frozen = true;
            snapshot.why = "writes were held (fsyncLock)".to_owned();
        } else {
            match instant(&subject, &connected, &facts).await? {
                Instant::Snapshot(at) => snapshot.at = at,
                Instant::None(why) => snapshot.why = why,
            }
        }
        let text = serde_json::to_string(&snapshot).map_err(|error| {
            TaskFailure::permanent("data.snapshot", format!("can't save \"{}\"", subject.name), error)
        })?;
        let witness =
            facts.collections.into_iter().find(|one| !one.view && !one.is_capped()).map(|one| (one.database, one.name));
        Ok(Box::new(Open { subject, connected, text, at: snapshot.at, witness, lock }))
    }
}

/// Held writes. Lets go when it is dropped, or when its time is up.
struct Lock {
    subject: Subject,
    client: Client,
    disguise: Option<Arc<Disguise>>,
    since: Duration,
    released: CancellationToken,
    expired: Arc<AtomicBool>,
    done: bool,
}

async fn unlock(client: &Client) -> mongodb::error::Result<()> {
    match client.database("admin").run_command(doc! {"fsyncUnlock": 1}).await {
        Ok(_) => Ok(()),
        // Nothing was held any more.
        Err(error) if code(&error) == Some(20) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Lock {
    fn new(subject: &Subject, connected: &Connected) -> Self {
        let client = &connected.client;
        let lock = Self {
            subject: subject.clone(),
            client: client.clone(),
            disguise: connected.disguise.clone(),
            since: subject.seams.clock.monotonic(),
            released: CancellationToken::new(),
            expired: Arc::default(),
            done: false,
        };
        let (released, expired, client) = (lock.released.clone(), Arc::clone(&lock.expired), client.clone());
        let (clock, name) = (Arc::clone(&subject.seams.clock), subject.name.clone());
        let disguise = lock.disguise.clone();
        let watchdog = async move {
            let _open = disguise;
            tokio::select! {
                () = released.cancelled() => {}
                () = clock.sleep(LONGEST_FREEZE) => {
                    expired.store(true, SeqCst);
                    if let Err(error) = unlock(&client).await {
                        tracing::error!(component = %name, %error, "held writes could not be released");
                    }
                }
            }
        };
        subject.seams.spawner.spawn("mongodb.watchdog", Box::pin(watchdog));
        lock
    }

    fn held(&self) -> Duration {
        self.subject.seams.clock.monotonic().saturating_sub(self.since)
    }

    fn check(&self) -> Result<(), TaskFailure> {
        if !self.expired.load(SeqCst) {
            return Ok(());
        }
        Err(frozen_too_long(&self.subject.name))
    }

    async fn release(mut self) -> Result<u64, TaskFailure> {
        let held = u64::try_from(self.held().as_millis()).unwrap_or(u64::MAX);
        self.check()?;
        // Not through `within`: a stopped task must let go all the more.
        let verb = "release the writes of";
        match self.subject.seams.timeout(LET_GO, unlock(&self.client)).await {
            Some(Ok(())) => {
                self.done = true;
                Ok(held)
            }
            Some(Err(error)) => Err(connect::failure(&self.subject, verb, &error)),
            None => Err(TaskFailure::retryable(
                "data.hangs",
                format!("can't {verb} \"{}\"", self.subject.name),
                "no answer",
            )),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.released.cancel();
        if self.done || self.expired.load(SeqCst) {
            return;
        }
        let (client, name) = (self.client.clone(), self.subject.name.clone());
        let disguise = self.disguise.clone();
        let (clock, work) = (Arc::clone(&self.subject.seams.clock), async move {
            let _open = disguise;
            unlock(&client).await
        });
        let letting_go = async move {
            tokio::select! {
                done = work => if let Err(error) = done {
                    tracing::error!(component = %name, %error, "held writes could not be released");
                },
                () = clock.sleep(LET_GO) => tracing::error!(component = %name, "held writes could not be released: no answer"),
            }
        };
        self.subject.seams.spawner.spawn("mongodb.release", Box::pin(letting_go));
    }
}

/// An open snapshot, held writes, or neither.
struct Open {
    subject: Subject,
    connected: Connected,
    text: String,
    at: Option<(u32, u32)>,
    witness: Option<(String, String)>,
    lock: Option<Lock>,
}

#[async_trait]
impl Held for Open {
    fn snapshot(&self) -> String {
        self.text.clone()
    }

    async fn check(&mut self) -> Result<(), TaskFailure> {
        if let Some(lock) = &self.lock {
            return lock.check();
        }
        let verb = "hold a snapshot of";
        let (Some((time, increment)), Some((database, name))) = (self.at, &self.witness) else {
            return run(&self.subject, &self.connected, "admin", verb, doc! {"ping": 1}).await.map(|_| ());
        };
        let at = mongodb::bson::Timestamp { time, increment };
        let command = read_of(name, doc! {"level": "snapshot", "atClusterTime": at});
        catalog::first_answer(&self.subject, &self.connected, database, verb, command).await.map(|_| ())
    }

    async fn release(self: Box<Self>) -> Result<u64, TaskFailure> {
        match self.lock {
            Some(lock) => lock.release().await,
            None => Ok(0),
        }
    }
}

/// See `DataService::unfreeze`.
pub(super) async fn unfreeze(subject: &Subject) -> Result<(), TaskFailure> {
    let connected = connect(subject, Purpose::Save).await?;
    match is_locked(subject, &connected).await {
        Ok(false) => return Ok(()),
        Ok(true) => {}
        // A server that doesn't know the word, or doesn't let us look, was never held by us.
        Err(failure) if [UNKNOWN, RIGHTS].contains(&failure.code.as_str()) => return Ok(()),
        Err(failure) => return Err(failure),
    }
    within(subject, "release the writes of", unlock(&connected.client)).await
}
