//! The durable engine: every outcome is recorded, and what follows from it decided, in one transaction.

use std::time::Duration;

use ocopea_catalog_db::{
    Catalog, CatalogError, Transaction,
    access::Actor,
    environments::Environment,
    images::Image,
    model::{EnvironmentState, OperationState, TaskState},
    operations::Operation,
    tasks::{LOST, Task},
};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    ids::{EnvironmentId, ImageId, OperationId, RepositoryId, SiteId},
    task::TaskOutput,
    trace::Trace,
};

use crate::plan::{self, Context, Request, Tasks, restore, save};

/// An operation that is asked for.
pub struct Order {
    /// What.
    pub request: Request,
    /// For people: `save desk/lets-chat`.
    pub title: String,
    /// Where.
    pub site: Option<SiteId>,
    /// What is known from the beginning.
    pub context: Context,
    /// The image that is used or deleted.
    pub image: Option<ImageId>,
    /// The repository that is worked with; `None`: the one that this coordinator was started with.
    pub repository: Option<RepositoryId>,
    /// An environment that is being made.
    pub environment: Option<Environment>,
    /// An environment that is being removed.
    pub removing: Option<EnvironmentId>,
}

/// How often it is asked anew whether an operation was accepted.
const DOUBTS: u32 = 5;
/// The pause in between: a server that was restarted answers again after a while.
const DOUBTFUL: Duration = Duration::from_millis(500);

/// Accepts an operation: it, its first tasks and their hints are in the catalog when this returns.
/// The same `key` with the same request answers with the operation that it already stands for.
///
/// When the connection is lost at the commit, the same is done again under the same id: the database lets it in once.
pub async fn accept(
    catalog: &Catalog,
    actor: &Actor,
    order: Order,
    key: Option<(&str, &str)>,
) -> Result<OperationId, CatalogError> {
    let id = OperationId::generate(&catalog.seams);
    let mut context = order.context.clone();
    let trace = context.trace.map_or_else(|| Trace::of(id, &catalog.seams), |trace| trace.next(&catalog.seams));
    context.trace = Some(trace);
    let operation = Operation {
        id,
        team: actor.team,
        kind: kind_of(&order.request).to_owned(),
        state: OperationState::Running,
        title: order.title.clone(),
        creator: actor.user_name.clone(),
        site: order.site,
        image: order.image.or(context.image),
        environment: order.environment.as_ref().map(|e| e.id).or(order.removing),
        repository: order.repository,
        request: encode(&order.request)?,
        context: encode(&context)?,
        result: None,
        failure: None,
        cancel_requested: None,
        stage: 0,
        version: 1,
        created: catalog.seams.clock.now(),
        ended: None,
    };
    let mut doubts = 0;
    loop {
        match catalog.again(|| accept_once(catalog, actor, &order, &operation, key)).await {
            Err(CatalogError::InDoubt(error)) if doubts < DOUBTS => {
                tracing::warn!(%error, operation.id = %operation.id, "was it accepted? It is asked again");
                doubts += 1;
                catalog.seams.clock.sleep(catalog.seams.jittered(DOUBTFUL)).await;
            }
            answer => {
                if answer.as_ref().is_ok_and(|accepted| *accepted == id) {
                    tracing::info!(operation.id = %id, operation.kind = operation.kind, trace.id = trace.id(), "accepted");
                }
                return answer;
            }
        }
    }
}

