//! What must be kept for a while, and must not stand in the catalog's rows in the clear: given credentials, and
//! requests that hold them.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use ocopea_protocol::secret::Secret32;

/// Seals with the installation's key.
pub struct Vault {
    key: LessSafeKey,
    fingerprints: hmac::Key,
}

/// It could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[error("the installation's key doesn't fit: {0}")]
pub struct VaultError(&'static str);

impl Vault {
    /// With this key.
    pub fn new(key: &Secret32) -> Result<Self, VaultError> {
        let unbound = UnboundKey::new(&AES_256_GCM, &key.0).map_err(|_| VaultError("wrong length"))?;
        let own = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), b"ocopea fingerprints");
        let fingerprints = hmac::Key::new(hmac::HMAC_SHA256, own.as_ref());
        Ok(Self { key: LessSafeKey::new(unbound), fingerprints })
    }

    /// Tells equal texts from others, and tells nothing else of them: a password can't be guessed from it.
    pub fn fingerprint(&self, text: &[u8]) -> String {
        hex::encode(hmac::sign(&self.fingerprints, text))
    }

    /// A new random key.
    pub fn generate_key() -> Result<Secret32, VaultError> {
        let mut key = [0u8; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| VaultError("the system gives no randomness"))?;
        Ok(Secret32(key))
    }

    /// Base64 of nonce, ciphertext, tag.
    pub fn seal(&self, plain: &[u8]) -> Result<String, VaultError> {
        let mut nonce = [0u8; 12];
        SystemRandom::new().fill(&mut nonce).map_err(|_| VaultError("the system gives no randomness"))?;
        let mut bytes = plain.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes)
            .map_err(|_| VaultError("too long"))?;
        let mut out = nonce.to_vec();
        out.extend(bytes);
        Ok(STANDARD.encode(out))
    }

    /// Opens what [`Self::seal`] made.
    pub fn open(&self, sealed: &str) -> Result<Vec<u8>, VaultError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| VaultError("not base64"))?;
        let (nonce, rest) = bytes.split_first_chunk::<12>().ok_or(VaultError("too short"))?;
        let mut rest = rest.to_vec();
        let plain = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut rest)
            .map_err(|_| VaultError("it was sealed with another one"))?;
        Ok(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_it() {
        let vault = Vault::new(&Vault::generate_key().unwrap()).unwrap();
        let sealed = vault.seal(b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        assert_eq!(vault.open(&sealed).unwrap(), b"secret");
        let other = Vault::new(&Vault::generate_key().unwrap()).unwrap();
        assert!(other.open(&sealed).is_err());
        assert!(vault.open("AAAA").is_err());
    }
}
