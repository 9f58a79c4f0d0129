//! All data in one MongoDB.
//!
//! | collection | `_id` | holds |
//! |---|---|---|
//! | `accounts` | Int64 | users, password hashes |
//! | `rooms` | String (slug) | rooms, members, counters |
//! | `messages` | ObjectId | messages; quoted text and the upload's description are embedded |
//! | `uploads.files`, `uploads.chunks` | UUID, ObjectId | files in chunks, with a checksum |
//! | `sessions` | Binary | hashes of session tokens, removed by a TTL index |
//! | `reactions` | {n, account, emoji} | schema 2 |
//! | `counters`, `settings`, `schema` | String and odd ones | numbers to give, settings, the schema's version |
//!
//! Every write is one document, in an order in which a crash leaves at most a counter behind.

use std::time::Duration;

use mongodb::{
    Client, Collection, Cursor, Database,
    bson::{Binary, Bson, DateTime, Document, doc, spec::BinarySubtype},
    error::{Error, ErrorKind, WriteFailure},
    options::{ClientOptions, ReturnDocument},
};
use uuid::Uuid;

use super::{Result, StoreError};
use crate::{
    model::{Account, Body, Handle, Message, Quote, Room, RoomKind, Slug, Title, Upload},
    version::Version,
};

mod bulk;
mod odd;
mod schema;
mod service;
mod upkeep;

/// Bytes of an upload's chunk: small enough that a usual photo has several.
const CHUNK: usize = 64 * 1024;

/// See the module.
pub struct Mongo {
    db: Database,
    version: Version,
}

impl Mongo {
    /// Reads the address; connects when first used.
    pub async fn open(uri: &str, version: Version) -> Result<Self> {
        let mut options = ClientOptions::parse(uri).await?;
        options.app_name = Some("lets-chat".into());
        options.max_pool_size = Some(16);
        options.connect_timeout.get_or_insert(Duration::from_secs(3));
        options.server_selection_timeout.get_or_insert(Duration::from_secs(3));
        let client = Client::with_options(options)?;
        let db = client.default_database().unwrap_or_else(|| client.database("lets-chat"));
        Ok(Self { db, version })
    }

    fn collection(&self, name: &str) -> Collection<Document> {
        self.db.collection(name)
    }

    /// The next number of a kind.
    async fn next(&self, counter: &str) -> Result<i64> {
        let updated = self
            .collection("counters")
            .find_one_and_update(doc! { "_id": counter }, doc! { "$inc": { "next": 1_i64 } })
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await?;
        Ok(updated.map(|found| number(&found, "next")).unwrap_or_default())
    }

    /// Makes sure that `next` gives greater numbers than `least`.
    async fn raise(&self, counter: &str, least: i64) -> Result<()> {
        self.collection("counters")
            .update_one(doc! { "_id": counter }, doc! { "$max": { "next": least } })
            .upsert(true)
            .await?;
        Ok(())
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error.kind.as_ref() {
            ErrorKind::ServerSelection { .. }
            | ErrorKind::Io(_)
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. } => Self::Unreachable(error.to_string()),
            _ => Self::Refused(error.to_string()),
        }
    }
}

fn is_duplicate(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == 11_000,
        ErrorKind::Command(error) => error.code == 11_000,
        ErrorKind::InsertMany(error) => error.write_errors.iter().flatten().any(|error| error.code == 11_000),
        _ => false,
    }
}

/// An integer, in whatever width it came back.
fn number(from: &Document, key: &str) -> i64 {
    match from.get(key) {
        Some(Bson::Int64(value)) => *value,
        Some(Bson::Int32(value)) => i64::from(*value),
        #[expect(clippy::cast_possible_truncation, reason = "servers answer counts as whole doubles")]
        Some(Bson::Double(value)) => *value as i64,
        _ => 0,
    }
}

fn text<'a>(from: &'a Document, key: &str) -> &'a str {
    from.get_str(key).unwrap_or_default()
}

fn time(from: &Document, key: &str) -> i64 {
    from.get_datetime(key).map(|at| at.timestamp_millis()).unwrap_or_default()
}

fn date(at: i64) -> DateTime {
    DateTime::from_millis(at)
}

fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

fn uuid_value(id: Uuid) -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: id.as_bytes().to_vec() }
}

fn uuid_of(from: &Document, key: &str) -> Option<Uuid> {
    match from.get(key) {
        Some(Bson::Binary(value)) => Uuid::from_slice(&value.bytes).ok(),
        _ => None,
    }
}

fn account_of(from: &Document) -> Account {
    Account {
        id: number(from, "_id"),
        handle: Handle::stored(text(from, "name")),
        display: Title::stored(text(from, "display")),
    }
}

fn room_of(from: &Document) -> Room {
    Room {
        id: 0,
        slug: Slug::stored(text(from, "_id")),
        title: Title::stored(text(from, "title")),
        topic: text(from, "topic").to_owned(),
        kind: RoomKind::stored(text(from, "kind")),
        messages: number(from, "messages"),
        last_at: time(from, "lastAt"),
    }
}

/// The description of an upload, as files and messages carry it.
fn upload_of(from: &Document, id_key: &str) -> Option<Upload> {
    let checksum = match from.get("checksum") {
        Some(Bson::Binary(value)) => value.bytes.as_slice().try_into().unwrap_or([0; 32]),
        _ => [0; 32],
    };
    Some(Upload {
        id: uuid_of(from, id_key)?,
        name: Title::stored(text(from, "name")),
        content_type: text(from, "contentType").to_owned(),
        length: number(from, "length"),
        checksum,
    })
}

fn embedded_upload(upload: &Upload) -> Document {
    doc! {
        "id": uuid_value(upload.id), "name": upload.name.as_str(), "contentType": &upload.content_type,
        "length": upload.length,
    }
}

fn embedded_quote(quote: &Quote) -> Document {
    doc! { "n": quote.n, "author": quote.author.as_str(), "excerpt": &quote.excerpt }
}

fn message_of(from: &Document, author: Option<Account>) -> Message {
    Message {
        n: number(from, "n"),
        seq: from.contains_key("seq").then(|| number(from, "seq")),
        author,
        at: time(from, "at"),
        body: Body::stored(text(from, "body")),
        reply: from.get_document("reply").ok().map(|reply| Quote {
            n: number(reply, "n"),
            author: Handle::stored(text(reply, "author")),
            excerpt: text(reply, "excerpt").to_owned(),
        }),
        upload: from.get_document("upload").ok().and_then(|upload| upload_of(upload, "id")),
        reactions: Vec::new(),
    }
}

/// The documents of a cursor; queries bound their number.
async fn gather(mut cursor: Cursor<Document>) -> Result<Vec<Document>> {
    let mut found = Vec::new();
    while cursor.advance().await? {
        found.push(cursor.deserialize_current()?);
    }
    Ok(found)
}
