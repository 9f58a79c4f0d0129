//! Stores that fail, fill up, or stop between any two steps.
#![expect(clippy::disallowed_methods, reason = "actors are started and waited for by the test itself")]

mod common;

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use common::*;
use ocopea_protocol::{
    image::Location,
    names::Digest,
    seams::{BoxFuture, Clock, Seams},
    time::Timestamp,
};
use ocopea_repository::{
    CollectOptions, CommitRequest, Error, ImageRef, ImageSession, Record, Repository, Scope, StoreAccess, WrappedKey,
    backend::{Action, Hook, HookedBackend},
};

/// The store takes so many bytes, then it is full.
struct Quota(AtomicI64);

#[async_trait]
impl Hook for Quota {
    async fn before(&self, action: Action, name: &str) -> Result<(), Error> {
        let bytes = match action {
            Action::Create(bytes) | Action::Replace(bytes) | Action::Write(bytes) => i64::try_from(bytes).unwrap(),
            _ => return Ok(()),
        };
        if self.0.fetch_sub(bytes, SeqCst) < bytes { Err(Error::Full { object: name.to_owned() }) } else { Ok(()) }
    }
}

on_every_store!(
    a_full_store_fails_the_save_with_its_cause_and_leaves_no_image,
    a_pack_that_is_kept_otherwise_than_it_was_given_fails_the_save,
    whatever_call_fails_a_save_is_whole_or_absent_and_may_be_tried_again,
);

