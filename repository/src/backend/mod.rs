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
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub mod conformance;
pub(crate) mod directory;
pub(crate) mod hooked;
pub(crate) mod limited;
mod rate;
pub mod s3;

pub use directory::DirectoryBackend;
pub use hooked::{Action, Hook, HookedBackend};
pub use limited::{LEAST_RATE, MOST_REQUESTS, USUAL_REQUESTS, check_limits};
pub use s3::{S3Backend, StoreAccess};

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

/// What becomes of what is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deletion {
    /// Its space is free.
    Frees,
    /// A version of it stays, and takes its space until the store's own rules remove it.
    Hides,
    /// It can't be deleted.
    Refused,
}

/// What a store can, as it was found out with objects of one's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreAbilities {
    /// Whether the store itself makes an object only where there is none. Else several processes agree by listings.
    pub conditional_writes: bool,
    /// What becomes of what is deleted.
    pub deletion: Deletion,
    /// The checksum that the store checks of what is sent to it.
    pub checksum: Option<String>,
}

impl StoreAbilities {
    /// In words, for those who look after the store.
    pub fn told(&self) -> Vec<String> {
        let create = match self.conditional_writes {
            true => "creates objects only where there are none",
            false => "has no conditional writes: processes agree by listings, which takes longer",
        };
        let deletion = match self.deletion {
            Deletion::Frees => "deleting gives space back",
            Deletion::Hides => "deleting hides objects: their space is freed when their versions expire",
            Deletion::Refused => "nothing can be deleted with these keys: space never comes back",
        };
        let checksum = match &self.checksum {
            Some(checksum) => format!("checks the {checksum} of what is sent"),
            None => "checks no checksum of what is sent: what is read back is compared all the same".to_owned(),
        };
        vec![create.to_owned(), deletion.to_owned(), checksum]
    }
}

/// A store of objects by name.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Writes `name` unless it exists.
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put>;

    /// Writes `name`, over what may be there.
    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()>;

    /// Begins an object that is written in pieces. A blob is named by its digest, so its name may be known only at its
    /// end; where it is known now, that saves some stores a copy.
    async fn upload(&self, name: Option<&str>) -> Result<Box<dyn Upload>>;

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

    /// What the store can.
    fn abilities(&self) -> StoreAbilities {
        StoreAbilities { conditional_writes: true, deletion: Deletion::Frees, checksum: None }
    }

    /// Bytes at which a pack ends.
    fn pack_target(&self) -> u64 {
        crate::pack::TARGET
    }
}

/// An object on its way. Dropped unfinished, nothing of it stays.
#[async_trait]
pub trait Upload: Send {
    /// Appends all of these.
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()>;

    /// Gives it its name, over what may be there.
    async fn finish(self: Box<Self>, name: &str) -> Result<()>;
}

/// The backend for a location; `make` makes a directory that is missing.
pub async fn open(location: &Location, access: &StoreAccess, seams: &Seams, make: bool) -> Result<Arc<dyn Backend>> {
    let inner: Arc<dyn Backend> = match location {
        Location::Directory { path } => Arc::new(DirectoryBackend::open(Path::new(path), seams.clone(), make).await?),
        Location::S3 { .. } => Arc::new(access.open_s3(location, seams).await?),
    };
    Ok(access.limited(inner, location, &access.limits, seams))
}

/// Whether a place holds nothing but objects and prefixes of these names.
pub(crate) async fn holds_only(
    location: &Location,
    access: &StoreAccess,
    seams: &Seams,
    names: &'static [&'static str],
) -> Result<bool> {
    match location {
        Location::Directory { path } => {
            DirectoryBackend::open(Path::new(path), seams.clone(), false).await?.holds_only(names).await
        }
        Location::S3 { .. } => access.open_s3(location, seams).await?.holds_only(names).await,
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
