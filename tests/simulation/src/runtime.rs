//! One seeded scheduler on one thread, with virtual time.
//!
//! A task is polled when it was woken; which of several is next, the seed decides. Time moves on only when none can go on.
//! Each simulated process is given [`Seams`] of its own: what it spawns is its own and ends with it when it crashes, it
//! doesn't run while it is frozen, and its wall clock can be set. Everything that happens goes into one number, the trace:
//! two runs of one seed have the same.
//!
//! For that, the order in which tasks were woken must not count (tokio's `watch` wakes in an order of its own), only who
//! can run; and what a poll does must follow from nothing but what went before.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use ocopea_protocol::{
    seams::{BoxFuture, Clock, Entropy, Faults, Seams, Spawner},
    time::Timestamp,
};

use crate::chance::Chance;

/// When the simulated world begins, in milliseconds: November 2026.
const BEGINNING: i64 = 1_795_000_000_000;

/// Polls of one seed: many times what any needs.
const MOST_POLLS: u64 = 3_000_000;

/// A process, as long as it lives. One that is started again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pid(u32);

/// What isn't any process: broker, database, clusters, people, and the faults.
pub const WORLD: Pid = Pid(0);

struct Process {
    name: String,
    alive: bool,
    frozen: bool,
    /// What its wall clock is ahead, in milliseconds.
    ahead: i64,
}

struct Task {
    pid: Pid,
    name: &'static str,
    work: Option<BoxFuture<()>>,
}

struct Inner {
    now: Duration,
    chance: Chance,
    next: u64,
    tasks: BTreeMap<u64, Task>,
    timers: BTreeMap<(Duration, u64), Waker>,
    processes: Vec<Process>,
    /// What the database's clock is ahead, in milliseconds.
    database_ahead: i64,
    trace: u64,
    polls: u64,
    loud: bool,
    planted: Option<String>,
    wrong: Vec<String>,
}

/// The simulation of one seed. Cheap to clone.
#[derive(Clone)]
pub struct Sim {
    inner: Arc<Mutex<Inner>>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

struct Woken {
    ready: Arc<Mutex<BTreeSet<u64>>>,
    id: u64,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).insert(self.id);
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mixed(trace: u64, more: u64) -> u64 {
    (trace.rotate_left(5) ^ more).wrapping_mul(0x517c_c1b7_2722_0a95)
}

fn hashed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Sim {
    pub fn new(seed: u64, loud: bool, planted: Option<String>) -> Self {
        let world = Process { name: "world".to_owned(), alive: true, frozen: false, ahead: 0 };
        let inner = Inner {
            now: Duration::ZERO,
            chance: Chance::new(seed),
            next: 0,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            processes: vec![world],
            database_ahead: 0,
            trace: 0,
            polls: 0,
            loud,
            planted,
            wrong: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), ready: Arc::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Lets chance decide.
    pub fn chance<T>(&self, decide: impl FnOnce(&mut Chance) -> T) -> T {
        decide(&mut self.inner().chance)
    }

    pub fn now(&self) -> Duration {
        self.inner().now
    }

    /// Number of everything that happened so far, and of how many polls it came.
    pub fn trace(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.trace, inner.polls)
    }

    /// Something worth knowing for whoever reads a trace.
    pub fn note(&self, what: impl FnOnce() -> String) {
        let loud = self.inner().loud;
        if loud {
            let text = what();
            eprintln!("{:>10.3} {text}", self.now().as_secs_f64());
        }
    }

    /// An invariant doesn't hold.
    pub fn wrong(&self, what: String) {
        self.note(|| format!("WRONG: {what}"));
        let mut inner = self.inner();
        if !inner.wrong.contains(&what) {
            inner.wrong.push(what);
        }
    }

    pub fn wrongs(&self) -> Vec<String> {
        self.inner().wrong.clone()
    }

    pub fn process(&self, name: String) -> Pid {
        let mut inner = self.inner();
        let pid = Pid(u32::try_from(inner.processes.len()).unwrap_or(u32::MAX));
        inner.processes.push(Process { name, alive: true, frozen: false, ahead: 0 });
        pid
    }

    fn with_process<T>(&self, pid: Pid, act: impl FnOnce(&mut Process) -> T) -> T {
        act(&mut self.inner().processes[pid.0 as usize])
    }

    pub fn is_alive(&self, pid: Pid) -> bool {
        self.with_process(pid, |process| process.alive)
    }

    pub fn freeze(&self, pid: Pid, frozen: bool) {
        self.with_process(pid, |process| process.frozen = frozen);
    }

    pub fn set_clock(&self, pid: Pid, ahead: i64) {
        self.with_process(pid, |process| process.ahead = ahead);
    }

    pub fn set_database_clock(&self, ahead: i64) {
        self.inner().database_ahead = ahead;
    }

    /// Ends a process at this instant, whatever it is doing.
    pub fn kill(&self, pid: Pid) {
        self.with_process(pid, |process| process.alive = false);
        let gone: Vec<Task> = {
            let mut inner = self.inner();
            let ids: Vec<u64> = inner.tasks.iter().filter(|(_, task)| task.pid == pid).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| inner.tasks.remove(id)).collect()
        };
        // What they hold is let go of outside of the lock: it may wake others.
        drop(gone);
    }

    pub fn spawn(&self, pid: Pid, name: &'static str, work: BoxFuture<()>) {
        let id = {
            let mut inner = self.inner();
            if !inner.processes[pid.0 as usize].alive {
                return;
            }
            inner.next += 1;
            let id = inner.next;
            inner.tasks.insert(id, Task { pid, name, work: Some(work) });
            id
        };
        lock(&self.ready).insert(id);
    }

