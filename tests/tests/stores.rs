//! Where saves go, and with which keys: a real coordinator, a real worker, a bus between them, and a real S3 server. Only
//! the application that is saved is made up.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test's helpers stop at the first surprise, and wait in real time for what is real"
)]

#[path = "../../repository/tests/common/lender.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod lender;
#[path = "../../repository/tests/common/s3.rs"]
#[allow(dead_code, reason = "likewise")]
mod s3;
#[path = "../../coordinator/tests/api/server.rs"]
#[allow(dead_code, reason = "likewise")]
mod server;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use lender::Lender;
use ocopea_agent::worker::{Begun, Identity, Job, Limits, Work, Worker};
use ocopea_catalog_db::model::Role;
use ocopea_protocol::{
    failure::TaskFailure,
    identity::SiteKey,
    image::{ComponentCopied, ImageAccess, Location},
    inventory::{ContainerFound, Inventory},
    names::Digest,
    seams::{BoxFuture, Seams},
    session::Wish,
    task::{TaskOutput, TaskSpec},
};
use ocopea_repository::{ImageSession, Keyring, Repository, Scope, StoreAccess, backend::s3::KeySource};
use reqwest::StatusCode;
use s3::{HASTY, Keeps, Server as S3};
use serde_json::{Value, json};
use server::Server;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a lent key lives; the copy takes three times as long.
const LIFE: Duration = Duration::from_secs(4);
const COPY: Duration = Duration::from_secs(12);
const PIECE: usize = 1 << 20;
const PIECES: usize = 48;

/// The layer of the container image that is copied: one megabyte every quarter of a second.
fn layer() -> Vec<Bytes> {
    let piece = |number: usize| (0..PIECE).map(|at| ((at * 31 + number * 7) ^ (at >> 9)) as u8).collect::<Vec<u8>>();
    (0..PIECES).map(|number| Bytes::from(piece(number))).collect()
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(
        rustls::crypto::aws_lc_rs::default_provider()
            .cipher_suites
            .iter()
            .find_map(|suite| {
                let suite = suite.tls13()?;
                (suite.common.hash_provider.output_len() == 32).then(|| suite.common.hash_provider.hash(bytes))
            })
            .unwrap()
            .as_ref(),
    );
    Digest(digest)
}

/// Saves an application of one container image, in as long as it is told.
struct Slow {
    seams: Seams,
    stores: StoreAccess,
    copy: Duration,
}

impl Slow {
    async fn session(&self, job: &Job, access: &ImageAccess) -> ImageSession {
        ImageSession::open_lent(access, &self.stores, Arc::clone(&job.way), &self.seams).await.unwrap()
    }

    async fn container(&self, session: &ImageSession) -> Result<TaskOutput, ocopea_repository::Error> {
        let pieces = layer();
        let (digest, size) = (sha256(&pieces.concat()), (PIECE * PIECES) as u64);
        let pause = self.copy / PIECES as u32;
        let clock = Arc::clone(&self.seams.clock);
        let slow = stream::iter(pieces).then(|piece| {
            let clock = Arc::clone(&clock);
            async move {
                clock.sleep(pause).await;
                Ok::<_, String>(piece)
            }
        });
        session.put_blob(&digest, size, Box::pin(slow)).await?;
        let config = Bytes::from_static(b"{}");
        let config_digest = sha256(&config);
        let whole = stream::iter([Ok::<_, String>(config)]);
        session.put_blob(&config_digest, 2, whole).await?;
        let manifest = manifest(&digest, size, &config_digest);
        let written = session.put_manifest(&manifest, MANIFEST).await?;
        let component = component("web", written, size);
        Ok(TaskOutput::ContainerCopied { component, platforms: vec![("linux/amd64".to_owned(), written)] })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest(layer: &Digest, size: u64, config: &Digest) -> Vec<u8> {
    let layers =
        json!([{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.to_string(), "size": size}]);
    let config =
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.to_string(), "size": 2});
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}).to_string().into_bytes()
}

fn component(name: &str, manifest: Digest, bytes: u64) -> ComponentCopied {
    ComponentCopied { name: name.parse().unwrap(), manifest, bytes, new_bytes: bytes, stored_bytes: bytes }
}

