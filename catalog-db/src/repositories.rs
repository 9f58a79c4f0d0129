//! Copy repositories: the one that is given at start, and those that were added.
//!
//! Images and operations name the repository that they are about; those of the one that is given at start name none, so
//! that what was there before there were several is found where it was. [`Transaction::hold_repository`] is the first
//! thing of whoever begins to use one: an added one goes only while nobody does.

use std::collections::BTreeMap;

use ocopea_protocol::{
    ids::RepositoryId,
    image::{Location, StoreLimits},
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, LockType},
};
use uuid::Uuid;

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_shared, is_storable, storable, unless_there},
    entities::{images, operations, repositories},
    model::OperationState,
};

/// The name of the one that is given at start.
pub const GIVEN: &str = "default";

/// A copy repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its id in this catalog.
    pub id: RepositoryId,
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub location: Location,
    /// How its store is got at, as JSON; no secret.
    pub access: String,
    /// The secret keys of its store, sealed with the installation's key.
    pub sealed: Option<String>,
    /// What each process may ask of its store.
    pub limits: StoreLimits,
    /// What its store can, or why it couldn't be looked at, as JSON.
    pub found: Option<String>,
    /// When that was.
    pub found_at: Option<Timestamp>,
    /// The id that it has by itself, wherever it lies.
    pub own_id: Option<Uuid>,
    /// Whether it is the one that coordinators are started with.
    pub is_given: bool,
    /// Whether saves go there that name none.
    pub is_default: bool,
    /// When it came.
    pub created: Timestamp,
}

impl Repository {
    /// What images and operations name it by.
    pub fn reference(&self) -> Option<RepositoryId> {
        (!self.is_given).then_some(self.id)
    }
}

fn repository(row: repositories::Model) -> Result<Repository, CatalogError> {
    Ok(Repository {
        id: RepositoryId(row.id),
        name: row.name,
        location: serde_json::from_str(&row.location)?,
        access: row.access,
        sealed: row.sealed,
        limits: serde_json::from_str(&row.limits)?,
        found: row.found,
        found_at: row.found_at.map(Timestamp),
        own_id: row.own_id,
        is_given: row.given_at_start != 0,
        is_default: row.is_default != 0,
        created: Timestamp(row.created),
    })
}

fn row(one: &Repository) -> Result<repositories::ActiveModel, CatalogError> {
    Ok(repositories::ActiveModel {
        id: Set(one.id.0),
        name: Set(one.name.clone()),
        location: Set(serde_json::to_string(&one.location)?),
        created: Set(one.created.0),
        access: Set(one.access.clone()),
        sealed: Set(one.sealed.clone()),
        limits: Set(serde_json::to_string(&one.limits)?),
        found: Set(one.found.clone()),
        found_at: Set(one.found_at.map(|at| at.0)),
        own_id: Set(one.own_id),
        given_at_start: Set(one.is_given.into()),
        is_default: Set(one.is_default.into()),
    })
}

/// What lies in a repository, as far as the catalog knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Images.
    pub images: u64,
    /// Raw bytes that they brought.
    pub new_bytes: u64,
}

impl Catalog {
    /// All of them, by name.
    pub async fn repositories(&self) -> Result<Vec<Repository>, CatalogError> {
        let rows = repositories::Entity::find().order_by_asc(repositories::Column::Name).all(&self.database).await?;
        rows.into_iter().map(repository).collect()
    }

    /// One, by name or id.
    pub async fn repository(&self, name: &str) -> Result<Repository, CatalogError> {
        if !is_storable(name) {
            return Err(CatalogError::not_found("repository", name));
        }
        let find = match name.parse::<RepositoryId>() {
            Ok(id) => repositories::Entity::find_by_id(id.0),
            Err(_) => repositories::Entity::find().filter(repositories::Column::Name.eq(name)),
        };
        let found = find.one(&self.database).await?.map(repository).transpose()?;
        found.ok_or_else(|| CatalogError::not_found("repository", name))
    }

    /// Writes down the one that this coordinator was started with.
    pub async fn ensure_given_repository(
        &self,
        location: &Location,
        limits: &StoreLimits,
        own_id: Uuid,
    ) -> Result<Repository, CatalogError> {
        let new = Repository {
            id: RepositoryId::generate(&self.seams),
            name: GIVEN.to_owned(),
            location: location.clone(),
            access: "{}".to_owned(),
            sealed: None,
            limits: *limits,
            found: None,
            found_at: None,
            own_id: Some(own_id),
            is_given: true,
            is_default: true,
            created: self.seams.clock.now(),
        };
        repositories::Entity::insert(row(&new)?)
            .on_conflict(unless_there())
            .exec_without_returning(&self.database)
            .await?;
        let now = repositories::ActiveModel {
            location: Set(serde_json::to_string(location)?),
            limits: Set(serde_json::to_string(limits)?),
            own_id: Set(Some(own_id)),
            ..Default::default()
        };
        repositories::Entity::update_many()
            .set(now)
            .filter(repositories::Column::GivenAtStart.eq(1))
            .exec(&self.database)
            .await?;
        let found = repositories::Entity::find().filter(repositories::Column::GivenAtStart.eq(1));
        let found = found.one(&self.database).await?.map(repository).transpose()?;
        // Its id is that of an added one: somebody started a coordinator with that.
        found.ok_or_else(|| {
            CatalogError::Conflict("the repository that is given at start was added under another name".to_owned())
        })
    }

