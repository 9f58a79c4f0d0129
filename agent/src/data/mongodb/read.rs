//! Documents out of a collection: hashed one by one, in order, and several ranges at once where that is safe.
//!
//! While one batch is hashed and handed on, the server already works on the next. A batch is what the server sent: big
//! documents are handed on without a copy, small ones are laid end to end once.
//!
//! A big collection is cut into ranges of `_id`, each read by a connection of its own, if the server says that it
//! walks the index for that and the ids are of one kind whose order is plain. The ranges and a last query for whatever
//! is in none of them are complete by logic, whatever the order is: every document is below the first boundary, at or
//! above it, or neither.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use mongodb::{
    bson::{Bson, Document, Timestamp, doc},
    raw_batch_cursor::RawBatch,
};
use ocopea_protocol::failure::TaskFailure;
use ocopea_repository::ItemHasher;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    catalog::{Collection, Size},
    connect::{COMMAND, Connected, run, stopped, within},
    raw::{self, Malformed},
};
use crate::data::Subject;

/// Bytes that one answer of the server should have; it stops at 16 MB by itself.
const ANSWER: u64 = 2 * 1024 * 1024;
/// Small documents are handed on together in pieces of about this size.
const PIECE: usize = 1024 * 1024;
/// Documents of this size are handed on without a copy.
const BIG: usize = 128 * 1024;
/// Bytes that one connection has read and nobody has taken yet.
const ROOM: u32 = 8 * 1024 * 1024;
/// A collection bigger than this is read in ranges of about the size below.
const RANGES_FROM: u64 = 64 * 1024 * 1024;
const RANGE: u64 = 16 * 1024 * 1024;
const MOST_RANGES: u64 = 256;
/// Ids that are drawn for each boundary.
const DRAWN: u64 = 20;

/// A server that is read, at one instant or as it stands.
pub(super) struct Reading {
    pub(super) subject: Subject,
    pub(super) connected: Connected,
    /// The snapshot's time: seconds and increment.
    pub(super) at: Option<(u32, u32)>,
    /// Whether nobody writes to it meanwhile.
    pub(super) still: bool,
}

/// What was read at once.
pub(super) struct Batch {
    pub(super) pieces: Vec<Bytes>,
    pub(super) bytes: u64,
    pub(super) items: u64,
    _room: OwnedSemaphorePermit,
}

/// The room of one connection.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM as usize))
}

struct Answer(RawBatch);

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        self.0.as_raw_document().as_bytes()
    }
}

impl Reading {
    fn read_concern(&self, one: &Collection) -> Option<Document> {
        // Capped collections have no snapshots.
        let (time, increment) = self.at.filter(|_| !one.is_capped())?;
        Some(doc! {"level": "snapshot", "atClusterTime": Timestamp { time, increment }})
    }

    /// Whether a whole collection is read along its ids: a document that is deleted and inserted again while it is
    /// read, as sessions and queues are, would else be seen twice, and an image with one `_id` twice can't be loaded.
    fn walks_ids(&self, one: &Collection) -> bool {
        self.at.is_none() && !self.still && !one.is_capped() && !one.has("clusteredIndex")
    }

