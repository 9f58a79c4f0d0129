//! Rows into a database, each read back and hashed at the target.
//!
//! A table is loaded by one connection, in order. A big one is loaded in parts, each a transaction of its own, so that
//! another connection reads back what stands while the next part is on its way. Which rows a part brought isn't told by
//! where they lie alone, since later ones may fill what room is left in earlier blocks: a read in between takes the rows
//! of the blocks up to the part's end that were written up to its transaction, and one at the end takes all others in
//! the same blocks. So each row that the table has at the end is hashed once, wherever it came from.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo};
use ocopea_repository::{DataReader, ItemHasher, StreamEntry};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use super::{
    catalog::{Blocks, Table, Written, encoded},
    connect::{ENDLESS, STALL, Session, patient},
    facts::Database,
    load::Context,
    rows::{self, Sent, locked},
};

/// Bytes that are loaded by one transaction, while those before them are read back.
const PART: u64 = 32 * 1024 * 1024;
/// At most so many parts of one table, about.
const MOST_PARTS: u64 = 1024;

/// What sessions do next.
enum Next {
    Load(usize),
    ReadBack(usize, Option<Blocks>),
    Wait,
    Nothing,
}

/// A table on its way.
struct Job {
    stream: StreamEntry,
    table: Table,
    name: String,
    found: Mutex<Found>,
}

/// What was read back of a table, and what is still to be.
struct Found {
    sum: ItemHasher,
    bytes: u64,
    /// The load itself, and reads.
    open: u64,
}

/// What is to be done.
struct Queue {
    loads: VecDeque<usize>,
    reads: VecDeque<(usize, Option<Blocks>)>,
    loading: usize,
}

struct Work {
    jobs: Vec<Job>,
    queue: Mutex<Queue>,
    changed: Notify,
    reader: DataReader,
    with: String,
    tally: mpsc::UnboundedSender<(u64, u64)>,
}

/// Loads all tables, and reads each one back: rows that a trigger, a rule or anything else kept out are found here.
/// The sessions come back.
pub(super) async fn tables(
    context: &Context<'_>,
    database: &Database,
    sessions: Vec<Session>,
    there: Vec<Table>,
    streams: &[StreamEntry],
) -> Result<(Vec<Session>, Vec<StreamInfo>), TaskFailure> {
    let with = if context.raw { encoded(&database.encoding) } else { String::new() };
    let mut there: BTreeMap<String, Table> =
        there.into_iter().map(|table| (table.stream(&database.name), table)).collect();
    let mut jobs: Vec<Job> = Vec::new();
    for stream in streams.iter().filter(|stream| stream.attributes.get("kind").is_some_and(|kind| kind == "table")) {
        let name = String::from_utf8_lossy(&stream.name).into_owned();
        let Some(table) = there.remove(&name) else {
            return Err(context.admin.failure("data.missing", format!("the restored schema has no table {name}")));
        };
        let found = Mutex::new(Found { sum: context.reader.item_hasher(), bytes: 0, open: 1 });
        jobs.push(Job { stream: stream.clone(), table, name, found });
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.stream.bytes));
    let (tally, mut counted) = mpsc::unbounded_channel();
    let queue = Queue { loads: (0..jobs.len()).collect(), reads: VecDeque::new(), loading: 0 };
    let work = Arc::new(Work {
        jobs,
        queue: Mutex::new(queue),
        changed: Notify::new(),
        reader: context.reader.clone(),
        with,
        tally,
    });
    let loads = rows::beside(sessions, "postgresql.load", |session| {
        let work = work.clone();
        async move { work.run(session).await }
    });
    let counting = async {
        while let Some((bytes, items)) = counted.recv().await {
            (context.count)(bytes, items);
        }
        std::future::pending().await
    };
    let sessions = tokio::select! {
        biased;
        loaded = loads => loaded?,
        () = counting => return Err(TaskFailure::cancelled(context.admin.what())),
    };
    Ok((sessions, work.jobs.iter().map(Job::info).collect()))
}

impl Job {
    fn info(&self) -> StreamInfo {
        let found = locked(&self.found);
        StreamInfo {
            name: self.name.clone(),
            unit: "rows".to_owned(),
            items: found.sum.items(),
            bytes: found.bytes,
            content: hex::encode(found.sum.sum()),
        }
    }

