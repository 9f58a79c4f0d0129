//! Measures a coordinator with many sites: what it costs when nothing is to do, and how long a task takes to reach its agent,
//! beside what the broker alone takes. `tests/bench.sh fleet` starts what it needs and writes the figures down.
//!
//! Every site has an agent as it is (bus, worker, sign-in, polls, reports), all of them in this process; only what a task
//! does is left out: it ends as soon as it runs.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench stops at the first surprise")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints")]
#![expect(clippy::disallowed_methods, reason = "a bench lives in the machine's own time")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    BasicProperties, Channel, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use ocopea_agent::worker::{Begun, Identity, Job, Limits, Work, Worker};
use ocopea_protocol::{
    bus::{
        CoordinatorBus,
        rabbitmq::{Bare, RabbitAgentBus, RabbitCoordinatorBus, Settings},
    },
    failure::TaskFailure,
    identity::{Once, Sealed, SiteKey},
    ids::{OperationId, SiteId},
    message::{Request, SiteReport, SiteState},
    needs::Capabilities,
    seams::Seams,
    secret::Secret,
    session::Wish,
    task::{TaskOutput, TaskSpec},
};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often an agent reports.
const REPORT: Duration = Duration::from_secs(60);
/// Sites that join at a time.
const JOINING: usize = 8;
/// Messages on their way to the broker at a time.
const FLOW: usize = 256;
/// Queues that the flow goes to.
const QUEUES: usize = 100;

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: tests/bench.sh fleet sets it"))
}

fn number(name: &str) -> usize {
    setting(name).parse().unwrap()
}

/// When each operation's task ran.
#[derive(Default)]
struct Ran(Mutex<HashMap<OperationId, Instant>>, tokio::sync::Notify);

struct Running(Arc<Ran>);

#[async_trait]
impl Work for Running {
    async fn run(&self, job: Job, _: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        self.0.0.lock().unwrap().insert(job.claimed.operation, Instant::now());
        self.0.1.notify_waiters();
        Err(TaskFailure::permanent("bench.nothing", "there is nothing to do", "it was only to be begun"))
    }

    async fn session(&self, _: Wish) -> Result<Begun, TaskFailure> {
        Err(TaskFailure::permanent("bench.nothing", "there is nothing to see", "nothing runs here"))
    }
}

impl Ran {
    async fn when(&self, operation: OperationId) -> Instant {
        loop {
            let changed = self.1.notified();
            if let Some(at) = self.0.lock().unwrap().remove(&operation) {
                return at;
            }
            tokio::time::timeout(Duration::from_secs(60), changed).await.expect("a task did not begin within a minute");
        }
    }
}

