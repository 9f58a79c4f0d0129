//! Teams, people, tokens, sign-in codes, audit.

use ocopea_protocol::{
    ids::{TeamId, TokenId, UserId},
    time::Timestamp,
};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, sea_query::OnConflict};

use crate::{
    Catalog, CatalogError, Transaction,
    database::{is_storable, storable, unless_there},
    entities::{audit, memberships, sign_in_codes, teams, tokens, users},
    model::Role,
};

/// Who is asking, and for which team: every query of what a team owns wants one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The person.
    pub user: UserId,
    /// Their name.
    pub user_name: String,
    /// Their team.
    pub team: TeamId,
    /// What they may do in it, the token's scope considered.
    pub role: Role,
    /// Whether their token allows less than they may: such a one makes and ends no tokens.
    pub narrowed: bool,
}

/// A token as it is listed: never its secret.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Its id.
    pub id: TokenId,
    /// Its name.
    pub name: String,
    /// The most that it allows.
    pub scope: Role,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends, if ever.
    pub expires: Option<Timestamp>,
    /// Whether it was revoked.
    pub revoked: bool,
}

impl Catalog {
    /// Whether there is nobody yet.
    pub async fn is_new(&self) -> Result<bool, CatalogError> {
        Ok(users::Entity::find().one(&self.database).await?.is_none())
    }

    /// The first team and its first person, an administrator. Does nothing when there is one.
    pub async fn ensure_first_user(&self, team: &str, user: &str) -> Result<Actor, CatalogError> {
        if let Some(member) = memberships::Entity::find().one(&self.database).await? {
            return self.actor(UserId(member.user_id), TeamId(member.team)).await;
        }
        self.ensure_member(team, user, Role::Administrator).await
    }

    /// Whether that person ever had a token.
    pub async fn has_signed_in(&self, actor: &Actor) -> Result<bool, CatalogError> {
        let of = tokens::Entity::find().filter(tokens::Column::UserId.eq(actor.user.0));
        Ok(of.one(&self.database).await?.is_some())
    }

    /// A person in a team with this role; team and person are made where there are none. Asked for by several at
    /// once, each of them is made once.
    pub async fn ensure_member(&self, team: &str, user: &str, role: Role) -> Result<Actor, CatalogError> {
        storable("the name", &[team, user])?;
        let now = self.seams.clock.now().0;
        let transaction = self.begin().await?;
        let inner = &transaction.inner;
        let row = teams::ActiveModel { id: Set(self.seams.uuid()), name: Set(team.to_owned()), created: Set(now) };
        teams::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(inner).await?;
        let row = users::ActiveModel { id: Set(self.seams.uuid()), name: Set(user.to_owned()), created: Set(now) };
        users::Entity::insert(row).on_conflict(unless_there()).exec_without_returning(inner).await?;
        let found = teams::Entity::find().filter(teams::Column::Name.eq(team)).one(inner).await?;
        let team_id = found.ok_or_else(|| CatalogError::not_found("team", team))?.id;
        let found = users::Entity::find().filter(users::Column::Name.eq(user)).one(inner).await?;
        let user_id = found.ok_or_else(|| CatalogError::not_found("user", user))?.id;
        let row =
            memberships::ActiveModel { team: Set(team_id), user_id: Set(user_id), role: Set(role.as_str().to_owned()) };
        let key = [memberships::Column::Team, memberships::Column::UserId];
        let newest = OnConflict::columns(key).update_column(memberships::Column::Role).to_owned();
        memberships::Entity::insert(row).on_conflict(newest).exec_without_returning(inner).await?;
        transaction.audit(Some(TeamId(team_id)), Some(UserId(user_id)), "member.set", user, role.as_str()).await?;
        transaction.commit().await?;
        self.actor(UserId(user_id), TeamId(team_id)).await
    }

