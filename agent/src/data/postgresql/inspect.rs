//! A first look: version, sizes, rights, and what a load could not make again. Reads no row.

use futures::{FutureExt, StreamExt, TryStreamExt};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel},
    inventory::Gap,
};

use super::{
    connect::{Identity, Server},
    copy,
    facts::{Database, Facts, Inside},
    rights, sql,
    tools::Client,
};
use crate::data::{Inspected, Subject};

/// Databases that are looked at together.
const AT_ONCE: usize = 4;

/// See `DataService::inspect`.
pub(super) async fn inspect(subject: &Subject) -> Result<Inspected, TaskFailure> {
    let (mut session, who) = Server::sign_in(subject, "inspect").await?;
    let server = session.server.clone();
    let gap = |what: String, why: String, blocking: bool, next: String| Gap {
        name: subject.name.to_string(),
        what,
        why,
        blocking,
        next,
    };
    let mut gaps = Vec::new();
    if let Err(failure) = Client::choose(&server, "pg_dump", session.version / 10_000).await {
        if failure.code == "cancelled" {
            return Err(failure);
        }
        gaps.push(gap("the schema of its databases".to_owned(), failure.cause, true, failure.next));
    }
    gaps.extend(session.closed_databases().await?.iter().map(|name| rights::closed(&server.name, name)));
    let mut databases = session.databases().await?;
    let mut facts = Facts {
        version: super::facts::VERSION,
        server: session.version,
        tool: 0,
        verifiers: who.superuser,
        roles: session.roles(false).await?,
        memberships: vec![],
        settings: vec![],
        parameters: vec![],
        parameter_grants: vec![],
        databases: vec![],
    };
    if !who.superuser && facts.roles.iter().filter(|role| role.login).count() > 1 {
        gaps.push(gap(
            "passwords of roles".to_owned(),
            format!("user {} may not read them: a restore knows only the application's own", sql::ident(&who.user)),
            false,
            "pass --credentials with a superuser to keep them all".to_owned(),
        ));
    }
    let looks: Vec<_> = databases.iter_mut().map(|database| look(&server, &who, database).boxed()).collect();
    let looks: Vec<Look> = futures::stream::iter(looks).buffered(AT_ONCE).try_collect().await?;
    let (mut bytes, mut streams) = (0, 0);
    for look in looks {
        bytes += look.bytes;
        streams += look.streams;
        gaps.extend(look.gaps);
    }
    session.close().await;
    facts.databases = databases;
    Ok(Inspected {
        version: Some(who.version),
        bytes: Some(bytes),
        streams: Some(streams),
        features: copy::features(&facts),
        consistency: Consistency {
            level: ConsistencyLevel::Snapshot,
            why: String::new(),
            changed: vec![],
            changed_count: 0,
            frozen_ms: 0,
        },
        gaps,
    })
}

struct Look {
    bytes: u64,
    streams: u64,
    gaps: Vec<Gap>,
}

async fn look(server: &Server, who: &Identity, database: &mut Database) -> Result<Look, TaskFailure> {
    let mut session = match server.connect(&database.name).await {
        Ok(session) => session,
        Err(failure) if failure.code == "data.rights" => {
            let gaps = vec![rights::shut(server, &database.name, failure.cause)];
            return Ok(Look { bytes: 0, streams: 0, gaps });
        }
        Err(failure) => return Err(failure),
    };
    if database.name == "template1" && session.untouched().await? {
        session.close().await;
        return Ok(Look { bytes: 0, streams: 0, gaps: vec![] });
    }
    let mut gaps = rights::gaps(&mut session, who, &server.name).await?;
    let extensions = session.extensions().await?;
    let left_out = session.unloadable(&extensions).await?;
    gaps.extend(rights::unloadable(&server.name, &database.name, &left_out));
    let (bytes, tables) = session.bytes().await?;
    database.inside = Inside { extensions, left_out, ..Inside::default() };
    session.close().await;
    // Rows of each table, and the schema.
    Ok(Look { bytes, streams: tables + 1, gaps })
}
