//! Keys: which there are, what is derived from them, and how one wraps another.
//!
//! repository key → team key → image key → pack key. Each wrap is AES-256-GCM with a random nonce and names the
//! key that opens it. Keys are derived with BLAKE3's `derive_key`, one context string for each use, so that no key
//! is ever used for two purposes.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::{ids::TeamId, seams::Seams, secret::Secret32};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::error::{Error, Result};

/// Bytes that AES-256-GCM adds.
pub(crate) const TAG: usize = 16;
const NONCE: usize = 12;

pub(crate) const KEY_ID: &str = "ocopea repository v1 key id";
pub(crate) const CHUNKS: &str = "ocopea repository v1 chunk hash";
pub(crate) const ITEMS: &str = "ocopea repository v1 item hash";
pub(crate) const CUTS: &str = "ocopea repository v1 chunk cuts";
pub(crate) const CONFIG_HASH: &str = "ocopea repository v1 configuration hash";
pub(crate) const PACK_WRAP: &str = "ocopea repository v1 pack key wrap";
pub(crate) const STAGING: &str = "ocopea repository v1 staging name";
pub(crate) const SEALED: &str = "ocopea repository v1 sealed object";

/// A key for one use, from `material`.
pub(crate) fn derive(context: &str, material: &[u8]) -> Secret32 {
    Secret32(blake3::derive_key(context, material))
}

/// The id of a key: 32 hexadecimal digits, derived from it, telling nothing of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(String);

impl KeyId {
    /// The id of `key`.
    pub fn of(key: &Secret32) -> Self {
        let derived = derive(KEY_ID, &key.0);
        Self(hex::encode(&derived.0[..16]))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for KeyId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex { Ok(Self(text)) } else { Err("a key id has 32 lower-case hexadecimal digits".to_owned()) }
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({})", self.0)
    }
}

/// The repository keys that a coordinator holds. The first is used for new wraps; all open old ones.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<(KeyId, Secret32)>,
}

/// First word of each line of a key file.
const KEY_LINE: &str = "ocopea-repository-key-1";

impl Keyring {
    /// A keyring with one new key.
    pub fn generate(seams: &Seams) -> Self {
        let mut ring = Self { keys: vec![] };
        ring.add_generated(seams);
        ring
    }

    /// Puts a new key in front; answers for its id.
    pub fn add_generated(&mut self, seams: &Seams) -> KeyId {
        let key = random_key(seams);
        let id = KeyId::of(&key);
        self.keys.insert(0, (id.clone(), key));
        id
    }

    /// Reads a key file: one line per key, `ocopea-repository-key-1 ID KEY`; empty lines and `#` comments are skipped.
    pub fn parse(text: &str) -> Result<Self> {
        let fault = |line: usize, why: &str| Error::Misuse(format!("line {line} of the key file is not valid: {why}"));
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_ascii_whitespace();
            let (kind, id, digits, rest) = (words.next(), words.next(), words.next(), words.next());
            let (Some(KEY_LINE), Some(id), Some(digits), None) = (kind, id, digits, rest) else {
                return Err(fault(number, &format!("`{KEY_LINE} ID KEY` is expected")));
            };
            let mut key = Secret32([0; 32]);
            hex::decode_to_slice(digits, &mut key.0)
                .map_err(|_| fault(number, "the key must be 64 hexadecimal digits"))?;
            let derived = KeyId::of(&key);
            if derived.as_str() != id {
                return Err(fault(number, "the id is not this key's; the line was damaged"));
            }
            if keys.iter().all(|(known, _)| *known != derived) {
                keys.push((derived, key));
            }
            if keys.len() > 64 {
                return Err(fault(number, "more than 64 keys"));
            }
        }
        if keys.is_empty() {
            return Err(Error::Misuse("the key file holds no key".to_owned()));
        }
        Ok(Self { keys })
    }

    /// The key file's text. Secret.
    pub fn to_text(&self) -> zeroize::Zeroizing<String> {
        let mut text = String::with_capacity(self.keys.len() * 128);
        for (id, key) in &self.keys {
            let mut digits = hex::encode(key.0);
            text.push_str(&format!("{KEY_LINE} {id} "));
            text.push_str(&digits);
            text.push('\n');
            digits.zeroize();
        }
        zeroize::Zeroizing::new(text)
    }

    /// Ids, the one for new wraps first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys.iter().map(|(id, _)| id.clone()).collect()
    }

    /// Takes a key out. The last one stays.
    pub fn remove(&mut self, id: &KeyId) -> Result<()> {
        if self.keys.len() == 1 && self.keys.first().is_some_and(|(known, _)| known == id) {
            return Err(Error::Misuse(
                "the last repository key can't be removed: nobody could read the images".to_owned(),
            ));
        }
        self.keys.retain(|(known, _)| known != id);
        Ok(())
    }

    /// Adds the keys of `other` that it hasn't got, behind its own.
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (id, key) in &other.keys {
            if self.get(id).is_none() {
                self.keys.push((id.clone(), key.clone()));
            }
        }
    }

    pub(crate) fn get(&self, id: &KeyId) -> Option<&Secret32> {
        self.keys.iter().find(|(known, _)| known == id).map(|(_, key)| key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(KeyId, Secret32)> {
        self.keys.iter()
    }

    pub(crate) fn listed(&self) -> String {
        self.keys.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keyring").field(&self.ids()).finish()
    }
}

/// A key wrapped by another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// The key that opens it.
    pub by: KeyId,
    /// Base64 of nonce (12 bytes), then ciphertext with tag.
    pub sealed: String,
}

