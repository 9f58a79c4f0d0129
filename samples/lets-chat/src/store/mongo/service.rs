//! What requests need, on MongoDB.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use bytes::Bytes;
use mongodb::bson::{Binary, Bson, Document, doc};
use uuid::Uuid;

use super::{
    CHUNK, Mongo, account_of, binary, date, embedded_quote, embedded_upload, gather, is_duplicate, message_of, number,
    room_of, text, time, upload_of, uuid_value,
};
use crate::{
    model::{
        Account, Body, Emoji, Handle, MAX_ROOMS, Message, MessagePage, NewAccount, NewMessage, NewRoom, Quote,
        Reaction, Room, Slug, Title, Upload,
    },
    store::{Result, Store, StoreError},
    version::Order,
    world::{self, Millis},
};

/// How often a number that is already given is replaced by the next one.
const NUMBER_ATTEMPTS: usize = 5;

fn readable(viewer: Option<i64>) -> Document {
    match viewer {
        Some(id) => doc! { "$or": [{ "kind": "public" }, { "members": id }] },
        None => doc! { "kind": "public" },
    }
}

impl Mongo {
    async fn accounts(&self, ids: Vec<i64>) -> Result<HashMap<i64, Account>> {
        let found = self.collection("accounts").find(doc! { "_id": { "$in": ids } }).await?;
        Ok(gather(found).await?.iter().map(account_of).map(|account| (account.id, account)).collect())
    }

    /// Documents of messages become messages, in the same order.
    async fn shown(&self, documents: &[Document]) -> Result<Vec<Message>> {
        let mut ids: Vec<i64> = documents.iter().map(|message| number(message, "author")).collect();
        ids.sort_unstable();
        ids.dedup();
        let accounts = self.accounts(ids).await?;
        let mut messages: Vec<Message> =
            documents.iter().map(|found| message_of(found, accounts.get(&number(found, "author")).cloned())).collect();
        if self.version.reactions() {
            let numbers: Vec<i64> = messages.iter().map(|message| message.n).collect();
            let found = gather(self.collection("reactions").find(doc! { "n": { "$in": numbers } }).await?).await?;
            let mut given: BTreeMap<(i64, String), i64> = BTreeMap::new();
            for reaction in &found {
                *given.entry((number(reaction, "n"), text(reaction, "emoji").to_owned())).or_default() += 1;
            }
            for message in &mut messages {
                let own = given.range((message.n, String::new())..(message.n + 1, String::new()));
                message.reactions = own
                    .map(|((_, emoji), count)| Reaction { emoji: Emoji::stored(emoji.as_str()), count: *count })
                    .collect();
            }
        }
        Ok(messages)
    }

    async fn quote(&self, room: &Room, n: i64) -> Result<Quote> {
        let found = self.collection("messages").find_one(doc! { "room": room.slug.as_str(), "n": n }).await?;
        let found = found.ok_or_else(|| StoreError::Absent { what: format!("message {n} in room {}", room.slug) })?;
        let author = self.accounts(vec![number(&found, "author")]).await?.into_values().next();
        Ok(Quote {
            n,
            author: author.map_or_else(|| Handle::stored("gone"), |account| account.handle),
            excerpt: Body::stored(text(&found, "body")).excerpt(),
        })
    }

    /// Takes the upload for a message of `room`: only its owner's, and only once.
    async fn claim_upload(&self, id: Uuid, room: &Room, by: &Account) -> Result<Upload> {
        let claimed = self
            .collection("uploads.files")
            .find_one_and_update(
                doc! { "_id": uuid_value(id), "by": by.id, "room": Bson::Null },
                doc! { "$set": { "room": room.slug.as_str() } },
            )
            .await?;
        claimed
            .as_ref()
            .and_then(|file| upload_of(file, "_id"))
            .ok_or_else(|| StoreError::Absent { what: format!("unused upload {id} of {}", by.handle) })
    }

    /// The greatest number that any message has.
    pub(super) async fn greatest(&self) -> Result<i64> {
        let newest = self.collection("messages").find_one(doc! {}).sort(doc! { "n": -1 }).await?;
        Ok(newest.map(|message| number(&message, "n")).unwrap_or_default())
    }
}

#[async_trait]
impl Store for Mongo {
    async fn add_account(&self, new: &NewAccount) -> Result<Account> {
        let id = self.next("accounts").await?;
        let account = doc! {
            "_id": id, "name": new.handle.as_str(), "display": new.display.as_str(),
            "passwordHash": &new.password_hash, "createdAt": date(new.at), "settings": { "theme": "auto" },
        };
        match self.collection("accounts").insert_one(account).await {
            Ok(_) => Ok(Account { id, handle: new.handle.clone(), display: new.display.clone() }),
            Err(error) if is_duplicate(&error) => Err(StoreError::Exists { what: format!("the name {}", new.handle) }),
            Err(error) => Err(error.into()),
        }
    }

