//! Rows out of a database, hashed one by one, in order and in parallel.
//!
//! A table is cut into parts (ranges of blocks when it is big). Workers, one connection each, take parts in order; a
//! part's batches wait in a small channel until its turn has come, so a stream is always in heap order — an unchanged
//! table gives the same bytes again — while several parts are read at once. A batch holds whole rows: `COPY`'s text
//! format has a line feed only at the end of a row, so hashing needs no second parse. Hashes are summed over the set
//! of rows, so it doesn't matter which worker adds which.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt, stream::FuturesUnordered};
use ocopea_protocol::failure::TaskFailure;
use ocopea_repository::{DataWriter, ItemHasher, StreamFacts, StreamSummary};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    catalog::Table,
    connect::{STALL, Server, Session, patient},
    fault,
};
use crate::failures;

/// Rows are handed on in batches of about so many bytes.
const BATCH: usize = 512 * 1024;
/// What is written at once at most.
const PIECE: usize = 4 * 1024 * 1024;
/// A table of more blocks than this is read in several parts.
const PART: i64 = 4096;
/// At most so many parts of one table.
const MOST_PARTS: i64 = 1024;
/// Batches that wait for their turn, for each part that is being read.
const WAITING: usize = 3;
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

/// One part of one table.
struct Part {
    table: usize,
    blocks: Option<(i64, Option<i64>)>,
    sink: mpsc::Sender<Option<Batch>>,
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
    let blocks: i64 = tables.iter().map(|table| table.blocks.min(PART * 64)).sum();
    usize::try_from(blocks / PART).unwrap_or(0).clamp(1, most)
}

/// The ranges that a table is read in.
fn parts(table: &Table) -> Vec<Option<(i64, Option<i64>)>> {
    if !table.ranges || table.blocks <= PART {
        return vec![None];
    }
    let size = PART.max(table.blocks / MOST_PARTS + 1);
    let mut out = Vec::new();
    let mut from = 0;
    while from < table.blocks {
        let to = from + size;
        // The last one has no end: the file may have grown since it was measured.
        out.push(Some((from, (to < table.blocks).then_some(to))));
        from = to;
    }
    out
}

