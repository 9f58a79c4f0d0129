//! Tasks, their leases, and the outbox of hints.
//!
//! What counts is decided by conditional updates: a task is claimed by exactly one, an outcome counts only from the
//! attempt that holds it, and a lease that ran out gives the task back. Whoever changes a task holds its operation's
//! lock and looks at the task again under it: what was read before may be over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    ids::{InstanceId, OperationId, SiteId, TaskId, TeamId},
    task::{Claimed, HolderState, Progress},
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, sea_query::Query,
};

use crate::{
    Catalog, CatalogError, Transaction,
    entities::{attempts, operations, outbox, sites, tasks},
    model::{Standing, TaskState},
};

/// A task to be added.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Unique within its operation: adding it again does nothing.
    pub label: String,
    /// Its kind's word.
    pub kind: String,
    /// The site whose agents do it; the coordinator itself where there is none.
    pub site: Option<SiteId>,
    /// Whether it takes something back.
    pub undo: bool,
    /// How often it may be tried.
    pub most_attempts: u32,
    /// Labels of the tasks that must succeed first.
    pub needs: Vec<String>,
    /// What to do, without keys and credentials.
    pub spec: String,
}

/// A task as it stands.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its operation.
    pub operation: OperationId,
    /// Unique within its operation.
    pub label: String,
    /// Its kind's word.
    pub kind: String,
    /// The site whose agents do it.
    pub site: Option<SiteId>,
    /// Whether it takes something back.
    pub undo: bool,
    /// Its state.
    pub state: TaskState,
    /// The attempt that runs or ran last; 0 before the first.
    pub attempt: u32,
    /// How often it may be tried.
    pub most_attempts: u32,
    /// Who works on it.
    pub instance: Option<InstanceId>,
    /// Until when.
    pub lease_until: Option<Timestamp>,
    /// Labels that must succeed first.
    pub needs: Vec<String>,
    /// What to do.
    pub spec: String,
    /// What it brought.
    pub output: Option<String>,
    /// Why the last attempt failed.
    pub failure: Option<TaskFailure>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// A holder's state.
    pub holder: Option<HolderState>,
    /// Since when it may be claimed; of one that waits for others, when it was added.
    pub ready: Timestamp,
    /// When its last attempt began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

/// A heartbeat that counted.
#[derive(Clone, Debug)]
pub struct Beat {
    /// The task as it is now.
    pub task: Task,
    /// Whether anything was written.
    pub written: bool,
}

/// A hint that waits to be published.
#[derive(Clone, Debug)]
pub struct OutboxRow {
    /// Its id.
    pub id: uuid::Uuid,
    /// The site.
    pub site: SiteId,
    /// The task.
    pub task: TaskId,
    /// The task's kind.
    pub kind: String,
}

fn task(row: tasks::Model) -> Result<Task, CatalogError> {
    Ok(Task {
        id: TaskId(row.id),
        operation: OperationId(row.operation),
        label: row.label,
        kind: row.kind,
        site: row.site.map(SiteId),
        undo: row.undo != 0,
        state: TaskState::parse(&row.state).ok_or(CatalogError::Malformed(row.state))?,
        attempt: u32::try_from(row.attempt).unwrap_or(0),
        most_attempts: u32::try_from(row.most_attempts).unwrap_or(1),
        instance: row.instance.map(InstanceId),
        lease_until: row.lease_until.map(Timestamp),
        needs: serde_json::from_str(&row.needs)?,
        spec: row.spec,
        output: row.output,
        failure: row.failure.as_deref().map(serde_json::from_str).transpose()?,
        progress: row.progress.as_deref().map(serde_json::from_str).transpose()?,
        holder: row.holder.as_deref().map(serde_json::from_str).transpose()?,
        ready: Timestamp(row.not_before),
        started: row.started.map(Timestamp),
        ended: row.ended.map(Timestamp),
    })
}

fn hint(row: outbox::Model) -> OutboxRow {
    OutboxRow { id: row.id, site: SiteId(row.site), task: TaskId(row.task), kind: row.kind }
}

