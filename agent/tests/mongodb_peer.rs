//! The MongoDB driver against a peer that plays MongoDB's documented answers: what a replica set's snapshot, users,
//! rights, held writes and refusals look like on the wire, and that documents pass through it byte for byte.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers stop at the first surprise too")]

#[path = "support/image.rs"]
mod image;
#[path = "support/mongo_peer.rs"]
mod mongo_peer;
#[path = "support/subject.rs"]
mod subject;

use std::{sync::Arc, time::Duration};

use image::TestRepository;
use mongo_peer::{NOW, Peer, Script, State, Stored, bytes, error};
use mongodb::bson::{Bson, Document, RawDocumentBuf, Timestamp, doc};
use ocopea_agent::data::{DataService, LoginOf, mongodb::MongoDb};
use ocopea_protocol::{failure::FailureClass, image::ConsistencyLevel};
use subject::{copy, differences, hurried, load, login, open, save, subject, subject_with, text};

fn stored(documents: impl IntoIterator<Item = Document>) -> Stored {
    Stored { documents: documents.into_iter().map(|one| bytes(&one)).collect(), uuid: 1, ..Stored::default() }
}

fn numbers(count: i32) -> Stored {
    stored((0..count).map(|n| doc! {"_id": n, "text": format!("message {n}")}))
}

fn scripted(answer: impl Fn(&mut State, &str, &Document) -> Option<Document> + Send + Sync + 'static) -> Script {
    Arc::new(answer)
}

fn is(command: &Document, name: &str) -> bool {
    command.keys().next().is_some_and(|first| first == name)
}

/// A document with every kind of value that BSON has, deprecated ones too, and what decoders lose.
fn nasty(id: i32) -> Vec<u8> {
    let decoded = bytes(&doc! {
        "_id": id, "": "empty key", "a.b": 1, "$c": {"$d.e": [1, {"": 2}]}, "undefined": Bson::Undefined, "min": Bson::MinKey, "max": Bson::MaxKey,
        "symbol": Bson::Symbol("sy".into()), "code": Bson::JavaScriptCode("x".into()), "decimal": "1.10".parse::<mongodb::bson::Decimal128>().unwrap(),
        "scope": Bson::JavaScriptCodeWithScope(mongodb::bson::JavaScriptCodeWithScope { code: "y".into(), scope: doc! {"z": 1} }),
        "old binary": Bson::Binary(mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::UserDefined(0x99), bytes: vec![1, 2] }),
        "ts": Timestamp { time: 0, increment: 0 }, "inner": {"ts": Timestamp { time: 0, increment: 0 }},
    });
    let mut raw = decoded[4..decoded.len() - 1].to_vec();
    raw.extend_from_slice(b"\x0cpointer\0\x02\0\0\0x\0AAAAAAAAAAAA");
    raw.extend_from_slice(b"\x10twice\0\x01\0\0\0\x10twice\0\x02\0\0\0");
    raw.extend_from_slice(b"\x01nan\0\x01\x02\0\0\0\0\xf8\x7f");
    raw.extend_from_slice(b"\x05two\0\x07\0\0\0\x02\x03\0\0\0abc");
    // Text and a name that are no UTF-8.
    raw.extend_from_slice(b"\x02latin\xfc\0\x04\0\0\0z\xfcr\0");
    let mut out = i32::try_from(raw.len() + 5).unwrap().to_le_bytes().to_vec();
    out.extend_from_slice(&raw);
    out.push(0);
    out
}

