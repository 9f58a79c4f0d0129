//! What a server holds: collections, views, their options and indexes, as raw BSON so that nothing is lost.

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::TryStreamExt;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use ocopea_protocol::{failure::TaskFailure, inventory::Gap};
use serde::{Deserialize, Serialize};

use super::connect::{Connected, OWN, within};
use crate::data::Subject;

/// Collections of one server.
const MOST: usize = 50_000;

/// The driver's facts: given back at the load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The server's version.
    pub(super) version: String,
    /// Collections, then views.
    pub(super) collections: Vec<Collection>,
}

/// A collection or view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Collection {
    pub(super) database: String,
    pub(super) name: String,
    /// Its `options` as `listCollections` gives them: base64 of BSON.
    pub(super) options: String,
    /// A view has no documents of its own.
    pub(super) view: bool,
    /// Index specifications but the one of `_id`: base64 of BSON each.
    pub(super) indexes: Vec<String>,
}

impl Collection {
    /// The stream's name.
    pub(super) fn stream(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }
}

/// A BSON document as text.
pub(super) fn encode(document: &Document) -> Result<String, TaskFailure> {
    let raw = RawDocumentBuf::try_from(document)
        .map_err(|error| TaskFailure::permanent("data.bson", "can't encode an option", error))?;
    Ok(STANDARD.encode(raw.as_bytes()))
}

/// The other way.
pub(super) fn decode(text: &str) -> Result<Document, TaskFailure> {
    let fault = |cause: String| TaskFailure::permanent("data.bson", "can't read the saved options", cause);
    let bytes = STANDARD.decode(text).map_err(|error| fault(error.to_string()))?;
    let raw = RawDocumentBuf::from_bytes(bytes).map_err(|error| fault(error.to_string()))?;
    Document::try_from(raw).map_err(|error| fault(error.to_string()))
}

/// Everything of the server that belongs to applications, and what of it can't be saved.
pub(super) async fn read(subject: &Subject, connected: &Connected) -> Result<(Facts, Vec<Gap>), TaskFailure> {
    let mut facts = Facts { version: connected.version.clone(), collections: Vec::new() };
    let mut gaps = Vec::new();
    let refused = |what: String, why: &str| Gap {
        name: subject.name.to_string(),
        what,
        why: why.to_owned(),
        blocking: true,
        next: format!("leave the data service out with --without {}", subject.name),
    };
    if connected.hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
        gaps.push(refused("a sharded cluster (mongos)".to_owned(), "copying through mongos has not been tried yet"));
        return Ok((facts, gaps));
    }
    let client = &connected.client;
    let mut databases = within(subject, "list the databases of", async { client.list_database_names().await }).await?;
    databases.retain(|name| !OWN.contains(&name.as_str()));
    databases.sort();
    let mut views = Vec::new();
    for database in databases {
        let handle = client.database(&database);
        let listed = within(subject, "list the collections of", async {
            handle.run_cursor_command(doc! {"listCollections": 1, "cursor": {}}).await?.try_collect::<Vec<Document>>().await
        })
        .await?;
        for entry in listed {
            let name = entry.get_str("name").unwrap_or_default().to_owned();
            if name.starts_with("system.") || name.is_empty() {
                continue;
            }
            let kind = entry.get_str("type").unwrap_or("collection");
            let options = entry.get_document("options").cloned().unwrap_or_default();
            if kind == "timeseries" {
                gaps.push(refused(format!("time-series collection {database}.{name}"), "copying time series has not been tried yet"));
                continue;
            }
            if facts.collections.len() + views.len() >= MOST {
                return Err(TaskFailure::permanent("data.limit", format!("can't copy \"{}\"", subject.name), format!("it has more than {MOST} collections")));
            }
            let view = kind == "view";
            let indexes = if view { Vec::new() } else { indexes(subject, connected, &database, &name).await? };
            let one = Collection {
                database: database.clone(),
                name,
                options: encode(&options)?,
                view,
                indexes: indexes.iter().map(encode).collect::<Result<_, _>>()?,
            };
            if view { views.push(one) } else { facts.collections.push(one) }
        }
    }
    facts.collections.sort_by(|a, b| (&a.database, &a.name).cmp(&(&b.database, &b.name)));
    facts.collections.extend(views);
    Ok((facts, gaps))
}

/// Index specifications but the one of `_id`.
pub(super) async fn indexes(
    subject: &Subject,
    connected: &Connected,
    database: &str,
    collection: &str,
) -> Result<Vec<Document>, TaskFailure> {
    let handle = connected.client.database(database);
    let mut found = within(subject, "list the indexes of", async {
        handle.run_cursor_command(doc! {"listIndexes": collection, "cursor": {}}).await?.try_collect::<Vec<Document>>().await
    })
    .await?;
    found.retain(|index| index.get_str("name").is_ok_and(|name| name != "_id_"));
    for index in &mut found {
        index.remove("ns");
    }
    found.sort_by_key(|index| index.get_str("name").unwrap_or_default().to_owned());
    Ok(found)
}

/// Estimated number of documents.
pub(super) async fn count(subject: &Subject, connected: &Connected, database: &str, collection: &str) -> Result<u64, TaskFailure> {
    let handle = connected.client.database(database).collection::<RawDocumentBuf>(collection);
    within(subject, "count the documents of", async { handle.estimated_document_count().await }).await
}

/// Raw bytes of a database's collections, where the server tells.
pub(super) async fn bytes(subject: &Subject, connected: &Connected, facts: &Facts) -> Result<Option<u64>, TaskFailure> {
    let mut total = 0u64;
    for one in facts.collections.iter().filter(|c| !c.view) {
        let handle = connected.client.database(&one.database);
        match within(subject, "measure", async { handle.run_command(doc! {"collStats": &one.name}).await }).await {
            Ok(stats) => {
                let size = stats.get_i64("size").ok().or_else(|| stats.get_i32("size").ok().map(i64::from));
                let size = size.or_else(|| stats.get_f64("size").ok().map(|size| size as i64));
                total += size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
            }
            Err(failure) if failure.code == "data.command" => return Ok(None),
            Err(failure) => return Err(failure),
        }
    }
    Ok(Some(total))
}
