//! Everything that goes wrong between a repository and its bucket: it passes and is retried, or it is told clearly and
//! in time. Nothing partial is ever visible.

mod common;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    proxy::{Answered, Asked, Do, Proxy},
    s3::{HASTY, Keeps, Server},
    *,
};
use ocopea_protocol::image::Location;
use ocopea_repository::{
    CommitRequest, Error, ImageRef, ImageSession, Keyring, Repository, Scope, StoreAccess, Trouble,
    backend::{self, s3::Patience},
};

/// Faults are waited out quickly here.
const SHORT: Patience = Patience {
    connect: Duration::from_millis(500),
    answer: Duration::from_millis(1500),
    stall: Duration::from_millis(800),
    slowest: 1 << 20,
    tries: 4,
    whole: Duration::from_secs(20),
    ..HASTY
};
/// No operation of these tests may take longer, whatever happens to it.
const BOUND: Duration = Duration::from_secs(60);

fn impatient(server: &Server) -> StoreAccess {
    let mut access = server.access();
    access.patience = SHORT;
    access
}

/// A repository behind a proxy that can do harm, and the same without it.
struct Scene {
    proxy: Proxy,
    world: World,
    direct: Repository,
}

impl Scene {
    async fn new() -> Self {
        let server = Server::of_process();
        let proxy = Proxy::start(&server.endpoint()).await;
        let bucket = server.bucket(Keeps::Objects);
        let root = server.files(&bucket).join("repo");
        let location = s3::location(&proxy.endpoint, &bucket);
        let world = World::at(tempfile::tempdir().unwrap(), root, location, impatient(server)).await;
        let location = server.location(&bucket);
        let direct = Repository::open(&location, &server.access(), &world.keyring, &world.seams).await.unwrap();
        Self { proxy, world, direct }
    }

    async fn save(&self, content: &[u8]) -> Result<ImageRef, Error> {
        let world = &self.world;
        let key = world.repository.new_image_key(world.team).await?;
        let access = world.repository.access_to_write(&key, None).await?;
        let session = ImageSession::open(&access, &world.stores, &world.seams).await?;
        let data = put_data(&session, "messages", &[(b"a", content.to_vec())]).await?;
        let mut record = empty_record(world, "one");
        record.components.push(data_component("messages", &data));
        world.repository.commit(&CommitRequest { record, key }).await
    }

    async fn in_time<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let done = self.world.seams.timeout(BOUND, Box::pin(work)).await;
        done.unwrap_or_else(|| panic!("{what}: it took longer than {BOUND:?}"))
    }

    /// Saves and reads under a fault that passes.
    async fn survives(&self, what: &str) {
        let content = noise(3_000_000, 1);
        let saved = self.in_time(what, Box::pin(self.save(&content))).await;
        let image = saved.unwrap_or_else(|error| panic!("{what}: {error}"));
        let all = self.in_time(what, Box::pin(read_all(&self.world.repository, &self.world.seams, &image))).await;
        let all = all.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(all["messages/61"] == content, "{what}");
        let harmed = self.proxy.heal();
        assert!(harmed > 2, "{what}: only {harmed} requests were harmed");
        assert_eq!(self.direct.images().await.unwrap(), std::slice::from_ref(&image), "{what}");
        assert_eq!(self.direct.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![], "{what}");
        self.world.repository.delete_image(image.image).await.unwrap();
    }

    /// Fails to save under a fault that stays; answers for the error.
    async fn fails(&self, what: &str) -> Error {
        let failed = self.in_time(what, self.save(&noise(3_000_000, 2))).await;
        let error = failed.err().unwrap_or_else(|| panic!("{what}: it was saved"));
        self.proxy.heal();
        assert_eq!(self.direct.images().await.unwrap(), vec![], "{what}: nothing is visible");
        assert_eq!(self.direct.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![], "{what}");
        error
    }
}

/// Harms each request once, whatever it is; its next try passes.
fn each_once(wanted: impl Fn(&Asked) -> bool + Send + Sync, todo: Do) -> impl Fn(&Asked) -> Do + Send + Sync {
    let seen = Mutex::new(HashSet::new());
    move |asked| {
        let range = asked.headers.get("range").cloned().unwrap_or_default();
        let first = seen.lock().unwrap().insert((asked.method.clone(), asked.path.clone(), range));
        if first && wanted(asked) { todo.clone() } else { Do::Pass }
    }
}