    async fn actor(&self, user: UserId, team: TeamId) -> Result<Actor, CatalogError> {
        let member = memberships::Entity::find_by_id((team.0, user.0)).one(&self.database).await?;
        let member = member.ok_or_else(|| CatalogError::not_found("membership", user))?;
        let found = users::Entity::find_by_id(user.0).one(&self.database).await?;
        let found = found.ok_or_else(|| CatalogError::not_found("user", user))?;
        let role = Role::parse(&member.role).ok_or_else(|| CatalogError::Malformed(member.role.clone()))?;
        Ok(Actor { user, user_name: found.name, team, role, narrowed: false })
    }

    /// Stores a sign-in code's hash.
    pub async fn add_sign_in_code(&self, user: UserId, hash: &str, expires: Timestamp) -> Result<(), CatalogError> {
        let row = sign_in_codes::ActiveModel {
            hash: Set(hash.to_owned()),
            user_id: Set(user.0),
            expires: Set(expires.0),
            used: Set(None),
        };
        sign_in_codes::Entity::insert(row).exec_without_returning(&self.database).await?;
        Ok(())
    }

    /// Exchanges a sign-in code for a token of that name, of which `token` is the hash: works once, and only in time. All
    /// of it or nothing: a code isn't lost when the token can't be stored.
    pub async fn sign_in(
        &self,
        code: &str,
        name: &str,
        token: &str,
        expires: Option<Timestamp>,
    ) -> Result<UserId, CatalogError> {
        let absent = || CatalogError::not_found("sign-in code", "…");
        if !is_storable(code) {
            return Err(absent());
        }
        let transaction = self.begin().await?;
        let now = self.seams.clock.now();
        let taken = sign_in_codes::Entity::update_many()
            .set(sign_in_codes::ActiveModel { used: Set(Some(now.0)), ..Default::default() })
            .filter(sign_in_codes::Column::Hash.eq(code))
            .filter(sign_in_codes::Column::Used.is_null())
            .filter(sign_in_codes::Column::Expires.gt(now.0))
            .exec(&transaction.inner)
            .await?;
        if taken.rows_affected != 1 {
            return Err(absent());
        }
        let row = sign_in_codes::Entity::find_by_id(code).one(&transaction.inner).await?;
        let user = UserId(row.ok_or_else(absent)?.user_id);
        transaction.add_token(user, name, token, Role::Administrator, expires).await?;
        transaction.commit().await?;
        Ok(user)
    }

