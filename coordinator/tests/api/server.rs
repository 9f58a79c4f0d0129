//! A coordinator behind its API, with a catalog and a repository of its own and no agents.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ocopea_catalog_db::{Catalog, access::Actor, model::Role};
use ocopea_coordinator::{
    Coordinator,
    api::{self, KeyFile, SiteAccess, enrolment::SiteBroker, exec},
    tokens,
    vault::Vault,
};
use ocopea_protocol::{
    bus::in_process::InProcessBus,
    failure::TaskFailure,
    ids::InstanceId,
    image::Location,
    message::{SiteReport, SiteState},
    needs::Capabilities,
    seams::Seams,
    secret::Secret32,
    session::{BoxedStream, Way},
};
use ocopea_repository::{Keyring, Repository, StoreAccess};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// No site is here: what would go to one says so.
pub struct NoSites;

pub fn absent() -> TaskFailure {
    TaskFailure::permanent("site.absent", "can't reach the site", "there is none")
}

#[async_trait]
impl SiteAccess for NoSites {
    fn look_again(&self, _: &str) -> bool {
        false
    }

    async fn logs(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        Err(absent())
    }

    async fn way(&self, _: &str, _: &str, _: &str, _: SocketAddr) -> Result<Way, TaskFailure> {
        Err(absent())
    }

    async fn tunnel(&self, _: &str, _: &str, _: &str) -> Result<BoxedStream, TaskFailure> {
        Err(absent())
    }

    async fn exec(&self, _: &str, _: &str, _: &exec::ExecQuery, _: Vec<String>) -> Result<exec::Program, TaskFailure> {
        Err(absent())
    }
}

/// A key file.
struct Kept(std::path::PathBuf);

impl KeyFile for Kept {
    fn store(&self, keys: &Keyring) -> Result<(), String> {
        std::fs::write(&self.0, keys.to_text().as_bytes()).map_err(|error| error.to_string())
    }
}

pub fn report(seams: &Seams) -> SiteReport {
    SiteReport {
        instance: InstanceId::generate(seams),
        at: seams.clock.now(),
        agent_version: String::new(),
        state: SiteState::Ready,
        platform: "Kubernetes".to_owned(),
        nodes: 1,
        architectures: vec![],
        data_kinds: vec![],
        may_create_namespaces: true,
        registry: None,
        storage_classes: vec![],
        missing: vec![],
        applications: vec![],
        limits: None,
        capabilities: Capabilities::default(),
    }
}

/// Makes a repository in this place, or opens the one that is there.
async fn repository(place: &Path, seams: &Seams) -> Repository {
    let location = Location::Directory { path: place.to_str().unwrap().to_owned() };
    static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = MAKING.lock().await;
    let key = place.with_extension("key");
    match std::fs::read_to_string(&key) {
        Ok(text) => {
            let keys = Keyring::parse(&text).unwrap();
            Repository::open(&location, &StoreAccess::default(), &keys, seams).await.unwrap()
        }
        Err(_) => {
            let keys = Keyring::generate(seams);
            std::fs::write(key, keys.to_text().as_bytes()).unwrap();
            Repository::create(&location, &StoreAccess::default(), &keys, seams).await.unwrap()
        }
    }
}

pub struct Server {
    pub directory: std::path::PathBuf,
    pub url: String,
    pub catalog: Catalog,
    pub actor: Actor,
    pub http: reqwest::Client,
    pub stop: CancellationToken,
    pub bus: InProcessBus,
    pub coordinator: Arc<Coordinator>,
    pub _directory: Option<tempfile::TempDir>,
}

pub struct Answer {
    pub status: StatusCode,
    pub kind: String,
    pub body: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(None).await
    }

    pub async fn with(broker: Option<Arc<dyn SiteBroker>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let seams = Seams::real(TaskTracker::new());
        let url = format!("sqlite:{}", directory.path().join("catalog.sqlite").display());
        let mut server = Self::on(&url, directory.path(), seams, broker).await;
        server._directory = Some(directory);
        server
    }

    /// One on a catalog and beside a repository that others may use, too.
    pub async fn on(url: &str, directory: &Path, seams: Seams, broker: Option<Arc<dyn SiteBroker>>) -> Self {
        // Twice in one process is once too often, and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let repository = repository(&directory.join("repository"), &seams).await;
        Self::over(repository, url, directory, seams, broker).await
    }

    /// The same with that repository.
    pub async fn over(
        repository: Repository,
        url: &str,
        directory: &Path,
        seams: Seams,
        broker: Option<Arc<dyn SiteBroker>>,
    ) -> Self {
        let catalog = Catalog::connect(url, seams.clone()).await.unwrap();
        let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
        let site = catalog.ensure_site("desk").await.unwrap();
        catalog.report_site(site, &report(&seams)).await.unwrap();
        catalog.ensure_site("silent").await.unwrap();
        let vault = Vault::new(&Secret32([5; 32])).unwrap();
        let bus = InProcessBus::new(seams.clone());
        let served = seams.clone();
        let coordinator = Coordinator::new(catalog.clone(), repository, vault, Arc::new(bus.clone()), seams);
        let stop = CancellationToken::new();
        coordinator.start(&stop);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = api::State {
            coordinator: Arc::clone(&coordinator),
            access: Arc::new(NoSites),
            keys: Arc::new(Kept(directory.join("repository.key"))),
            broker,
        };
        let router = api::router(state);
        let stopped = stop.clone();
        tokio::spawn(api::serve(listener, None, router, served, stopped));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let directory = directory.to_owned();
        Self { directory, url, catalog, actor, http, stop, bus, coordinator, _directory: None }
    }

    pub async fn token(&self, actor: &Actor, scope: Role) -> String {
        tokens::issue(&self.catalog, actor, "test", scope, None).await.unwrap().reveal().to_owned()
    }

    pub fn request(&self, method: &str, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let status = response.status();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        // A stream that goes on for ever is not read to its end.
        let body =
            if kind.starts_with("text/event-stream") { Vec::new() } else { response.bytes().await.unwrap().to_vec() };
        let answer = Answer { status, kind, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        if status.is_client_error() || status.is_server_error() {
            answer.is_a_problem();
        }
        answer
    }

    pub async fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.ask(self.request("post", path, Some(token)).json(body)).await
    }
}

impl Answer {
    pub fn is_a_problem(&self) {
        assert_eq!(self.kind, "application/problem+json", "{} {}", self.status, self.body);
        assert_eq!(self.body["status"], self.status.as_u16(), "{}", self.body);
        for field in ["type", "title", "detail"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", self.body);
        }
    }
}
