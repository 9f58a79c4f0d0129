//! Agents as the coordinator sees them: how they come, whose word counts, and what only they can read.

use std::sync::Mutex;

use ocopea_coordinator::api::enrolment::{Admission, Quarantine};
use ocopea_protocol::{
    bus::{AgentBus, in_process::InProcessAgentBus},
    envelope,
    failure::FailureClass,
    identity::{Instance, Once, Sealed, SiteKey},
    ids::{OperationId, SiteId},
    message::{self, Request},
    secret::Secret,
    task::{Claimed, Outcome, Progress, TaskOutput, TaskSpec},
};

use super::*;

/// An agent that says what the test wants.
pub struct Agent {
    pub site: SiteId,
    pub key: SiteKey,
    pub instance: Arc<Instance>,
    pub bus: InProcessAgentBus,
}

impl Agent {
    pub async fn of(server: &Server, name: &str) -> Self {
        let site = server.catalog.ensure_site(name).await.unwrap();
        let key = SiteKey::generate().unwrap();
        server.catalog.set_site_key(site, &key.public().unwrap()).await.unwrap();
        Self { site, key, instance: instance(server), bus: server.bus.agent(site) }
    }

    pub async fn ask(&self, request: Request) -> message::Answer {
        let sealed = envelope::seal(&request, "").unwrap();
        envelope::open::<message::Answer>(&self.bus.request(sealed, 60_000).await.unwrap()).unwrap().message
    }

    pub async fn sign_in(&self) -> message::Answer {
        self.ask(Request::SignIn(Box::new(self.key.sign_in(self.site, &self.instance, "here").unwrap()))).await
    }

    pub async fn poll(&self, turn: u64, mark: u64) -> message::Answer {
        self.ask(Request::Poll { instance: self.instance.id, most: 10, turn, mark }).await
    }

    pub async fn beat(&self, claimed: Claimed) -> message::Answer {
        self.ask(Request::Heartbeat { claimed, progress: Progress::default(), holder: None }).await
    }
}

pub fn instance(server: &Server) -> Arc<Instance> {
    Arc::new(Instance::generate(InstanceId::generate(&server.catalog.seams)).unwrap())
}