    /// Reads a part of a collection: hashed, and its batches sent to `sink`, if there is one.
    pub(super) async fn part(
        &self,
        one: &Collection,
        filter: Option<&Document>,
        size: Size,
        hasher: ItemHasher,
        room: &Arc<Semaphore>,
        sink: Option<&mpsc::Sender<Option<Batch>>>,
    ) -> Result<ItemHasher, TaskFailure> {
        let subject = &self.subject;
        let verb = format!("read {} of", one.stream());
        let average = (size.bytes / size.documents.max(1)).clamp(16, ANSWER);
        let batch_size = u32::try_from(ANSWER / average).unwrap_or(1).max(1);
        let mut command = doc! {"find": &one.name, "batchSize": batch_size};
        if let Some(filter) = filter {
            command.insert("filter", filter.clone());
            command.insert("hint", doc! {"_id": 1});
        } else if self.walks_ids(one) {
            command.insert("hint", doc! {"_id": 1});
        }
        if let Some(concern) = self.read_concern(one) {
            command.insert("readConcern", concern);
        }
        let database = self.connected.client.database(&one.database);
        let (batches, mut batched) = mpsc::channel::<(RawBatch, OwnedSemaphorePermit)>(1);
        let fetching = async {
            let batches = batches;
            let open = async |command: Document| {
                within(subject, &verb, database.run_cursor_command(command).batch_size(batch_size).batch()).await
            };
            let mut cursor = match open(command.clone()).await {
                // It may have no such index, or not know the word.
                Err(failure) if filter.is_none() && failure.code == COMMAND && command.remove("hint").is_some() => {
                    open(command).await?
                }
                other => other?,
            };
            while let Some(batch) = within(subject, &verb, async { cursor.next().await.transpose() }).await? {
                // Before the next one is asked for: an answer may have 16 MB.
                let length = u32::try_from(batch.as_raw_document().as_bytes().len()).unwrap_or(ROOM).min(ROOM);
                let permit = room.clone().acquire_many_owned(length).await.map_err(|_| stopped(subject, &verb))?;
                if batches.send((batch, permit)).await.is_err() {
                    return Err(stopped(subject, &verb));
                }
            }
            Ok(())
        };
        let hashing = async {
            let mut hasher = hasher;
            while let Some((batch, permit)) = batched.recv().await {
                let keep = sink.is_some();
                let digested = subject.seams.compute("hash documents", move || digest(batch, hasher, keep)).await;
                let digested = digested.ok_or_else(|| stopped(subject, &verb))?.map_err(|error| {
                    TaskFailure::permanent("data.answer", format!("can't {verb} \"{}\"", subject.name), error)
                })?;
                hasher = digested.hasher;
                let Some(sink) = sink.filter(|_| digested.items > 0) else { continue };
                let batch =
                    Batch { pieces: digested.pieces, bytes: digested.bytes, items: digested.items, _room: permit };
                if sink.send(Some(batch)).await.is_err() {
                    return Err(stopped(subject, &verb));
                }
            }
            Ok(hasher)
        };
        let ((), hasher) = futures::try_join!(fetching, hashing)?;
        Ok(hasher)
    }

    /// The filters of the ranges that a collection is best read in; one `None` for all of it.
    pub(super) async fn ranges(&self, one: &Collection, size: Size) -> Result<Vec<Option<Document>>, TaskFailure> {
        let whole = vec![None];
        if size.bytes < RANGES_FROM || one.is_capped() || one.has("clusteredIndex") || one.has("collation") {
            return Ok(whole);
        }
        let parts = (size.bytes / RANGE).clamp(2, MOST_RANGES);
        match self.boundaries(one, parts).await {
            Ok(boundaries) if !boundaries.is_empty() => Ok(filters(&boundaries)),
            Ok(_) => Ok(whole),
            Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
            // A server that can't say is read by one cursor.
            Err(_) => Ok(whole),
        }
    }

    async fn boundaries(&self, one: &Collection, parts: u64) -> Result<Vec<Bson>, TaskFailure> {
        let ask = |command: Document| run(&self.subject, &self.connected, &one.database, "look for ranges of", command);
        let plan = ask(doc! {
            "explain": {"find": &one.name, "filter": {"_id": {"$gte": 0}}, "hint": {"_id": 1}},
            "verbosity": "queryPlanner",
        })
        .await?;
        if !plan.to_string().contains("\"IXSCAN\"") {
            return Ok(Vec::new());
        }
        let drawn = i64::try_from(parts * DRAWN).unwrap_or(1000);
        let mut command = doc! {
            "aggregate": &one.name,
            "pipeline": [{"$sample": {"size": drawn}}, {"$project": {"_id": 1}}, {"$sort": {"_id": 1}}],
            "cursor": {"batchSize": drawn},
        };
        if let Some(concern) = self.read_concern(one) {
            command.insert("readConcern", concern);
        }
        let answer = ask(command).await?;
        let batch = answer
            .get_document("cursor")
            .and_then(|cursor| cursor.get_array("firstBatch"))
            .cloned()
            .unwrap_or_default();
        let ids: Vec<Bson> = batch.into_iter().filter_map(|one| one.as_document()?.get("_id").cloned()).collect();
        Ok(chosen(ids, usize::try_from(parts).unwrap_or(2)))
    }
}

