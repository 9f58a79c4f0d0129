//! What must hold when all is well again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use ocopea_catalog_db::images::ImageSearch;
use ocopea_protocol::ids::OperationId;
use ocopea_repository::{Body, ImageSession, Record, Repository, Scope, VerifyProgress};

use crate::{
    runtime::{WORLD, lock},
    scenario::World,
    site::{Mover, SERVICES, STREAMS, Site, items},
    work::MOVER,
};

/// The contents of an image: streams of its data services.
type Contents = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// How operations ended.
pub fn ends(world: &World) -> BTreeMap<String, u64> {
    let mut ends = BTreeMap::new();
    for end in world.database.ask("SELECT kind || ' ' || state FROM operations WHERE title NOT LIKE 'clear%'") {
        *ends.entry(end).or_insert(0) += 1;
    }
    ends
}

fn quiet(_progress: VerifyProgress) {}

fn none(world: &World, sql: &str, what: &str) {
    for found in world.database.ask(sql) {
        world.sim.wrong(format!("{what} ({found})"));
    }
}

/// After the faults, when every operation has ended.
pub async fn after_recovery(world: &World) {
    // What was still under way when the last operation ended comes to its end.
    world.sim.sleep(std::time::Duration::from_secs(10)).await;
    // Hints of one who died are the leader's, and it may take the time of a leader's lease until there is one.
    for _ in 0..30 {
        if world.database.ask("SELECT id FROM outbox").is_empty() {
            break;
        }
        world.sim.sleep(std::time::Duration::from_secs(1)).await;
    }
    catalog(world);
    match images(world).await {
        Ok(images) => environments(world, &images),
        Err(error) => world.sim.wrong(format!("the images can't be looked at: {error}")),
    }
    movers(world).await;
    for cluster in &world.clusters {
        let state = cluster.state();
        for (id, snapshot) in &state.snapshots {
            world.sim.wrong(format!("a snapshot is still open ({id} of {})", snapshot.application));
        }
        for application in state.applications.values().filter(|application| !application.frozen.is_empty()) {
            world.sim.wrong(format!("writes are still held ({})", application.name));
        }
        if state.doing.values().any(|doing| !doing.is_empty()) {
            world.sim.wrong("an agent still works on a task that is over".to_owned());
        }
    }
}

/// No helper of what failed is left, but those that an agent began behind the clean-up, being late, and those whose
/// clean-up the cluster refused for good: they end by themselves.
async fn movers(world: &World) {
    let left = |late: bool| {
        let unfinished = |id: &OperationId| {
            let sql = format!(
                "SELECT id FROM operations WHERE hex(id) = '{}' AND state = 'succeeded'",
                id.0.simple().to_string().to_uppercase()
            );
            world.database.ask(&sql).is_empty()
        };
        let refused = |id: &OperationId| {
            let sql = format!(
                "SELECT id FROM tasks WHERE hex(operation) = '{}' AND kind = 'clean-up' AND state = 'failed'",
                id.0.simple().to_string().to_uppercase()
            );
            !world.database.ask(&sql).is_empty()
        };
        let movers = |cluster: &Site| cluster.state().movers.values().cloned().collect::<Vec<_>>();
        let mut all: Vec<Mover> = world.clusters.iter().flat_map(movers).collect();
        all.retain(|mover| (mover.late || refused(&mover.operation)) == late && unfinished(&mover.operation));
        all
    };
    let mut wrong = left(false);
    if !left(true).is_empty() {
        world.sim.sleep(MOVER).await;
        wrong.extend(left(true));
    }
    for mover in wrong {
        world.sim.wrong(format!("a helper is left over ({}, {})", mover.service, mover.operation));
    }
}

