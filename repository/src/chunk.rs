//! Cutting streams into chunks by content, and compressing each by itself.

use std::sync::Mutex;

use bytes::Bytes;
use fastcdc::v2020::{FastCDC, Normalization};
use ocopea_protocol::secret::Secret32;

use crate::error::{Error, Result};

/// Chunks are cut no shorter than this, but at the end of a stream.
pub(crate) const SHORTEST: usize = 64 << 10;
/// What they are on average.
pub(crate) const AVERAGE: usize = 256 << 10;
/// No writer makes longer ones.
pub(crate) const LONGEST: usize = 1 << 20;
/// The format's own limit: what a reader must take.
pub(crate) const LIMIT: u32 = 8 << 20;
/// How hard is tried to make them small.
const LEVEL: i32 = 1;
/// Set in [`Chunk::flags`]: the chunk is a zstd frame; else it is stored as it is.
pub(crate) const ZSTD: u32 = 1;

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Keyed BLAKE3 of the raw bytes.
    pub(crate) hash: [u8; 32],
    /// Row of the component's pack table.
    pub(crate) pack: u32,
    /// Its number within the pack: the nonce.
    pub(crate) ordinal: u32,
    /// Where its ciphertext begins in the pack.
    pub(crate) offset: u32,
    /// Length of ciphertext and tag.
    pub(crate) stored: u32,
    /// Length of the raw bytes.
    pub(crate) raw: u32,
    /// [`ZSTD`] or 0.
    pub(crate) flags: u32,
}

/// Bytes of a [`Chunk`] in a table of contents.
pub(crate) const ROW: usize = 56;

impl Chunk {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash);
        for word in [self.pack, self.ordinal, self.offset, self.stored, self.raw, self.flags] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn decode(row: &[u8]) -> Option<Self> {
        let (hash, rest) = row.split_first_chunk::<32>()?;
        let mut words = rest.chunks_exact(4).filter_map(|four| Some(u32::from_le_bytes(four.try_into().ok()?)));
        let chunk = Self {
            hash: *hash,
            pack: words.next()?,
            ordinal: words.next()?,
            offset: words.next()?,
            stored: words.next()?,
            raw: words.next()?,
            flags: words.next()?,
        };
        chunk.is_sound().then_some(chunk)
    }

    /// Whether a reader may go by its figures.
    pub(crate) fn is_sound(&self) -> bool {
        self.raw > 0
            && self.raw <= LIMIT
            && self.stored as usize > crate::keys::TAG
            && self.stored <= LIMIT + (64 << 10)
            && self.offset.checked_add(self.stored).is_some()
            && self.flags & !ZSTD == 0
            && (self.flags & ZSTD != 0 || self.stored as usize == self.raw as usize + crate::keys::TAG)
    }
}

/// Cuts streams where their content says so, differently for each team: chunk sizes tell no stranger what is in them.
pub(crate) struct Cutter {
    seed: u64,
}

impl Cutter {
    pub(crate) fn new(hash_key: &Secret32) -> Self {
        let derived = crate::keys::derive(crate::keys::CUTS, &hash_key.0);
        let mut eight = [0; 8];
        eight.copy_from_slice(derived.0.get(..8).unwrap_or(&[0; 8]));
        Self { seed: u64::from_le_bytes(eight) }
    }

    /// Cuts off what can be cut whatever comes next; answers for the chunks, and the rest begins the next region.
    pub(crate) fn cut(&self, region: Bytes, last: bool) -> (Vec<Bytes>, Bytes) {
        let mut chunks = Vec::with_capacity(region.len() / AVERAGE + 1);
        let mut start = 0;
        if region.len() > SHORTEST {
            let cdc =
                FastCDC::with_level_and_seed(&region, SHORTEST, AVERAGE, LONGEST, Normalization::Level1, self.seed);
            while region.len() - start >= LONGEST || (last && start < region.len()) {
                let (_, end) = cdc.cut(start, region.len() - start);
                if end <= start {
                    break;
                }
                chunks.push(region.slice(start..end));
                start = end;
            }
        }
        let rest = region.slice(start..);
        if last && !rest.is_empty() {
            chunks.push(rest);
            return (chunks, Bytes::new());
        }
        (chunks, rest)
    }
}

static COMPRESSORS: Mutex<Vec<zstd::bulk::Compressor<'static>>> = Mutex::new(Vec::new());
static DECOMPRESSORS: Mutex<Vec<zstd::bulk::Decompressor<'static>>> = Mutex::new(Vec::new());

