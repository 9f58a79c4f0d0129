//! Volumes: the files below a mount, read and written by `ocopea-mover` beside it.
//!
//! A component has two streams. `files` tells the tree: records of kind (1 byte), length (4 bytes, little-endian) and
//! payload, in the order of a walk: entry (2, its canonical form), extent (3: offset and length, 8 bytes each, little-
//! endian: the next bytes of `contents` lie there), done (4: size, 8 bytes, and hash of the file's contents, 32 bytes),
//! void (5: the file told last changed while it was read and comes again). `contents` holds the bytes of all files one
//! behind the other, holes left out, so that equal files are found again wherever they lie. Kinds 2, 4 and 5 are those
//! of [`ocopea_mover::wire`].
//!
//! An item, for the content hash, is an entry's canonical form, for a file with its size and hash behind it.

mod copy;
mod frames;
mod hold;
mod inspect;
mod items;
mod load;
mod records;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use ocopea_mover::{Class, Fault};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
};
use ocopea_repository::{DataReader, DataWriter};
use serde::{Deserialize, Serialize};

use super::{
    ContainerView, Copied, DataService, Inspected, Loaded, ParsedBinding, Prepared, Reach, Recognised, Subject,
    VolumeReach,
};

/// Name of the stream that tells the tree, which is also what an image shows.
const FILES: &str = "files";
/// Name of the stream of the files' bytes.
const CONTENTS: &str = "contents";
/// Names of files that are told to people, of each sort.
const MOST_NAMED: usize = 100;

/// The driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Volume;

/// What a load has to know beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// Of the records.
    format: u32,
    /// Entries of all kinds.
    entries: u64,
    /// Bytes of `contents`.
    data: u64,
}

const FORMAT: u32 = 1;

#[async_trait]
impl DataService for Volume {
    fn kind(&self) -> DataKind {
        DataKind::Volume
    }

    fn recognise(&self, _container: &ContainerView) -> Option<Recognised> {
        // What no server owns is a volume: that is decided over all containers, not by looking at one.
        None
    }

    fn parse_binding(&self, _name: &str, _value: &str) -> Option<ParsedBinding> {
        None
    }

    fn rewrite_binding(&self, value: &str, _hosts: &BTreeMap<String, String>) -> String {
        value.to_owned()
    }

    async fn inspect(&self, subject: &Subject) -> Result<Inspected, TaskFailure> {
        inspect::inspect(subject).await
    }

    async fn prepare(&self, subject: &Subject, freeze: bool) -> Result<Box<dyn Prepared>, TaskFailure> {
        Ok(Box::new(hold::prepare(subject, freeze).await?))
    }

    async fn copy(&self, subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
        copy::copy(subject, snapshot, writer).await
    }

    async fn load(&self, subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
        load::load(subject, reader, saved).await
    }

    async fn unfreeze(&self, subject: &Subject) -> Result<(), TaskFailure> {
        reach(subject)?.let_go(None).await
    }
}

fn reach(subject: &Subject) -> Result<Arc<dyn VolumeReach>, TaskFailure> {
    match &subject.reach {
        Reach::Volume(volume) => Ok(Arc::clone(volume)),
        Reach::Server(_) => Err(TaskFailure::permanent(
            "data.reach",
            format!("can't reach volume {}", subject.name),
            "it was given as a server",
        )),
    }
}

/// A mover's fault in the words of a task.
fn failure(what: &str, fault: &Fault) -> TaskFailure {
    match fault.class {
        Class::Unreadable => TaskFailure::permanent("data.unreadable", what, fault)
            .next("mend the file or its rights, or leave the volume out by name with --without"),
        Class::Unwritable => TaskFailure::permanent("data.unwritable", what, fault)
            .next("choose a storage class whose filesystem takes what the volume holds"),
        Class::Full => TaskFailure::permanent("data.full", what, fault)
            .next("the claim asks for less room than its files need: enlarge it and save again"),
        Class::NotEmpty => TaskFailure::permanent("data.not-empty", what, fault)
            .next("a restore writes to new volumes only; see which storage class gives out used ones"),
        Class::Refused => {
            TaskFailure::permanent("data.refused", what, fault).next("check the repository: ocopea repository verify")
        }
        Class::Limit => TaskFailure::permanent("data.limit", what, fault),
        Class::Protocol => TaskFailure::permanent("data.mover", what, fault)
            .next("use the mover image of this release (--mover-image)"),
        Class::Cut | Class::Busy | Class::Moved => TaskFailure::retryable("data.cut", what, fault),
    }
}
