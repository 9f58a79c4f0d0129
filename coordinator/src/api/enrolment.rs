//! How sites come and go: join tokens, enrolment keys, the enrolment itself, approval, removal.

use std::time::Duration;

use async_trait::async_trait;
use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use ocopea_catalog_db::{
    CatalogError,
    access::Actor,
    enrolment::{Applicant, MOST_USES, NewEnrolmentKey},
    model::{Role, Standing},
    sites::Site,
};
use ocopea_protocol::{
    failure::TaskFailure,
    identity::{self, PublicKey},
    ids::{EnrolmentKeyId, SiteId},
    names::SiteName,
    secret::Secret,
    time::Timestamp,
};

use super::{
    BrokerAccess, Enrol, Enrolled, EnrolmentKeyView, IssuedEnrolmentKey, JoinToken, NewEnrolment, NewSite, SealedText,
    State,
    problem::{Body, Caller, Problem},
};
use crate::tokens;

/// How long a join token works unless told.
const JOIN: u64 = 24 * 3600;
/// How long one may work, in seconds.
const LONGEST: u64 = 365 * 24 * 3600;

/// What a site's agents speak through, and who lets them in there.
#[async_trait]
pub trait SiteBroker: Send + Sync {
    /// Makes sure that the site's user is there, with a new password, and answers with what its agents connect by.
    async fn admit(&self, site: SiteId) -> Result<Admission, TaskFailure>;

    /// The site's user is let in no more, and who is in is thrown out. Fine where there is none.
    async fn expel(&self, site: SiteId) -> Result<(), TaskFailure>;

    /// What lies in quarantine: how many messages, and the oldest `most` of them, which stay there.
    async fn quarantined(&self, most: u32) -> Result<Quarantine, TaskFailure>;
}

/// What lies in quarantine.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    /// How many messages.
    pub messages: u64,
    /// Those that were looked at.
    pub items: Vec<Quarantined>,
}

/// A message that nobody could read. All words but the numbers are its sender's, or about what it sent.
#[derive(Clone, Debug)]
pub struct Quarantined {
    /// When it was put there.
    pub since: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// The site that sent it, or that it was for.
    pub site: Option<SiteId>,
    /// Where it was sent to.
    pub routing_key: String,
    /// Its length, in bytes.
    pub bytes: u64,
}

/// What an agent connects to its broker by.
pub struct Admission {
    /// `amqps://HOST:PORT/VHOST`, without user and password.
    pub url: String,
    /// The site's own user.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Certificates (PEM) that its server is checked against, where these are not the system's.
    pub certificates: Option<String>,
}

fn lasting(seconds: Option<u64>) -> Result<Duration, Problem> {
    let seconds = seconds.unwrap_or(JOIN);
    if (1..=LONGEST).contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(Problem::invalid("expires_s", format!("1 to {LONGEST} seconds are expected")))
}

fn name(text: &str) -> Result<SiteName, Problem> {
    text.parse().map_err(|error| Problem::invalid("name", error))
}

/// Nothing is done at a site that was removed, nor by its agents.
pub(super) fn removed() -> Problem {
    Problem {
        next: "add it again (ocopea sites add NAME) and join with the new token".to_owned(),
        ..Problem::new(StatusCode::GONE, "site-removed", "this site was removed")
    }
}

/// This installation's broker; without one, sites are given to the coordinator's own process.
fn broker(state: &State) -> Result<&dyn SiteBroker, Problem> {
    state.broker.as_deref().ok_or_else(|| Problem {
        next: "give it the site when it starts: ocopea up --site NAME=CONTEXT".to_owned(),
        ..Problem::new(
            StatusCode::CONFLICT,
            "no-broker",
            "sites can't join this installation: its agents run in the coordinator's own process",
        )
    })
}

fn generated(prefix: &str) -> Result<Secret, Problem> {
    tokens::generate(prefix)
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "random", "the system gives no randomness"))
}