impl Catalog {
    /// All tasks of a team's operation, in the order in which they were added.
    pub async fn tasks(&self, team: TeamId, operation: OperationId) -> Result<Vec<Task>, CatalogError> {
        let own = Query::select()
            .column(operations::Column::Id)
            .from(operations::Entity)
            .and_where(operations::Column::Team.eq(team.0))
            .and_where(operations::Column::Id.eq(operation.0))
            .to_owned();
        let rows = tasks::Entity::find()
            .filter(tasks::Column::Operation.in_subquery(own))
            .order_by_asc(tasks::Column::Id)
            .all(&self.database)
            .await?;
        rows.into_iter().map(task).collect()
    }

    /// Tasks that may be claimed now: of a site, or the coordinator's own.
    pub async fn ready_tasks(&self, site: Option<SiteId>, most: u64) -> Result<Vec<Task>, CatalogError> {
        let of = match site {
            Some(site) => tasks::Column::Site.eq(site.0),
            None => tasks::Column::Site.is_null(),
        };
        let rows = tasks::Entity::find()
            .filter(tasks::Column::State.eq(TaskState::Ready.as_str()))
            .filter(of)
            .filter(due(self.seams.clock.now()))
            .order_by_asc(tasks::Column::Id)
            .limit(most.clamp(1, 1000))
            .all(&self.database)
            .await?;
        rows.into_iter().map(task).collect()
    }

    /// Hints to publish, oldest first; those behind `after`, where it is given.
    pub async fn outbox(&self, after: Option<uuid::Uuid>, most: u64) -> Result<Vec<OutboxRow>, CatalogError> {
        let mut find = outbox::Entity::find().order_by_asc(outbox::Column::Id).limit(most);
        if let Some(after) = after {
            find = find.filter(outbox::Column::Id.gt(after));
        }
        Ok(find.all(&self.database).await?.into_iter().map(hint).collect())
    }

    /// Hints that are this coordinator's to publish, oldest first: those that were written through it, and, where it
    /// `leads`, those that have waited for so long that whoever wrote them may be gone.
    pub async fn own_outbox(
        &self,
        after: Option<uuid::Uuid>,
        most: u64,
        leads: bool,
    ) -> Result<Vec<OutboxRow>, CatalogError> {
        if !self.is_shared() {
            return self.outbox(after, most).await;
        }
        let now = self.seams.clock.now().0;
        let long = i64::try_from(LEFT.as_millis()).unwrap_or(i64::MAX);
        let mut whose = Condition::any().add(outbox::Column::Origin.eq(self.origin));
        if leads {
            // What is ahead of time was written before the clock was put back.
            whose = whose.add(outbox::Column::Created.lte(now - long)).add(outbox::Column::Created.gt(now + long));
        }
        let mut find = outbox::Entity::find().filter(whose).order_by_asc(outbox::Column::Id).limit(most);
        if let Some(after) = after {
            find = find.filter(outbox::Column::Id.gt(after));
        }
        Ok(find.all(&self.database).await?.into_iter().map(hint).collect())
    }

    /// Forgets a hint that was published.
    pub async fn published(&self, id: uuid::Uuid) -> Result<(), CatalogError> {
        outbox::Entity::delete_by_id(id).exec(&self.database).await?;
        Ok(())
    }

    /// Tasks whose lease had run out at `now`.
    pub async fn expired_tasks(&self, now: Timestamp) -> Result<Vec<Task>, CatalogError> {
        if self.seams.planted("lease-never-ends") {
            return Ok(Vec::new());
        }
        let rows = tasks::Entity::find()
            .filter(tasks::Column::State.eq(TaskState::Claimed.as_str()))
            .filter(tasks::Column::LeaseUntil.lt(now.0))
            .all(&self.database)
            .await?;
        rows.into_iter().map(task).collect()
    }

    /// Whether a task is held for longer than until `then`.
    pub async fn is_leased_beyond(&self, then: Timestamp) -> Result<bool, CatalogError> {
        let held = tasks::Entity::find()
            .select_only()
            .column(tasks::Column::Id)
            .filter(tasks::Column::State.eq(TaskState::Claimed.as_str()))
            .filter(tasks::Column::LeaseUntil.gt(then.0));
        Ok(held.into_tuple::<uuid::Uuid>().one(&self.database).await?.is_some())
    }

