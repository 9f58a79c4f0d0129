//! Real RabbitMQ nodes for a test binary. `tests/testbed/rabbitmq.sh` has them.
#![allow(dead_code, reason = "every test binary uses what it needs")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use ocopea_protocol::{
    bus::rabbitmq::{Settings, topology},
    ids::SiteId,
    seams::Seams,
    secret::Secret,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/testbed/rabbitmq.sh");
/// What must happen has happened by then.
pub const SOON: Duration = Duration::from_secs(40);

/// A node; ends when the test's process does, however that ends.
pub struct Node {
    place: PathBuf,
    said: BTreeMap<String, String>,
    http: reqwest::Client,
    /// One at a time does what the others would feel.
    pub rough: tokio::sync::Mutex<()>,
    /// Its input is what the node watches.
    _child: Child,
    _place: tempfile::TempDir,
}

/// A virtual host of a node: what lies in its queues is one test's alone.
pub struct Server {
    node: &'static Node,
    vhost: String,
    url: String,
}

impl std::ops::Deref for Server {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node
    }
}

fn run(place: &Path, options: &[&str]) -> (Child, BTreeMap<String, String>) {
    let mut command = Command::new(SCRIPT);
    command.arg("run").arg(place).args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = BTreeMap::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "READY" {
            return (child, said);
        }
        if let Some((name, value)) = line.split_once('=') {
            said.insert(name.to_owned(), value.to_owned());
        }
    }
    panic!("RabbitMQ didn't start: {:?}", child.wait());
}

pub fn seams() -> Seams {
    Seams::real(Default::default())
}

impl Node {
    fn start(options: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        // Said when a test fails, as RUST_LOG wants it.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("rabbitmq");
        let (child, said) = run(&place, options);
        let mut http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy();
        if !said["CA"].is_empty() {
            let pem = std::fs::read(&said["CA"]).unwrap();
            http = http.tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).unwrap());
        }
        let http = http.build().unwrap();
        Self { place, said, http, rough: tokio::sync::Mutex::default(), _child: child, _place: directory }
    }

    pub async fn script(&'static self, command: &'static str, arguments: &'static [&'static str]) {
        let act = move || {
            let mut script = Command::new(SCRIPT);
            script.arg(command).arg(&self.place).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            let output = script.stderr(Stdio::piped()).output().unwrap();
            assert!(output.status.success(), "{command} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        tokio::task::spawn_blocking(act).await.unwrap();
    }

    pub fn management(&self) -> &str {
        &self.said["MANAGEMENT"]
    }

    pub fn password(&self) -> Secret {
        Secret::new(&*self.said["PASSWORD"])
    }

    pub fn certificates(&self) -> Option<String> {
        (!self.said["CA"].is_empty()).then(|| std::fs::read_to_string(&self.said["CA"]).unwrap())
    }
}

impl Server {
    fn of(node: &'static Node) -> Self {
        Self { node, vhost: node.said["VHOST"].clone(), url: node.said["URL"].clone() }
    }

    /// A virtual host of one's own at a node that others use too.
    async fn at(node: &'static Node) -> Self {
        let mut server = Self::of(node);
        let name = format!("{}-{}", server.vhost, SiteId::generate(&seams()));
        server.url = server.url.strip_suffix(&server.vhost).unwrap().to_owned() + &name;
        server.vhost = name;
        server.done(Method::PUT, "vhosts/{v}", None).await;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        server.done(Method::PUT, "permissions/{v}/admin", Some(all)).await;
        server
    }

    /// One that nobody ends while others need it.
    pub async fn calm() -> Self {
        static NODE: OnceLock<Node> = OnceLock::new();
        Self::at(NODE.get_or_init(|| Node::start(&[]))).await
    }

    /// One that is ended and alarmed: hold its lock meanwhile.
    pub fn rough() -> Self {
        static NODE: OnceLock<Node> = OnceLock::new();
        Self::of(NODE.get_or_init(|| Node::start(&[])))
    }

    /// One with TLS.
    pub async fn secured() -> Self {
        static NODE: OnceLock<Node> = OnceLock::new();
        Self::at(NODE.get_or_init(|| Node::start(&["tls"]))).await
    }

    /// See [`Node::script`].
    pub async fn script(&self, command: &'static str, arguments: &'static [&'static str]) {
        self.node.script(command, arguments).await;
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    pub fn settings(&self, user: &str, password: &Secret) -> Settings {
        let mut settings = Settings::new(self.url().parse().unwrap(), user, password.clone());
        settings.certificates = self.certificates();
        settings
    }

    /// The coordinator's.
    pub fn own_settings(&self) -> Settings {
        self.settings("admin", &self.password())
    }

    /// A request to the management API; `{v}` is the virtual host.
    pub async fn manage(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let path = path.replace("{v}", self.vhost());
        let mut request = self.http.request(method, format!("{}/api/{path}", self.management()));
        request = request.basic_auth("admin", Some(self.password().reveal()));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    pub async fn done(&self, method: Method, path: &str, body: Option<Value>) {
        let (status, said) = self.manage(method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {said}");
    }

    /// A new site with its user, and what its agents connect by.
    pub async fn site(&self) -> (SiteId, Settings) {
        let site = SiteId::generate(&seams());
        let password = Secret::new("of a test");
        let (user, rights) = (topology::user(site), topology::rights(site));
        let body = json!({"password": password.reveal(), "tags": ""});
        self.done(Method::PUT, &format!("users/{user}"), Some(body)).await;
        let body = json!({"exchange": topology::EVENTS, "write": rights.topic_write, "read": rights.topic_read});
        self.done(Method::PUT, &format!("topic-permissions/{{v}}/{user}"), Some(body)).await;
        let body = json!({"configure": rights.configure, "write": rights.write, "read": rights.read});
        self.done(Method::PUT, &format!("permissions/{{v}}/{user}"), Some(body)).await;
        let mut settings = self.settings(&user, &password);
        settings.name = format!("agent of {site}");
        (site, settings)
    }

    /// The messages of a queue, as the management API shows them; they stay.
    pub async fn messages(&self, queue: &str) -> Vec<Value> {
        let body = json!({"count": 1000, "ackmode": "reject_requeue_true", "encoding": "base64", "truncate": 100});
        let (status, messages) = self.manage(Method::POST, &format!("queues/{{v}}/{queue}/get"), Some(body)).await;
        assert!(status.is_success(), "{queue}: {status}");
        messages.as_array().unwrap().clone()
    }

    /// The names of a user's connections.
    pub async fn connections(&self, user: &str) -> Vec<String> {
        let (_, all) = self.manage(Method::GET, "vhosts/{v}/connections", None).await;
        let own = all.as_array().unwrap().iter().filter(|connection| connection["user"] == user);
        own.map(|connection| connection["name"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn close_connection(&self, name: &str) {
        let url = reqwest::Url::parse(self.management()).unwrap();
        let mut path = url.clone();
        path.path_segments_mut().unwrap().extend(["connections", name]);
        let path = path.path().trim_start_matches('/').to_owned();
        self.manage(Method::DELETE, &path, None).await;
    }
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(what, wait).await;
}

/// Waits for `work`, which must end soon.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, work).await {
        Ok(value) => value,
        Err(_) => panic!("not within {} s: {what}", SOON.as_secs()),
    }
}
