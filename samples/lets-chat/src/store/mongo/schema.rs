//! Schemas and the way between them. Each step can be done again: a migration that was interrupted goes on.

use std::time::Duration;

use mongodb::{
    IndexModel,
    bson::{Document, doc},
    options::IndexOptions,
};

use super::{Mongo, date, number};
use crate::{
    store::{Result, Schema, StoreError},
    world,
};

/// How long servers of the old version get to see that a migration has begun (they look every two seconds).
const NOTICE: Duration = Duration::from_secs(4);

/// Messages that are numbered with one command.
const BATCH: usize = 1_000;

fn index(keys: Document, options: IndexOptions) -> IndexModel {
    IndexModel::builder().keys(keys).options(options).build()
}

fn unique() -> IndexOptions {
    IndexOptions::builder().unique(true).build()
}

impl Mongo {
    pub(super) async fn found_schema(&self) -> Result<Schema> {
        let Some(found) = self.collection("schema").find_one(doc! { "_id": "schema" }).await? else {
            return Ok(Schema::Empty);
        };
        let version = |key| u32::try_from(number(&found, key)).unwrap_or(u32::MAX);
        Ok(if found.contains_key("migratingTo") {
            Schema::Migrating(version("migratingTo"))
        } else {
            Schema::At(version("version"))
        })
    }

    pub(super) async fn bring_to(&self, wanted: u32) -> Result<Vec<String>> {
        let mut done = Vec::new();
        loop {
            match self.found_schema().await? {
                Schema::At(found) if found >= wanted => {
                    Schema::At(found).suits(self.version)?;
                    return Ok(done);
                }
                Schema::Migrating(to) if to > wanted => {
                    Schema::Migrating(to).suits(self.version)?;
                }
                Schema::Empty => done.extend(self.to_first().await?),
                Schema::At(1) | Schema::Migrating(2) => done.extend(self.to_second().await?),
                other => {
                    let reason = format!("no way leads from schema {other:?} to {wanted}");
                    return Err(StoreError::Schema(reason));
                }
            }
        }
    }

    async fn create_index(&self, collection: &str, keys: Document, options: IndexOptions) -> Result<()> {
        self.collection(collection).create_index(index(keys, options)).await?;
        Ok(())
    }

    async fn to_first(&self) -> Result<Vec<String>> {
        let plain = IndexOptions::default;
        let sparse = || IndexOptions::builder().sparse(true).build();
        let expiring = IndexOptions::builder().expire_after(Duration::ZERO).build();
        self.create_index("accounts", doc! { "name": 1 }, unique()).await?;
        self.create_index("rooms", doc! { "kind": 1, "members": 1 }, plain()).await?;
        self.create_index("messages", doc! { "n": 1 }, unique()).await?;
        self.create_index("messages", doc! { "room": 1, "at": -1 }, plain()).await?;
        self.create_index("messages", doc! { "room": 1, "n": -1 }, plain()).await?;
        self.create_index("messages", doc! { "author": 1, "at": -1 }, plain()).await?;
        self.create_index("messages", doc! { "upload.id": 1 }, sparse()).await?;
        self.create_index("uploads.files", doc! { "room": 1, "at": -1 }, plain()).await?;
        self.create_index("uploads.chunks", doc! { "file": 1, "n": 1 }, unique()).await?;
        self.create_index("sessions", doc! { "expiresAt": 1 }, expiring).await?;
        let lobby = doc! { "$setOnInsert": {
            "title": "Lobby", "topic": "Everybody is here", "kind": "public", "createdAt": date(world::now()),
            "members": [], "messages": 0_i64, "nextSeq": 0_i64,
        } };
        self.collection("rooms").update_one(doc! { "_id": "lobby" }, lobby).upsert(true).await?;
        self.finish(1).await?;
        Ok(vec!["schema 1: 10 indexes, the room lobby".into()])
    }

    async fn to_second(&self) -> Result<Vec<String>> {
        let begin = doc! { "$set": { "migratingTo": 2_i32 } };
        self.collection("schema").update_one(doc! { "_id": "schema" }, begin).await?;
        world::sleep(NOTICE).await;
        let (mut rooms, mut messages) = (0_u64, 0_i64);
        let mut found = self.collection("rooms").find(doc! {}).projection(doc! { "_id": 1 }).await?;
        while found.advance().await? {
            let room = found.deserialize_current()?;
            let numbered = self.number_room(room.get_str("_id").unwrap_or_default()).await?;
            rooms += 1;
            messages += numbered;
        }
        self.create_index("messages", doc! { "room": 1, "seq": 1 }, unique()).await?;
        self.create_index("reactions", doc! { "n": 1 }, IndexOptions::default()).await?;
        self.create_index("reactions", doc! { "account": 1 }, IndexOptions::default()).await?;
        self.finish(2).await?;
        Ok(vec![format!("schema 2: {messages} messages numbered within their {rooms} rooms, reactions")])
    }

    /// Gives the messages of a room their numbers 1, 2, 3, … in the order of their global number.
    async fn number_room(&self, room: &str) -> Result<i64> {
        let filter = doc! { "room": room };
        let mut found = self
            .collection("messages")
            .find(filter)
            .projection(doc! { "_id": 1, "n": 1, "seq": 1 })
            .sort(doc! { "n": 1 })
            .await?;
        let (mut seq, mut updates) = (0_i64, Vec::with_capacity(BATCH));
        while found.advance().await? {
            let message = found.deserialize_current()?;
            seq += 1;
            if number(&message, "seq") != seq {
                updates.push(doc! { "q": { "_id": message.get("_id") }, "u": { "$set": { "seq": seq } } });
            }
            if updates.len() == BATCH {
                self.update_all(std::mem::take(&mut updates)).await?;
            }
        }
        self.update_all(updates).await?;
        self.collection("rooms").update_one(doc! { "_id": room }, doc! { "$set": { "nextSeq": seq } }).await?;
        Ok(seq)
    }

    /// One `update` command: the driver's own bulk write needs a newer server than this service asks for.
    async fn update_all(&self, updates: Vec<Document>) -> Result<()> {
        if updates.is_empty() {
            return Ok(());
        }
        let wanted = i64::try_from(updates.len()).unwrap_or(i64::MAX);
        let answer = self.db.run_command(doc! { "update": "messages", "updates": updates, "ordered": true }).await?;
        let matched = number(&answer, "n");
        if matched == wanted && !answer.contains_key("writeErrors") {
            Ok(())
        } else {
            Err(StoreError::Refused(format!("of {wanted} messages {matched} could be numbered")))
        }
    }

    async fn finish(&self, version: i32) -> Result<()> {
        let finish = doc! {
            "$set": { "version": version, "appliedAt": date(world::now()), "by": self.version.to_string() },
            "$unset": { "migratingTo": "" },
        };
        self.collection("schema").update_one(doc! { "_id": "schema" }, finish).upsert(true).await?;
        Ok(())
    }
}
