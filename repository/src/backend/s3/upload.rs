//! Objects whose name is known only at their end, in bounded memory.
//!
//! Bytes are kept until the name comes, and are then put whole. Where an object gets too long for that, or the
//! process's memory for it is used up, it goes out in parts: to its own name where that is known beforehand, else to a
//! name below `tmp/`, from which the service copies it. Nothing is visible before the last part is there.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use object_store::{
    MultipartId, PutPayload,
    multipart::{MultipartStore, PartId},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    calls::{Calls, Failed, fault},
    fault::Fault,
};
use crate::{
    backend::{Upload, check_name},
    error::{Error, Result},
};

/// Where objects wait for their names.
pub(crate) const TEMPORARY: &str = "tmp/";
/// A part; every upload may hold one whatever others hold. S3 wants 5 MiB at least.
const PART: usize = 8 << 20;
/// Longest object that waits in memory for its name: a pack and its index.
const WHOLE: usize = 20 << 20;
/// What all uploads of a process may hold beyond a part each.
const HELD: usize = 24 << 20;
/// In which that is counted.
const UNIT: usize = 1 << 20;
/// More than these S3 doesn't take: 80 GiB.
const MOST_PARTS: usize = 10_000;
/// Longest object that a service copies at once.
const LONGEST_COPY: u64 = 5 << 30;

fn held() -> Arc<Semaphore> {
    static HELD_NOW: OnceLock<Arc<Semaphore>> = OnceLock::new();
    HELD_NOW.get_or_init(|| Arc::new(Semaphore::new(HELD / UNIT))).clone()
}

/// Bytes in blocks of their own: what comes may be a small piece of a large allocation.
#[derive(Default)]
struct Blocks {
    full: Vec<Bytes>,
    open: BytesMut,
    length: usize,
}

impl Blocks {
    fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            if self.open.is_empty() {
                self.open = BytesMut::with_capacity(UNIT);
            }
            let (now, later) = bytes.split_at(bytes.len().min(UNIT - self.open.len()));
            self.open.extend_from_slice(now);
            bytes = later;
            if self.open.len() == UNIT {
                self.full.push(std::mem::take(&mut self.open).freeze());
            }
        }
    }

    fn take(&mut self) -> PutPayload {
        self.length = 0;
        let open = std::mem::take(&mut self.open).freeze();
        let full = std::mem::take(&mut self.full);
        PutPayload::from_iter(full.into_iter().chain(Some(open).filter(|open| !open.is_empty())))
    }
}

/// An object that goes out in parts.
struct Parts {
    /// Its name until it has its own.
    name: String,
    id: MultipartId,
    done: Vec<PartId>,
    sent: u64,
    under_way: Option<oneshot::Receiver<Result<PartId>>>,
}

pub(crate) struct S3Upload {
    calls: Calls,
    /// Where it is known beforehand.
    name: Option<String>,
    blocks: Blocks,
    permits: Vec<OwnedSemaphorePermit>,
    parts: Option<Parts>,
    /// What came before a failed write is of no use.
    failed: bool,
}

impl S3Upload {
    pub(crate) fn new(calls: Calls, name: Option<String>) -> Self {
        Self { calls, name, blocks: Blocks::default(), permits: vec![], parts: None, failed: false }
    }

    /// Whether the bytes held so far may stay in memory.
    fn fits(&mut self) -> bool {
        if self.blocks.length > WHOLE {
            return false;
        }
        let wanted = self.blocks.length.saturating_sub(PART).div_ceil(UNIT);
        while self.permits.len() < wanted {
            match held().try_acquire_owned() {
                Ok(permit) => self.permits.push(permit),
                Err(_) => return false,
            }
        }
        true
    }

