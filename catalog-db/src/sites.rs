//! Sites and what their agents reported last.

use ocopea_protocol::{
    identity::PublicKey,
    ids::{SiteId, UserId},
    message::SiteReport,
    time::Timestamp,
};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use crate::{
    Catalog, CatalogError,
    access::Actor,
    database::{is_storable, storable, unless_there},
    entities::sites,
    model::Standing,
};

/// A site.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its id.
    pub id: SiteId,
    /// Its name.
    pub name: String,
    /// When its agent last reported, by the coordinator's clock.
    pub reported: Option<Timestamp>,
    /// What it said.
    pub report: Option<SiteReport>,
    /// Whether it is one of ours.
    pub standing: Standing,
    /// What signs its agents in; `None` until it is enrolled.
    pub key: Option<PublicKey>,
    /// What tells its cluster from others, as its agents said when they signed in first.
    pub cluster: Option<String>,
    /// The one person who sees it; `None`: everybody does.
    pub owner: Option<UserId>,
}

impl Site {
    /// Whether it is there for this person.
    pub fn is_seen_by(&self, actor: &Actor) -> bool {
        self.owner.is_none_or(|owner| owner == actor.user)
    }
}

pub(crate) fn site(row: sites::Model) -> Result<Site, CatalogError> {
    Ok(Site {
        id: SiteId(row.id),
        name: row.name,
        reported: row.reported.map(Timestamp),
        report: row.report.as_deref().map(serde_json::from_str).transpose()?,
        standing: Standing::parse(&row.standing).ok_or(CatalogError::Malformed(row.standing))?,
        key: row.site_key.map(|key| key.parse().map_err(|_| CatalogError::Malformed(key))).transpose()?,
        cluster: row.cluster,
        owner: row.owner.map(UserId),
    })
}

/// A row of a site that nobody has heard of yet.
pub(crate) fn new(catalog: &Catalog, name: &str, standing: Standing) -> sites::ActiveModel {
    sites::ActiveModel {
        id: Set(catalog.seams.uuid()),
        name: Set(name.to_owned()),
        created: Set(catalog.seams.clock.now().0),
        reported: Set(None),
        report: Set(None),
        standing: Set(standing.as_str().to_owned()),
        site_key: Set(None),
        cluster: Set(None),
        at_broker: Set(0),
        removed: Set(None),
        owner: Set(None),
    }
}

impl Catalog {
    /// The site of that name, made where there is none; once, though asked for by several at once.
    pub async fn ensure_site(&self, name: &str) -> Result<SiteId, CatalogError> {
        storable("the site's name", &[name])?;
        let row = new(self, name, Standing::Active);
        sites::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(&self.database).await?;
        let found = sites::Entity::find().filter(sites::Column::Name.eq(name)).one(&self.database).await?;
        found.map(|row| SiteId(row.id)).ok_or_else(|| CatalogError::not_found("site", name))
    }

    /// Keeps a report.
    pub async fn report_site(&self, id: SiteId, report: &SiteReport) -> Result<(), CatalogError> {
        let row = sites::ActiveModel {
            reported: Set(Some(self.seams.clock.now().0)),
            report: Set(Some(serde_json::to_string(report)?)),
            ..Default::default()
        };
        sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(id.0)).exec(&self.database).await?;
        Ok(())
    }

    /// All sites but those that were removed, by name.
    pub async fn sites(&self) -> Result<Vec<Site>, CatalogError> {
        let rows = sites::Entity::find()
            .filter(sites::Column::Standing.ne(Standing::Removed.as_str()))
            .order_by_asc(sites::Column::Name)
            .all(&self.database)
            .await?;
        rows.into_iter().map(site).collect()
    }

    /// One, by name or id; one that was removed by its id only.
    pub async fn site(&self, name: &str) -> Result<Site, CatalogError> {
        if !is_storable(name) {
            return Err(CatalogError::not_found("site", name));
        }
        let find = match name.parse::<SiteId>() {
            Ok(id) => sites::Entity::find_by_id(id.0),
            Err(_) => sites::Entity::find().filter(sites::Column::Name.eq(name)),
        };
        find.one(&self.database).await?.map(site).transpose()?.ok_or_else(|| CatalogError::not_found("site", name))
    }

    /// The sites that this person sees, by name.
    pub async fn sites_of(&self, actor: &Actor) -> Result<Vec<Site>, CatalogError> {
        let mut sites = self.sites().await?;
        sites.retain(|site| site.is_seen_by(actor));
        Ok(sites)
    }

    /// One that this person sees, by name or id.
    pub async fn site_of(&self, actor: &Actor, name: &str) -> Result<Site, CatalogError> {
        let site = self.site(name).await?;
        if site.is_seen_by(actor) { Ok(site) } else { Err(CatalogError::not_found("site", name)) }
    }
}
