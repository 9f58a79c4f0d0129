//! One hash over a set of items, whatever the order they were read in.
//!
//! Each item is hashed with keyed BLAKE3; the 256-bit results are added modulo 2^256. Equal sets (with repetitions)
//! give equal sums; the key keeps anybody without it from building a set with a wanted sum.

use ocopea_protocol::secret::Secret32;

/// Adds items up.
#[derive(Clone)]
pub struct ItemHasher {
    key: [u8; 32],
    sum: ItemSum,
}

/// A sum of items' hashes, with their number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemSum {
    lanes: [u64; 4],
    count: u64,
}

impl ItemHasher {
    /// Keyed by the team's hash key.
    pub fn new(hash_key: &Secret32) -> Self {
        // A key of its own for this purpose: the same bytes as an item and as a chunk must not hash alike.
        Self { key: blake3::derive_key("ocopea 2026 item set hash v1", &hash_key.0), sum: ItemSum::default() }
    }

    /// Adds one item.
    pub fn add(&mut self, item: &[u8]) {
        self.sum.push(blake3::keyed_hash(&self.key, item).as_bytes());
    }

    /// Adds one item that comes in parts (large files).
    pub fn add_parts(&mut self, feed: impl FnOnce(&mut blake3::Hasher)) {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        feed(&mut hasher);
        self.sum.push(hasher.finalize().as_bytes());
    }

    /// An incremental hasher for one item; give its result to [`Self::add_hash`].
    pub fn item(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.key)
    }

    /// Adds an item that was hashed with [`Self::item`].
    pub fn add_hash(&mut self, hash: &blake3::Hash) {
        self.sum.push(hash.as_bytes());
    }

    /// What was added so far.
    pub fn sum(&self) -> ItemSum {
        self.sum
    }
}

impl ItemSum {
    fn push(&mut self, hash: &[u8; 32]) {
        let mut other = Self { lanes: [0; 4], count: 1 };
        for (lane, bytes) in other.lanes.iter_mut().zip(hash.chunks_exact(8)) {
            let mut word = [0u8; 8];
            word.copy_from_slice(bytes);
            *lane = u64::from_le_bytes(word);
        }
        self.merge(&other);
    }

    /// The sum of both.
    pub fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (lane, add) in self.lanes.iter_mut().zip(other.lanes) {
            let (first, over) = lane.overflowing_add(add);
            let (second, again) = first.overflowing_add(u64::from(carry));
            *lane = second;
            carry = over || again;
        }
        self.count += other.count;
    }

    /// How many items.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// 64 hexadecimal digits, little end first.
    pub fn hex(&self) -> String {
        let mut bytes = [0u8; 32];
        for (target, lane) in bytes.chunks_exact_mut(8).zip(self.lanes) {
            target.copy_from_slice(&lane.to_le_bytes());
        }
        hex::encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_repetition_does() {
        let key = Secret32([7; 32]);
        let hash = |items: &[&str]| {
            let mut hasher = ItemHasher::new(&key);
            items.iter().for_each(|item| hasher.add(item.as_bytes()));
            hasher.sum()
        };
        assert_eq!(hash(&["a", "b", "c"]), hash(&["c", "a", "b"]));
        assert_ne!(hash(&["a", "a"]).hex(), hash(&["a"]).hex());
        assert_ne!(hash(&["ab"]).hex(), hash(&["a", "b"]).hex());
        let (mut left, right) = (hash(&["a"]), hash(&["b", "c"]));
        left.merge(&right);
        assert_eq!(left, hash(&["a", "b", "c"]));
        assert_ne!(hash(&["a"]).hex(), {
            let mut other = ItemHasher::new(&Secret32([8; 32]));
            other.add(b"a");
            other.sum().hex()
        });
    }
}
