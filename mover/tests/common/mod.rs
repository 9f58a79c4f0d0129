//! Trees, and what is true of them, found out without the code that is tested.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use ocopea_mover::{
    Fault, open_root, read,
    wire::{FrameReader, FrameWriter, Job, Message, Totals},
    write,
};
use rustix::fs::{Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr};

pub const BIN: &str = env!("CARGO_BIN_EXE_ocopea-mover");

/// What is true of one path, as far as it is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub time: (i64, i64),
    pub attributes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub contents: Option<blake3::Hash>,
    pub blocks: u64,
    pub target: Option<PathBuf>,
    /// The first path of the same file.
    pub first: Option<PathBuf>,
}

/// The truth about a tree; follows no links, must not be deeper than paths can be.
pub fn truth(root: &Path) -> BTreeMap<PathBuf, Truth> {
    let mut found = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let relative = path.strip_prefix(root).unwrap().to_owned();
        let word = if kind.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "directory"
        } else if kind.is_file() {
            "file"
        } else if kind.is_symlink() {
            "link"
        } else if kind.is_fifo() {
            "pipe"
        } else {
            continue;
        };
        let contents = kind.is_file().then(|| {
            let mut hasher = blake3::Hasher::new();
            std::io::copy(&mut std::fs::File::open(&path).unwrap(), &mut hasher).unwrap();
            hasher.finalize()
        });
        let first = firsts.entry(meta.ino()).or_insert_with(|| relative.clone()).clone();
        let truth = Truth {
            kind: word.to_owned(),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            time: (meta.mtime(), meta.mtime_nsec()),
            attributes: attributes(&path),
            contents,
            blocks: if kind.is_file() { meta.blocks() } else { 0 },
            target: kind.is_symlink().then(|| std::fs::read_link(&path).unwrap()),
            first: (meta.nlink() > 1 && !kind.is_dir()).then_some(first),
        };
        found.insert(relative, truth);
    }
    // Which of a file's names was seen first depends on the listing: the smallest is meant.
    let mut smallest: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (path, truth) in &found {
        if let Some(first) = &truth.first {
            smallest.entry(first.clone()).or_insert_with(|| path.clone());
        }
    }
    for truth in found.values_mut() {
        truth.first = truth.first.as_ref().map(|first| smallest[first].clone());
    }
    found
}

pub fn attributes(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let length = match llistxattr(path, list.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => panic!("{path:?}: {error}"),
    };
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let length = lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

pub fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Gives a path, a link itself too, its time.
pub fn time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn name(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What a read says, as one stream.
pub fn told(root: &Path, job: Job) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let mut out = FrameWriter::new(&mut bytes);
    out.send(&Message::Hello { job, trusted: true, entries: 0, data: 0 })?;
    let totals = read::walk(open_root(root).unwrap(), job, &mut out)?;
    out.send(&Message::End(totals))?;
    Ok(bytes)
}

/// What was said beside entries and contents.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub totals: Totals,
    pub skipped: Vec<String>,
    pub changed: Vec<String>,
    pub again: usize,
}

/// From what a read says to what a write takes.
pub fn relay(stream: &[u8]) -> (Vec<u8>, Said) {
    let mut reader = FrameReader::new(stream);
    let mut bytes = Vec::new();
    let mut out = FrameWriter::new(&mut bytes);
    let mut said = Said::default();
    out.send(&Message::Hello { job: Job::Write, trusted: false, entries: u64::MAX, data: u64::MAX / 2 }).unwrap();
    loop {
        match reader.next().unwrap() {
            Message::Hello { .. } | Message::Progress { .. } => {}
            Message::Skipped(why, path) => said.skipped.push(format!("{why:?} {}", ocopea_mover::show(path))),
            Message::Changed(how, path) => said.changed.push(format!("{how:?} {}", ocopea_mover::show(path))),
            Message::End(totals) => {
                said.totals = totals;
                out.send(&Message::End(totals)).unwrap();
                return (bytes, said);
            }
            other => {
                said.again += usize::from(other == Message::Again);
                out.send(&other).unwrap();
            }
        }
    }
}

/// Writes a stream into a directory.
pub fn make(root: &Path, stream: &[u8]) -> Result<Totals, Fault> {
    write::write(open_root(root).unwrap(), &mut FrameReader::new(stream), &mut FrameWriter::new(std::io::sink()))
}

/// Copies a tree through both.
pub fn copy(from: &Path, to: &Path) -> Said {
    let (stream, said) = relay(&told(from, Job::Read).unwrap());
    let totals = make(to, &stream).unwrap();
    assert_eq!(totals.of_tree(), said.totals.of_tree());
    said
}

/// A seeded source of bytes.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
        bytes
    }
}

/// Runs the program; its output, exit status and standard error.
pub fn run(command: &mut std::process::Command) -> (Vec<u8>, i32, String) {
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let errors = std::thread::scope(|scope| {
        let errors = scope.spawn(move || {
            let mut text = String::new();
            err.read_to_string(&mut text).unwrap();
            text
        });
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).unwrap();
        (bytes, errors.join().unwrap())
    });
    (errors.0, child.wait().unwrap().code().unwrap(), errors.1)
}
