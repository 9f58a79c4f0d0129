//! What requests need, on PostgreSQL.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row as _, postgres::PgRow};
use uuid::Uuid;

use super::{Postgres, account_of, is_duplicate, message_of, room_of, upload_of};
use crate::{
    model::{
        Account, Emoji, Handle, MAX_ROOMS, Message, MessagePage, NewAccount, NewMessage, NewRoom, Reaction, Room, Slug,
        Title, Upload,
    },
    store::{Result, Store, StoreError},
    version::Order,
    world::{self, Millis},
};

/// Times go in and out as milliseconds.
macro_rules! rooms_query {
    ($rest:literal) => {
        concat!(
            "select r.id, r.slug, r.title, r.topic, r.kind::text as kind, r.messages,
                    coalesce((extract(epoch from r.last_at) * 1000)::bigint, 0) as last_at
             from rooms r where (r.kind = 'public' or exists
                (select from members m where m.room_id = r.id and m.account_id = $1)) ",
            $rest
        )
    };
}

macro_rules! messages_query {
    ($seq:literal, $rest:literal) => {
        concat!(
            "select m.n, ",
            $seq,
            " as seq, m.author_id, a.name::text as author_name, a.display as author_display,
                    (extract(epoch from m.at) * 1000)::bigint as at, m.body, m.reply_to, q.body as reply_body,
                    qa.name::text as reply_author, u.id::text as upload_id, u.name as upload_name,
                    u.content_type as upload_type, u.length as upload_length, u.checksum as upload_checksum
             from messages m join accounts a on a.id = m.author_id
             left join messages q on q.n = m.reply_to left join accounts qa on qa.id = q.author_id
             left join uploads u on u.id = m.upload_id ",
            $rest
        )
    };
}

/// The text of a query for the schema that there is.
macro_rules! for_schema {
    ($self:ident, $rest:literal) => {
        if $self.version.schema() >= 2 {
            messages_query!("m.seq", $rest)
        } else {
            messages_query!("null::bigint", $rest)
        }
    };
}

impl Postgres {
    async fn shown(&self, rows: &[PgRow]) -> Result<Vec<Message>> {
        let mut messages = rows.iter().map(message_of).collect::<Result<Vec<_>>>()?;
        if self.version.reactions() {
            let numbers: Vec<i64> = messages.iter().map(|message| message.n).collect();
            let rows = sqlx::query(
                "select n, emoji, count(*) as many from reactions where n = any($1) group by n, emoji order by n, emoji",
            )
            .bind(numbers)
            .fetch_all(&self.pool)
            .await?;
            let mut given: HashMap<i64, Vec<Reaction>> = HashMap::new();
            for row in &rows {
                let emoji = Emoji::stored(row.try_get::<String, _>("emoji")?);
                given.entry(row.try_get("n")?).or_default().push(Reaction { emoji, count: row.try_get("many")? });
            }
            for message in &mut messages {
                message.reactions = given.remove(&message.n).unwrap_or_default();
            }
        }
        Ok(messages)
    }
}

#[async_trait]
impl Store for Postgres {
    async fn add_account(&self, new: &NewAccount) -> Result<Account> {
        let made = sqlx::query(
            "insert into accounts (name, display, password_hash, created_at)
             values ($1, $2, $3, to_timestamp($4::double precision / 1000)) returning id, name::text as name, display",
        )
        .bind(new.handle.as_str())
        .bind(new.display.as_str())
        .bind(&new.password_hash)
        .bind(new.at)
        .fetch_one(&self.pool)
        .await;
        match made {
            Ok(row) => account_of(&row),
            Err(error) if is_duplicate(&error) => Err(StoreError::Exists { what: format!("the name {}", new.handle) }),
            Err(error) => Err(error.into()),
        }
    }

    async fn login(&self, handle: &Handle) -> Result<Option<(Account, String)>> {
        let found =
            sqlx::query("select id, name::text as name, display, password_hash from accounts where lower(name) = $1")
                .bind(handle.as_str())
                .fetch_optional(&self.pool)
                .await?;
        match found {
            Some(row) => Ok(Some((account_of(&row)?, row.try_get("password_hash")?))),
            None => Ok(None),
        }
    }

