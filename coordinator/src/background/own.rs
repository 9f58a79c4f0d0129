//! The coordinator's own tasks, through the same table, leases and attempts as everybody's.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ocopea_catalog_db::{CatalogError, model::OperationState, operations::Operation, tasks::Task};
use ocopea_protocol::{
    failure::TaskFailure,
    image::DataKind,
    inventory::DataFound,
    names::ComponentName,
    task::{Claimed, Progress, TaskOutput},
};
use ocopea_repository::{
    Body, CollectOptions, CommitRequest, Component, DataRequirement, Instant, LeftOut, Lineage, Opened, Platform,
    RECORD_VERSION, Record, Requirements, Scope,
};
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

/// A task that is claimed, with its operation and all tasks of that.
struct Work {
    operation: Operation,
    task: Task,
    tasks: Vec<Task>,
}

impl Coordinator {
    pub(super) async fn run_own(self: &Arc<Self>, stop: &CancellationToken) {
        loop {
            match self.catalog.ready_tasks(None, 8).await {
                Ok(ready) => {
                    for task in ready {
                        match self.claim_own(&task).await {
                            // Beside the others: a collection waits for its grace time, a verification reads everything.
                            Ok(Some(work)) => {
                                let (one, stop) = (Arc::clone(self), stop.clone());
                                self.seams
                                    .spawner
                                    .spawn("own", Box::pin(async move { one.carry_out(work, &stop).await }));
                            }
                            Ok(None) => {}
                            Err(error) => {
                                tracing::error!(%error, task.id = %task.id, "a task of the coordinator's own could not be taken")
                            }
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "tasks could not be listed"),
            }
            if !self.rung(stop, POLL).await {
                return;
            }
        }
    }

    async fn claim_own(&self, ready: &Task) -> Result<Option<Work>, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let Some(task) = transaction.claim(ready.id, None, self.instance, LEASE).await? else { return Ok(None) };
        let operation = transaction.operation(task.operation).await?;
        let tasks = transaction.tasks(task.operation).await?;
        transaction.commit().await?;
        Ok(Some(Work { operation, task, tasks }))
    }

    async fn carry_out(&self, work: Work, stop: &CancellationToken) {
        if let Err(error) = self.run_one(&work, stop).await {
            tracing::error!(%error, task.id = %work.task.id, "a task of the coordinator's own could not be done");
        }
    }

    async fn run_one(
        &self,
        Work { operation, task, tasks }: &Work,
        stop: &CancellationToken,
    ) -> Result<(), CatalogError> {
        let claimed =
            Claimed { task: task.id, operation: operation.id, attempt: task.attempt, instance: self.instance };
        self.seams.point("own", &task.kind, "begin");
        let may_break_off = matches!(task.kind.as_str(), "collect" | "verify");
        let work = self.do_own(operation, task, tasks);
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                // The next start gives it to somebody again.
                () = stop.cancelled(), if may_break_off => return Ok(()),
                () = self.seams.clock.sleep(LEASE / 4) => {
                    let beat = self.catalog.begin().await?;
                    let Some(now) = beat.heartbeat(&claimed, &Progress::default(), None, LEASE).await? else {
                        return Ok(());
                    };
                    if may_break_off && beat.operation(operation.id).await?.state != OperationState::Running {
                        self.give_back(&beat, &now, "it was called off").await?;
                        beat.commit().await?;
                        self.ring();
                        return Ok(());
                    }
                    beat.commit().await?;
                }
            }
        };
        self.seams.point("own", &task.kind, "end");
        let transaction = self.catalog.begin().await?;
        let counted = match outcome {
            Ok(output) => transaction.succeed(&claimed, &output).await?,
            Err(failure) => {
                tracing::warn!(task.id = %task.id, code = failure.code, cause = failure.cause, "{}", failure.what);
                transaction.fail(&claimed, &failure).await?.is_some()
            }
        };
        if counted {
            engine::settle(&transaction, operation.id).await?;
            transaction.commit().await?;
            self.seams.point("own", &task.kind, "recorded");
            self.ring();
        }
        Ok(())
    }

    async fn do_own(&self, operation: &Operation, task: &Task, tasks: &[Task]) -> Result<String, TaskFailure> {
        let spec: OwnTask = plan::parse("task", &task.spec)?;
        let unchanged = self.repository.read().await;
        let repository = unchanged.clone();
        // Keys don't change while something is made with them. What takes long is fit for that, and must not keep
        // everybody waiting behind who wants to change them.
        let _unchanged = (!matches!(spec, OwnTask::Collect { .. } | OwnTask::Verify { .. })).then_some(unchanged);
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: ocopea_repository::Error| repository_failure(&what, &error)
        };
        match spec {
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
        if let Some(TaskOutput::ConfigCopied { component, config_digest, objects, kinds }) =
            tasks.output(&format!("config:{}", context.epoch))?
        {
            requirements.kinds = kinds.clone();
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
