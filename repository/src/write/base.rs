//! Chunks that need not be stored again: of the base image, and of packs that an earlier attempt finished.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use ocopea_protocol::{names::Digest, secret::Secret32};

use super::table::Places;
use crate::{
    chunk::Chunk,
    error::Result,
    oci,
    pack::{self, Packed},
    session::Core,
    store::{LONGEST_MANIFEST, blob_digest},
    toc::{PAGE_ROWS, PackRow, TocReader},
};

/// Most chunks of earlier attempts that are remembered.
const MOST_STAGED: usize = 256 << 10;
/// From so many runs on there is a filter: below, most pages that look-ups need stay in memory.
const FILTERED_FROM: usize = 3;
/// Bits of the filter for each chunk of the base …
const BITS_FOR_EACH: usize = 12;
/// … and at most 16 MiB in all.
const MOST_WORDS: usize = (16 << 20) / 8;
/// Most packs, and most chunks of them, that are remembered because something was found there: some 3 MB.
const NEAR_PACKS: usize = 48;
const NEAR: usize = 24 << 10;

/// What may be used again.
pub(crate) struct Reusable {
    base: Option<Base>,
    staged: Places,
    staged_packs: Vec<Packed>,
}

struct Base {
    toc: TocReader,
    packs: Vec<PackRow>,
    /// Packs that are less than half in use (what is still used of them is copied out, so that they can go), and those
    /// that aren't there any more.
    unfit: HashSet<u32>,
    /// Tells of most chunks that the base hasn't got; absent where looking costs little.
    filter: Option<Filter>,
    near: Mutex<Near>,
    /// Whether it was said that something of it is broken.
    told: AtomicBool,
}

/// Chunks of the packs in which something was found last: what is saved again comes in about the same order.
#[derive(Default)]
struct Near {
    packs: VecDeque<(u32, Arc<Places>)>,
    chunks: usize,
}

/// A chunk that was found, and the pack that holds it.
pub(crate) struct Found {
    pub(crate) chunk: Chunk,
    pub(crate) pack: Packed,
}