async fn a_full_store_fails_the_save_with_its_cause_and_leaves_no_image(world: World) {
    let first = world.save("first", &[(b"a", prose(100_000, 1))], None).await;
    let key = world.repository.new_image_key(world.team).await.unwrap();
    let access = world.repository.access_to_write(&key, None).await.unwrap();
    for quota in [0, 50, 10_000, 3_000_000, 30_000_000] {
        let hook = Arc::new(Quota(AtomicI64::new(quota)));
        let backend = Arc::new(HookedBackend::new(world.backend().await, hook));
        let session = ImageSession::over(backend, &access, &world.seams).await.unwrap();
        let failed = put_data(&session, "messages", &[(b"a", noise(40_000_000, 2)), (b"b", noise(10, 3))]).await;
        assert!(matches!(failed, Err(Error::Full { .. })), "{quota}: {failed:?}");
    }
    world.repository.abandon(&key).await.unwrap();
    assert_eq!(world.repository.images().await.unwrap(), [first.reference.clone()]);
    world.repository.collect(&now()).await.unwrap();
    world.repository.delete_image(first.reference.image).await.unwrap();
    // What a request was sending when its save failed, the server may still put away: a later collection's work.
    let mut left = vec![];
    for _ in 0..20 {
        world.repository.collect(&now()).await.unwrap();
        let all = world.objects().into_keys();
        left = all.filter(|name| name.starts_with("blobs/") || name.starts_with("tmp/")).collect();
        if left.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(left, Vec::<String>::new(), "all space is given back");
}

/// The store keeps the first blob otherwise than it was given.
struct Forgetful {
    root: std::path::PathBuf,
    harm: fn(&mut Vec<u8>),
    done: AtomicUsize,
}

#[async_trait]
impl Hook for Forgetful {
    async fn before(&self, _: Action, _: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn after(&self, action: Action, name: &str) -> Result<(), Error> {
        if action == Action::Finish && self.done.fetch_add(1, SeqCst) == 0 {
            let path = self.root.join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            (self.harm)(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        }
        Ok(())
    }
}

async fn a_pack_that_is_kept_otherwise_than_it_was_given_fails_the_save(world: World) {
    let harms: [(&str, fn(&mut Vec<u8>)); 9] = [
        ("its first byte", |bytes| bytes[0] ^= 1),
        ("its first chunk", |bytes| bytes[8] ^= 1),
        ("its middle", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }),
        ("its index", |bytes| {
            let index = bytes.len() - 200;
            bytes[index] ^= 1;
        }),
        ("its last byte", |bytes| *bytes.last_mut().unwrap() ^= 1),
        ("one byte less", |bytes| bytes.truncate(bytes.len() - 1)),
        ("one byte more", |bytes| bytes.push(0)),
        ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
        ("nothing", Vec::clear),
    ];
    for (what, harm) in harms {
        let (_, access, _) = world.begin(None).await;
        let hook = Arc::new(Forgetful { root: world.path(""), harm, done: AtomicUsize::new(0) });
        let backend = Arc::new(HookedBackend::new(world.backend().await, hook));
        let session = ImageSession::over(backend, &access, &world.seams).await.unwrap();
        let failed = put_data(&session, "messages", &[(b"a", noise(9_000_000, 2)), (b"b", prose(90_000, 3))]).await;
        assert!(
            matches!(&failed, Err(Error::Damaged { object, .. }) if object.starts_with("blobs/")),
            "{what}: {failed:?}"
        );
    }
}

/// A small file system; taken down when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_deleted_and_collected_on_a_disk_that_is_full_to_the_last_byte() {
    let Some(disk) = SmallDisk::mount("12m") else {
        println!("a small file system can't be mounted here: not tried");
        return;
    };
    let mut world = World::new().await;
    let location = Location::Directory { path: disk.0.path().join("repo").to_str().unwrap().to_owned() };
    world.repository =
        Repository::create(&location, &StoreAccess::default(), &world.keyring, &world.seams).await.unwrap();
    let first = world.save("first", &[(b"a", noise(3_000_000, 1))], None).await;
    let (_, _, session) = world.begin(None).await;
    let failed = put_data(&session, "messages", &[(b"a", noise(20_000_000, 2))]).await;
    assert!(matches!(failed, Err(Error::Full { .. })), "{failed:?}");
    let mut junk = std::fs::File::create(disk.0.path().join("junk")).unwrap();
    while std::io::Write::write_all(&mut junk, &[1; 512]).is_ok() {}
    let repository = Repository::open(&location, &StoreAccess::default(), &world.keyring, &world.seams).await.unwrap();
    assert_eq!(read_all(&repository, &world.seams, &first.reference).await.unwrap().len(), 2 + 5 + 1);
    let reclaim = repository.delete_image(first.reference.image).await.unwrap();
    let report = repository.collect(&now()).await.unwrap();
    assert!(report.deleted_bytes >= reclaim.bytes && reclaim.bytes > 3_000_000, "{report:?} {reclaim:?}");
    let again = world.save("again", &[(b"a", noise(2_000_000, 4))], None).await;
    assert_eq!(repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    assert_eq!(repository.images().await.unwrap(), [again.reference]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_freed_though_what_has_to_be_written_for_it_is_longer_than_the_reserve() {
    let Some(disk) = SmallDisk::mount("48m") else {
        println!("a small file system can't be mounted here: not tried");
        return;
    };
    let mut world = World::new().await;
    let place = disk.0.path().join("repo");
    let location = Location::Directory { path: place.to_str().unwrap().to_owned() };
    world.repository =
        Repository::create(&location, &StoreAccess::default(), &world.keyring, &world.seams).await.unwrap();
    let first = world.save("first", &[(b"a", noise(3_000_000, 1))], None).await;
    // An image of which `index.json` says more than the reserve has room for.
    let (key, _, session) = world.begin(None).await;
    let config = put_config(&session, "wide").await;
    let manifest = put_container(&session, "wide").await.1.remove(0).manifest;
    let data = put_data(&session, "messages", &[]).await.unwrap();
    let platforms: Vec<_> = (0..4500)
        .map(|n| ocopea_repository::Platform { platform: format!("linux/of-some-architecture-{n}"), manifest })
        .collect();
    let mut record = empty_record(&world, "wide");
    record.components = components(&config, (manifest, &platforms), &data);
    record.config_digest = config.config_digest;
    let wide = world.repository.commit(&CommitRequest { record, key }).await.unwrap();
    assert!(std::fs::metadata(place.join("index.json")).unwrap().len() > 1 << 20);
    // And more blobs that nobody needs than a list of so many bytes can name.
    for n in 0..9000u32 {
        std::fs::write(place.join(format!("blobs/sha256/{n:064x}")), n.to_le_bytes()).unwrap();
    }
    let mut junk = std::fs::File::create(disk.0.path().join("junk")).unwrap();
    while std::io::Write::write_all(&mut junk, &[1; 512]).is_ok() {}
    let repository = Repository::open(&location, &StoreAccess::default(), &world.keyring, &world.seams).await.unwrap();
    let reclaim = repository.delete_image(first.reference.image).await.unwrap();
    let report = repository.collect(&now()).await.unwrap();
    assert!(report.deleted >= 1000 && report.deleted_bytes >= reclaim.bytes, "{report:?} {reclaim:?}");
    repository.collect(&now()).await.unwrap();
    assert_eq!(std::fs::read_dir(place.join("condemned")).unwrap().count(), 0);
    assert!(!place.join(format!("blobs/sha256/{:064x}", 8999)).exists(), "all of it is deleted in the end");
    assert_eq!(repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    assert_eq!(repository.images().await.unwrap(), [wide]);
}

/// Fails the call of one number, before or after it is done; counts all.
struct FailOnce {
    count: AtomicUsize,
    at: usize,
    done: bool,
}

impl FailOnce {
    fn fault(&self, name: &str) -> Error {
        Error::Store { action: "reach", object: name.to_owned(), cause: std::io::Error::other("injected") }
    }
}

#[async_trait]
impl Hook for FailOnce {
    async fn before(&self, _: Action, name: &str) -> Result<(), Error> {
        let number = self.count.fetch_add(1, SeqCst);
        if number == self.at && !self.done { Err(self.fault(name)) } else { Ok(()) }
    }

    async fn after(&self, _: Action, name: &str) -> Result<(), Error> {
        // Calls overlap, so that this is some call at about that place: good enough, all places are tried.
        if self.done && self.count.load(SeqCst) == self.at + 1 { Err(self.fault(name)) } else { Ok(()) }
    }
}

/// A whole save with a given key and image, over any backend.
struct Job {
    location: Location,
    seams: Seams,
    key: WrappedKey,
    record: Record,
    base: Option<Digest>,
    content: Vec<u8>,
    layer: Vec<u8>,
}

impl Job {
    async fn new(world: &World, title: &str, base: Option<Digest>, content: Vec<u8>, seams: &Seams) -> Self {
        let key = world.repository.new_image_key(world.team).await.unwrap();
        let record = empty_record(world, title);
        Self {
            location: world.location(),
            seams: seams.clone(),
            key,
            record,
            base,
            content,
            layer: title.as_bytes().to_vec(),
        }
    }

    async fn run(&self, world: &World, hook: Arc<dyn Hook>) -> Result<ImageRef, Error> {
        let backend = Arc::new(HookedBackend::new(world.backend().await, hook));
        let repository = Repository::open_over(backend.clone(), &self.location, &world.keyring, &self.seams).await?;
        let operation = operation(world);
        let base: Vec<Digest> = self.base.into_iter().collect();
        repository.pin(operation, &base).await?;
        let saved = self.save(&repository, backend).await;
        repository.unpin(operation).await?;
        saved
    }

    async fn save(&self, repository: &Repository, backend: Arc<HookedBackend>) -> Result<ImageRef, Error> {
        // A base that is gone by now is no base.
        let access = match repository.access_to_write(&self.key, self.base.as_ref()).await {
            Err(error) if error.is_breakage() && self.base.is_some() => {
                repository.access_to_write(&self.key, None).await?
            }
            other => other?,
        };
        let session = ImageSession::over(backend, &access, &self.seams).await?;
        let config = session.put_config(&Default::default()).await?;
        let layer = gzip(&self.layer);
        let digest = sha256(&layer);
        if !session.has_blob(&digest, layer.len() as u64).await? {
            let bytes = futures::stream::iter([Ok::<_, String>(bytes::Bytes::from(layer.clone()))]);
            session.put_blob(&digest, layer.len() as u64, bytes).await?;
        }
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{digest}\",\"size\":{0}}},\"layers\":[]}}",
            layer.len()
        );
        let manifest = session.put_manifest(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json").await?;
        let data = put_data(&session, "messages", &[(b"a", self.content.clone())]).await?;
        let platforms = [ocopea_repository::Platform { platform: "linux/amd64".to_owned(), manifest }];
        let mut record = self.record.clone();
        record.components = components(&config, (manifest, &platforms), &data);
        record.config_digest = config.config_digest;
        repository.commit(&CommitRequest { record, key: self.key.clone() }).await
    }
}

async fn whatever_call_fails_a_save_is_whole_or_absent_and_may_be_tried_again(world: World) {
    let (mut failed, mut at) = (0, 0);
    loop {
        let job = Job::new(&world, "tried", None, prose(200_000, 7), &world.seams).await;
        let hook = Arc::new(FailOnce { count: AtomicUsize::new(0), at: at / 2, done: at % 2 == 1 });
        let first = job.run(&world, hook.clone()).await;
        let calls = hook.count.load(SeqCst);
        if first.is_err() {
            failed += 1;
        }
        assert_eq!(world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![], "call {at}");
        let never = Arc::new(FailOnce { count: AtomicUsize::new(0), at: usize::MAX, done: false });
        let image = match (job.run(&world, never).await, world.repository.image(job.record.image).await.unwrap()) {
            (Ok(image), _) => image,
            // It had become visible before the failure; another save of it has other manifests.
            (Err(Error::Conflict { .. }), Some(image)) => image,
            (Err(error), _) => panic!("call {at}: the second try failed: {error}"),
        };
        assert_eq!(read_all(&world.repository, &world.seams, &image).await.unwrap()["messages/61"], job.content);
        world.repository.delete_image(image.image).await.unwrap();
        if at / 2 > calls {
            break;
        }
        at += 1;
    }
    assert!(failed > 60, "only {failed} failures were injected");
    world.repository.collect(&CollectOptions { pin_expiry: Duration::ZERO, ..now() }).await.unwrap();
    let objects = world.objects();
    let left: Vec<&String> = objects
        .keys()
        .filter(|name| {
            ["blobs", "refs", "pins", "tmp", "staging", "condemned"].iter().any(|part| name.starts_with(part))
        })
        .collect();
    assert_eq!(left, Vec::<&String>::new(), "nothing is left over");
}

/// Stops its actor in front of the call of one number until it is let go.
struct Gate {
    count: AtomicUsize,
    at: usize,
    reached: tokio::sync::Semaphore,
    go: tokio::sync::Semaphore,
}

impl Gate {
    fn new(at: usize) -> Arc<Self> {
        let closed = || tokio::sync::Semaphore::new(0);
        Arc::new(Self { count: AtomicUsize::new(0), at, reached: closed(), go: closed() })
    }
}

#[async_trait]
impl Hook for Gate {
    async fn before(&self, _: Action, _: &str) -> Result<(), Error> {
        if self.count.fetch_add(1, SeqCst) == self.at {
            self.reached.add_permits(1);
            self.go.acquire().await.unwrap().forget();
        }
        Ok(())
    }
}

/// Waiting is short in these tests; the order of things is what they are about.
struct Hasty(Arc<dyn Clock>);

impl Clock for Hasty {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.0.sleep(span.min(Duration::from_millis(10)))
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Actor {
    Layer,
    Base,
    Collector,
}

/// Who does nothing for so long waits for somebody who is paused.
const STUCK: Duration = Duration::from_millis(200);

/// One writer stores again what a deleted image had, one reuses chunks of an image that is deleted meanwhile, one
/// collection runs. Each actor of `order` runs until its pause; then they are let go from the last to the first.
async fn play(world: World, order: [(Actor, usize); 3]) -> [usize; 3] {
    let seams = Seams { clock: Arc::new(Hasty(world.seams.clock.clone())), ..world.seams.clone() };
    let content = prose(300_000, 1);
    let never = || Gate::new(usize::MAX);
    let old = Job::new(&world, "shared layer", None, content.clone(), &seams).await.run(&world, never()).await.unwrap();
    let by_layer = Arc::new(Job::new(&world, "shared layer", None, noise(50_000, 2), &seams).await);
    let by_base = Arc::new(Job::new(&world, "on a base", Some(old.record), content, &seams).await);
    world.repository.delete_image(old.image).await.unwrap();
    let world = Arc::new(world);
    let mut running = Vec::new();
    let mut counts = [0; 3];
    for (number, (actor, at)) in order.into_iter().enumerate() {
        let gate = Gate::new(at);
        let (hook, own, seams) = (gate.clone(), world.clone(), seams.clone());
        let (by_layer, by_base) = (by_layer.clone(), by_base.clone());
        let task = tokio::spawn(async move {
            match actor {
                Actor::Layer => drop(finish(&by_layer, &own, hook).await),
                Actor::Base => drop(finish(&by_base, &own, hook).await),
                Actor::Collector => {
                    let backend = Arc::new(HookedBackend::new(own.backend().await, hook));
                    let location = own.location();
                    let repository = Repository::open_over(backend, &location, &own.keyring, &seams).await.unwrap();
                    repository.collect(&now()).await.unwrap();
                }
            }
        });
        // Until it pauses, ends, or waits for somebody who is paused.
        let mut task = task;
        let ended = tokio::select! {
            done = &mut task => Some(done),
            _ = gate.reached.acquire() => None,
            () = world.seams.clock.sleep(STUCK) => None,
        };
        match ended {
            Some(done) => done.unwrap(),
            None => running.push((number, gate, task)),
        }
    }
    let mut last = Vec::new();
    while let Some((number, gate, task)) = running.pop() {
        gate.go.add_permits(1);
        let mut task = task;
        // It may wait for one that is still paused: then that one is let go too.
        let ended = tokio::select! {
            done = &mut task => Some(done),
            () = world.seams.clock.sleep(STUCK) => None,
        };
        match ended {
            Some(done) => {
                done.unwrap();
                counts[number] = gate.count.load(SeqCst);
            }
            None => last.push((number, gate, task)),
        }
    }
    for (number, gate, task) in last {
        task.await.unwrap();
        counts[number] = gate.count.load(SeqCst);
    }
    let report = world.repository.verify(Scope::All, &|_| {}).await.unwrap();
    assert_eq!((report.images, &report.broken), (2, &vec![]), "{order:?}");
    for (job, reference) in [&by_layer, &by_base].into_iter().zip([by_layer.record.image, by_base.record.image]) {
        let reference = world.repository.image(reference).await.unwrap().unwrap();
        assert!(
            read_all(&world.repository, &world.seams, &reference).await.unwrap()["messages/61"] == job.content,
            "{order:?}"
        );
    }
    // What is live stays when everything is over and collected once more.
    world.repository.collect(&now()).await.unwrap();
    assert_eq!(
        world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken,
        vec![],
        "{order:?}, collected again"
    );
    counts
}

/// Saves, and again when a collection took what it needed.
async fn finish(job: &Job, world: &World, hook: Arc<Gate>) -> ImageRef {
    for _ in 0..5 {
        match job.run(world, hook.clone()).await {
            Ok(reference) => return reference,
            Err(Error::BlobsMissing { .. } | Error::Missing { .. } | Error::Damaged { .. }) => {}
            Err(error) => panic!("a save failed: {error}"),
        }
    }
    panic!("a save didn't come to an end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_and_a_collection_harm_no_image_wherever_one_of_them_pauses() {
    use Actor::{Base, Collector, Layer};
    // Six orders, each with another remainder: all calls are tried between them. `OCOPEA_SOAK=1` tries all with each.
    let soak = std::env::var_os("OCOPEA_SOAK").is_some();
    let mut begin = 0;
    for first in [Layer, Base, Collector] {
        let others = [Layer, Base, Collector].into_iter().filter(|actor| *actor != first).collect::<Vec<_>>();
        for order in [[others[0], others[1]], [others[1], others[0]]] {
            // The first pauses at one call; the others run through while it stands.
            for at in (begin..110).step_by(if soak { 1 } else { 6 }) {
                play(World::new().await, [(first, at), (order[0], usize::MAX), (order[1], usize::MAX)]).await;
            }
            begin += usize::from(!soak);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_and_a_collection_harm_no_image_when_several_pause() {
    use Actor::{Base, Collector, Layer};
    let orders =
        [[Layer, Collector, Base], [Collector, Layer, Base], [Base, Collector, Layer], [Collector, Base, Layer]];
    let numbers = noise(90, 11);
    for (round, at) in numbers.chunks_exact(3).enumerate() {
        let order = orders[round % orders.len()];
        let at = |n: usize| usize::from(at[n]) % 110;
        play(World::new().await, [(order[0], at(0)), (order[1], at(1)), (order[2], at(2))]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_and_a_collection_harm_no_image_in_a_bucket() {
    use Actor::{Base, Collector, Layer};
    let orders =
        [[Layer, Collector, Base], [Collector, Layer, Base], [Base, Collector, Layer], [Collector, Base, Layer]];
    for (round, at) in noise(24, 13).chunks_exact(3).enumerate() {
        let order = orders[round % orders.len()];
        let at = |n: usize| usize::from(at[n]) % 110;
        let world = World::in_a_bucket().await;
        play(world, [(order[0], at(0)), (order[1], at(1)), (order[2], at(2))]).await;
    }
}
