//! Frames between an agent and a mover.
//!
//! A frame is: kind (1 byte), length of the payload (4 bytes), payload, and the first 8 bytes of BLAKE3 over the
//! frame's number (8 bytes, from 0), kind, length and payload. Numbers are little-endian. Exec streams can be cut
//! without either side being told, so a stream is whole only with its last frame, [`Message::End`], whose totals must
//! be what was counted.

use std::io::{ErrorKind, Read, Write};

use crate::{
    entry::{Entry, Fields, LONGEST_PATH},
    fault::{Class, Fault},
};

/// Of these frames.
pub const VERSION: u16 = 1;
/// Longest payload.
pub const LONGEST_FRAME: usize = 2 << 20;
/// Bytes of contents in one frame, at most.
pub const PIECE: usize = 256 << 10;
const MAGIC: &[u8; 12] = b"ocopea-mover";
/// Bytes of a fault's message.
const LONGEST_MESSAGE: usize = 4096;

/// What a mover is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Job {
    /// Tell every entry and its contents.
    Read = 1,
    /// Tell every entry and the hash of its contents.
    Count = 2,
    /// Tell what can't be read, and how much there is.
    Scan = 3,
    /// Make what is told.
    Write = 4,
}

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of all kinds.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Directories, the root among them.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Named pipes.
    pub fifos: u64,
    /// Sizes of all files together.
    pub bytes: u64,
    /// Bytes of contents that were told, those that were taken back included.
    pub data: u64,
    /// Told, not saved.
    pub skipped: u64,
    /// Changed while they were read.
    pub changed: u64,
    /// Found unreadable by a scan.
    pub unreadable: u64,
}

/// Why something is not saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Skip {
    /// A socket: it means something only to the process that made it.
    Socket = 1,
    /// A device.
    Device = 2,
    /// Another filesystem is mounted there.
    MountPoint = 3,
    /// It has an extended attribute, or a flag of its filesystem, of a kind that isn't saved.
    Attribute = 4,
}

/// How something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Change {
    /// It changed while it was read, time and again.
    WhileRead = 1,
    /// It was listed, but gone when it was to be read.
    Vanished = 2,
    /// It was made or changed after the walk began.
    AfterStart = 3,
    /// Something below it was made, changed or removed while the walk went on; its name can't be told.
    Unnamed = 4,
}

