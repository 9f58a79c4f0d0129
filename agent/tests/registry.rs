//! Container images against a real registry that wants a password (Debian's docker-registry), and against servers that lie.

use std::{
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use futures::stream;
use ocopea_agent::containers::{ContainerCopy, Credentials, RegistryContext, copy_in, digest_of, push, remove};
use ocopea_protocol::{
    failure::TaskFailure, ids::TeamId, image::Location, inventory::ContainerFound, names::Digest,
    plan::ContainerPlacement, seams::Seams,
};
use ocopea_repository::{ImageSession, Keyring, Repository, StoreAccess};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// `user` with the password `secret`.
const PASSWORDS: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry of the test's own; ends with it.
struct Registry {
    host: String,
    child: Child,
    _directory: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn registry() -> Registry {
    let directory = TempDir::new().unwrap();
    // Free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("passwords"), PASSWORDS).unwrap();
    let config = json!({"version": 0.1, "log": {"level": "error"}, "http": {"addr": host},
        "storage": {"filesystem": {"rootdirectory": at("data")}, "delete": {"enabled": true}},
        "auth": {"htpasswd": {"realm": "test", "path": at("passwords")}}});
    std::fs::write(at("config.yml"), config.to_string()).unwrap();
    let child = Command::new("docker-registry").args(["serve", &at("config.yml")]).spawn().unwrap();
    let registry = Registry { host, child, _directory: directory };
    for _ in 0..200 {
        if TcpStream::connect(&registry.host).await.is_ok() {
            return registry;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the registry didn't come up");
}

fn context(credentials: Credentials) -> RegistryContext {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    RegistryContext {
        credentials: Arc::new(credentials),
        plain_hosts: Vec::new(),
        seams: Seams::real(TaskTracker::new()),
        stop: CancellationToken::new(),
    }
}

fn login(host: &str, password: &str) -> Credentials {
    let auths = json!({"auths": {host: {"username": "user", "password": password}}});
    Credentials::parse("test", auths.to_string().as_bytes()).unwrap()
}

struct Store {
    session: ImageSession,
    _directory: TempDir,
}

async fn store() -> Store {
    let seams = Seams::real(TaskTracker::new());
    let directory = TempDir::new().unwrap();
    let location = Location::Directory { path: directory.path().join("repository").to_str().unwrap().to_owned() };
    let repository =
        Repository::create(&location, &StoreAccess::default(), &Keyring::generate(&seams), &seams).await.unwrap();
    let key = repository.new_image_key(TeamId::generate(&seams)).await.unwrap();
    let access = repository.access_to_write(&key, None).await.unwrap();
    Store {
        session: ImageSession::open(&access, &StoreAccess::default(), &seams).await.unwrap(),
        _directory: directory,
    }
}

impl Store {
    async fn blob(&self, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        let stream = stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(bytes))]);
        self.session.put_blob(&digest, bytes.len() as u64, stream).await.unwrap();
        json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": bytes.len()})
    }

    /// An image of one platform, as its descriptor.
    async fn image(&self, architecture: &str) -> (Digest, Value) {
        let config = self.blob(json!({"os": "linux", "architecture": architecture}).to_string().as_bytes()).await;
        let layer = self.blob(format!("files for {architecture}").as_bytes()).await;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}).to_string();
        let digest = self.session.put_manifest(manifest.as_bytes(), MANIFEST).await.unwrap();
        let platform = json!({"os": "linux", "architecture": architecture});
        (
            digest,
            json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len(), "platform": platform}),
        )
    }

    async fn index(&self) -> (Digest, Digest) {
        let (first, one) = self.image("amd64").await;
        let (_, other) = self.image("arm64").await;
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [one, other]}).to_string();
        (self.session.put_manifest(index.as_bytes(), INDEX).await.unwrap(), first)
    }
}

fn placement(target: &str, digest: Digest) -> ContainerPlacement {
    ContainerPlacement { component: "app".parse().unwrap(), digest, target: target.to_owned(), push: true }
}

fn found(repository: &str, digest: Digest) -> ContainerFound {
    ContainerFound {
        name: "app".parse().unwrap(),
        repository: repository.to_owned(),
        tag: None,
        digest,
        used_by: vec![],
        pull_secrets: vec![],
    }
}

