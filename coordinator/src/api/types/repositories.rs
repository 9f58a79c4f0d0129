//! Repositories, as they are added and shown.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A repository to add.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NewRepository {
    /// Its name: up to 63 of a-z, 0-9 and '-'.
    pub name: String,
    /// `s3://BUCKET/PREFIX[?endpoint=URL&region=R&path-style=true]`, or the absolute path of a directory where coordinator
    /// and agents are one process.
    pub location: String,
    /// Where the keys of its store come from.
    pub keys: RepositoryKeys,
    /// Whether agents have keys of their own; else tasks bring them, sealed.
    pub agents_have_keys: bool,
    /// What each process may ask of its store.
    pub limits: StoreLimitsInput,
}

/// What is to be changed of a repository: what isn't given stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ChangedRepository {
    /// Where the keys of its store come from.
    pub keys: Option<RepositoryKeys>,
    /// Whether agents have keys of their own.
    pub agents_have_keys: Option<bool>,
    /// What each process may ask of its store, all of it.
    pub limits: Option<StoreLimitsInput>,
}

/// Where the keys of a store come from.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RepositoryKeys {
    /// The coordinator's environment, as the tools of AWS look for them.
    #[default]
    Environment,
    /// A profile in the files of the tools of AWS.
    Profile {
        /// Its name.
        profile: String,
    },
    /// Lent by a security token service for a token in a file.
    WebIdentity {
        /// The role.
        role: String,
        /// A name for the session, for the service's logs; `ocopea` unless given.
        #[serde(default)]
        session: Option<String>,
    },
    /// These. Sealed in the catalog, and never shown again.
    Static {
        /// The access key's id.
        id: String,
        /// What requests are signed with.
        secret: String,
        /// Goes with keys that were lent for a time.
        #[serde(default)]
        token: Option<String>,
    },
}

/// What each process may ask of a store: as much as there is, unless given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreLimitsInput {
    /// Requests at the same time; 32 to a bucket unless given.
    #[schema(minimum = 1, maximum = 1024)]
    pub requests: Option<u32>,
    /// Bytes per second to it.
    #[schema(minimum = 65536)]
    pub upload: Option<u64>,
    /// Bytes per second from it.
    #[schema(minimum = 65536)]
    pub download: Option<u64>,
}

/// A repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `directory` or `s3`.
    pub kind: String,
    /// Where it lies.
    pub location: String,
    /// Where the keys of its store come from: `environment`, `profile NAME`, `web identity ROLE`, `static ID`.
    pub keys: String,
    /// Whether agents have keys of their own.
    pub agents_have_keys: bool,
    /// What each process may ask of its store.
    pub limits: StoreLimitsInput,
    /// `ready`, `unusable`, `unknown`: as its store was looked at last.
    pub state: String,
    /// What its store can.
    pub found: Vec<String>,
    /// Why it can't be used.
    pub why: String,
    /// RFC 3339; when its store was looked at: when it was added, and at every start.
    pub found_at: Option<String>,
    /// Images that lie in it, all teams' together.
    pub images: u64,
    /// Raw bytes that they brought.
    pub new_bytes: u64,
    /// Whether saves go there that name none.
    pub is_default: bool,
    /// Whether it is the one that coordinators are started with.
    pub given_at_start: bool,
    /// RFC 3339.
    pub created: String,
}
