//! Making a tree of what is told, in an empty directory.
//!
//! The teller is not trusted. Entries must come in the order of a walk, strictly rising: nothing comes twice, and a
//! directory comes before what is in it. Each is made create-only with one name in a directory that was made and
//! opened here, so no path is ever resolved and no link ever followed. A file's properties are set when its contents
//! are complete, a directory's when everything in it is.

use std::{
    cmp::Ordering,
    io::{Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
        fchmod, fchown, flock, fstat, fsync, ftruncate, futimens, linkat, mkdirat, mkfifoat, openat, statat, symlinkat,
        syncfs, unlinkat, utimensat,
    },
    io::{Errno, pwrite},
};

use crate::{
    attributes::{self, On},
    clear::clear,
    content::ContentHasher,
    entry::{Entry, Kind, LOST_FOUND, MARKER, order, parent, parts},
    fault::{Class, Fault},
    stamp,
    tree::{DIRECTORY, Descent, check_proc, names},
    wire::{FrameReader, FrameWriter, Job, Message, Totals},
};

/// Largest file that any filesystem takes.
const LARGEST: u64 = i64::MAX as u64;
/// Entries and bytes after which we say how far we are.
const ALIVE_ENTRIES: u64 = 20_000;
const ALIVE_BYTES: u64 = 64 << 20;

/// Writes what `input` tells into `root`, which must be empty: but for an empty `lost+found`, and but for what an
/// earlier write left that did not finish, which is removed.
pub fn write<R: Read, W: Write>(
    root: OwnedFd,
    input: &mut FrameReader<R>,
    out: &mut FrameWriter<W>,
) -> Result<Totals, Fault> {
    check_proc(root.as_fd()).map_err(|error| Fault::new(Class::Unwritable, error.to_string()))?;
    prepare(&root)?;
    let (most_entries, most_data) = match input.next()? {
        Message::Hello { job: Job::Write, entries, data, .. } => (entries, data),
        _ => return Err(Fault::new(Class::Protocol, "it doesn't begin with a greeting for a write")),
    };
    let descent = Descent::new(root).map_err(|error| Fault::writing(&[], "the root can't be opened", error))?;
    let mut writer = Writer {
        descent,
        directories: Vec::new(),
        file: None,
        last: None,
        totals: Totals::default(),
        most_entries,
        most_data,
    };
    let mut told = (0, 0);
    loop {
        match input.next()? {
            Message::Entry(entry) => writer.entry(entry)?,
            Message::Data { offset, bytes } => writer.data(offset, bytes)?,
            Message::Done { size, hash } => writer.done(size, hash)?,
            Message::Again => writer.again()?,
            Message::End(totals) => return writer.end(totals),
            // The teller failed, which says why nothing more comes.
            Message::Fault(fault) => return Err(fault),
            _ => return Err(Fault::new(Class::Protocol, "it tells what has no place in a write")),
        }
        let now = (writer.totals.entries, writer.totals.data);
        if now.0 - told.0 >= ALIVE_ENTRIES || now.1 - told.1 >= ALIVE_BYTES {
            told = now;
            out.send(&Message::Progress { entries: now.0, bytes: now.1 })?;
            out.flush()?;
        }
    }
}

/// Makes sure that the root is ours alone and empty, and marks it as unfinished.
fn prepare(root: &OwnedFd) -> Result<(), Fault> {
    // Network filesystems that can't lock directories answer otherwise: a pod writes alone anyway.
    if let Err(Errno::WOULDBLOCK) = flock(root, FlockOperation::NonBlockingLockExclusive) {
        return Err(Fault::new(Class::Busy, "another mover writes to this volume"));
    }
    let fail = |error| Fault::reading(&[], "the root can't be listed", error);
    let (mut found, _) = names(root.as_fd(), None, 0).map_err(fail)?;
    if found.iter().any(|name| name == MARKER) {
        let again = openat(root, ".", DIRECTORY, Mode::empty()).map_err(fail)?;
        clear(again)?;
        (found, _) = names(root.as_fd(), None, 0).map_err(fail)?;
    }
    if let Some(at) = found.iter().position(|name| name == LOST_FOUND)
        && is_empty_directory(root.as_fd(), LOST_FOUND).map_err(fail)?
    {
        found.remove(at);
    }
    if !found.is_empty() {
        let mut shown: Vec<String> = found.iter().take(3).map(|name| crate::show(name)).collect();
        if found.len() > 3 {
            shown.push("…".to_owned());
        }
        return Err(Fault::new(Class::NotEmpty, format!("the volume is not empty: it holds {}", shown.join(", "))));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(root, MARKER, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Fault::writing(&[], "the volume can't be written to", error))?;
    // What is made would inherit it.
    match On::Open(root.as_fd()).remove(b"system.posix_acl_default") {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(Fault::writing(&[], "the root's default ACL can't be taken off", error)),
    }
}

fn is_empty_directory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let fd = match openat(dir, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        other => other?,
    };
    Ok(names(fd.as_fd(), None, 1)?.0.is_empty())
}