async fn accept_once(
    catalog: &Catalog,
    actor: &Actor,
    order: &Order,
    operation: &Operation,
    key: Option<(&str, &str)>,
) -> Result<OperationId, CatalogError> {
    let transaction = catalog.begin().await?;
    if let Some((key, fingerprint)) = key
        && let Some(known) = transaction.remember_request(actor.team, key, fingerprint, operation.id).await?
    {
        return Ok(known);
    }
    // First of all: when it is there, all of this was done.
    if !transaction.add_operation(operation).await? {
        return Ok(operation.id);
    }
    transaction.hold_repository(order.repository).await?;
    if let Some(environment) = order.removing {
        transaction.begin_removing(environment, operation.id).await?;
    }
    if let Some(environment) = &order.environment {
        transaction.add_environment(environment).await?;
    }
    if let Request::DeleteImage(request) = &order.request {
        transaction.hide_image(request.image).await?;
    }
    let subject = operation.id.to_string();
    if !catalog.seams.planted("audit-row-lost") {
        let action = format!("{}.request", operation.kind);
        transaction.audit(Some(actor.team), Some(actor.user), &action, &subject, &operation.title).await?;
    }
    settle(&transaction, operation.id).await?;
    catalog.seams.point("accept", &operation.kind, "before");
    transaction.commit().await?;
    catalog.seams.point("accept", &operation.kind, "accepted");
    Ok(operation.id)
}

fn kind_of(request: &Request) -> &'static str {
    match request {
        Request::Inspect(_) => "inspect",
        Request::Save(_) => "save",
        Request::Restore(_) => "restore",
        Request::Remove(_) => "remove",
        Request::DeleteImage(_) => "delete-image",
        Request::Collect(_) => "collect",
        Request::Verify(_) => "verify",
    }
}

fn encode(value: &impl serde::Serialize) -> Result<String, CatalogError> {
    Ok(serde_json::to_string(value)?)
}

/// Decides what follows for an operation from the state of its tasks. Called in every transaction that changed one.
pub async fn settle(transaction: &Transaction, id: OperationId) -> Result<(), CatalogError> {
    // Each round may make the next possible at once (an epoch that is over, an undo without tasks).
    for _ in 0..8 {
        let mut operation = transaction.operation(id).await?;
        if operation.state.is_terminal() {
            return Ok(());
        }
        let mut context: Context = serde_json::from_str(&operation.context)?;
        let tasks = transaction.tasks(id).await?;
        let again = match operation.state {
            OperationState::Running
                if operation.cancel_requested.is_some() && !transaction.seams.planted("cancel-loses") =>
            {
                let failure = TaskFailure::cancelled(format!("can't finish: {}", operation.title));
                begin_undo(transaction, &mut operation, failure).await?
            }
            OperationState::Running => match plan::next(&operation, &context, &tasks) {
                Ok(next) => {
                    if let Some(epoch) = next.epoch {
                        context.epoch = epoch;
                        context.instants.clear();
                        operation.context = encode(&context)?;
                        transaction.save_operation(&operation).await?;
                        for stale in tasks.iter().filter(|task| save::is_stale(task, &context)) {
                            transaction.cancel_task(stale.id).await?;
                        }
                        true
                    } else if let Some(result) = next.done {
                        finish(transaction, &mut operation, result, &tasks).await?;
                        false
                    } else {
                        transaction.add_tasks(id, &next.add).await?;
                        transaction.promote(id).await?;
                        false
                    }
                }
                Err(failure) => begin_undo(transaction, &mut operation, failure).await?,
            },
            _ => undo(transaction, &mut operation, &context, &tasks).await?,
        };
        if !again {
            break;
        }
    }
    transaction.touch_operation(id).await
}

async fn begin_undo(
    transaction: &Transaction,
    operation: &mut Operation,
    failure: TaskFailure,
) -> Result<bool, CatalogError> {
    operation.state = OperationState::Undoing;
    operation.failure = Some(failure);
    transaction.save_operation(operation).await?;
    transaction.cancel_waiting(operation.id, false).await?;
    Ok(true)
}

