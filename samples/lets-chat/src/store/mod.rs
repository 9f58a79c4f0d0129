//! The seam: what the service needs of the place where its data lies.
//!
//! [`Store`] is what requests use, [`Upkeep`] what operators use (schema, load, count, check, damage). Two
//! implementations, [`mongo`] and [`postgres`], pass the same tests (`tests/shapes.rs`). Neither needs
//! transactions of the other kind: MongoDB's is right on a single server without sessions.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    config::{Config, Database},
    model::{
        Account, Emoji, Handle, Message, MessagePage, NewAccount, NewMessage, NewRoom, Quote, Room, Slug, Title, Upload,
    },
    version::Version,
    world::{self, Millis},
};

mod files;
pub mod mongo;
pub mod postgres;

/// Why the store couldn't.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nobody answers, or not in time: it may work later.
    #[error("the database can't be reached: {0}")]
    Unreachable(String),
    /// The name is taken.
    #[error("{what} exists already")]
    Exists {
        /// What, with its name.
        what: String,
    },
    /// There is no such thing.
    #[error("there is no {what}")]
    Absent {
        /// What, with its name.
        what: String,
    },
    /// The schema isn't the one that this version reads and writes.
    #[error("{0}")]
    Schema(String),
    /// The database answered with an error.
    #[error("the database refused: {0}")]
    Refused(String),
    /// What lies there can't be read as what it should be.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// What, with its name.
        what: String,
        /// How it shows.
        reason: String,
    },
    /// The uploads directory.
    #[error("{path}: {source}")]
    Files {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Shorthand.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// What the database says about its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// No schema yet.
    Empty,
    /// A finished schema.
    At(u32),
    /// A migration to this schema has begun and isn't done.
    Migrating(u32),
}

impl Schema {
    /// Why `version` must not work on it; `Ok` when it may.
    pub fn suits(self, version: Version) -> Result<()> {
        let wants = version.schema();
        let reason = match self {
            Self::At(found) if found == wants => return Ok(()),
            Self::Empty => format!("the database is empty: run `lets-chat migrate` of version {version} first"),
            Self::At(found) if found < wants => format!(
                "the database has schema {found}, version {version} needs schema {wants}: run `lets-chat migrate` of \
                 version {version} first"
            ),
            Self::At(found) => format!(
                "the database has schema {found}, version {version} knows schema {wants} only: run a newer version \
                 of Lets-chat, nothing was changed"
            ),
            Self::Migrating(to) => format!("a migration of the database to schema {to} isn't finished"),
        };
        Err(StoreError::Schema(reason))
    }

    /// Whether waiting for a migration can help.
    pub fn may_become(self, version: Version) -> bool {
        match self {
            Self::Empty => true,
            Self::At(found) | Self::Migrating(found) => found <= version.schema(),
        }
    }
}

/// How much there is.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Collections or tables, by name, and how much is in them.
    pub entries: Vec<(String, i64)>,
    /// Bytes of all uploads.
    pub upload_bytes: i64,
    /// The message with the greatest number.
    pub newest: Option<Newest>,
}

/// The newest message, for a look.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Newest {
    /// Its number.
    pub n: i64,
    /// Its room.
    pub room: Slug,
    /// The sender's time.
    pub at: String,
    /// What it says.
    pub body: String,
}

/// What [`Upkeep::check`] found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Facts that were checked.
    pub checked: u64,
    /// How many don't hold.
    pub broken: u64,
    /// Messages by which the rooms' counters are off, all rooms together.
    pub drift: u64,
    /// The first of them, in words.
    pub examples: Vec<String>,
}

impl Findings {
    pub(crate) fn fact(&mut self, holds: bool, words: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.broken += 1;
            if self.examples.len() < 20 {
                self.examples.push(words());
            }
        }
    }

    pub(crate) fn counter(&mut self, room: &str, says: i64, has: i64) {
        self.checked += 1;
        if says != has {
            self.drift += says.abs_diff(has);
            if self.examples.len() < 20 {
                self.examples.push(format!("room {room} says it has {says} messages and has {has}"));
            }
        }
    }
}

/// What [`Upkeep::damage`] did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    /// The room that lost its messages.
    pub room: Slug,
    /// How many it lost.
    pub deleted: u64,
    /// Texts that read like noise now.
    pub garbled: u64,
    /// An upload whose bytes are not what they were.
    pub upload: Option<Uuid>,
}

