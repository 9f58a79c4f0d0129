//! One database's load, from `CREATE DATABASE` to the last refresh.

use std::{collections::BTreeMap, collections::VecDeque, sync::Mutex};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo};
use ocopea_repository::StreamEntry;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::{
    apply,
    catalog::Table,
    connect::{ENDLESS, STALL, Server, Session, patient},
    copy,
    facts::Database,
    large_objects::{self, Object},
    load::{self, Context},
    owners, roles, rows, sql,
};

/// Connections that load one database.
const WORKERS: usize = 2;
/// Below this a second connection isn't worth its start.
const SMALL: u64 = 8 * 1024 * 1024;
/// The longest archive of a schema, and the longest list of sequences.
const LARGEST: usize = 64 * 1024 * 1024;

/// What one database's load brought.
pub(super) struct One {
    pub streams: Vec<StreamInfo>,
    pub notices: Vec<String>,
}

/// Makes and fills one database.
pub(super) async fn load(
    context: &Context<'_>,
    database: &Database,
    streams: Vec<StreamEntry>,
) -> Result<One, TaskFailure> {
    let mut notices = Vec::new();
    let mut found = Vec::new();
    let mut admin = context.admin.connect("template1").await?;
    let owner = load::temporary(&mut admin).await?;
    create(&mut admin, &owner, database).await?;
    admin.close().await;
    let mut admin = context.admin.connect(&database.name).await?;
    admin.run("SET client_min_messages = error; SET lock_timeout = 0").await?;
    foundations(&mut admin, &owner, database, &mut notices).await?;
    let bytes: u64 = streams.iter().map(|stream| stream.bytes).sum();
    let mut sessions = vec![owner_session(&owner, database).await?];
    if bytes > SMALL {
        for _ in 1..WORKERS {
            sessions.push(owner_session(&owner, database).await?);
        }
    }
    let of = |kind: &str| streams.iter().find(|stream| stream.attributes.get("kind").is_some_and(|k| k == kind));
    let archive = match of("schema") {
        Some(stream) => whole(context, stream).await?,
        None => {
            return Err(context
                .admin
                .failure("repository.damaged", format!("the schema of database \"{}\" is missing", database.name)));
        }
    };
    let left_out = &database.inside.left_out;
    let before = context.restore.statements(&archive, Some("pre-data"), false).await?;
    let mut grants = apply::section(&mut sessions, before, left_out, &mut notices).await?;
    found.extend(tables(context, database, &mut sessions, &streams).await?);
    let mut objects = Vec::new();
    if let (Some(stream), Some(session)) = (of("large-objects"), sessions.first_mut()) {
        let (info, loaded) = large(context, session, stream).await?;
        found.push(info);
        objects = loaded;
    }
    let after = context.restore.statements(&archive, Some("post-data"), false).await?;
    grants.extend(apply::section(&mut sessions, after, left_out, &mut notices).await?);
    if let (Some(stream), Some(session)) = (of("sequences"), sessions.first_mut()) {
        found.push(sequences(context, session, stream).await?);
    }
    if let Some(session) = sessions.first_mut() {
        analyze(session).await?;
    }
    futures::future::join_all(sessions.into_iter().map(Session::close)).await;
    owners::give(&mut admin, &owner.login.user, database, &objects).await?;
    apply::grants(&mut admin, &grants, left_out, &mut notices).await?;
    refresh(&mut admin, database, &mut notices).await?;
    owners::of_database(&mut admin, database, &mut notices).await?;
    if let Some(stream) = of("schema") {
        found.push(schema(context, database, stream, &archive, &mut notices).await?);
    }
    admin.run(&format!("DROP ROLE {}", sql::ident(&owner.login.user))).await?;
    admin.close().await;
    Ok(One { streams: found, notices })
}

async fn owner_session(owner: &Server, database: &Database) -> Result<Session, TaskFailure> {
    let mut session = owner.connect(&database.name).await?;
    // Functions that name things without their schema find them as in the application's own sessions.
    session
        .run(&format!(
            "SET search_path = {}; SET client_min_messages = error; SET lock_timeout = 0; SET synchronous_commit = off; \
             SET maintenance_work_mem = '256MB'; SET check_function_bodies = false",
            search_path(database)
        ))
        .await?;
    Ok(session)
}

/// The path on which the application finds its objects.
fn search_path(database: &Database) -> String {
    let set = database
        .settings
        .iter()
        .find_map(|setting| setting.text.strip_prefix("search_path=").filter(|_| setting.role.is_none()))
        .unwrap_or("public");
    let names: Vec<String> = roles::names(set).iter().map(|name| sql::literal(name)).collect();
    if names.is_empty() { "''".to_owned() } else { names.join(", ") }
}

