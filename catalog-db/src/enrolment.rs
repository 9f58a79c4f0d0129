//! How sites come and go: enrolment keys, what is done with them, approval, removal.
//!
//! A *join token* is an enrolment key for one site that is there already: it works once. An *enrolment key* lets sites
//! come under names of their own choice within a pattern, so many of them; they are accepted at once or wait as pending.
//! Whoever enrols brings the public half of a key that was made on the spot. The same key again is the same enrolment:
//! a lost answer is asked for again. The same token with another key is somebody who copied it: refused, and written down.

use ocopea_protocol::{
    identity::PublicKey,
    ids::{EnrolmentKeyId, SiteId, UserId},
    names::SiteName,
    time::Timestamp,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{Expr, ExprTrait, LockType},
};

use crate::{
    Catalog, CatalogError,
    access::Actor,
    database::{is_shared, is_storable, storable, unless_there},
    entities::{enrolment_keys, sites},
    model::Standing,
    sites::{Site, new, site},
};

/// The most sites that one key lets in.
pub const MOST_USES: u32 = 10_000;

/// Keys that are listed at most.
const MOST_LISTED: u64 = 1000;

/// A key as it is listed: never its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentKey {
    /// Its id.
    pub id: EnrolmentKeyId,
    /// What it is for.
    pub name: String,
    /// The one site that it is for.
    pub site: Option<SiteId>,
    /// Names that sites may give themselves: `*` stands for any letters.
    pub names: String,
    /// Whether sites are accepted at once.
    pub approves: bool,
    /// Sites that came with it.
    pub uses: u32,
    /// Sites that may.
    pub most_uses: u32,
    /// When it ends.
    pub expires: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// A key to be made.
#[derive(Clone, Debug)]
pub struct NewEnrolmentKey<'a> {
    /// SHA-256 of its secret.
    pub hash: &'a str,
    /// What it is for.
    pub name: &'a str,
    /// Names that sites may give themselves.
    pub names: &'a str,
    /// Whether sites are accepted at once.
    pub approves: bool,
    /// Sites that may come with it.
    pub most_uses: u32,
    /// When it ends.
    pub expires: Timestamp,
}

/// Whoever asks to be a site.
#[derive(Clone, Debug)]
pub struct Applicant<'a> {
    /// SHA-256 of the token or key that they bring.
    pub hash: &'a str,
    /// The name that they want.
    pub name: Option<&'a SiteName>,
    /// The public half of their own key.
    pub key: PublicKey,
}

fn key(row: enrolment_keys::Model) -> EnrolmentKey {
    let number = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
    EnrolmentKey {
        id: EnrolmentKeyId(row.id),
        name: row.name,
        site: row.site.map(SiteId),
        names: row.names,
        approves: row.approves != 0,
        uses: number(row.uses),
        most_uses: number(row.most_uses),
        expires: Timestamp(row.expires),
        created: Timestamp(row.created),
        revoked: row.revoked.is_some(),
    }
}

/// Whether a name fits a pattern in which `*` stands for any letters.
fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

impl Catalog {
    /// Makes a site that nobody is beside yet, and the token that lets its first agent in. A private one is there for who
    /// makes it and for nobody else.
    pub async fn add_site(
        &self,
        actor: &Actor,
        name: &SiteName,
        private: bool,
        token: &str,
        expires: Timestamp,
    ) -> Result<SiteId, CatalogError> {
        let transaction = self.begin().await?;
        let owner = private.then_some(actor.user);
        let mut row = new(self, name.as_str(), Standing::Active);
        row.owner = Set(owner.map(|user| user.0));
        let made =
            sites::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(&transaction.inner).await?;
        let found = sites::Entity::find().filter(sites::Column::Name.eq(name.as_str())).one(&transaction.inner).await?;
        let found = site(found.ok_or_else(|| CatalogError::not_found("site", name))?)?;
        if made == 0 && (found.key.is_some() || found.owner != owner) {
            return Err(CatalogError::Conflict(format!(
                "a site {:?} is there already, with agents of its own: choose another name",
                found.name
            )));
        }
        // Another token for a site that nobody has joined yet takes the place of the ones before it.
        enrolment_keys::Entity::update_many()
            .col_expr(enrolment_keys::Column::Revoked, Expr::value(self.seams.clock.now().0))
            .filter(enrolment_keys::Column::Site.eq(found.id.0))
            .filter(enrolment_keys::Column::Revoked.is_null())
            .exec(&transaction.inner)
            .await?;
        let row = NewEnrolmentKey { hash: token, name: &found.name, names: "", approves: true, most_uses: 1, expires };
        transaction.add_enrolment_key(actor.user, Some(found.id), &row).await?;
        transaction.audit(Some(actor.team), Some(actor.user), "site.add", &found.name, "").await?;
        transaction.commit().await?;
        Ok(found.id)
    }

