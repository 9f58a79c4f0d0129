//! The coordinator's view of a repository: refs, records, notes, keys, pins, collection. Never streams.

use std::time::Duration;

use futures::stream::BoxStream;
use ocopea_protocol::{
    ids::{ImageId, OperationId, TeamId},
    image::{ImageAccess, Location},
    names::Digest,
    seams::Seams,
    secret::Secret32,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{Error, KeyId, Keyring, Record, Result, TeamKeys, WrappedKey};

/// A repository that was opened with its keys. Cheap to clone.
#[derive(Clone)]
pub struct Repository {}

/// A saved image as its ref names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The image.
    pub image: ImageId,
    /// Whose it is.
    pub team: TeamId,
    /// Its record's manifest: the image's identity.
    pub record: Digest,
    /// The flat OCI index.
    pub index: Digest,
    /// Size of the index.
    pub index_size: u64,
}

/// What is needed to make an image visible.
#[derive(Clone, Debug)]
pub struct CommitRequest {
    /// Everything about it; names the components' manifests.
    pub record: Record,
    /// Its key.
    pub key: WrappedKey,
}

/// A later edit of an image (labels, comment, grant …), kept beside it so that `reindex` brings it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is: `labels`, `comment`, `grant` …
    pub kind: String,
    /// JSON text of the catalog.
    pub body: String,
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// What deleting an image will give back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// Bytes that nothing else uses; a collection gives them back.
    pub bytes: u64,
    /// Bytes that other images share.
    pub shared_bytes: u64,
}

/// How a collection works.
#[derive(Clone, Copy, Debug)]
pub struct CollectOptions {
    /// How long a blob must have been condemned before it is deleted, by the store's clock.
    pub grace: Duration,
    /// A pin that was not renewed for so long no longer counts.
    pub pin_expiry: Duration,
    /// Wait for the grace time and delete in the same call.
    pub wait: bool,
}

/// What a collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectReport {
    /// Blobs deleted.
    pub deleted: u64,
    /// Bytes given back.
    pub deleted_bytes: u64,
    /// Blobs condemned and still waiting.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Blobs in use, and their bytes.
    pub live: u64,
    /// Bytes in use.
    pub live_bytes: u64,
    /// Why something was kept that looked unused.
    pub kept: Vec<String>,
}

/// What is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole repository.
    All,
    /// One image.
    Image(ImageId),
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Blobs checked.
    pub blobs: u64,
    /// Of how many.
    pub of_blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Of how many.
    pub of_bytes: u64,
}

/// An object that isn't what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Its name in the store.
    pub object: String,
    /// What is wrong.
    pub why: String,
    /// Every image that it affects.
    pub images: Vec<ImageId>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Images checked.
    pub images: u64,
    /// Blobs checked.
    pub blobs: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is broken; empty when all is well.
    pub broken: Vec<Broken>,
}

/// One image as `reindex` finds it.
#[derive(Debug)]
pub struct Reindexed {
    /// Its ref.
    pub reference: ImageRef,
    /// Its record.
    pub record: Record,
    /// Its key, as catalogs keep it.
    pub key: WrappedKey,
    /// Its notes, in order.
    pub notes: Vec<Note>,
}

fn pending<T>() -> Result<T> {
    Err(Error::Stopped)
}

impl Repository {
    /// Makes a repository at an empty place.
    pub async fn create(location: &Location, keyring: &Keyring, seams: &Seams) -> Result<Self> {
        let _ = (location, keyring, seams);
        pending()
    }

    /// Opens a repository.
    pub async fn open(location: &Location, keyring: &Keyring, seams: &Seams) -> Result<Self> {
        let _ = (location, keyring, seams);
        pending()
    }

    /// A team's keys; made on first use.
    pub async fn team_keys(&self, team: TeamId) -> Result<TeamKeys> {
        let _ = team;
        pending()
    }

    /// A new image's key: wrapped, for the catalog. The key itself travels in [`Self::access_to_write`].
    pub async fn new_image_key(&self, team: TeamId) -> Result<WrappedKey> {
        let _ = team;
        pending()
    }

