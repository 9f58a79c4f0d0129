//! What travels over the API.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// A page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// The cursor of the next page, where there is one.
    pub next: Option<String>,
}

/// Which page.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// The cursor that the page before gave.
    #[param(format = Uuid)]
    pub cursor: Option<String>,
    /// Items per page, 100 unless told, at most 1000.
    pub limit: Option<u64>,
}

/// A sign-in code.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    /// As `ocopea up` printed it.
    pub code: String,
}

/// A token, shown once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct IssuedToken {
    /// The secret.
    pub token: String,
}

/// A token to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for.
    #[schema(min_length = 1, max_length = 200)]
    pub name: String,
    /// `viewer`, `operator` or `administrator`: the most that it allows.
    #[schema(pattern = "^(viewer|operator|administrator)$")]
    pub scope: String,
    /// For how many seconds it works, ten years at most; without end unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 315360000)]
    pub expires_s: Option<u64>,
}

/// Makes repeating a request harmless: the same key with the same request answers with what came of it the first time.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Idempotency {
    /// 1 to 200 printable ASCII characters, new for every request that is meant anew.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 200, pattern = "^[ -~]+$")]
    pub idempotency_key: Option<String>,
}

/// A token as it is listed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// The most that it allows.
    pub scope: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339; absent: never.
    pub expires: Option<String>,
    /// Whether it was revoked.
    pub revoked: bool,
    /// Whether its time is over.
    #[serde(default)]
    pub expired: bool,
}

/// Who asks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// Name.
    pub user: String,
    /// Team's id.
    pub team: String,
    /// Role.
    pub role: String,
}

/// A site.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether only who asks sees it.
    pub private: bool,
    /// `ready`, `limited`, `unreachable`, `unknown`.
    pub state: String,
    /// Why it isn't ready.
    pub why: String,
    /// RFC 3339; when its agent reported last.
    pub reported: Option<String>,
    /// How old that is, in seconds.
    pub age_s: Option<u64>,
    /// The whole report.
    #[schema(value_type = Option<Object>)]
    pub report: Option<Value>,
}

/// An application that runs.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApplicationView {
    /// Where.
    pub site: String,
    /// Its namespace.
    pub application: String,
    /// Distinct container images.
    pub containers: u32,
    /// Workloads.
    pub workloads: u32,
    /// Kinds of data services.
    pub data: Vec<String>,
    /// Bytes of claimed volumes.
    pub claimed_bytes: u64,
    /// RFC 3339; when it was saved last.
    pub saved: Option<String>,
    /// Raw bytes of that image.
    pub saved_bytes: Option<u64>,
}

/// Credentials for one data service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialsInput {
    /// The data service.
    pub service: String,
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
}

/// An application to save or look at.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SaveInput {
    /// The site.
    pub site: String,
    /// The namespace.
    pub namespace: String,
    /// A label selector within it.
    pub selector: Option<String>,
    /// The image's name; the application's and the time unless given.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Comment.
    pub comment: String,
    /// Names that are left out.
    pub without: Vec<String>,
    /// Other credentials than the application's own.
    pub credentials: Vec<CredentialsInput>,
    /// Hold writes while data is copied.
    pub freeze: bool,
    /// The repository that it is saved to; the default one unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// An image to restore.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreInput {
    /// The image's id, or its name where only one has it.
    pub image: String,
    /// The site.
    pub site: String,
    /// The environment's name.
    pub name: String,
    /// Other versions, by component: a tag, or a digest behind '@'.
    pub versions: BTreeMap<String, String>,
    /// Plans only.
    pub dry_run: bool,
    /// The digest of the plan that was approved.
    pub approve: Option<String>,
}

/// An operation that was accepted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// Its id.
    pub operation: String,
}

/// A task of an operation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// Unique within the operation: `data:messages:0`.
    pub label: String,
    /// Its kind.
    pub kind: String,
    /// Its state.
    pub state: String,
    /// Whether it takes something back.
    pub undo: bool,
    /// The attempt that runs or ran last.
    pub attempt: u32,
    /// How often it may be tried.
    pub most_attempts: u32,
    /// How far it is.
    #[schema(value_type = Option<Object>)]
    pub progress: Option<Value>,
    /// Why the last attempt failed.
    #[schema(value_type = Option<Object>)]
    pub failure: Option<Value>,
    /// What it brought.
    #[schema(value_type = Option<Object>)]
    pub output: Option<Value>,
    /// RFC 3339.
    pub started: Option<String>,
    /// RFC 3339.
    pub ended: Option<String>,
}

