//! Speaks with the coordinator.

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf, time::Duration};

use futures::{Stream, StreamExt};
use ocopea_coordinator::api::Problem;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use url::{Host, Url};

/// What went wrong, as it is printed.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// What.
    pub what: String,
    /// Why.
    pub cause: String,
    /// Where.
    pub place: String,
    /// What now.
    pub next: String,
}

impl Failure {
    /// Something on this side.
    pub fn local(what: impl Into<String>) -> Self {
        Self { status: 1, what: what.into(), cause: String::new(), place: String::new(), next: String::new() }
    }

    /// Something was typed wrongly.
    pub fn usage(what: impl Into<String>) -> Self {
        Self { status: 2, ..Self::local(what) }
    }

    /// With a next step.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

/// Where to and as whom; kept 0600 in the user's configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// The coordinator.
    pub url: String,
    /// The token.
    pub token: String,
}

fn account_path() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(base.join("ocopea").join("account.json"))
}

impl Account {
    /// Keeps it for later commands of this user.
    pub fn store(&self) -> std::io::Result<()> {
        let path = account_path().ok_or_else(|| std::io::Error::other("there is no home directory"))?;
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let new = path.with_extension("new");
        // A file that a crash left would make create_new fail for ever.
        let _ = std::fs::remove_file(&new);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &path)
    }

    /// What was kept.
    pub fn load() -> Option<Self> {
        serde_json::from_slice(&std::fs::read(account_path()?).ok()?).ok()
    }
}

/// Where `ocopea up` listens unless told.
const USUAL: &str = "http://127.0.0.1:8700";
/// How long an answer may take that needs no waiting for anything.
const ANSWER: Duration = Duration::from_secs(60);

/// The coordinator's API.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    account: Account,
}

impl Client {
    /// As the arguments, the environment or the last sign-in say.
    pub fn new(url: Option<String>, token: Option<String>) -> Result<Self, Failure> {
        let stored = Account::load();
        let url = url.or_else(|| stored.as_ref().map(|a| a.url.clone())).unwrap_or_else(|| USUAL.to_owned());
        let url = parse_url(&url)?;
        // A token is for the coordinator that gave it, and told to nobody else.
        let stored = stored.filter(|account| parse_url(&account.url).is_ok_and(|own| is_same(&own, &url)));
        let text = url.as_str().trim_end_matches('/').to_owned();
        let token = token.or_else(|| stored.map(|a| a.token)).ok_or_else(|| {
            Failure { status: 4, ..Failure::local(format!("not signed in at {text}")) }
                .next("start `ocopea up`, or sign in with the address that it printed: ocopea sign-in URL")
        })?;
        Ok(Self { http: http(&url)?, account: Account { url: text, token } })
    }

    /// The coordinator's address.
    pub fn url(&self) -> &str {
        &self.account.url
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.account.url)).bearer_auth(&self.account.token)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
        answer: Option<Duration>,
    ) -> Result<Response, Failure> {
        let mut request = self.request(method, path);
        if let Some(span) = answer {
            request = request.timeout(span);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.map_err(|error| unreachable(&self.account.url, &error))?;
        checked(response).await
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(self.send(Method::GET, path, None, Some(ANSWER)).await?).await
    }

    /// Asks for something, harmlessly repeated.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_value(body).map_err(|error| Failure::local(error.to_string()))?;
        decode(self.send(Method::POST, path, Some(body), Some(ANSWER)).await?).await
    }

    /// Asks for something that answers nothing.
    pub async fn order(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<(), Failure> {
        self.send(method, path, body, Some(ANSWER)).await.map(drop)
    }

    /// As [`Self::order`], with an answer, however long that takes.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
    ) -> Result<T, Failure> {
        decode(self.send(method, path, body, None).await?).await
    }

    /// A connection that speaks `protocol` from then on.
    pub async fn upgrade(
        &self,
        path: &str,
        query: &[(&str, String)],
        protocol: &str,
    ) -> Result<reqwest::Upgraded, Failure> {
        let url = Url::parse_with_params(&format!("{}{path}", self.account.url), query)
            .map_err(|error| Failure::usage(format!("{} is not an address: {error}", self.account.url)))?;
        let request = self.http.post(url).bearer_auth(&self.account.token);
        let request = request.header("Connection", "Upgrade").header("Upgrade", protocol);
        let response = request.send().await.map_err(|error| unreachable(&self.account.url, &error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response.upgrade().await.map_err(|error| unreachable(&self.account.url, &error));
        }
        checked(response).await?;
        Err(Failure {
            status: 6,
            ..Failure::local("the coordinator, or something before it, doesn't upgrade connections")
        }
        .next("reach the coordinator directly, or let the proxy pass Upgrade on"))
    }

    /// The body as it comes.
    pub async fn stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Failure>> + use<>, Failure> {
        // The head comes at once; what follows, whenever there is something.
        let answer = ocopea_protocol::seams::Seams::real(tokio_util::task::TaskTracker::new())
            .timeout(ANSWER, self.send(Method::GET, path, None, None))
            .await;
        let response = answer.unwrap_or_else(|| Err(silent(&self.account.url)))?;
        let url = self.account.url.clone();
        Ok(response.bytes_stream().map(move |chunk| chunk.map_err(|error| unreachable(&url, &error))))
    }
}

