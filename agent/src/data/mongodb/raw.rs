//! BSON as bytes: cut, walked and built without being decoded, so that nothing of it can be lost or changed.

use mongodb::bson::{Document, RawDocumentBuf};

/// BSON's own limit, with the room that servers allow themselves.
pub(super) const LONGEST_DOCUMENT: usize = 16 * 1024 * 1024 + 16 * 1024;
/// Longest text of an `_id` in a message.
const LONGEST_ID: usize = 120;

/// What is wrong with bytes that should be BSON.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// A length that can't be.
    #[error("a document claims {0} bytes")]
    Length(i64),
    /// The bytes end within a value.
    #[error("a document ends within a value")]
    Short,
    /// A type that BSON doesn't have.
    #[error("a value has the unknown type {0:#04x}")]
    Kind(u8),
    /// The server's answer is not what was asked for.
    #[error("the answer holds no documents")]
    Answer,
}

/// One element of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    pub kind: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
    /// Type, key and value as they stand.
    pub whole: &'a [u8],
}

/// The elements of a document or array.
pub(super) struct Elements<'a>(&'a [u8]);

/// Walks a document's or array's elements.
pub(super) fn elements(document: &[u8]) -> Result<Elements<'_>, Malformed> {
    let length = length_of(document)?.ok_or(Malformed::Short)?;
    let inner = document.get(4..length - 1).ok_or(Malformed::Short)?;
    Ok(Elements(inner))
}

/// The length that the document at the front claims; `None` when its first four bytes aren't there yet.
pub(super) fn length_of(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let claimed = i32::from_le_bytes(*head);
    // Answers of servers are documents, too, and may be a little longer than what they carry.
    match usize::try_from(claimed) {
        Ok(length) if (5..=3 * LONGEST_DOCUMENT).contains(&length) => Ok(Some(length)),
        _ => Err(Malformed::Length(claimed.into())),
    }
}

fn int(bytes: &[u8]) -> Result<usize, Malformed> {
    let head = bytes.first_chunk::<4>().ok_or(Malformed::Short)?;
    let claimed = i32::from_le_bytes(*head);
    usize::try_from(claimed).map_err(|_| Malformed::Length(claimed.into()))
}

fn text(bytes: &[u8]) -> Result<usize, Malformed> {
    memchr::memchr(0, bytes).map(|at| at + 1).ok_or(Malformed::Short)
}

/// How long a value is.
fn length(kind: u8, value: &[u8]) -> Result<usize, Malformed> {
    Ok(match kind {
        0x01 | 0x09 | 0x11 | 0x12 => 8,
        0x02 | 0x0d | 0x0e => int(value)?.saturating_add(4),
        0x03 | 0x04 | 0x0f => int(value)?,
        0x05 => int(value)?.saturating_add(5),
        0x06 | 0x0a | 0x7f | 0xff => 0,
        0x07 => 12,
        0x08 => 1,
        0x0b => {
            let pattern = text(value)?;
            pattern + text(value.get(pattern..).unwrap_or_default())?
        }
        0x0c => int(value)?.saturating_add(16),
        0x10 => 4,
        0x13 => 16,
        other => return Err(Malformed::Kind(other)),
    })
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<Element<'a>>, Malformed> {
        let bytes = self.0;
        let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
        let key = text(rest)?;
        let value = rest.get(key..).unwrap_or_default();
        let length = length(*kind, value)?;
        let value = value.get(..length).ok_or(Malformed::Short)?;
        let (whole, after) = bytes.split_at(1 + key + length);
        self.0 = after;
        Ok(Some(Element { kind: *kind, key: &rest[..key - 1], value, whole }))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step().transpose();
        if matches!(step, Some(Err(_))) {
            self.0 = &[];
        }
        step
    }
}

/// The first element of that name.
pub(super) fn get<'a>(document: &'a [u8], key: &str) -> Option<Element<'a>> {
    elements(document).ok()?.filter_map(Result::ok).find(|element| element.key == key.as_bytes())
}

