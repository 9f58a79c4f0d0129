//! A small repository in a temporary directory, and ways to fill it.
#![allow(dead_code, unused_macros, unused_imports, reason = "each test binary uses a part of it")]

pub mod lender;
pub mod proxy;
pub mod s3;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use ocopea_protocol::{
    ids::{ImageId, OperationId, TeamId},
    image::{Consistency, ConsistencyLevel, DataKind, ImageAccess, Location, StreamInfo},
    inventory::{ContainerFound, DataFound},
    names::{ComponentName, Digest},
    seams::Seams,
    time::Timestamp,
};
use ocopea_repository::{
    Body, CollectOptions, CommitRequest, Component, ConfigWritten, DataWritten, Error, ImageRef, ImageSession, Keyring,
    Lineage, Platform, Record, Repository, Requirements, StoreAccess, StreamFacts, WrappedKey,
    backend::{self, Backend},
};
use tokio_util::task::TaskTracker;

pub fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}

pub fn name(text: &str) -> ComponentName {
    text.parse().unwrap()
}

/// Bytes that look random, always the same for a seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Bytes that compress about 3 : 1.
pub fn prose(length: usize, seed: u64) -> Vec<u8> {
    let numbers = noise(length / 4 + 8, seed);
    let mut out = Vec::with_capacity(length + 32);
    for number in numbers.chunks_exact(2) {
        out.extend_from_slice(format!("row {} of {}; ", number[0], number[1] % 9).as_bytes());
        if out.len() >= length {
            break;
        }
    }
    out.truncate(length);
    out
}

/// Runs tests that take a [`World`] on each kind of store.
macro_rules! on_every_store {
    ($($name:ident),+ $(,)?) => {
        mod in_a_directory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::World::new().await).await;
            })+
        }
        mod in_a_bucket {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::World::in_a_bucket().await).await;
            })+
        }
    };
}
pub(crate) use on_every_store;

pub struct World {
    pub place: tempfile::TempDir,
    /// Where the files of the objects are.
    pub root: PathBuf,
    pub location: Location,
    pub stores: StoreAccess,
    pub seams: Seams,
    pub keyring: Keyring,
    pub team: TeamId,
    pub repository: Repository,
}

impl World {
    pub async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (root, location) = (place.path().join("repo"), location(&place));
        Self::at(place, root, location, StoreAccess::default()).await
    }

    /// The same in a bucket of a real S3 server, which keeps its objects as files.
    pub async fn in_a_bucket() -> Self {
        let server = s3::Server::of_process();
        let bucket = server.bucket(s3::Keeps::Objects);
        let root = server.files(&bucket).join("repo");
        Self::at(tempfile::tempdir().unwrap(), root, server.location(&bucket), server.access()).await
    }

    pub async fn at(place: tempfile::TempDir, root: PathBuf, location: Location, stores: StoreAccess) -> Self {
        let seams = seams();
        let keyring = Keyring::generate(&seams);
        let repository = Repository::create(&location, &stores, &keyring, &seams).await.unwrap();
        Self { team: TeamId::generate(&seams), place, root, location, stores, seams, keyring, repository }
    }

    pub fn location(&self) -> Location {
        self.location.clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub async fn backend(&self) -> Arc<dyn Backend> {
        backend::open(&self.location, &self.stores, &self.seams, false).await.unwrap()
    }

    /// Reads everything under the repository, by name.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let root = self.root.clone();
        let (mut open, mut found) = (vec![root.clone()], BTreeMap::new());
        while let Some(path) = open.pop() {
            for item in std::fs::read_dir(path).unwrap() {
                let item = item.unwrap();
                if item.file_type().unwrap().is_dir() {
                    open.push(item.path());
                } else {
                    let name = item.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                    found.insert(name, std::fs::read(item.path()).unwrap());
                }
            }
        }
        found
    }

    pub async fn begin(&self, base: Option<&Digest>) -> (WrappedKey, ImageAccess, ImageSession) {
        let key = self.repository.new_image_key(self.team).await.unwrap();
        let access = self.repository.access_to_write(&key, base).await.unwrap();
        let session = ImageSession::open(&access, &self.stores, &self.seams).await.unwrap();
        (key, access, session)
    }

    /// Saves an image with a configuration, a container and one data component of these streams.
    pub async fn save(&self, title: &str, streams: &[(&[u8], Vec<u8>)], base: Option<&Digest>) -> Saved {
        let (key, _, session) = self.begin(base).await;
        let config = put_config(&session, title).await;
        let (manifest, platforms) = put_container(&session, title).await;
        let data = put_data(&session, "messages", streams).await.unwrap();
        let record = record(self, title, &config, (manifest, &platforms), &data);
        let reference =
            self.repository.commit(&CommitRequest { record: record.clone(), key: key.clone() }).await.unwrap();
        Saved { reference, record, key, data }
    }

    pub async fn reopen(&self) -> Repository {
        Repository::open(&self.location(), &self.stores, &self.keyring, &self.seams).await.unwrap()
    }
}

