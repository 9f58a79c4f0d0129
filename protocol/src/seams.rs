//! Time, sleep, spawning and randomness, injected.
//!
//! Loops of the coordinator and the agent take [`Seams`] and nothing ambient, so that a simulation can run
//! the same code under virtual time and seeded chance. Clippy bans the ambient ones everywhere but here.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::time::Timestamp;

/// A future that can be sent to another thread.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What time it is, and waiting.
pub trait Clock: Send + Sync {
    /// Wall-clock time, for records and for people. May jump.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary start. Never goes back.
    fn monotonic(&self) -> Duration;
    /// Ends after `span`.
    fn sleep(&self, span: Duration) -> BoxFuture<()>;
}

/// Randomness that is good enough for ids, tokens and jitter.
pub trait Entropy: Send + Sync {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// Starts work that goes on beside the caller. Everything started is tracked: nothing outlives the stop.
pub trait Spawner: Send + Sync {
    /// Starts `work`; `name` is for logs.
    fn spawn(&self, name: &'static str, work: BoxFuture<()>);
    /// Runs `work` where it may block or compute for long, away from the async threads.
    fn spawn_blocking(&self, name: &'static str, work: Box<dyn FnOnce() + Send + 'static>);
}

/// Points in front of and behind every step, at which tests end the process; and bugs that tests plant.
pub trait Faults: Send + Sync {
    /// Whether anybody listens; nothing is made up for nobody.
    fn is_on(&self) -> bool;
    /// The point `name` is reached. May not return.
    fn reached(&self, name: &str);
    /// Whether the protection `name` is to be broken.
    fn planted(&self, name: &str) -> bool {
        let _ = name;
        false
    }
}

/// Whether protections can be broken: in builds for development, where [`Faults::planted`] counts.
pub const CAN_PLANT: bool = cfg!(debug_assertions);

/// All seams together; cheap to clone.
#[derive(Clone)]
pub struct Seams {
    /// See [`Clock`].
    pub clock: Arc<dyn Clock>,
    /// See [`Entropy`].
    pub entropy: Arc<dyn Entropy>,
    /// See [`Spawner`].
    pub spawner: Arc<dyn Spawner>,
    /// See [`Faults`].
    pub faults: Arc<dyn Faults>,
}

impl Seams {
    /// The machine's clock and randomness, tokio's runtime; spawned work counts in `tracker`.
    pub fn real(tracker: TaskTracker) -> Self {
        Self {
            clock: Arc::new(real::SystemClock::new()),
            entropy: Arc::new(real::SystemEntropy),
            spawner: Arc::new(real::TokioSpawner { tracker }),
            faults: real::faults(),
        }
    }

    /// A failpoint: `{who}.{step}.{moment}`.
    pub fn point(&self, who: &str, step: &str, moment: &str) {
        if self.faults.is_on() {
            self.faults.reached(&format!("{who}.{step}.{moment}"));
        }
    }

    /// Whether a test wants to know what happens without the protection `name` (`docs/reliability.md` lists them). Never
    /// outside of builds for development.
    pub fn planted(&self, name: &str) -> bool {
        CAN_PLANT && self.faults.planted(name)
    }

    /// A UUID version 7 of this moment.
    pub fn uuid(&self) -> Uuid {
        let mut random = [0u8; 10];
        self.entropy.fill(&mut random);
        let millis = u64::try_from(self.clock.now().0).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }

    /// `span` stretched or shrunk by up to a quarter, so that many waiters don't come back at once.
    pub fn jittered(&self, span: Duration) -> Duration {
        let mut byte = [0u8; 1];
        self.entropy.fill(&mut byte);
        span.mul_f64(0.75 + f64::from(byte[0]) / 510.0)
    }

    /// Runs `compute` away from the async threads and waits for it. `None` when it panicked or the runtime stops.
    pub async fn compute<T: Send + 'static>(
        &self,
        name: &'static str,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.spawner.spawn_blocking(
            name,
            Box::new(move || {
                // The waiter may have been cancelled; its result is then of no interest.
                let _ = done.send(compute());
            }),
        );
        result.await.ok()
    }

