//! The messages themselves. Requests are answered directly; events need no answer.

use serde::{Deserialize, Serialize};

use crate::{
    failure::TaskFailure,
    identity::{Sealed, SignIn},
    ids::{InstanceId, SessionId, TaskId},
    needs::Capabilities,
    task::{Claimed, HolderState, Outcome, Progress, TaskKind},
    time::Timestamp,
};

/// Coordinator → site: there is something to do. A hint only; the catalog is the truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskHint {
    /// Which task.
    pub task: TaskId,
    /// What kind.
    pub kind: TaskKind,
    /// The oldest protocol version that can do it.
    pub least_version: u16,
}

/// Agent → coordinator, answered with an [`Answer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// "I would do it."
    Claim {
        /// Which.
        task: TaskId,
        /// Who asks.
        instance: InstanceId,
    },
    /// "I am still at it."
    Heartbeat {
        /// Which.
        claimed: Claimed,
        /// How far.
        progress: Progress,
        /// Of a holder.
        holder: Option<HolderState>,
    },
    /// "It ended like this." Answered once it is in the catalog.
    Finish {
        /// Which.
        claimed: Claimed,
        /// How.
        outcome: Outcome,
    },
    /// "I stop before it is done": another may take it at once.
    HandBack {
        /// Which.
        claimed: Claimed,
    },
    /// "What is there for me?": asked now and then, because hints may be lost.
    Poll {
        /// Who asks.
        instance: InstanceId,
        /// At most this many.
        most: u32,
        /// Counts the polls of this instance.
        turn: u64,
        /// Random, another one in each poll. Two polls of one turn with different marks come from two processes that
        /// believe to be one: a clone.
        mark: u64,
    },
    /// What this site can do.
    Report(Box<SiteReport>),
    /// "I am an agent of this site." Comes before everything else, and again when it is asked for.
    SignIn(Box<SignIn>),
    /// "I took the invitation to this session."
    Attach {
        /// Which.
        session: SessionId,
        /// Who.
        instance: InstanceId,
    },
    /// "It has begun", or why it can't.
    Begun {
        /// Which.
        session: SessionId,
        /// Who.
        instance: InstanceId,
        /// Why not.
        failure: Option<TaskFailure>,
    },
    /// A piece from the cluster.
    Push {
        /// Of which session.
        session: SessionId,
        /// Who.
        instance: InstanceId,
        /// Counts the pieces of this direction, from 0.
        number: u64,
        /// See [`crate::session::Cipher`].
        sealed: Vec<u8>,
    },
    /// "What is next for the cluster?" Answered when there is something, or after a while.
    Pull {
        /// Of which session.
        session: SessionId,
        /// Who.
        instance: InstanceId,
        /// The number of the piece that is wanted, from 0.
        number: u64,
    },
    /// "The keys of the store that came with the task end soon, or the store refuses them": asks for newer ones.
    StoreKeys {
        /// For which attempt.
        claimed: Claimed,
        /// The id of the keys that the store refuses, if it does.
        refused: Option<String>,
    },
}

impl Request {
    /// The stable word for logs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Claim { .. } => "claim",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Finish { .. } => "finish",
            Self::HandBack { .. } => "hand-back",
            Self::Poll { .. } => "poll",
            Self::Report(_) => "report",
            Self::SignIn(_) => "sign-in",
            Self::Attach { .. } => "attach",
            Self::Begun { .. } => "begun",
            Self::Push { .. } => "push",
            Self::Pull { .. } => "pull",
            Self::StoreKeys { .. } => "store-keys",
        }
    }
}

/// Coordinator → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The task is yours for `lease_ms`; heartbeat well before.
    Granted {
        /// Fence for all that follows.
        claimed: Claimed,
        /// How long.
        lease_ms: u64,
        /// What to do: a `TaskSpec` in its envelope, sealed to the instance that claimed it.
        sealed: Sealed,
    },
    /// Not, or no longer, yours: stop at once, touch nothing more.
    Refused {
        /// Why: `taken`, `ended`, `unknown`, `lease lost`.
        why: String,
    },
    /// Go on.
    Continue {
        /// The lease from now on.
        lease_ms: u64,
        /// What a holder does now.
        holder: HolderOrder,
    },
    /// Stop; report [`Outcome::Failed`] with a cancelled failure.
    Cancel,
    /// It is in the catalog.
    Recorded,
    /// Tasks to claim.
    Tasks(Vec<TaskHint>),
    /// The request could not be handled now: ask again later.
    TryLater {
        /// Why.
        why: String,
    },
    /// Nobody knows this instance: sign in, then ask again.
    SignIn,
    /// This instance's word counts no more (it was cloned, or its site was removed): stop what runs, touch nothing more,
    /// and begin as another instance.
    Ended {
        /// Why.
        why: String,
    },
    /// The session is yours: its `Opening` in its envelope, sealed to the instance.
    Attached {
        /// The seal.
        sealed: Sealed,
    },
    /// The piece that was asked for; `None`: there is none yet, ask again.
    Piece {
        /// See [`crate::session::Cipher`].
        sealed: Option<Vec<u8>>,
    },
    /// Keys of the store in their envelope, sealed to the instance for that attempt.
    StoreKeys {
        /// The seal.
        sealed: Sealed,
    },
}

/// What a holder of a snapshot is told with each heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HolderOrder {
    /// Nothing of the kind, or keep waiting: ask again soon.
    Wait,
    /// All are prepared: open now.
    OpenNow,
    /// Keep it open.
    Hold,
    /// All copies are made: let go and finish.
    Release,
}

/// What an agent found out about its site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Who reports.
    pub instance: InstanceId,
    /// When, by the agent's clock.
    pub at: Timestamp,
    /// The agent's program version.
    pub agent_version: String,
    /// `ready`, or what is missing.
    pub state: SiteState,
    /// Platform and version: `Kubernetes 1.36.0`.
    pub platform: String,
    /// Nodes that are ready.
    pub nodes: u32,
    /// `linux/amd64` …
    pub architectures: Vec<String>,
    /// Kinds of data services that it can copy.
    pub data_kinds: Vec<String>,
    /// Whether namespaces may be made.
    pub may_create_namespaces: bool,
    /// The registry that restores push to and nodes pull from, if one is configured and answers.
    pub registry: Option<String>,
    /// Storage classes, the default one first.
    pub storage_classes: Vec<String>,
    /// What can't be done, each with the rule or setting that would mend it.
    pub missing: Vec<String>,
    /// Applications that run there.
    pub applications: Vec<ApplicationFound>,
    /// What the agent was set up to do at most.
    #[serde(default)]
    pub limits: Option<SiteLimits>,
    /// All that verdicts compare with what an image needs.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// What one agent of a site does at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteLimits {
    /// Copies at the same time.
    pub copies: u32,
    /// Bytes per second to repositories; `None`: as many as there is room for.
    pub upload: Option<u64>,
    /// Bytes per second from repositories.
    pub download: Option<u64>,
}

impl Default for SiteLimits {
    fn default() -> Self {
        Self { copies: 4, upload: None, download: None }
    }
}

/// Whether a site can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SiteState {
    /// All is there.
    Ready,
    /// Usable, but something is missing.
    Limited,
    /// Not to be reached; the reason.
    Unreachable(String),
}

/// A namespace that holds workloads, cheaply counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationFound {
    /// Its namespace.
    pub namespace: String,
    /// Distinct container images.
    pub containers: u32,
    /// Workload objects.
    pub workloads: u32,
    /// Data services by kind, as far as they can be told without connecting.
    pub data: Vec<String>,
    /// Bytes of claimed volumes.
    pub claimed_bytes: u64,
}
