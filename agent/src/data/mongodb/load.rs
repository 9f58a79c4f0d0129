//! Streams → server, and counting what arrived.
//!
//! Documents first, into bare collections; then indexes, unique ones among them; then the collection is read back, while
//! others are still loaded. Only then come rules for future writes: validators, views, and last what lets documents expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use mongodb::bson::doc;
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo, task::Progress};
use ocopea_repository::DataReader;

use super::{
    accounts, catalog,
    catalog::{Collection, Facts, Size, decode, name_of},
    connect::{COMMAND, Connected, OWN, RIGHTS, UNKNOWN, patient},
    insert::{Inserting, Stamped},
    raw,
    read::{Reading, room},
    start,
};
use crate::{
    data::{Loaded, Subject},
    failures::repository,
};

/// Collections that are loaded at the same time.
const AT_ONCE: usize = 2;
/// Ranges of a collection that are read back at the same time.
const READS_AT_ONCE: usize = 2;
/// The longest facts that are read.
const LONGEST_FACTS: usize = 64 << 20;
/// Options that come after the documents, or never.
const LATER: [&str; 8] =
    ["validator", "validationLevel", "validationAction", "expireAfterSeconds", "autoIndexId", "temp", "uuid", "flags"];
/// How deep a view's pipeline is looked into.
const DEEPEST: usize = 100;

/// See `DataService::load`.
pub(super) async fn load(subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
    let what = format!("can't load \"{}\"", subject.name);
    let facts = parse(&what, reader.facts())?;
    let entries = reader.streams().await.map_err(|error| repository(&what, &error))?;
    let named: BTreeSet<Vec<u8>> =
        facts.collections.iter().filter(|one| !one.view).map(|one| one.stream().into_bytes()).collect();
    for entry in &entries {
        if !named.contains(&entry.name) {
            let cause =
                format!("stream {} belongs to no collection of the image", String::from_utf8_lossy(&entry.name));
            return Err(TaskFailure::permanent("repository.damaged", what, cause));
        }
    }
    let connected = start::ready(subject, facts.set.as_ref()).await?;
    if connected.is_router() {
        let cause = "the target is a sharded cluster (mongos), which has not been tried yet";
        return Err(
            TaskFailure::permanent("data.unsupported", what, cause).next("restore to a replica set or a single server")
        );
    }
    let mut notices = Vec::new();
    let saved_major = facts.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    if connected.major() < saved_major {
        notices.push(format!("it was saved from version {}, the target is {}", facts.version, connected.version));
    }
    drop_what_is_there(subject, &connected).await?;
    let reading = Reading { subject: subject.clone(), connected, at: None, still: true };
    let connected = &reading.connected;
    let inserting = Inserting {
        subject,
        connected,
        reader,
        limits: connected.limits(),
        room: Inserting::room(),
        done: AtomicU64::new(0),
        of_bytes: saved.iter().map(|stream| stream.bytes).sum(),
        stamped: Mutex::new(Stamped::default()),
    };
    let collections: Vec<Collection> = facts.collections.iter().filter(|one| !one.view).cloned().collect();
    let sizes: BTreeMap<&str, Size> = saved
        .iter()
        .map(|stream| (stream.name.as_str(), Size { documents: stream.items, bytes: stream.bytes }))
        .collect();
    let checked = AtomicU64::new(0);
    let loads: Vec<_> = collections
        .iter()
        .map(|one| {
            let size = sizes.get(one.stream().as_str()).copied().unwrap_or_default();
            fill(&inserting, &reading, one, size, &checked).boxed()
        })
        .collect();
    let mut streams: Vec<StreamInfo> = stream::iter(loads).buffer_unordered(AT_ONCE).try_collect().await?;
    let stamped = inserting.stamped.into_inner().unwrap_or_else(PoisonError::into_inner);
    if stamped.count > 0 {
        notices.push(format!(
            "the server put its own time into {} documents with an empty timestamp (0, 0), which it can't keep: {}",
            stamped.count,
            stamped.named.join(", ")
        ));
        // The count is compared; the content can't be the same.
        streams
            .iter_mut()
            .filter(|stream| stamped.streams.contains(&stream.name))
            .for_each(|stream| stream.content.clear());
    }
    for one in &collections {
        notices.extend(make_rules(subject, connected, one).await?);
    }
    for view in in_order(facts.collections.iter().filter(|one| one.view).cloned().collect()) {
        create(subject, connected, &view).await?;
    }
    for one in &collections {
        make_indexes(subject, connected, one, true).await?;
        notices.extend(check_indexes(subject, connected, one).await?);
    }
    notices.extend(accounts::restore(subject, connected, &facts.accounts).await?);
    accounts::sign_in_as_application(subject, &facts.accounts).await?;
    // The record's own order, so that a comparison reads side by side.
    let order: BTreeMap<&str, usize> =
        saved.iter().enumerate().map(|(at, stream)| (stream.name.as_str(), at)).collect();
    streams.sort_by_key(|stream| order.get(stream.name.as_str()).copied().unwrap_or(usize::MAX));
    Ok(Loaded { streams, notices })
}

