//! Server → streams.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use mongodb::bson::{RawDocumentBuf, doc};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{ConsistencyLevel, StreamInfo},
    task::Progress,
};
use ocopea_repository::{DataWriter, ItemHasher, StreamFacts};

use super::{
    catalog::{self, Collection},
    connect::{Connected, connect, within},
    consistency,
};
use crate::{
    data::{Copied, Subject},
    failures::repository,
};

/// Collections that are read at the same time.
const AT_ONCE: usize = 3;
/// Bytes that are handed on together.
const PIECE: usize = 1024 * 1024;
/// Documents per answer of the server; it also stops at 16 MB.
const BATCH: u32 = 10_000;
/// Names of changed collections that are kept.
const MOST_CHANGED: usize = 100;

/// Documents read, hashed and counted.
pub(super) struct Read {
    pub(super) items: u64,
    pub(super) bytes: u64,
    pub(super) hash: ItemHasher,
}

/// Reads a whole collection and gives its bytes in pieces.
pub(super) async fn read<F>(
    subject: &Subject,
    connected: &Connected,
    one: &Collection,
    mut hasher: ItemHasher,
    mut give: impl FnMut(Bytes) -> F,
) -> Result<Read, TaskFailure>
where
    F: Future<Output = Result<(), TaskFailure>>,
{
    let handle = connected.client.database(&one.database).collection::<RawDocumentBuf>(&one.name);
    let mut cursor = within(subject, "read", async { handle.find(doc! {}).batch_size(BATCH).no_cursor_timeout(false).await }).await?;
    let (mut items, mut bytes) = (0u64, 0u64);
    let mut piece = BytesMut::with_capacity(PIECE + 64 * 1024);
    while within(subject, "read", cursor.advance()).await? {
        let document = cursor.current().as_bytes();
        hasher.add(document);
        piece.extend_from_slice(document);
        items += 1;
        bytes += document.len() as u64;
        if piece.len() >= PIECE {
            give(piece.split().freeze()).await?;
        }
    }
    if !piece.is_empty() {
        give(piece.freeze()).await?;
    }
    Ok(Read { items, bytes, hash: hasher })
}

pub(super) async fn copy(subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
    let connected = connect(subject).await?;
    let (facts, _) = catalog::read(subject, &connected).await?;
    let of_bytes = catalog::bytes(subject, &connected, &facts).await?.unwrap_or(0);
    let frozen = serde_json::from_str::<serde_json::Value>(snapshot).is_ok_and(|s| s["frozen"] == true);
    let (done_bytes, done_items) = (AtomicU64::new(0), AtomicU64::new(0));
    let what = format!("can't save \"{}\"", subject.name);
    // Owned items: with borrowed ones the compiler can't see that the future may move between threads.
    let collections: Vec<Collection> = facts.collections.iter().filter(|c| !c.view).cloned().collect();
    let copies = collections.into_iter().map(|one| {
        let (connected, done_bytes, done_items, what) = (&connected, &done_bytes, &done_items, what.as_str());
        async move {
            let before = catalog::count(subject, connected, &one.database, &one.name).await?;
            let name = one.stream();
            let stream = writer.stream(name.as_bytes()).await.map_err(|error| repository(what, &error))?;
            let stream = tokio::sync::Mutex::new(stream);
            let hasher = writer.item_hasher();
            let read = read(subject, connected, &one, hasher, |piece| {
                let stream = &stream;
                async move {
                    let bytes = done_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
                    (subject.progress)(Progress {
                        phase: "reading".to_owned(),
                        bytes,
                        of_bytes,
                        new_bytes: writer.written().new_bytes,
                        items: done_items.load(Ordering::Relaxed),
                    });
                    stream.lock().await.write(piece).await.map_err(|error| repository(what, &error))
                }
            })
            .await?;
            done_items.fetch_add(read.items, Ordering::Relaxed);
            let facts = StreamFacts {
                unit: "documents".to_owned(),
                items: read.items,
                item_hash: read.hash.sum(),
                ..StreamFacts::default()
            };
            stream.into_inner().finish(facts).await.map_err(|error| repository(what, &error))?;
            let after = catalog::count(subject, connected, &one.database, &one.name).await?;
            let info = StreamInfo {
                name,
                unit: "documents".to_owned(),
                items: read.items,
                bytes: read.bytes,
                content: hex::encode(read.hash.sum()),
            };
            Ok::<_, TaskFailure>((info, before != after || after != read.items))
        }
    });
    let copied: Vec<(StreamInfo, bool)> = stream::iter(copies).buffer_unordered(AT_ONCE).try_collect().await?;
    let (after, _) = catalog::read(subject, &connected).await?;
    let mut consistency = consistency(&connected, 0);
    let mut changed: Vec<String> = copied.iter().filter(|(_, moved)| *moved).map(|(info, _)| info.name.clone()).collect();
    for one in &after.collections {
        if !facts.collections.contains(one) {
            changed.push(format!("{} (made or changed meanwhile)", one.stream()));
        }
    }
    for one in &facts.collections {
        if !after.collections.iter().any(|other| other.stream() == one.stream()) {
            changed.push(format!("{} (dropped meanwhile)", one.stream()));
        }
    }
    if frozen {
        if !changed.is_empty() {
            return Err(TaskFailure::retryable("save.frozen-changed", what, format!("its writes were held, but it changed: {}", changed.join(", "))));
        }
        consistency.level = ConsistencyLevel::Snapshot;
        consistency.why = "writes were held".to_owned();
    }
    changed.sort();
    consistency.changed_count = changed.len() as u64;
    changed.truncate(MOST_CHANGED);
    consistency.changed = changed;
    let mut streams: Vec<StreamInfo> = copied.into_iter().map(|(info, _)| info).collect();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    let version = connected.version.clone();
    Ok(Copied {
        streams,
        consistency,
        version: Some(version),
        features: Vec::new(),
        notices: vec!["accounts and roles of the server are not part of the copy: they come back as its own configuration makes them".to_owned()],
        facts: serde_json::to_string(&facts).map_err(|error| TaskFailure::permanent("data.facts", what, error))?,
    })
}
