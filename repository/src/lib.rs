//! The copy repository: where the bytes of saved images live.
//!
//! The principle: a saved image is an OCI image index over content-addressed blobs, and exists when, and only when,
//! its ref does. Everything before the ref is invisible and garbage if nobody finishes it. `docs/repository-format.md`
//! is the specification; the constants here follow it.
//!
//! Two views: [`Repository`] is the coordinator's (keys, refs, records, collection); [`ImageSession`] is an agent's
//! (the streams of one image, with the keys of that image alone).

mod backend;
mod collect;
mod commit;
mod crypto;
mod error;
mod items;
mod keys;
mod oci;
mod pack;
mod read;
mod record;
mod repository;
mod session;
mod toc;
mod verify;
mod write;

pub use backend::{Backend, Entry, Put, conformance, directory::DirectoryBackend};
pub use collect::{CollectReport, Reclaim};
pub use commit::{CommitRequest, ComponentEntry};
pub use crypto::WrappedKey;
pub use error::Error;
pub use items::{ItemHasher, ItemSum};
pub use keys::{Keyring, TeamKeys};
pub use oci::ImageRef;
pub use read::{DataReader, StreamEntry};
pub use record::{Lineage, Record, RecordComponent, RecordKind, Requirements};
pub use repository::{Note, Repository};
pub use session::ImageSession;
pub use verify::{Broken, VerifyReport};
pub use write::{ComponentWritten, DataWriter, StreamFacts, StreamSummary, StreamWriter};

/// The newest format that this program reads and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;
