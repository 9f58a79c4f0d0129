//! Errors as RFC 9457 has them, with what to do.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures::future::BoxFuture;
use ocopea_catalog_db::{CatalogError, access::Actor, model::Role};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    trace::Trace,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::ToSchema;

use super::{State, browser};
use crate::tokens;

/// What went wrong, why, and what to do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Stable: `urn:ocopea:problem:not-found` …
    #[serde(rename = "type")]
    pub kind: String,
    /// In short.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// In full.
    pub detail: String,
    /// The field that is wrong, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub next: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &str, detail: impl ToString) -> Self {
        Self {
            kind: format!("urn:ocopea:problem:{kind}"),
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            status: status.as_u16(),
            detail: detail.to_string(),
            field: None,
            next: String::new(),
        }
    }

    pub(crate) fn invalid(field: &str, detail: impl ToString) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail) }
    }

    pub(crate) fn not_found(what: &str, next: &str) -> Self {
        Self { next: next.to_owned(), ..Self::new(StatusCode::NOT_FOUND, "not-found", format!("{what} was not found")) }
    }

    fn unauthorized(detail: &str) -> Self {
        Self {
            next: "sign in: ocopea sign-in URL".to_owned(),
            ..Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
        }
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        match &error {
            CatalogError::NotFound { what, .. } => {
                let next = match *what {
                    "image" => "see the images: ocopea images",
                    "environment" => "see the environments: ocopea environments",
                    "site" => "see the sites: ocopea sites",
                    "repository" => "see the repositories: ocopea repositories",
                    "operation" => "see the operations: ocopea operations",
                    "sign-in code" => "each code works once, for ten minutes: start `ocopea up` again for a new one",
                    _ => "",
                };
                Self { next: next.to_owned(), ..Self::new(StatusCode::NOT_FOUND, "not-found", &error) }
            }
            CatalogError::Ambiguous { what, .. } => Self {
                next: format!("name the {what} by its id"),
                ..Self::new(StatusCode::CONFLICT, "ambiguous", &error)
            },
            CatalogError::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", &error),
            CatalogError::Invalid { .. } => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", &error),
            CatalogError::InDoubt(_) => {
                tracing::error!(%error, "the catalog failed");
                Self {
                    next: "look whether it was done before you ask again, or repeat the request with the same \
                           Idempotency-Key"
                        .to_owned(),
                    ..Self::new(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "catalog",
                        "the catalog's database went away while this was written down: it may have been done",
                    )
                }
            }
            CatalogError::Malformed(_)
            | CatalogError::Newer(_)
            | CatalogError::Superseded
            | CatalogError::Database(_) => {
                tracing::error!(%error, "the catalog failed");
                if error.is_full() {
                    return Self {
                        next: "make room there, then try again: nothing was changed".to_owned(),
                        ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "catalog-full", "the catalog's disk is full")
                    };
                }
                Self {
                    next: "nothing was changed: try again in a moment; the log says more".to_owned(),
                    ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "catalog", "the catalog can't be used now")
                }
            }
        }
    }
}

impl From<TaskFailure> for Problem {
    fn from(failure: TaskFailure) -> Self {
        let status = match (failure.code.as_str(), failure.class) {
            ("environment.no-component" | "environment.no-service" | "application.not-found" | "site.not-found", _) => {
                StatusCode::NOT_FOUND
            }
            ("exec.which" | "exec.start" | "environment.volume", _) => StatusCode::UNPROCESSABLE_ENTITY,
            ("forward.listen", _) | (_, FailureClass::Conflict) => StatusCode::CONFLICT,
            // What lies behind this coordinator failed.
            _ => StatusCode::BAD_GATEWAY,
        };
        Self { next: failure.next.clone(), ..Self::new(status, &failure.code.replace('.', "-"), &failure) }
    }
}

