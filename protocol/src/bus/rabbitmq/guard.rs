//! Reads the broker's frames before the client library does, and takes out what it doesn't survive.
//!
//! A message's properties and routing key are its sender's own bytes; the broker hands them on as they came. The
//! library ends the connection over text that isn't UTF-8, follows nested tables by recursion, and collects a body
//! of any size. Here such a message arrives with no properties but a reason, and with no body when that is too
//! long: whoever reads it rejects it, and everything else on the connection goes on.
//!
//! A frame is: type u8 (1 method, 2 content header, 3 body, 8 heartbeat) | channel u16 | size u32 | payload | 0xCE.

use std::{collections::HashMap, io};

/// Frames that are asked for, with head and end, in bytes: what the library's buffers hold grows with it.
pub(super) const FRAME: u32 = 64 * 1024;
/// Tables within tables; nobody here sends any.
const DEPTH: usize = 8;
/// Bytes of a body that are let through.
const BODY: u64 = crate::envelope::LONGEST as u64 + 1024;
/// Stands in front of a reason in the `type` property of a message that was not let through as it came.
pub(super) const MARK: &str = "unreadable: ";

const HEAD: usize = 7;
const END: u8 = 0xCE;

/// What came of one connection, frame by frame.
#[derive(Default)]
pub(super) struct Guard {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    given: usize,
    /// Bytes of bodies still to be swallowed, by channel.
    swallow: HashMap<u16, u64>,
}

impl Guard {
    /// Takes bytes as they came.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.incoming.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = frame_length(&self.incoming[at..])? {
            let (head, rest) = self.incoming[at..at + length].split_at(HEAD);
            let payload = &rest[..rest.len() - 1];
            pass(head, payload, &mut self.swallow, &mut self.outgoing);
            at += length;
        }
        self.incoming.drain(..at);
        Ok(())
    }

    /// Gives out what may be read, as far as it fits.
    pub(super) fn give(&mut self, buffer: &mut [u8]) -> usize {
        let ready = &self.outgoing[self.given..];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        self.given += count;
        if self.given == self.outgoing.len() {
            self.outgoing.clear();
            self.given = 0;
        }
        count
    }
}

/// The length of the first frame, once all of it is there.
fn frame_length(bytes: &[u8]) -> io::Result<Option<usize>> {
    let broken = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    match bytes.first() {
        None => return Ok(None),
        Some(1 | 2 | 3 | 8) => {}
        Some(b'A') => return broken("the broker speaks another version of AMQP than 0-9-1"),
        Some(_) => return broken("what answers there is no AMQP broker"),
    }
    let Some(size) = bytes.get(3..HEAD).and_then(|size| size.try_into().ok()).map(u32::from_be_bytes) else {
        return Ok(None);
    };
    if size > FRAME {
        return broken("the broker sent a longer frame than was agreed on");
    }
    let length = HEAD + size as usize + 1;
    match bytes.get(length - 1) {
        None => Ok(None),
        Some(&END) => Ok(Some(length)),
        Some(_) => broken("the broker sent a frame without an end"),
    }
}

fn pass(head: &[u8], payload: &[u8], swallow: &mut HashMap<u16, u64>, out: &mut Vec<u8>) {
    let channel = u16::from_be_bytes([head[1], head[2]]);
    let frame = |payload: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(&head[..3]);
        // What is written here is no longer than what was read.
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(payload);
        out.push(END);
    };
    match head[0] {
        1 => {
            swallow.remove(&channel);
            frame(&method(payload), out);
        }
        2 => {
            swallow.remove(&channel);
            match content(payload) {
                Content::AsItCame => frame(payload, out),
                Content::Replaced { payload, body } => {
                    if let Some(body) = body {
                        swallow.insert(channel, body);
                    }
                    frame(&payload, out);
                }
            }
        }
        3 => match swallow.get_mut(&channel) {
            Some(left) => {
                *left = left.saturating_sub(payload.len() as u64);
                if *left == 0 {
                    swallow.remove(&channel);
                }
            }
            None => frame(payload, out),
        },
        _ => frame(payload, out),
    }
}

/// Methods come from the broker itself; only exchange and routing key of a delivered message (60, 60), of a returned
/// one (60, 50) and of one that was asked for (60, 71) are others' text.
fn method(payload: &[u8]) -> Vec<u8> {
    let mut out = payload.to_vec();
    let texts: &[usize] = match payload.get(..4) {
        // Consumer tag; behind it delivery tag and whether it came before.
        Some([0, 60, 0, 60]) => &[0, 9, 0],
        // Behind a code: why, exchange, routing key.
        Some([0, 60, 0, 50]) => &[2, 0, 0],
        // Behind delivery tag and whether it came before.
        Some([0, 60, 0, 71]) => &[9, 0],
        _ => return out,
    };
    let mut at = 4;
    for skipped in texts {
        at += skipped;
        let Some(&length) = out.get(at) else { return out };
        let end = (at + 1 + usize::from(length)).min(out.len());
        for_utf8(&mut out[at + 1..end]);
        at = end;
    }
    out
}