/// Waits until nothing of the operation is being done any more, then takes back, then ends.
async fn undo(
    transaction: &Transaction,
    operation: &mut Operation,
    context: &Context,
    tasks: &[Task],
) -> Result<bool, CatalogError> {
    let under_way = tasks.iter().any(|task| !task.undo && !task.state.is_terminal());
    if under_way && !transaction.seams.planted("undo-too-early") {
        return Ok(false);
    }
    let wanted = match plan::undo(operation, context, tasks) {
        Ok(_) if transaction.seams.planted("undo-skipped") => Vec::new(),
        Ok(mut wanted) if transaction.seams.planted("ref-not-undone") => {
            wanted.retain(|task| task.label != "undo:ref");
            wanted
        }
        Ok(wanted) => wanted,
        Err(failure) => return Err(CatalogError::Malformed(failure.to_string())),
    };
    transaction.add_tasks(operation.id, &wanted).await?;
    transaction.promote(operation.id).await?;
    let now = transaction.tasks(operation.id).await?;
    if now.iter().any(|task| task.undo && matches!(task.state, TaskState::Ready | TaskState::Claimed)) {
        return Ok(false);
    }
    // What waits for something that failed is never begun.
    transaction.cancel_waiting(operation.id, true).await?;
    let left: Vec<&Task> = now.iter().filter(|task| task.undo && task.state != TaskState::Succeeded).collect();
    let is_there = left.iter().any(|task| task.site.is_some());
    if let (Some(failure), false) = (&mut operation.failure, left.is_empty()) {
        let told = left.iter().map(|task| {
            let why = task.failure.as_ref().map_or("what it waits for failed", |failure| &failure.cause);
            format!("{} ({why})", task.label.trim_start_matches("undo:"))
        });
        let told: Vec<String> = told.collect();
        failure.cause = format!("{}; and could not be taken back: {}", failure.cause, told.join(", "));
        if let (true, "restore", Some(id)) = (is_there, operation.kind.as_str(), operation.environment) {
            let name = transaction.environment(id).await?.name;
            failure.next = format!("when that is mended, remove what is left: ocopea remove {name}");
        }
    }
    let cancelled = operation.cancel_requested.is_some()
        && operation.failure.as_ref().is_some_and(|f| f.class == FailureClass::Cancelled);
    operation.state = if cancelled { OperationState::Cancelled } else { OperationState::Failed };
    transaction.save_operation(operation).await?;
    match (operation.kind.as_str(), operation.image) {
        ("delete-image", Some(image))
            if plan::repository::is_gone(&Tasks(&now)) && !transaction.seams.planted("deletion-not-looked-at") =>
        {
            transaction.remove_image(image).await?;
        }
        ("delete-image", Some(image)) => transaction.show_image(image).await?,
        // A reindex may have seen the ref between the commit and its undo.
        ("save", Some(image)) => transaction.remove_image(image).await?,
        _ => {}
    }
    if let Some(environment) = operation.environment.filter(|_| !transaction.seams.planted("environment-stays-open")) {
        close_environment(transaction, environment, tasks, is_there).await?;
    }
    Ok(false)
}

/// An environment whose operation did not succeed: what is `there` of it stays known, so that it can be removed.
async fn close_environment(
    transaction: &Transaction,
    environment: EnvironmentId,
    tasks: &[Task],
    there: bool,
) -> Result<(), CatalogError> {
    let now = transaction.environment(environment).await?;
    let state = match now.state {
        EnvironmentState::Creating if there => {
            let plan = restore::plan(&Tasks(tasks)).map_err(|failure| CatalogError::Malformed(failure.to_string()))?;
            let placements = plan.map(|plan| plan.containers).unwrap_or_default();
            transaction.set_environment_facts(environment, None, &placements).await?;
            EnvironmentState::Incomplete
        }
        EnvironmentState::Creating => EnvironmentState::Failed,
        // What could not be removed is still there, unless its namespace is gone, or may be.
        EnvironmentState::Removing if !taken_away(tasks) && transaction.was_made(environment).await? => {
            EnvironmentState::Running
        }
        EnvironmentState::Removing => EnvironmentState::Incomplete,
        other => other,
    };
    transaction.set_environment_state(environment, state).await
}

/// Whether a removal has deleted its namespace, or may have: only a refusal says for certain that it has not.
fn taken_away(tasks: &[Task]) -> bool {
    tasks.iter().filter(|task| task.attempt > 0 && task.kind == "remove-namespace").any(|task| {
        let refused = |failure: &TaskFailure| failure.class == FailureClass::Permanent && failure.code != LOST;
        task.state == TaskState::Succeeded || !task.failure.as_ref().is_some_and(refused)
    })
}