impl From<ocopea_repository::Error> for Problem {
    fn from(error: ocopea_repository::Error) -> Self {
        let status = match &error {
            ocopea_repository::Error::Misuse(_) => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { next: error.advice().to_owned(), ..Self::new(status, &error.code().replace('.', "-"), &error) }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let passes = self.kind == "urn:ocopea:problem:catalog";
        let mut response = (status, Json(self)).into_response();
        if passes {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
        }
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// Seconds after which a catalog that could not be used may be asked again.
const RETRY_AFTER: &str = "2";

/// Bytes of another's words that are kept.
const LONGEST: usize = 4096;

/// What the framework refuses by itself (a method, a query, a body that is too long) in the shape of everything else.
pub(super) async fn in_our_shape(response: Response) -> Response {
    let status = response.status();
    let ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let words = axum::body::to_bytes(body, LONGEST).await.unwrap_or_default();
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    let words = match (status, words.is_empty()) {
        (StatusCode::INTERNAL_SERVER_ERROR, _) => "this program has a fault: see its log".to_owned(),
        (_, true) => status.canonical_reason().unwrap_or("refused").to_lowercase(),
        (_, false) => words,
    };
    let mut out = Problem::new(status, "request", words).into_response();
    if let Some(allow) = parts.headers.get(header::ALLOW) {
        out.headers_mut().insert(header::ALLOW, allow.clone());
    }
    out
}

/// Who asks.
#[derive(Clone)]
pub struct Caller {
    actor: Actor,
    /// The hash of the token that they came with.
    token: String,
    /// Whether a browser's cookie brought it.
    by_cookie: bool,
}

/// How long what is open may go on after its token was revoked or its person's rights were taken.
const LOOKED_AFTER: Duration = Duration::from_secs(3);

impl Caller {
    /// The hash of the browser's session, if that is what they came with.
    pub fn session(&self) -> Option<&str> {
        self.by_cookie.then_some(self.token.as_str())
    }

    /// The actor, if their role suffices.
    pub fn at_least(self, role: Role) -> Result<Actor, Problem> {
        if self.actor.role >= role {
            return Ok(self.actor);
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("this needs the role {}, yours is {}", role.as_str(), self.actor.role.as_str()),
        ))
    }

    /// As [`Self::at_least`], for answers that stay open: the second ends when this is no longer so.
    pub fn while_at_least(self, role: Role, state: &State) -> Result<(Actor, BoxFuture<'static, ()>), Problem> {
        let (token, state) = (self.token.clone(), state.clone());
        let actor = self.at_least(role)?;
        let (user, team) = (actor.user, actor.team);
        let ended = async move {
            loop {
                state.coordinator.seams.clock.sleep(LOOKED_AFTER).await;
                match state.coordinator.catalog.authenticate(&token).await {
                    Ok(Some(now)) if now.role >= role && now.user == user && now.team == team => {}
                    Ok(_) => return,
                    // A catalog that doesn't answer takes no rights away.
                    Err(error) => tracing::debug!(%error, "can't see whether a token is still good"),
                }
            }
        };
        Ok((actor, Box::pin(ended)))
    }
}

impl FromRequestParts<State> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let headers = &parts.headers;
        let given = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
        // Who says a token means that one, even where a cookie comes along.
        let session = if given.is_none() { browser::session_token(headers) } else { None };
        let by_cookie = session.is_some();
        if by_cookie {
            browser::from_our_page(&parts.method, headers)?;
        }
        let bearer = given
            .and_then(|value| value.split_once(' '))
            // The word is the same in whatever case (RFC 9110, 11.1).
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let token = session
            .or(bearer)
            .ok_or_else(|| Problem::unauthorized("a token is needed: Authorization: Bearer TOKEN"))?;
        let token = tokens::hash(token);
        let actor = state.coordinator.catalog.authenticate(&token).await?;
        let actor = actor.ok_or_else(|| Problem::unauthorized("this token is unknown, expired or revoked"))?;
        Ok(Self { actor, token, by_cookie })
    }
}

/// A JSON body; what doesn't fit is told in our own shape.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<State> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &State) -> Result<Self, Problem> {
        match Json::<serde_json::Value>::from_request(request, state).await {
            // A list would be taken for an object's fields in their order.
            Ok(Json(value)) if !value.is_object() => Err(Problem::invalid("body", "a JSON object is expected")),
            Ok(Json(value)) => serde_json::from_value(value).map(Self).map_err(|error| Problem::invalid("body", error)),
            Err(JsonRejection::JsonDataError(error)) => Err(Problem::invalid("body", error.body_text())),
            Err(error) => Err(Problem::new(error.status(), "body", error.body_text())),
        }
    }
}

/// A query; what doesn't fit, or is not known, is told in our own shape.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<State> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Problem> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|query| Self(query.0)).map_err(|error| Problem {
            field: Some("query".to_owned()),
            ..Problem::new(error.status(), "query", error.body_text())
        })
    }
}

/// What a request that begins something says beside its body.
#[derive(Default)]
pub struct Begins {
    /// The key that makes repeating it harmless (`Idempotency-Key`).
    pub key: Option<String>,
    /// The trace that it belongs to (`traceparent`). One that can't be read is left out, as its standard wants.
    pub trace: Option<Trace>,
}

impl FromRequestParts<State> for Begins {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        let trace = parts.headers.get("traceparent").and_then(|value| value.to_str().ok()?.parse().ok());
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(Self { key: None, trace }) };
        let text = value.to_str().unwrap_or_default();
        if text.is_empty() || text.len() > 200 {
            return Err(Problem::invalid("Idempotency-Key", "1 to 200 printable ASCII characters are expected"));
        }
        Ok(Self { key: Some(text.to_owned()), trace })
    }
}
