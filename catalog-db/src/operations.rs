//! Operations.

use ocopea_protocol::{
    failure::TaskFailure,
    ids::{EnvironmentId, ImageId, OperationId, RepositoryId, SiteId, TeamId},
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait, LockBehavior, LockType},
};

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_shared, is_storable, storable, unless_there},
    entities::{idempotency, operations},
    model::OperationState,
};

/// An operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// Whose it is.
    pub team: TeamId,
    /// `save`, `restore` …
    pub kind: String,
    /// Its state.
    pub state: OperationState,
    /// For people.
    pub title: String,
    /// Who asked for it.
    pub creator: String,
    /// Where it works.
    pub site: Option<SiteId>,
    /// The image that it makes or uses.
    pub image: Option<ImageId>,
    /// The environment that it makes or removes.
    pub environment: Option<EnvironmentId>,
    /// The repository that it works with; `None`: the one that coordinators are started with.
    pub repository: Option<RepositoryId>,
    /// What was asked for (JSON of the plan's own type).
    pub request: String,
    /// What the plan decided so far (likewise).
    pub context: String,
    /// What came of it.
    pub result: Option<String>,
    /// Why it failed.
    pub failure: Option<TaskFailure>,
    /// Since when it shall stop.
    pub cancel_requested: Option<Timestamp>,
    /// How far the plan is.
    pub stage: u32,
    /// Counts changes, for those who watch.
    pub version: u64,
    /// When it was accepted.
    pub created: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

fn operation(row: operations::Model) -> Result<Operation, CatalogError> {
    Ok(Operation {
        id: OperationId(row.id),
        team: TeamId(row.team),
        kind: row.kind,
        state: OperationState::parse(&row.state).ok_or(CatalogError::Malformed(row.state))?,
        title: row.title,
        creator: row.creator,
        site: row.site.map(SiteId),
        image: row.image.map(ImageId),
        environment: row.environment.map(EnvironmentId),
        repository: row.repository.map(RepositoryId),
        request: row.request,
        context: row.context,
        result: row.result,
        failure: row.failure.as_deref().map(serde_json::from_str).transpose()?,
        cancel_requested: row.cancel_requested.map(Timestamp),
        stage: u32::try_from(row.stage).unwrap_or(0),
        version: u64::try_from(row.version).unwrap_or(0),
        created: Timestamp(row.created),
        ended: row.ended.map(Timestamp),
    })
}

fn same_request(known: &idempotency::Model, request: &str) -> Result<OperationId, CatalogError> {
    if known.request == request {
        return Ok(OperationId(known.operation));
    }
    Err(CatalogError::Conflict("this Idempotency-Key was used for another request: use a new one".to_owned()))
}

impl Catalog {
    /// The operation that an idempotency key stands for, if any: what it asked for may be gone since.
    pub async fn known_request(
        &self,
        team: TeamId,
        key: &str,
        request: &str,
    ) -> Result<Option<OperationId>, CatalogError> {
        if !is_storable(key) || self.seams.planted("key-ignored") {
            return Ok(None);
        }
        let known = idempotency::Entity::find_by_id((team.0, key.to_owned())).one(&self.database).await?;
        known.map(|known| same_request(&known, request)).transpose()
    }

    /// A team's operations, newest first.
    pub async fn operations(
        &self,
        team: TeamId,
        before: Option<OperationId>,
        limit: u64,
    ) -> Result<Vec<Operation>, CatalogError> {
        let mut find = operations::Entity::find()
            .filter(operations::Column::Team.eq(team.0))
            .order_by_desc(operations::Column::Id)
            .limit(limit.clamp(1, 1000));
        if let Some(before) = before {
            find = find.filter(operations::Column::Id.lt(before.0));
        }
        find.all(&self.database).await?.into_iter().map(operation).collect()
    }

    /// One of a team's.
    pub async fn operation(&self, team: TeamId, id: OperationId) -> Result<Operation, CatalogError> {
        let row = operations::Entity::find_by_id(id.0)
            .filter(operations::Column::Team.eq(team.0))
            .one(&self.database)
            .await?;
        operation(row.ok_or_else(|| CatalogError::not_found("operation", id))?)
    }

    /// How often one of a team's has changed.
    pub async fn operation_version(&self, team: TeamId, id: OperationId) -> Result<u64, CatalogError> {
        let version: Option<i64> = operations::Entity::find_by_id(id.0)
            .filter(operations::Column::Team.eq(team.0))
            .select_only()
            .column(operations::Column::Version)
            .into_tuple()
            .one(&self.database)
            .await?;
        let version = version.ok_or_else(|| CatalogError::not_found("operation", id))?;
        Ok(u64::try_from(version).unwrap_or(0))
    }

    /// Those that aren't over, of all teams.
    pub async fn open_operations(&self) -> Result<Vec<Operation>, CatalogError> {
        let open = [OperationState::Running.as_str(), OperationState::Undoing.as_str()];
        let rows = operations::Entity::find().filter(operations::Column::State.is_in(open)).all(&self.database).await?;
        rows.into_iter().map(operation).collect()
    }
}

