//! Signing in, tokens.

use axum::{
    Json,
    extract::{Path, State as Extract},
    http::StatusCode,
};
use ocopea_catalog_db::model::Role;
use ocopea_protocol::ids::TokenId;

use super::{
    IssuedToken, Me, NewToken, SignIn, State, TokenView,
    problem::{Body, Caller, Problem},
};
use crate::tokens;

/// Exchanges a sign-in code for a token. Works once.
#[utoipa::path(post, path = "/api/v1/sign-in", request_body = SignIn, security(()),
    responses((status = 200, body = IssuedToken), (status = 404, body = Problem)))]
pub(super) async fn sign_in(
    Extract(state): Extract<State>,
    Body(input): Body<SignIn>,
) -> Result<Json<IssuedToken>, Problem> {
    let catalog = &state.coordinator.catalog;
    let user = catalog.use_sign_in_code(&tokens::hash(&input.code)).await?;
    let token = tokens::generate("ocopea")
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "random", "the system gives no randomness"))?;
    catalog.add_token(user, "sign-in", &tokens::hash(token.reveal()), Role::Administrator, None).await?;
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
    let views = tokens.into_iter().map(|token| TokenView {
        id: token.id.to_string(),
        name: token.name,
        scope: token.scope.as_str().to_owned(),
        created: token.created.rfc3339(),
        expires: token.expires.map(|at| at.rfc3339()),
        revoked: token.revoked,
    });
    Ok(Json(views.collect()))
}

/// Makes a token, at most as mighty as the caller.
#[utoipa::path(post, path = "/api/v1/tokens", request_body = NewToken, responses((status = 200, body = IssuedToken)))]
pub(super) async fn create_token(
    Extract(state): Extract<State>,
    caller: Caller,
    Body(input): Body<NewToken>,
) -> Result<Json<IssuedToken>, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let scope = Role::parse(&input.scope)
        .ok_or_else(|| Problem::invalid("scope", "viewer, operator or administrator is expected"))?;
    if scope > actor.role {
        return Err(Problem::invalid("scope", "a token can't allow more than its maker may"));
    }
    ocopea_protocol::names::check_text("name", &input.name, 200, false).map_err(|e| Problem::invalid("name", e))?;
    let token = tokens::issue(&state.coordinator.catalog, &actor, &input.name, scope).await?;
    Ok(Json(IssuedToken { token: token.reveal().to_owned() }))
}

/// Ends a token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn revoke_token(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let actor = caller.at_least(Role::Viewer)?;
    let id: TokenId = id.parse().map_err(|error| Problem::invalid("id", error))?;
    state.coordinator.catalog.revoke_token(actor.user, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