    async fn open_session(&self, token: &[u8; 32], account: &Account, expires: Millis) -> Result<()> {
        sqlx::query(
            "insert into sessions (token_hash, account_id, expires_at)
             values ($1, $2, to_timestamp($3::double precision / 1000))",
        )
        .bind(token.as_slice())
        .bind(account.id)
        .bind(expires)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn session(&self, token: &[u8; 32], now: Millis) -> Result<Option<Account>> {
        let found = sqlx::query(
            "select a.id, a.name::text as name, a.display from sessions s join accounts a on a.id = s.account_id
             where s.token_hash = $1 and s.expires_at > to_timestamp($2::double precision / 1000)",
        )
        .bind(token.as_slice())
        .bind(now)
        .fetch_optional(&self.pool)
        .await?;
        found.as_ref().map(account_of).transpose()
    }

    async fn close_session(&self, token: &[u8; 32]) -> Result<()> {
        sqlx::query("delete from sessions where token_hash = $1").bind(token.as_slice()).execute(&self.pool).await?;
        Ok(())
    }

    async fn rooms(&self, viewer: Option<i64>) -> Result<Vec<Room>> {
        let rows = sqlx::query(rooms_query!("order by r.slug limit $2"))
            .bind(viewer)
            .bind(MAX_ROOMS)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(room_of).collect()
    }

    async fn room(&self, slug: &Slug, viewer: Option<i64>) -> Result<Option<Room>> {
        let row = sqlx::query(rooms_query!("and r.slug = $2"))
            .bind(viewer)
            .bind(slug.as_str())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(room_of).transpose()
    }

    async fn add_room(&self, new: &NewRoom, by: &Account) -> Result<Room> {
        let made = sqlx::query(
            "with made as (
                insert into rooms (slug, title, topic, kind, created_by, created_at)
                values ($1, $2, $3, $4::room_kind, $5, to_timestamp($6::double precision / 1000)) returning *),
             first_member as (insert into members (room_id, account_id) select id, $5 from made)
             select id, slug, title, topic, kind::text as kind, messages, 0::bigint as last_at from made",
        )
        .bind(new.slug.as_str())
        .bind(new.title.as_str())
        .bind(&new.topic)
        .bind(new.kind.as_str())
        .bind(by.id)
        .bind(new.at)
        .fetch_one(&self.pool)
        .await;
        match made {
            Ok(row) => room_of(&row),
            Err(error) if is_duplicate(&error) => Err(StoreError::Exists { what: format!("the room {}", new.slug) }),
            Err(error) => Err(error.into()),
        }
    }

    async fn post(&self, room: &Room, by: &Account, new: &NewMessage) -> Result<Message> {
        let mut work = self.pool.begin().await?;
        if let Some(n) = new.reply_to {
            let there: Option<i64> = sqlx::query_scalar("select n from messages where n = $1 and room_id = $2")
                .bind(n)
                .bind(room.id)
                .fetch_optional(&mut *work)
                .await?;
            there.ok_or_else(|| StoreError::Absent { what: format!("message {n} in room {}", room.slug) })?;
        }
        if let Some(id) = new.upload {
            let taken = sqlx::query(
                "update uploads set room_id = $1 where id = $2::uuid and by_account = $3 and room_id is null",
            )
            .bind(room.id)
            .bind(id.to_string())
            .bind(by.id)
            .execute(&mut *work)
            .await?;
            if taken.rows_affected() != 1 {
                return Err(StoreError::Absent { what: format!("unused upload {id} of {}", by.handle) });
            }
        }
        let insert = if self.version.schema() >= 2 {
            "with counted as (update rooms set next_seq = next_seq + 1 where id = $1 returning next_seq)
             insert into messages (room_id, author_id, at, body, reply_to, upload_id, seq)
             select $1, $2, to_timestamp($3::double precision / 1000), $4, $5, $6::uuid, next_seq from counted
             returning n"
        } else {
            "insert into messages (room_id, author_id, at, body, reply_to, upload_id)
             values ($1, $2, to_timestamp($3::double precision / 1000), $4, $5, $6::uuid) returning n"
        };
        let n: i64 = sqlx::query_scalar(insert)
            .bind(room.id)
            .bind(by.id)
            .bind(new.at)
            .bind(new.body.as_str())
            .bind(new.reply_to)
            .bind(new.upload.map(|id| id.to_string()))
            .fetch_one(&mut *work)
            .await?;
        let row = sqlx::query(for_schema!(self, "where m.n = $1")).bind(n).fetch_one(&mut *work).await?;
        let message = message_of(&row)?;
        work.commit().await?;
        Ok(message)
    }

