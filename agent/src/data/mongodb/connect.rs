//! Connections, an end in bounded time whatever the server does, and its errors as failures.

use std::{sync::Arc, time::Duration};

use mongodb::{
    Client,
    bson::{Bson, Document, doc},
    error::{Error, ErrorKind},
    options::{AuthMechanism, ClientOptions, Credential, ServerAddress, Tls, TlsOptions},
};
use ocopea_protocol::failure::TaskFailure;

use super::{
    binding::{BESIDE, SRV},
    older::Disguise,
    recognise::PASSWORD_FILE,
};
use crate::{
    data::{Login, LoginOf, Reach, ServerReach, Subject},
    failures::chain,
};

/// How long one answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// How long it may take to be let in.
const CONNECT: Duration = Duration::from_secs(20);
/// How often a server that works on something long is asked whether it still lives.
const PROBE: Duration = Duration::from_secs(20);
/// Databases that belong to the server itself.
pub(super) const OWN: [&str; 3] = ["admin", "local", "config"];
/// The server doesn't know a command.
pub(super) const UNKNOWN: &str = "data.unknown-command";
/// The login may not do it.
pub(super) const RIGHTS: &str = "data.rights";
/// The server refuses a command for a reason of its own.
pub(super) const COMMAND: &str = "data.command";
/// The library doesn't talk to a server of this age.
const OLD: &str = "data.too-old";
/// Wrong user or password.
pub(super) const AUTHENTICATION: &str = "data.authentication";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Save,
    Load,
}

/// A connection with the login that worked.
pub(super) struct Connected {
    pub(super) client: Client,
    /// The server's word about itself.
    pub(super) hello: Document,
    pub(super) version: String,
    /// Who is signed in: `user "shop" (the application's own)`.
    pub(super) whom: String,
    /// Its user name; empty without one.
    pub(super) user: String,
    /// Every database that the login sees.
    pub(super) databases: Vec<String>,
    /// Whether these are all that there are.
    pub(super) sees_all: bool,
    /// What an old server is reached through, as long as the client lives.
    pub(super) disguise: Option<Arc<Disguise>>,
}

/// What one message may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) documents: usize,
    pub(super) message: usize,
}

impl Connected {
    pub(super) fn is_router(&self) -> bool {
        self.hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid")
    }

    pub(super) fn is_replica_set(&self) -> bool {
        self.hello.get_str("setName").is_ok()
    }

    /// Whether it waits to be told which replica set it belongs to.
    pub(super) fn is_uninitiated(&self) -> bool {
        is_uninitiated(&self.hello)
    }

    /// Whether it is a member that may not be written to.
    pub(super) fn is_no_primary(&self) -> bool {
        let writable = self.hello.get_bool("isWritablePrimary").or_else(|_| self.hello.get_bool("ismaster"));
        writable.is_ok_and(|writable| !writable)
    }

    pub(super) fn limits(&self) -> Limits {
        let of = |name: &str, least: u64, most: u64| {
            let claimed = self.hello.get(name).and_then(number).unwrap_or(most);
            usize::try_from(claimed.clamp(least, most)).unwrap_or(usize::MAX)
        };
        Limits {
            documents: of("maxWriteBatchSize", 1, 100_000),
            message: of("maxMessageSizeBytes", 17 << 20, 48_000_000),
        }
    }

    /// The version's first number.
    pub(super) fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
    }
}

fn is_uninitiated(hello: &Document) -> bool {
    hello.get_bool("isreplicaset").unwrap_or(false) && !hello.contains_key("setName")
}

/// A number of whatever type that isn't negative.
pub(super) fn number(value: &Bson) -> Option<u64> {
    match value {
        Bson::Int32(value) => u64::try_from(*value).ok(),
        Bson::Int64(value) => u64::try_from(*value).ok(),
        Bson::Double(value) if *value >= 0.0 => Some(*value as u64),
        _ => None,
    }
}

