//! What a task needs to read or write one saved image, and what it learnt of it.

use serde::{Deserialize, Serialize};

use crate::{
    names::{ComponentName, Digest},
    secret::{Secret, Secret32},
    time::Timestamp,
};

/// Where a copy repository lies. Stands in rows and messages: never with a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Location {
    /// A directory of this machine.
    Directory {
        /// Its absolute path.
        path: String,
    },
    /// A bucket of a service that speaks S3, or what lies below a prefix of it.
    S3 {
        /// The service: `https://HOST[:PORT]`, without a path.
        endpoint: String,
        /// The region that requests are signed for.
        region: String,
        /// The bucket.
        bucket: String,
        /// What stands in front of every object's name, without '/' at either end; empty for the whole bucket.
        prefix: String,
        /// Whether the bucket stands in the path (`HOST/BUCKET/…`) and not in the host's name (`BUCKET.HOST/…`).
        path_style: bool,
    },
}

/// Keys of a store. Travels sealed, stands in no row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreKeys {
    /// The access key's id. Not secret.
    pub id: String,
    /// What requests are signed with.
    pub secret: Secret,
    /// Goes with keys that were lent for a time.
    pub token: Option<Secret>,
    /// When they end, if they do.
    pub expires: Option<Timestamp>,
}

/// What an agent gets to read or write one image: the keys of this image and its base, nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAccess {
    /// The repository.
    pub location: Location,
    /// Encrypts tables of contents, configuration and record of this image.
    pub image_key: Secret32,
    /// Keys the chunk hashes, item hashes and configuration digest of the team; opens nothing.
    pub hash_key: Secret32,
    /// The one image whose chunks may be used again.
    pub base: Option<BaseAccess>,
    /// The keys of the store, where agents have none of their own.
    pub store_keys: Option<StoreKeys>,
    /// What each process may ask of the store.
    #[serde(default)]
    pub limits: StoreLimits,
}

/// What one process may ask of a store. Nothing: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreLimits {
    /// Requests at the same time.
    pub requests: Option<u32>,
    /// Bytes per second to it.
    pub upload: Option<u64>,
    /// Bytes per second from it.
    pub download: Option<u64>,
}

/// An image whose chunks may be referenced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseAccess {
    /// Its key.
    pub image_key: Secret32,
    /// Its components and the digests of their manifests.
    pub components: Vec<(ComponentName, Digest)>,
}

/// What kind of data service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataKind {
    /// A server that speaks MongoDB's wire protocol.
    MongoDb,
    /// A PostgreSQL server.
    PostgreSql,
    /// The files of a persistent volume claim.
    Volume,
}

impl DataKind {
    /// The word used in names, media types and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MongoDb => "mongodb",
            Self::PostgreSql => "postgresql",
            Self::Volume => "volume",
        }
    }
}

impl std::fmt::Display for DataKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far a copy of one data service is from one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsistencyLevel {
    /// Atomic, or every writer was paused for the copy.
    Snapshot,
    /// An atomic snapshot of a running writer.
    CrashConsistent,
    /// Read while it was written.
    Inconsistent,
}

/// A level with its reason and what is known of changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consistency {
    /// The level.
    pub level: ConsistencyLevel,
    /// Why, for people: "single server: no snapshot (use --freeze)"; empty for a plain snapshot.
    pub why: String,
    /// What changed while it was read, at most a hundred names.
    pub changed: Vec<String>,
    /// How many changed in all.
    pub changed_count: u64,
    /// For how long writes were held, in milliseconds; 0 without `--freeze`.
    pub frozen_ms: u64,
}

/// One stream (collection, table, volume …) as it was saved or counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Its name for people: `lets_chat.messages`, `public.users`; unique in its component.
    pub name: String,
    /// What its items are: `documents`, `rows`, `files` …
    pub unit: String,
    /// How many.
    pub items: u64,
    /// Raw bytes.
    pub bytes: u64,
    /// Hash over the set of items, whatever their order, keyed per team: 64 hexadecimal digits.
    pub content: String,
}

/// A component as it lies in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentCopied {
    /// Its name.
    pub name: ComponentName,
    /// The manifest to name in the image.
    pub manifest: Digest,
    /// Raw bytes of it.
    pub bytes: u64,
    /// Raw bytes that no earlier image had.
    pub new_bytes: u64,
    /// Bytes that this copy added to the repository.
    pub stored_bytes: u64,
}