    /// Takes note of something that is done. With the last of it, what was found must be what was saved.
    fn done(&self, session: &Session) -> Result<(), TaskFailure> {
        let (stream, name) = (&self.stream, &self.name);
        let mut found = locked(&self.found);
        found.open -= 1;
        if found.open > 0 {
            return Ok(());
        }
        let items = found.sum.items();
        if items != stream.items {
            let cause = format!("the target holds {items} of {} rows of {name}", stream.items);
            return Err(session.server.failure("data.count", cause).next(
                "something at the target changes rows while they are loaded (a trigger, a rule, another session)",
            ));
        }
        if found.sum.sum() != stream.item_hash {
            let cause = format!("the rows of {name} at the target are not those that were saved");
            return Err(session.server.failure("data.content", cause));
        }
        Ok(())
    }
}

impl Work {
    /// Loads and reads back until nothing is left and nobody can bring more.
    async fn run(&self, mut session: Session) -> Result<Session, TaskFailure> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            match self.next() {
                Next::ReadBack(index, blocks) => self.read_back(&mut session, index, blocks).await?,
                Next::Load(index) => self.load(&mut session, index).await?,
                Next::Wait => changed.await,
                Next::Nothing => return Ok(session),
            }
        }
    }

    /// Reads before loads: what was loaded last is still in the server's memory.
    fn next(&self) -> Next {
        let mut queue = locked(&self.queue);
        if let Some((index, blocks)) = queue.reads.pop_front() {
            return Next::ReadBack(index, blocks);
        }
        if let Some(index) = queue.loads.pop_front() {
            queue.loading += 1;
            return Next::Load(index);
        }
        if queue.loading > 0 { Next::Wait } else { Next::Nothing }
    }

    /// Adds reads of a table, and with the last ones says that its load is over.
    fn add(&self, index: usize, reads: impl IntoIterator<Item = Option<Blocks>>, last: bool) {
        let Some(job) = self.jobs.get(index) else { return };
        let mut queue = locked(&self.queue);
        for blocks in reads {
            locked(&job.found).open += 1;
            queue.reads.push_back((index, blocks));
        }
        queue.loading -= usize::from(last);
        drop(queue);
        self.changed.notify_waiters();
    }

    async fn load(&self, session: &mut Session, index: usize) -> Result<(), TaskFailure> {
        let Some(job) = self.jobs.get(index) else { return Ok(()) };
        let (stream, table) = (&job.stream, &job.table);
        if stream.items == 0 {
            self.add(index, [None], true);
            return job.done(session);
        }
        let server = session.server.clone();
        let size = PART.max(stream.bytes / MOST_PARTS);
        let pieces = self.reader.read(&stream.name).await.map_err(|error| rows::store(&server, &error))?;
        let mut source = Source { pieces, rest: Bytes::new(), left: stream.bytes };
        let mut taken = 0;
        let mut from = 0;
        let mut later = Vec::new();
        loop {
            // A part that would leave little to the next takes that too.
            let parts = table.ranges && source.left > size + size / 4;
            if parts {
                session.run("BEGIN").await?;
            }
            taken += self.part(session, job, &mut source, if parts { size } else { u64::MAX }).await?;
            if !parts {
                break;
            }
            let (to, by) = stands(session, table).await?;
            session.run("COMMIT").await?;
            if to > from {
                let blocks = Blocks { from, to: Some(to), written: Written::UpTo(by) };
                self.add(index, [Some(blocks)], false);
                later.push(Some(Blocks { written: Written::After(by), ..blocks }));
                from = to;
            }
        }
        if taken != stream.items {
            let cause = format!("the target took {taken} of {} rows of {}", stream.items, job.name);
            return Err(server.failure("data.count", cause));
        }
        let rest = (from > 0).then_some(Blocks { from, to: None, written: Written::Ever });
        self.add(index, std::iter::once(rest).chain(later), true);
        job.done(session)
    }

    /// Loads about `most` bytes, whole rows.
    async fn part(&self, session: &mut Session, job: &Job, source: &mut Source, most: u64) -> Result<u64, TaskFailure> {
        let (server, database) = (session.server.clone(), session.database.clone());
        let doing = format!("loading {}", job.name);
        let mut copy = session.copy_in(&job.table.copy_in(&self.with), &doing).await?;
        let (mut sent, mut ends) = (0, false);
        while !ends {
            let piece = match source.next(most.saturating_sub(sent)).await {
                None => break,
                Some(Ok((piece, last))) => {
                    ends = last;
                    piece
                }
                Some(Err(error)) => {
                    // Nothing unverified gets in; the parts before it go with the database.
                    let _ = copy.abort("the copy in the repository is damaged").await;
                    return Err(rows::store(&server, &error));
                }
            };
            let length = piece.len() as u64;
            sent += length;
            patient(&server, &database, &doing, STALL, async { copy.send(piece).await.map(|_| ()) }).await?;
            // Nobody counts when the load has failed.
            let _ = self.tally.send((length, 0));
        }
        let taken = patient(&server, &database, &doing, ENDLESS, copy.finish()).await?;
        let _ = self.tally.send((0, taken));
        Ok(taken)
    }

    async fn read_back(&self, session: &mut Session, index: usize, blocks: Option<Blocks>) -> Result<(), TaskFailure> {
        let Some(job) = self.jobs.get(index) else { return Ok(()) };
        let (sink, mut drain) = mpsc::channel(2);
        let draining = async {
            let mut bytes = 0;
            while let Some(sent) = drain.recv().await {
                if let Sent::Rows(batch) = sent {
                    bytes += batch.rows.len() as u64;
                }
            }
            Ok::<u64, TaskFailure>(bytes)
        };
        let statement = job.table.copy_out(blocks, &self.with);
        let empty = self.reader.item_hasher();
        let reading = async {
            let sink = sink;
            rows::read(session, &statement, &job.name, &rows::room(), empty, &sink).await
        };
        let (sum, bytes) = futures::try_join!(reading, draining)?;
        {
            let mut found = locked(&job.found);
            found.sum.merge(&sum);
            found.bytes += bytes;
        }
        job.done(session)
    }
}

