//! What can go wrong with a repository, and what that means for whoever asked.

use ocopea_protocol::names::Digest;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate refuses or fails at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store answered with an error.
    #[error("the repository's store failed to {action} {object:?}: {cause}")]
    Store {
        /// `read`, `write`, `list`, `delete` …
        action: &'static str,
        /// The object's name in the store.
        object: String,
        /// What the store said.
        cause: std::io::Error,
    },
    /// A store behind a network, or the way to it, refused or failed.
    #[error("the repository's store failed to {action} {object:?} in {place}: {reason}{}", tried(*tries))]
    Remote {
        /// `read`, `write`, `list`, `delete` …
        action: &'static str,
        /// The object's name in the store.
        object: String,
        /// The bucket, and the service that has it.
        place: String,
        /// What kind of trouble it is.
        trouble: Trouble,
        /// What was said or seen.
        reason: String,
        /// How often it was tried.
        tries: u32,
    },
    /// The store is full. What was written for this image is given back by the next collection.
    #[error("the repository has no space left to write {object:?}; delete images and collect, or give it more space")]
    Full {
        /// What was being written.
        object: String,
    },
    /// An object isn't there.
    #[error("{object} is missing from the repository")]
    Missing {
        /// What it is.
        object: String,
    },
    /// An object isn't what was written.
    #[error("{object} in the repository is damaged: {why}")]
    Damaged {
        /// What it is.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something was written by a newer release.
    #[error("{object} has format version {found}; this release reads up to {known}: use a newer release")]
    Newer {
        /// What it is.
        object: String,
        /// Its version.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// There is no repository at this place.
    #[error("there is no copy repository at {place}: it has no file `ocopea-repository`")]
    NoRepository {
        /// Where it was looked for.
        place: String,
    },
    /// There is one already.
    #[error("{place} already holds a copy repository or other files; choose an empty directory")]
    Occupied {
        /// Where.
        place: String,
    },
    /// None of the given keys opens it.
    #[error("none of the keys given ({given}) opens {object}; it was locked with {wanted}")]
    WrongKey {
        /// What stays closed.
        object: String,
        /// Ids of the keys that were given.
        given: String,
        /// Ids of the keys that would open it.
        wanted: String,
    },
    /// Something else with this name is there already.
    #[error("{object} is already there with other content")]
    Conflict {
        /// What.
        object: String,
    },
    /// Bytes that were offered under a digest have another one.
    #[error("what was offered as {expected} is {found}; nothing of it was kept")]
    WrongDigest {
        /// What it was said to be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Fewer or more bytes than announced.
    #[error("{object} was announced with {expected} bytes and has {found}; nothing of it was kept")]
    WrongSize {
        /// What.
        object: String,
        /// Announced.
        expected: u64,
        /// Received.
        found: u64,
    },
    /// Blobs that an image names are gone; the copy that made them must run again.
    #[error("{} of the image's blobs are not in the repository (first: {}); copy its components again", blobs.len(), blobs.first().map(ToString::to_string).unwrap_or_default())]
    BlobsMissing {
        /// Which.
        blobs: Vec<Digest>,
    },
    /// Something is beyond what the format allows.
    #[error("{what} is {found}, at most {limit} is allowed")]
    Limit {
        /// What.
        what: String,
        /// How much it is.
        found: u64,
        /// How much may be.
        limit: u64,
    },
    /// A caller broke a rule of this crate's interface.
    #[error("{0}")]
    Misuse(String),
    /// Whoever delivered the bytes failed.
    #[error("the source of {object} failed: {cause}")]
    Source {
        /// What was being read.
        object: String,
        /// What it said.
        cause: String,
    },
    /// The process is stopping, or work on the compute pool died.
    #[error("the process is stopping")]
    Stopped,
}

/// What is wrong with a store behind a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nobody answers there, or the answer ends too early or comes too slowly.
    Unreachable,
    /// It isn't who it should be.
    Certificate,
    /// It has too much to do, or a fault of its own.
    Busy,
    /// It doesn't know these keys, or can't check what they signed.
    Keys,
    /// These keys ended, and there are no newer ones.
    Expired,
    /// There are no keys to sign with.
    NoKeys,
    /// These keys may not do this.
    Rights,
    /// The bucket is in another region.
    Region,
    /// There is no such bucket.
    NoBucket,
    /// Its clock and this machine's are too far apart.
    Clock,
    /// An answer that no S3 service should give.
    Answer,
    /// A listing without objects that are there.
    Listing,
    /// Many processes want to make the same object at the same time.
    Contended,
}

impl Trouble {
    /// Whether trying again is pointless as long as nothing else changes.
    pub fn is_permanent(self) -> bool {
        !matches!(self, Self::Unreachable | Self::Busy | Self::Expired | Self::Answer | Self::Listing | Self::Contended)
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Unreachable => "see whether the endpoint can be reached from this machine, then try again",
            Self::Certificate => {
                "name the endpoint as its certificate does, or the file of its authority in AWS_CA_BUNDLE"
            }
            Self::Busy => "try again later; should it stay so, look at the service's own health",
            Self::Keys => "see whether key id and secret are those of this service, and still in force",
            Self::Expired => "see why no newer keys could be had: the source of the keys is named above or in the log",
            Self::NoKeys => "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in AWS_PROFILE",
            Self::Rights => "give these keys the rights that docs/s3.md lists",
            Self::Region => "name the bucket's own region: s3://BUCKET/PREFIX?region=REGION",
            Self::NoBucket => "make the bucket, or correct its name or the endpoint",
            Self::Clock => "set this machine's clock",
            Self::Answer => "see whether the endpoint is an S3 service, and what stands between it and this machine",
            Self::Listing => {
                "nothing was decided by that listing; try again, and if it stays so, don't use this service"
            }
            Self::Contended => "try again",
        }
    }
}

