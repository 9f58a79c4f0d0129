use ocopea_protocol::names::Digest;

/// What went wrong with the repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object isn't there.
    #[error("repository object {0} is missing")]
    NotFound(String),
    /// An object is there already and differs, or may not be made twice.
    #[error("repository object {0} exists already")]
    Exists(String),
    /// The store has no room.
    #[error("the repository is full: {0}")]
    Full(String),
    /// The store failed otherwise.
    #[error("repository object {object}: {source}")]
    Io {
        /// Which object.
        object: String,
        /// The store's own word.
        source: std::io::Error,
    },
    /// What was read is not what was written.
    #[error("repository object {object} is damaged: {why}")]
    Damaged {
        /// Which object.
        object: String,
        /// What doesn't fit.
        why: String,
    },
    /// A blob isn't what its name says.
    #[error("wrong digest: expected {expected}, got {found}")]
    WrongDigest {
        /// Its name.
        expected: Digest,
        /// Its bytes' digest.
        found: Digest,
    },
    /// No key opens it.
    #[error("no key opens {object}: it was wrapped by key {key_id}")]
    WrongKey {
        /// Which object.
        object: String,
        /// The wrap's key.
        key_id: String,
    },
    /// A newer program wrote it.
    #[error("repository of format version {found}, this program reads up to version {}: upgrade it", crate::FORMAT_VERSION)]
    NewerFormat {
        /// Its version.
        found: u32,
    },
    /// Something outside its limits.
    #[error("{0}")]
    Limit(String),
    /// The compute pool or the process stops.
    #[error("stopped")]
    Stopped,
}

impl Error {
    /// Whether trying again makes no sense.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::Io { .. } | Self::Full(_) | Self::Stopped)
    }

    pub(crate) fn damaged(object: impl ToString, why: impl ToString) -> Self {
        Self::Damaged { object: object.to_string(), why: why.to_string() }
    }
}