    /// Ends with `None` when `span` passes before `work` does.
    pub async fn timeout<T>(&self, span: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = work => Some(value),
            () = self.clock.sleep(span) => None,
        }
    }

    /// Sleeps, or ends early with `false` when `stop` is cancelled.
    pub async fn sleep_unless(&self, stop: &CancellationToken, span: Duration) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.clock.sleep(span) => true,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where the machine's own clock, randomness and runtime are used"
)]
mod real {
    use super::*;

    pub(super) struct SystemClock {
        start: std::time::Instant,
    }

    impl SystemClock {
        pub(super) fn new() -> Self {
            Self { start: std::time::Instant::now() }
        }
    }

    impl Clock for SystemClock {
        fn now(&self) -> Timestamp {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
        }

        fn monotonic(&self) -> Duration {
            self.start.elapsed()
        }

        fn sleep(&self, span: Duration) -> BoxFuture<()> {
            Box::pin(tokio::time::sleep(span))
        }
    }

    pub(super) struct SystemEntropy;

    impl Entropy for SystemEntropy {
        fn fill(&self, bytes: &mut [u8]) {
            for chunk in bytes.chunks_mut(16) {
                let random = Uuid::new_v4();
                // Six bits of a version 4 UUID are fixed: they are folded out with a second one.
                let other = Uuid::new_v4();
                let mut mixed = *random.as_bytes();
                mixed[6] = mixed[6].rotate_left(4) ^ other.as_bytes()[0];
                mixed[8] = mixed[8].rotate_left(4) ^ other.as_bytes()[1];
                chunk.copy_from_slice(&mixed[..chunk.len()]);
            }
        }
    }

    pub(super) struct TokioSpawner {
        pub(super) tracker: TaskTracker,
    }

    impl Spawner for TokioSpawner {
        fn spawn(&self, name: &'static str, work: BoxFuture<()>) {
            let span = tracing::debug_span!("task", name);
            self.tracker.spawn(tracing::Instrument::instrument(work, span));
        }

        fn spawn_blocking(&self, _name: &'static str, work: Box<dyn FnOnce() + Send + 'static>) {
            self.tracker.spawn_blocking(work);
        }
    }

    /// Failpoints as the environment says, in builds for development only: `OCOPEA_FAILPOINT=NAME[#N]` ends the
    /// process without a further instruction when NAME is reached for the Nth time; `OCOPEA_FAILPOINTS_SEEN=FILE`
    /// writes down what is reached; `OCOPEA_PLANTED=NAME[,NAME…]` breaks protections.
    pub(super) fn faults() -> Arc<dyn Faults> {
        let read = |name| std::env::var(name).ok().filter(|_| cfg!(debug_assertions));
        let wanted = read("OCOPEA_FAILPOINT").map(|text| match text.split_once('#') {
            Some((name, number)) => (name.to_owned(), number.parse().unwrap_or(1)),
            None => (text, 1),
        });
        let planted = read("OCOPEA_PLANTED").map(|text| text.split(',').map(str::to_owned).collect());
        Arc::new(Environment {
            wanted,
            seen: read("OCOPEA_FAILPOINTS_SEEN"),
            planted: planted.unwrap_or_default(),
            count: std::sync::Mutex::default(),
        })
    }

    struct Environment {
        planted: Vec<String>,
        wanted: Option<(String, u32)>,
        seen: Option<String>,
        count: std::sync::Mutex<std::collections::BTreeMap<String, u32>>,
    }

    impl Faults for Environment {
        fn is_on(&self) -> bool {
            self.wanted.is_some() || self.seen.is_some()
        }

        fn planted(&self, name: &str) -> bool {
            self.planted.iter().any(|planted| planted == name)
        }

        fn reached(&self, name: &str) {
            let mut count = self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let count = count.entry(name.to_owned()).or_insert(0);
            *count += 1;
            if let Some(path) = &self.seen {
                use std::io::Write;
                let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
                // Tests notice what is missing from it.
                let _ = file.and_then(|mut file| writeln!(file, "{name}#{count}"));
            }
            if self.wanted.as_ref().is_some_and(|(wanted, number)| wanted == name && number == count) {
                std::process::abort();
            }
        }
    }
}
