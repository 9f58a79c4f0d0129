//! What a server holds: collections, views, their options and indexes, as raw BSON so that nothing is lost.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use ocopea_protocol::{failure::TaskFailure, inventory::Gap};
use serde::{Deserialize, Serialize};

use super::{
    accounts::{self, Accounts},
    connect::{Connected, OWN, RIGHTS, UNKNOWN, number, run, within},
    raw,
};
use crate::data::Subject;

/// Collections of one server.
const MOST: usize = 50_000;
/// Questions about collections that are asked at once.
const AT_ONCE: usize = 6;

/// The driver's facts: given back at the load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The server's version.
    pub(super) version: String,
    /// Collections, then views.
    pub(super) collections: Vec<Collection>,
    /// Users and roles of the applications.
    #[serde(default)]
    pub(super) accounts: Accounts,
    /// The replica set that it is.
    #[serde(default)]
    pub(super) set: Option<ReplicaSet>,
}

/// A replica set's name and members, as any of them tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReplicaSet {
    pub(super) name: String,
    /// `HOST:PORT` each.
    pub(super) hosts: Vec<String>,
    /// Those that never become primary.
    pub(super) passives: Vec<String>,
    /// Those without data.
    pub(super) arbiters: Vec<String>,
}

impl ReplicaSet {
    fn of(hello: &Document) -> Option<Self> {
        let list = |name: &str| {
            let hosts = hello.get_array(name).map(Vec::as_slice).unwrap_or_default();
            hosts.iter().filter_map(|host| host.as_str().map(str::to_owned)).take(50).collect()
        };
        Some(Self {
            name: hello.get_str("setName").ok()?.to_owned(),
            hosts: list("hosts"),
            passives: list("passives"),
            arbiters: list("arbiters"),
        })
    }
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
    /// The server's own name for it: one that is dropped and made again has another.
    #[serde(default)]
    pub(super) uuid: String,
}

/// What a server holds, and what is said about it.
pub(super) struct Catalog {
    pub(super) facts: Facts,
    /// What can't be saved.
    pub(super) gaps: Vec<Gap>,
    /// What is left out and harms nobody.
    pub(super) notices: Vec<String>,
}

impl Collection {
    /// The stream's name.
    pub(super) fn stream(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    pub(super) fn options(&self) -> Result<Vec<u8>, TaskFailure> {
        decode(&self.options)
    }

    /// Whether its options name this.
    pub(super) fn has(&self, option: &str) -> bool {
        self.options().is_ok_and(|options| raw::get(&options, option).is_some())
    }

    pub(super) fn is_capped(&self) -> bool {
        self.options().is_ok_and(|options| raw::get(&options, "capped").is_some_and(|capped| capped.value == [1]))
    }
}

impl Facts {
    /// Tells one state of the list of collections and indexes from every other.
    pub(super) fn digest(&self) -> String {
        let mut hash = digest::Context::new(&digest::SHA256);
        for one in &self.collections {
            let text = serde_json::to_string(one).unwrap_or_default();
            hash.update(text.as_bytes());
            hash.update(b"\n");
        }
        hex::encode(hash.finish())
    }

    /// Names of collections that are not the same in `other`.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let by_name = |facts: &Self| -> BTreeMap<String, Collection> {
            facts.collections.iter().map(|one| (one.stream(), one.clone())).collect()
        };
        let (before, after) = (by_name(self), by_name(other));
        let mut out = Vec::new();
        for (name, one) in &before {
            match after.get(name) {
                None => out.push(format!("{name} (dropped meanwhile)")),
                Some(now) if now.uuid != one.uuid => out.push(format!("{name} (dropped and made again meanwhile)")),
                Some(now) if now != one => out.push(format!("{name} (its options or indexes changed)")),
                Some(_) => {}
            }
        }
        out.extend(
            after.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{name} (made meanwhile)")),
        );
        out
    }

    /// What a target must know.
    pub(super) fn features(&self) -> Vec<String> {
        let mut features = Vec::new();
        for one in &self.collections {
            for (option, feature) in [
                ("viewOn", "view"),
                ("validator", "validator"),
                ("capped", "capped"),
                ("collation", "collation"),
                ("clusteredIndex", "clustered"),
            ] {
                if one.has(option) {
                    features.push(feature.to_owned());
                }
            }
            for index in one.indexes.iter().filter_map(|index| decode(index).ok()) {
                if raw::get(&index, "expireAfterSeconds").is_some() {
                    features.push("ttl index".to_owned());
                }
                if raw::get(&index, "collation").is_some() {
                    features.push("collation".to_owned());
                }
                let Some(key) = raw::get(&index, "key") else { continue };
                for field in raw::elements(key.value).into_iter().flatten().flatten().filter(|field| field.kind == 0x02)
                {
                    let kind = field.value.get(4..field.value.len() - 1).unwrap_or_default();
                    features.push(format!("{} index", String::from_utf8_lossy(kind)));
                }
            }
        }
        features.sort();
        features.dedup();
        features
    }
}

