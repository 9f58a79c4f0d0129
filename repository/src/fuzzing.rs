//! Doors for the fuzz targets in `fuzz/`: every reader of stored bytes, over one object in memory.
//!
//! Ciphertext stops at its tag, so what a fuzzer makes up is sealed with the right keys here: the parsers behind the
//! tags get to see it, as they would see what a hostile writer with the keys stored.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::{
    names::Digest,
    seams::{BoxFuture, Clock, Entropy, Faults, Seams, Spawner},
    secret::Secret32,
    time::Timestamp,
};

use crate::{
    Error, Keyring, Result,
    backend::{Backend, Entry, Put, Upload},
    chunk::{self, Chunk},
    config,
    keys::{self, Cipher},
    oci, pack, record, sealed,
    store::{self, Store},
    toc::{self, Section, TocReader},
};

const KEY: Secret32 = Secret32([7; 32]);
const NAME: &str = "fuzzed";

/// One object, the same under every name.
struct Memory(Bytes);

#[async_trait]
impl Backend for Memory {
    async fn create(&self, _: &str, _: Bytes) -> Result<Put> {
        Err(Error::Stopped)
    }

    async fn replace(&self, _: &str, _: Bytes) -> Result<()> {
        Err(Error::Stopped)
    }

    async fn upload(&self, _: Option<&str>) -> Result<Box<dyn Upload>> {
        Err(Error::Stopped)
    }

    async fn get(&self, _: &str, _: u64) -> Result<Bytes> {
        Ok(self.0.clone())
    }

    async fn range(&self, _: &str, offset: u64, length: u64) -> Result<Bytes> {
        let end = self.0.len() as u64;
        let (from, to) = (offset.min(end), offset.saturating_add(length).min(end));
        Ok(self.0.slice(usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0)))
    }

    async fn head(&self, _: &str) -> Result<Option<Entry>> {
        Ok(None)
    }

    async fn list(&self, _: &str) -> Result<Vec<Entry>> {
        Ok(vec![])
    }

    async fn delete(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn discard_unfinished(&self, _: i64) -> Result<()> {
        Ok(())
    }
}

/// No time, no chance, no threads: the same input does the same.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn sleep(&self, _: std::time::Duration) -> BoxFuture<()> {
        Box::pin(async {})
    }
}

impl Entropy for Still {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

impl Spawner for Still {
    fn spawn(&self, _: &'static str, work: BoxFuture<()>) {
        futures::executor::block_on(work);
    }

    fn spawn_blocking(&self, _: &'static str, work: Box<dyn FnOnce() + Send + 'static>) {
        work();
    }
}

impl Faults for Still {
    fn is_on(&self) -> bool {
        false
    }

    fn reached(&self, _: &str) {}
}

fn seams() -> Seams {
    let still = Arc::new(Still);
    Seams { clock: still.clone(), entropy: still.clone(), spawner: still.clone(), faults: still }
}

fn over(bytes: Vec<u8>) -> Store {
    Store::new(Arc::new(Memory(bytes.into())), seams())
}

/// Splits at every `\n--\n`.
fn parts(bytes: &[u8]) -> Vec<&[u8]> {
    const LINE: &[u8] = b"\n--\n";
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at + LINE.len() <= bytes.len() {
        if bytes.get(at..at + LINE.len()) == Some(LINE) {
            parts.extend(bytes.get(start..at));
            (start, at) = (at + LINE.len(), at + LINE.len());
        } else {
            at += 1;
        }
    }
    parts.extend(bytes.get(start..));
    parts
}

/// A pack: as it comes; and its index with the footer sealed around it.
pub fn pack(bytes: &[u8]) {
    let digest = Digest([0; 32]);
    let read = |bytes: Vec<u8>| {
        let size = bytes.len() as u64;
        let read = futures::executor::block_on(pack::read_index(&over(bytes), &KEY, &digest, size));
        read.is_ok()
    };
    read(bytes.to_vec());
    read(sealed_pack(bytes).unwrap_or_default());
    let (row, rest) = bytes.split_at(bytes.len().min(chunk::ROW));
    if let Some(chunk) = Chunk::decode(row) {
        pack::unpack_chunk(&KEY, &chunk, Bytes::copy_from_slice(rest));
    }
    if let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        chunk::decompress(rest, u32::from_le_bytes(*length) % (chunk::LIMIT + 1));
    }
}

