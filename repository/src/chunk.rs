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
/// Set in [`Chunk::flags`]: the chunk is zstd frames; else it is stored as it is.
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
            while start < region.len() {
                let (_, end) = cdc.cut(start, region.len() - start);
                // A cut before the end is one whatever follows; at the end, only the longest chunk's is.
                let certain = end < region.len() || end - start == LONGEST;
                if end <= start || !(certain || last) {
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
///
/// What looks random within a chunk goes into a frame of its own that isn't compressed: next to it, what can be
/// compressed is compressed better, and no time is lost on what can't.
pub(crate) fn compress(raw: &[u8], out: &mut Vec<u8>) -> Result<u32> {
    let parts = parts(raw);
    if parts.iter().any(|(_, random)| !random) {
        let start = out.len();
        let mut rest = raw;
        for (length, random) in parts {
            let (part, later) = rest.split_at(length.min(rest.len()));
            rest = later;
            if random { stored_frame(part, out) } else { frame(part, out)? }
        }
        if out.len() - start < raw.len() - raw.len() / 256 {
            return Ok(ZSTD);
        }
        out.truncate(start);
    }
    out.extend_from_slice(raw);
    Ok(0)
}

fn frame(part: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let bound = zstd::zstd_safe::compress_bound(part.len());
    let length = if start == 0 {
        // Straight into fresh memory: nothing is set to zero first.
        out.reserve(bound + crate::keys::TAG);
        with(&COMPRESSORS, compressor, |z| z.compress_to_buffer(part, out))?
    } else {
        out.resize(start + bound, 0);
        let place = out.get_mut(start..).unwrap_or_default();
        with(&COMPRESSORS, compressor, |z| z.compress_to_buffer(part, place))?
    };
    let length = length.map_err(|error| Error::Misuse(format!("zstd failed: {error}")))?;
    out.truncate(start + length);
    Ok(())
}

/// How hard is tried to make chunks small: level 1 with another search. Two small tables (long and short matches)
/// find more in pieces of a chunk's size than level 1's single one, as fast: they stay in the core's own cache.
fn compressor() -> std::io::Result<zstd::bulk::Compressor<'static>> {
    use zstd::zstd_safe::{CParameter, Strategy};
    let mut compressor = zstd::bulk::Compressor::new(1)?;
    for parameter in [
        CParameter::Strategy(Strategy::ZSTD_dfast),
        CParameter::WindowLog(20),
        CParameter::ChainLog(15),
        CParameter::HashLog(16),
        CParameter::MinMatch(5),
    ] {
        compressor.set_parameter(parameter)?;
    }
    Ok(compressor)
}

/// A zstd frame (RFC 8878) of raw blocks: single segment, four bytes of content size.
fn stored_frame(part: &[u8], out: &mut Vec<u8>) {
    const BLOCK: usize = 128 << 10;
    out.extend_from_slice(&[0x28, 0xb5, 0x2f, 0xfd, 0xa0]);
    out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    let blocks = part.len().div_ceil(BLOCK);
    for (number, block) in part.chunks(BLOCK).enumerate() {
        let header = u32::try_from(block.len() << 3).unwrap_or(u32::MAX) | u32::from(number + 1 == blocks);
        out.extend_from_slice(header.to_le_bytes().get(..3).unwrap_or_default());
        out.extend_from_slice(block);
    }
}

/// Granularity in which a chunk is looked at.
const WINDOW: usize = 4 << 10;
/// Bytes of a window that are counted, in four places.
const SAMPLE: usize = 512;
/// Random parts that are shorter stay with what is around them.
const SHORTEST_RANDOM: usize = 16 << 10;

/// Lengths of parts that look random (encrypted, already compressed) and of parts that don't.
fn parts(raw: &[u8]) -> Vec<(usize, bool)> {
    let mut parts: Vec<(usize, bool)> = Vec::new();
    let mut push = |length: usize, random: bool| match parts.last_mut() {
        Some((last, same)) if *same == random => *last += length,
        _ => parts.push((length, random)),
    };
    let mut run = 0;
    for window in raw.chunks(WINDOW) {
        if window.len() == WINDOW && looks_random(window) {
            run += WINDOW;
            continue;
        }
        push(run, run >= SHORTEST_RANDOM);
        run = 0;
        push(window.len(), false);
    }
    push(run, run >= SHORTEST_RANDOM);
    parts.retain(|(length, _)| *length > 0);
    parts
}

/// Whether all bytes are alike frequent.
fn looks_random(window: &[u8]) -> bool {
    let mut counts = [0u16; 256];
    for quarter in window.chunks(WINDOW / 4) {
        for byte in quarter.get(..SAMPLE / 4).unwrap_or_default() {
            if let Some(count) = counts.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    }
    // Chi-squared times the expected frequency of 2: for random bytes 510 on average, its deviation 45.
    let chi: u32 = counts.iter().map(|count| u32::from(count.abs_diff(2)).pow(2)).sum();
    chi < 760
}

/// The raw bytes of a compressed chunk that was decrypted.
pub(crate) fn decompress(stored: &[u8], raw: u32) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw as usize);
    match with(&DECOMPRESSORS, zstd::bulk::Decompressor::new, |z| z.decompress_to_buffer(stored, &mut out)) {
        Ok(Ok(_)) if out.len() == raw as usize => Some(out),
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
        let words = b"word ".repeat(50_000);
        let mixed = [words.clone(), noise(300_000, 1), words.clone(), noise(20_001, 2)].concat();
        let cases =
            [(b"x".to_vec(), 1), (vec![7; 300_000], 100), (noise(300_000, 9), 300_000), (words, 100), (mixed, 325_000)];
        for (raw, most) in cases {
            let mut out = b"before".to_vec();
            let flags = compress(&raw, &mut out).unwrap();
            let stored = &out[6..];
            assert!(stored.len() <= most, "{} of {}", stored.len(), raw.len());
            if flags == 0 {
                assert_eq!(stored, raw);
                continue;
            }
            assert_eq!(decompress(stored, raw.len() as u32).unwrap(), raw);
            assert!(decompress(stored, raw.len() as u32 - 1).is_none());
            assert!(decompress(stored, raw.len() as u32 + 1).is_none());
        }
    }
}
