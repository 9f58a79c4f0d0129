//! The worker against a small peer that plays the coordinator over the in-process bus.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use ocopea_protocol::{
    bus::{CoordinatorBus, Hint, in_process::InProcessBus},
    frames::{END, INPUT, OUTPUT, Started, read_frame, write_frame},
    identity::{PublicKey, SiteKey, seal_opening, seal_store_keys, seal_task},
    ids::{InstanceId, OperationId, SessionId, SiteId},
    image::StoreKeys,
    message::HolderOrder,
    names::Namespace,
    secret::{Secret, Secret32},
    session::{Cipher, Direction, Opening},
    task::{HolderState, Source},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::*;

fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}

/// Does what the test says.
type Doing = Box<dyn Fn(Job) -> futures::future::BoxFuture<'static, Result<TaskOutput, TaskFailure>> + Send + Sync>;

struct Scripted(Doing);

#[async_trait]
impl Work for Scripted {
    async fn run(&self, job: Job, _spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        (self.0)(job).await
    }

    async fn session(&self, wish: Wish) -> Result<Begun, TaskFailure> {
        let command = match wish {
            Wish::Exec { command, .. } => command,
            // Says in capitals what it is told, when it was told all.
            Wish::Connect { .. } => {
                let (ours, mut theirs) = tokio::io::duplex(1024);
                tokio::spawn(async move {
                    let mut all = Vec::new();
                    theirs.read_to_end(&mut all).await.unwrap();
                    theirs.write_all(&all.to_ascii_uppercase()).await.unwrap();
                });
                return Ok(Begun::Connection(ours));
            }
            Wish::Way { address, .. } => return Ok(Begun::Answer(address.to_string().into_bytes())),
            Wish::Logs { .. } => {
                return Err(TaskFailure::permanent("session.none", "can't show logs", "this work has none"));
            }
        };
        // Says its name, then in capitals what it is told; its status is how many bytes that were.
        let (input, mut told) = tokio::io::duplex(1024);
        let (mut says, output) = tokio::io::duplex(1024);
        let (done, ended) = oneshot::channel();
        tokio::spawn(async move {
            says.write_all(command[0].as_bytes()).await.unwrap();
            let mut all = Vec::new();
            told.read_to_end(&mut all).await.unwrap();
            says.write_all(&all.to_ascii_uppercase()).await.unwrap();
            done.send(Ok(i32::try_from(all.len()).unwrap())).unwrap();
        });
        let (input, output) = (Some(Box::new(input) as _), Box::new(output));
        Ok(Begun::Program(Started { input, output, errors: None, size: None, ended }))
    }
}