fn with<T, R>(
    pool: &Mutex<Vec<T>>,
    make: impl FnOnce() -> std::io::Result<T>,
    work: impl FnOnce(&mut T) -> R,
) -> Result<R> {
    let pooled = pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    let mut tool = match pooled {
        Some(tool) => tool,
        None => make().map_err(|error| Error::Misuse(format!("zstd doesn't start: {error}")))?,
    };
    let result = work(&mut tool);
    pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(tool);
    Ok(result)
}

/// Appends `raw` to `out`, compressed where that saves something; answers for the flags.
pub(crate) fn compress(raw: &[u8], out: &mut Vec<u8>) -> Result<u32> {
    let start = out.len();
    if looks_compressible(raw) {
        out.resize(start + zstd::zstd_safe::compress_bound(raw.len()), 0);
        let place = out.get_mut(start..).unwrap_or_default();
        let length = with(&COMPRESSORS, || zstd::bulk::Compressor::new(LEVEL), |z| z.compress_to_buffer(raw, place))?;
        // A frame that doesn't fit can't be: the place has the length of the bound.
        if let Ok(length) = length
            && length < raw.len() - raw.len() / 64
        {
            out.truncate(start + length);
            return Ok(ZSTD);
        }
        out.truncate(start);
    }
    out.extend_from_slice(raw);
    Ok(0)
}

/// Bytes of a chunk that are looked at before it is compressed.
const SAMPLE: usize = 4096;

/// Whether compressing is worth trying: encrypted, random and already compressed bytes are all alike frequent.
fn looks_compressible(raw: &[u8]) -> bool {
    if raw.len() < 4 * SAMPLE {
        return true;
    }
    let mut counts = [0u32; 256];
    let step = raw.len() / 4;
    for part in 0..4 {
        for byte in raw.get(part * step..part * step + SAMPLE).unwrap_or_default() {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    }
    // Chi-squared against even frequencies: 255 on average for random bytes; text has tens of thousands.
    let expected = (4 * SAMPLE) as f64 / 256.0;
    let chi: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    chi > 600.0
}

/// The raw bytes of a chunk that was decrypted.
pub(crate) fn decompress(flags: u32, stored: &[u8], raw: u32) -> Option<Vec<u8>> {
    let mut out = vec![0; raw as usize];
    if flags & ZSTD == 0 {
        return (stored.len() == out.len()).then(|| stored.to_vec());
    }
    let done =
        with(&DECOMPRESSORS, zstd::bulk::Decompressor::new, |z| z.decompress_to_buffer(stored, out.as_mut_slice()));
    match done {
        Ok(Ok(length)) if length == out.len() => Some(out),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, mut state: u64) -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn cuts_do_not_depend_on_how_the_bytes_came() {
        let data = Bytes::from(noise(9_000_000, 3));
        let cutter = Cutter::new(&Secret32([1; 32]));
        let (whole, rest) = cutter.cut(data.clone(), true);
        assert!(rest.is_empty());
        let mut pieces = Vec::new();
        let mut carry = Vec::new();
        for part in data.chunks(1_700_001) {
            carry.extend_from_slice(part);
            let (chunks, rest) = cutter.cut(Bytes::from(std::mem::take(&mut carry)), false);
            pieces.extend(chunks);
            carry = rest.to_vec();
        }
        pieces.extend(cutter.cut(Bytes::from(carry), true).0);
        assert_eq!(whole, pieces);
        assert!(whole.iter().all(|chunk| chunk.len() <= LONGEST));
        assert_ne!(Cutter::new(&Secret32([2; 32])).cut(data, true).0, whole, "another team cuts elsewhere");
    }

    #[test]
    fn chunks_come_back_whether_compressible_or_not() {
        for raw in [b"x".to_vec(), vec![7; 300_000], noise(300_000, 9), b"word ".repeat(50_000)] {
            let mut out = b"before".to_vec();
            let flags = compress(&raw, &mut out).unwrap();
            let stored = &out[6..];
            assert!(stored.len() <= raw.len());
            assert_eq!(decompress(flags, stored, raw.len() as u32).unwrap(), raw);
            assert!(decompress(flags, stored, raw.len() as u32 - 1).is_none() || raw.len() == 1);
            assert!(decompress(flags, stored, raw.len() as u32 + 1).is_none());
        }
    }
}
