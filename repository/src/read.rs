//! Reading a data component: in order, ahead of the consumer, every chunk verified before it is given out.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use ocopea_protocol::names::Digest;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};

use crate::{
    Error, ItemHasher, Result,
    chunk::Chunk,
    keys::Cipher,
    oci, pack,
    session::Core,
    store::{LONGEST_MANIFEST, blob_name},
    toc::{PackRow, StreamRow, TocReader},
};

/// Raw bytes of chunks that are fetched, opened and given out together.
const GROUP: u64 = 2 << 20;
/// Groups of one stream that may be on their way ahead of its consumer.
const AHEAD: usize = 4;

/// Reads one data component. Cheap to clone.
#[derive(Clone)]
pub struct DataReader {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    toc: TocReader,
    kind: String,
    packs: Vec<PackRow>,
    ciphers: Mutex<HashMap<u32, Arc<Cipher>>>,
    streams: OnceCell<BTreeMap<Vec<u8>, StreamRow>>,
}

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
    pub(crate) async fn open(core: Arc<Core>, digest: &Digest) -> Result<Self> {
        let bytes = core.store.get_blob(digest, LONGEST_MANIFEST).await?;
        let name = blob_name(digest);
        let manifest: oci::Manifest = oci::parse(&name, &bytes)?;
        let kind = oci::data_kind(manifest.artifact_type.as_deref());
        let kind = kind.ok_or_else(|| Error::damaged(&name, "it is not the manifest of a data component"))?.to_owned();
        let config = &manifest.config;
        let toc = TocReader::open(&core.store, &core.image_key, &config.digest, config.size).await?;
        if toc.root.kind != kind {
            return Err(Error::damaged(
                &name,
                format!("it says {kind:?} where its table of contents says {:?}", toc.root.kind),
            ));
        }
        let packs = toc.packs().await?;
        let inner = Inner { core, toc, kind, packs, ciphers: Mutex::default(), streams: OnceCell::new() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The driver's facts, as given when the component was finished.
    pub fn facts(&self) -> &str {
        &self.inner.toc.root.facts
    }

    /// Its kind: `mongodb`, `postgresql`, `volume` …
    pub fn kind(&self) -> &str {
        &self.inner.kind
    }

    /// Raw bytes of all streams.
    pub fn bytes(&self) -> u64 {
        self.inner.toc.root.bytes
    }

    async fn rows(&self) -> Result<&BTreeMap<Vec<u8>, StreamRow>> {
        let load = async || {
            let rows = self.inner.toc.streams().await?;
            Ok::<_, Error>(rows.into_iter().map(|row| (row.name.clone(), row)).collect())
        };
        self.inner.streams.get_or_try_init(load).await
    }

    /// Its streams, by name.
    pub async fn streams(&self) -> Result<Vec<StreamEntry>> {
        let entries = self.rows().await?.values().map(|row| StreamEntry {
            name: row.name.clone(),
            bytes: row.bytes,
            unit: row.unit.clone(),
            items: row.items,
            item_hash: row.item_hash,
            attributes: row.attributes.clone(),
        });
        Ok(entries.collect())
    }

    /// Reads a stream from its beginning, in pieces of at most some MiB, ahead of the caller. Every piece was
    /// decrypted and verified before it comes; after an error nothing more comes.
    pub async fn read(&self, name: &[u8]) -> Result<BoxStream<'static, Result<Bytes>>> {
        let row = self.rows().await?.get(name).cloned();
        let row =
            row.ok_or_else(|| Error::Missing { object: format!("stream {:?}", String::from_utf8_lossy(name)) })?;
        let (pieces, received) = mpsc::channel(AHEAD);
        let inner = self.inner.clone();
        let spawner = inner.core.store.seams.spawner.clone();
        spawner.spawn(
            "repository.read",
            Box::pin(async move {
                if let Err(error) = produce(&inner, &row, &pieces).await {
                    // A consumer that went away needs no error.
                    let _ = pieces.send(Piece::failed(error)).await;
                }
            }),
        );
        Ok(stream::unfold((received, false), next_piece)
            .map(|group| match group {
                Ok(group) => stream::iter(group).map(Ok).left_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            })
            .flatten()
            .boxed())
    }

    /// An empty set for the content hash of a stream, keyed as at the save.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&self.inner.core.hash_key)
    }
}

type Received = (mpsc::Receiver<Piece>, bool);

/// One group that is being read, or was.
struct Piece {
    result: oneshot::Receiver<Result<Vec<Bytes>>>,
    _turn: Option<Turn>,
}

