//! Data services: one file (or folder) each, behind one seam.
//!
//! The principle: a driver is told how to reach one service and moves *all* of its data between the service and
//! streams of the repository; what it can't move it names, before a byte is copied. It knows nothing of
//! Kubernetes, tasks or images. To add a data service: a file here that implements [`DataService`], a line in
//! [`all`], a variant of [`DataKind`], and its fixture for the conformance suite in `tests/`.

pub mod mongodb;
pub mod postgresql;
pub mod volume;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use ocopea_mover::wire::Job;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, DataKind, StreamInfo},
    inventory::Gap,
    names::ComponentName,
    seams::Seams,
    secret::Secret,
    task::Progress,
};
use ocopea_repository::{DataReader, DataWriter};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

/// What a container of a workload looks like from outside: enough to guess which server it is.
#[derive(Clone, Debug, Default)]
pub struct ContainerView {
    /// Image reference as in the manifest.
    pub image: String,
    /// The container's name.
    pub name: String,
    /// Declared ports.
    pub ports: Vec<u16>,
    /// Plain and resolved environment (secrets included, hence no `Debug` of it in messages).
    pub env: BTreeMap<String, Secret>,
    /// Command and arguments.
    pub command: Vec<String>,
    /// Mount paths and the claims behind them.
    pub mounts: Vec<(String, Option<String>)>,
}

/// A guess that a container is a server of some kind; the handshake of [`DataService::inspect`] decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The port that it would listen on.
    pub port: u16,
    /// The administrator's login that the container's own environment shows, if any.
    pub administrator: Option<Login>,
    /// Where in it the data lies, if the image keeps to its custom.
    pub data_path: Option<String>,
}

/// An application's way to a service, parsed from one value of its configuration (a URI, a host name …).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedBinding {
    /// Host names that it names, without ports.
    pub hosts: Vec<String>,
    /// The login within it.
    pub login: Option<Login>,
}

/// One value of an application's configuration under its name: a variable, or a line of a file (the name is the
/// file's path then).
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The variable's name or the file's path.
    pub name: &'a str,
    /// The value or the line. It may be a secret.
    pub value: &'a str,
}

/// Who signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Whose login it is.
    pub of: LoginOf,
    /// User name; empty where the server knows no users.
    pub user: String,
    /// Password.
    pub password: Secret,
    /// The database that the application names.
    pub database: Option<String>,
    /// Further options by name (`authSource`, `replicaSet`, `sslmode` …).
    pub options: BTreeMap<String, String>,
}

/// Whose login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoginOf {
    /// Named by the user for this operation: nothing else is tried.
    Given,
    /// The application's own.
    Application,
    /// The service's administrator, as the server's own configuration has it.
    Administrator,
}

/// Runs client programs (`pg_dump` …) where they are: in the service's own container, or on this host.
#[async_trait]
pub trait Tools: Send + Sync {
    /// Where they run: `container "postgres" of pod messages-0`, `this host`.
    fn place(&self) -> String;
    /// The address under which the service is reached from where the tools run.
    fn address(&self) -> (String, u16);
    /// Starts a program. Secrets go by environment or standard input, never by argument.
    async fn start(
        &self,
        program: &str,
        arguments: &[String],
        environment: &[(String, Secret)],
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure>;
}

/// A started program.
pub struct RunningTool {
    /// Its standard output.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// Ends with its exit status and the tail of its standard error; dropping it kills the program.
    pub ended: tokio::sync::oneshot::Receiver<(i32, String)>,
}

/// A server that can be reached.
#[derive(Clone)]
pub struct ServerReach {
    /// Address on this host (a forwarded port), or the server's own.
    pub address: SocketAddr,
    /// Logins to try, best first.
    pub logins: Vec<Login>,
    /// Client programs, best first; the driver takes the first that is new enough.
    pub tools: Vec<Arc<dyn Tools>>,
    /// Names under which the application knows the server.
    pub hosts: Vec<String>,
}

/// A volume that can be reached: through frames to and from a mover at its mount.
#[async_trait]
pub trait VolumeReach: Send + Sync {
    /// The claim's name.
    fn claim(&self) -> String;
    /// Pods that mount it read-write and run now.
    async fn writers(&self) -> Result<Vec<String>, TaskFailure>;
    /// Ends what could write to it, until [`Self::let_go`] is called with the answer; `None`: nothing could.
    async fn hold_writers(&self) -> Result<Option<String>, TaskFailure>;
    /// Lets what was ended run again: one hold, or all that this operation has. Harmless where there is none.
    async fn let_go(&self, hold: Option<&str>) -> Result<(), TaskFailure>;
    /// Starts `ocopea-mover` at the volume, for this job: its standard input and output. Whoever else works there for
    /// the same operation, an earlier attempt, is stopped before.
    async fn mover(
        &self,
        job: Job,
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure>;
}

/// How one data service is reached.
#[derive(Clone)]
pub enum Reach {
    /// A server.
    Server(ServerReach),
    /// A volume.
    Volume(Arc<dyn VolumeReach>),
}

/// How long writes may be held.
const LONGEST_FREEZE: Duration = Duration::from_secs(300);

/// Why a freeze that takes too long ends.
fn frozen_too_long(name: &ComponentName) -> TaskFailure {
    TaskFailure::permanent(
        "save.freeze-too-long",
        format!("can't hold the writes of \"{name}\" any longer"),
        format!("they were held for {} s", LONGEST_FREEZE.as_secs()),
    )
    .next("save without --freeze, or while less is to be copied")
}

/// Everything a driver is given.
#[derive(Clone)]
pub struct Subject {
    /// The component's name, for messages.
    pub name: ComponentName,
    /// How it is reached.
    pub reach: Reach,
    /// Clock, randomness, spawning.
    pub seams: Seams,
    /// Cancelled when the operation is, or when the lease is lost: stop touching anything.
    pub stop: CancellationToken,
    /// Where progress goes; cheap to call often.
    pub progress: Arc<dyn Fn(Progress) + Send + Sync>,
}

/// What a first look at a service shows.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// `15.18`, `6.0.0`.
    pub version: Option<String>,
    /// Estimated raw bytes.
    pub bytes: Option<u64>,
    /// Number of streams.
    pub streams: Option<u64>,
    /// What a target must have.
    pub features: Vec<String>,
    /// What a copy of it would be.
    pub consistency: Consistency,
    /// What can't be read or is not supported; blocking ones refuse the save.
    pub gaps: Vec<Gap>,
}

/// What a copy brought, besides the component itself.
#[derive(Clone, Debug)]
pub struct Copied {
    /// Streams with their counts and content hashes.
    pub streams: Vec<StreamInfo>,
    /// How consistent.
    pub consistency: Consistency,
    /// The server's version.
    pub version: Option<String>,
    /// What a target must have.
    pub features: Vec<String>,
    /// What is outside this copy and worth knowing.
    pub notices: Vec<String>,
    /// The driver's own facts (JSON), given back at the load: schema, options, settings.
    pub facts: String,
}

/// What a load brought: the target's own counts, read back from it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Streams as counted at the target, with content hashes where they were read back.
    pub streams: Vec<StreamInfo>,
    /// What was said in the plan to be left out, or differs harmlessly.
    pub notices: Vec<String>,
}

