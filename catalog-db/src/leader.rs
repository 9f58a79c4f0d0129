//! Which coordinator does what only one may do.
//!
//! One row holds who leads, until when, and an *epoch* that grows whenever another one takes over. The time decides only
//! who may try. What counts is the epoch: a transaction of the leader begins with [`Catalog::begin_leading`], which locks
//! the row for reading and looks whether the epoch is still its own; whoever takes over locks it for writing. So a
//! coordinator that was frozen, taken for dead and thawed changes nothing more, whatever its clock says, and none takes
//! over in the midst of another's transaction.

use std::time::Duration;

use ocopea_protocol::ids::InstanceId;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_shared, unless_there},
    entities::epochs,
};

/// The row of those who lead.
const LEADER: &str = "leader";

/// One time of leading, by one coordinator without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub i64);

impl Catalog {
    /// Leads for `span` from now, or goes on leading; `None` while another one does.
    pub async fn lead(&self, instance: InstanceId, span: Duration) -> Result<Option<Epoch>, CatalogError> {
        let transaction = self.begin().await?;
        let row = epochs::ActiveModel {
            name: Set(LEADER.to_owned()),
            epoch: Set(0),
            holder: Set(None),
            lease_until: Set(None),
        };
        epochs::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(&transaction.inner).await?;
        let found = transaction.epoch_row(LEADER).await?;
        let now = self.seams.clock.now();
        // What lies further ahead than anybody leads was written before the clock was put back.
        let held = found.lease_until.is_some_and(|until| until > now.0 && until <= now.plus(2 * span).0);
        let own = found.holder == Some(instance.0);
        // Nobody else can be on a SQLite file: who held it there is gone.
        if held && !own && self.is_shared() {
            return Ok(None);
        }
        let epoch = if own { found.epoch } else { found.epoch + 1 };
        let row = epochs::ActiveModel {
            epoch: Set(epoch),
            holder: Set(Some(instance.0)),
            lease_until: Set(Some(now.plus(span).0)),
            ..Default::default()
        };
        let written = epochs::Entity::update_many().set(row).filter(epochs::Column::Name.eq(LEADER));
        written.exec(&transaction.inner).await?;
        transaction.commit().await?;
        Ok(Some(Epoch(epoch)))
    }

    /// Lets another one lead at once.
    pub async fn step_down(&self, instance: InstanceId) -> Result<(), CatalogError> {
        let row = epochs::ActiveModel { holder: Set(None), lease_until: Set(None), ..Default::default() };
        epochs::Entity::update_many()
            .set(row)
            .filter(epochs::Column::Name.eq(LEADER))
            .filter(epochs::Column::Holder.eq(instance.0))
            .exec(&self.database)
            .await?;
        Ok(())
    }

    /// Begins a transaction that only counts within this epoch: nobody takes over before it ends.
    pub async fn begin_leading(&self, epoch: Epoch) -> Result<Transaction, CatalogError> {
        let transaction = self.begin().await?;
        let mut find = epochs::Entity::find_by_id(LEADER.to_owned())
            .filter(epochs::Column::Epoch.eq(epoch.0))
            .filter(epochs::Column::Holder.is_not_null());
        if self.is_shared() {
            find = find.lock_shared();
        }
        match find.one(&transaction.inner).await? {
            Some(_) => Ok(transaction),
            None if self.seams.planted("epoch-unchecked") => Ok(transaction),
            None => Err(CatalogError::Superseded),
        }
    }
}

impl Transaction {
    /// A row of the table, locked on PostgreSQL until the transaction ends.
    async fn epoch_row(&self, name: &str) -> Result<epochs::Model, CatalogError> {
        let find = epochs::Entity::find_by_id(name.to_owned());
        let find = if is_shared(&self.inner) { find.lock_exclusive() } else { find };
        find.one(&self.inner).await?.ok_or_else(|| CatalogError::not_found("epoch", name))
    }

    /// Waits until no other transaction decides about `name`; others wait for this one.
    pub(crate) async fn decide_alone(&self, name: &str) -> Result<(), CatalogError> {
        let row = epochs::ActiveModel {
            name: Set(name.to_owned()),
            epoch: Set(0),
            holder: Set(None),
            lease_until: Set(None),
        };
        epochs::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(&self.inner).await?;
        self.epoch_row(name).await.map(drop)
    }
}
