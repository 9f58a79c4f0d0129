//! One thing in a tree, and what may be said of it.

use std::cmp::Ordering;

use crate::fault::{Class, Fault};

/// Longest path from the root, in bytes.
pub const LONGEST_PATH: usize = 64 << 10;
/// Longest name of one file.
const LONGEST_NAME: usize = 255;
/// Longest target of a symbolic link.
const LONGEST_TARGET: usize = 4095;
/// Bytes of all attributes of one file together.
pub const MOST_ATTRIBUTES: usize = 1 << 20;
/// The file that lies in a root while it is written.
pub const MARKER: &[u8] = b".ocopea-unfinished";
/// What ext filesystems have in their root by themselves.
pub const LOST_FOUND: &[u8] = b"lost+found";

/// What a thing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file; its contents follow.
    File,
    /// A symbolic link with its target, which may be any bytes.
    Symlink(Vec<u8>),
    /// Another name of what an earlier entry, named here, made. Its other fields are empty.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
}

/// One thing in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Names from the root, with '/' between; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions with set-user-id, set-group-id and sticky. 0777 for symbolic links.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of its contents: seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of that.
    pub nanos: u32,
    /// Extended attributes, ACLs among them, by name.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Another name of what `target` made.
    pub fn hard_link(path: Vec<u8>, target: Vec<u8>) -> Self {
        let kind = Kind::HardLink(target);
        Self { path, kind, mode: 0, uid: 0, gid: 0, seconds: 0, nanos: 0, attributes: vec![] }
    }

    /// Appends its canonical form, which is what travels, what is stored, and what is hashed.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, target) = match &self.kind {
            Kind::Directory => (1, &[][..]),
            Kind::File => (2, &[][..]),
            Kind::Symlink(target) => (3, target.as_slice()),
            Kind::HardLink(target) => (4, target.as_slice()),
            Kind::Fifo => (5, &[][..]),
        };
        out.push(kind);
        text(out, &self.path);
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.seconds.to_le_bytes());
        out.extend_from_slice(&self.nanos.to_le_bytes());
        text(out, target);
        out.extend_from_slice(&u32::try_from(self.attributes.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (name, value) in &self.attributes {
            text(out, name);
            text(out, value);
        }
    }

    /// Reads a canonical form; anything that no walk would say is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut rest = Fields { rest: bytes };
        let kind = rest.array::<1>()?;
        let path = rest.text(LONGEST_PATH)?.to_vec();
        let mode = u16::from_le_bytes(rest.array()?);
        let uid = u32::from_le_bytes(rest.array()?);
        let gid = u32::from_le_bytes(rest.array()?);
        let seconds = i64::from_le_bytes(rest.array()?);
        let nanos = u32::from_le_bytes(rest.array()?);
        let target = rest.text(LONGEST_PATH)?.to_vec();
        let count = u32::from_le_bytes(rest.array()?);
        let mut attributes: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for _ in 0..count {
            let (name, value) = (rest.text(LONGEST_NAME)?, rest.text(MOST_ATTRIBUTES)?);
            if attributes.last().is_some_and(|(last, _)| last.as_slice() >= name) {
                return Err(Fault::refused(&path, "its attributes are not in order"));
            }
            attributes.push((name.to_vec(), value.to_vec()));
        }
        if !rest.rest.is_empty() {
            return Err(Fault::refused(&path, "more is said of it than there is to say"));
        }
        let kind = match kind {
            [1] => Kind::Directory,
            [2] => Kind::File,
            [3] => Kind::Symlink(target.clone()),
            [4] => Kind::HardLink(target.clone()),
            [5] => Kind::Fifo,
            [other] => return Err(Fault::refused(&path, format!("it is of the unknown kind {other}"))),
        };
        let entry = Self { path, kind, mode, uid, gid, seconds, nanos, attributes };
        entry.check(&target)?;
        Ok(entry)
    }

    fn check(&self, target: &[u8]) -> Result<(), Fault> {
        let refuse = |why: &str| Err(Fault::refused(&self.path, why));
        check_path(&self.path)?;
        if self.path.is_empty() && self.kind != Kind::Directory {
            return refuse("the root is not a directory");
        }
        match &self.kind {
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > LONGEST_TARGET || target.contains(&0) {
                    return refuse("a symbolic link can't have that target");
                }
                if self.mode != 0o777 {
                    return refuse("a symbolic link has no permissions of its own");
                }
            }
            Kind::HardLink(target) => {
                check_path(target)?;
                if target.is_empty() || order(target, &self.path) != Ordering::Less {
                    return refuse("a hard link's target doesn't come before it");
                }
                if *self != Self::hard_link(self.path.clone(), target.clone()) {
                    return refuse("a hard link has no properties of its own");
                }
            }
            _ if !target.is_empty() => return refuse("only links have targets"),
            _ => {}
        }
        if self.mode > 0o7777 || self.nanos > 999_999_999 {
            return refuse("its permissions or time can't be");
        }
        if self.uid == u32::MAX || self.gid == u32::MAX {
            return refuse("nobody has that owner's number");
        }
        let all: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        if all > MOST_ATTRIBUTES {
            return refuse("its attributes are larger than any filesystem has them");
        }
        let strange = self.attributes.iter().find(|(name, _)| attribute(name) != Attribute::Kept || name.contains(&0));
        if let Some((name, _)) = strange {
            return refuse(&format!("attribute {} is none that is saved", crate::show(name)));
        }
        Ok(())
    }
}

