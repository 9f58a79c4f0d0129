//! Loading much at once, by `COPY`.

use std::fmt::Write as _;

use super::Postgres;
use crate::{
    store::{LoadMark, Result, SeedAccount, SeedMessage, SeedRoom, SeedUpload},
    world::{Millis, rfc3339},
};

/// A line of `COPY`'s text form.
#[derive(Default)]
struct Lines {
    text: String,
    filled: bool,
}

impl Lines {
    fn separate(&mut self) {
        if self.filled {
            self.text.push('\t');
        }
        self.filled = true;
    }

    fn text(&mut self, value: &str) -> &mut Self {
        self.separate();
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '\t' => self.text.push_str("\\t"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                other => self.text.push(other),
            }
        }
        self
    }

    fn number(&mut self, value: i64) -> &mut Self {
        self.separate();
        // Writing to a String can't fail.
        let _ = write!(self.text, "{value}");
        self
    }

    fn null(&mut self) -> &mut Self {
        self.separate();
        self.text.push_str("\\N");
        self
    }

    fn time(&mut self, at: Millis) -> &mut Self {
        self.text(&rfc3339(at))
    }

    fn end(&mut self) {
        self.text.push('\n');
        self.filled = false;
    }
}

impl Postgres {
    async fn copy(&self, statement: &'static str, lines: Lines) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        let mut copy = connection.copy_in_raw(statement).await?;
        copy.send(lines.text.as_bytes()).await?;
        copy.finish().await?;
        Ok(())
    }

    pub(super) async fn put_accounts(&self, accounts: &[SeedAccount]) -> Result<()> {
        let mut lines = Lines::default();
        for account in accounts {
            let theme = if account.id % 3 == 0 { r#"{"theme": "dark"}"# } else { r#"{"theme": "auto"}"# };
            lines.number(account.id).text(account.new.handle.as_str()).text(account.new.display.as_str());
            lines.text(&account.new.password_hash).time(account.new.at).text(theme).end();
        }
        self.copy("copy accounts (id, name, display, password_hash, created_at, settings) from stdin", lines).await
    }

    pub(super) async fn put_rooms(&self, rooms: &[SeedRoom]) -> Result<()> {
        let (mut lines, mut members) = (Lines::default(), Lines::default());
        for room in rooms {
            let first = room.members.first().copied();
            lines.number(room.id).text(room.new.slug.as_str()).text(room.new.title.as_str()).text(&room.new.topic);
            lines.text(room.new.kind.as_str());
            match first {
                Some(id) => lines.number(id),
                None => lines.null(),
            };
            lines.time(room.new.at).end();
            for member in &room.members {
                members.number(room.id).number(*member).time(room.new.at).end();
            }
        }
        self.copy("copy rooms (id, slug, title, topic, kind, created_by, created_at) from stdin", lines).await?;
        self.copy("copy members (room_id, account_id, joined_at) from stdin", members).await
    }

    pub(super) async fn put_uploads(&self, uploads: &[SeedUpload]) -> Result<()> {
        let mut lines = Lines::default();
        for seed in uploads {
            self.files.write(seed.upload.id, &seed.bytes, false).await?;
            lines.text(&seed.upload.id.to_string()).text(seed.upload.name.as_str()).text(&seed.upload.content_type);
            lines.number(seed.upload.length).text(&format!("\\x{}", hex::encode(seed.upload.checksum)));
            lines.number(seed.by).number(seed.room.0).time(seed.at).end();
        }
        let into =
            "copy uploads (id, name, content_type, length, checksum, by_account, room_id, created_at) from stdin";
        self.copy(into, lines).await
    }

    pub(super) async fn put_messages(&self, messages: &[SeedMessage]) -> Result<()> {
        let numbered = self.version.schema() >= 2;
        let mut lines = Lines::default();
        for seed in messages {
            lines.number(seed.n).number(seed.room.0).number(seed.author).time(seed.at).text(&seed.body);
            match &seed.reply {
                Some(reply) => lines.number(reply.n),
                None => lines.null(),
            };
            match &seed.upload {
                Some(upload) => lines.text(&upload.id.to_string()),
                None => lines.null(),
            };
            if numbered {
                lines.number(seed.seq);
            }
            lines.end();
        }
        let into = if numbered {
            "copy messages (n, room_id, author_id, at, body, reply_to, upload_id, seq) from stdin"
        } else {
            "copy messages (n, room_id, author_id, at, body, reply_to, upload_id) from stdin"
        };
        self.copy(into, lines).await
    }

    pub(super) async fn end_load(&self, mark: &LoadMark) -> Result<()> {
        let mut work = self.pool.begin().await?;
        // Ids were given by the loader: the sequences go on behind them.
        sqlx::raw_sql(
            "select setval('message_number', greatest((select max(n) from messages), 1));
             select setval(pg_get_serial_sequence('accounts', 'id'), greatest((select max(id) from accounts), 1));
             select setval(pg_get_serial_sequence('rooms', 'id'), greatest((select max(id) from rooms), 1));",
        )
        .execute(&mut *work)
        .await?;
        if self.version.schema() >= 2 {
            sqlx::query("update rooms set next_seq = messages").execute(&mut *work).await?;
        }
        sqlx::query("insert into load_marks (seed, messages, users, rooms, uploads) values ($1, $2, $3, $4, $5)")
            .bind(mark.seed)
            .bind(mark.messages)
            .bind(mark.users)
            .bind(mark.rooms)
            .bind(mark.uploads)
            .execute(&mut *work)
            .await?;
        sqlx::query("refresh materialized view account_activity").execute(&mut *work).await?;
        work.commit().await?;
        sqlx::query("analyze").execute(&self.pool).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_copy_is_escaped_so_that_no_message_can_end_its_line() {
        let mut lines = Lines::default();
        lines.number(1).text("a\tb\\N\nc\\.").null().end();
        assert_eq!(lines.text, "1\ta\\tb\\\\N\\nc\\\\.\t\\N\n");
    }
}
