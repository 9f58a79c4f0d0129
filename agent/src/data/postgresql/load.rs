//! The load: roles, then every database made anew, filled, checked, and given to its owners.
//!
//! What comes out of an image is executed by a database, so it runs as a temporary role that owns the databases it
//! fills and nothing else. The service's administrator makes databases and roles, moves ownership at the end, and
//! executes nothing from the image but statements that are seen to be grants. Every step can be repeated: what an
//! earlier attempt left is dropped first.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::{FutureExt, StreamExt, TryStreamExt};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo, secret::Secret, task::Progress};
use ocopea_repository::{DataReader, StreamEntry};
use serde::Deserialize;

use super::{
    connect::{Server, Session},
    facts::{self, Database, Facts},
    inside, parameters, roles, rows, sql,
    tools::Client,
};
use crate::data::{Loaded, Login, LoginOf, Subject};

/// Databases that are loaded at once.
const DATABASES: usize = 2;
/// The database that others are made after, and from within which they are made.
pub(super) const TEMPLATE: &str = "template1";
/// Where to stand while that one is made anew.
pub(super) const OTHER: &str = "postgres";
/// What is done when one of the two is made.
const MAKING: &str = "making the server's own databases anew";

/// What the load of every database needs.
pub(super) struct Context<'a> {
    pub admin: &'a Server,
    pub restore: &'a Client,
    pub dump: &'a Client,
    pub reader: &'a DataReader,
    pub count: rows::Count<'a>,
    /// Whether rows are in the encoding of their database, not in UTF-8.
    pub raw: bool,
}

impl Context<'_> {
    /// The statements of an archive that this very load made.
    pub(super) async fn restore_of(&self, archive: &bytes::Bytes) -> Result<Vec<String>, TaskFailure> {
        // A newer server's archive wants its own tool, which is beside the one that wrote it.
        let tool = if self.dump.major > self.restore.major {
            &Client::choose(self.admin, "pg_restore", self.dump.major).await?
        } else {
            self.restore
        };
        tool.statements(archive, None, true).await
    }
}

/// See `DataService::load`.
pub(super) async fn load(subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
    let (session, who) = Server::sign_in(subject, "load").await?;
    let server = session.server.clone();
    let facts = parse(&server, reader.facts())?;
    let streams = reader.streams().await.map_err(|error| rows::store(&server, &error))?;
    if !who.superuser {
        return Err(server
            .failure("data.rights", format!("user \"{}\" is no superuser: databases and roles can't be made", who.user))
            .next("the administrator's login of the server is needed (POSTGRES_USER and POSTGRES_PASSWORD of its container)"));
    }
    let here = session.version / 10_000;
    session.close().await;
    if here < facts.server / 10_000 {
        let cause = format!("it was saved from PostgreSQL {}, this server is {here}", facts.server / 10_000);
        return Err(server.failure("data.version", cause).next("choose a server of that version or a newer one"));
    }
    let restore = Client::choose(&server, "pg_restore", facts.tool).await?;
    let dump = Client::choose(&server, "pg_dump", here).await?;
    let mut loaded = Loaded { streams: vec![], notices: vec![] };
    let mut admin = clear(&server, &facts).await?;
    loaded.notices.extend(roles::make(&mut admin, &facts).await?);
    // Nobody may be in it when it is made anew.
    admin.close().await;
    let (bytes, items) = (AtomicU64::new(0), AtomicU64::new(0));
    let of_bytes: u64 = streams.iter().map(|stream| stream.bytes).sum();
    let count = |more_bytes: u64, more_items: u64| {
        (subject.progress)(Progress {
            phase: "loading".to_owned(),
            bytes: bytes.fetch_add(more_bytes, Ordering::Relaxed) + more_bytes,
            of_bytes,
            new_bytes: 0,
            items: items.fetch_add(more_items, Ordering::Relaxed) + more_items,
        });
    };
    let raw = facts.version >= 2;
    let context = Context { admin: &server, restore: &restore, dump: &dump, reader, count: &count, raw };
    let of = |database: &Database| -> Vec<StreamEntry> {
        let here = |stream: &&StreamEntry| stream.attributes.get("database") == Some(&database.name);
        streams.iter().filter(here).cloned().collect()
    };
    let (pattern, others): (Vec<&Database>, Vec<&Database>) =
        facts.databases.iter().partition(|database| database.name == TEMPLATE);
    // The pattern of new databases last: all others are made beside it.
    for some in [others, pattern] {
        let loads: Vec<_> =
            some.iter().map(|database| inside::load(&context, database, of(database)).boxed()).collect();
        for one in futures::stream::iter(loads).buffered(DATABASES).try_collect::<Vec<_>>().await? {
            loaded.streams.extend(one.streams);
            loaded.notices.extend(one.notices);
        }
    }
    let unclaimed = streams.iter().find(|stream| {
        !facts.databases.iter().any(|database| stream.attributes.get("database") == Some(&database.name))
    });
    if let Some(stream) = unclaimed {
        let name = String::from_utf8_lossy(&stream.name).into_owned();
        return Err(server.failure("repository.damaged", format!("stream {name} belongs to no database of the image")));
    }
    let mut admin = administer(&server, TEMPLATE).await?;
    let logins = subject_logins(subject);
    loaded.notices.extend(roles::finish(&mut admin, &facts, &logins).await?);
    let ends: Vec<_> =
        facts.databases.iter().map(|database| inside::finish(&context, database, of(database)).boxed()).collect();
    for one in futures::stream::iter(ends).buffered(DATABASES).try_collect::<Vec<_>>().await? {
        loaded.streams.extend(one.streams);
        loaded.notices.extend(one.notices);
    }
    loaded.notices.extend(parameters::apply(&mut admin, &facts).await?);
    loaded.notices.extend(roles::finish_own(&mut admin, &facts, &logins).await?);
    admin.close().await;
    loaded.streams.sort_by(|a, b| a.name.cmp(&b.name));
    // The record's own order, so that a comparison reads side by side.
    loaded.streams.sort_by_key(|stream| saved.iter().position(|other| other.name == stream.name).unwrap_or(usize::MAX));
    Ok(loaded)
}