fn inventory() -> Inventory {
    let layer = sha256(&layer().concat());
    let manifest = manifest(&layer, (PIECE * PIECES) as u64, &sha256(b"{}"));
    Inventory {
        namespace: "shop".parse().unwrap(),
        selector: None,
        application: "shop".to_owned(),
        kubernetes: "1.36.0".to_owned(),
        platforms: vec!["linux/amd64".to_owned()],
        objects: vec![],
        config_bytes: 10,
        containers: vec![ContainerFound {
            name: "web".parse().unwrap(),
            repository: "registry/shop/web".to_owned(),
            tag: None,
            digest: sha256(&manifest),
            used_by: vec![],
            pull_secrets: vec![],
        }],
        data: vec![],
        gaps: vec![],
        base: None,
        fingerprint: "f".to_owned(),
    }
}

#[async_trait]
impl Work for Slow {
    async fn run(&self, job: Job, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        let failed = |error: ocopea_repository::Error| TaskFailure::permanent("test", "can't copy", error);
        match spec {
            TaskSpec::Inspect { .. } => Ok(TaskOutput::Inspected(Box::new(inventory()))),
            TaskSpec::CopyConfig { access, .. } => {
                let files = BTreeMap::from([("a.json".to_owned(), Bytes::from_static(b"{}"))]);
                let written = self.session(&job, &access).await.put_config(&files).await.map_err(failed)?;
                let component = component("config", written.manifest, written.bytes);
                let config_digest = written.config_digest;
                Ok(TaskOutput::ConfigCopied {
                    component,
                    config_digest,
                    objects: 1,
                    kinds: vec![],
                    needs: Some(vec![]),
                })
            }
            TaskSpec::CopyContainer { access, .. } => {
                let session = self.session(&job, &access).await;
                self.container(&session).await.map_err(failed)
            }
            other => panic!("{:?}", other.kind()),
        }
    }

    async fn session(&self, _: Wish) -> Result<Begun, TaskFailure> {
        panic!("no sessions here")
    }
}

/// A coordinator, and a worker at its site "desk" that has no keys of any store.
struct Desk {
    server: Server,
    stop: CancellationToken,
    working: tokio::task::JoinHandle<()>,
    _place: tempfile::TempDir,
}

impl Desk {
    async fn begin(repository: Repository, copy: Duration) -> Self {
        let place = tempfile::tempdir().unwrap();
        let seams = Seams::real(TaskTracker::new());
        let url = format!("sqlite:{}", place.path().join("catalog.sqlite").display());
        let server = Server::over(repository, &url, place.path(), seams.clone(), None).await;
        let site = server.catalog.ensure_site("desk").await.unwrap();
        let key = SiteKey::generate().unwrap();
        server.catalog.set_site_key(site, &key.public().unwrap()).await.unwrap();
        let cluster = Arc::new(|| -> BoxFuture<String> { Box::pin(async { "here".to_owned() }) });
        let mut stores = StoreAccess::with_keys(KeySource::Static(s3::keys("nobody", "nothing")));
        stores.patience = HASTY;
        let work = Arc::new(Slow { seams: seams.clone(), stores, copy });
        let (identity, bus) = (Identity { site, key, cluster }, Arc::new(server.bus.agent(site)));
        let worker = Worker::with(work, bus, identity, seams, Limits::default()).unwrap();
        let stop = CancellationToken::new();
        let working = tokio::spawn(worker.run(stop.clone()));
        Self { server, stop, working, _place: place }
    }

