//! Both shapes, against real servers: the same life of a service, told twice.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "all of this file is tests; the exemption for tests sees only the functions marked as such"
)]

mod harness;

use std::{sync::Arc, time::Duration};

use harness::{Server, mongodb, postgres, until};
use lets_chat::{
    config::{Config, Database},
    load::{self, History, Sizes, data::INCIDENT, writer},
    model::Slug,
    store::{self, Schema, Storage, StoreError},
    version::Version,
    web, world,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SIZES: Sizes = Sizes { seed: 11, messages: 3_000, users: 6, rooms: 17, uploads: 12, until: 1_793_610_000_000 };

fn config(server: &Server, version: Version) -> Config {
    let database = if server.address.starts_with("mongodb") {
        Database::Mongo { uri: server.address.clone() }
    } else {
        Database::Postgres { url: server.address.clone(), uploads: server.uploads.clone() }
    };
    Config { version, database, title: "Test".into() }
}

async fn connected(server: &Server, version: Version) -> Arc<dyn Storage> {
    store::connect(&config(server, version), Duration::from_secs(30)).await.unwrap()
}

struct Running {
    base: String,
    http: reqwest::Client,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

#[expect(clippy::disallowed_methods, reason = "a test's own task, joined by stop()")]
async fn serve(server: &Server, version: Version) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let served = tokio::spawn(web::serve_on(config(server, version), listener, stop.clone(), TaskTracker::new()));
    // Only an error when another test was first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    Running { base, http, stop, served }
}

impl Running {
    async fn ready(self) -> Self {
        until("the service is ready", || async { self.get("/readyz", "").await.0 == StatusCode::OK }).await;
        self
    }

    async fn send(&self, request: reqwest::RequestBuilder, cookie: &str) -> (StatusCode, Value, String) {
        let answer = request.header("cookie", cookie).send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let cookie =
            headers.get("set-cookie").map(|value| value.to_str().unwrap().split(';').next().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)), cookie.unwrap_or_default())
    }

    async fn get(&self, path: &str, cookie: &str) -> (StatusCode, Value, String) {
        self.send(self.http.get(format!("{}{path}", self.base)), cookie).await
    }

    async fn post(&self, path: &str, cookie: &str, body: Value) -> (StatusCode, Value, String) {
        self.send(self.http.post(format!("{}{path}", self.base)).json(&body), cookie).await
    }

    async fn bodies(&self, room: &str) -> Vec<String> {
        let (status, page, _) = self.get(&format!("/api/rooms/{room}/messages?limit=200"), "").await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page["messages"].as_array().unwrap().iter().map(|m| m["body"].as_str().unwrap().to_owned()).collect()
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.served.await.unwrap()
    }
}

fn steps(bodies: &[String]) -> Vec<u32> {
    bodies.iter().filter_map(|body| body.strip_prefix("Step ")?.split(' ').next()?.parse().ok()).collect()
}

async fn whole_life(server: &Server) {
    an_empty_database_is_migrated_and_loaded_once(server).await;
    the_fixed_version_shows_in_order_what_the_buggy_one_shuffles(server).await;
    people_sign_up_write_and_are_kept_out_of_private_rooms(server).await;
    what_is_too_large_or_no_input_at_all_is_refused_by_name(server).await;
    a_steady_writer_loses_nothing(server).await;
    a_migration_numbers_every_message_and_old_versions_stay_away(server).await;
    damage_is_found_by_the_check(server).await;
}