async fn create(admin: &mut Session, owner: &Server, database: &Database) -> Result<(), TaskFailure> {
    let mut statement = format!(
        "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        sql::ident(&database.name),
        sql::ident(&owner.login.user),
        sql::literal(&database.encoding),
        sql::literal(&database.collate),
        sql::literal(&database.ctype),
    );
    let locale = database.locale.as_deref().map(sql::literal).unwrap_or_default();
    match database.provider.as_str() {
        "i" => statement.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}")),
        "b" => statement.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}")),
        _ if admin.version >= 150_000 => statement.push_str(" LOCALE_PROVIDER libc"),
        _ => {}
    }
    admin.run_long(&statement, &format!("making database \"{}\"", database.name)).await.map(|_| ()).map_err(|failure| {
        if failure.cause.contains("locale") {
            return failure
                .next(format!("the server needs the locale {} (collation {})", database.ctype, database.collate));
        }
        failure
    })
}

/// What only a superuser can make and a load may have: extensions that aren't trusted.
async fn foundations(
    admin: &mut Session,
    owner: &Server,
    database: &Database,
    notices: &mut Vec<String>,
) -> Result<(), TaskFailure> {
    if !database.inside.public {
        admin.run("DROP SCHEMA IF EXISTS public CASCADE").await?;
    }
    if database.inside.extensions.iter().all(|extension| extension.built_in) {
        return Ok(());
    }
    let here: BTreeMap<String, bool> = admin.trusted_extensions().await?;
    for extension in database.inside.extensions.iter().filter(|extension| !extension.built_in) {
        match here.get(&extension.name) {
            // The owner makes it itself.
            Some(true) => {}
            Some(false) if super::unloadable::allowed(&extension.name) => {
                let (name, schema) = (sql::ident(&extension.name), sql::ident(&extension.schema));
                let statement = format!(
                    "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION IF NOT EXISTS {name} WITH SCHEMA {schema} CASCADE"
                );
                admin.run(&statement).await.map_err(|mut failure| {
                    failure.cause = format!("extension {}: {}", extension.name, failure.cause);
                    failure
                })?;
                configuration_tables(admin, &extension.name, &owner.login.user).await?;
            }
            Some(false) => notices.push(format!("extension {} is not one that a load may have made", extension.name)),
            None => {
                return Err(admin
                    .server
                    .failure("data.extension", format!("the server has no extension \"{}\"", extension.name))
                    .next("use a server image that has it"));
            }
        }
    }
    Ok(())
}

/// Lets the temporary owner fill an extension's configuration tables, until it is gone.
async fn configuration_tables(admin: &mut Session, extension: &str, owner: &str) -> Result<(), TaskFailure> {
    #[derive(Deserialize)]
    struct Row {
        schema: String,
        name: String,
    }
    let rows: Vec<Row> = admin
        .list(&format!(
            "SELECT n.nspname AS schema, c.relname AS name FROM pg_extension e, pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE e.extname = {} AND c.oid = ANY (e.extconfig)",
            sql::literal(extension)
        ))
        .await?;
    for row in rows {
        let (schema, table, owner) =
            (sql::ident(&row.schema), sql::qualified(&row.schema, &row.name), sql::ident(owner));
        admin
            .run(&format!(
                "GRANT USAGE ON SCHEMA {schema} TO {owner}; GRANT SELECT, INSERT, UPDATE ON {table} TO {owner}"
            ))
            .await?;
    }
    Ok(())
}

/// A stream that is small by nature, whole.
async fn whole(context: &Context<'_>, stream: &StreamEntry) -> Result<Bytes, TaskFailure> {
    let mut pieces = read(context, stream).await?;
    let mut out = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| rows::store(context.admin, &error))?;
        if out.len() + piece.len() > LARGEST {
            return Err(context.admin.failure("data.too-large", "a schema or list of sequences is larger than 64 MiB"));
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.into())
}

type Pieces = futures::stream::BoxStream<'static, ocopea_repository::Result<Bytes>>;

async fn read(context: &Context<'_>, stream: &StreamEntry) -> Result<Pieces, TaskFailure> {
    context.reader.read(&stream.name).await.map_err(|error| rows::store(context.admin, &error))
}

