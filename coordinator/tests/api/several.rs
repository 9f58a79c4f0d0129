//! Several coordinators on one PostgreSQL: one effect of everything, whichever of them is asked, stopped or frozen.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use ocopea_coordinator::api::enrolment::{Admission, Quarantine};
use ocopea_protocol::{
    bus::AgentBus,
    ids::{OperationId, RepositoryId, SiteId},
    image::StoreLimits,
    message::{self, Request},
    seams::{BoxFuture, Clock, Faults},
    secret::Secret,
    task::{Claimed, Outcome},
    time::Timestamp,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{agents::Agent, postgres::Postgres, *};

/// A server and a repository that coordinators share.
struct Place {
    postgres: Postgres,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let postgres = Postgres::start(&[("max_connections", "200")]);
        postgres.psql("postgres", "CREATE DATABASE catalog");
        Self { postgres, directory: tempfile::tempdir().unwrap() }
    }

    fn url(&self, port: u16) -> String {
        let password = postgres::PASSWORD.replace('\'', "%27").replace(' ', "%20").replace('"', "%22");
        format!("postgres://postgres:{password}@127.0.0.1:{port}/catalog")
    }

    async fn coordinator(&self) -> Server {
        self.coordinator_through(self.postgres.port).await
    }

    async fn coordinator_through(&self, port: u16) -> Server {
        Server::on(&self.url(port), self.directory.path(), Seams::real(TaskTracker::new()), None).await
    }

    fn ask(&self, sql: &str) -> String {
        self.postgres.psql("catalog", sql)
    }

    fn number(&self, sql: &str) -> u64 {
        self.ask(sql).parse().unwrap()
    }
}

/// What must come about has come about by then, on however slow a machine.
const BY_THEN: Duration = Duration::from_secs(120);

/// Waits until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < BY_THEN, "not within {BY_THEN:?}: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An agent of that site, heard through several coordinators as one.
async fn agent(servers: &[&Server], site: &str) -> Vec<Agent> {
    let first = Agent::of(servers[0], site).await;
    assert_eq!(first.sign_in().await, message::Answer::Recorded);
    let through = servers[1..].iter().map(|server| {
        let instance = first.instance.clone();
        Agent { site: first.site, key: first.key.clone(), instance, bus: server.bus.agent(first.site) }
    });
    let others: Vec<_> = through.collect();
    std::iter::once(first).chain(others).collect()
}

