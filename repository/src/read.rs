//! Reading a data component.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{Error, ItemHasher, Result};

/// Reads one data component. Cheap to clone.
#[derive(Clone)]
pub struct DataReader {}

/// A stream of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    /// Its name.
    pub name: Vec<u8>,
    /// Raw bytes.
    pub bytes: u64,
    /// What its items are.
    pub unit: String,
    /// How many.
    pub items: u64,
    /// The hash over the set of its items.
    pub item_hash: [u8; 32],
    /// The driver's attributes.
    pub attributes: BTreeMap<String, String>,
}

impl DataReader {
    /// The driver's facts, as given when the component was finished.
    pub fn facts(&self) -> &str {
        ""
    }

    /// Its kind: `mongodb`, `postgresql`, `volume` …
    pub fn kind(&self) -> &str {
        ""
    }

    /// Its streams, by name.
    pub async fn streams(&self) -> Result<Vec<StreamEntry>> {
        Err(Error::Stopped)
    }

    /// Reads a stream from its beginning, in pieces of at most some MiB, ahead of the caller. Every piece was
    /// decrypted and verified before it comes.
    pub async fn read(&self, name: &[u8]) -> Result<BoxStream<'static, Result<Bytes>>> {
        let _ = name;
        Err(Error::Stopped)
    }

    /// An empty set for the content hash of a stream, keyed as at the save.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&ocopea_protocol::secret::Secret32([0; 32]))
    }
}
