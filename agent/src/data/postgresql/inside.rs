//! One database's load, from `CREATE DATABASE` to the last refresh.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo};
use ocopea_repository::StreamEntry;
use serde::Deserialize;

use super::{
    apply,
    connect::{Server, Session},
    copy,
    facts::{Database, Extension, MaterialisedView},
    fill,
    large_objects::{self, Object},
    load::{self, Context, OTHER, TEMPLATE},
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

/// Makes and fills one database, and gives it to its owners.
pub(super) async fn load(
    context: &Context<'_>,
    database: &Database,
    streams: Vec<StreamEntry>,
) -> Result<One, TaskFailure> {
    let mut notices = Vec::new();
    let mut found = Vec::new();
    let pattern = database.name == TEMPLATE;
    let mut admin = load::administer(context.admin, if pattern { OTHER } else { TEMPLATE }).await?;
    let owner = load::temporary(&mut admin).await?;
    if pattern {
        load::drop_database(&mut admin, TEMPLATE, true).await?;
    }
    create(&mut admin, &owner, database).await?;
    admin.close().await;
    let mut admin = load::administer(context.admin, &database.name).await?;
    let bytes: u64 = streams.iter().map(|stream| stream.bytes).sum();
    let mut sessions = vec![owner_session(&owner, database).await?];
    if bytes > SMALL {
        for _ in 1..WORKERS {
            sessions.push(owner_session(&owner, database).await?);
        }
    }
    if let Some(session) = sessions.first_mut() {
        foundations(&mut admin, session, database, &mut notices).await?;
    }
    let archive = archive(context, database, &streams).await?;
    let left_out = &database.inside.left_out;
    let before = context.restore.statements(&archive, Some("pre-data"), false).await?;
    // Definitions name everything in full: what the application's path leads to could be taken for something else.
    each(&mut sessions, "SET search_path = ''").await?;
    let mut grants = apply::section(&mut sessions, before, left_out, &mut notices).await?;
    each(&mut sessions, &format!("SET search_path = {}", search_path(database))).await?;
    // The administrator's session asks the catalogs: on the application's own path anything may be called `pg_class`.
    let there = admin.tables().await?;
    let (back, loaded) = fill::tables(context, database, sessions, there, &streams).await?;
    sessions = back;
    found.extend(loaded);
    let mut objects = Vec::new();
    if let (Some(stream), Some(session)) = (of(&streams, "large-objects"), sessions.first_mut()) {
        session.run("SET search_path = ''").await?;
        let (info, loaded) = large(context, session, &mut admin, database, stream).await?;
        session.run(&format!("SET search_path = {}", search_path(database))).await?;
        found.push(info);
        objects = loaded;
    }
    let after = context.restore.statements(&archive, Some("post-data"), false).await?;
    grants.extend(apply::section(&mut sessions, after, left_out, &mut notices).await?);
    if let Some(session) = sessions.first_mut() {
        analyze(session, &mut admin).await?;
    }
    if let (Some(stream), Some(session)) = (of(&streams, "sequences"), sessions.first_mut()) {
        session.run("SET search_path = ''").await?;
        found.push(sequences(context, session, &mut admin, stream).await?);
    }
    futures::future::join_all(sessions.into_iter().map(Session::close)).await;
    owners::give(&mut admin, &owner.login.user, database, &objects).await?;
    apply::grants(&mut admin, &grants, left_out, &mut notices).await?;
    admin.run(&format!("DROP ROLE {}", sql::ident(&owner.login.user))).await?;
    admin.close().await;
    Ok(One { streams: found, notices })
}

/// What waits until all roles are what they were: materialised views, which are refreshed with their owners' rights,
/// the database's own properties, and the comparison of its schema.
pub(super) async fn finish(
    context: &Context<'_>,
    database: &Database,
    streams: Vec<StreamEntry>,
) -> Result<One, TaskFailure> {
    let mut notices = Vec::new();
    let mut admin = load::administer(context.admin, &database.name).await?;
    owners::of_database(&mut admin, database, &mut notices).await?;
    refresh(&mut admin, database, &mut notices).await?;
    admin.close().await;
    let archive = archive(context, database, &streams).await?;
    let mut found = Vec::new();
    if let Some(stream) = of(&streams, "schema") {
        found.push(schema(context, database, stream, &archive, &mut notices).await?);
    }
    Ok(One { streams: found, notices })
}

fn of<'a>(streams: &'a [StreamEntry], kind: &str) -> Option<&'a StreamEntry> {
    streams.iter().find(|stream| stream.attributes.get("kind").is_some_and(|k| k == kind))
}

