//! `ocopea up`: coordinator, catalog and one agent per site in one process, on embedded defaults.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use ocopea_agent::{
    access as ways,
    containers::{Credentials, RegistryHost},
    execute::Site,
    platform::{
        Platform,
        interactive::{Interactive, Wish},
        logs::LogWish,
    },
    worker::{Identity, Worker},
};
use ocopea_catalog_db::{Catalog, access::Actor, model::Role};
use ocopea_coordinator::{
    Coordinator,
    api::{self, OpenConnection, SiteAccess},
    tokens,
    vault::Vault,
};
use ocopea_protocol::{
    bus::in_process::InProcessBus,
    failure::TaskFailure,
    identity::{IdentityError, SiteKey},
    ids::SiteId,
    image::Location,
    message::{Request, SiteReport, SiteState},
    names::SiteName,
    seams::Seams,
    secret::Secret32,
};
use ocopea_repository::Keyring;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    arguments::Up,
    client::{Account, Failure},
    output, storage,
};

/// How long a sign-in code works.
const CODE: Duration = Duration::from_secs(600);
/// How often agents look at their sites.
const REPORT: Duration = Duration::from_secs(60);

struct SiteOption {
    name: SiteName,
    context: String,
    registry: Option<RegistryHost>,
}

fn parse_site(text: &str) -> Result<SiteOption, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("--site {text:?}: {why}")).next("expected NAME=CONTEXT[,registry=[http://]HOST/PATH]")
    };
    let mut parts = text.split(',');
    let (name, context) =
        parts.next().and_then(|p| p.split_once('=')).ok_or_else(|| wrong("it names no context".to_owned()))?;
    let name = name.parse().map_err(|error| wrong(format!("{error}")))?;
    let mut registry = None;
    for part in parts {
        match part.split_once('=') {
            Some(("registry", value)) => registry = Some(value.parse().map_err(wrong)?),
            _ => return Err(wrong(format!("{part:?} is not known"))),
        }
    }
    Ok(SiteOption { name, context: context.to_owned(), registry })
}

fn data_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let base = given.or_else(|| {
        std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
            .map(|base| base.join("ocopea"))
    });
    let path = base.ok_or_else(|| Failure::usage("there is no home directory").next("name a directory with --data"))?;
    let fault =
        |error: std::io::Error| Failure::local(format!("the data directory {} can't be used: {error}", path.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(fault)?;
    path.canonicalize().map_err(fault)
}

/// Keeps a second process off the directory for as long as it is held.
fn lock(data: &Path) -> Result<std::fs::File, Failure> {
    let path = data.join("lock");
    let fault = |error: std::io::Error| Failure::local(format!("{} can't be used: {error}", path.display()));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fault)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let owner = std::fs::read_to_string(&path).unwrap_or_default();
        return Err(Failure {
            status: 5,
            ..Failure::local(format!("another process uses {}: {}", data.display(), owner.trim()))
                .next("stop it first, or choose another directory with --data")
        });
    }
    file.set_len(0).map_err(fault)?;
    writeln!(file, "process {}", std::process::id()).map_err(fault)?;
    Ok(file)
}

