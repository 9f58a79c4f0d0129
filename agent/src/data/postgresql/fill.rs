//! Rows into a database, and the look at what arrived.
//!
//! A table is loaded by one connection, in order. Its rows are counted at the target: what a trigger, a rule or anything
//! else kept out is found. A table of up to 64 MiB is read back and hashed whole, too. Of a longer one, samples are: one
//! part in eight is loaded by a transaction of its own and hashed on its way, and the rows that those transactions wrote
//! must come back as they went in. So a type whose text doesn't survive is found in a table of any size, and a big load
//! doesn't pay for everything twice. What is sent was verified chunk by chunk when it was read.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo};
use ocopea_repository::{DataReader, ItemHasher, PartHasher, StreamEntry};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use super::{
    catalog::{Table, encoded},
    connect::{ENDLESS, STALL, Session, patient},
    facts::Database,
    load::Context,
    rows::{self, Sent, locked},
};

/// Streams of up to so many bytes are read back whole.
const WHOLE: u64 = 64 * 1024 * 1024;
/// Bytes of a sample of a longer one.
const SAMPLE: u64 = 32 * 1024 * 1024;
/// From one sample's start to the next one's, in bytes, or more: as much as gives the most samples.
const SPACING: u64 = 8 * SAMPLE;
/// Samples of one stream at most.
const MOST_SAMPLES: u64 = 64;

/// What sessions do next.
enum Next {
    Load(usize),
    Look(usize, Look),
    Wait,
    Nothing,
}

/// How a table is looked at when it is loaded.
enum Look {
    /// All rows, counted and hashed.
    Whole,
    /// The number of its rows.
    Count,
    /// The rows that these transactions wrote: they must be those that were sent.
    Samples(Vec<u32>, ItemHasher),
}

/// A table on its way.
struct Job {
    stream: StreamEntry,
    table: Table,
    name: String,
    found: Mutex<Option<StreamInfo>>,
}

/// What is to be done.
struct Queue {
    loads: VecDeque<usize>,
    looks: VecDeque<(usize, Look)>,
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

/// Loads all tables, and looks at what arrived. The sessions come back.
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
        jobs.push(Job { stream: stream.clone(), table, name, found: Mutex::new(None) });
    }
    jobs.sort_by_key(|job| std::cmp::Reverse(job.stream.bytes));
    let (tally, mut counted) = mpsc::unbounded_channel();
    let queue = Queue { loads: (0..jobs.len()).collect(), looks: VecDeque::new(), loading: 0 };
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
    Ok((sessions, work.jobs.iter().filter_map(|job| locked(&job.found).take()).collect()))
}

impl Job {
    /// Takes note of so many rows at the target, which must be as many as were saved.
    fn arrived(&self, session: &Session, items: u64, content: Option<[u8; 32]>) -> Result<(), TaskFailure> {
        let (stream, name) = (&self.stream, &self.name);
        if items != stream.items {
            let cause = format!("the target holds {items} of {} rows of {name}", stream.items);
            return Err(session.server.failure("data.count", cause).next(
                "something at the target changes rows while they are loaded (a trigger, a rule, another session)",
            ));
        }
        if content.is_some_and(|content| content != stream.item_hash) {
            return Err(self.other_rows(session));
        }
        *locked(&self.found) = Some(StreamInfo {
            name: name.clone(),
            unit: "rows".to_owned(),
            items,
            bytes: stream.bytes,
            content: content.map(hex::encode).unwrap_or_default(),
        });
        Ok(())
    }