fn doing<F>(f: impl Fn(Job) -> F + Send + Sync + 'static) -> Arc<dyn Work>
where
    F: Future<Output = Result<TaskOutput, TaskFailure>> + Send + 'static,
{
    Arc::new(Scripted(Box::new(move |job| Box::pin(f(job)))))
}

/// The coordinator's side: grants claims, and answers the rest by script.
struct Peer {
    bus: InProcessBus,
    site: SiteId,
    key: SiteKey,
    signed_in: Mutex<HashMap<InstanceId, PublicKey>>,
    seams: Seams,
    lease_ms: u64,
    seen: Mutex<Vec<Request>>,
    attempts: AtomicUsize,
    polled: Mutex<VecDeque<TaskHint>>,
    answer: Box<dyn Fn(&Request, usize) -> Option<Answer> + Send + Sync>,
}

impl Peer {
    fn new(lease_ms: u64, answer: impl Fn(&Request, usize) -> Option<Answer> + Send + Sync + 'static) -> Arc<Self> {
        let seams = seams();
        let bus = InProcessBus::new(seams.clone());
        let site = SiteId::generate(&seams);
        Arc::new(Self {
            bus,
            site,
            key: SiteKey::generate().unwrap(),
            signed_in: Mutex::default(),
            seams,
            lease_ms,
            seen: Mutex::default(),
            attempts: AtomicUsize::new(0),
            polled: Mutex::default(),
            answer: Box::new(answer),
        })
    }

    fn worker(self: &Arc<Self>, work: Arc<dyn Work>, limits: Limits) -> Arc<Worker> {
        self.worker_on(Arc::new(self.bus.agent(self.site)), work, limits)
    }

    fn worker_on(self: &Arc<Self>, bus: Arc<dyn AgentBus>, work: Arc<dyn Work>, limits: Limits) -> Arc<Worker> {
        let identity = Identity {
            site: self.site,
            key: self.key.clone(),
            cluster: Arc::new(|| Box::pin(std::future::ready("here".to_owned()))),
        };
        Worker::with(work, bus, identity, self.seams.clone(), limits).unwrap()
    }

    fn hint(&self, kind: TaskKind) -> TaskHint {
        TaskHint { task: TaskId::generate(&self.seams), kind, least_version: 1 }
    }

    async fn publish(&self, hint: &TaskHint) {
        self.bus.publish(self.site, seal(hint, "").unwrap()).await.unwrap();
    }

    fn requests(&self, of: impl Fn(&Request) -> bool) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|r| of(r)).cloned().collect()
    }

    async fn serve(self: Arc<Self>) {
        loop {
            let incoming = self.bus.next_request().await.unwrap();
            let request = open::<Request>(&incoming.request).unwrap().message;
            let number = {
                let mut seen = self.seen.lock().unwrap();
                let same = seen.iter().filter(|r| std::mem::discriminant(*r) == std::mem::discriminant(&request));
                let number = same.count();
                seen.push(request.clone());
                number
            };
            let Some(answer) = (self.answer)(&request, number).or_else(|| self.usual(&request)) else { continue };
            let sealed: Bytes = seal(&answer, "").unwrap();
            let _ = incoming.reply.send(sealed);
        }
    }

    fn usual(&self, request: &Request) -> Option<Answer> {
        Some(match request {
            Request::SignIn(sign_in) => {
                sign_in.verify(self.site, &self.key.public().unwrap()).unwrap();
                assert_eq!(sign_in.cluster, "here");
                self.signed_in.lock().unwrap().insert(sign_in.instance, sign_in.key);
                Answer::Recorded
            }
            Request::Poll { instance, .. } if !self.signed_in.lock().unwrap().contains_key(instance) => Answer::SignIn,
            Request::Claim { task, instance } => {
                let Some(key) = self.signed_in.lock().unwrap().get(instance).copied() else {
                    return Some(Answer::SignIn);
                };
                let attempt = self.attempts.fetch_add(1, Ordering::SeqCst) + 1;
                let claimed = Claimed {
                    task: *task,
                    operation: OperationId::generate(&self.seams),
                    attempt: u32::try_from(attempt).unwrap(),
                    instance: *instance,
                };
                let sealed = seal_task(&key, &claimed, &some_spec()).unwrap();
                Answer::Granted { claimed, lease_ms: self.lease_ms, sealed }
            }
            Request::Heartbeat { .. } => Answer::Continue { lease_ms: self.lease_ms, holder: HolderOrder::Wait },
            Request::Finish { .. } | Request::HandBack { .. } => Answer::Recorded,
            Request::Poll { .. } => Answer::Tasks(self.polled.lock().unwrap().drain(..).collect()),
            Request::Report(_)
            | Request::Attach { .. }
            | Request::Begun { .. }
            | Request::Push { .. }
            | Request::Pull { .. }
            | Request::StoreKeys { .. } => return None,
        })
    }
}

fn some_spec() -> TaskSpec {
    let namespace: Namespace = "shop".parse().unwrap();
    let source = Source { namespace, selector: None, without: vec![], credentials: vec![], freeze: false };
    TaskSpec::Inspect { source }
}

fn limits() -> Limits {
    Limits {
        poll: Duration::from_millis(50),
        idle: Duration::from_millis(50),
        grace: Duration::from_millis(100),
        patience: Duration::from_millis(300),
        ..Limits::default()
    }
}

fn never(_: &Request, _: usize) -> Option<Answer> {
    None
}

fn outcomes(peer: &Peer) -> Vec<Outcome> {
    let finishes = peer.requests(|r| matches!(r, Request::Finish { .. }));
    finishes
        .into_iter()
        .filter_map(|r| if let Request::Finish { outcome, .. } = r { Some(outcome) } else { None })
        .collect()
}