/// The server behind a subject.
pub(super) fn server(subject: &Subject) -> Result<&ServerReach, TaskFailure> {
    match &subject.reach {
        Reach::Server(server) => Ok(server),
        Reach::Volume(_) => Err(TaskFailure::permanent(
            "data.reach",
            format!("can't reach \"{}\"", subject.name),
            "a MongoDB service is no volume",
        )),
    }
}

/// An error of the driver, with what it means for trying again.
pub(super) fn failure(subject: &Subject, verb: &str, error: &Error) -> TaskFailure {
    let what = format!("can't {verb} \"{}\"", subject.name);
    let place = server(subject).map(|server| server.address.to_string()).unwrap_or_default();
    let cause = causes(error);
    let lost = || {
        TaskFailure::retryable("data.unreachable", what.clone(), format!("{place}: {cause}"))
            .next("check that the database runs and answers")
    };
    match error.kind.as_ref() {
        ErrorKind::Authentication { .. } => denied(subject, what, cause),
        ErrorKind::Command(command) => {
            let cause = format!("{} (code {})", command.message, command.code);
            match command.code {
                11 | 18 | 334 => denied(subject, what, cause),
                13 => TaskFailure::permanent(RIGHTS, what, cause).next(format!(
                    "grant its user the role backup (to save) or root (to load), or pass --credentials {}=USER:PASSWORD",
                    subject.name
                )),
                59 | 115 | 238 => TaskFailure::permanent(UNKNOWN, what, cause),
                239 | 246 => TaskFailure::retryable("data.snapshot-lost", what, cause)
                    .next("all snapshots are opened again; raise minSnapshotHistoryWindowInSeconds of the server if this goes on"),
                // Cursors and sessions that the server gave up, or whose collection was dropped, renamed, overtaken.
                43 | 136 | 175 | 237 => TaskFailure::retryable("data.cursor-lost", what, cause)
                    .next("it is tried again; save when nothing drops or renames collections"),
                // What an attempt that was cut off still did after the next one had emptied the server.
                48 => TaskFailure::retryable("data.busy", what, cause),
                // Locks, conflicts, what isn't agreed on yet.
                24 | 46 | 112 | 117 | 134 | 202 | 290 => TaskFailure::retryable("data.busy", what, cause),
                // Shutting down; elections; time limits.
                6 | 7 | 50 | 89 | 91 | 189 | 262 | 9001 | 10107 | 11600 | 11601 | 11602 | 13435 | 13436 | 314 => lost(),
                _ => TaskFailure::permanent(COMMAND, what, cause),
            }
        }
        ErrorKind::InsertMany(_) | ErrorKind::Write(_) => TaskFailure::permanent("data.write", what, cause),
        ErrorKind::ServerSelection { message, .. } if message.contains("version of the MongoDB Rust driver") => {
            TaskFailure::permanent(OLD, what, cause).next(format!("leave it out by name: --without {}", subject.name))
        }
        ErrorKind::InvalidArgument { .. } | ErrorKind::IncompatibleServer { .. } => {
            TaskFailure::permanent("data.argument", what, cause)
        }
        ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. } => TaskFailure::permanent("data.answer", what, cause),
        ErrorKind::InvalidTlsConfig { .. } => TaskFailure::permanent("data.tls", what, cause),
        _ => lost(),
    }
}

/// The code of a command's error.
pub(super) fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

/// An error with its causes, in the server's words.
fn causes(error: &Error) -> String {
    let mut text = error.kind.to_string();
    if let Some(source) = std::error::Error::source(error) {
        let more = chain(source);
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
    }
    text
}

fn denied(subject: &Subject, what: String, cause: String) -> TaskFailure {
    TaskFailure::permanent(AUTHENTICATION, what, cause)
        .next(format!("check the application's Secret, or pass --credentials {}=USER:PASSWORD", subject.name))
}