fn catalog(world: &World) {
    none(world, "SELECT what FROM wrong", "a state was changed that must not be");
    none(
        world,
        "SELECT label FROM tasks WHERE state IN ('waiting', 'ready', 'claimed')",
        "a task of an ended operation is not over",
    );
    none(world, "SELECT task FROM attempts WHERE ended IS NULL", "an attempt never ended");
    none(world, "SELECT kind FROM outbox", "a hint waits for ever");
    none(world, "SELECT title FROM operations GROUP BY title HAVING count(*) > 1", "one request is two operations");
    none(
        world,
        "SELECT action FROM audit WHERE action LIKE '%.request' GROUP BY subject HAVING count(*) > 1",
        "one request was written down twice",
    );
    none(world, "SELECT kind FROM operations WHERE ended IS NULL", "an operation has no end");
    none(
        world,
        "SELECT title FROM operations WHERE cancel_requested IS NOT NULL AND state = 'succeeded'",
        "an operation succeeded though it was to stop",
    );
    let noted: BTreeSet<String> =
        world.database.ask("SELECT subject FROM audit WHERE action LIKE '%.request'").into_iter().collect();
    for operation in world.database.ask("SELECT id FROM operations") {
        if !noted.contains(&operation) {
            world.sim.wrong("an operation was not written down for the audit".to_owned());
        }
    }
    for task in world.database.ask("SELECT id FROM tasks WHERE site IS NOT NULL AND attempt > 0") {
        if !world.bus.was_hinted(&task) {
            world.sim.wrong("a task was never hinted at".to_owned());
        }
    }
    // Nobody takes away what a save has stored, or what a restore has pinned.
    none(
        world,
        "SELECT operations.kind || ' ' || label || ': ' || tasks.failure FROM tasks JOIN operations ON \
         operations.id = operation WHERE (operations.kind = 'save' OR label LIKE 'load:%' OR label LIKE 'push:%') AND \
         (tasks.failure LIKE '%repository.blobs-missing%' OR tasks.failure LIKE '%repository.missing%' OR \
         tasks.failure LIKE '%repository.damaged%')",
        "something is missing in the repository",
    );
    let there: BTreeSet<String> = world.database.ask("SELECT id FROM operations").into_iter().collect();
    for (key, operation) in lock(&world.accepted).iter() {
        if !there.contains(&operation.to_string()) {
            world.sim.wrong(format!("an accepted operation is lost ({key})"));
        }
    }
}

async fn contents(
    world: &World,
    repository: &Repository,
    record: &Record,
    digest: &ocopea_protocol::names::Digest,
) -> anyhow::Result<Contents> {
    let access = repository.access_to_read(digest).await?;
    let session = ImageSession::over(Arc::new(world.store.clone()), &access, &world.sim.seams(WORLD)).await?;
    let mut contents = Contents::new();
    for component in &record.components {
        if !matches!(component.body, Body::Data { .. }) {
            continue;
        }
        let reader = session.reader(&component.manifest).await?;
        for stream in reader.streams().await? {
            let pieces: Vec<Bytes> = reader.read(&stream.name).await?.try_collect().await?;
            let streams = contents.entry(component.name.to_string()).or_default();
            streams.insert(String::from_utf8_lossy(&stream.name).into_owned(), pieces.concat());
        }
    }
    Ok(contents)
}

/// Whether it is what the application had at one moment.
fn is_of_one_moment(application: &str, contents: &Contents) -> bool {
    SERVICES.iter().all(|service| {
        let Some(streams) = contents.get(*service) else { return false };
        let version = streams.get(STREAMS[0]).and_then(|bytes| {
            let text = std::str::from_utf8(bytes).ok()?;
            text.split(" version ").nth(1)?.split(' ').next()?.parse().ok()
        });
        let Some(version) = version else { return false };
        STREAMS.iter().all(|stream| {
            streams
                .get(*stream)
                .is_some_and(|bytes| *bytes == items(application, service, stream, version).concat().into_bytes())
        })
    })
}

/// An image is visible when, and only when, its ref is there and it verifies.
async fn images(world: &World) -> anyhow::Result<BTreeMap<String, Contents>> {
    let (repository, catalog) = (world.repository().await?, world.catalog());
    let search = ImageSearch { limit: 1000, ..ImageSearch::default() };
    let rows = catalog.images(world.actor.team, &search).await?;
    let shown: BTreeSet<String> = rows.iter().map(|image| image.id.to_string()).collect();
    let all: BTreeSet<String> = world.database.ask("SELECT id FROM images").into_iter().collect();
    let refs: BTreeSet<String> = repository.images().await?.iter().map(|image| image.image.to_string()).collect();
    for id in shown.difference(&refs) {
        world.sim.wrong(format!("an image is shown that has no ref ({id})"));
    }
    for id in refs.difference(&shown) {
        world.sim.wrong(format!("a ref is there whose image is not shown ({id})"));
    }
    for id in all.difference(&shown) {
        world.sim.wrong(format!("an image stays hidden ({id})"));
    }
    let report = repository.verify(Scope::All, &quiet).await?;
    for broken in &report.broken {
        world.sim.wrong(format!("an image is broken: {} {}", broken.object, broken.why));
    }
    // A save that succeeded has its image, unless somebody deleted it; none other has one.
    let deleted = "SELECT image FROM operations WHERE kind = 'delete-image' AND (state = 'succeeded' OR id IN (SELECT operation \
                   FROM tasks WHERE label = 'undo:look' AND output = 'null'))";
    none(
        world,
        &format!(
            "SELECT title FROM operations WHERE kind = 'save' AND state = 'succeeded' AND image NOT IN (SELECT id FROM images) AND image NOT IN ({deleted})"
        ),
        "the image of a save that succeeded is not there",
    );
    none(
        world,
        "SELECT title FROM operations WHERE kind = 'save' AND state <> 'succeeded' AND image IN (SELECT id FROM images)",
        "a save that did not succeed has an image",
    );
    none(
        world,
        "SELECT title FROM operations WHERE kind = 'delete-image' AND state = 'succeeded' AND image IN (SELECT id FROM images)",
        "a deleted image is still there",
    );
    if !repository.pins().await?.is_empty() {
        world.sim.wrong("a pin is left over".to_owned());
    }
    let mut found = BTreeMap::new();
    for image in rows.iter().filter(|image| refs.contains(&image.id.to_string())) {
        // Lists come without records.
        let image = catalog.image(world.actor.team, &image.id.to_string()).await?;
        let record: Record = serde_json::from_str(&image.body)?;
        match contents(world, &repository, &record, &image.record).await {
            Ok(contents) => {
                if !is_of_one_moment(&image.name, &contents) {
                    world.sim.wrong("an image is not what the application had".to_owned());
                }
                found.insert(image.record.to_string(), contents);
            }
            Err(error) => world.sim.wrong(format!("an image can't be read: {error}")),
        }
    }
    Ok(found)
}