/// Reads a secret file, or makes it (0600) with what `make` gives. Whole or not at all.
pub(crate) fn secret_file(
    path: &Path,
    make: impl FnOnce() -> Result<String, Failure>,
) -> Result<(String, bool), Failure> {
    let fault = |error: std::io::Error| Failure::local(format!("{} can't be used: {error}", path.display()));
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok((text, false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    let text = make()?;
    write_secret(path, &text).map_err(fault)?;
    Ok((text, true))
}

/// Writes a secret file (0600): whole or not at all, and on the disk when this returns.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    // Left by a crash before it got its name: never used.
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn open_vault(data: &Path) -> Result<Vault, Failure> {
    let fault = |error: ocopea_coordinator::vault::VaultError| Failure::local(error.to_string());
    let made = Vault::generate_key().map_err(fault)?;
    let path = data.join("installation.key");
    let (text, _) = secret_file(&path, || Ok(made.0.iter().map(|byte| format!("{byte:02x}")).collect()))?;
    let mut key = [0u8; 32];
    let text = text.trim();
    let fits = text.len() == 64 && text.is_ascii();
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = text
            .get(2 * index..2 * index + 2)
            .filter(|_| fits)
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or_else(|| Failure::local(format!("{} is not a key file", path.display())))?;
    }
    Vault::new(&Secret32(key)).map_err(fault)
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(options: Up) -> Result<(), Failure> {
    let sites = options.sites.iter().map(|text| parse_site(text)).collect::<Result<Vec<_>, _>>()?;
    // What is made from here on is nobody else's to read, the catalog included.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let data = data_directory(options.data)?;
    let _lock = lock(&data)?;
    log_to(&data)?;
    let tracker = TaskTracker::new();
    let seams = Seams::real(tracker.clone());
    let catalog_fault = |error: ocopea_catalog_db::CatalogError| Failure::local(error.to_string());
    let catalog = Catalog::sqlite(&data.join("catalog.sqlite"), seams.clone()).await.map_err(catalog_fault)?;
    let (repository, location) = storage::open(&data, options.repository.as_deref(), &seams).await?;
    let stores = repository.stores().clone();
    let abilities = repository.abilities();
    let user = std::env::var("USER").unwrap_or_else(|_| "admin".to_owned());
    let actor = catalog.ensure_first_user("team", &user).await.map_err(catalog_fault)?;
    // One process per directory: whoever held a lease before is dead.
    catalog.expire_all_but(&[]).await.map_err(catalog_fault)?;
    let bus = InProcessBus::new(seams.clone());
    let coordinator =
        Coordinator::new(catalog.clone(), repository, open_vault(&data)?, Arc::new(bus.clone()), seams.clone());
    let listener = tokio::net::TcpListener::bind(&options.listen).await.map_err(|error| {
        Failure::local(format!("can't listen at {}: {error}", options.listen))
            .next("choose another address with --listen")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::local(error.to_string()))?;
    output::line(format!(
        "Ocopea {}   data in {} (catalog: SQLite, repository: {}, encrypted)",
        env!("CARGO_PKG_VERSION"),
        data.display(),
        storage::told(&location)
    ));
    if matches!(location, Location::S3 { .. }) {
        output::line(format!("The repository's store: {}", abilities.told().join("; ")));
    }
    let credentials = docker_credentials().await?;
    let mut platforms = BTreeMap::new();
    let mut workers = Vec::new();
    for option in sites {
        let id = catalog.ensure_site(option.name.as_str()).await.map_err(catalog_fault)?;
        let platform = match Platform::open(options.kubeconfig.as_deref(), &option.context, seams.clone()).await {
            Ok(platform) => platform,
            Err(failure) => {
                return Err(Failure {
                    status: 2,
                    what: failure.what,
                    cause: failure.cause,
                    place: format!("site {}", option.name),
                    next: failure.next,
                });
            }
        };
        platforms.insert(option.name.to_string(), platform.clone());
        let site = Arc::new(Site {
            name: option.name.to_string(),
            platform,
            registry: option.registry,
            mover_image: options.mover_image.clone(),
            credentials: credentials.clone(),
            stores: stores.clone(),
            seams: seams.clone(),
        });
        // Agents of this process: their key lives as long as it does.
        let fault = |error: IdentityError| Failure::local(error.to_string());
        let key = SiteKey::generate().map_err(fault)?;
        catalog.set_site_key(id, &key.public().map_err(fault)?).await.map_err(catalog_fault)?;
        let identity = Identity::beside(&site.platform, id, key);
        let worker = Worker::new(site.clone(), Arc::new(bus.agent(id)), identity, seams.clone()).map_err(fault)?;
        workers.push((site, worker, id));
    }
    let stop = CancellationToken::new();
    let agents_stop = CancellationToken::new();
    coordinator.start(&stop);
    // One that doesn't answer holds up no other.
    let reports = workers.iter().map(|(site, worker, _)| site.report(worker.instance()));
    for ((site, _, id), report) in workers.iter().zip(futures::future::join_all(reports).await) {
        catalog.report_site(*id, &report).await.map_err(catalog_fault)?;
        print_site(&site.name, &report);
    }
    let mut signals = Signals::listen()?;
    say_what_waits(&catalog, &workers.iter().map(|(_, _, id)| *id).collect::<Vec<_>>()).await.map_err(catalog_fault)?;
    let agents = TaskTracker::new();
    let mut looks = BTreeMap::new();
    for (site, worker, _) in workers {
        let token = agents_stop.clone();
        let one = Arc::clone(&worker);
        let running = agents.track_future(async move { one.run(token).await });
        seams.spawner.spawn("agent", Box::pin(running));
        let (token, clock) = (agents_stop.clone(), seams.clone());
        let look = Arc::new(Notify::new());
        looks.insert(site.name.clone(), Arc::clone(&look));
        seams.spawner.spawn(
            "agent.reports",
            Box::pin(async move {
                loop {
                    let goes_on = tokio::select! {
                        slept = clock.sleep_unless(&token, clock.jittered(REPORT)) => slept,
                        () = look.notified() => true,
                    };
                    if !goes_on {
                        break;
                    }
                    let report = site.report(worker.instance()).await;
                    worker.tell(&Request::Report(Box::new(report))).await;
                }
            }),
        );
    }
    agents.close();
    let code = tokens::generate("code").ok_or_else(|| Failure::local("the system gives no randomness"))?;
    let expires = seams.clock.now().plus(CODE);
    catalog.add_sign_in_code(actor.user, &tokens::hash(code.reveal()), expires).await.map_err(catalog_fault)?;
    let url = format!("http://{address}");
    let signed_in =
        Account { url: url.clone(), token: shell_token(&catalog, &actor).await.map_err(catalog_fault)? }.store();
    let shell = match signed_in {
        Ok(()) => "this shell's user is signed in".to_owned(),
        Err(error) => format!("this shell could not be signed in: {error}"),
    };
    output::line(format!(
        "Sign in elsewhere: ocopea sign-in '{url}/sign-in?code={}'   (works once, for ten minutes; {shell})",
        code.reveal()
    ));
    output::line(format!(
        "Back up the key file {}: without it nobody can read the images.",
        data.join("repository.key").display()
    ));
    let router = api::router(api::State {
        coordinator: Arc::clone(&coordinator),
        access: Arc::new(Access { platforms, looks }),
        keys: Arc::new(KeyFile(data.join("repository.key"))),
        broker: None,
    });
    let closed = CancellationToken::new();
    let serving = api::serve(listener, router, seams.clone(), closed.clone());
    seams.spawner.spawn("api", Box::pin(serving));
    signals.next().await;
    closed.cancel();
    output::line("stopping: nothing new is taken, what runs is finished or handed back");
    // The coordinator goes on answering until the agents have handed back what they had.
    agents_stop.cancel();
    tokio::select! {
        ended = seams.timeout(Duration::from_secs(30), agents.wait()) => if ended.is_none() {
            output::remark("some tasks did not end in time: they go on at the next start");
        },
        () = signals.next() => {
            output::remark("asked twice: left at once; what ran goes on at the next start");
            return Ok(());
        }
    }
    stop.cancel();
    tracker.close();
    // Connections that people hold open (logs, ports) end with the process.
    if seams.timeout(Duration::from_secs(3), tracker.wait()).await.is_none() {
        tracing::info!("some connections were still open at the end");
    }
    Ok(())
}

/// The wishes to stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let fault = |error: std::io::Error| Failure::local(format!("signals can't be heard: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(fault)?,
            interrupt: signal(SignalKind::interrupt()).map_err(fault)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// This shell's token: the one that it has, as long as it works here, else a new one.
async fn shell_token(catalog: &Catalog, actor: &Actor) -> Result<String, ocopea_catalog_db::CatalogError> {
    if let Some(kept) = Account::load() {
        let known = catalog.authenticate(&tokens::hash(&kept.token)).await?;
        if known.is_some_and(|known| known.user == actor.user && !known.narrowed) {
            return Ok(kept.token);
        }
    }
    let token = tokens::issue(catalog, actor, "this shell", Role::Administrator, None).await?;
    Ok(token.reveal().to_owned())
}

/// Operations at sites that were not given wait until they are.
async fn say_what_waits(catalog: &Catalog, given: &[SiteId]) -> Result<(), ocopea_catalog_db::CatalogError> {
    let waiting: Vec<_> = catalog
        .open_operations()
        .await?
        .into_iter()
        .filter(|operation| operation.site.is_some_and(|site| !given.contains(&site)))
        .collect();
    for operation in &waiting {
        let site = match operation.site {
            Some(site) => catalog.site(&site.to_string()).await?.name,
            None => continue,
        };
        output::line(format!(
            "  operation {} ({}) waits for site {site}, which was not given: start with --site {site}=CONTEXT",
            operation.id, operation.title
        ));
    }
    Ok(())
}

fn log_to(data: &Path) -> Result<(), Failure> {
    let log = Log::open(data.join("ocopea.log"))
        .map_err(|(path, error)| Failure::local(format!("{} can't be written: {error}", path.display())))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("OCOPEA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,sqlx=warn,kube=warn"));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::sync::Mutex::new(log));
    log.try_init().map_err(|error| Failure::local(format!("no log: {error}")))
}

/// Where a log begins anew; the one before is kept beside it.
const LONGEST_LOG: u64 = 32 * 1024 * 1024;

/// The log file, bounded. A disk without room costs lines, and is said once.
struct Log {
    path: PathBuf,
    file: std::fs::File,
    length: u64,
    broken: bool,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, (PathBuf, std::io::Error)> {
        let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((length, file)) => Ok(Self { path, file, length, broken: false }),
            Err(error) => Err((path, error)),
        }
    }

    fn begin_anew(&mut self) -> std::io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self::open(self.path.clone()).map_err(|(_, error)| error)?;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let room = if self.length >= LONGEST_LOG { self.begin_anew() } else { Ok(()) };
        match room.and_then(|()| self.file.write_all(line)) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.broken = false;
            }
            Err(error) if !self.broken => {
                self.broken = true;
                output::remark(format!("the log {} can't be written: {error}", self.path.display()));
            }
            Err(_) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn docker_credentials() -> Result<Credentials, Failure> {
    let base = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")));
    let Some(base) = base else { return Ok(Credentials::default()) };
    Credentials::read(&base.join("config.json")).await.map_err(|error| Failure::local(error.to_string()))
}

