//! A stream's documents into a collection, in batches that the server takes, none of which may go missing unseen.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use memchr::memmem;
use mongodb::bson::{Document, RawDocumentBuf};
use ocopea_protocol::{failure::TaskFailure, task::Progress};
use ocopea_repository::DataReader;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    catalog::Collection,
    connect::{Connected, Limits, failure, number, stopped, within},
    raw::{self, Malformed},
};
use crate::{data::Subject, failures::repository};

/// Bytes that one command should carry.
const TARGET: usize = 2 * 1024 * 1024;
/// Bytes of documents that are on their way to the server at once, in all.
const ROOM: u32 = 20 * 1024 * 1024;
/// Commands of one collection that are on their way at once.
const AT_ONCE: usize = 2;
/// An `_id` that is there already: there is no other unique index yet, and an image has each once. An attempt that was
/// cut off may still have inserted it after the next one had emptied the server.
const DUPLICATE: u64 = 11000;
/// Documents that are named.
const MOST_NAMED: usize = 10;

/// What the inserts of a load share.
pub(super) struct Inserting<'a> {
    pub(super) subject: &'a Subject,
    pub(super) connected: &'a Connected,
    pub(super) reader: &'a DataReader,
    pub(super) limits: Limits,
    pub(super) room: Arc<Semaphore>,
    pub(super) done: AtomicU64,
    pub(super) of_bytes: u64,
    /// Documents whose empty timestamps the server filled in.
    pub(super) stamped: Mutex<Stamped>,
}

/// See [`Inserting::stamped`].
#[derive(Debug, Default)]
pub(super) struct Stamped {
    /// Whether the server keeps empty timestamps when it is asked to; unknown at first.
    keeps: Option<bool>,
    pub(super) count: u64,
    pub(super) streams: Vec<String>,
    pub(super) named: Vec<String>,
}

/// Whole documents, end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    documents: Bytes,
    count: usize,
    /// Whether one of them has an empty timestamp that servers fill in.
    stamps: bool,
}

/// Cuts a stream into blocks.
struct Cutter {
    buffer: BytesMut,
    whole: usize,
    count: usize,
    limits: Limits,
}

impl Cutter {
    fn new(limits: Limits) -> Self {
        Self { buffer: BytesMut::new(), whole: 0, count: 0, limits }
    }

    fn push(&mut self, piece: &[u8]) -> Result<Vec<Block>, Malformed> {
        self.buffer.extend_from_slice(piece);
        let mut blocks = Vec::new();
        while let Some(length) = raw::length_of(self.buffer.get(self.whole..).unwrap_or_default())? {
            if length > raw::LONGEST_DOCUMENT {
                return Err(Malformed::Length(length as i64));
            }
            if self.buffer.len() < self.whole + length {
                // The rest of a long one: room for it at once.
                self.buffer.reserve(self.whole + length - self.buffer.len());
                break;
            }
            // A command is a document itself and may be little longer than the longest one.
            if self.whole > 0 && self.whole + length > TARGET.max(self.limits.message / 4) {
                blocks.extend(self.cut());
            }
            self.whole += length;
            self.count += 1;
            if self.whole >= TARGET || self.count >= self.limits.documents {
                blocks.extend(self.cut());
            }
        }
        Ok(blocks)
    }

    fn cut(&mut self) -> Option<Block> {
        if self.count == 0 {
            return None;
        }
        let documents = self.buffer.split_to(self.whole).freeze();
        // A name's end and eight zero bytes: rare, and looked at closely only then.
        let stamps = memmem::find(&documents, &[0; 9]).is_some() && each(&documents).any(raw::has_empty_timestamp);
        let block = Block { documents, count: self.count, stamps };
        (self.whole, self.count) = (0, 0);
        Some(block)
    }

    /// The last block; bytes behind the last whole document are an error.
    fn end(mut self) -> Result<Option<Block>, Malformed> {
        let last = self.cut();
        if self.buffer.is_empty() { Ok(last) } else { Err(Malformed::Short) }
    }
}