impl Transaction {
    /// Remembers that an idempotency key stands for `operation`, or answers with the operation that it stands for
    /// already. To be called first in the transaction that makes the operation: of two at once, the second waits here
    /// until the first is committed or rolled back. A key that was used for another request is a conflict.
    pub async fn remember_request(
        &self,
        team: TeamId,
        key: &str,
        request: &str,
        operation: OperationId,
    ) -> Result<Option<OperationId>, CatalogError> {
        storable("the Idempotency-Key", &[key, request])?;
        if self.seams.planted("key-ignored") {
            return Ok(None);
        }
        let row = idempotency::ActiveModel {
            team: Set(team.0),
            idempotency_key: Set(key.to_owned()),
            request: Set(request.to_owned()),
            operation: Set(operation.0),
            created: Set(self.seams.clock.now().0),
        };
        let insert = idempotency::Entity::insert(row).on_conflict(unless_there());
        if insert.exec_without_returning(&self.inner).await? == 1 {
            return Ok(None);
        }
        let known = idempotency::Entity::find_by_id((team.0, key.to_owned())).one(&self.inner).await?;
        known.map(|known| same_request(&known, request)).transpose()
    }

    /// Accepts an operation. One that is there already (the answer to its commit was lost) stays as it is: the answer is
    /// then `false`.
    pub async fn add_operation(&self, new: &Operation) -> Result<bool, CatalogError> {
        storable("the operation's title", &[&new.title, &new.creator, &new.kind])?;
        let row = operations::ActiveModel {
            id: Set(new.id.0),
            team: Set(new.team.0),
            kind: Set(new.kind.clone()),
            state: Set(new.state.as_str().to_owned()),
            title: Set(new.title.clone()),
            creator: Set(new.creator.clone()),
            site: Set(new.site.map(|id| id.0)),
            image: Set(new.image.map(|id| id.0)),
            environment: Set(new.environment.map(|id| id.0)),
            request: Set(new.request.clone()),
            context: Set(new.context.clone()),
            result: Set(None),
            failure: Set(None),
            cancel_requested: Set(None),
            stage: Set(0),
            version: Set(1),
            created: Set(new.created.0),
            updated: Set(new.created.0),
            ended: Set(None),
            repository: Set(new.repository.map(|id| id.0)),
        };
        let insert = operations::Entity::insert(row).on_conflict(unless_there());
        Ok(insert.exec_without_returning(&self.inner).await? == 1)
    }

    /// One, for changing it: on PostgreSQL its row stays locked until the transaction ends, so that two outcomes of
    /// one operation are never worked out side by side.
    pub async fn operation(&self, id: OperationId) -> Result<Operation, CatalogError> {
        operation(self.locked(id).await?.ok_or_else(|| CatalogError::not_found("operation", id))?)
    }

    /// Takes an operation's lock, which is that of its tasks, too: whoever changes one of them takes it first.
    pub(crate) async fn locked(&self, id: OperationId) -> Result<Option<operations::Model>, CatalogError> {
        let find = operations::Entity::find_by_id(id.0);
        Ok(if is_shared(&self.inner) {
            find.lock_exclusive().one(&self.inner).await?
        } else {
            // SQLite has one writer, and this process one connection.
            find.one(&self.inner).await?
        })
    }

    /// Takes an operation's lock, if nobody else has it now: loops don't wait for one who may be frozen.
    pub async fn lock_if_free(&self, id: OperationId) -> Result<bool, CatalogError> {
        if !is_shared(&self.inner) {
            return Ok(true);
        }
        let find = operations::Entity::find_by_id(id.0).select_only().column(operations::Column::Id);
        let free = find.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
        Ok(free.into_tuple::<uuid::Uuid>().one(&self.inner).await?.is_some())
    }

    /// Stores what changed. The state must be one that may follow.
    pub async fn save_operation(&self, changed: &Operation) -> Result<(), CatalogError> {
        let before = self.operation(changed.id).await?;
        if before.state != changed.state && !self.seams.planted("end-left-again") {
            changed.state.after(before.state).map_err(|error| CatalogError::Conflict(error.to_string()))?;
        }
        let now = self.seams.clock.now().0;
        let row = operations::ActiveModel {
            state: Set(changed.state.as_str().to_owned()),
            image: Set(changed.image.map(|id| id.0)),
            environment: Set(changed.environment.map(|id| id.0)),
            context: Set(changed.context.clone()),
            result: Set(changed.result.clone()),
            failure: Set(changed.failure.as_ref().map(serde_json::to_string).transpose()?),
            cancel_requested: Set(changed.cancel_requested.map(|at| at.0)),
            stage: Set(i64::from(changed.stage)),
            version: Set(i64::try_from(before.version).unwrap_or(0) + 1),
            updated: Set(now),
            ended: Set(changed.state.is_terminal().then_some(changed.ended.map_or(now, |at| at.0))),
            ..Default::default()
        };
        operations::Entity::update_many()
            .set(row)
            .filter(operations::Column::Id.eq(changed.id.0))
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Tells watchers that something of it changed.
    pub async fn touch_operation(&self, id: OperationId) -> Result<(), CatalogError> {
        operations::Entity::update_many()
            .col_expr(operations::Column::Version, Expr::col(operations::Column::Version).add(1))
            .filter(operations::Column::Id.eq(id.0))
            .exec(&self.inner)
            .await?;
        Ok(())
    }
}
