//! Emptying a volume that a restore left half-written, and nothing else: the marker must be there.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{AtFlags, FileType, Mode, fstat, openat, statat, unlinkat},
    io::Errno,
};

use crate::{
    entry::{LOST_FOUND, MARKER},
    fault::{Class, Fault},
    tree::{DIRECTORY, Descent, names},
};

/// Removes everything below the root, the marker last.
pub(crate) fn clear(root: OwnedFd) -> Result<(), Fault> {
    let fail = |path: &[u8], error| Fault::writing(path, "what an unfinished restore left can't be removed", error);
    let device = fstat(&root).map_err(|error| fail(&[], error))?.st_dev;
    let mut descent = Descent::new(root).map_err(|error| fail(&[], error))?;
    let marked = descent.here().and_then(|here| statat(here, MARKER, AtFlags::SYMLINK_NOFOLLOW));
    marked.map_err(|error| fail(MARKER, error))?;
    // Names of the directories that we are in.
    let mut inside: Vec<Vec<u8>> = Vec::new();
    loop {
        let here = descent.here().map_err(|error| fail(MARKER, error))?;
        let keep = |name: &Vec<u8>| inside.is_empty() && (name == MARKER || name == LOST_FOUND);
        let (found, _) = names(here, None, descent.depth()).map_err(|error| fail(MARKER, error))?;
        let mut entered = None;
        for name in found.into_iter().filter(|name| !keep(name)) {
            let stat = statat(here, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| fail(&name, error))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                unlinkat(here, &name, AtFlags::empty()).map_err(|error| fail(&name, error))?;
                continue;
            }
            if stat.st_dev != device {
                return Err(Fault::of(Class::Unwritable, &name, "another filesystem is mounted there"));
            }
            match unlinkat(here, &name, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    let fd = openat(here, &name, DIRECTORY, Mode::empty()).map_err(|error| fail(&name, error))?;
                    entered = Some((fd, name));
                    break;
                }
                Err(error) => return Err(fail(&name, error)),
            }
        }
        if let Some((fd, name)) = entered {
            descent.enter(fd).map_err(|error| fail(&name, error))?;
            inside.push(name);
            continue;
        }
        let (rest, _) = names(here, None, descent.depth()).map_err(|error| fail(MARKER, error))?;
        if rest.iter().any(|name| !keep(name)) {
            continue;
        }
        let Some(name) = inside.pop() else { break };
        descent.leave().map_err(|error| fail(&name, error))?;
        let here = descent.here().map_err(|error| fail(&name, error))?;
        unlinkat(here, &name, AtFlags::REMOVEDIR).map_err(|error| fail(&name, error))?;
    }
    let here = descent.here().map_err(|error| fail(MARKER, error))?;
    unlinkat(here, MARKER, AtFlags::empty()).map_err(|error| fail(MARKER, error))
}
