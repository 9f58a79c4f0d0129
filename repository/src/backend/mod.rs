//! Where objects lie. A backend is small on purpose: what S3, a directory and an OCI registry can all give.
//!
//! Semantics that every backend keeps, and [`conformance`] checks:
//! - an object is there whole or not at all, and once a write has answered, it survives a power cut;
//! - of any number of simultaneous [`Backend::create`] of one name exactly one answers [`Put::Created`];
//! - a read after a write sees it; a list after a write names it;
//! - deleting what isn't there is fine;
//! - `modified` is the store's own clock, and every write of an object renews it.
//!
//! To add one: a file here, a variant of `Location`, an arm in [`open`], and its test that calls
//! [`conformance::check`].

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::{image::Location, seams::Seams};

use crate::error::{Error, Result};

pub mod conformance;
pub(crate) mod directory;
pub(crate) mod hooked;

pub use directory::DirectoryBackend;
pub use hooked::{Action, Hook, HookedBackend};

/// What came of a create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// This call made it.
    Created,
    /// It was there; it is as it was.
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
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put>;

    /// Writes `name`, over what may be there.
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()>;

    /// Begins an object whose name is known only at its end: a blob is named by its digest.
    async fn upload(&self) -> Result<Box<dyn Upload>>;

    /// Reads a whole object of at most `limit` bytes.
    async fn get(&self, name: &str, limit: u64) -> Result<Bytes>;

    /// Reads `length` bytes from `offset`; fewer only where the object ends.
    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// Size and time, or `None`.
    async fn head(&self, name: &str) -> Result<Option<Entry>>;

    /// All objects whose names start with `prefix` (which ends in '/'), sorted by name.
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>>;

    /// Removes an object.
    async fn delete(&self, name: &str) -> Result<()>;

    /// Removes what uploads left that were last written to before this time of the store's clock, and never finished.
    async fn discard_unfinished(&self, before: i64) -> Result<()>;
}

/// An object on its way. Dropped unfinished, nothing of it stays.
#[async_trait]
pub trait Upload: Send {
    /// Appends all of these.
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()>;

    /// Gives it its name, over what may be there.
    async fn finish(self: Box<Self>, name: &str) -> Result<()>;
}

/// The backend for a location.
pub(crate) async fn open(location: &Location, seams: &Seams, make: bool) -> Result<Arc<dyn Backend>> {
    match location {
        Location::Directory { path } => {
            Ok(Arc::new(DirectoryBackend::open(Path::new(path), seams.clone(), make).await?))
        }
    }
}

/// Whether a place holds nothing but objects and prefixes of these names.
pub(crate) async fn holds_only(location: &Location, seams: &Seams, names: &'static [&'static str]) -> Result<bool> {
    match location {
        Location::Directory { path } => {
            DirectoryBackend::open(Path::new(path), seams.clone(), false).await?.holds_only(names).await
        }
    }
}

/// Whether a name is one that all stores take alike: parts of letters, digits and `-_.`, divided by '/'.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 512
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.'));
    if fits { Ok(()) } else { Err(Error::Misuse(format!("{name:.80?} can't be the name of an object"))) }
}
