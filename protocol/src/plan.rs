//! The plan of a restore: what will be created, changed, pushed, loaded and left, and why.
//!
//! An agent at the target makes it (it reads the configuration; the coordinator never does), the coordinator
//! turns it into tasks, and each task checks that what it does is what the plan said.

use serde::{Deserialize, Serialize};

use crate::{
    image::DataKind,
    inventory::ObjectRef,
    names::{ComponentName, Digest, EnvironmentName},
};

/// One line of the plan for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// `create`, `change`, `push`, `load`, `leave`, `wait`.
    pub action: StepAction,
    /// What it acts on: `deployment/lets-chat`.
    pub what: String,
    /// What is done: `image 1.4.1 → 1.4.2 (sha256:77ab…)`. Never a secret's value.
    pub detail: String,
    /// Why; empty for what is plain.
    pub why: String,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepAction {
    /// Makes something.
    Create,
    /// Makes something differently from how it was saved.
    Change,
    /// Brings a container image to the site's registry.
    Push,
    /// Loads data.
    Load,
    /// Leaves something out.
    Leave,
    /// Waits.
    Wait,
}

/// Why an image can't be restored here as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The thing: `persistent volume claim uploads`.
    pub what: String,
    /// What it needs.
    pub needed: String,
    /// What was found.
    pub found: String,
    /// What would mend it.
    pub next: String,
}

/// Where one container image will come from at the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPlacement {
    /// The component.
    pub component: ComponentName,
    /// The digest that will run.
    pub digest: Digest,
    /// `HOST/PATH/NAME` without tag or digest, as the nodes will pull it.
    pub target: String,
    /// Pushed from the repository; else it is already in the site's registry (`--set`).
    pub push: bool,
}

/// How one data service is brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPlacement {
    /// The component.
    pub component: ComponentName,
    /// Its kind.
    pub kind: DataKind,
    /// Its manifest in the repository.
    pub manifest: Digest,
    /// Objects that make its server run; applied before the load, after the foundation. Empty for volumes.
    pub server: Vec<ObjectRef>,
    /// Volume claims to be made for it before its load (volumes).
    pub claims: Vec<String>,
}

/// A whole plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The environment's name, which is its namespace.
    pub environment: EnvironmentName,
    /// Lines for people, in the order of execution.
    pub steps: Vec<PlanStep>,
    /// Not empty: nothing can be executed.
    pub refusals: Vec<Refusal>,
    /// Things worth knowing that stop nothing.
    pub notices: Vec<String>,
    /// Container images.
    pub containers: Vec<ContainerPlacement>,
    /// Data services.
    pub data: Vec<DataPlacement>,
    /// Digest over the rewritten objects, as they will be applied.
    pub objects_digest: String,
    /// SHA-256 over everything above, in hexadecimal with `sha256:` in front; what a user approves.
    pub digest: String,
}

/// Which part of the configuration an apply task makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ApplyPhase {
    /// What starts nothing: secrets, config maps, service accounts, roles, services, volume claims …
    Foundation,
    /// The server of one data service.
    Server(ComponentName),
    /// Everything else.
    Consumers,
}

/// A wish to run another version of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionChoice {
    /// The component.
    pub component: ComponentName,
    /// A tag, or a digest behind '@'.
    pub version: String,
}
