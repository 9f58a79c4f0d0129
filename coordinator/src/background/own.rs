//! The coordinator's own tasks, through the same table, leases and attempts as everybody's.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ocopea_catalog_db::{CatalogError, model::OperationState, operations::Operation, tasks::Task};
use ocopea_protocol::{
    failure::TaskFailure,
    image::DataKind,
    inventory::DataFound,
    names::ComponentName,
    needs::NEEDS_VERSION,
    task::{Claimed, Progress, TaskOutput},
};
use ocopea_repository::{
    Body, CollectOptions, CommitRequest, Component, DataRequirement, Instant, LeftOut, Lineage, Opened, Platform,
    RECORD_VERSION, Record, Requirements, Scope,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::POLL;
use crate::{
    Coordinator,
    engine::{self, StoredImage},
    plan::{self, Context, OwnTask, Request, Tasks, save},
    serve::{LEASE, repository_failure},
};

/// How long a pin outlives its owner's last sign of life.
const PIN_EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// The coordinator's short tasks that run at the same time.
const SHORT: usize = 8;
/// How often a task that may take hours is asked whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a task may take hours. Such a one keeps nobody waiting, and may be dropped at any moment.
fn is_long(kind: &str) -> bool {
    matches!(kind, "collect" | "verify")
}

/// How a task of the coordinator's own came to its end.
enum Ended {
    Outcome(Result<String, TaskFailure>),
    /// It is another's, or called off.
    Lost,
    /// The coordinator stops.
    Stopped,
}

impl Coordinator {
    pub(super) async fn run_own(self: &Arc<Self>, stop: &CancellationToken) {
        let mut seen = self.version.subscribe();
        let short = Arc::new(Semaphore::new(SHORT));
        let (collecting, verifying) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)));
        loop {
            match self.catalog.ready_tasks(None, 1000).await {
                Ok(ready) => {
                    for task in ready {
                        let pool = match task.kind.as_str() {
                            "collect" => &collecting,
                            "verify" => &verifying,
                            _ => &short,
                        };
                        let Ok(permit) = Arc::clone(pool).try_acquire_owned() else { continue };
                        if let Err(error) = self.begin_own(&task, permit, stop).await {
                            tracing::error!(%error, task.id = %task.id, "a task of the coordinator's own could not be begun");
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "tasks could not be listed"),
            }
            if !self.rung(&mut seen, stop, POLL).await {
                return;
            }
        }
    }

    async fn begin_own(
        self: &Arc<Self>,
        ready: &Task,
        permit: OwnedSemaphorePermit,
        stop: &CancellationToken,
    ) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin().await?;
        // Another coordinator may just be taking it, or be frozen while it does.
        if !transaction.lock_if_free(ready.operation).await? {
            return Ok(());
        }
        // Two collections never run against each other, whichever coordinators they were asked of.
        let claimed = match ready.kind.as_str() {
            "collect" if !self.seams.planted("two-collections") => {
                transaction.claim_alone(ready, self.instance, LEASE).await?
            }
            _ => transaction.claim(ready.id, None, self.instance, LEASE).await?,
        };
        let Some(task) = claimed else { return Ok(()) };
        let operation = transaction.operation(task.operation).await?;
        let tasks = transaction.tasks(task.operation).await?;
        transaction.commit().await?;
        let (one, stop) = (Arc::clone(self), stop.clone());
        self.seams.spawner.spawn(
            "own",
            Box::pin(async move {
                let ended = one.run_one(&operation, &task, &tasks, &stop).await;
                // Whoever is rung finds the place free.
                drop(permit);
                if let Err(error) = ended {
                    tracing::error!(%error, task.id = %task.id, "a task of the coordinator's own could not be ended");
                }
                one.ring();
            }),
        );
        Ok(())
    }

    async fn run_one(
        &self,
        operation: &Operation,
        task: &Task,
        tasks: &[Task],
        stop: &CancellationToken,
    ) -> Result<(), CatalogError> {
        let claimed =
            Claimed { task: task.id, operation: operation.id, attempt: task.attempt, instance: self.instance };
        self.seams.point("own", &task.kind, "begin");
        let outcome = match self.watch_own(&claimed, operation, task, tasks, stop).await {
            Ended::Outcome(outcome) => outcome,
            Ended::Lost => return Ok(()),
            Ended::Stopped => return self.catalog.again(|| self.leave_own(task)).await,
        };
        self.seams.point("own", &task.kind, "end");
        if let Err(failure) = &outcome {
            tracing::warn!(task.id = %task.id, code = failure.code, cause = failure.cause, "{}", failure.what);
        }
        if self.catalog.again(|| self.record_own(&claimed, &outcome)).await? {
            self.seams.point("own", &task.kind, "recorded");
        }
        Ok(())
    }

    /// Hands a task back: this coordinator stops.
    async fn leave_own(&self, task: &Task) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin().await?;
        self.give_back(&transaction, task, "its coordinator stopped").await?;
        transaction.commit().await
    }

    /// `false`: the task was no longer this coordinator's.
    async fn record_own(&self, claimed: &Claimed, outcome: &Result<String, TaskFailure>) -> Result<bool, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let counted = match outcome {
            Ok(output) => transaction.succeed(claimed, output).await?,
            Err(failure) => self.record_failure(&transaction, claimed, failure).await?,
        };
        if counted {
            engine::settle(&transaction, claimed.operation).await?;
            transaction.commit().await?;
        }
        Ok(counted)
    }

    /// Has a task done, and keeps its lease meanwhile.
    async fn watch_own(
        &self,
        claimed: &Claimed,
        operation: &Operation,
        task: &Task,
        tasks: &[Task],
        stop: &CancellationToken,
    ) -> Ended {
        let long = is_long(&task.kind);
        let mut lease_end = self.seams.clock.monotonic() + LEASE;
        let work = self.do_own(operation, task, tasks);
        tokio::pin!(work);
        let span = if long { LOOK } else { LEASE / 4 };
        let mut pause = self.seams.clock.sleep(span);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if long => return Ended::Stopped,
                // Before the work goes on: this coordinator may have been frozen, and the task be another's since.
                () = &mut pause => {}
                outcome = &mut work => return Ended::Outcome(outcome),
            }
            pause = self.seams.clock.sleep(span);
            let asked = self.seams.clock.monotonic();
            match self.beat_own(claimed).await {
                Ok(None) => return Ended::Lost,
                Ok(Some(wanted)) => {
                    lease_end = asked + LEASE * 3 / 4;
                    if long && !wanted {
                        let what = format!("stopped: {}", operation.title);
                        return Ended::Outcome(Err(TaskFailure::cancelled(what)));
                    }
                }
                Err(error) => tracing::warn!(%error, task.id = %task.id, "a lease could not be renewed"),
            }
            if self.seams.clock.monotonic() >= lease_end {
                return Ended::Lost;
            }
        }
    }

    /// Renews a lease; whether the operation still wants it, or `None` when it is lost.
    async fn beat_own(&self, claimed: &Claimed) -> Result<Option<bool>, CatalogError> {
        let beat = self.catalog.begin().await?;
        let Some(counted) = beat.heartbeat(claimed, &Progress::default(), None, LEASE).await? else { return Ok(None) };
        let operation = beat.operation(claimed.operation).await?;
        if counted.written {
            beat.commit().await?;
        }
        Ok(Some(counted.task.undo || operation.state == OperationState::Running))
    }

    async fn do_own(&self, operation: &Operation, task: &Task, tasks: &[Task]) -> Result<String, TaskFailure> {
        let spec: OwnTask = plan::parse("task", &task.spec)?;
        // Keys change only while nobody holds this; what may take hours holds nothing up.
        let held = self.repository(operation.repository).await;
        let held = held.map_err(|error| error.failure("can't open the copy repository"))?;
        let repository = (*held).clone();
        let _held = (!is_long(&task.kind)).then_some(held);
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: ocopea_repository::Error| repository_failure(&what, &error)
        };
        match spec {
            OwnTask::Pin { .. } if self.seams.planted("pin-skipped") => Ok("{}".to_owned()),
            OwnTask::Unpin if self.seams.planted("pin-stays") => Ok("{}".to_owned()),
            OwnTask::Pin { records } => {
                repository.pin(operation.id, &records).await.map_err(failed("can't pin what is being used"))?;
                Ok("{}".to_owned())
            }
            OwnTask::Unpin => {
                repository.unpin(operation.id).await.map_err(failed("can't take the pin away"))?;
                Ok("{}".to_owned())
            }
            OwnTask::Commit => {
                let context: Context = plan::parse("context", &operation.context)?;
                let record = self.record(operation, &context, &Tasks(tasks)).await?;
                let key = context.key.ok_or_else(|| {
                    TaskFailure::permanent("plan.key", "can't commit the image", "the operation has no key")
                })?;
                let request = CommitRequest { record, key };
                let reference = repository.commit(&request).await.map_err(failed("can't commit the image"))?;
                plan::encode(&StoredImage { digest: reference.record, record: request.record })
            }
            OwnTask::DeleteRef { image } => {
                let reclaim = repository.delete_image(image).await.map_err(failed("can't delete the image"))?;
                plan::encode(&reclaim)
            }
            OwnTask::LookForRef { image } => {
                let found = repository.image(image).await;
                // What can't be read is there.
                let there = match found {
                    Ok(found) => found.is_some(),
                    Err(error) if error.is_breakage() => true,
                    Err(error) => return Err(failed("can't look for the image")(error)),
                };
                Ok(if there { "{}".to_owned() } else { plan::repository::GONE.to_owned() })
            }
            OwnTask::Collect { grace_s } => {
                let options =
                    CollectOptions { grace: Duration::from_secs(grace_s), pin_expiry: PIN_EXPIRY, wait: true };
                let report = repository.collect(&options).await.map_err(failed("can't collect"))?;
                plan::encode(&report)
            }
            OwnTask::Verify { image } => {
                let scope = image.map_or(Scope::All, Scope::Image);
                let report = repository.verify(scope, &silent).await.map_err(failed("can't verify"))?;
                plan::encode(&report)
            }
        }
    }

    /// The record of a save, from what its tasks brought.
    async fn record(&self, operation: &Operation, context: &Context, tasks: &Tasks<'_>) -> Result<Record, TaskFailure> {
        let fault = |why: &str| TaskFailure::permanent("save.record", "can't write the image's record", why);
        let Request::Save(request) = plan::parse("request", &operation.request)? else {
            return Err(fault("the operation is not a save"));
        };
        let inventory = save::inventory(tasks)?.ok_or_else(|| fault("there is no inventory"))?;
        let image = context.image.ok_or_else(|| fault("the image has no id"))?;
        let mut components = Vec::new();
        let mut requirements =
            Requirements { version: 1, kubernetes: Some(inventory.kubernetes.clone()), ..Requirements::default() };
        let mut digest = String::new();
        if let Some(TaskOutput::ConfigCopied { component, config_digest, objects, kinds, needs }) =
            tasks.output(&format!("config:{}", context.epoch))?
        {
            requirements.kinds = kinds.clone();
            // Not looked for is not the same as nothing.
            if let Some(needs) = needs {
                requirements.version = NEEDS_VERSION;
                requirements.needs = needs;
            }
            digest = config_digest;
            components.push(Component {
                name: component.name,
                manifest: component.manifest,
                bytes: component.bytes,
                new_bytes: component.new_bytes,
                stored_bytes: component.stored_bytes,
                body: Body::Config { objects, kinds },
            });
        }
        let mut platforms: Option<Vec<String>> = None;
        for found in &inventory.containers {
            let Some(TaskOutput::ContainerCopied { component, platforms: own }) =
                tasks.output(&format!("container:{}", found.name))?
            else {
                return Err(fault("a container's copy is missing"));
            };
            let names: Vec<String> =
                own.iter().map(|(platform, _)| platform.clone()).filter(|p| !p.starts_with("unknown")).collect();
            platforms = Some(match platforms {
                None => names,
                Some(before) => before.into_iter().filter(|p| names.contains(p)).collect(),
            });
            requirements.container_bytes = Some(requirements.container_bytes.unwrap_or(0) + component.bytes);
            components.push(Component {
                name: component.name,
                manifest: component.manifest,
                bytes: component.bytes,
                new_bytes: component.new_bytes,
                stored_bytes: component.stored_bytes,
                body: Body::Container {
                    found: found.clone(),
                    platforms: own.into_iter().map(|(platform, manifest)| Platform { platform, manifest }).collect(),
                },
            });
        }
        requirements.platforms = platforms.unwrap_or_default();
        let mut data_bytes = 0;
        for found in &inventory.data {
            let label = save::copy_label(found.name.as_str(), context.epoch);
            let Some(TaskOutput::DataCopied { component, streams, consistency, version, features, notices }) =
                tasks.output(&label)?
            else {
                return Err(fault("a data service's copy is missing"));
            };
            data_bytes += component.bytes;
            requirements.data.push(requirement(found, found.kind, &version, &features, component.bytes));
            components.push(Component {
                name: component.name,
                manifest: component.manifest,
                bytes: component.bytes,
                new_bytes: component.new_bytes,
                stored_bytes: component.stored_bytes,
                body: Body::Data { found: found.clone(), version, features, streams, consistency, notices },
            });
        }
        requirements.data_bytes = Some(data_bytes);
        let site = match operation.site {
            Some(site) => self.catalog.site(&site.to_string()).await.map(|s| s.name).unwrap_or_default(),
            None => String::new(),
        };
        let left_out = inventory
            .gaps
            .iter()
            .map(|gap| LeftOut { name: gap.name.clone(), what: gap.what.clone(), why: gap.why.clone() })
            .collect();
        Ok(Record {
            version: RECORD_VERSION,
            image,
            name: request.name,
            labels: request.labels,
            comment: request.comment,
            team: operation.team,
            creator: operation.creator.clone(),
            created: operation.created,
            application: inventory.application.clone(),
            site,
            namespace: inventory.namespace.to_string(),
            selector: inventory.selector.clone(),
            components,
            left_out,
            requirements,
            lineage: Lineage {
                restored_from: inventory.base.as_ref().and_then(|base| base.record.parse().ok()),
                base: context.base,
                environment: inventory.base.as_ref().map(|base| base.environment.clone()),
            },
            instant: instant(&context.instants),
            config_digest: digest,
        })
    }
}

fn requirement(
    found: &DataFound,
    kind: DataKind,
    version: &Option<String>,
    features: &[String],
    bytes: u64,
) -> DataRequirement {
    DataRequirement {
        component: found.name.clone(),
        kind,
        version: version.clone(),
        features: features.to_vec(),
        bytes: Some(bytes),
    }
}

/// The skew is the widest that the brackets allow: from the first order to open to the last word that it is open.
fn instant(instants: &BTreeMap<String, (u64, u64)>) -> Instant {
    let Some(first) = instants.values().map(|(from, _)| *from).min() else { return Instant::default() };
    let last = instants.values().map(|(_, to)| *to).max().unwrap_or(first);
    Instant {
        skew_us: Some(last.saturating_sub(first)),
        opened: instants
            .iter()
            .map(|(name, (from, to))| Opened {
                component: ComponentName::from_lossy(name),
                from_us: from.saturating_sub(first),
                to_us: to.saturating_sub(first),
            })
            .collect(),
    }
}

/// Nobody watches the coordinator's own verification object by object.
fn silent(_progress: ocopea_repository::VerifyProgress) {}