/// What a frame says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// First on both sides.
    Hello {
        /// What will be done.
        job: Job,
        /// Whether attributes `trusted.*` are seen; the system hides them from the unprivileged.
        trusted: bool,
        /// For a write: more entries than these are refused.
        entries: u64,
        /// For a write: more bytes of contents than these are refused.
        data: u64,
    },
    /// A thing in the tree; for a file, its contents and [`Message::Done`] follow.
    Entry(Entry),
    /// Contents of the file told last; what is passed over is a hole.
    Data {
        /// Where they lie.
        offset: u64,
        /// They.
        bytes: &'a [u8],
    },
    /// The end of the file told last.
    Done {
        /// Its size.
        size: u64,
        /// [`crate::content`]'s hash.
        hash: [u8; 32],
    },
    /// The file told last changed while it was read: all that was told of it is void, it comes again.
    Again,
    /// Something is not saved.
    Skipped(Skip, &'a [u8]),
    /// Something changed while it was read.
    Changed(Change, &'a [u8]),
    /// Found unreadable by a scan: the path and why.
    Unreadable(Fault),
    /// Still at work.
    Progress {
        /// Entries so far.
        entries: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// It failed; nothing more comes.
    Fault(Fault),
    /// Done; nothing more comes.
    End(Totals),
}

/// Numbers of the kinds, which are also those of stored records.
pub(crate) const ENTRY: u8 = 2;
pub(crate) const DATA: u8 = 3;
pub(crate) const DONE: u8 = 4;
pub(crate) const AGAIN: u8 = 5;
const HELLO: u8 = 1;
const SKIPPED: u8 = 6;
const CHANGED: u8 = 7;
const UNREADABLE: u8 = 8;
const PROGRESS: u8 = 9;
const FAULT: u8 = 10;
const END: u8 = 11;

/// Writes frames.
pub struct FrameWriter<W> {
    out: W,
    number: u64,
    payload: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Frames to `out`, from number 0.
    pub fn new(out: W) -> Self {
        Self { out, number: 0, payload: Vec::new() }
    }

    /// Writes one frame.
    pub fn send(&mut self, message: &Message<'_>) -> Result<(), Fault> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        let sent = match message {
            Message::Data { offset, bytes } => self.frame(DATA, &[&offset.to_le_bytes(), bytes]),
            other => {
                let kind = encode(other, &mut payload);
                self.frame(kind, &[&payload])
            }
        };
        self.payload = payload;
        sent
    }

    /// What it writes to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Hands everything on.
    pub fn flush(&mut self) -> Result<(), Fault> {
        self.out.flush().map_err(gone)
    }

    fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), Fault> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > LONGEST_FRAME {
            return Err(Fault::new(
                Class::Limit,
                format!("a frame of {length} bytes; at most {LONGEST_FRAME} are allowed"),
            ));
        }
        let mut head = [kind, 0, 0, 0, 0];
        if let Some(place) = head.get_mut(1..) {
            place.copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        let sum = checksum(self.number, &head, parts);
        self.number += 1;
        self.out.write_all(&head).map_err(gone)?;
        for part in parts {
            self.out.write_all(part).map_err(gone)?;
        }
        self.out.write_all(&sum).map_err(gone)
    }
}

fn gone(error: std::io::Error) -> Fault {
    Fault::new(Class::Cut, format!("the other side no longer listens: {error}"))
}

