//! Streams → server, and counting what arrived.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo, task::Progress};
use ocopea_repository::DataReader;

use super::{
    catalog::{self, Collection, Facts},
    connect::{Connected, OWN, connect, within},
    copy::read,
};
use crate::{
    data::{Loaded, Subject},
    failures::repository,
};

/// Collections that are loaded at the same time.
const AT_ONCE: usize = 3;
/// Documents and bytes that are sent together.
const BATCH_DOCUMENTS: usize = 5_000;
const BATCH_BYTES: usize = 12 * 1024 * 1024;
/// BSON's own limit, with room for what servers allow themselves.
const LONGEST_DOCUMENT: usize = 16 * 1024 * 1024 + 16 * 1024;

pub(super) async fn load(subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
    let facts: Facts = serde_json::from_str(reader.facts())
        .map_err(|error| TaskFailure::permanent("data.facts", format!("can't load \"{}\"", subject.name), error))?;
    let connected = connect(subject).await?;
    drop_what_is_there(subject, &connected).await?;
    let of_bytes = saved.iter().map(|stream| stream.bytes).sum();
    let done = AtomicU64::new(0);
    let loads = facts.collections.iter().filter(|c| !c.view).map(|one| {
        let one = one.clone();
        let (connected, done) = (&connected, &done);
        async move { load_one(subject, connected, reader, &one, done, of_bytes).await }
    });
    let loads: Vec<_> = loads.collect();
    let mut streams: Vec<StreamInfo> = stream::iter(loads).buffer_unordered(AT_ONCE).try_collect().await?;
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    make_views(subject, &connected, &facts).await?;
    // Last: an index that lets documents expire must not take any away before they were counted.
    for one in facts.collections.iter().filter(|c| !c.view) {
        make_indexes(subject, &connected, one, true).await?;
        check_indexes(subject, &connected, one).await?;
    }
    Ok(Loaded { streams, notices: Vec::new() })
}

/// What the target's own start made has no place beside what was saved.
async fn drop_what_is_there(subject: &Subject, connected: &Connected) -> Result<(), TaskFailure> {
    let client = &connected.client;
    for name in within(subject, "list the databases of", async { client.list_database_names().await }).await? {
        if !OWN.contains(&name.as_str()) {
            within(subject, "empty", async { client.database(&name).drop().await }).await?;
        }
    }
    Ok(())
}

async fn load_one(
    subject: &Subject,
    connected: &Connected,
    reader: &DataReader,
    one: &Collection,
    done: &AtomicU64,
    of_bytes: u64,
) -> Result<StreamInfo, TaskFailure> {
    let what = format!("can't load {} into \"{}\"", one.stream(), subject.name);
    let mut command = doc! {"create": &one.name};
    command.extend(catalog::decode(&one.options)?);
    let database = connected.client.database(&one.database);
    within(subject, "make a collection in", async { database.run_command(command).await }).await?;
    let handle = database.collection::<RawDocumentBuf>(&one.name);
    let mut pieces = reader.read(one.stream().as_bytes()).await.map_err(|error| repository(&what, &error))?;
    let mut buffer = BytesMut::new();
    let mut batch: Vec<RawDocumentBuf> = Vec::new();
    let mut batch_bytes = 0;
    loop {
        let piece = pieces.next().await.transpose().map_err(|error| repository(&what, &error))?;
        let ended = piece.is_none();
        if let Some(piece) = piece {
            buffer.extend_from_slice(&piece);
        }
        while let Some(document) = next_document(&mut buffer).map_err(|why| TaskFailure::permanent("data.stream", what.clone(), why))? {
            batch_bytes += document.as_bytes().len();
            batch.push(document);
            if batch.len() >= BATCH_DOCUMENTS || batch_bytes >= BATCH_BYTES {
                insert(subject, &handle, &mut batch).await?;
                report(subject, done, batch_bytes, of_bytes);
                batch_bytes = 0;
            }
        }
        if ended {
            break;
        }
    }
    if !buffer.is_empty() {
        return Err(TaskFailure::permanent("data.stream", what, format!("{} bytes behind the last whole document", buffer.len())));
    }
    if !batch.is_empty() {
        insert(subject, &handle, &mut batch).await?;
        report(subject, done, batch_bytes, of_bytes);
    }
    make_indexes(subject, connected, one, false).await?;
    let found = read(subject, connected, one, reader.item_hasher(), |_| async { Ok(()) }).await?;
    Ok(StreamInfo {
        name: one.stream(),
        unit: "documents".to_owned(),
        items: found.items,
        bytes: found.bytes,
        content: hex::encode(found.hash.sum()),
    })
}

