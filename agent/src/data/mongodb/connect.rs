//! Connections, and errors of the server as failures.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{Document, doc},
    error::{Error, ErrorKind},
    options::{ClientOptions, Credential, ServerAddress},
};
use ocopea_protocol::failure::TaskFailure;

use crate::{
    data::{Login, Reach, ServerReach, Subject},
    failures::chain,
};

/// How long one answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(60);
/// Databases that belong to the server itself.
pub(super) const OWN: [&str; 3] = ["admin", "local", "config"];

/// A connection with the login that worked.
pub(super) struct Connected {
    pub(super) client: Client,
    /// The server's word about itself.
    pub(super) hello: Document,
    pub(super) version: String,
}

/// The server behind a subject.
pub(super) fn server(subject: &Subject) -> Result<&ServerReach, TaskFailure> {
    match &subject.reach {
        Reach::Server(server) => Ok(server),
        Reach::Volume(_) => Err(TaskFailure::permanent("data.reach", format!("can't reach {}", subject.name), "it is a volume, not a server")),
    }
}

/// An error of the driver, with what it means for trying again.
pub(super) fn failure(subject: &Subject, verb: &str, error: &Error) -> TaskFailure {
    let what = format!("can't {verb} \"{}\"", subject.name);
    let cause = chain(error);
    match error.kind.as_ref() {
        ErrorKind::Authentication { .. } => denied(subject, what, cause),
        ErrorKind::Command(command) if matches!(command.code, 11 | 13 | 18) => {
            denied(subject, what, format!("{} (code {})", command.message, command.code))
        }
        ErrorKind::Command(command) => {
            TaskFailure::permanent("data.command", what, format!("{} (code {})", command.message, command.code))
        }
        ErrorKind::InsertMany(_) | ErrorKind::Write(_) => TaskFailure::permanent("data.write", what, cause),
        ErrorKind::InvalidArgument { .. } => TaskFailure::permanent("data.argument", what, cause),
        _ => TaskFailure::retryable("data.unreachable", what, cause).next("check that the database runs and answers"),
    }
}

fn denied(subject: &Subject, what: String, cause: String) -> TaskFailure {
    TaskFailure::permanent("data.authentication", what, cause).next(format!(
        "check the application's Secret, or pass --credentials {}=USER:PASSWORD",
        subject.name
    ))
}

/// Waits for `work` as long as an answer may take, or until the task is stopped.
pub(super) async fn within<T>(
    subject: &Subject,
    verb: &str,
    work: impl Future<Output = mongodb::error::Result<T>>,
) -> Result<T, TaskFailure> {
    tokio::select! {
        () = subject.stop.cancelled() => Err(TaskFailure::cancelled(format!("stopped: {verb} \"{}\"", subject.name))),
        answer = subject.seams.timeout(ANSWER, work) => match answer {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(failure(subject, verb, &error)),
            None => Err(TaskFailure::retryable("data.hangs", format!("can't {verb} \"{}\"", subject.name), format!("the server didn't answer within {} s", ANSWER.as_secs()))),
        },
    }
}

fn options(server: &ServerReach, login: Option<&Login>) -> ClientOptions {
    let address = ServerAddress::Tcp { host: server.address.ip().to_string(), port: Some(server.address.port()) };
    let mut options = ClientOptions::builder()
        .hosts(vec![address])
        .app_name("ocopea".to_owned())
        .direct_connection(true)
        .connect_timeout(Duration::from_secs(10))
        .server_selection_timeout(Duration::from_secs(15))
        .max_pool_size(8)
        .retry_reads(true)
        .retry_writes(false)
        .build();
    if let Some(login) = login.filter(|login| !login.user.is_empty()) {
        let source = login.options.get("authSource").cloned().or_else(|| {
            // An administrator's account lives in admin, whatever database its URI names.
            if login.of == crate::data::LoginOf::Administrator { Some("admin".to_owned()) } else { login.database.clone() }
        });
        options.credential = Some(
            Credential::builder()
                .username(login.user.clone())
                .password(login.password.reveal().to_owned())
                .source(source)
                .build(),
        );
    }
    options
}

/// Signs in with the first login that works.
pub(super) async fn connect(subject: &Subject) -> Result<Connected, TaskFailure> {
    let server = server(subject)?;
    let logins: Vec<Option<&Login>> =
        if server.logins.is_empty() { vec![None] } else { server.logins.iter().map(Some).collect() };
    let mut first = None;
    for login in logins {
        match try_login(subject, server, login).await {
            Ok(connected) => return Ok(connected),
            Err(failure) if failure.code == "data.authentication" => first = first.or(Some(failure)),
            Err(failure) => return Err(failure),
        }
    }
    Err(first.unwrap_or_else(|| TaskFailure::permanent("data.login", format!("can't sign in to \"{}\"", subject.name), "no login is known")))
}

async fn try_login(subject: &Subject, server: &ServerReach, login: Option<&Login>) -> Result<Connected, TaskFailure> {
    let client = Client::with_options(options(server, login)).map_err(|error| failure(subject, "connect to", &error))?;
    let admin = client.database("admin");
    let hello = match within(subject, "connect to", async { admin.run_command(doc! {"hello": 1}).await }).await {
        Ok(hello) => hello,
        // Servers of the same protocol may only know the older word.
        Err(failure) if failure.code == "data.command" => {
            within(subject, "connect to", async { admin.run_command(doc! {"isMaster": 1}).await }).await?
        }
        Err(failure) => return Err(failure),
    };
    let build = within(subject, "connect to", async { admin.run_command(doc! {"buildInfo": 1}).await }).await?;
    // Proves that the login may do something: some servers answer hello to anybody.
    within(subject, "list the databases of", async { client.list_database_names().await }).await?;
    let version = build.get_str("version").unwrap_or("unknown").to_owned();
    Ok(Connected { client, hello, version })
}
