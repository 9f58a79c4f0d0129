//! Delivery → permit → claim → work → finish.
//!
//! The catalog is the truth: a hint or a poll only says where to look, a claim makes a task ours for the time of a
//! lease, heartbeats prolong it, and every answer is fenced by the attempt. Whoever loses a lease stops at once and
//! reports nothing: another attempt may be running already. Doing a task twice must be harmless, doing it at the
//! same time in two places must not happen, so an agent that can't reach the coordinator gives up before its lease
//! ends by its own clock.

#[cfg(test)]
mod tests;

mod sessions;
mod speaker;
mod way;

use std::{
    any::Any,
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use sessions::Begun;
pub use speaker::Identity;
use speaker::Speaker;

use async_trait::async_trait;
use futures::FutureExt;
use ocopea_protocol::{
    bus::{AgentBus, BusError},
    envelope::{EnvelopeError, Opened, PROTOCOL_VERSION, open, seal},
    failure::TaskFailure,
    identity::{IdentityError, Instance},
    ids::{InstanceId, TaskId},
    message::{Answer, Request, SiteLimits, TaskHint},
    seams::Seams,
    session::{Invitation, Wish},
    task::{Claimed, Outcome, Progress, TaskKind, TaskOutput, TaskSpec},
    trace::Trace,
};
use ocopea_repository::backend::s3::GivesKeys;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    access::Access,
    execute::{HolderCell, Site, Task},
    metrics::{self, Metrics},
    reach::ProgressSink,
};

/// How much at once, and how patient.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Tasks that move bytes (see [`TaskKind::moves_bytes`]), at the same time.
    pub copies: usize,
    /// Tasks that are steps of seconds, at the same time.
    pub steps: usize,
    /// Tasks that mostly wait (see [`TaskKind::is_light`]), at the same time. The holders of a save wait for each
    /// other: were there fewer permits than holders of all saves together, some would wait in vain.
    pub light: usize,
    /// Between two polls; hints come faster, polls find what hints lost.
    pub poll: Duration,
    /// Between two polls at most, while nothing goes on: they become rarer.
    pub idle: Duration,
    /// Until an agent that is not wanted asks again.
    pub unwanted: Duration,
    /// How long a stop waits for running tasks before it hands them back.
    pub grace: Duration,
    /// How long one request to the coordinator may take.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            copies: usize::try_from(SiteLimits::default().copies).unwrap_or(1),
            steps: 16,
            light: 4096,
            poll: Duration::from_secs(3),
            idle: Duration::from_secs(15),
            unwanted: Duration::from_secs(15),
            grace: Duration::from_secs(8),
            patience: Duration::from_secs(10),
        }
    }
}

/// Tasks that wait for a permit or run; what comes beyond is found again by a later poll.
const MOST_TAKEN: usize = 8192;
/// Tasks asked for in one poll.
const POLL: u32 = 64;
/// Progress goes out at most this often, and orders to holders that keep a snapshot open come this late.
const BEAT: Duration = Duration::from_millis(500);
/// Heartbeats of a holder that waits for "open now": what one hears later than another is skew.
const EAGER: Duration = Duration::from_millis(50);
/// How long a task that was told to stop may take to let go of what it holds.
const LET_GO: Duration = Duration::from_secs(20);

/// What a task is given beside its specification.
pub struct Job {
    /// Which attempt of which task.
    pub claimed: Claimed,
    /// Cancelled when the operation is, when the lease is lost, or when the agent stops.
    pub stop: CancellationToken,
    /// Where progress goes; cheap to call often.
    pub progress: ProgressSink,
    /// A holder's line to the coordinator.
    pub holder: Arc<HolderCell>,
    /// Newer keys of the store.
    pub way: Arc<dyn GivesKeys>,
}

/// Does tasks.
#[async_trait]
pub trait Work: Send + Sync {
    /// Does one. Dropping the future must stop it from touching anything.
    async fn run(&self, job: Job, spec: TaskSpec) -> Result<TaskOutput, TaskFailure>;

