//! Writing one stream.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{SemaphorePermit, oneshot};

use super::{
    LONGEST_ATTRIBUTES, Shared, Slot, StreamFacts, StreamSummary,
    packer::{Prepared, Stored},
};
use crate::{
    Error, Result,
    chunk::{self, Chunk, LONGEST},
    pack::Ready,
    toc::{PAGE_ROWS, StreamRow},
};

/// Bytes that are cut and stored together, with what the cut before left over. More than a longest chunk: one at least
/// can always be cut off.
const REGION: usize = 2 * LONGEST;

/// Writes one stream. While one region is cut and stored, the next is filled.
pub struct StreamWriter {
    shared: Arc<Shared>,
    name: Vec<u8>,
    /// While a region is being cut, what comes next stands behind room for a longest chunk: what that cut leaves over
    /// is put there.
    buffer: BytesMut,
    cutting: Option<oneshot::Receiver<Vec<u8>>>,
    under_way: VecDeque<oneshot::Receiver<Result<Stored>>>,
    chunks: Vec<Chunk>,
    segments: Vec<(u32, u32, u32)>,
    bytes: u64,
    new_bytes: u64,
}

impl StreamWriter {
    pub(super) fn new(shared: Arc<Shared>, name: Vec<u8>) -> Self {
        Self {
            shared,
            name,
            buffer: BytesMut::new(),
            cutting: None,
            under_way: VecDeque::new(),
            chunks: vec![],
            segments: vec![],
            bytes: 0,
            new_bytes: 0,
        }
    }

    /// Appends. Waits while too much is under way.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.shared.check()?;
        self.bytes += bytes.len() as u64;
        self.shared.bytes.fetch_add(bytes.len() as u64, Relaxed);
        let mut rest = bytes.as_ref();
        while !rest.is_empty() {
            let full = REGION + if self.cutting.is_some() { LONGEST } else { 0 };
            let (now, later) = rest.split_at(rest.len().min(full - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == full {
                self.flush(false).await?;
            }
        }
        Ok(())
    }

    /// Ends the stream. A stream that is dropped instead spoils its component: `finish` refuses.
    pub async fn finish(mut self, facts: StreamFacts) -> Result<StreamSummary> {
        let attributes: usize = facts.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if attributes + facts.unit.len() > LONGEST_ATTRIBUTES {
            let (found, limit) = (attributes as u64, LONGEST_ATTRIBUTES as u64);
            return Err(Error::Limit { what: "the length of a stream's attributes".to_owned(), found, limit });
        }
        self.flush(true).await?;
        while let Some(stored) = self.under_way.pop_front() {
            self.take(stored.await.map_err(|_| Error::Stopped)??).await?;
        }
        if !self.chunks.is_empty() {
            let mut toc = self.shared.toc.lock().await;
            self.segments.extend(toc.as_mut().ok_or(Error::Stopped)?.last_chunks(&self.chunks).await?);
        }
        let row = StreamRow {
            name: self.name.clone(),
            bytes: self.bytes,
            unit: facts.unit.clone(),
            items: facts.items,
            item_hash: facts.item_hash,
            attributes: facts.attributes.clone(),
            segments: self.segments,
        };
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.insert(self.name.clone(), Slot::Finished(self.new_bytes, row));
        Ok(StreamSummary { name: self.name, bytes: self.bytes, new_bytes: self.new_bytes, facts })
    }

    /// What is in the buffer, behind what the cut before left over.
    async fn region(&mut self) -> Result<Bytes> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let Some(cutting) = self.cutting.take() else { return Ok(buffer.freeze()) };
        let rest = match cutting.await {
            Ok(rest) => rest,
            Err(_) => return Err(self.shared.check().err().unwrap_or(Error::Stopped)),
        };
        let from = LONGEST.saturating_sub(rest.len());
        let room = buffer.get_mut(from..from + rest.len()).ok_or(Error::Stopped)?;
        room.copy_from_slice(&rest);
        Ok(buffer.freeze().slice(from..))
    }

    /// Sends the buffer on its way.
    async fn flush(&mut self, last: bool) -> Result<()> {
        let region = self.region().await?;
        if region.is_empty() {
            return Ok(());
        }
        let store = &self.shared.core.store;
        let permit = store.limits.writing.acquire_many(u32::try_from(region.len()).unwrap_or(u32::MAX)).await;
        let permit = permit.map_err(|_| Error::Stopped)?;
        let ((left, cutting), (done, result)) = (oneshot::channel(), oneshot::channel());
        if !last {
            self.buffer.reserve(LONGEST + REGION);
            self.buffer.resize(LONGEST, 0);
            self.cutting = Some(cutting);
        }
        self.under_way.push_back(result);
        let shared = self.shared.clone();
        let batch = batch(shared, Region { bytes: region, last, left }, permit, done);
        store.seams.spawner.spawn("repository.batch", Box::pin(batch));
        self.take_what_is_done().await
    }