    /// Opens an image's key.
    pub async fn unwrap(&self, key: &WrappedKey) -> Result<Secret32> {
        let _ = key;
        pending()
    }

    /// What agents need to write a new image; `base` is the record whose chunks may be used again (pin it first).
    pub async fn access_to_write(&self, key: &WrappedKey, base: Option<&Digest>) -> Result<ImageAccess> {
        let _ = (key, base);
        pending()
    }

    /// What agents need to read a saved image.
    pub async fn access_to_read(&self, record: &Digest) -> Result<ImageAccess> {
        let _ = record;
        pending()
    }

    /// Keeps collections from deleting what an operation reads, reuses or writes. Before its first task; again with
    /// more records whenever it needs more.
    pub async fn pin(&self, operation: OperationId, records: &[Digest]) -> Result<()> {
        let _ = (operation, records);
        pending()
    }

    /// Keeps a pin alive; to be called every few minutes.
    pub async fn renew(&self, operation: OperationId) -> Result<()> {
        let _ = operation;
        pending()
    }

    /// Ends a pin; harmless where there is none.
    pub async fn unpin(&self, operation: OperationId) -> Result<()> {
        let _ = operation;
        pending()
    }

    /// Operations that have pins.
    pub async fn pins(&self) -> Result<Vec<OperationId>> {
        pending()
    }

    /// Makes an image visible: writes its record and index, checks that every blob is there, creates the ref. The
    /// same request again gives the same answer.
    pub async fn commit(&self, request: &CommitRequest) -> Result<ImageRef> {
        let _ = request;
        pending()
    }

    /// All saved images.
    pub async fn images(&self) -> Result<Vec<ImageRef>> {
        pending()
    }

    /// One saved image.
    pub async fn image(&self, image: ImageId) -> Result<Option<ImageRef>> {
        let _ = image;
        pending()
    }

    /// Reads and decrypts a record.
    pub async fn read_record(&self, record: &Digest) -> Result<Record> {
        let _ = record;
        pending()
    }

    /// Writes a note; answers for its sequence number.
    pub async fn note(&self, record: &Digest, note: &Note) -> Result<u64> {
        let _ = (record, note);
        pending()
    }

    /// An image's notes, in order.
    pub async fn notes(&self, record: &Digest) -> Result<Vec<Note>> {
        let _ = record;
        pending()
    }

    /// Removes an image's ref and notes. Its bytes come back with the next collection. Works when the store is full.
    pub async fn delete_image(&self, image: ImageId) -> Result<Reclaim> {
        let _ = image;
        pending()
    }

    /// What [`Self::delete_image`] would answer.
    pub async fn reclaimable(&self, image: ImageId) -> Result<Reclaim> {
        let _ = image;
        pending()
    }

    /// Deletes what nothing uses any more.
    pub async fn collect(&self, options: &CollectOptions) -> Result<CollectReport> {
        let _ = options;
        pending()
    }

    /// Reads everything (or one image) and names what is broken, with the images affected.
    pub async fn verify(&self, scope: Scope, progress: &(dyn Fn(VerifyProgress) + Send + Sync)) -> Result<VerifyReport> {
        let _ = (scope, progress);
        pending()
    }

    /// Every image with its record and notes, to rebuild a catalog. An error concerns one image; the rest goes on.
    pub fn reindex(&self) -> BoxStream<'_, Result<Reindexed>> {
        Box::pin(futures::stream::empty())
    }

    /// Wraps all team keys with a further repository key as well.
    pub async fn key_add(&mut self, keyring: &Keyring) -> Result<()> {
        let _ = keyring;
        pending()
    }

    /// New team keys for new images, wrapped by the keyring's keys. Old ids stay readable; no pack is rewritten.
    pub async fn key_rotate(&mut self, keyring: &Keyring) -> Result<()> {
        let _ = keyring;
        pending()
    }

    /// Removes a repository key's wraps; refused when something could then be opened by no other key.
    pub async fn key_remove(&mut self, id: &KeyId) -> Result<()> {
        let _ = id;
        pending()
    }
}
