//! The holder: one snapshot per database, open and harmless.
//!
//! Tables are locked ACCESS SHARE *before* the snapshot is taken, because a TRUNCATE between export and lock would
//! make a table read as empty; the list of tables is then compared under the snapshot. Nobody waits for us longer
//! than two seconds: a session that wants one of these locks makes the holder give way, and the save tries again.

use async_trait::async_trait;
use futures::future::try_join_all;
use ocopea_protocol::{failure::TaskFailure, inventory::Gap};
use serde::{Deserialize, Serialize};

use super::{
    catalog::Lockable,
    connect::{APPLICATION, Server, Session},
    rights, sql,
};
use crate::data::{Held, Prepared, Subject};

/// Databases of one server that are copied together at most: each holds a connection.
const MOST_DATABASES: usize = 200;
/// How often the tables are locked anew because their list changed in between.
const TRIES: usize = 5;
/// Tables named in one LOCK statement.
const AT_ONCE: usize = 500;
/// The longest snapshot text that is read.
const LONGEST: usize = 1024 * 1024;

/// What copy tasks are told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub version: u32,
    /// The holder's processes: gone means lost.
    pub pids: Vec<i64>,
    pub databases: Vec<Opened>,
}

/// One database's snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Opened {
    pub name: String,
    pub snapshot: String,
}

impl Snapshot {
    pub(super) fn parse(server: &Server, text: &str) -> Result<Self, TaskFailure> {
        let bad = |why: String| server.failure("data.snapshot", format!("the holder's snapshot can't be read: {why}"));
        if text.len() > LONGEST {
            return Err(bad("it is too long".to_owned()));
        }
        let snapshot: Self = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
        if snapshot.version != 1 {
            return Err(bad(format!("its version is {}", snapshot.version)));
        }
        Ok(snapshot)
    }
}

/// Connected to every database, rights proven.
pub(super) struct Ready {
    sessions: Vec<Session>,
    watcher: Session,
}

/// Connects and checks rights.
pub(super) async fn prepare(subject: &Subject) -> Result<Ready, TaskFailure> {
    let (mut watcher, who) = Server::sign_in(subject, "save").await?;
    let server = watcher.server.clone();
    let closed = watcher.closed_databases().await?;
    let mut gaps: Vec<Gap> = closed.iter().map(|name| rights::closed(&server.name, name)).collect();
    let names: Vec<String> = watcher.databases().await?.into_iter().map(|database| database.name).collect();
    if names.len() > MOST_DATABASES {
        let cause = format!("it has {} databases; at most {MOST_DATABASES} are copied together", names.len());
        return Err(server.failure("data.too-many", cause));
    }
    let mut sessions = Vec::with_capacity(names.len());
    for some in names.chunks(8) {
        let connected = futures::future::join_all(some.iter().map(|name| server.connect(name))).await;
        for (name, session) in some.iter().zip(connected) {
            match session {
                Ok(mut session) => {
                    if name == "template1" && session.untouched().await? {
                        session.close().await;
                    } else {
                        sessions.push(session);
                    }
                }
                Err(failure) if failure.code == "data.rights" => gaps.push(rights::shut(&server, name, failure.cause)),
                Err(failure) => return Err(failure),
            }
        }
    }
    let found =
        try_join_all(sessions.iter_mut().map(async |session| rights::gaps(session, &who, &subject.name).await)).await?;
    gaps.extend(found.into_iter().flatten());
    if let Some(failure) = rights::failure(&server, &gaps) {
        return Err(failure);
    }
    Ok(Ready { sessions, watcher })
}