    /// Waits for an operation's end.
    async fn ended(&self, token: &str, accepted: &server::Answer) -> Value {
        assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
        let path = format!("/api/v1/operations/{}", accepted.body["operation"].as_str().unwrap());
        for _ in 0..240 {
            let now = self.server.ask(self.server.request("get", &path, Some(token))).await.body;
            if now["state"] != "running" && now["state"] != "undoing" {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        panic!("it does not end")
    }

    async fn save(&self, token: &str, repository: Option<&str>) -> Value {
        let body = json!({"site": "desk", "namespace": "shop", "name": repository, "repository": repository});
        self.ended(token, &self.server.post("/api/v1/saves", token, &body).await).await
    }

    async fn get(&self, token: &str, path: &str) -> Value {
        self.server.ask(self.server.request("get", path, Some(token))).await.body
    }

    async fn end(self) {
        self.stop.cancel();
        self.working.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_by_an_agent_outlives_the_keys_that_came_with_its_task() {
    let s3 = S3::of_process();
    let bucket = s3.bucket(Keeps::Objects);
    let lender = Arc::new(Lender::new(s3, &bucket, LIFE));
    let seams = Seams::real(TaskTracker::new());
    let mut stores = StoreAccess::with_keys(KeySource::Custom(Arc::clone(&lender) as _));
    stores.patience = HASTY;
    stores.shared_with_agents = true;
    let keyring = Keyring::generate(&seams);
    let repository = Repository::create(&s3.location(&bucket), &stores, &keyring, &seams).await.unwrap();
    let desk = Desk::begin(repository.clone(), COPY).await;
    let token = desk.server.token(&desk.server.actor, Role::Operator).await;
    let lent_before = lender.lent.load(SeqCst);
    let now = desk.save(&token, None).await;
    assert_eq!(now["state"], "succeeded", "{now:#}");
    // It was one attempt: nothing was begun anew.
    let tasks = now["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["attempt"] == 1), "{tasks:#?}");
    let lent = lender.lent.load(SeqCst) - lent_before;
    assert!((3..11).contains(&lent), "{lent} accounts were lent");
    let report = repository.verify(Scope::All, &|_| {}).await.unwrap();
    assert_eq!(report.broken, vec![], "{report:?}");
    desk.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_save_goes_where_it_is_told_and_what_lies_there_is_looked_after_there() {
    let s3 = S3::of_process();
    let bucket = s3.bucket(Keeps::Objects);
    let keys = s3.user(&format!("{bucket}-archive"), "canary-of-the-archive");
    s3.policy(&bucket, &[&keys.id], &["s3:*"]);
    let seams = Seams::real(TaskTracker::new());
    let place = tempfile::tempdir().unwrap();
    let given = Location::Directory { path: place.path().join("given").to_str().unwrap().to_owned() };
    let keyring = Keyring::generate(&seams);
    let repository = Repository::create(&given, &StoreAccess::default(), &keyring, &seams).await.unwrap();
    let desk = Desk::begin(repository, Duration::ZERO).await;
    let token = desk.server.token(&desk.server.actor, Role::Administrator).await;
    let location = format!("s3://{bucket}/archive?endpoint={}&region=us-east-1", s3.endpoint());
    let mut archive = json!({"name": "archive", "location": location, "limits": {"requests": 4, "upload": 64 << 20},
        "keys": {"source": "static", "id": keys.id, "secret": "wrong"}});
    let refused = desk.server.post("/api/v1/repositories", &token, &archive).await;
    assert!(refused.status.is_client_error() || refused.status.is_server_error(), "{}", refused.body);
    archive["keys"]["secret"] = json!(keys.secret.reveal());
    let added = desk.server.post("/api/v1/repositories", &token, &archive).await;
    assert_eq!(added.status, StatusCode::CREATED, "{}", added.body);
    assert_eq!((&added.body["kind"], &added.body["state"]), (&json!("s3"), &json!("ready")));
    assert!(added.body["found"][0].as_str().unwrap().contains("where there are none"), "{}", added.body);
    let mut images = BTreeMap::new();
    for name in ["default", "archive"] {
        let saved = desk.save(&token, Some(name)).await;
        assert_eq!(saved["state"], "succeeded", "{saved:#}");
        let image = saved["image"].as_str().unwrap().to_owned();
        let view = desk.get(&token, &format!("/api/v1/images/{image}")).await;
        assert_eq!(view["repository"], name, "{view}");
        let listed = desk.get(&token, &format!("/api/v1/images?repository={name}")).await;
        assert_eq!((listed["items"].as_array().unwrap().len(), &listed["items"][0]["id"]), (1, &json!(image)));
        let of = desk.get(&token, &format!("/api/v1/repositories/{name}")).await;
        assert_eq!(of["images"], 1, "{of}");
        images.insert(name, image);
    }
    // The bytes lie where they were sent, and each is verified where it lies.
    assert!(s3.files(&bucket).join("archive/refs").read_dir().unwrap().count() == 1);
    assert!(place.path().join("given/refs").read_dir().unwrap().count() == 1);
    for name in ["default", "archive"] {
        for body in [json!({"repository": name}), json!({"image": images[name]})] {
            let verified = desk.server.post("/api/v1/repository/verifications", &token, &body).await;
            let verified = desk.ended(&token, &verified).await;
            assert_eq!(
                (&verified["state"], &verified["result"]["images"]),
                (&json!("succeeded"), &json!(1)),
                "{verified}"
            );
            assert_eq!(verified["result"]["broken"], json!([]));
        }
        let path = format!("/api/v1/repository/reindexes?repository={name}");
        let found = desk.server.ask(desk.server.request("post", &path, Some(&token))).await;
        assert_eq!((&found.body["images"], &found.body["added"]), (&json!(1), &json!(0)), "{}", found.body);
    }
    let elsewhere = json!({"image": images["archive"], "repository": "default"});
    let elsewhere = desk.server.post("/api/v1/repository/verifications", &token, &elsewhere).await;
    assert_eq!(elsewhere.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", elsewhere.body);
    let path = format!("/api/v1/images/{}/comments", images["archive"]);
    let comment = desk.server.post(&path, &token, &json!({"body": "seen"})).await;
    assert!(comment.status.is_success(), "{}", comment.body);
    // Other keys for it: the ones that don't open it are refused, and the others are used at once, the old being no more.
    let next = s3.user(&format!("{bucket}-next"), "canary-of-the-archive-2");
    s3.policy(&bucket, &[&keys.id, &next.id], &["s3:*"]);
    let change = async |secret: &str| {
        let body = json!({"keys": {"source": "static", "id": next.id, "secret": secret}, "limits": {}});
        desk.server.ask(desk.server.request("patch", "/api/v1/repositories/archive", Some(&token)).json(&body)).await
    };
    assert!(!change("wrong").await.status.is_success());
    let changed = change(next.secret.reveal()).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    assert_eq!(
        (&changed.body["keys"], &changed.body["limits"]["upload"]),
        (&json!(format!("static {}", next.id)), &Value::Null)
    );
    s3.no_user(&keys.id);
    let verified =
        desk.server.post("/api/v1/repository/verifications", &token, &json!({"repository": "archive"})).await;
    assert_eq!(desk.ended(&token, &verified).await["state"], "succeeded");
    let given = desk.server.request("patch", "/api/v1/repositories/default", Some(&token)).json(&json!({"limits": {}}));
    assert_eq!(desk.server.ask(given).await.status, StatusCode::CONFLICT);
    // It goes when nothing lies in it any more.
    let remove =
        async || desk.server.ask(desk.server.request("delete", "/api/v1/repositories/archive", Some(&token))).await;
    let full = remove().await;
    assert_eq!(full.status, StatusCode::CONFLICT);
    assert!(full.body["detail"].as_str().unwrap().contains("archive holds 1 image"), "{}", full.body);
    let path = format!("/api/v1/images/{}", images["archive"]);
    let deleted = desk.server.ask(desk.server.request("delete", &path, Some(&token))).await;
    assert_eq!(desk.ended(&token, &deleted).await["state"], "succeeded");
    assert!(s3.files(&bucket).join("archive/refs").read_dir().map_or(0, Iterator::count) == 0);
    let collect = json!({"grace_s": 0, "repository": "archive"});
    let collected = desk.server.post("/api/v1/repository/collections", &token, &collect).await;
    let collected = desk.ended(&token, &collected).await;
    assert_eq!(collected["state"], "succeeded", "{collected}");
    // What was found dead by the first is deleted by the second.
    let collected = desk.server.post("/api/v1/repository/collections", &token, &collect).await;
    let collected = desk.ended(&token, &collected).await;
    assert!(collected["result"]["live_bytes"].as_u64().is_some_and(|live| live == 0), "{collected}");
    assert_eq!(remove().await.status, StatusCode::NO_CONTENT);
    assert!(s3.files(&bucket).join("archive/ocopea-repository").exists(), "nothing in it is deleted");
    assert_eq!(desk.get(&token, &format!("/api/v1/images/{}", images["default"])).await["repository"], "default");
    // And the secret was nowhere but sealed.
    desk.server.catalog.seams.clock.sleep(Duration::from_millis(100)).await;
    for entry in std::fs::read_dir(desk._place.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        let canary = b"canary-of-the-archive";
        assert!(!bytes.windows(canary.len()).any(|window| window == canary), "{}", path.display());
    }
    desk.end().await;
}
