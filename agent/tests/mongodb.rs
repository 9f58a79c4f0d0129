//! The MongoDB driver with a real server of its wire protocol: whole saves and loads of whatever a server may hold,
//! changes while a copy runs, and servers that hang, lie mute or die.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers stop at the first surprise too")]

#[path = "support/image.rs"]
mod image;
#[path = "support/mongod.rs"]
mod mongod;
#[path = "support/subject.rs"]
#[expect(dead_code, reason = "this server knows no logins")]
mod subject;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use image::TestRepository;
use mongod::{Fault, Mongod, Mute, Proxy, bytes, insert, picture};
use mongodb::bson::{Binary, Bson, DateTime, Document, Regex, Timestamp, doc, oid::ObjectId, spec::BinarySubtype};
use ocopea_agent::data::{DataService, Subject, mongodb::MongoDb};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    image::ConsistencyLevel,
};
use subject::{copy, differences, hurried, load, open, save, subject, text};

fn messages(count: i32) -> Vec<Vec<u8>> {
    (0..count).map(|n| bytes(&doc! {"_id": n, "text": format!("message {n}"), "room": n % 7})).collect()
}

fn every_type(id: impl Into<Bson>) -> Document {
    doc! {
        "_id": id, "double": 1.5, "nan": f64::NAN, "text": "z\u{fc}rich \u{1f600}", "nul": "a\0b", "empty": "",
        "document": {"a.b": 1, "": {"deep": [1, [2, [3]]]}}, "array": [1, "two", Bson::Null], "undefined": Bson::Undefined,
        "binary": Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![0, 1, 255] }),
        "uuid": Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![7; 16] }),
        "oid": ObjectId::from_bytes([9; 12]), "yes": true, "date": DateTime::from_millis(-1), "null": Bson::Null,
        "regex": Bson::RegularExpression(Regex { pattern: "^a/b".try_into().unwrap(), options: "i".try_into().unwrap() }),
        "int": i32::MIN, "stamp": Timestamp { time: 5, increment: 6 }, "long": i64::MAX,
        "decimal": "1.10".parse::<mongodb::bson::Decimal128>().unwrap(), "min": Bson::MinKey, "max": Bson::MaxKey,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_server_comes_back_as_it_was() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let (source, target) = (Mongod::start(), Mongod::start());
    let from = source.client();
    insert(&from, "shop", "messages", &messages(5000)).await;
    // This server takes no longer name.
    let long = "x".repeat(120);
    for (database, name) in
        [("shop", "with space"), ("shop", "a.b.c"), ("shop", "\u{2603} snow"), ("other", &long), ("UPPER", "Case")]
    {
        insert(&from, database, name, &[bytes(&every_type(1)), bytes(&every_type("1"))]).await;
    }
    let ids = [
        Bson::Int64(1 << 40),
        Bson::Double(2.5),
        Bson::String(String::new()),
        Bson::ObjectId(ObjectId::from_bytes([1; 12])),
        Bson::Boolean(true),
        Bson::DateTime(DateTime::from_millis(3)),
        Bson::Document(doc! {"a": 1, "b": {"c": 2}}),
        Bson::Binary(Binary { subtype: BinarySubtype::Uuid, bytes: vec![3; 16] }),
    ];
    let of_ids: Vec<Vec<u8>> = ids.into_iter().map(|id| bytes(&doc! {"_id": id, "x": 1})).collect();
    insert(&from, "shop", "ids", &of_ids).await;
    insert(&from, "shop", "big", &[bytes(&doc! {"_id": 1, "x": "y".repeat(15 << 20)}), bytes(&doc! {"_id": 2})]).await;
    from.database("shop").create_collection("empty").await.unwrap();
    let indexes = doc! {"createIndexes": "messages", "indexes": [
        {"key": {"room": 1, "text": -1}, "name": "both"}, {"key": {"text": 1}, "name": "only", "unique": true},
        {"key": {"sparse": 1}, "name": "sparse", "sparse": true, "unique": true},
    ]};
    from.database("shop").run_command(indexes).await.unwrap();
    let subject_of = |server: &Mongod| subject(server.address());
    let saved = save(&subject_of(&source), &image).await.unwrap();
    assert!(saved.copied.notices.is_empty(), "{:?}", saved.copied.notices);
    assert_eq!(saved.copied.consistency.level, ConsistencyLevel::Inconsistent);
    assert!(saved.copied.consistency.why.contains("no snapshot") && saved.copied.consistency.changed.is_empty());
    // What the target's own start made is gone afterwards.
    insert(&target.client(), "shop", "messages", &messages(3)).await;
    insert(&target.client(), "left over", "x", &messages(3)).await;
    let loaded = load(&subject_of(&target), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
    let (was, is) = (picture(&from).await, picture(&target.client()).await);
    assert_eq!(was.keys().collect::<Vec<_>>(), is.keys().collect::<Vec<_>>());
    for (name, documents) in &was {
        assert!(documents == &is[name], "{name}");
    }
    // Saved again at once, it is the same.
    let again = save(&subject_of(&target), &repository.image().await).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &again.copied.streams), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_while_it_is_read_is_named() {
    let repository = TestRepository::new().await;
    let source = Mongod::start();
    let from = source.client();
    insert(&from, "shop", "grows", &messages(3000)).await;
    insert(&from, "shop", "still", &messages(3000)).await;
    insert(&from, "shop", "goes", &messages(10)).await;
    let subject = subject(source.address());
    let filler = "x".repeat(4000);
    let big: Vec<Vec<u8>> = (0..8000).map(|n| bytes(&doc! {"_id": n, "x": &filler})).collect();
    insert(&from, "shop", "big", &big).await;
    let begun = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&begun);
    let subject = Subject { progress: Arc::new(move |_| flag.store(true, SeqCst)), ..subject };
    let held = open(&subject, false).await.unwrap();
    let image = repository.image().await;
    let (copied, ()) = tokio::join!(copy(&subject, held.as_ref(), &image), async {
        // The list of collections was read; what follows happens while documents are.
        while !begun.load(SeqCst) {
            subject.seams.clock.sleep(Duration::from_millis(1)).await;
        }
        insert(&from, "shop", "grows", &[bytes(&doc! {"_id": 9000})]).await;
        insert(&from, "shop", "comes", &messages(1)).await;
        from.database("shop").collection::<Document>("goes").drop().await.unwrap();
    });
    // A collection that vanishes under a cursor may end the copy, to be tried again; else everything is named.
    match copied {
        Err(failure) => assert!(failure.is_retryable(), "{}", text(&failure)),
        Ok(saved) => {
            let consistency = saved.copied.consistency;
            assert_eq!(consistency.level, ConsistencyLevel::Inconsistent);
            assert!(!consistency.changed.iter().any(|one| one.contains("still")), "{:?}", consistency.changed);
            for name in ["shop.grows", "shop.comes (made meanwhile)", "shop.goes (dropped meanwhile)"] {
                assert!(consistency.changed.iter().any(|one| one.contains(name)), "{name}: {:?}", consistency.changed);
            }
        }
    }
}