/// The pieces of a stream, cut where rows end.
struct Source {
    pieces: BoxStream<'static, ocopea_repository::Result<Bytes>>,
    rest: Bytes,
    /// Bytes that are still to come.
    left: u64,
}

impl Source {
    /// What comes next for a part that has `room` for so much. When it is full, up to the end of a row, and `true`.
    async fn next(&mut self, room: u64) -> Option<ocopea_repository::Result<(Bytes, bool)>> {
        let mut piece = std::mem::take(&mut self.rest);
        if piece.is_empty() {
            piece = match self.pieces.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            };
        }
        let mut full = false;
        // The line feed of `COPY`'s text format is only at the end of a row.
        if piece.len() as u64 >= room
            && let Some(end) = memchr::memrchr(b'\n', &piece)
        {
            self.rest = piece.split_off(end + 1);
            full = true;
        }
        self.left = self.left.saturating_sub(piece.len() as u64);
        Some(Ok((piece, full)))
    }
}

/// How many blocks a table has, and which transaction this is.
async fn stands(session: &mut Session, table: &Table) -> Result<(i64, u32), TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        blocks: i64,
        by: u32,
    }
    let row: Row = session
        .one(&format!(
            "SELECT pg_catalog.pg_relation_size({}::pg_catalog.oid::pg_catalog.regclass) / \
             pg_catalog.current_setting('block_size')::pg_catalog.int8 AS blocks, \
             pg_catalog.txid_current() & 4294967295 AS by",
            table.oid
        ))
        .await?;
    Ok((row.blocks, row.by))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts(pieces: &[&str], most: u64) -> Vec<String> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes()))).collect();
        let left = 1000;
        let mut source = Source { pieces: futures::stream::iter(pieces).boxed(), rest: Bytes::new(), left };
        let mut parts = vec![String::new()];
        while let Some(next) = source.next(most.saturating_sub(parts.last().unwrap().len() as u64)).await {
            let (piece, full) = next.unwrap();
            parts.last_mut().unwrap().push_str(std::str::from_utf8(&piece).unwrap());
            if full {
                parts.push(String::new());
            }
        }
        assert_eq!(source.left, left - parts.iter().map(|part| part.len() as u64).sum::<u64>());
        parts
    }

    #[tokio::test]
    async fn a_part_ends_where_a_row_ends() {
        assert_eq!(parts(&["a\nb\nc", "c\nd\n"], 4).await, ["a\nb\n", "cc\nd\n", ""]);
        // Full, but in the middle of a row.
        assert_eq!(
            parts(&["one\n", "row that ", "is long\nx\n", "y\n"], 6).await,
            ["one\nrow that is long\nx\n", "y\n"]
        );
    }
}