    async fn messages(&self, room: &Room, before: Option<i64>, limit: usize) -> Result<MessagePage> {
        let query = match self.version.order() {
            Order::Time => for_schema!(
                self,
                "where m.room_id = $1 and ($2::bigint is null or m.at < to_timestamp($2::double precision / 1000))
                 order by m.at desc limit $3"
            ),
            Order::Number => for_schema!(
                self,
                "where m.room_id = $1 and ($2::bigint is null or m.n < $2) order by m.n desc limit $3"
            ),
        };
        let wanted = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = sqlx::query(query).bind(room.id).bind(before).bind(wanted).fetch_all(&self.pool).await?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        rows.reverse();
        let messages = self.shown(&rows).await?;
        let older = messages.first().filter(|_| more).map(|first| match self.version.order() {
            Order::Time => first.at,
            Order::Number => first.n,
        });
        Ok(MessagePage { messages, older })
    }

    async fn search(&self, room: &Room, needle: &str) -> Result<MessagePage> {
        let pattern = needle.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
        let query = for_schema!(self, "where m.room_id = $1 and m.body ilike $2 order by m.n desc limit 50");
        let mut rows = sqlx::query(query).bind(room.id).bind(format!("%{pattern}%")).fetch_all(&self.pool).await?;
        rows.reverse();
        Ok(MessagePage { messages: self.shown(&rows).await?, older: None })
    }

    async fn react(&self, room: &Room, n: i64, by: &Account, emoji: &Emoji) -> Result<()> {
        let mut work = self.pool.begin().await?;
        let there: Option<i64> =
            sqlx::query_scalar("select n from messages where n = $1 and room_id = $2 for key share")
                .bind(n)
                .bind(room.id)
                .fetch_optional(&mut *work)
                .await?;
        there.ok_or_else(|| StoreError::Absent { what: format!("message {n} in room {}", room.slug) })?;
        let given =
            sqlx::query("insert into reactions (n, account_id, emoji) values ($1, $2, $3) on conflict do nothing")
                .bind(n)
                .bind(by.id)
                .bind(emoji.as_str())
                .execute(&mut *work)
                .await?;
        if given.rows_affected() == 0 {
            sqlx::query("delete from reactions where n = $1 and account_id = $2 and emoji = $3")
                .bind(n)
                .bind(by.id)
                .bind(emoji.as_str())
                .execute(&mut *work)
                .await?;
        }
        work.commit().await?;
        Ok(())
    }

    async fn save_upload(&self, name: &Title, content_type: &str, bytes: Bytes, by: &Account) -> Result<Upload> {
        let upload = Upload {
            id: world::uuid(),
            name: name.clone(),
            content_type: content_type.to_owned(),
            length: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
            checksum: *blake3::hash(&bytes).as_bytes(),
        };
        // The file first: a row always has one.
        self.files.write(upload.id, &bytes, true).await?;
        sqlx::query(
            "insert into uploads (id, name, content_type, length, checksum, by_account)
             values ($1::uuid, $2, $3, $4, $5, $6)",
        )
        .bind(upload.id.to_string())
        .bind(upload.name.as_str())
        .bind(&upload.content_type)
        .bind(upload.length)
        .bind(upload.checksum.as_slice())
        .bind(by.id)
        .execute(&self.pool)
        .await?;
        Ok(upload)
    }

    async fn upload(&self, id: Uuid, viewer: Option<i64>) -> Result<Option<(Upload, Bytes)>> {
        let row = sqlx::query(
            "select u.id::text as upload_id, u.name as upload_name, u.content_type as upload_type,
                    u.length as upload_length, u.checksum as upload_checksum
             from uploads u left join rooms r on r.id = u.room_id
             where u.id = $1::uuid and (r.kind = 'public' or (r.id is null and u.by_account = $2) or exists
                (select from members m where m.room_id = r.id and m.account_id = $2))",
        )
        .bind(id.to_string())
        .bind(viewer)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let upload = upload_of(&row)?;
        let bytes = self.files.read(&upload).await?;
        Ok(Some((upload, bytes)))
    }
}