/// What a restore made is there, whole, as long as its environment is; and nothing else is.
fn environments(world: &World, images: &BTreeMap<String, Contents>) {
    let in_state = |state: &str| -> BTreeSet<String> {
        let sql = format!("SELECT id FROM environments WHERE state = '{state}'");
        world.database.ask(&sql).into_iter().collect()
    };
    // What could not be taken back is told, stays known, and goes when it is removed.
    let (running, incomplete) = (in_state("running"), in_state("incomplete"));
    none(
        world,
        "SELECT name FROM environments WHERE state NOT IN ('running', 'removed', 'failed', 'incomplete')",
        "an environment is neither there nor gone",
    );
    for (state, operation) in [("running", "failed', 'cancelled"), ("failed", "succeeded")] {
        let sql = format!(
            "SELECT name FROM environments JOIN operations ON operations.environment = environments.id WHERE \
             operations.kind = 'restore' AND environments.state = '{state}' AND operations.state IN ('{operation}')"
        );
        none(world, &sql, "an environment is not as its operation ended");
    }
    let mut there = BTreeSet::new();
    for cluster in &world.clusters {
        let state = cluster.state();
        for (name, namespace) in &state.namespaces {
            let environment = namespace.mark.environment.to_string();
            if incomplete.contains(&environment) {
                continue;
            }
            if !running.contains(&environment) {
                world.sim.wrong(format!("a namespace is left over ({name})"));
                continue;
            }
            if !there.insert(environment) {
                world.sim.wrong("an environment is there twice".to_owned());
            }
            let objects = ["consumers", "foundation", "server db", "server files"].map(str::to_owned);
            if !namespace.ready || namespace.objects != BTreeSet::from(objects) {
                world.sim.wrong(format!("an environment is not whole ({name})"));
            }
            if !state.registry.values().any(|(of, _)| *of == namespace.mark.environment) {
                world.sim.wrong(format!("an environment has no container image ({name})"));
            }
            let data: Contents =
                namespace.data.iter().map(|(service, loaded)| (service.clone(), loaded.streams.clone())).collect();
            if let Some(saved) = images.get(&namespace.mark.record.to_string())
                && *saved != data
            {
                world.sim.wrong(format!("an environment's data is not what was saved ({name})"));
            }
        }
        for (place, (environment, _)) in &state.registry {
            let environment = environment.to_string();
            if !running.contains(&environment) && !incomplete.contains(&environment) {
                world.sim.wrong(format!("a pushed image is left over ({place})"));
            }
        }
    }
    for environment in running.difference(&there) {
        world.sim.wrong(format!("a running environment has no namespace ({environment})"));
    }
}

/// After everything was removed: what is left was leaked.
pub async fn after_clearing(world: &World) {
    world.sim.sleep(std::time::Duration::from_secs(1)).await;
    catalog(world);
    none(world, "SELECT name FROM images", "an image can't be deleted");
    none(
        world,
        "SELECT name FROM environments WHERE state <> 'removed' AND state <> 'failed'",
        "an environment can't be removed",
    );
    none(
        world,
        "SELECT kind || ': ' || failure FROM operations WHERE title LIKE 'clear%' AND state <> 'succeeded'",
        "what was asked for when all was well has failed",
    );
    for cluster in &world.clusters {
        let state = cluster.state();
        if !state.namespaces.is_empty() || !state.registry.is_empty() {
            world.sim.wrong("something is left over at a cluster".to_owned());
        }
    }
    for name in world.store.objects().keys() {
        let kind = name.split('/').next().unwrap_or_default();
        if ["blobs", "refs", "pins", "staging", "condemned", "notes"].contains(&kind) {
            world.sim.wrong(format!("{kind} are left over in the repository"));
            world.sim.note(|| format!("left over: {name}"));
        }
    }
}