fn print_site(name: &str, report: &SiteReport) {
    let state = match &report.state {
        SiteState::Ready => "ready".to_owned(),
        SiteState::Limited => "limited".to_owned(),
        SiteState::Unreachable(why) => {
            output::line(format!("  site {name:<10} unreachable   {why}"));
            return;
        }
    };
    let namespaces = if report.may_create_namespaces { "namespaces may be created" } else { "no new namespaces" };
    output::line(format!(
        "  site {name:<10} {state}   {}, {} · {} · {namespaces}",
        report.platform,
        output::count(report.nodes.into(), "node"),
        report.data_kinds.join(", ")
    ));
    for missing in &report.missing {
        output::line(format!("       {:<10} missing: {missing}", ""));
    }
}

/// `repository.key`.
struct KeyFile(PathBuf);

impl api::KeyFile for KeyFile {
    fn store(&self, keys: &Keyring) -> Result<(), String> {
        write_secret(&self.0, &keys.to_text())
            .map_err(|error| format!("the key file {} can't be written: {error}", self.0.display()))
    }
}

/// Logs and ports of environments, through the sites' own clusters.
struct Access {
    platforms: BTreeMap<String, Platform>,
    /// Rung to have a site looked at before its time.
    looks: BTreeMap<String, Arc<Notify>>,
}

