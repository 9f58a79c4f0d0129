//! Down and up in a tree, one name at a time: never through a symbolic link, never out at the top, however deep.

use std::{
    collections::BinaryHeap,
    io::{Error, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, seek},
    io::Errno,
};

/// Directories of the chain from the root that are kept open.
const KEPT_OPEN: usize = 64;
/// Names of one directory that are held at once; of more, the first ones, then the next ones.
const NAMES: usize = 1 << 16;

/// How directories are opened.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens the directory that is to be read or written.
pub fn open_root(path: &Path) -> Result<OwnedFd, Error> {
    // What lies above the root is trusted: it is named on the command line.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

type Id = (u64, u64);

pub(crate) fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// The chain of directories from the root to where we are.
pub(crate) struct Descent {
    chain: Vec<Step>,
}

struct Step {
    fd: Option<OwnedFd>,
    id: Id,
}

impl Descent {
    pub(crate) fn new(root: OwnedFd) -> Result<Self, Errno> {
        let id = id(&fstat(&root)?);
        Ok(Self { chain: vec![Step { fd: Some(root), id }] })
    }

    /// How many directories below the root.
    pub(crate) fn depth(&self) -> usize {
        self.chain.len() - 1
    }

    /// Where we are.
    pub(crate) fn here(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.chain.last().and_then(|step| step.fd.as_ref()).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    pub(crate) fn root(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.chain.first().and_then(|step| step.fd.as_ref()).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Goes into a directory of here, already opened.
    pub(crate) fn enter(&mut self, fd: OwnedFd) -> Result<(), Errno> {
        let id = id(&fstat(&fd)?);
        self.chain.push(Step { fd: Some(fd), id });
        // The root stays open.
        if let Some(far) = self.chain.len().checked_sub(KEPT_OPEN).filter(|far| *far > 0)
            && let Some(step) = self.chain.get_mut(far)
        {
            step.fd = None;
        }
        Ok(())
    }

    /// Goes up. A directory that was closed on the way down is opened again through "..", and must be the same one:
    /// if not, the tree was moved meanwhile (ESTALE).
    pub(crate) fn leave(&mut self) -> Result<(), Errno> {
        let Some(left) = self.chain.pop() else { return Err(Errno::BADF) };
        let Some(step) = self.chain.last_mut() else { return Err(Errno::BADF) };
        if step.fd.is_none() {
            let child = left.fd.ok_or(Errno::BADF)?;
            let fd = openat(&child, "..", DIRECTORY, Mode::empty())?;
            if id(&fstat(&fd)?) != step.id {
                return Err(Errno::STALE);
            }
            step.fd = Some(fd);
        }
        Ok(())
    }
}

/// Names of a directory in the order of their bytes, `after` the given one, as many as are held at once; and whether
/// there are more.
pub(crate) fn names(dir: BorrowedFd<'_>, after: Option<&[u8]>, depth: usize) -> Result<(Vec<Vec<u8>>, bool), Errno> {
    names_up_to(dir, after, (NAMES >> (depth / 4).min(16)).max(64))
}

fn names_up_to(dir: BorrowedFd<'_>, after: Option<&[u8]>, most: usize) -> Result<(Vec<Vec<u8>>, bool), Errno> {
    seek(dir, SeekFrom::Start(0))?;
    let mut space: Vec<u8> = Vec::with_capacity(64 << 10);
    let mut listing = RawDir::new(dir, space.spare_capacity_mut());
    let mut first: BinaryHeap<Vec<u8>> = BinaryHeap::new();
    let mut more = false;
    while let Some(found) = listing.next() {
        let found = found?;
        let name = found.file_name().to_bytes();
        if name == b"." || name == b".." || after.is_some_and(|after| name <= after) {
            continue;
        }
        if first.len() == most {
            more = true;
            if first.peek().is_some_and(|last| last.as_slice() <= name) {
                continue;
            }
            first.pop();
        }
        first.push(name.to_vec());
    }
    Ok((first.into_sorted_vec(), more))
}

/// The path under which the system knows a name in an open directory: for calls that have no other way.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Without `/proc` such paths name nothing, and attributes of links would seem to be absent.
pub(crate) fn check_proc(dir: BorrowedFd<'_>) -> Result<(), Error> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}/.", dir.as_raw_fd());
    let seen = rustix::fs::stat(path.as_str());
    match seen {
        Ok(seen) if id(&seen) == id(&fstat(dir)?) => Ok(()),
        _ => Err(Error::new(ErrorKind::NotFound, "/proc is not mounted here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_order_and_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..1000 {
            std::fs::write(dir.path().join(format!("{:03}", (n * 7) % 1000)), "").unwrap();
        }
        let root = open_root(dir.path()).unwrap();
        let mut all = Vec::new();
        loop {
            let (part, more) = names_up_to(root.as_fd(), all.last().map(Vec::as_slice), 64).unwrap();
            assert!(part.len() <= 64);
            all.extend(part);
            if !more {
                break;
            }
        }
        let wanted: Vec<Vec<u8>> = (0..1000).map(|n| format!("{n:03}").into_bytes()).collect();
        assert_eq!(all, wanted);
    }

    #[test]
    fn a_directory_that_was_moved_away_is_not_followed_upwards() {
        let dir = tempfile::tempdir().unwrap();
        let deep: std::path::PathBuf = std::iter::repeat_n("d", KEPT_OPEN + 10).collect();
        std::fs::create_dir_all(dir.path().join("r").join(&deep)).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        let mut descent = Descent::new(open_root(&dir.path().join("r")).unwrap()).unwrap();
        for _ in 0..KEPT_OPEN + 10 {
            let fd = openat(descent.here().unwrap(), "d", DIRECTORY, Mode::empty()).unwrap();
            descent.enter(fd).unwrap();
        }
        // The sixth directory, closed long ago, loses its child.
        let fifth: std::path::PathBuf = std::iter::repeat_n("d", 6).collect();
        std::fs::rename(dir.path().join("r").join(&fifth), dir.path().join("elsewhere/d")).unwrap();
        let outcome = (0..KEPT_OPEN + 10).find_map(|_| descent.leave().err());
        assert_eq!(outcome, Some(Errno::STALE));
    }
}
