//! The processes of agents that signed in for their sites, each with the key that its tasks are sealed to.

use ocopea_protocol::{
    identity::{LONGEST_CLUSTER, PublicKey, SignIn},
    ids::{InstanceId, SiteId},
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, LockType},
};

use crate::{
    Catalog, CatalogError,
    database::{is_shared, is_storable, unless_there},
    entities::{instances, sites},
    model::Standing,
};

/// Instances of one site that are kept, the newest; older ones that ended or fell silent are forgotten.
const KEPT: u64 = 1000;

/// Why two processes that believe to be one lose their word.
pub const CLONED: &str = "another process has the same id";

/// A process of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInstance {
    /// Its id.
    pub id: InstanceId,
    /// Its site.
    pub site: SiteId,
    /// What is for it is sealed to this key.
    pub key: PublicKey,
    /// When it signed in first.
    pub created: Timestamp,
    /// When it was heard of last, to half a minute.
    pub seen: Timestamp,
    /// Why its word counts no more.
    pub ended: Option<String>,
    /// The last of its polls that was written down: which turn it counted, and its mark. `(0, 0)` before the first.
    pub poll: (u64, u64),
}

/// What came of a sign-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignedIn {
    /// It counts.
    Recorded,
    /// It doesn't, for this reason.
    Refused(String),
}

fn instance(row: instances::Model) -> Result<AgentInstance, CatalogError> {
    Ok(AgentInstance {
        id: InstanceId(row.id),
        site: SiteId(row.site),
        key: row.instance_key.parse().map_err(|_| CatalogError::Malformed(row.instance_key))?,
        created: Timestamp(row.created),
        seen: Timestamp(row.seen),
        ended: row.ended.map(|_| row.why.unwrap_or_default()),
        poll: (row.turn.cast_unsigned(), row.mark.cast_unsigned()),
    })
}

