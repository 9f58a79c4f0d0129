//! Writing a table of contents page by page, while its component is still being read.

use bytes::Bytes;
use ocopea_protocol::{names::Digest, secret::Secret32};
use serde::Serialize;

use super::{END, LONGEST_ROOT, MAGIC, PAGE_BYTES, PAGE_ROWS, ROOT_COUNTER, Root, Run, Section};
use crate::{
    backend::Upload,
    chunk::{Chunk, ROW},
    error::{Error, Result},
    keys::{Cipher, TAG},
    sealed,
    store::{Sha256, Store, blob_name},
};

/// A table of contents on its way.
pub(crate) struct TocWriter {
    store: Store,
    upload: Box<dyn Upload>,
    cipher: Cipher,
    sha: Sha256,
    size: u64,
    /// Pages written, and where sections stand.
    root: Root,
    /// Chunk pages that are begun and not full, and their logical number: ends of streams share them.
    tail: Option<(u32, Vec<Chunk>)>,
}

impl TocWriter {
    pub(crate) async fn begin(store: &Store, image_key: &Secret32, kind: &str) -> Result<Self> {
        let (cipher, header) = sealed::begin(image_key, MAGIC, &store.seams)?;
        let mut upload = store.backend.upload(None).await?;
        let mut sha = Sha256::new();
        sha.update(&header);
        let size = header.len() as u64;
        upload.write(vec![header.into()]).await?;
        let root = Root {
            version: super::VERSION,
            kind: kind.to_owned(),
            facts: String::new(),
            bytes: 0,
            pages: vec![],
            chunks: vec![],
            runs: vec![],
            packs: vec![],
            streams: vec![],
        };
        Ok(Self { store: store.clone(), upload, cipher, sha, size, root, tail: None })
    }

    async fn page(&mut self, section: Section, mut plain: Vec<u8>) -> Result<u32> {
        let number = self.root.pages.len() as u64;
        self.cipher.seal(number, section.aad(), &mut plain, 0)?;
        self.sha.update(&plain);
        self.size += plain.len() as u64;
        let length = u32::try_from(plain.len()).unwrap_or(u32::MAX);
        self.upload.write(vec![plain.into()]).await?;
        self.root.pages.push(length);
        Ok(u32::try_from(number).unwrap_or(u32::MAX))
    }

    fn next_logical(&mut self) -> Result<u32> {
        let limit = u64::from(u32::MAX);
        let number = self.root.chunks.len() as u64;
        self.root.chunks.push(u32::MAX);
        u32::try_from(number).map_err(|_| Error::Limit {
            what: "number of chunk pages".to_owned(),
            found: number,
            limit,
        })
    }

    async fn chunk_page(&mut self, logical: u32, chunks: &[Chunk]) -> Result<()> {
        let page = self.page(Section::Chunks, rows(chunks)).await?;
        if let Some(place) = self.root.chunks.get_mut(logical as usize) {
            *place = page;
        }
        Ok(())
    }

    /// Writes a full page of one stream's chunks; answers for its segment.
    pub(crate) async fn full_page(&mut self, chunks: &[Chunk]) -> Result<(u32, u32, u32)> {
        let logical = self.next_logical()?;
        self.chunk_page(logical, chunks).await?;
        Ok((logical, 0, u32::try_from(chunks.len()).unwrap_or(u32::MAX)))
    }

    /// Takes the last chunks of a stream into a page that streams share.
    pub(crate) async fn last_chunks(&mut self, chunks: &[Chunk]) -> Result<Vec<(u32, u32, u32)>> {
        let mut segments = Vec::new();
        let mut rest = chunks;
        while !rest.is_empty() {
            let (logical, mut tail) = match self.tail.take() {
                Some(tail) => tail,
                None => (self.next_logical()?, Vec::new()),
            };
            let (now, later) = rest.split_at(rest.len().min(PAGE_ROWS - tail.len()));
            segments.push((logical, tail.len() as u32, now.len() as u32));
            tail.extend_from_slice(now);
            if tail.len() == PAGE_ROWS {
                self.chunk_page(logical, &tail).await?;
            } else {
                self.tail = Some((logical, tail));
            }
            rest = later;
        }
        Ok(segments)
    }

    /// Writes a run of distinct chunks.
    pub(crate) async fn run(&mut self, mut chunks: Vec<Chunk>) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let chunks = self
            .store
            .compute(move || {
                chunks.sort_unstable_by_key(|chunk| chunk.hash);
                chunks
            })
            .await?;
        let mut run = Run::default();
        for page in chunks.chunks(PAGE_ROWS) {
            run.pages.push(self.page(Section::Index, rows(page)).await?);
            run.first.extend(page.first().map(|chunk| chunk.hash));
        }
        self.root.runs.push(run);
        Ok(())
    }

    /// Writes rows of JSON, so many in a page as fit.
    pub(crate) async fn json_rows<T: Serialize>(
        &mut self,
        section: Section,
        rows: impl IntoIterator<Item = T>,
    ) -> Result<()> {
        let mut page = Vec::new();
        for row in rows {
            page.push(if page.is_empty() { b'[' } else { b',' });
            serde_json::to_writer(&mut page, &row).map_err(|error| Error::Misuse(format!("not JSON: {error}")))?;
            if page.len() >= PAGE_BYTES {
                self.json_page(section, std::mem::take(&mut page)).await?;
            }
        }
        if page.is_empty() { Ok(()) } else { self.json_page(section, page).await }
    }

    async fn json_page(&mut self, section: Section, mut page: Vec<u8>) -> Result<()> {
        page.push(b']');
        let number = self.page(section, page).await?;
        match section {
            Section::Packs => self.root.packs.push(number),
            _ => self.root.streams.push(number),
        }
        Ok(())
    }

    /// Writes what is left and the root, gives the blob its name, and reads it back.
    pub(crate) async fn finish(mut self, facts: &str, bytes: u64) -> Result<(Digest, u64)> {
        if let Some((logical, tail)) = self.tail.take() {
            self.chunk_page(logical, &tail).await?;
        }
        self.root.facts = facts.to_owned();
        self.root.bytes = bytes;
        let mut root = crate::oci::to_json(&self.root)?;
        self.cipher.seal(ROOT_COUNTER, Section::Root.aad(), &mut root, 0)?;
        let length = u32::try_from(root.len()).ok().filter(|length| *length <= LONGEST_ROOT);
        let length = length.ok_or_else(|| Error::Limit {
            what: "the table of contents' root".to_owned(),
            found: root.len() as u64,
            limit: u64::from(LONGEST_ROOT),
        })?;
        root.extend_from_slice(&length.to_le_bytes());
        root.extend_from_slice(END);
        self.sha.update(&root);
        let size = self.size + root.len() as u64;
        self.upload.write(vec![Bytes::from(root)]).await?;
        let digest = self.sha.finish();
        self.upload.finish(&blob_name(&digest)).await?;
        self.store.verify_blob(&digest, size).await?;
        Ok((digest, size))
    }
}

fn rows(chunks: &[Chunk]) -> Vec<u8> {
    let mut page = Vec::with_capacity(chunks.len() * ROW + TAG);
    chunks.iter().for_each(|chunk| chunk.encode(&mut page));
    page
}
