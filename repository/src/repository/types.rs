//! What a repository is asked, and what it answers.

use std::time::Duration;

use ocopea_protocol::{
    ids::{ImageId, TeamId},
    names::Digest,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::{Record, WrappedKey};

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
    /// The store keeps versions of what is deleted: a collection only hides these bytes, and they are freed when the
    /// versions expire.
    pub hides: bool,
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
    /// Blobs that were deleted and of which the store keeps versions.
    pub hidden: u64,
    /// Their bytes: freed when the versions expire.
    pub hidden_bytes: u64,
    /// Blobs that nothing uses and that the store's keys may not delete.
    pub undeletable: u64,
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