/// The documents of a block.
fn each(documents: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = documents;
    std::iter::from_fn(move || {
        let length = raw::length_of(rest).ok()??;
        let (one, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(one)
    })
}

fn command(collection: &str, block: &Block, ordered: bool, keep_stamps: bool) -> Result<RawDocumentBuf, String> {
    let mut builder =
        raw::Builder::new().text("insert", collection).bool("ordered", ordered).bool("bypassDocumentValidation", true);
    if keep_stamps {
        builder = builder.bool("bypassEmptyTsReplacement", true);
    }
    builder.array("documents", each(&block.documents)).finish_raw().map_err(|error| error.to_string())
}

impl Inserting<'_> {
    pub(super) fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(ROOM as usize))
    }

    /// Inserts a whole stream.
    pub(super) async fn stream(&self, one: &Collection) -> Result<(), TaskFailure> {
        let what = format!("can't load {} into \"{}\"", one.stream(), self.subject.name);
        // A capped collection's order is part of its contents.
        let ordered = one.is_capped();
        let (blocks, ready) = mpsc::channel::<(Block, OwnedSemaphorePermit)>(1);
        let cutting = async {
            let blocks = blocks;
            let broken = |error: Malformed| {
                TaskFailure::permanent("repository.damaged", what.clone(), format!("stream {}: {error}", one.stream()))
            };
            let mut pieces =
                self.reader.read(one.stream().as_bytes()).await.map_err(|error| repository(&what, &error))?;
            let mut cutter = Cutter::new(self.limits);
            let send = async |block: Block| {
                let length = u32::try_from(block.documents.len()).unwrap_or(ROOM).min(ROOM);
                let permit =
                    self.room.clone().acquire_many_owned(length).await.map_err(|_| stopped(self.subject, "load"))?;
                blocks.send((block, permit)).await.map_err(|_| stopped(self.subject, "load"))
            };
            loop {
                let piece = tokio::select! {
                    biased;
                    () = self.subject.stop.cancelled() => return Err(stopped(self.subject, "load")),
                    piece = pieces.next() => piece.transpose().map_err(|error| repository(&what, &error))?,
                };
                let Some(piece) = piece else { break };
                let cut = self.subject.seams.compute("cut documents", move || {
                    let blocks = cutter.push(&piece);
                    (cutter, blocks)
                });
                let (back, found) = cut.await.ok_or_else(|| stopped(self.subject, "load"))?;
                cutter = back;
                for block in found.map_err(broken)? {
                    send(block).await?;
                }
            }
            if let Some(block) = cutter.end().map_err(broken)? {
                send(block).await?;
            }
            Ok(())
        };
        let at_once = if ordered { 1 } else { AT_ONCE };
        let inserting = ReceiverStream::new(ready)
            .map(|(block, permit)| async move {
                self.block(one, &block, ordered).await?;
                drop(permit);
                let bytes = self.done.fetch_add(block.documents.len() as u64, Relaxed) + block.documents.len() as u64;
                (self.subject.progress)(Progress {
                    phase: "loading".to_owned(),
                    bytes,
                    of_bytes: self.of_bytes,
                    ..Progress::default()
                });
                Ok::<(), TaskFailure>(())
            })
            .buffer_unordered(at_once)
            .try_collect::<Vec<()>>();
        futures::try_join!(cutting, inserting).map(|_| ())
    }

    async fn block(&self, one: &Collection, block: &Block, ordered: bool) -> Result<(), TaskFailure> {
        let keeps = self.stamped.lock().unwrap_or_else(PoisonError::into_inner).keeps;
        if !block.stamps {
            return self.send(one, block, ordered, false).await;
        }
        if keeps != Some(false) {
            match self.send(one, block, ordered, true).await {
                Ok(()) => {
                    if keeps.is_none() {
                        let kept = self.kept(one, block).await?;
                        self.stamped.lock().unwrap_or_else(PoisonError::into_inner).keeps = Some(kept);
                    }
                }
                // An older server doesn't know the word and has inserted nothing.
                Err(failure) if failure.cause.contains("bypassEmptyTsReplacement") => {
                    self.stamped.lock().unwrap_or_else(PoisonError::into_inner).keeps = Some(false);
                    self.send(one, block, ordered, false).await?;
                }
                Err(failure) => return Err(failure),
            }
        } else {
            self.send(one, block, ordered, false).await?;
        }
        let mut stamped = self.stamped.lock().unwrap_or_else(PoisonError::into_inner);
        if stamped.keeps == Some(false) {
            for document in each(&block.documents).filter(|document| raw::has_empty_timestamp(document)) {
                stamped.count += 1;
                if stamped.named.len() < MOST_NAMED {
                    stamped.named.push(format!("{} {}", one.stream(), raw::id_text(document)));
                }
            }
            if !stamped.streams.contains(&one.stream()) {
                stamped.streams.push(one.stream());
            }
        }
        Ok(())
    }

    /// Whether the server kept the first empty timestamp of a block as it is.
    async fn kept(&self, one: &Collection, block: &Block) -> Result<bool, TaskFailure> {
        let Some(document) = each(&block.documents).find(|document| raw::has_empty_timestamp(document)) else {
            return Ok(true);
        };
        let Some(id) = raw::get(document, "_id") else { return Ok(true) };
        let wanted = raw::Builder::new().value("$eq", &id).finish();
        let filter = raw::Builder::new().document("_id", &wanted).finish();
        let find = raw::Builder::new()
            .text("find", &one.name)
            .document("filter", &filter)
            .int("limit", 1)
            .bool("singleBatch", true);
        let find = super::catalog::command(self.subject, find)?;
        let database = self.connected.client.database(&one.database);
        let mut cursor = within(self.subject, "check", database.run_raw_cursor_command(find).batch()).await?;
        let found = within(self.subject, "check", async { cursor.next().await.transpose() }).await?;
        Ok(found.is_some_and(|found| {
            raw::batch_of(found.as_raw_document().as_bytes())
                .and_then(raw::elements)
                .is_ok_and(|mut documents| documents.any(|found| found.is_ok_and(|found| found.value == document)))
        }))
    }

    async fn send(&self, one: &Collection, block: &Block, ordered: bool, keep_stamps: bool) -> Result<(), TaskFailure> {
        let what = format!("can't load {} into \"{}\"", one.stream(), self.subject.name);
        let (name, of) = (one.name.clone(), block.clone());
        let built =
            self.subject.seams.compute("build a batch", move || command(&name, &of, ordered, keep_stamps)).await;
        let built = built
            .ok_or_else(|| stopped(self.subject, "load"))?
            .map_err(|error| TaskFailure::permanent("data.bson", what.clone(), error))?;
        let database = self.connected.client.database(&one.database);
        let verb = format!("load {} into", one.stream());
        let sent = within(self.subject, &verb, async { Ok(database.run_raw_command(built).await) }).await;
        let answer = match sent {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(among(failure(self.subject, &verb, &error), block)),
            Err(failure) => return Err(among(failure, block)),
        };
        judge(&what, &answer, block)
    }
}

