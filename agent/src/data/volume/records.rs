//! The records of the stream `files`.

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use ocopea_mover::{
    Class, Fault,
    entry::Entry,
    wire::{LONGEST_FRAME, Message},
};

const ENTRY: u8 = 2;
const EXTENT: u8 = 3;
const DONE: u8 = 4;
const VOID: u8 = 5;
const HEAD: usize = 5;

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Entry(Entry),
    Extent { offset: u64, length: u64 },
    Done { size: u64, hash: [u8; 32] },
    Void,
}

/// Writes records of what is told.
#[derive(Default)]
pub(super) struct Recorder {
    out: BytesMut,
    payload: Vec<u8>,
    extent: Option<(u64, u64)>,
}

impl Recorder {
    /// Takes one message; contents themselves go elsewhere.
    pub(super) fn take(&mut self, message: &Message<'_>) {
        match message {
            Message::Entry(entry) => {
                let mut payload = std::mem::take(&mut self.payload);
                payload.clear();
                entry.encode(&mut payload);
                self.put(ENTRY, &[&payload]);
                self.payload = payload;
            }
            Message::Data { offset, bytes } => {
                let length = bytes.len() as u64;
                match &mut self.extent {
                    Some((start, so_far)) if *start + *so_far == *offset => *so_far += length,
                    _ => {
                        self.end_extent();
                        self.extent = Some((*offset, length));
                    }
                }
            }
            Message::Done { size, hash } => {
                self.end_extent();
                self.put(DONE, &[&size.to_le_bytes(), hash]);
            }
            Message::Again => {
                self.end_extent();
                self.put(VOID, &[]);
            }
            _ => {}
        }
    }

    fn end_extent(&mut self) {
        if let Some((offset, length)) = self.extent.take() {
            self.put(EXTENT, &[&offset.to_le_bytes(), &length.to_le_bytes()]);
        }
    }

    fn put(&mut self, kind: u8, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.out.extend_from_slice(&[kind]);
        self.out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    /// What has gathered, if that is `least` bytes.
    pub(super) fn ready(&mut self, least: usize) -> Option<Bytes> {
        (self.out.len() >= least.max(1)).then(|| self.out.split().freeze())
    }
}

/// A stream of the repository, read as bytes.
pub(super) struct Reading {
    from: BoxStream<'static, ocopea_repository::Result<Bytes>>,
    buffer: BytesMut,
}

/// Why a record did not come.
pub(super) enum Broken {
    /// The repository could not give it.
    Store(ocopea_repository::Error),
    /// What it gave is not what a save writes.
    Records(Fault),
}

impl Reading {
    pub(super) fn new(from: BoxStream<'static, ocopea_repository::Result<Bytes>>) -> Self {
        Self { from, buffer: BytesMut::new() }
    }