/// The array of documents in the answer to a find, or to a getMore.
pub(super) fn batch_of(answer: &[u8]) -> Result<&[u8], Malformed> {
    let cursor = get(answer, "cursor").ok_or(Malformed::Answer)?.value;
    let batch = get(cursor, "firstBatch").or_else(|| get(cursor, "nextBatch")).ok_or(Malformed::Answer)?;
    if batch.kind == 0x04 { Ok(batch.value) } else { Err(Malformed::Answer) }
}

/// Whether the server would put the current time into this document: it has a top-level `Timestamp(0, 0)` that isn't
/// its `_id`.
pub(super) fn has_empty_timestamp(document: &[u8]) -> bool {
    let Ok(mut elements) = elements(document) else { return false };
    elements.any(|e| e.is_ok_and(|e| e.kind == 0x11 && e.key != b"_id" && e.value == [0; 8]))
}

/// A document's `_id` for people.
pub(super) fn id_text(document: &[u8]) -> String {
    let Some(id) = get(document, "_id") else { return "no _id".to_owned() };
    let alone = Builder::new().element(id.whole).finish();
    let shown = match RawDocumentBuf::from_bytes(alone).ok().and_then(|raw| Document::try_from(raw).ok()) {
        Some(decoded) => decoded.get("_id").map(ToString::to_string).unwrap_or_default(),
        None => hex::encode(id.value),
    };
    format!("_id {}", shown.chars().take(LONGEST_ID).collect::<String>())
}

/// Builds a document element by element.
pub(super) struct Builder(Vec<u8>);

impl Builder {
    pub(super) fn new() -> Self {
        Self(vec![0; 4])
    }

    fn key(&mut self, kind: u8, key: &str) {
        self.0.push(kind);
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(0);
    }

    pub(super) fn text(mut self, key: &str, value: &str) -> Self {
        self.key(0x02, key);
        self.0.extend_from_slice(&size(value.len() + 1));
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self
    }

    pub(super) fn int(mut self, key: &str, value: i32) -> Self {
        self.key(0x10, key);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bool(mut self, key: &str, value: bool) -> Self {
        self.key(0x08, key);
        self.0.push(u8::from(value));
        self
    }

    pub(super) fn document(mut self, key: &str, document: &[u8]) -> Self {
        self.key(0x03, key);
        self.0.extend_from_slice(document);
        self
    }

    /// A value under another key.
    pub(super) fn value(mut self, key: &str, of: &Element<'_>) -> Self {
        self.key(of.kind, key);
        self.0.extend_from_slice(of.value);
        self
    }

    /// An element as it stands.
    pub(super) fn element(mut self, whole: &[u8]) -> Self {
        self.0.extend_from_slice(whole);
        self
    }

    pub(super) fn array<'a>(mut self, key: &str, documents: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.key(0x04, key);
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        for (at, document) in documents.into_iter().enumerate() {
            self.key(0x03, itoa(at, &mut [0; 20]));
            self.0.extend_from_slice(document);
        }
        self.0.push(0);
        let length = size(self.0.len() - start);
        if let Some(place) = self.0.get_mut(start..start + 4) {
            place.copy_from_slice(&length);
        }
        self
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.push(0);
        let length = size(self.0.len());
        self.0[..4].copy_from_slice(&length);
        self.0
    }

    pub(super) fn finish_raw(self) -> Result<RawDocumentBuf, mongodb::bson::error::Error> {
        RawDocumentBuf::from_bytes(self.finish())
    }
}

fn size(length: usize) -> [u8; 4] {
    i32::try_from(length).unwrap_or(i32::MAX).to_le_bytes()
}

