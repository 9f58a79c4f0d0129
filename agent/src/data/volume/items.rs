//! Counting and hashing what a mover tells, the same way at a save and on arrival.

use ocopea_mover::{
    Class, Fault, entry,
    wire::{Message, Totals},
};
use ocopea_protocol::image::StreamInfo;
use ocopea_repository::ItemHasher;

use super::FILES;

/// The items told so far.
pub(super) struct Items {
    hasher: ItemHasher,
    totals: Totals,
    /// A file's canonical form, until its contents are done.
    file: Option<Vec<u8>>,
}

impl Items {
    pub(super) fn new(hasher: ItemHasher) -> Self {
        Self { hasher, totals: Totals::default(), file: None }
    }

    /// Takes one message; those that concern no item are passed over.
    pub(super) fn take(&mut self, message: &Message<'_>) -> Result<(), Fault> {
        match message {
            Message::Entry(told) => {
                if self.file.is_some() {
                    return Err(Fault::new(Class::Protocol, "a file's contents don't end"));
                }
                let mut bytes = Vec::new();
                told.encode(&mut bytes);
                if told.kind == entry::Kind::File {
                    self.file = Some(bytes);
                } else {
                    self.hasher.add(&bytes);
                }
                self.totals.count(told);
            }
            Message::Done { size, hash } => {
                let Some(file) = self.file.take() else {
                    return Err(Fault::new(Class::Protocol, "contents end that never began"));
                };
                self.hasher.add_parts([file.as_slice(), &size.to_le_bytes(), hash]);
                self.totals.bytes = self.totals.bytes.saturating_add(*size);
            }
            Message::Again => {
                if self.file.take().is_none() {
                    return Err(Fault::new(Class::Protocol, "a file is called void that never began"));
                }
                self.totals.entries -= 1;
                self.totals.files -= 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// What was counted, if the mover counted the same.
    pub(super) fn finish(self, told: Totals) -> Result<(StreamInfo, ItemHasher), Fault> {
        if self.file.is_some() || self.totals.of_tree() != told.of_tree() {
            return Err(Fault::new(Class::Cut, "parts of what the mover told are missing"));
        }
        let info = StreamInfo {
            name: FILES.to_owned(),
            unit: "files".to_owned(),
            items: told.files,
            bytes: told.bytes,
            content: hex::encode(self.hasher.sum()),
        };
        Ok((info, self.hasher))
    }

    pub(super) fn entries(&self) -> u64 {
        self.totals.entries
    }
}

#[cfg(test)]
mod tests {
    use ocopea_mover::entry::{Entry, Kind};
    use ocopea_protocol::secret::Secret32;

    use super::*;

    fn entry(path: &str, kind: Kind, seconds: i64) -> Entry {
        Entry { path: path.into(), kind, mode: 0o644, uid: 1, gid: 1, seconds, nanos: 5, attributes: vec![] }
    }

    fn told(messages: &[Message<'_>], totals: Totals) -> Result<StreamInfo, Fault> {
        let mut items = Items::new(ItemHasher::new(&Secret32([7; 32])));
        for message in messages {
            items.take(message)?;
        }
        items.finish(totals).map(|(info, _)| info)
    }

    #[test]
    fn a_file_told_again_counts_once_and_its_times_and_contents_count() {
        let root = Message::Entry(entry("", Kind::Directory, 1));
        let file = |seconds| Message::Entry(entry("f", Kind::File, seconds));
        let done = |byte| Message::Done { size: 3, hash: [byte; 32] };
        let totals = Totals { entries: 2, files: 1, directories: 1, bytes: 3, ..Totals::default() };
        let plain = told(&[root, file(9), done(1)], totals).unwrap();
        let root = Message::Entry(entry("", Kind::Directory, 1));
        let again = told(&[root, file(8), Message::Again, file(9), done(1)], totals).unwrap();
        assert_eq!(plain, again);
        assert_eq!((plain.items, plain.bytes), (1, 3));
        for (seconds, byte) in [(8, 1), (9, 2)] {
            let root = Message::Entry(entry("", Kind::Directory, 1));
            assert_ne!(told(&[root, file(seconds), done(byte)], totals).unwrap().content, plain.content);
        }
        let root = Message::Entry(entry("", Kind::Directory, 1));
        assert!(told(&[root, file(9)], totals).is_err());
    }
}
