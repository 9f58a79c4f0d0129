//! Reading a table of contents: the root first, then only the pages that are asked for.

use std::{collections::VecDeque, sync::Mutex};

use ocopea_protocol::{names::Digest, secret::Secret32};

use super::{
    END, FOOTER, LONGEST_PAGE, LONGEST_ROOT, MAGIC, MOST_PACKS, MOST_STREAMS, PAGE_ROWS, PackRow, ROOT_COUNTER, Root,
    Section, StreamRow, VERSION,
};
use crate::{
    chunk::{Chunk, ROW},
    error::{Error, Result},
    keys::{Cipher, TAG},
    sealed,
    store::{Store, blob_name},
};

/// Pages of chunks that are kept decrypted, so that look-ups in one place cost one read.
const CACHED: usize = 48;

/// A table of contents that is open.
pub(crate) struct TocReader {
    store: Store,
    name: String,
    cipher: Cipher,
    pub(crate) root: Root,
    /// Where each page begins.
    offsets: Vec<u64>,
    cache: Mutex<VecDeque<(u32, std::sync::Arc<Vec<Chunk>>)>>,
}

impl TocReader {
    pub(crate) async fn open(store: &Store, image_key: &Secret32, digest: &Digest, size: u64) -> Result<Self> {
        let name = blob_name(digest);
        let damaged = |why: &str| Error::damaged(&name, why);
        let header = store.backend.range(&name, 0, sealed::HEADER as u64).await?;
        let cipher = sealed::open_header(image_key, MAGIC, &name, &header)?;
        let at = size.checked_sub(FOOTER as u64).ok_or_else(|| damaged("it is too short"))?;
        let footer = store.backend.range(&name, at, FOOTER as u64 + 1).await?;
        let length = parse_footer(&footer).ok_or_else(|| damaged("it doesn't end as it should"))?;
        let start = at.checked_sub(u64::from(length)).filter(|start| *start >= sealed::HEADER as u64);
        let start = start.ok_or_else(|| damaged("its root is longer than itself"))?;
        let mut bytes = store.backend.range(&name, start, u64::from(length)).await?.to_vec();
        let plain = cipher.open(ROOT_COUNTER, Section::Root.aad(), &mut bytes);
        let plain = plain.ok_or_else(|| damaged("its root doesn't open with the image's key"))?;
        let root: Root = serde_json::from_slice(plain).map_err(|error| Error::damaged(&name, error))?;
        if root.version > VERSION {
            return Err(Error::Newer { object: name, found: root.version, known: VERSION });
        }
        let mut offsets = Vec::with_capacity(root.pages.len());
        let mut offset = sealed::HEADER as u64;
        for length in &root.pages {
            offsets.push(offset);
            offset += u64::from(*length);
        }
        if offset != start {
            return Err(damaged("its pages don't fill it"));
        }
        Ok(Self { store: store.clone(), name, cipher, root, offsets, cache: Mutex::new(VecDeque::new()) })
    }

    async fn page(&self, section: Section, number: u32) -> Result<Vec<u8>> {
        let damaged = |why: &str| Error::damaged(&self.name, why);
        let place = self.offsets.get(number as usize).zip(self.root.pages.get(number as usize));
        let (offset, length) = place.ok_or_else(|| damaged("it names a page that it hasn't got"))?;
        if *length > LONGEST_PAGE || (*length as usize) < TAG {
            return Err(damaged("one of its pages has an impossible length"));
        }
        let mut bytes = self.store.backend.range(&self.name, *offset, u64::from(*length)).await?.to_vec();
        let plain = self.cipher.open(u64::from(number), section.aad(), &mut bytes);
        let length = plain.map(|plain| plain.len()).ok_or_else(|| damaged("one of its pages doesn't open"))?;
        bytes.truncate(length);
        Ok(bytes)
    }

    async fn chunks(&self, section: Section, number: u32) -> Result<std::sync::Arc<Vec<Chunk>>> {
        let lock = || self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, page)) = lock().iter().find(|(cached, _)| *cached == number) {
            return Ok(page.clone());
        }
        let plain = self.page(section, number).await?;
        if plain.len() > PAGE_ROWS * ROW {
            return Err(Error::damaged(&self.name, format!("one of its pages has more than {PAGE_ROWS} rows")));
        }
        let chunks: Option<Vec<Chunk>> = plain.chunks(ROW).map(Chunk::decode).collect();
        let chunks = chunks.ok_or_else(|| Error::damaged(&self.name, "it holds impossible figures"))?;
        let page = std::sync::Arc::new(chunks);
        let mut cache = lock();
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        cache.push_back((number, page.clone()));
        Ok(page)
    }

    /// The chunks of one segment of a stream.
    pub(crate) async fn segment(&self, segment: (u32, u32, u32)) -> Result<Vec<Chunk>> {
        let (logical, first, count) = segment;
        let impossible = || Error::damaged(&self.name, "a stream names chunks that it hasn't got");
        let number = self.root.chunks.get(logical as usize).ok_or_else(impossible)?;
        let page = self.chunks(Section::Chunks, *number).await?;
        let end = first.checked_add(count).ok_or_else(impossible)?;
        Ok(page.get(first as usize..end as usize).ok_or_else(impossible)?.to_vec())
    }

    /// The hashes of an index page. Not kept: for those who read all of them once.
    pub(crate) async fn hashes(&self, number: u32) -> Result<Vec<[u8; 32]>> {
        let plain = self.page(Section::Index, number).await?;
        Ok(plain.chunks(ROW).filter_map(|row| row.first_chunk().copied()).collect())
    }

    /// Looks a chunk up by its hash.
    pub(crate) async fn find(&self, hash: &[u8; 32]) -> Result<Option<Chunk>> {
        for run in &self.root.runs {
            let after = run.first.partition_point(|first| first <= hash);
            let Some(number) = after.checked_sub(1).and_then(|page| run.pages.get(page)) else { continue };
            let page = self.chunks(Section::Index, *number).await?;
            if let Some(chunk) = page.binary_search_by_key(hash, |chunk| chunk.hash).ok().and_then(|at| page.get(at)) {
                return Ok(Some(*chunk));
            }
        }
        Ok(None)
    }

    async fn rows<T: serde::de::DeserializeOwned>(
        &self,
        section: Section,
        pages: &[u32],
        most: usize,
    ) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for number in pages {
            let plain = zeroize::Zeroizing::new(self.page(section, *number).await?);
            let rows: Vec<T> = serde_json::from_slice(&plain).map_err(|error| Error::damaged(&self.name, error))?;
            all.extend(rows);
            if all.len() > most {
                return Err(Error::damaged(&self.name, format!("it lists more than {most} {section:?}")));
            }
        }
        Ok(all)
    }

    pub(crate) async fn packs(&self) -> Result<Vec<PackRow>> {
        self.rows(Section::Packs, &self.root.packs, MOST_PACKS).await
    }

    pub(crate) async fn streams(&self) -> Result<Vec<StreamRow>> {
        self.rows(Section::Streams, &self.root.streams, MOST_STREAMS).await
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Sealed length of the root.
fn parse_footer(footer: &[u8]) -> Option<u32> {
    let length = footer.strip_suffix(END)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    (length <= LONGEST_ROOT && length as usize >= TAG).then_some(length)
}
