//! Connections: signing in, fixed session settings, and an end in bounded time whatever the server does.
//!
//! A server may refuse, hang, or die at any moment. Everything here ends early when the operation is cancelled, and
//! with a named failure when the server says nothing for too long; a long statement is waited for as long as the
//! server still answers new connections.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_protocol::{failure::TaskFailure, names::ComponentName, seams::Seams};
use serde::de::DeserializeOwned;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Row,
    postgres::{PgConnectOptions, PgConnection, PgCopyIn, PgSslMode},
};
use tokio_util::sync::CancellationToken;

use super::{fault, recognise::PASSWORD_FILE, sql};
use crate::data::{Login, LoginOf, Reach, ServerReach, Subject};

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a statement that reads catalogs may take.
const SHORT: Duration = Duration::from_secs(120);
/// How long a stream of rows may stand still, even when the server still answers others.
pub(super) const STALL: Duration = Duration::from_secs(600);
/// A statement may take as long as it likes while the server lives.
pub(super) const ENDLESS: Duration = Duration::MAX;
/// How often a server that works on a long statement is asked whether it still lives.
const PROBE: Duration = Duration::from_secs(10);
/// The longest answer to one catalog query, in rows.
const MOST_ROWS: usize = 1_000_000;

/// The oldest server that the catalog queries know.
pub(super) const OLDEST: u32 = 120_000;
/// How our connections are called in `pg_stat_activity`.
pub(super) const APPLICATION: &str = "ocopea";

/// A server and the login that is used for it.
#[derive(Clone)]
pub(super) struct Server {
    pub reach: ServerReach,
    pub login: Login,
    pub name: ComponentName,
    pub seams: Seams,
    pub stop: CancellationToken,
    /// `save` or `load`: what failures say can't be done.
    verb: &'static str,
}

/// One connection, with settings that make its output the same everywhere.
pub(super) struct Session {
    connection: PgConnection,
    pub server: Server,
    pub database: String,
    /// `150018`.
    pub version: u32,
    /// The server's process for it.
    pub pid: i64,
    /// The database's own encoding.
    pub encoding: String,
}

/// What we are, as the server sees it.
#[derive(Clone, Debug, serde::Deserialize)]
pub(super) struct Identity {
    pub user: String,
    pub superuser: bool,
    pub version: String,
}