pub struct Saved {
    pub reference: ImageRef,
    pub record: Record,
    pub key: WrappedKey,
    pub data: DataWritten,
}

pub fn location(place: &tempfile::TempDir) -> Location {
    Location::Directory { path: place.path().join("repo").to_str().unwrap().to_owned() }
}

pub async fn put_config(session: &ImageSession, title: &str) -> ConfigWritten {
    let files = BTreeMap::from([
        ("apps_v1/deployment/web.json".to_owned(), Bytes::from(format!("{{\"title\":{title:?}}}"))),
        ("v1/secret/login.json".to_owned(), Bytes::from_static(b"{\"password\":\"canary-5e1f\"}")),
    ]);
    session.put_config(&files).await.unwrap()
}

pub fn sha256(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Digest(digest.as_ref().try_into().unwrap())
}

pub async fn put_blob(session: &ImageSession, bytes: &[u8]) -> Digest {
    let digest = sha256(bytes);
    if !session.has_blob(&digest, bytes.len() as u64).await.unwrap() {
        let pieces: Vec<Result<Bytes, String>> = bytes.chunks(1000).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        session.put_blob(&digest, bytes.len() as u64, futures::stream::iter(pieces)).await.unwrap();
    }
    digest
}

/// A gzip file with one stored block: tools leave compressed layers as they are.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(content);
    let mut crc = u32::MAX;
    for byte in content {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&u32::from(length).to_le_bytes());
    out
}

/// A container of two platforms.
pub async fn put_container(session: &ImageSession, title: &str) -> (Digest, Vec<Platform>) {
    let mut platforms = Vec::new();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let tar = noise(
            5000,
            title
                .bytes()
                .chain(architecture.bytes())
                .fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))),
        );
        let layer = gzip(&tar);
        let config = format!(
            "{{\"architecture\":\"{architecture}\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            sha256(&tar)
        );
        let layer_digest = put_blob(session, &layer).await;
        let config_digest = put_blob(session, config.as_bytes()).await;
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config_digest}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"{layer_digest}\",\"size\":{}}}]}}",
            config.len(),
            layer.len()
        );
        let digest =
            session.put_manifest(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json").await.unwrap();
        entries.push(format!(
            "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"{digest}\",\"size\":{},\"platform\":{{\"architecture\":\"{architecture}\",\"os\":\"linux\"}}}}",
            manifest.len()
        ));
        platforms.push(Platform { platform: format!("linux/{architecture}"), manifest: digest });
    }
    let index = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{}]}}",
        entries.join(",")
    );
    let digest = session.put_manifest(index.as_bytes(), "application/vnd.oci.image.index.v1+json").await.unwrap();
    (digest, platforms)
}

pub async fn put_data(
    session: &ImageSession,
    component: &str,
    streams: &[(&[u8], Vec<u8>)],
) -> Result<DataWritten, Error> {
    let writer = session.component(&name(component), DataKind::MongoDb).await?;
    for (stream, content) in streams {
        let mut hasher = writer.item_hasher();
        let mut stream = writer.stream(stream).await?;
        for piece in content.chunks(300_007) {
            hasher.add(piece);
            stream.write(Bytes::copy_from_slice(piece)).await?;
        }
        let facts = StreamFacts {
            unit: "pieces".to_owned(),
            items: hasher.items(),
            item_hash: hasher.sum(),
            attributes: BTreeMap::from([("options".to_owned(), "{}".to_owned())]),
        };
        stream.finish(facts).await?;
    }
    writer.finish("{\"server\":\"6.0\"}").await
}

pub async fn read_stream(session: &ImageSession, manifest: &Digest, stream: &[u8]) -> Result<Vec<u8>, Error> {
    let reader = session.reader(manifest).await?;
    let pieces: Vec<Bytes> = reader.read(stream).await?.try_collect().await?;
    Ok(pieces.concat())
}