/// BSON as text.
pub(super) fn encode(document: &[u8]) -> String {
    STANDARD.encode(document)
}

/// The other way; what comes out is BSON.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, TaskFailure> {
    let fault = |cause: String| TaskFailure::permanent("repository.damaged", "can't read the saved options", cause);
    let bytes = STANDARD.decode(text).map_err(|error| fault(error.to_string()))?;
    for element in raw::elements(&bytes).map_err(|error| fault(error.to_string()))? {
        element.map_err(|error| fault(error.to_string()))?;
    }
    Ok(bytes)
}

/// The first answer to a command that opens a cursor, as it is.
pub(super) async fn first_answer(
    subject: &Subject,
    connected: &Connected,
    database: &str,
    verb: &str,
    command: Document,
) -> Result<Option<Vec<u8>>, TaskFailure> {
    let handle = connected.client.database(database);
    let mut cursor = within(subject, verb, handle.run_cursor_command(command).batch()).await?;
    let batch = within(subject, verb, async { cursor.next().await.transpose() }).await?;
    Ok(batch.map(|batch| batch.as_raw_document().as_bytes().to_vec()))
}

/// The documents that a command gives by a cursor, as they are.
pub(super) async fn list(
    subject: &Subject,
    connected: &Connected,
    database: &str,
    verb: &str,
    command: Document,
) -> Result<Vec<Vec<u8>>, TaskFailure> {
    let handle = connected.client.database(database);
    let mut cursor = within(subject, verb, handle.run_cursor_command(command).batch_size(1000).batch()).await?;
    let mut out = Vec::new();
    while let Some(batch) = within(subject, verb, async { cursor.next().await.transpose() }).await? {
        let bad = |error: raw::Malformed| {
            TaskFailure::permanent("data.answer", format!("can't {verb} \"{}\"", subject.name), error)
        };
        let documents = raw::batch_of(batch.as_raw_document().as_bytes()).map_err(bad)?;
        for document in raw::elements(documents).map_err(bad)? {
            out.push(document.map_err(bad)?.value.to_vec());
        }
        if out.len() > MOST {
            return Err(too_many(subject));
        }
    }
    Ok(out)
}

fn too_many(subject: &Subject) -> TaskFailure {
    TaskFailure::permanent(
        "data.limit",
        format!("can't save \"{}\"", subject.name),
        format!("it has more than {MOST} collections"),
    )
}

fn text_of(document: &[u8], key: &str) -> Option<String> {
    let found = raw::get(document, key).filter(|found| found.kind == 0x02)?;
    let text = found.value.get(4..found.value.len() - 1)?;
    String::from_utf8(text.to_vec()).ok()
}

/// Whether a collection belongs to the server and not to an application. Stored functions are an application's.
fn is_servers_own(database: &str, name: &str) -> bool {
    name.starts_with("system.") && (name != "system.js" || database == "admin")
}

