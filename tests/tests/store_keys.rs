//! Keys of a bucket that are lent for seconds, in the midst of a copy by an agent that has none of its own: a real
//! coordinator, a real worker, a bus between them, and a real S3 server that knows no key any more once the next is lent.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test's helpers stop at the first surprise, and wait in real time for what is real"
)]
#![allow(dead_code, unused_imports, reason = "what is shared with other tests does more than is needed here")]

#[path = "../../repository/tests/common/lender.rs"]
mod lender;
#[path = "../../repository/tests/common/s3.rs"]
mod s3;
#[path = "../../coordinator/tests/api/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use lender::Lender;
use ocopea_agent::worker::{Begun, Identity, Job, Limits, Work, Worker};
use ocopea_catalog_db::{Catalog, access::Actor, model::Role};
use ocopea_coordinator::{
    Coordinator,
    api::{self, KeyFile, OpenConnection, SiteAccess, enrolment::SiteBroker, exec},
    tokens,
    vault::Vault,
};
use ocopea_protocol::{
    bus::in_process::InProcessBus,
    failure::TaskFailure,
    identity::SiteKey,
    ids::InstanceId,
    image::{ComponentCopied, ImageAccess, Location, StoreKeys},
    inventory::{ContainerFound, Inventory},
    message::{SiteReport, SiteState},
    names::Digest,
    seams::Seams,
    secret::Secret32,
    session::Wish,
    task::{TaskOutput, TaskSpec},
};
use ocopea_repository::{
    ImageSession, Keyring, Repository, Scope, StoreAccess,
    backend::s3::{KeySource, Patience},
};
use reqwest::{Method, StatusCode};
use s3::{HASTY, Keeps, Server as S3};
use serde_json::{Value, json};
use server::Server;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a lent key lives; each copy takes three times as long.
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

/// Saves an application of one container image, slowly.
struct Slow {
    seams: Seams,
    stores: StoreAccess,
}

impl Slow {
    async fn session(&self, job: &Job, access: &ImageAccess) -> ImageSession {
        // Keys that are in force now, and no way to keys of one's own.
        assert!(access.store_keys.as_ref().is_some_and(|keys| keys.expires.is_some()));
        ImageSession::open_lent(access, &self.stores, Arc::clone(&job.way), &self.seams).await.unwrap()
    }

    async fn container(&self, session: &ImageSession) -> Result<TaskOutput, ocopea_repository::Error> {
        let pieces = layer();
        let (digest, size) = (sha256(&pieces.concat()), (PIECE * PIECES) as u64);
        let pause = COPY / PIECES as u32;
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
                Ok(TaskOutput::ConfigCopied { component, config_digest, objects: 1, kinds: vec![] })
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
    let place = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", place.path().join("catalog.sqlite").display());
    let server = Server::over(repository.clone(), &url, place.path(), seams.clone(), None).await;
    let site = server.catalog.ensure_site("desk").await.unwrap();
    let key = SiteKey::generate().unwrap();
    server.catalog.set_site_key(site, &key.public().unwrap()).await.unwrap();
    let cluster = Arc::new(|| -> ocopea_protocol::seams::BoxFuture<String> { Box::pin(async { "here".to_owned() }) });
    let mut none = StoreAccess::with_keys(KeySource::Static(s3::keys("nobody", "nothing")));
    none.patience = HASTY;
    let work = Arc::new(Slow { seams: seams.clone(), stores: none });
    let identity = Identity { site, key, cluster };
    let bus = Arc::new(server.bus.agent(site));
    let worker = Worker::with(work, bus, identity, seams.clone(), Limits::default()).unwrap();
    let stop = CancellationToken::new();
    let working = tokio::spawn(worker.run(stop.clone()));
    let token = server.token(&server.actor, Role::Operator).await;
    let lent_before = lender.lent.load(SeqCst);
    let accepted = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.body);
    let operation = accepted.body["operation"].as_str().unwrap().to_owned();
    let mut now = Value::Null;
    for _ in 0..240 {
        let path = format!("/api/v1/operations/{operation}");
        now = server.ask(server.request("get", &path, Some(&token))).await.body;
        if now["state"] != "running" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(now["state"], "succeeded", "{now:#}");
    // It was one attempt: nothing was begun anew.
    let tasks = now["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|task| task["attempt"] == 1), "{tasks:#?}");
    let lent = lender.lent.load(SeqCst) - lent_before;
    assert!((3..11).contains(&lent), "{lent} accounts were lent");
    let report = repository.verify(Scope::All, &|_| {}).await.unwrap();
    assert_eq!(report.broken, vec![], "{report:?}");
    // Whoever holds no task gets none.
    stop.cancel();
    working.await.unwrap();
}
