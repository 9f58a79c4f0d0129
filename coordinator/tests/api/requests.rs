//! Requests: what nobody should send, repeated ones, long ones.

use ocopea_coordinator::{
    engine::{self, Order},
    plan::{Context, Request, save::SaveRequest},
};
use ocopea_protocol::{
    seams::{BoxFuture, Clock},
    task::Source,
    time::Timestamp,
};

use super::*;

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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_measured_tells_of_requests_tasks_and_sites_and_of_no_private_one() {
    let server = Server::start().await;
    let token = server.token(&server.actor, Role::Operator).await;
    furnish(&server, &server.actor, "first").await;
    let begun = server.post("/api/v1/inspections", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED);
    server.ask(server.request("get", &format!("/api/v1/operations/{NOBODY}"), Some(&token))).await;
    let text = server.coordinator.measured().await;
    for line in [
        "ocopea_http_request_duration_seconds_count{method=\"POST\",route=\"/api/v1/inspections\",status=\"202\"} 1",
        "ocopea_http_request_duration_seconds_count{method=\"GET\",route=\"/api/v1/operations/{id}\",status=\"404\"} 1",
        "ocopea_tasks{site=\"desk\",state=\"ready\"} 1",
        "ocopea_operations{kind=\"inspect\",state=\"running\"} 1",
        "ocopea_catalog_up 1",
        "ocopea_bus_up 1",
        "ocopea_upkeep_failures_since_success{kind=\"collect\"} 0",
        "ocopea_site_last_report_timestamp_seconds{site=\"silent\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(
        text.contains("ocopea_application_last_save_timestamp_seconds{application=\"shop\",site=\"desk\"}"),
        "{text}"
    );
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(text.contains(&format!("# HELP {family} ")), "{family} has no help");
        let document = include_str!("../../../docs/metrics.md");
        assert!(document.contains(&format!("`{family}`")), "{family} is not in docs/metrics.md");
    }
    let private = Server::with(Some(Arc::new(agents::Broker::default()))).await;
    let token = private.token(&private.actor, Role::Operator).await;
    private.post("/api/v1/sites", &token, &json!({"name": "laptop", "private": true})).await;
    assert!(!private.coordinator.measured().await.contains("laptop"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_for_alerts_speaks_of_metrics_that_there_are() {
    let document = include_str!("../../../docs/metrics.md");
    let rules = include_str!("../../../docs/alerts.yml");
    let mut seen = 0;
    for expression in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for metric in words.filter(|word| word.starts_with("ocopea_")) {
            assert!(document.contains(&format!("`{metric}`")), "{metric}");
            seen += 1;
        }
    }
    assert!(seen >= 9, "{seen}");
}

/// A clock that is ahead by so many milliseconds.
struct Ahead(Arc<dyn Clock>, i64);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.now().0 + self.1)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.0.sleep(span)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_from_before_the_clock_was_put_back_begins_anew_though_nobody_saw_it_set() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("catalog.sqlite").display());
    let seams = Seams::real(TaskTracker::new());
    let (site, operation, actor) = {
        let ahead = Seams { clock: Arc::new(Ahead(Arc::clone(&seams.clock), 13 * 3_600_000)), ..seams.clone() };
        let catalog = Catalog::connect(&url, ahead.clone()).await.unwrap();
        let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
        let site = catalog.ensure_site("desk").await.unwrap();
        let source = Source {
            namespace: "shop".parse().unwrap(),
            selector: None,
            without: vec![],
            credentials: vec![],
            freeze: false,
        };
        let request = SaveRequest {
            source,
            sealed_credentials: None,
            name: "shop".to_owned(),
            labels: BTreeMap::new(),
            comment: String::new(),
        };
        let order = Order {
            repository: None,
            request: Request::Inspect(request),
            title: "inspect".to_owned(),
            site: Some(site),
            context: Context::default(),
            image: None,
            environment: None,
            removing: None,
        };
        let operation = engine::accept(&catalog, &actor, order, None).await.unwrap();
        let task = catalog.tasks(actor.team, operation).await.unwrap()[0].id;
        let transaction = catalog.begin().await.unwrap();
        let dead = InstanceId::generate(&ahead);
        transaction.claim(task, Some(site), dead, Duration::from_secs(20)).await.unwrap().unwrap();
        transaction.commit().await.unwrap();
        (site, operation, actor)
    };
    let server = Server::on(&url, directory.path(), seams.clone(), None).await;
    assert_eq!(server.catalog.site("desk").await.unwrap().id, site);
    for _ in 0..100 {
        let task = server.catalog.tasks(actor.team, operation).await.unwrap().remove(0);
        if task.lease_until.is_some_and(|until| until <= seams.clock.now().plus(Duration::from_secs(20))) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a dead one's task waits for hours");
}
