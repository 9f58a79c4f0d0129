//! Writing a data component.
//!
//! Streams are cut into chunks; chunks are hashed and looked up, new ones compressed, on the compute pool, some
//! batches at once; one lock per component gives them their places in packs; finished packs are synced and read
//! back while the next are filled. What is under way is bounded for the whole process.

mod base;
mod packer;
mod stream;
mod table;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ocopea_protocol::{
    image::DataKind,
    names::{ComponentName, Digest},
};

pub use stream::StreamWriter;

use crate::{
    Error, ItemHasher, Result,
    chunk::Chunk,
    oci::{self, Descriptor},
    session::Core,
    toc::{MOST_STREAMS, Section, StreamRow, TocWriter},
};

/// Longest name of a stream.
const LONGEST_NAME: usize = 4096;
/// Longest facts of a driver.
const LONGEST_FACTS: usize = 16 << 20;
/// Longest attributes of one stream, all together.
const LONGEST_ATTRIBUTES: usize = 4 << 20;

/// Writes one data component. Streams are written at once by as many tasks as like to.
pub struct DataWriter {
    shared: Arc<Shared>,
}

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
    /// Stored bytes that were read back and verified.
    pub verified_bytes: u64,
}

/// What streams and packs of one component have in common.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    kind: DataKind,
    reusable: base::Reusable,
    table: Mutex<table::Table>,
    packer: tokio::sync::Mutex<packer::Packer>,
    toc: tokio::sync::Mutex<Option<TocWriter>>,
    streams: Mutex<BTreeMap<Vec<u8>, Slot>>,
    failure: Mutex<Option<Error>>,
    bytes: AtomicU64,
    new_bytes: AtomicU64,
    verified_bytes: AtomicU64,
}

/// A stream of the component.
enum Slot {
    /// Being written, or given up.
    Open,
    /// Written; raw bytes that were new, and its row.
    Finished(u64, StreamRow),
}

impl Shared {
    /// Where the component has a chunk, if it has it. Locks and lets go at once.
    pub(crate) fn known(&self, hash: &[u8; 32]) -> Option<Chunk> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).get(hash)
    }

    /// Adds a chunk; a full generation comes back, to be written as a run.
    pub(crate) fn add(&self, chunk: &Chunk) -> Option<Vec<Chunk>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk)
    }

    /// Remembers the first failure: every stream of the component then fails with it.
    pub(crate) fn fail(&self, error: &Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.again());
    }

    fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.again()),
            None => Ok(()),
        }
    }

    pub(crate) fn count_verified(&self, bytes: u64) {
        self.verified_bytes.fetch_add(bytes, Relaxed);
    }
}

impl DataWriter {
    pub(crate) async fn begin(core: Arc<Core>, name: &ComponentName, kind: DataKind) -> Result<Self> {
        let base = core.base.as_ref().and_then(|base| {
            let component = base.components.iter().find(|(component, _)| component == name);
            component.map(|(_, manifest)| (&base.image_key, manifest))
        });
        let reusable = base::Reusable::open(&core, base).await?;
        let toc = TocWriter::begin(&core.store, &core.image_key, kind.as_str()).await?;
        let shared = Shared {
            kind,
            reusable,
            table: Mutex::default(),
            packer: tokio::sync::Mutex::new(packer::Packer::new()),
            toc: tokio::sync::Mutex::new(Some(toc)),
            streams: Mutex::default(),
            failure: Mutex::default(),
            bytes: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
            verified_bytes: AtomicU64::new(0),
            core,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Begins a stream. Names are any bytes, at most 4096, and unique within the component.
    pub async fn stream(&self, name: &[u8]) -> Result<StreamWriter> {
        self.shared.check()?;
        if name.len() > LONGEST_NAME {
            let limit = LONGEST_NAME as u64;
            return Err(Error::Limit {
                what: "the length of a stream's name".to_owned(),
                found: name.len() as u64,
                limit,
            });
        }
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() >= MOST_STREAMS {
            let limit = MOST_STREAMS as u64;
            return Err(Error::Limit {
                what: "number of streams of one component".to_owned(),
                found: limit + 1,
                limit,
            });
        }
        if streams.contains_key(name) {
            return Err(Error::Misuse(format!("stream {:?} is written twice", String::from_utf8_lossy(name))));
        }
        streams.insert(name.to_vec(), Slot::Open);
        Ok(StreamWriter::new(self.shared.clone(), name.to_vec()))
    }

    /// An empty set for the content hash of a stream.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&self.shared.core.hash_key)
    }

    /// How far it is.
    pub fn written(&self) -> Written {
        Written {
            bytes: self.shared.bytes.load(Relaxed),
            new_bytes: self.shared.new_bytes.load(Relaxed),
            verified_bytes: self.shared.verified_bytes.load(Relaxed),
        }
    }

    /// Ends the component: every stream must have been finished. `facts` is the driver's own JSON, given back at
    /// the load. Every byte was read back and verified when this returns.
    pub async fn finish(self, facts: &str) -> Result<DataWritten> {
        let shared = self.shared;
        shared.check()?;
        if facts.len() > LONGEST_FACTS {
            let limit = LONGEST_FACTS as u64;
            return Err(Error::Limit {
                what: "the length of a driver's facts".to_owned(),
                found: facts.len() as u64,
                limit,
            });
        }
        let slots = std::mem::take(&mut *shared.streams.lock().unwrap_or_else(PoisonError::into_inner));
        let mut rows = Vec::with_capacity(slots.len());
        let mut streams = Vec::with_capacity(slots.len());
        for (name, slot) in slots {
            let Slot::Finished(new_bytes, row) = slot else {
                return Err(Error::Misuse(format!("stream {:?} was not finished", String::from_utf8_lossy(&name))));
            };
            streams.push(StreamSummary { name, bytes: row.bytes, new_bytes, facts: row.facts() });
            rows.push(row);
        }
        let (packs, stored) = shared.packer.lock().await.finish(&shared).await?;
        shared.check()?;
        let layers = packs.iter().map(|row| Descriptor::new(oci::PACK, row.digest, row.size)).collect();
        let bytes = shared.bytes.load(Relaxed);
        let rest = shared.table.lock().unwrap_or_else(PoisonError::into_inner).rest();
        let mut toc = shared.toc.lock().await.take().ok_or(Error::Stopped)?;
        toc.run(rest).await?;
        toc.json_rows(Section::Packs, &packs).await?;
        toc.json_rows(Section::Streams, &rows).await?;
        let (toc, toc_size) = toc.finish(facts, bytes).await?;
        let config = Descriptor::new(oci::TOC, toc, toc_size);
        if packs.is_empty() {
            shared.core.store.put_blob(oci::EMPTY_BLOB.into()).await?;
        }
        let manifest = oci::to_json(&oci::Manifest::artifact(&oci::data_type(shared.kind), config, layers))?;
        let stored_bytes = stored + toc_size + manifest.len() as u64;
        let manifest = shared.core.store.put_blob(manifest.into()).await?;
        Ok(DataWritten { manifest, bytes, new_bytes: shared.new_bytes.load(Relaxed), stored_bytes, streams })
    }
}
