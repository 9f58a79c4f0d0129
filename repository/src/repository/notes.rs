//! Later edits of images: sealed with the image's key, numbered, never overwritten.

use ocopea_protocol::{names::Digest, secret::Secret32};
use serde::{Deserialize, Serialize};

use super::{Note, Repository};
use crate::{
    Error, Result,
    backend::Put,
    sealed,
    store::{LONGEST_SMALL, Store},
};

const VERSION: u32 = 1;
/// Most notes of one image.
const MOST: u64 = 100_000;
/// Longest note.
const LONGEST: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Versioned {
    version: u32,
    note: Note,
}

pub(super) fn prefix(record: &Digest) -> String {
    format!("notes/{}/", record.hex())
}

fn purpose(record: &Digest, sequence: u64) -> String {
    format!("ocopea/note/v1/{}/{sequence:08}", record.hex())
}

/// Reads one note by its object's name.
pub(crate) async fn read_note(store: &Store, key: &Secret32, record: &Digest, name: &str) -> Result<(u64, Note)> {
    let sequence = name.rsplit('/').next().and_then(|digits| digits.parse::<u64>().ok());
    let sequence = sequence.ok_or_else(|| Error::damaged(name, "its name is not a number"))?;
    let bytes = store.backend.get(name, LONGEST_SMALL).await?;
    let plain = sealed::open(key, &purpose(record, sequence), name, &bytes)?;
    let object: Versioned = serde_json::from_slice(&plain).map_err(|error| Error::damaged(name, error))?;
    if object.version > VERSION {
        return Err(Error::Newer { object: name.to_owned(), found: object.version, known: VERSION });
    }
    Ok((sequence, object.note))
}

impl Repository {
    /// Writes a note; answers for its sequence number.
    pub async fn note(&self, record: &Digest, note: &Note) -> Result<u64> {
        if note.body.len() > LONGEST {
            let (found, limit) = (note.body.len() as u64, LONGEST as u64);
            return Err(Error::Limit { what: "the length of a note".to_owned(), found, limit });
        }
        let key = self.unwrap(&self.wrapped_key(record).await?).await?;
        let store = self.store();
        let plain = crate::oci::to_json(&Versioned { version: VERSION, note: note.clone() })?;
        let last = store.backend.list(&prefix(record)).await?.pop();
        let last = last.and_then(|entry| entry.name.rsplit('/').next()?.parse::<u64>().ok()).unwrap_or(0);
        for sequence in last + 1..=MOST {
            let sealed = sealed::seal(&key, &purpose(record, sequence), &plain, &store.seams)?;
            let name = format!("{}{sequence:08}", prefix(record));
            if store.backend.create(&name, sealed.into()).await? == Put::Created {
                return Ok(sequence);
            }
        }
        Err(Error::Limit { what: "number of notes of one image".to_owned(), found: MOST + 1, limit: MOST })
    }

    /// An image's notes, in order.
    pub async fn notes(&self, record: &Digest) -> Result<Vec<Note>> {
        let entries = self.store().backend.list(&prefix(record)).await?;
        if entries.is_empty() {
            return Ok(vec![]);
        }
        let key = self.unwrap(&self.wrapped_key(record).await?).await?;
        let mut notes = Vec::with_capacity(entries.len());
        for (expected, entry) in (1u64..).zip(entries) {
            let (sequence, note) = read_note(self.store(), &key, record, &entry.name).await?;
            if sequence != expected {
                return Err(Error::Missing { object: format!("{}{expected:08}", prefix(record)) });
            }
            notes.push(note);
        }
        Ok(notes)
    }
}