/// Puts a question mark in the place of every byte that keeps a text from being UTF-8.
fn for_utf8(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        let (valid, bad) = (error.valid_up_to(), error.error_len());
        let end = bad.map_or(text.len(), |length| valid + length);
        text[valid..end].fill(b'?');
        text = &mut text[end..];
    }
}

enum Content {
    AsItCame,
    Replaced { payload: Vec<u8>, body: Option<u64> },
}

/// A content header is: class u16 | weight u16 | body size u64 | flags u16 | the properties that the flags name.
fn content(payload: &[u8]) -> Content {
    let Some((fixed, rest)) = payload.split_at_checked(12) else { return Content::AsItCame };
    let size = fixed[4..].try_into().map_or(0, u64::from_be_bytes);
    let (why, body) = if size > BODY {
        (format!("a body of {size} bytes"), Some(size))
    } else {
        match properties(rest) {
            Ok(()) => return Content::AsItCame,
            Err(why) => (why.to_owned(), None),
        }
    };
    let mut out = fixed.to_vec();
    if body.is_some() {
        out[4..12].fill(0);
    }
    let mark = format!("{MARK}{why}");
    // Of the fourteen properties, `type` alone: the eleventh.
    out.extend_from_slice(&(1u16 << (15 - 10)).to_be_bytes());
    out.push(u8::try_from(mark.len()).unwrap_or(0));
    out.extend_from_slice(mark.as_bytes());
    Content::Replaced { payload: out, body }
}

/// What each property is, from the highest flag down.
const KINDS: [Kind; 14] = {
    use Kind::*;
    [Text, Text, Table, Byte, Byte, Text, Text, Text, Text, Time, Text, Text, Text, Text]
};

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Table,
    Byte,
    Time,
}

