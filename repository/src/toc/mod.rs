//! Tables of contents: which streams a component has, and which chunks each consists of.
//!
//! A table of contents is a sealed object of pages. *Chunk pages* list the chunks of streams in their order;
//! *index pages* list every distinct chunk sorted by hash, in runs, so that a later save can look chunks up without
//! reading it all; *pack pages* and *stream pages* list packs and streams. The last page, the root, says where all
//! others are. A reader takes the root from the end, then only what it needs.

mod read;
mod write;

use std::collections::BTreeMap;

use ocopea_protocol::names::Digest;
use serde::{Deserialize, Serialize};

pub(crate) use read::TocReader;
pub(crate) use write::TocWriter;

use crate::write::StreamFacts;

pub(crate) const MAGIC: &[u8; 8] = b"OCOPTOC1";
pub(crate) const END: &[u8; 8] = b"OCOPTOCE";
/// Sealed length of the root, then magic.
pub(crate) const FOOTER: usize = 12;
pub(crate) const VERSION: u32 = 1;
/// The nonce of the root: no page has this number.
pub(crate) const ROOT_COUNTER: u64 = u64::MAX;
/// Chunks in a full page.
pub(crate) const PAGE_ROWS: usize = 1024;
/// Bytes after which a page of JSON rows is closed.
pub(crate) const PAGE_BYTES: usize = 64 << 10;
/// Longest page that is read; the root may be longer.
pub(crate) const LONGEST_PAGE: u32 = 32 << 20;
pub(crate) const LONGEST_ROOT: u32 = 96 << 20;
/// Most streams of one component.
pub(crate) const MOST_STREAMS: usize = 200_000;
/// Most packs of one component.
pub(crate) const MOST_PACKS: usize = 200_000;

/// Kinds of pages: their names authenticate them, so that none passes as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Chunks,
    Index,
    Packs,
    Streams,
    Root,
}

impl Section {
    pub(crate) fn aad(self) -> &'static [u8] {
        match self {
            Self::Chunks => b"ocopea/toc/v1/chunks",
            Self::Index => b"ocopea/toc/v1/index",
            Self::Packs => b"ocopea/toc/v1/packs",
            Self::Streams => b"ocopea/toc/v1/streams",
            Self::Root => b"ocopea/toc/v1/root",
        }
    }
}

/// The last page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) version: u32,
    /// `mongodb`, `postgresql`, `volume` …
    pub(crate) kind: String,
    /// The driver's own.
    pub(crate) facts: String,
    /// Raw bytes of all streams.
    pub(crate) bytes: u64,
    /// Sealed length of every page but the root, in order; the first begins behind the header.
    pub(crate) pages: Vec<u32>,
    /// Page numbers of chunk pages; streams name them by their place in this list.
    pub(crate) chunks: Vec<u32>,
    /// Sorted runs.
    pub(crate) runs: Vec<Run>,
    /// Page numbers of pack pages.
    pub(crate) packs: Vec<u32>,
    /// Page numbers of stream pages.
    pub(crate) streams: Vec<u32>,
}

/// A list of distinct chunks sorted by hash.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Page numbers.
    pub(crate) pages: Vec<u32>,
    /// The first hash of each page, in hexadecimal.
    #[serde(with = "hex_hashes")]
    pub(crate) first: Vec<[u8; 32]>,
}

/// A pack of a component.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PackRow {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// In hexadecimal.
    #[serde(with = "hex_key")]
    pub(crate) key: ocopea_protocol::secret::Secret32,
    /// Chunks in the pack.
    pub(crate) chunks: u32,
    /// Bytes of it that this component uses.
    pub(crate) live: u64,
}

/// A stream of a component.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamRow {
    /// In Base64: names are any bytes.
    #[serde(with = "base64_bytes")]
    pub(crate) name: Vec<u8>,
    pub(crate) bytes: u64,
    pub(crate) unit: String,
    pub(crate) items: u64,
    /// In hexadecimal.
    #[serde(with = "hex_hash")]
    pub(crate) item_hash: [u8; 32],
    pub(crate) attributes: BTreeMap<String, String>,
    /// Chunk page (by its place in the root's list), first row, number of rows.
    pub(crate) segments: Vec<(u32, u32, u32)>,
}

impl StreamRow {
    pub(crate) fn facts(&self) -> StreamFacts {
        StreamFacts {
            unit: self.unit.clone(),
            items: self.items,
            item_hash: self.item_hash,
            attributes: self.attributes.clone(),
        }
    }
}

mod hex_hash {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(hash))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    pub(super) fn parse(text: &str) -> Result<[u8; 32], hex::FromHexError> {
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map(|()| hash)
    }
}

mod hex_key {
    use ocopea_protocol::secret::Secret32;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &Secret32, serializer: S) -> Result<S::Ok, S::Error> {
        super::hex_hash::serialize(&key.0, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret32, D::Error> {
        super::hex_hash::deserialize(deserializer).map(Secret32)
    }
}

mod hex_hashes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hashes: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(hex::encode))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<[u8; 32]>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| super::hex_hash::parse(text).map_err(D::Error::custom)).collect()
    }
}

mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ocopea_protocol::secret::Secret32;

    use super::*;
    use crate::{backend::DirectoryBackend, chunk::Chunk, store::Store, testing::seams};

    #[tokio::test]
    async fn a_page_with_more_rows_than_there_may_be_is_damage() {
        let place = tempfile::tempdir().unwrap();
        let backend = DirectoryBackend::open(place.path(), seams(), true).await.unwrap();
        let store = Store::new(Arc::new(backend), seams());
        let key = Secret32([3; 32]);
        let chunk = Chunk { hash: [1; 32], pack: 0, ordinal: 0, offset: 8, stored: 17, raw: 1, flags: 0 };
        let mut writer = TocWriter::begin(&store, &key, "volume").await.unwrap();
        let fine = writer.full_page(&[chunk; PAGE_ROWS]).await.unwrap();
        let long = writer.full_page(&[chunk; PAGE_ROWS + 1]).await.unwrap();
        let (digest, size) = writer.finish("{}", 0).await.unwrap();
        let reader = TocReader::open(&store, &key, &digest, size).await.unwrap();
        assert_eq!(reader.segment(fine).await.unwrap().len(), PAGE_ROWS);
        assert!(matches!(reader.segment(long).await, Err(crate::Error::Damaged { .. })));
    }
}
