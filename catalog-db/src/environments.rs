//! Environments: what Ocopea deployed.

use ocopea_protocol::{
    ids::{EnvironmentId, ImageId, OperationId, SiteId, TeamId},
    names::Digest,
    plan::ContainerPlacement,
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_storable, storable, unless_there},
    entities::{environments, operations},
    model::{EnvironmentState, OperationState},
};

/// An environment.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Whose it is.
    pub team: TeamId,
    /// Its name and namespace.
    pub name: String,
    /// Where it runs.
    pub site: SiteId,
    /// The image it came from.
    pub image: ImageId,
    /// That image's record.
    pub record: Digest,
    /// Its state.
    pub state: EnvironmentState,
    /// Its URL, if one was found.
    pub url: Option<String>,
    /// Who made it.
    pub owner: String,
    /// Container images that were pushed for it.
    pub placements: Vec<ContainerPlacement>,
    /// When it was made.
    pub created: Timestamp,
}

/// States in which it may be removed.
const REMOVABLE: [EnvironmentState; 2] = [EnvironmentState::Running, EnvironmentState::Incomplete];
/// States in which nothing of an environment is left, its name included.
const GONE: [EnvironmentState; 2] = [EnvironmentState::Removed, EnvironmentState::Failed];

fn environment(row: environments::Model) -> Result<Environment, CatalogError> {
    Ok(Environment {
        id: EnvironmentId(row.id),
        team: TeamId(row.team),
        name: row.name,
        site: SiteId(row.site),
        image: ImageId(row.image),
        record: row.record.parse().map_err(|_| CatalogError::Malformed(row.record.clone()))?,
        state: EnvironmentState::parse(&row.state).ok_or(CatalogError::Malformed(row.state))?,
        url: row.url,
        owner: row.owner,
        placements: serde_json::from_str(&row.placements)?,
        created: Timestamp(row.created),
    })
}

impl Catalog {
    /// A team's environments that are there or on their way, newest first.
    pub async fn environments(
        &self,
        team: TeamId,
        before: Option<EnvironmentId>,
        limit: u64,
    ) -> Result<Vec<Environment>, CatalogError> {
        let mut find = environments::Entity::find()
            .filter(environments::Column::Team.eq(team.0))
            .filter(environments::Column::State.is_not_in(GONE.map(EnvironmentState::as_str)))
            .order_by_desc(environments::Column::Id)
            .limit(limit.clamp(1, 1000));
        if let Some(before) = before {
            find = find.filter(environments::Column::Id.lt(before.0));
        }
        find.all(&self.database).await?.into_iter().map(environment).collect()
    }

    /// One, by name or id.
    pub async fn environment(&self, team: TeamId, name: &str) -> Result<Environment, CatalogError> {
        let absent = || CatalogError::not_found("environment", name);
        if !is_storable(name) {
            return Err(absent());
        }
        let of = environments::Column::Name.eq(name);
        let of = match name.parse::<EnvironmentId>() {
            Ok(id) => of.or(environments::Column::Id.eq(id.0)),
            Err(_) => of,
        };
        let found = environments::Entity::find()
            .filter(environments::Column::Team.eq(team.0))
            .filter(environments::Column::State.is_not_in(GONE.map(EnvironmentState::as_str)))
            .filter(of)
            .order_by_desc(environments::Column::Id)
            .one(&self.database)
            .await?;
        environment(found.ok_or_else(absent)?)
    }
}

impl Transaction {
    /// One, whatever its state.
    pub async fn environment(&self, id: EnvironmentId) -> Result<Environment, CatalogError> {
        let row = environments::Entity::find_by_id(id.0).one(&self.inner).await?;
        environment(row.ok_or_else(|| CatalogError::not_found("environment", id))?)
    }

