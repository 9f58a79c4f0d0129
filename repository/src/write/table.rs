//! The chunks that a component has so far, by hash, in bounded memory.
//!
//! Two generations: when the young one is full, it is written out as a sorted run and becomes the old one, and the
//! old one is forgotten. A chunk that comes again later than that is looked for in the base, else stored once more.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::chunk::Chunk;

/// Chunks of one generation: some 7 MB, and about 16 GiB of raw data. Few in unit tests, which want to see many runs.
pub(crate) const GENERATION: usize = if cfg!(test) { 64 } else { 64 << 10 };

/// Hashes are even already: eight bytes of them will do.
#[derive(Default)]
pub(crate) struct Already(u64);

impl Hasher for Already {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(eight) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*eight);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}

#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    ordinal: u32,
    offset: u32,
    stored: u32,
    raw: u32,
    flags: u32,
}

/// A map from hash to place.
#[derive(Default)]
pub(crate) struct Places(HashMap<[u8; 32], Place, BuildHasherDefault<Already>>);

impl Places {
    pub(crate) fn get(&self, hash: &[u8; 32]) -> Option<Chunk> {
        self.0.get(hash).map(|place| chunk(hash, place))
    }

    pub(crate) fn insert(&mut self, chunk: &Chunk) {
        let Chunk { hash, pack, ordinal, offset, stored, raw, flags } = *chunk;
        self.0.insert(hash, Place { pack, ordinal, offset, stored, raw, flags });
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn chunks(&self) -> Vec<Chunk> {
        self.0.iter().map(|(hash, place)| chunk(hash, place)).collect()
    }
}

fn chunk(hash: &[u8; 32], place: &Place) -> Chunk {
    let Place { pack, ordinal, offset, stored, raw, flags } = *place;
    Chunk { hash: *hash, pack, ordinal, offset, stored, raw, flags }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    young: Places,
    old: Places,
}

impl Table {
    pub(crate) fn get(&self, hash: &[u8; 32]) -> Option<Chunk> {
        self.young.get(hash).or_else(|| self.old.get(hash))
    }

    /// Adds a chunk that isn't in it; gives a full generation back, to be written as a run.
    pub(crate) fn insert(&mut self, chunk: &Chunk) -> Option<Vec<Chunk>> {
        self.young.insert(chunk);
        if self.young.len() < GENERATION {
            return None;
        }
        self.old = std::mem::take(&mut self.young);
        Some(self.old.chunks())
    }

    /// What was not yet given back.
    pub(crate) fn rest(&self) -> Vec<Chunk> {
        self.young.chunks()
    }
}
