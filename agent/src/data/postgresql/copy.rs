//! The copy: everything of every database under the holder's snapshots, to streams.
//!
//! Per database: the schema as an archive of `pg_dump`, the rows of every table, sequences (which no snapshot covers:
//! they are read after it was taken, so they are never behind the rows), large objects, and the facts that no archive
//! holds. While it runs, a watch looks every second whether the snapshot still stands and nobody waits for it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{FutureExt, StreamExt, TryStreamExt};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel, StreamInfo},
    task::Progress,
};
use ocopea_repository::{DataWriter, StreamFacts, StreamSummary};
use serde::Deserialize;

use super::{
    catalog::{Sequence, encoded},
    connect::{Server, Session},
    facts::{self, Database, Facts, Inside},
    hold::{Opened, Snapshot, Watch},
    large_objects, rights, rows, sql,
    tools::Client,
};
use crate::data::{Copied, Subject};

/// Connections that read rows of one database at once.
const WORKERS: usize = 3;
/// Databases that are copied at once.
const DATABASES: usize = 2;
/// Sequences read by one query.
const SEQUENCES: usize = 200;

/// What one database brought.
struct One {
    inside: Inside,
    streams: Vec<StreamSummary>,
    notices: Vec<String>,
}

/// See `DataService::copy`.
pub(super) async fn copy(subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
    let (session, who) = Server::sign_in(subject, "save").await?;
    let server = session.server.clone();
    let snapshot = Snapshot::parse(&server, snapshot)?;
    let mut watch = Watch { session, holders: snapshot.pids.clone() };
    // Once before anything: a holder that is gone can't be told from one that never was.
    watch.look().await?;
    let watching = async {
        loop {
            if !server.seams.sleep_unless(&server.stop, Duration::from_secs(1)).await {
                return TaskFailure::cancelled(server.what());
            }
            if let Err(failure) = watch.look().await {
                return failure;
            }
        }
    };
    let work = everything(subject, &server, &snapshot, who.superuser, writer);
    tokio::select! {
        biased;
        failure = watching => Err(failure),
        done = work => {
            let (facts, streams, mut notices) = done?;
            notices.extend(facts.parameters.first().map(|_| parameters(&facts)));
            Ok(Copied {
                streams,
                consistency: Consistency {
                    level: ConsistencyLevel::Snapshot,
                    why: if snapshot.databases.len() > 1 {
                        format!("one snapshot for each of {} databases, opened together", snapshot.databases.len())
                    } else {
                        String::new()
                    },
                    changed: vec![],
                    changed_count: 0,
                    frozen_ms: 0,
                },
                version: Some(who.version),
                features: features(&facts),
                notices,
                facts: serde_json::to_string(&facts)
                    .map_err(|error| server.failure("data.facts", error.to_string()))?,
            })
        }
    }
}

fn parameters(facts: &Facts) -> String {
    let names: Vec<&str> = facts.parameters.iter().take(40).map(|(name, _)| name.as_str()).collect();
    format!(
        "server settings that differ from the defaults come with the server's own configuration: {}",
        names.join(", ")
    )
}

/// What a target must have.
pub(super) fn features(facts: &Facts) -> Vec<String> {
    let mut features = Vec::new();
    for database in &facts.databases {
        for extension in database.inside.extensions.iter().filter(|extension| !extension.built_in) {
            features.push(format!("extension:{}", extension.name));
        }
        if database.provider == "i" {
            features.push("collation:icu".to_owned());
        } else if !["C", "POSIX", "C.UTF-8", "C.utf8"].contains(&database.collate.as_str()) {
            features.push(format!("locale:{}", database.collate));
        }
    }
    features.sort();
    features.dedup();
    features
}