struct Writer {
    descent: Descent,
    /// From the root to where we are.
    directories: Vec<Entry>,
    file: Option<Open>,
    last: Option<Vec<u8>>,
    totals: Totals,
    most_entries: u64,
    most_data: u64,
}

/// A file whose contents are coming.
struct Open {
    fd: OwnedFd,
    entry: Entry,
    hasher: ContentHasher,
    data: u64,
    /// What came before it.
    before: Option<Vec<u8>>,
}

impl Writer {
    fn entry(&mut self, entry: Entry) -> Result<(), Fault> {
        if let Some(open) = &self.file {
            return Err(Fault::refused(&open.entry.path, "its contents don't end"));
        }
        if self.totals.entries >= self.most_entries {
            let message = format!("more entries come than the {} that were announced", self.most_entries);
            return Err(Fault::refused(&entry.path, message));
        }
        if self.last.as_ref().is_some_and(|last| order(last, &entry.path) != Ordering::Less) {
            return Err(Fault::refused(&entry.path, "it comes twice, or not in order"));
        }
        let Some((directory, name)) = parent(&entry.path) else {
            self.totals.count(&entry);
            self.last = Some(Vec::new());
            self.directories.push(entry);
            return Ok(());
        };
        if self.directories.is_empty() {
            return Err(Fault::refused(&entry.path, "it comes before the root"));
        }
        if directory.is_empty() && name == MARKER {
            return Err(Fault::refused(&entry.path, "that name is taken while a volume is written"));
        }
        while self.directories.last().is_some_and(|here| here.path != directory) {
            if self.directories.len() == 1 {
                return Err(Fault::refused(&entry.path, "the directory that it lies in didn't come before it"));
            }
            self.leave()?;
        }
        let name = name.to_vec();
        let before = self.last.replace(entry.path.clone());
        self.make(&name, entry, before)
    }

    fn make(&mut self, name: &[u8], entry: Entry, before: Option<Vec<u8>>) -> Result<(), Fault> {
        let fail = |error| Fault::writing(&entry.path, "it can't be made", error);
        let here = self.descent.here().map_err(fail)?;
        match &entry.kind {
            Kind::Directory => {
                match mkdirat(here, name, Mode::RWXU) {
                    Err(Errno::EXIST)
                        if self.directories.len() == 1
                            && name == LOST_FOUND
                            && is_empty_directory(here, name).map_err(fail)? => {}
                    other => other.map_err(fail)?,
                }
                let fd = openat(here, name, DIRECTORY, Mode::empty()).map_err(fail)?;
                self.descent.enter(fd).map_err(fail)?;
                self.totals.count(&entry);
                self.directories.push(entry);
                return Ok(());
            }
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd = openat(here, name, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
                self.file = Some(Open { fd, entry, hasher: ContentHasher::default(), data: 0, before });
                return Ok(());
            }
            Kind::Symlink(target) => {
                symlinkat(target.as_slice(), here, name).map_err(fail)?;
                named_properties(here, name, &entry)?;
            }
            Kind::Fifo => {
                mkfifoat(here, name, Mode::RUSR | Mode::WUSR).map_err(fail)?;
                named_properties(here, name, &entry)?;
            }
            Kind::HardLink(target) => self.hard_link(here, name, &entry.path, target)?,
        }
        self.totals.count(&entry);
        Ok(())
    }

