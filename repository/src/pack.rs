//! Packs: files of some tens of MiB that hold encrypted chunks, and at their end an encrypted index of themselves.

use bytes::Bytes;
use ocopea_protocol::{names::Digest, seams::Seams, secret::Secret32};

use crate::{
    backend::Upload,
    chunk::{Chunk, ZSTD},
    error::{Error, Result},
    keys::{self, Cipher, TAG},
    store::{Sha256, Store, blob_name},
};

pub(crate) const MAGIC: &[u8; 8] = b"OCOPPAK1";
pub(crate) const END: &[u8; 8] = b"OCOPEND1";
/// Wrapped key, index offset, index length, number of chunks, magic.
pub(crate) const FOOTER: usize = WRAPPED + 4 + 4 + 4 + 8;
/// Bytes of the wrapped key.
const WRAPPED: usize = 12 + 32 + TAG;
/// Bytes of one chunk in the index.
pub(crate) const INDEX_ROW: usize = 48;
/// A pack is closed when it has reached this …
pub(crate) const TARGET: u64 = 24 << 20;
/// … or this, once a component has so many that its manifest would grow too long.
pub(crate) const LARGE_TARGET: u64 = 192 << 20;
pub(crate) const LARGE_AFTER: u32 = 2048;
const CHUNK_AAD: &[u8] = b"ocopea/chunk/v1";
const INDEX_AAD: &[u8] = b"ocopea/pack-index/v1";
const KEY_AAD: &[u8] = b"ocopea/pack-key/v1";
/// The nonce of the index: no chunk has this number.
const INDEX_COUNTER: u64 = u64::MAX;

/// A pack being written.
pub(crate) struct OpenPack {
    upload: Box<dyn Upload>,
    body: Body,
    pub(crate) number: u32,
}

/// What encrypting needs; goes to the compute pool and back.
struct Body {
    key: Secret32,
    cipher: Cipher,
    sha: Sha256,
    offset: u64,
    index: Vec<u8>,
    chunks: u32,
}

/// A chunk ready to be packed: `frame` holds it from `start`, followed by room for the tag.
pub(crate) struct Ready {
    pub(crate) hash: [u8; 32],
    pub(crate) raw: u32,
    pub(crate) flags: u32,
    pub(crate) frame: Vec<u8>,
}

/// A pack that lies in the store.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) key: Secret32,
    pub(crate) chunks: u32,
}

impl OpenPack {
    pub(crate) async fn begin(store: &Store, number: u32) -> Result<Self> {
        let key = keys::random_key(&store.seams);
        let cipher = Cipher::new(&key)?;
        let mut upload = store.backend.upload(None).await?;
        let mut sha = Sha256::new();
        sha.update(MAGIC);
        upload.write(vec![Bytes::from_static(MAGIC)]).await?;
        let body = Body { key, cipher, sha, offset: MAGIC.len() as u64, index: Vec::new(), chunks: 0 };
        Ok(Self { upload, body, number })
    }

    pub(crate) fn size(&self) -> u64 {
        self.body.offset
    }

    /// Encrypts and appends; answers for where each chunk lies.
    pub(crate) async fn append(mut self, store: &Store, ready: Vec<Ready>) -> Result<(Self, Vec<Chunk>)> {
        let (number, mut body) = (self.number, self.body);
        let work = move || {
            let (mut out, mut chunks) = (Vec::with_capacity(ready.len()), Vec::with_capacity(ready.len()));
            for ready in ready {
                let (chunk, frame) = body.seal(number, ready)?;
                chunks.push(chunk);
                out.push(frame);
            }
            Ok::<_, Error>((body, chunks, out))
        };
        let (body, chunks, out) = store.compute(work).await??;
        self.body = body;
        self.upload.write(out).await?;
        Ok((self, chunks))
    }

    /// Appends index and footer, gives the pack its name, and reads it back.
    pub(crate) async fn seal(mut self, store: &Store, image_key: &Secret32) -> Result<Packed> {
        let mut body = self.body;
        let wrapped = wrap(image_key, &body.key, &store.seams)?;
        let lengths: Vec<u32> =
            body.index.chunks_exact(INDEX_ROW).filter_map(|row| Some(index_row(0, row)?.stored)).collect();
        let work = move || {
            let mut tail = std::mem::take(&mut body.index);
            body.cipher.seal(INDEX_COUNTER, INDEX_AAD, &mut tail, 0)?;
            let length = small(tail.len() as u64)?;
            tail.extend_from_slice(&wrapped);
            for word in [small(body.offset)?, length, body.chunks] {
                tail.extend_from_slice(&word.to_le_bytes());
            }
            tail.extend_from_slice(END);
            body.sha.update(&tail);
            body.offset += tail.len() as u64;
            Ok::<_, Error>((body, Bytes::from(tail)))
        };
        let (body, tail) = store.compute(work).await??;
        self.upload.write(vec![tail.clone()]).await?;
        let digest = body.sha.finish();
        self.upload.finish(&blob_name(&digest)).await?;
        read_back(store, blob_name(&digest), body.cipher, &lengths, tail).await?;
        Ok(Packed { digest, size: body.offset, key: body.key, chunks: body.chunks })
    }
}