/// The archive of a database's schema.
async fn archive(context: &Context<'_>, database: &Database, streams: &[StreamEntry]) -> Result<Bytes, TaskFailure> {
    match of(streams, "schema") {
        Some(stream) => whole(context, stream).await,
        None => Err(context
            .admin
            .failure("repository.damaged", format!("the schema of database \"{}\" is missing", database.name))),
    }
}

async fn each(sessions: &mut [Session], statement: &str) -> Result<(), TaskFailure> {
    for session in sessions {
        session.run(statement).await?;
    }
    Ok(())
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
    // What functions in constraints and indexes read of the application's own.
    settle_as(&mut session, database, |name| name.contains('.') || name == "default_text_search_config").await?;
    Ok(session)
}

/// Sets in this session what the database sets for everybody's, as far as `wanted` says. What is refused here is
/// refused, and said, where it is set for the database.
async fn settle_as(session: &mut Session, database: &Database, wanted: fn(&str) -> bool) -> Result<(), TaskFailure> {
    for setting in database.settings.iter().filter(|setting| setting.role.is_none()) {
        if !setting.text.split_once('=').is_some_and(|(name, _)| wanted(name)) {
            continue;
        }
        let Some(assignment) = roles::assignment(&setting.text) else { continue };
        match session.run(&format!("SET {assignment}")).await {
            Err(failure) if failure.is_retryable() || failure.code == "cancelled" => return Err(failure),
            _ => {}
        }
    }
    Ok(())
}

/// Settings that change what a query answers.
fn of_answers(name: &str) -> bool {
    let known = [
        "array_nulls",
        "bytea_output",
        "datestyle",
        "default_text_search_config",
        "extra_float_digits",
        "intervalstyle",
        "lc_monetary",
        "lc_numeric",
        "lc_time",
        "timezone",
        "timezone_abbreviations",
        "transform_null_equals",
        "xmlbinary",
        "xmloption",
    ];
    name.contains('.') || known.contains(&name.to_ascii_lowercase().as_str())
}

