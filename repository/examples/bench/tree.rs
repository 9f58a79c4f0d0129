//! A seeded tree of files: many small ones, few large ones, compressible and not; and the same, changed a little.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

/// xorshift: fast, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

const WORDS: &[&str] = &[
    "the",
    "message",
    "user",
    "chat",
    "room",
    "of",
    "and",
    "deliver",
    "order",
    "to",
    "in",
    "created_at",
    "id",
    "null",
    "true",
    "2026-11-22T",
    "https://example.com/",
    "attachment",
    "lorem",
    "ipsum",
    "\":",
    "\",\"",
    "{",
    "}",
    "\n",
    " ",
];

/// How contents look.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Records,
    Noise,
}

fn fill(out: &mut Vec<u8>, length: usize, kind: Kind, random: &mut Random) {
    let end = out.len() + length;
    match kind {
        Kind::Noise => {
            while out.len() < end {
                out.extend_from_slice(&random.next().to_le_bytes());
            }
        }
        Kind::Text => {
            while out.len() < end {
                let mut bits = random.next();
                for _ in 0..8 {
                    out.extend_from_slice(WORDS[(bits & 0xff) as usize % WORDS.len()].as_bytes());
                    out.push(b' ');
                    bits >>= 8;
                }
                out.extend_from_slice(format!("{:x}", random.next() & 0xff_ffff).as_bytes());
            }
        }
        // Rows of a database page: some columns repeat, some don't.
        Kind::Records => {
            let mut row = random.below(1 << 40);
            while out.len() < end {
                row += 1;
                out.extend_from_slice(&row.to_be_bytes());
                out.extend_from_slice(b"\x01\0\0\0active\0\0");
                out.extend_from_slice(&random.next().to_le_bytes());
                out.extend_from_slice(&(random.below(1000) as u32).to_le_bytes());
                out.extend_from_slice(WORDS[random.below(WORDS.len() as u64) as usize].as_bytes());
            }
        }
    }
    out.truncate(end);
}

fn kind(random: &mut Random) -> Kind {
    match random.below(20) {
        0..7 => Kind::Text,
        7..11 => Kind::Records,
        _ => Kind::Noise,
    }
}

/// Makes the tree; answers for its bytes.
pub fn make(place: &Path, bytes: u64, seed: u64) -> Result<u64> {
    let mut random = Random::new(seed);
    let mut written = 0;
    let mut number = 0;
    let mut content = Vec::new();
    // A fifth in small files of 1 to 64 KiB, a fifth in files of 0.2 to 4 MiB, the rest in files of 100 to 200 MiB.
    let parts = [
        (bytes / 5, 1 << 10, 64 << 10, "small"),
        (bytes / 5, 200 << 10, 4 << 20, "medium"),
        (bytes * 3 / 5, 100 << 20, 200 << 20, "large"),
    ];
    for (share, least, most, name) in parts {
        let mut left = share as i64;
        while left > 0 {
            let length = (least + random.below(most - least)).min(left.max(1) as u64) as usize;
            content.clear();
            let file_kind = kind(&mut random);
            while content.len() < length {
                // Large files are mixed within.
                let piece = (length - content.len()).min(8 << 20);
                let piece_kind = if length > 8 << 20 { kind(&mut random) } else { file_kind };
                fill(&mut content, piece, piece_kind, &mut random);
            }
            let path = place.join(name).join(format!("{:03}", number % 97)).join(format!("file-{number}"));
            fs::create_dir_all(path.parent().unwrap_or(place))?;
            fs::write(path, &content)?;
            left -= length as i64;
            written += length as u64;
            number += 1;
        }
    }
    Ok(written)
}

/// Copies the regular files of a tree; answers for their bytes.
pub fn copy(from: &Path, to: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in files(from)? {
        let target = to.join(&path);
        fs::create_dir_all(target.parent().unwrap_or(to))?;
        bytes += fs::copy(from.join(&path), target)?;
    }
    Ok(bytes)
}

/// Copies a tree with about 5 % of its bytes changed: files rewritten, ranges overwritten, bytes inserted.
pub fn change(from: &Path, to: &Path, seed: u64) -> Result<u64> {
    let mut random = Random::new(seed);
    let mut changed = 0;
    for path in files(from)? {
        let mut content = fs::read(from.join(&path))?;
        if content.len() > 8 << 20 {
            // Ten places of half a per cent each, and a few bytes put in.
            for _ in 0..10 {
                let length = content.len() / 200;
                let at = random.below((content.len() - length) as u64) as usize;
                let mut fresh = Vec::new();
                fill(&mut fresh, length, Kind::Records, &mut random);
                content[at..at + length].copy_from_slice(&fresh);
                changed += length as u64;
            }
            let at = random.below(content.len() as u64) as usize;
            content.splice(at..at, *b"inserted");
        } else if random.below(20) == 0 {
            let length = content.len();
            content.clear();
            fill(&mut content, length, Kind::Text, &mut random);
            changed += length as u64;
        }
        let path = to.join(&path);
        fs::create_dir_all(path.parent().unwrap_or(to))?;
        fs::write(path, content)?;
    }
    Ok(changed)
}

/// Regular files below a place, relative to it, sorted.
pub fn files(place: &Path) -> Result<Vec<PathBuf>> {
    let (mut open, mut found) = (vec![place.to_owned()], Vec::new());
    while let Some(directory) = open.pop() {
        for item in fs::read_dir(directory)? {
            let item = item?;
            let kind = item.file_type()?;
            if kind.is_dir() {
                open.push(item.path());
            } else if kind.is_file() {
                found.push(item.path().strip_prefix(place)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}
