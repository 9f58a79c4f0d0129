//! From a hint to a finished task: claim, permit, execute, heartbeat, report.
//!
//! A hint is only a hint: what may be done, and by whom, the coordinator says in its answer to the claim. A lease
//! that is not renewed in time, or an answer that refuses, cancels the task's token, and nothing touches anything
//! after that. Hints may be lost: the worker also asks now and then what there is.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ocopea_protocol::{
    bus::{AgentBus, BusError},
    envelope,
    failure::TaskFailure,
    ids::{InstanceId, TaskId},
    message::{Answer, Request, TaskHint},
    seams::Seams,
    task::{Claimed, Outcome, Progress, TaskSpec},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::execute::{HolderCell, Site, Task};

/// Tasks that copy at the same time, per agent.
pub const COPIES: usize = 4;
/// Tasks that only wait or hold.
const LIGHT: usize = 512;
/// How often the worker asks what there is.
const POLL: Duration = Duration::from_secs(5);
/// How long an answer of the coordinator may take.
const PATIENCE_MS: u64 = 10_000;
/// How often a prepared holder asks whether to open: the skew of a save is of this order.
const EAGER: Duration = Duration::from_millis(50);
/// How long running tasks have to finish when the agent stops, before they are handed back.
const GRACE: Duration = Duration::from_secs(10);

/// One agent process of one site.
pub struct Worker {
    site: Arc<Site>,
    bus: Arc<dyn AgentBus>,
    instance: InstanceId,
    seams: Seams,
    copies: Arc<Semaphore>,
    light: Arc<Semaphore>,
    busy: Mutex<HashSet<TaskId>>,
    running: TaskTracker,
    abort: CancellationToken,
}

impl Worker {
    /// A worker that has not begun.
    pub fn new(site: Arc<Site>, bus: Arc<dyn AgentBus>, instance: InstanceId, seams: Seams) -> Arc<Self> {
        Arc::new(Self {
            site,
            bus,
            instance,
            seams,
            copies: Arc::new(Semaphore::new(COPIES)),
            light: Arc::new(Semaphore::new(LIGHT)),
            busy: Mutex::default(),
            running: TaskTracker::new(),
            abort: CancellationToken::new(),
        })
    }

