//! One match on `TaskSpec`. Every task may be run twice, or again after a kill midway, and ends right.

mod holder;
mod plan;
mod restore;
mod save;

use std::sync::Arc;

use ocopea_protocol::{
    failure::TaskFailure,
    image::ImageAccess,
    message::SiteLimits,
    seams::Seams,
    task::{Claimed, TaskOutput, TaskSpec},
};
use ocopea_repository::{ImageSession, StoreAccess, backend::s3::GivesKeys};
use tokio_util::sync::CancellationToken;

pub use holder::HolderCell;

use crate::{
    containers::{Credentials, RegistryContext, RegistryHost},
    failures::repository,
    platform::Platform,
    reach::ProgressSink,
};

/// What all tasks of a site share.
#[derive(Clone)]
pub struct Site {
    /// Its name, for messages.
    pub name: String,
    /// Its cluster.
    pub platform: Platform,
    /// The same cluster by the rights of restores, where those are others than the rights of saves.
    pub restoring: Option<Platform>,
    /// The registry that restores push to and nodes pull from.
    pub registry: Option<RegistryHost>,
    /// Image of the mover pods.
    pub mover_image: Option<String>,
    /// The user's own Docker configuration.
    pub credentials: Credentials,
    /// How stores behind a network are got at, where a task doesn't bring their keys.
    pub stores: StoreAccess,
    /// What this agent does at most.
    pub limits: SiteLimits,
    /// Clock, chance, spawning.
    pub seams: Seams,
}

impl Site {
    /// The site as restores reach it.
    pub fn restorer(self: &Arc<Self>) -> Arc<Self> {
        match &self.restoring {
            None => Arc::clone(self),
            Some(platform) => Arc::new(Self { platform: platform.clone(), ..Self::clone(self) }),
        }
    }
}

/// One task being done.
pub struct Task {
    /// The site.
    pub site: Arc<Site>,
    /// Which attempt of which task.
    pub claimed: Claimed,
    /// Cancelled when the operation is, or when the lease is lost.
    pub stop: CancellationToken,
    /// Where progress goes.
    pub progress: ProgressSink,
    /// A holder's line to the coordinator.
    pub holder: Arc<HolderCell>,
    /// Newer keys of the store, where the task came over a bus.
    pub way: Option<Arc<dyn GivesKeys>>,
}

impl Task {
    /// Does it.
    pub async fn run(&self, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        match spec {
            TaskSpec::Inspect { source } => self.inspect(&source).await,
            TaskSpec::CopyConfig { source, access, fingerprint } => {
                self.copy_config(&source, &access, &fingerprint).await
            }
            TaskSpec::CopyContainer { source, container, access } => {
                self.copy_container(&source, &container, &access).await
            }
            TaskSpec::OpenSnapshot { source, data, epoch } => self.hold_snapshot(&source, &data, epoch).await,
            TaskSpec::CopyData { source, data, snapshot, access, .. } => {
                self.copy_data(&source, &data, &snapshot, &access).await
            }
            TaskSpec::PlanRestore(target) => self.plan_restore(&target).await,
            TaskSpec::CreateNamespace(mark) => {
                self.site.platform.create_namespace(&mark).await.map(|()| TaskOutput::Done)
            }
            TaskSpec::RemoveNamespace(mark) => {
                self.site.platform.remove_namespace(&mark, &self.stop).await.map(|()| TaskOutput::Done)
            }
            TaskSpec::PushContainer { placement, access, .. } => {
                if placement.push {
                    let session = self.session(&access).await?;
                    let context = self.registries(self.site.credentials.clone());
                    crate::containers::push(&context, &placement, &session, Arc::clone(&self.progress)).await?;
                }
                Ok(TaskOutput::Done)
            }
            TaskSpec::RemoveContainer { placement, .. } => {
                if placement.push {
                    let context = self.registries(self.site.credentials.clone());
                    crate::containers::remove(&context, &placement.target, &placement.digest).await?;
                }
                Ok(TaskOutput::Done)
            }
            TaskSpec::ApplyObjects { target, phase, objects_digest } => {
                self.apply_objects(&target, &phase, &objects_digest).await
            }
            TaskSpec::LoadData { target, placement, streams } => self.load_data(&target, &placement, &streams).await,
            TaskSpec::AwaitReady { target, deadline_s } => self.await_ready(&target, deadline_s).await,
            TaskSpec::CleanUp { frozen, source, .. } => self.clean_up(&frozen, source.as_ref()).await,
        }
    }

    async fn session(&self, access: &ImageAccess) -> Result<ImageSession, TaskFailure> {
        let (stores, seams) = (&self.site.stores, &self.site.seams);
        let opened = match &self.way {
            Some(way) => ImageSession::open_lent(access, stores, Arc::clone(way), seams).await,
            None => ImageSession::open(access, stores, seams).await,
        };
        opened.map_err(|error| repository("can't open the copy repository", &error))
    }

    fn registries(&self, credentials: Credentials) -> RegistryContext {
        let plain_hosts = self.site.registry.iter().filter(|r| r.plain).map(|r| r.host.clone()).collect();
        RegistryContext {
            credentials: Arc::new(credentials),
            plain_hosts,
            seams: self.site.seams.clone(),
            stop: self.stop.clone(),
        }
    }
}