/// Waits for `work` as long as an answer may take, or until the task is stopped.
pub(super) async fn within<T>(
    subject: &Subject,
    verb: &str,
    work: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, TaskFailure> {
    within_span(subject, ANSWER, verb, work).await
}

async fn within_span<T>(
    subject: &Subject,
    span: Duration,
    verb: &str,
    work: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, TaskFailure> {
    tokio::select! {
        biased;
        () = subject.stop.cancelled() => Err(stopped(subject, verb)),
        answer = subject.seams.timeout(span, work) => match answer {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(failure(subject, verb, &error)),
            None => Err(silent(subject, verb, span)),
        },
    }
}

pub(super) fn stopped(subject: &Subject, verb: &str) -> TaskFailure {
    TaskFailure::cancelled(format!("can't {verb} \"{}\"", subject.name))
}

fn silent(subject: &Subject, verb: &str, span: Duration) -> TaskFailure {
    let place = server(subject).map(|server| server.address.to_string()).unwrap_or_default();
    TaskFailure::retryable(
        "data.hangs",
        format!("can't {verb} \"{}\"", subject.name),
        format!("{place} has not answered for {} s", span.as_secs()),
    )
    .next("check that the database runs and answers")
}

/// Waits for `work` for as long as the server still answers other connections: index builds take what they take.
pub(super) async fn patient<T>(
    subject: &Subject,
    connected: &Connected,
    verb: &str,
    work: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, TaskFailure> {
    tokio::pin!(work);
    let mut missed = 0u32;
    loop {
        tokio::select! {
            biased;
            () = subject.stop.cancelled() => return Err(stopped(subject, verb)),
            done = &mut work => return done.map_err(|error| failure(subject, verb, &error)),
            () = subject.seams.clock.sleep(PROBE) => {}
        }
        let admin = connected.client.database("admin");
        let ping = subject.seams.timeout(PROBE, async { admin.run_command(doc! {"ping": 1}).await });
        let alive = tokio::select! {
            biased;
            () = subject.stop.cancelled() => return Err(stopped(subject, verb)),
            done = &mut work => return done.map_err(|error| failure(subject, verb, &error)),
            alive = ping => alive.is_some_and(|answer| answer.is_ok()),
        };
        missed = if alive { 0 } else { missed + 1 };
        if missed >= 2 {
            return Err(silent(subject, verb, PROBE * 3));
        }
    }
}

/// One command; its answer is small.
pub(super) async fn run(
    subject: &Subject,
    connected: &Connected,
    database: &str,
    verb: &str,
    command: Document,
) -> Result<Document, TaskFailure> {
    let database = connected.client.database(database);
    within(subject, verb, async { database.run_command(command).await }).await
}

fn option<'a>(login: &'a Login, name: &str) -> Option<&'a String> {
    login.options.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Whether a server is spoken to by TLS: one login that says so speaks for all. `mongodb+srv://` says so by itself.
fn is_encrypted(server: &ServerReach) -> bool {
    server.logins.iter().any(|login| match option(login, "tls").or_else(|| option(login, "ssl")) {
        Some(said) => said.eq_ignore_ascii_case("true"),
        None => login.options.contains_key(SRV),
    })
}

fn options(
    subject: &Subject,
    server: &ServerReach,
    login: Option<(&Login, String)>,
) -> Result<ClientOptions, TaskFailure> {
    let address = ServerAddress::Tcp { host: server.address.ip().to_string(), port: Some(server.address.port()) };
    let mut options = ClientOptions::builder()
        .hosts(vec![address])
        .app_name("ocopea".to_owned())
        .direct_connection(true)
        .connect_timeout(Duration::from_secs(8))
        .server_selection_timeout(Duration::from_secs(10))
        .max_pool_size(10)
        .retry_reads(true)
        .retry_writes(false)
        .build();
    if is_encrypted(server) {
        // The name in the server's certificate can't be checked through a forwarded port.
        let tls = TlsOptions::builder().allow_invalid_certificates(true).build();
        options.tls = Some(Tls::Enabled(tls));
    }
    let Some((login, source)) = login else { return Ok(options) };
    if login.user.is_empty() {
        return Ok(options);
    }
    let mechanism = option(login, "authMechanism").filter(|name| !name.is_empty() && *name != "DEFAULT");
    let mechanism = match mechanism.map(|name| (name, name.parse::<AuthMechanism>())) {
        None => None,
        Some((_, Ok(known @ (AuthMechanism::ScramSha1 | AuthMechanism::ScramSha256 | AuthMechanism::Plain)))) => {
            Some(known)
        }
        Some((name, _)) => {
            let what = format!("can't sign in to \"{}\"", subject.name);
            return Err(denied(subject, what, format!("the login's mechanism {name} is not supported")));
        }
    };
    options.credential = Some(
        Credential::builder()
            .username(login.user.clone())
            .password(login.password.reveal().to_owned())
            .source(source)
            .mechanism(mechanism)
            .build(),
    );
    Ok(options)
}

/// Databases in which an account of this login may live, likeliest first.
pub(super) fn sources(login: &Login) -> Vec<String> {
    if let Some(source) = option(login, "authSource").filter(|source| !source.is_empty()) {
        return vec![source.clone()];
    }
    let admin = "admin".to_owned();
    let Some(database) = login.database.as_ref().filter(|database| **database != admin) else { return vec![admin] };
    // What a program makes of settings that stand one by one is its own business, and so are DNS records.
    let unsaid = login.options.contains_key(BESIDE) || login.options.contains_key(SRV);
    match login.of {
        LoginOf::Application if unsaid => vec![database.clone(), admin],
        LoginOf::Application => vec![database.clone()],
        LoginOf::Given => vec![admin, database.clone()],
        LoginOf::Administrator => vec![admin],
    }
}

/// Signs in: with the first login that sees every database, else with the first that gets in; with none where the
/// server asks for none, whatever the application's settings say. A login that the user gave is the only one tried.
/// Loading begins with the administrator's.
pub(super) async fn connect(subject: &Subject, purpose: Purpose) -> Result<Connected, TaskFailure> {
    let server = server(subject)?;
    let given: Vec<&Login> = server.logins.iter().filter(|login| login.of == LoginOf::Given).collect();
    let only_given = !given.is_empty();
    let mut logins = if given.is_empty() { server.logins.iter().collect() } else { given };
    if purpose == Purpose::Load {
        logins.sort_by_key(|login| login.of != LoginOf::Administrator);
    }
    let mut tries: Vec<Option<(&Login, String)>> = Vec::new();
    for login in logins {
        tries.extend(sources(login).into_iter().map(|source| Some((login, source))));
    }
    if !only_given {
        tries.push(None);
    }
    let mut best: Option<Connected> = None;
    let mut refusals: Vec<TaskFailure> = Vec::new();
    for login in tries {
        if login.is_none() && best.is_some() {
            break;
        }
        let nobody = login.is_none();
        match try_login(subject, server, login).await {
            Ok(connected) if connected.is_uninitiated() && purpose == Purpose::Save => {
                return Err(TaskFailure::permanent(
                    "data.uninitiated",
                    format!("can't save \"{}\"", subject.name),
                    "it is to be a member of a replica set that nobody has initiated: it holds nothing",
                )
                .next("initiate it (rs.initiate()), or leave it out by name"));
            }
            Ok(connected) if connected.sees_all => return Ok(connected),
            Ok(connected) => best = best.or(Some(connected)),
            Err(failure) if failure.code == AUTHENTICATION => {
                // That it lets nobody in is no news where a login was refused.
                if !nobody || refusals.is_empty() {
                    refusals.push(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    if let Some(best) = best {
        return Ok(best);
    }
    let why: Vec<String> = refusals.iter().map(|refusal| refusal.cause.clone()).collect();
    let next = refusals.into_iter().map(|refusal| refusal.next).find(|next| !next.is_empty());
    Err(TaskFailure::permanent(AUTHENTICATION, format!("can't sign in to \"{}\"", subject.name), why.join("; "))
        .next(next.unwrap_or_default()))
}

/// `user "shop" (the application's own)`.
fn whom(login: Option<&Login>) -> String {
    let Some(login) = login.filter(|login| !login.user.is_empty()) else {
        return "nobody (no login is known)".to_owned();
    };
    let of = match login.of {
        LoginOf::Given => "given by --credentials",
        LoginOf::Application => "the application's own",
        LoginOf::Administrator => "the server's administrator",
    };
    format!("user \"{}\" ({of})", login.user)
}

/// Signs in with one login.
pub(super) async fn try_login(
    subject: &Subject,
    server: &ServerReach,
    login: Option<(&Login, String)>,
) -> Result<Connected, TaskFailure> {
    let who = whom(login.as_ref().map(|(login, _)| *login));
    let user = login.as_ref().map(|(login, _)| login.user.clone()).unwrap_or_default();
    let file = login.as_ref().and_then(|(login, _)| login.options.get(PASSWORD_FILE).cloned());
    let place = format!("{who} at {}", server.address);
    let mut options = options(subject, server, login)?;
    let open =
        |options: ClientOptions| Client::with_options(options).map_err(|error| failure(subject, "connect to", &error));
    let mut client = open(options.clone())?;
    let mut disguise = None;
    let named = |mut failure: TaskFailure| {
        if failure.code == AUTHENTICATION {
            failure.cause = format!("{place}: {}", failure.cause);
            if let Some(file) = &file {
                failure.next = format!(
                    "the server takes its password from the file {file}, which can't be read from outside: pass --credentials {}=USER:PASSWORD",
                    subject.name
                );
            }
        }
        failure
    };
    let ping = within_span(subject, CONNECT, "connect to", async {
        client.database("admin").run_command(doc! {"ping": 1}).await
    });
    match ping.await {
        Err(failure) if failure.code == OLD && options.tls.is_none() => {
            let old = Disguise::before(subject, server.address).await?;
            let address = ServerAddress::Tcp { host: old.address.ip().to_string(), port: Some(old.address.port()) };
            options.hosts = vec![address];
            (client, disguise) = (open(options)?, Some(Arc::new(old)));
        }
        Err(failure) if failure.code != UNKNOWN => return Err(named(failure)),
        _ => {}
    }
    let admin = client.database("admin");
    let ask = async |command: Document| {
        within_span(subject, CONNECT, "connect to", async { admin.run_command(command).await }).await
    };
    let hello = match ask(doc! {"hello": 1}).await {
        // Servers of the same protocol may only know the older word.
        Err(failure) if failure.code == UNKNOWN => ask(doc! {"isMaster": 1}).await,
        other => other,
    };
    let hello = hello.map_err(named)?;
    let uninitiated = is_uninitiated(&hello);
    let build = ask(doc! {"buildInfo": 1}).await.map_err(named)?;
    let all = match uninitiated {
        true => Ok(Document::new()),
        false => ask(doc! {"listDatabases": 1, "nameOnly": true, "authorizedDatabases": false}).await,
    };
    let (listed, sees_all) = match all {
        Ok(listed) => (listed, true),
        // Servers answer hello to anybody: here it shows that nobody is signed in.
        Err(refused) if refused.code == RIGHTS && user.is_empty() => {
            return Err(named(denied(subject, refused.what, refused.cause)));
        }
        Err(refused) if refused.code == RIGHTS => {
            (ask(doc! {"listDatabases": 1, "nameOnly": true}).await.map_err(named)?, false)
        }
        Err(other) => return Err(named(other)),
    };
    let mut databases: Vec<String> = listed
        .get_array("databases")
        .map(|list| list.iter().filter_map(|one| one.as_document()?.get_str("name").ok().map(str::to_owned)).collect())
        .unwrap_or_default();
    databases.sort();
    let version = build.get_str("version").unwrap_or("unknown").to_owned();
    Ok(Connected { client, hello, version, whom: who, user, databases, sees_all, disguise })
}