/// How much of a pack is read back at once, its last chunk aside.
const READ_BACK: u64 = 2 << 20;

/// Reads back a pack that was just written, and compares it with what was given to be written: every chunk by its
/// tag (no other bytes open under its key and number, which tells as much as a digest of the whole, in a third of the
/// time), the rest byte by byte. A part is opened while the next is read.
async fn read_back(store: &Store, name: String, mut cipher: Cipher, lengths: &[u32], tail: Bytes) -> Result<()> {
    let mut parts: Vec<(u64, Vec<u32>)> = vec![];
    for length in lengths {
        match parts.last_mut() {
            Some((bytes, part)) if *bytes < READ_BACK => {
                *bytes += u64::from(*length);
                part.push(*length);
            }
            _ => parts.push((u64::from(*length), vec![*length])),
        }
    }
    let changed = || Error::damaged(&name, "what is read back isn't what was written");
    let mut offset = MAGIC.len() as u64;
    let (head, mut part) = futures::try_join!(
        store.backend.range(&name, 0, offset),
        store.backend.range(&name, offset, parts.first().map_or(0, |(bytes, _)| *bytes)),
    )?;
    if head != MAGIC.as_slice() {
        return Err(changed());
    }
    let mut counter = 0;
    let mut later = parts.iter().skip(1);
    for (bytes, lengths) in &parts {
        offset += bytes;
        let next = async {
            match later.next() {
                Some((bytes, _)) => store.backend.range(&name, offset, *bytes).await,
                None => Ok(Bytes::new()),
            }
        };
        let (lengths, first) = (lengths.clone(), counter);
        counter += lengths.len() as u64;
        let opened = store.compute(move || {
            let mut bytes = part.try_into_mut().map_or_else(|shared| shared.to_vec(), Vec::from);
            let mut rest = bytes.as_mut_slice();
            for (counter, length) in (first..).zip(lengths) {
                let (chunk, later) = rest.split_at_mut_checked(length as usize)?;
                cipher.open(counter, CHUNK_AAD, chunk)?;
                rest = later;
            }
            rest.is_empty().then_some(cipher)
        });
        let (opened, read) = futures::try_join!(opened, next)?;
        cipher = opened.ok_or_else(changed)?;
        part = read;
    }
    // One byte more than there should be is enough to tell.
    if store.backend.range(&name, offset, tail.len() as u64 + 1).await? != tail {
        return Err(changed());
    }
    Ok(())
}

impl Body {
    fn seal(&mut self, pack: u32, mut ready: Ready) -> Result<(Chunk, Bytes)> {
        self.cipher.seal(u64::from(self.chunks), CHUNK_AAD, &mut ready.frame, 0)?;
        let chunk = Chunk {
            hash: ready.hash,
            pack,
            ordinal: self.chunks,
            offset: small(self.offset)?,
            stored: small(ready.frame.len() as u64)?,
            raw: ready.raw,
            flags: ready.flags,
        };
        self.index.extend_from_slice(&chunk.hash);
        for word in [chunk.offset, chunk.stored, chunk.raw, chunk.flags] {
            self.index.extend_from_slice(&word.to_le_bytes());
        }
        self.offset += ready.frame.len() as u64;
        self.chunks += 1;
        self.sha.update(&ready.frame);
        Ok((chunk, ready.frame.into()))
    }
}

fn small(value: u64) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Limit {
        what: "a pack's size".to_owned(),
        found: value,
        limit: u64::from(u32::MAX),
    })
}

pub(crate) fn wrap(image_key: &Secret32, key: &Secret32, seams: &Seams) -> Result<Vec<u8>> {
    keys::wrap_bytes(&keys::derive(keys::PACK_WRAP, &image_key.0), KEY_AAD, &key.0, seams)
}