fn checksum(number: u64, head: &[u8; 5], parts: &[&[u8]]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(head);
    for part in parts {
        hasher.update(part);
    }
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

fn encode(message: &Message<'_>, out: &mut Vec<u8>) -> u8 {
    match message {
        Message::Hello { job, trusted, entries, data } => {
            out.extend_from_slice(MAGIC);
            out.extend_from_slice(&VERSION.to_le_bytes());
            out.extend_from_slice(&[*job as u8, u8::from(*trusted)]);
            out.extend_from_slice(&entries.to_le_bytes());
            out.extend_from_slice(&data.to_le_bytes());
            HELLO
        }
        Message::Entry(entry) => {
            entry.encode(out);
            ENTRY
        }
        Message::Data { offset, bytes } => {
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(bytes);
            DATA
        }
        Message::Done { size, hash } => {
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(hash);
            DONE
        }
        Message::Again => AGAIN,
        Message::Skipped(why, path) => {
            out.push(*why as u8);
            out.extend_from_slice(path);
            SKIPPED
        }
        Message::Changed(how, path) => {
            out.push(*how as u8);
            out.extend_from_slice(path);
            CHANGED
        }
        Message::Unreadable(fault) => {
            encode_fault(fault, out);
            UNREADABLE
        }
        Message::Progress { entries, bytes } => {
            out.extend_from_slice(&entries.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
            PROGRESS
        }
        Message::Fault(fault) => {
            encode_fault(fault, out);
            FAULT
        }
        Message::End(totals) => {
            for number in totals.numbers() {
                out.extend_from_slice(&number.to_le_bytes());
            }
            END
        }
    }
}

fn encode_fault(fault: &Fault, out: &mut Vec<u8>) {
    let path = fault.path.get(..LONGEST_PATH).unwrap_or(&fault.path);
    out.push(fault.class as u8);
    out.extend_from_slice(&u32::try_from(path.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(path);
    let message: String = fault.message.chars().take(LONGEST_MESSAGE / 4).collect();
    out.extend_from_slice(message.as_bytes());
}

impl Totals {
    fn numbers(&self) -> [u64; 11] {
        [
            self.entries,
            self.files,
            self.directories,
            self.symlinks,
            self.hard_links,
            self.fifos,
            self.bytes,
            self.data,
            self.skipped,
            self.changed,
            self.unreadable,
        ]
    }

    fn from_numbers(n: [u64; 11]) -> Self {
        let [entries, files, directories, symlinks, hard_links, fifos, bytes, data, skipped, changed, unreadable] = n;
        Self { entries, files, directories, symlinks, hard_links, fifos, bytes, data, skipped, changed, unreadable }
    }

    /// Without what only a walk of a living tree counts.
    #[must_use]
    pub fn of_tree(self) -> Self {
        Self { data: 0, skipped: 0, changed: 0, unreadable: 0, ..self }
    }

    /// Counts one more entry; a file's size is added when it is done.
    pub fn count(&mut self, entry: &Entry) {
        use crate::entry::Kind;
        self.entries += 1;
        match entry.kind {
            Kind::Directory => self.directories += 1,
            Kind::File => self.files += 1,
            Kind::Symlink(_) => self.symlinks += 1,
            Kind::HardLink(_) => self.hard_links += 1,
            Kind::Fifo => self.fifos += 1,
        }
    }
}

/// Bytes of a frame before its payload.
pub const HEAD: usize = 5;
/// Bytes of a frame after its payload.
pub const SUM: usize = 8;

/// Checks and decodes frames that somebody else reads, one after the other.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    number: u64,
}

impl FrameDecoder {
    /// How long the payload is that this head announces.
    pub fn length(&self, head: &[u8; HEAD]) -> Result<usize, Fault> {
        let [_, length @ ..] = head;
        let length = u32::from_le_bytes(*length) as usize;
        if length > LONGEST_FRAME {
            return Err(protocol(format!("frame {} claims to be {length} bytes long", self.number)));
        }
        Ok(length)
    }

    /// What the frame says. After a fault there is no further frame.
    pub fn decode<'a>(&mut self, head: &[u8; HEAD], payload: &'a [u8], sum: [u8; SUM]) -> Result<Message<'a>, Fault> {
        if sum != checksum(self.number, head, &[payload]) {
            return Err(protocol(format!(
                "frame {} was changed on its way, or frames before it are missing",
                self.number
            )));
        }
        self.number += 1;
        let [kind, ..] = *head;
        decode(kind, payload)
    }

    /// The fault when the stream ends or breaks where a frame should come.
    pub fn cut(&self, error: &std::io::Error) -> Fault {
        let why =
            if error.kind() == ErrorKind::UnexpectedEof { "the stream was cut".to_owned() } else { error.to_string() };
        Fault::new(Class::Cut, format!("{why} at frame {}, before its end", self.number))
    }
}

/// Reads frames.
pub struct FrameReader<R> {
    from: R,
    decoder: FrameDecoder,
    payload: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Frames from `from`, from number 0.
    pub fn new(from: R) -> Self {
        Self { from, decoder: FrameDecoder::default(), payload: Vec::new() }
    }

    /// The next frame. After a fault there is none.
    #[expect(clippy::should_implement_trait, reason = "what it gives borrows from it: no iterator can")]
    pub fn next(&mut self) -> Result<Message<'_>, Fault> {
        let (mut head, mut sum) = ([0; HEAD], [0; SUM]);
        self.from.read_exact(&mut head).map_err(|error| self.decoder.cut(&error))?;
        let length = self.decoder.length(&head)?;
        if self.payload.len() < length {
            self.payload.resize(length, 0);
        }
        let payload = self.payload.get_mut(..length).unwrap_or_default();
        self.from.read_exact(payload).map_err(|error| self.decoder.cut(&error))?;
        self.from.read_exact(&mut sum).map_err(|error| self.decoder.cut(&error))?;
        self.decoder.decode(&head, payload, sum)
    }

    /// The first frame, which must be a hello.
    pub fn hello(&mut self) -> Result<(Job, bool), Fault> {
        match self.next()? {
            Message::Hello { job, trusted, .. } => Ok((job, trusted)),
            Message::Fault(fault) => Err(fault),
            _ => Err(protocol("it doesn't begin with a greeting".to_owned())),
        }
    }
}

