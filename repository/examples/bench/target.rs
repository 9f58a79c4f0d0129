//! Files as a restore writes them.
//!
//! Large files go around the page cache: what is written once and not read soon would only push out of memory what
//! others need, and touching so many fresh pages costs more than the disk does. Where a file system can't do that,
//! and for small files and ends, writes are ordinary ones.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::Result;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Shorter files are written ordinarily.
const DIRECT_FROM: u64 = 1 << 20;
/// What offsets, lengths and memory of direct writes are multiples of.
const ALIGNED: usize = 4096;
/// Bytes of one direct write.
const AT_ONCE: usize = 1 << 20;

/// Memory for direct writes, used for one file after the other.
#[derive(Default)]
pub struct Space {
    bytes: Vec<u8>,
    start: usize,
}

impl Space {
    fn get(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes.resize(AT_ONCE + ALIGNED, 0);
            self.start = self.bytes.as_ptr().align_offset(ALIGNED);
        }
        &mut self.bytes[self.start..self.start + AT_ONCE]
    }
}

/// A file that is being written.
pub struct Target {
    file: File,
    left: u64,
    direct: bool,
    filled: usize,
}

impl Target {
    pub fn create(path: &Path, length: u64) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        if length >= DIRECT_FROM {
            let flags = OFlags::DIRECT.bits().cast_signed();
            if let Ok(file) = options.clone().custom_flags(flags).open(path) {
                return Ok(Self { file, left: length, direct: true, filled: 0 });
            }
        }
        Ok(Self { file: options.open(path)?, left: length, direct: false, filled: 0 })
    }

    /// Takes what belongs to it; gives the rest back.
    pub fn take<'a>(&mut self, bytes: &'a [u8], space: &mut Space) -> Result<&'a [u8]> {
        let (now, rest) = bytes.split_at(bytes.len().min(usize::try_from(self.left)?));
        self.left -= now.len() as u64;
        if !self.direct {
            self.file.write_all(now)?;
            return Ok(rest);
        }
        let space = space.get();
        let mut now = now;
        while !now.is_empty() {
            let (part, later) = now.split_at(now.len().min(space.len() - self.filled));
            space[self.filled..self.filled + part.len()].copy_from_slice(part);
            self.filled += part.len();
            now = later;
            if self.filled == space.len() {
                self.file.write_all(space)?;
                self.filled = 0;
            }
        }
        if self.left == 0 {
            let whole = self.filled / ALIGNED * ALIGNED;
            self.file.write_all(&space[..whole])?;
            fcntl_setfl(&self.file, fcntl_getfl(&self.file)? - OFlags::DIRECT)?;
            self.file.write_all(&space[whole..self.filled])?;
        }
        Ok(rest)
    }

    pub fn is_complete(&self) -> bool {
        self.left == 0
    }
}
