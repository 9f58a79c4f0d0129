//! Loading much at once.

use futures::{TryStreamExt, stream};
use mongodb::bson::{Document, doc, oid::ObjectId};

use super::{
    Mongo, date, embedded_quote, embedded_upload,
    service::{chunks_of, file_of},
};
use crate::store::{LoadMark, Result, SeedAccount, SeedMessage, SeedRoom, SeedUpload};

/// Documents of one command.
const BATCH: usize = 1_000;
/// Commands under way at once: while the server works on one, the next is written.
const AT_ONCE: usize = 2;

impl Mongo {
    async fn insert_all(&self, collection: &str, documents: &[Document]) -> Result<()> {
        stream::iter(documents.chunks(BATCH).map(Ok))
            .try_for_each_concurrent(AT_ONCE, async |batch| {
                self.collection(collection).insert_many(batch).await?;
                Ok(())
            })
            .await
    }

    pub(super) async fn put_accounts(&self, accounts: &[SeedAccount]) -> Result<()> {
        let document = |account: &SeedAccount| {
            doc! {
                "_id": account.id, "name": account.new.handle.as_str(), "display": account.new.display.as_str(),
                "passwordHash": &account.new.password_hash, "createdAt": date(account.new.at),
                "settings": { "theme": if account.id % 3 == 0 { "dark" } else { "auto" }, "sounds": account.id % 2 == 0 },
            }
        };
        self.insert_all("accounts", &accounts.iter().map(document).collect::<Vec<_>>()).await
    }

    pub(super) async fn put_rooms(&self, rooms: &[SeedRoom]) -> Result<()> {
        for room in rooms {
            let fields = doc! {
                "title": room.new.title.as_str(), "topic": &room.new.topic, "kind": room.new.kind.as_str(),
                "createdAt": date(room.new.at), "members": &room.members, "messages": 0_i64, "nextSeq": 0_i64,
            };
            let filter = doc! { "_id": room.new.slug.as_str() };
            self.collection("rooms").replace_one(filter, fields).upsert(true).await?;
        }
        Ok(())
    }

    pub(super) async fn put_uploads(&self, uploads: &[SeedUpload]) -> Result<()> {
        for seed in uploads {
            self.insert_all("uploads.chunks", &chunks_of(seed.upload.id, &seed.bytes)).await?;
        }
        let file = |seed: &SeedUpload| file_of(&seed.upload, seed.by, Some(&seed.room.1), seed.at);
        self.insert_all("uploads.files", &uploads.iter().map(file).collect::<Vec<_>>()).await
    }

    pub(super) async fn put_messages(&self, messages: &[SeedMessage]) -> Result<()> {
        let numbered = self.version.schema() >= 2;
        let document = |seed: &SeedMessage| {
            let mut message = doc! {
                "_id": object_id(seed), "n": seed.n, "room": seed.room.1.as_str(), "author": seed.author,
                "at": date(seed.at), "body": &seed.body,
            };
            if numbered {
                message.insert("seq", seed.seq);
            }
            if let Some(reply) = &seed.reply {
                message.insert("reply", embedded_quote(reply));
            }
            if let Some(upload) = &seed.upload {
                message.insert("upload", embedded_upload(upload));
            }
            message
        };
        self.insert_all("messages", &messages.iter().map(document).collect::<Vec<_>>()).await
    }

    pub(super) async fn end_load(&self, mark: &LoadMark) -> Result<Vec<String>> {
        self.raise("accounts", mark.users).await?;
        self.raise("messages", mark.messages).await?;
        self.count_rooms().await?;
        let refused = self.put_odd_settings().await?;
        let mark = doc! {
            "seed": mark.seed, "messages": mark.messages, "users": mark.users, "rooms": mark.rooms,
            "uploads": mark.uploads,
        };
        self.collection("settings").replace_one(doc! { "_id": "load" }, mark).upsert(true).await?;
        Ok(refused)
    }

    /// Sets every room's counters to what its messages say.
    async fn count_rooms(&self) -> Result<()> {
        let group = doc! { "$group": {
            "_id": "$room", "messages": { "$sum": 1_i64 }, "lastAt": { "$max": "$at" },
        } };
        let mut groups = self.collection("messages").aggregate([group]).await?;
        while groups.advance().await? {
            let group = groups.deserialize_current()?;
            let counters = doc! { "$set": {
                "messages": super::number(&group, "messages"), "nextSeq": super::number(&group, "messages"),
                "lastAt": group.get("lastAt"),
            } };
            self.collection("rooms").update_one(doc! { "_id": group.get("_id") }, counters).await?;
        }
        Ok(())
    }
}

/// An id of the form that drivers make, but the same at every load: seconds, five fixed bytes, a counter.
fn object_id(seed: &SeedMessage) -> ObjectId {
    let seconds = u32::try_from(seed.at / 1_000).unwrap_or(u32::MAX).to_be_bytes();
    let n = seed.n.to_be_bytes();
    let mut id = *b"    seed-   ";
    id[..4].copy_from_slice(&seconds);
    id[9..].copy_from_slice(&n[5..]);
    ObjectId::from_bytes(id)
}