async fn an_empty_database_is_migrated_and_loaded_once(server: &Server) {
    let store = connected(server, Version::V1_4_1).await;
    assert_eq!(store.schema().await.unwrap(), Schema::Empty);
    let waiting = serve(server, Version::V1_4_1).await;
    until("it says what it waits for", || async {
        let (status, reason, _) = waiting.get("/readyz", "").await;
        status == StatusCode::SERVICE_UNAVAILABLE && reason.to_string().contains("lets-chat migrate")
    })
    .await;
    assert_eq!(waiting.get("/healthz", "").await.0, StatusCode::OK);
    assert_eq!(waiting.get("/api/rooms", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!store.migrate().await.unwrap().is_empty());
    assert!(store.migrate().await.unwrap().is_empty(), "doing it again does nothing");
    let running = waiting.ready().await;
    running.stop().await.unwrap();

    let loaded = load::load(&store, SIZES, false).await.unwrap();
    assert!(!loaded.before);
    assert!(load::load(&store, SIZES, false).await.unwrap().before);
    let other = load::load(&store, Sizes { seed: 12, ..SIZES }, false).await.unwrap_err();
    assert!(format!("{other:#}").contains("--replace"), "{other:#}");
    let counts = store.counts().await.unwrap();
    assert!(counts.entries.contains(&("messages".into(), 3_000)), "{counts:?}");
    let newest = counts.newest.unwrap();
    assert_eq!((newest.n, newest.room.as_str()), (3_000, INCIDENT));
    let findings = store.check().await.unwrap();
    assert_eq!((findings.broken, findings.drift), (0, 0), "{findings:?}");
    assert!(findings.checked > 6_000);
}

async fn the_fixed_version_shows_in_order_what_the_buggy_one_shuffles(server: &Server) {
    let buggy = serve(server, Version::V1_4_1).await.ready().await;
    let fixed = serve(server, Version::V1_4_2).await.ready().await;
    let (shuffled, right) = (buggy.bodies(INCIDENT).await, fixed.bodies(INCIDENT).await);
    assert_eq!(steps(&right), (1..=12).collect::<Vec<u32>>());
    assert_eq!(steps(&shuffled)[..6].iter().min(), Some(&7), "steps 7 to 12 come first: {:?}", steps(&shuffled));
    assert_eq!(shuffled.len(), right.len(), "nothing is lost, only the order is wrong");
    assert_eq!(buggy.bodies("general").await, fixed.bodies("general").await);
    // Paging back reaches the first message, whatever the page's size.
    let (mut cursor, mut seen) = (String::new(), 0);
    loop {
        let (_, page, _) = fixed.get(&format!("/api/rooms/lobby/messages?limit=150{cursor}"), "").await;
        seen += page["messages"].as_array().unwrap().len();
        match page["older"].as_i64() {
            Some(older) => cursor = format!("&before={older}"),
            None => break,
        }
    }
    let (_, rooms, _) = fixed.get("/api/rooms", "").await;
    let lobby = rooms["rooms"].as_array().unwrap().iter().find(|room| room["slug"] == "lobby").unwrap();
    assert_eq!(Some(seen), lobby["messages"].as_u64().map(|count| count as usize));
    buggy.stop().await.unwrap();
    fixed.stop().await.unwrap();
}

async fn people_sign_up_write_and_are_kept_out_of_private_rooms(server: &Server) {
    let app = serve(server, Version::V1_4_2).await.ready().await;
    let eve = json!({ "name": "Eve", "password": "long enough" });
    let (status, me, cookie) = app.post("/api/sign-up", "", eve.clone()).await;
    assert_eq!((status, &me["name"]), (StatusCode::OK, &json!("eve")));
    assert_eq!(app.post("/api/sign-up", "", eve.clone()).await.0, StatusCode::CONFLICT);
    let wrong = json!({ "name": "eve", "password": "not this one" });
    assert_eq!(app.post("/api/sign-in", "", wrong).await.0, StatusCode::FORBIDDEN);
    let loaded = json!({ "name": "dana", "password": load::PASSWORD });
    let (status, _, dana) = app.post("/api/sign-in", "", loaded).await;
    assert_eq!(status, StatusCode::OK, "a loaded account signs in");

    let says = "<img src=x onerror=alert(1)> & \"quotes\" \\ 100% _ 👩🏽‍🚀\n\ttab";
    let path = "/api/rooms/lobby/messages";
    assert_eq!(app.post(path, "", json!({ "body": says })).await.0, StatusCode::UNAUTHORIZED);
    let (status, first, _) = app.post(path, &cookie, json!({ "body": says })).await;
    assert_eq!((status, &first["body"]), (StatusCode::CREATED, &json!(says)));
    let file: Vec<u8> = (0..200_000_u32).map(|i| (i * 31 % 251) as u8).collect();
    let upload = app.http.post(format!("{}/api/uploads?name=a%22b.bin", app.base)).body(file.clone());
    let (status, upload, _) = app.send(upload, &cookie).await;
    assert_eq!(status, StatusCode::CREATED, "{upload}");
    let answer = json!({ "body": "an answer", "replyTo": first["n"], "upload": upload["id"] });
    let (status, second, _) = app.post(path, &cookie, answer.clone()).await;
    assert_eq!(
        (status, &second["reply"]["n"], &second["upload"]["name"]),
        (StatusCode::CREATED, &first["n"], &json!("a\"b.bin"))
    );
    assert_eq!(app.post(path, &cookie, answer).await.0, StatusCode::NOT_FOUND, "an upload is used once");
    let bytes = app.http.get(format!("{}/uploads/{}", app.base, upload["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!(bytes.headers()["x-content-type-options"], "nosniff");
    assert!(bytes.headers()["content-disposition"].to_str().unwrap().starts_with("attachment"));
    assert_eq!(bytes.bytes().await.unwrap(), file);
    let (_, found, _) = app.get("/api/rooms/lobby/search?q=100%25%20_%20", "").await;
    assert_eq!(found["messages"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(app.bodies("lobby").await.last().unwrap(), "an answer");

    let secret = json!({ "room": "secret", "title": "Secret", "private": true });
    assert_eq!(app.post("/api/rooms", &cookie, secret.clone()).await.0, StatusCode::CREATED);
    assert_eq!(app.post("/api/rooms", &cookie, secret).await.0, StatusCode::CONFLICT);
    for (who, status) in
        [("", StatusCode::NOT_FOUND), (dana.as_str(), StatusCode::NOT_FOUND), (&cookie, StatusCode::OK)]
    {
        assert_eq!(app.get("/api/rooms/secret/messages", who).await.0, status);
    }
    assert_eq!(app.post("/api/sign-out", &cookie, json!({})).await.0, StatusCode::OK);
    assert_eq!(app.post(path, &cookie, json!({ "body": "too late" })).await.0, StatusCode::UNAUTHORIZED);
    app.stop().await.unwrap();
}

async fn what_is_too_large_or_no_input_at_all_is_refused_by_name(server: &Server) {
    let app = serve(server, Version::V1_4_2).await.ready().await;
    let (_, _, cookie) = app.post("/api/sign-in", "", json!({ "name": "dana", "password": load::PASSWORD })).await;
    let path = "/api/rooms/lobby/messages";
    let (status, problem, _) = app.post(path, &cookie, json!({ "body": "x".repeat(4_001) })).await;
    assert_eq!((status, &problem["field"]), (StatusCode::BAD_REQUEST, &json!("body")));
    assert_eq!(app.post(path, &cookie, json!({ "body": "x".repeat(70_000) })).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(app.post(path, &cookie, json!({ "body": "nul \u{0}" })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(app.post(path, &cookie, json!({ "text": "?" })).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(app.post(path, &cookie, json!({ "body": "a", "replyTo": i64::MAX })).await.0, StatusCode::NOT_FOUND);
    let form =
        app.http.post(format!("{}{path}", app.base)).header("content-type", "text/plain").body("{\"body\":\"forged\"}");
    assert_eq!(app.send(form, &cookie).await.0, StatusCode::BAD_REQUEST);
    let large = app.http.post(format!("{}/api/uploads?name=large", app.base)).body(vec![7; 2 * 1024 * 1024 + 1]);
    assert_eq!(app.send(large, &cookie).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    for (path, status) in [
        ("/api/rooms/..%2F..%2Fetc/messages", StatusCode::BAD_REQUEST),
        ("/api/rooms/lobby/messages?before=9223372036854775807", StatusCode::OK),
        ("/api/rooms/lobby/messages?before=-1", StatusCode::OK),
        ("/api/rooms/lobby/messages?limit=999999999", StatusCode::OK),
        ("/api/rooms/lobby/search?q=x", StatusCode::BAD_REQUEST),
        ("/uploads/..%2Fetc%2Fpasswd", StatusCode::NOT_FOUND),
        ("/uploads/00000000-0000-0000-0000-000000000000", StatusCode::NOT_FOUND),
        ("/nothing", StatusCode::NOT_FOUND),
    ] {
        assert_eq!(app.get(path, "").await.0, status, "{path}");
    }
    let reaction = app.post("/api/rooms/lobby/messages/1/reactions", &cookie, json!({ "emoji": "👍" })).await;
    assert_eq!(reaction.0, StatusCode::NOT_FOUND, "1.4.2 knows no reactions");
    app.stop().await.unwrap();
}

async fn a_steady_writer_loses_nothing(server: &Server) {
    let store = connected(server, Version::V1_4_2).await;
    let messages = |counts: store::Counts| counts.entries.iter().find(|(name, _)| name == "messages").unwrap().1;
    let before = messages(store.counts().await.unwrap());
    let app = serve(server, Version::V1_4_2).await.ready().await;
    let writing = writer::Writing { url: app.base.clone(), rate: 60, span: Some(Duration::from_secs(2)), seed: 3 };
    let written = writer::keep_writing(&writing, &CancellationToken::new(), |_| {}).await.unwrap();
    assert_eq!(written.failed, 0, "{written:?}");
    assert!(written.posted >= 40, "{written:?}");
    assert_eq!(messages(store.counts().await.unwrap()), before + written.posted as i64);
    let findings = store.check().await.unwrap();
    assert_eq!((findings.broken, findings.drift), (0, 0), "{findings:?}");
    // While a request is under way, a stop lets it end. It is under way when its body is asked for.
    let body = json!({ "name": "dana", "password": "not this one" }).to_string();
    let mut connection = TcpStream::connect(app.base.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "POST /api/sign-in HTTP/1.1\r\nhost: chat\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut go_on = [0; 25];
    connection.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    app.stop.cancel();
    connection.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    app.stop().await.unwrap();
}

async fn a_migration_numbers_every_message_and_old_versions_stay_away(server: &Server) {
    let new = connected(server, Version::V1_5_0).await;
    assert!(matches!(new.schema().await.unwrap().suits(Version::V1_5_0), Err(StoreError::Schema(_))));
    let old = serve(server, Version::V1_4_2).await.ready().await;
    assert_eq!(new.migrate().await.unwrap().len(), 1);
    assert!(new.migrate().await.unwrap().is_empty());
    until("the old version sees it", || async { old.get("/readyz", "").await.0 != StatusCode::OK }).await;
    old.stop().await.unwrap();
    let refused = serve(server, Version::V1_4_2).await.served.await.unwrap().unwrap_err();
    assert!(format!("{refused:#}").contains("has schema 2"), "{refused:#}");

    let app = serve(server, Version::V1_5_0).await.ready().await;
    let (_, page, _) = app.get(&format!("/api/rooms/{INCIDENT}/messages?limit=200"), "").await;
    let seqs: Vec<i64> = page["messages"].as_array().unwrap().iter().map(|m| m["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=30).collect::<Vec<i64>>());
    let (_, _, cookie) = app.post("/api/sign-in", "", json!({ "name": "dana", "password": load::PASSWORD })).await;
    let posted =
        futures::future::join_all((0..20).map(|i| {
            app.post("/api/rooms/incident-4711/messages", &cookie, json!({ "body": format!("at once {i}") }))
        }))
        .await;
    let mut seqs: Vec<i64> = posted.iter().map(|(_, message, _)| message["seq"].as_i64().unwrap()).collect();
    seqs.sort_unstable();
    // A number may be lost: a post that comes upon a counter that is behind takes another one.
    assert!(seqs.windows(2).all(|two| two[0] < two[1]), "posts at once get numbers of their own: {seqs:?}");
    assert!((seqs.len(), seqs[0] > 30) == (20, true), "{seqs:?}");
    let n = &posted[0].1["n"];
    let path = format!("/api/rooms/{INCIDENT}/messages/{n}/reactions");
    for (emoji, status) in
        [("🚀", StatusCode::OK), ("👍", StatusCode::OK), ("🚀", StatusCode::OK), ("x", StatusCode::BAD_REQUEST)]
    {
        assert_eq!(app.post(&path, &cookie, json!({ "emoji": emoji })).await.0, status);
    }
    let (_, page, _) = app.get(&format!("/api/rooms/{INCIDENT}/messages?limit=200"), "").await;
    let message = page["messages"].as_array().unwrap().iter().find(|m| &m["n"] == n).unwrap();
    assert_eq!(message["reactions"], json!([{ "emoji": "👍", "count": 1 }]), "given twice is taken back");
    app.stop().await.unwrap();
    let findings = new.check().await.unwrap();
    assert_eq!((findings.broken, findings.drift), (0, 0), "{findings:?}");
}

async fn damage_is_found_by_the_check(server: &Server) {
    let store = connected(server, Version::V1_5_0).await;
    let room = |text| Slug::parse(text).unwrap();
    assert!(matches!(store.damage(&room("nowhere"), 5).await, Err(StoreError::Absent { .. })));
    let damage = store.damage(&room(INCIDENT), 25).await.unwrap();
    assert_eq!((damage.deleted, damage.garbled), (50, 25));
    let findings = store.check().await.unwrap();
    assert!(findings.broken >= 1, "{findings:?}");
    assert!(findings.examples.iter().any(|words| words.contains(&damage.upload.unwrap().to_string())), "{findings:?}");
    // A load that may replace everything makes it whole again, in the new schema too.
    let loaded = load::load(&store, SIZES, true).await.unwrap();
    assert_eq!(loaded.sizes, History::new(SIZES).sizes());
    let findings = store.check().await.unwrap();
    assert_eq!((findings.broken, findings.drift), (0, 0), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgres_shape_lives_a_whole_life() {
    if let Some(server) = postgres().await {
        whole_life(&server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mongodb_shape_lives_a_whole_life() {
    if let Some(server) = mongodb().await {
        whole_life(&server).await;
    }
}

#[tokio::test]
async fn a_database_that_nobody_answers_for_is_named_and_not_waited_for_longer_than_told() {
    for address in ["postgres://nobody:secret@127.0.0.1:1/x", "mongodb://127.0.0.1:1/x?serverSelectionTimeoutMS=300"] {
        let database = if address.starts_with("mongodb") {
            Database::Mongo { uri: address.into() }
        } else {
            Database::Postgres { url: address.into(), uploads: std::env::temp_dir() }
        };
        let config = Config { version: Version::V1_4_2, database, title: String::new() };
        let started = world::Stopwatch::start();
        let error = store::connect(&config, Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
        assert!(!error.to_string().contains("secret"));
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}