/// An inspection of that site, and its one task, claimed by this agent.
async fn claimed(server: &Server, agent: &Agent) -> (String, Claimed, Sealed) {
    let token = server.token(&server.actor, Role::Operator).await;
    let credentials = json!([{"service": "db", "user": "root", "password": "canary-4711"}]);
    let body = json!({"site": "desk", "namespace": "shop", "credentials": credentials});
    let begun = server.post("/api/v1/inspections", &token, &body).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.body);
    let message::Answer::Tasks(tasks) = agent.poll(1, 1).await else { panic!("no tasks") };
    let task = tasks[0].task;
    match agent.ask(Request::Claim { task, instance: agent.instance.id }).await {
        message::Answer::Granted { claimed, sealed, .. } => {
            (begun.body["operation"].as_str().unwrap().to_owned(), claimed, sealed)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_for_a_signed_in_agent_of_its_site_and_nobody_else_can_read_or_end_it() {
    let server = Server::start().await;
    let (desk, other) = (Agent::of(&server, "desk").await, Agent::of(&server, "silent").await);
    assert_eq!(desk.poll(1, 1).await, message::Answer::SignIn);
    for agent in [&desk, &other] {
        assert_eq!(agent.sign_in().await, message::Answer::Recorded);
    }
    let (operation, claimed, sealed) = claimed(&server, &desk).await;
    let TaskSpec::Inspect { source } = desk.instance.open(&claimed, &sealed).unwrap() else { panic!("another task") };
    assert_eq!(source.credentials[0].password.reveal(), "canary-4711");
    assert!(other.instance.open(&claimed, &sealed).is_err());
    let travelled = format!("{sealed:?}");
    assert!(!travelled.contains(&format!("{:?}", b"canary-4711").trim_matches(['[', ']']).to_owned()));
    // Another site's agent, who knows everything of the claim but the key.
    let outcome = Outcome::Succeeded(Box::new(TaskOutput::Done));
    assert_eq!(other.beat(claimed).await, message::Answer::SignIn);
    let forged = Request::Finish { claimed, outcome: outcome.clone() };
    assert_eq!(other.ask(forged).await, message::Answer::SignIn);
    assert_eq!(other.ask(Request::HandBack { claimed }).await, message::Answer::SignIn);
    let under_its_own_name = Claimed { instance: other.instance.id, ..claimed };
    assert!(matches!(other.beat(under_its_own_name).await, message::Answer::Refused { .. }));
    let forged = Request::Finish { claimed: under_its_own_name, outcome };
    assert!(matches!(other.ask(forged).await, message::Answer::Refused { .. }));
    let again = Request::Claim { task: claimed.task, instance: other.instance.id };
    assert!(matches!(other.ask(again).await, message::Answer::Refused { .. }));
    assert!(matches!(desk.beat(claimed).await, message::Answer::Continue { .. }));
    let token = server.token(&server.actor, Role::Viewer).await;
    let now = server.ask(server.request("get", &format!("/api/v1/operations/{operation}"), Some(&token))).await;
    assert_eq!(now.body["state"], "running", "{}", now.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_of_a_request_goes_with_its_tasks_and_one_that_cant_be_read_is_begun_anew() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let token = server.token(&server.actor, Role::Operator).await;
    let theirs = "0af7651916cd43dd8448eb211c80319c";
    for (turn, (header, expected)) in
        [(format!("00-{theirs}-b7ad6b7169203331-01"), Some(theirs)), ("00-nonsense".to_owned(), None)]
            .into_iter()
            .enumerate()
    {
        let request = server.request("post", "/api/v1/inspections", Some(&token)).header("traceparent", header);
        let begun = server.ask(request.json(&json!({"site": "desk", "namespace": "shop"}))).await;
        let operation = begun.body["operation"].as_str().unwrap().to_owned();
        let expected = expected.map_or_else(|| operation.replace('-', ""), str::to_owned);
        let view = server.ask(server.request("get", &format!("/api/v1/operations/{operation}"), Some(&token))).await;
        assert_eq!(view.body["trace"], expected, "{}", view.body);
        let turn = turn as u64 + 1;
        let message::Answer::Tasks(tasks) = desk.poll(turn, 1).await else { panic!("no tasks") };
        let claim = Request::Claim { task: tasks[0].task, instance: desk.instance.id };
        let answer = desk.bus.request(envelope::seal(&claim, "").unwrap(), 10_000).await.unwrap();
        let opened = envelope::open::<message::Answer>(&answer).unwrap();
        assert!(matches!(opened.message, message::Answer::Granted { .. }));
        assert_eq!(opened.trace.parse::<ocopea_protocol::trace::Trace>().unwrap().id(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_speak_as_one_agent_both_lose_their_word_and_its_task() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let (_, claimed, _) = claimed(&server, &desk).await;
    // Doubled on its way: the same turn with the same mark.
    for _ in 0..2 {
        assert!(matches!(desk.poll(2, 7).await, message::Answer::Tasks(_)));
    }
    assert!(matches!(desk.poll(2, 8).await, message::Answer::Ended { why } if why.contains("same id")));
    assert!(matches!(desk.beat(claimed).await, message::Answer::Ended { .. }));
    assert!(matches!(desk.sign_in().await, message::Answer::Ended { .. }));
    // One that was asleep for long comes back with turns of long ago.
    let late = Agent { instance: instance(&server), key: desk.key.clone(), bus: server.bus.agent(desk.site), ..desk };
    assert_eq!(late.sign_in().await, message::Answer::Recorded);
    assert!(matches!(late.poll(100, 1).await, message::Answer::Tasks(_)));
    assert!(matches!(late.poll(90, 2).await, message::Answer::Tasks(_)), "late, but no clone");
    assert!(matches!(late.poll(50, 3).await, message::Answer::Ended { .. }));
}

/// A broker that remembers whom it lets in, and may be away.
#[derive(Default)]
pub struct Broker {
    inside: Mutex<BTreeMap<SiteId, u32>>,
    away: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl SiteBroker for Broker {
    async fn admit(&self, site: SiteId) -> Result<Admission, TaskFailure> {
        let mut inside = self.inside.lock().unwrap();
        let times = inside.entry(site).or_default();
        *times += 1;
        let password = Secret::new(format!("password {times}"));
        Ok(Admission { url: "amqp://broker/".to_owned(), user: format!("site-{site}"), password, certificates: None })
    }

    async fn expel(&self, site: SiteId) -> Result<(), TaskFailure> {
        if self.away.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(TaskFailure {
                class: FailureClass::Retryable,
                ..TaskFailure::permanent("broker.away", "can't expel", "it is away")
            });
        }
        self.inside.lock().unwrap().remove(&site);
        Ok(())
    }

    async fn quarantined(&self, _: u32) -> Result<Quarantine, TaskFailure> {
        Ok(Quarantine::default())
    }
}

/// Enrols; the answer, and the password that was in it.
async fn enrol(server: &Server, token: &str, name: Option<&str>, key: &SiteKey) -> (Answer, Option<String>) {
    let once = Once::generate().unwrap();
    let mut body = json!({
        "token": token, "key": key.public().unwrap().to_string(), "answer_key": once.public().to_string(),
    });
    if let Some(name) = name {
        body["name"] = json!(name);
    }
    let answer = server.ask(server.request("post", "/api/v1/enrol", None).json(&body)).await;
    let password = answer.body["broker"].as_object().map(|broker| {
        let part = |name: &str| hex::decode(broker["password"][name].as_str().unwrap()).unwrap();
        let sealed = Sealed { encapsulated: part("encapsulated"), bytes: part("bytes") };
        once.open(answer.body["site"].as_str().unwrap().parse().unwrap(), &sealed).unwrap().to_string()
    });
    (answer, password)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_joins_with_its_token_works_and_is_removed_for_good() {
    let broker = Arc::new(Broker::default());
    let server = Server::with(Some(broker.clone())).await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    let added = server.post("/api/v1/sites", &admin, &json!({"name": "edge"})).await;
    assert_eq!(added.status, StatusCode::OK, "{}", added.body);
    let token = added.body["token"].as_str().unwrap();
    let listed = server.ask(server.request("get", "/api/v1/enrolment-keys", Some(&admin))).await;
    assert_eq!(listed.body[0]["state"], "open");
    assert!(!listed.body.to_string().contains(token));
    let key = SiteKey::generate().unwrap();
    let (answer, password) = enrol(&server, token, None, &key).await;
    assert_eq!((answer.status, answer.body["standing"].as_str()), (StatusCode::OK, Some("active")), "{}", answer.body);
    assert_eq!(password.as_deref(), Some("password 1"));
    assert!(!answer.body.to_string().contains("password 1"), "it travels sealed");
    let site: SiteId = answer.body["site"].as_str().unwrap().parse().unwrap();
    // Its answer was lost.
    let (answer, password) = enrol(&server, token, None, &key).await;
    assert_eq!((answer.status, password.as_deref()), (StatusCode::OK, Some("password 2")));
    // Somebody who saw the token.
    let (answer, _) = enrol(&server, token, None, &SiteKey::generate().unwrap()).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.body["detail"].as_str().unwrap().contains("another key"), "{}", answer.body);
    let agent = Agent { site, key, instance: instance(&server), bus: server.bus.agent(site) };
    assert_eq!(agent.sign_in().await, message::Answer::Recorded);
    assert!(matches!(agent.poll(1, 1).await, message::Answer::Tasks(_)));
    // What waits for a removed site fails, and says why.
    let body = json!({"site": "edge", "namespace": "shop"});
    server.catalog.report_site(site, &server::report(&server.catalog.seams)).await.unwrap();
    let begun = server.post("/api/v1/inspections", &admin, &body).await;
    assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.body);
    broker.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let gone = server.ask(server.request("delete", "/api/v1/sites/edge", Some(&admin))).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT, "{}", gone.body);
    assert!(matches!(agent.poll(2, 2).await, message::Answer::Ended { why } if why.contains("removed")));
    assert!(matches!(agent.sign_in().await, message::Answer::Ended { .. }));
    // Its last report is young, its id still known: nothing is begun there all the same.
    let refused =
        server.post("/api/v1/inspections", &admin, &json!({"site": site.to_string(), "namespace": "shop"})).await;
    assert_eq!(refused.status, StatusCode::GONE, "{}", refused.body);
    let path = format!("/api/v1/operations/{}", begun.body["operation"].as_str().unwrap());
    let mut state = Value::Null;
    for _ in 0..100 {
        state = server.ask(server.request("get", &path, Some(&admin))).await.body;
        if state["state"] == "failed" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(state["state"], "failed", "{state}");
    assert!(state.to_string().contains("its site was removed"), "{state}");
    // The broker was away then; it is told as soon as it is back.
    assert!(broker.inside.lock().unwrap().contains_key(&site));
    broker.away.store(false, std::sync::atomic::Ordering::SeqCst);
    server.coordinator.keep_broker_tidy(broker.clone(), &server.stop);
    for _ in 0..100 {
        if broker.inside.lock().unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(broker.inside.lock().unwrap().is_empty());
    let (answer, _) = enrol(&server, token, None, &agent.key).await;
    assert_eq!(answer.status, StatusCode::GONE);
    assert_eq!(server.post("/api/v1/sites", &admin, &json!({"name": "edge"})).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_site_is_there_for_who_made_it_and_for_nobody_else() {
    let broker = Arc::new(Broker::default());
    let server = Server::with(Some(broker.clone())).await;
    let mut tokens = Vec::new();
    for (name, role) in [("ann", Role::Operator), ("bob", Role::Operator), ("vera", Role::Viewer)] {
        let member = server.catalog.ensure_member("team", name, role).await.unwrap();
        tokens.push(server.token(&member, role).await);
    }
    let admin = server.token(&server.actor, Role::Administrator).await;
    let [ann, bob, vera] = &tokens[..] else { unreachable!() };
    let laptop = json!({"name": "laptop", "private": true});
    assert_eq!(server.post("/api/v1/sites", vera, &laptop).await.status, StatusCode::FORBIDDEN);
    assert_eq!(server.post("/api/v1/sites", ann, &json!({"name": "shared"})).await.status, StatusCode::FORBIDDEN);
    let added = server.post("/api/v1/sites", ann, &laptop).await;
    assert_eq!(added.status, StatusCode::OK, "{}", added.body);
    let key = SiteKey::generate().unwrap();
    let (answer, _) = enrol(&server, added.body["token"].as_str().unwrap(), None, &key).await;
    assert_eq!(answer.body["standing"], "active", "{}", answer.body);
    let site: SiteId = answer.body["site"].as_str().unwrap().parse().unwrap();
    server.catalog.report_site(site, &server::report(&server.catalog.seams)).await.unwrap();
    let (_, environment) = furnish_at(&server, &server.actor, "copy", site).await;
    let get = async |token: &str, path: &str| server.ask(server.request("get", path, Some(token))).await;
    let inspected = json!({"site": "laptop", "namespace": "shop"});
    assert_eq!(server.post("/api/v1/inspections", ann, &inspected).await.status, StatusCode::ACCEPTED);
    assert!(get(ann, "/api/v1/sites").await.body.to_string().contains("laptop"));
    assert!(get(ann, "/api/v1/environments").await.body.to_string().contains("laptop"));
    assert_eq!(get(ann, &format!("/api/v1/environments/{environment}")).await.status, StatusCode::OK);
    for other in [bob, vera, &admin] {
        for path in ["/api/v1/sites", "/api/v1/applications", "/api/v1/environments"] {
            let answer = get(other, path).await;
            let text = answer.body.to_string();
            assert!(!text.contains("laptop") && !text.contains(&environment.to_string()), "{path}: {text}");
        }
        assert_eq!(server.post("/api/v1/inspections", other, &inspected).await.status, StatusCode::NOT_FOUND);
        for name in [site.to_string(), "laptop".to_owned()] {
            let removed = server.ask(server.request("delete", &format!("/api/v1/sites/{name}"), Some(other))).await;
            assert!(removed.status.is_client_error(), "{}", removed.body);
        }
        for path in ["", "/logs"] {
            let answer = get(other, &format!("/api/v1/environments/{environment}{path}")).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.body);
        }
    }
    for other in [bob, &admin] {
        let path = format!("/api/v1/environments/{environment}");
        assert_eq!(server.ask(server.request("delete", &path, Some(other))).await.status, StatusCode::NOT_FOUND);
        assert_eq!(server.post("/api/v1/sites", other, &laptop).await.status, StatusCode::CONFLICT);
    }
    let shared = server.post("/api/v1/sites", &admin, &json!({"name": "shared"})).await;
    assert_eq!(shared.status, StatusCode::OK);
    let refused = server.ask(server.request("delete", "/api/v1/sites/shared", Some(ann))).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN, "what everybody sees, an administrator removes");
    let removed = server.ask(server.request("delete", "/api/v1/sites/laptop", Some(ann))).await;
    assert_eq!(removed.status, StatusCode::NO_CONTENT, "{}", removed.body);
    assert!(broker.inside.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_key_brings_sites_that_wait_until_they_are_accepted() {
    let broker = Arc::new(Broker::default());
    let server = Server::with(Some(broker.clone())).await;
    let admin = server.token(&server.actor, Role::Administrator).await;
    let made =
        server.post("/api/v1/enrolment-keys", &admin, &json!({"name": "edges", "names": "edge-*", "uses": 50})).await;
    let token = made.body["key"].as_str().unwrap();
    let key = SiteKey::generate().unwrap();
    for wrong in [None, Some("lab"), Some("Edge 1"), Some("../x")] {
        let (answer, _) = enrol(&server, token, wrong, &key).await;
        assert!(answer.status.is_client_error(), "{wrong:?}: {}", answer.body);
    }
    let (answer, password) = enrol(&server, token, Some("edge-1"), &key).await;
    assert_eq!((answer.body["standing"].as_str(), password), (Some("pending"), None), "{}", answer.body);
    let sites = server.ask(server.request("get", "/api/v1/sites", Some(&admin))).await;
    let listed = sites.body.as_array().unwrap().iter().find(|site| site["name"] == "edge-1").unwrap();
    assert_eq!(listed["state"], "pending");
    let approved = server.ask(server.request("post", "/api/v1/sites/edge-1/approval", Some(&admin))).await;
    assert_eq!(approved.status, StatusCode::NO_CONTENT);
    let (answer, password) = enrol(&server, token, Some("edge-1"), &key).await;
    assert_eq!((answer.body["standing"].as_str(), password.is_some()), (Some("active"), true), "{}", answer.body);
    let path = format!("/api/v1/enrolment-keys/{}", made.body["id"].as_str().unwrap());
    assert_eq!(server.ask(server.request("delete", &path, Some(&admin))).await.status, StatusCode::NO_CONTENT);
    let (answer, _) = enrol(&server, token, Some("edge-2"), &SiteKey::generate().unwrap()).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    // Without a broker nobody can come.
    let alone = Server::start().await;
    let admin = alone.token(&alone.actor, Role::Administrator).await;
    let refused = alone.post("/api/v1/sites", &admin, &json!({"name": "edge"})).await;
    assert_eq!(
        (refused.status, refused.body["next"].as_str().unwrap().contains("--site")),
        (StatusCode::CONFLICT, true)
    );
    assert_eq!(enrol(&alone, token, None, &key).await.0.status, StatusCode::CONFLICT);
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_keys_of_a_store_are_for_the_attempt_that_holds_a_task_which_works_with_it() {
    let server = Server::start().await;
    let (desk, other) = (Agent::of(&server, "desk").await, Agent::of(&server, "silent").await);
    for agent in [&desk, &other] {
        assert_eq!(agent.sign_in().await, message::Answer::Recorded);
    }
    let (_, claimed, _) = claimed(&server, &desk).await;
    let refusal = |answer: message::Answer| match answer {
        message::Answer::Refused { why } => why,
        other => panic!("{other:?}"),
    };
    let ask = |claimed| Request::StoreKeys { claimed, refused: None };
    // An inspection sees nothing of the repository.
    assert!(refusal(desk.ask(ask(claimed)).await).contains("nothing to do with"));
    assert_eq!(other.ask(ask(claimed)).await, message::Answer::SignIn);
    let wrong = [
        Claimed { attempt: 2, ..claimed },
        Claimed { operation: OperationId::generate(&server.catalog.seams), ..claimed },
    ];
    for wrong in wrong {
        assert!(refusal(desk.ask(ask(wrong)).await).contains("another attempt"));
    }
    let under_its_own_name = Claimed { instance: other.instance.id, ..claimed };
    assert!(refusal(other.ask(ask(under_its_own_name)).await).contains("another attempt"));
}
