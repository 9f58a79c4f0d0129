//! An agent's view of the repository: the keys of one image and of its base, nothing else.

use std::{collections::BTreeMap, fmt::Display};

use bytes::Bytes;
use futures::{Stream, stream::BoxStream};
use ocopea_protocol::{
    image::{DataKind, ImageAccess},
    names::{ComponentName, Digest},
    seams::Seams,
};

use crate::{DataReader, DataWriter, Error, ItemHasher, Record, Result};

/// Reads and writes one image. Cheap to clone.
#[derive(Clone)]
pub struct ImageSession {
    seams: Seams,
}

/// The configuration component as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWritten {
    /// Its manifest.
    pub manifest: Digest,
    /// Digest over the canonical plaintext, keyed per team: 64 hexadecimal digits.
    pub config_digest: String,
    /// Raw bytes.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
}

fn pending<T>() -> Result<T> {
    Err(Error::Stopped)
}

impl ImageSession {
    /// Opens the repository for one image.
    pub async fn open(access: &ImageAccess, seams: &Seams) -> Result<Self> {
        let _ = access;
        Ok(Self { seams: seams.clone() })
    }

    /// Begins (or, after a crash, begins again) a data component. What an earlier attempt stored is used again.
    pub async fn component(&self, name: &ComponentName, kind: DataKind) -> Result<DataWriter> {
        let _ = (name, kind, &self.seams);
        pending()
    }

    /// Opens a data component for reading.
    pub async fn reader(&self, manifest: &Digest) -> Result<DataReader> {
        let _ = manifest;
        pending()
    }

    /// An empty set for the content hash of a stream.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&ocopea_protocol::secret::Secret32([0; 32]))
    }

    /// Writes the configuration: one file per object, by path. Read back and verified when this returns.
    pub async fn put_config(&self, files: &BTreeMap<String, Bytes>) -> Result<ConfigWritten> {
        let _ = files;
        pending()
    }

    /// The digest that [`Self::put_config`] would give, without writing.
    pub fn config_digest(&self, files: &BTreeMap<String, Bytes>) -> Result<String> {
        let _ = files;
        pending()
    }

    /// Reads the configuration.
    pub async fn read_config(&self, manifest: &Digest) -> Result<BTreeMap<String, Bytes>> {
        let _ = manifest;
        pending()
    }

    /// Reads and decrypts the image's record.
    pub async fn read_record(&self, record: &Digest) -> Result<Record> {
        let _ = record;
        pending()
    }

    /// Whether a blob (a container's layer or config) is there and stays there.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let _ = digest;
        pending()
    }

    /// Stores a blob as it comes. It becomes visible only when size and digest are what was announced.
    pub async fn put_blob<E: Display>(
        &self,
        digest: &Digest,
        size: u64,
        bytes: impl Stream<Item = std::result::Result<Bytes, E>> + Send + Unpin,
    ) -> Result<()> {
        let _ = (digest, size, bytes);
        pending()
    }

    /// Reads a blob. The last piece comes only when the digest of the whole is right; else an error comes instead.
    pub async fn get_blob(&self, digest: &Digest) -> Result<BoxStream<'static, Result<Bytes>>> {
        let _ = digest;
        pending()
    }

    /// Stores a container's manifest or index, unchanged.
    pub async fn put_manifest(&self, bytes: &[u8], media_type: &str) -> Result<Digest> {
        let _ = (bytes, media_type);
        pending()
    }

    /// Reads a container's manifest or index, and its media type.
    pub async fn get_manifest(&self, digest: &Digest) -> Result<(Bytes, String)> {
        let _ = digest;
        pending()
    }
}