    /// Begins what a person wants to do by hand.
    async fn session(&self, wish: Wish) -> Result<Begun, TaskFailure>;
}

/// What restores is done by the rights of restores; what people do by hand they do in what was restored.
struct AtSite {
    saving: Arc<Site>,
    restoring: Arc<Site>,
    access: Access,
}

#[async_trait]
impl Work for AtSite {
    async fn run(&self, job: Job, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        let Job { claimed, stop, progress, holder, way } = job;
        let site = Arc::clone(if spec.restores() { &self.restoring } else { &self.saving });
        Task { site, claimed, stop, progress, holder, way: Some(way) }.run(spec).await
    }

    async fn session(&self, wish: Wish) -> Result<Begun, TaskFailure> {
        sessions::begin(&self.restoring.platform, &self.access, wish).await
    }
}

/// One agent process of one site: takes tasks and has them done.
pub struct Worker {
    bus: Arc<dyn AgentBus>,
    work: Arc<dyn Work>,
    speaker: Speaker,
    seams: Seams,
    limits: Limits,
    copies: Arc<Semaphore>,
    steps: Arc<Semaphore>,
    light: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    taken: Mutex<HashSet<TaskId>>,
    /// Rung when a task comes.
    stirred: Notify,
    running: TaskTracker,
    stop: CancellationToken,
    metrics: Option<Arc<Metrics>>,
}

/// No usable answer came.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

/// Why work ended without an outcome to report.
enum Ended {
    Outcome(Outcome),
    /// The lease is another's, or may be.
    Lost,
    /// The agent stops.
    Stopped,
}

/// What to do, and the way to newer keys of the store.
type Given = (TaskSpec, Arc<dyn GivesKeys>);
type Panicked = Box<dyn Any + Send>;
type Returned = Result<Result<TaskOutput, TaskFailure>, Panicked>;

impl Worker {
    /// A worker for `site` that has not begun.
    pub fn new(
        site: Arc<Site>,
        bus: Arc<dyn AgentBus>,
        identity: Identity,
        seams: Seams,
    ) -> Result<Arc<Self>, IdentityError> {
        let restoring = site.restorer();
        let access = Access::new(restoring.platform.clone());
        let copies = usize::try_from(site.limits.copies).unwrap_or(usize::MAX);
        let limits = Limits { copies, ..Limits::default() };
        Self::with(Arc::new(AtSite { saving: site, restoring, access }), bus, identity, seams, limits)
    }

    /// As [`Self::new`], for any work and limits.
    pub fn with(
        work: Arc<dyn Work>,
        bus: Arc<dyn AgentBus>,
        identity: Identity,
        seams: Seams,
        limits: Limits,
    ) -> Result<Arc<Self>, IdentityError> {
        Ok(Arc::new(Self {
            bus,
            work,
            speaker: Speaker::new(identity, &seams)?,
            copies: Arc::new(Semaphore::new(limits.copies)),
            steps: Arc::new(Semaphore::new(limits.steps)),
            light: Arc::new(Semaphore::new(limits.light)),
            sessions: Arc::new(Semaphore::new(sessions::MOST)),
            seams,
            limits,
            taken: Mutex::default(),
            stirred: Notify::new(),
            running: TaskTracker::new(),
            stop: CancellationToken::new(),
            metrics: Metrics::new()
                .inspect_err(|error| tracing::error!(%error, "nothing is measured"))
                .ok()
                .map(Arc::new),
        }))
    }