fn deep(levels: usize) -> Document {
    (0..levels).fold(doc! {"x": 1}, |inner, _| doc! {"d": inner})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_document_comes_back_byte_for_byte() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let mut odd = Stored { uuid: 3, ..Stored::default() };
    odd.documents = vec![nasty(1), bytes(&doc! {"_id": 2, "deep": deep(99)}), bytes(&doc! {"_id": 3})];
    odd.documents.push(bytes(&doc! {"_id": 4, "big": "x".repeat(16 * 1024 * 1024 - 40)}));
    odd.documents.extend((5..3000).map(nasty));
    let ids = stored([
        doc! {"_id": Bson::Null},
        doc! {"_id": {"a": [1]}},
        doc! {"_id": 1.5},
        doc! {"_id": "s"},
        doc! {"_id": Bson::MinKey},
    ]);
    let mut empty = stored([]);
    empty.options = doc! {"validator": {"$expr": {"$gt": ["$a", 1]}}, "validationLevel": "moderate", "collation": {"locale": "de", "strength": 2}};
    empty.indexes = vec![
        doc! {"v": 2, "key": {"a": 1, "b": -1}, "name": "both", "unique": true, "partialFilterExpression": {"a": {"$gt": 0i64}}},
        doc! {"v": 2, "key": {"_fts": "text", "_ftsx": 1}, "name": "words", "weights": {"t": 3}, "default_language": "none", "textIndexVersion": 3},
        doc! {"v": 2, "key": {"at": 1}, "name": "expiry", "expireAfterSeconds": 3600, "collation": {"locale": "fr"}},
    ];
    let view = Stored {
        kind: Some("view"),
        options: doc! {"viewOn": "empty", "pipeline": [{"$match": {"a": 1}}]},
        ..Stored::default()
    };
    let above = Stored { kind: Some("view"), options: doc! {"viewOn": "seen", "pipeline": []}, ..Stored::default() };
    let state = State::replica_set()
        .with("odd names", "a.b \u{2603}", odd)
        .with("shop", "ids", ids)
        .with("shop", "empty", empty.clone())
        .with("shop", "seen", view)
        .with("shop", "above", above)
        .with("shop", "system.views", stored([doc! {"_id": "shop.seen"}]))
        .with("shop", "system.js", stored([doc! {"_id": "f", "value": Bson::JavaScriptCode("function() {}".into())}]))
        .with("admin", "misplaced", numbers(3));
    let source = Peer::plain(state).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let names: Vec<&str> = saved.copied.streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["admin.misplaced", "odd names.a.b \u{2603}", "shop.empty", "shop.ids", "shop.system.js"]);
    assert_eq!(saved.copied.features, ["collation", "text index", "ttl index", "validator", "view"]);
    let target =
        Peer::plain(State::default().with("test", "left by init", numbers(5)).with("admin", "init", numbers(1))).await;
    let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
    assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
    let (before, after) = (source.state.lock().unwrap(), target.state.lock().unwrap());
    for ((database, name), was) in &before.collections {
        if name == "system.views" {
            continue;
        }
        let is = &after.collections[&(database.clone(), name.clone())];
        let (mut a, mut b) = (was.documents.clone(), is.documents.clone());
        a.sort();
        b.sort();
        assert!(a == b, "{database}.{name}");
        assert_eq!((was.kind, &was.options), (is.kind, &is.options), "{database}.{name}");
    }
    assert_eq!(after.collections.len(), before.collections.len() - 1, "nothing of what init made is left");
    // An index without a collation in a collection with one has the simple one.
    let mut wanted = empty.indexes.clone();
    wanted[0].insert("collation", doc! {"locale": "simple"});
    wanted[1].insert("collation", doc! {"locale": "simple"});
    let is = &after.collections[&("shop".to_owned(), "empty".to_owned())];
    let by_name = |mut indexes: Vec<Document>| {
        indexes.sort_by_key(|index| index.get_str("name").unwrap().to_owned());
        indexes
    };
    assert_eq!(by_name(is.indexes.clone()), by_name(wanted));
    drop((before, after));
    // Rules for writes to come after the documents, and expiry after everything was read back.
    let state = target.state.lock().unwrap();
    let at =
        |found: &dyn Fn(&Document) -> bool| state.commands.iter().rposition(|(_, command)| found(command)).unwrap();
    let last_insert = at(&|c| is_insert(c));
    let last_read = at(&|c| c.contains_key("find") || c.contains_key("getMore"));
    let expiry = at(&|c| {
        c.get_array("indexes")
            .is_ok_and(|list| list.iter().any(|i| i.as_document().unwrap().contains_key("expireAfterSeconds")))
    });
    let rules = at(&|c| c.contains_key("collMod"));
    assert!(last_insert < last_read && last_read < rules && rules < expiry);
    let seen = state.commands.iter().position(|(_, c)| c.get_str("create").ok() == Some("seen")).unwrap();
    assert!(seen < state.commands.iter().position(|(_, c)| c.get_str("create").ok() == Some("above")).unwrap());
}

