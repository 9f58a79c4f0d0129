//! OCI manifests and indexes, as far as saved images use them.

use std::collections::BTreeMap;

use ocopea_protocol::{image::DataKind, names::Digest};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub(crate) const IMAGE: &str = "application/vnd.ocopea.image.v1";
pub(crate) const RECORD: &str = "application/vnd.ocopea.record.v1";
pub(crate) const CONFIG: &str = "application/vnd.ocopea.config.v1";
pub(crate) const CONFIG_TAR: &str = "application/vnd.ocopea.config.tar.zstd.v1";
pub(crate) const TOC: &str = "application/vnd.ocopea.toc.v1";
pub(crate) const PACK: &str = "application/vnd.ocopea.pack.v1";
pub(crate) const CONTAINER_INDEX: &str = "application/vnd.ocopea.container-index.v1+json";
/// Annotation of a record's manifest: the wrapped image key, as JSON.
pub(crate) const KEY_ANNOTATION: &str = "io.github.ocopea.image-key";
/// Annotation of index entries: which component it is.
pub(crate) const COMPONENT_ANNOTATION: &str = "io.github.ocopea.component";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The empty JSON object that stands where OCI wants a blob and there is none.
pub(crate) const EMPTY_BLOB: &[u8] = b"{}";

/// A content descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, artifact_type: None, digest, size, platform: None, annotations: BTreeMap::new() }
    }

    pub(crate) fn empty() -> Self {
        Self::new(EMPTY, crate::store::sha256(EMPTY_BLOB), EMPTY_BLOB.len() as u64)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// From `OS/ARCHITECTURE[/VARIANT]`.
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = text.split('/');
        let os = parts.next().filter(|os| !os.is_empty()).unwrap_or("linux").to_owned();
        let architecture = parts.next().unwrap_or("unknown").to_owned();
        Self { architecture, os, variant: parts.next().map(str::to_owned) }
    }
}

/// An image manifest: a container's, or an artifact's of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An artifact; one without layers gets the empty one, as OCI 1.1 advises.
    pub(crate) fn artifact(kind: &str, config: Descriptor, mut layers: Vec<Descriptor>) -> Self {
        if layers.is_empty() {
            layers.push(Descriptor::empty());
        }
        Self {
            schema_version: 2,
            media_type: Some(MANIFEST.to_owned()),
            artifact_type: Some(kind.to_owned()),
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }

    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// An index: a saved image's, a container's of several platforms, or the layout's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Index {
    pub(crate) fn new(artifact_type: Option<&str>, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(INDEX.to_owned()),
            artifact_type: artifact_type.map(str::to_owned),
            manifests,
            annotations: BTreeMap::new(),
        }
    }
}

/// The artifact type of a data component.
pub(crate) fn data_type(kind: DataKind) -> String {
    format!("application/vnd.ocopea.data.{kind}.v1")
}

/// The kind of data out of an artifact type.
pub(crate) fn data_kind(artifact_type: Option<&str>) -> Option<&str> {
    artifact_type?.strip_prefix("application/vnd.ocopea.data.")?.strip_suffix(".v1")
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Misuse(format!("not JSON: {error}")))
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::damaged(name, error))
}

/// Whether bytes are an index or a manifest, and the media type that they have.
pub(crate) fn media_type(name: &str, bytes: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = parse(name, bytes)?;
    let told = shape.media_type.filter(|told| [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&told.as_str()));
    Ok(told.unwrap_or_else(|| if shape.manifests.is_some() { INDEX } else { MANIFEST }.to_owned()))
}

/// Whether a media type is that of an index.
pub(crate) fn is_index(media_type: &str) -> bool {
    media_type == INDEX || media_type == DOCKER_LIST
}