async fn everything(
    subject: &Subject,
    server: &Server,
    snapshot: &Snapshot,
    verifiers: bool,
    writer: &DataWriter,
) -> Result<(Facts, Vec<StreamInfo>, Vec<String>), TaskFailure> {
    let Some(first) = snapshot.databases.first() else {
        return Err(server.failure("data.snapshot", "the holder has opened no database"));
    };
    let mut lead = server.connect(&first.name).await?;
    lead.import(&first.snapshot).await?;
    let least = lead.version / 10_000;
    let dump = Client::choose(server, "pg_dump", least).await?;
    let restore = Client::choose(server, "pg_restore", dump.major).await?;
    let names: Vec<&String> = snapshot.databases.iter().map(|opened| &opened.name).collect();
    let mut databases: Vec<Database> =
        lead.databases().await?.into_iter().filter(|database| names.contains(&&database.name)).collect();
    let mut facts = Facts {
        version: facts::VERSION,
        server: lead.version,
        tool: dump.major,
        verifiers,
        roles: lead.roles(verifiers).await?,
        memberships: lead.memberships().await?,
        settings: lead.settings(0).await?,
        parameters: lead.parameters(verifiers).await?,
        parameter_grants: lead.parameter_grants().await?,
        databases: vec![],
    };
    let mut notices = lead.outside().await?;
    lead.close().await;
    let (bytes, items) = (AtomicU64::new(0), AtomicU64::new(0));
    let expected = AtomicU64::new(0);
    let count = |more_bytes: u64, more_items: u64| {
        let bytes = bytes.fetch_add(more_bytes, Ordering::Relaxed) + more_bytes;
        let items = items.fetch_add(more_items, Ordering::Relaxed) + more_items;
        (subject.progress)(Progress {
            phase: "reading".to_owned(),
            bytes,
            of_bytes: expected.load(Ordering::Relaxed).max(bytes),
            new_bytes: writer.written().new_bytes,
            items,
        });
    };
    let copies: Vec<_> = snapshot
        .databases
        .iter()
        .map(|opened| {
            let owner = databases.iter().find(|database| database.name == opened.name).map(|d| d.owner.clone());
            one(server, opened, owner.unwrap_or_default(), &dump, &restore, writer, &expected, &count).boxed()
        })
        .collect();
    let copies: Vec<One> = futures::stream::iter(copies).buffered(DATABASES).try_collect().await?;
    let mut streams = Vec::new();
    for (opened, copied) in snapshot.databases.iter().zip(copies) {
        if let Some(database) = databases.iter_mut().find(|database| database.name == opened.name) {
            database.inside = copied.inside;
        }
        streams.extend(copied.streams.iter().map(info));
        notices.extend(copied.notices);
    }
    if !verifiers && facts.roles.iter().any(|role| role.login) {
        notices.push(
            "passwords of roles can't be read by this login: a restore gives the application's own role the password \
             of its configuration, and leaves other roles without one"
                .to_owned(),
        );
    }
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    facts.databases = databases;
    Ok((facts, streams, notices))
}

/// A stream as it was written, for the image.
pub(super) fn info(summary: &StreamSummary) -> StreamInfo {
    StreamInfo {
        name: String::from_utf8_lossy(&summary.name).into_owned(),
        unit: summary.facts.unit.clone(),
        items: summary.facts.items,
        bytes: summary.bytes,
        content: hex::encode(summary.facts.item_hash),
    }
}

#[expect(clippy::too_many_arguments, reason = "all of it is one database's copy, called once")]
async fn one(
    server: &Server,
    opened: &Opened,
    owner: String,
    dump: &Client,
    restore: &Client,
    writer: &DataWriter,
    expected: &AtomicU64,
    count: rows::Count<'_>,
) -> Result<One, TaskFailure> {
    let name = opened.name.as_str();
    let mut session = server.connect(name).await?;
    session.import(&opened.snapshot).await?;
    let extensions = session.extensions().await?;
    let left_out = session.unloadable(&extensions).await?;
    let refused: Vec<_> = left_out.iter().filter(|left| left.refused).cloned().collect();
    if !refused.is_empty() {
        let gaps = rights::unloadable(&server.name, name, &refused);
        let why: Vec<String> = gaps.iter().map(|gap| format!("{}: {}", gap.what, gap.why)).collect();
        return Err(server.failure("data.unsupported", why.join("; ")));
    }
    let tables = session.tables().await?;
    let (bytes, _) = session.bytes().await?;
    expected.fetch_add(bytes, Ordering::Relaxed);
    let mut inside = Inside {
        public: session.has_public().await?,
        extensions,
        owners: session.owners(None).await?.into_iter().filter(|owned| owned.owner != owner).collect(),
        views: session.materialised_views().await?,
        left_out,
    };
    for view in inside.views.iter_mut().filter(|view| view.populated) {
        #[derive(Deserialize)]
        struct Row {
            rows: u64,
        }
        let row: Row =
            session.one(&format!("SELECT count(*) AS rows FROM {}", sql::qualified(&view.schema, &view.name))).await?;
        view.rows = row.rows;
    }
    let mut sessions = vec![session];
    for _ in 1..rows::workers(&tables, WORKERS) {
        let mut session = server.connect(name).await?;
        session.import(&opened.snapshot).await?;
        sessions.push(session);
    }
    let encoding = sessions.first().map(|session| session.encoding.clone()).unwrap_or_default();
    let schema = schema(server, opened, &encoding, dump, restore, writer);
    let with = encoded(&encoding);
    let rows = rows::copy(sessions, tables, name, &with, writer, count);
    let (schema, (mut sessions, mut streams)) = futures::try_join!(schema, rows)?;
    streams.push(schema);
    let last = sessions.pop();
    futures::future::join_all(sessions.into_iter().map(Session::close)).await;
    let Some(mut session) = last else { return Err(server.failure("data.snapshot", "no session is left")) };
    streams.extend(large_objects::copy(&mut session, writer, count).await?);
    streams.extend(sequences(&mut session, writer).await?);
    session.close().await;
    let notices = inside
        .left_out
        .iter()
        .map(|left| format!("left out of database {}: {} {}: {}", sql::shown(name), left.kind, left.name, left.why))
        .collect();
    Ok(One { inside, streams, notices })
}