/// What becomes of an extended attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Saved.
    Kept,
    /// The node's own matter: labels of its security modules, which each node gives anew.
    OfTheNode,
    /// Not saved, but told.
    Told,
}

/// What becomes of the attribute of that name.
pub fn attribute(name: &[u8]) -> Attribute {
    let kept = [&b"system.posix_acl_access"[..], b"system.posix_acl_default", b"security.capability"];
    if kept.contains(&name)
        || (name.len() > 5 && name.starts_with(b"user."))
        || (name.len() > 8 && name.starts_with(b"trusted."))
    {
        Attribute::Kept
    } else if name.starts_with(b"security.") {
        Attribute::OfTheNode
    } else {
        Attribute::Told
    }
}

/// The order of a walk: a directory before what is in it, names by their bytes.
pub fn order(a: &[u8], b: &[u8]) -> Ordering {
    parts(a).cmp(parts(b))
}

/// The names of a path.
pub fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|_| !path.is_empty())
}

/// The directory that a path lies in, and its name there; `None` for the root.
pub fn parent(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    })
}

/// Refuses what isn't the path of something below the root.
pub fn check_path(path: &[u8]) -> Result<(), Fault> {
    if path.len() > LONGEST_PATH {
        return Err(Fault::refused(path, "its path is too long"));
    }
    for name in parts(path) {
        let why = match name {
            b"" => "a name in its path is empty, or it begins with a slash",
            b"." | b".." => "its path has dots for a name",
            _ if name.contains(&0) => "a name in its path holds a zero byte",
            _ if name.len() > LONGEST_NAME => "a name in its path is too long",
            _ => continue,
        };
        return Err(Fault::refused(path, why));
    }
    Ok(())
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Fields one behind the other.
pub(crate) struct Fields<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(short)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn text(&mut self, longest: usize) -> Result<&'a [u8], Fault> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > longest {
            return Err(Fault::new(
                Class::Protocol,
                format!("a field is {length} bytes long; at most {longest} are allowed"),
            ));
        }
        let (head, rest) = self.rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