struct Api {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Api {
    async fn post(&self, path: &str, body: &Value) -> Value {
        let request = self.http.post(format!("{}{path}", self.url)).bearer_auth(&self.token).json(body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }
}

/// A site that has joined.
struct Joined {
    id: SiteId,
    name: String,
    key: SiteKey,
    settings: Settings,
}

async fn join(api: &Api, enrolment: &str, index: usize) -> Joined {
    let (key, once) = (SiteKey::generate().unwrap(), Once::generate().unwrap());
    let name = format!("bench-{index}");
    let body = json!({
        "token": enrolment, "name": name, "key": key.public().unwrap().to_string(),
        "answer_key": once.public().to_string(),
    });
    let answer = api.post("/api/v1/enrol", &body).await;
    let id: SiteId = answer["site"].as_str().unwrap().parse().unwrap();
    let broker = &answer["broker"];
    let part = |name: &str| hex::decode(broker["password"][name].as_str().unwrap()).unwrap();
    let sealed = Sealed { encapsulated: part("encapsulated"), bytes: part("bytes") };
    let password = Secret::new(once.open(id, &sealed).unwrap().to_string());
    let mut settings =
        Settings::new(broker["url"].as_str().unwrap().parse().unwrap(), broker["user"].as_str().unwrap(), password);
    settings.limit = Duration::from_secs(60);
    Joined { id, name, key, settings }
}

fn report(worker: &Worker, seams: &Seams) -> SiteReport {
    SiteReport {
        instance: worker.instance(),
        at: seams.clock.now(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        state: SiteState::Ready,
        platform: "Kubernetes 1.36.0".to_owned(),
        nodes: 3,
        architectures: vec!["linux/amd64".to_owned()],
        data_kinds: ["mongodb", "postgresql", "volume"].map(str::to_owned).to_vec(),
        may_create_namespaces: true,
        registry: None,
        storage_classes: vec!["standard".to_owned()],
        missing: Vec::new(),
        applications: Vec::new(),
        limits: None,
        capabilities: Capabilities::default(),
    }
}

/// An agent of the site, until `stop`; it is there when this comes back.
async fn attend(site: Joined, ran: &Arc<Ran>, stop: &CancellationToken, seams: &Seams) -> String {
    let bus = Arc::new(RabbitAgentBus::start(site.id, &site.settings, seams).unwrap());
    let name = site.name;
    let cluster = name.clone();
    let identity = Identity {
        site: site.id,
        key: site.key,
        cluster: Arc::new(move || {
            let cluster = cluster.clone();
            Box::pin(async move { cluster })
        }),
    };
    let work = Arc::new(Running(Arc::clone(ran)));
    let worker = Worker::with(work, bus, identity, seams.clone(), Limits::default()).unwrap();
    tokio::spawn(Arc::clone(&worker).run(stop.clone()));
    while worker.tell(&Request::Report(Box::new(report(&worker, seams)))).await.is_none() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (seams, stop) = (seams.clone(), stop.clone());
    tokio::spawn(async move {
        while seams.sleep_unless(&stop, seams.jittered(REPORT)).await {
            worker.tell(&Request::Report(Box::new(report(&worker, &seams)))).await;
        }
    });
    name
}

/// Processor time in ticks and resident memory in bytes of a process, as proc(5) says them.
fn usage(pid: usize) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (ticks, line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024)
}

fn percentile(mut times: Vec<f64>, of_100: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let last = times.len() - 1;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a short list")]
    let index = (last as f64 * of_100 / 100.0).ceil() as usize;
    times[index.min(last)]
}

fn milliseconds(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// The broker alone: a quorum queue, persistent messages, confirms.
struct Raw {
    _bare: Bare,
    channel: Channel,
}

fn quorum() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

impl Raw {
    async fn open(settings: &Settings, seams: &Seams) -> Self {
        let bare = Bare::open(settings, seams).await.unwrap();
        let channel = bare.connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _bare: bare, channel }
    }

    async fn queue(&self, name: &str) {
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(name.into(), durable, quorum()).await.unwrap();
    }

    async fn consumer(&self, name: &str) -> Consumer {
        let options = BasicConsumeOptions::default();
        self.channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await.unwrap()
    }

    /// Published, and confirmed.
    async fn publish(&self, name: &str, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default().with_delivery_mode(2);
        let confirmed =
            self.channel.basic_publish("".into(), name.into(), options, body, properties).await.unwrap().await;
        assert!(confirmed.unwrap().is_ack());
    }

    /// There and taken, confirmed on the way.
    async fn round_trip(&self, name: &str, consumer: &mut Consumer) -> Duration {
        let began = Instant::now();
        let taken = async {
            let delivery = consumer.next().await.unwrap().unwrap();
            delivery.ack(BasicAckOptions::default()).await.unwrap();
        };
        tokio::join!(self.publish(name, &[7; 200]), taken);
        began.elapsed()
    }
}

fn line(what: &str, ours: f64, theirs: f64) {
    println!("{what} {ours:.2} {theirs:.2} {:.3}", ours / theirs);
}

/// Tasks reach their agents one after the other, in turn with the broker's own round trips.
async fn dispatch(api: &Api, sites: &[String], ran: &Ran, raw: &Raw, rounds: usize) {
    raw.queue("bench-raw").await;
    let mut consumer = raw.consumer("bench-raw").await;
    let (mut sent, mut accepted, mut trips) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds + 20 {
        let site = &sites[round * 7919 % sites.len()];
        let began = Instant::now();
        let answer = api.post("/api/v1/inspections", &json!({"site": site, "namespace": "shop"})).await;
        let answered = Instant::now();
        let running = ran.when(answer["operation"].as_str().unwrap().parse().unwrap()).await;
        let trip = raw.round_trip("bench-raw", &mut consumer).await;
        // The first ones warm up.
        if round >= 20 {
            sent.push(milliseconds(running - began));
            accepted.push(milliseconds(running.saturating_duration_since(answered)));
            trips.push(milliseconds(trip));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (name, of) in [("median", 50.0), ("p99", 99.0)] {
        let trip = percentile(trips.clone(), of);
        line(&format!("accepted to running, ms, {name}"), percentile(accepted.clone(), of), trip);
        line(&format!("request sent to running, ms, {name}"), percentile(sent.clone(), of), trip);
    }
    raw.channel.queue_delete("bench-raw".into(), QueueDeleteOptions::default()).await.unwrap();
}

/// Hints per second over many queues, beside messages that the library alone publishes to as many.
async fn flow(own: &Settings, sites: &[SiteId], raw: &Raw, seams: &Seams, hints: usize) {
    let bus = RabbitCoordinatorBus::start(own, seams).unwrap();
    let sites = &sites[..QUEUES.min(sites.len())];
    let names: Vec<String> = (0..sites.len()).map(|index| format!("bench-raw-{index}")).collect();
    for name in &names {
        raw.queue(name).await;
    }
    let body = Bytes::from(vec![7; 200]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let began = Instant::now();
        let published = stream::iter(0..hints).map(|index| bus.publish(sites[index % sites.len()], body.clone()));
        published.buffer_unordered(FLOW).try_collect::<()>().await.unwrap();
        ours.push(hints as f64 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        let published = stream::iter(0..hints).map(|index| raw.publish(&names[index % names.len()], &body));
        published.buffer_unordered(FLOW).collect::<()>().await;
        theirs.push(hints as f64 / began.elapsed().as_secs_f64());
    }
    line(&format!("hints a second over {} queues", sites.len()), percentile(ours, 50.0), percentile(theirs, 50.0));
    for name in &names {
        raw.channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::main]
async fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (sites, rounds, hints, idle) = (number("SITES"), number("ROUNDS"), number("HINTS"), number("IDLE"));
    let coordinator = number("COORDINATOR");
    let seams = Seams::real(TaskTracker::new());
    let own = Settings::new(
        setting("BROKER").parse().unwrap(),
        setting("BROKER_USER"),
        Secret::new(setting("BROKER_PASSWORD")),
    );
    let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
    let api = Api { http, url: setting("URL"), token: setting("TOKEN") };
    let (_, empty) = usage(coordinator);
    let wish = json!({"name": "bench", "names": "bench-*", "uses": sites, "approves": true});
    let enrolment = api.post("/api/v1/enrolment-keys", &wish).await["key"].as_str().unwrap().to_owned();
    let (ran, stop) = (Arc::new(Ran::default()), CancellationToken::new());
    let began = Instant::now();
    let joining = stream::iter(0..sites).map(async |index| {
        let site = join(&api, &enrolment, index).await;
        let id = site.id;
        (id, attend(site, &ran, &stop, &seams).await)
    });
    let joined: Vec<(SiteId, String)> = joining.buffer_unordered(JOINING).collect().await;
    eprintln!("{sites} sites joined, and reported, in {:.0} s", began.elapsed().as_secs_f64());
    // What joining cost is no part of being idle.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (before, _) = usage(coordinator);
    tokio::time::sleep(Duration::from_secs(idle as u64)).await;
    let (after, resident) = usage(coordinator);
    let ticks = setting("TICKS").parse::<f64>().unwrap();
    line(&format!("{sites} idle sites: % of a core"), (after - before) as f64 / ticks / idle as f64 * 100.0, 20.0);
    line(&format!("{sites} idle sites: MB resident"), resident as f64 / 1e6, 512.0);
    eprintln!("the coordinator had {:.0} MB before the first site came", empty as f64 / 1e6);
    let names: Vec<String> = joined.iter().map(|(_, name)| name.clone()).collect();
    let raw = Raw::open(&own, &seams).await;
    dispatch(&api, &names, &ran, &raw, rounds).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ids: Vec<SiteId> = joined.iter().map(|(id, _)| *id).collect();
    flow(&own, &ids, &raw, &seams, hints).await;
}
