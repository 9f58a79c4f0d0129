//! Large objects: contents by ranges, so that no object has to fit into memory.
//!
//! Their stream is a sequence of objects: a line of JSON (number, owner, grants), then pieces, each behind its length
//! in four bytes, the last one empty. The content hash is over number and contents.

use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use ocopea_protocol::failure::TaskFailure;
use ocopea_repository::{DataWriter, ItemHasher, StreamFacts, StreamSummary};
use serde::{Deserialize, Serialize};

use super::{
    connect::{Server, Session},
    facts::Grant,
    rows, sql,
};

/// What is read of each object at first, many objects at once.
const HEAD: usize = 32 * 1024;
/// What is read of a bigger object at once.
const RANGE: usize = 1024 * 1024;
/// Objects read or written at once.
const AT_ONCE: usize = 64;
/// Objects listed at once.
const LISTED: usize = 10_000;
/// The longest line of an object.
const LONGEST_LINE: usize = 4 * 1024 * 1024;

/// What is known of an object besides its contents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Object {
    pub oid: i64,
    pub owner: String,
    pub comment: Option<String>,
    /// Absent: nobody but the owner.
    pub grants: Option<Vec<Grant>>,
}

/// Copies all large objects of a database; no stream where there is none.
pub(super) async fn copy(
    session: &mut Session,
    writer: &DataWriter,
    count: rows::Count<'_>,
) -> Result<Option<StreamSummary>, TaskFailure> {
    let server = session.server.clone();
    let mut objects = listed(session, -1).await?;
    if objects.is_empty() {
        return Ok(None);
    }
    let name = format!("{} (large objects)", sql::shown(&session.database));
    let mut stream = writer.stream(name.as_bytes()).await.map_err(|error| rows::store(&server, &error))?;
    let mut hasher = writer.item_hasher();
    while let Some(last) = objects.last().map(|object| object.oid) {
        for grant in session.large_object_grants(objects[0].oid, last).await? {
            if let Ok(at) = objects.binary_search_by_key(&grant.oid, |object| object.oid) {
                objects[at].grants.get_or_insert_default().push(grant.grant);
            }
        }
        for some in objects.chunks(AT_ONCE) {
            let mut heads = heads(session, some).await?.into_iter().peekable();
            for object in some {
                let line =
                    serde_json::to_string(object).map_err(|error| server.failure("data.facts", error.to_string()))?;
                let mut out = BytesMut::from(line.as_bytes());
                out.extend_from_slice(b"\n");
                let mut one = hasher.part_hasher();
                one.update(&object.oid.to_le_bytes());
                let mut piece = match heads.peek() {
                    Some((oid, _)) if *oid == object.oid => heads.next().map(|(_, bytes)| bytes).unwrap_or_default(),
                    _ => return Err(server.retry("data.moving", format!("large object {} is gone", object.oid))),
                };
                let mut at = 0usize;
                loop {
                    let (full, length) = (piece.len() == if at == 0 { HEAD } else { RANGE }, piece.len());
                    if length > 0 {
                        out.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
                        out.extend_from_slice(&piece);
                        count(length as u64, 0);
                        let hashed = piece;
                        one = server
                            .seams
                            .compute("hash large object", move || {
                                one.update(&hashed);
                                one
                            })
                            .await
                            .ok_or_else(|| TaskFailure::cancelled(server.what()))?;
                    }
                    at += length;
                    if !full {
                        break;
                    }
                    stream.write(out.split().freeze()).await.map_err(|error| rows::store(&server, &error))?;
                    piece = range(session, object.oid, at).await?;
                }
                out.extend_from_slice(&0u32.to_be_bytes());
                stream.write(out.freeze()).await.map_err(|error| rows::store(&server, &error))?;
                hasher.add_hash(one.finalize().into());
                count(0, 1);
            }
        }
        objects = listed(session, last).await?;
    }
    let facts = StreamFacts {
        unit: "large objects".to_owned(),
        items: hasher.items(),
        item_hash: hasher.sum(),
        attributes: rows::attributes("large-objects", &session.database, "", ""),
    };
    Ok(Some(stream.finish(facts).await.map_err(|error| rows::store(&server, &error))?))
}

/// The next objects behind this number, in order.
async fn listed(session: &mut Session, behind: i64) -> Result<Vec<Object>, TaskFailure> {
    session
        .list(&format!(
            "SELECT oid::int8 AS oid, pg_get_userbyid(lomowner) AS owner, \
             obj_description(oid, 'pg_largeobject') AS comment, \
             CASE WHEN lomacl IS NULL THEN NULL ELSE '[]'::json END AS grants \
             FROM pg_largeobject_metadata WHERE oid > {}::oid \
             ORDER BY pg_largeobject_metadata.oid LIMIT {LISTED}",
            behind.max(0)
        ))
        .await
}