    /// Makes a key that lets sites in.
    pub async fn add_enrolment_key(
        &self,
        actor: &Actor,
        new: &NewEnrolmentKey<'_>,
    ) -> Result<EnrolmentKeyId, CatalogError> {
        let transaction = self.begin().await?;
        let id = transaction.add_enrolment_key(actor.user, None, new).await?;
        let detail = format!("{} sites called {}", new.most_uses, new.names);
        transaction.audit(Some(actor.team), Some(actor.user), "enrolment-key.create", new.name, &detail).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// The newest keys and join tokens, a thousand at most, newest first.
    pub async fn enrolment_keys(&self) -> Result<Vec<EnrolmentKey>, CatalogError> {
        let newest = enrolment_keys::Entity::find().order_by_desc(enrolment_keys::Column::Id).limit(MOST_LISTED);
        let rows = newest.all(&self.database).await?;
        Ok(rows.into_iter().map(key).collect())
    }

    /// Ends a key. Sites that came with it stay.
    pub async fn revoke_enrolment_key(&self, actor: &Actor, id: EnrolmentKeyId) -> Result<(), CatalogError> {
        let transaction = self.begin().await?;
        let row = enrolment_keys::ActiveModel { revoked: Set(Some(self.seams.clock.now().0)), ..Default::default() };
        let ended = enrolment_keys::Entity::update_many()
            .set(row)
            .filter(enrolment_keys::Column::Id.eq(id.0))
            .exec(&transaction.inner)
            .await?;
        if ended.rows_affected == 0 {
            return Err(CatalogError::not_found("enrolment key", id));
        }
        transaction.audit(Some(actor.team), Some(actor.user), "enrolment-key.revoke", &id.to_string(), "").await?;
        transaction.commit().await
    }

    /// Makes the applicant a site, or tells what became of it: the same key again is the same enrolment.
    pub async fn enrol(&self, applicant: &Applicant<'_>) -> Result<Site, CatalogError> {
        let absent = || CatalogError::not_found("join token or enrolment key", "…");
        if !is_storable(applicant.hash) {
            return Err(absent());
        }
        let transaction = self.begin().await?;
        // Whoever comes with the same one at the same time waits here.
        enrolment_keys::Entity::update_many()
            .col_expr(enrolment_keys::Column::Uses, Expr::col(enrolment_keys::Column::Uses))
            .filter(enrolment_keys::Column::Hash.eq(applicant.hash))
            .exec(&transaction.inner)
            .await?;
        let found = enrolment_keys::Entity::find()
            .filter(enrolment_keys::Column::Hash.eq(applicant.hash))
            .one(&transaction.inner)
            .await?;
        let brought = key(found.ok_or_else(absent)?);
        let site = match brought.site {
            Some(own) => sites::Entity::find_by_id(own.0).one(&transaction.inner).await?,
            None => {
                let name = applicant.name.ok_or(CatalogError::Invalid {
                    what: "the site's name",
                    why: "an enrolment key is for many sites: each says how it is called",
                })?;
                sites::Entity::find().filter(sites::Column::Name.eq(name.as_str())).one(&transaction.inner).await?
            }
        };
        let there = site.map(crate::sites::site).transpose()?;
        if let Some(there) = &there
            && there.key == Some(applicant.key)
        {
            return Ok(there.clone());
        }
        let now = self.seams.clock.now();
        let ended = if brought.revoked {
            Some("was revoked")
        } else if brought.expires <= now {
            Some("has expired")
        } else {
            None
        };
        if let Some(ended) = ended {
            return Err(CatalogError::Conflict(format!(
                "the join token or enrolment key {:?} {ended}: ask for another",
                brought.name
            )));
        }
        if let Some(there) = &there
            && (there.key.is_some() || there.standing == Standing::Removed || brought.site.is_none())
        {
            let detail = format!("with {:?}, by another key", brought.name);
            transaction.audit(None, None, "site.enrolment-refused", &there.name, &detail).await?;
            transaction.commit().await?;
            return Err(CatalogError::Conflict(format!(
                "site {:?} is taken: an agent with another key came before; when that was not yours, remove the site and add it again",
                there.name
            )));
        }
        let site = match (there, applicant.name) {
            (Some(there), _) => there.id,
            (None, Some(name)) => {
                if !fits(name.as_str(), &brought.names) {
                    return Err(CatalogError::Conflict(format!(
                        "the enrolment key {:?} is for sites called {}, not {name}",
                        brought.name, brought.names
                    )));
                }
                if brought.uses >= brought.most_uses {
                    return Err(CatalogError::Conflict(format!(
                        "the enrolment key {:?} let in {} sites, all that it may: ask for another",
                        brought.name, brought.uses
                    )));
                }
                let standing = if brought.approves { Standing::Active } else { Standing::Pending };
                let row = new(self, name.as_str(), standing);
                let insert = sites::Entity::insert(row).on_conflict(unless_there());
                if insert.exec_without_returning(&transaction.inner).await? == 0 {
                    return Err(CatalogError::Conflict(format!("a site called {name} came at the same time")));
                }
                let made =
                    sites::Entity::find().filter(sites::Column::Name.eq(name.as_str())).one(&transaction.inner).await?;
                SiteId(made.ok_or_else(|| CatalogError::not_found("site", name))?.id)
            }
            (None, None) => return Err(absent()),
        };
        let row = sites::ActiveModel { site_key: Set(Some(applicant.key.to_string())), ..Default::default() };
        sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(site.0)).exec(&transaction.inner).await?;
        enrolment_keys::Entity::update_many()
            .col_expr(enrolment_keys::Column::Uses, Expr::col(enrolment_keys::Column::Uses).add(1))
            .filter(enrolment_keys::Column::Id.eq(brought.id.0))
            .exec(&transaction.inner)
            .await?;
        let row = sites::Entity::find_by_id(site.0).one(&transaction.inner).await?;
        let enrolled = crate::sites::site(row.ok_or_else(|| CatalogError::not_found("site", site))?)?;
        transaction.audit(None, None, "site.enrol", &enrolled.name, &format!("with {:?}", brought.name)).await?;
        transaction.commit().await?;
        Ok(enrolled)
    }

