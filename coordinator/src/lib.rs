//! The coordinator: plans, the durable engine that carries them out through agents, the REST API.
//!
//! `plan` is pure: what an operation needs next. `engine` runs it inside the transaction of each outcome.
//! `serve` answers agents' requests; `background` relays hints, reaps leases and does the coordinator's own tasks;
//! `api` is what people and programs speak with.

mod agents;
pub mod api;
pub mod background;
pub mod broker;
pub mod engine;
pub mod metrics;
pub mod plan;
pub mod repositories;
mod serve;
pub mod sessions;
pub mod status;
pub mod tokens;
pub mod vault;

use std::sync::Arc;

use ocopea_catalog_db::Catalog;
use ocopea_protocol::{bus::CoordinatorBus, ids::InstanceId, seams::Seams};
use ocopea_repository::Repository;
use tokio_util::sync::CancellationToken;

use vault::Vault;

/// What the coordinator runs on.
pub struct Coordinator {
    /// The catalog.
    pub catalog: Catalog,
    /// The copy repositories, with their keys.
    pub repositories: repositories::Repositories,
    /// Seals what must be kept but not seen.
    pub vault: Vault,
    /// The way to the agents.
    pub bus: Arc<dyn CoordinatorBus>,
    /// Clock, chance, spawning.
    pub seams: Seams,
    /// This process, as a doer of the coordinator's own tasks.
    pub instance: InstanceId,
    /// Whose word counts.
    agents: agents::Agents,
    /// Whether this coordinator leads.
    leadership: tokio::sync::watch::Sender<Option<background::leader::Leading>>,
    /// What people do by hand at sites.
    sessions: sessions::Sessions,
    /// What is measured; `None` where that could not be set up.
    metrics: Option<metrics::Metrics>,
    /// Counts commits: relay, runner and watchers look at once instead of at their next poll. Who looks while another
    /// change comes sees that one, too.
    pub version: tokio::sync::watch::Sender<u64>,
}

impl Coordinator {
    /// A coordinator that does nothing yet; `repository` is the one that is always there.
    pub fn new(
        catalog: Catalog,
        repository: Repository,
        vault: Vault,
        bus: Arc<dyn CoordinatorBus>,
        seams: Seams,
    ) -> Arc<Self> {
        // One time for all that is written: where several coordinators share the catalog, the one that they share.
        let seams = Seams { clock: Arc::clone(&catalog.seams.clock), ..seams };
        Arc::new(Self {
            instance: InstanceId::generate(&seams),
            catalog,
            repositories: repositories::Repositories::new(repository),
            vault,
            bus,
            seams,
            agents: agents::Agents::default(),
            leadership: tokio::sync::watch::Sender::new(None),
            sessions: sessions::Sessions::default(),
            metrics: metrics::Metrics::new().inspect_err(|error| tracing::error!(%error, "nothing is measured")).ok(),
            version: tokio::sync::watch::Sender::new(0),
        })
    }

    /// Starts all loops; they end with `stop`.
    pub fn start(self: &Arc<Self>, stop: &CancellationToken) {
        background::start(self, stop);
        serve::start(self, stop);
    }

    /// Something was committed.
    pub fn ring(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}