/// The first 12 bytes are figures of the footer, exact where they are zero; the rest is the index.
fn sealed_pack(bytes: &[u8]) -> Option<Vec<u8>> {
    let (lies, rows) = bytes.split_first_chunk::<12>()?;
    let lie = |at: usize| Some(u32::from_le_bytes(lies.get(at..at + 4)?.try_into().ok()?));
    let mut out = pack::MAGIC.to_vec();
    out.resize(1 << 10, 0);
    let offset = u32::try_from(out.len()).ok()?;
    out.extend_from_slice(rows);
    Cipher::new(&KEY).ok()?.seal(u64::MAX, b"ocopea/pack-index/v1", &mut out, 1 << 10).ok()?;
    let length = u32::try_from(out.len()).ok()? - offset;
    out.extend_from_slice(&pack::wrap(&KEY, &KEY, &seams()).ok()?);
    let count = u32::try_from(rows.len() / pack::INDEX_ROW).ok()?;
    for (true_figure, at) in [(offset, 0), (length, 4), (count, 8)] {
        out.extend_from_slice(&(true_figure ^ lie(at)?).to_le_bytes());
    }
    out.extend_from_slice(pack::END);
    Some(out)
}

/// A table of contents: as it comes; and its parts, sealed. The first part is the root, each further one a page whose
/// first byte tells its section.
pub fn toc(bytes: &[u8]) {
    let digest = Digest([0; 32]);
    let read = async |bytes: Vec<u8>| -> Result<()> {
        let size = bytes.len() as u64;
        let toc = TocReader::open(&over(bytes), &KEY, &digest, size).await?;
        toc.packs().await.map(drop).unwrap_or_default();
        toc.find(&[0x61; 32]).await.map(drop).unwrap_or_default();
        for stream in toc.streams().await?.iter().take(100) {
            for segment in stream.segments.iter().take(100) {
                toc.segment(*segment).await?;
            }
        }
        Ok(())
    };
    futures::executor::block_on(async {
        read(bytes.to_vec()).await.unwrap_or_default();
        read(sealed_toc(bytes).unwrap_or_default()).await.unwrap_or_default();
    });
}

fn sealed_toc(bytes: &[u8]) -> Result<Vec<u8>> {
    let parts = parts(bytes);
    let (root, pages) = parts.split_first().ok_or(Error::Stopped)?;
    let (cipher, mut out) = sealed::begin(&KEY, toc::MAGIC, &seams())?;
    for (number, page) in (0u64..).zip(pages) {
        let Some((section, plain)) = page.split_first() else { continue };
        let section = match section % 4 {
            0 => Section::Chunks,
            1 => Section::Index,
            2 => Section::Packs,
            _ => Section::Streams,
        };
        let from = out.len();
        out.extend_from_slice(plain);
        cipher.seal(number, section.aad(), &mut out, from)?;
    }
    let from = out.len();
    out.extend_from_slice(root);
    cipher.seal(toc::ROOT_COUNTER, Section::Root.aad(), &mut out, from)?;
    let length = u32::try_from(out.len() - from).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(toc::END);
    Ok(out)
}

/// Records, configurations, manifests, indexes and small objects.
pub fn record(bytes: &[u8]) {
    let sealed = |purpose| sealed::seal(&KEY, purpose, bytes, &seams()).unwrap_or_default();
    drop(record::parse(&KEY, NAME, bytes));
    drop(record::parse(&KEY, NAME, &sealed(sealed::RECORD)));
    drop(sealed::open(&KEY, sealed::CONFIG, NAME, bytes));
    drop(config::untar(NAME, bytes));
    if let Ok(tar) = config::decompress(NAME, bytes) {
        drop(config::untar(NAME, &tar));
    }
    if let Ok(manifest) = oci::parse::<oci::Manifest>(NAME, bytes) {
        drop(oci::to_json(&manifest));
    }
    drop(oci::parse::<oci::Index>(NAME, bytes));
    drop(oci::media_type(NAME, bytes));
    drop(crate::repository::index_json_images(bytes));
    let mut small = bytes.to_vec();
    small.extend_from_slice(format!("\n{}\n", store::sha256(bytes)).as_bytes());
    for bytes in [bytes, small.as_slice()] {
        drop(store::parse_small::<crate::repository::Small>(NAME, bytes));
    }
}

/// A key file; what is read is written in the same way again.
///
/// # Panics
/// When it isn't.
pub fn keys(text: &str) {
    if let Ok(ring) = Keyring::parse(text) {
        assert!(Keyring::parse(&ring.to_text()).is_ok_and(|again| again == ring), "a keyring changes by being written");
    }
    drop(keys::unwrap_text(&KEY, b"fuzz", text));
}
