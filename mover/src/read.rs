//! Telling a tree: every entry in order, contents or their hashes, and what can't be told.

use std::{
    collections::HashSet,
    io::Write,
    os::fd::{BorrowedFd, OwnedFd},
    vec,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, accessat, fstat, openat, readlinkat, seek, statat},
    io::{Errno, pread},
};

use crate::{
    attributes::{self, On},
    content::ContentHasher,
    entry::{Entry, Kind, LONGEST_PATH, LOST_FOUND, MARKER},
    fault::{Class, Fault},
    links::Links,
    stamp::{self, Stamp, Time},
    tree::{DIRECTORY, Descent, check_proc, id, names},
    wire::{Change, FrameWriter, Job, Message, PIECE, Skip, Totals},
};

/// How often a file that changed while it was read is read again.
const RETRIES: u32 = 3;
/// Bytes and entries after which a job that says little says that it is alive.
const ALIVE_BYTES: u64 = 64 << 20;
const ALIVE_ENTRIES: u64 = 20_000;
/// Changed files that are remembered, so that they are counted once.
const MOST_TORN: usize = 100_000;

/// How files are opened: a pipe or a device that took a file's place must not hold or harm us.
const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// What became of one attempt to read a file.
enum Attempt {
    /// It was told.
    Told,
    /// It is gone.
    Vanished,
    /// It changed meanwhile.
    Torn,
}

/// Walks the tree at `root` and tells it. [`Message::End`] is not sent: the caller may have more to do.
pub fn walk<W: Write>(root: OwnedFd, job: Job, out: &mut FrameWriter<W>) -> Result<Totals, Fault> {
    let began = if job == Job::Read { stamp::fresh() } else { stamp::now() };
    let broken = |error| Fault::reading(&[], "the root can't be read", error);
    let stat = fstat(&root).map_err(broken)?;
    check_proc(std::os::fd::AsFd::as_fd(&root)).map_err(|error| Fault::new(Class::Unreadable, error.to_string()))?;
    let mut walk = Walk {
        descent: Descent::new(root).map_err(broken)?,
        levels: Vec::new(),
        device: stat.st_dev,
        job,
        out,
        links: Links::default(),
        totals: Totals::default(),
        path: Vec::new(),
        torn: HashSet::new(),
        stamps: blake3::Hasher::new(),
        buffer: vec![0; PIECE],
        quiet: (0, 0),
    };
    walk.tree()?;
    if job == Job::Read {
        walk.changes(began, stamp::now())?;
    }
    Ok(walk.totals)
}

struct Walk<'a, W> {
    descent: Descent,
    levels: Vec<Level>,
    device: u64,
    job: Job,
    out: &'a mut FrameWriter<W>,
    links: Links,
    totals: Totals,
    /// Of what is being told.
    path: Vec<u8>,
    torn: HashSet<u64>,
    /// Of everything that was seen, in order: a second walk over the same tree comes to the same.
    stamps: blake3::Hasher,
    buffer: Vec<u8>,
    /// Bytes and entries since something was sent.
    quiet: (u64, u64),
}

/// Names of one directory that are still to be told.
struct Level {
    names: vec::IntoIter<Vec<u8>>,
    last: Option<Vec<u8>>,
    more: bool,
    /// Length of the directory's path.
    length: usize,
}