    /// Accepts a site that waits.
    pub async fn approve_site(&self, actor: &Actor, id: SiteId) -> Result<(), CatalogError> {
        self.move_site(actor, id, Standing::Active, "site.approve").await
    }

    /// A site is one of ours no more: its agents' word counts for nothing from now on, and its name is free.
    pub async fn remove_site(&self, actor: &Actor, id: SiteId) -> Result<(), CatalogError> {
        self.move_site(actor, id, Standing::Removed, "site.remove").await
    }

    async fn move_site(&self, actor: &Actor, id: SiteId, to: Standing, action: &str) -> Result<(), CatalogError> {
        let transaction = self.begin().await?;
        // Whoever signs in at this moment does so before or after, not beside.
        let find = sites::Entity::find_by_id(id.0);
        let find = if is_shared(&transaction.inner) { find.lock(LockType::NoKeyUpdate) } else { find };
        let row = find.one(&transaction.inner).await?;
        let found = site(row.ok_or_else(|| CatalogError::not_found("site", id))?)?;
        let standing = to.after(found.standing).map_err(|error| CatalogError::Conflict(error.to_string()))?;
        let mut row = sites::ActiveModel { standing: Set(standing.as_str().to_owned()), ..Default::default() };
        if to == Standing::Removed {
            row.removed = Set(Some(self.seams.clock.now().0));
            row.name = Set(format!("{} (removed, {id})", found.name));
            transaction.end_instances(id, "its site was removed").await?;
        }
        let moved = sites::Entity::update_many()
            .set(row)
            .filter(sites::Column::Id.eq(id.0))
            .filter(sites::Column::Standing.eq(found.standing.as_str()))
            .exec(&transaction.inner)
            .await?;
        if moved.rows_affected != 1 {
            return Err(CatalogError::Conflict(format!(
                "site {:?} was changed at the same time: look again",
                found.name
            )));
        }
        transaction.audit(Some(actor.team), Some(actor.user), action, &found.name, "").await?;
        transaction.commit().await
    }