/// The schema's archive. Its content hash is over the set of its statements: archives carry the time they were made.
async fn schema(
    server: &Server,
    opened: &Opened,
    encoding: &str,
    dump: &Client,
    restore: &Client,
    writer: &DataWriter,
) -> Result<StreamSummary, TaskFailure> {
    let archive = dump.dump(&opened.name, encoding, Some(&opened.snapshot)).await?;
    let statements = restore.statements(&archive, None, true).await?;
    let mut hasher = writer.item_hasher();
    statements.iter().for_each(|statement| hasher.add(statement.as_bytes()));
    let name = format!("{} (schema)", sql::shown(&opened.name));
    let mut stream = writer.stream(name.as_bytes()).await.map_err(|error| rows::store(server, &error))?;
    stream.write(archive).await.map_err(|error| rows::store(server, &error))?;
    let facts = StreamFacts {
        unit: "statements".to_owned(),
        items: hasher.items(),
        item_hash: hasher.sum(),
        attributes: rows::attributes("schema", &opened.name, "", ""),
    };
    stream.finish(facts).await.map_err(|error| rows::store(server, &error))
}

/// One sequence's state as a line of a stream.
#[derive(Deserialize)]
pub(super) struct State {
    pub line: String,
}

/// The state of all sequences, as lines of JSON.
pub(super) async fn read_sequences(session: &mut Session) -> Result<Vec<State>, TaskFailure> {
    let sequences: Vec<Sequence> = session.sequences().await?;
    let mut states = Vec::with_capacity(sequences.len());
    for some in sequences.chunks(SEQUENCES) {
        let queries: Vec<String> = some
            .iter()
            .map(|sequence| {
                format!(
                    "SELECT pg_catalog.json_build_array({}::text, {}::text, last_value, is_called)::text AS line FROM {}",
                    sql::literal(&sequence.schema),
                    sql::literal(&sequence.name),
                    sql::qualified(&sequence.schema, &sequence.name)
                )
            })
            .collect();
        let read = session.list::<State>(&queries.join(" UNION ALL ")).await.map_err(|failure| {
            // Sequences can't be locked: one that was dropped meanwhile is no lasting fault.
            if failure.cause.contains("SQLSTATE 42P01") {
                session.server.retry("data.moving", failure.cause)
            } else {
                failure
            }
        })?;
        states.extend(read);
    }
    Ok(states)
}

async fn sequences(session: &mut Session, writer: &DataWriter) -> Result<Option<StreamSummary>, TaskFailure> {
    let states = read_sequences(session).await?;
    if states.is_empty() {
        return Ok(None);
    }
    let mut hasher = writer.item_hasher();
    let mut text = String::new();
    for state in &states {
        hasher.add(state.line.as_bytes());
        text.push_str(&state.line);
        text.push('\n');
    }
    let server = session.server.clone();
    let name = format!("{} (sequences)", sql::shown(&session.database));
    let mut stream = writer.stream(name.as_bytes()).await.map_err(|error| rows::store(&server, &error))?;
    stream.write(text.into()).await.map_err(|error| rows::store(&server, &error))?;
    let facts = StreamFacts {
        unit: "sequences".to_owned(),
        items: hasher.items(),
        item_hash: hasher.sum(),
        attributes: rows::attributes("sequences", &session.database, "", ""),
    };
    Ok(Some(stream.finish(facts).await.map_err(|error| rows::store(&server, &error))?))
}