fn parse(what: &str, text: &str) -> Result<Facts, TaskFailure> {
    let bad = |why: String| {
        TaskFailure::permanent("repository.damaged", what, format!("the facts of the image can't be read: {why}"))
    };
    if text.len() > LONGEST_FACTS {
        return Err(bad("they are too long".to_owned()));
    }
    let facts: Facts = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    for one in &facts.collections {
        if one.name.is_empty()
            || one.name.contains('\0')
            || one.database.is_empty()
            || one.database.contains(['\0', '/', '.', '$'])
        {
            return Err(bad(format!("a collection is called {:?}", one.stream())));
        }
    }
    Ok(facts)
}

/// What the target's own start made has no place beside what was saved.
async fn drop_what_is_there(subject: &Subject, connected: &Connected) -> Result<(), TaskFailure> {
    for name in &connected.databases {
        let database = connected.client.database(name);
        if !OWN.contains(&name.as_str()) {
            patient(subject, connected, &format!("empty {name} of"), async { database.drop().await }).await?;
        } else if name == "admin" {
            let listed = catalog::list(
                subject,
                connected,
                name,
                "list the collections of",
                doc! {"listCollections": 1, "cursor": {}, "nameOnly": true},
            );
            let listed = match listed.await {
                Ok(listed) => listed,
                Err(failure) if [RIGHTS, UNKNOWN].contains(&failure.code.as_str()) => continue,
                Err(failure) => return Err(failure),
            };
            for entry in listed {
                let one = name_of(&entry);
                if !one.is_empty() && !one.starts_with("system.") {
                    let command = doc! {"drop": &one};
                    patient(subject, connected, &format!("empty admin.{one} of"), async {
                        database.run_command(command).await
                    })
                    .await?;
                }
            }
        }
    }
    Ok(())
}

/// Makes a collection, loads its documents, builds its indexes but those that let documents expire, and reads it back:
/// what is there, not what was sent.
async fn fill(
    inserting: &Inserting<'_>,
    reading: &Reading,
    one: &Collection,
    size: Size,
    checked: &AtomicU64,
) -> Result<StreamInfo, TaskFailure> {
    let subject = inserting.subject;
    if one.name != "system.js" {
        create(subject, inserting.connected, one).await?;
    }
    inserting.stream(one).await?;
    make_indexes(subject, inserting.connected, one, false).await?;
    let (room, blank) = (room(), inserting.reader.item_hasher());
    let ranges = reading.ranges(one, size).await?;
    let parts = ranges.iter().map(|range| reading.part(one, range.as_ref(), size, blank.clone(), &room, None).boxed());
    let parts = stream::iter(parts.collect::<Vec<_>>()).buffer_unordered(READS_AT_ONCE).try_collect::<Vec<_>>().await?;
    let mut sum = blank;
    parts.iter().for_each(|part| sum.merge(part));
    let bytes = checked.fetch_add(size.bytes, Relaxed) + size.bytes;
    // While others are still being loaded, that is what is told.
    if inserting.done.load(Relaxed) >= inserting.of_bytes {
        (subject.progress)(Progress {
            phase: "checking".to_owned(),
            bytes,
            of_bytes: inserting.of_bytes,
            ..Progress::default()
        });
    }
    Ok(StreamInfo {
        name: one.stream(),
        unit: "documents".to_owned(),
        items: sum.items(),
        bytes: size.bytes,
        content: hex::encode(sum.sum()),
    })
}