    async fn begin_parts(&mut self) -> Result<()> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => format!("{TEMPORARY}{}", self.calls.common.seams.uuid().simple()),
        };
        let path = self.calls.common.place.path(&name);
        let begun = self.calls.tried(|_| {
            let (calls, path) = (&self.calls, &path);
            async move { calls.store.create_multipart(path).await.map_err(fault) }
        });
        let id = begun.await.map_err(|failed| self.calls.failed("write", &name, failed))?;
        self.parts = Some(Parts { name, id, done: vec![], sent: 0, under_way: None });
        Ok(())
    }

    /// Sends what is held as one part, while the next is filled.
    async fn send(&mut self) -> Result<()> {
        self.collect().await?;
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let number = parts.done.len();
        if number >= MOST_PARTS {
            let (found, limit) = (parts.sent, parts.sent);
            return Err(Error::Limit { what: "the length of an object".to_owned(), found: found + 1, limit });
        }
        parts.sent += self.blocks.length as u64;
        let payload = self.blocks.take();
        let permits = std::mem::take(&mut self.permits);
        let (calls, name, id) = (self.calls.clone(), parts.name.clone(), parts.id.clone());
        let (done, result) = oneshot::channel();
        parts.under_way = Some(result);
        let work = async move {
            let path = calls.common.place.path(&name);
            let put = calls.tried(|_| {
                let (calls, path, id, payload) = (&calls, &path, &id, payload.clone());
                async move { calls.store.put_part(path, id, number, payload).await.map_err(fault) }
            });
            let put = put.await.map_err(|failed| calls.failed("write", &name, failed));
            drop(permits);
            // Nobody waits when the upload was given up.
            let _ = done.send(put);
        };
        self.calls.common.seams.spawner.spawn("repository.part", Box::pin(work));
        // Beside the one under way, another may be filled only where there is memory for it.
        match held().try_acquire_many_owned(u32::try_from(PART / UNIT).unwrap_or(u32::MAX)) {
            Ok(permit) => {
                self.permits.push(permit);
                Ok(())
            }
            Err(_) => self.collect().await,
        }
    }

    /// Waits for the part under way.
    async fn collect(&mut self) -> Result<()> {
        if let Some(parts) = &mut self.parts
            && let Some(under_way) = parts.under_way.take()
        {
            parts.done.push(under_way.await.map_err(|_| Error::Stopped)??);
        }
        Ok(())
    }

    async fn take(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        for piece in pieces {
            let mut rest = piece.as_ref();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(UNIT));
                self.blocks.add(now);
                rest = later;
                if self.parts.is_none() && !self.fits() {
                    self.begin_parts().await?;
                }
                if self.parts.is_some() && self.blocks.length >= PART {
                    self.send().await?;
                }
            }
        }
        Ok(())
    }

    async fn complete(&mut self, name: &str) -> Result<()> {
        if self.blocks.length > 0 {
            self.send().await?;
        }
        self.collect().await?;
        let Some(parts) = &mut self.parts else { return Ok(()) };
        let place = &self.calls.common.place;
        if parts.name != name && parts.sent > LONGEST_COPY {
            let (found, limit) = (parts.sent, LONGEST_COPY);
            return Err(Error::Limit { what: "the length of an object".to_owned(), found, limit });
        }
        let path = place.path(&parts.name);
        let (done, id, sent) = (std::mem::take(&mut parts.done), parts.id.clone(), parts.sent);
        let made = self.calls.tried(|tries| {
            let (calls, path, id, done) = (&self.calls, &path, &id, done.clone());
            async move {
                match calls.store.complete_multipart(path, id, done).await.map_err(fault) {
                    Ok(_) => Ok(()),
                    // An earlier try may have done it, whose answer was lost.
                    Err(Fault::NoUpload) if tries > 1 && calls.is_there(path, sent).await? => Ok(()),
                    Err(fault) => Err(fault),
                }
            }
        });
        made.await.map_err(|failed: Failed| self.calls.failed("write", &parts.name, failed))?;
        let written = parts.name.clone();
        self.parts = None;
        if written != name {
            self.calls.copy(&written, name).await.map_err(|failed| self.calls.failed("write", name, failed))?;
            if let Err(failed) = self.calls.delete(&written).await {
                // Collections come by again.
                tracing::debug!(fault = %failed.fault, "a temporary object stays");
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(Error::Stopped);
        }
        self.take(pieces).await?;
        self.failed = false;
        Ok(())
    }

    async fn finish(mut self: Box<Self>, name: &str) -> Result<()> {
        check_name(name)?;
        if self.failed {
            return Err(Error::Stopped);
        }
        if self.parts.is_some() {
            return self.complete(name).await;
        }
        let payload = self.blocks.take();
        self.calls.put(name, payload).await.map_err(|failed| self.calls.failed("write", name, failed))
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else { return };
        let calls = self.calls.clone();
        let spawner = calls.common.seams.spawner.clone();
        let work = async move {
            let path = calls.common.place.path(&parts.name);
            if let Some(under_way) = parts.under_way {
                // A part that arrives after the end would stay.
                let _ = under_way.await;
            }
            let ended = calls.tried(|_| {
                let (calls, path, id) = (&calls, &path, &parts.id);
                async move { calls.store.abort_multipart(path, id).await.map_err(fault) }
            });
            if let Err(Failed { fault, .. }) = ended.await
                && fault != Fault::NoUpload
            {
                // Collections come by again.
                tracing::debug!(%fault, "an unfinished upload stays");
            }
        };
        spawner.spawn("repository.abort", Box::pin(work));
    }
}