    /// Gives what an earlier entry made a further name. The way to it goes through directories made here, never
    /// through links.
    fn hard_link(&self, here: BorrowedFd<'_>, name: &[u8], path: &[u8], target: &[u8]) -> Result<(), Fault> {
        let fail = |error| Fault::writing(path, &format!("it can't be linked to \"{}\"", crate::show(target)), error);
        let refuse =
            || Fault::refused(path, format!("it is a link to \"{}\", which no entry made", crate::show(target)));
        let Some((directory, old)) = parent(target) else { return Err(refuse()) };
        let mut at = openat(self.descent.root().map_err(fail)?, ".", DIRECTORY, Mode::empty()).map_err(fail)?;
        for part in parts(directory) {
            at = openat(&at, part, DIRECTORY, Mode::empty()).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => refuse(),
                error => fail(error),
            })?;
        }
        let there: Stat = match statat(&at, old, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Err(refuse()),
            Err(error) => return Err(fail(error)),
        };
        let kind = FileType::from_raw_mode(there.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Fifo) || target == MARKER {
            return Err(refuse());
        }
        linkat(&at, old, here, name, AtFlags::empty()).map_err(fail)
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let Some(open) = &mut self.file else {
            return Err(Fault::new(Class::Protocol, "contents come that belong to no file"));
        };
        let path = &open.entry.path;
        let length = bytes.len() as u64;
        if offset < open.hasher.position() {
            return Err(Fault::refused(path, "its contents come twice, or not in order"));
        }
        if offset.checked_add(length).is_none_or(|end| end > LARGEST) {
            return Err(Fault::refused(path, "it would be larger than any file can be"));
        }
        if self.totals.data + open.data + length > self.most_data {
            let message = format!("more contents come than the {} bytes that were announced", self.most_data);
            return Err(Fault::refused(path, message));
        }
        open.hasher.update(offset, bytes);
        open.data += length;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            match pwrite(&open.fd, rest, at) {
                Ok(0) => return Err(Fault::writing(path, "its contents can't be written", Errno::IO)),
                Ok(written) => {
                    at += written as u64;
                    rest = rest.get(written..).unwrap_or_default();
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(Fault::writing(path, "its contents can't be written", error)),
            }
        }
        Ok(())
    }

    fn done(&mut self, size: u64, hash: [u8; 32]) -> Result<(), Fault> {
        let Some(open) = self.file.take() else {
            return Err(Fault::new(Class::Protocol, "contents end that never began"));
        };
        let path = &open.entry.path;
        if size < open.hasher.position() || size > LARGEST {
            return Err(Fault::refused(path, "its size isn't true"));
        }
        if size > open.hasher.position() {
            ftruncate(&open.fd, size).map_err(|error| Fault::writing(path, "it can't be made that long", error))?;
        }
        if open.hasher.finish(size) != hash {
            return Err(Fault::refused(path, "its contents are not those that were announced"));
        }
        open_properties(open.fd.as_fd(), &open.entry)?;
        self.totals.count(&open.entry);
        self.totals.bytes += size;
        self.totals.data += open.data;
        Ok(())
    }

    /// The file whose contents were coming is void; it comes again.
    fn again(&mut self) -> Result<(), Fault> {
        let Some(open) = self.file.take() else {
            return Err(Fault::new(Class::Protocol, "a file is called void that never began"));
        };
        let (_, name) = parent(&open.entry.path).unwrap_or_default();
        // What was written of it counts: endless beginnings are refused like endless contents.
        self.totals.data += open.data;
        let fail = |error| Fault::writing(&open.entry.path, "it can't be removed again", error);
        unlinkat(self.descent.here().map_err(fail)?, name, AtFlags::empty()).map_err(fail)?;
        self.last = open.before;
        Ok(())
    }

    /// Sets the properties of the directory that we are in, and goes up.
    fn leave(&mut self) -> Result<(), Fault> {
        let Some(entry) = self.directories.pop() else { return Ok(()) };
        let fail = |error| Fault::writing(&entry.path, "the directory can't be finished", error);
        open_properties(self.descent.here().map_err(fail)?, &entry)?;
        self.descent.leave().map_err(fail)
    }

    fn end(mut self, told: Totals) -> Result<Totals, Fault> {
        if let Some(open) = &self.file {
            return Err(Fault::refused(&open.entry.path, "its contents don't end"));
        }
        if self.totals.of_tree() != told.of_tree() {
            let (found, told) = (self.totals, told);
            return Err(Fault::refused(
                &[],
                format!(
                    "{} entries and {} bytes came where {} and {} were announced",
                    found.entries, found.bytes, told.entries, told.bytes
                ),
            ));
        }
        while self.directories.len() > 1 {
            self.leave()?;
        }
        let Some(root) = self.directories.pop() else {
            return Err(Fault::refused(&[], "the root never came"));
        };
        let fail = |error| Fault::writing(&[], "the root can't be finished", error);
        let here = self.descent.here().map_err(fail)?;
        syncfs(here).map_err(fail)?;
        unlinkat(here, MARKER, AtFlags::empty()).map_err(fail)?;
        open_properties(here, &root)?;
        fsync(here).map_err(fail)?;
        Ok(self.totals)
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.seconds, tv_nsec: entry.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode.into())
}

