//! The content hash of a stream: over the set of its items, whatever the order they were read in.
//!
//! Each item (a row, a document, a file with its attributes) is hashed by keyed BLAKE3, and the hashes are added
//! modulo 2^256. Addition forgets the order but not how often an item occurs; the team's key keeps anybody who
//! doesn't hold it from making two sets with one sum, and from guessing contents.

use std::fmt;

use ocopea_protocol::secret::Secret32;

use crate::keys;

/// The hash of one item on its way.
pub type PartHasher = blake3::Hasher;

/// Adds up the hashes of items. Several can work on parts of one stream, then be merged.
#[derive(Clone)]
pub struct ItemHasher {
    key: Secret32,
    sum: [u64; 4],
    items: u64,
}

impl ItemHasher {
    /// An empty set, keyed with a team's hash key.
    pub fn new(hash_key: &Secret32) -> Self {
        Self { key: keys::derive(keys::ITEMS, &hash_key.0), sum: [0; 4], items: 0 }
    }

    /// Adds one item.
    pub fn add(&mut self, item: &[u8]) {
        self.add_hash(*blake3::keyed_hash(&self.key.0, item).as_bytes());
    }

    /// Adds one item that consists of parts, as if they were one.
    pub fn add_parts<'a>(&mut self, parts: impl IntoIterator<Item = &'a [u8]>) {
        let mut hasher = self.part_hasher();
        for part in parts {
            hasher.update(part);
        }
        self.add_hash(*hasher.finalize().as_bytes());
    }

    /// A hasher for one item that comes in pieces; give its result to [`Self::add_hash`].
    pub fn part_hasher(&self) -> PartHasher {
        blake3::Hasher::new_keyed(&self.key.0)
    }

    /// Adds one item by the result of a [`Self::part_hasher`].
    pub fn add_hash(&mut self, hash: [u8; 32]) {
        self.add_sum(words(&hash));
        self.items += 1;
    }

    /// Adds all items of `other`, which must have the same key.
    pub fn merge(&mut self, other: &Self) {
        self.add_sum(other.sum);
        self.items += other.items;
    }

    /// How many items were added.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// The sum, least significant byte first.
    pub fn sum(&self) -> [u8; 32] {
        let mut out = [0; 32];
        for (place, word) in out.chunks_exact_mut(8).zip(self.sum) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn add_sum(&mut self, other: [u64; 4]) {
        let mut carry = false;
        for (own, more) in self.sum.iter_mut().zip(other) {
            let (sum, over) = own.overflowing_add(more);
            let (sum, again) = sum.overflowing_add(u64::from(carry));
            *own = sum;
            carry = over || again;
        }
    }
}

fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let mut out = [0; 4];
    for (word, place) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut eight = [0; 8];
        eight.copy_from_slice(place);
        *word = u64::from_le_bytes(eight);
    }
    out
}

impl fmt::Debug for ItemHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemHasher").field("items", &self.items).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(items: &[&[u8]]) -> ItemHasher {
        let mut hasher = ItemHasher::new(&Secret32([7; 32]));
        items.iter().for_each(|item| hasher.add(item));
        hasher
    }

    #[test]
    fn order_does_not_matter_but_number_does() {
        let one = hashed(&[b"a", b"b", b"c"]);
        assert_eq!(one.sum(), hashed(&[b"c", b"a", b"b"]).sum());
        assert_ne!(one.sum(), hashed(&[b"a", b"b"]).sum());
        assert_ne!(hashed(&[b"a", b"a"]).sum(), hashed(&[b"a"]).sum());
        assert_ne!(hashed(&[b"a", b"a"]).sum(), hashed(&[]).sum());
    }

    #[test]
    fn parts_merge_into_the_whole() {
        let mut left = hashed(&[b"a", b"b"]);
        left.merge(&hashed(&[b"c"]));
        assert_eq!((left.sum(), left.items()), (hashed(&[b"a", b"b", b"c"]).sum(), 3));
        let mut split = hashed(&[]);
        split.add_parts([b"he".as_slice(), b"llo"]);
        assert_eq!(split.sum(), hashed(&[b"hello"]).sum());
    }

    #[test]
    fn the_sum_carries_over_all_words() {
        let mut hasher = hashed(&[]);
        hasher.add_hash([0xff; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        hasher.add_hash(one);
        assert_eq!(hasher.sum(), [0; 32]);
    }
}