    /// Tasks that only a site could do that is none of ours any more.
    pub async fn tasks_of_removed_sites(&self) -> Result<Vec<Task>, CatalogError> {
        let mut removed = Query::select();
        removed
            .column(sites::Column::Id)
            .from(sites::Entity)
            .and_where(sites::Column::Standing.eq(Standing::Removed.as_str()));
        let rows = tasks::Entity::find()
            .filter(tasks::Column::State.is_in([TaskState::Ready.as_str(), TaskState::Claimed.as_str()]))
            .filter(tasks::Column::Site.in_subquery(removed))
            .limit(1000)
            .all(&self.database)
            .await?;
        rows.into_iter().map(task).collect()
    }

    /// Ends the leases of everybody but `alive`: of processes that are known to be dead, as there is only one on a SQLite
    /// file. Where other coordinators may be at work nobody is known to be dead, and nothing is done.
    pub async fn expire_all_but(&self, alive: &[InstanceId]) -> Result<u64, CatalogError> {
        if self.is_shared() {
            return Ok(0);
        }
        let alive: Vec<_> = alive.iter().map(|id| id.0).collect();
        let ended = tasks::Entity::update_many()
            .set(tasks::ActiveModel { lease_until: Set(Some(0)), ..Default::default() })
            .filter(tasks::Column::State.eq(TaskState::Claimed.as_str()))
            .filter(tasks::Column::Instance.is_not_in(alive))
            .exec(&self.database)
            .await?;
        Ok(ended.rows_affected)
    }
}