impl<W: Write> Walk<'_, W> {
    fn tree(&mut self) -> Result<(), Fault> {
        let root = fstat(self.here()?).map_err(|error| Fault::reading(&[], "the root can't be read", error))?;
        self.stamp(&root);
        self.directory_entry()?;
        self.begin_level()?;
        while let Some(name) = self.next_name()? {
            self.thing(&name)?;
        }
        Ok(())
    }

    /// The next name to look at, going up where a directory is done; `None` at the end.
    fn next_name(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.length);
            if let Some(name) = level.names.next() {
                level.last = Some(name.clone());
                return Ok(Some(name));
            }
            if level.more {
                let last = level.last.take();
                let level = self.level(last)?;
                if let Some(place) = self.levels.last_mut() {
                    *place = level;
                }
                continue;
            }
            self.levels.pop();
            if !self.levels.is_empty() {
                self.leave()?;
            }
        }
    }

    fn leave(&mut self) -> Result<(), Fault> {
        self.descent.leave().map_err(|error| match error {
            Errno::STALE => Fault::of(Class::Moved, &self.path, "the directory was moved while it was read"),
            error => Fault::reading(&self.path, "the directory above can't be opened", error),
        })
    }

    fn level(&mut self, after: Option<Vec<u8>>) -> Result<Level, Fault> {
        let fail = |path: &[u8], error| Fault::reading(path, "the directory can't be listed", error);
        let here = self.descent.here().map_err(|error| fail(&self.path, error))?;
        let (names, more) = match names(here, after.as_deref(), self.descent.depth()) {
            Ok(found) => found,
            // Removed since it was opened: there is nothing in it.
            Err(error) if is_gone(error) => {
                self.changed(Change::Vanished)?;
                (Vec::new(), false)
            }
            Err(error) => return Err(fail(&self.path, error)),
        };
        Ok(Level { names: names.into_iter(), last: after, more, length: self.path.len() })
    }

    /// Takes note of something as it was seen.
    fn stamp(&mut self, stat: &Stat) {
        if self.job == Job::Read && stat.st_dev == self.device {
            self.stamps.update(&self.path);
            self.stamps.update(&Stamp::of(stat).bytes(stat));
        }
    }

    fn begin_level(&mut self) -> Result<(), Fault> {
        let level = self.level(None)?;
        self.levels.push(level);
        Ok(())
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Fault> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        if self.path.len() > LONGEST_PATH {
            return Err(Fault::of(Class::Limit, &self.path, format!("its path is longer than {LONGEST_PATH} bytes")));
        }
        Ok(())
    }

    /// Whatever has that name here.
    fn thing(&mut self, name: &[u8]) -> Result<(), Fault> {
        self.push(name)?;
        if self.descent.depth() == 0 && name == MARKER {
            let message = "this volume was left half-written by a restore that did not finish";
            return Err(Fault::of(Class::Unreadable, name, message));
        }
        for _ in 0..=RETRIES {
            let here = self.here()?;
            let stat = match statat(here, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(error) if is_gone(error) => return self.changed(Change::Vanished),
                Err(error) => return self.unreadable("its properties can't be read", error),
            };
            self.stamp(&stat);
            let attempt = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.directory(name, &stat)?,
                FileType::RegularFile => self.file(name, &stat)?,
                FileType::Symlink => self.link(name, &stat)?,
                FileType::Fifo => self.named(name, &stat, Kind::Fifo)?,
                FileType::Socket => self.skipped(Skip::Socket)?,
                _ => self.skipped(Skip::Device)?,
            };
            match attempt {
                Attempt::Told => return Ok(()),
                Attempt::Vanished => return self.changed(Change::Vanished),
                // It is something else than it was: looked at anew.
                Attempt::Torn => {}
            }
        }
        self.changed(Change::WhileRead)
    }

    fn here(&self) -> Result<BorrowedFd<'_>, Fault> {
        self.descent.here().map_err(|error| Fault::reading(&self.path, "its directory is closed", error))
    }

    fn directory(&mut self, name: &[u8], stat: &Stat) -> Result<Attempt, Fault> {
        if stat.st_dev != self.device {
            return self.skipped(Skip::MountPoint);
        }
        let fd = match openat(self.here()?, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(error) if is_gone(error) => return Ok(Attempt::Vanished),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Attempt::Torn),
            Err(error) => return self.unreadable("the directory can't be opened", error).map(|()| Attempt::Told),
        };
        let fail = |error| Fault::reading(&self.path, "the directory can't be opened", error);
        if id(&fstat(&fd).map_err(fail)?) != id(stat) {
            return Ok(Attempt::Torn);
        }
        if self.descent.depth() == 0 && name == LOST_FOUND {
            // The filesystem's own, unless something was found.
            let (found, _) = names(std::os::fd::AsFd::as_fd(&fd), None, 1).map_err(fail)?;
            if found.is_empty() {
                return Ok(Attempt::Told);
            }
        }
        self.descent.enter(fd).map_err(fail)?;
        self.directory_entry()?;
        self.begin_level()?;
        Ok(Attempt::Told)
    }

    /// Tells the directory that was just entered.
    fn directory_entry(&mut self) -> Result<(), Fault> {
        let fail = |error| Fault::reading(&self.path, "the directory's properties can't be read", error);
        let here = self.here()?;
        let stat = fstat(here).map_err(fail)?;
        let (attributes, told) = attributes::read(On::Open(here), &self.path)?;
        let entry = self.entry(Kind::Directory, &stat, attributes);
        self.tell(entry, told.as_deref())
    }

    fn link(&mut self, name: &[u8], stat: &Stat) -> Result<Attempt, Fault> {
        match readlinkat(self.here()?, name, Vec::new()) {
            Ok(target) => self.named(name, stat, Kind::Symlink(target.into_bytes())),
            Err(error) if is_gone(error) => Ok(Attempt::Vanished),
            Err(Errno::INVAL) => Ok(Attempt::Torn),
            Err(error) => self.unreadable("the link can't be read", error).map(|()| Attempt::Told),
        }
    }

    /// Links and pipes: told without being opened.
    fn named(&mut self, name: &[u8], stat: &Stat, kind: Kind) -> Result<Attempt, Fault> {
        if self.other_name(stat)? {
            return Ok(Attempt::Told);
        }
        let here = self.here()?;
        let (attributes, told) = match attributes::read(On::Name(here, name), &self.path) {
            Ok(read) => read,
            Err(_) if gone(here, name) => return Ok(Attempt::Vanished),
            Err(fault) => return self.unreadable_fault(fault).map(|()| Attempt::Told),
        };
        let entry = self.entry(kind, stat, attributes);
        self.links.told(stat.st_ino, stat.st_nlink, &self.path)?;
        self.tell(entry, told.as_deref())?;
        Ok(Attempt::Told)
    }

    /// Tells a further name of something that was told.
    fn other_name(&mut self, stat: &Stat) -> Result<bool, Fault> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let Some(target) = self.links.seen(stat.st_ino) else { return Ok(false) };
        self.tell(Entry::hard_link(self.path.clone(), target), None)?;
        Ok(true)
    }

    fn entry(&self, kind: Kind, stat: &Stat, attributes: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
        let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { stat.st_mode & 0o7777 };
        let (seconds, nanos) = stamp::written(stat);
        Entry {
            path: self.path.clone(),
            kind,
            mode: u16::try_from(mode).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            seconds,
            nanos,
            attributes,
        }
    }

    fn tell(&mut self, entry: Entry, told: Option<&[u8]>) -> Result<(), Fault> {
        self.totals.count(&entry);
        if self.job == Job::Scan {
            return self.alive(0);
        }
        self.out.send(&Message::Entry(entry))?;
        if let Some(name) = told {
            let text = [self.path.as_slice(), b" (", name, b")"].concat();
            self.totals.skipped += 1;
            self.out.send(&Message::Skipped(Skip::Attribute, &text))?;
        }
        Ok(())
    }

    /// Says that we are alive when little else is said.
    fn alive(&mut self, bytes: u64) -> Result<(), Fault> {
        self.quiet = (self.quiet.0 + bytes, self.quiet.1 + 1);
        if self.quiet.0 >= ALIVE_BYTES || self.quiet.1 >= ALIVE_ENTRIES {
            self.quiet = (0, 0);
            self.out.send(&Message::Progress { entries: self.totals.entries, bytes: self.totals.bytes })?;
            self.out.flush()?;
        }
        Ok(())
    }

    fn skipped(&mut self, why: Skip) -> Result<Attempt, Fault> {
        self.totals.skipped += 1;
        if self.job != Job::Scan {
            self.out.send(&Message::Skipped(why, &self.path))?;
        }
        Ok(Attempt::Told)
    }

    fn changed(&mut self, how: Change) -> Result<(), Fault> {
        self.totals.changed += 1;
        if self.job == Job::Scan { Ok(()) } else { self.out.send(&Message::Changed(how, &self.path)) }
    }

    fn unreadable(&mut self, what: &str, error: Errno) -> Result<(), Fault> {
        self.unreadable_fault(Fault::reading(&self.path, what, error))
    }

    /// The end for a read; a scan goes on to find the others.
    fn unreadable_fault(&mut self, fault: Fault) -> Result<(), Fault> {
        if self.job != Job::Scan || fault.class != Class::Unreadable {
            return Err(fault);
        }
        self.totals.unreadable += 1;
        self.out.send(&Message::Unreadable(fault))
    }

    fn file(&mut self, name: &[u8], stat: &Stat) -> Result<Attempt, Fault> {
        if self.other_name(stat)? {
            return Ok(Attempt::Told);
        }
        if self.job == Job::Scan {
            return self.try_file(name, stat);
        }
        for attempt in 0..=RETRIES {
            let fd = match openat(self.here()?, name, FILE, Mode::empty()) {
                Ok(fd) => fd,
                Err(error) if is_gone(error) => return Ok(Attempt::Vanished),
                Err(Errno::LOOP | Errno::NXIO) => return Ok(Attempt::Torn),
                Err(error) => return Err(Fault::reading(&self.path, "it can't be opened", error)),
            };
            let before =
                fstat(&fd).map_err(|error| Fault::reading(&self.path, "its properties can't be read", error))?;
            if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
                return Ok(Attempt::Torn);
            }
            let (attributes, told) = attributes::read(On::Open(std::os::fd::AsFd::as_fd(&fd)), &self.path)?;
            let entry = self.entry(Kind::File, &before, attributes);
            if self.contents(&fd, &before, entry, told, attempt == RETRIES)? {
                self.links.told(before.st_ino, before.st_nlink, &self.path)?;
                return Ok(Attempt::Told);
            }
        }
        Ok(Attempt::Told)
    }

    /// Whether it could be read.
    fn try_file(&mut self, name: &[u8], stat: &Stat) -> Result<Attempt, Fault> {
        let here = self.here()?;
        match accessat(here, name, rustix::fs::Access::READ_OK, AtFlags::EACCESS) {
            Ok(()) => {}
            Err(error) if is_gone(error) => return Ok(Attempt::Vanished),
            Err(error) => {
                self.unreadable("it can't be opened", error)?;
                return Ok(Attempt::Told);
            }
        }
        self.totals.entries += 1;
        self.totals.files += 1;
        self.totals.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        self.links.told(stat.st_ino, stat.st_nlink, &self.path)?;
        self.alive(0)?;
        Ok(Attempt::Told)
    }

    /// One attempt to tell a file. `false`: it changed, all that was said of it is taken back.
    fn contents(
        &mut self,
        fd: &OwnedFd,
        before: &Stat,
        entry: Entry,
        told: Option<Vec<u8>>,
        last: bool,
    ) -> Result<bool, Fault> {
        let length = u64::try_from(before.st_size).unwrap_or(0);
        // What fits in one piece is told when it is known that it didn't change; so is what is only counted.
        let at_once = self.job == Job::Count || length <= PIECE as u64;
        let mut kept: Vec<(u64, usize)> = Vec::new();
        if !at_once {
            self.out.send(&Message::Entry(entry.clone()))?;
        }
        let mut hasher = ContentHasher::default();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut filled = 0;
        let mut data = 0;
        let mut end = length;
        let sparse = u64::try_from(before.st_blocks).unwrap_or(0).saturating_mul(512) < length;
        let mut at = 0;
        let fail = |error| Fault::reading(&entry.path, "its contents can't be read", error);
        'extents: while at < length {
            let (from, to) = if sparse { extent(fd, at, length).map_err(fail)? } else { (at, length) };
            at = from;
            while at < to {
                let room = if at_once && self.job == Job::Read { filled } else { 0 };
                let wish = usize::try_from(to - at).unwrap_or(PIECE).min(PIECE - room);
                let space = buffer.get_mut(room..room + wish).unwrap_or_default();
                let read = match pread(fd, &mut *space, at) {
                    Ok(0) => {
                        end = at;
                        break 'extents;
                    }
                    Ok(read) => read,
                    Err(Errno::INTR) => continue,
                    // Removed at the server of a network filesystem: whether it is gone, the next look tells.
                    Err(Errno::STALE) => {
                        end = at;
                        break 'extents;
                    }
                    Err(error) => return Err(fail(error)),
                };
                let bytes = space.get(..read).unwrap_or_default();
                hasher.update(at, bytes);
                if self.job == Job::Count {
                    self.alive(read as u64)?;
                } else if at_once {
                    kept.push((at, read));
                    filled += read;
                } else {
                    self.out.send(&Message::Data { offset: at, bytes })?;
                }
                at += read as u64;
                data += read as u64;
            }
        }
        let after = fstat(fd).map_err(fail)?;
        let torn = Stamp::of(&after) != Stamp::of(before) || end != length;
        if torn && !last {
            self.buffer = buffer;
            if !at_once {
                // What was told of it counts, void as it is: it is in the stream.
                self.totals.data += data;
                self.out.send(&Message::Again)?;
            }
            return Ok(false);
        }
        if at_once {
            self.out.send(&Message::Entry(entry.clone()))?;
            let mut place = 0;
            for (offset, length) in kept {
                let bytes = buffer.get(place..place + length).unwrap_or_default();
                self.out.send(&Message::Data { offset, bytes })?;
                place += length;
            }
        }
        self.buffer = buffer;
        self.out.send(&Message::Done { size: end, hash: hasher.finish(end) })?;
        self.totals.count(&entry);
        self.totals.bytes += end;
        self.totals.data += data;
        if torn {
            if self.torn.len() < MOST_TORN {
                self.torn.insert(before.st_ino);
            }
            self.changed(Change::WhileRead)?;
        }
        if let Some(name) = told {
            let text = [self.path.as_slice(), b" (", &name, b")"].concat();
            self.totals.skipped += 1;
            self.out.send(&Message::Skipped(Skip::Attribute, &text))?;
        }
        Ok(true)
    }

    /// A second walk over properties alone: names what was changed between two moments. The first walk sees only what
    /// changed under its hands.
    fn changes(&mut self, from: Time, to: Time) -> Result<(), Fault> {
        self.path.clear();
        let first = std::mem::take(&mut self.stamps).finalize();
        let root = fstat(self.here()?).map_err(|error| Fault::reading(&[], "the root can't be read", error))?;
        self.stamp(&root);
        self.changed_between(&root, from, to)?;
        self.begin_level()?;
        while let Some(name) = self.next_name()? {
            self.push(&name)?;
            let Ok(stat) = statat(self.here()?, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.stamp(&stat);
            self.changed_between(&stat, from, to)?;
            self.alive(0)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory || stat.st_dev != self.device {
                continue;
            }
            let Ok(fd) = openat(self.here()?, &name, DIRECTORY, Mode::empty()) else { continue };
            let fail = |error| Fault::reading(&self.path, "the directory can't be opened", error);
            self.descent.enter(fd).map_err(fail)?;
            self.begin_level()?;
        }
        if self.totals.changed == 0 && self.stamps.finalize() != first {
            // The filesystem's clock isn't ours: what it was can't be told by the time.
            self.path.clear();
            self.changed(Change::Unnamed)?;
        }
        Ok(())
    }

    fn changed_between(&mut self, stat: &Stat, from: Time, to: Time) -> Result<(), Fault> {
        // Times ahead of the clock are of a past in which it was wrong, not of now.
        let time = stamp::changed(stat);
        if time < from || time > to || self.torn.contains(&stat.st_ino) {
            return Ok(());
        }
        self.changed(Change::AfterStart)
    }
}

