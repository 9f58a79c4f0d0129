//! The wire format, byte by byte.
//!
//! Messages are positional: a field that is added, removed, moved or retyped changes what older programs read, without
//! any error. So the bytes of every message stand in `messages.txt`, one line each: its name and its envelope in
//! hexadecimal. When a test here says that they changed:
//!
//! 1. if you didn't mean to change the wire format, undo your change;
//! 2. if you did, raise `envelope::PROTOCOL_VERSION`, say so in `CHANGELOG.md`, and write the new bytes with
//!    `OCOPEA_GOLDEN=write cargo test -p ocopea-protocol --test golden`.
//!
//! A new variant needs a value in `values.rs` (the compiler says so) and that same command.

mod random;
mod refused;
mod values;

use std::{collections::BTreeMap, fmt::Write};

use ocopea_protocol::{
    envelope::{Message, PROTOCOL_VERSION, open, seal},
    message::{Answer, Request, TaskHint},
    secret::Secret32,
    session::{Invitation, Opening, Wish},
    task::TaskSpec,
};

const STORED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/messages.txt");
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A message of any kind.
pub enum Any {
    Hint(TaskHint),
    Request(Box<Request>),
    Answer(Box<Answer>),
    Spec(Box<TaskSpec>),
}

fn sealed(message: &Any, trace: &str) -> Vec<u8> {
    match message {
        Any::Hint(message) => seal(message, trace),
        Any::Request(message) => seal(&**message, trace),
        Any::Answer(message) => seal(&**message, trace),
        Any::Spec(message) => seal(&**message, trace),
    }
    .unwrap()
    .to_vec()
}

fn is_read_back(message: &Any, bytes: &[u8], trace: &str) {
    fn check<M: Message + PartialEq + std::fmt::Debug>(message: &M, bytes: &[u8], trace: &str) {
        let opened = open::<M>(bytes).unwrap();
        assert_eq!((&opened.message, opened.trace.as_str()), (message, trace));
    }
    match message {
        Any::Hint(message) => check(message, bytes, trace),
        Any::Request(message) => check(&**message, bytes, trace),
        Any::Answer(message) => check(&**message, bytes, trace),
        Any::Spec(message) => check(&**message, bytes, trace),
    }
}

fn stored() -> BTreeMap<String, Vec<u8>> {
    let text = std::fs::read_to_string(STORED).unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, digits) = line.split_once(' ').unwrap();
            (name.to_owned(), hex::decode(digits).unwrap())
        })
        .collect()
}

#[test]
fn every_message_is_written_as_it_always_was() {
    let now: BTreeMap<String, Vec<u8>> =
        values::all().into_iter().map(|(name, message)| (name, sealed(&message, TRACE))).collect();
    if std::env::var_os("OCOPEA_GOLDEN").is_some_and(|wish| wish == "write") {
        let mut text = format!("# Protocol version {PROTOCOL_VERSION}. How to change this: main.rs.\n");
        for (name, bytes) in &now {
            writeln!(text, "{name} {}", hex::encode(bytes)).unwrap();
        }
        std::fs::write(STORED, text).unwrap();
    }
    let before = stored();
    let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&now), names(&before), "the messages changed: tests/golden/main.rs says what to do");
    for (name, bytes) in &now {
        let same = before[name] == *bytes;
        assert!(same, "the bytes of {name} changed: tests/golden/main.rs says what to do\n{}", hex::encode(bytes));
    }
}

#[test]
fn every_message_is_read_from_the_stored_bytes() {
    let stored = stored();
    for (name, message) in values::all() {
        is_read_back(&message, &stored[&name], TRACE);
    }
}

/// The head, spelled out: independent of how it is written.
#[test]
fn the_head_is_magic_version_kind_and_trace() {
    for (name, message) in values::all() {
        let (kind, bytes) = match &message {
            Any::Hint(_) => (1, sealed(&message, TRACE)),
            Any::Request(_) => (2, sealed(&message, TRACE)),
            Any::Answer(_) => (3, sealed(&message, TRACE)),
            Any::Spec(_) => (4, sealed(&message, TRACE)),
        };
        assert_eq!(&bytes[..4], b"OCPA", "{name}");
        assert_eq!(&bytes[4..6], [3, 0], "{name}: version, little endian");
        assert_eq!(bytes[6], kind, "{name}");
        assert_eq!(usize::from(bytes[7]), TRACE.len(), "{name}");
        assert_eq!(&bytes[8..8 + TRACE.len()], TRACE.as_bytes(), "{name}");
        let bare = sealed(&message, "");
        assert_eq!((bare[7], &bare[8..]), (0, &bytes[8 + TRACE.len()..]), "{name}: the same payload without a trace");
        is_read_back(&message, &bare, "");
    }
}

/// What sessions are begun with, by hand.
#[test]
fn invitations_and_openings_are_written_as_they_always_were() {
    let id = uuid::Uuid::from_bytes([0x11; 16]);
    let invitation = Invitation { session: id.into(), coordinator: Some(id) };
    let id = "11".repeat(16);
    let expected = format!("4f4350410300050010{id}0110{id}");
    assert_eq!(hex::encode(seal(&invitation, "").unwrap()), expected);
    let (namespace, component) = ("shop".to_owned(), Some("db".to_owned()));
    let logs =
        Opening { wish: Wish::Logs { namespace: namespace.clone(), component, follow: true }, key: Secret32([2; 32]) };
    let key = "02".repeat(32);
    let written = hex::encode(seal(&logs, "").unwrap());
    assert_eq!(written, format!("4f43504103000600000473686f700102646201{key}"));
    let wish = Wish::Exec { namespace, component: None, command: vec!["ls".to_owned()], stdin: true, tty: false };
    let written = hex::encode(seal(&Opening { wish, key: Secret32([2; 32]) }, "").unwrap());
    assert_eq!(written, format!("4f43504103000600010473686f700001026c730100{key}"));
}

/// One payload by hand, so that the golden bytes can't all be wrong together.
#[test]
fn a_hint_is_written_as_specified() {
    let task: ocopea_protocol::ids::TaskId = "018bcfe5-6800-7e77-bf29-38d7549ebf19".parse().unwrap();
    let hint = TaskHint { task, kind: ocopea_protocol::task::TaskKind::CopyData, least_version: 1 };
    let mut expected = b"OCPA\x03\x00\x01\x00".to_vec();
    // A UUID is a byte string: its length, its bytes. A variant is its number. A small number is one byte.
    expected.push(16);
    expected.extend_from_slice(task.0.as_bytes());
    expected.extend_from_slice(&[4, 1]);
    assert_eq!(hex::encode(seal(&hint, "").unwrap()), hex::encode(expected));
}