impl Server {
    /// The first login that gets in and sees everything; else the first that gets in.
    ///
    /// A login that the user gave is the only one tried.
    pub(super) async fn sign_in(subject: &Subject, verb: &'static str) -> Result<(Session, Identity), TaskFailure> {
        let what = || format!("can't {verb} \"{}\"", subject.name);
        let Reach::Server(reach) = &subject.reach else {
            return Err(TaskFailure::permanent("data.reach", what(), "a PostgreSQL service is no volume"));
        };
        let given: Vec<&Login> = reach.logins.iter().filter(|login| login.of == LoginOf::Given).collect();
        let tried = if given.is_empty() { reach.logins.iter().collect() } else { given };
        if tried.is_empty() {
            return Err(TaskFailure::permanent("data.authentication", what(), "no login for it was found")
                .next(format!("pass --credentials {}=USER:PASSWORD", subject.name)));
        }
        let mut best: Option<(Session, Identity)> = None;
        let mut refusals: Vec<TaskFailure> = Vec::new();
        for login in tried {
            let server = Self {
                reach: reach.clone(),
                login: login.clone(),
                name: subject.name.clone(),
                seams: subject.seams.clone(),
                stop: subject.stop.clone(),
                verb,
            };
            match server.knock().await {
                Ok((session, identity)) if identity.superuser => return Ok((session, identity)),
                Ok(found) => {
                    best.get_or_insert(found);
                }
                Err(failure) if failure.code == "data.authentication" || failure.code == "data.missing" => {
                    refusals.push(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        match best {
            Some(found) => Ok(found),
            None => {
                let why: Vec<String> = refusals.iter().map(|refusal| refusal.cause.clone()).collect();
                let mut failure = TaskFailure::permanent("data.authentication", what(), why.join("; "));
                failure.next = refusals.into_iter().map(|r| r.next).find(|next| !next.is_empty()).unwrap_or_default();
                Err(failure)
            }
        }
    }

    /// Signs in to whatever database lets this login in.
    async fn knock(&self) -> Result<(Session, Identity), TaskFailure> {
        let named = self.login.database.clone();
        let mut doors: Vec<String> = named.into_iter().collect();
        doors.extend(["postgres".to_owned(), self.login.user.clone(), "template1".to_owned()]);
        let mut last = None;
        for (at, door) in doors.iter().enumerate() {
            if doors[..at].contains(door) {
                continue;
            }
            match self.connect(door).await {
                Ok(mut session) => {
                    let identity = session.identity().await?;
                    return Ok((session, identity));
                }
                Err(failure) if failure.code == "data.missing" || failure.code == "data.rights" => last = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        Err(last.unwrap_or_else(|| self.failure("data.missing", "no database could be opened")))
    }

    /// A failure that will not get better.
    pub(super) fn failure(&self, code: &str, cause: impl ToString) -> TaskFailure {
        TaskFailure::permanent(code, self.what(), cause)
    }

    /// A failure that may get better.
    pub(super) fn retry(&self, code: &str, cause: impl ToString) -> TaskFailure {
        TaskFailure::retryable(code, self.what(), cause)
    }

    /// The sentence that all failures begin with.
    pub(super) fn what(&self) -> String {
        format!("can't {} \"{}\"", self.verb, self.name)
    }

    /// `user "shop" (the application's own) at 10.0.0.1:5432`.
    fn whom(&self) -> String {
        let of = match self.login.of {
            LoginOf::Given => "given by --credentials",
            LoginOf::Application => "the application's own",
            LoginOf::Administrator => "the server's administrator",
        };
        format!("user \"{}\" ({of}) at {}", self.login.user, self.reach.address)
    }

    /// Ends with a failure when the operation stops, or after `span` of silence.
    pub(super) async fn guard<T>(
        &self,
        span: Duration,
        doing: &str,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, TaskFailure> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(TaskFailure::cancelled(self.what())),
            done = work => done.map_err(|error| fault::of(self, doing, &error)),
            () = self.seams.clock.sleep(span) => Err(self.retry(
                "data.unreachable",
                format!("{} has not answered for {} s while {doing}", self.reach.address, span.as_secs()),
            )),
        }
    }

    /// Another login at the same server.
    pub(super) fn with_login(&self, login: Login) -> Self {
        Self { login, ..self.clone() }
    }

    /// Opens a connection to one database.
    pub(super) async fn connect(&self, database: &str) -> Result<Session, TaskFailure> {
        let ssl = match self.login.options.get("sslmode").map(String::as_str) {
            Some("disable") => PgSslMode::Disable,
            // The name in the server's certificate can't be checked through a forwarded port.
            Some("require" | "verify-ca" | "verify-full") => PgSslMode::Require,
            _ => PgSslMode::Prefer,
        };
        let options = PgConnectOptions::new_without_pgpass()
            .host(&self.reach.address.ip().to_string())
            .port(self.reach.address.port())
            .username(&self.login.user)
            .password(self.login.password.reveal())
            .database(database)
            .application_name(APPLICATION)
            .ssl_mode(ssl)
            .statement_cache_capacity(8)
            .disable_statement_logging();
        let doing = format!("connecting to database \"{database}\"");
        let connected = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(TaskFailure::cancelled(self.what())),
            connected = PgConnection::connect_with(&options) => connected,
            () = self.seams.clock.sleep(CONNECT) => return Err(self.retry(
                "data.unreachable",
                format!("{} has not let {} in for {} s", self.reach.address, self.whom(), CONNECT.as_secs()),
            )),
        };
        let connection = connected.map_err(|error| {
            let mut failure = fault::of(self, &doing, &error);
            if failure.code == "data.authentication" {
                failure.cause = format!("{}: {}", self.whom(), failure.cause);
                failure.next = match self.login.options.get(PASSWORD_FILE) {
                    Some(file) => format!(
                        "the server takes its password from the file {file}, which can't be read from outside: pass \
                         --credentials {}=USER:PASSWORD",
                        self.name
                    ),
                    None => {
                        format!("check the Secret that holds it, or pass --credentials {}=USER:PASSWORD", self.name)
                    }
                };
            }
            failure
        })?;
        let version = connection.server_version_num().unwrap_or_default();
        if version < OLDEST {
            return Err(self
                .failure(
                    "data.version",
                    format!("the server's version number is {version}: PostgreSQL 12 is the oldest known"),
                )
                .next("upgrade the server, or leave it out with --without"));
        }
        let mut session = Session {
            connection,
            server: self.clone(),
            database: database.to_owned(),
            version,
            pid: 0,
            encoding: String::new(),
        };
        session.settle().await?;
        Ok(session)
    }
}

impl Session {
    /// Settings under which the text of every value is the same everywhere, nothing is filtered silently, and a
    /// dead client is noticed by the server.
    async fn settle(&mut self) -> Result<(), TaskFailure> {
        // A role that a database or role sets for its sessions would act instead of the login.
        let mut settings = "SET ROLE NONE; SET search_path = ''; SET quote_all_identifiers = off; SET row_security = off; SET statement_timeout = 0; \
             SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = 0; SET datestyle = 'ISO, YMD'; \
             SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 3; \
             SET bytea_output = 'hex'; SET xmloption = content; SET lc_monetary = 'C'; \
             SET synchronize_seqscans = off; SET standard_conforming_strings = on; SET array_nulls = on; \
             SET default_transaction_read_only = off; SET default_transaction_isolation = 'read committed'; \
             SET default_transaction_deferrable = off; SET client_min_messages = warning; \
             SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
             SET jit = off"
            .to_owned();
        if self.version >= 140_000 {
            settings.push_str("; SET client_connection_check_interval = '1s'; SET idle_session_timeout = 0");
        }
        if self.version >= 170_000 {
            settings.push_str("; SET transaction_timeout = 0");
        }
        self.run(&settings).await?;
        #[derive(serde::Deserialize)]
        struct Me {
            pid: i64,
            encoding: String,
        }
        let me: Me = self.one("SELECT pg_backend_pid()::int8 AS pid, getdatabaseencoding() AS encoding").await?;
        self.pid = me.pid;
        self.encoding = me.encoding;
        if self.encoding == "SQL_ASCII" {
            // Bytes of no known encoding must pass as they are; UTF-8 would be checked.
            self.run("SET client_encoding = 'SQL_ASCII'").await?;
        }
        Ok(())
    }

    async fn identity(&mut self) -> Result<Identity, TaskFailure> {
        self.one(
            "SELECT rolname AS user, rolsuper AS superuser, current_setting('server_version') AS version FROM pg_roles WHERE rolname = current_user",
        )
        .await
    }

    /// Runs statements that return nothing and end soon.
    pub(super) async fn run(&mut self, statement: &str) -> Result<(), TaskFailure> {
        let server = self.server.clone();
        let doing = format!("working in database \"{}\"", self.database);
        let work = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection);
        server.guard(SHORT, &doing, work).await.map(|_| ())
    }

    /// Runs a statement that may take long; `doing` names it in failures.
    pub(super) async fn run_long(&mut self, statement: &str, doing: &str) -> Result<u64, TaskFailure> {
        let server = self.server.clone();
        let database = self.database.clone();
        let work = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection);
        patient(&server, &database, doing, ENDLESS, work).await.map(|done| done.rows_affected())
    }

    /// Reads the rows of a query as `T`, column by column name.
    pub(super) async fn list<T: DeserializeOwned>(&mut self, query: &str) -> Result<Vec<T>, TaskFailure> {
        let server = self.server.clone();
        let doing = format!("reading catalogs of database \"{}\"", self.database);
        let wrapped = format!("SELECT pg_catalog.row_to_json(q)::text FROM ({query}) q");
        let connection = &mut self.connection;
        let rows = patient(&server, &self.database, &doing, SHORT, async {
            let mut rows = sqlx::raw_sql(AssertSqlSafe(wrapped)).fetch(connection);
            let mut out: Vec<String> = Vec::new();
            while let Some(row) = rows.next().await {
                let row = row?;
                if out.len() < MOST_ROWS {
                    out.push(row.try_get(0)?);
                }
            }
            Ok(out)
        })
        .await?;
        if rows.len() >= MOST_ROWS {
            return Err(server.failure("data.too-many", format!("more than {MOST_ROWS} objects while {doing}")));
        }
        rows.iter()
            .map(|row| {
                serde_json::from_str(row).map_err(|error| {
                    server.failure("data.answer", format!("an unexpected answer while {doing}: {error}"))
                })
            })
            .collect()
    }

    /// Reads exactly one row.
    pub(super) async fn one<T: DeserializeOwned>(&mut self, query: &str) -> Result<T, TaskFailure> {
        let mut rows = self.list(query).await?;
        rows.pop()
            .ok_or_else(|| self.server.failure("data.answer", "the server answered nothing where one row was due"))
    }

    /// The one number that a query answers, which may take long; `doing` names it in failures.
    pub(super) async fn number(&mut self, query: &str, doing: &str) -> Result<u64, TaskFailure> {
        let (server, database) = (self.server.clone(), self.database.clone());
        let work = sqlx::query_scalar::<_, i64>(AssertSqlSafe(query)).fetch_one(&mut self.connection);
        let number = patient(&server, &database, doing, ENDLESS, work).await?;
        u64::try_from(number).map_err(|_| server.failure("data.answer", format!("{number} while {doing}")))
    }

    /// One column of bytes beside a number, for large objects.
    pub(super) async fn pieces(&mut self, query: &str) -> Result<Vec<(i64, Vec<u8>)>, TaskFailure> {
        let server = self.server.clone();
        let connection = &mut self.connection;
        server
            .guard(SHORT, "reading large objects", async {
                let rows = sqlx::query(AssertSqlSafe(query)).fetch_all(connection).await?;
                rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
            })
            .await
    }

    /// Makes whole large objects.
    pub(super) async fn put_whole(&mut self, objects: &[(i64, Bytes)]) -> Result<(), TaskFailure> {
        let server = self.server.clone();
        let connection = &mut self.connection;
        let numbers: Vec<i64> = objects.iter().map(|(oid, _)| *oid).collect();
        let contents: Vec<&[u8]> = objects.iter().map(|(_, bytes)| bytes.as_ref()).collect();
        let work = sqlx::query(
            "SELECT pg_catalog.count(pg_catalog.lo_from_bytea(n::oid, c)) FROM ROWS FROM \
             (pg_catalog.unnest($1::int8[]), pg_catalog.unnest($2::bytea[])) objects(n, c)",
        )
        .bind(numbers)
        .bind(contents)
        .execute(connection);
        server.guard(SHORT, "writing large objects", work).await.map(|_| ())
    }

    /// Writes one piece of a large object.
    pub(super) async fn put_piece(&mut self, oid: i64, at: i64, bytes: &[u8]) -> Result<(), TaskFailure> {
        let server = self.server.clone();
        let connection = &mut self.connection;
        let statement = if at == 0 {
            "SELECT pg_catalog.lo_from_bytea($1::int8::oid, $2)::int8, $3::int8"
        } else {
            "SELECT pg_catalog.lo_put($1::int8::oid, $3::int8, $2)"
        };
        let work = sqlx::query(statement).bind(oid).bind(bytes).bind(at).execute(connection);
        server.guard(SHORT, &format!("writing large object {oid}"), work).await.map(|_| ())
    }

    /// Starts `COPY … TO STDOUT`; each item is what the server sent at once: one row in text format.
    pub(super) async fn copy_out(
        &mut self,
        statement: &str,
        doing: &str,
    ) -> Result<BoxStream<'_, Result<Bytes, sqlx::Error>>, TaskFailure> {
        let server = self.server.clone();
        let database = self.database.clone();
        patient(&server, &database, doing, STALL, self.connection.copy_out_raw(statement)).await
    }

    /// Starts `COPY … FROM STDIN`.
    pub(super) async fn copy_in(
        &mut self,
        statement: &str,
        doing: &str,
    ) -> Result<PgCopyIn<&mut PgConnection>, TaskFailure> {
        let server = self.server.clone();
        let database = self.database.clone();
        patient(&server, &database, doing, STALL, self.connection.copy_in_raw(statement)).await
    }

    /// Switches to a transaction that sees exactly an exported snapshot.
    pub(super) async fn import(&mut self, snapshot: &str) -> Result<(), TaskFailure> {
        self.run(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
            sql::literal(snapshot)
        ))
        .await
        .map_err(|failure| {
            if failure.is_retryable() || failure.code == "cancelled" {
                return failure;
            }
            self.server.retry(
                "data.snapshot-lost",
                format!("the snapshot of database \"{}\" is no longer open: {}", self.database, failure.cause),
            )
        })
    }