/// A failure that also says which documents were on their way.
fn among(mut failure: TaskFailure, block: &Block) -> TaskFailure {
    let (first, last) = (each(&block.documents).next(), each(&block.documents).last());
    if let (Some(first), Some(last)) = (first, last) {
        let (first, last) = (raw::id_text(first), raw::id_text(last));
        let range = if block.count == 1 { first } else { format!("{} documents from {first} to {last}", block.count) };
        failure.cause = format!("{} (sending {range})", failure.cause);
    }
    failure
}

/// Whether the server took every document of a batch.
fn judge(what: &str, answer: &Document, block: &Block) -> Result<(), TaskFailure> {
    let errors = answer.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    if let Some(first) = errors.first().and_then(|first| first.as_document()) {
        let index =
            first.get("index").and_then(number).and_then(|index| usize::try_from(index).ok()).unwrap_or(usize::MAX);
        let id = each(&block.documents).nth(index).map_or_else(|| "an unknown document".to_owned(), raw::id_text);
        let code = first.get("code").and_then(number).unwrap_or(0);
        let message = first.get_str("errmsg").unwrap_or("no reason given");
        let cause = format!(
            "the server refused {} of {} documents, the first is {id}: {message} (code {code})",
            errors.len(),
            block.count
        );
        if code == DUPLICATE {
            return Err(TaskFailure::retryable("data.refused", what, cause)
                .next("see what else writes to the target; it is emptied and loaded again"));
        }
        return Err(TaskFailure::permanent("data.refused", what, cause)
            .next("restore to a server of the version that it was saved from"));
    }
    if let Ok(concern) = answer.get_document("writeConcernError") {
        let message = concern.get_str("errmsg").unwrap_or("no reason given");
        return Err(TaskFailure::retryable(
            "data.write-concern",
            what,
            format!("the documents are not safe at the server: {message}"),
        ));
    }
    let taken = answer.get("n").and_then(number).unwrap_or(0);
    if taken != block.count as u64 {
        let cause = format!("the server took {taken} of {} documents and said nothing about the others", block.count);
        return Err(among(TaskFailure::permanent("data.arrival", what, cause), block));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Timestamp, doc};

    use super::*;

    const LIMITS: Limits = Limits { documents: 1000, message: 48_000_000 };

    fn bytes(document: &Document) -> Vec<u8> {
        RawDocumentBuf::try_from(document).unwrap().into_bytes()
    }

    fn cut(all: &[u8], size: usize, limits: Limits) -> Vec<Block> {
        let mut cutter = Cutter::new(limits);
        let mut blocks = Vec::new();
        for piece in all.chunks(size) {
            blocks.extend(cutter.push(piece).unwrap());
        }
        blocks.extend(cutter.end().unwrap());
        blocks
    }

    #[test]
    fn documents_are_cut_out_of_any_pieces() {
        let all = [bytes(&doc! {"a": 1}), bytes(&doc! {"b": "two"}), bytes(&doc! {})].concat();
        for size in 1..all.len() {
            let blocks = cut(&all, size, LIMITS);
            assert_eq!((blocks.len(), blocks[0].count, &blocks[0].documents[..]), (1, 3, &all[..]));
        }
        let blocks = cut(&all, 7, Limits { documents: 1, ..LIMITS });
        assert_eq!(blocks.iter().map(|block| block.count).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn a_batch_stays_within_what_a_command_may_hold() {
        let small = bytes(&doc! {"x": "y".repeat(1000)});
        let big = bytes(&doc! {"x": "z".repeat(16 * 1024 * 1024 - 100)});
        let mut all = Vec::new();
        for _ in 0..1500 {
            all.extend_from_slice(&small);
        }
        all.extend_from_slice(&big);
        all.extend_from_slice(&small);
        let blocks = cut(&all, 4 << 20, LIMITS);
        assert_eq!(blocks.iter().map(|block| block.count).collect::<Vec<_>>(), [1000, 500, 1, 1]);
        assert_eq!(blocks.iter().flat_map(|block| block.documents.to_vec()).collect::<Vec<u8>>(), all);
    }

    #[test]
    fn lying_lengths_and_torn_ends_are_refused() {
        for length in [-1i32, 0, 4, i32::MAX] {
            assert!(Cutter::new(LIMITS).push(&length.to_le_bytes()).is_err(), "{length}");
        }
        let mut cutter = Cutter::new(LIMITS);
        cutter.push(&bytes(&doc! {"a": 1})[..9]).unwrap();
        assert_eq!(cutter.end(), Err(Malformed::Short));
    }

    #[test]
    fn empty_timestamps_are_seen_and_the_command_asks_to_keep_them() {
        let stamp = bytes(&doc! {"_id": 1, "t": Timestamp { time: 0, increment: 0 }});
        let harmless = bytes(&doc! {"_id": Bson::Int64(0), "a": 0i64});
        let all = [harmless.clone(), stamp].concat();
        let block = &cut(&all, 1000, LIMITS)[0];
        assert!(block.stamps && !cut(&harmless, 1000, LIMITS)[0].stamps);
        let command = Document::try_from(command("c", block, false, true).unwrap()).unwrap();
        assert!(
            command.get_bool("bypassEmptyTsReplacement").unwrap()
                && command.get_bool("bypassDocumentValidation").unwrap()
        );
        assert_eq!(command.get_array("documents").unwrap().len(), 2);
    }

    #[test]
    fn a_refused_document_is_named_and_a_swallowed_one_is_found() {
        let all = [bytes(&doc! {"_id": 1}), bytes(&doc! {"_id": "two"})].concat();
        let block = &cut(&all, 1000, LIMITS)[0];
        assert!(judge("w", &doc! {"n": 2}, block).is_ok());
        let refused = doc! {"n": 1, "writeErrors": [{"index": 1, "code": 121, "errmsg": "Document failed validation"}]};
        let failure = judge("w", &refused, block).unwrap_err();
        assert_eq!(
            failure.cause,
            "the server refused 1 of 2 documents, the first is _id \"two\": Document failed validation (code 121)"
        );
        let twice = doc! {"n": 1, "writeErrors": [{"index": 0, "code": 11000, "errmsg": "E11000 duplicate key error"}]};
        assert!(judge("w", &twice, block).unwrap_err().is_retryable());
        let failure = judge("w", &doc! {"n": 1}, block).unwrap_err();
        assert_eq!(failure.code, "data.arrival");
        assert!(failure.cause.contains("1 of 2"), "{failure}");
    }
}