async fn heads(session: &mut Session, objects: &[Object]) -> Result<Vec<(i64, Vec<u8>)>, TaskFailure> {
    let oids: Vec<String> = objects.iter().map(|object| object.oid.to_string()).collect();
    session
        .pieces(&format!(
            "SELECT oid::int8, pg_catalog.lo_get(oid, 0, {HEAD}) FROM pg_largeobject_metadata \
             WHERE oid = ANY ('{{{}}}'::oid[]) ORDER BY pg_largeobject_metadata.oid",
            oids.join(",")
        ))
        .await
}

async fn range(session: &mut Session, oid: i64, at: usize) -> Result<Vec<u8>, TaskFailure> {
    let mut pieces = session.pieces(&format!("SELECT {oid}::int8, pg_catalog.lo_get({oid}, {at}, {RANGE})")).await?;
    Ok(pieces.pop().map(|(_, bytes)| bytes).unwrap_or_default())
}

/// Loads the objects of a stream; answers those whose owner isn't the database's, or that have a comment or grants.
pub(super) async fn load(
    session: &mut Session,
    owner: &str,
    stream: BoxStream<'static, ocopea_repository::Result<Bytes>>,
) -> Result<Vec<Object>, TaskFailure> {
    let server = session.server.clone();
    let mut source = Source { stream, buffer: BytesMut::new(), server: server.clone() };
    let mut special = Vec::new();
    // Small ones go together: most databases that have any have many.
    let mut small: Vec<(i64, Bytes)> = Vec::new();
    while let Some(line) = source.line().await? {
        let object: Object = serde_json::from_slice(&line)
            .map_err(|error| server.failure("repository.damaged", format!("a large object can't be read: {error}")))?;
        let mut piece = source.piece().await?;
        let mut at = 0i64;
        while !piece.is_empty() {
            let next = source.piece().await?;
            if at == 0 && next.is_empty() && piece.len() <= HEAD {
                break;
            }
            session.put_piece(object.oid, at, &piece).await?;
            at += i64::try_from(piece.len()).unwrap_or(0);
            piece = next;
        }
        if at == 0 {
            small.push((object.oid, piece));
            if small.len() == AT_ONCE {
                session.put_whole(&std::mem::take(&mut small)).await?;
            }
        }
        if object.owner != owner || object.comment.is_some() || object.grants.is_some() {
            special.push(object);
        }
    }
    if !small.is_empty() {
        session.put_whole(&small).await?;
    }
    Ok(special)
}

/// Counts and hashes what a target has.
pub(super) async fn read_back(session: &mut Session, mut hasher: ItemHasher) -> Result<(ItemHasher, u64), TaskFailure> {
    let mut bytes = 0u64;
    let mut objects = listed(session, -1).await?;
    while let Some(last) = objects.last().map(|object| object.oid) {
        for some in objects.chunks(AT_ONCE) {
            for (object, (oid, mut piece)) in some.iter().zip(heads(session, some).await?) {
                let mut one = hasher.part_hasher();
                one.update(&oid.to_le_bytes());
                let mut at = 0usize;
                loop {
                    let full = piece.len() == if at == 0 { HEAD } else { RANGE };
                    at += piece.len();
                    let hashed = std::mem::take(&mut piece);
                    one = session
                        .server
                        .seams
                        .compute("hash large object", move || {
                            one.update(&hashed);
                            one
                        })
                        .await
                        .ok_or_else(|| TaskFailure::cancelled(session.server.what()))?;
                    if !full {
                        break;
                    }
                    piece = range(session, object.oid, at).await?;
                }
                bytes += at as u64;
                hasher.add_hash(one.finalize().into());
            }
        }
        objects = listed(session, last).await?;
    }
    Ok((hasher, bytes))
}

/// Reads lines and pieces from a stream of the repository.
struct Source {
    stream: BoxStream<'static, ocopea_repository::Result<Bytes>>,
    buffer: BytesMut,
    server: Server,
}

impl Source {
    async fn more(&mut self) -> Result<bool, TaskFailure> {
        match self.stream.next().await {
            Some(Ok(bytes)) => {
                self.buffer.extend_from_slice(&bytes);
                Ok(true)
            }
            Some(Err(error)) => Err(rows::store(&self.server, &error)),
            None => Ok(false),
        }
    }

    fn cut_off(&self) -> TaskFailure {
        self.server.failure("repository.damaged", "the stream of large objects ends within an object")
    }

    async fn line(&mut self) -> Result<Option<Bytes>, TaskFailure> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            if self.buffer.len() > LONGEST_LINE {
                return Err(self.cut_off());
            }
            if !self.more().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(self.cut_off()) };
            }
        }
    }

    async fn piece(&mut self) -> Result<Bytes, TaskFailure> {
        while self.buffer.len() < 4 {
            if !self.more().await? {
                return Err(self.cut_off());
            }
        }
        let length = self.buffer.get_u32() as usize;
        if length > RANGE {
            return Err(self.cut_off());
        }
        while self.buffer.len() < length {
            if !self.more().await? {
                return Err(self.cut_off());
            }
        }
        Ok(self.buffer.split_to(length).freeze())
    }
}
