//! The copy repository: saved images as OCI artifacts, deduplicated, compressed, encrypted.
//!
//! `docs/repository-format.md` is the specification of what is stored. The coordinator uses [`Repository`] (refs,
//! records, notes, keys, collection); agents use an [`ImageSession`], which holds the keys of one image and its base
//! and moves the bytes.

pub mod backend;
mod chunk;
mod collect;
mod config;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod items;
mod keys;
mod limits;
mod oci;
mod pack;
mod read;
mod record;
mod repository;
mod sealed;
mod session;
mod store;
#[cfg(test)]
mod testing;
mod toc;
#[cfg(test)]
mod vectors;
mod verify;
mod write;

pub use backend::{Deletion, StoreAbilities, StoreAccess};
pub use error::{Error, Result, Trouble};
pub use items::{ItemHasher, PartHasher};
pub use keys::{KeyId, Keyring, TeamKeys, Wrap, WrappedKey};
pub use read::{DataReader, StreamEntry};
pub use record::{
    Body, Component, DataRequirement, Instant, LeftOut, Lineage, Opened, Platform, RECORD_VERSION, Record, Requirements,
};
pub use repository::{
    Broken, CollectOptions, CollectReport, CommitRequest, ImageRef, Note, Reclaim, Reindexed, Repository, Scope,
    VerifyProgress, VerifyReport, place,
};
pub use session::{ConfigWritten, ImageSession, config_digest};
pub use write::{DataWriter, DataWritten, StreamFacts, StreamSummary, StreamWriter, Written};