impl Reusable {
    /// Opens the base's component of the same name, and the packs that earlier attempts at this image left.
    pub(crate) async fn open(core: &Core, base: Option<(&Secret32, &Digest)>) -> Result<Self> {
        let condemned = core.condemned().await?;
        let base = match base {
            Some((key, manifest)) => match Base::open(core, key, manifest, condemned).await {
                Ok(base) => Some(base),
                // A base that can't be read costs space, not the save. It is `verify` that reports it.
                Err(error) if error.is_of_one_object() => {
                    tracing::warn!(%error, "the base can't be read: everything is stored anew");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let mut reusable = Self { base, staged: Places::default(), staged_packs: vec![] };
        reusable.add_staged(core, condemned).await?;
        Ok(reusable)
    }

    async fn add_staged(&mut self, core: &Core, condemned: &HashSet<Digest>) -> Result<()> {
        for entry in core.store.backend.list(&core.staging()).await? {
            let digest = entry.name.rsplit('/').next().and_then(|hex| blob_digest(&format!("blobs/sha256/{hex}")));
            let Some(digest) = digest.filter(|digest| !condemned.contains(digest)) else { continue };
            let Some(blob) = core.store.backend.head(&crate::store::blob_name(&digest)).await? else { continue };
            // Whatever is wrong with an unfinished attempt's pack: it is written again, and nobody names this one.
            let Ok((packed, chunks)) = pack::read_index(&core.store, &core.image_key, &digest, blob.size).await else {
                continue;
            };
            if self.staged.len() + chunks.len() > MOST_STAGED {
                break;
            }
            let number = u32::try_from(self.staged_packs.len()).unwrap_or(u32::MAX);
            self.staged_packs.push(packed);
            chunks.iter().for_each(|chunk| self.staged.insert(&Chunk { pack: number, ..*chunk }));
        }
        Ok(())
    }

    /// Looks a chunk up.
    pub(crate) async fn find(&self, core: &Core, hash: &[u8; 32]) -> Result<Option<Found>> {
        if let Some(chunk) = self.staged.get(hash)
            && let Some(pack) = self.staged_packs.get(chunk.pack as usize)
        {
            return Ok(Some(Found { chunk, pack: pack.clone() }));
        }
        let Some(base) = &self.base else { return Ok(None) };
        let found = match base.find(core, hash).await {
            Ok(found) => found,
            // It costs space, not the save.
            Err(error) if error.is_of_one_object() => {
                if !base.told.swap(true, Relaxed) {
                    tracing::warn!(%error, "the base can't be read everywhere: something is stored anew");
                }
                None
            }
            Err(error) => return Err(error),
        };
        let Some(chunk) = found.filter(|chunk| !base.unfit.contains(&chunk.pack)) else { return Ok(None) };
        let Some(row) = base.packs.get(chunk.pack as usize) else { return Ok(None) };
        let pack = Packed { digest: row.digest, size: row.size, key: row.key.clone(), chunks: row.chunks };
        Ok(Some(Found { chunk, pack }))
    }

    /// Whether look-ups are worth their time.
    pub(crate) fn is_empty(&self) -> bool {
        self.base.is_none() && self.staged_packs.is_empty()
    }
}

impl Base {
    async fn open(core: &Core, key: &Secret32, manifest: &Digest, condemned: &HashSet<Digest>) -> Result<Self> {
        let bytes = core.store.get_blob(manifest, LONGEST_MANIFEST).await?;
        let manifest: oci::Manifest = oci::parse(&manifest.to_string(), &bytes)?;
        let toc = TocReader::open(&core.store, key, &manifest.config.digest, manifest.config.size).await?;
        let packs = toc.packs().await?;
        let wanted: Vec<(Digest, u64)> = packs.iter().map(|row| (row.digest, row.size)).collect();
        let missing: HashSet<Digest> = core.store.missing(wanted).await?.into_iter().collect();
        if !missing.is_empty() {
            tracing::warn!(packs = missing.len(), "packs of the base are gone: what they held is stored anew");
        }
        let unfit =
            |row: &PackRow| row.live < row.size / 2 || condemned.contains(&row.digest) || missing.contains(&row.digest);
        let unfit = (0u32..).zip(&packs).filter(|(_, row)| unfit(row)).map(|(number, _)| number).collect();
        let filter = if toc.root.runs.len() < FILTERED_FROM { None } else { Some(Filter::of(&toc).await?) };
        Ok(Self { toc, packs, unfit, filter, near: Mutex::default(), told: AtomicBool::new(false) })
    }

    async fn find(&self, core: &Core, hash: &[u8; 32]) -> Result<Option<Chunk>> {
        if self.filter.as_ref().is_some_and(|filter| !filter.may_have(hash)) {
            return Ok(None);
        }
        if let Some(chunk) = self.near().get(hash) {
            return Ok(Some(chunk));
        }
        let Some(chunk) = self.toc.find(hash).await? else { return Ok(None) };
        // With few runs the look-up is as cheap as this.
        if self.filter.is_some()
            && !self.unfit.contains(&chunk.pack)
            && let Some(row) = self.packs.get(chunk.pack as usize).filter(|row| row.chunks as usize <= NEAR)
        {
            let chunks = pack::read_index_with(&core.store, &row.key, &row.digest, row.size).await?;
            let mut places = Places::default();
            chunks.iter().for_each(|found| places.insert(&Chunk { pack: chunk.pack, ..*found }));
            self.near().add(chunk.pack, Arc::new(places));
        }
        Ok(Some(chunk))
    }

    fn near(&self) -> MutexGuard<'_, Near> {
        self.near.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Near {
    fn get(&self, hash: &[u8; 32]) -> Option<Chunk> {
        self.packs.iter().rev().find_map(|(_, places)| places.get(hash))
    }

    fn add(&mut self, pack: u32, places: Arc<Places>) {
        if self.packs.iter().any(|(known, _)| *known == pack) {
            return;
        }
        self.chunks += places.len();
        self.packs.push_back((pack, places));
        while self.packs.len() > NEAR_PACKS || self.chunks > NEAR {
            let Some((_, oldest)) = self.packs.pop_front() else { break };
            self.chunks -= oldest.len();
        }
    }
}

/// A Bloom filter over the hashes of a base. A look-up for a chunk that isn't there would read a page of every run.
struct Filter {
    bits: Vec<u64>,
}

impl Filter {
    async fn of(toc: &TocReader) -> Result<Self> {
        let pages: usize = toc.root.runs.iter().map(|run| run.pages.len()).sum();
        let words = (pages * PAGE_ROWS * BITS_FOR_EACH / 64).next_power_of_two().min(MOST_WORDS);
        let mut filter = Self { bits: vec![0; words] };
        for number in toc.root.runs.iter().flat_map(|run| &run.pages) {
            for hash in toc.hashes(*number).await? {
                for at in filter.places(&hash) {
                    if let Some(word) = filter.bits.get_mut(at / 64) {
                        *word |= 1 << (at % 64);
                    }
                }
            }
        }
        Ok(filter)
    }

    fn may_have(&self, hash: &[u8; 32]) -> bool {
        self.places(hash).iter().all(|at| self.bits.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0))
    }

    /// Hashes are even already: parts of them will do.
    fn places(&self, hash: &[u8; 32]) -> [usize; 4] {
        let mask = self.bits.len() * 64 - 1;
        let mut places = [0; 4];
        for (place, eight) in places.iter_mut().zip(hash.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(eight);
            *place = usize::try_from(u64::from_le_bytes(word) & mask as u64).unwrap_or(0);
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::TryStreamExt;
    use ocopea_protocol::{
        image::{BaseAccess, DataKind, ImageAccess, Location, StoreLimits},
        names::ComponentName,
    };

    use crate::{ImageSession, Keyring, Repository, StoreAccess, StreamFacts, testing::seams};

    /// No two alike; a twentieth of them differs from round to round.
    fn content(stream: u64, round: u64) -> Vec<u8> {
        let changed = if stream.is_multiple_of(20) { round } else { 0 };
        let seed = [stream.to_le_bytes(), changed.to_le_bytes()].concat();
        // Nothing to compress: else a pack's index were longer than what it holds, and the pack not worth keeping.
        let mut out = vec![0; 3200];
        blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut out);
        out
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn chunks_are_found_in_a_base_of_many_runs_and_others_are_not() {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Directory { path: place.path().join("repo").to_str().unwrap().to_owned() };
        let name: ComponentName = "data".parse().unwrap();
        Repository::create(&location, &StoreAccess::default(), &Keyring::generate(&seams()), &seams()).await.unwrap();
        let hash_key = crate::keys::random_key(&seams());
        let (mut base, mut all_new) = (None, 0);
        for round in 0..2 {
            let image_key = crate::keys::random_key(&seams());
            let access = ImageAccess {
                location: location.clone(),
                image_key,
                hash_key: hash_key.clone(),
                base: base.take(),
                store_keys: None,
                limits: StoreLimits::default(),
            };
            let session = ImageSession::open(&access, &StoreAccess::default(), &seams()).await.unwrap();
            let writer = session.component(&name, DataKind::Volume).await.unwrap();
            for stream in 0..400 {
                let mut open = writer.stream(format!("{stream:04}").as_bytes()).await.unwrap();
                open.write(Bytes::from(content(stream, round))).await.unwrap();
                open.finish(StreamFacts::default()).await.unwrap();
            }
            let written = writer.finish("{}").await.unwrap();
            let reader = session.reader(&written.manifest).await.unwrap();
            for stream in 0..400 {
                let pieces = reader.read(format!("{stream:04}").as_bytes()).await.unwrap();
                let read: Vec<Bytes> = pieces.try_collect().await.unwrap();
                assert!(read.concat() == content(stream, round), "{stream}");
            }
            all_new += written.new_bytes;
            let components = vec![(name.clone(), written.manifest)];
            base = Some(BaseAccess { image_key: access.image_key, components });
        }
        assert_eq!(all_new, (400 + 20) * 3200, "everything, then the twentieth that differs");
    }
}
