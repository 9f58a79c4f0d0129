//! One newtype per entity. All ids are UUIDs version 7: they sort by the time they were made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::seams::Seams;

/// The text was not a UUID.
#[derive(Debug, thiserror::Error)]
#[error("not a valid {entity} id: {text:?} (expected a UUID)")]
pub struct InvalidId {
    entity: &'static str,
    text: String,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $entity:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id from the injected clock and entropy.
            pub fn generate(seams: &Seams) -> Self {
                Self(seams.uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($entity, ":{}"), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let shown = || text.chars().take(64).collect();
                if text.len() > 64 {
                    return Err(InvalidId { entity: $entity, text: shown() });
                }
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId { entity: $entity, text: shown() })
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
    )*};
}

ids! {
    /// Those who own images, environments and operations.
    TeamId = "team";
    /// A person.
    UserId = "user";
    /// An API token.
    TokenId = "token";
    /// A cluster with agents beside it.
    SiteId = "site";
    /// A copy repository.
    RepositoryId = "repository";
    /// A saved image.
    ImageId = "image";
    /// A running application that Ocopea deployed.
    EnvironmentId = "environment";
    /// One save, restore, removal, collection …
    OperationId = "operation";
    /// One step of an operation.
    TaskId = "task";
    /// One process of an agent.
    InstanceId = "instance";
    /// What somebody does by hand in an environment.
    SessionId = "session";
    /// What lets sites enrol.
    EnrolmentKeyId = "enrolment key";
}
