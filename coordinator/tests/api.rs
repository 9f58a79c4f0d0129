//! The API as it is served: tokens, roles, teams, and what it does with input that nobody should send.
#![expect(clippy::unwrap_used, reason = "a test's helpers stop at the first surprise")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_catalog_db::{
    Catalog,
    access::Actor,
    environments::Environment,
    images::Image,
    model::{EnvironmentState, Role},
};
use ocopea_coordinator::{
    Coordinator,
    api::{self, KeyFile, OpenConnection, SiteAccess, exec},
    tokens,
    vault::Vault,
};
use ocopea_protocol::{
    bus::in_process::InProcessBus,
    failure::TaskFailure,
    ids::{EnvironmentId, ImageId, InstanceId},
    image::Location,
    message::{SiteReport, SiteState},
    names::Digest,
    seams::Seams,
    secret::Secret32,
};
use ocopea_repository::{Keyring, Repository};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// No site is here: what would go to one says so.
struct NoSites;

fn absent() -> TaskFailure {
    TaskFailure::permanent("site.absent", "can't reach the site", "there is none")
}

#[async_trait]
impl SiteAccess for NoSites {
    fn look_again(&self, _: &str) -> bool {
        false
    }

    async fn logs(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: bool,
    ) -> Result<BoxStream<'static, Result<Bytes, std::io::Error>>, TaskFailure> {
        Err(absent())
    }

    async fn connect(&self, _: &str, _: &str, _: &str, _: u16) -> Result<OpenConnection, TaskFailure> {
        Err(absent())
    }

    async fn exec(&self, _: &str, _: &str, _: &exec::ExecQuery, _: Vec<String>) -> Result<exec::Started, TaskFailure> {
        Err(absent())
    }
}

impl KeyFile for NoSites {
    fn store(&self, _: &Keyring) -> Result<(), String> {
        Err("no key file here".to_owned())
    }
}

fn report(seams: &Seams) -> SiteReport {
    SiteReport {
        instance: InstanceId::generate(seams),
        at: seams.clock.now(),
        agent_version: String::new(),
        state: SiteState::Ready,
        platform: "Kubernetes".to_owned(),
        nodes: 1,
        architectures: vec![],
        data_kinds: vec![],
        may_create_namespaces: true,
        registry: None,
        storage_classes: vec![],
        missing: vec![],
        applications: vec![],
    }
}