/// Every limit is reached soon: for a server that does not answer.
fn soon(span: Duration) -> Duration {
    span / 20
}

fn is_lost(failure: &TaskFailure) -> bool {
    failure.class == FailureClass::Retryable && ["data.unreachable", "data.hangs"].contains(&failure.code.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_hangs_or_never_speaks_ends_a_save_in_bounded_time() {
    let repository = TestRepository::new().await;
    let source = Mongod::start();
    insert(&source.client(), "shop", "messages", &messages(20_000)).await;
    let proxy = Proxy::before(source.address()).await;
    let through = hurried(subject(proxy.address), soon);
    for fault in [Fault::Cut, Fault::Stall] {
        proxy.set(Fault::None, 0);
        let held = open(&subject(proxy.address), false).await.unwrap();
        proxy.set(fault, 300_000);
        let failure = copy(&through, held.as_ref(), &repository.image().await).await.err().unwrap();
        assert!(is_lost(&failure), "{fault:?}: {}", text(&failure));
        assert!(failure.what.contains("\"messages\""), "{}", text(&failure));
    }
    let mute = Mute::new().await;
    let failure = MongoDb.inspect(&hurried(subject(mute.address), soon)).await.unwrap_err();
    assert!(is_lost(&failure), "{}", text(&failure));
    source.freeze();
    let failure = MongoDb.inspect(&hurried(subject(source.address()), soon)).await.unwrap_err();
    assert!(is_lost(&failure), "{}", text(&failure));
    // Nobody listens at all.
    let nobody = subject(([127, 0, 0, 1], 1).into());
    assert!(is_lost(&MongoDb.inspect(&hurried(nobody, soon)).await.unwrap_err()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_was_cut_or_killed_is_done_again_from_the_start() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let (source, target) = (Mongod::start(), Mongod::start());
    insert(&source.client(), "shop", "messages", &messages(20_000)).await;
    insert(&source.client(), "shop", "rooms", &messages(10)).await;
    let saved = save(&subject(source.address()), &image).await.unwrap();
    let proxy = Proxy::before(target.address()).await;
    let through = hurried(subject(proxy.address), soon);
    for (fault, after) in [(Fault::Cut, 4000), (Fault::Stall, 4000), (Fault::Cut, 100_000)] {
        proxy.set(fault, after);
        let failure = load(&through, &image, &saved).await.unwrap_err();
        // What the attempt before it still did may be in its way, too.
        assert!(failure.is_retryable(), "{fault:?}: {}", text(&failure));
    }
    proxy.set(Fault::None, 0);
    let mut loaded = load(&subject(proxy.address), &image, &saved).await;
    if loaded.as_ref().is_err_and(TaskFailure::is_retryable) {
        loaded = load(&subject(proxy.address), &image, &saved).await;
    }
    assert_eq!(differences(&saved.copied.streams, &loaded.unwrap().streams), Vec::<String>::new());
    assert!(picture(&source.client()).await == picture(&target.client()).await);
    let mut dead = target;
    dead.kill();
    let failure = load(&hurried(subject(dead.address()), soon), &image, &saved).await.unwrap_err();
    assert!(is_lost(&failure), "{}", text(&failure));
}

/// A subject that is stopped after so many bytes of progress.
fn stopped_after(subject: &Subject, bytes: u64) -> Subject {
    let stop = subject.stop.child_token();
    let token = stop.clone();
    let progress = Arc::new(move |progress: ocopea_protocol::task::Progress| {
        if progress.bytes >= bytes {
            token.cancel();
        }
    });
    Subject { stop, progress, ..subject.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_touches_nothing_more() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let (source, target) = (Mongod::start(), Mongod::start());
    insert(&source.client(), "shop", "messages", &messages(60_000)).await;
    let whole = subject(source.address());
    let saved = save(&whole, &image).await.unwrap();
    let held = open(&whole, false).await.unwrap();
    let stopped = stopped_after(&whole, 100_000);
    let failure = copy(&stopped, held.as_ref(), &repository.image().await).await.err().unwrap();
    assert_eq!(failure.code, "cancelled", "{}", text(&failure));
    let stopped = stopped_after(&subject(target.address()), 100_000);
    let failure = load(&stopped, &image, &saved).await.unwrap_err();
    assert_eq!(failure.code, "cancelled", "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_deleted_and_inserted_again_meanwhile_are_in_the_image_once() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let (source, target) = (Mongod::start(), Mongod::start());
    let from = source.client();
    let filler = "x".repeat(2000);
    let documents: Vec<Vec<u8>> = (0..8000).map(|n| bytes(&doc! {"_id": n, "x": &filler})).collect();
    insert(&from, "shop", "sessions", &documents).await;
    let done = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let (ended, churned) = (Arc::clone(&done), Arc::clone(&count));
    let churn = async {
        let sessions = from.database("shop").collection::<Document>("sessions");
        let mut n = 0;
        while !ended.load(SeqCst) {
            sessions.delete_one(doc! {"_id": n % 100}).await.unwrap();
            sessions.insert_one(doc! {"_id": n % 100, "again": true}).await.unwrap();
            churned.fetch_add(1, SeqCst);
            n += 1;
        }
    };
    let saving = async {
        let saved = save(&subject(source.address()), &image).await;
        done.store(true, SeqCst);
        saved.unwrap()
    };
    let (saved, ()) = tokio::join!(saving, churn);
    assert!(count.load(SeqCst) > 0);
    let loaded = load(&subject(target.address()), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
}