/// Everything of the server that belongs to applications, and what of it can't be saved.
pub(super) async fn read(subject: &Subject, connected: &Connected) -> Result<Catalog, TaskFailure> {
    let set = ReplicaSet::of(&connected.hello);
    let facts = Facts { version: connected.version.clone(), set, ..Facts::default() };
    let mut catalog = Catalog { facts, gaps: Vec::new(), notices: Vec::new() };
    if connected.is_router() {
        catalog.gaps.push(refused(
            subject,
            "a sharded cluster (mongos)".to_owned(),
            "a copy through mongos has not been tried yet".to_owned(),
        ));
        return Ok(catalog);
    }
    let mut views = Vec::new();
    for database in connected.databases.iter().filter(|name| !["local", "config"].contains(&name.as_str())) {
        let listed =
            list(subject, connected, database, "list the collections of", doc! {"listCollections": 1, "cursor": {}})
                .await;
        let listed = match listed {
            Ok(listed) => listed,
            // The server's own database needn't answer where it has none.
            Err(failure) if OWN.contains(&database.as_str()) && [RIGHTS, UNKNOWN].contains(&failure.code.as_str()) => {
                continue;
            }
            Err(failure) if failure.code == RIGHTS => {
                catalog.gaps.push(unreadable(connected, subject, &format!("database {database}"), &failure.cause));
                continue;
            }
            Err(failure) => return Err(failure),
        };
        for entry in listed {
            let Some(name) = text_of(&entry, "name").filter(|name| !name.is_empty()) else {
                let what = format!("can't save \"{}\"", subject.name);
                return Err(TaskFailure::permanent(
                    "data.answer",
                    what,
                    format!("a collection of {database} has a name that can't be read"),
                ));
            };
            if is_servers_own(database, &name) {
                if name == "system.profile" {
                    catalog.notices.push(format!("{database}.{name} (the profiler's output) is not part of the copy"));
                }
                continue;
            }
            let kind = text_of(&entry, "type").unwrap_or_else(|| "collection".to_owned());
            if kind != "collection" && kind != "view" {
                let (what, why) = if kind == "timeseries" {
                    (
                        format!("time-series collection {database}.{name}"),
                        "copying time series has not been tried yet".to_owned(),
                    )
                } else {
                    (format!("{database}.{name}"), format!("it is of the unknown kind {kind}"))
                };
                catalog.gaps.push(refused(subject, what, why));
                continue;
            }
            if catalog.facts.collections.len() + views.len() >= MOST {
                return Err(too_many(subject));
            }
            let options = raw::get(&entry, "options").filter(|options| options.kind == 0x03);
            let uuid = raw::get(&entry, "info")
                .and_then(|info| raw::get(info.value, "uuid"))
                .map(|uuid| hex::encode(uuid.value));
            let one = Collection {
                database: database.clone(),
                name,
                options: encode(options.map_or(&[5, 0, 0, 0, 0], |options| options.value)),
                view: kind == "view",
                indexes: Vec::new(),
                uuid: uuid.unwrap_or_default(),
            };
            if one.view { views.push(one) } else { catalog.facts.collections.push(one) }
        }
    }
    let mut collections = std::mem::take(&mut catalog.facts.collections);
    collections.sort_by(|a, b| (&a.database, &a.name).cmp(&(&b.database, &b.name)));
    views.sort_by(|a, b| (&a.database, &a.name).cmp(&(&b.database, &b.name)));
    let asked: Vec<_> = collections.into_iter().map(|one| with_indexes(subject, connected, one).boxed()).collect();
    let collections: Vec<Option<Collection>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    catalog.facts.collections = collections.into_iter().flatten().collect();
    catalog.facts.collections.extend(views);
    Ok(catalog)
}