    /// Notes an environment that is being made; two of one name at one site are refused.
    pub async fn add_environment(&self, new: &Environment) -> Result<(), CatalogError> {
        storable("the environment's name", &[&new.name, &new.owner])?;
        let row = environments::ActiveModel {
            id: Set(new.id.0),
            team: Set(new.team.0),
            name: Set(new.name.clone()),
            site: Set(new.site.0),
            image: Set(new.image.0),
            record: Set(new.record.to_string()),
            state: Set(new.state.as_str().to_owned()),
            url: Set(new.url.clone()),
            owner: Set(new.owner.clone()),
            placements: Set(serde_json::to_string(&new.placements)?),
            created: Set(new.created.0),
            ended: Set(None),
        };
        // The index of what is there decides: of two at once, the second waits for the first and is then refused.
        let insert = environments::Entity::insert(row).on_conflict(unless_there());
        if insert.exec_without_returning(&self.inner).await? == 1 {
            return Ok(());
        }
        Err(CatalogError::Conflict(format!(
            "an environment {:?} is at that site already: choose another name, or remove it first",
            new.name
        )))
    }

    /// Begins to remove one that runs, or of which something is left; of two at once, the second is refused. One that is
    /// being made or removed is left to the operation that does so. `by` is the one that wants to.
    pub async fn begin_removing(&self, id: EnvironmentId, by: OperationId) -> Result<(), CatalogError> {
        let row = environments::ActiveModel {
            state: Set(EnvironmentState::Removing.as_str().to_owned()),
            ..Default::default()
        };
        let begun = environments::Entity::update_many()
            .set(row)
            .filter(environments::Column::Id.eq(id.0))
            .filter(environments::Column::State.is_in(REMOVABLE.map(EnvironmentState::as_str)))
            .exec(&self.inner)
            .await?;
        if begun.rows_affected == 1 {
            return Ok(());
        }
        let now = self.environment(id).await?;
        let open = operations::Entity::find()
            .filter(operations::Column::Environment.eq(id.0))
            .filter(operations::Column::Ended.is_null())
            .filter(operations::Column::Id.ne(by.0))
            .order_by_desc(operations::Column::Id)
            .one(&self.inner)
            .await?;
        let by = open.map(|open| format!(" by operation {}", open.id)).unwrap_or_default();
        Err(match now.state {
            EnvironmentState::Creating => CatalogError::Conflict(format!(
                "the environment {:?} is still being made{by}: wait for it, or cancel that operation",
                now.name
            )),
            EnvironmentState::Removing => {
                CatalogError::Conflict(format!("the environment {:?} is being removed already{by}", now.name))
            }
            _ => CatalogError::not_found("environment", now.name),
        })
    }

    /// Moves it to another state. Repeating is fine.
    pub async fn set_environment_state(&self, id: EnvironmentId, state: EnvironmentState) -> Result<(), CatalogError> {
        let now = self.environment(id).await?;
        if now.state == state {
            return Ok(());
        }
        let state = state.after(now.state).map_err(|error| CatalogError::Conflict(error.to_string()))?;
        let over = matches!(state, EnvironmentState::Removed | EnvironmentState::Failed);
        let row = environments::ActiveModel {
            state: Set(state.as_str().to_owned()),
            ended: Set(over.then(|| self.seams.clock.now().0)),
            ..Default::default()
        };
        environments::Entity::update_many()
            .set(row)
            .filter(environments::Column::Id.eq(id.0))
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Whether it ever ran whole.
    pub async fn was_made(&self, id: EnvironmentId) -> Result<bool, CatalogError> {
        let made = operations::Entity::find()
            .filter(operations::Column::Environment.eq(id.0))
            .filter(operations::Column::Kind.eq("restore"))
            .filter(operations::Column::State.eq(OperationState::Succeeded.as_str()));
        Ok(made.count(&self.inner).await? > 0)
    }

    /// Notes what was found out about it.
    pub async fn set_environment_facts(
        &self,
        id: EnvironmentId,
        url: Option<String>,
        placements: &[ContainerPlacement],
    ) -> Result<(), CatalogError> {
        let row = environments::ActiveModel {
            url: Set(url),
            placements: Set(serde_json::to_string(placements)?),
            ..Default::default()
        };
        environments::Entity::update_many()
            .set(row)
            .filter(environments::Column::Id.eq(id.0))
            .exec(&self.inner)
            .await?;
        Ok(())
    }
}
