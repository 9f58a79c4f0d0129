//! Files with several names: the first one is told whole, the others name it.

use std::collections::HashMap;

use crate::fault::{Class, Fault};

/// Bytes that may be held for names that are still awaited.
const MOST: usize = 128 << 20;

/// Files of which further names are awaited.
#[derive(Default)]
pub(crate) struct Links {
    awaited: HashMap<u64, (Box<[u8]>, u64)>,
    held: usize,
}

/// What one entry costs beside its name.
const EACH: usize = 64;

impl Links {
    /// The path under which the file was told, if it was.
    pub(crate) fn seen(&mut self, inode: u64) -> Option<Vec<u8>> {
        let (path, left) = self.awaited.get_mut(&inode)?;
        let path = path.to_vec();
        *left -= 1;
        if *left == 0 {
            self.awaited.remove(&inode);
            self.held -= path.len() + EACH;
        }
        Some(path)
    }

    /// The file was told; `names` is how many it has.
    pub(crate) fn told(&mut self, inode: u64, names: u64, path: &[u8]) -> Result<(), Fault> {
        if names < 2 {
            return Ok(());
        }
        self.held += path.len() + EACH;
        if self.held > MOST {
            return Err(Fault::of(Class::Limit, path, "too many files with several names lie far apart"));
        }
        if let Some((old, _)) = self.awaited.insert(inode, (path.into(), names - 1)) {
            self.held -= old.len() + EACH;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_forgotten_with_its_last_name() {
        let mut links = Links::default();
        links.told(1, 3, b"a").unwrap();
        links.told(2, 1, b"alone").unwrap();
        assert_eq!((links.seen(1), links.seen(1), links.seen(1)), (Some(b"a".to_vec()), Some(b"a".to_vec()), None));
        assert_eq!((links.held, links.seen(2)), (0, None));
    }
}