/// Loads all tables, and reads each one back.
async fn tables(
    context: &Context<'_>,
    database: &Database,
    sessions: &mut [Session],
    streams: &[StreamEntry],
) -> Result<Vec<StreamInfo>, TaskFailure> {
    let Some(first) = sessions.first_mut() else { return Ok(vec![]) };
    let mut there: BTreeMap<String, Table> =
        first.tables().await?.into_iter().map(|table| (table.stream(&database.name), table)).collect();
    let mut jobs: Vec<(&StreamEntry, Table)> = Vec::new();
    for stream in streams.iter().filter(|stream| stream.attributes.get("kind").is_some_and(|kind| kind == "table")) {
        let name = String::from_utf8_lossy(&stream.name).into_owned();
        match there.remove(&name) {
            Some(table) => jobs.push((stream, table)),
            None => {
                return Err(context.admin.failure("data.missing", format!("the restored schema has no table {name}")));
            }
        }
    }
    jobs.sort_by_key(|(stream, _)| std::cmp::Reverse(stream.bytes));
    let queue = Mutex::new(VecDeque::from(jobs));
    let loaded = Mutex::new(Vec::new());
    let workers: FuturesUnordered<_> = sessions
        .iter_mut()
        .map(async |session| {
            loop {
                let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
                let Some((stream, table)) = next else { return Ok::<(), TaskFailure>(()) };
                let info = table_of(context, session, stream, &table).await?;
                if let Ok(mut loaded) = loaded.lock() {
                    loaded.push(info);
                }
            }
        })
        .collect();
    workers.try_collect::<Vec<()>>().await?;
    Ok(loaded.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Loads one table and reads it back: rows that a trigger, a rule or anything else kept out are found here.
async fn table_of(
    context: &Context<'_>,
    session: &mut Session,
    stream: &StreamEntry,
    table: &Table,
) -> Result<StreamInfo, TaskFailure> {
    let name = String::from_utf8_lossy(&stream.name).into_owned();
    let server = session.server.clone();
    let database = session.database.clone();
    let mut found =
        StreamInfo { name: name.clone(), unit: "rows".to_owned(), items: 0, bytes: 0, content: String::new() };
    if stream.items > 0 {
        let doing = format!("loading {name}");
        let mut pieces = read(context, stream).await?;
        let mut copy = session.copy_in(&table.copy_in(), &doing).await?;
        while let Some(piece) = pieces.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    // Nothing unverified stays: the whole table's rows are one transaction.
                    let _ = copy.abort("the copy in the repository is damaged").await;
                    return Err(rows::store(&server, &error));
                }
            };
            (context.count)(piece.len() as u64, 0);
            patient(&server, &database, &doing, STALL, async { copy.send(piece).await.map(|_| ()) }).await?;
        }
        let taken = patient(&server, &database, &doing, ENDLESS, copy.finish()).await?;
        (context.count)(0, taken);
        if taken != stream.items {
            return Err(
                server.failure("data.count", format!("the target took {taken} of {} rows of {name}", stream.items))
            );
        }
    }
    let (sink, mut drain) = mpsc::channel::<Option<Bytes>>(2);
    let mut bytes = 0u64;
    let draining = async {
        while let Some(batch) = drain.recv().await {
            bytes += batch.map_or(0, |batch| batch.len() as u64);
        }
        Ok::<(), TaskFailure>(())
    };
    let hasher = context.reader.item_hasher();
    let reading = async {
        let sink = sink;
        rows::read(session, &table.copy_out(None), &name, hasher, &sink, &|_, _| {}).await
    };
    let (sum, ()) = futures::try_join!(reading, draining)?;
    found.items = sum.items();
    found.bytes = bytes;
    found.content = hex::encode(sum.sum());
    if found.items != stream.items {
        let cause = format!("the target holds {} of {} rows of {name}", found.items, stream.items);
        return Err(server
            .failure("data.count", cause)
            .next("something at the target changes rows while they are loaded (a trigger, a rule, another session)"));
    }
    if sum.sum() != stream.item_hash {
        return Err(
            server.failure("data.content", format!("the rows of {name} at the target are not those that were saved"))
        );
    }
    Ok(found)
}

async fn large(
    context: &Context<'_>,
    session: &mut Session,
    stream: &StreamEntry,
) -> Result<(StreamInfo, Vec<Object>), TaskFailure> {
    let objects = large_objects::load(session, read(context, stream).await?).await?;
    let (sum, bytes) = large_objects::read_back(session, context.reader.item_hasher()).await?;
    let name = String::from_utf8_lossy(&stream.name).into_owned();
    if sum.items() != stream.items || sum.sum() != stream.item_hash {
        let cause =
            format!("the target holds {} of {} large objects as they were saved in {name}", sum.items(), stream.items);
        return Err(session.server.failure("data.count", cause));
    }
    let content = hex::encode(sum.sum());
    Ok((StreamInfo { name, unit: stream.unit.clone(), items: sum.items(), bytes, content }, objects))
}

