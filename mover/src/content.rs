//! The hash of a file's contents: the same wherever the holes lie.
//!
//! A file is seen as blocks of 4096 bytes, the last one as long as is left. Blocks of zeros alone are passed over, be
//! they holes or written. The hash is BLAKE3 over: BLAKE3 of the other blocks' bytes, one behind the other; BLAKE3 of
//! their runs (number of the first block, number of blocks: 64 bits each, little-endian); the size (64 bits).

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Takes the contents of one file, in order; what is passed over is zeros.
pub struct ContentHasher {
    data: blake3::Hasher,
    runs: blake3::Hasher,
    run: Option<(u64, u64)>,
    at: u64,
    /// The block that `at` lies in; all zeros behind it.
    partial: Box<[u8; BLOCK]>,
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self {
            data: blake3::Hasher::new(),
            runs: blake3::Hasher::new(),
            run: None,
            at: 0,
            partial: Box::new([0; BLOCK]),
        }
    }
}

impl ContentHasher {
    /// Where the next byte is expected.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// `bytes` lie at `offset`, which must not be before [`Self::position`].
    pub fn update(&mut self, offset: u64, mut bytes: &[u8]) {
        if offset > self.at {
            if offset / BLOCK as u64 != self.at / BLOCK as u64 {
                self.flush(BLOCK);
            }
            self.at = offset;
        }
        while !bytes.is_empty() {
            let within = within(self.at);
            let whole = bytes.len() - bytes.len() % BLOCK;
            if within == 0 && whole > 0 {
                let (now, later) = bytes.split_at(whole);
                self.blocks(now);
                self.at += whole as u64;
                bytes = later;
            } else {
                let (now, later) = bytes.split_at(bytes.len().min(BLOCK - within));
                if let Some(place) = self.partial.get_mut(within..within + now.len()) {
                    place.copy_from_slice(now);
                }
                bytes = later;
                if within + now.len() == BLOCK {
                    self.flush(BLOCK);
                }
                self.at += now.len() as u64;
            }
        }
    }

    /// The hash of a file of `size` bytes.
    pub fn finish(mut self, size: u64) -> [u8; 32] {
        let start = self.at - within(self.at) as u64;
        let length = size.saturating_sub(start).min(BLOCK as u64);
        self.flush(usize::try_from(length).unwrap_or(BLOCK));
        self.end_run();
        let mut all = blake3::Hasher::new();
        all.update(self.data.finalize().as_bytes());
        all.update(self.runs.finalize().as_bytes());
        all.update(&size.to_le_bytes());
        *all.finalize().as_bytes()
    }

    /// Ends the partial block, which has `length` bytes.
    fn flush(&mut self, length: usize) {
        let number = self.at / BLOCK as u64;
        if !is_zero(self.partial.as_slice()) {
            self.extend_run(number, 1);
            self.data.update(self.partial.get(..length).unwrap_or_default());
            self.partial.fill(0);
        }
    }

    /// Whole blocks at a block's beginning.
    fn blocks(&mut self, bytes: &[u8]) {
        let first = self.at / BLOCK as u64;
        let mut begun = None;
        for (at, block) in (0..).zip(bytes.chunks_exact(BLOCK)) {
            match (is_zero(block), begun) {
                (false, None) => begun = Some(at),
                (true, Some(from)) => {
                    self.several(first, bytes, from, at);
                    begun = None;
                }
                _ => {}
            }
        }
        if let Some(from) = begun {
            self.several(first, bytes, from, bytes.len() / BLOCK);
        }
    }

    fn several(&mut self, first: u64, bytes: &[u8], from: usize, to: usize) {
        self.extend_run(first + from as u64, (to - from) as u64);
        self.data.update(bytes.get(from * BLOCK..to * BLOCK).unwrap_or_default());
    }

    fn extend_run(&mut self, number: u64, blocks: u64) {
        match &mut self.run {
            Some((first, length)) if *first + *length == number => *length += blocks,
            _ => {
                self.end_run();
                self.run = Some((number, blocks));
            }
        }
    }

    fn end_run(&mut self) {
        if let Some((first, length)) = self.run.take() {
            self.runs.update(&first.to_le_bytes());
            self.runs.update(&length.to_le_bytes());
        }
    }
}

fn within(at: u64) -> usize {
    usize::try_from(at % BLOCK as u64).unwrap_or(0)
}

fn is_zero(block: &[u8]) -> bool {
    let (chunks, rest) = block.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(bytes: &[u8]) -> [u8; 32] {
        let mut hasher = ContentHasher::default();
        hasher.update(0, bytes);
        hasher.finish(bytes.len() as u64)
    }

    /// The definition, written down a second time.
    fn defined(bytes: &[u8]) -> [u8; 32] {
        let (mut data, mut runs) = (Vec::new(), Vec::<(u64, u64)>::new());
        for (number, block) in (0u64..).zip(bytes.chunks(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                data.extend_from_slice(block);
                match runs.last_mut() {
                    Some((first, length)) if *first + *length == number => *length += 1,
                    _ => runs.push((number, 1)),
                }
            }
        }
        let runs: Vec<u8> = runs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()].concat()).collect();
        let parts = [
            blake3::hash(&data).as_bytes().as_slice(),
            blake3::hash(&runs).as_bytes(),
            &(bytes.len() as u64).to_le_bytes(),
        ]
        .concat();
        *blake3::hash(&parts).as_bytes()
    }

    #[test]
    fn a_hole_and_written_zeros_are_the_same() {
        let mut bytes = vec![7; 10_000];
        bytes.extend([0; 100_000]);
        bytes.extend([9; 5000]);
        let mut hasher = ContentHasher::default();
        hasher.update(0, &bytes[..10_000]);
        hasher.update(110_000, &bytes[110_000..]);
        assert_eq!(hasher.finish(115_000), plain(&bytes));
        let mut trailing = ContentHasher::default();
        trailing.update(0, b"x");
        let mut zeros = vec![0; 9000];
        zeros[0] = b'x';
        assert_eq!(trailing.finish(9000), plain(&zeros));
    }

    #[test]
    fn place_length_and_order_count() {
        let mut all = std::collections::HashSet::new();
        for bytes in [&b""[..], b"\0", b"\0\0", b"a", b"a\0", b"\0a", b"ab", b"ba"] {
            assert!(all.insert(plain(bytes)), "{bytes:?}");
        }
        for at in [0, 1, 4095, 4096, 8192, 12_287] {
            let mut bytes = vec![0; 20_000];
            bytes[at] = 1;
            assert!(all.insert(plain(&bytes)), "{at}");
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_as_defined(
            blocks in prop::collection::vec((any::<bool>(), 1usize..9000), 0..8),
            cuts in prop::collection::vec((1usize..7000, any::<bool>()), 1..20),
        ) {
            let mut bytes = Vec::new();
            for (zero, length) in blocks {
                bytes.extend((0..length).map(|at| if zero { 0 } else { (at % 251) as u8 }));
            }
            let mut hasher = ContentHasher::default();
            let (mut at, mut cut) = (0, cuts.iter().cycle());
            while at < bytes.len() {
                let (length, skip) = cut.next().unwrap();
                let end = (at + length).min(bytes.len());
                let piece = &bytes[at..end];
                // What is zero may be told or passed over.
                if !(*skip && piece.iter().all(|byte| *byte == 0)) {
                    hasher.update(at as u64, piece);
                }
                at = end;
            }
            prop_assert_eq!(hasher.finish(bytes.len() as u64), defined(&bytes));
        }
    }
}