/// A coordinator's address.
pub fn parse_url(text: &str) -> Result<Url, Failure> {
    let url = Url::parse(text).map_err(|error| Failure::usage(format!("{text:?} is not an address: {error}")));
    let fits = |url: &Url| matches!(url.scheme(), "http" | "https") && url.host().is_some();
    match url {
        Ok(url) if fits(&url) => Ok(url),
        Ok(_) => Err(Failure::usage(format!("{text:?} is not an address of the kind http://HOST:PORT"))),
        Err(failure) => Err(failure),
    }
    .map_err(|failure| failure.next("expected http://HOST:PORT, as `ocopea up` prints it"))
}

/// Whether this machine is meant.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        None => false,
    }
}

fn is_same(one: &Url, other: &Url) -> bool {
    let host = one.host() == other.host() || (is_loopback(one) && is_loopback(other));
    host && one.scheme() == other.scheme() && one.port_or_known_default() == other.port_or_known_default()
}

/// Exchanges a sign-in code.
pub async fn sign_in(address: &str) -> Result<Account, Failure> {
    let parsed = Url::parse(address).map_err(|error| {
        Failure::usage(format!("{address:?} is not an address: {error}"))
            .next("paste the whole address that `ocopea up` printed")
    })?;
    let code = parsed.query_pairs().find(|(name, _)| name == "code").map(|(_, code)| code.into_owned());
    let code = code.ok_or_else(|| {
        Failure::usage("the address has no ?code=…").next("paste the whole address that `ocopea up` printed")
    })?;
    let url = parsed.origin().ascii_serialization();
    let body = ocopea_coordinator::api::SignIn { code };
    let response = http(&parse_url(&url)?)?
        .post(format!("{url}/api/v1/sign-in"))
        .json(&body)
        .timeout(ANSWER)
        .send()
        .await
        .map_err(|error| unreachable(&url, &error))?;
    let issued: ocopea_coordinator::api::IssuedToken = decode(checked(response).await?).await?;
    Ok(Account { url, token: issued.token })
}

/// An address below a coordinator's.
pub fn joined(coordinator: &Url, path: &str) -> Result<Url, Failure> {
    let text = format!("{}/{path}", coordinator.as_str().trim_end_matches('/'));
    Url::parse(&text).map_err(|error| Failure::usage(format!("{text:?} is not an address: {error}")))
}

/// Asks without a token of one's own, harmlessly repeated.
pub async fn post<T: DeserializeOwned>(
    http: &reqwest::Client,
    address: Url,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let origin = address.origin().ascii_serialization();
    let sent = http.post(address).json(body).send().await;
    decode(checked(sent.map_err(|error| unreachable(&origin, &error))?).await?).await
}

fn http(url: &Url) -> Result<reqwest::Client, Failure> {
    let builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
    // What $HTTP_PROXY names is meant for other machines, and would be told the token.
    let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
    builder.build().map_err(|error| Failure::local(error.to_string()))
}

fn silent(url: &str) -> Failure {
    Failure {
        status: 6,
        what: format!("the coordinator at {url} can't be reached"),
        cause: format!("no answer within {} s", ANSWER.as_secs()),
        place: String::new(),
        next: "check that it is Ocopea that listens there, and its log".to_owned(),
    }
}

fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
    if error.is_timeout() && !error.is_connect() {
        return silent(url);
    }
    let mut cause = String::new();
    let mut inner = std::error::Error::source(error);
    while let Some(one) = inner {
        cause = one.to_string();
        inner = one.source();
    }
    Failure {
        status: 6,
        what: format!("the coordinator at {url} can't be reached"),
        cause,
        place: String::new(),
        next: "check that it runs (`ocopea up`), or name another with --url".to_owned(),
    }
}

async fn checked(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let code = match status {
        StatusCode::NOT_FOUND => 3,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 4,
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST => 2,
        StatusCode::CONFLICT => 5,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => 6,
        _ => 1,
    };
    let place = response.url().path().to_owned();
    let url = response.url().origin().ascii_serialization();
    let text = response.text().await.unwrap_or_default();
    Err(match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => Failure {
            status: code,
            what: match &problem.field {
                Some(field) => format!("{field}: {}", problem.detail),
                None => problem.detail,
            },
            cause: String::new(),
            place: String::new(),
            next: problem.next,
        },
        // Not in Ocopea's shape: something before it, or something else.
        Err(_) => Failure {
            status: if matches!(code, 4) { 4 } else { 6 },
            what: format!("{url} answered {status}, and not as Ocopea does"),
            cause: text.trim().chars().take(300).collect(),
            place,
            next: "check that it is Ocopea that listens there, or name another address with --url".to_owned(),
        },
    })
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let url = response.url().origin().ascii_serialization();
    let text = response.text().await.map_err(|error| unreachable(&url, &error))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::local(format!("the coordinator's answer can't be read: {error}"))
            .next(format!("check that it is Ocopea of this version that listens at {url}: compare `ocopea --version`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_told_to_the_coordinator_that_gave_it_and_to_nobody_else() {
        let same = |one: &str, other: &str| is_same(&parse_url(one).unwrap(), &parse_url(other).unwrap());
        assert!(same("http://127.0.0.1:8700", "http://localhost:8700/"));
        assert!(same("https://ocopea.example", "https://OCOPEA.example:443/"));
        assert!(!same("http://127.0.0.1:8700", "http://127.0.0.1:8701"));
        assert!(!same("https://ocopea.example", "http://ocopea.example"));
        assert!(!same("https://ocopea.example", "https://ocopea.example.evil"));
    }

    #[test]
    fn what_is_no_address_is_a_wrong_word_and_not_an_unreachable_place() {
        for wrong in ["", "localhost:8700", "ftp://x", "http://", "http://[", "127.0.0.1:8700"] {
            assert_eq!(parse_url(wrong).err().map(|failure| failure.status), Some(2), "{wrong}");
        }
    }
}