/// The right to hold a group in memory: out of the process's limit, or the one that each reader has.
#[expect(dead_code, reason = "held, never looked at")]
enum Turn {
    Shared(SemaphorePermit<'static>),
    Own(OwnedSemaphorePermit),
}

impl Piece {
    fn failed(error: Error) -> Self {
        let (done, result) = oneshot::channel();
        // The receiver is right here.
        let _ = done.send(Err(error));
        Self { result, _turn: None }
    }
}

async fn next_piece((mut received, ended): Received) -> Option<(Result<Vec<Bytes>>, Received)> {
    if ended {
        return None;
    }
    let piece = received.recv().await?;
    let group = piece.result.await.unwrap_or(Err(Error::Stopped));
    let failed = group.is_err();
    Some((group, (received, failed)))
}

/// Starts one group after the other, as far ahead as the process's limit allows; the next one is always started.
async fn produce(inner: &Arc<Inner>, row: &StreamRow, pieces: &mpsc::Sender<Piece>) -> Result<()> {
    let mut bytes = 0u64;
    let turn = Arc::new(Semaphore::new(1));
    for segment in &row.segments {
        let chunks = inner.toc.segment(*segment).await?;
        bytes += chunks.iter().map(|chunk| u64::from(chunk.raw)).sum::<u64>();
        for group in groups(&chunks) {
            let size = group.iter().map(|chunk| chunk.raw).sum::<u32>();
            let Ok(slot) = pieces.reserve().await else { return Ok(()) };
            // What one reader needs next is never held back by what others have read ahead.
            let permit = tokio::select! {
                biased;
                permit = inner.core.store.limits.reading.acquire_many(size) => Turn::Shared(permit.map_err(|_| Error::Stopped)?),
                own = turn.clone().acquire_owned() => Turn::Own(own.map_err(|_| Error::Stopped)?),
            };
            let (done, result) = oneshot::channel();
            let (reader, group) = (inner.clone(), group.to_vec());
            let spawner = &inner.core.store.seams.spawner;
            spawner.spawn(
                "repository.group",
                Box::pin(async move {
                    // Nobody waits when the stream was given up.
                    let _ = done.send(fetch(&reader, group).await);
                }),
            );
            slot.send(Piece { result, _turn: Some(permit) });
        }
    }
    if bytes == row.bytes {
        Ok(())
    } else {
        Err(Error::damaged(inner.toc.name(), format!("a stream has {bytes} bytes where {} are recorded", row.bytes)))
    }
}

/// Chunks that are fetched together.
fn groups(chunks: &[Chunk]) -> Vec<&[Chunk]> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, chunk) in chunks.iter().enumerate() {
        // A chunk is stored in hardly more than it has; who says otherwise is believed only as far as memory goes.
        let more = u64::from(chunk.raw.max(chunk.stored));
        if size + more > GROUP && at > start {
            groups.extend(chunks.get(start..at));
            (start, size) = (at, 0);
        }
        size += more;
    }
    groups.extend(chunks.get(start..).filter(|rest| !rest.is_empty()));
    groups
}

/// Reads, opens and verifies a group: neighbours within a pack with one read.
async fn fetch(inner: &Arc<Inner>, group: Vec<Chunk>) -> Result<Vec<Bytes>> {
    let mut reads: VecDeque<(Vec<Chunk>, Vec<u8>)> = VecDeque::new();
    for run in group.chunk_by(|a, b| a.pack == b.pack && a.offset.checked_add(a.stored) == Some(b.offset)) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let row = inner.packs.get(first.pack as usize);
        let row = row.ok_or_else(|| Error::damaged(inner.toc.name(), "a chunk lies in a pack that isn't listed"))?;
        let length = u64::from(last.offset - first.offset) + u64::from(last.stored);
        let name = blob_name(&row.digest);
        let bytes = inner.core.store.backend.range(&name, u64::from(first.offset), length).await?;
        if bytes.len() as u64 != length {
            return Err(Error::damaged(name, "it is shorter than its table of contents says"));
        }
        let bytes = bytes.try_into_mut().map_or_else(|shared| shared.to_vec(), Vec::from);
        reads.push_back((run.to_vec(), bytes));
    }
    let reader = inner.clone();
    inner.core.store.compute(move || open_all(&reader, reads)).await?
}

fn open_all(inner: &Inner, reads: VecDeque<(Vec<Chunk>, Vec<u8>)>) -> Result<Vec<Bytes>> {
    let mut out = Vec::new();
    for (chunks, mut bytes) in reads {
        let mut plain = Vec::with_capacity(chunks.len());
        let mut at = 0;
        for chunk in &chunks {
            let row = inner.packs.get(chunk.pack as usize).ok_or(Error::Stopped)?;
            let cipher = inner.cipher(chunk.pack, row)?;
            let stored = bytes.get_mut(at..at + chunk.stored as usize).unwrap_or_default();
            let length = pack::decrypt_chunk(&cipher, chunk, stored).ok_or_else(|| not_as_saved(row, chunk))?;
            plain.push((at, length));
            at += chunk.stored as usize;
        }
        let bytes = Bytes::from(bytes);
        for (chunk, (at, length)) in chunks.iter().zip(plain) {
            let row = inner.packs.get(chunk.pack as usize).ok_or(Error::Stopped)?;
            let raw = pack::unpack_chunk(&inner.core.chunk_key, chunk, bytes.slice(at..at + length));
            out.push(raw.ok_or_else(|| not_as_saved(row, chunk))?);
        }
    }
    Ok(out)
}

fn not_as_saved(row: &PackRow, chunk: &Chunk) -> Error {
    Error::damaged(blob_name(&row.digest), format!("its chunk {} is not what was saved", chunk.ordinal))
}

impl Inner {
    fn cipher(&self, number: u32, row: &PackRow) -> Result<Arc<Cipher>> {
        let mut ciphers = self.ciphers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cipher) = ciphers.get(&number) {
            return Ok(cipher.clone());
        }
        if ciphers.len() > 256 {
            ciphers.clear();
        }
        let cipher = Arc::new(Cipher::new(&row.key)?);
        ciphers.insert(number, cipher.clone());
        Ok(cipher)
    }
}