/// Copies an image into `store`, signed in as `credentials` say.
async fn copied(
    store: &Store,
    credentials: Credentials,
    repository: &str,
    digest: Digest,
) -> Result<ContainerCopy, TaskFailure> {
    copy_in(&context(credentials), &found(repository, digest), &store.session, Arc::new(|_| {})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_goes_to_a_registry_with_a_password_and_comes_back_whole() {
    let (registry, store) = (registry().await, store().await);
    let (index, _) = store.index().await;
    let target = format!("{}/team/app", registry.host);
    let wrong = context(login(&registry.host, "wrong"));
    let failure = push(&wrong, &placement(&target, index), &store.session, Arc::new(|_| {})).await.unwrap_err();
    assert!(!failure.is_retryable() && failure.code == "registry.denied", "{failure:?}");
    let failure = copied(&store, Credentials::default(), &target, index).await.unwrap_err();
    assert!(failure.cause.contains("none are known"), "{failure:?}");
    // As kubelets do: what doesn't fit is passed over.
    let mut both = login(&registry.host, "wrong");
    both.extend(login(&format!("{}/team", registry.host), "secret"));
    let both = context(both);
    push(&both, &placement(&target, index), &store.session, Arc::new(|_| {})).await.unwrap();
    let elsewhere = self::store().await;
    let copied = copy_in(&both, &found(&target, index), &elsewhere.session, Arc::new(|_| {})).await.unwrap();
    assert_eq!(copied.component.manifest, index);
    let platforms: Vec<&str> = copied.platforms.iter().map(|(platform, _)| platform.as_str()).collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    remove(&both, &target, &index).await.unwrap();
    assert_eq!(both.resolve(&target, &format!("@{index}")).await.unwrap(), None);
    remove(&both, &target, &index).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_ended_midway_is_taken_back() {
    let (registry, store) = (registry().await, store().await);
    let (index, inner) = store.index().await;
    let target = format!("{}/team/app", registry.host);
    let context = context(login(&registry.host, "secret"));
    push(&context, &placement(&target, inner), &store.session, Arc::new(|_| {})).await.unwrap();
    remove(&context, &target, &index).await.unwrap();
    assert_eq!(context.resolve(&target, &format!("@{inner}")).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_never_began_leaves_nothing_to_take_back() {
    let (registry, store) = (registry().await, store().await);
    let (index, _) = store.index().await;
    let context = context(login(&registry.host, "secret"));
    remove(&context, &format!("{}/team/never", registry.host), &index).await.unwrap();
}

/// By the codes of the distribution specification, whatever the words beside them.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_understood_by_its_codes_and_not_by_its_words() {
    let digest: Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
    let outcome = async |status: u16, code: &'static str| {
        let body = json!({"errors": [{"code": code, "message": "das gibt es nicht"}]}).to_string().into_bytes();
        let host = liar(move |path| match path {
            "/v2/" => (200, "application/json", b"{}".to_vec()),
            _ => (status, "application/json", body.clone()),
        })
        .await;
        context(Credentials::default()).resolve(&format!("{host}/app"), &format!("@{digest}")).await
    };
    for code in ["NAME_UNKNOWN", "MANIFEST_UNKNOWN", "NOT_FOUND"] {
        assert_eq!(outcome(404, code).await.unwrap(), None, "{code}");
    }
    assert_eq!(outcome(403, "DENIED").await.unwrap_err().code, "registry.denied");
    let busy = outcome(429, "TOOMANYREQUESTS").await.unwrap_err();
    assert!(busy.is_retryable(), "{busy:?}");
    let refused = outcome(400, "NAME_INVALID").await.unwrap_err();
    assert!(!refused.is_retryable() && refused.code == "registry.refused", "{refused:?}");
}

/// Answers every request with what `answer` says of its path: status, media type, body.
async fn liar(answer: impl Fn(&str) -> (u16, &'static str, Vec<u8>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut head = vec![0; 8192];
                let read = connection.read(&mut head).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let (status, media, body) = answer(path);
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: {media}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = connection.write_all(head.as_bytes()).await;
                let _ = connection.write_all(&body).await;
            });
        }
    });
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_serves_under_a_wrong_digest_is_refused_by_name() {
    let wanted: Digest = format!("sha256:{}", "1".repeat(64)).parse().unwrap();
    let host = liar(|path| match path {
        path if path.contains("/manifests/") => (200, MANIFEST, br#"{"schemaVersion":2}"#.to_vec()),
        _ => (200, "application/json", b"{}".to_vec()),
    })
    .await;
    let store = store().await;
    let failure = copied(&store, Credentials::default(), &format!("{host}/app"), wanted).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.is_retryable()), ("container.digest", false), "{failure:?}");

    // The manifest is right, a layer is not.
    let config = json!({"os": "linux", "architecture": "amd64"}).to_string();
    let described = |bytes: &[u8]| json!({"digest": digest_of(bytes).to_string(), "size": bytes.len()});
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": described(config.as_bytes()), "layers": [described(b"layer")]});
    let manifest = manifest.to_string();
    let (digest, layer) = (digest_of(manifest.as_bytes()), digest_of(b"layer"));
    let host = liar(move |path| match path {
        path if path.contains("/manifests/") => (200, MANIFEST, manifest.clone().into_bytes()),
        path if path.ends_with(&layer.to_string()) => (200, "application/octet-stream", b"later".to_vec()),
        path if path.contains("/blobs/") => (200, "application/octet-stream", config.clone().into_bytes()),
        _ => (200, "application/json", b"{}".to_vec()),
    })
    .await;
    let failure = copied(&store, Credentials::default(), &format!("{host}/app"), digest).await.unwrap_err();
    assert_eq!((failure.code.as_str(), failure.is_retryable()), ("container.digest", false), "{failure:?}");
    assert!(failure.what.contains(&host) && failure.cause.contains(&layer.to_string()), "{failure:?}");
    assert!(!store.session.has_blob(&layer, 5).await.unwrap(), "nothing unverified is kept");
}