/// A collection with its indexes; nothing when it was dropped in between.
async fn with_indexes(
    subject: &Subject,
    connected: &Connected,
    mut one: Collection,
) -> Result<Option<Collection>, TaskFailure> {
    match indexes(subject, connected, &one.database, &one.name).await {
        Ok(indexes) => {
            one.indexes = indexes.iter().map(|index| encode(index)).collect();
            Ok(Some(one))
        }
        Err(failure) if failure.cause.ends_with("(code 26)") => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn refused(subject: &Subject, what: String, why: String) -> Gap {
    Gap {
        name: subject.name.to_string(),
        what,
        why,
        blocking: true,
        next: format!("leave the data service out with --without {}", subject.name),
    }
}

/// What a login may not read, with the statement that would mend it.
pub(super) fn unreadable(connected: &Connected, subject: &Subject, what: &str, why: &str) -> Gap {
    let user = if connected.user.is_empty() { "USER" } else { connected.user.as_str() };
    Gap {
        name: subject.name.to_string(),
        what: what.to_owned(),
        why: format!("{} may not read all of it: {why}", connected.whom),
        blocking: true,
        next: format!(
            "db.getSiblingDB(\"admin\").grantRolesToUser(\"{user}\", [{{role: \"backup\", db: \"admin\"}}]), or pass --credentials {}=USER:PASSWORD",
            subject.name
        ),
    }
}

/// What the login may not read, proven by asking: one document of every collection.
pub(super) async fn rights(subject: &Subject, connected: &Connected, facts: &Facts) -> Result<Vec<Gap>, TaskFailure> {
    let mut gaps = Vec::new();
    if !connected.sees_all {
        let seen = if connected.databases.is_empty() { "none".to_owned() } else { connected.databases.join(", ") };
        gaps.push(unreadable(connected, subject, "the list of databases", &format!("it sees only its own ({seen})")));
    }
    let asked: Vec<_> = facts
        .collections
        .iter()
        .filter(|one| !one.view)
        .cloned()
        .map(|one| probe(subject, connected, one).boxed())
        .collect();
    let refusals: Vec<Option<(String, String)>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let refusals: Vec<(String, String)> = refusals.into_iter().flatten().collect();
    if let Some((_, why)) = refusals.first() {
        let names: Vec<&str> = refusals.iter().take(20).map(|(name, _)| name.as_str()).collect();
        let what = format!("{} of {} collections: {}", refusals.len(), facts.collections.len(), names.join(", "));
        gaps.push(unreadable(connected, subject, &what, why));
    }
    gaps.extend(accounts::gap(subject, connected).await?);
    Ok(gaps)
}

async fn probe(
    subject: &Subject,
    connected: &Connected,
    one: Collection,
) -> Result<Option<(String, String)>, TaskFailure> {
    let command = doc! {"find": &one.name, "limit": 1, "singleBatch": true, "projection": {"_id": 1}};
    // As bytes: an `_id` needn't be what a decoder takes.
    match list(subject, connected, &one.database, &format!("read {} of", one.stream()), command).await {
        Ok(_) => Ok(None),
        Err(failure) if failure.code == RIGHTS => Ok(Some((one.stream(), failure.cause))),
        Err(failure) => Err(failure),
    }
}

/// Index specifications but the one of `_id`, by name.
pub(super) async fn indexes(
    subject: &Subject,
    connected: &Connected,
    database: &str,
    collection: &str,
) -> Result<Vec<Vec<u8>>, TaskFailure> {
    let found =
        list(subject, connected, database, "list the indexes of", doc! {"listIndexes": collection, "cursor": {}})
            .await?;
    let mut indexes = Vec::new();
    for index in found {
        // One that is being built is listed around its specification.
        let index = raw::get(&index, "spec")
            .filter(|spec| spec.kind == 0x03)
            .map_or_else(|| index.clone(), |spec| spec.value.to_vec());
        let of_id = text_of(&index, "name").as_deref() == Some("_id_");
        if of_id || raw::get(&index, "clustered").is_some() {
            continue;
        }
        let mut kept = raw::Builder::new();
        for element in raw::elements(&index).into_iter().flatten().flatten() {
            // Old servers repeat the collection's name there.
            if !["ns".as_bytes(), b"buildUUID"].contains(&element.key) {
                kept = kept.element(element.whole);
            }
        }
        indexes.push(kept.finish());
    }
    indexes.sort_by_key(|index| name_of(index));
    Ok(indexes)
}

/// An index's name.
pub(super) fn name_of(index: &[u8]) -> String {
    text_of(index, "name").unwrap_or_default()
}

/// A collection's own estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) documents: u64,
    pub(super) bytes: u64,
}

/// Estimates of every collection that is no view, in order.
pub(super) async fn sizes(subject: &Subject, connected: &Connected, facts: &Facts) -> Result<Vec<Size>, TaskFailure> {
    let asked: Vec<_> = facts
        .collections
        .iter()
        .filter(|one| !one.view)
        .cloned()
        .map(|one| size(subject, connected, one).boxed())
        .collect();
    stream::iter(asked).buffered(AT_ONCE).try_collect().await
}

async fn size(subject: &Subject, connected: &Connected, one: Collection) -> Result<Size, TaskFailure> {
    let of = |answer: &Document, name: &str| answer.get(name).and_then(number).unwrap_or(0);
    match run(subject, connected, &one.database, "measure", doc! {"collStats": &one.name}).await {
        Ok(answer) => return Ok(Size { documents: of(&answer, "count"), bytes: of(&answer, "size") }),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => return Err(failure),
        Err(_) => {}
    }
    match run(subject, connected, &one.database, "count the documents of", doc! {"count": &one.name}).await {
        Ok(answer) => Ok(Size { documents: of(&answer, "n"), bytes: 0 }),
        Err(failure) if failure.is_retryable() || failure.code == "cancelled" => Err(failure),
        Err(_) => Ok(Size::default()),
    }
}

/// A document built by hand, as the driver wants it.
pub(super) fn command(subject: &Subject, builder: raw::Builder) -> Result<RawDocumentBuf, TaskFailure> {
    builder.finish_raw().map_err(|error| {
        TaskFailure::permanent("data.bson", format!("can't build a command for \"{}\"", subject.name), error)
    })
}