    /// Stores a token's hash.
    pub async fn add_token(
        &self,
        user: UserId,
        name: &str,
        hash: &str,
        scope: Role,
        expires: Option<Timestamp>,
    ) -> Result<TokenId, CatalogError> {
        let transaction = self.begin().await?;
        let id = transaction.add_token(user, name, hash, scope, expires).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Who a token stands for; `None` when it is unknown, expired or revoked.
    pub async fn authenticate(&self, hash: &str) -> Result<Option<Actor>, CatalogError> {
        if !is_storable(hash) {
            return Ok(None);
        }
        let Some(token) = tokens::Entity::find().filter(tokens::Column::Hash.eq(hash)).one(&self.database).await?
        else {
            return Ok(None);
        };
        let now = self.seams.clock.now().0;
        if token.revoked.is_some() || token.expires.is_some_and(|expires| expires <= now) {
            return Ok(None);
        }
        let member = memberships::Entity::find()
            .filter(memberships::Column::UserId.eq(token.user_id))
            .order_by_asc(memberships::Column::Team)
            .one(&self.database)
            .await?;
        let Some(member) = member else { return Ok(None) };
        let mut actor = self.actor(UserId(token.user_id), TeamId(member.team)).await?;
        let scope = Role::parse(&token.scope).ok_or_else(|| CatalogError::Malformed(token.scope.clone()))?;
        actor.narrowed = scope < actor.role;
        actor.role = actor.role.min(scope);
        Ok(Some(actor))
    }

    /// A person's tokens.
    pub async fn tokens(&self, user: UserId) -> Result<Vec<TokenInfo>, CatalogError> {
        let rows = tokens::Entity::find()
            .filter(tokens::Column::UserId.eq(user.0))
            .order_by_asc(tokens::Column::Created)
            .all(&self.database)
            .await?;
        rows.into_iter()
            .map(|row| {
                Ok(TokenInfo {
                    id: TokenId(row.id),
                    name: row.name,
                    scope: Role::parse(&row.scope).ok_or(CatalogError::Malformed(row.scope))?,
                    created: Timestamp(row.created),
                    expires: row.expires.map(Timestamp),
                    revoked: row.revoked.is_some(),
                })
            })
            .collect()
    }

    /// Ends the token of that hash; one that ended before stays ended.
    pub async fn sign_out(&self, hash: &str) -> Result<(), CatalogError> {
        let transaction = self.begin().await?;
        let Some(token) = tokens::Entity::find().filter(tokens::Column::Hash.eq(hash)).one(&transaction.inner).await?
        else {
            return Err(CatalogError::not_found("session", "…"));
        };
        let now = self.seams.clock.now().0;
        tokens::Entity::update_many()
            .set(tokens::ActiveModel { revoked: Set(Some(now)), ..Default::default() })
            .filter(tokens::Column::Id.eq(token.id))
            .filter(tokens::Column::Revoked.is_null())
            .exec(&transaction.inner)
            .await?;
        transaction
            .audit(None, Some(UserId(token.user_id)), "token.revoke", &token.id.to_string(), "signed out")
            .await?;
        transaction.commit().await
    }

    /// Ends one of a person's tokens.
    pub async fn revoke_token(&self, user: UserId, token: TokenId) -> Result<(), CatalogError> {
        let transaction = self.begin().await?;
        let now = self.seams.clock.now().0;
        let ended = tokens::Entity::update_many()
            .set(tokens::ActiveModel { revoked: Set(Some(now)), ..Default::default() })
            .filter(tokens::Column::Id.eq(token.0))
            .filter(tokens::Column::UserId.eq(user.0))
            .exec(&transaction.inner)
            .await?;
        if ended.rows_affected == 0 {
            return Err(CatalogError::not_found("token", token));
        }
        transaction.audit(None, Some(user), "token.revoke", &token.to_string(), "").await?;
        transaction.commit().await
    }
}

impl Transaction {
    async fn add_token(
        &self,
        user: UserId,
        name: &str,
        hash: &str,
        scope: Role,
        expires: Option<Timestamp>,
    ) -> Result<TokenId, CatalogError> {
        storable("the token's name", &[name, hash])?;
        let id = self.seams.uuid();
        let row = tokens::ActiveModel {
            id: Set(id),
            user_id: Set(user.0),
            name: Set(name.to_owned()),
            hash: Set(hash.to_owned()),
            scope: Set(scope.as_str().to_owned()),
            created: Set(self.seams.clock.now().0),
            expires: Set(expires.map(|e| e.0)),
            revoked: Set(None),
        };
        tokens::Entity::insert(row).exec_without_returning(&self.inner).await?;
        self.audit(None, Some(user), "token.create", name, scope.as_str()).await?;
        Ok(TokenId(id))
    }

    /// Writes down who did what; part of the act's own transaction.
    pub async fn audit(
        &self,
        team: Option<TeamId>,
        user: Option<UserId>,
        action: &str,
        subject: &str,
        detail: &str,
    ) -> Result<(), CatalogError> {
        storable("the audit row", &[action, subject, detail])?;
        let row = audit::ActiveModel {
            id: Set(self.seams.uuid()),
            at: Set(self.seams.clock.now().0),
            team: Set(team.map(|team| team.0)),
            user_id: Set(user.map(|user| user.0)),
            action: Set(action.to_owned()),
            subject: Set(subject.to_owned()),
            detail: Set(detail.to_owned()),
        };
        audit::Entity::insert(row).exec_without_returning(&self.inner).await?;
        Ok(())
    }
}