/// Runs worker and peer until `enough` holds, then stops the worker and waits for its end.
async fn until(peer: &Arc<Peer>, work: Arc<dyn Work>, limits: Limits, enough: impl Fn(&Peer) -> bool) -> String {
    let stop = CancellationToken::new();
    let worker = peer.worker(work, limits);
    let numbers = worker.metrics().unwrap();
    let watch = async {
        for _ in 0..1000 {
            if enough(peer) {
                stop.cancel();
                return;
            }
            peer.seams.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("it never came to that: {:?}", peer.seen.lock().unwrap());
    };
    tokio::select! {
        () = Arc::clone(peer).serve() => {}
        ((), ()) = async { tokio::join!(worker.run(stop.clone()), watch) } => {}
    }
    numbers.text()
}

#[tokio::test]
async fn what_is_measured_tells_how_tasks_ended_and_how_much_they_moved() {
    let peer = Peer::new(2000, never);
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let work = doing(|job| async move {
        for bytes in [300, 1000] {
            (job.progress)(Progress { bytes, ..Progress::default() });
        }
        Ok(TaskOutput::Done)
    });
    let text = until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    // The work's own specification says of what kind it is.
    for line in [
        "ocopea_agent_tasks_running{kind=\"copy-data\"} 0",
        "ocopea_agent_task_duration_seconds_count{kind=\"copy-data\",outcome=\"succeeded\"} 1",
        "ocopea_agent_leases_lost_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(
        text.lines().any(|line| line.starts_with("ocopea_agent_bytes_total{") && line.ends_with(" 1000")),
        "{text}"
    );
    for family in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(include_str!("../../../docs/metrics.md").contains(&format!("`{family}`")), "{family}");
    }
}

#[tokio::test]
async fn a_task_that_is_hinted_twice_is_done_and_reported_once() {
    let peer = Peer::new(2000, never);
    let hint = peer.hint(TaskKind::Inspect);
    peer.publish(&hint).await;
    peer.publish(&hint).await;
    let work = doing(|job| async move {
        job.stop.cancelled().now_or_never();
        tokio::task::yield_now().await;
        Ok(TaskOutput::Done)
    });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    // The second hint may come after the end: the claim is then the coordinator's to refuse; here both were early.
    assert!(outcomes(&peer).iter().all(|o| *o == Outcome::Succeeded(Box::new(TaskOutput::Done))));
}

#[tokio::test]
async fn hints_that_nobody_can_read_keep_no_other_from_being_taken() {
    let peer = Peer::new(2000, never);
    let later = [b"OCPA".as_slice(), &(PROTOCOL_VERSION + 1).to_le_bytes(), &[1, 0]].concat();
    for bytes in [later.as_slice(), b"OCPA", b"", b"no hint at all"] {
        peer.bus.publish(peer.site, Bytes::copy_from_slice(bytes)).await.unwrap();
    }
    peer.publish(&peer.hint(TaskKind::Inspect)).await;
    // No poll would find it.
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |p| !outcomes(p).is_empty()).await;
}

#[tokio::test]
async fn a_task_whose_hint_was_lost_is_found_by_polling() {
    let peer = Peer::new(2000, never);
    let hint = peer.hint(TaskKind::CopyData);
    peer.polled.lock().unwrap().push_back(hint.clone());
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |p| !outcomes(p).is_empty()).await;
    let claims = peer.requests(|r| matches!(r, Request::Claim { task, .. } if *task == hint.task));
    assert_eq!(claims.len(), 1);
}

#[tokio::test]
async fn a_cancelled_task_lets_go_and_ends_as_cancelled() {
    let peer = Peer::new(600, |r, _| matches!(r, Request::Heartbeat { .. }).then_some(Answer::Cancel));
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let released = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&released);
    let work = doing(move |job| {
        let seen = Arc::clone(&seen);
        async move {
            job.stop.cancelled().await;
            seen.fetch_add(1, Ordering::SeqCst);
            Err(TaskFailure::retryable("data.interrupted", "can't copy", "interrupted"))
        }
    });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    assert_eq!(released.load(Ordering::SeqCst), 1);
    assert!(matches!(&outcomes(&peer)[0], Outcome::Failed(f) if f.code == "cancelled" && f.cause == "interrupted"));
}

