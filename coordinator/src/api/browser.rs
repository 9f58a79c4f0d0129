//! Sessions of browsers: a cookie that scripts can't read stands for a token.
//!
//! It is a token like others (hashed in the catalog, listed, revocable), named [`SESSION`]. A browser sends a cookie by
//! itself, so whatever changes something has to come from a page of this process: it carries the header [`CSRF`], which
//! no other origin may send, and what the browser says of the request's origin must agree.

use std::time::Duration;

use axum::{
    Json,
    extract::{FromRequestParts, State as Extract},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use ocopea_catalog_db::model::Role;
use url::Url;

use super::{
    Me, SignIn, State,
    problem::{Body, Caller, Problem},
};
use crate::tokens;

/// What a session is called among a person's tokens.
pub const SESSION: &str = "browser";

/// The header that a page sends with everything that changes something.
pub const CSRF: &str = "ocopea-page";

/// How long a session lasts, from signing in.
const LASTS: Duration = Duration::from_secs(14 * 24 * 3600);

/// The cookie's name. Browsers tell hosts apart, but not ports: two Ocopeas on one machine don't sign each other out.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let port = host.rsplit_once(':').map(|(_, port)| port);
    match port.filter(|port| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit())) {
        Some(port) if !port.is_empty() => format!("ocopea_session_{port}"),
        _ => "ocopea_session".to_owned(),
    }
}

/// The token that the request's cookie holds.
pub(super) fn session_token(headers: &HeaderMap) -> Option<&str> {
    let name = cookie_name(headers);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|line| line.split(';')).find_map(|cookie| {
        let (key, value) = cookie.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// Refuses what a page of another origin made a browser send.
pub(super) fn from_our_page(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    if method.is_safe() {
        return Ok(());
    }
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let foreign = |why: String| Problem {
        next: "open the page anew, and do it there; programs send a token: Authorization: Bearer TOKEN".to_owned(),
        ..Problem::new(StatusCode::FORBIDDEN, "foreign-page", why)
    };
    if text(CSRF).is_none() {
        return Err(foreign(format!("a request with a cookie needs the header {CSRF}")));
    }
    if let Some(site) = text("sec-fetch-site").filter(|site| *site != "same-origin") {
        return Err(foreign(format!("the browser says that this request is {}", site.escape_default())));
    }
    if let Some(origin) = text("origin") {
        let host = text("host").unwrap_or_default();
        let same = Url::parse(origin).is_ok_and(|origin| {
            let scheme = origin.scheme();
            matches!(scheme, "http" | "https")
                && Url::parse(&format!("{scheme}://{host}")).is_ok_and(|own| own.origin() == origin.origin())
        });
        if !same {
            return Err(foreign("the request comes from a page of another address".to_owned()));
        }
    }
    Ok(())
}

/// A request that comes from our own pages, signed in or not.
pub struct OurPage {
    cookie: String,
    /// Whether the browser speaks TLS, to us or to what stands in front of us.
    secure: bool,
}

impl FromRequestParts<State> for OurPage {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &State) -> Result<Self, Problem> {
        from_our_page(&parts.method, &parts.headers)?;
        Ok(Self::of(&parts.headers))
    }
}

impl OurPage {
    fn of(headers: &HeaderMap) -> Self {
        let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()).unwrap_or_default();
        Self { cookie: cookie_name(headers), secure: origin.starts_with("https://") }
    }

    fn set(&self, value: &str, seconds: u64, response: Response) -> Result<Response, Problem> {
        let secure = if self.secure { "; Secure" } else { "" };
        // Strict: a link from elsewhere opens the page, which needs no cookie, and the page asks for what it shows.
        let cookie = format!("{}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}", self.cookie);
        let cookie = HeaderValue::from_str(&cookie)
            .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cookie", "the cookie can't be written"))?;
        let mut response = response;
        response.headers_mut().insert(header::SET_COOKIE, cookie);
        Ok(response)
    }
}

/// Exchanges a sign-in code for a browser's session: a cookie that scripts can't read. Works once.
#[utoipa::path(post, path = "/api/v1/session", request_body = SignIn, security(()),
    params(("ocopea-page" = String, Header, description = "anything: says that a page of this address asks")),
    responses((status = 200, body = Me), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn begin(
    Extract(state): Extract<State>,
    page: OurPage,
    Body(input): Body<SignIn>,
) -> Result<Response, Problem> {
    let catalog = &state.coordinator.catalog;
    let token = tokens::generate("session")
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "random", "the system gives no randomness"))?;
    let expires = catalog.seams.clock.now().plus(LASTS);
    let (code, hash) = (tokens::hash(&input.code), tokens::hash(token.reveal()));
    catalog.again(|| catalog.sign_in(&code, SESSION, &hash, Some(expires))).await?;
    let actor = catalog.authenticate(&hash).await?;
    let actor = actor.ok_or_else(|| Problem::not_found("the person of this sign-in code", ""))?;
    let me = Me { user: actor.user_name, team: actor.team.to_string(), role: actor.role.as_str().to_owned() };
    page.set(token.reveal(), LASTS.as_secs(), Json(me).into_response())
}

/// Ends the browser's session at once, wherever it is used.
#[utoipa::path(delete, path = "/api/v1/session",
    params(("ocopea-page" = String, Header, description = "anything: says that a page of this address asks")),
    responses((status = 204), (status = 422, body = Problem)))]
pub(super) async fn end(
    Extract(state): Extract<State>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let session = caller.session().map(str::to_owned);
    caller.at_least(Role::Viewer)?;
    let Some(session) = session else {
        return Err(Problem {
            next: "end a token by its id: ocopea tokens revoke ID".to_owned(),
            ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no-session", "this came with a token, not with a session")
        });
    };
    let catalog = &state.coordinator.catalog;
    catalog.again(|| catalog.sign_out(&session)).await?;
    OurPage::of(&headers).set("", 0, StatusCode::NO_CONTENT.into_response())
}
