//! A client of the service's own API, as small as the writer needs it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

/// Longest answer that is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signed in somewhere.
pub struct Client {
    http: reqwest::Client,
    base: String,
    cookie: Option<String>,
}

impl Client {
    /// For the service at `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(base.starts_with("http://"), "{base:?} is no address such as http://127.0.0.1:8080");
        // An empty image has no certificates, and plain HTTP needs none: looking for them would be an error.
        let http = reqwest::Client::builder().timeout(PATIENCE).tls_certs_only([]).build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), cookie: None })
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        Ok(request.send().await?)
    }

    /// What a `GET` answers.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send(Method::GET, path, None).await?;
        read(answer).await
    }

    /// What a `POST` answers.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.send(Method::POST, path, Some(body)).await?;
        read(answer).await
    }

    /// Brings a file; what the service calls it.
    pub async fn upload(&self, name: &str, content_type: &str, bytes: bytes::Bytes) -> anyhow::Result<Value> {
        let mut address = reqwest::Url::parse(&format!("{}/api/uploads", self.base))?;
        address.query_pairs_mut().append_pair("name", name);
        let mut request = self.http.post(address).header(header::CONTENT_TYPE, content_type).body(bytes);
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let answer = read(request.send().await?).await?;
        Ok(answer.get("id").cloned().unwrap_or_default())
    }

    /// Signs in; makes the account when there is none.
    pub async fn sign_in(&mut self, name: &str, password: &str) -> anyhow::Result<()> {
        let who = json!({ "name": name, "display": name, "password": password });
        let mut answer = self.send(Method::POST, "/api/sign-up", Some(&who)).await?;
        if answer.status() == StatusCode::CONFLICT {
            answer = self.send(Method::POST, "/api/sign-in", Some(&who)).await?;
        }
        let cookie = answer.headers().get(header::SET_COOKIE).and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|value| value.split(';').next()).map(str::to_owned);
        read(answer).await.with_context(|| format!("can't sign in as {name}"))?;
        self.cookie = Some(cookie.context("the service set no cookie")?);
        Ok(())
    }
}

async fn read(answer: Response) -> anyhow::Result<Value> {
    let status = answer.status();
    let body = answer.bytes().await?;
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let detail = value.get("detail").and_then(Value::as_str).unwrap_or("no reason given");
    bail!("{status}: {detail}")
}