fn properties(bytes: &[u8]) -> Result<(), &'static str> {
    const SHORT: &str = "properties that end too early";
    let Some((flags, bytes)) = bytes.split_at_checked(2) else { return Err(SHORT) };
    let flags = u16::from_be_bytes([flags[0], flags[1]]);
    if flags & 0b11 != 0 {
        return Err("properties that AMQP doesn't know");
    }
    let mut reader = Reader { rest: bytes };
    for (number, kind) in KINDS.iter().enumerate() {
        if flags & (1 << (15 - number)) == 0 {
            continue;
        }
        match kind {
            Kind::Text => reader.text()?,
            Kind::Table => reader.table(0)?,
            Kind::Byte => drop(reader.skip(1)?),
            Kind::Time => drop(reader.skip(8)?),
        }
    }
    if reader.rest.is_empty() { Ok(()) } else { Err("bytes behind the properties") }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn skip(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("properties that end too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self) -> Result<(), &'static str> {
        let length = usize::from(self.skip(1)?[0]);
        let text = self.skip(length)?;
        std::str::from_utf8(text).map(drop).map_err(|_| "text that isn't UTF-8")
    }

    fn long(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.skip(4)?;
        self.skip(u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize)
    }

    fn table(&mut self, depth: usize) -> Result<(), &'static str> {
        let mut inner = Reader { rest: self.long()? };
        while !inner.rest.is_empty() {
            inner.text()?;
            inner.value(depth)?;
        }
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<(), &'static str> {
        if depth >= DEPTH {
            return Err("tables within tables");
        }
        match self.skip(1)?[0] {
            b't' | b'b' | b'B' => drop(self.skip(1)?),
            // A short number to RabbitMQ, a short text to the library: there is no telling.
            b's' => return Err("a header of a kind that isn't known"),
            b'U' | b'u' => drop(self.skip(2)?),
            b'I' | b'i' | b'f' => drop(self.skip(4)?),
            b'L' | b'l' | b'd' | b'T' => drop(self.skip(8)?),
            b'D' => drop(self.skip(5)?),
            b'S' | b'x' => drop(self.long()?),
            b'F' => self.table(depth + 1)?,
            b'A' => {
                let mut inner = Reader { rest: self.long()? };
                while !inner.rest.is_empty() {
                    inner.value(depth + 1)?;
                }
            }
            b'V' => {}
            _ => return Err("a header of a kind that isn't known"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&channel.to_be_bytes());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        out.extend_from_slice(payload);
        out.push(END);
        out
    }

    fn header(size: u64, flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0];
        payload.extend_from_slice(&size.to_be_bytes());
        payload.extend_from_slice(&flags.to_be_bytes());
        payload.extend_from_slice(properties);
        frame(2, 1, &payload)
    }

    /// All that comes out when the bytes come one by one.
    fn through(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let (mut guard, mut out, mut buffer) = (Guard::default(), Vec::new(), [0; 7]);
        for byte in bytes {
            guard.take(&[*byte])?;
            while let count @ 1.. = guard.give(&mut buffer) {
                out.extend_from_slice(&buffer[..count]);
            }
        }
        Ok(out)
    }

    fn reason(out: &[u8]) -> String {
        String::from_utf8_lossy(out).split(MARK).nth(1).unwrap_or_default().trim_end_matches('\u{fffd}').to_owned()
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut table = Vec::new();
        for _ in 0..depth {
            let mut outer = vec![1, b'k', b'F'];
            outer.extend_from_slice(&u32::try_from(table.len()).unwrap().to_be_bytes());
            outer.extend_from_slice(&table);
            table = outer;
        }
        let mut out = u32::try_from(table.len()).unwrap().to_be_bytes().to_vec();
        out.extend_from_slice(&table);
        out
    }

    #[test]
    fn what_is_in_order_comes_through_as_it_came() {
        let mut table =
            vec![1, b'k', b'S', 0, 0, 0, 2, 0xff, 0xfe, 1, b'n', b'l', 0, 0, 0, 0, 0, 0, 0, 1, 1, b'v', b'V'];
        let mut properties = u32::try_from(table.len()).unwrap().to_be_bytes().to_vec();
        properties.append(&mut table);
        properties.extend_from_slice(&[2, 4, b'm', b'e', b'i', b'n']);
        let mut all = frame(1, 0, &[0, 10, 0, 10, 0xff]);
        all.extend(header(3, 1 << 13 | 1 << 12 | 1 << 4, &properties));
        all.extend(frame(3, 1, b"abc"));
        all.extend(frame(8, 0, b""));
        all.extend(header(0, 1 << 13, &nested(3)));
        assert_eq!(through(&all).unwrap(), all);
    }

    #[test]
    fn text_that_is_none_and_tables_without_a_bottom_are_taken_out() {
        let after = frame(3, 1, b"body");
        for (flags, properties) in [
            (1 << 4, vec![1, 0xff]),
            (1 << 13, nested(9)),
            (1 << 13, nested(6000)),
            (1 << 13, vec![0, 0, 0, 9, 1]),
            (1 << 13, vec![0, 0, 0, 3, 1, b'k', b's']),
            (1 << 13, vec![0, 0, 0, 3, 1, 0xff, b'V']),
            (1 << 15, vec![]),
            (0, vec![1, 2, 3]),
            (1, vec![]),
        ] {
            let mut all = header(4, flags, &properties);
            all.extend_from_slice(&after);
            let out = through(&all).unwrap();
            assert!(!reason(&out).is_empty(), "{flags:b} {properties:?}");
            assert!(out.ends_with(&after));
        }
    }

    #[test]
    fn a_body_that_is_too_long_is_swallowed_and_the_next_one_is_not() {
        let mut all = header(BODY + 1, 0, &[]);
        for _ in 0..(BODY + 1) / 1000 {
            all.extend(frame(3, 1, &[7; 1000]));
        }
        all.extend(frame(3, 1, &vec![7; usize::try_from((BODY + 1) % 1000).unwrap()]));
        let next = [header(1, 0, &[]), frame(3, 1, b"x")].concat();
        all.extend_from_slice(&next);
        let mut guard = Guard::default();
        guard.take(&all).unwrap();
        let mut out = vec![0; 4096];
        let count = guard.give(&mut out);
        out.truncate(count);
        assert!(out.ends_with(&next) && out.len() < 200 + next.len());
        assert_eq!(out[7 + 4..7 + 12], [0; 8]);
    }

    #[test]
    fn a_routing_key_becomes_text() {
        let mut deliver = vec![0, 60, 0, 60, 1, b't', 0, 0, 0, 0, 0, 0, 0, 1, 0];
        deliver.extend_from_slice(b"\x06events\x05a.\xff\xc3b");
        let out = through(&frame(1, 1, &deliver)).unwrap();
        assert!(out.windows(5).any(|w| w == b"a.??b"), "{out:?}");
        assert_eq!(out.len(), deliver.len() + 8);
    }

    #[test]
    fn what_is_no_broker_is_said_to_be_none() {
        for bytes in [&b"AMQP\0\0\x09\x01"[..], b"HTTP/1.1 400", b"\x01\0\0\xff\xff\xff\xff", b"\x08\0\0\0\0\0\0\0"] {
            assert!(through(bytes).is_err(), "{bytes:?}");
        }
    }
}