#[tokio::test]
async fn a_refused_heartbeat_drops_the_work_at_once_and_reports_nothing() {
    let refused = Answer::Refused { why: "lease lost".to_owned() };
    let peer = Peer::new(300, move |r, _| matches!(r, Request::Heartbeat { .. }).then(|| refused.clone()));
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let (alive, dropped) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
    let (watched, counted) = (Arc::downgrade(&alive), Arc::clone(&dropped));
    let work = doing(move |_| {
        let alive = Arc::clone(&alive);
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            std::future::pending::<()>().await;
            drop(alive);
            Ok(TaskOutput::Done)
        }
    });
    until(&peer, work, limits(), |p| {
        let beats = p.requests(|r| matches!(r, Request::Heartbeat { .. }));
        !beats.is_empty() && watched.strong_count() == 1
    })
    .await;
    assert_eq!((dropped.load(Ordering::SeqCst), outcomes(&peer).len()), (1, 0));
    assert!(peer.requests(|r| matches!(r, Request::HandBack { .. })).is_empty());
}

#[tokio::test]
async fn a_silent_coordinator_makes_the_agent_give_up_before_its_lease_ends() {
    let silent = Peer::new(400, never);
    let deaf = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(Mutex::new(None));
    let (started_at, at) = (Arc::clone(&deaf), Arc::clone(&ended));
    let seams = silent.seams.clone();
    struct Tell(Arc<Mutex<Option<Duration>>>, Seams);
    impl Drop for Tell {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(self.1.clock.monotonic());
        }
    }
    let clock = seams.clone();
    let work = doing(move |_| {
        let tell = Tell(Arc::clone(&at), seams.clone());
        started_at.fetch_add(1, Ordering::SeqCst);
        async move {
            std::future::pending::<()>().await;
            drop(tell);
            Ok(TaskOutput::Done)
        }
    });
    silent.publish(&silent.hint(TaskKind::CopyData)).await;
    let stop = CancellationToken::new();
    let worker = silent.worker(work, limits());
    let from = clock.clock.monotonic();
    // The claim is answered, nothing after it.
    let serve = async {
        loop {
            let incoming = silent.bus.next_request().await.unwrap();
            let request = open::<Request>(&incoming.request).unwrap().message;
            if matches!(request, Request::SignIn(_) | Request::Claim { .. }) {
                let _ = incoming.reply.send(seal(&silent.usual(&request).unwrap(), "").unwrap());
            }
        }
    };
    let watch = async {
        while ended.lock().unwrap().is_none() {
            clock.clock.sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    tokio::select! {
        () = serve => {}
        ((), ()) = async { tokio::join!(worker.run(stop.clone()), watch) } => {}
    }
    let after = ended.lock().unwrap().unwrap() - from;
    assert!(after < Duration::from_millis(700), "{after:?}");
}

#[tokio::test]
async fn a_holder_opens_when_told_holds_and_lets_go_when_told() {
    let peer = Peer::new(3000, |request, _| {
        let Request::Heartbeat { holder, .. } = request else { return None };
        let order = match holder {
            None => HolderOrder::Wait,
            Some(HolderState::Prepared) => HolderOrder::OpenNow,
            Some(HolderState::Open { snapshot, .. }) => {
                assert_eq!(snapshot, "s1");
                HolderOrder::Release
            }
        };
        Some(Answer::Continue { lease_ms: 3000, holder: order })
    });
    peer.publish(&peer.hint(TaskKind::OpenSnapshot)).await;
    let clock = peer.seams.clone();
    let work = doing(move |job| {
        let clock = clock.clone();
        async move {
            job.holder.set(HolderState::Prepared);
            job.holder.ordered(HolderOrder::OpenNow).await;
            job.holder.set(HolderState::Open { snapshot: "s1".to_owned(), at: clock.clock.now() });
            job.holder.ordered(HolderOrder::Release).await;
            Ok(TaskOutput::SnapshotReleased { frozen_ms: 0 })
        }
    });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    assert_eq!(outcomes(&peer)[0], Outcome::Succeeded(Box::new(TaskOutput::SnapshotReleased { frozen_ms: 0 })));
}

#[tokio::test]
async fn a_panic_is_a_permanent_failure_that_names_the_task() {
    let peer = Peer::new(2000, never);
    peer.publish(&peer.hint(TaskKind::CopyConfig)).await;
    let work = doing(|_| async { panic!("number 7") });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    let Outcome::Failed(failure) = &outcomes(&peer)[0] else { panic!("it succeeded") };
    assert_eq!(failure.code, "task.panicked");
    assert!(failure.what.contains("copy-config") && failure.cause.contains("number 7") && !failure.is_retryable());
}

#[tokio::test]
async fn an_outcome_is_reported_until_it_is_in_the_catalog() {
    let later = || Some(Answer::TryLater { why: "the catalog is busy".to_owned() });
    let peer = Peer::new(5000, move |r, n| if matches!(r, Request::Finish { .. }) && n < 2 { later() } else { None });
    peer.publish(&peer.hint(TaskKind::Inspect)).await;
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |p| outcomes(p).len() == 3).await;
    assert!(outcomes(&peer).windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn a_stop_hands_back_what_does_not_end_in_time() {
    let peer = Peer::new(5000, never);
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let started = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&started);
    let work = doing(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::pending()
    });
    until(&peer, work, limits(), move |_| started.load(Ordering::SeqCst) == 1).await;
    assert_eq!(peer.requests(|r| matches!(r, Request::HandBack { .. })).len(), 1);
    assert!(outcomes(&peer).is_empty());
}