async fn claim(agent: &Agent, turn: u64) -> Option<Claimed> {
    let message::Answer::Tasks(tasks) = agent.poll(turn, turn).await else { return None };
    let task = tasks.first()?.task;
    match agent.ask(Request::Claim { task, instance: agent.instance.id }).await {
        message::Answer::Granted { claimed, .. } => Some(claimed),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_a_hundred_times_to_two_coordinators_is_one_operation() {
    let place = Place::new();
    let (one, two) = tokio::join!(place.coordinator(), place.coordinator());
    let token = one.token(&one.actor, Role::Operator).await;
    for round in 0..3 {
        let (one, two, token) = (&one, &two, &token);
        let ask = |at: usize| async move {
            let server = if at.is_multiple_of(2) { one } else { two };
            loop {
                let body = json!({"site": "desk", "namespace": format!("shop-{round}")});
                let request = server.request("post", "/api/v1/saves", Some(token)).json(&body);
                let answer = server.ask(request.header("Idempotency-Key", format!("key {round}"))).await;
                // A machine that is busy with much else: asked again, as the answer says.
                if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                    return answer;
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let all = futures::future::join_all((0..100).map(ask)).await;
        let ids: Vec<_> = all.iter().map(|answer| answer.body["operation"].to_string()).collect();
        assert!(all.iter().all(|answer| answer.status == StatusCode::ACCEPTED), "{ids:?}");
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        assert_eq!(place.number("SELECT count(*) FROM operations"), round + 1);
        assert_eq!(place.number("SELECT count(*) FROM tasks"), round + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_added_at_one_coordinator_is_used_at_the_other_at_once() {
    let place = Place::new();
    let (one, two) = tokio::join!(place.coordinator(), place.coordinator());
    let token = one.token(&one.actor, Role::Administrator).await;
    // Over the API it would have to be a bucket: agents of a fleet reach no directory.
    let directory = place.directory.path().join("archive").to_str().unwrap().to_owned();
    let refused = one.post("/api/v1/repositories", &token, &json!({"name": "archive", "location": directory})).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", refused.body);
    let location = Location::Directory { path: directory };
    let ring = one.coordinator.repository(None).await.unwrap().keyring();
    let archive = Repository::create(&location, &StoreAccess::default(), &ring, &one.catalog.seams).await.unwrap();
    // Both know what there is; then there is more.
    for server in [&one, &two] {
        let list = server.ask(server.request("get", "/api/v1/repositories", Some(&token))).await;
        assert_eq!(list.body.as_array().unwrap().len(), 1, "{}", list.body);
    }
    let row = ocopea_catalog_db::repositories::Repository {
        id: RepositoryId::generate(&one.catalog.seams),
        name: "archive".to_owned(),
        location,
        access: "{}".to_owned(),
        sealed: None,
        limits: StoreLimits::default(),
        found: None,
        found_at: None,
        own_id: Some(archive.id()),
        is_given: false,
        is_default: false,
        created: one.catalog.seams.clock.now(),
    };
    let transaction = one.catalog.begin().await.unwrap();
    transaction.add_repository(&row).await.unwrap();
    transaction.commit().await.unwrap();
    let put = one.request("put", "/api/v1/repositories/archive/default", Some(&token));
    assert_eq!(one.ask(put).await.status, StatusCode::NO_CONTENT);
    // The other one was told nothing. Its save names none, and goes to what is the default one now.
    let save = two.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    assert_eq!(save.status, StatusCode::ACCEPTED, "{}", save.body);
    assert_eq!(place.ask("SELECT repository FROM operations"), row.id.to_string());
    let busy = one.ask(one.request("delete", "/api/v1/repositories/archive", Some(&token))).await;
    assert_eq!(busy.status, StatusCode::CONFLICT, "{}", busy.body);
}

/// A blob that nothing uses.
fn litter(server: &Server, number: u32) {
    let place = server.directory.join("repository/blobs/sha256");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join(format!("{number:064x}")), b"nobody's").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_asked_of_two_coordinators_run_one_after_the_other() {
    let place = Place::new();
    let (one, two) = tokio::join!(place.coordinator(), place.coordinator());
    let token = one.token(&one.actor, Role::Administrator).await;
    litter(&one, 0);
    let body = json!({"grace_s": 1});
    let asked = (0..4).map(|at| {
        let server = if at % 2 == 0 { &one } else { &two };
        server.post("/api/v1/repository/collections", &token, &body)
    });
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
    }
    let mut number = 0;
    until("all have run", async || {
        // Each has something to do, and does it for a second.
        number += 1;
        litter(&one, number);
        place.number("SELECT count(*) FROM operations WHERE state = 'succeeded'") == 4
    })
    .await;
    let overlaps = "SELECT count(*) FROM attempts a JOIN attempts b ON a.task < b.task \
                    AND a.started < b.ended AND b.started < a.ended";
    assert_eq!(place.number(overlaps), 0, "{}", place.ask("SELECT * FROM attempts ORDER BY started"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_stops_leaves_its_tasks_and_the_lead_to_another_at_once() {
    let place = Place::new();
    let one = place.coordinator().await;
    until("the only one leads", async || one.coordinator.leading().is_some()).await;
    let token = one.token(&one.actor, Role::Administrator).await;
    litter(&one, 1);
    let begun = one.post("/api/v1/repository/collections", &token, &json!({"grace_s": 600})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.body);
    let held = async |instance: InstanceId| {
        place.number(&format!("SELECT count(*) FROM tasks WHERE state = 'claimed' AND instance = '{instance}'")) == 1
    };
    until("it collects", async || held(one.coordinator.instance).await).await;
    let two = place.coordinator().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(two.coordinator.leading().is_none() && one.coordinator.leading().is_some());
    assert!(held(one.coordinator.instance).await, "the second one's start took nothing from the first");
    one.stop.cancel();
    until("the other leads and collects", async || {
        two.coordinator.leading().is_some() && held(two.coordinator.instance).await
    })
    .await;
    assert!(one.coordinator.leading().is_none());
    assert_eq!(place.ask("SELECT attempt FROM tasks"), "2");
}

/// Knows who was let in.
#[derive(Default)]
struct Broker(Mutex<std::collections::BTreeSet<SiteId>>);

#[async_trait]
impl SiteBroker for Broker {
    async fn admit(&self, site: SiteId) -> Result<Admission, TaskFailure> {
        self.0.lock().unwrap().insert(site);
        let password = Secret::new("secret".to_owned());
        Ok(Admission { url: "amqps://broker/".to_owned(), user: site.to_string(), password, certificates: None })
    }

    async fn expel(&self, site: SiteId) -> Result<(), TaskFailure> {
        self.0.lock().unwrap().remove(&site);
        Ok(())
    }

    async fn quarantined(&self, _: u32) -> Result<Quarantine, TaskFailure> {
        Ok(Quarantine::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_removed_through_one_has_no_word_at_the_other_within_five_seconds() {
    let place = Place::new();
    let seams = || Seams::real(TaskTracker::new());
    let url = place.url(place.postgres.port);
    let one = Server::on(&url, place.directory.path(), seams(), Some(Arc::new(Broker::default()))).await;
    let two = place.coordinator().await;
    let admin = one.token(&one.actor, Role::Administrator).await;
    let heard = agent(&[&one, &two], "edge").await;
    assert!(matches!(heard[0].poll(1, 1).await, message::Answer::Tasks(_)));
    assert!(matches!(heard[1].poll(2, 2).await, message::Answer::Tasks(_)));
    let gone = one.ask(one.request("delete", "/api/v1/sites/edge", Some(&admin))).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.body);
    assert!(matches!(heard[0].poll(3, 3).await, message::Answer::Ended { .. }), "at once where it was removed");
    let mut turn = 3;
    until("the other takes no word of it", async || {
        turn += 1;
        matches!(heard[1].poll(turn, turn).await, message::Answer::Ended { .. })
    })
    .await;
    assert!(matches!(heard[1].sign_in().await, message::Answer::Ended { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_found_though_each_of_them_speaks_to_another_coordinator() {
    let place = Place::new();
    let (one, two) = tokio::join!(place.coordinator(), place.coordinator());
    let (honest, clones) = (agent(&[&one, &two], "desk").await, agent(&[&one, &two], "lab").await);
    let begun = Instant::now();
    let mut ended = [false, false];
    // Turns as they are counted by each; the polls of an honest agent are answered in turn.
    for turn in 1..=150u64 {
        let answer = honest[usize::from(turn % 2 == 0)].poll(turn, turn * 7).await;
        assert!(matches!(answer, message::Answer::Tasks(_)), "turn {turn}: {answer:?}");
        for (at, mark) in [(0, turn * 11), (1, turn * 13)] {
            ended[at] |= matches!(clones[at].poll(turn, mark).await, message::Answer::Ended { .. });
        }
        if ended == [true, true] && begun.elapsed() > Duration::from_secs(12) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(ended, [true, true], "both lose their word");
    assert_eq!(place.number("SELECT count(*) FROM instances WHERE ended IS NOT NULL"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_by_one_that_died_is_relayed_by_the_leader_and_what_lives_is_relayed_once() {
    let place = Place::new();
    let one = place.coordinator().await;
    until("it leads", async || one.coordinator.leading().is_some()).await;
    let two = place.coordinator().await;
    let agents = agent(&[&one, &two], "desk").await;
    let token = one.token(&one.actor, Role::Operator).await;
    let body = json!({"site": "desk", "namespace": "shop"});
    // Through the one that doesn't lead: its own agents' way, and only that, for longer than a hint is left to it.
    assert_eq!(two.post("/api/v1/inspections", &token, &body).await.status, StatusCode::ACCEPTED);
    let heard = tokio::time::timeout(BY_THEN, agents[1].bus.next_hint()).await;
    assert!(heard.is_ok_and(|hint| hint.is_ok()), "no hint from who accepted it");
    let twice = tokio::time::timeout(Duration::from_secs(8), agents[0].bus.next_hint()).await;
    assert!(twice.is_err(), "published by the leader, too");
    // One that died before it published: nobody's who lives.
    place.ask(
        "INSERT INTO outbox (id, site, task, kind, created, origin) SELECT gen_random_uuid(), site, id, kind, created, \
         gen_random_uuid() FROM tasks WHERE site IS NOT NULL LIMIT 1",
    );
    let left = tokio::time::timeout(BY_THEN, agents[0].bus.next_hint()).await;
    assert!(left.is_ok_and(|hint| hint.is_ok()), "nobody published what was left");
    until("it is forgotten", async || place.number("SELECT count(*) FROM outbox") == 0).await;
}

/// A way to the database that can be cut at a commit.
struct Proxy {
    port: u16,
    cut: Arc<Mutex<Option<Cut>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The server never hears of it.
    Before,
    /// The server does it, and nobody hears of that.
    After,
}

impl Proxy {
    /// Cuts only what has this text written.
    async fn start(to: u16, text: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut: Arc<Mutex<Option<Cut>>> = Arc::default();
        let armed = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::spawn(Self::carry(client, server, text, Arc::clone(&armed)));
            }
        });
        Self { port, cut }
    }

    async fn carry(
        mut client: tokio::net::TcpStream,
        mut server: tokio::net::TcpStream,
        text: &'static str,
        armed: Arc<Mutex<Option<Cut>>>,
    ) {
        let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
        let has = |bytes: &[u8], what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
        let (mut written, mut silent) = (false, false);
        loop {
            tokio::select! {
                read = client.read(&mut from_client) => {
                    let Ok(length @ 1..) = read else { return };
                    let bytes = &from_client[..length];
                    written |= has(bytes, text);
                    if has(bytes, "COMMIT") && std::mem::take(&mut written) {
                        match armed.lock().unwrap().take() {
                            Some(Cut::Before) => return,
                            Some(Cut::After) => silent = true,
                            None => {}
                        }
                    }
                    if server.write_all(bytes).await.is_err() {
                        return;
                    }
                }
                read = server.read(&mut from_server) => {
                    let Ok(length @ 1..) = read else { return };
                    if silent || client.write_all(&from_server[..length]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_whose_commit_is_in_doubt_is_accepted_once() {
    let place = Place::new();
    let proxy = Proxy::start(place.postgres.port, "inspect desk/doubt").await;
    let server = place.coordinator_through(proxy.port).await;
    let token = server.token(&server.actor, Role::Operator).await;
    let mut expected = 0;
    for cut in [Cut::Before, Cut::After, Cut::Before, Cut::After] {
        for key in [true, false] {
            *proxy.cut.lock().unwrap() = Some(cut);
            let body = json!({"site": "desk", "namespace": format!("doubt-{expected}")});
            let mut request = server.request("post", "/api/v1/inspections", Some(&token)).json(&body);
            if key {
                request = request.header("Idempotency-Key", format!("doubt {expected}"));
            }
            let answer = server.ask(request).await;
            expected += 1;
            assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
            assert!(proxy.cut.lock().unwrap().is_none(), "nothing was cut");
            let id = answer.body["operation"].as_str().unwrap();
            assert_eq!(place.number(&format!("SELECT count(*) FROM operations WHERE id = '{id}'")), 1);
            assert_eq!(place.number("SELECT count(*) FROM operations"), expected);
            assert_eq!(place.number("SELECT count(*) FROM tasks"), expected);
        }
    }
}

/// Does what comes with one failure that is the last word, until it is stopped.
async fn work(agent: Agent, stop: CancellationToken) {
    let failure = TaskFailure::permanent("test.done", "can't inspect", "the test wants it so");
    let mut turn = 0;
    while !stop.is_cancelled() {
        turn += 1;
        let Some(claimed) = claim(&agent, turn).await else {
            if matches!(agent.poll(turn, turn).await, message::Answer::SignIn) {
                agent.sign_in().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let outcome = || Outcome::Failed(failure.clone());
        while let message::Answer::TryLater { .. } = agent.ask(Request::Finish { claimed, outcome: outcome() }).await {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_and_finished_while_the_database_is_cut_and_restarted_is_there_once() {
    const OPERATIONS: usize = 120;
    let mut place = Place::new();
    let (one, two) = tokio::join!(place.coordinator(), place.coordinator());
    let token = one.token(&one.actor, Role::Operator).await;
    let stop = CancellationToken::new();
    let key = agent(&[&one, &two], "desk").await.remove(0);
    let mut workers = Vec::new();
    for server in [&one, &two] {
        // Two processes of one site.
        let instance = agents::instance(server);
        let agent = Agent { site: key.site, key: key.key.clone(), instance, bus: server.bus.agent(key.site) };
        assert_eq!(agent.sign_in().await, message::Answer::Recorded);
        workers.push(tokio::spawn(work(agent, stop.clone())));
    }
    let refused = Arc::new(AtomicU32::new(0));
    let mut asking = Vec::new();
    for number in 0..OPERATIONS {
        let urls = [one.url.clone(), two.url.clone()];
        let (http, token, refused) = (one.http.clone(), token.clone(), Arc::clone(&refused));
        asking.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(60 * number as u64)).await;
            let mut tries = 0;
            loop {
                let url = format!("{}/api/v1/inspections", urls[(number + tries) % 2]);
                let body = json!({"site": "desk", "namespace": format!("shop-{number}")});
                let request = http.post(url).bearer_auth(&token).header("Idempotency-Key", format!("key {number}"));
                let response = request.timeout(Duration::from_secs(60)).json(&body).send().await.unwrap();
                let (status, after) = (response.status(), response.headers().get("retry-after").cloned());
                let body: Value = response.json().await.unwrap();
                if status == StatusCode::ACCEPTED {
                    return body["operation"].as_str().unwrap().to_owned();
                }
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
                assert!(after.is_some_and(|after| after.to_str().unwrap().parse::<u32>().is_ok()), "{body}");
                assert!(body["detail"].as_str().unwrap().contains("catalog"), "{body}");
                refused.fetch_add(1, Ordering::SeqCst);
                tries += 1;
                assert!(tries < 60, "{body}");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }));
    }
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'ocopea'";
    let mut cut_off = 0;
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cut_off += place.number(cut);
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Away for longer than a request waits, once.
        tokio::task::block_in_place(|| place.postgres.restart(Duration::from_millis([0, 100, 9000, 0][round])));
    }
    let mut ids = std::collections::BTreeSet::new();
    for asked in asking {
        ids.insert(asked.await.unwrap());
    }
    assert_eq!(ids.len(), OPERATIONS);
    assert!(cut_off > 0, "no connection was cut");
    assert!(refused.load(Ordering::SeqCst) > 0, "the database was never away for as long as a request waits");
    // A claim whose answer was lost is free again when its lease is over.
    until("all have ended", async || {
        place.number("SELECT count(*) FROM operations WHERE state = 'failed'") == OPERATIONS as u64
    })
    .await;
    stop.cancel();
    for worker in workers {
        worker.await.unwrap();
    }
    let all = OPERATIONS as u64;
    assert_eq!(place.number("SELECT count(*) FROM operations"), all);
    assert_eq!(place.number("SELECT count(*) FROM tasks"), all);
    assert_eq!(
        place.number("SELECT count(*) FROM attempts WHERE failure LIKE '%test.done%'"),
        all,
        "one effect of each"
    );
    assert_eq!(place.number("SELECT count(*) FROM audit WHERE action = 'inspect.request'"), all);
    assert!(ids.iter().all(|id| place.number(&format!("SELECT count(*) FROM operations WHERE id = '{id}'")) == 1));
}

const ROLE: &str = "OCOPEA_TEST_FROZEN";

/// A coordinator in a process of its own, which freezes by itself at a point of its code.
struct Frozen(Child);

impl Frozen {
    fn start(place: &Place, point: &str) -> Self {
        let told = format!("{point} {} {}", place.directory.path().display(), place.url(place.postgres.port));
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "several::the_process_that_is_frozen", "--nocapture", "--test-threads=1"])
            .env(ROLE, told)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    async fn that_leads(place: &Place, point: &str) -> Self {
        // Makes the repository, and is alone until it has.
        let maker = place.coordinator().await.coordinator.instance;
        let frozen = Self::start(place, point);
        let other = format!("SELECT count(*) FROM epochs WHERE name = 'leader' AND holder <> '{maker}'");
        until("it leads", async || place.number(&other) == 1).await;
        frozen
    }

    fn is_frozen(&self) -> bool {
        let line = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        line.rsplit(") ").next().unwrap().starts_with('T')
    }

    fn thaw(&self) {
        assert!(Command::new("kill").args(["-CONT", &self.0.id().to_string()]).status().unwrap().success());
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct FreezeAt {
    point: String,
    done: AtomicBool,
}

impl Faults for FreezeAt {
    fn is_on(&self) -> bool {
        true
    }

    fn reached(&self, name: &str) {
        if name == self.point && !self.done.swap(true, Ordering::SeqCst) {
            let own = std::process::id().to_string();
            assert!(Command::new("kill").args(["-STOP", &own]).status().unwrap().success());
        }
    }
}

/// Waits no longer than a second for what would take minutes.
struct Hasty(Arc<dyn Clock>);

impl Clock for Hasty {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.0.sleep(if span > Duration::from_secs(60) { Duration::from_secs(1) } else { span })
    }
}

/// Nothing when it is run as a test; else the coordinator that is frozen.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_is_frozen() {
    let Ok(told) = std::env::var(ROLE) else { return };
    let mut told = told.splitn(3, ' ');
    let (point, directory, url) = (told.next().unwrap(), told.next().unwrap(), told.next().unwrap());
    let real = Seams::real(TaskTracker::new());
    let faults = FreezeAt { point: point.to_owned(), done: AtomicBool::new(false) };
    let seams = Seams { faults: Arc::new(faults), clock: Arc::new(Hasty(Arc::clone(&real.clock))), ..real };
    let _server = Server::on(url, Path::new(directory), seams, None).await;
    std::future::pending::<()>().await;
}

/// A leader that freezes at this point with a lost task before it; another takes over, gives the task back, and an agent
/// works on it again when the first one thaws.
async fn thaws_without_effect(point: &str) {
    let place = Place::new();
    let mut frozen = Frozen::that_leads(&place, point).await;
    let first = place.ask("SELECT epoch || ' ' || holder FROM epochs WHERE name = 'leader'");
    let server = place.coordinator().await;
    let agent = agent(&[&server], "desk").await.remove(0);
    let token = server.token(&server.actor, Role::Operator).await;
    let begun = server.post("/api/v1/inspections", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.body);
    let lost = claim(&agent, 1).await.unwrap();
    assert!(server.coordinator.leading().is_none(), "the other one leads");
    place.ask("UPDATE tasks SET lease_until = 1 WHERE state = 'claimed'");
    until("it is frozen in the midst", async || frozen.is_frozen()).await;
    until("another leads", async || server.coordinator.leading().is_some()).await;
    let mut turn = 1;
    let mut again = None;
    until("the task is given back", async || {
        turn += 1;
        again = claim(&agent, turn).await;
        again.is_some()
    })
    .await;
    let again = again.unwrap();
    assert_eq!((again.task, again.attempt), (lost.task, 2));
    let before = place.ask("SELECT * FROM tasks") + &place.ask("SELECT * FROM attempts ORDER BY attempt");
    frozen.thaw();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(frozen.lives() && !frozen.is_frozen(), "it goes on beside the other");
    assert_eq!(place.ask("SELECT * FROM tasks") + &place.ask("SELECT * FROM attempts ORDER BY attempt"), before);
    assert!(server.coordinator.leading().is_some(), "who took over leads on");
    let now = place.ask("SELECT epoch || ' ' || holder FROM epochs WHERE name = 'leader'");
    let epoch = |text: &str| text.split(' ').next().unwrap().parse::<u64>().unwrap();
    assert_eq!((epoch(&now), now.ends_with(&server.coordinator.instance.to_string())), (epoch(&first) + 1, true));
    let outcome = || Outcome::Failed(TaskFailure::permanent("test.done", "can't inspect", "the test wants it so"));
    let late = agent.ask(Request::Finish { claimed: lost, outcome: outcome() }).await;
    assert!(matches!(late, message::Answer::Refused { .. }), "{late:?}");
    assert_eq!(agent.ask(Request::Finish { claimed: again, outcome: outcome() }).await, message::Answer::Recorded);
    assert_eq!(place.ask("SELECT state FROM operations"), "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_before_it_takes_a_task_back_thaws_without_effect() {
    thaws_without_effect("leader.reap.found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_within_its_transaction_holds_nobody_up_and_thaws_without_effect() {
    thaws_without_effect("leader.reap.begun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_frozen_before_it_renews_a_pin_makes_none_of_what_has_ended_since() {
    let place = Place::new();
    let mut frozen = Frozen::that_leads(&place, "leader.pin.found").await;
    let server = place.coordinator().await;
    let token = server.token(&server.actor, Role::Operator).await;
    let begun = server.post("/api/v1/saves", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    let id: OperationId = begun.body["operation"].as_str().unwrap().parse().unwrap();
    let repository = (*server.coordinator.repository(None).await.unwrap()).clone();
    repository.pin(id, &[]).await.unwrap();
    until("it is frozen in the midst", async || frozen.is_frozen()).await;
    let cancel = server.ask(server.request("post", &format!("/api/v1/operations/{id}/cancel"), Some(&token))).await;
    assert!(cancel.status.is_success(), "{}", cancel.body);
    // What it held itself is free when its leases are over.
    until("it has ended", async || place.ask("SELECT state FROM operations") == "cancelled").await;
    repository.unpin(id).await.unwrap();
    assert!(repository.pins().await.unwrap().is_empty());
    frozen.thaw();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(frozen.lives() && !frozen.is_frozen());
    assert!(repository.pins().await.unwrap().is_empty(), "the pin is there again");
}

/// Nothing but the epoch stands between the thawed leader and the task that it found: nobody has given it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_leader_is_refused_by_its_epoch_alone() {
    let place = Place::new();
    let mut frozen = Frozen::that_leads(&place, "leader.reap.found").await;
    let server = place.coordinator().await;
    let agent = agent(&[&server], "desk").await.remove(0);
    let token = server.token(&server.actor, Role::Operator).await;
    let begun = server.post("/api/v1/inspections", &token, &json!({"site": "desk", "namespace": "shop"})).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.body);
    claim(&agent, 1).await.unwrap();
    server.stop.cancel();
    place.ask("UPDATE tasks SET lease_until = 1 WHERE state = 'claimed'");
    until("it is frozen in the midst", async || frozen.is_frozen()).await;
    // Another one leads, and has not come to this task yet.
    place.ask(
        "UPDATE epochs SET epoch = epoch + 1, holder = gen_random_uuid(), \
         lease_until = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + 20000 WHERE name = 'leader'",
    );
    let taken = Instant::now();
    frozen.thaw();
    while taken.elapsed() < Duration::from_secs(12) {
        assert_eq!(place.ask("SELECT state || attempt FROM tasks"), "claimed1", "given back by one that doesn't lead");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(frozen.lives() && !frozen.is_frozen());
    // That one's time is over: it leads again, and does what is to be done.
    until("it is given back", async || place.ask("SELECT state FROM tasks") == "ready").await;
}
