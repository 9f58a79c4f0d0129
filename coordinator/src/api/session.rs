//! Signing in, tokens.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use ocopea_catalog_db::{access::Actor, model::Role};
use ocopea_protocol::ids::TokenId;

use super::{
    IssuedToken, Me, NewToken, SignIn, State, TokenView,
    problem::{Body, Caller, Problem},
};
use crate::tokens;

/// How long who signed in stays so.
const SIGNED_IN: Duration = Duration::from_secs(90 * 24 * 3600);
/// The longest life of a token, in seconds, where it has an end.
const LONGEST_TOKEN: u64 = 10 * 365 * 24 * 3600;

/// The actor, if their token allows all that they may.
fn whole(caller: Caller) -> Result<Actor, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    if actor.narrowed {
        let why = "this token allows less than its person may: it neither makes nor ends tokens";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", why));
    }
    Ok(actor)
}

/// Exchanges a sign-in code for a token. Works once.
#[utoipa::path(post, path = "/api/v1/sign-in", request_body = SignIn, security(()),
    responses((status = 200, body = IssuedToken), (status = 404, body = Problem)))]
pub(super) async fn sign_in(
    Extract(state): Extract<State>,
    Body(input): Body<SignIn>,
) -> Result<Json<IssuedToken>, Problem> {
    let catalog = &state.coordinator.catalog;
    let token = tokens::generate("ocopea")
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "random", "the system gives no randomness"))?;
    let expires = catalog.seams.clock.now().plus(SIGNED_IN);
    let (code, hash) = (tokens::hash(&input.code), tokens::hash(token.reveal()));
    catalog.again(|| catalog.sign_in(&code, "sign-in", &hash, Some(expires))).await?;
    Ok(Json(IssuedToken { token: token.reveal().to_owned() }))
}

/// Who the token stands for.
#[utoipa::path(get, path = "/api/v1/me", responses((status = 200, body = Me)))]
pub(super) async fn me(caller: Caller) -> Result<Json<Me>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    Ok(Json(Me { user: actor.user_name, team: actor.team.to_string(), role: actor.role.as_str().to_owned() }))
}

/// The caller's tokens.
#[utoipa::path(get, path = "/api/v1/tokens", responses((status = 200, body = Vec<TokenView>)))]
pub(super) async fn list_tokens(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<Vec<TokenView>>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let tokens = state.coordinator.catalog.tokens(actor.user).await?;
    let now = state.coordinator.seams.clock.now();
    let views = tokens.into_iter().map(|token| TokenView {
        id: token.id.to_string(),
        name: token.name,
        scope: token.scope.as_str().to_owned(),
        created: token.created.rfc3339(),
        expires: token.expires.map(|at| at.rfc3339()),
        revoked: token.revoked,
        expired: token.expires.is_some_and(|at| at <= now),
    });
    Ok(Json(views.collect()))
}

/// Makes a token, at most as mighty as the caller. One that allows less than its person may makes no others: what was
/// given away for one purpose doesn't outlive its revocation.
#[utoipa::path(post, path = "/api/v1/tokens", request_body = NewToken, responses((status = 200, body = IssuedToken)))]
pub(super) async fn create_token(
    Extract(state): Extract<State>,
    caller: Caller,
    Body(input): Body<NewToken>,
) -> Result<Json<IssuedToken>, Problem> {
    let actor = whole(caller)?;
    let scope = Role::parse(&input.scope)
        .ok_or_else(|| Problem::invalid("scope", "viewer, operator or administrator is expected"))?;
    if scope > actor.role {
        return Err(Problem::invalid("scope", "a token can't allow more than its maker may"));
    }
    ocopea_protocol::names::check_text("name", &input.name, 200, false).map_err(|e| Problem::invalid("name", e))?;
    if input.name.trim().is_empty() {
        return Err(Problem::invalid("name", "a name is needed: what the token is for"));
    }
    let catalog = &state.coordinator.catalog;
    let expires = match input.expires_s {
        Some(seconds) if seconds == 0 || seconds > LONGEST_TOKEN => {
            return Err(Problem::invalid("expires_s", format!("1 to {LONGEST_TOKEN} seconds are expected")));
        }
        seconds => seconds.map(|seconds| catalog.seams.clock.now().plus(Duration::from_secs(seconds))),
    };
    let token = tokens::issue(catalog, &actor, &input.name, scope, expires).await?;
    Ok(Json(IssuedToken { token: token.reveal().to_owned() }))
}

/// Ends a token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn revoke_token(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let actor = whole(caller)?;
    let id: TokenId = id.parse().map_err(|error| Problem::invalid("id", error))?;
    let catalog = &state.coordinator.catalog;
    catalog.again(|| catalog.revoke_token(actor.user, id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