    /// Takes note of whether the broker may know a user of this site.
    pub async fn set_at_broker(&self, id: SiteId, there: bool) -> Result<(), CatalogError> {
        let row = sites::ActiveModel { at_broker: Set(i64::from(there)), ..Default::default() };
        sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(id.0)).exec(&self.database).await?;
        Ok(())
    }

    /// Sites that were removed, and whose user the broker may still know.
    pub async fn to_forget_at_broker(&self) -> Result<Vec<SiteId>, CatalogError> {
        let rows = sites::Entity::find()
            .filter(sites::Column::Standing.eq(Standing::Removed.as_str()))
            .filter(sites::Column::AtBroker.eq(1))
            .all(&self.database)
            .await?;
        Ok(rows.into_iter().map(|row| SiteId(row.id)).collect())
    }
}

impl crate::Transaction {
    /// The broker knows a site's user no more.
    pub async fn forgotten_at_broker(&self, id: SiteId) -> Result<(), CatalogError> {
        let row = sites::ActiveModel { at_broker: Set(0), ..Default::default() };
        sites::Entity::update_many().set(row).filter(sites::Column::Id.eq(id.0)).exec(&self.inner).await?;
        Ok(())
    }

    async fn add_enrolment_key(
        &self,
        creator: UserId,
        site: Option<SiteId>,
        new: &NewEnrolmentKey<'_>,
    ) -> Result<EnrolmentKeyId, CatalogError> {
        storable("the enrolment key", &[new.hash, new.name, new.names])?;
        if !(1..=MOST_USES).contains(&new.most_uses) {
            return Err(CatalogError::Invalid { what: "the number of sites", why: "1 to 10000 are expected" });
        }
        let id = self.seams.uuid();
        let row = enrolment_keys::ActiveModel {
            id: Set(id),
            hash: Set(new.hash.to_owned()),
            name: Set(new.name.to_owned()),
            site: Set(site.map(|site| site.0)),
            names: Set(new.names.to_owned()),
            approves: Set(i64::from(new.approves)),
            uses: Set(0),
            most_uses: Set(i64::from(new.most_uses)),
            expires: Set(new.expires.0),
            created: Set(self.seams.clock.now().0),
            creator: Set(creator.0),
            revoked: Set(None),
        };
        enrolment_keys::Entity::insert(row).exec_without_returning(&self.inner).await?;
        Ok(EnrolmentKeyId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_pattern_takes_names_as_it_says() {
        for (name, pattern) in
            [("edge-1", "edge-*"), ("edge-1", "*"), ("edge-1", "edge-1"), ("a-b-c", "a*b*c"), ("aa", "a*a")]
        {
            assert!(fits(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in
            [("edge-1", "edge"), ("edge-1", ""), ("lab", "edge-*"), ("a", "a*a"), ("abc", "a*b"), ("", "x*")]
        {
            assert!(!fits(name, pattern), "{name} {pattern}");
        }
    }
}