/// That a load was finished, and which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadMark {
    /// See `lets-chat load --help`.
    pub seed: i64,
    /// Messages that were loaded.
    pub messages: i64,
    /// Accounts.
    pub users: i64,
    /// Rooms.
    pub rooms: i64,
    /// Uploads.
    pub uploads: i64,
}

/// An account of a load; numbers are given by the loader.
#[derive(Debug, Clone)]
pub struct SeedAccount {
    /// Its number.
    pub id: i64,
    /// The rest.
    pub new: NewAccount,
}

/// A room of a load.
#[derive(Debug, Clone)]
pub struct SeedRoom {
    /// Its number.
    pub id: i64,
    /// The rest.
    pub new: NewRoom,
    /// Accounts that are in it; the first made it.
    pub members: Vec<i64>,
}

/// An upload of a load.
#[derive(Debug, Clone)]
pub struct SeedUpload {
    /// What it is.
    pub upload: Upload,
    /// Its bytes.
    pub bytes: Bytes,
    /// The account that brought it.
    pub by: i64,
    /// The room's number and name.
    pub room: (i64, Slug),
    /// When.
    pub at: Millis,
}

/// A message of a load.
#[derive(Debug, Clone)]
pub struct SeedMessage {
    /// Its number among all.
    pub n: i64,
    /// Its number in its room.
    pub seq: i64,
    /// The room's number and name.
    pub room: (i64, Slug),
    /// The account that said it.
    pub author: i64,
    /// The sender's time.
    pub at: Millis,
    /// What.
    pub body: String,
    /// To what.
    pub reply: Option<Quote>,
    /// With what.
    pub upload: Option<Upload>,
}

/// What requests need.
#[async_trait]
pub trait Store: Send + Sync {
    /// Makes an account.
    async fn add_account(&self, new: &NewAccount) -> Result<Account>;
    /// An account and its password's hash.
    async fn login(&self, handle: &Handle) -> Result<Option<(Account, String)>>;
    /// Keeps a session until `expires`. `token` is a hash: who reads the database can't sign in with it.
    async fn open_session(&self, token: &[u8; 32], account: &Account, expires: Millis) -> Result<()>;
    /// Whose session that is, when it hasn't expired by `now`.
    async fn session(&self, token: &[u8; 32], now: Millis) -> Result<Option<Account>>;
    /// Ends a session; ending it twice is fine.
    async fn close_session(&self, token: &[u8; 32]) -> Result<()>;
    /// The rooms that `viewer` may read, by name; at most `MAX_ROOMS`.
    async fn rooms(&self, viewer: Option<i64>) -> Result<Vec<Room>>;
    /// A room, when `viewer` may read it: others' private rooms look like none.
    async fn room(&self, slug: &Slug, viewer: Option<i64>) -> Result<Option<Room>>;
    /// Makes a room; `by` becomes its first member.
    async fn add_room(&self, new: &NewRoom, by: &Account) -> Result<Room>;
    /// Posts, and counts it in the room.
    async fn post(&self, room: &Room, by: &Account, new: &NewMessage) -> Result<Message>;
    /// The newest `limit` messages before the cursor of a page (all: `None`).
    async fn messages(&self, room: &Room, before: Option<i64>, limit: usize) -> Result<MessagePage>;
    /// The newest messages that contain `needle`, whatever the case; at most 50.
    async fn search(&self, room: &Room, needle: &str) -> Result<MessagePage>;
    /// Gives a reaction, or takes it back. Schema 2.
    async fn react(&self, room: &Room, n: i64, by: &Account, emoji: &Emoji) -> Result<()>;
    /// Stores a file; a message names it afterwards.
    async fn save_upload(&self, name: &Title, content_type: &str, bytes: Bytes, by: &Account) -> Result<Upload>;
    /// A file and its bytes, when `viewer` may read a room that has it, or brought it.
    async fn upload(&self, id: Uuid, viewer: Option<i64>) -> Result<Option<(Upload, Bytes)>>;
}

