//! Who somebody is: accounts, sessions, the cookie.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, header, request::Parts},
    response::{AppendHeaders, IntoResponse},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, health::Ready, input::Body, problem::Problem};
use crate::{
    model::{Account, Handle, Invalid, NewAccount, Title},
    password,
    store::Storage,
    world,
};

/// A session lives so long.
const SESSION: i64 = 14 * 24 * 3600 * 1000;

/// Browsers share cookies between the ports of a host: two copies of the service on one machine must not sign each
/// other's users out, so the port is in the cookie's name.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let port: String =
        host.rsplit(':').next().unwrap_or_default().chars().filter(char::is_ascii_digit).take(5).collect();
    format!("lets-chat-{port}")
}

/// The hash of the session's token, as the store knows it.
fn token(headers: &HeaderMap) -> Option<[u8; 32]> {
    let name = cookie_name(headers);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, text) = pairs.find(|(key, _)| *key == name)?;
    let token: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
    Some(*blake3::hash(&token).as_bytes())
}

/// Who asks; `None`: a guest.
pub(super) struct Viewer(pub(super) Option<Account>);

impl Viewer {
    pub(super) fn id(&self) -> Option<i64> {
        self.0.as_ref().map(|account| account.id)
    }
}

impl FromRequestParts<Arc<App>> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Some(token) = token(&parts.headers) else { return Ok(Self(None)) };
        let Ready(store) = Ready::from_request_parts(parts, app).await?;
        Ok(Self(store.session(&token, world::now()).await?))
    }
}

/// Who asks; guests are turned away.
pub(super) struct SignedIn(pub(super) Account);

impl FromRequestParts<Arc<App>> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let Viewer(viewer) = Viewer::from_request_parts(parts, app).await?;
        viewer.map(Self).ok_or_else(Problem::not_signed_in)
    }
}

fn who(account: &Account) -> Value {
    json!({ "name": account.handle, "display": account.display })
}

/// `GET /api/me`
pub(super) async fn me(Viewer(viewer): Viewer) -> Json<Value> {
    Json(viewer.as_ref().map_or(Value::Null, who))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credentials {
    name: String,
    #[serde(default)]
    display: Option<String>,
    password: String,
}

impl Credentials {
    fn checked(self) -> Result<(Handle, Title, String), Invalid> {
        let handle = Handle::parse(&self.name)?;
        let display = Title::parse("display", self.display.as_deref().unwrap_or(handle.as_str()))?;
        let length = self.password.chars().count();
        if !password::LENGTH.contains(&length) {
            let reason = format!("takes {} to {} characters", password::LENGTH.start(), password::LENGTH.end());
            return Err(Invalid { field: "password", reason });
        }
        Ok((handle, display, self.password))
    }
}

async fn session(
    store: &dyn Storage,
    account: &Account,
    headers: &HeaderMap,
) -> Result<impl IntoResponse + use<>, Problem> {
    let token = world::random();
    store.open_session(blake3::hash(&token).as_bytes(), account, world::now() + SESSION).await?;
    let (name, value, age) = (cookie_name(headers), hex::encode(token), SESSION / 1000);
    let cookie = format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict");
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(who(account))))
}

/// `POST /api/sign-up`
pub(super) async fn sign_up(
    State(app): State<Arc<App>>,
    Ready(store): Ready,
    headers: HeaderMap,
    Body(credentials): Body<Credentials>,
) -> Result<impl IntoResponse, Problem> {
    let (handle, display, password) = credentials.checked()?;
    let mut salt = [0; 16];
    salt.copy_from_slice(&world::random()[..16]);
    let permit = app.hashing.acquire().await.map_err(|_| Problem::unavailable("the service stops".into()))?;
    let hash = password::hash(password, salt).await;
    drop(permit);
    let password_hash = hash.ok_or_else(|| Problem::unavailable("no memory to hash a password in".into()))?;
    let account = store.add_account(&NewAccount { handle, display, password_hash, at: world::now() }).await?;
    session(store.as_ref(), &account, &headers).await
}

/// `POST /api/sign-in`
pub(super) async fn sign_in(
    State(app): State<Arc<App>>,
    Ready(store): Ready,
    headers: HeaderMap,
    Body(credentials): Body<Credentials>,
) -> Result<impl IntoResponse, Problem> {
    let (handle, _, password) = credentials.checked()?;
    let (account, hash) = store.login(&handle).await?.unzip();
    let permit = app.hashing.acquire().await.map_err(|_| Problem::unavailable("the service stops".into()))?;
    let right = password::verify(password, hash).await;
    drop(permit);
    let account = account.filter(|_| right).ok_or_else(Problem::wrong_password)?;
    session(store.as_ref(), &account, &headers).await
}

/// `POST /api/sign-out`
pub(super) async fn sign_out(Ready(store): Ready, headers: HeaderMap) -> Result<impl IntoResponse, Problem> {
    if let Some(token) = token(&headers) {
        store.close_session(&token).await?;
    }
    let cookie = format!("{}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict", cookie_name(&headers));
    Ok((AppendHeaders([(header::SET_COOKIE, cookie)]), Json(Value::Null)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(host: &'static str, cookie: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        headers.insert(header::COOKIE, cookie.parse().unwrap());
        headers
    }

    #[test]
    fn two_copies_on_one_host_have_cookies_of_their_own() {
        let (one, other) = ("11".repeat(32), "22".repeat(32));
        let both = format!("lets-chat-8080={one}; x=y; lets-chat-8081={other}");
        assert_eq!(token(&headers("localhost:8080", &both)), Some(*blake3::hash(&[0x11; 32]).as_bytes()));
        assert_eq!(token(&headers("localhost:8081", &both)), Some(*blake3::hash(&[0x22; 32]).as_bytes()));
        assert_eq!(token(&headers("localhost:8082", &both)), None);
        assert_eq!(token(&headers("localhost:8080", "lets-chat-8080=zz")), None);
    }
}
