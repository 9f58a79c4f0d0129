//! Rows out of a database, hashed one by one, in order and in parallel.
//!
//! A table is cut into parts (ranges of blocks when it is big). Readers, one connection and one task each, take parts
//! in order; a part's batches wait in a small channel until its turn has come, so a stream is always in heap order (an
//! unchanged table gives the same bytes again) while several parts are read at once. A part is no bigger than what may
//! wait: else all but one reader would stand still. A batch holds whole rows: `COPY`'s text format has a line feed only
//! at the end of a row, so hashing needs no second parse. Hashes are summed over the set of rows, so it doesn't matter
//! which reader adds which.

use std::{
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures::{
    StreamExt, TryStreamExt,
    stream::{BoxStream, FuturesUnordered},
};
use ocopea_protocol::failure::TaskFailure;
use ocopea_repository::{DataWriter, ItemHasher, StreamFacts, StreamSummary};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    catalog::{Blocks, Table},
    connect::{STALL, Server, Session, patient},
};
use crate::failures;

/// Rows are handed on in batches of about so many bytes.
const BATCH: usize = 512 * 1024;
/// What is written at once at most.
const PIECE: usize = 4 * 1024 * 1024;
/// A table of more blocks than this is read in several parts: 2 MiB of blocks, about as much text.
const PART: i64 = 256;
/// Blocks that make one more connection worth its start.
const WORTH: i64 = 4096;
/// Batches that wait for their turn, for each part that is being read.
const WAITING: usize = 8;
/// Bytes of one connection that are under way at most; a single row that is longer is under way alone.
const ROOM: usize = 8 * BATCH;

/// How a stream is told apart from others at the load.
pub(super) fn attributes(kind: &str, database: &str, schema: &str, name: &str) -> BTreeMap<String, String> {
    [("kind", kind), ("database", database), ("schema", schema), ("name", name)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Something that counts what was read; cheap.
pub(super) type Count<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// What a part's reader sends on.
pub(super) enum Sent {
    Rows(Batch),
    /// The part is whole, and has so many rows.
    Whole(u64),
}

/// Whole rows, and the room that they take until they are dropped.
pub(super) struct Batch {
    pub rows: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Room for what one connection has under way.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM))
}

/// How many connections a database's tables are worth, up to `most`.
pub(super) fn workers(tables: &[Table], most: usize) -> usize {
    let blocks: i64 = tables.iter().map(|table| table.blocks.min(WORTH * 64)).sum();
    usize::try_from(blocks / WORTH).unwrap_or(0).clamp(1, most)
}

/// The part of a table that begins at this block.
fn part(table: &Table, from: i64) -> Option<Blocks> {
    if !table.ranges || table.blocks <= PART {
        return None;
    }
    let to = from + PART;
    // The last one has no end: the file may have grown since it was measured.
    Some(Blocks { from, to: (to < table.blocks).then_some(to) })
}

/// One part of one table, and where its rows go.
struct Part {
    table: usize,
    blocks: Option<Blocks>,
    sink: mpsc::Sender<Sent>,
}

/// A table whose parts are being given out, and its writer, who is told of each in order.
struct Turn {
    table: usize,
    from: i64,
    parts: mpsc::UnboundedSender<mpsc::Receiver<Sent>>,
}

/// What readers of one database share.
struct Work {
    tables: Vec<Table>,
    database: String,
    with: String,
    empty: ItemHasher,
    sums: Vec<Mutex<ItemHasher>>,
    turns: Mutex<VecDeque<Turn>>,
}

impl Work {
    /// The next part in order. There are as many unread as there are readers: they are made when they are taken.
    fn next(&self) -> Option<Part> {
        let mut turns = locked(&self.turns);
        let turn = turns.front_mut()?;
        let index = turn.table;
        let blocks = part(self.tables.get(index)?, turn.from);
        let (sink, receiver) = mpsc::channel(WAITING);
        // Its writer is gone only when the copy has failed.
        let _ = turn.parts.send(receiver);
        match blocks.and_then(|blocks| blocks.to) {
            Some(to) => turn.from = to,
            None => drop(turns.pop_front()),
        }
        Some(Part { table: index, blocks, sink })
    }

