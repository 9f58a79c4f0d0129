//! Speaks with the coordinator.

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use futures::{Stream, StreamExt};
use ocopea_coordinator::api::{Page, Problem};
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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

/// The coordinator's API.
pub struct Client {
    http: reqwest::Client,
    account: Account,
}

impl Client {
    /// As the arguments, the environment or the last sign-in say.
    pub fn new(url: Option<String>, token: Option<String>) -> Result<Self, Failure> {
        let stored = Account::load();
        let url = url
            .or_else(|| stored.as_ref().map(|a| a.url.clone()))
            .unwrap_or_else(|| "http://127.0.0.1:8700".to_owned());
        let token = token.or_else(|| stored.map(|a| a.token)).ok_or_else(|| {
            Failure::local("not signed in")
                .next("start `ocopea up`, or sign in with the address that it printed: ocopea sign-in URL")
        })?;
        Ok(Self { http: http()?, account: Account { url: url.trim_end_matches('/').to_owned(), token } })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<serde_json::Value>,
        key: Option<&str>,
    ) -> Result<Response, Failure> {
        let mut request =
            self.http.request(method, format!("{}{path}", self.account.url)).bearer_auth(&self.account.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let response = request.send().await.map_err(|error| unreachable(&self.account.url, &error))?;
        checked(response).await
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        decode(self.send(Method::GET, path, None, None).await?).await
    }

    /// Reads a list, page by page; `path` has a query.
    pub async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        let mut page: Page<T> = self.get(path).await?;
        loop {
            all.append(&mut page.items);
            let Some(cursor) = page.next else { return Ok(all) };
            page = self.get(&format!("{path}&cursor={cursor}")).await?;
        }
    }

    /// Asks for something, harmlessly repeated.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_value(body).map_err(|error| Failure::local(error.to_string()))?;
        decode(self.send(Method::POST, path, Some(body), None).await?).await
    }

    /// Asks for something that answers nothing.
    pub async fn order(&self, method: Method, path: &str, body: Option<serde_json::Value>) -> Result<(), Failure> {
        self.send(method, path, body, None).await.map(drop)
    }

    /// As [`Self::order`], with an answer.
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
        let url = url::Url::parse_with_params(&format!("{}{path}", self.account.url), query)
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
        let response = self.send(Method::GET, path, None, None).await?;
        let url = self.account.url.clone();
        Ok(response.bytes_stream().map(move |chunk| chunk.map_err(|error| unreachable(&url, &error))))
    }
}

/// Exchanges a sign-in code.
pub async fn sign_in(address: &str) -> Result<Account, Failure> {
    let parsed = url::Url::parse(address).map_err(|error| {
        Failure::usage(format!("{address:?} is not an address: {error}"))
            .next("paste the whole address that `ocopea up` printed")
    })?;
    let code = parsed.query_pairs().find(|(name, _)| name == "code").map(|(_, code)| code.into_owned());
    let code = code.ok_or_else(|| {
        Failure::usage("the address has no ?code=…").next("paste the whole address that `ocopea up` printed")
    })?;
    let url = parsed.origin().ascii_serialization();
    let body = ocopea_coordinator::api::SignIn { code };
    let response = http()?
        .post(format!("{url}/api/v1/sign-in"))
        .json(&body)
        .send()
        .await
        .map_err(|error| unreachable(&url, &error))?;
    let issued: ocopea_coordinator::api::IssuedToken = decode(checked(response).await?).await?;
    Ok(Account { url, token: issued.token })
}

fn http() -> Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        .connect_timeout(std::time::Duration::from_secs(5))
        .build()
        .map_err(|error| Failure::local(error.to_string()))
}

fn unreachable(url: &str, error: &reqwest::Error) -> Failure {
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
        Err(_) => Failure {
            status: code,
            what: format!("the coordinator answered {status}"),
            cause: text.chars().take(300).collect(),
            place,
            next: String::new(),
        },
    })
}

async fn decode<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let text = response.text().await.map_err(|error| Failure::local(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::local(format!("the coordinator's answer can't be read: {error}"))
            .next("client and coordinator may be of different versions: compare `ocopea --version`")
    })
}