/// Decrypts one chunk in place; its plaintext then stands at the beginning of `stored`. Gives its length.
pub(crate) fn decrypt_chunk(cipher: &Cipher, chunk: &Chunk, stored: &mut [u8]) -> Option<usize> {
    cipher.open(u64::from(chunk.ordinal), CHUNK_AAD, stored).map(|plain| plain.len())
}

/// The raw bytes of a decrypted chunk, verified against its hash.
pub(crate) fn unpack_chunk(chunk_key: &Secret32, chunk: &Chunk, plain: Bytes) -> Option<Bytes> {
    let raw = if chunk.flags & ZSTD == 0 { plain } else { crate::chunk::decompress(&plain, chunk.raw)?.into() };
    let fits = raw.len() == chunk.raw as usize && *blake3::keyed_hash(&chunk_key.0, &raw).as_bytes() == chunk.hash;
    fits.then_some(raw)
}

/// Reads a finished pack's own index: its key, and its chunks (as of pack 0).
pub(crate) async fn read_index(
    store: &Store,
    image_key: &Secret32,
    digest: &Digest,
    size: u64,
) -> Result<(Packed, Vec<Chunk>)> {
    let name = blob_name(digest);
    let at = size.checked_sub(FOOTER as u64).ok_or_else(|| Error::damaged(&name, "it is too short"))?;
    let footer = store.backend.range(&name, at, FOOTER as u64).await?;
    let key = footer.get(..WRAPPED).and_then(|wrapped| unwrap(image_key, wrapped));
    let key = key.ok_or_else(|| Error::damaged(&name, "its end doesn't open with the image's key"))?;
    let chunks = index_of(store, &key, &name, at, &footer).await?;
    let count = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
    Ok((Packed { digest: *digest, size, key, chunks: count }, chunks))
}

/// As [`read_index`], for those who have the pack's own key.
pub(crate) async fn read_index_with(store: &Store, key: &Secret32, digest: &Digest, size: u64) -> Result<Vec<Chunk>> {
    let name = blob_name(digest);
    let at = size.checked_sub(FOOTER as u64).ok_or_else(|| Error::damaged(&name, "it is too short"))?;
    let footer = store.backend.range(&name, at, FOOTER as u64).await?;
    index_of(store, key, &name, at, &footer).await
}

/// The index of a pack whose footer stands at `at`.
async fn index_of(store: &Store, key: &Secret32, name: &str, at: u64, footer: &[u8]) -> Result<Vec<Chunk>> {
    let damaged = |why: &str| Error::damaged(name, why);
    let figures = parse_footer(footer).ok_or_else(|| damaged("it doesn't end as it should"))?;
    let (offset, length, count) = figures;
    if u64::from(offset) + u64::from(length) != at || length as usize != count as usize * INDEX_ROW + TAG {
        return Err(damaged("its index isn't where its end says"));
    }
    let mut sealed = store.backend.range(name, u64::from(offset), u64::from(length)).await?.to_vec();
    let plain = Cipher::new(key)?
        .open(INDEX_COUNTER, INDEX_AAD, &mut sealed)
        .ok_or_else(|| damaged("its index doesn't open"))?;
    let mut chunks = Vec::with_capacity(count as usize);
    for (ordinal, row) in (0u32..).zip(plain.chunks_exact(INDEX_ROW)) {
        let chunk = index_row(ordinal, row).filter(|chunk| chunk.offset + chunk.stored <= offset);
        chunks.push(chunk.ok_or_else(|| damaged("its index holds impossible figures"))?);
    }
    Ok(chunks)
}

fn unwrap(image_key: &Secret32, wrapped: &[u8]) -> Option<Secret32> {
    let key = keys::unwrap_bytes(&keys::derive(keys::PACK_WRAP, &image_key.0), KEY_AAD, wrapped)?;
    keys::key_of(&key)
}

/// Index offset, index length and number of chunks.
fn parse_footer(footer: &[u8]) -> Option<(u32, u32, u32)> {
    let words = footer.get(WRAPPED..)?.strip_suffix(END)?;
    let word = |at: usize| Some(u32::from_le_bytes(words.get(at..at + 4)?.try_into().ok()?));
    Some((word(0)?, word(4)?, word(8)?))
}

pub(crate) fn index_row(ordinal: u32, row: &[u8]) -> Option<Chunk> {
    let (hash, rest) = row.split_first_chunk::<32>()?;
    let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
    let chunk =
        Chunk { hash: *hash, pack: 0, ordinal, offset: word(0)?, stored: word(4)?, raw: word(8)?, flags: word(12)? };
    chunk.is_sound().then_some(chunk)
}
