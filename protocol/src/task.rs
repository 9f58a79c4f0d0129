//! What agents are told to do, and what they answer.
//!
//! A `TaskSpec` is fully decided: execution decides nothing. It comes in the answer to a claim.
//! To add a kind of task: one variant in [`TaskSpec`] and [`TaskKind`], one in [`TaskOutput`] if it answers
//! something new, one arm in the agent's `execute.rs`, its place in a plan of the coordinator, its undo there,
//! golden bytes in `envelope`, and a new protocol version.

use serde::{Deserialize, Serialize};

use crate::{
    failure::TaskFailure,
    ids::{EnvironmentId, InstanceId, OperationId, TaskId},
    image::{ComponentCopied, Consistency, ImageAccess, StreamInfo},
    inventory::{ContainerFound, DataFound, Inventory},
    names::{ComponentName, Digest, EnvironmentName, Namespace},
    needs::Need,
    plan::{ApplyPhase, ContainerPlacement, DataPlacement, RestorePlan, VersionChoice},
    secret::Secret,
    time::Timestamp,
};

/// Credentials that the user gave for one data service instead of the application's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenCredentials {
    /// The data service.
    pub service: ComponentName,
    /// User name.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// Which application, and how it is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its namespace.
    pub namespace: Namespace,
    /// A label selector within it.
    pub selector: Option<String>,
    /// Names (components, gaps) that are left out.
    pub without: Vec<String>,
    /// Other credentials than the application's own.
    pub credentials: Vec<GivenCredentials>,
    /// Hold writes while data is copied.
    pub freeze: bool,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "few are there at a time; each is read once and done")]
pub enum TaskSpec {
    /// Finds out what an application consists of; copies nothing.
    Inspect {
        /// Which application.
        source: Source,
    },
    /// Writes the configuration component.
    CopyConfig {
        /// Which application.
        source: Source,
        /// Where to.
        access: ImageAccess,
        /// [`Inventory::fingerprint`] that must still hold.
        fingerprint: String,
    },
    /// Copies one container image from its registry.
    CopyContainer {
        /// Its namespace, for pull secrets.
        source: Source,
        /// Which.
        container: ContainerFound,
        /// Where to.
        access: ImageAccess,
    },
    /// Opens a data service's snapshot at the agreed instant and holds it until released.
    OpenSnapshot {
        /// Which application.
        source: Source,
        /// Which data service.
        data: DataFound,
        /// Which round of opening: a lost holder makes all open again.
        epoch: u32,
    },
    /// Copies one data service.
    CopyData {
        /// Which application.
        source: Source,
        /// Which data service.
        data: DataFound,
        /// The task that holds its snapshot; must be of the same epoch.
        holder: TaskId,
        /// The holder's attempt.
        holder_attempt: u32,
        /// What the holder said (driver's JSON: exported snapshot name, cluster time …).
        snapshot: String,
        /// Where to.
        access: ImageAccess,
    },
    /// Plans a restore: reads record and configuration, rewrites, dry-runs on the API server.
    PlanRestore(RestoreTarget),
    /// Makes the environment's namespace; refuses one that exists unless this operation made it.
    CreateNamespace(EnvironmentMark),
    /// Deletes the namespace if, and only if, it carries this environment's mark, and waits until it is gone.
    RemoveNamespace(EnvironmentMark),
    /// Pushes a container image from the repository to the site's registry.
    PushContainer {
        /// Which, and where to.
        placement: ContainerPlacement,
        /// The manifest as it was saved lies in this image.
        access: ImageAccess,
        /// The operation's mark for what it pushes.
        environment: EnvironmentId,
    },
    /// Takes back what was pushed for an environment and nobody else's environment at the site uses.
    RemoveContainer {
        /// Which.
        placement: ContainerPlacement,
        /// For which environment it was pushed.
        environment: EnvironmentId,
    },
    /// Applies one phase of the configuration.
    ApplyObjects {
        /// As in the plan.
        target: RestoreTarget,
        /// What.
        phase: ApplyPhase,
        /// [`RestorePlan::objects_digest`] that must come out again.
        objects_digest: String,
    },
    /// Loads one data service, counts it, and compares with the record.
    LoadData {
        /// As in the plan.
        target: RestoreTarget,
        /// Which.
        placement: DataPlacement,
        /// What must have arrived.
        streams: Vec<StreamInfo>,
    },
    /// Waits until all workloads are ready, and finds the URL.
    AwaitReady {
        /// As in the plan.
        target: RestoreTarget,
        /// How long, in seconds.
        deadline_s: u32,
    },
    /// Removes helpers (mover pods, freeze locks) that an operation may have left in a namespace.
    CleanUp {
        /// Where.
        namespace: Namespace,
        /// Whose.
        operation: OperationId,
        /// Data services whose writes may still be held.
        frozen: Vec<DataFound>,
        /// For credentials.
        source: Option<Source>,
    },
}

