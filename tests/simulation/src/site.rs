//! A cluster as far as the tasks of an agent see it: applications that run and change, namespaces with marks, a registry,
//! snapshots that live as long as whoever holds them, helpers that may be left over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use ocopea_protocol::{
    ids::{EnvironmentId, OperationId, TaskId},
    names::Digest,
    task::EnvironmentMark,
};

use crate::runtime::{Pid, lock};

/// What an application consists of. Its data changes with its version, as a whole.
#[derive(Clone, Debug)]
pub struct Application {
    pub name: String,
    pub version: u64,
    /// Data services whose writes are held, and for which operation.
    pub frozen: BTreeMap<String, OperationId>,
}

/// The data services of every application: one that is asked for its data, and one whose files are read by a helper.
pub const SERVICES: [&str; 2] = ["db", "files"];
/// Streams of a data service: one changes, one doesn't.
pub const STREAMS: [&str; 2] = ["changing", "constant"];

/// The items of a stream at a version.
pub fn items(application: &str, service: &str, stream: &str, version: u64) -> Vec<String> {
    let version = if stream == "constant" { 0 } else { version };
    (0..25).map(|item| format!("{application}/{service}/{stream} version {version} item {item}\n")).collect()
}

/// Data that was restored.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Who loads it just now, or did.
    pub by: u64,
    pub streams: BTreeMap<String, Vec<u8>>,
    pub complete: bool,
}

/// A namespace that was made for an environment.
#[derive(Clone, Debug)]
pub struct Namespace {
    pub mark: EnvironmentMark,
    pub objects: BTreeSet<String>,
    pub data: BTreeMap<String, Loaded>,
    pub ready: bool,
}

/// A snapshot that somebody holds open.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub by: Pid,
    pub application: String,
    pub version: u64,
}

/// What one agent is doing.
#[derive(Clone, Debug)]
pub struct Doing {
    pub pid: Pid,
    pub attempt: u32,
    /// It may go on for a while where another has begun.
    pub was_frozen: bool,
}

/// A helper.
#[derive(Clone, PartialEq, Eq)]
pub struct Mover {
    pub operation: OperationId,
    /// What for.
    pub service: String,
    /// Begun behind the clean-up, by an agent that was frozen meanwhile and has not looked at its lease yet: nobody but
    /// itself ends it, and nobody works in it.
    pub late: bool,
}

#[derive(Default)]
pub struct State {
    pub next: u64,
    pub applications: BTreeMap<String, Application>,
    pub namespaces: BTreeMap<String, Namespace>,
    /// What was pushed, by its place.
    pub registry: BTreeMap<String, (EnvironmentId, Digest)>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub movers: BTreeMap<u64, Mover>,
    /// Operations that were cleaned up behind.
    pub cleaned: BTreeSet<OperationId>,
    pub doing: BTreeMap<TaskId, Vec<Doing>>,
}

/// A cluster; cheap to clone.
#[derive(Clone, Default)]
pub struct Site(Arc<Mutex<State>>);

impl Site {
    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// What a process held open ends with it.
    pub fn process_ended(&self, pid: Pid) {
        let mut state = self.state();
        state.snapshots.retain(|_, snapshot| snapshot.by != pid);
        for doing in state.doing.values_mut() {
            doing.retain(|doing| doing.pid != pid);
        }
    }

    /// Whoever works may be taken for dead.
    pub fn lease_may_be_lost(&self) {
        self.state().doing.values_mut().flatten().for_each(|doing| doing.was_frozen = true);
    }

    /// Somebody who was frozen may go on where another began.
    pub fn process_frozen(&self, pid: Pid) {
        for doing in self.state().doing.values_mut().flatten() {
            doing.was_frozen |= doing.pid == pid;
        }
    }
}
