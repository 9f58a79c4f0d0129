//! Answers agents: claims, heartbeats, outcomes, polls, reports. Every answer is fenced by attempt and instance.

use std::{sync::Arc, time::Duration};

use ocopea_catalog_db::{
    CatalogError,
    model::{OperationState, TaskState},
    operations::Operation,
    tasks::{LOST, Task},
};
use ocopea_protocol::{
    bus::{BusError, Incoming},
    envelope::{self, Opened},
    failure::TaskFailure,
    identity::{self, IdentityError, PublicKey},
    ids::{RepositoryId, SiteId},
    image::ImageAccess,
    message::{Answer, HolderOrder, Request, TaskHint},
    task::{Claimed, GivenCredentials, HolderState, Outcome, Progress, TaskKind, TaskSpec},
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::{
    Coordinator, engine,
    plan::{self, Context, Request as PlanRequest, Tasks, save},
};

/// How long a task is its claimer's without a heartbeat.
pub const LEASE: Duration = Duration::from_secs(20);
/// Requests that are worked on at the same time.
const AT_ONCE: usize = 64;

pub(crate) fn start(coordinator: &Arc<Coordinator>, stop: &CancellationToken) {
    let (coordinator, stop) = (Arc::clone(coordinator), stop.clone());
    let permits = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let spawner = coordinator.seams.spawner.clone();
    spawner.clone().spawn(
        "serve",
        Box::pin(async move {
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let incoming = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    incoming = coordinator.bus.next_request() => incoming,
                };
                match incoming {
                    Ok(incoming) => {
                        let coordinator = Arc::clone(&coordinator);
                        spawner.spawn(
                            "serve.request",
                            Box::pin(async move { coordinator.answer(incoming, permit).await }),
                        );
                    }
                    Err(BusError::Closed) => return,
                    Err(error) => {
                        tracing::warn!(%error, "no requests from the bus");
                        coordinator.seams.clock.sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }),
    );
}

/// An answer, and the trace that it belongs to (may be empty).
struct Said {
    answer: Answer,
    trace: String,
}

impl From<Answer> for Said {
    fn from(answer: Answer) -> Self {
        Self { answer, trace: String::new() }
    }
}

impl Coordinator {
    async fn answer(&self, incoming: Incoming, permit: OwnedSemaphorePermit) {
        let Said { answer, trace } = match envelope::open::<Request>(&incoming.request) {
            // What waits for a person is bounded by the number of sessions.
            Ok(Opened { message: message @ (Request::Push { .. } | Request::Pull { .. }), .. }) => {
                drop(permit);
                self.carried(incoming.site, &message).await.into()
            }
            Ok(opened) => match self.handled(incoming.site, &opened.message).await {
                Ok(said) => said,
                Err(error) => {
                    tracing::error!(%error, "an agent's request could not be handled");
                    Answer::TryLater { why: error.to_string() }.into()
                }
            },
            Err(error) => {
                tracing::warn!(%error, site.id = %incoming.site, "a request that can't be read was dropped");
                Answer::Refused { why: error.to_string() }.into()
            }
        };
        match envelope::seal(&answer, &trace) {
            // The asker may have given up waiting: it will ask again.
            Ok(sealed) => drop(incoming.reply.send(sealed)),
            Err(error) => tracing::error!(%error, "an answer can't be sent"),
        }
    }

    /// A piece of a session. Whose it is was settled when it was attached to; its key did the rest.
    async fn carried(&self, site: SiteId, request: &Request) -> Answer {
        match request {
            Request::Push { session, instance, number, sealed } => {
                self.push(site, *session, *instance, *number, sealed).await
            }
            Request::Pull { session, instance, number } => self.pull(site, *session, *instance, *number).await,
            _ => Answer::SignIn,
        }
    }

    async fn handled(&self, site: SiteId, request: &Request) -> Result<Said, CatalogError> {
        let begun = self.seams.clock.monotonic();
        let said = self.catalog.again(|| self.handle(site, request)).await;
        let took = self.seams.clock.monotonic().saturating_sub(begun);
        self.measure(|metrics| metrics.agent_answered(request.word(), took));
        said
    }

    /// May be called again with the same request: what was recorded is not recorded twice.
    async fn handle(&self, site: SiteId, request: &Request) -> Result<Said, CatalogError> {
        let speaker = match request {
            Request::SignIn(sign_in) => return Ok(self.sign_in(site, sign_in).await?.into()),
            Request::Poll { instance, most, turn, mark } => {
                return Ok(self.poll(site, *instance, *most, (*turn, *mark)).await?.into());
            }
            Request::Claim { instance, .. } => *instance,
            Request::Heartbeat { claimed, .. }
            | Request::Finish { claimed, .. }
            | Request::HandBack { claimed }
            | Request::StoreKeys { claimed, .. } => claimed.instance,
            Request::Report(report) => report.instance,
            Request::Attach { instance, .. } | Request::Begun { instance, .. } => *instance,
            // Answered where they are read.
            Request::Push { .. } | Request::Pull { .. } => return Ok(self.carried(site, request).await.into()),
        };
        let key = match self.agent(site, speaker).await? {
            Ok(key) => key,
            Err(_) if self.seams.planted("instance-unchecked") => PublicKey([9; 32]),
            Err(answer) => return Ok(answer.into()),
        };
        let answer = match request {
            Request::Claim { task, instance } => return self.claim(site, *task, *instance, &key).await,
            Request::Heartbeat { claimed, progress, holder } => {
                self.heartbeat(claimed, progress, holder.as_ref()).await?
            }
            Request::Finish { claimed, outcome } => self.finish(claimed, outcome).await?,
            Request::HandBack { claimed } => self.hand_back(claimed).await?,
            Request::StoreKeys { claimed, refused } => self.lend_again(claimed, refused.as_deref(), &key).await?,
            Request::Report(report) => {
                self.catalog.report_site(site, report).await?;
                Answer::Recorded
            }
            Request::Attach { session, instance } => self.attach(site, *session, *instance, &key)?,
            Request::Begun { session, instance, failure } => self.begun(site, *session, *instance, failure.as_ref()),
            // Answered above.
            Request::SignIn(_) | Request::Poll { .. } | Request::Push { .. } | Request::Pull { .. } => Answer::SignIn,
        };
        Ok(answer.into())
    }

    async fn claim(
        &self,
        site: SiteId,
        task: ocopea_protocol::ids::TaskId,
        instance: ocopea_protocol::ids::InstanceId,
        key: &PublicKey,
    ) -> Result<Said, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let Some(task) = transaction.claim(task, Some(site), instance, LEASE).await? else {
            return Ok(Answer::Refused { why: "taken, over, or not for this site".to_owned() }.into());
        };
        let operation = transaction.operation(task.operation).await?;
        let claimed = Claimed { task: task.id, operation: operation.id, attempt: task.attempt, instance };
        transaction.touch_operation(operation.id).await?;
        transaction.commit().await?;
        self.ring();
        self.measure(|metrics| metrics.claimed(&task, self.seams.clock.now()));
        let trace = serde_json::from_str::<Context>(&operation.context)?.trace.map(|trace| trace.next(&self.seams));
        tracing::info!(
            operation.id = %operation.id,
            task.id = %claimed.task,
            task.attempt = claimed.attempt,
            trace.id = trace.map(|trace| trace.id()),
            site.id = %site,
            "{} is handed out",
            task.label
        );
        // Outside of the transaction: the repository may be slow, and others wait for the catalog.
        let failure = match self.complete(&operation, &task).await {
            Ok(spec) => {
                let lease_ms = u64::try_from(LEASE.as_millis()).unwrap_or(0);
                let what = format!("can't hand out {}", task.label);
                match identity::seal_task(key, &claimed, &spec) {
                    Ok(sealed) => {
                        let granted = Answer::Granted { claimed, lease_ms, sealed };
                        match envelope::seal(&granted, "") {
                            Ok(_) => {
                                let trace = trace.map(|trace| trace.to_string()).unwrap_or_default();
                                return Ok(Said { answer: granted, trace });
                            }
                            Err(error) => TaskFailure::permanent("task.too-large", what, error),
                        }
                    }
                    Err(error @ IdentityError::Envelope(_)) => TaskFailure::permanent("task.too-large", what, error),
                    Err(error) => TaskFailure::permanent("task.sealed", what, error),
                }
            }
            Err(failure) => failure,
        };
        self.catalog.again(|| self.fail_claimed(&claimed, &failure)).await?;
        Ok(Answer::Refused { why: failure.to_string() }.into())
    }

    async fn fail_claimed(&self, claimed: &Claimed, failure: &TaskFailure) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin().await?;
        if self.record_failure(&transaction, claimed, failure).await? {
            engine::settle(&transaction, claimed.operation).await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(())
    }

    /// The task as it is sent: with keys and credentials, which the catalog never holds in the clear.
    async fn complete(&self, operation: &Operation, task: &Task) -> Result<TaskSpec, TaskFailure> {
        let mut spec: TaskSpec = plan::parse("task", &task.spec)?;
        let context: Context = plan::parse("context", &operation.context)?;
        let request: PlanRequest = plan::parse("request", &operation.request)?;
        if let PlanRequest::Save(request) | PlanRequest::Inspect(request) = &request
            && let Some(sealed) = &request.sealed_credentials
        {
            let fault =
                |error: String| TaskFailure::permanent("save.credentials", "can't open the given credentials", error);
            let plain = self.vault.open(sealed).map_err(|error| fault(error.to_string()))?;
            let given: Vec<GivenCredentials> =
                serde_json::from_slice(&plain).map_err(|error| fault(error.to_string()))?;
            match &mut spec {
                TaskSpec::Inspect { source }
                | TaskSpec::CopyConfig { source, .. }
                | TaskSpec::CopyContainer { source, .. }
                | TaskSpec::OpenSnapshot { source, .. }
                | TaskSpec::CopyData { source, .. } => source.credentials = given,
                TaskSpec::CleanUp { source: Some(source), .. } => source.credentials = given,
                _ => {}
            }
        }
        match &mut spec {
            TaskSpec::CopyConfig { access, .. }
            | TaskSpec::CopyContainer { access, .. }
            | TaskSpec::CopyData { access, .. } => {
                *access = self.access_to_write(operation.repository, &context).await?;
            }
            TaskSpec::PlanRestore(target)
            | TaskSpec::ApplyObjects { target, .. }
            | TaskSpec::LoadData { target, .. }
            | TaskSpec::AwaitReady { target, .. } => {
                target.access = self.access_to_read(operation.repository, &target.record).await?;
            }
            TaskSpec::PushContainer { access, .. } => {
                if let PlanRequest::Restore(request) = &request {
                    *access = self.access_to_read(operation.repository, &request.record).await?;
                }
            }
            _ => {}
        }
        Ok(spec)
    }

    async fn access_to_read(
        &self,
        repository: Option<RepositoryId>,
        record: &ocopea_protocol::names::Digest,
    ) -> Result<ImageAccess, TaskFailure> {
        const WHAT: &str = "can't open the image";
        let repository = self.repository(repository).await.map_err(|error| error.failure(WHAT))?;
        repository.access_to_read(record).await.map_err(|error| repository_failure(WHAT, &error))
    }

    async fn access_to_write(
        &self,
        repository: Option<RepositoryId>,
        context: &Context,
    ) -> Result<ImageAccess, TaskFailure> {
        const WHAT: &str = "can't open the copy repository";
        let key = context
            .key
            .as_ref()
            .ok_or_else(|| TaskFailure::permanent("plan.key", "can't write the image", "the operation has no key"))?;
        let repository = self.repository(repository).await.map_err(|error| error.failure(WHAT))?;
        let access = repository.access_to_write(key, context.base.as_ref()).await;
        access.map_err(|error| repository_failure(WHAT, &error))
    }

    /// Newer keys of the store, for the attempt that holds a task which works with it, and for nobody else.
    async fn lend_again(
        &self,
        claimed: &Claimed,
        refused: Option<&str>,
        key: &PublicKey,
    ) -> Result<Answer, CatalogError> {
        let refusal = |why: &str| Ok(Answer::Refused { why: why.to_owned() });
        let transaction = self.catalog.begin().await?;
        let Some(task) = transaction.held(claimed).await? else {
            return refusal("another attempt holds the task, or it is over");
        };
        let repository = transaction.operation(claimed.operation).await?.repository;
        // What follows may take long, and others wait for the catalog.
        drop(transaction);
        let spec: TaskSpec = serde_json::from_str(&task.spec)?;
        if !spec.uses_repository() {
            return refusal("the task has nothing to do with the copy repository");
        }
        let repository = match self.repository_for_long(repository).await {
            Ok(repository) => repository,
            Err(error) => return Ok(Answer::TryLater { why: error.to_string() }),
        };
        let keys = match repository.store_keys(refused).await {
            Ok(Some(keys)) if refused != Some(keys.id.as_str()) => keys,
            Ok(Some(_)) => return refusal("it has no others than those that the store refuses"),
            Ok(None) => return refusal("it gives agents no keys of this store: they need a source of their own"),
            Err(error) => return Ok(Answer::TryLater { why: error.to_string() }),
        };
        match identity::seal_store_keys(key, claimed, &keys) {
            Ok(sealed) => {
                tracing::info!(operation.id = %claimed.operation, task.id = %claimed.task, "newer keys of the store are lent");
                Ok(Answer::StoreKeys { sealed })
            }
            Err(error) => refusal(&error.to_string()),
        }
    }

    async fn heartbeat(
        &self,
        claimed: &Claimed,
        progress: &Progress,
        holder: Option<&HolderState>,
    ) -> Result<Answer, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let Some(beat) = transaction.heartbeat(claimed, progress, holder, LEASE).await? else {
            return Ok(Answer::Refused { why: "the lease is over".to_owned() });
        };
        let task = beat.task;
        let until = task.lease_until.unwrap_or_default().0.saturating_sub(self.seams.clock.now().0);
        let lease_ms = u64::try_from(until).unwrap_or(0);
        let mut operation = transaction.operation(claimed.operation).await?;
        let mut context: Context = serde_json::from_str(&operation.context)?;
        let unwanted = !task.undo && (operation.state != OperationState::Running || save::is_stale(&task, &context));
        if unwanted {
            // A whole lease, within which the agent lets go of what it holds.
            transaction.renew_lease(claimed, LEASE).await?;
            transaction.commit().await?;
            return Ok(Answer::Cancel);
        }
        let mut written = beat.written;
        let mut order = HolderOrder::Wait;
        if save::is_holder(&task) {
            let tasks = transaction.tasks(operation.id).await?;
            order = save::order(&task, &context, &Tasks(&tasks)).unwrap_or(HolderOrder::Wait);
            let name = task.label.split(':').nth(1).unwrap_or_default().to_owned();
            let (not_before, not_after) = self.moment();
            let changed = match (order, &task.holder) {
                (HolderOrder::OpenNow, _) if !context.instants.contains_key(&name) => {
                    context.instants.insert(name, (not_before, 0));
                    true
                }
                (_, Some(HolderState::Open { .. })) => match context.instants.get_mut(&name) {
                    Some(instant) if instant.1 == 0 => {
                        instant.1 = not_after;
                        true
                    }
                    _ => false,
                },
                _ => false,
            };
            if changed {
                operation.context = serde_json::to_string(&context)?;
                transaction.save_operation(&operation).await?;
                engine::settle(&transaction, operation.id).await?;
                written = true;
            }
        }
        // Holders ask many times a second: what changed nothing costs no write, and wakes nobody.
        if written {
            transaction.touch_operation(claimed.operation).await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(Answer::Continue { lease_ms, holder: order })
    }

    /// This moment in microseconds, from below and from above. Where orders and answers of one opening may go through
    /// different coordinators it is the time that they share, as exactly as they share it; else the monotonic clock's.
    fn moment(&self) -> (u64, u64) {
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        if !self.catalog.is_shared() {
            let now = micros(self.seams.clock.monotonic());
            return (now, now);
        }
        let now = u64::try_from(self.seams.clock.now().0).unwrap_or(0).saturating_mul(1000);
        let error = micros(self.catalog.clock_error());
        (now.saturating_sub(error), now.saturating_add(1000).saturating_add(error))
    }

    pub(crate) async fn finish(&self, claimed: &Claimed, outcome: &Outcome) -> Result<Answer, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let counted = match outcome {
            Outcome::Succeeded(output) => transaction.succeed(claimed, &serde_json::to_string(output)?).await?,
            Outcome::Failed(failure) => self.record_failure(&transaction, claimed, failure).await?,
        };
        if !counted {
            return Ok(Answer::Refused { why: "another attempt holds the task, or it is over".to_owned() });
        }
        if !self.seams.planted("outcome-without-consequence") {
            engine::settle(&transaction, claimed.operation).await?;
        }
        let kind = transaction.task(claimed.task).await?.map(|task| task.kind).unwrap_or_default();
        self.seams.point("coordinator", "outcome", "before");
        transaction.commit().await?;
        self.seams.point("coordinator", "outcome", "recorded");
        self.measure(|metrics| metrics.attempt_ended(&kind, outcome));
        self.ring();
        Ok(Answer::Recorded)
    }

    pub(crate) async fn record_failure(
        &self,
        transaction: &ocopea_catalog_db::Transaction,
        claimed: &Claimed,
        failure: &TaskFailure,
    ) -> Result<bool, CatalogError> {
        let operation = transaction.operation(claimed.operation).await?;
        // What is being called off isn't tried again.
        let mut failure = failure.clone();
        if operation.state != OperationState::Running
            && transaction.task(claimed.task).await?.is_some_and(|task| !task.undo)
        {
            failure.class = ocopea_protocol::failure::FailureClass::Cancelled;
        }
        Ok(transaction.fail(claimed, &failure).await?.is_some())
    }

    async fn hand_back(&self, claimed: &Claimed) -> Result<Answer, CatalogError> {
        let transaction = self.catalog.begin().await?;
        let held = transaction.task(claimed.task).await?.filter(|task| {
            task.state == TaskState::Claimed
                && task.attempt == claimed.attempt
                && task.instance == Some(claimed.instance)
        });
        if let Some(task) = held {
            self.give_back(&transaction, &task, "its agent stopped").await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(Answer::Recorded)
    }

    /// Gives a task to others, or calls it off when its operation no longer wants it.
    pub(crate) async fn give_back(
        &self,
        transaction: &ocopea_catalog_db::Transaction,
        task: &Task,
        why: &str,
    ) -> Result<(), CatalogError> {
        let operation = transaction.operation(task.operation).await?;
        if operation.state != OperationState::Running && !task.undo {
            transaction.cancel_task(task.id).await?;
        } else {
            let failure = TaskFailure::retryable(LOST, format!("{} was not finished", task.label), why);
            transaction.hand_back(task, &failure).await?;
        }
        engine::settle(transaction, task.operation).await
    }
}

/// What a ready task's hint says.
pub(crate) fn hint_of(task: &Task) -> Option<TaskHint> {
    let kind: TaskKind = serde_json::from_value(serde_json::Value::from(task.kind.clone())).ok()?;
    Some(TaskHint { task: task.id, kind, least_version: envelope::PROTOCOL_VERSION })
}

/// An error of the repository, as people read it.
pub(crate) fn repository_failure(what: &str, error: &ocopea_repository::Error) -> TaskFailure {
    let failure = if error.is_permanent() {
        TaskFailure::permanent(error.code(), what, error)
    } else {
        TaskFailure::retryable(error.code(), what, error)
    };
    failure.next(error.advice())
}
