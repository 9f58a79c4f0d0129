//! What stands in the catalog, counted: for metrics and the page of an installation's state.

use ocopea_protocol::time::Timestamp;
use sea_orm::{ColumnTrait, EntityTrait, Order, QueryFilter, QueryOrder, QuerySelect};

use crate::{
    Catalog, CatalogError,
    entities::{images, operations, outbox, tasks},
    model::{OperationState, Standing, TaskState},
};

/// Applications whose last save is told at most; those that were saved last.
const MOST: u64 = 1000;
/// Endings that are looked at to count failures in a row.
const LOOKED_BACK: u64 = 100;

/// All of it, at about one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Tasks that aren't over: the site's name (empty: the coordinator's own), state, how many.
    pub tasks: Vec<(String, String, u64)>,
    /// Operations that aren't over: kind, state, how many.
    pub operations: Vec<(String, String, u64)>,
    /// Hints that wait to be published.
    pub hints: u64,
    /// Since when the oldest task that anybody could do waits.
    pub waiting_since: Option<Timestamp>,
    /// Looking after the repository: kind, when it last succeeded, how often it failed since.
    pub upkeep: Vec<(&'static str, Option<Timestamp>, u64)>,
    /// Saves: site, application, when the last image was saved.
    pub saved: Vec<(String, String, Timestamp)>,
    /// Sites that everybody sees: name, when they reported last.
    pub reported: Vec<(String, Option<Timestamp>)>,
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Catalog {
    /// Counts.
    pub async fn figures(&self) -> Result<Figures, CatalogError> {
        let database = &self.database;
        let open = [TaskState::Waiting, TaskState::Ready, TaskState::Claimed].map(TaskState::as_str);
        let of_tasks = tasks::Entity::find()
            .select_only()
            .column(tasks::Column::Site)
            .column(tasks::Column::State)
            .column_as(tasks::Column::Id.count(), "number")
            .filter(tasks::Column::State.is_in(open))
            .group_by(tasks::Column::Site)
            .group_by(tasks::Column::State)
            .into_tuple::<(Option<uuid::Uuid>, String, i64)>()
            .all(database)
            .await?;
        let open = [OperationState::Running, OperationState::Undoing].map(OperationState::as_str);
        let of_operations = operations::Entity::find()
            .select_only()
            .column(operations::Column::Kind)
            .column(operations::Column::State)
            .column_as(operations::Column::Id.count(), "number")
            .filter(operations::Column::State.is_in(open))
            .group_by(operations::Column::Kind)
            .group_by(operations::Column::State)
            .into_tuple::<(String, String, i64)>()
            .all(database)
            .await?;
        let hints: Option<i64> = outbox::Entity::find()
            .select_only()
            .column_as(outbox::Column::Id.count(), "number")
            .into_tuple()
            .one(database)
            .await?;
        let waiting: Option<i64> = tasks::Entity::find()
            .select_only()
            .column(tasks::Column::NotBefore)
            .filter(tasks::Column::State.eq(TaskState::Ready.as_str()))
            .order_by_asc(tasks::Column::NotBefore)
            .into_tuple()
            .one(database)
            .await?;
        let saved = images::Entity::find()
            .select_only()
            .column(images::Column::Site)
            .column(images::Column::Application)
            .column_as(images::Column::Created.max(), "last")
            .filter(images::Column::Deleting.is_null())
            .group_by(images::Column::Site)
            .group_by(images::Column::Application)
            .order_by(images::Column::Created.max(), Order::Desc)
            .limit(MOST)
            .into_tuple::<(String, String, i64)>()
            .all(database)
            .await?;
        let all = self.sites().await?;
        let private: Vec<&str> = all.iter().filter(|s| s.owner.is_some()).map(|site| site.name.as_str()).collect();
        let seen = |site: &str| !private.contains(&site);
        let mut upkeep = Vec::new();
        for kind in ["collect", "verify"] {
            let (last, failures) = self.upkeep(kind).await?;
            upkeep.push((kind, last, failures));
        }
        let name_of = |id: Option<uuid::Uuid>| match id {
            None => Some(String::new()),
            Some(id) => all.iter().find(|site| site.id.0 == id && site.owner.is_none()).map(|site| site.name.clone()),
        };
        Ok(Figures {
            tasks: of_tasks
                .into_iter()
                .filter_map(|(site, state, count)| Some((name_of(site)?, state, number(count))))
                .collect(),
            operations: of_operations.into_iter().map(|(kind, state, count)| (kind, state, number(count))).collect(),
            hints: number(hints.unwrap_or(0)),
            waiting_since: waiting.map(Timestamp),
            upkeep,
            saved: saved
                .into_iter()
                .filter(|(site, ..)| seen(site))
                .map(|(site, application, last)| (site, application, Timestamp(last)))
                .collect(),
            reported: all
                .iter()
                .filter(|site| site.owner.is_none() && site.standing == Standing::Active)
                .map(|site| (site.name.clone(), site.reported))
                .collect(),
        })
    }

    /// When operations of that kind last succeeded, and how many failed since (the newest hundred are looked at).
    async fn upkeep(&self, kind: &str) -> Result<(Option<Timestamp>, u64), CatalogError> {
        let ended = operations::Entity::find()
            .select_only()
            .column(operations::Column::State)
            .column(operations::Column::Ended)
            .filter(operations::Column::Kind.eq(kind))
            .filter(operations::Column::Ended.is_not_null())
            .order_by_desc(operations::Column::Id)
            .limit(LOOKED_BACK)
            .into_tuple::<(String, Option<i64>)>()
            .all(&self.database)
            .await?;
        let succeeded = |(state, _): &&(String, Option<i64>)| state == OperationState::Succeeded.as_str();
        let last = ended.iter().find(succeeded).and_then(|(_, ended)| *ended).map(Timestamp);
        let since = ended.iter().take_while(|one| !succeeded(one));
        let failures = since.filter(|(state, _)| state == OperationState::Failed.as_str()).count();
        Ok((last, failures as u64))
    }
}