    pub fn sleep(&self, span: Duration) -> Sleep {
        Sleep { sim: self.clone(), until: self.now() + span, timer: None }
    }

    /// Lets others come first.
    pub async fn give_way(&self) {
        let mut waited = false;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    pub fn seams(&self, pid: Pid) -> Seams {
        let own = Arc::new(Own { sim: self.clone(), pid });
        Seams { clock: own.clone(), entropy: own.clone(), spawner: own.clone(), faults: own }
    }

    /// The clock that coordinators share, as one of their processes sees it.
    pub fn database_seams(&self, pid: Pid) -> Seams {
        Seams { clock: Arc::new(DatabaseClock(self.clone())), ..self.seams(pid) }
    }

    /// Runs until `main` is over. `false`: nothing can go on any more, and it isn't.
    pub fn run(&self, main: BoxFuture<()>) -> bool {
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = over.clone();
        let work = async move {
            main.await;
            told.store(true, std::sync::atomic::Ordering::SeqCst);
        };
        self.spawn(WORLD, "main", Box::pin(work));
        while !over.load(std::sync::atomic::Ordering::SeqCst) {
            if self.inner().polls > MOST_POLLS || !self.step() {
                return false;
            }
        }
        true
    }

    fn step(&self) -> bool {
        let picked = {
            let mut inner = self.inner();
            let mut ready = lock(&self.ready);
            ready.retain(|id| inner.tasks.contains_key(id));
            let able = |id: &u64| inner.tasks.get(id).is_some_and(|task| !inner.processes[task.pid.0 as usize].frozen);
            let count = ready.iter().filter(|id| able(id)).count() as u64;
            let picked = inner.chance.below(count) as usize;
            let able = |id: &u64| inner.tasks.get(id).is_some_and(|task| !inner.processes[task.pid.0 as usize].frozen);
            let picked = ready.iter().copied().filter(able).nth(picked);
            if let Some(id) = picked {
                ready.remove(&id);
            }
            picked
        };
        match picked {
            Some(id) => {
                self.poll(id);
                true
            }
            None => self.move_on(),
        }
    }

    /// Moves time on to the next timer.
    fn move_on(&self) -> bool {
        let due: Vec<Waker> = {
            let mut inner = self.inner();
            let Some(at) = inner.timers.keys().next().map(|(at, _)| *at) else { return false };
            inner.now = inner.now.max(at);
            let later = inner.timers.split_off(&(at + Duration::from_nanos(1), 0));
            std::mem::replace(&mut inner.timers, later).into_values().collect()
        };
        due.into_iter().for_each(Waker::wake);
        true
    }

    fn poll(&self, id: u64) {
        let (mut work, name, process) = {
            let mut inner = self.inner();
            let now = u64::try_from(inner.now.as_micros()).unwrap_or(0);
            let Some(task) = inner.tasks.get_mut(&id) else { return };
            let Some(work) = task.work.take() else { return };
            let (name, pid) = (task.name, task.pid);
            inner.polls += 1;
            let trace = mixed(mixed(inner.trace, id), now);
            inner.trace = mixed(trace, hashed(name));
            (work, name, inner.processes[pid.0 as usize].name.clone())
        };
        let waker = Waker::from(Arc::new(Woken { ready: self.ready.clone(), id }));
        let polled = {
            let _span = tracing::debug_span!("on", process, name).entered();
            work.as_mut().poll(&mut Context::from_waker(&waker))
        };
        let mut inner = self.inner();
        match polled {
            Poll::Ready(()) => {
                inner.tasks.remove(&id);
            }
            // A task may have ended its own process.
            Poll::Pending => match inner.tasks.get_mut(&id) {
                Some(task) => task.work = Some(work),
                None => {
                    drop(inner);
                    drop(work);
                }
            },
        }
    }
}

/// Waits for virtual time.
pub struct Sleep {
    sim: Sim,
    until: Duration,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut inner = sim.inner();
        if inner.now >= self.until {
            return Poll::Ready(());
        }
        let timer = *self.timer.get_or_insert_with(|| {
            inner.next += 1;
            inner.next
        });
        inner.timers.insert((self.until, timer), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let gone = self.sim.inner().timers.remove(&(self.until, timer));
            drop(gone);
        }
    }
}

/// The seams of one process.
struct Own {
    sim: Sim,
    pid: Pid,
}

fn millis(now: Duration) -> i64 {
    BEGINNING + i64::try_from(now.as_millis()).unwrap_or(0)
}

impl Clock for Own {
    fn now(&self) -> Timestamp {
        let ahead = self.sim.with_process(self.pid, |process| process.ahead);
        Timestamp(millis(self.sim.now()) + ahead)
    }

    fn monotonic(&self) -> Duration {
        self.sim.now()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        Box::pin(self.sim.sleep(span))
    }
}

impl Entropy for Own {
    fn fill(&self, bytes: &mut [u8]) {
        self.sim.chance(|chance| chance.fill(bytes));
    }
}

impl Spawner for Own {
    fn spawn(&self, name: &'static str, work: BoxFuture<()>) {
        self.sim.spawn(self.pid, name, work);
    }

    fn spawn_blocking(&self, _name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) {
        work();
    }
}

impl Faults for Own {
    fn is_on(&self) -> bool {
        false
    }

    fn reached(&self, _name: &str) {}

    fn planted(&self, name: &str) -> bool {
        self.sim.inner().planted.as_deref() == Some(name)
    }
}

struct DatabaseClock(Sim);

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        let inner = self.0.inner();
        Timestamp(millis(inner.now) + inner.database_ahead)
    }

    fn monotonic(&self) -> Duration {
        self.0.now()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        Box::pin(self.0.sleep(span))
    }
}