/// What the tasks of one restore have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreTarget {
    /// The environment that is made.
    pub mark: EnvironmentMark,
    /// How to read the image.
    pub access: ImageAccess,
    /// The record.
    pub record: Digest,
    /// Other versions than the saved ones.
    pub versions: Vec<VersionChoice>,
    /// Digests that the plan resolved `versions` to; empty while planning.
    pub containers: Vec<ContainerPlacement>,
}

/// What is written on everything that is made for an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentMark {
    /// Its id.
    pub environment: EnvironmentId,
    /// Its name and namespace.
    pub name: EnvironmentName,
    /// The operation that makes it.
    pub operation: OperationId,
    /// The record it comes from.
    pub record: Digest,
}

/// The kind alone: what a hint carries and metrics count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "see TaskSpec")]
pub enum TaskKind {
    Inspect,
    CopyConfig,
    CopyContainer,
    OpenSnapshot,
    CopyData,
    PlanRestore,
    CreateNamespace,
    RemoveNamespace,
    PushContainer,
    RemoveContainer,
    ApplyObjects,
    LoadData,
    AwaitReady,
    CleanUp,
}

impl TaskSpec {
    /// Whether it reads or writes an image.
    pub fn uses_repository(&self) -> bool {
        match self {
            Self::CopyConfig { .. }
            | Self::CopyContainer { .. }
            | Self::CopyData { .. }
            | Self::PlanRestore(_)
            | Self::PushContainer { .. }
            | Self::ApplyObjects { .. }
            | Self::LoadData { .. }
            | Self::AwaitReady { .. } => true,
            Self::Inspect { .. }
            | Self::OpenSnapshot { .. }
            | Self::CreateNamespace(_)
            | Self::RemoveNamespace(_)
            | Self::RemoveContainer { .. }
            | Self::CleanUp { .. } => false,
        }
    }

    /// Whether it makes, fills, looks after or removes an environment, or plans one: where saves and restores have rights
    /// of their own, these need those of restores.
    pub fn restores(&self) -> bool {
        match self {
            Self::PlanRestore(_)
            | Self::CreateNamespace(_)
            | Self::RemoveNamespace(_)
            | Self::PushContainer { .. }
            | Self::RemoveContainer { .. }
            | Self::ApplyObjects { .. }
            | Self::LoadData { .. }
            | Self::AwaitReady { .. } => true,
            Self::Inspect { .. }
            | Self::CopyConfig { .. }
            | Self::CopyContainer { .. }
            | Self::OpenSnapshot { .. }
            | Self::CopyData { .. }
            | Self::CleanUp { .. } => false,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::Inspect { .. } => TaskKind::Inspect,
            Self::CopyConfig { .. } => TaskKind::CopyConfig,
            Self::CopyContainer { .. } => TaskKind::CopyContainer,
            Self::OpenSnapshot { .. } => TaskKind::OpenSnapshot,
            Self::CopyData { .. } => TaskKind::CopyData,
            Self::PlanRestore(_) => TaskKind::PlanRestore,
            Self::CreateNamespace(_) => TaskKind::CreateNamespace,
            Self::RemoveNamespace(_) => TaskKind::RemoveNamespace,
            Self::PushContainer { .. } => TaskKind::PushContainer,
            Self::RemoveContainer { .. } => TaskKind::RemoveContainer,
            Self::ApplyObjects { .. } => TaskKind::ApplyObjects,
            Self::LoadData { .. } => TaskKind::LoadData,
            Self::AwaitReady { .. } => TaskKind::AwaitReady,
            Self::CleanUp { .. } => TaskKind::CleanUp,
        }
    }
}