fn protocol(message: String) -> Fault {
    Fault::new(Class::Protocol, message)
}

fn decode(kind: u8, payload: &[u8]) -> Result<Message<'_>, Fault> {
    let mut fields = Fields { rest: payload };
    let message = match kind {
        HELLO => {
            if fields.array::<12>()? != *MAGIC {
                return Err(protocol("it is no mover that speaks".to_owned()));
            }
            let version = u16::from_le_bytes(fields.array()?);
            if version != VERSION {
                return Err(protocol(format!(
                    "it speaks version {version}, this is version {VERSION}: use the mover image of this release"
                )));
            }
            let [job, trusted] = fields.array()?;
            let job = match job {
                1 => Job::Read,
                2 => Job::Count,
                3 => Job::Scan,
                4 => Job::Write,
                other => return Err(protocol(format!("unknown job {other}"))),
            };
            Message::Hello { job, trusted: trusted == 1, entries: fields.number()?, data: fields.number()? }
        }
        ENTRY => return Entry::decode(payload).map(Message::Entry),
        DATA => {
            let offset = fields.number()?;
            return Ok(Message::Data { offset, bytes: fields.rest });
        }
        DONE => Message::Done { size: fields.number()?, hash: fields.array()? },
        AGAIN => Message::Again,
        SKIPPED => {
            let why = match fields.array()? {
                [1] => Skip::Socket,
                [2] => Skip::Device,
                [3] => Skip::MountPoint,
                [4] => Skip::Attribute,
                [other] => return Err(protocol(format!("unknown reason {other}"))),
            };
            return Ok(Message::Skipped(why, fields.rest));
        }
        CHANGED => {
            let how = match fields.array()? {
                [1] => Change::WhileRead,
                [2] => Change::Vanished,
                [3] => Change::AfterStart,
                [4] => Change::Unnamed,
                [other] => return Err(protocol(format!("unknown change {other}"))),
            };
            return Ok(Message::Changed(how, fields.rest));
        }
        UNREADABLE => return decode_fault(fields).map(Message::Unreadable),
        FAULT => return decode_fault(fields).map(Message::Fault),
        PROGRESS => Message::Progress { entries: fields.number()?, bytes: fields.number()? },
        END => {
            let mut numbers = [0; 11];
            for number in &mut numbers {
                *number = fields.number()?;
            }
            Message::End(Totals::from_numbers(numbers))
        }
        other => return Err(protocol(format!("unknown kind of frame {other}"))),
    };
    if fields.rest.is_empty() { Ok(message) } else { Err(protocol(format!("a frame of kind {kind} is too long"))) }
}