/// Reads everything of an image as a restore would; the first thing that is wrong is the error.
pub async fn read_all(
    repository: &Repository,
    seams: &Seams,
    reference: &ImageRef,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut all = BTreeMap::new();
    let access = repository.access_to_read(&reference.record).await?;
    let session = ImageSession::open(&access, repository.stores(), seams).await?;
    let record = session.read_record(&reference.record).await?;
    for component in &record.components {
        match &component.body {
            Body::Config { .. } => {
                for (path, content) in session.read_config(&component.manifest).await? {
                    all.insert(format!("config/{path}"), content.to_vec());
                }
            }
            Body::Container { platforms, .. } => {
                all.insert("container".to_owned(), session.get_manifest(&component.manifest).await?.0.to_vec());
                for platform in platforms {
                    let (bytes, _) = session.get_manifest(&platform.manifest).await?;
                    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                    let layers = value["layers"].as_array().unwrap().iter().chain([&value["config"]]);
                    for layer in layers {
                        let digest = layer["digest"].as_str().unwrap().parse().unwrap();
                        let pieces: Vec<Bytes> = session.get_blob(&digest).await?.try_collect().await?;
                        all.insert(digest.to_string(), pieces.concat());
                    }
                }
            }
            Body::Data { .. } => {
                let reader = session.reader(&component.manifest).await?;
                for stream in reader.streams().await? {
                    let mut content = Vec::new();
                    let mut pieces = reader.read(&stream.name).await?;
                    while let Some(piece) = pieces.next().await {
                        content.extend_from_slice(&piece?);
                    }
                    all.insert(format!("{}/{}", component.name, hex::encode(&stream.name)), content);
                }
            }
        }
    }
    Ok(all)
}

pub fn consistency() -> Consistency {
    Consistency {
        level: ConsistencyLevel::Snapshot,
        why: String::new(),
        changed: vec![],
        changed_count: 0,
        frozen_ms: 0,
    }
}

pub fn data_component(component: &str, data: &DataWritten) -> Component {
    let streams = data.streams.iter().map(|stream| StreamInfo {
        name: String::from_utf8_lossy(&stream.name).into_owned(),
        unit: stream.facts.unit.clone(),
        items: stream.facts.items,
        bytes: stream.bytes,
        content: hex::encode(stream.facts.item_hash),
    });
    Component {
        name: name(component),
        manifest: data.manifest,
        bytes: data.bytes,
        new_bytes: data.new_bytes,
        stored_bytes: data.stored_bytes,
        body: Body::Data {
            found: DataFound {
                name: name(component),
                kind: DataKind::MongoDb,
                version: Some("6.0".to_owned()),
                workload: None,
                pod: None,
                container: None,
                port: 27017,
                hosts: vec![],
                claims: vec![],
                bytes: None,
                streams: None,
                features: vec![],
                consistency: consistency(),
                bindings: vec![],
                rights: vec![],
            },
            version: Some("6.0".to_owned()),
            features: vec![],
            streams: streams.collect(),
            consistency: consistency(),
            notices: vec![],
        },
    }
}

pub fn empty_record(world: &World, title: &str) -> Record {
    Record {
        version: 1,
        image: ImageId::generate(&world.seams),
        name: title.to_owned(),
        labels: BTreeMap::from([("bug".to_owned(), "4711".to_owned())]),
        comment: "seen by accident".to_owned(),
        team: world.team,
        creator: "dana".to_owned(),
        created: Timestamp(1_795_447_854_000),
        application: "lets-chat".to_owned(),
        site: "desk".to_owned(),
        namespace: "lets-chat".to_owned(),
        selector: None,
        components: vec![],
        left_out: vec![],
        requirements: Requirements { version: 1, ..Requirements::default() },
        lineage: Lineage::default(),
        instant: Default::default(),
        config_digest: String::new(),
    }
}

pub fn record(
    world: &World,
    title: &str,
    config: &ConfigWritten,
    container: (Digest, &[Platform]),
    data: &DataWritten,
) -> Record {
    let mut record = empty_record(world, title);
    record.config_digest = config.config_digest.clone();
    record.components = components(config, container, data);
    record
}

pub fn components(config: &ConfigWritten, container: (Digest, &[Platform]), data: &DataWritten) -> Vec<Component> {
    vec![
        Component {
            name: name("config"),
            manifest: config.manifest,
            bytes: config.bytes,
            new_bytes: config.bytes,
            stored_bytes: config.stored_bytes,
            body: Body::Config { objects: 2, kinds: vec!["apps/v1 Deployment".to_owned(), "v1 Secret".to_owned()] },
        },
        Component {
            name: name("web"),
            manifest: container.0,
            bytes: 10_000,
            new_bytes: 10_000,
            stored_bytes: 10_000,
            body: Body::Container {
                found: ContainerFound {
                    name: name("web"),
                    repository: "registry.example/web".to_owned(),
                    tag: Some("1.0".to_owned()),
                    digest: container.0,
                    used_by: vec![],
                    pull_secrets: vec![],
                },
                platforms: container.1.to_vec(),
            },
        },
        data_component("messages", data),
    ]
}

pub fn now() -> CollectOptions {
    CollectOptions { grace: Duration::ZERO, pin_expiry: Duration::from_secs(3600), wait: true }
}

pub fn operation(world: &World) -> OperationId {
    OperationId::generate(&world.seams)
}
