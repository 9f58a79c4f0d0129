//! The configuration component: one file per Kubernetes object, in a tar that is the same for the same files.
//!
//! Written and read here and nowhere else: the canonical form has one header for a given file, and a reader that
//! takes anything else for damage has no paths, links or devices to be careful about.

use std::collections::BTreeMap;

use bytes::Bytes;
use ocopea_protocol::secret::Secret32;

use crate::{
    error::{Error, Result},
    keys,
};

/// Longest canonical tar.
pub(crate) const LONGEST: usize = 256 << 20;
/// Most files.
const MOST: usize = 100_000;
/// Longest path.
const LONGEST_PATH: usize = 4096;
const BLOCK: usize = 512;
const LEVEL: i32 = 3;

/// The canonical tar: files sorted by path, nothing but path, size and content.
pub(crate) fn tar(files: &BTreeMap<String, Bytes>) -> Result<Vec<u8>> {
    let limit = |what: &str, found: usize, limit: usize| Error::Limit {
        what: format!("the configuration's {what}"),
        found: found as u64,
        limit: limit as u64,
    };
    if files.len() > MOST {
        return Err(limit("number of files", files.len(), MOST));
    }
    let mut out = Vec::new();
    for (path, content) in files {
        if path.is_empty() || path.len() > LONGEST_PATH || path.contains('\0') {
            return Err(Error::Misuse(format!("{path:.80?} can't be the path of a configuration file")));
        }
        if path.len() > 100 {
            entry(&mut out, b'L', "././@LongLink", &[path.as_bytes(), b"\0"].concat());
            // The header's own path is cut; readers take the long one.
            let short: String = path
                .chars()
                .scan(0, |length, c| {
                    *length += c.len_utf8();
                    (*length <= 100).then_some(c)
                })
                .collect();
            entry(&mut out, b'0', &short, content);
        } else {
            entry(&mut out, b'0', path, content);
        }
        if out.len() > LONGEST {
            return Err(limit("size", out.len(), LONGEST));
        }
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    Ok(out)
}

fn entry(out: &mut Vec<u8>, kind: u8, path: &str, content: &[u8]) {
    let mut header = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = header.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, path.as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    // GNU's magic, as its long paths are used.
    put(257, b"ustar  \0");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(place) = header.get_mut(148..156) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    out.extend_from_slice(&header);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Reads a canonical tar; anything else is damage.
pub(crate) fn untar(name: &str, tar: &[u8]) -> Result<BTreeMap<String, Bytes>> {
    let damaged = || Error::damaged(name, "its tar isn't in the canonical form");
    let mut files = BTreeMap::new();
    let mut long: Option<String> = None;
    let mut rest = tar;
    loop {
        let (header, after) = rest.split_at_checked(BLOCK).ok_or_else(damaged)?;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let size = header.get(124..135).and_then(|octal| std::str::from_utf8(octal).ok());
        let size = size.and_then(|octal| usize::from_str_radix(octal, 8).ok()).ok_or_else(damaged)?;
        let (content, after) = after.split_at_checked(size).ok_or_else(damaged)?;
        let path = header.get(..100).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        match header.get(156) {
            Some(b'L') => {
                let path = content.strip_suffix(b"\0").ok_or_else(damaged)?;
                long = Some(String::from_utf8(path.to_vec()).map_err(|_| damaged())?);
            }
            Some(b'0') => {
                let path = match long.take() {
                    Some(path) => path,
                    None => String::from_utf8(path.to_vec()).map_err(|_| damaged())?,
                };
                files.insert(path, Bytes::copy_from_slice(content));
            }
            _ => return Err(damaged()),
        }
        rest = after.get(size.next_multiple_of(BLOCK) - size..).ok_or_else(damaged)?;
        if files.len() > MOST {
            return Err(damaged());
        }
    }
    // Being canonical means: writing it again gives the same bytes.
    if self::tar(&files)? == tar { Ok(files) } else { Err(damaged()) }
}

/// Hash over the canonical tar, keyed per team: nobody can guess a Secret by it.
pub(crate) fn digest(hash_key: &Secret32, tar: &[u8]) -> String {
    let key = keys::derive(keys::CONFIG_HASH, &hash_key.0);
    blake3::keyed_hash(&key.0, tar).to_hex().to_string()
}

pub(crate) fn compress(tar: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(tar, LEVEL).map_err(|error| Error::Misuse(format!("zstd failed: {error}")))
}

pub(crate) fn decompress(name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut tar = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(bytes).map_err(|error| Error::damaged(name, error))?;
    decoder.take(LONGEST as u64 + 1).read_to_end(&mut tar).map_err(|error| Error::damaged(name, error))?;
    if tar.len() > LONGEST {
        return Err(Error::damaged(name, format!("its tar is longer than {LONGEST} bytes")));
    }
    Ok(tar)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> BTreeMap<String, Bytes> {
        all.iter().map(|(path, content)| ((*path).to_owned(), Bytes::copy_from_slice(content.as_bytes()))).collect()
    }

    #[test]
    fn files_come_back_as_they_were_whatever_their_names() {
        let long = format!("{}/ä/{}", "deep/".repeat(60), "x".repeat(300));
        let all = files(&[("a.json", "{}"), ("b/../c", ""), ("b\r\nc", "x"), (&long, "y"), (&"z".repeat(100), "z")]);
        let tar = tar(&all).unwrap();
        assert_eq!(untar("x", &tar).unwrap(), all);
        let packed = compress(&tar).unwrap();
        assert_eq!(decompress("x", &packed).unwrap(), tar);
        assert!(super::tar(&files(&[("", "x")])).is_err());
    }

    #[test]
    fn anything_that_is_not_canonical_is_damage() {
        let tar = tar(&files(&[("a.json", "{}"), ("b.json", "[]")])).unwrap();
        for at in 0..tar.len() {
            let mut flipped = tar.clone();
            flipped[at] ^= 0x20;
            if let Ok(read) = untar("x", &flipped) {
                assert_eq!(super::tar(&read).unwrap(), flipped, "byte {at}");
            }
            assert!(untar("x", &tar[..at]).is_err());
        }
    }
}
