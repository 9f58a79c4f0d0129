//! Server → streams.
//!
//! Workers, one connection each, take parts of collections in order; a part's batches wait until its turn has come, so
//! a stream is always in the same order and an unchanged collection gives the same bytes again.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use mongodb::bson::Document;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel, StreamInfo},
    task::Progress,
};
use ocopea_repository::{DataWriter, ItemHasher, StreamFacts};
use tokio::sync::mpsc;

use super::{
    accounts, catalog,
    catalog::{Collection, Facts, Size},
    connect::{Purpose, connect},
    hold::Snapshot,
    read::{Batch, Reading, room},
};
use crate::{
    data::{Copied, Subject},
    failures::repository,
};

/// Connections that read at once.
const WORKERS: usize = 3;
/// And where documents are bigger than this on average, so that few answers fill much memory.
const WORKERS_OF_BIG: usize = 2;
const BIG: u64 = 512 * 1024;
/// Batches that wait for their turn, for each part.
const WAITING: usize = 4;
/// Names of changed collections that are kept.
const MOST_CHANGED: usize = 100;
/// What is written at once.
const PIECE: usize = 4 * 1024 * 1024;

/// A part of a collection that is to be read.
struct Job {
    collection: usize,
    filter: Option<Document>,
    sink: mpsc::Sender<Option<Batch>>,
}

/// What workers and writers share.
struct Shared {
    reading: Reading,
    collections: Vec<(Collection, Size)>,
    queue: Mutex<VecDeque<Job>>,
    sums: Vec<Mutex<ItemHasher>>,
    blank: ItemHasher,
    bytes: AtomicU64,
    items: AtomicU64,
    of_bytes: u64,
}

/// See `DataService::copy`.
pub(super) async fn copy(subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
    let what = format!("can't save \"{}\"", subject.name);
    let snapshot = Snapshot::parse(subject, snapshot)?;
    let connected = connect(subject, Purpose::Save).await?;
    let version = connected.version.clone();
    let before = catalog::read(subject, &connected).await?;
    if let Some(gap) = before.gaps.iter().find(|gap| gap.blocking) {
        return Err(TaskFailure::permanent("data.unsupported", what, format!("{}: {}", gap.what, gap.why))
            .next(gap.next.clone()));
    }
    let (mut facts, mut notices) = (before.facts, before.notices);
    let one_instant = snapshot.is_one_instant();
    if one_instant && facts.digest() != snapshot.catalog {
        return Err(moving(what, "before it was read"));
    }
    facts.accounts = accounts::read(subject, &connected).await?;
    facts.accounts.let_in = accounts::let_in(subject).await?;
    let sizes = catalog::sizes(subject, &connected, &facts).await?;
    let collections: Vec<(Collection, Size)> =
        facts.collections.iter().filter(|one| !one.view).cloned().zip(sizes.iter().copied()).collect();
    let reading = Reading { subject: subject.clone(), connected, at: snapshot.at, still: snapshot.frozen };
    let (streams, reading) = everything(reading, collections, writer).await?;
    let connected = reading.connected;
    let after = catalog::read(subject, &connected).await?.facts;
    let mut changed = facts.differences(&after);
    if one_instant && !changed.is_empty() {
        return Err(moving(what, &changed.join(", ")));
    }
    if !one_instant {
        let sizes_after = catalog::sizes(subject, &connected, &after).await?;
        changed.extend(moved(&facts, &sizes, &after, &sizes_after, &streams));
    }
    if snapshot.frozen && !changed.is_empty() {
        let cause = format!("its writes were held, but it changed: {}", changed.join(", "));
        return Err(TaskFailure::retryable("save.frozen-changed", what, cause));
    }
    let capped: Vec<String> =
        facts.collections.iter().filter(|one| one_instant && one.is_capped()).map(Collection::stream).collect();
    if !capped.is_empty() {
        notices.push(format!(
            "capped collections have no snapshots, these are as they were when they were read: {}",
            capped.join(", ")
        ));
    }
    notices.extend(facts.accounts.notice());
    changed.sort();
    let changed_count = changed.len() as u64;
    changed.truncate(MOST_CHANGED);
    let level =
        if one_instant || snapshot.frozen { ConsistencyLevel::Snapshot } else { ConsistencyLevel::Inconsistent };
    Ok(Copied {
        streams,
        consistency: Consistency { level, why: snapshot.why, changed, changed_count, frozen_ms: 0 },
        version: Some(version),
        features: facts.features(),
        notices,
        facts: serde_json::to_string(&facts).map_err(|error| TaskFailure::permanent("data.facts", what, error))?,
    })
}

fn moving(what: String, how: &str) -> TaskFailure {
    TaskFailure::retryable("data.moving", what, format!("its collections or indexes changed while it was saved: {how}"))
        .next("it is tried again; save when no migration is running")
}

/// Collections whose documents or bytes are not those of a moment ago, or were not all read.
fn moved(before: &Facts, sizes: &[Size], after: &Facts, sizes_after: &[Size], streams: &[StreamInfo]) -> Vec<String> {
    let named = |facts: &Facts, sizes: &[Size]| -> std::collections::BTreeMap<String, Size> {
        facts.collections.iter().filter(|one| !one.view).map(Collection::stream).zip(sizes.iter().copied()).collect()
    };
    let (before, after) = (named(before, sizes), named(after, sizes_after));
    let mut out = Vec::new();
    for stream in streams {
        let (Some(was), Some(is)) = (before.get(&stream.name), after.get(&stream.name)) else { continue };
        if was.documents != is.documents || stream.items != is.documents {
            out.push(format!(
                "{} ({} documents, then {}; {} were read)",
                stream.name, was.documents, is.documents, stream.items
            ));
        } else if was.bytes != is.bytes {
            out.push(format!("{} ({} bytes, then {})", stream.name, was.bytes, is.bytes));
        }
    }
    out
}