/// Boundaries among drawn ids; none if their kinds differ or have no plain order.
fn chosen(ids: Vec<Bson>, parts: usize) -> Vec<Bson> {
    let kind = |id: &Bson| match id {
        Bson::ObjectId(_) => Some(0),
        Bson::String(_) => Some(1),
        Bson::Int32(_) | Bson::Int64(_) => Some(2),
        Bson::DateTime(_) => Some(3),
        Bson::Binary(_) => Some(4),
        _ => None,
    };
    let Some(first) = ids.first().and_then(kind) else { return Vec::new() };
    if ids.len() < parts || ids.iter().any(|id| kind(id) != Some(first)) {
        return Vec::new();
    }
    let step = ids.len() / parts;
    let mut out: Vec<Bson> = ids.into_iter().step_by(step.max(1)).skip(1).take(parts - 1).collect();
    out.dedup();
    out
}

/// Ranges between boundaries in ascending order, and what is comparable with none of them.
fn filters(boundaries: &[Bson]) -> Vec<Option<Document>> {
    let (Some(first), Some(last)) = (boundaries.first(), boundaries.last()) else { return vec![None] };
    let mut out = vec![doc! {"_id": {"$lt": first.clone()}}];
    for pair in boundaries.windows(2) {
        if let [from, to] = pair {
            out.push(doc! {"_id": {"$gte": from.clone(), "$lt": to.clone()}});
        }
    }
    out.push(doc! {"_id": {"$gte": last.clone()}});
    out.push(doc! {"$nor": [{"_id": {"$lt": first.clone()}}, {"_id": {"$gte": first.clone()}}]});
    out.into_iter().map(Some).collect()
}

struct Digested {
    pieces: Vec<Bytes>,
    hasher: ItemHasher,
    bytes: u64,
    items: u64,
}

/// Hashes the documents of an answer, and lays them end to end.
fn digest(batch: RawBatch, mut hasher: ItemHasher, keep: bool) -> Result<Digested, Malformed> {
    let answer = Bytes::from_owner(Answer(batch));
    let documents = raw::batch_of(&answer)?;
    let (mut pieces, mut buffer) = (Vec::new(), BytesMut::new());
    let (mut bytes, before) = (0, hasher.items());
    for element in raw::elements(documents)? {
        let document = element?.value;
        hasher.add(document);
        bytes += document.len() as u64;
        if !keep {
            continue;
        }
        if document.len() >= BIG {
            if !buffer.is_empty() {
                pieces.push(std::mem::take(&mut buffer).freeze());
            }
            pieces.push(answer.slice_ref(document));
            continue;
        }
        if buffer.capacity() == 0 {
            buffer.reserve(documents.len().min(PIECE + BIG));
        }
        buffer.extend_from_slice(document);
        if buffer.len() >= PIECE {
            pieces.push(std::mem::take(&mut buffer).freeze());
        }
    }
    if !buffer.is_empty() {
        pieces.push(buffer.freeze());
    }
    let items = hasher.items() - before;
    Ok(Digested { pieces, hasher, bytes, items })
}

#[cfg(test)]
mod tests {
    use mongodb::bson::oid::ObjectId;

    use super::*;

    #[test]
    fn ranges_meet_without_gap_or_overlap_and_what_is_outside_has_a_query_of_its_own() {
        let filters = filters(&[Bson::Int32(10), Bson::Int32(20)]);
        let texts: Vec<String> = filters.into_iter().map(|filter| filter.unwrap().to_string()).collect();
        assert_eq!(
            texts,
            [
                r#"{ "_id": { "$lt": 10 } }"#,
                r#"{ "_id": { "$gte": 10, "$lt": 20 } }"#,
                r#"{ "_id": { "$gte": 20 } }"#,
                r#"{ "$nor": [{ "_id": { "$lt": 10 } }, { "_id": { "$gte": 10 } }] }"#
            ]
        );
    }

    #[test]
    fn boundaries_are_taken_only_from_ids_of_one_plain_kind() {
        let numbers: Vec<Bson> = (0..100).map(Bson::Int32).collect();
        assert_eq!(chosen(numbers.clone(), 4), [25, 50, 75].map(Bson::Int32));
        let mut mixed = numbers.clone();
        mixed[50] = Bson::String("x".to_owned());
        assert!(chosen(mixed, 4).is_empty());
        assert!(chosen(vec![Bson::Double(f64::NAN); 50], 4).is_empty());
        assert!(chosen(vec![], 4).is_empty());
        assert_eq!(chosen(vec![Bson::ObjectId(ObjectId::from_bytes([1; 12])); 50], 4).len(), 1);
    }
}