#[tokio::test]
async fn copies_wait_for_permits_and_light_tasks_do_not() {
    let peer = Peer::new(5000, never);
    for _ in 0..3 {
        peer.publish(&peer.hint(TaskKind::CopyData)).await;
    }
    peer.publish(&peer.hint(TaskKind::AwaitReady)).await;
    let clock = peer.seams.clone();
    let work = doing(move |_| {
        let clock = clock.clone();
        async move {
            clock.clock.sleep(Duration::from_millis(60)).await;
            Ok(TaskOutput::Done)
        }
    });
    let limits = Limits { copies: 1, ..limits() };
    until(&peer, work, limits, |p| outcomes(p).len() == 4).await;
    let order: Vec<bool> = peer
        .requests(|r| matches!(r, Request::Claim { .. } | Request::Finish { .. }))
        .iter()
        .map(|r| matches!(r, Request::Claim { .. }))
        .collect();
    // Two claims at once at most: one copy and the light one.
    let most = order
        .iter()
        .scan(0i32, |open, claim| {
            *open += if *claim { 1 } else { -1 };
            Some(*open)
        })
        .max();
    assert_eq!(most, Some(2), "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_hangs_holds_one_permit_and_fifty_others_finish_meanwhile() {
    let peer = Peer::new(2000, never);
    let hung = peer.hint(TaskKind::CopyData);
    peer.publish(&hung).await;
    for _ in 0..50 {
        peer.publish(&peer.hint(TaskKind::CopyData)).await;
    }
    let one = hung.task;
    let work = doing(move |job| async move {
        if job.claimed.task == one {
            // A database that takes the connection and never answers.
            std::future::pending::<()>().await;
        }
        Ok(TaskOutput::Done)
    });
    let limits = Limits { copies: 2, ..limits() };
    until(&peer, work, limits, |p| outcomes(p).len() >= 50).await;
    let claims = peer.requests(|r| matches!(r, Request::Claim { .. })).len();
    assert_eq!(claims, 51, "the one that hangs was begun, and once");
    let ended = |r: &Request| matches!(r, Request::Finish { claimed, .. } if claimed.task == one);
    assert!(peer.requests(ended).is_empty());
}

/// Takes its time with heartbeats, whatever it is told.
struct Stubborn(Arc<dyn AgentBus>, Seams);

#[async_trait]
impl AgentBus for Stubborn {
    async fn next_hint(&self) -> Result<Hint, BusError> {
        self.0.next_hint().await
    }

    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        if matches!(open::<Request>(&request).unwrap().message, Request::Heartbeat { .. }) {
            self.1.clock.sleep(Duration::from_secs(60)).await;
        }
        self.0.request(request, patience_ms).await
    }

    async fn close(&self) {
        self.0.close().await;
    }
}

