//! What operators need, on PostgreSQL.

use async_trait::async_trait;
use sqlx::Row as _;

use super::{Postgres, parse_uuid, upload_of};
use crate::{
    model::{Body, Slug},
    store::{
        Counts, Damage, Findings, LoadMark, Newest, Result, Schema, SeedAccount, SeedMessage, SeedRoom, SeedUpload,
        StoreError, Upkeep, garble,
    },
    world::{Millis, rfc3339},
};

#[async_trait]
impl Upkeep for Postgres {
    async fn schema(&self) -> Result<Schema> {
        self.found_schema().await
    }

    async fn migrate(&self) -> Result<Vec<String>> {
        self.bring_to(self.version.schema()).await
    }

    async fn counts(&self) -> Result<Counts> {
        let mut work = self.pool.begin().await?;
        let mut entries = Vec::new();
        let mut tables = vec![
            ("accounts", "select count(*) from accounts"),
            ("rooms", "select count(*) from rooms"),
            ("members", "select count(*) from members"),
            ("messages", "select count(*) from messages"),
            ("uploads", "select count(*) from uploads"),
            ("sessions", "select count(*) from sessions"),
        ];
        if self.version.reactions() {
            tables.push(("reactions", "select count(*) from reactions"));
        }
        for (name, query) in tables {
            entries.push((name.to_owned(), sqlx::query_scalar(query).fetch_one(&mut *work).await?));
        }
        let upload_bytes = sqlx::query_scalar("select coalesce(sum(length), 0)::bigint from uploads");
        let upload_bytes = upload_bytes.fetch_one(&mut *work).await?;
        let newest = sqlx::query(
            "select n, room, (extract(epoch from at) * 1000)::bigint as at, beginning from message_overview
             order by n desc limit 1",
        )
        .fetch_optional(&mut *work)
        .await?;
        let newest = match newest {
            Some(row) => Some(Newest {
                n: row.try_get("n")?,
                room: Slug::stored(row.try_get::<String, _>("room")?),
                at: rfc3339(row.try_get("at")?),
                body: Body::stored(row.try_get::<String, _>("beginning")?).excerpt(),
            }),
            None => None,
        };
        Ok(Counts { entries, upload_bytes, newest })
    }

    async fn check(&self) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut work = self.pool.begin().await?;
        sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *work).await?;
        // What the database promises is checked as well: a copy may have been loaded without its constraints.
        let facts = [
            (
                "messages whose author is gone",
                "select count(*), count(*) filter (where a.id is null)
              from messages m left join accounts a on a.id = m.author_id",
            ),
            (
                "messages whose room is gone",
                "select count(*), count(*) filter (where r.id is null)
              from messages m left join rooms r on r.id = m.room_id",
            ),
            (
                "messages whose upload is gone",
                "select count(*), count(*) filter (where u.id is null)
              from messages m left join uploads u on u.id = m.upload_id where m.upload_id is not null",
            ),
            (
                "messages that answer to a message that is gone",
                "select count(*), count(*) filter (where q.n is null)
              from messages m left join messages q on q.n = m.reply_to where m.reply_to is not null",
            ),
            ("message numbers that are given twice", "select count(*), count(*) - count(distinct n) from messages"),
            (
                "messages beyond the sequence",
                "select 1::bigint, (coalesce(max(n), 0) > (select last_value from message_number))::int::bigint from messages",
            ),
            ("names that differ in case only", "select count(*), count(*) - count(distinct lower(name)) from accounts"),
        ];
        let numbered = [
            (
                "numbers given twice in a room",
                "select count(*), count(*) - count(distinct (room_id, seq)) from messages",
            ),
            (
                "rooms whose numbering is behind",
                "select count(*), count(*) filter
              (where next_seq < (select coalesce(max(seq), 0) from messages m where m.room_id = r.id)) from rooms r",
            ),
        ];
        let numbered = if self.version.schema() >= 2 { numbered.as_slice() } else { &[] };
        for (what, query) in facts.iter().chain(numbered) {
            let row = sqlx::query(*query).fetch_one(&mut *work).await?;
            let (all, wrong): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            findings.checked += all.unsigned_abs();
            findings.broken += wrong.unsigned_abs();
            if wrong != 0 {
                findings.examples.push(format!("{wrong} {what}"));
            }
        }
        let rooms = sqlx::query(
            "select r.slug, r.messages, (select count(*) from messages m where m.room_id = r.id) as has from rooms r",
        );
        for row in rooms.fetch_all(&mut *work).await? {
            findings.counter(row.try_get("slug")?, row.try_get("messages")?, row.try_get("has")?);
        }
        let uploads = sqlx::query(
            "select id::text as upload_id, name as upload_name, content_type as upload_type, length as upload_length,
                    checksum as upload_checksum from uploads",
        );
        for row in uploads.fetch_all(&mut *work).await? {
            let whole = self.files.read(&upload_of(&row)?).await;
            findings.fact(whole.is_ok(), || whole.err().map(|error| error.to_string()).unwrap_or_default());
        }
        Ok(findings)
    }

    async fn damage(&self, room: &Slug, texts: u32) -> Result<Damage> {
        let mut work = self.pool.begin().await?;
        let id: Option<i64> = sqlx::query_scalar("select id from rooms where slug = $1")
            .bind(room.as_str())
            .fetch_optional(&mut *work)
            .await?;
        let id = id.ok_or_else(|| StoreError::Absent { what: format!("room {room}") })?;
        let deleted =
            sqlx::query("delete from messages where room_id = $1").bind(id).execute(&mut *work).await?.rows_affected();
        let newest: Vec<i64> = sqlx::query_scalar("select n from messages order by n desc limit $1")
            .bind(i64::from(texts))
            .fetch_all(&mut *work)
            .await?;
        for n in &newest {
            sqlx::query("update messages set body = $2 where n = $1")
                .bind(n)
                .bind(garble(*n))
                .execute(&mut *work)
                .await?;
        }
        let upload: Option<String> =
            sqlx::query_scalar("select id::text from uploads order by created_at desc, id limit 1")
                .fetch_optional(&mut *work)
                .await?;
        let upload = upload.as_deref().map(parse_uuid);
        if let Some(id) = upload {
            self.files.write(id, garble(1).as_bytes(), true).await?;
        }
        work.commit().await?;
        Ok(Damage { room: room.clone(), deleted, garbled: newest.len() as u64, upload })
    }

    async fn tidy(&self, now: Millis) -> Result<()> {
        sqlx::query("delete from sessions where expires_at <= to_timestamp($1::double precision / 1000)")
            .bind(now)
            .execute(&self.pool)
            .await?;
        sqlx::query("refresh materialized view concurrently account_activity").execute(&self.pool).await?;
        Ok(())
    }

    async fn loaded(&self) -> Result<Option<LoadMark>> {
        let found = sqlx::query("select * from load_marks limit 1").fetch_optional(&self.pool).await?;
        let Some(row) = found else { return Ok(None) };
        Ok(Some(LoadMark {
            seed: row.try_get("seed")?,
            messages: row.try_get("messages")?,
            users: row.try_get("users")?,
            rooms: row.try_get("rooms")?,
            uploads: row.try_get("uploads")?,
        }))
    }

    async fn clear(&self) -> Result<()> {
        // `cascade` takes the reactions of schema 2 along.
        sqlx::query(
            "truncate accounts, rooms, members, uploads, messages, sessions, load_marks restart identity cascade",
        )
        .execute(&self.pool)
        .await?;
        self.files.clear().await
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
        self.end_load(mark).await?;
        Ok(Vec::new())
    }
}