    /// Reads parts until there are none.
    async fn read(&self, mut session: Session) -> Result<Session, TaskFailure> {
        let room = room();
        while let Some(part) = self.next() {
            let (Some(table), Some(sum)) = (self.tables.get(part.table), self.sums.get(part.table)) else { break };
            let statement = table.copy_out(part.blocks, &self.with);
            let name = table.stream(&self.database);
            let hasher = read(&mut session, &statement, &name, &room, self.empty.clone(), &part.sink).await?;
            locked(sum).merge(&hasher);
            // The word that this part is whole; without it the writer waits for the failure.
            if part.sink.send(Sent::Whole(hasher.items())).await.is_err() {
                return Err(TaskFailure::cancelled(session.server.what()));
            }
        }
        Ok(session)
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives each session a task of its own, so that one thread isn't the limit of them all, and waits for their ends. What
/// fails first, or the caller's going away, ends the others.
pub(super) async fn beside<F>(
    sessions: Vec<Session>,
    name: &'static str,
    work: impl Fn(Session) -> F,
) -> Result<Vec<Session>, TaskFailure>
where
    F: Future<Output = Result<Session, TaskFailure>> + Send + 'static,
{
    let Some(first) = sessions.first() else { return Ok(sessions) };
    let server = first.server.clone();
    let stop = server.stop.child_token();
    let _ends_with_us = stop.clone().drop_guard();
    let what = &server;
    let ends: FuturesUnordered<_> = sessions
        .into_iter()
        .map(|mut session| {
            session.server.stop = stop.clone();
            let (done, result) = oneshot::channel();
            let (work, stop) = (work(session), stop.clone());
            let work = async move {
                let ended = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    ended = work => ended,
                };
                // Nobody waits when another one failed.
                let _ = done.send(ended);
            };
            server.seams.spawner.spawn(name, Box::pin(work));
            async move { result.await.unwrap_or_else(|_| Err(TaskFailure::cancelled(what.what()))) }
        })
        .collect();
    let mut sessions: Vec<Session> = ends.try_collect().await?;
    sessions.iter_mut().for_each(|session| session.server.stop = server.stop.clone());
    Ok(sessions)
}

/// Copies all rows of these tables to streams of their own. The sessions come back.
pub(super) async fn copy(
    sessions: Vec<Session>,
    tables: Vec<Table>,
    database: &str,
    with: &str,
    writer: &DataWriter,
    count: Count<'_>,
) -> Result<(Vec<Session>, Vec<StreamSummary>), TaskFailure> {
    let Some(first) = sessions.first() else { return Ok((sessions, vec![])) };
    let server = first.server.clone();
    // The biggest first, so that the end isn't one connection's work alone.
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(tables[*index].blocks));
    let mut turns = VecDeque::with_capacity(tables.len());
    let mut streams = Vec::with_capacity(tables.len());
    for table in order {
        let (parts, receivers) = mpsc::unbounded_channel();
        turns.push_back(Turn { table, from: 0, parts });
        streams.push((table, receivers));
    }
    let work = Arc::new(Work {
        sums: tables.iter().map(|_| Mutex::new(writer.item_hasher())).collect(),
        tables,
        database: database.to_owned(),
        with: with.to_owned(),
        empty: writer.item_hasher(),
        turns: Mutex::new(turns),
    });
    let readers = beside(sessions, "postgresql.read", |session| {
        let work = work.clone();
        async move { work.read(session).await }
    });
    let writers: FuturesUnordered<_> = streams
        .into_iter()
        .map(async |(index, mut parts)| {
            let table = &work.tables[index];
            let mut stream = None;
            while let Some(mut part) = parts.recv().await {
                if stream.is_none() {
                    let begun = writer.stream(table.stream(database).as_bytes()).await;
                    stream = Some(begun.map_err(|error| store(&server, &error))?);
                }
                let Some(stream) = &mut stream else { break };
                loop {
                    match part.recv().await {
                        Some(Sent::Rows(batch)) => {
                            count(batch.rows.len() as u64, 0);
                            let mut rows = batch.rows.clone();
                            while !rows.is_empty() {
                                let piece = rows.split_to(rows.len().min(PIECE));
                                stream.write(piece).await.map_err(|error| store(&server, &error))?;
                            }
                        }
                        Some(Sent::Whole(rows)) => {
                            count(0, rows);
                            break;
                        }
                        // Its reader failed, and that failure is what ends the copy: never a stream cut short.
                        None => std::future::pending::<()>().await,
                    }
                }
            }
            let Some(stream) = stream else { return Err(TaskFailure::cancelled(server.what())) };
            let sum = locked(&work.sums[index]).clone();
            let facts = StreamFacts {
                unit: "rows".to_owned(),
                items: sum.items(),
                item_hash: sum.sum(),
                attributes: attributes("table", database, &table.schema, &table.name),
            };
            stream.finish(facts).await.map_err(|error| store(&server, &error))
        })
        .collect();
    let (streams, sessions) = futures::try_join!(writers.try_collect::<Vec<_>>(), readers)?;
    Ok((sessions, streams))
}

/// The repository's word as a failure.
pub(super) fn store(server: &Server, error: &ocopea_repository::Error) -> TaskFailure {
    failures::repository(&server.what(), error)
}

