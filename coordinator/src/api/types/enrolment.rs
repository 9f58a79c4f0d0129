//! How sites come.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A site to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSite {
    /// Its name: lower-case letters, digits, '-'.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// Only who makes it sees and uses it: a laptop's cluster, say.
    #[serde(default)]
    pub private: bool,
    /// For how many seconds its join token works, a year at most; a day unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31536000)]
    pub expires_s: Option<u64>,
}

/// Lets one agent in, once; shown once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JoinToken {
    /// The site's id.
    pub site: String,
    /// Its name.
    pub name: String,
    /// The secret.
    pub token: String,
    /// RFC 3339.
    pub expires: String,
}

/// An enrolment key to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewEnrolment {
    /// What it is for.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// Names that sites may give themselves; `*` stands for any letters.
    #[schema(min_length = 1, max_length = 200)]
    pub names: String,
    /// How many sites may come with it, 10 000 at most.
    #[schema(minimum = 1, maximum = 10000)]
    pub uses: u32,
    /// Whether they are accepted at once; else each waits for its approval.
    #[serde(default)]
    pub approves: bool,
    /// For how many seconds it works, a year at most; a day unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 31536000)]
    pub expires_s: Option<u64>,
}

/// Lets sites in; shown once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct IssuedEnrolmentKey {
    /// Its id.
    pub id: String,
    /// The secret.
    pub key: String,
    /// RFC 3339.
    pub expires: String,
}

/// An enrolment key or join token as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnrolmentKeyView {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// Of a join token: the id of its site.
    pub site: Option<String>,
    /// Names that sites may give themselves.
    pub names: String,
    /// Whether they are accepted at once.
    pub approves: bool,
    /// How many came with it.
    pub uses: u32,
    /// How many may.
    pub most_uses: u32,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339.
    pub expires: String,
    /// `open`, `used`, `expired` or `revoked`.
    pub state: String,
}

/// "Let me be a site's agent."
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// A join token or an enrolment key.
    #[schema(min_length = 1, max_length = 200)]
    pub token: String,
    /// The name that the site gives itself; an enrolment key wants one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The site's own public key (Ed25519), 64 hexadecimal digits: it signs its agents in.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub key: String,
    /// A public key (X25519) that is made for this answer, 64 hexadecimal digits.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub answer_key: String,
}

/// What came of an enrolment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Enrolled {
    /// The site's id.
    pub site: String,
    /// Its name.
    pub name: String,
    /// `active`, or `pending`: then ask again, with the same token and keys, until somebody has accepted it.
    pub standing: String,
    /// What its agents connect by, once it is active.
    pub broker: Option<BrokerAccess>,
}

/// What a site's agents connect by.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BrokerAccess {
    /// `amqps://HOST:PORT/VHOST`.
    pub url: String,
    /// The site's user.
    pub user: String,
    /// Its password, sealed to the key that the question brought.
    pub password: SealedText,
    /// Certificates (PEM) that the broker is checked against, where these are not the system's.
    pub certificates: Option<String>,
}

/// A text that only one key opens.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SealedText {
    /// The encapsulated key, hexadecimal.
    pub encapsulated: String,
    /// The ciphertext, hexadecimal.
    pub bytes: String,
}
