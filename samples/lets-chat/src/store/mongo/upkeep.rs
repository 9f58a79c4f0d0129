//! What operators need, on MongoDB.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use mongodb::bson::{Bson, doc};

use super::{Mongo, binary, gather, number, text, time, upload_of, uuid_of};
use crate::{
    model::{Body, Slug},
    store::{
        Counts, Damage, Findings, LoadMark, Newest, Result, Schema, SeedAccount, SeedMessage, SeedRoom, SeedUpload,
        StoreError, Upkeep, garble,
    },
    world::{Millis, rfc3339},
};

/// Collections that are counted and cleared; `schema` stays.
const COLLECTIONS: [&str; 9] = [
    "accounts",
    "rooms",
    "messages",
    "uploads.files",
    "uploads.chunks",
    "sessions",
    "reactions",
    "counters",
    "settings",
];

#[async_trait]
impl Upkeep for Mongo {
    async fn schema(&self) -> Result<Schema> {
        self.found_schema().await
    }

    async fn migrate(&self) -> Result<Vec<String>> {
        self.bring_to(self.version.schema()).await
    }

    async fn counts(&self) -> Result<Counts> {
        let mut entries = Vec::new();
        for name in COLLECTIONS {
            let count = self.collection(name).count_documents(doc! {}).await?;
            entries.push((name.to_owned(), i64::try_from(count).unwrap_or(i64::MAX)));
        }
        let sum = doc! { "$group": { "_id": Bson::Null, "bytes": { "$sum": "$length" } } };
        let bytes = self.collection("uploads.files").aggregate([sum]).await?.try_next().await?;
        let newest = self.collection("messages").find_one(doc! { "n": self.greatest().await? }).await?;
        Ok(Counts {
            entries,
            upload_bytes: bytes.map(|sum| number(&sum, "bytes")).unwrap_or_default(),
            newest: newest.map(|found| Newest {
                n: number(&found, "n"),
                room: Slug::stored(text(&found, "room")),
                at: rfc3339(time(&found, "at")),
                body: Body::stored(text(&found, "body")).excerpt(),
            }),
        })
    }

    async fn check(&self) -> Result<Findings> {
        let mut findings = Findings::default();
        let ids = doc! { "_id": 1 };
        let accounts = gather(self.collection("accounts").find(doc! {}).projection(ids).await?).await?;
        let accounts: HashSet<i64> = accounts.iter().map(|account| number(account, "_id")).collect();
        let files = gather(self.collection("uploads.files").find(doc! {}).await?).await?;
        let rooms = gather(self.collection("rooms").find(doc! {}).await?).await?;
        let mut uploads = HashSet::new();
        for file in &files {
            let Some(upload) = upload_of(file, "_id") else { continue };
            uploads.insert(upload.id);
            let whole = self.bytes(&upload).await;
            findings.fact(whole.is_ok(), || whole.err().map(|error| error.to_string()).unwrap_or_default());
            let by = number(file, "by");
            findings.fact(accounts.contains(&by), || format!("upload {} is of account {by}, which is gone", upload.id));
        }
        let slugs: HashSet<&str> = rooms.iter().map(|room| text(room, "_id")).collect();
        let mut counted: HashMap<String, i64> = HashMap::new();
        let (mut numbers, mut seqs) = (HashSet::new(), HashSet::new());
        let mut messages = self.collection("messages").find(doc! {}).projection(doc! { "body": 0 }).await?;
        while messages.advance().await? {
            let message = messages.deserialize_current()?;
            let (n, room, author) = (number(&message, "n"), text(&message, "room"), number(&message, "author"));
            findings.fact(accounts.contains(&author), || format!("message {n} is by account {author}, which is gone"));
            findings.fact(slugs.contains(room), || format!("message {n} is in room {room}, which is gone"));
            findings.fact(numbers.insert(n), || format!("message number {n} is given twice"));
            if let Ok(upload) = message.get_document("upload") {
                let id = uuid_of(upload, "id");
                findings.fact(id.is_some_and(|id| uploads.contains(&id)), || {
                    format!("message {n} brings upload {}, which is gone", id.unwrap_or_default())
                });
            }
            if self.version.schema() >= 2 {
                let seq = number(&message, "seq");
                findings.fact(seq > 0, || format!("message {n} has no number in its room"));
                findings.fact(seqs.insert((room.to_owned(), seq)), || format!("room {room} has number {seq} twice"));
            }
            *counted.entry(room.to_owned()).or_default() += 1;
        }
        for room in &rooms {
            let slug = text(room, "_id");
            findings.counter(slug, number(room, "messages"), counted.get(slug).copied().unwrap_or_default());
        }
        Ok(findings)
    }

    async fn damage(&self, room: &Slug, texts: u32) -> Result<Damage> {
        let messages = self.collection("messages");
        if self.collection("rooms").find_one(doc! { "_id": room.as_str() }).await?.is_none() {
            return Err(StoreError::Absent { what: format!("room {room}") });
        }
        let deleted = messages.delete_many(doc! { "room": room.as_str() }).await?.deleted_count;
        let newest =
            messages.find(doc! {}).projection(doc! { "n": 1 }).sort(doc! { "n": -1 }).limit(texts.into()).await?;
        let newest = gather(newest).await?;
        for message in &newest {
            let noise = doc! { "$set": { "body": garble(number(message, "n")) } };
            messages.update_one(doc! { "_id": message.get("_id") }, noise).await?;
        }
        let file = self.collection("uploads.files").find_one(doc! {}).sort(doc! { "at": -1 }).await?;
        let upload = file.as_ref().and_then(|file| uuid_of(file, "_id"));
        if let Some(id) = upload {
            let chunk = doc! { "file": super::uuid_value(id), "n": 0_i32 };
            let noise = doc! { "$set": { "data": binary(garble(1).as_bytes()) } };
            self.collection("uploads.chunks").update_one(chunk, noise).await?;
        }
        Ok(Damage { room: room.clone(), deleted, garbled: newest.len() as u64, upload })
    }

    async fn tidy(&self, _now: Millis) -> Result<()> {
        // Sessions go by their TTL index; there are no summaries.
        Ok(())
    }

    async fn loaded(&self) -> Result<Option<LoadMark>> {
        let found = self.collection("settings").find_one(doc! { "_id": "load" }).await?;
        Ok(found.map(|mark| LoadMark {
            seed: number(&mark, "seed"),
            messages: number(&mark, "messages"),
            users: number(&mark, "users"),
            rooms: number(&mark, "rooms"),
            uploads: number(&mark, "uploads"),
        }))
    }

    async fn clear(&self) -> Result<()> {
        for name in COLLECTIONS {
            self.collection(name).delete_many(doc! {}).await?;
        }
        Ok(())
    }

    async fn load_accounts(&self, accounts: &[SeedAccount]) -> Result<()> {
        self.put_accounts(accounts).await
    }

    async fn load_rooms(&self, rooms: &[SeedRoom]) -> Result<()> {
        self.put_rooms(rooms).await
    }

    async fn load_uploads(&self, uploads: &[SeedUpload]) -> Result<()> {
        self.put_uploads(uploads).await
    }

    async fn load_messages(&self, messages: &[SeedMessage]) -> Result<()> {
        self.put_messages(messages).await
    }

    async fn finish_load(&self, mark: &LoadMark) -> Result<Vec<String>> {
        self.end_load(mark).await
    }
}
