//! Writing a data component.

use std::collections::BTreeMap;

use bytes::Bytes;
use ocopea_protocol::names::Digest;

use crate::{Error, ItemHasher, Result};

/// Writes one data component. Streams are written at once by as many tasks as like to.
pub struct DataWriter {}

/// Writes one stream.
pub struct StreamWriter {}

/// What a driver knows of a stream when it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFacts {
    /// What its items are: `documents`, `rows`, `files` …
    pub unit: String,
    /// How many.
    pub items: u64,
    /// [`ItemHasher::sum`]; the order of items doesn't matter.
    pub item_hash: [u8; 32],
    /// Whatever the driver wants to know of this stream when it loads it.
    pub attributes: BTreeMap<String, String>,
}

/// A stream as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSummary {
    /// Its name.
    pub name: Vec<u8>,
    /// Raw bytes.
    pub bytes: u64,
    /// Raw bytes that were in neither this image nor its base.
    pub new_bytes: u64,
    /// Facts as given.
    pub facts: StreamFacts,
}

/// A data component as it lies in the repository: read back and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataWritten {
    /// Its manifest.
    pub manifest: Digest,
    /// Raw bytes.
    pub bytes: u64,
    /// Raw bytes that were new.
    pub new_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Its streams, by name.
    pub streams: Vec<StreamSummary>,
}

/// How far a component is; read at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Raw bytes taken.
    pub bytes: u64,
    /// Raw bytes that were new.
    pub new_bytes: u64,
    /// Bytes read back and verified.
    pub verified_bytes: u64,
}

impl DataWriter {
    /// Begins a stream. Names are any bytes, at most 4096, and unique within the component.
    pub async fn stream(&self, name: &[u8]) -> Result<StreamWriter> {
        let _ = name;
        Err(Error::Stopped)
    }

    /// An empty set for the content hash of a stream.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&ocopea_protocol::secret::Secret32([0; 32]))
    }

    /// How far it is.
    pub fn written(&self) -> Written {
        Written::default()
    }

    /// Ends the component: every stream must have been finished. `facts` is the driver's own JSON, given back at
    /// the load. Every byte was read back and verified when this returns.
    pub async fn finish(self, facts: &str) -> Result<DataWritten> {
        let _ = facts;
        Err(Error::Stopped)
    }
}

impl StreamWriter {
    /// Appends. Waits while too much is under way.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let _ = bytes;
        Err(Error::Stopped)
    }

    /// Ends the stream. A stream that is dropped instead spoils its component: `finish` refuses.
    pub async fn finish(self, facts: StreamFacts) -> Result<StreamSummary> {
        let _ = facts;
        Err(Error::Stopped)
    }
}