/// Makes a site, and the token that lets its first agent in: once, and for a while. An operator may make private ones.
#[utoipa::path(post, path = "/api/v1/sites", request_body = NewSite, responses((status = 200, body = JoinToken)))]
pub(super) async fn add_site(
    Extract(state): Extract<State>,
    caller: Caller,
    Body(input): Body<NewSite>,
) -> Result<Json<JoinToken>, Problem> {
    let actor = caller.at_least(if input.private { Role::Operator } else { Role::Administrator })?;
    broker(&state)?;
    let name = name(&input.name)?;
    let token = generated("join")?;
    let catalog = &state.coordinator.catalog;
    let expires = catalog.seams.clock.now().plus(lasting(input.expires_s)?);
    let hash = tokens::hash(token.reveal());
    let site = catalog.again(|| catalog.add_site(&actor, &name, input.private, &hash, expires)).await?;
    let token = token.reveal().to_owned();
    Ok(Json(JoinToken { site: site.to_string(), name: name.to_string(), token, expires: expires.rfc3339() }))
}

/// Makes an enrolment key: sites that bring it name themselves.
#[utoipa::path(post, path = "/api/v1/enrolment-keys", request_body = NewEnrolment,
    responses((status = 200, body = IssuedEnrolmentKey)))]
pub(super) async fn add_key(
    Extract(state): Extract<State>,
    caller: Caller,
    Body(input): Body<NewEnrolment>,
) -> Result<Json<IssuedEnrolmentKey>, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    broker(&state)?;
    for (field, text) in [("name", &input.name), ("names", &input.names)] {
        ocopea_protocol::names::check_text(field, text, 200, false).map_err(|error| Problem::invalid(field, error))?;
        if text.trim().is_empty() {
            return Err(Problem::invalid(field, "it is empty"));
        }
    }
    if !(1..=MOST_USES).contains(&input.uses) {
        return Err(Problem::invalid("uses", format!("1 to {MOST_USES} are expected")));
    }
    let key = generated("enrol")?;
    let catalog = &state.coordinator.catalog;
    let expires = catalog.seams.clock.now().plus(lasting(input.expires_s)?);
    let new = NewEnrolmentKey {
        hash: &tokens::hash(key.reveal()),
        name: &input.name,
        names: &input.names,
        approves: input.approves,
        most_uses: input.uses,
        expires,
    };
    let id = catalog.again(|| catalog.add_enrolment_key(&actor, &new)).await?;
    let key = key.reveal().to_owned();
    Ok(Json(IssuedEnrolmentKey { id: id.to_string(), key, expires: expires.rfc3339() }))
}

/// The newest enrolment keys and join tokens, a thousand at most, newest first, without their secrets.
#[utoipa::path(get, path = "/api/v1/enrolment-keys", responses((status = 200, body = Vec<EnrolmentKeyView>)))]
pub(super) async fn keys(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<Vec<EnrolmentKeyView>>, Problem> {
    caller.at_least(Role::Administrator)?;
    let now = state.coordinator.seams.clock.now();
    let keys = state.coordinator.catalog.enrolment_keys().await?.into_iter().map(|key| EnrolmentKeyView {
        id: key.id.to_string(),
        name: key.name,
        site: key.site.map(|site| site.to_string()),
        names: key.names,
        approves: key.approves,
        uses: key.uses,
        most_uses: key.most_uses,
        created: key.created.rfc3339(),
        expires: key.expires.rfc3339(),
        state: match () {
            () if key.revoked => "revoked",
            () if key.expires <= now => "expired",
            () if key.uses >= key.most_uses => "used",
            () => "open",
        }
        .to_owned(),
    });
    Ok(Json(keys.collect()))
}

/// Ends an enrolment key or join token. Sites that came with it stay.
#[utoipa::path(delete, path = "/api/v1/enrolment-keys/{key}",
    params(("key" = String, Path, description = "Its id", format = "uuid")), responses((status = 204)))]