/// A driver.
#[async_trait]
pub trait DataService: Send + Sync {
    /// Its kind.
    fn kind(&self) -> DataKind;

    /// Whether a container looks like one of its servers. Pure.
    fn recognise(&self, container: &ContainerView) -> Option<Recognised>;

    /// The port that its servers listen on unless told otherwise, where a connection string alone tells a server.
    fn usual_port(&self) -> Option<u16> {
        None
    }

    /// Whether one value of an application's configuration (an environment variable, a line of a file) is a way
    /// to a service of this kind. Pure.
    fn parse_binding(&self, name: &str, value: &str) -> Option<ParsedBinding>;

    /// The login that other settings of the same container give beside `host`, which names this service's host and no
    /// login (`DB_USER`, `DB_PASSWORD` beside `DB_HOST`). Pure.
    fn login_beside(&self, _host: &Setting<'_>, _all: &[Setting<'_>]) -> Option<Login> {
        None
    }

    /// `value` (that [`Self::parse_binding`] understood) with host names replaced as `hosts` says. Pure.
    fn rewrite_binding(&self, value: &str, hosts: &BTreeMap<String, String>) -> String;

    /// Handshake, version, rights, sizes. Reads no data.
    async fn inspect(&self, subject: &Subject) -> Result<Inspected, TaskFailure>;

    /// Connects and checks rights, so that opening takes milliseconds.
    async fn prepare(&self, subject: &Subject, freeze: bool) -> Result<Box<dyn Prepared>, TaskFailure>;

    /// Copies everything under the snapshot that a holder opened. `snapshot` is [`Held::snapshot`].
    /// Streams are written through `writer`; the caller finishes the component with [`Copied::facts`].
    async fn copy(&self, subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure>;

    /// Loads an empty or just initialised service (what its init scripts made is dropped first), then counts every
    /// stream at the target. The caller compares with the record.
    async fn load(&self, subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure>;

    /// Releases a freeze that a dead holder may have left. Harmless where there is none.
    async fn unfreeze(&self, subject: &Subject) -> Result<(), TaskFailure>;
}

/// Ready to open.
#[async_trait]
pub trait Prepared: Send {
    /// Opens the snapshot now.
    async fn open(self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure>;
}

/// An open snapshot. Dropping it lets go at once.
#[async_trait]
pub trait Held: Send {
    /// For the copy tasks, which may run in another process: JSON of the driver.
    fn snapshot(&self) -> String;
    /// Called every second or so: whether the snapshot still stands and harms nobody.
    async fn check(&mut self) -> Result<(), TaskFailure>;
    /// Lets go; answers for how many milliseconds writes were held.
    async fn release(self: Box<Self>) -> Result<u64, TaskFailure>;
}

/// Every driver, in the order in which they are asked whether they recognise a container.
pub fn all() -> Vec<Arc<dyn DataService>> {
    vec![Arc::new(mongodb::MongoDb), Arc::new(postgresql::PostgreSql), Arc::new(volume::Volume)]
}