    async fn login(&self, handle: &Handle) -> Result<Option<(Account, String)>> {
        let found = self.collection("accounts").find_one(doc! { "name": handle.as_str() }).await?;
        Ok(found.map(|found| (account_of(&found), text(&found, "passwordHash").to_owned())))
    }

    async fn open_session(&self, token: &[u8; 32], account: &Account, expires: Millis) -> Result<()> {
        let session = doc! { "_id": binary(token), "account": account.id, "expiresAt": date(expires) };
        self.collection("sessions").insert_one(session).await?;
        Ok(())
    }

    async fn session(&self, token: &[u8; 32], now: Millis) -> Result<Option<Account>> {
        let Some(found) = self.collection("sessions").find_one(doc! { "_id": binary(token) }).await? else {
            return Ok(None);
        };
        // The TTL index removes once a minute at most: the time decides, not whether it is still there.
        if time(&found, "expiresAt") <= now {
            return Ok(None);
        }
        Ok(self.accounts(vec![number(&found, "account")]).await?.into_values().next())
    }

    async fn close_session(&self, token: &[u8; 32]) -> Result<()> {
        self.collection("sessions").delete_one(doc! { "_id": binary(token) }).await?;
        Ok(())
    }

    async fn rooms(&self, viewer: Option<i64>) -> Result<Vec<Room>> {
        let found = self.collection("rooms").find(readable(viewer)).sort(doc! { "_id": 1 }).limit(MAX_ROOMS).await?;
        Ok(gather(found).await?.iter().map(room_of).collect())
    }

    async fn room(&self, slug: &Slug, viewer: Option<i64>) -> Result<Option<Room>> {
        let mut filter = readable(viewer);
        filter.insert("_id", slug.as_str());
        Ok(self.collection("rooms").find_one(filter).await?.as_ref().map(room_of))
    }

    async fn add_room(&self, new: &NewRoom, by: &Account) -> Result<Room> {
        let room = doc! {
            "_id": new.slug.as_str(), "title": new.title.as_str(), "topic": &new.topic, "kind": new.kind.as_str(),
            "createdAt": date(new.at), "members": [by.id], "messages": 0_i64, "nextSeq": 0_i64, "lastAt": Bson::Null,
        };
        match self.collection("rooms").insert_one(&room).await {
            Ok(_) => Ok(room_of(&room)),
            Err(error) if is_duplicate(&error) => Err(StoreError::Exists { what: format!("the room {}", new.slug) }),
            Err(error) => Err(error.into()),
        }
    }

