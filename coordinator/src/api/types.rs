//! What travels over the API.

mod enrolment;
mod repositories;
mod verdicts;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

pub use enrolment::*;
pub use repositories::*;
pub use verdicts::*;

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
    /// `creating`, `running`, `removing`, or `incomplete`: something of it is left, by a restore that could
    /// not be taken back or a removal that ended on the way.
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
