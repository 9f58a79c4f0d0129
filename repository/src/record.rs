//! The record: what a saved image means. Its manifest's digest is the image's identity.

use std::collections::BTreeMap;

use ocopea_protocol::{
    ids::{ImageId, TeamId},
    image::{Consistency, DataKind, StreamInfo},
    inventory::{ContainerFound, DataFound},
    names::{ComponentName, Digest},
    needs::Need,
    secret::Secret32,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    oci, sealed,
    store::{LONGEST_MANIFEST, Store, blob_name},
};

/// The version of [`Record`] that this release writes, and the newest that it reads.
pub const RECORD_VERSION: u32 = 1;

/// Everything about a saved image but its bytes. Stored encrypted, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The image's id in catalogs, and the name of its ref.
    pub image: ImageId,
    /// Its name for people.
    pub name: String,
    /// Labels as first given.
    pub labels: BTreeMap<String, String>,
    /// Comment as first given.
    pub comment: String,
    /// Whose it is.
    pub team: TeamId,
    /// Who saved it: the user's name.
    pub creator: String,
    /// When its snapshot was taken; for people.
    pub created: Timestamp,
    /// What was saved: the namespace, or the selector's value.
    pub application: String,
    /// The site of origin.
    pub site: String,
    /// The namespace of origin.
    pub namespace: String,
    /// The selector within it.
    pub selector: Option<String>,
    /// Its components, in the order in which they are shown.
    pub components: Vec<Component>,
    /// What was left out by name.
    pub left_out: Vec<LeftOut>,
    /// What a site must have.
    pub requirements: Requirements,
    /// Where it came from.
    pub lineage: Lineage,
    /// How well the data services agree in time.
    pub instant: Instant,
    /// Digest over the canonical configuration, keyed per team: 64 hexadecimal digits.
    pub config_digest: String,
}

/// One component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its name, unique in the image.
    pub name: ComponentName,
    /// Its manifest (a container's may be a multi-platform index).
    pub manifest: Digest,
    /// Raw bytes.
    pub bytes: u64,
    /// Raw bytes that no earlier image had.
    pub new_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// What it is.
    pub body: Body,
}

/// What a component is. To add a kind: a variant here, and a row in `docs/repository-format.md`.
#[expect(clippy::large_enum_variant, reason = "an image has few components; a box would only be in the way")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// Kubernetes objects.
    Config {
        /// How many.
        objects: u64,
        /// API groups, versions and kinds.
        kinds: Vec<String>,
    },
    /// A container image.
    Container {
        /// As it was found.
        found: ContainerFound,
        /// Its manifests by platform (`linux/amd64`).
        platforms: Vec<Platform>,
    },
    /// A data service.
    Data {
        /// As it was found.
        found: DataFound,
        /// The server's version; absent when it is unknown.
        version: Option<String>,
        /// What a target must have.
        features: Vec<String>,
        /// Its streams.
        streams: Vec<StreamInfo>,
        /// How consistent it is in itself.
        consistency: Consistency,
        /// What is outside the copy and worth knowing.
        notices: Vec<String>,
    },
}

/// A container's manifest for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `OS/ARCHITECTURE[/VARIANT]`.
    pub platform: String,
    /// The image manifest.
    pub manifest: Digest,
}

/// Something of the application that is not in the image, because the user said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The name that was given.
    pub name: String,
    /// What it is.
    pub what: String,
    /// Why it could not be saved; empty when it could have been.
    pub why: String,
}

/// What a site must have to run the image. Unknown is `null`, never a guess.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// Version of this part: 2; 1 where `needs` was not noted.
    pub version: u32,
    /// `linux/amd64` …: a site needs one that every container has.
    pub platforms: Vec<String>,
    /// `apps/v1 Deployment` …
    pub kinds: Vec<String>,
    /// Data services.
    pub data: Vec<DataRequirement>,
    /// Raw bytes of all data services.
    pub data_bytes: Option<u64>,
    /// Compressed bytes of all container images.
    pub container_bytes: Option<u64>,
    /// The version of Kubernetes that it ran on.
    pub kubernetes: Option<String>,
    /// What else a site must have: classes, room, nodes, host names.
    #[serde(default, deserialize_with = "understood", skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Need>,
}

/// Needs that this release knows; a newer one says by its version that there may be others.
fn understood<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Need>, D::Error> {
    let all: Vec<serde_json::Value> = Deserialize::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|need| serde_json::from_value(need).ok()).collect())
}

/// What one data service needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataRequirement {
    /// The component.
    pub component: ComponentName,
    /// Its kind.
    pub kind: DataKind,
    /// Version of the server that was saved.
    pub version: Option<String>,
    /// Features used.
    pub features: Vec<String>,
    /// Raw bytes.
    pub bytes: Option<u64>,
}

/// Where an image came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The record that the saved environment had been restored from.
    pub restored_from: Option<Digest>,
    /// The record whose chunks were used again.
    pub base: Option<Digest>,
    /// The environment that was saved, when Ocopea had made it.
    pub environment: Option<String>,
}

/// The one instant of all data services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instant {
    /// Widest possible difference between two snapshots, in microseconds; absent without data services.
    pub skew_us: Option<u64>,
    /// Per data service: when its snapshot was opened, as a bracket on the coordinator's monotonic clock.
    pub opened: Vec<Opened>,
}

/// When one snapshot was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The component.
    pub component: ComponentName,
    /// Not before, in microseconds since the first request.
    pub from_us: u64,
    /// Not after, likewise.
    pub to_us: u64,
}

impl Record {
    /// The component of this name.
    pub fn component(&self, name: &ComponentName) -> Option<&Component> {
        self.components.iter().find(|component| component.name == *name)
    }

    /// Raw bytes of all components.
    pub fn bytes(&self) -> u64 {
        self.components.iter().map(|component| component.bytes).sum()
    }

    /// Names and manifests of the data components: what a later save takes as its base.
    pub fn data_manifests(&self) -> Vec<(ComponentName, Digest)> {
        let data = self.components.iter().filter(|c| matches!(c.body, Body::Data { .. }));
        data.map(|component| (component.name.clone(), component.manifest)).collect()
    }
}

/// Reads a record: manifest, then the encrypted config blob that it names.
pub(crate) async fn read(store: &Store, image_key: &Secret32, digest: &Digest) -> Result<Record> {
    let name = blob_name(digest);
    let manifest: oci::Manifest = oci::parse(&name, &store.get_blob(digest, LONGEST_MANIFEST).await?)?;
    if manifest.artifact_type.as_deref() != Some(oci::IMAGE) {
        return Err(Error::damaged(&name, "it is not the manifest of a record"));
    }
    let bytes = store.get_blob(&manifest.config.digest, LONGEST_MANIFEST).await?;
    parse(image_key, &blob_name(&manifest.config.digest), &bytes)
}

/// Decrypts and parses a record's blob.
pub(crate) fn parse(image_key: &Secret32, name: &str, bytes: &[u8]) -> Result<Record> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let plain = sealed::open(image_key, sealed::RECORD, name, bytes)?;
    let damaged = |error: serde_json::Error| Error::damaged(name, error);
    let found = serde_json::from_slice::<Versioned>(&plain).map_err(damaged)?.version;
    if found > RECORD_VERSION {
        return Err(Error::Newer { object: name.to_owned(), found, known: RECORD_VERSION });
    }
    serde_json::from_slice(&plain).map_err(damaged)
}