#[async_trait]
impl Prepared for Ready {
    async fn open(mut self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure> {
        // All locks first, so that the instants of all databases lie close together.
        let mut lists = try_join_all(self.sessions.iter_mut().map(lock)).await?;
        let mut opened = try_join_all(self.sessions.iter_mut().map(export)).await?;
        for ((session, list), opened) in self.sessions.iter_mut().zip(&mut lists).zip(&mut opened) {
            let mut tries = 1;
            while *list != session.lockables().await? {
                if tries == TRIES {
                    let cause =
                        format!("tables of database \"{}\" are made and dropped all the time", session.database);
                    return Err(session.server.retry("data.moving", cause));
                }
                tries += 1;
                session.run("ROLLBACK").await?;
                *list = lock(session).await?;
                *opened = export(session).await?;
            }
        }
        let snapshot =
            Snapshot { version: 1, pids: self.sessions.iter().map(|session| session.pid).collect(), databases: opened };
        let text = serde_json::to_string(&snapshot)
            .map_err(|error| self.watcher.server.failure("data.snapshot", error.to_string()))?;
        let watch = Watch { session: self.watcher, holders: snapshot.pids };
        Ok(Box::new(Open { text, sessions: self.sessions, watch }))
    }
}

/// Begins the transaction and locks every table; the snapshot isn't taken yet.
async fn lock(session: &mut Session) -> Result<Vec<Lockable>, TaskFailure> {
    let mut tries = 1;
    loop {
        let list = session.lockables().await?;
        let mut statement = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '2s'".to_owned();
        for tables in list.chunks(AT_ONCE) {
            let names: Vec<String> =
                tables.iter().map(|table| format!("ONLY {}", sql::qualified(&table.schema, &table.name))).collect();
            statement.push_str(&format!("; LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")));
        }
        match session.run(&statement).await {
            Ok(()) => return Ok(list),
            // Dropped or renamed between listing and locking.
            Err(failure) if failure.cause.contains("SQLSTATE 42P01") && tries < TRIES => {
                tries += 1;
                session.run("ROLLBACK").await?;
            }
            Err(failure) if failure.code == "data.full" => {
                return Err(failure.next("raise max_locks_per_transaction of the server: one lock per table is needed"));
            }
            Err(mut failure) => {
                if failure.code == "data.locked" {
                    failure.cause = format!("a table stays locked by another session: {}", failure.cause);
                    failure.next = "wait until that session is done, or end it".to_owned();
                }
                return Err(failure);
            }
        }
    }
}

/// Takes the snapshot, now, and makes it known.
async fn export(session: &mut Session) -> Result<Opened, TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        snapshot: String,
    }
    let row: Row = session.one("SELECT pg_export_snapshot() AS snapshot").await?;
    Ok(Opened { name: session.database.clone(), snapshot: row.snapshot })
}

/// Looks whether the snapshot still stands and nobody waits for it.
pub(super) struct Watch {
    pub session: Session,
    /// The holder's processes.
    pub holders: Vec<i64>,
}

impl Watch {
    pub(super) async fn look(&mut self) -> Result<(), TaskFailure> {
        #[derive(Deserialize)]
        struct Row {
            alive: i64,
            waiting: Vec<i64>,
        }
        let holders: Vec<String> = self.holders.iter().map(i64::to_string).collect();
        let holders = holders.join(",");
        // Who waits is visible in pg_locks to everybody, unlike in pg_stat_activity; our own sessions are visible to us.
        let row: Row = self
            .session
            .one(&format!(
                "WITH waiting AS MATERIALIZED (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted), \
                 ours AS MATERIALIZED (SELECT array_agg(pid) || '{{{holders}}}'::int4[] AS pids FROM pg_stat_activity \
                   WHERE application_name = '{APPLICATION}' AND usename = current_user) \
                 SELECT (SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ('{{{holders}}}'::int4[])) AS alive, \
                 ARRAY(SELECT w.pid FROM waiting w, ours o WHERE w.pid <> ALL (o.pids) \
                   AND pg_blocking_pids(w.pid) && o.pids) AS waiting"
            ))
            .await?;
        let server = &self.session.server;
        if row.alive < self.holders.len() as i64 {
            return Err(server.retry("data.snapshot-lost", "the snapshot is no longer held: its session ended"));
        }
        if let Some(pid) = row.waiting.first() {
            return Err(server
                .retry(
                    "data.gave-way",
                    format!("the copy gave way: the server's process {pid} waits for a table that the snapshot holds"),
                )
                .next("it is tried again; save when no migration or other change of tables is running"));
        }
        Ok(())
    }
}

/// An open snapshot. Dropping it closes its connections, which ends the transactions at once.
struct Open {
    text: String,
    sessions: Vec<Session>,
    watch: Watch,
}

#[async_trait]
impl Held for Open {
    fn snapshot(&self) -> String {
        self.text.clone()
    }

    async fn check(&mut self) -> Result<(), TaskFailure> {
        self.watch.look().await
    }

    async fn release(self: Box<Self>) -> Result<u64, TaskFailure> {
        futures::future::join_all(self.sessions.into_iter().map(Session::close)).await;
        self.watch.session.close().await;
        Ok(0)
    }
}