    /// Works until `stop`; then takes nothing new, lets what runs finish for a while, and hands the rest back.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let hint = tokio::select! {
                () = stop.cancelled() => break,
                hint = self.bus.next_hint() => match hint {
                    Ok(bytes) => match envelope::open::<TaskHint>(&bytes) {
                        Ok(opened) => vec![opened.message],
                        Err(error) => {
                            tracing::warn!(%error, "a hint that can't be read was dropped");
                            continue;
                        }
                    },
                    Err(BusError::Closed) => break,
                    Err(error) => {
                        tracing::warn!(%error, "no hints from the bus");
                        self.seams.clock.sleep(self.seams.jittered(POLL)).await;
                        continue;
                    }
                },
                () = self.seams.clock.sleep(self.seams.jittered(POLL)) => self.poll().await,
            };
            for hint in hint {
                self.take(hint);
            }
        }
        self.running.close();
        if self.seams.timeout(GRACE, self.running.wait()).await.is_none() {
            self.abort.cancel();
            self.running.wait().await;
        }
    }

    async fn poll(&self) -> Vec<TaskHint> {
        match self.ask(&Request::Poll { instance: self.instance, most: 64 }).await {
            Some(Answer::Tasks(hints)) => hints,
            _ => Vec::new(),
        }
    }

    fn take(self: &Arc<Self>, hint: TaskHint) {
        if !self.busy.lock().unwrap_or_else(PoisonError::into_inner).insert(hint.task) {
            return;
        }
        let worker = Arc::clone(self);
        let tracked = self.running.track_future(async move {
            let permits = if hint.kind.is_light() { &worker.light } else { &worker.copies };
            let permit = tokio::select! {
                () = worker.abort.cancelled() => None,
                permit = Arc::clone(permits).acquire_owned() => permit.ok(),
            };
            if let Some(permit) = permit {
                worker.claim(hint.task, permit).await;
            }
            worker.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&hint.task);
        });
        self.seams.spawner.spawn("agent.task", Box::pin(tracked));
    }

    async fn claim(self: &Arc<Self>, task: TaskId, permit: OwnedSemaphorePermit) {
        match self.ask(&Request::Claim { task, instance: self.instance }).await {
            Some(Answer::Granted { claimed, lease_ms, spec }) => self.work(claimed, lease_ms, *spec).await,
            Some(Answer::Refused { why }) => tracing::debug!(%task, why, "claim refused"),
            _ => {}
        }
        drop(permit);
    }

    async fn work(self: &Arc<Self>, claimed: Claimed, lease_ms: u64, spec: TaskSpec) {
        let stop = CancellationToken::new();
        let lost = CancellationToken::new();
        let progress = Arc::new(Mutex::new(Progress::default()));
        let holder = Arc::new(HolderCell::default());
        let sink = {
            let progress = Arc::clone(&progress);
            Arc::new(move |now: Progress| *progress.lock().unwrap_or_else(PoisonError::into_inner) = now)
        };
        let kind = spec.kind();
        tracing::info!(task.id = %claimed.task, operation.id = %claimed.operation, task.attempt = claimed.attempt, site.name = self.site.name, kind = kind.as_str(), "task begins");
        let task = Task {
            site: Arc::clone(&self.site),
            claimed,
            stop: stop.clone(),
            progress: sink,
            holder: Arc::clone(&holder),
        };
        let heart = self.heartbeats(claimed, lease_ms, &progress, &holder, &stop, &lost);
        let running = run_caught(&self.seams, task, spec);
        let outcome = tokio::select! {
            outcome = running => Some(outcome),
            () = heart => None,
            () = self.abort.cancelled() => {
                stop.cancel();
                let _ = self.ask(&Request::HandBack { claimed }).await;
                tracing::info!(task.id = %claimed.task, "task handed back");
                return;
            }
        };
        if lost.is_cancelled() {
            tracing::warn!(task.id = %claimed.task, task.attempt = claimed.attempt, "the lease was lost: nothing more is done");
            return;
        }
        let outcome = match outcome {
            Some(Ok(output)) => Outcome::Succeeded(Box::new(output)),
            Some(Err(failure)) => {
                tracing::warn!(task.id = %claimed.task, kind = kind.as_str(), code = failure.code, cause = failure.cause, "{}", failure.what);
                Outcome::Failed(failure)
            }
            None => return,
        };
        self.report(claimed, outcome).await;
    }

    /// Renews the lease until the task ends. Ends itself only when the lease is lost.
    async fn heartbeats(
        &self,
        claimed: Claimed,
        lease_ms: u64,
        progress: &Mutex<Progress>,
        holder: &HolderCell,
        stop: &CancellationToken,
        lost: &CancellationToken,
    ) {
        let until = AtomicU64::new(self.now_ms() + lease_ms);
        let mut lease = lease_ms;
        loop {
            let pause = if holder.is_eager() { EAGER } else { Duration::from_millis(lease / 4).min(Duration::from_secs(1)) };
            tokio::select! {
                () = self.seams.clock.sleep(pause) => {}
                () = holder.changed.notified() => {}
            }
            let now = progress.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let request = Request::Heartbeat { claimed, progress: now, holder: holder.state() };
            match self.ask(&request).await {
                Some(Answer::Continue { lease_ms, holder: order }) => {
                    lease = lease_ms;
                    until.store(self.now_ms() + lease_ms, Ordering::Relaxed);
                    holder.order(order);
                }
                Some(Answer::Cancel) => {
                    until.store(self.now_ms() + lease, Ordering::Relaxed);
                    stop.cancel();
                }
                Some(Answer::Refused { why }) => {
                    tracing::warn!(task.id = %claimed.task, why, "the task is no longer ours");
                    stop.cancel();
                    lost.cancel();
                    return;
                }
                _ if self.now_ms() >= until.load(Ordering::Relaxed) => {
                    stop.cancel();
                    lost.cancel();
                    return;
                }
                _ => {}
            }
        }
    }

    /// Tells the outcome until it is in the catalog, or nobody wants it any more.
    async fn report(&self, claimed: Claimed, outcome: Outcome) {
        let request = Request::Finish { claimed, outcome };
        let mut pause = Duration::from_millis(200);
        for _ in 0..60 {
            match self.ask(&request).await {
                Some(Answer::Recorded | Answer::Refused { .. }) => return,
                _ => {
                    self.seams.clock.sleep(self.seams.jittered(pause)).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
        tracing::error!(task.id = %claimed.task, "the outcome could not be told: the lease will run out");
    }

    async fn ask(&self, request: &Request) -> Option<Answer> {
        let sealed = match envelope::seal(request, "") {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(%error, "a message can't be sent");
                return None;
            }
        };
        match self.bus.request(sealed, PATIENCE_MS).await {
            Ok(bytes) => match envelope::open::<Answer>(&bytes) {
                Ok(opened) => Some(opened.message),
                Err(error) => {
                    tracing::error!(%error, "an answer can't be read");
                    None
                }
            },
            Err(error) => {
                tracing::debug!(%error, "no answer");
                None
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.seams.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Asks the coordinator; for reports that aren't about a task.
    pub async fn tell(&self, request: &Request) -> Option<Answer> {
        self.ask(request).await
    }

    /// Who this is.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }
}

/// Runs a task; a panic within it is a failure of the task, not of the agent.
async fn run_caught(
    seams: &Seams,
    task: Task,
    spec: TaskSpec,
) -> Result<ocopea_protocol::task::TaskOutput, TaskFailure> {
    let kind = spec.kind();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let abandoned = CancellationToken::new();
    let _guard = abandoned.clone().drop_guard();
    seams.spawner.spawn(
        "agent.execute",
        Box::pin(async move {
            tokio::select! {
                // The worker is gone from this task: drop everything that it holds.
                () = abandoned.cancelled() => {}
                outcome = task.run(spec) => { let _ = sender.send(outcome); }
            }
        }),
    );
    receiver.await.unwrap_or_else(|_| {
        Err(TaskFailure::permanent(
            "agent.panic",
            format!("can't do the task {}", kind.as_str()),
            "the agent hit an internal error (see its log)",
        ))
    })
}