/// An operation.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    /// Its id.
    pub id: String,
    /// `save`, `restore`, `remove`, `delete-image`, `collect`, `verify`, `inspect`.
    pub kind: String,
    /// `running`, `undoing`, `succeeded`, `failed`, `cancelled`.
    pub state: String,
    /// For people.
    pub title: String,
    /// Who asked for it.
    pub creator: String,
    /// The image that it makes or uses.
    pub image: Option<String>,
    /// The environment that it makes or removes.
    pub environment: Option<String>,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339.
    pub ended: Option<String>,
    /// Counts changes.
    pub version: u64,
    /// What the lines logged for it carry as `trace.id`: 32 hexadecimal digits. That of the request's `traceparent`, if it
    /// brought one.
    pub trace: Option<String>,
    /// Why it failed: what, cause, next, code.
    #[schema(value_type = Option<Object>)]
    pub failure: Option<Value>,
    /// What came of it; only where one operation is asked for.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// Its tasks; only where one operation is asked for.
    pub tasks: Vec<TaskView>,
}

/// What to look for among images.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ImageQuery {
    /// Words that must all occur.
    pub q: Option<String>,
    /// `NAME` or `NAME=VALUE`.
    pub label: Option<String>,
    /// The application.
    pub application: Option<String>,
    /// The site it was saved at.
    pub site: Option<String>,
    /// Who saved it.
    pub by: Option<String>,
    /// The repository that it lies in.
    pub repository: Option<String>,
    /// Milliseconds since 1970: not older.
    pub since_ms: Option<i64>,
    /// Milliseconds since 1970: not newer.
    pub until_ms: Option<i64>,
    /// The cursor that the page before gave.
    #[param(format = Uuid)]
    pub cursor: Option<String>,
    /// Items per page, 100 unless told, at most 1000.
    pub limit: Option<u64>,
}

/// A saved image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The application.
    pub application: String,
    /// Where it was saved.
    pub site: String,
    /// The repository that it lies in.
    pub repository: String,
    /// Who saved it.
    pub creator: String,
    /// The comment given at the save.
    pub comment: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Raw bytes.
    pub bytes: u64,
    /// Raw bytes that no earlier image had.
    pub new_bytes: u64,
    /// RFC 3339.
    pub created: String,
    /// Digest of its record: its identity.
    pub record: String,
    /// The whole record; only where one image is asked for.
    #[schema(value_type = Option<Object>)]
    pub body: Option<Value>,
    /// Comments; likewise.
    pub comments: Vec<CommentView>,
}

/// A comment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommentView {
    /// Who.
    pub author: String,
    /// RFC 3339.
    pub at: String,
    /// What.
    pub body: String,
}

/// A comment to be made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewComment {
    /// What.
    #[schema(min_length = 1, max_length = 10000)]
    pub body: String,
}

/// Labels to set; `null` takes one away.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelChanges {
    /// By label.
    pub labels: BTreeMap<String, Option<String>>,
}

/// An environment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnvironmentView {
    /// Its id.
    pub id: String,
    /// Its name and namespace.
    pub name: String,
    /// Where it runs.
    pub site: String,
    /// `creating`, `running`, `removing`, or `incomplete`: it could not be made, and not all of it could be taken back.
    pub state: String,
    /// The image it came from.
    pub image: String,
    /// Its URL, if one was found.
    pub url: Option<String>,
    /// Who made it.
    pub owner: String,
    /// RFC 3339.
    pub created: String,
}

/// Which logs.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Only workloads and containers of this name.
    pub component: Option<String>,
    /// Go on as lines come.
    #[serde(default)]
    pub follow: bool,
}

/// How to collect.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectInput {
    /// Seconds between being found dead first and being deleted.
    #[schema(maximum = 2592000)]
    pub grace_s: u64,
    /// The repository; the default one unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// What to verify.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyInput {
    /// One image, or everything.
    pub image: Option<String>,
    /// The repository; the image's own, or the default one, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

/// Which repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct OfRepository {
    /// Its name or id; the default one unless given.
    pub repository: Option<String>,
}

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

/// What a reindex brought.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reindexed {
    /// Images in the repository.
    pub images: u64,
    /// Of these, new to the catalog.
    pub added: u64,
    /// Those that can't be read.
    pub failed: Vec<NotReindexed>,
}

/// An image that can't be read.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NotReindexed {
    /// Its ref in the repository.
    pub object: String,
    /// What is wrong.
    pub why: String,
}

/// A key of the repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Its id, as in the key file.
    pub id: String,
    /// New keys are wrapped with it.
    pub current: bool,
}

/// A new key of the repository.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// New team keys, too, for images that are saved from now on.
    #[serde(default)]
    pub rotate: bool,
}

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