/// Copies all documents of these collections to streams of their own.
async fn everything(
    reading: Reading,
    collections: Vec<(Collection, Size)>,
    writer: &DataWriter,
) -> Result<(Vec<StreamInfo>, Reading), TaskFailure> {
    // The biggest first, so that the end isn't one connection's work alone.
    let mut order: Vec<usize> = (0..collections.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(collections[*index].1.bytes));
    let (mut queue, mut waiting) = (VecDeque::new(), Vec::new());
    for index in order {
        let (one, size) = &collections[index];
        let mut receivers = Vec::new();
        for filter in reading.ranges(one, *size).await? {
            let (sink, receiver) = mpsc::channel(WAITING);
            queue.push_back(Job { collection: index, filter, sink });
            receivers.push(receiver);
        }
        waiting.push((index, receivers));
    }
    let shared = Arc::new(Shared {
        sums: collections.iter().map(|_| Mutex::new(writer.item_hasher())).collect(),
        blank: writer.item_hasher(),
        bytes: AtomicU64::new(0),
        items: AtomicU64::new(0),
        of_bytes: collections.iter().map(|(_, size)| size.bytes).sum(),
        queue: Mutex::new(queue),
        collections,
        reading,
    });
    let big = |(_, size): &(Collection, Size)| size.bytes / size.documents.max(1) > BIG;
    let at_once = if shared.collections.iter().any(big) { WORKERS_OF_BIG } else { WORKERS };
    let workers: Vec<_> = (0..at_once).map(|_| work(Arc::clone(&shared)).boxed()).collect();
    let writers: Vec<_> = waiting
        .into_iter()
        .map(|(index, receivers)| write(Arc::clone(&shared), writer, index, receivers).boxed())
        .collect();
    let most = writers.len().max(1);
    let reading = futures::future::try_join_all(workers);
    let writing = stream::iter(writers).buffer_unordered(most).try_collect::<Vec<StreamInfo>>();
    let (_, mut streams) = futures::try_join!(reading, writing)?;
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let shared = Arc::into_inner(shared).ok_or_else(|| TaskFailure::cancelled("can't end the copy"))?;
    Ok((streams, shared.reading))
}

/// One connection's work: part after part.
async fn work(shared: Arc<Shared>) -> Result<(), TaskFailure> {
    let room = room();
    loop {
        let next = shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(job) = next else { return Ok(()) };
        let (one, size) = &shared.collections[job.collection];
        let read = shared.reading.part(one, job.filter.as_ref(), *size, shared.blank.clone(), &room, Some(&job.sink));
        let hasher = read.await?;
        shared.sums[job.collection].lock().unwrap_or_else(PoisonError::into_inner).merge(&hasher);
        // The word that this part is whole; without it the writer waits for the failure.
        if job.sink.send(None).await.is_err() {
            return Err(TaskFailure::cancelled(format!("can't save \"{}\"", shared.reading.subject.name)));
        }
    }
}

/// Writes one collection's stream from its parts, in their order.
async fn write(
    shared: Arc<Shared>,
    writer: &DataWriter,
    index: usize,
    parts: Vec<mpsc::Receiver<Option<Batch>>>,
) -> Result<StreamInfo, TaskFailure> {
    let subject = &shared.reading.subject;
    let what = format!("can't save \"{}\"", subject.name);
    let store = |error: ocopea_repository::Error| repository(&what, &error);
    let name = shared.collections[index].0.stream();
    let mut stream = None;
    for mut part in parts {
        loop {
            let Some(received) = part.recv().await else {
                // Its reader failed, and that failure is what ends the copy: never a stream cut short.
                std::future::pending::<()>().await;
                continue;
            };
            if stream.is_none() {
                stream = Some(writer.stream(name.as_bytes()).await.map_err(store)?);
            }
            let (Some(stream), Some(batch)) = (&mut stream, received) else { break };
            for mut rest in batch.pieces {
                while !rest.is_empty() {
                    let piece = rest.split_to(rest.len().min(PIECE));
                    stream.write(piece).await.map_err(store)?;
                }
            }
            let bytes = shared.bytes.fetch_add(batch.bytes, Relaxed) + batch.bytes;
            let items = shared.items.fetch_add(batch.items, Relaxed) + batch.items;
            (subject.progress)(Progress {
                phase: "reading".to_owned(),
                bytes,
                of_bytes: shared.of_bytes.max(bytes),
                new_bytes: writer.written().new_bytes,
                items,
            });
        }
    }
    let Some(stream) = stream else { return Err(TaskFailure::cancelled(what)) };
    let sum = shared.sums[index].lock().unwrap_or_else(PoisonError::into_inner).clone();
    let facts = StreamFacts {
        unit: "documents".to_owned(),
        items: sum.items(),
        item_hash: sum.sum(),
        ..StreamFacts::default()
    };
    let summary = stream.finish(facts).await.map_err(store)?;
    Ok(StreamInfo {
        name,
        unit: "documents".to_owned(),
        items: sum.items(),
        bytes: summary.bytes,
        content: hex::encode(sum.sum()),
    })
}