pub(super) async fn revoke_key(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(key): Path<String>,
) -> Result<StatusCode, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let absent = || Problem::not_found("this enrolment key", "see them: GET /api/v1/enrolment-keys");
    let id: EnrolmentKeyId = key.parse().map_err(|_| absent())?;
    let catalog = &state.coordinator.catalog;
    catalog.again(|| catalog.revoke_enrolment_key(&actor, id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes the caller an agent of a site. The token in the body is all that is asked for: whoever enrols has no other.
///
/// The same token with the same key is answered the same again, with a new password for the broker. The password is sealed
/// to `answer_key` (HPKE, RFC 9180: X25519, HKDF-SHA256, AES-256-GCM; info `ocopea site secret 1`, associated data the 16
/// bytes of the site's id).
#[utoipa::path(post, path = "/api/v1/enrol", request_body = Enrol, security(()),
    responses((status = 200, body = Enrolled), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn enrol(Extract(state): Extract<State>, Body(input): Body<Enrol>) -> Result<Json<Enrolled>, Problem> {
    let broker = broker(&state)?;
    let wanted = input.name.as_deref().map(name).transpose()?;
    let key = |field, text: &str| text.parse::<PublicKey>().map_err(|error| Problem::invalid(field, error));
    let (site_key, answer_key) = (key("key", &input.key)?, key("answer_key", &input.answer_key)?);
    let catalog = &state.coordinator.catalog;
    let applicant = Applicant { hash: &tokens::hash(&input.token), name: wanted.as_ref(), key: site_key };
    let site: Site = catalog.again(|| catalog.enrol(&applicant)).await.map_err(|error| match error {
        CatalogError::NotFound { .. } => Problem::not_found(
            "this join token or enrolment key",
            "ask who runs the coordinator for one: ocopea sites add NAME",
        ),
        other => other.into(),
    })?;
    let access = match site.standing {
        Standing::Removed => {
            return Err(removed());
        }
        Standing::Pending => None,
        Standing::Active => {
            // Before the user is there: whatever happens then, a removal finds it.
            catalog.set_at_broker(site.id, true).await?;
            let admission = broker.admit(site.id).await?;
            // It may have been removed meanwhile, and what its removal took away at the broker be there again.
            if state.coordinator.catalog.site(&site.id.to_string()).await?.standing == Standing::Removed {
                broker.expel(site.id).await?;
                return Err(removed());
            }
            let sealed = identity::seal_for_site(&answer_key, site.id, admission.password.reveal())
                .map_err(|error| Problem::invalid("answer_key", error))?;
            Some(BrokerAccess {
                url: admission.url,
                user: admission.user,
                password: SealedText {
                    encapsulated: hex::encode(sealed.encapsulated),
                    bytes: hex::encode(sealed.bytes),
                },
                certificates: admission.certificates,
            })
        }
    };
    let standing = site.standing.as_str().to_owned();
    Ok(Json(Enrolled { site: site.id.to_string(), name: site.name, standing, broker: access }))
}

async fn found(state: &State, actor: &Actor, text: &str) -> Result<Site, Problem> {
    Ok(state.coordinator.catalog.site_of(actor, text).await?)
}

/// Accepts a site that enrolled itself and waits.
#[utoipa::path(post, path = "/api/v1/sites/{site}/approval",
    params(("site" = String, Path, description = "Name or id")), responses((status = 204)))]
pub(super) async fn approve(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(site): Path<String>,
) -> Result<StatusCode, Problem> {
    let actor = caller.at_least(Role::Administrator)?;
    let site = found(&state, &actor, &site).await?;
    let catalog = &state.coordinator.catalog;
    catalog.again(|| catalog.approve_site(&actor, site.id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a site: what its agents say counts no more from now on, what they were doing fails, and they can't connect.
/// What runs at the site goes on running. A private one is removed by who made it.
#[utoipa::path(delete, path = "/api/v1/sites/{site}",
    params(("site" = String, Path, description = "Name or id")), responses((status = 204)))]
pub(super) async fn remove(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(site): Path<String>,
) -> Result<StatusCode, Problem> {
    let operator = caller.clone().at_least(Role::Operator)?;
    broker(&state)?;
    let site = found(&state, &operator, &site).await?;
    let actor = if site.owner.is_some() { operator } else { caller.at_least(Role::Administrator)? };
    let catalog = &state.coordinator.catalog;
    catalog.again(|| catalog.remove_site(&actor, site.id)).await?;
    state.coordinator.forget_agents(site.id);
    if let Err(error) = expel(&state, site.id).await {
        // Its word counts for nothing already; the broker is told again and again.
        tracing::warn!(error = error.detail, site.id = %site.id, "the broker could not be told that a site was removed");
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn expel(state: &State, site: SiteId) -> Result<(), Problem> {
    broker(state)?.expel(site).await?;
    state.coordinator.catalog.set_at_broker(site, false).await?;
    Ok(())
}