/// Makes a collection or view, without what would hinder its loading.
async fn create(subject: &Subject, connected: &Connected, one: &Collection) -> Result<(), TaskFailure> {
    let options = one.options()?;
    let mut builder = raw::Builder::new().text("create", &one.name);
    for option in raw::elements(&options).into_iter().flatten().flatten() {
        if !LATER.iter().any(|later| later.as_bytes() == option.key) {
            builder = builder.element(option.whole);
        }
    }
    let command = catalog::command(subject, builder)?;
    let database = connected.client.database(&one.database);
    let kind = if one.view { "view" } else { "collection" };
    patient(subject, connected, &format!("make {kind} {} of", one.stream()), async {
        database.run_raw_command(command).await
    })
    .await
    .map(|_| ())
}

/// Rules for writes to come: validators, and expiry of clustered collections.
async fn make_rules(subject: &Subject, connected: &Connected, one: &Collection) -> Result<Option<String>, TaskFailure> {
    let options = one.options()?;
    let mut builder = raw::Builder::new().text("collMod", &one.name);
    let mut names = Vec::new();
    for option in raw::elements(&options).into_iter().flatten().flatten() {
        if LATER[..4].iter().any(|rule| rule.as_bytes() == option.key) {
            builder = builder.element(option.whole);
            names.push(String::from_utf8_lossy(option.key).into_owned());
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let command = catalog::command(subject, builder)?;
    let database = connected.client.database(&one.database);
    let verb = format!("set {} of {} of", names.join(", "), one.stream());
    match patient(subject, connected, &verb, async { database.run_raw_command(command).await }).await {
        Ok(_) => Ok(None),
        Err(failure) if failure.code == UNKNOWN => {
            Ok(Some(format!("{} of {} was not restored: this server has no collMod", names.join(", "), one.stream())))
        }
        Err(failure) => Err(failure),
    }
}

/// Views so that each comes after those that it reads from.
fn in_order(views: Vec<Collection>) -> Vec<Collection> {
    let mut waiting: Vec<(Collection, BTreeSet<String>)> = views
        .into_iter()
        .map(|view| {
            let mut sources = BTreeSet::new();
            if let Ok(options) = view.options() {
                reads_from(&options, DEEPEST, &mut sources);
            }
            sources.remove(&view.name);
            (view, sources)
        })
        .collect();
    let mut out = Vec::new();
    while !waiting.is_empty() {
        let names: BTreeSet<(String, String)> =
            waiting.iter().map(|(view, _)| (view.database.clone(), view.name.clone())).collect();
        let free = |(view, sources): &(Collection, BTreeSet<String>)| {
            !sources.iter().any(|source| names.contains(&(view.database.clone(), source.clone())))
        };
        let (now, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(free);
        if now.is_empty() {
            // A circle: the server says what it thinks of it.
            out.extend(later.into_iter().map(|(view, _)| view));
            break;
        }
        out.extend(now.into_iter().map(|(view, _)| view));
        waiting = later;
    }
    out
}

/// Collections that a view's options name: `viewOn`, and `from` and `coll` of its stages.
fn reads_from(document: &[u8], depth: usize, into: &mut BTreeSet<String>) {
    if depth == 0 {
        return;
    }
    for element in raw::elements(document).into_iter().flatten().flatten() {
        match element.kind {
            0x03 | 0x04 => reads_from(element.value, depth - 1, into),
            0x02 if [b"viewOn".as_slice(), b"from", b"coll", b"$unionWith"].contains(&element.key) => {
                let text = element.value.get(4..element.value.len() - 1).unwrap_or_default();
                into.insert(String::from_utf8_lossy(text).into_owned());
            }
            _ => {}
        }
    }
}

async fn make_indexes(
    subject: &Subject,
    connected: &Connected,
    one: &Collection,
    expiring: bool,
) -> Result<(), TaskFailure> {
    let simple = raw::Builder::new().text("locale", "simple").finish();
    let mut wanted = Vec::new();
    for text in &one.indexes {
        let index = decode(text)?;
        if raw::get(&index, "expireAfterSeconds").is_some() != expiring {
            continue;
        }
        // Where the collection has a collation, an index listed without one has the simple one, not the collection's.
        if one.has("collation") && raw::get(&index, "collation").is_none() {
            let mut builder = raw::Builder::new();
            for element in raw::elements(&index).into_iter().flatten().flatten() {
                builder = builder.element(element.whole);
            }
            wanted.push(builder.document("collation", &simple).finish());
        } else {
            wanted.push(index);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let verb = format!("build the indexes of {} of", one.stream());
    let build = async |indexes: Vec<Vec<u8>>| {
        let builder =
            raw::Builder::new().text("createIndexes", &one.name).array("indexes", indexes.iter().map(Vec::as_slice));
        let command = catalog::command(subject, builder)?;
        let database = connected.client.database(&one.database);
        patient(subject, connected, &verb, async { database.run_raw_command(command).await }).await.map(|_| ())
    };
    match build(wanted.clone()).await {
        // Some servers list the format's version and don't take it back.
        Err(failure) if failure.code == COMMAND && failure.cause.contains("\"v\"") => {
            build(wanted.iter().map(|index| without(index, b"v")).collect()).await
        }
        other => other,
    }
}

fn without(document: &[u8], name: &[u8]) -> Vec<u8> {
    let mut builder = raw::Builder::new();
    for element in raw::elements(document).into_iter().flatten().flatten().filter(|element| element.key != name) {
        builder = builder.element(element.whole);
    }
    builder.finish()
}

/// A missing index fails the restore; one that the server keeps otherwise is named.
async fn check_indexes(subject: &Subject, connected: &Connected, one: &Collection) -> Result<Vec<String>, TaskFailure> {
    if one.indexes.is_empty() {
        return Ok(Vec::new());
    }
    let found = catalog::indexes(subject, connected, &one.database, &one.name).await?;
    let found: BTreeMap<String, Vec<u8>> = found.into_iter().map(|index| (name_of(&index), index)).collect();
    let (mut missing, mut notices) = (Vec::new(), Vec::new());
    for text in &one.indexes {
        let wanted = decode(text)?;
        let name = name_of(&wanted);
        match found.get(&name) {
            None => missing.push(name),
            Some(index) => {
                let lost: Vec<String> = raw::elements(&wanted)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|element| !["v".as_bytes(), b"background"].contains(&element.key))
                    .filter(|element| raw::get(index, &String::from_utf8_lossy(element.key)).is_none())
                    .map(|element| String::from_utf8_lossy(element.key).into_owned())
                    .collect();
                if !lost.is_empty() {
                    notices.push(format!(
                        "the target doesn't keep {} of index {name} of {}",
                        lost.join(", "),
                        one.stream()
                    ));
                }
            }
        }
    }
    if missing.is_empty() {
        return Ok(notices);
    }
    let what = format!("not all indexes of {} arrived in \"{}\"", one.stream(), subject.name);
    Err(TaskFailure::permanent("data.arrival", what, format!("missing: {}", missing.join(", "))))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Document, RawDocumentBuf};

    use super::*;

    fn view(name: &str, options: &Document) -> Collection {
        let options = catalog::encode(RawDocumentBuf::try_from(options).unwrap().as_bytes());
        Collection {
            database: "d".to_owned(),
            name: name.to_owned(),
            options,
            view: true,
            indexes: vec![],
            uuid: String::new(),
        }
    }

    #[test]
    fn views_come_after_what_they_read_and_a_circle_ends() {
        let views = vec![
            view("a", &doc! {"viewOn": "b", "pipeline": []}),
            view(
                "b",
                &doc! {"viewOn": "messages", "pipeline": [{"$lookup": {"from": "c", "pipeline": [{"$unionWith": {"coll": "d"}}]}}]},
            ),
            view("c", &doc! {"viewOn": "messages", "pipeline": [{"$unionWith": "d"}]}),
            view("d", &doc! {"viewOn": "messages"}),
        ];
        let names: Vec<String> = in_order(views).into_iter().map(|view| view.name).collect();
        assert_eq!(names, ["d", "c", "b", "a"]);
        let circle =
            vec![view("x", &doc! {"viewOn": "y"}), view("y", &doc! {"viewOn": "x"}), view("z", &doc! {"viewOn": "z"})];
        assert_eq!(in_order(circle).len(), 3);
    }

    #[test]
    fn facts_of_earlier_images_are_read_and_broken_ones_refused() {
        let old = r#"{"version":"6.0.0","collections":[{"database":"d","name":"c","options":"BQAAAAA=","view":false,"indexes":[]}]}"#;
        assert_eq!(parse("w", old).unwrap().collections[0].stream(), "d.c");
        for broken in ["", "{}", &old.replace("\"d\"", "\"d/../x\""), &old.replace("\"c\"", "\"\"")] {
            assert_eq!(parse("w", broken).unwrap_err().code, "repository.damaged", "{broken}");
        }
    }
}