fn is_told(error: &Error, wanted: Trouble, what: &str) -> u32 {
    let Error::Remote { place, trouble, tries, .. } = error else { panic!("{what}: {error}") };
    assert_eq!(*trouble, wanted, "{what}: {error}");
    assert!(place.contains("bucket copies-") && place.contains("http"), "{what}: {error}");
    assert!(!error.advice().is_empty(), "{what}: {error}");
    *tries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_to_each_request_once_a_save_and_its_reading_succeed() {
    let reads = |asked: &Asked| asked.method == "GET" && !asked.path.contains("list-type");
    let scene = Scene::new().await;
    scene.proxy.rule(each_once(|_| true, Do::Refuse(500, "InternalError")));
    scene.survives("500").await;
    scene.proxy.rule(each_once(|_| true, Do::Refuse(503, "SlowDown")));
    scene.survives("slow down").await;
    scene.proxy.rule(each_once(|_| true, Do::Reset));
    scene.survives("reset").await;
    // Done, but nobody is told: a create must not take its own object for another's.
    scene.proxy.rule(each_once(|_| true, Do::Lose));
    scene.survives("lost answers").await;
    scene.proxy.rule(each_once(|asked| asked.number.is_multiple_of(9), Do::Stall));
    scene.survives("stall").await;
    scene.proxy.rule(each_once(reads, Do::Cut(7)));
    scene.survives("cut").await;
    scene.proxy.rule(each_once(move |asked| reads(asked) && asked.number.is_multiple_of(4), Do::Hang(7)));
    scene.survives("stalled body").await;
    let slow = Do::Drip(Duration::from_millis(300));
    scene.proxy.rule(each_once(move |asked| reads(asked) && asked.number.is_multiple_of(4), slow));
    scene.survives("slow drip").await;
    // Shorter than asked for, and honest about its length.
    scene.proxy.rule(each_once(
        |asked| asked.headers.contains_key("range"),
        Do::Change(|answered: &mut Answered| answered.body.truncate(answered.body.len() / 2)),
    ));
    scene.survives("short parts").await;
    scene.proxy.rule(|_| {
        Do::Change(|answered| {
            answered.head = proxy::replaced(&answered.head, "etag", "etag: \"0123456789abcdef0123456789abcdef\"");
        })
    });
    scene.survives("wrong tags").await;
}

/// Whether they were done is found out within the same turn: with many at once, none waits for another one's.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_uploads_whose_ends_are_answered_to_nobody_all_come_to_their_ends() {
    let server = Server::of_process();
    let proxy = Proxy::start(&server.endpoint()).await;
    let bucket = server.bucket(Keeps::Objects);
    let location = s3::location(&proxy.endpoint, &bucket);
    let backend = backend::open(&location, &server.access(), &seams(), false).await.unwrap();
    let content = bytes::Bytes::from(noise(9 << 20, 5));
    let mut uploads = Vec::new();
    // The first ones take all memory that is there for objects in one piece; the others go in parts.
    for number in 0..72 {
        let name = format!("blobs/{number}");
        let mut upload = backend.upload(Some(&name)).await.unwrap();
        upload.write(vec![content.clone()]).await.unwrap();
        uploads.push((name, upload));
    }
    // As a service does that forgets an upload with its end.
    let seen = Mutex::new(HashSet::new());
    proxy.rule(move |asked| match asked.is("POST", "uploadId") {
        true if seen.lock().unwrap().insert(asked.path.clone()) => Do::Lose,
        true => Do::Refuse(404, "NoSuchUpload"),
        false => Do::Pass,
    });
    let finished = futures::future::join_all(uploads.into_iter().map(|(name, upload)| async move {
        upload.finish(&name).await.unwrap();
    }));
    seams().timeout(BOUND, finished).await.expect("all come to their ends");
    assert!(proxy.heal() > 40, "most went in parts");
    let there = backend.list("blobs/").await.unwrap();
    assert_eq!(there.iter().filter(|entry| entry.size == content.len() as u64).count(), 72);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_part_that_is_answered_with_the_whole_or_with_another_part_is_never_taken_for_it() {
    let scene = Scene::new().await;
    let harms: [fn(&mut Answered); 3] = [
        |answered| answered.head = answered.head.replacen("HTTP/1.1 206", "HTTP/1.1 200", 1),
        |answered| answered.head = proxy::replaced(&answered.head, "content-range", "content-range: bytes 1-9/10"),
        |answered| answered.head = proxy::replaced(&answered.head, "content-range", ""),
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        scene.proxy.rule(move |asked| if asked.headers.contains_key("range") { Do::Change(harm) } else { Do::Pass });
        let what = format!("harm {number}");
        let error = scene.fails(&what).await;
        assert_eq!(is_told(&error, Trouble::Answer, &what), SHORT.tries, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_stays_wrong_is_told_in_time_and_nothing_is_visible() {
    let scene = Scene::new().await;
    let writes = |asked: &Asked| asked.method == "PUT" && asked.path.contains("/blobs/");
    let faults: [(&str, Do, Trouble, u32); 8] = [
        ("always 500", Do::Refuse(500, "InternalError"), Trouble::Busy, SHORT.tries),
        ("always slow down", Do::Refuse(503, "SlowDown"), Trouble::Busy, SHORT.tries),
        ("always reset", Do::Reset, Trouble::Unreachable, SHORT.tries),
        ("never an answer", Do::Stall, Trouble::Unreachable, SHORT.tries),
        ("lost answers", Do::Lose, Trouble::Unreachable, SHORT.tries),
        ("no rights", Do::Refuse(403, "AccessDenied"), Trouble::Rights, 1),
        ("ended keys", Do::Refuse(400, "ExpiredToken"), Trouble::Expired, 1),
        ("no such bucket", Do::Refuse(404, "NoSuchBucket"), Trouble::NoBucket, 1),
    ];
    for (what, todo, trouble, tries) in faults {
        scene.proxy.rule(move |asked| if writes(asked) { todo.clone() } else { Do::Pass });
        let error = scene.fails(what).await;
        assert_eq!(is_told(&error, trouble, what), tries, "{what}: {error}");
    }
    // A store that is full says so in its own way.
    scene.proxy.rule(move |asked| if writes(asked) { Do::Refuse(507, "InsufficientStorage") } else { Do::Pass });
    assert!(matches!(scene.fails("full").await, Error::Full { .. }));
    // And when all is well again, all is well.
    scene.save(b"fine").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bucket_that_vanishes_is_told_as_such() {
    let scene = Scene::new().await;
    let bucket = scene.world.root.parent().unwrap().to_owned();
    std::fs::rename(&bucket, bucket.with_extension("gone")).unwrap();
    let error = scene.in_time("vanished", scene.save(&noise(100_000, 1))).await.unwrap_err();
    is_told(&error, Trouble::NoBucket, "vanished");
    let error = scene.world.repository.images().await.unwrap_err();
    is_told(&error, Trouble::NoBucket, "vanished");
    std::fs::rename(bucket.with_extension("gone"), &bucket).unwrap();
    assert_eq!(scene.world.repository.images().await.unwrap(), vec![]);
}

async fn refused(location: &Location, access: &StoreAccess) -> Error {
    let keyring = Keyring::generate(&seams());
    let opened = seams().timeout(BOUND, Repository::create(location, access, &keyring, &seams())).await;
    opened.expect("it ends in time").err().expect("it is refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_rights_regions_and_addresses_are_told_when_a_store_is_opened() {
    let server = Server::of_process();
    let location = server.location(&server.bucket(Keeps::Objects));
    let with = |keys| {
        let mut access = s3::access(keys);
        access.patience = SHORT;
        access
    };
    let error = refused(&location, &with(s3::keys("root", "not the secret"))).await;
    is_told(&error, Trouble::Keys, "spaces in a secret");
    let error = refused(&location, &with(s3::keys("root", "not-the-secret"))).await;
    is_told(&error, Trouble::Keys, "wrong secret");
    let error = refused(&location, &with(s3::keys("nobody", "secret"))).await;
    is_told(&error, Trouble::Keys, "unknown key");
    let stranger = server.user("stranger", "strangersecret");
    let error = refused(&location, &with(stranger)).await;
    is_told(&error, Trouble::Rights, "no rights");
    let Location::S3 { endpoint, bucket, prefix, path_style, .. } = location.clone() else { panic!() };
    let elsewhere = Location::S3 {
        region: "eu-west-9".to_owned(),
        endpoint: endpoint.clone(),
        bucket: bucket.clone(),
        prefix: prefix.clone(),
        path_style,
    };
    let error = refused(&elsewhere, &impatient(server)).await;
    is_told(&error, Trouble::Region, "wrong region");
    let error = refused(&s3::location(&endpoint, "copies-of-nobody"), &impatient(server)).await;
    is_told(&error, Trouble::NoBucket, "no such bucket");
    let error = refused(&s3::location("http://127.0.0.1:1", "copies-0"), &impatient(server)).await;
    is_told(&error, Trouble::Unreachable, "nobody listens");
    let text = error.to_string();
    assert!(text.contains("bucket copies-0 at http://127.0.0.1:1") && text.contains("tried 4 times"), "{text}");
    // Something that is no S3 service at all.
    let proxy = Proxy::start(&endpoint).await;
    proxy.rule(|_| Do::Refuse(200, "Welcome"));
    let error = refused(&s3::location(&proxy.endpoint, &bucket), &impatient(server)).await;
    is_told(&error, Trouble::Answer, "a web server");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_with_the_right_certificate_is_spoken_to() {
    let server = Server::start(&["tls"]);
    let bucket = server.bucket(Keeps::Objects);
    let location = server.location(&bucket);
    let error = refused(&location, &impatient(&server)).await;
    is_told(&error, Trouble::Certificate, "an unknown authority");
    let mut access = impatient(&server);
    access.roots = Server::start(&["tls"]).ca();
    let error = refused(&location, &access).await;
    is_told(&error, Trouble::Certificate, "another authority");
    access.roots = server.ca();
    let other = server.endpoint().replace("127.0.0.1", "127.0.0.2");
    let error = refused(&s3::location(&other, &bucket), &access).await;
    // That address is another host's name, or nobody's.
    assert!(matches!(error, Error::Remote { trouble: Trouble::Certificate | Trouble::Unreachable, .. }), "{error}");
    let mut access = server.access();
    access.roots = server.ca();
    let backend = backend::open(&location, &access, &seams(), false).await.unwrap();
    backend::conformance::check(&*backend).await;
}

fn without_contents(answered: &mut Answered) {
    let mut text = String::from_utf8(answered.body.clone()).unwrap();
    while let (Some(from), Some(to)) = (text.find("<Contents>"), text.find("</Contents>")) {
        text.replace_range(from..to + "</Contents>".len(), "");
    }
    answered.body = text.into_bytes();
}

fn ended(answered: &mut Answered) {
    let text = String::from_utf8(answered.body.clone()).unwrap();
    let text = text.replace("<IsTruncated>true<", "<IsTruncated>false<");
    let (from, to) = (text.find("<NextContinuationToken>"), text.find("</NextContinuationToken>"));
    let text = match from.zip(to) {
        Some((from, to)) => text[..from].to_owned() + &text[to + "</NextContinuationToken>".len()..],
        None => text,
    };
    answered.body = text.into_bytes();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_with_a_page_missing_is_found_out_and_nothing_is_collected_by_it() {
    let scene = Scene::new().await;
    let saved = scene.save(&noise(1_000_000, 1)).await.unwrap();
    for number in 0..2500u32 {
        std::fs::write(scene.world.path(&format!("blobs/sha256/{number:064x}")), number.to_le_bytes()).unwrap();
    }
    // Older than any doubt about clocks.
    scene.world.seams.clock.sleep(Duration::from_secs(7)).await;
    let whole = scene.world.backend().await.list("blobs/").await.unwrap();
    assert!(whole.len() > 2500 && whole.is_sorted_by(|a, b| a.name < b.name));
    let listed = |asked: &Asked| asked.path.contains("list-type=2") && asked.path.contains("blobs");
    let tokens = move |asked: &Asked| listed(asked) && asked.path.contains("continuation-token");
    let harms: [(&str, Box<dyn Fn(&Asked) -> Do + Send + Sync>); 4] = [
        ("an empty page", Box::new(each_once(tokens, Do::Change(without_contents)))),
        ("an end too early", Box::new(move |asked| if listed(asked) { Do::Change(ended) } else { Do::Pass })),
        (
            "an empty page by names",
            Box::new(each_once(
                move |asked| listed(asked) && asked.path.contains("start-after"),
                Do::Change(without_contents),
            )),
        ),
        (
            "the same page again and again",
            Box::new({
                let first = Arc::new(Mutex::new(None::<String>));
                move |asked| {
                    let mut first = first.lock().unwrap();
                    let _ = first.get_or_insert_with(|| asked.path.clone());
                    if tokens(asked) { Do::Change(same_token) } else { Do::Pass }
                }
            }),
        ),
    ];
    for (what, harm) in harms {
        scene.proxy.rule(harm);
        let error = scene
            .world
            .backend()
            .await
            .list("blobs/")
            .await
            .err()
            .unwrap_or_else(|| panic!("{what}: it is taken for whole"));
        is_told(&error, Trouble::Listing, what);
        assert!(scene.proxy.heal() > 0, "{what}");
    }
    // A collection that can't have the whole list decides nothing.
    let before = scene.world.objects();
    scene.proxy.rule(move |asked| if listed(asked) { Do::Change(ended) } else { Do::Pass });
    let error = scene.world.repository.collect(&now()).await.unwrap_err();
    is_told(&error, Trouble::Listing, "collection");
    scene.proxy.heal();
    let blobs = |all: &std::collections::BTreeMap<String, Vec<u8>>| {
        all.keys().filter(|name| name.starts_with("blobs/")).count()
    };
    assert_eq!(blobs(&scene.world.objects()), blobs(&before));
    let report = scene.world.repository.collect(&now()).await.unwrap();
    assert_eq!(report.deleted, 2500, "{report:?}");
    assert_eq!(scene.direct.images().await.unwrap(), [saved]);
}

fn same_token(answered: &mut Answered) {
    let text = String::from_utf8(answered.body.clone()).unwrap();
    let mut text = text.replace("<IsTruncated>false<", "<IsTruncated>true<");
    let end = text.rfind("</ListBucketResult>").unwrap();
    if !text.contains("<NextContinuationToken>") {
        text.insert_str(end, "<NextContinuationToken>again</NextContinuationToken>");
    }
    answered.body = text.into_bytes();
    without_contents(answered);
}