    fn other_rows(&self, session: &Session) -> TaskFailure {
        let cause = format!("the rows of {} at the target are not those that were saved", self.name);
        session.server.failure("data.content", cause)
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
                Next::Look(index, look) => self.look(&mut session, index, look).await?,
                Next::Load(index) => self.load(&mut session, index).await?,
                Next::Wait => changed.await,
                Next::Nothing => return Ok(session),
            }
        }
    }

    /// Looks before loads: what was loaded last is still in the server's memory.
    fn next(&self) -> Next {
        let mut queue = locked(&self.queue);
        if let Some((index, look)) = queue.looks.pop_front() {
            return Next::Look(index, look);
        }
        if let Some(index) = queue.loads.pop_front() {
            queue.loading += 1;
            return Next::Load(index);
        }
        if queue.loading > 0 { Next::Wait } else { Next::Nothing }
    }

    /// A table's load is over: these looks are due.
    fn loaded(&self, index: usize, looks: impl IntoIterator<Item = Look>) {
        let mut queue = locked(&self.queue);
        queue.looks.extend(looks.into_iter().map(|look| (index, look)));
        queue.loading -= 1;
        drop(queue);
        self.changed.notify_waiters();
    }

    async fn load(&self, session: &mut Session, index: usize) -> Result<(), TaskFailure> {
        let Some(job) = self.jobs.get(index) else { return Ok(()) };
        let stream = &job.stream;
        if stream.items == 0 {
            self.loaded(index, [Look::Whole]);
            return Ok(());
        }
        let pieces = self.reader.read(&stream.name).await.map_err(|error| rows::store(&session.server, &error))?;
        let mut source = Source { pieces, rest: Bytes::new(), ended: false };
        let mut taken = 0;
        // Only a heap's rows tell which transaction wrote them.
        let samples = stream.bytes > WHOLE && job.table.ranges;
        if samples {
            let spacing = SPACING.max(stream.bytes / MOST_SAMPLES);
            let (mut by, mut sent) = (Vec::new(), self.reader.item_hasher());
            while !source.ended {
                session.run("BEGIN").await?;
                let mut sample = Some(Sample { hasher: sent, begun: None });
                taken += self.part(session, job, &mut source, SAMPLE, &mut sample).await?;
                by.push(transaction(session).await?);
                session.run("COMMIT").await?;
                sent = sample.map_or_else(|| self.reader.item_hasher(), |sample| sample.hasher);
                if !source.ended {
                    taken += self.part(session, job, &mut source, spacing - SAMPLE, &mut None).await?;
                }
            }
            self.check(session, job, taken)?;
            self.loaded(index, [Look::Count, Look::Samples(by, sent)]);
        } else {
            taken += self.part(session, job, &mut source, u64::MAX, &mut None).await?;
            self.check(session, job, taken)?;
            self.loaded(index, [Look::Whole]);
        }
        Ok(())
    }

    fn check(&self, session: &Session, job: &Job, taken: u64) -> Result<(), TaskFailure> {
        if taken == job.stream.items {
            return Ok(());
        }
        let cause = format!("the target took {taken} of {} rows of {}", job.stream.items, job.name);
        Err(session.server.failure("data.count", cause))
    }

    /// Loads about `most` bytes, whole rows.
    async fn part(
        &self,
        session: &mut Session,
        job: &Job,
        source: &mut Source,
        most: u64,
        sample: &mut Option<Sample>,
    ) -> Result<u64, TaskFailure> {
        let (server, database) = (session.server.clone(), session.database.clone());
        let doing = format!("loading {}", job.name);
        let mut copy = session.copy_in(&job.table.copy_in(&self.with), &doing).await?;
        let (mut sent, mut full) = (0, false);
        while !full {
            let piece = match source.next(most.saturating_sub(sent)).await {
                None => break,
                Some(Ok((piece, last))) => {
                    full = last;
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
            let hashing = async {
                let Some(mut adding) = sample.take() else { return Some(()) };
                let piece = piece.clone();
                let added = server.seams.compute("hash rows", move || {
                    adding.add(&piece);
                    adding
                });
                *sample = Some(added.await?);
                Some(())
            };
            let sending =
                patient(&server, &database, &doing, STALL, async { copy.send(piece.clone()).await.map(|_| ()) });
            let (hashed, sending) = futures::join!(hashing, sending);
            sending?;
            hashed.ok_or_else(|| TaskFailure::cancelled(server.what()))?;
            // Nobody counts when the load has failed.
            let _ = self.tally.send((length, 0));
        }
        let taken = patient(&server, &database, &doing, ENDLESS, copy.finish()).await?;
        let _ = self.tally.send((0, taken));
        Ok(taken)
    }

    async fn look(&self, session: &mut Session, index: usize, look: Look) -> Result<(), TaskFailure> {
        let Some(job) = self.jobs.get(index) else { return Ok(()) };
        match look {
            Look::Count => {
                let items = session.number(&job.table.counted(), &format!("counting {}", job.name)).await?;
                job.arrived(session, items, None)
            }
            Look::Whole => {
                let found = self.read_back(session, job, &job.table.copy_out(None, &self.with)).await?;
                job.arrived(session, found.items(), Some(found.sum()))
            }
            Look::Samples(by, sent) => {
                if by.is_empty() {
                    return Ok(());
                }
                let found = self.read_back(session, job, &job.table.copy_written(&by, &self.with)).await?;
                if (found.items(), found.sum()) == (sent.items(), sent.sum()) {
                    Ok(())
                } else {
                    Err(job.other_rows(session))
                }
            }
        }
    }

    async fn read_back(&self, session: &mut Session, job: &Job, statement: &str) -> Result<ItemHasher, TaskFailure> {
        let (sink, mut drain) = mpsc::channel::<Sent>(2);
        let draining = async {
            while drain.recv().await.is_some() {}
            Ok::<(), TaskFailure>(())
        };
        let reading = async {
            let sink = sink;
            rows::read(session, statement, &job.name, &rows::room(), self.reader.item_hasher(), &sink).await
        };
        let (sum, ()) = futures::try_join!(reading, draining)?;
        Ok(sum)
    }
}

/// A part that is hashed on its way, row by row.
struct Sample {
    hasher: ItemHasher,
    /// A row of which not all has come.
    begun: Option<PartHasher>,
}

impl Sample {
    /// The next bytes, wherever they end.
    fn add(&mut self, piece: &[u8]) {
        let mut rows = piece;
        if let Some(mut row) = self.begun.take() {
            let end = memchr::memchr(b'\n', rows);
            row.update(&rows[..end.unwrap_or(rows.len())]);
            let Some(end) = end else {
                self.begun = Some(row);
                return;
            };
            self.hasher.add_hash(*row.finalize().as_bytes());
            rows = &rows[end + 1..];
        }
        let (whole, rest) = rows.split_at(memchr::memrchr(b'\n', rows).map_or(0, |end| end + 1));
        rows::hash_rows(&mut self.hasher, whole);
        if !rest.is_empty() {
            let mut row = self.hasher.part_hasher();
            row.update(rest);
            self.begun = Some(row);
        }
    }
}

/// The pieces of a stream, cut where rows end.
struct Source {
    pieces: BoxStream<'static, ocopea_repository::Result<Bytes>>,
    rest: Bytes,
    /// Nothing more comes.
    ended: bool,
}

impl Source {
    /// What comes next for a part that has `room` for so much. When it is full, up to the end of a row, and `true`.
    async fn next(&mut self, room: u64) -> Option<ocopea_repository::Result<(Bytes, bool)>> {
        let mut piece = std::mem::take(&mut self.rest);
        if piece.is_empty() {
            piece = match self.pieces.next().await {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.ended = true;
                    return None;
                }
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
        Some(Ok((piece, full)))
    }
}

/// The number of the session's transaction.
async fn transaction(session: &mut Session) -> Result<u32, TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        by: u32,
    }
    let row: Row = session.one("SELECT pg_catalog.txid_current() & 4294967295 AS by").await?;
    Ok(row.by)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parts(pieces: &[&str], most: u64) -> Vec<String> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes()))).collect();
        let mut source = Source { pieces: futures::stream::iter(pieces).boxed(), rest: Bytes::new(), ended: false };
        let mut parts = vec![String::new()];
        while let Some(next) = source.next(most.saturating_sub(parts.last().unwrap().len() as u64)).await {
            let (piece, full) = next.unwrap();
            parts.last_mut().unwrap().push_str(std::str::from_utf8(&piece).unwrap());
            if full {
                parts.push(String::new());
            }
        }
        assert!(source.ended);
        parts
    }

    #[test]
    fn rows_are_hashed_alike_wherever_pieces_end() {
        let text = b"one\n\nthree with more\nx\n";
        let empty = ItemHasher::new(&ocopea_protocol::secret::Secret32([7; 32]));
        let mut whole = empty.clone();
        rows::hash_rows(&mut whole, text);
        assert_eq!(whole.items(), 4);
        for size in 1..=text.len() {
            let mut sample = Sample { hasher: empty.clone(), begun: None };
            text.chunks(size).for_each(|piece| sample.add(piece));
            assert!(sample.begun.is_none());
            assert_eq!((sample.hasher.items(), sample.hasher.sum()), (4, whole.sum()), "pieces of {size}");
        }
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