fn short() -> Fault {
    Fault::new(Class::Protocol, "a field is longer than what holds it")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn file(path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            seconds: 1,
            nanos: 2,
            attributes: vec![],
        }
    }

    fn round(entry: &Entry) -> Result<Entry, Fault> {
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        Entry::decode(&bytes)
    }

    #[test]
    fn what_a_walk_says_comes_back() {
        let attributes = vec![(b"system.posix_acl_access".to_vec(), vec![2, 0]), (b"user.a".to_vec(), vec![])];
        let entries = [
            Entry { kind: Kind::Directory, ..file(b"") },
            Entry { attributes, mode: 0o6755, ..file(b"a/\xff\n b") },
            Entry { kind: Kind::Symlink(b"../../etc/passwd".to_vec()), mode: 0o777, seconds: -5, ..file(b"l") },
            Entry { kind: Kind::Fifo, ..file(b"p") },
            Entry::hard_link(b"z".to_vec(), b"a/\xff\n b".to_vec()),
        ];
        for entry in entries {
            assert_eq!(round(&entry), Ok(entry.clone()), "{entry:?}");
        }
    }

    #[test]
    fn what_no_walk_says_is_refused() {
        let with = |name: &[u8]| Entry { attributes: vec![(name.to_vec(), vec![1])], ..file(b"f") };
        let a = || (b"user.a".to_vec(), vec![]);
        let bad = [
            file(b""),
            file(b"/etc/passwd"),
            file(b"a//b"),
            file(b"a/"),
            file(b"a/../b"),
            file(b".."),
            file(b"./a"),
            file(b"a\0b"),
            file(&[b'x'; 256]),
            file(&b"x/".repeat(LONGEST_PATH)),
            Entry { mode: 0o10_000, ..file(b"f") },
            Entry { nanos: 1_000_000_000, ..file(b"f") },
            Entry { uid: u32::MAX, ..file(b"f") },
            Entry { kind: Kind::Symlink(vec![]), mode: 0o777, ..file(b"l") },
            Entry { kind: Kind::Symlink(b"a\0".to_vec()), mode: 0o777, ..file(b"l") },
            Entry { kind: Kind::Symlink(vec![b'x'; 4096]), mode: 0o777, ..file(b"l") },
            Entry { kind: Kind::Symlink(b"a".to_vec()), mode: 0o644, ..file(b"l") },
            Entry::hard_link(b"b".to_vec(), b"/etc/shadow".to_vec()),
            Entry::hard_link(b"b".to_vec(), b"../a".to_vec()),
            Entry::hard_link(b"b".to_vec(), b"c".to_vec()),
            Entry::hard_link(b"b".to_vec(), b"b".to_vec()),
            Entry::hard_link(b"b".to_vec(), vec![]),
            Entry { mode: 0o644, ..Entry::hard_link(b"b".to_vec(), b"a".to_vec()) },
            with(b"security.selinux"),
            with(b"system.nfs4_acl"),
            with(b"user."),
            with(b"user.a\0"),
            with(b""),
            Entry { attributes: vec![a(), a()], ..file(b"f") },
            Entry { attributes: vec![(b"user.b".to_vec(), vec![]), a()], ..file(b"f") },
            Entry { attributes: vec![(b"user.a".to_vec(), vec![0; MOST_ATTRIBUTES])], ..file(b"f") },
        ];
        for entry in bad {
            assert!(round(&entry).is_err(), "{:?}", crate::show(&entry.path));
        }
    }

    #[test]
    fn the_order_is_that_of_a_walk() {
        let walk: [&[u8]; 8] = [b"", b"a", b"a/b", b"a/b/c", b"a/c", b"a!", b"a.", b"b"];
        for pair in walk.windows(2) {
            assert_eq!(order(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
        assert_eq!(parent(b"a/b"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(parent(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(parent(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(entry) = Entry::decode(&bytes) {
                let mut again = Vec::new();
                entry.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }

        #[test]
        fn a_changed_byte_never_leads_out(at in 0usize..80, byte in any::<u8>()) {
            let mut bytes = Vec::new();
            Entry { kind: Kind::Symlink(b"target".to_vec()), mode: 0o777, ..file(b"some/where/deep") }.encode(&mut bytes);
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert!(check_path(&entry.path).is_ok());
            }
        }
    }
}