fn subject_logins(subject: &Subject) -> Vec<Login> {
    match &subject.reach {
        crate::data::Reach::Server(reach) => reach.logins.clone(),
        crate::data::Reach::Volume(_) => vec![],
    }
}

fn parse(server: &Server, text: &str) -> Result<Facts, TaskFailure> {
    let bad =
        |why: String| server.failure("repository.damaged", format!("the facts of the image can't be read: {why}"));
    if text.len() > facts::LONGEST {
        return Err(bad("they are too long".to_owned()));
    }
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if version.version > facts::VERSION {
        return Err(server
            .failure(
                "repository.newer",
                format!("the image's facts have version {}, {} is known here", version.version, facts::VERSION),
            )
            .next("use a newer release of Ocopea"));
    }
    serde_json::from_str(text).map_err(|error| bad(error.to_string()))
}

/// The administrator's connection to one database, for long statements, and quiet: what holds a password is in no log.
pub(super) async fn administer(server: &Server, database: &str) -> Result<Session, TaskFailure> {
    let mut session = server.connect(database).await?;
    session
        .run(
            "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = panic; \
             SET client_min_messages = error; SET lock_timeout = 0",
        )
        .await?;
    Ok(session)
}

/// Drops what init scripts or an earlier attempt made: every database, and every role but ours. Answers a connection
/// to the pattern of new databases, which is made anew if anybody changed it.
async fn clear(server: &Server, facts: &Facts) -> Result<Session, TaskFailure> {
    let mut admin = match administer(server, TEMPLATE).await {
        // An attempt that was killed between dropping and making it.
        Err(failure) if failure.code == "data.missing" => renew(server).await?,
        admin => admin?,
    };
    if !admin.untouched().await? {
        if !admin.databases().await?.iter().any(|database| database.name == OTHER) {
            admin.run_long(&format!("CREATE DATABASE {OTHER} TEMPLATE template0"), MAKING).await?;
        }
        admin.close().await;
        admin = renew(server).await?;
    }
    let databases = admin.databases().await?;
    for database in databases.iter().filter(|database| database.name != TEMPLATE) {
        drop_database(&mut admin, &database.name, database.template).await?;
    }
    if !facts.databases.iter().any(|database| database.name == OTHER) {
        // A server without it is a surprise to its own tools.
        admin.run_long(&format!("CREATE DATABASE {OTHER} TEMPLATE template0"), MAKING).await?;
        admin.run(&format!("COMMENT ON DATABASE {OTHER} IS 'default administrative connection database'")).await?;
    }
    roles::clear(&mut admin).await?;
    Ok(admin)
}

/// Makes the pattern of new databases as a new server has it.
async fn renew(server: &Server) -> Result<Session, TaskFailure> {
    let mut beside = administer(server, OTHER).await?;
    if beside.databases().await?.iter().any(|database| database.name == TEMPLATE) {
        drop_database(&mut beside, TEMPLATE, true).await?;
    }
    beside.run_long(&format!("CREATE DATABASE {TEMPLATE} TEMPLATE template0"), MAKING).await?;
    let first = beside.first_superuser().await?;
    beside
        .run(&format!(
            "ALTER DATABASE {TEMPLATE} OWNER TO {}; ALTER DATABASE {TEMPLATE} IS_TEMPLATE true; \
             REVOKE TEMPORARY ON DATABASE {TEMPLATE} FROM PUBLIC; \
             COMMENT ON DATABASE {TEMPLATE} IS 'default template for new databases'",
            sql::ident(&first)
        ))
        .await?;
    beside.close().await;
    administer(server, TEMPLATE).await
}

/// Drops a database with whoever is connected to it.
pub(super) async fn drop_database(admin: &mut Session, name: &str, template: bool) -> Result<(), TaskFailure> {
    if template {
        admin.run(&format!("ALTER DATABASE {} IS_TEMPLATE false", sql::ident(name))).await?;
    }
    let force = if admin.version >= 130_000 {
        " WITH (FORCE)"
    } else {
        let end =
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}", sql::literal(name));
        admin.run(&end).await?;
        ""
    };
    let statement = format!("DROP DATABASE IF EXISTS {}{force}", sql::ident(name));
    admin
        .run_long(&statement, &format!("dropping what the server's start made of database \"{name}\""))
        .await
        .map(|_| ())
}

/// Makes the role that a load runs as. Its password is random and it ends with the load.
///
/// One for each database: `REASSIGN OWNED` in one database gives away others of the same owner too.
pub(super) async fn temporary(admin: &mut Session) -> Result<Server, TaskFailure> {
    let seams = admin.server.seams.clone();
    let mut random = [0u8; 32];
    seams.entropy.fill(&mut random);
    let name = format!("{}{}", roles::TEMPORARY, hex::encode(&random[..6]));
    let password = hex::encode(&random[6..]);
    let until = seams.clock.now().plus(std::time::Duration::from_secs(2 * 86_400)).rfc3339();
    admin
        .run(&format!(
            "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD {} VALID UNTIL {}",
            sql::ident(&name),
            sql::literal(&password),
            sql::literal(&until)
        ))
        .await?;
    let login = Login {
        of: LoginOf::Given,
        user: name,
        password: Secret::new(password),
        database: None,
        options: admin.server.login.options.clone(),
    };
    Ok(admin.server.with_login(login))
}