fn tried(tries: u32) -> String {
    if tries > 1 { format!(" (tried {tries} times)") } else { String::new() }
}

impl Error {
    /// Whether trying again is pointless as long as nothing else changes.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Store { cause, .. } => matches!(
                cause.kind(),
                std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::ReadOnlyFilesystem
                    | std::io::ErrorKind::NotADirectory
            ),
            Self::Remote { trouble, .. } => trouble.is_permanent(),
            Self::Stopped | Self::BlobsMissing { .. } | Self::Source { .. } | Self::WrongSize { .. } => false,
            _ => true,
        }
    }

    /// What to do about it, where somebody can do something. Empty where the error says it itself.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Remote { trouble, .. } => trouble.advice(),
            Self::Full { .. } => "make room (`ocopea rm IMAGE`, then `ocopea repository collect`), then try again",
            Self::Missing { .. } | Self::Damaged { .. } | Self::Store { action: "read", .. } => {
                "see what else is affected: ocopea repository verify"
            }
            Self::WrongKey { .. } => "put that key back into the key file, then start again",
            _ => "",
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store { .. } => "repository.store",
            Self::Remote { .. } => "repository.store",
            Self::Full { .. } => "repository.full",
            Self::Missing { .. } => "repository.missing",
            Self::Damaged { .. } => "repository.damaged",
            Self::Newer { .. } => "repository.newer",
            Self::NoRepository { .. } => "repository.absent",
            Self::Occupied { .. } => "repository.occupied",
            Self::WrongKey { .. } => "repository.key",
            Self::Conflict { .. } => "repository.conflict",
            Self::WrongDigest { .. } => "repository.digest",
            Self::WrongSize { .. } => "repository.size",
            Self::BlobsMissing { .. } => "repository.blobs-missing",
            Self::Limit { .. } => "repository.limit",
            Self::Misuse(_) => "repository.misuse",
            Self::Source { .. } => "repository.source",
            Self::Stopped => "repository.stopped",
        }
    }

    /// The same error once more, for another one who waits for the same thing.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Store { action, object, cause } => Self::Store {
                action,
                object: object.clone(),
                cause: std::io::Error::new(cause.kind(), cause.to_string()),
            },
            Self::Remote { action, object, place, trouble, reason, tries } => Self::Remote {
                action,
                object: object.clone(),
                place: place.clone(),
                trouble: *trouble,
                reason: reason.clone(),
                tries: *tries,
            },
            Self::Full { object } => Self::Full { object: object.clone() },
            Self::Missing { object } => Self::Missing { object: object.clone() },
            Self::Damaged { object, why } => Self::Damaged { object: object.clone(), why: why.clone() },
            Self::Limit { what, found, limit } => Self::Limit { what: what.clone(), found: *found, limit: *limit },
            Self::Stopped => Self::Stopped,
            other => Self::Misuse(other.to_string()),
        }
    }

    pub(crate) fn damaged(object: impl Into<String>, why: impl ToString) -> Self {
        Self::Damaged { object: object.into(), why: why.to_string() }
    }

    /// Whether a store behind a network says that these keys may not do this.
    pub(crate) fn is_about_rights(&self) -> bool {
        matches!(self, Self::Remote { trouble: Trouble::Rights, .. })
    }

    /// Whether it tells of an object that is gone or not what it was: what `verify` looks for.
    pub fn is_breakage(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Damaged { .. } | Self::Newer { .. } | Self::WrongKey { .. })
    }

    /// Whether one object can't be had: broken, or the store can't read it (a bad sector, missing rights). Others may be
    /// fine. Never a reason to take something for unused: it may be read the next time.
    pub(crate) fn is_of_one_object(&self) -> bool {
        self.is_breakage() || matches!(self, Self::Store { action: "read" | "look at", .. })
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