impl Transaction {
    /// Gives every lease that wasn't ended on purpose until `until`: the clock was set, so
    /// that what was written before means nothing.
    pub async fn renew_leases(&self, until: Timestamp) -> Result<(), CatalogError> {
        tasks::Entity::update_many()
            .set(tasks::ActiveModel { lease_until: Set(Some(until.0)), ..Default::default() })
            .filter(tasks::Column::State.eq(TaskState::Claimed.as_str()))
            .filter(tasks::Column::LeaseUntil.gt(0))
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// All tasks of an operation.
    pub async fn tasks(&self, operation: OperationId) -> Result<Vec<Task>, CatalogError> {
        let rows = tasks::Entity::find()
            .filter(tasks::Column::Operation.eq(operation.0))
            .order_by_asc(tasks::Column::Id)
            .all(&self.inner)
            .await?;
        rows.into_iter().map(task).collect()
    }

    /// One.
    pub async fn task(&self, id: TaskId) -> Result<Option<Task>, CatalogError> {
        tasks::Entity::find_by_id(id.0).one(&self.inner).await?.map(task).transpose()
    }

    /// One as it is now, with its operation's lock taken.
    async fn locked_task(&self, id: TaskId) -> Result<Option<Task>, CatalogError> {
        let Some(seen) = self.task(id).await? else { return Ok(None) };
        self.locked(seen.operation).await?;
        self.task(id).await
    }

    /// The task, locked, if this attempt of it holds it.
    pub async fn held(&self, claimed: &Claimed) -> Result<Option<Task>, CatalogError> {
        let task = self.locked_task(claimed.task).await?;
        if self.seams.planted("result-unfenced") {
            return Ok(task.filter(|task| task.state == TaskState::Claimed));
        }
        Ok(task.filter(|task| {
            task.state == TaskState::Claimed
                && task.operation == claimed.operation
                && task.attempt == claimed.attempt
                && task.instance == Some(claimed.instance)
        }))
    }

    /// Adds tasks; one whose label is there already is left as it is.
    pub async fn add_tasks(&self, operation: OperationId, new: &[NewTask]) -> Result<(), CatalogError> {
        self.locked(operation).await?;
        let now = self.seams.clock.now().0;
        let mut known: BTreeSet<String> = self.tasks(operation).await?.into_iter().map(|t| t.label).collect();
        // Ids of one millisecond are in no order: they are given out in one.
        let mut ids: Vec<_> = new.iter().map(|_| self.seams.uuid()).collect();
        ids.sort_unstable();
        for (id, one) in ids.into_iter().zip(new) {
            if !known.insert(one.label.clone()) {
                continue;
            }
            let row = tasks::ActiveModel {
                id: Set(id),
                operation: Set(operation.0),
                label: Set(one.label.clone()),
                kind: Set(one.kind.clone()),
                site: Set(one.site.map(|site| site.0)),
                undo: Set(i64::from(one.undo)),
                state: Set(TaskState::Waiting.as_str().to_owned()),
                attempt: Set(0),
                most_attempts: Set(i64::from(one.most_attempts)),
                instance: Set(None),
                lease_until: Set(None),
                not_before: Set(now),
                needs: Set(serde_json::to_string(&one.needs)?),
                spec: Set(one.spec.clone()),
                output: Set(None),
                failure: Set(None),
                progress: Set(None),
                holder: Set(None),
                created: Set(now),
                started: Set(None),
                ended: Set(None),
            };
            tasks::Entity::insert(row).exec_without_returning(&self.inner).await?;
        }
        self.promote(operation).await
    }

    /// Makes tasks ready whose needs are met, and puts their hints into the outbox.
    pub async fn promote(&self, operation: OperationId) -> Result<(), CatalogError> {
        let all = self.tasks(operation).await?;
        let states: BTreeMap<&str, TaskState> = all.iter().map(|t| (t.label.as_str(), t.state)).collect();
        for one in all.iter().filter(|t| t.state == TaskState::Waiting) {
            let met = one.needs.iter().all(|need| states.get(need.as_str()) == Some(&TaskState::Succeeded));
            if met || self.seams.planted("needs-ignored") {
                self.make_ready(one, self.seams.clock.now()).await?;
            }
        }
        Ok(())
    }

    async fn make_ready(&self, one: &Task, not_before: Timestamp) -> Result<(), CatalogError> {
        TaskState::Ready.after(one.state).map_err(|error| CatalogError::Conflict(error.to_string()))?;
        let row = tasks::ActiveModel {
            state: Set(TaskState::Ready.as_str().to_owned()),
            instance: Set(None),
            lease_until: Set(None),
            holder: Set(None),
            not_before: Set(not_before.0),
            ..Default::default()
        };
        tasks::Entity::update_many().set(row).filter(tasks::Column::Id.eq(one.id.0)).exec(&self.inner).await?;
        if let Some(site) = one.site.filter(|_| !self.seams.planted("outbox-row-lost")) {
            let row = outbox::ActiveModel {
                id: Set(self.seams.uuid()),
                site: Set(site.0),
                task: Set(one.id.0),
                kind: Set(one.kind.clone()),
                created: Set(self.seams.clock.now().0),
                origin: Set(Some(self.origin)),
            };
            outbox::Entity::insert(row).exec_without_returning(&self.inner).await?;
        }
        Ok(())
    }

    /// Gives a task to `instance`, if it is ready and of that site. `None`: somebody else was faster, or it is over.
    pub async fn claim(
        &self,
        id: TaskId,
        site: Option<SiteId>,
        instance: InstanceId,
        lease: Duration,
    ) -> Result<Option<Task>, CatalogError> {
        let Some(before) = self.locked_task(id).await? else { return Ok(None) };
        let now = self.seams.clock.now();
        let free = before.state == TaskState::Ready
            || before.state == TaskState::Claimed && self.seams.planted("claimed-twice");
        if before.site != site || !free {
            return Ok(None);
        }
        let row = tasks::ActiveModel {
            state: Set(TaskState::Claimed.as_str().to_owned()),
            attempt: Set(i64::from(before.attempt) + i64::from(!self.seams.planted("attempt-not-counted"))),
            instance: Set(Some(instance.0)),
            lease_until: Set(Some(now.plus(lease).0)),
            started: Set(Some(now.0)),
            progress: Set(None),
            holder: Set(None),
            ..Default::default()
        };
        let taken = tasks::Entity::update_many()
            .set(row)
            .filter(tasks::Column::Id.eq(id.0))
            .filter(tasks::Column::State.eq(before.state.as_str()))
            .filter(tasks::Column::Attempt.eq(i64::from(before.attempt)))
            .filter(due(now))
            .exec(&self.inner)
            .await?;
        if taken.rows_affected != 1 {
            return Ok(None);
        }
        let row = attempts::ActiveModel {
            task: Set(id.0),
            attempt: Set(i64::from(before.attempt) + 1),
            instance: Set(instance.0),
            started: Set(now.0),
            ended: Set(None),
            failure: Set(None),
        };
        attempts::Entity::insert(row).exec_without_returning(&self.inner).await?;
        self.task(id).await
    }

    /// As [`Self::claim`], for a kind of task of which only one may be done at a time, by whichever coordinator. `None`
    /// while another one is claimed, too.
    pub async fn claim_alone(
        &self,
        ready: &Task,
        instance: InstanceId,
        lease: Duration,
    ) -> Result<Option<Task>, CatalogError> {
        self.decide_alone(&ready.kind).await?;
        let other = tasks::Entity::find()
            .filter(tasks::Column::Kind.eq(&ready.kind))
            .filter(tasks::Column::State.eq(TaskState::Claimed.as_str()))
            .one(&self.inner)
            .await?;
        if other.is_some() {
            return Ok(None);
        }
        self.claim(ready.id, ready.site, instance, lease).await
    }

    /// Renews a lease; `None` when the attempt no longer holds the task. Nothing is written where there is nothing new
    /// and the lease is young: holders ask often.
    pub async fn heartbeat(
        &self,
        claimed: &Claimed,
        progress: &Progress,
        holder: Option<&HolderState>,
        lease: Duration,
    ) -> Result<Option<Beat>, CatalogError> {
        if self.seams.planted("heartbeat-unfenced") {
            return Ok(self.task(claimed.task).await?.map(|task| Beat { task, written: false }));
        }
        let Some(before) = self.held(claimed).await? else { return Ok(None) };
        // A heartbeat that comes late, or again, takes back nothing: who holds a snapshot open isn't waiting for it any more.
        let behind = matches!((&before.holder, holder), (Some(HolderState::Open { .. }), Some(HolderState::Prepared)));
        let holder = holder.filter(|_| !behind || self.seams.planted("holder-goes-back"));
        let now = self.seams.clock.now();
        let young =
            before.lease_until.is_some_and(|until| until > now.plus(lease.mul_f64(0.75)) && until <= now.plus(lease));
        let news = before.progress.as_ref().unwrap_or(&Progress::default()) != progress
            || holder.is_some_and(|holder| before.holder.as_ref() != Some(holder));
        if young && !news {
            return Ok(Some(Beat { task: before, written: false }));
        }
        let mut row = tasks::ActiveModel {
            lease_until: Set(Some(now.plus(lease).0)),
            progress: Set(Some(serde_json::to_string(progress)?)),
            ..Default::default()
        };
        if let Some(holder) = holder {
            row.holder = Set(Some(serde_json::to_string(holder)?));
        }
        tasks::Entity::update_many().set(row).filter(held_by(claimed)).exec(&self.inner).await?;
        Ok(self.task(claimed.task).await?.map(|task| Beat { task, written: true }))
    }

    /// Renews a lease, whatever its age. `false` when the attempt no longer holds the task.
    pub async fn renew_lease(&self, claimed: &Claimed, lease: Duration) -> Result<bool, CatalogError> {
        let until = self.seams.clock.now().plus(lease);
        let renewed = tasks::Entity::update_many()
            .set(tasks::ActiveModel { lease_until: Set(Some(until.0)), ..Default::default() })
            .filter(held_by(claimed))
            .exec(&self.inner)
            .await?;
        Ok(renewed.rows_affected == 1)
    }

    /// Ends an attempt well. `false` when it no longer holds the task.
    pub async fn succeed(&self, claimed: &Claimed, output: &str) -> Result<bool, CatalogError> {
        if self.held(claimed).await?.is_none() {
            return Ok(false);
        }
        let now = self.seams.clock.now().0;
        let row = tasks::ActiveModel {
            state: Set(TaskState::Succeeded.as_str().to_owned()),
            output: Set(Some(output.to_owned())),
            failure: Set(None),
            lease_until: Set(None),
            ended: Set(Some(now)),
            ..Default::default()
        };
        let fence = match self.seams.planted("result-unfenced") {
            true => Condition::all().add(tasks::Column::Id.eq(claimed.task.0)),
            false => held_by(claimed),
        };
        let ended = tasks::Entity::update_many().set(row).filter(fence).exec(&self.inner).await?;
        if ended.rows_affected == 1 {
            self.end_attempt(claimed.task, claimed.attempt, None).await?;
        }
        Ok(ended.rows_affected == 1)
    }

    /// Ends an attempt badly: the task is tried again after a pause while it may be, else it has failed.
    /// `None` when the attempt no longer holds the task.
    pub async fn fail(&self, claimed: &Claimed, failure: &TaskFailure) -> Result<Option<TaskState>, CatalogError> {
        let Some(now) = self.held(claimed).await? else { return Ok(None) };
        self.end_attempt(claimed.task, claimed.attempt, Some(failure)).await?;
        let tries = self.tries(claimed.task).await?;
        let state = match failure.class {
            FailureClass::Retryable if tries < now.most_attempts => TaskState::Ready,
            FailureClass::Cancelled => TaskState::Cancelled,
            _ => TaskState::Failed,
        };
        let row = tasks::ActiveModel {
            state: Set(if state == TaskState::Ready { TaskState::Claimed } else { state }.as_str().to_owned()),
            failure: Set(Some(serde_json::to_string(failure)?)),
            lease_until: Set(None),
            ended: Set((state != TaskState::Ready).then(|| self.seams.clock.now().0)),
            ..Default::default()
        };
        tasks::Entity::update_many().set(row).filter(tasks::Column::Id.eq(now.id.0)).exec(&self.inner).await?;
        if state == TaskState::Ready {
            let pause = Duration::from_secs(1 << tries.min(LONGEST_PAUSE.ilog2()));
            self.make_ready(&now, self.seams.clock.now().plus(self.seams.jittered(pause))).await?;
        }
        Ok(Some(state))
    }

    /// Takes a task back from one that stopped or died; doesn't count as a failed try of the work itself. `None` when
    /// it is no longer in the attempt that `seen` was in: its outcome came in between, or another took it back.
    pub async fn hand_back(&self, seen: &Task, why: &TaskFailure) -> Result<Option<TaskState>, CatalogError> {
        let one = self.locked_task(seen.id).await?;
        let Some(one) = one.filter(|one| one.state == TaskState::Claimed && one.attempt == seen.attempt) else {
            return Ok(None);
        };
        if !self.seams.planted("attempt-stays-open") {
            self.end_attempt(one.id, one.attempt, Some(why)).await?;
        }
        if one.attempt >= one.most_attempts + LOST_TRIES {
            self.end_as_failed(one.id, why).await?;
            return Ok(Some(TaskState::Failed));
        }
        self.make_ready(&one, self.seams.clock.now()).await?;
        Ok(Some(TaskState::Ready))
    }

    /// Calls off everything of an operation that nobody has begun. What is claimed learns it with its heartbeat.
    pub async fn cancel_waiting(&self, operation: OperationId, undo: bool) -> Result<(), CatalogError> {
        let idle = [TaskState::Waiting.as_str(), TaskState::Ready.as_str()];
        let row = tasks::ActiveModel {
            state: Set(TaskState::Cancelled.as_str().to_owned()),
            ended: Set(Some(self.seams.clock.now().0)),
            ..Default::default()
        };
        tasks::Entity::update_many()
            .set(row)
            .filter(tasks::Column::Operation.eq(operation.0))
            .filter(tasks::Column::Undo.eq(i64::from(undo)))
            .filter(tasks::Column::State.is_in(idle))
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Calls a task off, whoever works on it: its heartbeat will be refused. What is over stays as it is.
    pub async fn cancel_task(&self, id: TaskId) -> Result<(), CatalogError> {
        let open = [TaskState::Waiting.as_str(), TaskState::Ready.as_str(), TaskState::Claimed.as_str()];
        let row = tasks::ActiveModel {
            state: Set(TaskState::Cancelled.as_str().to_owned()),
            lease_until: Set(None),
            ended: Set(Some(self.seams.clock.now().0)),
            ..Default::default()
        };
        tasks::Entity::update_many()
            .set(row)
            .filter(tasks::Column::Id.eq(id.0))
            .filter(tasks::Column::State.is_in(open))
            .exec(&self.inner)
            .await?;
        // Who works on it is told with the next heartbeat; what comes after that counts no more.
        let ended = attempts::ActiveModel { ended: Set(Some(self.seams.clock.now().0)), ..Default::default() };
        attempts::Entity::update_many()
            .set(ended)
            .filter(attempts::Column::Task.eq(id.0))
            .filter(attempts::Column::Ended.is_null())
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Ends a task that nobody can do any more. `false` when it has ended already.
    pub async fn abandon(&self, seen: &Task, why: &TaskFailure) -> Result<bool, CatalogError> {
        let one = self.locked_task(seen.id).await?;
        let Some(one) = one.filter(|one| matches!(one.state, TaskState::Ready | TaskState::Claimed)) else {
            return Ok(false);
        };
        if one.state == TaskState::Claimed {
            self.end_attempt(one.id, one.attempt, Some(why)).await?;
        }
        self.end_as_failed(one.id, why).await?;
        Ok(true)
    }

    async fn end_as_failed(&self, id: TaskId, why: &TaskFailure) -> Result<(), CatalogError> {
        let row = tasks::ActiveModel {
            state: Set(TaskState::Failed.as_str().to_owned()),
            failure: Set(Some(serde_json::to_string(why)?)),
            lease_until: Set(None),
            ended: Set(Some(self.seams.clock.now().0)),
            ..Default::default()
        };
        tasks::Entity::update_many().set(row).filter(tasks::Column::Id.eq(id.0)).exec(&self.inner).await?;
        Ok(())
    }

    /// How many attempts failed by themselves: those that were lost with their agent say nothing about the work.
    async fn tries(&self, id: TaskId) -> Result<u32, CatalogError> {
        let ended = attempts::Entity::find().filter(attempts::Column::Task.eq(id.0)).all(&self.inner).await?;
        let mut tries = 0;
        for failure in ended.into_iter().filter_map(|attempt| attempt.failure) {
            let failure: TaskFailure = serde_json::from_str(&failure)?;
            tries += u32::from(failure.code != LOST);
        }
        Ok(tries)
    }

    async fn end_attempt(&self, id: TaskId, attempt: u32, failure: Option<&TaskFailure>) -> Result<(), CatalogError> {
        let row = attempts::ActiveModel {
            ended: Set(Some(self.seams.clock.now().0)),
            failure: Set(failure.map(serde_json::to_string).transpose()?),
            ..Default::default()
        };
        attempts::Entity::update_many()
            .set(row)
            .filter(attempts::Column::Task.eq(id.0))
            .filter(attempts::Column::Attempt.eq(i64::from(attempt)))
            .exec(&self.inner)
            .await?;
        Ok(())
    }
}

/// The code of a failure that is a loss: the agent stopped, died or was cut off.
pub const LOST: &str = "task.lost";
/// Longest pause before another try, in seconds; a power of two.
const LONGEST_PAUSE: u32 = 64;

/// What may be claimed at `now`. What would wait longer than any pause was written before the clock was put back.
fn due(now: Timestamp) -> Condition {
    let longest = Duration::from_secs(2 * u64::from(LONGEST_PAUSE));
    Condition::any().add(tasks::Column::NotBefore.lte(now.0)).add(tasks::Column::NotBefore.gt(now.plus(longest).0))
}

/// How long a hint is left to the coordinator through which it was written.
const LEFT: Duration = Duration::from_secs(5);

/// How many lost leases a task survives beyond its tries: a process that is killed again and again must end.
const LOST_TRIES: u32 = 20;

fn held_by(claimed: &Claimed) -> Condition {
    Condition::all()
        .add(tasks::Column::Id.eq(claimed.task.0))
        .add(tasks::Column::Operation.eq(claimed.operation.0))
        .add(tasks::Column::State.eq(TaskState::Claimed.as_str()))
        .add(tasks::Column::Attempt.eq(i64::from(claimed.attempt)))
        .add(tasks::Column::Instance.eq(claimed.instance.0))
}