    /// Says goodbye; the answer doesn't matter.
    pub(super) async fn close(self) {
        let _ = self.server.seams.timeout(Duration::from_secs(2), self.connection.close()).await;
    }
}

/// Waits for `work` for as long as the server still lets new connections in, and no longer than `limit`.
pub(super) async fn patient<T>(
    server: &Server,
    database: &str,
    doing: &str,
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TaskFailure> {
    tokio::pin!(work);
    let started = server.seams.clock.monotonic();
    let mut silent = 0u32;
    loop {
        tokio::select! {
            biased;
            () = server.stop.cancelled() => return Err(TaskFailure::cancelled(server.what())),
            done = &mut work => return done.map_err(|error| fault::of(server, doing, &error)),
            () = server.seams.clock.sleep(PROBE) => {}
        }
        let alive = tokio::select! {
            biased;
            done = &mut work => return done.map_err(|error| fault::of(server, doing, &error)),
            alive = alive(server, database) => alive,
        };
        silent = if alive { 0 } else { silent + 1 };
        if silent >= 2 || server.seams.clock.monotonic().saturating_sub(started) > limit {
            return Err(
                server.retry("data.unreachable", format!("{} no longer answers while {doing}", server.reach.address))
            );
        }
    }
}

/// Whether the server answers anything at all: even a refusal is a sign of life.
async fn alive(server: &Server, database: &str) -> bool {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&server.reach.address.ip().to_string())
        .port(server.reach.address.port())
        .username(&server.login.user)
        .password(server.login.password.reveal())
        .database(database)
        .application_name(APPLICATION)
        .disable_statement_logging();
    let answer = server.seams.timeout(CONNECT, PgConnection::connect_with(&options)).await;
    match answer {
        Some(Ok(connection)) => {
            let _ = server.seams.timeout(Duration::from_secs(2), connection.close()).await;
            true
        }
        Some(Err(sqlx::Error::Database(_))) => true,
        _ => false,
    }
}