async fn finish(
    transaction: &Transaction,
    operation: &mut Operation,
    result: String,
    tasks: &[Task],
) -> Result<(), CatalogError> {
    let tasks = Tasks(tasks);
    let malformed = |failure: TaskFailure| CatalogError::Malformed(failure.to_string());
    match operation.kind.as_str() {
        "save" => {
            let image: StoredImage = serde_json::from_str(&result)?;
            transaction.add_image(&image.into_image(operation)?).await?;
        }
        "delete-image" => {
            if let Some(image) = operation.image {
                transaction.remove_image(image).await?;
            }
        }
        "restore" => {
            if let (Some(environment), Some(plan)) = (operation.environment, restore::plan(&tasks).map_err(malformed)?)
                && let Some(TaskOutput::Ready { url, .. }) = tasks.output("ready").map_err(malformed)?
            {
                transaction.set_environment_facts(environment, url, &plan.containers).await?;
                transaction.set_environment_state(environment, EnvironmentState::Running).await?;
            }
        }
        "remove" => {
            if let Some(environment) = operation.environment {
                transaction.set_environment_state(environment, EnvironmentState::Removed).await?;
            }
        }
        _ => {}
    }
    operation.state = OperationState::Succeeded;
    operation.result = Some(result);
    transaction.save_operation(operation).await
}

/// What a commit brought: enough for the catalog's row.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct StoredImage {
    /// The record's digest.
    pub digest: ocopea_protocol::names::Digest,
    /// The record.
    pub record: ocopea_repository::Record,
}

impl StoredImage {
    /// The catalog's row.
    pub fn into_image(self, operation: &Operation) -> Result<Image, CatalogError> {
        image_row(self.digest, &self.record, operation.team, operation.repository)
    }
}

/// The catalog's row of a record.
pub fn image_row(
    digest: ocopea_protocol::names::Digest,
    record: &ocopea_repository::Record,
    team: ocopea_protocol::ids::TeamId,
    repository: Option<RepositoryId>,
) -> Result<Image, CatalogError> {
    Ok(Image {
        id: record.image,
        team,
        record: digest,
        name: record.name.clone(),
        application: record.application.clone(),
        site: record.site.clone(),
        creator: record.creator.clone(),
        comment: record.comment.clone(),
        bytes: record.bytes(),
        new_bytes: record.components.iter().map(|component| component.new_bytes).sum(),
        created: record.created,
        repository,
        labels: record.labels.clone(),
        body: serde_json::to_string(record)?,
    })
}

/// Notes the wish to stop an operation.
pub async fn cancel(catalog: &Catalog, actor: &Actor, id: OperationId) -> Result<(), CatalogError> {
    catalog.again(|| cancel_once(catalog, actor, id)).await
}

async fn cancel_once(catalog: &Catalog, actor: &Actor, id: OperationId) -> Result<(), CatalogError> {
    catalog.operation(actor.team, id).await?;
    let transaction = catalog.begin().await?;
    let mut operation = transaction.operation(id).await?;
    if operation.state.is_terminal() && catalog.seams.planted("end-left-again") {
        operation.state = OperationState::Undoing;
        transaction.save_operation(&operation).await?;
        return transaction.commit().await;
    }
    if operation.state.is_terminal() {
        return Err(CatalogError::Conflict(format!("the operation has {} already", operation.state.as_str())));
    }
    if operation.cancel_requested.is_none() && operation.state == OperationState::Running {
        operation.cancel_requested = Some(catalog.seams.clock.now());
        transaction.save_operation(&operation).await?;
        transaction
            .audit(Some(actor.team), Some(actor.user), "operation.cancel", &id.to_string(), &operation.title)
            .await?;
        settle(&transaction, id).await?;
    }
    transaction.commit().await
}