/// A number's digits, without an allocation: one for every document of a batch.
fn itoa(mut number: usize, buffer: &mut [u8; 20]) -> &str {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    std::str::from_utf8(&buffer[at..]).unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Regex, Timestamp, doc, oid::ObjectId};

    use super::*;

    fn bytes(document: &Document) -> Vec<u8> {
        RawDocumentBuf::try_from(document).unwrap().into_bytes()
    }

    fn everything() -> Vec<u8> {
        let all = bytes(&doc! {
            "": 1.5, "s": "text", "d": {"a.b": {"$c": 1}}, "a": [1, [2], {}], "b": Bson::Binary(mongodb::bson::Binary {
                subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes: vec![1, 2, 3] }),
            "u": Bson::Undefined, "o": ObjectId::from_bytes([7; 12]), "t": true, "when": mongodb::bson::DateTime::from_millis(-1),
            "n": Bson::Null, "r": Bson::RegularExpression(Regex { pattern: "a\"b".try_into().unwrap(), options: "ix".try_into().unwrap() }),
            "js": Bson::JavaScriptCode("x".into()), "sy": Bson::Symbol("sy".into()), "i": 1i32, "ts": Timestamp { time: 1, increment: 2 },
            "l": 1i64, "dec": Bson::Decimal128(mongodb::bson::Decimal128::from_bytes([9; 16])), "min": Bson::MinKey, "max": Bson::MaxKey,
            "jsw": Bson::JavaScriptCodeWithScope(mongodb::bson::JavaScriptCodeWithScope { code: "y".into(), scope: doc! {"z": 1} }),
        });
        // A DBPointer and a repeated key, which no decoded document can hold.
        let inner = &all[4..all.len() - 1];
        let mut raw = Builder::new().element(inner);
        raw = raw.element(b"\x0cptr\0\x02\0\0\0x\0AAAAAAAAAAAA").element(b"\x10i\0\x02\0\0\0");
        raw.finish()
    }

    #[test]
    fn a_walk_over_every_type_gives_back_the_same_bytes() {
        let document = everything();
        let mut copy = Builder::new();
        let mut seen = 0;
        for element in elements(&document).unwrap() {
            copy = copy.element(element.unwrap().whole);
            seen += 1;
        }
        assert_eq!((copy.finish(), seen), (document, 22));
    }

    #[test]
    fn a_document_that_is_cut_or_flipped_anywhere_is_an_error_or_a_document_but_no_panic() {
        let document = everything();
        for at in 0..document.len() {
            if let Ok(walk) = elements(&document[..at]) {
                walk.for_each(drop);
            }
            for bit in 0..8 {
                let mut flipped = document.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(walk) = elements(&flipped) {
                    walk.for_each(drop);
                }
                let _ = (id_text(&flipped), has_empty_timestamp(&flipped), batch_of(&flipped).is_ok());
            }
        }
    }

    #[test]
    fn built_documents_are_what_the_library_builds() {
        let inner = bytes(&doc! {"x": 1});
        let built = Builder::new()
            .text("find", "mess\u{e4}ges")
            .int("n", -5)
            .bool("b", true)
            .document("d", &inner)
            .array("all", [inner.as_slice(); 12])
            .finish();
        let all: Vec<Document> = (0..12).map(|_| doc! {"x": 1}).collect();
        let wanted = doc! {"find": "mess\u{e4}ges", "n": -5, "b": true, "d": {"x": 1}, "all": all};
        assert_eq!(built, bytes(&wanted));
    }

    #[test]
    fn only_a_top_level_empty_timestamp_counts_and_ids_are_shown() {
        let empty = Timestamp { time: 0, increment: 0 };
        assert!(has_empty_timestamp(&bytes(&doc! {"_id": 1, "t": empty})));
        for harmless in [
            doc! {"_id": empty},
            doc! {"a": {"t": empty}},
            doc! {"t": [empty]},
            doc! {"t": Timestamp { time: 0, increment: 1 }},
        ] {
            assert!(!has_empty_timestamp(&bytes(&harmless)), "{harmless}");
        }
        assert_eq!(id_text(&bytes(&doc! {"a": 1, "_id": "x\u{1F600}"})), "_id \"x\u{1F600}\"");
        assert_eq!(id_text(&bytes(&doc! {"a": 1})), "no _id");
        assert!(id_text(&bytes(&doc! {"_id": "y".repeat(9000)})).len() < 150);
    }
}