    /// What was found out about one's store.
    pub async fn note_repository(&self, id: RepositoryId, found: &str) -> Result<(), CatalogError> {
        storable("what was found", &[found])?;
        let now = repositories::ActiveModel {
            found: Set(Some(found.to_owned())),
            found_at: Set(Some(self.seams.clock.now().0)),
            ..Default::default()
        };
        repositories::Entity::update_many()
            .set(now)
            .filter(repositories::Column::Id.eq(id.0))
            .exec(&self.database)
            .await?;
        Ok(())
    }

    /// What lies in which, by what images name it.
    pub async fn held_by_repositories(&self) -> Result<BTreeMap<Option<RepositoryId>, Held>, CatalogError> {
        let rows: Vec<(Option<Uuid>, i64, Option<i64>)> = images::Entity::find()
            .select_only()
            .column(images::Column::Repository)
            .column_as(images::Column::Id.count(), "images")
            // The sum of both engines' whole numbers, as one of them.
            .column_as(Expr::col(images::Column::NewBytes).sum().cast_as("BIGINT"), "new_bytes")
            .group_by(images::Column::Repository)
            .into_tuple()
            .all(&self.database)
            .await?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let held =
            |images, new_bytes: Option<i64>| Held { images: number(images), new_bytes: number(new_bytes.unwrap_or(0)) };
        Ok(rows.into_iter().map(|(id, images, new)| (id.map(RepositoryId), held(images, new))).collect())
    }
}

impl Transaction {
    /// Whoever begins to use an added one holds it until the commit; it is gone then, or stays.
    pub async fn hold_repository(&self, id: Option<RepositoryId>) -> Result<(), CatalogError> {
        let Some(id) = id else { return Ok(()) };
        let mut find = repositories::Entity::find_by_id(id.0);
        if is_shared(&self.inner) {
            find = find.lock(LockType::KeyShare);
        }
        match find.one(&self.inner).await? {
            Some(_) => Ok(()),
            None => Err(CatalogError::not_found("repository", id)),
        }
    }

    /// Adds one. A name, a place or a repository that is there already is refused by its name.
    pub async fn add_repository(&self, new: &Repository) -> Result<(), CatalogError> {
        storable("the repository's texts", &[&new.name, &new.access])?;
        let known = repositories::Entity::find().all(&self.inner).await?;
        for known in known.into_iter().map(repository) {
            let known = known?;
            if known.name == new.name {
                return Err(CatalogError::Conflict(format!("there is a repository {} already", new.name)));
            }
            if known.own_id.is_some() && known.own_id == new.own_id {
                return Err(CatalogError::Conflict(format!("it is the repository {} already", known.name)));
            }
        }
        let inserted = repositories::Entity::insert(row(new)?)
            .on_conflict(unless_there())
            .exec_without_returning(&self.inner)
            .await?;
        if inserted == 1 {
            return Ok(());
        }
        Err(CatalogError::Conflict(format!("the repository {} was added by somebody else at this moment", new.name)))
    }

    /// Changes how an added one is got at.
    pub async fn change_repository(&self, changed: &Repository) -> Result<(), CatalogError> {
        storable("the repository's texts", &[&changed.access])?;
        let now = repositories::ActiveModel {
            access: Set(changed.access.clone()),
            sealed: Set(changed.sealed.clone()),
            limits: Set(serde_json::to_string(&changed.limits)?),
            found: Set(changed.found.clone()),
            found_at: Set(changed.found_at.map(|at| at.0)),
            ..Default::default()
        };
        let there = repositories::Entity::update_many()
            .set(now)
            .filter(repositories::Column::Id.eq(changed.id.0))
            .filter(repositories::Column::GivenAtStart.eq(0))
            .exec(&self.inner)
            .await?;
        if there.rows_affected == 1 { Ok(()) } else { Err(CatalogError::not_found("repository", &changed.name)) }
    }

    /// From now on saves that name none go there.
    pub async fn set_default_repository(&self, id: RepositoryId) -> Result<(), CatalogError> {
        self.hold_repository(Some(id)).await?;
        let is_it = Expr::case(Expr::col(repositories::Column::Id).eq(id.0), 1).finally(0);
        repositories::Entity::update_many()
            .col_expr(repositories::Column::IsDefault, is_it.into())
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Forgets one: how it was got at. Refused while images lie in it, or anything is under way with it.
    pub async fn remove_repository(&self, id: RepositoryId) -> Result<(), CatalogError> {
        let mut find = repositories::Entity::find_by_id(id.0);
        if is_shared(&self.inner) {
            find = find.lock(LockType::Update);
        }
        let found = find.one(&self.inner).await?.map(repository).transpose()?;
        let found = found.ok_or_else(|| CatalogError::not_found("repository", id))?;
        let refuse = |why: String| Err(CatalogError::Conflict(format!("the repository {} {why}", found.name)));
        if found.is_given {
            return refuse("is the one that coordinators are started with".to_owned());
        }
        if found.is_default {
            return refuse("is the default one: make another one that first".to_owned());
        }
        let images = images::Entity::find().filter(images::Column::Repository.eq(id.0)).count(&self.inner).await?;
        if images > 0 {
            return refuse(format!("holds {images} image{}", if images == 1 { "" } else { "s" }));
        }
        let open = [OperationState::Running, OperationState::Undoing].map(OperationState::as_str);
        let busy = operations::Entity::find()
            .filter(operations::Column::Repository.eq(id.0))
            .filter(operations::Column::State.is_in(open))
            .count(&self.inner)
            .await?;
        if busy > 0 {
            let s = if busy == 1 { "" } else { "s" };
            return refuse(format!("is used by {busy} operation{s}: wait for them, or cancel them"));
        }
        repositories::Entity::delete_by_id(id.0).exec(&self.inner).await?;
        Ok(())
    }
}