    async fn take_what_is_done(&mut self) -> Result<()> {
        while let Some(first) = self.under_way.front_mut() {
            match first.try_recv() {
                Ok(stored) => {
                    self.under_way.pop_front();
                    self.take(stored?).await?;
                }
                Err(oneshot::error::TryRecvError::Empty) => break,
                Err(oneshot::error::TryRecvError::Closed) => return Err(Error::Stopped),
            }
        }
        Ok(())
    }

    async fn take(&mut self, stored: Stored) -> Result<()> {
        self.new_bytes += stored.new_bytes;
        self.chunks.extend(stored.chunks);
        while self.chunks.len() >= PAGE_ROWS {
            let rest = self.chunks.split_off(PAGE_ROWS);
            let page = std::mem::replace(&mut self.chunks, rest);
            let mut toc = self.shared.toc.lock().await;
            self.segments.push(toc.as_mut().ok_or(Error::Stopped)?.full_page(&page).await?);
        }
        Ok(())
    }
}

/// Bytes to be cut.
struct Region {
    bytes: Bytes,
    /// Nothing comes behind them.
    last: bool,
    /// Takes what can't be cut before more is known.
    left: oneshot::Sender<Vec<u8>>,
}

async fn batch(
    shared: Arc<Shared>,
    region: Region,
    permit: SemaphorePermit<'static>,
    done: oneshot::Sender<Result<Stored>>,
) {
    let stored = store(&shared, region).await;
    if let Err(error) = &stored {
        shared.fail(error);
    }
    drop(permit);
    // Nobody waits when the stream was given up.
    let _ = done.send(stored);
}

/// Cuts a region; hashes, looks up, compresses and places its chunks.
async fn store(shared: &Arc<Shared>, region: Region) -> Result<Stored> {
    shared.check()?;
    let store = &shared.core.store;
    let work = shared.clone();
    let alone = shared.reusable.is_empty();
    // Without a base, all that can be known is in the table: hashing and compressing go in one.
    let first = store.compute(move || {
        let (chunks, rest) = work.core.cutter.cut(region.bytes, region.last);
        // A copy: the region's memory is given back when its chunks are stored. Nobody waits for the last one's.
        let _ = region.left.send(rest.to_vec());
        drop(rest);
        let each = chunks.into_iter().map(|raw| {
            let hash = *blake3::keyed_hash(&work.core.chunk_key.0, &raw).as_bytes();
            match work.known(&hash) {
                Some(chunk) => Ok(Looked::Done(Prepared::Known(chunk))),
                None if alone => Ok(Looked::Done(Prepared::New(compressed(hash, &raw)?))),
                None => Ok(Looked::Ask(hash, raw)),
            }
        });
        each.collect::<Result<Vec<Looked>>>()
    });
    let looked = first.await??;
    let batch = if alone { settled(looked) } else { ask(shared, looked).await? };
    let (stored, runs) = shared.packer.lock().await.place(shared, batch).await?;
    shared.new_bytes.fetch_add(stored.new_bytes, Relaxed);
    for run in runs {
        let mut toc = shared.toc.lock().await;
        toc.as_mut().ok_or(Error::Stopped)?.run(run).await?;
    }
    Ok(stored)
}

enum Looked {
    Done(Prepared),
    Ask([u8; 32], Bytes),
}

fn settled(looked: Vec<Looked>) -> Vec<Prepared> {
    let done = looked.into_iter().filter_map(|looked| match looked {
        Looked::Done(prepared) => Some(prepared),
        Looked::Ask(..) => None,
    });
    done.collect()
}

/// Asks the base for what the table doesn't have, and compresses what nobody has.
async fn ask(shared: &Arc<Shared>, looked: Vec<Looked>) -> Result<Vec<Prepared>> {
    let mut asked = Vec::with_capacity(looked.len());
    for looked in looked {
        asked.push(match looked {
            Looked::Ask(hash, raw) => match shared.reusable.find(&shared.core, &hash).await? {
                Some(found) if found.chunk.raw as usize == raw.len() => Looked::Done(Prepared::Reused(found)),
                _ => Looked::Ask(hash, raw),
            },
            done => done,
        });
    }
    if asked.iter().all(|looked| matches!(looked, Looked::Done(_))) {
        return Ok(settled(asked));
    }
    let compress = move || {
        let each = asked.into_iter().map(|looked| match looked {
            Looked::Done(prepared) => Ok(prepared),
            Looked::Ask(hash, raw) => Ok(Prepared::New(compressed(hash, &raw)?)),
        });
        each.collect::<Result<Vec<Prepared>>>()
    };
    shared.core.store.compute(compress).await?
}

fn compressed(hash: [u8; 32], raw: &[u8]) -> Result<Ready> {
    let mut frame = Vec::with_capacity(raw.len() + crate::keys::TAG);
    let flags = chunk::compress(raw, &mut frame)?;
    Ok(Ready { hash, raw: u32::try_from(raw.len()).unwrap_or(u32::MAX), flags, frame })
}