/// The path on which the application finds its objects, behind the server's own: those are always found first here.
fn search_path(database: &Database) -> String {
    let set = database
        .settings
        .iter()
        .find_map(|setting| setting.text.strip_prefix("search_path=").filter(|_| setting.role.is_none()))
        .unwrap_or("public");
    let names = roles::names(set);
    let names: Vec<String> = names.iter().filter(|name| *name != "pg_catalog").map(|name| sql::literal(name)).collect();
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

/// Extensions, each in the schema that it was in, those that others build on first. Trusted ones are the owner's work,
/// those that may be had are the administrator's.
async fn foundations(
    admin: &mut Session,
    owner: &mut Session,
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
    let left_out = |name: &str| database.inside.left_out.iter().any(|l| l.kind == "extension" && l.name == name);
    for extension in in_order(&database.inside.extensions) {
        let name = sql::ident(&extension.name);
        // One that brings its schema along must make it itself.
        let place = if extension.own_schema {
            String::new()
        } else {
            if !extension.schema.starts_with("pg_") {
                owner.run(&format!("CREATE SCHEMA IF NOT EXISTS {}", sql::ident(&extension.schema))).await?;
            }
            format!(" WITH SCHEMA {}", sql::ident(&extension.schema))
        };
        let statement = format!("CREATE EXTENSION IF NOT EXISTS {name}{place} CASCADE");
        let doing = format!("making extension {}", extension.name);
        match here.get(&extension.name) {
            _ if left_out(&extension.name) => {
                notices.push(format!("left out, as said when it was saved: extension {}", extension.name));
            }
            Some(true) => {
                owner.run_long(&statement, &doing).await?;
            }
            Some(false) if super::unloadable::allowed(&extension.name) => {
                admin.run_long(&statement, &doing).await?;
                configuration_tables(admin, &extension.name, &owner.server.login.user).await?;
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
    for made in admin.extensions().await? {
        let saved = database.inside.extensions.iter().find(|saved| saved.name == made.name);
        if let Some(saved) = saved.filter(|saved| saved.version != made.version) {
            notices.push(format!(
                "extension {} of database {} has version {} here, it had {}",
                made.name,
                sql::shown(&database.name),
                made.version,
                saved.version
            ));
        }
    }
    Ok(())
}

/// Extensions that don't come with every server, each behind those that it builds on.
fn in_order(extensions: &[Extension]) -> Vec<&Extension> {
    let mut waiting: Vec<&Extension> = extensions.iter().filter(|extension| !extension.built_in).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let names: Vec<&str> = waiting.iter().map(|extension| extension.name.as_str()).collect();
        let (later, now): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .partition(|extension| extension.needs.iter().any(|need| names.contains(&need.as_str())));
        // They can't need each other; an image that says so gets them as they come.
        let none = now.is_empty();
        order.extend(if none { later.clone() } else { now });
        waiting = if none { Vec::new() } else { later };
    }
    order
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

async fn large(
    context: &Context<'_>,
    session: &mut Session,
    admin: &mut Session,
    database: &Database,
    stream: &StreamEntry,
) -> Result<(StreamInfo, Vec<Object>), TaskFailure> {
    let objects = large_objects::load(session, &database.owner, read(context, stream).await?).await?;
    let (sum, bytes) = large_objects::read_back(admin, context.reader.item_hasher()).await?;
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
    admin: &mut Session,
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
    for state in copy::read_sequences(admin).await? {
        sum.add(state.line.as_bytes());
        bytes += state.line.len() as u64 + 1;
    }
    let name = String::from_utf8_lossy(&stream.name).into_owned();
    Ok(StreamInfo { name, unit: stream.unit.clone(), items: sum.items(), bytes, content: hex::encode(sum.sum()) })
}

async fn analyze(session: &mut Session, admin: &mut Session) -> Result<(), TaskFailure> {
    for some in admin.lockables().await?.chunks(100) {
        let names: Vec<String> = some.iter().map(|table| sql::qualified(&table.schema, &table.name)).collect();
        session.run_long(&format!("ANALYZE {}", names.join(", ")), "gathering statistics").await?;
    }
    Ok(())
}

/// Refreshes materialised views that were populated, each with the rights of its own owner, in a session like the
/// application's.
async fn refresh(admin: &mut Session, database: &Database, notices: &mut Vec<String>) -> Result<(), TaskFailure> {
    let mut waiting: Vec<&MaterialisedView> = database.inside.views.iter().filter(|view| view.populated).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    settle_as(admin, database, of_answers).await?;
    // What policies let an owner see is what its view held.
    admin.run("SET row_security = on").await?;
    admin.run(&format!("SET search_path = {}", search_path(database))).await?;
    while !waiting.is_empty() {
        let mut early = Vec::new();
        let mut last = None;
        for view in &waiting {
            let name = sql::qualified(&view.schema, &view.name);
            let shown =
                format!("{}.{}.{}", sql::shown(&database.name), sql::shown(&view.schema), sql::shown(&view.name));
            let statement = format!("REFRESH MATERIALIZED VIEW {name}");
            match admin.run_long(&statement, &format!("refreshing {shown}")).await {
                Ok(_) => {}
                // It reads one that isn't populated yet, within a function, where no catalog tells.
                Err(failure) if failure.cause.contains("SQLSTATE 55000") => {
                    early.push(*view);
                    last = Some(failure);
                    continue;
                }
                Err(failure) => return Err(failure),
            }
            #[derive(Deserialize)]
            struct Row {
                rows: u64,
            }
            let row: Row = admin.one(&format!("SELECT pg_catalog.count(*) AS rows FROM {name}")).await?;
            if row.rows != view.rows {
                notices.push(format!(
                    "materialised view {shown} has {} rows, it had {} when it was saved",
                    row.rows, view.rows
                ));
            }
            admin.run_long(&format!("ANALYZE {name}"), "gathering statistics").await?;
        }
        match last {
            Some(failure) if early.len() == waiting.len() => return Err(failure),
            _ => waiting = early,
        }
    }
    Ok(())
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