/// Owner first (it takes set-user-id bits and capabilities away), attributes, permissions, and times last.
fn open_properties(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), Fault> {
    let fail = |what: &'static str| move |error| Fault::writing(&entry.path, what, error);
    let now = fstat(fd).map_err(fail("its properties can't be read"))?;
    if (now.st_uid, now.st_gid) != (entry.uid, entry.gid) {
        fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(|error| unowned(entry, error))?;
    }
    attributes::write(On::Open(fd), &entry.path, &entry.attributes)?;
    fchmod(fd, mode(entry)).map_err(fail("its permissions can't be set"))?;
    futimens(fd, &times(entry)).map_err(fail("its time can't be set"))?;
    kept(entry, &fstat(fd).map_err(fail("its properties can't be read"))?)
}

/// Filesystems that have no owners, permissions or fine times take them without a word, and forget them.
fn kept(entry: &Entry, found: &Stat) -> Result<(), Fault> {
    let mut lost = Vec::new();
    if (found.st_uid, found.st_gid) != (entry.uid, entry.gid) {
        lost.push(format!("its owner {}:{} became {}:{}", entry.uid, entry.gid, found.st_uid, found.st_gid));
    }
    let mode = found.st_mode & 0o7777;
    if !matches!(entry.kind, Kind::Symlink(_)) && mode != u32::from(entry.mode) {
        lost.push(format!("its permissions {:o} became {mode:o}", entry.mode));
    }
    let time = stamp::written(found);
    if time != (entry.seconds, entry.nanos) {
        lost.push(format!("its time {}.{:09} became {}.{:09}", entry.seconds, entry.nanos, time.0, time.1));
    }
    if lost.is_empty() {
        return Ok(());
    }
    Err(Fault::of(Class::Unwritable, &entry.path, format!("this filesystem doesn't keep it: {}", lost.join(", "))))
}

/// The same for links and pipes, by their name in the directory that they were just made in.
fn named_properties(dir: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Fault> {
    let fail = |what: &'static str| move |error| Fault::writing(&entry.path, what, error);
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|error| unowned(entry, error))?;
    attributes::write(On::Name(dir, name), &entry.path, &entry.attributes)?;
    if entry.kind == Kind::Fifo {
        chmodat(dir, name, mode(entry), AtFlags::empty()).map_err(fail("its permissions can't be set"))?;
    }
    utimensat(dir, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(fail("its time can't be set"))?;
    let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail("its properties can't be read"))?;
    kept(entry, &found)
}

fn unowned(entry: &Entry, error: Errno) -> Fault {
    Fault::writing(&entry.path, &format!("it can't be given to its owner {}:{}", entry.uid, entry.gid), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_filesystem_forgets_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = fstat(file.as_file()).unwrap();
        let (seconds, nanos) = stamp::written(&stat);
        let mode = u16::try_from(stat.st_mode & 0o7777).unwrap();
        let entry = Entry {
            path: b"a/b".to_vec(),
            kind: Kind::File,
            mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            seconds,
            nanos,
            attributes: vec![],
        };
        assert_eq!(kept(&entry, &stat), Ok(()));
        let coarse = Entry { seconds: seconds - 1, ..entry.clone() };
        let strange = Entry { uid: 4242, mode: 0o4711, ..entry };
        for (entry, words) in [(coarse, vec!["its time"]), (strange, vec!["owner 4242:", "permissions 4711 became"])] {
            let fault = kept(&entry, &stat).unwrap_err();
            assert_eq!(fault.class, Class::Unwritable);
            for word in words {
                assert!(fault.to_string().contains("\"a/b\"") && fault.message.contains(word), "{fault}");
            }
        }
    }
}