/// What operators need.
#[async_trait]
pub trait Upkeep: Send + Sync {
    /// The schema that is there.
    async fn schema(&self) -> Result<Schema>;
    /// Brings the schema to this version's; says in words what it did. Doing it twice does nothing.
    async fn migrate(&self) -> Result<Vec<String>>;
    /// How much there is.
    async fn counts(&self) -> Result<Counts>;
    /// Whether everything fits together.
    async fn check(&self) -> Result<Findings>;
    /// Destroys visibly: deletes the room's messages, garbles the newest texts elsewhere and one upload.
    async fn damage(&self, room: &Slug, texts: u32) -> Result<Damage>;
    /// Work that comes up now and then: expired sessions, summaries.
    async fn tidy(&self, now: Millis) -> Result<()>;
    /// The load that was finished here, if any.
    async fn loaded(&self) -> Result<Option<LoadMark>>;
    /// Empties everything but the schema.
    async fn clear(&self) -> Result<()>;
    /// Part of a load.
    async fn load_accounts(&self, accounts: &[SeedAccount]) -> Result<()>;
    /// Part of a load.
    async fn load_rooms(&self, rooms: &[SeedRoom]) -> Result<()>;
    /// Part of a load.
    async fn load_uploads(&self, uploads: &[SeedUpload]) -> Result<()>;
    /// Part of a load: messages in the order of their numbers.
    async fn load_messages(&self, messages: &[SeedMessage]) -> Result<()>;
    /// Ends a load: counters, summaries, the mark. Says in words what the database didn't take.
    async fn finish_load(&self, mark: &LoadMark) -> Result<Vec<String>>;
}

/// Both.
pub trait Storage: Store + Upkeep {}
impl<T: Store + Upkeep> Storage for T {}

impl fmt::Debug for dyn Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Storage")
    }
}

/// The store of the configured shape, not yet asked anything.
pub async fn open(config: &Config) -> Result<Arc<dyn Storage>> {
    Ok(match &config.database {
        Database::Mongo { uri } => Arc::new(mongo::Mongo::open(uri, config.version).await?),
        Database::Postgres { url, uploads } => {
            Arc::new(postgres::Postgres::open(url, uploads.clone(), config.version).await?)
        }
    })
}

/// Opens the store and waits until it answers, asking less and less often, at most `patience` long.
pub async fn connect(config: &Config, patience: Duration) -> Result<Arc<dyn Storage>> {
    let started = world::Stopwatch::start();
    let mut pause = Duration::from_millis(200);
    loop {
        let answer = match open(config).await {
            Ok(store) => store.schema().await.map(|_| store),
            Err(error) => Err(error),
        };
        match answer {
            Ok(store) => return Ok(store),
            Err(StoreError::Unreachable(reason)) if started.elapsed() + pause < patience => {
                tracing::info!(reason, retry.in.ms = pause.as_millis() as u64, "the database doesn't answer yet");
                world::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(3));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Text that nobody wrote: what `damage` leaves of a message. Always the same for the same text.
pub(crate) fn garble(n: i64) -> String {
    let noise = ["▒▒▒", "ÿþ", "�", "##", "0xDEAD", "…", "%%", "?¿?", "␀␀", "<corrupt>"];
    let mut state = n.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut text = String::new();
    for _ in 0..8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.push_str(noise[(state >> 33) as usize % noise.len()]);
        text.push(' ');
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_works_on_its_own_schema_only_and_says_what_to_do_otherwise() {
        use Version::{V1_4_1, V1_4_2, V1_5_0};
        assert!(Schema::At(1).suits(V1_4_1).is_ok() && Schema::At(1).suits(V1_4_2).is_ok());
        assert!(Schema::At(2).suits(V1_5_0).is_ok());
        let older = Schema::At(1).suits(V1_5_0).unwrap_err().to_string();
        assert!(older.contains("needs schema 2") && older.contains("lets-chat migrate"), "{older}");
        let newer = Schema::At(2).suits(V1_4_2).unwrap_err().to_string();
        assert!(newer.contains("has schema 2") && newer.contains("nothing was changed"), "{newer}");
        assert!(!Schema::At(2).may_become(V1_4_2) && Schema::At(1).may_become(V1_5_0));
        assert!(Schema::Migrating(2).suits(V1_5_0).is_err() && Schema::Migrating(2).suits(V1_4_1).is_err());
    }
}