/// Copies all rows of these tables to streams of their own.
pub(super) async fn copy(
    sessions: &mut [Session],
    tables: &[Table],
    database: &str,
    with: &str,
    writer: &DataWriter,
    count: Count<'_>,
) -> Result<Vec<StreamSummary>, TaskFailure> {
    let Some(first) = sessions.first() else { return Ok(vec![]) };
    let out = Mutex::new(Vec::with_capacity(tables.len()));
    let server = first.server.clone();
    // The biggest first, so that the end isn't one connection's work alone.
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(tables[*index].blocks));
    let mut queue = VecDeque::new();
    let mut streams = Vec::with_capacity(tables.len());
    for index in order {
        let mut receivers = Vec::new();
        for blocks in parts(&tables[index]) {
            let (sink, receiver) = mpsc::channel(WAITING);
            queue.push_back(Part { table: index, blocks, sink });
            receivers.push(receiver);
        }
        streams.push((index, receivers));
    }
    let queue = Mutex::new(queue);
    let sums: Vec<Mutex<ItemHasher>> = tables.iter().map(|_| Mutex::new(writer.item_hasher())).collect();
    let readers: FuturesUnordered<_> = sessions
        .iter_mut()
        .map(async |session| {
            let room = room();
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                let Some(part) = next else { return Ok::<(), TaskFailure>(()) };
                let table = &tables[part.table];
                let name = table.stream(database);
                let statement = table.copy_out(part.blocks, with);
                let hasher = read(session, &statement, &name, &room, writer.item_hasher(), &part.sink, count).await?;
                if let Ok(mut sum) = sums[part.table].lock() {
                    sum.merge(&hasher);
                }
                // The word that this part is whole; without it the writer waits for the failure.
                if part.sink.send(None).await.is_err() {
                    return Err(TaskFailure::cancelled(session.server.what()));
                }
            }
        })
        .collect();
    let writers: FuturesUnordered<_> = streams
        .into_iter()
        .map(async |(index, receivers)| {
            let table = &tables[index];
            let name = table.stream(database);
            let mut stream = None;
            for mut receiver in receivers {
                loop {
                    let Some(received) = receiver.recv().await else {
                        // Its reader failed, and that failure is what ends the copy: never a stream cut short.
                        std::future::pending::<()>().await;
                        continue;
                    };
                    if stream.is_none() {
                        stream = Some(writer.stream(name.as_bytes()).await.map_err(|error| store(&server, &error))?);
                    }
                    let (Some(stream), Some(batch)) = (&mut stream, received) else { break };
                    let mut rows = batch.rows.clone();
                    while !rows.is_empty() {
                        let piece = rows.split_to(rows.len().min(PIECE));
                        stream.write(piece).await.map_err(|error| store(&server, &error))?;
                    }
                }
            }
            let Some(stream) = stream else { return Ok(()) };
            let sum =
                sums[index].lock().map(|sum| sum.clone()).unwrap_or_else(|poisoned| poisoned.into_inner().clone());
            let facts = StreamFacts {
                unit: "rows".to_owned(),
                items: sum.items(),
                item_hash: sum.sum(),
                attributes: attributes("table", database, &table.schema, &table.name),
            };
            let summary = stream.finish(facts).await.map_err(|error| store(&server, &error))?;
            if let Ok(mut out) = out.lock() {
                out.push(summary);
            }
            Ok::<(), TaskFailure>(())
        })
        .collect();
    futures::try_join!(writers.try_collect::<Vec<()>>(), readers.try_collect::<Vec<()>>())?;
    Ok(out.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
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
    sink: &mpsc::Sender<Option<Batch>>,
    count: Count<'_>,
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
            // Most rows are already there: the guard with its timer is only for those that aren't.
            let next = match rows.next().now_or_never() {
                Some(next) => next.transpose().map_err(|error| fault::of(&server, &doing, &error))?,
                None => patient(&server, &database, &doing, STALL, async { rows.next().await.transpose() }).await?,
            };
            let Some(row) = next else { break };
            let long = row.len() >= BATCH;
            if !long {
                batch.extend_from_slice(&row);
            }
            if batch.len() >= BATCH || (long && !batch.is_empty()) {
                let full = std::mem::replace(&mut batch, BytesMut::with_capacity(BATCH + BATCH / 8));
                send(full.freeze()).await?;
            }
            if long {
                // Not copied, and gone before the next one comes: there may be hundreds of megabytes in a row.
                let alone = row.len() >= ROOM;
                send(row).await?;
                if alone {
                    drop(room.acquire_many(ROOM as u32).await);
                }
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
            let length = of.len() as u64;
            let before = hasher.items();
            let hashed = server.seams.compute("hash rows", move || {
                hash_rows(&mut hasher, &of);
                hasher
            });
            let (hashed, sent) = futures::join!(hashed, sink.send(Some(batch)));
            hasher = hashed.ok_or_else(|| TaskFailure::cancelled(server.what()))?;
            count(length, hasher.items() - before);
            if sent.is_err() {
                return Err(TaskFailure::cancelled(server.what()));
            }
        }
        Ok(hasher)
    };
    let ((), hasher) = futures::try_join!(reading, hashing)?;
    Ok(hasher)
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
        for blocks in [PART + 1, PART * 3, PART * 5000 + 17] {
            let parts = parts(&table(blocks, true));
            assert!(parts.len() as i64 <= MOST_PARTS && parts.len() > 1);
            let mut at = 0;
            for part in &parts[..parts.len() - 1] {
                let (from, to) = part.unwrap();
                assert_eq!(from, at);
                at = to.unwrap();
            }
            assert_eq!(parts.last().unwrap().unwrap(), (at, None));
        }
        assert_eq!(parts(&table(PART * 9, false)), vec![None]);
        assert_eq!(parts(&table(0, true)), vec![None]);
    }

    #[test]
    fn statements_name_every_column_and_quote_it() {
        let table = table(9, true);
        assert_eq!(table.copy_out(None, ""), "COPY \"s\".\"t\" (\"a\"\"b\", \"c\") TO STDOUT");
        assert_eq!(
            table.copy_out(Some((5, Some(9))), &encoded("LATIN1")),
            "COPY (SELECT \"a\"\"b\", \"c\" FROM ONLY \"s\".\"t\" WHERE ctid >= '(5,0)'::pg_catalog.tid AND \
             ctid < '(9,0)'::pg_catalog.tid) TO STDOUT (ENCODING 'LATIN1')"
        );
        assert_eq!(table.stream("My db"), "\"My db\".s.t");
    }
}
