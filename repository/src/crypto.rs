//! AES-256-GCM, random keys, wraps. The one place of the crate that makes randomness: keys must not come from a
//! seam that a simulation could make predictable in production.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::{names::Digest, secret::Secret32};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Bytes that sealing adds to a blob: nonce in front, tag behind.
pub(crate) const SEAL_OVERHEAD: usize = 12 + TAG;
/// The authentication tag.
pub(crate) const TAG: usize = 16;

/// A key sealed by another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Which key opens it.
    pub key_id: String,
    /// Base64 of nonce, ciphertext and tag.
    pub sealed: String,
}

pub(crate) fn random_key() -> Result<Secret32, Error> {
    let mut key = [0u8; 32];
    fill(&mut key)?;
    Ok(Secret32(key))
}

pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    SystemRandom::new().fill(bytes).map_err(|_| Error::Limit("the system gives no randomness".to_owned()))
}

/// SHA-256, as OCI names blobs.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    finish(digest::digest(&digest::SHA256, bytes))
}

/// SHA-256 in parts.
pub(crate) struct Sha256(digest::Context);

impl Sha256 {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        finish(self.0.finish())
    }
}

fn finish(digest: digest::Digest) -> Digest {
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.as_ref());
    Digest(out)
}

/// An AES-256-GCM key with counted nonces, for the frames of one pack.
pub(crate) struct FrameKey(LessSafeKey);

impl FrameKey {
    pub(crate) fn new(key: &Secret32) -> Result<Self, Error> {
        Ok(Self(gcm(key)?))
    }

    /// Encrypts in place and appends the tag.
    pub(crate) fn seal(&self, counter: u32, frame: &mut Vec<u8>) -> Result<(), Error> {
        self.0
            .seal_in_place_append_tag(counted(counter), Aad::from(PACK_AAD), frame)
            .map_err(|_| Error::Limit("a frame can't be encrypted".to_owned()))
    }

    /// Decrypts in place; `None` when the tag doesn't fit.
    pub(crate) fn open<'a>(&self, counter: u32, frame: &'a mut [u8]) -> Option<&'a [u8]> {
        self.0.open_in_place(counted(counter), Aad::from(PACK_AAD), frame).ok().map(|plain| &*plain)
    }
}

const PACK_AAD: &[u8] = b"ocopea-pack-v1";

fn counted(counter: u32) -> Nonce {
    let mut nonce = [0u8; 12];
    nonce[8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn gcm(key: &Secret32) -> Result<LessSafeKey, Error> {
    let unbound = UnboundKey::new(&AES_256_GCM, &key.0).map_err(|_| Error::Limit("a key has the wrong length".to_owned()))?;
    Ok(LessSafeKey::new(unbound))
}

/// Nonce, ciphertext, tag. `context` says what it is, so that one kind of blob never passes as another.
pub(crate) fn seal(key: &Secret32, context: &str, plain: &[u8]) -> Result<Vec<u8>, Error> {
    let mut nonce = [0u8; 12];
    fill(&mut nonce)?;
    let mut out = Vec::with_capacity(plain.len() + SEAL_OVERHEAD);
    out.extend_from_slice(plain);
    gcm(key)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut out)
        .map_err(|_| Error::Limit("a blob can't be encrypted".to_owned()))?;
    out.splice(0..0, nonce);
    Ok(out)
}

/// Opens what [`seal`] made; `None` when key, context or bytes don't fit.
pub(crate) fn open(key: &Secret32, context: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_first_chunk::<12>()?;
    let mut buffer = rest.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = gcm(key).ok()?.open_in_place(nonce, Aad::from(context.as_bytes()), &mut buffer).ok()?.len();
    buffer.truncate(length);
    Some(buffer)
}

/// Seals `key` by `by`.
pub(crate) fn wrap(by: &Secret32, key_id: &str, context: &str, key: &[u8]) -> Result<WrappedKey, Error> {
    Ok(WrappedKey { key_id: key_id.to_owned(), sealed: STANDARD.encode(seal(by, context, key)?) })
}

/// Opens a wrap of a 32-byte key.
pub(crate) fn unwrap(by: &Secret32, context: &str, object: &str, wrapped: &WrappedKey) -> Result<Vec<u8>, Error> {
    let wrong = || Error::WrongKey { object: object.to_owned(), key_id: wrapped.key_id.clone() };
    let sealed = STANDARD.decode(&wrapped.sealed).map_err(|_| wrong())?;
    open(by, context, &sealed).ok_or_else(wrong)
}

/// A short name for a key that doesn't give it away.
pub(crate) fn key_id(key: &Secret32) -> String {
    hex::encode(&blake3::derive_key("ocopea 2026 key id v1", &key.0)[..8])
}

/// As a 32-byte key.
pub(crate) fn key32(bytes: &[u8], object: &str) -> Result<Secret32, Error> {
    bytes.try_into().map(Secret32).map_err(|_| Error::damaged(object, "a key has the wrong length"))
}