    /// Whether `length` bytes are there.
    async fn fill(&mut self, length: usize) -> Result<bool, Broken> {
        while self.buffer.len() < length {
            match self.from.next().await {
                Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(Broken::Store(error)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next record; `None` at the end.
    pub(super) async fn record(&mut self) -> Result<Option<Record>, Broken> {
        if !self.fill(HEAD).await? {
            return if self.buffer.is_empty() { Ok(None) } else { Err(cut()) };
        }
        let kind = self.buffer.get_u8();
        let length = self.buffer.get_u32_le() as usize;
        if length > LONGEST_FRAME {
            return Err(records(format!("a record claims to be {length} bytes long")));
        }
        if !self.fill(length).await? {
            return Err(cut());
        }
        let payload = self.buffer.split_to(length);
        decode(kind, &payload).map(Some).map_err(Broken::Records)
    }

    /// At most `most` of the next bytes, at least one.
    pub(super) async fn bytes(&mut self, most: u64) -> Result<Bytes, Broken> {
        if !self.fill(1).await? {
            return Err(cut());
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Whether nothing more comes.
    pub(super) async fn is_over(&mut self) -> Result<bool, Broken> {
        Ok(!self.fill(1).await?)
    }
}

fn decode(kind: u8, payload: &[u8]) -> Result<Record, Fault> {
    let wrong = || Fault::new(Class::Refused, format!("a record of kind {kind} has {} bytes", payload.len()));
    match (kind, payload.len()) {
        (ENTRY, _) => Entry::decode(payload).map(Record::Entry),
        (EXTENT, 16) => {
            let (offset, length) = payload.split_first_chunk().ok_or_else(wrong)?;
            let length = length.first_chunk().ok_or_else(wrong)?;
            Ok(Record::Extent { offset: u64::from_le_bytes(*offset), length: u64::from_le_bytes(*length) })
        }
        (DONE, 40) => {
            let (size, hash) = payload.split_first_chunk().ok_or_else(wrong)?;
            Ok(Record::Done { size: u64::from_le_bytes(*size), hash: *hash.first_chunk().ok_or_else(wrong)? })
        }
        (VOID, 0) => Ok(Record::Void),
        _ => Err(wrong()),
    }
}

fn records(message: String) -> Broken {
    Broken::Records(Fault::new(Class::Refused, message))
}

fn cut() -> Broken {
    records("its records end in the middle".to_owned())
}

#[cfg(test)]
mod tests {
    use ocopea_mover::entry::Kind;

    use super::*;

    fn reading(bytes: Vec<u8>, piece: usize) -> Reading {
        let pieces: Vec<_> = bytes.chunks(piece).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        Reading::new(futures::stream::iter(pieces).boxed())
    }

    fn sample() -> Vec<u8> {
        let entry = Entry {
            path: b"a/\xff".to_vec(),
            kind: Kind::File,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            seconds: -3,
            nanos: 4,
            attributes: vec![(b"user.x".to_vec(), b"y".to_vec())],
        };
        let mut recorder = Recorder::default();
        recorder.take(&Message::Entry(entry));
        recorder.take(&Message::Data { offset: 0, bytes: &[1; 10] });
        recorder.take(&Message::Data { offset: 10, bytes: &[1; 10] });
        recorder.take(&Message::Data { offset: 4096, bytes: &[2; 5] });
        recorder.take(&Message::Done { size: 5000, hash: [3; 32] });
        recorder.take(&Message::Again);
        recorder.ready(1).unwrap().to_vec()
    }

    #[tokio::test]
    async fn records_come_back_whatever_the_pieces_and_neighbouring_data_is_one_extent() {
        for piece in [1, 7, 1000] {
            let mut reading = reading(sample(), piece);
            let mut all = Vec::new();
            while let Ok(Some(record)) = reading.record().await {
                all.push(record);
            }
            assert!(matches!(&all[0], Record::Entry(entry) if entry.path == b"a/\xff"));
            assert_eq!(all[1], Record::Extent { offset: 0, length: 20 });
            assert_eq!(all[2], Record::Extent { offset: 4096, length: 5 });
            assert_eq!(all[3], Record::Done { size: 5000, hash: [3; 32] });
            assert_eq!(all[4], Record::Void);
            assert_eq!(all.len(), 5);
        }
    }

    #[tokio::test]
    async fn records_that_are_cut_or_hostile_are_refused() {
        let whole = sample();
        let ends = [HEAD + 1, whole.len() - 1, whole.len() - 20];
        for end in ends {
            let mut reading = reading(whole[..end].to_vec(), 100);
            let mut last = reading.record().await;
            while let Ok(Some(_)) = last {
                last = reading.record().await;
            }
            assert!(matches!(last, Err(Broken::Records(_))), "cut at {end}");
        }
        for bytes in [vec![9, 0, 0, 0, 0], vec![EXTENT, 1, 0, 0, 0, 1], vec![ENTRY, 255, 255, 255, 255, 1]] {
            assert!(matches!(reading(bytes, 100).record().await, Err(Broken::Records(_))));
        }
    }
}