/// Sets all sequences, and reads them back.
async fn sequences(
    context: &Context<'_>,
    session: &mut Session,
    stream: &StreamEntry,
) -> Result<StreamInfo, TaskFailure> {
    let text = whole(context, stream).await?;
    let mut statement = String::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (schema, name, last, called): (String, String, i64, bool) =
            serde_json::from_slice(line).map_err(|error| {
                session.server.failure("repository.damaged", format!("a sequence can't be read: {error}"))
            })?;
        let sequence = sql::literal(&sql::qualified(&schema, &name));
        statement.push_str(&format!("SELECT pg_catalog.setval({sequence}, {last}, {called});"));
        if statement.len() > 64 * 1024 {
            session.run(&std::mem::take(&mut statement)).await?;
        }
    }
    if !statement.is_empty() {
        session.run(&statement).await?;
    }
    let mut sum = context.reader.item_hasher();
    let mut bytes = 0;
    for state in copy::read_sequences(session).await? {
        sum.add(state.line.as_bytes());
        bytes += state.line.len() as u64 + 1;
    }
    let name = String::from_utf8_lossy(&stream.name).into_owned();
    Ok(StreamInfo { name, unit: stream.unit.clone(), items: sum.items(), bytes, content: hex::encode(sum.sum()) })
}

async fn analyze(session: &mut Session) -> Result<(), TaskFailure> {
    for some in session.lockables().await?.chunks(100) {
        let names: Vec<String> = some.iter().map(|table| sql::qualified(&table.schema, &table.name)).collect();
        session.run_long(&format!("ANALYZE {}", names.join(", ")), "gathering statistics").await?;
    }
    Ok(())
}

/// Refreshes materialised views that were populated, each as its own owner.
async fn refresh(admin: &mut Session, database: &Database, notices: &mut Vec<String>) -> Result<(), TaskFailure> {
    if database.inside.views.iter().any(|view| view.populated) {
        admin.run(&format!("SET search_path = {}", search_path(database))).await?;
    }
    for view in database.inside.views.iter().filter(|view| view.populated) {
        let name = sql::qualified(&view.schema, &view.name);
        let shown = format!("{}.{}.{}", sql::shown(&database.name), sql::shown(&view.schema), sql::shown(&view.name));
        admin.run_long(&format!("REFRESH MATERIALIZED VIEW {name}"), &format!("refreshing {shown}")).await?;
        #[derive(Deserialize)]
        struct Row {
            rows: u64,
        }
        let row: Row = admin.one(&format!("SELECT count(*) AS rows FROM {name}")).await?;
        if row.rows != view.rows {
            notices.push(format!(
                "materialised view {shown} has {} rows, it had {} when it was saved",
                row.rows, view.rows
            ));
        }
    }
    admin.run("SET search_path = ''").await
}

/// Dumps the target's schema and compares its statements with the saved ones.
async fn schema(
    context: &Context<'_>,
    database: &Database,
    stream: &StreamEntry,
    archive: &Bytes,
    notices: &mut Vec<String>,
) -> Result<StreamInfo, TaskFailure> {
    let dumped = context.dump.dump(&database.name, &database.encoding, None).await?;
    let statements = context.restore_of(&dumped).await?;
    let mut sum = context.reader.item_hasher();
    statements.iter().for_each(|statement| sum.add(statement.as_bytes()));
    let name = String::from_utf8_lossy(&stream.name).into_owned();
    let mut info = StreamInfo {
        name,
        unit: stream.unit.clone(),
        items: stream.items,
        bytes: dumped.len() as u64,
        content: hex::encode(sum.sum()),
    };
    if sum.sum() != stream.item_hash {
        // Not a loss by itself: another version prints the same thing differently. It is said, never hidden.
        let saved = context.restore.statements(archive, None, true).await?;
        let differing: Vec<String> = saved
            .iter()
            .filter(|statement| !statements.contains(statement))
            .take(5)
            .map(|statement| apply::short(statement))
            .collect();
        let more: Vec<String> = statements
            .iter()
            .filter(|statement| !saved.contains(statement))
            .take(5)
            .map(|statement| apply::short(statement))
            .collect();
        notices.push(format!(
            "the schema of database {} reads differently now; as saved: {}; here: {}",
            sql::shown(&database.name),
            differing.join(" | "),
            more.join(" | ")
        ));
        info.content = String::new();
    }
    Ok(info)
}
