//! Sealed objects: encrypted with an image's key, each under a key of its own derived with a random salt.
//!
//! Eight bytes of magic, 32 of salt, then AES-256-GCM messages with counted nonces: one for record, configuration
//! and notes; as many as there are pages for a table of contents.

use ocopea_protocol::{seams::Seams, secret::Secret32};

use crate::{
    error::{Error, Result},
    keys::{self, Cipher},
};

pub(crate) const MAGIC: &[u8; 8] = b"OCOPSEA1";
/// Magic and salt.
pub(crate) const HEADER: usize = 40;

pub(crate) const RECORD: &str = "ocopea/record/v1";
pub(crate) const CONFIG: &str = "ocopea/config/v1";

/// The cipher for one sealed object, and its header.
pub(crate) fn begin(image_key: &Secret32, magic: &[u8; 8], seams: &Seams) -> Result<(Cipher, Vec<u8>)> {
    let mut header = magic.to_vec();
    header.resize(HEADER, 0);
    seams.entropy.fill(header.get_mut(8..).unwrap_or_default());
    Ok((cipher(image_key, header.get(8..).unwrap_or_default())?, header))
}

/// The cipher for reading.
pub(crate) fn open_header(image_key: &Secret32, magic: &[u8; 8], name: &str, bytes: &[u8]) -> Result<Cipher> {
    let header = bytes.get(..HEADER).ok_or_else(|| Error::damaged(name, "it is too short"))?;
    match header.strip_prefix(magic.as_slice()) {
        Some(salt) => cipher(image_key, salt),
        None if header.get(..7) == magic.get(..7) => {
            let digit = header.get(7).copied().unwrap_or_default();
            let found = u32::from(digit.wrapping_sub(b'0'));
            Err(Error::Newer { object: name.to_owned(), found, known: 1 })
        }
        None => Err(Error::damaged(name, "it doesn't begin as it should")),
    }
}

fn cipher(image_key: &Secret32, salt: &[u8]) -> Result<Cipher> {
    let mut material = zeroize::Zeroizing::new(Vec::with_capacity(64));
    material.extend_from_slice(&image_key.0);
    material.extend_from_slice(salt);
    Cipher::new(&keys::derive(keys::SEALED, &material))
}

/// Seals one message.
pub(crate) fn seal(image_key: &Secret32, purpose: &str, plain: &[u8], seams: &Seams) -> Result<Vec<u8>> {
    let (cipher, mut out) = begin(image_key, MAGIC, seams)?;
    out.reserve_exact(plain.len() + keys::TAG);
    out.extend_from_slice(plain);
    cipher.seal(0, purpose.as_bytes(), &mut out, HEADER)?;
    Ok(out)
}

/// Opens one message.
pub(crate) fn open(image_key: &Secret32, purpose: &str, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let cipher = open_header(image_key, MAGIC, name, bytes)?;
    let mut rest = bytes.get(HEADER..).unwrap_or_default().to_vec();
    let plain = cipher.open(0, purpose.as_bytes(), &mut rest);
    let length = plain.map(|plain| plain.len());
    let length = length.ok_or_else(|| Error::damaged(name, "it doesn't open with the image's key"))?;
    rest.truncate(length);
    Ok(rest)
}