struct Server {
    directory: std::path::PathBuf,
    url: String,
    catalog: Catalog,
    actor: Actor,
    http: reqwest::Client,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

struct Answer {
    status: StatusCode,
    kind: String,
    body: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Server {
    async fn start() -> Self {
        // Twice in one process is once too often, and harmless.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let seams = Seams::real(TaskTracker::new());
        let catalog = Catalog::sqlite(&directory.path().join("catalog.sqlite"), seams.clone()).await.unwrap();
        let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
        let site = catalog.ensure_site("desk").await.unwrap();
        catalog.report_site(site, &report(&seams)).await.unwrap();
        catalog.ensure_site("silent").await.unwrap();
        let place = directory.path().join("repository");
        let location = Location::Directory { path: place.to_str().unwrap().to_owned() };
        let repository = Repository::create(&location, &Keyring::generate(&seams), &seams).await.unwrap();
        let vault = Vault::new(&Secret32([5; 32])).unwrap();
        let bus = Arc::new(InProcessBus::new(seams.clone()));
        let served = seams.clone();
        let coordinator = Coordinator::new(catalog.clone(), repository, vault, bus, seams);
        let stop = CancellationToken::new();
        coordinator.start(&stop);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = api::router(api::State { coordinator, access: Arc::new(NoSites), keys: Arc::new(NoSites) });
        let stopped = stop.clone();
        tokio::spawn(api::serve(listener, router, served, stopped));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { directory: directory.path().to_owned(), url, catalog, actor, http, stop, _directory: directory }
    }

    async fn token(&self, actor: &Actor, scope: Role) -> String {
        tokens::issue(&self.catalog, actor, "test", scope, None).await.unwrap().reveal().to_owned()
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}{path}", self.url));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let status = response.status();
        let kind = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        // A stream that goes on for ever is not read to its end.
        let body =
            if kind.starts_with("text/event-stream") { Vec::new() } else { response.bytes().await.unwrap().to_vec() };
        let answer = Answer { status, kind, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
        if status.is_client_error() || status.is_server_error() {
            answer.is_a_problem();
        }
        answer
    }

    async fn post(&self, path: &str, token: &str, body: &Value) -> Answer {
        self.ask(self.request("post", path, Some(token)).json(body)).await
    }
}

impl Answer {
    fn is_a_problem(&self) {
        assert_eq!(self.kind, "application/problem+json", "{} {}", self.status, self.body);
        assert_eq!(self.body["status"], self.status.as_u16(), "{}", self.body);
        for field in ["type", "title", "detail"] {
            assert!(self.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", self.body);
        }
    }
}

const NOBODY: &str = "018f0000-0000-7000-8000-000000000001";

/// Every operation of the API: the role that it needs, and a body that is well-formed.
fn operations() -> BTreeMap<&'static str, (Role, Value)> {
    use Role::{Administrator, Operator, Viewer};
    let save = json!({"site": "desk", "namespace": "shop"});
    BTreeMap::from([
        ("get /api/v1/applications", (Viewer, Value::Null)),
        ("get /api/v1/environments", (Viewer, Value::Null)),
        ("get /api/v1/environments/{environment}", (Viewer, Value::Null)),
        ("delete /api/v1/environments/{environment}", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/connections/{service}", (Operator, Value::Null)),
        ("post /api/v1/environments/{environment}/exec", (Operator, Value::Null)),
        ("get /api/v1/environments/{environment}/logs", (Viewer, Value::Null)),
        ("get /api/v1/images", (Viewer, Value::Null)),
        ("get /api/v1/images/{image}", (Viewer, Value::Null)),
        ("delete /api/v1/images/{image}", (Operator, Value::Null)),
        ("post /api/v1/images/{image}/comments", (Operator, json!({"body": "text"}))),
        ("patch /api/v1/images/{image}/labels", (Operator, json!({"labels": {"a": "b"}}))),
        ("post /api/v1/inspections", (Viewer, save.clone())),
        ("get /api/v1/me", (Viewer, Value::Null)),
        ("get /api/v1/operations", (Viewer, Value::Null)),
        ("get /api/v1/operations/{id}", (Viewer, Value::Null)),
        ("post /api/v1/operations/{id}/cancel", (Operator, Value::Null)),
        ("get /api/v1/operations/{id}/events", (Viewer, Value::Null)),
        ("post /api/v1/repository/collections", (Administrator, json!({"grace_s": 3600}))),
        ("get /api/v1/repository/keys", (Administrator, Value::Null)),
        ("post /api/v1/repository/keys", (Administrator, json!({"rotate": false}))),
        ("delete /api/v1/repository/keys/{key}", (Administrator, Value::Null)),
        ("post /api/v1/repository/reindexes", (Administrator, Value::Null)),
        ("post /api/v1/repository/verifications", (Operator, json!({}))),
        ("post /api/v1/restores", (Operator, json!({"image": NOBODY, "site": "desk", "name": "copy"}))),
        ("post /api/v1/saves", (Operator, save)),
        ("get /api/v1/sites", (Viewer, Value::Null)),
        ("get /api/v1/tokens", (Viewer, Value::Null)),
        ("post /api/v1/tokens", (Viewer, json!({"name": "t", "scope": "viewer"}))),
        ("delete /api/v1/tokens/{id}", (Viewer, Value::Null)),
    ])
}

fn filled(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('/').skip(1) {
        out.push('/');
        out.push_str(match part {
            "{id}" | "{image}" => NOBODY,
            "{environment}" | "{service}" | "{key}" => "nothing",
            other => other,
        });
    }
    if path.ends_with("/exec") {
        out.push_str("?command=[%22ls%22]");
    }
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_wants_a_token_and_the_role_that_is_written_down_for_it() {
    let server = Server::start().await;
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    let mut documented: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        documented.extend(methods.as_object().unwrap().keys().map(|method| format!("{method} {path}")));
    }
    documented.retain(|one| one != "post /api/v1/sign-in");
    documented.sort();
    let mut table: Vec<&str> = operations().into_keys().collect();
    table.sort_unstable();
    assert_eq!(documented, table, "an operation without a line in the table, or a line without an operation");
    let mut of_role = BTreeMap::new();
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        let member = server.catalog.ensure_member("team", role.as_str(), role).await.unwrap();
        of_role.insert(role, server.token(&member, role).await);
    }
    for (operation, (wanted, body)) in operations() {
        let (method, path) = operation.split_once(' ').unwrap();
        let path = filled(path);
        for token in [None, Some("ocopea_0000"), Some(""), Some("\u{7f}")] {
            let request = match token {
                Some("\u{7f}") => server.request(method, &path, None).header("Authorization", "Basic dXNlcjpwYXNz"),
                token => server.request(method, &path, token),
            };
            let answer = server.ask(request.json(&body)).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{operation} with {token:?}");
            assert!(answer.body["next"].as_str().unwrap().contains("sign"));
        }
        for (role, token) in &of_role {
            let answer = server.ask(server.request(method, &path, Some(token)).json(&body)).await;
            let forbidden = answer.status == StatusCode::FORBIDDEN;
            assert_eq!(
                forbidden,
                *role < wanted,
                "{operation} as {}: {} {}",
                role.as_str(),
                answer.status,
                answer.body
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_code_is_exchanged_once_and_a_revoked_token_ends_at_once() {
    let server = Server::start().await;
    let expires = server.catalog.seams.clock.now().plus(Duration::from_secs(60));
    server.catalog.add_sign_in_code(server.actor.user, &tokens::hash("code_x"), expires).await.unwrap();
    let both = futures::future::join_all(
        (0..4).map(|_| server.ask(server.request("post", "/api/v1/sign-in", None).json(&json!({"code": "code_x"})))),
    )
    .await;
    let fine: Vec<&Answer> = both.iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(fine.len(), 1);
    let token = fine[0].body["token"].as_str().unwrap().to_owned();
    let me = server.ask(server.request("get", "/api/v1/me", Some(&token))).await;
    assert_eq!((me.body["user"].as_str(), me.body["role"].as_str()), (Some("dana"), Some("administrator")));
    let viewer = server.token(&server.actor, Role::Viewer).await;
    // What was given away for one purpose makes nothing that outlives it, and ends nobody else's.
    let more = server.post("/api/v1/tokens", &viewer, &json!({"name": "t", "scope": "viewer"})).await;
    assert_eq!(more.status, StatusCode::FORBIDDEN, "{}", more.body);
    let member = server.catalog.ensure_member("team", "vic", Role::Viewer).await.unwrap();
    let own = server.token(&member, Role::Viewer).await;
    let more = server.post("/api/v1/tokens", &own, &json!({"name": "t", "scope": "administrator"})).await;
    assert_eq!(more.status, StatusCode::UNPROCESSABLE_ENTITY, "a token never allows more than its maker");
    let own = server.ask(server.request("get", "/api/v1/tokens", Some(&token))).await;
    assert!(!own.body.to_string().contains(&token), "no secret is shown twice");
    for one in own.body.as_array().unwrap().iter().filter(|one| one["name"] == "test") {
        let path = format!("/api/v1/tokens/{}", one["id"].as_str().unwrap());
        let ended = server.ask(server.request("delete", &path, Some(&viewer))).await;
        assert!(ended.status == StatusCode::FORBIDDEN, "{}", ended.body);
        let ended = server.ask(server.request("delete", &path, Some(&token))).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT);
    }
    let me = server.ask(server.request("get", "/api/v1/me", Some(&viewer))).await;
    assert_eq!(me.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_should_send_is_refused_in_words_and_harms_nothing() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Administrator).await;
    let long = "x".repeat(10_000);
    let names = [
        "../../etc",
        "a/b",
        "nul\0",
        "line\r\nbreak",
        "\"quoted\"",
        "'; drop table images",
        "",
        " ",
        &long,
        "UPPER",
        "-",
    ];
    for name in names {
        for body in [
            json!({"site": "desk", "namespace": name}),
            json!({"site": name, "namespace": "shop"}),
            json!({"site": "desk", "namespace": "shop", "labels": {name: "v\0"}}),
            json!({"site": "desk", "namespace": "shop", "credentials": [{"service": name, "user": "u", "password": "p"}]}),
        ] {
            let answer = server.post("/api/v1/saves", &token, &body).await;
            assert!(answer.status.is_client_error(), "{body:.200}: {} {}", answer.status, answer.body);
        }
        let restore = json!({"image": name, "site": "desk", "name": name});
        let answer = server.post("/api/v1/restores", &token, &restore).await;
        assert!(answer.status.is_client_error(), "{name:.50}: {}", answer.body);
        let escaped: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for path in ["images", "environments", "operations"] {
            let answer = server.ask(server.request("get", &format!("/api/v1/{path}/{escaped}"), Some(&token))).await;
            assert!(escaped.is_empty() || answer.status.is_client_error(), "{path}/{escaped:.60}: {}", answer.status);
        }
        let answer = server
            .ask(server.request("get", &format!("/api/v1/images?q={escaped}&cursor={escaped}"), Some(&token)))
            .await;
        assert!(answer.status.is_success() || answer.status.is_client_error(), "{escaped:.60}: {}", answer.body);
    }
    for (body, status) in [
        ("{", 400),
        ("", 400),
        ("[]", 422),
        ("null", 422),
        ("{\"site\":1,\"namespace\":\"x\"}", 422),
        ("{\"site\":\"desk\"}", 422),
        ("{\"site\":\"desk\",\"namespace\":\"shop\",\"unknown\":1}", 422),
    ] {
        let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
        let answer = server.ask(request.body(body)).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.body);
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
    assert!(server.ask(request.body(deep)).await.status.is_client_error());
    // Who sends too much is told so, not cut off in the middle of sending: with a length and without.
    for round in 0..20 {
        let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "application/json");
        let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
        let pieces = futures::stream::iter((0..5).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
        let body: reqwest::Body =
            if round % 2 == 0 { vec![b' '; 5 << 20].into() } else { reqwest::Body::wrap_stream(pieces) };
        let large = server.ask(request.body(body)).await;
        assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", large.body);
    }
    let request = server.request("post", "/api/v1/saves", Some(&token)).header("Content-Type", "text/plain");
    assert!(server.ask(request.body("{}")).await.status.is_client_error());
    for (method, path, status) in [
        ("put", "/api/v1/images", 405),
        ("get", "/api/v1/nothing", 404),
        ("get", "/api/v1/images?limit=many", 400),
        ("get", "/api/v1/images?limit=-1", 400),
        ("get", "/api/v1/images?lable=bug", 400),
        ("get", "/api/v1/environments?x=1", 400),
        ("get", "/api/v1/environments/nothing/logs?tail=1", 400),
        ("get", "/api/v1/operations?cursor=no", 422),
        ("get", "/api/v1/operations/no", 422),
        ("get", "/%ff", 404),
    ] {
        let answer = server.ask(server.request(method, path, Some(&token))).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
    }
    // What is no request at all, or too long for one, by hand: the client's library would not send it.
    for (request, status) in [
        (format!("GET /api/v1/images?q={} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(70_000)), 414),
        ("NO HTTP\r\n\r\n".to_owned(), 400),
    ] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/problem+json"), "{head}");
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["status"], status, "{answer}");
    }
    let many = server.request("get", "/api/v1/images", Some(&token)).header("X-Long", "x".repeat(600_000));
    assert_eq!(server.ask(many).await.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let words = format!("/api/v1/images?q={}", "x+".repeat(1000));
    assert_eq!(server.ask(server.request("get", &words, Some(&token))).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(server.catalog.open_operations().await.unwrap().is_empty(), "nothing of that was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_twice_at_once_is_one_operation_and_its_events_go_on_where_they_broke_off() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let save = |namespace: &str| {
        let body = json!({"site": "desk", "namespace": namespace});
        server.request("post", "/api/v1/saves", Some(&token)).header("Idempotency-Key", "one").json(&body)
    };
    let all = futures::future::join_all((0..100).map(|_| server.ask(save("shop")))).await;
    let ids: Vec<String> = all.iter().map(|answer| answer.body["operation"].to_string()).collect();
    assert!(all.iter().all(|answer| answer.status == StatusCode::ACCEPTED), "{ids:?}");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(server.ask(save("other")).await.status, StatusCode::CONFLICT);
    let id = all[0].body["operation"].as_str().unwrap();
    let path = format!("/api/v1/operations/{id}/events");
    let read = async |last: Option<&str>| {
        let mut request = server.request("get", &path, Some(&token));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut stream = response.bytes_stream();
        let mut text = String::new();
        while !text.contains("\n\n") {
            text.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
        }
        text
    };
    let first = read(None).await;
    assert!(first.contains("data:") && first.contains("id:"), "{first}");
    let last = first.lines().find_map(|line| line.strip_prefix("id:")).unwrap().trim().to_owned();
    // Something new happens; who comes back gets it.
    let cancel = server.ask(server.request("post", &format!("/api/v1/operations/{id}/cancel"), Some(&token))).await;
    assert!(cancel.status.is_success(), "{}", cancel.body);
    let again = read(Some(&last)).await;
    assert!(again.contains("data:") && !again.contains(&format!("id: {last}\n")), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_the_token_that_opened_it() {
    let server = Server::start().await;
    let (own, given) =
        (server.token(&server.actor, Role::Administrator).await, server.token(&server.actor, Role::Viewer).await);
    // No agent takes it: it stays as it is.
    let save = server.post("/api/v1/saves", &own, &json!({"site": "desk", "namespace": "shop"})).await;
    let path = format!("/api/v1/operations/{}/events", save.body["operation"].as_str().unwrap());
    let (kept, ended) = (server.request("get", &path, Some(&own)), server.request("get", &path, Some(&given)));
    let (kept, ended) = (kept.send().await.unwrap(), ended.send().await.unwrap());
    let tokens = server.ask(server.request("get", "/api/v1/tokens", Some(&own))).await;
    let viewer = tokens.body.as_array().unwrap().iter().find(|token| token["scope"] == "viewer").unwrap();
    let path = format!("/api/v1/tokens/{}", viewer["id"].as_str().unwrap());
    assert_eq!(server.ask(server.request("delete", &path, Some(&own))).await.status, StatusCode::NO_CONTENT);
    let rest = ended.bytes_stream().for_each(|_| std::future::ready(()));
    tokio::time::timeout(Duration::from_secs(30), rest).await.expect("a revoked token's stream ends");
    let rest = kept.bytes_stream().for_each(|_| std::future::ready(()));
    assert!(tokio::time::timeout(Duration::from_secs(1), rest).await.is_err(), "the other's goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_builds_on_the_image_that_its_bytes_are_most_likely_in() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let add = async |application: &str| {
        let image = image(&server, &server.actor, "base", application);
        let transaction = server.catalog.begin().await.unwrap();
        transaction.add_image(&image).await.unwrap();
        transaction.commit().await.unwrap();
        // The next is newer by more than a clock's smallest step.
        tokio::time::sleep(Duration::from_millis(5)).await;
        image.record.to_string()
    };
    let base = async |namespace: &str| {
        let save = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": namespace})).await;
        let id = save.body["operation"].as_str().unwrap().parse().unwrap();
        let operation = server.catalog.operation(server.actor.team, id).await.unwrap();
        serde_json::from_str::<Value>(&operation.context).unwrap()["base"].clone()
    };
    assert_eq!(base("copy").await, Value::Null);
    let earlier = add("copy").await;
    assert_eq!(base("copy").await, json!(earlier));
    // Another copy of the same name was made since: its bytes are those of the image that it came from.
    let (image, _) = furnish(&server, &server.actor, "copy").await;
    let from = server.catalog.image(server.actor.team, &image.to_string()).await.unwrap().record.to_string();
    assert_eq!(base("copy").await, json!(from));
    tokio::time::sleep(Duration::from_millis(5)).await;
    let later = add("copy").await;
    assert_eq!(base("copy").await, json!(later));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_team_is_not_found() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let theirs = server.token(&stranger, Role::Administrator).await;
    let save = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    let id = save.body["operation"].as_str().unwrap();
    for (method, path) in [
        ("get", format!("/api/v1/operations/{id}")),
        ("get", format!("/api/v1/operations/{id}/events")),
        ("post", format!("/api/v1/operations/{id}/cancel")),
    ] {
        let ours = server.ask(server.request(method, &path, Some(&theirs))).await;
        assert_eq!(ours.status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    let list = server.ask(server.request("get", "/api/v1/operations", Some(&theirs))).await;
    assert_eq!(list.body["items"].as_array().unwrap().len(), 0);
    let own = server.ask(server.request("get", "/api/v1/operations", Some(&token))).await;
    assert_eq!(own.body["items"].as_array().unwrap().len(), 1);
}

/// An image, and an environment of it, as if they had been made.
async fn furnish(server: &Server, owner: &Actor, name: &str) -> (ImageId, EnvironmentId) {
    let seams = &server.catalog.seams;
    let image = image(server, owner, name, "shop");
    let environment = Environment {
        id: EnvironmentId::generate(seams),
        team: owner.team,
        name: name.to_owned(),
        site: server.catalog.site("desk").await.unwrap().id,
        image: image.id,
        record: image.record,
        state: EnvironmentState::Running,
        url: None,
        owner: owner.user_name.clone(),
        placements: vec![],
        created: seams.clock.now(),
    };
    let transaction = server.catalog.begin().await.unwrap();
    transaction.add_image(&image).await.unwrap();
    transaction.add_comment(image.id, &owner.user_name, &format!("comment of {name}")).await.unwrap();
    transaction.add_environment(&environment).await.unwrap();
    transaction.commit().await.unwrap();
    (image.id, environment.id)
}

/// An image that was saved at this moment; it isn't in the catalog yet.
fn image(server: &Server, owner: &Actor, name: &str, application: &str) -> Image {
    let seams = &server.catalog.seams;
    let mut record = [0u8; 32];
    seams.entropy.fill(&mut record);
    Image {
        id: ImageId::generate(seams),
        team: owner.team,
        record: Digest(record),
        name: name.to_owned(),
        application: application.to_owned(),
        site: "desk".to_owned(),
        creator: owner.user_name.clone(),
        comment: String::new(),
        bytes: 1,
        new_bytes: 1,
        created: seams.clock.now(),
        labels: BTreeMap::from([("of".to_owned(), name.to_owned())]),
        body: json!({"components": []}).to_string(),
    }
}

/// What an operation of the API has to do with teams.
enum Of {
    /// It names one thing of a team: another's isn't found.
    One,
    /// It lists a team's things.
    Many,
    /// It belongs to the person who asks.
    Person,
    /// It belongs to the installation.
    Installation,
}

fn ownership(operation: &str) -> Option<Of> {
    Some(match operation.split_once(' ')?.1 {
        "/api/v1/images/{image}"
        | "/api/v1/images/{image}/comments"
        | "/api/v1/images/{image}/labels"
        | "/api/v1/environments/{environment}"
        | "/api/v1/environments/{environment}/connections/{service}"
        | "/api/v1/environments/{environment}/exec"
        | "/api/v1/environments/{environment}/logs"
        | "/api/v1/operations/{id}"
        | "/api/v1/operations/{id}/cancel"
        | "/api/v1/operations/{id}/events"
        | "/api/v1/restores"
        | "/api/v1/repository/verifications"
        | "/api/v1/tokens/{id}" => Of::One,
        "/api/v1/images" | "/api/v1/environments" | "/api/v1/operations" | "/api/v1/applications" => Of::Many,
        "/api/v1/me" | "/api/v1/tokens" => Of::Person,
        "/api/v1/sites"
        | "/api/v1/inspections"
        | "/api/v1/saves"
        | "/api/v1/repository/collections"
        | "/api/v1/repository/reindexes"
        | "/api/v1/repository/keys"
        | "/api/v1/repository/keys/{key}" => Of::Installation,
        _ => return None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_of_the_api_shows_or_changes_what_is_another_teams() {
    let server = Server::start().await;
    let stranger = server.catalog.ensure_member("other", "eve", Role::Administrator).await.unwrap();
    let (image, environment) = furnish(&server, &server.actor, "dana-s").await;
    furnish(&server, &stranger, "eve-s").await;
    let ours = server.token(&server.actor, Role::Administrator).await;
    let theirs = server.token(&stranger, Role::Administrator).await;
    let save = server.post("/api/v1/saves", &ours, &json!({"site": "desk", "namespace": "shop"})).await;
    let operation = save.body["operation"].as_str().unwrap().to_owned();
    let tokens = server.ask(server.request("get", "/api/v1/tokens", Some(&ours))).await;
    let token = tokens.body[0]["id"].as_str().unwrap().to_owned();
    let secrets = [image.to_string(), environment.to_string(), operation.clone(), token.clone(), "dana".to_owned()];
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    let bodies = operations();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let name = format!("{method} {path}");
            if name == "post /api/v1/sign-in" {
                continue;
            }
            let of = ownership(&name).unwrap_or_else(|| panic!("{name} is in no class: whose is it?"));
            let of_token = path.starts_with("/api/v1/tokens");
            // By id, and where there is one by name.
            for by_name in [false, true] {
                let pick = |id: String| if by_name { "dana-s".to_owned() } else { id };
                let mut target = path
                    .replace("{image}", &pick(image.to_string()))
                    .replace("{environment}", &pick(environment.to_string()))
                    .replace("{id}", if of_token { &token } else { &operation })
                    .replace("{service}", "db")
                    .replace("{key}", "none");
                if target.ends_with("/exec") {
                    target.push_str("?command=[%22ls%22]");
                }
                let body = match name.as_str() {
                    "post /api/v1/restores" => {
                        json!({"image": pick(image.to_string()), "site": "desk", "name": "copy"})
                    }
                    "post /api/v1/repository/verifications" => json!({"image": pick(image.to_string())}),
                    _ => bodies[name.as_str()].1.clone(),
                };
                let mut request = server.request(method, &target, Some(&theirs)).json(&body);
                if target.contains("/exec") {
                    request = request.header("Upgrade", "ocopea-exec").header("Connection", "Upgrade");
                }
                let answer = server.ask(request).await;
                let text = answer.body.to_string();
                match of {
                    Of::One => assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name} {target}: {text}"),
                    Of::Many | Of::Person | Of::Installation => {
                        let seen: Vec<_> = secrets.iter().filter(|secret| text.contains(*secret)).collect();
                        assert!(seen.is_empty(), "{name}: {seen:?} in {text}");
                    }
                }
            }
        }
    }
    // And nothing of it has changed.
    let image = server.ask(server.request("get", &format!("/api/v1/images/{image}"), Some(&ours))).await;
    assert_eq!(image.body["labels"], json!({"of": "dana-s"}));
    assert_eq!(image.body["comments"].as_array().unwrap().len(), 1);
    let one = server.ask(server.request("get", &format!("/api/v1/operations/{operation}"), Some(&ours))).await;
    assert_eq!(one.body["state"], "running");
    assert_eq!(server.ask(server.request("get", "/api/v1/me", Some(&ours))).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_answered_though_what_it_asked_for_is_gone() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Administrator).await;
    furnish(&server, &server.actor, "shop").await;
    let ask = |method: &'static str, path: &'static str, key: &'static str, body: Value| {
        server.ask(server.request(method, path, Some(&token)).header("Idempotency-Key", key).json(&body))
    };
    let first = ask("delete", "/api/v1/images/shop", "one", Value::Null).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{}", first.body);
    let gone = server.ask(server.request("get", "/api/v1/images/shop", Some(&token))).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let again = ask("delete", "/api/v1/images/shop", "one", Value::Null).await;
    assert_eq!((again.status, &again.body), (StatusCode::ACCEPTED, &first.body));
    let anew = ask("delete", "/api/v1/images/shop", "two", Value::Null).await;
    assert_eq!(anew.status, StatusCode::NOT_FOUND);
    // The same key for something that only looks alike.
    let other = ask("delete", "/api/v1/environments/shop", "one", Value::Null).await;
    assert_eq!(other.status, StatusCode::CONFLICT, "{}", other.body);
    let first = ask("delete", "/api/v1/environments/shop", "three", Value::Null).await;
    assert_eq!(first.status, StatusCode::ACCEPTED, "{}", first.body);
    let again = ask("delete", "/api/v1/environments/shop", "three", Value::Null).await;
    assert_eq!(again.body, first.body);
    // Without a key it is another wish: what is being removed is not removed by two.
    let second = server.ask(server.request("delete", "/api/v1/environments/shop", Some(&token))).await;
    let operation = first.body["operation"].as_str().unwrap();
    assert_eq!(second.status, StatusCode::CONFLICT);
    assert!(second.body["detail"].as_str().unwrap().contains(operation), "{}", second.body);
    // What isn't an operation is repeated harmlessly, too.
    furnish(&server, &server.actor, "other").await;
    let document: Value = serde_json::from_str(&api::openapi()).unwrap();
    for path in ["/api/v1/saves", "/api/v1/restores", "/api/v1/inspections", "/api/v1/repository/verifications"] {
        let parameters = document["paths"][path]["post"]["parameters"].to_string();
        assert!(parameters.contains("Idempotency-Key"), "{path}: {parameters}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_at_its_time_and_an_unattended_site_takes_nothing() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Administrator).await;
    for wrong in [json!(0), json!(-1), json!("1h"), json!(u64::MAX)] {
        let body = json!({"name": "t", "scope": "viewer", "expires_s": wrong});
        assert_eq!(server.post("/api/v1/tokens", &token, &body).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    let issued = server.post("/api/v1/tokens", &token, &json!({"name": "t", "scope": "viewer", "expires_s": 1})).await;
    let short = issued.body["token"].as_str().unwrap();
    assert_eq!(server.ask(server.request("get", "/api/v1/me", Some(short))).await.status, StatusCode::OK);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(server.ask(server.request("get", "/api/v1/me", Some(short))).await.status, StatusCode::UNAUTHORIZED);
    let listed = server.ask(server.request("get", "/api/v1/tokens", Some(&token))).await;
    assert!(listed.body.as_array().unwrap().iter().any(|one| one["expired"] == true), "{}", listed.body);
    let save = server.post("/api/v1/saves", &token, &json!({"site": "silent", "namespace": "shop"})).await;
    assert_eq!(save.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(save.body["detail"].as_str().unwrap().contains("silent"), "{}", save.body);
    assert!(server.catalog.open_operations().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_waits_for_its_grace_holds_up_nothing_and_can_be_stopped() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Administrator).await;
    // Something that no image needs.
    let garbage = b"garbage";
    let name = tokens::hash(std::str::from_utf8(garbage).unwrap());
    let place = server.directory.join("repository/blobs/sha256");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join(&name), garbage).unwrap();
    let state = async |id: &Value| {
        let path = format!("/api/v1/operations/{}", id.as_str().unwrap());
        server.ask(server.request("get", &path, Some(&token))).await.body
    };
    let ends = async |id: &Value| {
        for _ in 0..100 {
            let now = state(id).await;
            if now["ended"].is_string() {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it goes on: {}", state(id).await);
    };
    let collect = server.post("/api/v1/repository/collections", &token, &json!({"grace_s": 3600})).await;
    let collect = collect.body["operation"].clone();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state(&collect).await["state"], "running");
    furnish(&server, &server.actor, "shop").await;
    let delete = server.ask(server.request("delete", "/api/v1/images/shop", Some(&token))).await;
    assert_eq!(ends(&delete.body["operation"]).await["state"], "succeeded");
    let verify = server.post("/api/v1/repository/verifications", &token, &json!({})).await;
    let verified = ends(&verify.body["operation"]).await;
    assert!(verified["ended"].is_string(), "{verified}");
    let path = format!("/api/v1/operations/{}/cancel", collect.as_str().unwrap());
    assert_eq!(server.ask(server.request("post", &path, Some(&token))).await.status, StatusCode::ACCEPTED);
    assert_eq!(ends(&collect).await["state"], "cancelled");
}