/// Reads one `COPY`, hashes its rows, and sends them on in batches.
pub(super) async fn read(
    session: &mut Session,
    statement: &str,
    name: &str,
    room: &Arc<Semaphore>,
    hasher: ItemHasher,
    sink: &mpsc::Sender<Sent>,
) -> Result<ItemHasher, TaskFailure> {
    let server = session.server.clone();
    let database = session.database.clone();
    let (batches, mut batched) = mpsc::channel::<Batch>(1);
    let reading = async {
        let batches = batches;
        let doing = format!("reading {name}");
        let send = async |rows: Bytes| {
            let gone = || TaskFailure::cancelled(server.what());
            let length = u32::try_from(rows.len().min(ROOM)).unwrap_or(u32::MAX);
            let taken = room.clone().acquire_many_owned(length).await.map_err(|_| gone())?;
            batches.send(Batch { rows, _room: taken }).await.map_err(|_| gone())
        };
        let mut rows = session.copy_out(statement, &doing).await?;
        let mut batch = BytesMut::with_capacity(BATCH + BATCH / 8);
        loop {
            let next = poll_fn(|context| gather(&mut rows, &mut batch, context));
            match patient(&server, &database, &doing, STALL, next).await? {
                Gathered::Some => {}
                Gathered::Long(row) => {
                    if !batch.is_empty() {
                        let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BATCH + BATCH / 8));
                        send(full.freeze()).await?;
                    }
                    // Not copied, and gone before the next one comes: there may be hundreds of megabytes in a row.
                    let alone = row.len() >= ROOM;
                    send(row).await?;
                    if alone {
                        drop(room.acquire_many(ROOM as u32).await);
                    }
                }
                Gathered::All => break,
            }
            if batch.len() >= BATCH {
                let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BATCH + BATCH / 8));
                send(full.freeze()).await?;
            }
        }
        if !batch.is_empty() {
            send(batch.freeze()).await?;
        }
        Ok(())
    };
    let hashing = async {
        let mut hasher = hasher;
        while let Some(batch) = batched.recv().await {
            let of = batch.rows.clone();
            let hashed = server.seams.compute("hash rows", move || {
                hash_rows(&mut hasher, &of);
                hasher
            });
            let (hashed, sent) = futures::join!(hashed, sink.send(Sent::Rows(batch)));
            hasher = hashed.ok_or_else(|| TaskFailure::cancelled(server.what()))?;
            if sent.is_err() {
                return Err(TaskFailure::cancelled(server.what()));
            }
        }
        Ok(hasher)
    };
    let ((), hasher) = futures::try_join!(reading, hashing)?;
    Ok(hasher)
}

/// What came of the rows that were there.
enum Gathered {
    /// They are in the batch.
    Some,
    /// One is too long to be copied; those in front of it are in the batch.
    Long(Bytes),
    /// There are no more.
    All,
}

/// Takes as many rows as are there already: most are, so that nothing is set up for each of them.
fn gather(
    rows: &mut BoxStream<'_, Result<Bytes, sqlx::Error>>,
    batch: &mut BytesMut,
    context: &mut Context<'_>,
) -> Poll<Result<Gathered, sqlx::Error>> {
    let before = batch.len();
    while batch.len() < BATCH {
        match rows.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(row))) if row.len() >= BATCH => return Poll::Ready(Ok(Gathered::Long(row))),
            Poll::Ready(Some(Ok(row))) => batch.extend_from_slice(&row),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(None) => return Poll::Ready(Ok(Gathered::All)),
            // A stream that moves is no stream that stands still.
            Poll::Pending if batch.len() == before => return Poll::Pending,
            Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(Gathered::Some))
}

/// Adds every row of a batch, without its line feed.
pub(super) fn hash_rows(hasher: &mut ItemHasher, batch: &[u8]) {
    let mut rest = batch;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        hasher.add(&rest[..end]);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::{super::catalog::encoded, *};

    fn table(blocks: i64, ranges: bool) -> Table {
        Table {
            oid: 1,
            schema: "s".to_owned(),
            name: "t".to_owned(),
            columns: vec!["a\"b".to_owned(), "c".to_owned()],
            blocks,
            ranges,
            filter: None,
        }
    }

    #[test]
    fn the_parts_of_a_big_table_meet_without_gap_or_overlap_and_the_last_is_open() {
        for blocks in [PART + 1, PART * 2, PART * 5000 + 17] {
            let (table, mut at) = (table(blocks, true), 0);
            while let Some(to) = {
                let blocks = part(&table, at).unwrap();
                assert_eq!(blocks.from, at);
                blocks.to
            } {
                assert!(to > at && to < blocks);
                at = to;
            }
            assert!(blocks - at <= PART);
        }
        assert_eq!(part(&table(PART * 9, false), 0), None);
        assert_eq!(part(&table(0, true), 0), None);
    }

    #[test]
    fn statements_name_every_column_and_quote_it() {
        let table = table(9, true);
        assert_eq!(table.copy_out(None, ""), "COPY \"s\".\"t\" (\"a\"\"b\", \"c\") TO STDOUT");
        assert_eq!(
            table.copy_out(Some(Blocks { from: 5, to: Some(9) }), &encoded("LATIN1")),
            "COPY (SELECT \"a\"\"b\", \"c\" FROM ONLY \"s\".\"t\" WHERE ctid >= '(5,0)'::pg_catalog.tid AND \
             ctid < '(9,0)'::pg_catalog.tid) TO STDOUT (ENCODING 'LATIN1')"
        );
        assert_eq!(
            table.copy_written(&[7, 4_294_967_295], ""),
            "COPY (SELECT \"a\"\"b\", \"c\" FROM ONLY \"s\".\"t\" WHERE xmin = ANY \
             ('{7,4294967295}'::pg_catalog.xid[])) TO STDOUT"
        );
        assert_eq!(table.stream("My db"), "\"My db\".s.t");
    }
}