    /// What is measured; `None` where that could not be set up.
    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        self.metrics.clone()
    }

    fn measure(&self, note: impl FnOnce(&Metrics)) {
        if let Some(metrics) = &self.metrics {
            note(metrics);
        }
    }

    /// Who this is.
    pub fn instance(&self) -> InstanceId {
        self.speaker.instance().id
    }

    /// Asks the coordinator; for what isn't about a task.
    pub async fn tell(&self, request: &Request) -> Option<Answer> {
        let mut answer = self.ask(request).await;
        if matches!(answer, Ok(Answer::SignIn)) && self.sign_in().await {
            answer = self.ask(request).await;
        }
        answer.inspect_err(|error| tracing::debug!(%error, "no answer")).ok()
    }

    /// Takes hints and polls until stopped or the bus is closed; then waits until what runs is finished or handed
    /// back.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (hints, polls) = (Arc::clone(&self).hints(), Arc::clone(&self).polls());
        let working = async {
            // Hints wait meanwhile.
            let mut pause = self.limits.poll;
            while !self.sign_in().await {
                self.seams.clock.sleep(self.seams.jittered(pause)).await;
                pause = (pause * 2).min(self.limits.unwanted);
            }
            tokio::select! {
                biased;
                () = hints => {}
                () = polls => {}
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = working => {}
        }
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }

    async fn hints(self: Arc<Self>) {
        loop {
            match self.bus.next_hint().await {
                Ok(hint) => match open::<TaskHint>(&hint.bytes) {
                    Ok(opened) => {
                        hint.accept();
                        self.take(opened.message);
                    }
                    Err(EnvelopeError::Kind { .. }) if let Ok(opened) = open::<Invitation>(&hint.bytes) => {
                        hint.accept();
                        self.invited(opened.message);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a hint could not be read: it goes into quarantine");
                        hint.reject();
                    }
                },
                Err(BusError::Closed) => return,
                Err(error) => {
                    tracing::debug!(%error, "no hints at the moment");
                    self.seams.clock.sleep(self.seams.jittered(Duration::from_secs(1))).await;
                }
            }
        }
    }

    fn invited(self: &Arc<Self>, invitation: Invitation) {
        let Ok(permit) = Arc::clone(&self.sessions).try_acquire_owned() else {
            return tracing::warn!(most = sessions::MOST, "no more sessions at a time: an invitation is passed over");
        };
        let worker = Arc::clone(self);
        let attended = self.running.track_future(async move {
            worker.attend_session(invitation).await;
            drop(permit);
        });
        self.seams.spawner.spawn("worker.session", Box::pin(attended));
    }

    async fn polls(self: Arc<Self>) {
        let mut idle = self.limits.poll;
        loop {
            let poll = self.speaker.poll(POLL, &self.seams);
            let pause = match self.ask(&poll).await {
                Ok(Answer::Tasks(hints)) => {
                    let hints = hints.into_iter().filter(|_| !self.seams.planted("polls-ignored"));
                    hints.for_each(|hint| self.take(hint));
                    let calm = self.taken.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                    idle = if calm { (idle * 2).min(self.limits.idle) } else { self.limits.poll };
                    idle
                }
                Ok(Answer::SignIn) if self.sign_in().await => continue,
                Ok(Answer::SignIn) => self.limits.unwanted,
                Ok(Answer::Ended { why }) => {
                    self.begin_anew(&why);
                    self.limits.unwanted
                }
                Ok(other) => {
                    tracing::debug!(?other, "no tasks in the answer to a poll");
                    self.limits.poll
                }
                Err(Silence::Bus(BusError::Closed)) => return,
                Err(error) => {
                    tracing::debug!(%error, "poll failed");
                    self.limits.poll
                }
            };
            tokio::select! {
                biased;
                () = self.seams.clock.sleep(self.seams.jittered(pause)) => {}
                // Where one task came, others may follow, and their hints be lost.
                () = self.stirred.notified() => {
                    idle = self.limits.poll;
                    self.seams.clock.sleep(self.seams.jittered(idle)).await;
                }
            }
        }
    }

    /// Signs in; whether it counts.
    async fn sign_in(&self) -> bool {
        let sign_in = match self.speaker.sign_in().await {
            Ok(sign_in) => sign_in,
            Err(error) => {
                tracing::error!(%error, "can't sign in");
                return false;
            }
        };
        match self.ask(&Request::SignIn(Box::new(sign_in))).await {
            Ok(Answer::Recorded) => true,
            Ok(Answer::Ended { why }) => {
                self.begin_anew(&why);
                false
            }
            Ok(other) => {
                tracing::debug!(?other, "not signed in");
                false
            }
            Err(error) => {
                tracing::debug!(%error, "not signed in");
                false
            }
        }
    }

    /// This instance's word counts no more: what it does ends with its next heartbeats.
    fn begin_anew(&self, why: &str) {
        tracing::error!(instance = %self.instance(), why, "this agent's word no longer counts: it begins as another");
        if let Err(error) = self.speaker.renew(&self.seams) {
            tracing::error!(%error, "it can't");
        }
    }

    /// Begins to attend to a task, unless that is being done already.
    fn take(self: &Arc<Self>, hint: TaskHint) {
        if hint.least_version > PROTOCOL_VERSION {
            tracing::warn!(task.id = %hint.task, version = hint.least_version, "task needs a newer agent");
            return;
        }
        {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.len() >= MOST_TAKEN || !taken.insert(hint.task) {
                return;
            }
        }
        self.stirred.notify_one();
        let worker = Arc::clone(self);
        let attended = self.running.track_future(async move {
            worker.attend(&hint).await;
            if !worker.seams.planted("task-stays-taken") {
                worker.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&hint.task);
            }
        });
        self.seams.spawner.spawn("worker.attend", Box::pin(attended));
    }

    async fn attend(&self, hint: &TaskHint) {
        // The permit comes first: a claimed task that only waits would keep other agents from doing it.
        let Some(_permit) = self.permit(hint.kind).await else { return };
        let (mut instance, mut asked) = (self.speaker.instance(), self.seams.clock.monotonic());
        let mut answer = self.claim(hint.task, instance.id).await;
        if matches!(&answer, Ok(Opened { message: Answer::SignIn, .. })) && self.sign_in().await {
            (instance, asked) = (self.speaker.instance(), self.seams.clock.monotonic());
            answer = self.claim(hint.task, instance.id).await;
        }
        let trace = answer.as_ref().ok().and_then(|opened| opened.trace.parse::<Trace>().ok());
        match answer.map(|opened| opened.message) {
            Ok(Answer::Granted { claimed, lease_ms, sealed }) => {
                let span = tracing::info_span!(
                    "task",
                    operation.id = %claimed.operation,
                    task.id = %claimed.task,
                    task.attempt = claimed.attempt,
                    task.kind = hint.kind.as_str(),
                    trace.id = trace.map(|trace| trace.id()),
                );
                let lease_end = asked + Duration::from_millis(lease_ms);
                let work = async {
                    match instance.open(&claimed, &sealed) {
                        Ok(spec) => {
                            let way = self.way(&instance, claimed);
                            Box::pin(self.work_on(claimed, hint.kind, (spec, way), lease_end, lease_ms)).await;
                        }
                        Err(error) => {
                            let what = format!("can't begin {}", hint.kind.as_str());
                            let failure = TaskFailure::permanent("task.sealed", what, error)
                                .next("see that coordinator and agents are of the same release");
                            self.finish(claimed, hint.kind, Outcome::Failed(failure)).await;
                        }
                    }
                };
                work.instrument(span).await;
            }
            Ok(Answer::Refused { why }) => tracing::debug!(task.id = %hint.task, why, "claim refused"),
            Ok(other) => tracing::debug!(task.id = %hint.task, ?other, "claim not granted"),
            Err(error) => tracing::debug!(task.id = %hint.task, %error, "claim not answered"),
        }
    }

    fn way(&self, instance: &Arc<Instance>, claimed: Claimed) -> Arc<dyn GivesKeys> {
        let (bus, instance, seams) = (Arc::clone(&self.bus), Arc::clone(instance), self.seams.clone());
        Arc::new(way::Way { bus, instance, claimed, patience: self.limits.patience, seams })
    }

    async fn permit(&self, kind: TaskKind) -> Option<OwnedSemaphorePermit> {
        let pool = match kind {
            kind if kind.is_light() => &self.light,
            kind if kind.moves_bytes() => &self.copies,
            _ => &self.steps,
        };
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            permit = Arc::clone(pool).acquire_owned() => permit.ok(),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Answer, Silence> {
        self.ask_within(request, self.limits.patience).await
    }

    async fn claim(&self, task: TaskId, instance: InstanceId) -> Result<Opened<Answer>, Silence> {
        self.ask_opened(&Request::Claim { task, instance }, self.limits.patience).await
    }

    async fn ask_within(&self, request: &Request, patience: Duration) -> Result<Answer, Silence> {
        Ok(self.ask_opened(request, patience).await?.message)
    }

    async fn ask_opened(&self, request: &Request, patience: Duration) -> Result<Opened<Answer>, Silence> {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(50);
        // Whatever the bus takes it for: leases depend on it.
        let asked = self.seams.timeout(patience, self.bus.request(seal(request, "")?, patience_ms)).await;
        let answer = asked.unwrap_or(Err(BusError::NoAnswer(patience_ms)))?;
        Ok(open::<Answer>(&answer)?)
    }

    async fn work_on(&self, claimed: Claimed, kind: TaskKind, given: Given, lease_end: Duration, lease_ms: u64) {
        self.seams.point("agent", kind.as_str(), "begin");
        let began = self.seams.clock.monotonic();
        self.measure(|metrics| metrics.began(kind));
        let ended = self.watch(claimed, kind, given, lease_end, lease_ms).await;
        let took = self.seams.clock.monotonic().saturating_sub(began);
        self.measure(|metrics| {
            let outcome = match &ended {
                Ended::Outcome(outcome) => Ok(outcome),
                Ended::Lost => Err(metrics::LOST),
                Ended::Stopped => Err(metrics::HANDED_BACK),
            };
            metrics.ended(kind, outcome, took);
        });
        match ended {
            Ended::Outcome(outcome) => {
                self.seams.point("agent", kind.as_str(), "end");
                self.finish(claimed, kind, outcome).await;
                self.seams.point("agent", kind.as_str(), "reported");
            }
            Ended::Lost => tracing::warn!("the lease was lost: the task was dropped"),
            Ended::Stopped => {
                tracing::info!("handed back");
                let handed = self.ask(&Request::HandBack { claimed }).await;
                if let Err(error) = handed {
                    tracing::debug!(%error, "the coordinator didn't hear of it: the lease will run out");
                }
            }
        }
    }

    /// Has the task done, and heartbeats meanwhile.
    async fn watch(
        &self,
        claimed: Claimed,
        kind: TaskKind,
        given: Given,
        mut lease_end: Duration,
        mut lease_ms: u64,
    ) -> Ended {
        let now = || self.seams.clock.monotonic();
        let holder = Arc::new(HolderCell::default());
        let latest = Arc::new(Mutex::new(Progress::default()));
        let running = self.start(claimed, given, Arc::clone(&holder), Arc::clone(&latest));
        let Running { stop, mut ended, abandon } = running;
        let mut sent = Progress::default();
        let mut beaten = now();
        let mut halt: Option<Halt> = None;
        loop {
            let tick = if holder.is_eager() { EAGER } else { BEAT.min(Duration::from_millis(lease_ms / 4)) };
            // Not a moment longer than the lease: another may have the task then.
            let tick = tick.min(lease_end.saturating_sub(now()));
            let mut changed = false;
            tokio::select! {
                biased;
                result = &mut ended => return Ended::Outcome(outcome(kind, result, halt.as_ref())),
                () = holder.changed.notified() => changed = true,
                () = self.stop.cancelled(), if halt.is_none() => {
                    halt = Some(Halt::Draining { until: now() + self.limits.grace });
                }
                () = self.seams.clock.sleep(tick) => {}
            }
            match halt {
                Some(Halt::Draining { until }) if now() >= until => {
                    stop.cancel();
                    // A moment to let go of snapshots and locks; what takes longer is cut off, and is off before
                    // another may have the task.
                    match self.seams.timeout(self.limits.grace, &mut ended).await {
                        Some(Ok(Ok(Ok(output)))) => return Ended::Outcome(Outcome::Succeeded(Box::new(output))),
                        Some(_) => {}
                        None => {
                            drop(abandon);
                            let _ = self.seams.timeout(self.limits.grace, &mut ended).await;
                        }
                    }
                    return Ended::Stopped;
                }
                Some(Halt::Cancelled { until }) if now() >= until => {
                    return Ended::Outcome(Outcome::Failed(cancelled(kind)));
                }
                _ => {}
            }
            if now() >= lease_end && !self.seams.planted("lost-lease-kept") {
                stop.cancel();
                return Ended::Lost;
            }
            let progress = latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let is_holder = kind == TaskKind::OpenSnapshot;
            let due = now().saturating_sub(beaten) >= Duration::from_millis(lease_ms / 3);
            if !(changed || due || is_holder || progress != sent) {
                continue;
            }
            let asked = now();
            let request = Request::Heartbeat { claimed, progress: progress.clone(), holder: holder.state() };
            match self.ask_within(&request, self.limits.patience.min(lease_end.saturating_sub(asked))).await {
                Ok(Answer::Continue { lease_ms: granted, holder: order }) => {
                    (lease_ms, lease_end, beaten, sent) =
                        (granted, asked + Duration::from_millis(granted), asked, progress);
                    holder.order(order);
                }
                Ok(Answer::Cancel) if self.seams.planted("cancel-unheard") => {}
                Ok(Answer::Cancel) => {
                    // The lease stays ours while we clean up.
                    (lease_end, beaten) = (asked + Duration::from_millis(lease_ms), asked);
                    if !matches!(halt, Some(Halt::Cancelled { .. })) {
                        stop.cancel();
                        halt = Some(Halt::Cancelled { until: now() + LET_GO });
                    }
                }
                Ok(Answer::Refused { .. }) if self.seams.planted("refusal-unheard") => {}
                Ok(Answer::Refused { why } | Answer::Ended { why }) => {
                    tracing::warn!(why, "heartbeat refused");
                    stop.cancel();
                    return Ended::Lost;
                }
                Ok(other) => tracing::debug!(?other, "heartbeat not taken"),
                Err(error) => tracing::debug!(%error, "heartbeat not answered"),
            }
        }
    }

    /// Starts the work beside the heartbeats. When [`Running`] is dropped, so is the work.
    fn start(
        &self,
        claimed: Claimed,
        (spec, way): Given,
        holder: Arc<HolderCell>,
        latest: Arc<Mutex<Progress>>,
    ) -> Running {
        let stop = CancellationToken::new();
        let abandon = CancellationToken::new();
        let (done, ended) = oneshot::channel();
        let (metrics, kind) = (self.metrics.clone(), spec.kind());
        let progress: ProgressSink = Arc::new(move |progress| {
            let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(metrics) = &metrics {
                metrics.moved(kind, &latest, &progress);
            }
            *latest = progress;
        });
        let (work, mut abandoned) = (Arc::clone(&self.work), abandon.clone());
        let mut asked_to_stop = stop.clone();
        if self.seams.planted("work-goes-on") {
            (abandoned, asked_to_stop) = (CancellationToken::new(), CancellationToken::new());
        }
        let job = Job { claimed, stop: asked_to_stop, progress, holder, way };
        let work = async move {
            tokio::select! {
                biased;
                () = abandoned.cancelled() => {}
                result = AssertUnwindSafe(work.run(job, spec)).catch_unwind() => {
                    // Nobody waits any more when the lease was lost at this moment.
                    let _ = done.send(result);
                }
            }
        };
        let span = tracing::Span::current();
        self.seams.spawner.spawn("worker.work", Box::pin(self.running.track_future(work).instrument(span)));
        Running { stop, ended, abandon: abandon.drop_guard() }
    }

    /// Reports how it ended until the coordinator has it in the catalog, or doesn't want it.
    async fn finish(&self, claimed: Claimed, kind: TaskKind, mut outcome: Outcome) {
        match &outcome {
            Outcome::Succeeded(_) => tracing::info!("done"),
            Outcome::Failed(failure) => tracing::warn!(code = failure.code, cause = failure.cause, "{}", failure.what),
        }
        let mut pause = Duration::from_millis(100);
        let mut give_up = None;
        loop {
            match self.ask(&Request::Finish { claimed, outcome: outcome.clone() }).await {
                Ok(Answer::Recorded) => return,
                Ok(Answer::Refused { why } | Answer::Ended { why }) => {
                    tracing::warn!(why, "the outcome was refused");
                    return;
                }
                Ok(other) => tracing::debug!(?other, "outcome not taken yet"),
                Err(Silence::Bus(BusError::Closed)) => return,
                Err(Silence::Bus(error)) => tracing::debug!(%error, "outcome not delivered yet"),
                Err(Silence::Envelope(error)) => {
                    // Ours can't be sent as it is: that is said instead, so that the task doesn't stay open.
                    let failure =
                        TaskFailure::permanent("task.outcome", format!("can't report {}", kind.as_str()), error);
                    outcome = Outcome::Failed(failure);
                }
            }
            if self.stop.is_cancelled() {
                let now = self.seams.clock.monotonic();
                if now >= *give_up.get_or_insert(now + self.limits.grace) {
                    tracing::warn!("stopped before the coordinator took the outcome: the task will be done again");
                    return;
                }
            }
            self.seams.clock.sleep(self.seams.jittered(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }
}

struct Running {
    stop: CancellationToken,
    ended: oneshot::Receiver<Returned>,
    abandon: tokio_util::sync::DropGuard,
}

/// Why a task should come to its end.
enum Halt {
    Cancelled { until: Duration },
    Draining { until: Duration },
}

fn cancelled(kind: TaskKind) -> TaskFailure {
    TaskFailure::cancelled(format!("stopped {}", kind.as_str()))
}

fn outcome(kind: TaskKind, result: Result<Returned, oneshot::error::RecvError>, halt: Option<&Halt>) -> Outcome {
    let was_cancelled = matches!(halt, Some(Halt::Cancelled { .. }));
    match result {
        Ok(Ok(Ok(output))) => Outcome::Succeeded(Box::new(output)),
        Ok(Ok(Err(failure))) if was_cancelled => {
            Outcome::Failed(TaskFailure { cause: failure.cause, ..cancelled(kind) })
        }
        Ok(Ok(Err(failure))) => Outcome::Failed(failure),
        Ok(Err(panic)) => Outcome::Failed(panicked(kind, Some(&*panic))),
        Err(_) => Outcome::Failed(panicked(kind, None)),
    }
}

/// A panic is a fault of this program: trying again would only repeat it.
fn panicked(kind: TaskKind, panic: Option<&(dyn Any + Send)>) -> TaskFailure {
    let said = panic
        .and_then(|p| p.downcast_ref::<&str>().map(|s| (*s).to_owned()).or_else(|| p.downcast_ref::<String>().cloned()))
        .unwrap_or_else(|| "no message".to_owned());
    TaskFailure::permanent(
        "task.panicked",
        format!("can't finish {}", kind.as_str()),
        format!("the agent has a fault: {said}"),
    )
    .next("report it, with the agent's log of this time")
}