impl TaskKind {
    /// The stable word for logs, metrics and the catalog.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::CopyConfig => "copy-config",
            Self::CopyContainer => "copy-container",
            Self::OpenSnapshot => "open-snapshot",
            Self::CopyData => "copy-data",
            Self::PlanRestore => "plan-restore",
            Self::CreateNamespace => "create-namespace",
            Self::RemoveNamespace => "remove-namespace",
            Self::PushContainer => "push-container",
            Self::RemoveContainer => "remove-container",
            Self::ApplyObjects => "apply-objects",
            Self::LoadData => "load-data",
            Self::AwaitReady => "await-ready",
            Self::CleanUp => "clean-up",
        }
    }

    /// Whether the task only waits (a holder): it takes no permit for copying.
    pub fn is_light(self) -> bool {
        matches!(self, Self::OpenSnapshot | Self::AwaitReady)
    }

    /// Whether the task moves an application's bytes. The others are steps of seconds, and must not wait for hours
    /// behind those: what takes back is among them.
    pub fn moves_bytes(self) -> bool {
        matches!(self, Self::CopyConfig | Self::CopyContainer | Self::CopyData | Self::PushContainer | Self::LoadData)
    }
}

/// What a task brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskOutput {
    /// Nothing but success.
    Done,
    /// Of [`TaskSpec::Inspect`].
    Inspected(Box<Inventory>),
    /// Of [`TaskSpec::CopyConfig`].
    ConfigCopied {
        /// The component.
        component: ComponentCopied,
        /// Digest over the canonical configuration, keyed per team.
        config_digest: String,
        /// Number of objects.
        objects: u64,
        /// API groups, versions and kinds used.
        kinds: Vec<String>,
        /// What else a site must have; `None` where it was not looked for.
        #[serde(default)]
        needs: Option<Vec<Need>>,
    },
    /// Of [`TaskSpec::CopyContainer`].
    ContainerCopied {
        /// The component: its manifest is the container's own (or the index).
        component: ComponentCopied,
        /// Manifests of each platform: `linux/amd64` and digest.
        platforms: Vec<(String, Digest)>,
    },
    /// Of [`TaskSpec::OpenSnapshot`], once released.
    SnapshotReleased {
        /// For how long writes were held, in milliseconds.
        frozen_ms: u64,
    },
    /// Of [`TaskSpec::CopyData`].
    DataCopied {
        /// The component.
        component: ComponentCopied,
        /// Its streams.
        streams: Vec<StreamInfo>,
        /// How consistent.
        consistency: Consistency,
        /// The server's version and features used.
        version: Option<String>,
        /// What a target must have.
        features: Vec<String>,
        /// Things worth knowing: what is outside this copy.
        notices: Vec<String>,
    },
    /// Of [`TaskSpec::PlanRestore`].
    Planned(Box<RestorePlan>),
    /// Of [`TaskSpec::LoadData`].
    Loaded {
        /// As counted at the target.
        streams: Vec<StreamInfo>,
        /// What could not be brought back and was said in the plan, or differs harmlessly.
        notices: Vec<String>,
    },
    /// Of [`TaskSpec::AwaitReady`].
    Ready {
        /// The first URL found, if any.
        url: Option<String>,
        /// How to reach it where there is none.
        notes: Vec<String>,
    },
}

/// Work in numbers, for people who wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done: `reading`, `verifying` …
    pub phase: String,
    /// Raw bytes done.
    pub bytes: u64,
    /// Raw bytes expected, 0 when unknown.
    pub of_bytes: u64,
    /// Raw bytes that were new to the repository.
    pub new_bytes: u64,
    /// Items (documents, rows, files) done.
    pub items: u64,
}

/// A prepared holder asks, or a holder reports that its snapshot is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HolderState {
    /// Connected, rights checked, ready to open.
    Prepared,
    /// Open: the driver's JSON for the copy tasks.
    Open {
        /// See [`TaskSpec::CopyData`].
        snapshot: String,
        /// When it was opened by the agent's clock, for people only.
        at: Timestamp,
    },
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Well.
    Succeeded(Box<TaskOutput>),
    /// Not.
    Failed(TaskFailure),
}

/// Which attempt of which task, by whom: fences every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The task.
    pub task: TaskId,
    /// Its operation.
    pub operation: OperationId,
    /// The attempt, from 1.
    pub attempt: u32,
    /// Who works on it.
    pub instance: InstanceId,
}
