//! Where objects lie. A backend is small on purpose: what S3, a directory and an OCI registry can all give.
//!
//! Semantics that every backend keeps, and [`conformance`] checks:
//! - an object is there whole or not at all, and once `put` has answered, it survives a power cut;
//! - of any number of simultaneous [`Backend::create`] of one name exactly one answers [`Put::Created`];
//! - a read after a write sees it; a list after a write names it;
//! - deleting what isn't there is fine;
//! - `modified` is the store's own clock.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::Error;

pub mod conformance;
pub(crate) mod directory;

/// What came of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call made it.
    Created,
    /// It was there.
    Existed,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its whole name, with '/' between parts.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was last written, in milliseconds of the store's clock.
    pub modified: i64,
}

/// A store of objects by name.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Writes `name` unless it exists.
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put, Error>;

    /// Writes `name` from a stream unless it exists; `size` bytes with SHA-256 `name`'s last part, or an error.
    async fn create_stream(
        &self,
        name: &str,
        size: u64,
        stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<Put, Error>;

    /// Writes `name`, over what may be there. For derived objects only.
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<(), Error>;

    /// Reads a whole object of at most `limit` bytes.
    async fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error>;

    /// Reads `length` bytes from `offset`; fewer only where the object ends.
    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Error>;

    /// Size and time, or `None`.
    async fn head(&self, name: &str) -> Result<Option<Entry>, Error>;

    /// All objects whose names start with `prefix` (which ends in '/'), sorted by name.
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Error>;

    /// Removes an object.
    async fn delete(&self, name: &str) -> Result<(), Error>;
}