impl Access {
    fn platform(&self, site: &str) -> Result<&Platform, TaskFailure> {
        self.platforms.get(site).ok_or_else(|| {
            TaskFailure::permanent(
                "site.absent",
                format!("can't reach site {site}"),
                "this process has no agent for it",
            )
            .next("start with --site NAME=CONTEXT")
        })
    }
}

#[async_trait]
impl SiteAccess for Access {
    fn look_again(&self, site: &str) -> bool {
        self.looks.get(site).inspect(|look| look.notify_one()).is_some()
    }

    async fn logs(
        &self,
        site: &str,
        namespace: &str,
        component: Option<&str>,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        let wish = LogWish { component: component.map(str::to_owned), follow, tail: None };
        let lines = self.platform(site)?.logs(namespace, &wish).await?;
        let stream = futures::stream::unfold(lines, |mut lines| async move {
            let line = lines.recv().await?;
            let text = format!("{} {}  {}\n", line.pod, line.container, line.text);
            Some((Ok(Bytes::from(text)), lines))
        });
        Ok(Box::pin(stream))
    }

    async fn connect(
        &self,
        site: &str,
        namespace: &str,
        service: &str,
        port: u16,
    ) -> Result<OpenConnection, TaskFailure> {
        let namespace = namespace.parse().map_err(|error| {
            TaskFailure::permanent("environment.name", format!("can't connect to {service} of {namespace}"), error)
        })?;
        let open = ways::Access::new(self.platform(site)?.clone()).connect(&namespace, service, port).await?;
        Ok(OpenConnection {
            connection: api::Connection { address: open.address.to_string(), connection: open.uri.reveal().to_owned() },
            guard: Box::new(open),
        })
    }

    async fn exec(
        &self,
        site: &str,
        namespace: &str,
        query: &api::exec::ExecQuery,
        command: Vec<String>,
    ) -> Result<api::exec::Started, TaskFailure> {
        let wish = Wish { component: query.component.clone(), command, stdin: query.stdin, tty: query.tty };
        let Interactive { input, output, errors, size, ended } =
            self.platform(site)?.interactive(namespace, &wish).await?;
        Ok(api::exec::Started { input, output, errors, size, ended })
    }
}
