//! Gives chunks their places: in a pack that is open, in one of the base, or where the same chunk already is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use ocopea_protocol::names::Digest;
use tokio::sync::oneshot;

use super::{Shared, base::Found};
use crate::{
    chunk::Chunk,
    error::{Error, Result},
    pack::{LARGE_AFTER, LARGE_TARGET, OpenPack, Packed, Ready},
    toc::{MOST_PACKS, PackRow},
};

/// Packs of one component that were closed and aren't verified yet.
const MOST_ON_THEIR_WAY: usize = 2;

/// A chunk of a batch, after look-up and compression.
pub(crate) enum Prepared {
    /// The component has it.
    Known(Chunk),
    /// The base, or an earlier attempt, has it.
    Reused(Found),
    /// Nobody has it.
    New(Ready),
}

/// One per component, behind a lock: its order is the order in packs.
pub(crate) struct Packer {
    open: Option<OpenPack>,
    packs: Vec<Row>,
    by_digest: HashMap<Digest, u32>,
    sealing: VecDeque<oneshot::Receiver<Result<()>>>,
}

/// A row of the pack table; without what is only known when the pack is closed.
struct Row {
    packed: Arc<Mutex<Option<Packed>>>,
    live: u64,
}

/// What became of a batch.
pub(crate) struct Stored {
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) new_bytes: u64,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { open: None, packs: vec![], by_digest: HashMap::new(), sealing: VecDeque::new() }
    }

    fn number(&self) -> Result<u32> {
        let found = self.packs.len();
        if found >= MOST_PACKS {
            let limit = MOST_PACKS as u64;
            return Err(Error::Limit {
                what: "number of packs of one component".to_owned(),
                found: found as u64,
                limit,
            });
        }
        Ok(u32::try_from(found).unwrap_or(u32::MAX))
    }

    fn reuse(&mut self, found: Found) -> Result<Chunk> {
        let number = match self.by_digest.get(&found.pack.digest) {
            Some(number) => *number,
            None => {
                let number = self.number()?;
                self.by_digest.insert(found.pack.digest, number);
                self.packs.push(Row { packed: Arc::new(Mutex::new(Some(found.pack))), live: 0 });
                number
            }
        };
        Ok(Chunk { pack: number, ..found.chunk })
    }

    fn count(&mut self, chunk: &Chunk) {
        if let Some(row) = self.packs.get_mut(chunk.pack as usize) {
            row.live += u64::from(chunk.stored);
        }
    }

    /// Places a batch. Full generations of the table come back as runs.
    pub(crate) async fn place(
        &mut self,
        shared: &Arc<Shared>,
        batch: Vec<Prepared>,
    ) -> Result<(Stored, Vec<Vec<Chunk>>)> {
        // The same chunk may have come twice since it was looked up, also within the batch: only its first is new.
        let mut places: Vec<Option<Chunk>> = Vec::with_capacity(batch.len());
        let mut twice: Vec<(usize, usize)> = Vec::new();
        let mut firsts: HashMap<[u8; 32], usize> = HashMap::new();
        let mut ready = Vec::new();
        let mut new_places = Vec::new();
        let mut runs = Vec::new();
        for prepared in batch {
            let at = places.len();
            let (place, fresh) = match prepared {
                Prepared::Known(chunk) => (Some(chunk), None),
                Prepared::Reused(found) => {
                    let known = shared.known(&found.chunk.hash);
                    let chunk = match known {
                        Some(chunk) => chunk,
                        None => {
                            let chunk = self.reuse(found)?;
                            self.count(&chunk);
                            runs.extend(shared.add(&chunk));
                            chunk
                        }
                    };
                    (Some(chunk), None)
                }
                Prepared::New(new) => {
                    let known = shared.known(&new.hash);
                    if known.is_some() { (known, None) } else { (None, Some(new)) }
                }
            };
            places.push(place);
            if let Some(new) = fresh {
                match firsts.get(&new.hash) {
                    Some(first) => twice.push((at, *first)),
                    None => {
                        firsts.insert(new.hash, at);
                        new_places.push(at);
                        ready.push(new);
                    }
                }
            }
        }
        let new_bytes = ready.iter().map(|ready| u64::from(ready.raw)).sum();
        if !ready.is_empty() {
            let stored = self.append(shared, ready).await?;
            for (at, chunk) in new_places.into_iter().zip(stored) {
                self.count(&chunk);
                runs.extend(shared.add(&chunk));
                if let Some(place) = places.get_mut(at) {
                    *place = Some(chunk);
                }
            }
        }
        for (at, first) in twice {
            let chunk = places.get(first).copied().flatten();
            if let Some(place) = places.get_mut(at) {
                *place = chunk;
            }
        }
        let chunks: Option<Vec<Chunk>> = places.into_iter().collect();
        let chunks = chunks.ok_or_else(|| Error::Misuse("a chunk was left without a place".to_owned()))?;
        Ok((Stored { chunks, new_bytes }, runs))
    }

    async fn append(&mut self, shared: &Arc<Shared>, ready: Vec<Ready>) -> Result<Vec<Chunk>> {
        let pack = match self.open.take() {
            Some(pack) => pack,
            None => {
                // A store that is slower than the source holds it up: packs on their way take memory.
                while self.sealing.len() > MOST_ON_THEIR_WAY {
                    let Some(oldest) = self.sealing.pop_front() else { break };
                    oldest.await.map_err(|_| Error::Stopped)??;
                }
                let number = self.number()?;
                let pack = OpenPack::begin(&shared.core.store, number).await?;
                self.packs.push(Row { packed: Arc::new(Mutex::new(None)), live: 0 });
                pack
            }
        };
        let (pack, chunks) = pack.append(&shared.core.store, ready).await?;
        let target = if pack.number < LARGE_AFTER { shared.core.store.backend.pack_target() } else { LARGE_TARGET };
        if pack.size() >= target {
            self.seal(shared, pack);
        } else {
            self.open = Some(pack);
        }
        Ok(chunks)
    }

    /// Syncs, names, reads back and marks a pack, while others are being written.
    fn seal(&mut self, shared: &Arc<Shared>, pack: OpenPack) {
        let Some(row) = self.packs.get(pack.number as usize) else { return };
        let (place, shared) = (row.packed.clone(), shared.clone());
        let (done, result) = oneshot::channel();
        let spawner = shared.core.store.seams.spawner.clone();
        self.sealing.push_back(result);
        spawner.spawn(
            "repository.seal",
            Box::pin(async move {
                let sealed = seal(&shared, pack).await.map(|packed| {
                    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(packed);
                });
                if let Err(error) = &sealed {
                    shared.fail(error);
                }
                // Nobody waits when the component was given up.
                let _ = done.send(sealed);
            }),
        );
    }

    /// Closes the last pack and waits until every one was verified; answers for the pack table and the stored bytes.
    pub(crate) async fn finish(&mut self, shared: &Arc<Shared>) -> Result<(Vec<PackRow>, u64)> {
        if let Some(pack) = self.open.take() {
            self.seal(shared, pack);
        }
        let reused: Vec<u32> = self.by_digest.values().copied().collect();
        for result in std::mem::take(&mut self.sealing) {
            result.await.map_err(|_| Error::Stopped)??;
        }
        let mut rows = Vec::with_capacity(self.packs.len());
        let mut stored = 0;
        for (number, row) in (0u32..).zip(&self.packs) {
            let packed = row.packed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Packed { digest, size, key, chunks } = packed.ok_or(Error::Stopped)?;
            if !reused.contains(&number) {
                stored += size;
            }
            rows.push(PackRow { digest, size, key, chunks, live: row.live.min(size) });
        }
        Ok((rows, stored))
    }
}

async fn seal(shared: &Shared, pack: OpenPack) -> Result<Packed> {
    let store = &shared.core.store;
    let _turn = store.limits.sealing.acquire().await.map_err(|_| Error::Stopped)?;
    let packed = pack.seal(store, &shared.core.image_key).await?;
    shared.count_verified(packed.size);
    // From here on a retried task finds it.
    let mark = format!("{}{}", shared.core.staging(), packed.digest.hex());
    store.backend.create(&mark, bytes::Bytes::new()).await?;
    Ok(packed)
}