/// Whether a name is gone.
fn gone(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    matches!(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW), Err(error) if is_gone(error))
}

/// Whether that is what the system says of something that was removed meanwhile.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::STALE)
}

/// The next written part of a file, from `at` on; nothing but a hole: from its end to its end.
fn extent(fd: &OwnedFd, at: u64, length: u64) -> Result<(u64, u64), Errno> {
    let from = match seek(fd, SeekFrom::Data(at)) {
        Ok(from) => from.min(length),
        Err(Errno::NXIO) => return Ok((length, length)),
        // A filesystem that knows no holes.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok((at, length)),
        Err(error) => return Err(error),
    };
    let to = seek(fd, SeekFrom::Hole(from)).or_else(|error| match error {
        Errno::NXIO => Ok(from),
        error => Err(error),
    })?;
    Ok((from, to.clamp(from, length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open_root;

    /// Names and kinds of changes that are told when `act` is done between the two walks, by a clock that sees nothing.
    fn told(root: &std::path::Path, act: impl FnOnce()) -> (u64, Vec<Change>) {
        let mut bytes = Vec::new();
        let mut out = FrameWriter::new(&mut bytes);
        let fd = open_root(root).unwrap();
        let device = fstat(&fd).unwrap().st_dev;
        let mut walk = Walk {
            descent: Descent::new(fd).unwrap(),
            levels: Vec::new(),
            device,
            job: Job::Read,
            out: &mut out,
            links: Links::default(),
            totals: Totals::default(),
            path: Vec::new(),
            torn: HashSet::new(),
            stamps: blake3::Hasher::new(),
            buffer: vec![0; PIECE],
            quiet: (0, 0),
        };
        walk.tree().unwrap();
        stamp::fresh();
        act();
        walk.changes((0, 0), (0, 1)).unwrap();
        let changed = walk.totals.changed;
        let mut reader = crate::wire::FrameReader::new(bytes.as_slice());
        let mut changes = Vec::new();
        while let Ok(message) = reader.next() {
            if let Message::Changed(how, _) = message {
                changes.push(how);
            }
        }
        (changed, changes)
    }

    #[test]
    fn a_change_is_seen_also_where_the_filesystems_clock_is_another_machines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d/f");
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        std::fs::write(&file, "one").unwrap();
        assert_eq!(told(dir.path(), || {}), (0, vec![]));
        assert_eq!(told(dir.path(), || std::fs::write(&file, "two").unwrap()), (1, vec![Change::Unnamed]));
        assert_eq!(told(dir.path(), || std::fs::remove_file(&file).unwrap()), (1, vec![Change::Unnamed]));
        assert_eq!(told(dir.path(), || std::fs::write(&file, "").unwrap()), (1, vec![Change::Unnamed]));
    }
}