fn report(subject: &Subject, done: &AtomicU64, bytes: usize, of_bytes: u64) {
    let bytes = done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
    (subject.progress)(Progress { phase: "loading".to_owned(), bytes, of_bytes, ..Progress::default() });
}

/// Takes one whole document off the front; `None` when more bytes are needed.
fn next_document(buffer: &mut BytesMut) -> Result<Option<RawDocumentBuf>, String> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(i32::from_le_bytes(*head)).map_err(|_| "a document claims a negative length".to_owned())?;
    if !(5..=LONGEST_DOCUMENT).contains(&length) {
        return Err(format!("a document claims {length} bytes"));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let bytes = buffer[..length].to_vec();
    buffer.advance(length);
    RawDocumentBuf::from_bytes(bytes).map(Some).map_err(|error| format!("a document is not BSON: {error}"))
}

async fn insert(
    subject: &Subject,
    handle: &mongodb::Collection<RawDocumentBuf>,
    batch: &mut Vec<RawDocumentBuf>,
) -> Result<(), TaskFailure> {
    let documents = std::mem::take(batch);
    within(subject, "load documents into", async {
        handle.insert_many(&documents).ordered(false).bypass_document_validation(true).await
    })
    .await?;
    Ok(())
}

async fn make_views(subject: &Subject, connected: &Connected, facts: &Facts) -> Result<(), TaskFailure> {
    for view in facts.collections.iter().filter(|c| c.view) {
        // A view may stand on another: servers check that only when it is read, so any order does.
        let mut command = doc! {"create": &view.name};
        command.extend(catalog::decode(&view.options)?);
        let database = connected.client.database(&view.database);
        within(subject, "make a view in", async { database.run_command(command).await }).await?;
    }
    Ok(())
}

fn expires(index: &Document) -> bool {
    index.contains_key("expireAfterSeconds")
}

async fn make_indexes(subject: &Subject, connected: &Connected, one: &Collection, expiring: bool) -> Result<(), TaskFailure> {
    let mut wanted = Vec::new();
    for text in &one.indexes {
        let index = catalog::decode(text)?;
        if expires(&index) == expiring {
            wanted.push(index);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let command = doc! {"createIndexes": &one.name, "indexes": wanted};
    let database = connected.client.database(&one.database);
    // Building takes as long as it takes: the task's own deadline and cancellation bound it.
    tokio::select! {
        () = subject.stop.cancelled() => Err(TaskFailure::cancelled(format!("stopped: build indexes of \"{}\"", subject.name))),
        built = async { database.run_command(command).await } => match built {
            Ok(_) => Ok(()),
            Err(error) => Err(super::connect::failure(subject, &format!("build the indexes of {} in", one.stream()), &error)),
        }
    }
}

async fn check_indexes(subject: &Subject, connected: &Connected, one: &Collection) -> Result<(), TaskFailure> {
    let found = catalog::indexes(subject, connected, &one.database, &one.name).await?;
    let missing: Vec<String> = one
        .indexes
        .iter()
        .map(|text| catalog::decode(text))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter_map(|index| index.get_str("name").map(str::to_owned).ok())
        .filter(|name| !found.iter().any(|index| index.get_str("name").is_ok_and(|found| found == name)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(TaskFailure::permanent(
        "data.arrival",
        format!("not all indexes of {} arrived in \"{}\"", one.stream(), subject.name),
        format!("missing: {}", missing.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_cut_out_of_any_pieces() {
        let one = RawDocumentBuf::try_from(&doc! {"a": 1}).unwrap();
        let two = RawDocumentBuf::try_from(&doc! {"b": "two"}).unwrap();
        let all = [one.as_bytes(), two.as_bytes()].concat();
        for size in 1..all.len() {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for piece in all.chunks(size) {
                buffer.extend_from_slice(piece);
                while let Some(document) = next_document(&mut buffer).unwrap() {
                    found.push(document);
                }
            }
            assert_eq!(found, [one.clone(), two.clone()]);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn lying_lengths_are_refused() {
        for length in [-1i32, 0, 4, i32::MAX] {
            let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
            assert!(next_document(&mut buffer).is_err(), "{length}");
        }
    }
}
