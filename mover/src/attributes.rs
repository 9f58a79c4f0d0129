//! Extended attributes, ACLs among them.

use std::os::fd::BorrowedFd;

use rustix::{
    fs::{
        IFlags, XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, ioctl_getflags, lgetxattr, llistxattr,
        lremovexattr, lsetxattr,
    },
    io::Errno,
};

use crate::{
    entry::{Attribute, MOST_ATTRIBUTES, attribute},
    fault::{Class, Fault},
    tree::proc_path,
};

/// Longest list of names, and longest value, that the system gives.
const LONGEST: usize = 64 << 10;

/// What attributes hang on.
#[derive(Clone, Copy)]
pub(crate) enum On<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in an open directory: links and pipes, which aren't opened.
    Name(BorrowedFd<'a>, &'a [u8]),
}

impl On<'_> {
    fn list(self, space: &mut Vec<u8>) -> Result<(), Errno> {
        space.clear();
        space.reserve(LONGEST);
        let listed = match self {
            On::Open(fd) => flistxattr(fd, rustix::buffer::spare_capacity(space)).map(|_| ()),
            On::Name(dir, name) => {
                llistxattr(proc_path(dir, name).as_slice(), rustix::buffer::spare_capacity(space)).map(|_| ())
            }
        };
        match listed {
            Err(Errno::NOTSUP | Errno::NOSYS) => {
                space.clear();
                Ok(())
            }
            other => other,
        }
    }

    fn get(self, attribute: &[u8], space: &mut Vec<u8>) -> Result<(), Errno> {
        space.clear();
        space.reserve(LONGEST);
        match self {
            On::Open(fd) => fgetxattr(fd, attribute, rustix::buffer::spare_capacity(space)).map(|_| ()),
            On::Name(dir, name) => {
                lgetxattr(proc_path(dir, name).as_slice(), attribute, rustix::buffer::spare_capacity(space)).map(|_| ())
            }
        }
    }

    fn set(self, attribute: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            On::Open(fd) => fsetxattr(fd, attribute, value, XattrFlags::empty()),
            On::Name(dir, name) => lsetxattr(proc_path(dir, name).as_slice(), attribute, value, XattrFlags::empty()),
        }
    }

    /// The flag of the filesystem that keeps it from being changed, if it has one; links and pipes have none.
    fn flags(self) -> Option<&'static [u8]> {
        let On::Open(fd) = self else { return None };
        // Filesystems without flags don't know the question.
        let flags = ioctl_getflags(fd).unwrap_or(IFlags::empty());
        if flags.contains(IFlags::IMMUTABLE) {
            return Some(b"chattr +i");
        }
        flags.contains(IFlags::APPEND).then_some(b"chattr +a")
    }

    pub(crate) fn remove(self, attribute: &[u8]) -> Result<(), Errno> {
        match self {
            On::Open(fd) => fremovexattr(fd, attribute),
            On::Name(dir, name) => lremovexattr(proc_path(dir, name).as_slice(), attribute),
        }
    }
}

/// Attributes with their names.
pub(crate) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Attributes that are saved, by name; and the first one that isn't and is worth telling.
pub(crate) fn read(on: On<'_>, path: &[u8]) -> Result<(Attributes, Option<Vec<u8>>), Fault> {
    let fail = |error| Fault::reading(path, "its attributes can't be read", error);
    let (mut names, mut value) = (Vec::new(), Vec::new());
    on.list(&mut names).map_err(fail)?;
    let mut found = Attributes::new();
    let mut told = on.flags().map(<[u8]>::to_vec);
    let mut all = 0;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match attribute(name) {
            Attribute::OfTheNode => continue,
            Attribute::Told => {
                told.get_or_insert_with(|| name.to_vec());
                continue;
            }
            Attribute::Kept => {}
        }
        match on.get(name, &mut value) {
            Ok(()) => {}
            // Taken off since it was listed: a change like any other, seen by the file's time.
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(fail(error)),
        }
        all += name.len() + value.len();
        if all > MOST_ATTRIBUTES {
            let message = format!("its attributes are larger than {MOST_ATTRIBUTES} bytes together");
            return Err(Fault::of(Class::Limit, path, message));
        }
        found.push((name.to_vec(), value.clone()));
    }
    found.sort();
    Ok((found, told))
}

/// Makes the attributes those that were saved: what was inherited from a directory goes.
pub(crate) fn write(on: On<'_>, path: &[u8], wanted: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Fault> {
    let mut names = Vec::new();
    on.list(&mut names).map_err(|error| Fault::reading(path, "its attributes can't be read", error))?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty() && attribute(name) == Attribute::Kept) {
        if !wanted.iter().any(|(wanted, _)| wanted == name) {
            on.remove(name).map_err(|error| unset(path, name, error))?;
        }
    }
    for (name, value) in wanted {
        on.set(name, value).map_err(|error| unset(path, name, error))?;
    }
    Ok(())
}

fn unset(path: &[u8], name: &[u8], error: Errno) -> Fault {
    Fault::writing(path, &format!("its attribute {} can't be set", crate::show(name)), error)
}