fn decode_fault(mut fields: Fields<'_>) -> Result<Fault, Fault> {
    let [class] = fields.array()?;
    let class = Class::from_byte(class).ok_or_else(|| protocol(format!("unknown class of fault {class}")))?;
    let path = fields.text(LONGEST_PATH)?.to_vec();
    let message = fields.rest.get(..LONGEST_MESSAGE).unwrap_or(fields.rest);
    // What a pod says is shown to people: nothing in it may steer a terminal.
    let message = String::from_utf8_lossy(message).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Ok(Fault { class, path, message })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::Kind;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        Entry { path: path.to_vec(), kind, mode: 0o755, uid: 1, gid: 2, seconds: 3, nanos: 4, attributes: vec![] }
    }

    fn messages() -> Vec<Message<'static>> {
        vec![
            Message::Hello { job: Job::Read, trusted: true, entries: 7, data: 8 },
            Message::Entry(entry(b"", Kind::Directory)),
            Message::Entry(entry(b"f", Kind::File)),
            Message::Data { offset: 5, bytes: b"contents" },
            Message::Again,
            Message::Done { size: 13, hash: [9; 32] },
            Message::Skipped(Skip::Socket, b"s"),
            Message::Changed(Change::Vanished, b"v"),
            Message::Unreadable(Fault::of(Class::Unreadable, b"u", "no")),
            Message::Progress { entries: 1, bytes: 2 },
            Message::Fault(Fault::new(Class::Full, "full")),
            Message::End(Totals { entries: 2, bytes: 13, unreadable: 1, ..Totals::default() }),
        ]
    }

    fn stream(messages: &[Message<'_>]) -> Vec<u8> {
        let mut writer = FrameWriter::new(Vec::new());
        messages.iter().for_each(|message| writer.send(message).unwrap());
        writer.out
    }

    /// How many frames came well, and the fault that ended it.
    fn read_all(bytes: &[u8]) -> (usize, Fault) {
        let mut reader = FrameReader::new(bytes);
        let mut count = 0;
        loop {
            match reader.next() {
                Ok(_) => count += 1,
                Err(fault) => return (count, fault),
            }
        }
    }

    #[test]
    fn what_is_sent_arrives() {
        let bytes = stream(&messages());
        let mut reader = FrameReader::new(bytes.as_slice());
        for message in messages() {
            assert_eq!(reader.next().unwrap(), message);
        }
        assert_eq!(reader.next().unwrap_err().class, Class::Cut);
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_noticed() {
        let bytes = stream(&messages());
        for length in 0..bytes.len() {
            let (count, fault) = read_all(&bytes[..length]);
            assert!(count < messages().len());
            assert_eq!(fault.class, Class::Cut, "{length}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = stream(&messages());
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                assert!(read_all(&bytes).0 < messages().len(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_frame_lost_repeated_or_swapped_is_noticed() {
        let frames: Vec<Vec<u8>> = (0..messages().len())
            .map(|n| {
                let (all, before) = (stream(&messages()[..=n]), stream(&messages()[..n]));
                all[before.len()..].to_vec()
            })
            .collect();
        for n in 1..frames.len() {
            let mut lost = frames.clone();
            lost.remove(n - 1);
            assert_eq!(read_all(&lost.concat()).0, n - 1);
            let mut twice = frames.clone();
            twice.insert(n, frames[n - 1].clone());
            assert_eq!(read_all(&twice.concat()).0, n);
            let mut swapped = frames.clone();
            swapped.swap(n, n - 1);
            assert_eq!(read_all(&swapped.concat()).0, n - 1);
        }
    }

    #[test]
    fn a_length_that_isnt_true_costs_no_memory() {
        let mut reader = FrameReader::new(&[DATA, 0xff, 0xff, 0xff, 0xff, 1, 2, 3][..]);
        assert_eq!(reader.next().unwrap_err().class, Class::Protocol);
        assert_eq!(reader.payload.capacity(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn any_bytes_are_frames_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let (count, _) = read_all(&bytes);
            prop_assert_eq!(count, 0);
        }

        /// With true checksums the payloads themselves are tried.
        #[test]
        fn any_payload_is_a_message_or_a_fault(kind in 0u8..14, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut writer = FrameWriter::new(Vec::new());
            writer.frame(kind, &[&payload]).unwrap();
            let mut reader = FrameReader::new(writer.out.as_slice());
            if let Ok(message) = reader.next() {
                let again = stream(&[message]);
                prop_assert!(!again.is_empty());
            }
        }

        #[test]
        fn mutated_streams_end_in_a_fault(cuts in prop::collection::vec((0usize..600, 0usize..40, any::<u8>()), 1..6)) {
            let mut bytes = stream(&messages());
            let whole = bytes.clone();
            for (at, length, byte) in cuts {
                let at = at % bytes.len().max(1);
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, std::iter::repeat_n(byte, length / 2));
            }
            if bytes != whole {
                let (count, _) = read_all(&bytes);
                prop_assert!(count < messages().len() || bytes.starts_with(&whole));
            }
        }
    }
}