fn is_insert(command: &Document) -> bool {
    is(command, "insert")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_read_of_a_replica_set_names_one_cluster_time() {
    let repository = TestRepository::new().await;
    let mut capped = numbers(9);
    capped.options = doc! {"capped": true, "size": 4096};
    let mut state = State::replica_set().with("shop", "messages", numbers(900)).with("shop", "log", capped).with(
        "blog",
        "posts",
        numbers(3),
    );
    state.hello.extend(doc! {"secondary": true, "isWritablePrimary": false, "ismaster": false});
    let peer = Peer::plain(state).await;
    let subject = subject(peer.address);
    let inspected = MongoDb.inspect(&subject).await.unwrap();
    assert_eq!(inspected.consistency.level, ConsistencyLevel::Snapshot);
    assert!(inspected.gaps.is_empty() && inspected.bytes.is_some_and(|bytes| bytes > 20_000), "{inspected:?}");
    peer.state.lock().unwrap().commands.clear();
    let saved = save(&subject, &repository.image().await).await.unwrap();
    assert_eq!(saved.copied.consistency.level, ConsistencyLevel::Snapshot);
    assert_eq!(saved.copied.consistency.why, "");
    assert!(saved.copied.notices.iter().any(|notice| notice.contains("shop.log")), "{:?}", saved.copied.notices);
    let of_server = |find: &Document| find.get_str("find").unwrap().starts_with("system.");
    let reads = peer.sent("find").into_iter().filter(|find| !find.contains_key("limit") && !of_server(find));
    let reads: Vec<Document> = reads.collect();
    assert_eq!(reads.len(), 3);
    for find in reads {
        let concern = find.get_document("readConcern").ok().cloned();
        if find.get_str("find").ok() == Some("log") {
            assert_eq!(concern, None, "capped collections have no snapshots");
        } else {
            assert_eq!(concern, Some(doc! {"level": "snapshot", "atClusterTime": NOW}));
        }
        assert!(find.contains_key("$readPreference"), "a secondary answers only who asks it: {find}");
    }
    assert!(!peer.sent("getMore").is_empty() && peer.sent("fsync").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_the_server_forgot_fails_the_copy_and_is_worth_another_try() {
    let repository = TestRepository::new().await;
    let state = State::replica_set().with("shop", "messages", numbers(2000));
    let script = scripted(|state, _, command| {
        let mores = state.commands.iter().filter(|(_, command)| is(command, "getMore")).count();
        (is(command, "getMore") && mores == 3)
            .then(|| error(239, "SnapshotTooOld", "Read timestamp is older than the oldest available timestamp"))
    });
    let peer = Peer::start(state, script).await;
    let failure = save(&subject(peer.address), &repository.image().await).await.err().unwrap();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.snapshot-lost", FailureClass::Retryable),
        "{}",
        text(&failure)
    );
    assert!(failure.next.contains("minSnapshotHistoryWindowInSeconds"));
    // The holder finds it out by itself, too.
    let script = scripted(|_, _, command| {
        let concern = command.get_document("readConcern").ok()?;
        concern.contains_key("atClusterTime").then(|| error(246, "SnapshotUnavailable", "gone"))
    });
    let peer = Peer::start(State::replica_set().with("shop", "messages", numbers(20)), script).await;
    let mut held = open(&subject(peer.address), false).await.unwrap();
    assert_eq!(held.check().await.unwrap_err().code, "data.snapshot-lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_made_while_a_snapshot_is_read_is_no_silent_mixture() {
    let repository = TestRepository::new().await;
    for late in [false, true] {
        let change = |state: &mut State| {
            state.collections.insert(("shop".to_owned(), "new".to_owned()), numbers(1));
            let messages = state.collections.get_mut(&("shop".to_owned(), "messages".to_owned())).unwrap();
            messages.uuid = 9;
        };
        // As soon as documents are read.
        let script = scripted(move |state, _, command| {
            if late && is(command, "find") && command.contains_key("batchSize") {
                change(state);
            }
            None
        });
        let peer = Peer::start(State::replica_set().with("shop", "messages", numbers(10)), script).await;
        let subject = subject(peer.address);
        let held = open(&subject, false).await.unwrap();
        if !late {
            change(&mut peer.state.lock().unwrap());
        }
        let image = repository.image().await;
        let failure = copy(&subject, held.as_ref(), &image).await.err();
        let failure = failure.unwrap();
        assert_eq!(
            (failure.code.as_str(), failure.class),
            ("data.moving", FailureClass::Retryable),
            "{}",
            text(&failure)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_and_time_series_are_refused_by_name_and_a_set_without_snapshots_says_so() {
    let router =
        Peer::plain(State { hello: doc! {"msg": "isdbgrid"}, ..State::default() }.with("shop", "m", numbers(1))).await;
    let failure = MongoDb.prepare(&subject(router.address), false).await.err().unwrap();
    assert!(failure.code == "data.unsupported" && failure.cause.contains("mongos"), "{}", text(&failure));
    assert!(MongoDb.inspect(&subject(router.address)).await.unwrap().gaps.iter().any(|gap| gap.blocking));
    let series =
        Stored { kind: Some("timeseries"), options: doc! {"timeseries": {"timeField": "t"}}, ..Stored::default() };
    let state = State::default().with("shop", "weather", series).with("shop", "system.buckets.weather", numbers(3));
    let peer = Peer::plain(state).await;
    let failure = MongoDb.prepare(&subject(peer.address), false).await.err().unwrap();
    assert!(failure.cause.contains("time-series collection shop.weather"), "{}", text(&failure));
    let script = scripted(|_, _, command| {
        command
            .get_document("readConcern")
            .ok()
            .map(|_| error(72, "InvalidOptions", "snapshot is not supported by this engine"))
    });
    let peer = Peer::start(State::replica_set().with("shop", "m", numbers(5)), script).await;
    let repository = TestRepository::new().await;
    let saved = save(&subject(peer.address), &repository.image().await).await.unwrap();
    assert_eq!(saved.copied.consistency.level, ConsistencyLevel::Inconsistent);
    assert!(saved.copied.consistency.why.contains("not supported by this engine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_login_may_not_read_is_named_before_a_byte_is_copied() {
    let script = scripted(|_, _, command| {
        let denied = || Some(error(13, "Unauthorized", "not authorized on admin to execute command"));
        if is(command, "listDatabases") {
            return if command.get_bool("authorizedDatabases").ok() == Some(false) {
                denied()
            } else {
                Some(doc! {"databases": [{"name": "shop"}], "ok": 1.0})
            };
        }
        if command.get_str("find").ok() == Some("secret") { denied() } else { plain_sign_in(command, "shop", "pw") }
    });
    let peer =
        Peer::start(State::default().with("shop", "open", numbers(2)).with("shop", "secret", numbers(2)), script).await;
    let plain = login(LoginOf::Application, "shop", "pw", &[("authMechanism", "PLAIN"), ("authSource", "shop")]);
    let subject = subject_with(peer.address, vec![plain]);
    let failure = MongoDb.prepare(&subject, false).await.err().unwrap();
    assert_eq!(failure.code, "data.rights", "{}", text(&failure));
    assert!(
        failure.cause.contains("the list of databases") && failure.cause.contains("shop.secret"),
        "{}",
        text(&failure)
    );
    assert!(failure.next.contains("grantRolesToUser(\"shop\", [{role: \"backup\""), "{}", text(&failure));
    let gaps = MongoDb.inspect(&subject).await.unwrap().gaps;
    assert_eq!(gaps.iter().filter(|gap| gap.blocking).count(), 2, "{gaps:?}");
}

/// Signs in who has this password, by the one mechanism that sends it as it is.
fn plain_sign_in(command: &Document, user: &str, password: &str) -> Option<Document> {
    if !is(command, "saslStart") {
        return None;
    }
    let Some(Bson::Binary(payload)) = command.get("payload") else { panic!("{command}") };
    Some(if payload.bytes == format!("\0{user}\0{password}").into_bytes() {
        doc! {"conversationId": 1, "done": true, "payload": Bson::Binary(mongodb::bson::Binary {
        subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes: vec![] }), "ok": 1.0}
    } else {
        error(18, "AuthenticationFailed", "Authentication failed.")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_named_with_who_used_it_and_never_shown() {
    let script = scripted(|_, _, command| {
        if is(command, "listDatabases") {
            return Some(error(13, "Unauthorized", "command listDatabases requires authentication"));
        }
        is(command, "saslStart").then(|| error(18, "AuthenticationFailed", "Authentication failed."))
    });
    let peer = Peer::start(State::default(), script).await;
    for options in [&[][..], &[("authMechanism", "PLAIN")]] {
        let logins = vec![
            login(LoginOf::Application, "shop", "wr0ng", options),
            login(LoginOf::Administrator, "root", "wr0ng", options),
        ];
        let failure = MongoDb.inspect(&subject_with(peer.address, logins)).await.unwrap_err();
        let text = text(&failure);
        assert_eq!((failure.code.as_str(), failure.class), ("data.authentication", FailureClass::Permanent), "{text}");
        assert!(text.contains("user \"shop\" (the application's own)") && text.contains("user \"root\""), "{text}");
        assert!(text.contains("Authentication failed") && text.contains("--credentials messages="), "{text}");
        assert!(text.contains("18") && !text.contains("wr0ng"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_held_released_and_never_held_for_good() {
    let repository = TestRepository::new().await;
    let peer = Peer::plain(State::default().with("shop", "m", numbers(5))).await;
    let subject = subject(peer.address);
    let locks = || peer.sent("fsync").len();
    let held = open(&subject, true).await.unwrap();
    assert_eq!(peer.sent("fsync")[0].get_bool("lock").ok(), Some(true));
    let saved = copy(&subject, held.as_ref(), &repository.image().await).await.unwrap();
    assert_eq!(saved.copied.consistency.level, ConsistencyLevel::Snapshot);
    held.release().await.unwrap();
    let is_free = || {
        !peer
            .state
            .lock()
            .unwrap()
            .commands
            .iter()
            .rev()
            .find(|(_, c)| is(c, "fsync") || is(c, "fsyncUnlock"))
            .is_some_and(|(_, c)| is(c, "fsync"))
    };
    assert!(is_free());
    // Dropped, as by a task that is torn down: it lets go all the same.
    drop(open(&subject, true).await.unwrap());
    until(is_free).await;
    // Killed: the next one releases it, as often as it is asked.
    std::mem::forget(open(&subject, true).await.unwrap());
    let failure = MongoDb.prepare(&subject, true).await.err().unwrap();
    assert!(failure.is_retryable() && failure.cause.contains("held already"), "{}", text(&failure));
    MongoDb.unfreeze(&subject).await.unwrap();
    assert!(is_free());
    MongoDb.unfreeze(&subject).await.unwrap();
    // Too long: the watchdog lets go, and the holder says so.
    let hurried = hurried(subject.clone(), |span| if span >= Duration::from_secs(300) { span / 1000 } else { span });
    let mut held = open(&hurried, true).await.unwrap();
    held.check().await.unwrap();
    until(is_free).await;
    assert_eq!(held.check().await.unwrap_err().code, "save.freeze-too-long");
    assert_eq!(held.release().await.unwrap_err().code, "save.freeze-too-long");
    assert_eq!(locks(), 4);
}

fn pauses_are_short(span: Duration) -> Duration {
    if span <= Duration::from_secs(2) { span / 20 } else { span }
}

async fn until(condition: impl Fn() -> bool) {
    let clock = subject(([127, 0, 0, 1], 1).into()).seams.clock;
    for _ in 0..500 {
        if condition() {
            return;
        }
        clock.sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came to be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_come_along_and_those_of_the_target_are_left_alone() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let credentials =
        doc! {"SCRAM-SHA-256": {"iterationCount": 15000, "salt": "c2FsdA==", "storedKey": "a2V5", "serverKey": "a2V5"}};
    let user = |db: &str, name: &str| {
        doc! {"_id": format!("{db}.{name}"), "user": name, "db": db, "credentials": credentials.clone(), "roles": [{"role": "clerk", "db": "shop"}], "mechanisms": ["SCRAM-SHA-256"]}
    };
    let roles = doc! {"roles": [
        {"role": "chief", "db": "shop", "isBuiltin": false, "privileges": [], "roles": [{"role": "clerk", "db": "shop"}]},
        {"role": "clerk", "db": "shop", "isBuiltin": false, "privileges": [{"resource": {"db": "shop", "collection": ""}, "actions": ["find"]}], "roles": []},
    ], "ok": 1.0};
    let users = doc! {"users": [user("admin", "root"), user("shop", "shop"), user("shop", "report")], "ok": 1.0};
    let script = scripted(move |_, database, command| match command.keys().next().unwrap().as_str() {
        "usersInfo" => Some(users.clone()),
        "rolesInfo" if database == "shop" => Some(roles.clone()),
        _ => plain_sign_in(command, "shop", "pw"),
    });
    let source = Peer::start(State::default().with("shop", "m", numbers(5)), script).await;
    let own = login(LoginOf::Application, "shop", "pw", &[("authMechanism", "PLAIN"), ("authSource", "shop")]);
    let saved = save(&subject_with(source.address, vec![own.clone()]), &image).await.unwrap();
    assert!(saved.copied.notices.is_empty(), "{:?}", saved.copied.notices);
    let there = doc! {"users": [{"user": "root", "db": "admin", "roles": []}], "ok": 1.0};
    let script = scripted(move |state, _, command| match command.keys().next().unwrap().as_str() {
        "usersInfo" => Some(there.clone()),
        "createRole" | "grantRolesToRole" | "createUser" | "_mergeAuthzCollections" => Some(doc! {"ok": 1.0}),
        "saslStart" => {
            let made = state.commands.iter().any(|(_, c)| is(c, "createUser") || c.contains_key("speculative"));
            let root = plain_sign_in(command, "root", "boss").filter(|answer| answer.get_f64("ok").ok() == Some(1.0));
            root.or_else(|| plain_sign_in(command, if made { "shop" } else { "nobody" }, "pw"))
        }
        _ => None,
    });
    let target = Peer::start(State::default(), script).await;
    let root = login(LoginOf::Administrator, "root", "boss", &[("authMechanism", "PLAIN"), ("authSource", "admin")]);
    let logins = vec![own.clone(), root];
    let loaded = load(&subject_with(target.address, logins.clone()), &image, &saved).await.unwrap();
    assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
    let made: Vec<String> =
        target.sent("createRole").iter().map(|c| c.get_str("createRole").unwrap().to_owned()).collect();
    assert_eq!(made, ["chief", "clerk"]);
    assert_eq!(target.sent("grantRolesToRole")[0].get_str("grantRolesToRole").ok(), Some("chief"));
    let created = target.sent("createUser");
    assert_eq!(
        (created.len(), created[0].get_str("createUser").ok(), created[0].get_str("pwd").ok()),
        (1, Some("shop"), Some("pw"))
    );
    let handed =
        target.sent("insert").into_iter().find(|c| c.get_str("insert").ok() == Some("ocopea_accounts")).unwrap();
    let handed: Vec<&str> = handed
        .get_array("documents")
        .unwrap()
        .iter()
        .map(|d| d.as_document().unwrap().get_str("_id").unwrap())
        .collect();
    assert_eq!(handed, ["shop.report"], "neither the target's root nor who was made with a password");
    assert_eq!(target.sent("_mergeAuthzCollections")[0].get_bool("drop").ok(), Some(false));
    assert!(
        !target.state.lock().unwrap().collections.contains_key(&("admin".to_owned(), "ocopea_accounts".to_owned()))
    );
    // A login in some example, which the source didn't let in either, harms nobody.
    let mut more = logins.clone();
    more.push(login(LoginOf::Application, "stranger", "x", &[("authMechanism", "PLAIN"), ("authSource", "shop")]));
    load(&subject_with(target.address, more), &image, &saved).await.unwrap();
    // An application that can't sign in afterwards is no restored application.
    let script = scripted(move |_, _, command| match command.keys().next().unwrap().as_str() {
        "createRole" | "grantRolesToRole" | "createUser" | "_mergeAuthzCollections" => Some(doc! {"ok": 1.0}),
        "saslStart" => plain_sign_in(command, "root", "boss"),
        _ => None,
    });
    let target = Peer::start(State::default(), script).await;
    let failure = load(&subject_with(target.address, logins), &image, &saved).await.unwrap_err();
    assert!(failure.code == "data.login" && failure.cause.contains("user \"shop\""), "{}", text(&failure));
}

/// A user or role as the server itself stores it.
fn account(of: &str, db: &str, name: &str, more: Document) -> Document {
    let mut account = doc! {"_id": format!("{db}.{name}"), of: name, "db": db, "roles": []};
    account.extend(more);
    account
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_backup_is_enough_for_accounts_and_less_is_refused_by_name() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let credentials =
        doc! {"SCRAM-SHA-1": {"iterationCount": 10000, "salt": "c2FsdA==", "storedKey": "a2V5", "serverKey": "a2V5"}};
    let restrictions = Bson::Array(vec![doc! {"clientSource": ["10.0.0.0/8"]}.into()]);
    let user = account(
        "user",
        "shop",
        "shop",
        doc! {"credentials": credentials, "authenticationRestrictions": restrictions.clone()},
    );
    let role = account(
        "role",
        "shop",
        "clerk",
        doc! {"privileges": [{"resource": {"db": "shop", "collection": ""}, "actions": ["find"]}]},
    );
    let denied = |command: &Document| {
        (is(command, "usersInfo") || is(command, "rolesInfo"))
            .then(|| error(13, "Unauthorized", "not authorized on admin"))
    };
    let state = State::default().with("shop", "m", numbers(5)).with("admin", "system.users", stored([user])).with(
        "admin",
        "system.roles",
        stored([role]),
    );
    let script = scripted(move |_, _, command| denied(command).or_else(|| plain_sign_in(command, "shop", "pw")));
    let source = Peer::start(state, script).await;
    let own = login(LoginOf::Application, "shop", "pw", &[("authMechanism", "PLAIN"), ("authSource", "shop")]);
    let saved = save(&subject_with(source.address, vec![own.clone()]), &image).await.unwrap();
    assert!(saved.copied.notices.is_empty(), "{:?}", saved.copied.notices);
    let made = scripted(|_, _, command| match command.keys().next().unwrap().as_str() {
        "createRole" | "createUser" => Some(doc! {"ok": 1.0}),
        _ => plain_sign_in(command, "shop", "pw"),
    });
    let target = Peer::start(State::default(), made).await;
    load(&subject_with(target.address, vec![own.clone()]), &image, &saved).await.unwrap();
    assert_eq!(target.sent("createRole")[0].get_str("createRole").ok(), Some("clerk"));
    let created = &target.sent("createUser")[0];
    assert_eq!(created.get("authenticationRestrictions"), Some(&restrictions), "nobody may sign in from elsewhere");
    assert_eq!(created.get_array("mechanisms").unwrap(), &[Bson::from("SCRAM-SHA-1")]);
    // Who may see neither the collections nor the accounts saves nothing.
    let script = scripted(move |_, _, command| {
        let own = command.get_str("find").is_ok_and(|name| name.starts_with("system."));
        if own {
            Some(error(13, "Unauthorized", "not authorized on admin"))
        } else {
            denied(command).or_else(|| plain_sign_in(command, "shop", "pw"))
        }
    });
    let source = Peer::start(State::default().with("shop", "m", numbers(5)), script).await;
    let failure = MongoDb.prepare(&subject_with(source.address, vec![own]), false).await.err().unwrap();
    assert!(failure.code == "data.rights" && failure.cause.contains("users and roles"), "{}", text(&failure));
    assert!(failure.next.contains("role: \"backup\""), "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_no_login_is_read_whatever_the_settings_say() {
    let repository = TestRepository::new().await;
    let script = scripted(|_, _, command| {
        is(command, "saslStart").then(|| error(18, "AuthenticationFailed", "Authentication failed."))
    });
    let peer = Peer::start(State::default().with("shop", "m", numbers(5)), script).await;
    let logins = vec![login(LoginOf::Application, "shop", "old", &[("authMechanism", "PLAIN")])];
    let saved = save(&subject_with(peer.address, logins.clone()), &repository.image().await).await.unwrap();
    assert_eq!(saved.copied.streams[0].items, 5);
    // One that was given by name is the only one.
    let given = vec![login(LoginOf::Given, "shop", "old", &[("authMechanism", "PLAIN")])];
    assert_eq!(MongoDb.inspect(&subject_with(peer.address, given)).await.unwrap_err().code, "data.authentication");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_waits_for_a_server_that_is_still_starting() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let source = Peer::plain(State::default().with("shop", "m", numbers(50))).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    // First nobody may sign in; then there is the server for the image's own scripts; then the real one.
    let script = scripted(|state, _, command| {
        let looks = state.commands.iter().filter(|(_, c)| is(c, "saslStart")).count();
        match command.keys().next().unwrap().as_str() {
            "listDatabases" if looks <= 2 => {
                Some(error(13, "Unauthorized", "command listDatabases requires authentication"))
            }
            "saslStart" if looks <= 2 => Some(error(18, "AuthenticationFailed", "Authentication failed.")),
            "saslStart" => plain_sign_in(command, "root", "boss"),
            "getCmdLineOpts" if looks <= 6 => Some(
                doc! {"argv": ["mongod", "--config", "/tmp/docker-entrypoint-temp-config.json", "--bind_ip", "127.0.0.1"], "ok": 1.0},
            ),
            _ => None,
        }
    });
    let target = Peer::start(State::default(), script).await;
    let root = login(LoginOf::Administrator, "root", "boss", &[("authMechanism", "PLAIN"), ("authSource", "admin")]);
    let patient = hurried(subject_with(target.address, vec![root]), pauses_are_short);
    let loaded = load(&patient, &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
    let state = target.state.lock().unwrap();
    let first = |name: &str| state.commands.iter().position(|(_, c)| is(c, name)).unwrap();
    let last_look = state.commands.iter().rposition(|(_, c)| is(c, "getCmdLineOpts")).unwrap();
    assert!(last_look < first("create"), "nothing was written to a server that goes away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_is_initiated_as_it_was_where_nobody_else_does() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let mut state = State::replica_set().with("shop", "m", numbers(50));
    state.hello.extend(doc! {"hosts": ["mongo-0.mongo.shop.svc.cluster.local:27017"]});
    let source = Peer::plain(state).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let script = scripted(|state, _, command| {
        let name = command.keys().next().unwrap().as_str();
        let since = state.commands.iter().position(|(_, c)| is(c, "replSetInitiate"));
        let hellos = |from: usize| state.commands[from..].iter().filter(|(_, c)| is(c, "hello")).count();
        let secondary = since.is_some_and(|at| hellos(at) < 3);
        let base = doc! {"maxWireVersion": 21, "minWireVersion": 0, "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "logicalSessionTimeoutMinutes": 30, "ok": 1.0};
        let mut hello = base;
        match name {
            "hello" | "isMaster" | "ismaster" if since.is_none() => {
                hello.extend(doc! {"isWritablePrimary": false, "ismaster": false, "secondary": false, "isreplicaset": true, "info": "Does not have a valid replica set config"});
                Some(hello)
            }
            "hello" | "isMaster" | "ismaster" => {
                hello.extend(doc! {"isWritablePrimary": !secondary, "ismaster": !secondary, "secondary": secondary, "setName": "rs0", "hosts": ["mongo-0.mongo:27017"], "me": "mongo-0.mongo:27017"});
                Some(hello)
            }
            "listDatabases" if since.is_none() => {
                Some(error(13436, "NotPrimaryOrSecondary", "node is not in primary or recovering state"))
            }
            "replSetInitiate" => Some(doc! {"ok": 1.0}),
            _ => None,
        }
    });
    let target = Peer::start(State::default(), script).await;
    let loaded = load(&hurried(subject(target.address), pauses_are_short), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
    let initiated = target.sent("replSetInitiate");
    let wanted = doc! {"_id": "rs0", "members": [{"host": "mongo-0.mongo:27017", "_id": 0}]};
    assert_eq!((initiated.len(), initiated[0].get_document("replSetInitiate").unwrap()), (1, &wanted));
    // Saving one that holds nothing because nobody initiated it would be a lie.
    let script = scripted(|_, _, command| {
        ["hello", "isMaster", "ismaster"].iter().any(|name| is(command, name)).then(|| {
            doc! {"isWritablePrimary": false, "ismaster": false, "secondary": false, "isreplicaset": true, "maxWireVersion": 21, "minWireVersion": 0,
                "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "ok": 1.0}
        })
    });
    let empty = Peer::start(State::default(), script).await;
    let failure = MongoDb.inspect(&subject(empty.address)).await.unwrap_err();
    assert!(failure.cause.contains("nobody has initiated"), "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_server_is_read_along_its_ids_and_without_them_where_it_can_not() {
    let repository = TestRepository::new().await;
    let mut capped = numbers(9);
    capped.options = doc! {"capped": true, "size": 4096};
    let state = || State::default().with("shop", "m", numbers(50)).with("shop", "log", capped.clone());
    let peer = Peer::plain(state()).await;
    save(&subject(peer.address), &repository.image().await).await.unwrap();
    let hint = |peer: &Peer, name: &str| {
        let found = peer
            .sent("find")
            .into_iter()
            .filter(|c| c.get_str("find").ok() == Some(name) && c.contains_key("batchSize"));
        found.map(|c| c.contains_key("hint")).collect::<Vec<_>>()
    };
    assert_eq!((hint(&peer, "m"), hint(&peer, "log")), (vec![true], vec![false]));
    let script = scripted(|_, _, command| {
        command.contains_key("hint").then(|| {
            error(2, "BadValue", "error processing query: hint provided does not correspond to an existing index")
        })
    });
    let peer = Peer::start(state(), script).await;
    let saved = save(&subject(peer.address), &repository.image().await).await.unwrap();
    assert_eq!((hint(&peer, "m"), saved.copied.streams[1].items), (vec![true, false], 50));
    let set = Peer::plain(State::replica_set().with("shop", "m", numbers(50))).await;
    save(&subject(set.address), &repository.image().await).await.unwrap();
    assert_eq!(hint(&set, "m"), [false], "a snapshot needs none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_older_than_the_library_wants_are_saved_and_loaded_all_the_same() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let old = |age: i32| State { hello: doc! {"maxWireVersion": age}, ..State::default() };
    let data = stored((0..3000).map(|n| doc! {"_id": n, "maxWireVersion": 6}));
    let source = Peer::plain(old(6).with("shop", "m", data)).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let target = Peer::plain(old(8)).await;
    let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());
    // Held writes are let go through the same way, even when the holder is just dropped.
    drop(open(&subject(source.address), true).await.unwrap());
    until(|| source.sent("fsync").len() == 1 && !source.state.lock().unwrap().locked).await;
    // Still older ones have other messages.
    let failure = MongoDb.inspect(&subject(Peer::plain(old(5)).await.address)).await.unwrap_err();
    assert!(failure.code == "data.too-old" && failure.class == FailureClass::Permanent, "{}", text(&failure));
    assert!(failure.cause.contains("wire version 5"), "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lists_the_version_of_an_index_and_does_not_take_it_gets_none() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let mut data = numbers(5);
    data.indexes = vec![doc! {"v": 2, "key": {"text": 1}, "name": "text_1", "unique": true}];
    let source = Peer::plain(State::default().with("shop", "m", data)).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let picky = scripted(|_, _, command| {
        let list = command.get_array("indexes").ok()?;
        let known = list.iter().all(|index| !index.as_document().unwrap().contains_key("v"));
        (!known).then(|| error(2, "BadValue", "Index option \"v\" is unknown"))
    });
    let target = Peer::start(State::default(), picky).await;
    let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
    assert!(loaded.notices.is_empty(), "{:?}", loaded.notices);
    let state = target.state.lock().unwrap();
    let made = &state.collections[&("shop".to_owned(), "m".to_owned())].indexes;
    assert_eq!(made, &[doc! {"key": {"text": 1}, "name": "text_1", "unique": true}]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_vanishes_under_its_cursor_is_worth_another_try() {
    let repository = TestRepository::new().await;
    for (code, name) in [(175, "QueryPlanKilled"), (136, "CappedPositionLost")] {
        let script =
            scripted(move |_, _, command| is(command, "getMore").then(|| error(code, name, "collection dropped")));
        let peer = Peer::start(State::default().with("shop", "m", numbers(5000)), script).await;
        let failure = save(&subject(peer.address), &repository.image().await).await.err().unwrap();
        assert!(failure.is_retryable() && failure.cause.contains("collection dropped"), "{}", text(&failure));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_replica_set_is_a_snapshot_and_what_appears_in_it_is_seen() {
    let repository = TestRepository::new().await;
    let peer = Peer::plain(State::replica_set()).await;
    let saved = save(&subject(peer.address), &repository.image().await).await.unwrap();
    assert_eq!((saved.copied.consistency.level, saved.copied.streams.len()), (ConsistencyLevel::Snapshot, 0));
    let held = open(&subject(peer.address), false).await.unwrap();
    peer.state.lock().unwrap().collections.insert(("shop".to_owned(), "new".to_owned()), numbers(1));
    let failure = copy(&subject(peer.address), held.as_ref(), &repository.image().await).await.err().unwrap();
    assert_eq!(failure.code, "data.moving", "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_timestamps_are_kept_or_the_documents_are_counted_and_named() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let stamp = Timestamp { time: 0, increment: 0 };
    let documents = (0..50).map(|n| {
        if n % 5 == 0 {
            doc! {"_id": n, "t": stamp}
        } else {
            doc! {"_id": n, "t": 0i64, "u": 0i64}
        }
    });
    let source =
        Peer::plain(State::default().with("shop", "m", stored(documents)).with("shop", "other", numbers(3))).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let target = Peer::plain(State::default()).await;
    let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
    assert!(differences(&saved.copied.streams, &loaded.streams).is_empty() && loaded.notices.is_empty());
    let asked = |peer: &Peer| peer.sent("insert").iter().filter(|c| c.contains_key("bypassEmptyTsReplacement")).count();
    assert_eq!(asked(&target), 1, "only where it is needed");
    // One that doesn't know the word, and one that takes it and does as it likes.
    for knows in [false, true] {
        let script = scripted(move |state, database, command| {
            if !is_insert(command) {
                return None;
            }
            if !knows && command.contains_key("bypassEmptyTsReplacement") {
                return Some(error(
                    40415,
                    "IDLUnknownField",
                    "BSON field 'insert.bypassEmptyTsReplacement' is an unknown field.",
                ));
            }
            let list = command.get_array("documents").unwrap();
            let key = (database.to_owned(), command.get_str("insert").unwrap().to_owned());
            for one in list {
                let mut one = one.as_document().unwrap().clone();
                if one.get("t") == Some(&Bson::Timestamp(stamp)) {
                    one.insert("t", NOW);
                }
                state.collections.get_mut(&key).unwrap().documents.push(bytes(&one));
            }
            Some(doc! {"n": list.len() as i32, "ok": 1.0})
        });
        let target = Peer::start(State::default(), script).await;
        let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
        assert_eq!(loaded.notices.len(), 1, "{:?}", loaded.notices);
        assert!(
            loaded.notices[0].contains("10 documents") && loaded.notices[0].contains("shop.m _id 45"),
            "{:?}",
            loaded.notices
        );
        assert_eq!(differences(&saved.copied.streams, &loaded.streams), ["shop.m has other contents"]);
        assert_eq!(loaded.streams.iter().filter(|stream| stream.content.is_empty()).count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_or_swallowed_document_is_found_and_named() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let source = Peer::plain(State::default().with("shop", "m", numbers(5000))).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let refuses = scripted(|_, _, command| {
        let list = command.get_array("documents").ok()?;
        let at = list.iter().position(|one| one.as_document().unwrap().get_i32("_id").ok() == Some(4321))?;
        Some(
            doc! {"n": list.len() as i32 - 1, "writeErrors": [{"index": at as i32, "code": 121, "errmsg": "Document failed validation"}], "ok": 1.0},
        )
    });
    let target = Peer::start(State::default(), refuses).await;
    let failure = load(&subject(target.address), &image, &saved).await.unwrap_err();
    assert!(
        failure.code == "data.refused" && failure.cause.contains("_id 4321: Document failed validation"),
        "{}",
        text(&failure)
    );
    assert!(failure.what.contains("shop.m"));
    let too_long = scripted(|_, _, command| {
        is_insert(command).then(|| error(10334, "BSONObjectTooLarge", "object to insert too large"))
    });
    let target = Peer::start(State::default(), too_long).await;
    let failure = load(&subject(target.address), &image, &saved).await.unwrap_err();
    assert!(failure.cause.contains("too large") && failure.cause.contains("_id 0"), "{}", text(&failure));
    let admits = scripted(|_, _, command| is_insert(command).then(|| doc! {"n": 17, "ok": 1.0}));
    let target = Peer::start(State::default(), admits).await;
    let failure = load(&subject(target.address), &image, &saved).await.unwrap_err();
    assert!(failure.code == "data.arrival" && failure.cause.contains("17 of 5000"), "{}", text(&failure));
    let lies = scripted(|_, _, command| {
        let list = command.get_array("documents").ok().filter(|_| is_insert(command))?;
        Some(doc! {"n": list.len() as i32, "ok": 1.0})
    });
    let target = Peer::start(State::default(), lies).await;
    let loaded = load(&subject(target.address), &image, &saved).await.unwrap();
    assert_eq!(differences(&saved.copied.streams, &loaded.streams), ["shop.m: 0 instead of 5000"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_collection_is_read_in_ranges_that_are_the_whole_whatever_its_ids_are() {
    let repository = TestRepository::new().await;
    let filler = "x".repeat(11_000);
    let mut documents: Vec<Document> = (0..7000).map(|n| doc! {"_id": n, "x": &filler}).collect();
    for unlike in [false, true] {
        if unlike {
            // Not among those that are drawn: found by what is comparable with no boundary.
            documents.insert(1, doc! {"_id": "unlike", "x": 1});
            documents.insert(3, doc! {"_id": Bson::Null, "x": 2});
        }
        let peer = Peer::plain(State::replica_set().with("shop", "m", stored(documents.clone())).with(
            "shop",
            "small",
            numbers(3),
        ))
        .await;
        let saved = save(&subject(peer.address), &repository.image().await).await.unwrap();
        let stream = &saved.copied.streams[0];
        assert_eq!((stream.name.as_str(), stream.items), ("shop.m", documents.len() as u64));
        let wanted: u64 =
            documents.iter().map(|one| RawDocumentBuf::try_from(one).unwrap().as_bytes().len() as u64).sum();
        assert_eq!(stream.bytes, wanted);
        let ranges: Vec<Document> = peer.sent("find").into_iter().filter(|find| find.contains_key("filter")).collect();
        assert!(ranges.len() >= 4, "{} ranges", ranges.len());
        assert!(
            ranges.iter().all(
                |find| find.get_document("hint").ok() == Some(&doc! {"_id": 1}) && find.contains_key("readConcern")
            )
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capped_collection_is_loaded_in_its_order() {
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let mut capped = numbers(9000);
    capped.documents.reverse();
    capped.options = doc! {"capped": true, "size": 16_777_216, "max": 20_000};
    let wanted = capped.documents.clone();
    let source = Peer::plain(State::default().with("shop", "log", capped)).await;
    let saved = save(&subject(source.address), &image).await.unwrap();
    let target = Peer::plain(State { hello: doc! {"maxWriteBatchSize": 1000}, ..State::default() }).await;
    load(&subject(target.address), &image, &saved).await.unwrap();
    let inserts = target.sent("insert");
    assert!(inserts.len() == 9 && inserts.iter().all(|insert| insert.get_bool("ordered").ok() == Some(true)));
    let state = target.state.lock().unwrap();
    let is = &state.collections[&("shop".to_owned(), "log".to_owned())];
    assert!(is.documents == wanted && is.options.get_i32("max").ok() == Some(20_000));
}
