//! Accounts, rooms and messages in PostgreSQL (`sql/schema-1.sql`, `sql/schema-2.sql`), uploads in a directory.

use std::{path::PathBuf, str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _, PgPool, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use uuid::Uuid;

use super::{Result, Schema, StoreError, files::Files};
use crate::{
    model::{Account, Body, Handle, Message, Quote, Room, RoomKind, Slug, Title, Upload},
    version::Version,
};

mod bulk;
mod service;
mod upkeep;

/// See the module.
pub struct Postgres {
    pool: PgPool,
    files: Files,
    version: Version,
}

/// The key of the advisory lock under which schemas change: two migrations at once take turns.
const MIGRATION_LOCK: i64 = 0x1e75_c4a7;

impl Postgres {
    /// Reads the address; connects when first used.
    pub async fn open(url: &str, uploads: PathBuf, version: Version) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Refused("DATABASE_URL is no postgres://USER:PASSWORD@HOST:PORT/NAME".into()))?
            .application_name("lets-chat")
            .disable_statement_logging();
        let pool =
            PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(4)).connect_lazy_with(options);
        Ok(Self { pool, files: Files::new(uploads), version })
    }

    async fn found_schema(&self) -> Result<Schema> {
        let there: bool =
            sqlx::query_scalar("select to_regclass('schema_version') is not null").fetch_one(&self.pool).await?;
        if !there {
            return Ok(Schema::Empty);
        }
        let version: Option<i32> =
            sqlx::query_scalar("select max(version) from schema_version").fetch_one(&self.pool).await?;
        self.files.probe().await?;
        Ok(version.map_or(Schema::Empty, |version| Schema::At(u32::try_from(version).unwrap_or(u32::MAX))))
    }

    /// One transaction per step: a migration that is interrupted hasn't begun.
    async fn bring_to(&self, wanted: u32) -> Result<Vec<String>> {
        let mut done = Vec::new();
        loop {
            let mut step = self.pool.begin().await?;
            sqlx::query("select pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *step).await?;
            let (to, script, words) = match self.found_schema().await? {
                Schema::Empty => (1, include_str!("../../../sql/schema-1.sql"), "schema 1: tables, the room lobby"),
                Schema::At(1) if wanted >= 2 => (
                    2,
                    include_str!("../../../sql/schema-2.sql"),
                    "schema 2: messages numbered within their rooms, reactions",
                ),
                found => {
                    found.suits(self.version)?;
                    return Ok(done);
                }
            };
            sqlx::raw_sql(script).execute(&mut *step).await?;
            sqlx::query("insert into schema_version (version, applied_by) values ($1, $2)")
                .bind(to)
                .bind(self.version.to_string())
                .execute(&mut *step)
                .await?;
            step.commit().await?;
            done.push(words.to_owned());
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => {
                Self::Unreachable(error.to_string())
            }
            // 57P03: the server is starting; 57P01 and 57P02: it is being stopped; 53300: too many clients.
            sqlx::Error::Database(answer)
                if matches!(answer.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "53300")) =>
            {
                Self::Unreachable(error.to_string())
            }
            _ => Self::Refused(error.to_string()),
        }
    }
}

fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

fn account_of(row: &PgRow) -> Result<Account> {
    Ok(Account {
        id: row.try_get("id")?,
        handle: Handle::stored(row.try_get::<String, _>("name")?),
        display: Title::stored(row.try_get::<String, _>("display")?),
    })
}

fn room_of(row: &PgRow) -> Result<Room> {
    Ok(Room {
        id: row.try_get("id")?,
        slug: Slug::stored(row.try_get::<String, _>("slug")?),
        title: Title::stored(row.try_get::<String, _>("title")?),
        topic: row.try_get("topic")?,
        kind: RoomKind::stored(row.try_get("kind")?),
        messages: row.try_get("messages")?,
        last_at: row.try_get("last_at")?,
    })
}

fn upload_of(row: &PgRow) -> Result<Upload> {
    let checksum: Vec<u8> = row.try_get("upload_checksum")?;
    Ok(Upload {
        id: parse_uuid(row.try_get("upload_id")?),
        name: Title::stored(row.try_get::<String, _>("upload_name")?),
        content_type: row.try_get("upload_type")?,
        length: row.try_get("upload_length")?,
        checksum: checksum.as_slice().try_into().unwrap_or([0; 32]),
    })
}

/// Ids come as text, which every build of the driver can read.
fn parse_uuid(text: &str) -> Uuid {
    text.parse().unwrap_or_default()
}

fn message_of(row: &PgRow) -> Result<Message> {
    let upload: Option<&str> = row.try_get("upload_id")?;
    let reply: Option<i64> = row.try_get("reply_to")?;
    Ok(Message {
        n: row.try_get("n")?,
        seq: row.try_get("seq")?,
        author: Some(Account {
            id: row.try_get("author_id")?,
            handle: Handle::stored(row.try_get::<String, _>("author_name")?),
            display: Title::stored(row.try_get::<String, _>("author_display")?),
        }),
        at: row.try_get("at")?,
        body: Body::stored(row.try_get::<String, _>("body")?),
        reply: match reply {
            Some(n) => Some(Quote {
                n,
                author: Handle::stored(row.try_get::<String, _>("reply_author")?),
                excerpt: Body::stored(row.try_get::<String, _>("reply_body")?).excerpt(),
            }),
            None => None,
        },
        upload: match upload {
            Some(_) => Some(upload_of(row)?),
            None => None,
        },
        reactions: Vec::new(),
    })
}