/// An image's key, wrapped by its team's. Not secret: it stands in catalogs and in the record's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// Whose it is.
    pub team: TeamId,
    /// The generation of the team's keys.
    pub generation: u32,
    /// The team key that opens it.
    pub by: KeyId,
    /// Base64 of nonce (12 bytes), then ciphertext with tag.
    pub sealed: String,
}

/// What a team has: made on its first use of a repository.
#[derive(Clone)]
pub struct TeamKeys {
    /// Whose.
    pub team: TeamId,
    /// The generation of these.
    pub generation: u32,
    /// Id of the key that wraps new image keys.
    pub wrap_id: KeyId,
    /// Wraps image keys.
    pub(crate) wrap_key: Secret32,
    /// Keys chunk hashes, item hashes and configuration digests; opens nothing.
    pub hash_key: Secret32,
}

impl fmt::Debug for TeamKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TeamKeys").field("team", &self.team).field("wrap_id", &self.wrap_id).finish_non_exhaustive()
    }
}

/// 256 random bits.
pub(crate) fn random_key(seams: &Seams) -> Secret32 {
    let mut key = Secret32([0; 32]);
    seams.entropy.fill(&mut key.0);
    key
}

/// An AES-256-GCM key, scheduled once and used for many messages.
pub(crate) struct Cipher(LessSafeKey);

impl Cipher {
    pub(crate) fn new(key: &Secret32) -> Result<Self> {
        let unbound =
            UnboundKey::new(&AES_256_GCM, &key.0).map_err(|_| Error::Misuse("not a 256-bit key".to_owned()))?;
        Ok(Self(LessSafeKey::new(unbound)))
    }

    /// Encrypts `bytes[from..]` in place and appends the tag.
    pub(crate) fn seal(&self, counter: u64, aad: &[u8], bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        self.seal_with(counter_nonce(counter), aad, bytes, from)
    }

    fn seal_with(&self, nonce: [u8; NONCE], aad: &[u8], bytes: &mut Vec<u8>, from: usize) -> Result<()> {
        let part = bytes.get_mut(from..).unwrap_or_default();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(aad), part)
            .map_err(|_| Error::Misuse("too much to encrypt at once".to_owned()))?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Decrypts in place; `None` when it isn't what was sealed.
    pub(crate) fn open<'a>(&self, counter: u64, aad: &[u8], bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.open_with(counter_nonce(counter), aad, bytes)
    }

    fn open_with<'a>(&self, nonce: [u8; NONCE], aad: &[u8], bytes: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), bytes).ok()
    }
}

/// Four zero bytes, then the counter, most significant byte first.
fn counter_nonce(counter: u64) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// Encrypts a small secret under `key` with a random nonce: nonce, ciphertext, tag.
pub(crate) fn wrap_bytes(key: &Secret32, aad: &[u8], plain: &[u8], seams: &Seams) -> Result<Vec<u8>> {
    let mut nonce = [0; NONCE];
    seams.entropy.fill(&mut nonce);
    let mut out = Vec::with_capacity(NONCE + plain.len() + TAG);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plain);
    Cipher::new(key)?.seal_with(nonce, aad, &mut out, NONCE)?;
    Ok(out)
}

/// Opens what [`wrap_bytes`] made.
pub(crate) fn unwrap_bytes(key: &Secret32, aad: &[u8], sealed: &[u8]) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE>()?;
    let mut rest = rest.to_vec();
    let plain = Cipher::new(key).ok()?.open_with(*nonce, aad, &mut rest)?.to_vec();
    rest.zeroize();
    Some(zeroize::Zeroizing::new(plain))
}

/// As [`wrap_bytes`], in Base64.
pub(crate) fn wrap_text(key: &Secret32, aad: &[u8], plain: &[u8], seams: &Seams) -> Result<String> {
    Ok(STANDARD.encode(wrap_bytes(key, aad, plain, seams)?))
}

/// As [`unwrap_bytes`], from Base64.
pub(crate) fn unwrap_text(key: &Secret32, aad: &[u8], sealed: &str) -> Option<zeroize::Zeroizing<Vec<u8>>> {
    unwrap_bytes(key, aad, &STANDARD.decode(sealed).ok()?)
}

/// A 32-byte key out of unwrapped bytes.
pub(crate) fn key_of(bytes: &[u8]) -> Option<Secret32> {
    bytes.try_into().ok().map(Secret32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seams;

    #[test]
    fn a_key_file_survives_printing_and_names_its_damage() {
        let mut ring = Keyring::generate(&seams());
        ring.add_generated(&seams());
        let text = ring.to_text();
        assert_eq!(Keyring::parse(&text).unwrap(), ring);
        let flipped = text.replacen(|c: char| c.is_ascii_digit(), "x", 40);
        assert!(Keyring::parse(&flipped).is_err());
        assert!(Keyring::parse("").is_err());
        let digits = text.lines().next().unwrap().rsplit(' ').next().unwrap();
        assert!(!format!("{ring:?}").contains(digits), "keys stay out of debug output");
    }

    #[test]
    fn a_wrap_opens_only_with_its_key_and_its_purpose() {
        let seams = seams();
        let (key, other) = (random_key(&seams), random_key(&seams));
        let wrapped = wrap_text(&key, b"a", &[5; 32], &seams).unwrap();
        assert_eq!(unwrap_text(&key, b"a", &wrapped).unwrap().as_slice(), [5; 32]);
        assert!(unwrap_text(&other, b"a", &wrapped).is_none());
        assert!(unwrap_text(&key, b"b", &wrapped).is_none());
        assert!(unwrap_text(&key, b"a", "").is_none());
    }
}