    async fn post(&self, room: &Room, by: &Account, new: &NewMessage) -> Result<Message> {
        let reply = match new.reply_to {
            Some(n) => Some(self.quote(room, n).await?),
            None => None,
        };
        let upload = match new.upload {
            Some(id) => Some(self.claim_upload(id, room, by).await?),
            None => None,
        };
        let rooms = self.collection("rooms");
        let this_room = doc! { "_id": room.slug.as_str() };
        let mut message = doc! {
            "n": 0_i64, "room": room.slug.as_str(), "author": by.id, "at": date(new.at), "body": new.body.as_str(),
        };
        if let Some(reply) = &reply {
            message.insert("reply", embedded_quote(reply));
        }
        if let Some(upload) = &upload {
            message.insert("upload", embedded_upload(upload));
        }
        for attempt in 1.. {
            let n = self.next("messages").await?;
            message.insert("n", n);
            if self.version.schema() >= 2 {
                let counted =
                    rooms.find_one_and_update(this_room.clone(), doc! { "$inc": { "nextSeq": 1_i64 } }).await?;
                message.insert("seq", counted.map(|room| number(&room, "nextSeq")).unwrap_or_default() + 1);
            }
            match self.collection("messages").insert_one(&message).await {
                Ok(_) => break,
                // The counters were behind the messages (they are two documents): they catch up.
                Err(error) if is_duplicate(&error) && attempt < NUMBER_ATTEMPTS => {
                    self.raise("messages", self.greatest().await?).await?;
                    self.raise_seq(&room.slug).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        rooms.update_one(this_room, doc! { "$inc": { "messages": 1_i64 }, "$max": { "lastAt": date(new.at) } }).await?;
        Ok(message_of(&message, Some(by.clone())))
    }

    async fn messages(&self, room: &Room, before: Option<i64>, limit: usize) -> Result<MessagePage> {
        let mut filter = doc! { "room": room.slug.as_str() };
        let sort = match self.version.order() {
            Order::Time => {
                if let Some(at) = before {
                    filter.insert("at", doc! { "$lt": date(at) });
                }
                doc! { "at": -1 }
            }
            Order::Number => {
                if let Some(n) = before {
                    filter.insert("n", doc! { "$lt": n });
                }
                doc! { "n": -1 }
            }
        };
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut found = gather(self.collection("messages").find(filter).sort(sort).limit(wanted).await?).await?;
        let more = found.len() > limit;
        found.truncate(limit);
        found.reverse();
        let messages = self.shown(&found).await?;
        let older = messages.first().filter(|_| more).map(|first| match self.version.order() {
            Order::Time => first.at,
            Order::Number => first.n,
        });
        Ok(MessagePage { messages, older })
    }

    async fn search(&self, room: &Room, needle: &str) -> Result<MessagePage> {
        let mut pattern = String::with_capacity(needle.len() * 2);
        for c in needle.chars() {
            if c.is_ascii_punctuation() {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        let filter = doc! { "room": room.slug.as_str(), "body": { "$regex": pattern, "$options": "i" } };
        let mut found =
            gather(self.collection("messages").find(filter).sort(doc! { "n": -1 }).limit(50).await?).await?;
        found.reverse();
        Ok(MessagePage { messages: self.shown(&found).await?, older: None })
    }

    async fn react(&self, room: &Room, n: i64, by: &Account, emoji: &Emoji) -> Result<()> {
        self.quote(room, n).await?;
        let reactions = self.collection("reactions");
        let key = doc! { "n": n, "account": by.id, "emoji": emoji.as_str() };
        let reaction = doc! { "_id": key.clone(), "n": n, "account": by.id, "emoji": emoji.as_str() };
        match reactions.insert_one(reaction).await {
            Ok(_) => Ok(()),
            Err(error) if is_duplicate(&error) => {
                reactions.delete_one(doc! { "_id": key }).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn save_upload(&self, name: &Title, content_type: &str, bytes: Bytes, by: &Account) -> Result<Upload> {
        let upload = Upload {
            id: world::uuid(),
            name: name.clone(),
            content_type: content_type.to_owned(),
            length: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            checksum: *blake3::hash(&bytes).as_bytes(),
        };
        // Chunks first: a file that is there is whole.
        let chunks = chunks_of(upload.id, &bytes);
        if !chunks.is_empty() {
            self.collection("uploads.chunks").insert_many(chunks).await?;
        }
        self.collection("uploads.files").insert_one(file_of(&upload, by.id, None, world::now())).await?;
        Ok(upload)
    }

    async fn upload(&self, id: Uuid, viewer: Option<i64>) -> Result<Option<(Upload, Bytes)>> {
        let Some(file) = self.collection("uploads.files").find_one(doc! { "_id": uuid_value(id) }).await? else {
            return Ok(None);
        };
        let readable = match file.get_str("room") {
            Ok(slug) => self.room(&Slug::stored(slug), viewer).await?.is_some(),
            Err(_) => viewer == Some(number(&file, "by")),
        };
        let Some(upload) = upload_of(&file, "_id").filter(|_| readable) else { return Ok(None) };
        let bytes = self.bytes(&upload).await?;
        Ok(Some((upload, bytes)))
    }
}

impl Mongo {
    /// An upload's bytes, put together and held against the checksum.
    pub(super) async fn bytes(&self, upload: &Upload) -> Result<Bytes> {
        let filter = doc! { "file": uuid_value(upload.id) };
        let chunks = gather(self.collection("uploads.chunks").find(filter).sort(doc! { "n": 1 }).await?).await?;
        let mut bytes = Vec::with_capacity(usize::try_from(upload.length).unwrap_or_default());
        for chunk in &chunks {
            if let Some(Bson::Binary(Binary { bytes: part, .. })) = chunk.get("data") {
                bytes.extend_from_slice(part);
            }
        }
        if blake3::hash(&bytes).as_bytes() == &upload.checksum {
            Ok(bytes.into())
        } else {
            Err(StoreError::Damaged {
                what: format!("upload {}", upload.id),
                reason: format!("{} of {} bytes, and not with its checksum", bytes.len(), upload.length),
            })
        }
    }

    /// Makes sure that a room gives greater numbers than its messages have.
    async fn raise_seq(&self, room: &Slug) -> Result<()> {
        if self.version.schema() < 2 {
            return Ok(());
        }
        let filter = doc! { "room": room.as_str() };
        let last = self.collection("messages").find_one(filter).sort(doc! { "seq": -1 }).await?;
        let least = last.map(|message| number(&message, "seq")).unwrap_or_default();
        let raise = doc! { "$max": { "nextSeq": least } };
        self.collection("rooms").update_one(doc! { "_id": room.as_str() }, raise).await?;
        Ok(())
    }
}

/// The chunks of a file.
pub(super) fn chunks_of(id: Uuid, bytes: &[u8]) -> Vec<Document> {
    let chunk = |(n, data): (usize, &[u8])| {
        doc! { "file": uuid_value(id), "n": i32::try_from(n).unwrap_or(i32::MAX), "data": binary(data) }
    };
    bytes.chunks(CHUNK).enumerate().map(chunk).collect()
}

/// The description of a file.
pub(super) fn file_of(upload: &Upload, by: i64, room: Option<&Slug>, at: Millis) -> Document {
    doc! {
        "_id": uuid_value(upload.id), "name": upload.name.as_str(), "contentType": &upload.content_type,
        "length": upload.length, "chunkSize": i32::try_from(CHUNK).unwrap_or(i32::MAX),
        "checksum": binary(&upload.checksum), "by": by, "room": room.map(Slug::as_str), "at": date(at),
    }
}