impl Catalog {
    /// Gives a site its key: for one whose agents run in the coordinator's own process.
    pub async fn set_site_key(&self, site: SiteId, key: &PublicKey) -> Result<(), CatalogError> {
        let row = sites::ActiveModel { site_key: Set(Some(key.to_string())), cluster: Set(None), ..Default::default() };
        sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(site.0)).exec(&self.database).await?;
        Ok(())
    }

    /// Signs an instance in. Its signature is looked at here, so that none gets past it.
    pub async fn sign_in_instance(&self, site: SiteId, sign_in: &SignIn) -> Result<SignedIn, CatalogError> {
        let refused = |why: &str| Ok(SignedIn::Refused(why.to_owned()));
        if !is_storable(&sign_in.cluster) || sign_in.cluster.chars().count() > LONGEST_CLUSTER {
            return refused("its cluster's name is too long, or holds a NUL character");
        }
        let transaction = self.begin().await?;
        let inner = &transaction.inner;
        // A removal waits until this is over, and then ends this instance, too.
        let find = sites::Entity::find_by_id(site.0);
        let find = if is_shared(inner) { find.lock(LockType::NoKeyUpdate) } else { find };
        let Some(row) = find.one(inner).await? else {
            return refused("its site is unknown");
        };
        let known = crate::sites::site(row)?;
        match known.standing {
            Standing::Active => {}
            Standing::Pending => return refused("its site waits to be accepted"),
            Standing::Removed => return refused("its site was removed"),
        }
        let Some(key) = known.key else { return refused("its site was not enrolled yet") };
        if let Err(error) = sign_in.verify(site, &key) {
            return refused(&error.to_string());
        }
        match &known.cluster {
            Some(cluster) if *cluster != sign_in.cluster && !sign_in.cluster.is_empty() => {
                let detail = format!("{} instead of {cluster}", sign_in.cluster);
                transaction.audit(None, None, "site.identity-elsewhere", &known.name, &detail).await?;
                transaction.commit().await?;
                return refused(
                    "it is beside another cluster than its site was enrolled for: enrol that one as a site of its own",
                );
            }
            None if !sign_in.cluster.is_empty() => {
                let row = sites::ActiveModel { cluster: Set(Some(sign_in.cluster.clone())), ..Default::default() };
                sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(site.0)).exec(inner).await?;
            }
            _ => {}
        }
        let now = self.seams.clock.now().0;
        let row = instances::ActiveModel {
            id: Set(sign_in.instance.0),
            site: Set(site.0),
            instance_key: Set(sign_in.key.to_string()),
            cluster: Set(sign_in.cluster.clone()),
            created: Set(now),
            seen: Set(now),
            ended: Set(None),
            why: Set(None),
            turn: Set(0),
            mark: Set(0),
        };
        instances::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(inner).await?;
        let found = instances::Entity::find_by_id(sign_in.instance.0).one(inner).await?;
        let found = found.map(instance).transpose()?;
        let found = found.ok_or_else(|| CatalogError::not_found("instance", sign_in.instance))?;
        if found.site != site || found.key != sign_in.key {
            // Two processes that believe to be one: neither counts any more.
            transaction.end_instance(found.id, "another process signed in with the same id").await?;
            transaction.audit(None, None, "site.instance-cloned", &known.name, &found.id.to_string()).await?;
            transaction.commit().await?;
            return refused(CLONED);
        }
        if let Some(why) = found.ended {
            return refused(&why);
        }
        transaction.forget_instances(site).await?;
        transaction.commit().await?;
        Ok(SignedIn::Recorded)
    }

    /// One of a site's instances.
    pub async fn instance(&self, site: SiteId, id: InstanceId) -> Result<Option<AgentInstance>, CatalogError> {
        let found = instances::Entity::find_by_id(id.0).filter(instances::Column::Site.eq(site.0));
        found.one(&self.database).await?.map(instance).transpose()
    }

    /// It was heard of, by this poll: other coordinators, who answer others of its polls, see whether these are one's.
    pub async fn instance_seen(&self, id: InstanceId, (turn, mark): (u64, u64)) -> Result<(), CatalogError> {
        let row = instances::ActiveModel {
            seen: Set(self.seams.clock.now().0),
            turn: Set(turn.cast_signed()),
            mark: Set(mark.cast_signed()),
            ..Default::default()
        };
        instances::Entity::update_many().set(row).filter(instances::Column::Id.eq(id.0)).exec(&self.database).await?;
        Ok(())
    }

    /// Two processes speak as this one: its word counts no more.
    pub async fn instance_cloned(&self, site: SiteId, id: InstanceId) -> Result<(), CatalogError> {
        let transaction = self.begin().await?;
        transaction.end_instance(id, CLONED).await?;
        transaction.audit(None, None, "site.instance-cloned", &site.to_string(), &id.to_string()).await?;
        transaction.commit().await
    }
}

impl crate::Transaction {
    pub(crate) async fn end_instance(&self, id: InstanceId, why: &str) -> Result<(), CatalogError> {
        let ended = self.seams.clock.now().0;
        let row =
            instances::ActiveModel { ended: Set(Some(ended)), why: Set(Some(why.to_owned())), ..Default::default() };
        instances::Entity::update_many()
            .set(row)
            .filter(instances::Column::Id.eq(id.0))
            .filter(instances::Column::Ended.is_null())
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Ends all instances of a site.
    pub(crate) async fn end_instances(&self, site: SiteId, why: &str) -> Result<(), CatalogError> {
        instances::Entity::update_many()
            .col_expr(instances::Column::Ended, Expr::value(self.seams.clock.now().0))
            .col_expr(instances::Column::Why, Expr::value(why))
            .filter(instances::Column::Site.eq(site.0))
            .filter(instances::Column::Ended.is_null())
            .exec(&self.inner)
            .await?;
        Ok(())
    }

    /// Keeps a site's newest instances only: one that starts again and again must not fill the catalog.
    async fn forget_instances(&self, site: SiteId) -> Result<(), CatalogError> {
        let of_site = || instances::Entity::find().filter(instances::Column::Site.eq(site.0));
        if of_site().count(&self.inner).await? <= KEPT {
            return Ok(());
        }
        let oldest = of_site().order_by_desc(instances::Column::Seen).offset(KEPT).one(&self.inner).await?;
        if let Some(oldest) = oldest {
            instances::Entity::delete_many()
                .filter(instances::Column::Site.eq(site.0))
                .filter(instances::Column::Seen.lte(oldest.seen))
                .exec(&self.inner)
                .await?;
        }
        Ok(())
    }
}