#[tokio::test]
async fn a_bus_that_keeps_no_time_holds_no_agent_beyond_its_lease() {
    let peer = Peer::new(1000, never);
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let (began, dropped) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
    /// Notes when it goes.
    struct Going(Arc<Mutex<Option<Duration>>>, Seams);
    impl Drop for Going {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = Some(self.1.clock.monotonic());
        }
    }
    let (begins, goes, seams) = (Arc::clone(&began), Arc::clone(&dropped), peer.seams.clone());
    let work = doing(move |_| {
        *begins.lock().unwrap() = Some(seams.clock.monotonic());
        let going = Going(Arc::clone(&goes), seams.clone());
        async move {
            let _going = going;
            std::future::pending().await
        }
    });
    let bus = Arc::new(Stubborn(Arc::new(peer.bus.agent(peer.site)), peer.seams.clone()));
    let limits = Limits { patience: Duration::from_secs(10), ..limits() };
    let worker = peer.worker_on(bus, work, limits);
    let stop = CancellationToken::new();
    tokio::select! {
        () = Arc::clone(&peer).serve() => {}
        () = worker.run(stop) => {}
        () = async {
            while dropped.lock().unwrap().is_none() {
                peer.seams.clock.sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    let (began, dropped) = (began.lock().unwrap().unwrap(), dropped.lock().unwrap().unwrap());
    // A lease of one second; patience would be ten, and the bus takes sixty.
    assert!(dropped - began < Duration::from_secs(6), "{:?}", dropped - began);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_whose_word_no_longer_counts_drops_what_it_does_and_goes_on_as_another() {
    let peer = Peer::new(2000, |request, number| match request {
        Request::Heartbeat { .. } if number == 1 => Some(Answer::Ended { why: "cloned".to_owned() }),
        Request::Poll { turn, .. } if *turn == 4 => Some(Answer::Ended { why: "cloned".to_owned() }),
        _ => None,
    });
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let work = doing(|_| std::future::pending());
    let signed_in = |peer: &Peer| -> Vec<InstanceId> {
        let all = peer.requests(|r| matches!(r, Request::SignIn(_)));
        all.into_iter().filter_map(|r| if let Request::SignIn(one) = r { Some(one.instance) } else { None }).collect()
    };
    let limits = Limits { poll: Duration::from_millis(50), unwanted: Duration::from_millis(50), ..limits() };
    until(&peer, work, limits, |peer| signed_in(peer).len() >= 2).await;
    let instances = signed_in(&peer);
    assert_ne!(instances[0], instances[1]);
    assert!(outcomes(&peer).is_empty(), "what it did is another's now");
}

/// Plays the coordinator of one session; what the agent pushes comes out at the other end.
fn desk(
    wish: Wish,
    pieces: Vec<Vec<u8>>,
    pushed: mpsc::UnboundedSender<Vec<u8>>,
) -> impl Fn(&Request, usize) -> Option<Answer> {
    let key = Secret32([7; 32]);
    let cipher = Cipher::new(&key).unwrap();
    let agent = Mutex::new(None);
    let pieces = Mutex::new((0, VecDeque::from(pieces)));
    move |request, number| {
        match request {
            Request::SignIn(sign_in) => {
                *agent.lock().unwrap() = Some(sign_in.key);
                None
            }
            Request::Attach { session, instance } => {
                let opening = Opening { wish: wish.clone(), key: key.clone() };
                let agent = agent.lock().unwrap().unwrap();
                Some(Answer::Attached { sealed: seal_opening(&agent, *session, *instance, &opening).unwrap() })
            }
            Request::Begun { .. } => Some(Answer::Recorded),
            // Every other answer is lost on its way.
            Request::Push { number: piece, sealed, .. } => {
                let opened = cipher.open(Direction::Up, *piece, sealed).unwrap();
                if number % 2 == 0 {
                    return Some(Answer::TryLater { why: "the test wants it so".to_owned() });
                }
                pushed.send(opened).unwrap();
                Some(Answer::Recorded)
            }
            Request::Pull { number, .. } => {
                let (given, left) = &mut *pieces.lock().unwrap();
                assert_eq!(*number, *given);
                let piece = left.pop_front();
                *given += u64::from(piece.is_some());
                let sealed = piece.map(|piece| cipher.seal(Direction::Down, *number, &piece).unwrap());
                Some(Answer::Piece { sealed })
            }
            _ => None,
        }
    }
}

async fn invite(peer: &Arc<Peer>) {
    let invitation = Invitation { session: SessionId::generate(&peer.seams), coordinator: None };
    peer.bus.publish(peer.site, seal(&invitation, "").unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_session_carries_a_programs_input_output_and_end_though_answers_are_lost() {
    let mut input = Vec::new();
    write_frame(&mut input, INPUT, b"said twice").await.unwrap();
    write_frame(&mut input, INPUT, b"").await.unwrap();
    let pieces = input.chunks(5).map(<[u8]>::to_vec).collect();
    let (command, component, namespace) = (vec!["echo ".to_owned()], None, "shop".to_owned());
    let wish = Wish::Exec { namespace, component, command, stdin: true, tty: false };
    let (pushed, mut got) = mpsc::unbounded_channel();
    let peer = Peer::new(2000, desk(wish, pieces, pushed));
    invite(&peer).await;
    let all = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&all);
    let got = Mutex::new(move || {
        while let Ok(piece) = got.try_recv() {
            seen.lock().unwrap().push(piece);
        }
    });
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |_| {
        (got.lock().unwrap())();
        all.lock().unwrap().last().is_some_and(Vec::is_empty)
    })
    .await;
    let bytes = all.lock().unwrap().concat();
    let mut from = bytes.as_slice();
    let mut output = Vec::new();
    let mut end = Vec::new();
    while let Some((channel, bytes)) = read_frame(&mut from).await.unwrap() {
        if channel == OUTPUT { output.extend(bytes) } else { end.push((channel, bytes)) }
    }
    assert_eq!(output, b"echo SAID TWICE");
    assert_eq!(end, [(END, b"{\"code\":10}".to_vec())]);
}

/// What comes up, to its end, of a session that is told `input`.
async fn told(wish: Wish, input: &[u8]) -> Vec<u8> {
    let pieces = input.chunks(5).chain([&[][..]]).map(<[u8]>::to_vec).collect();
    let (pushed, got) = mpsc::unbounded_channel();
    let peer = Peer::new(2000, desk(wish, pieces, pushed));
    invite(&peer).await;
    let (got, all) = (Mutex::new(got), Mutex::new(Vec::new()));
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |_| {
        let mut all = all.lock().unwrap();
        while let Ok(piece) = got.lock().unwrap().try_recv() {
            all.push(piece);
        }
        all.last().is_some_and(Vec::is_empty)
    })
    .await;
    all.into_inner().unwrap().concat()
}

#[tokio::test]
async fn a_session_carries_a_connection_whose_client_has_said_all_and_still_listens() {
    let (namespace, service) = ("shop".to_owned(), "db".to_owned());
    let connect = Wish::Connect { namespace: namespace.clone(), service: service.clone() };
    assert_eq!(told(connect, b"a question of some length").await, b"A QUESTION OF SOME LENGTH");
    let way = Wish::Way { namespace, service, address: "127.0.0.1:4711".parse().unwrap() };
    assert_eq!(told(way, b"").await, b"127.0.0.1:4711");
}

#[tokio::test]
async fn polls_become_rarer_while_nothing_goes_on_and_frequent_when_a_task_comes() {
    let limits = || Limits { idle: Duration::from_millis(1600), ..limits() };
    let peer = Peer::new(2000, never);
    let begun = peer.seams.clock.monotonic();
    let polls = |p: &Peer| p.requests(|r| matches!(r, Request::Poll { .. })).len();
    let work = doing(|_| async { Ok(TaskOutput::Done) });
    until(&peer, Arc::clone(&work), limits(), |p| p.seams.clock.monotonic() - begun > Duration::from_secs(4)).await;
    // 50, 100, 200, 400, 800 and then 1600 ms; a slower machine asks less often still.
    assert!((2..=12).contains(&polls(&peer)), "{}", polls(&peer));
    let peer = Peer::new(2000, never);
    let giving = Arc::clone(&peer);
    let given = tokio::spawn(async move {
        loop {
            giving.publish(&giving.hint(TaskKind::CopyData)).await;
            giving.seams.clock.sleep(Duration::from_millis(150)).await;
        }
    });
    // Rare polls would take half a minute for these.
    until(&peer, work, limits(), |p| polls(p) >= 20).await;
    given.abort();
}

#[tokio::test]
async fn a_session_that_can_not_be_begun_says_why() {
    let wish = Wish::Logs { namespace: "shop".to_owned(), component: None, follow: false };
    let (pushed, _got) = mpsc::unbounded_channel();
    let peer = Peer::new(2000, desk(wish, vec![], pushed));
    invite(&peer).await;
    let begun = |p: &Peer| p.requests(|r| matches!(r, Request::Begun { .. }));
    until(&peer, doing(|_| async { Ok(TaskOutput::Done) }), limits(), |p| !begun(p).is_empty()).await;
    assert!(matches!(&begun(&peer)[0], Request::Begun { failure: Some(f), .. } if f.code == "session.none"));
    assert!(peer.requests(|r| matches!(r, Request::Pull { .. })).is_empty());
}

fn keys_of(id: &str) -> StoreKeys {
    StoreKeys { id: id.to_owned(), secret: Secret::new("s"), token: None, expires: None }
}

/// Answers requests for keys as the test says, with the key of the instance that signed in.
fn lending(
    answer: impl Fn(PublicKey, Claimed, usize) -> Option<Answer> + Send + Sync + 'static,
) -> impl Fn(&Request, usize) -> Option<Answer> + Send + Sync {
    let signed_in = Mutex::new(None);
    move |request, number| match request {
        Request::SignIn(sign_in) => {
            *signed_in.lock().unwrap() = Some(sign_in.key);
            None
        }
        Request::StoreKeys { claimed, .. } => answer((*signed_in.lock().unwrap())?, *claimed, number),
        _ => None,
    }
}

#[tokio::test]
async fn newer_keys_of_a_store_come_to_the_attempt_that_asks_once_the_coordinator_can() {
    let answer = |key: PublicKey, claimed: Claimed, number: usize| match number {
        0 => Some(Answer::TryLater { why: "the database is away".to_owned() }),
        // Never answered: the request or its answer was lost.
        1 => None,
        _ => Some(Answer::StoreKeys { sealed: seal_store_keys(&key, &claimed, &keys_of("NEW")).unwrap() }),
    };
    let peer = Peer::new(2000, lending(answer));
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let work = doing(|job| async move {
        let keys = job.way.keys(Some("OLD")).await.unwrap();
        assert_eq!(keys, keys_of("NEW"));
        Ok(TaskOutput::Done)
    });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    assert!(matches!(outcomes(&peer)[0], Outcome::Succeeded(_)), "{:?}", outcomes(&peer));
    let asked = peer.requests(|r| matches!(r, Request::StoreKeys { .. }));
    assert!(
        asked.iter().all(|r| matches!(r, Request::StoreKeys { refused: Some(id), .. } if id == "OLD")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn keys_that_a_coordinator_does_not_give_or_that_are_anothers_are_an_error_at_once() {
    // A coordinator of an earlier release says that it can't read this.
    let refused = "message of protocol version 3, this program speaks 2";
    let answer = move |key: PublicKey, claimed: Claimed, number: usize| match number {
        0 => Some(Answer::Refused { why: refused.to_owned() }),
        _ => {
            let another = Claimed { attempt: claimed.attempt + 1, ..claimed };
            Some(Answer::StoreKeys { sealed: seal_store_keys(&key, &another, &keys_of("NEW")).unwrap() })
        }
    };
    let peer = Peer::new(2000, lending(answer));
    peer.publish(&peer.hint(TaskKind::CopyData)).await;
    let work = doing(move |job| async move {
        let why = job.way.keys(None).await.unwrap_err();
        assert!(why.contains(refused), "{why}");
        let why = job.way.keys(None).await.unwrap_err();
        assert!(why.contains("can't be opened"), "{why}");
        Ok(TaskOutput::Done)
    });
    until(&peer, work, limits(), |p| !outcomes(p).is_empty()).await;
    assert!(matches!(outcomes(&peer)[0], Outcome::Succeeded(_)), "{:?}", outcomes(&peer));
}
