//! Bytes per second, shared fairly.
//!
//! A bucket that fills at the limit's rate and holds a quarter of a second's worth: over any span no more passes than
//! the limit allows in that time, and once the bucket. What is asked for passes in small pieces, and the pieces of those
//! who ask take turns: one with a hundred requests gets as much as one with a single request. Decisions are made by
//! [`State`], which knows no clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ocopea_protocol::seams::Clock;
use tokio::sync::Notify;

/// The bucket, as a part of a second's worth.
const BURST: u32 = 4;
/// And its bounds in bytes.
const SMALLEST_BURST: u64 = 16 << 10;
const LARGEST_BURST: u64 = 8 << 20;
/// The longest piece.
const PIECE: u64 = 256 << 10;

/// Who asks: what one of them gets is independent of how much it asks for at once.
pub(crate) type Share = u64;

/// One direction of one way, limited or not.
#[derive(Default)]
pub(crate) struct Rate {
    /// Bytes per second; 0: no limit. Beside the state, for those who needn't wait.
    limit: AtomicU64,
    state: Mutex<State>,
}

/// Who waits, in the order in which they go, and when the bucket will be full.
#[derive(Default)]
struct State {
    /// The bucket is full from then on, of the monotonic clock.
    full: Duration,
    /// By how many bytes the share must have got before, and by number.
    waiting: BTreeMap<(u64, u64), Arc<Notify>>,
    /// What each share got and will get from what waits.
    got: HashMap<Share, u64>,
    /// Where those begin that come anew: they can't claim what they left to others.
    now: u64,
    number: u64,
}

/// What one that waits is to do.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Go,
    Sleep(Duration),
    Wait,
}

fn burst(limit: u64) -> u64 {
    (limit / u64::from(BURST)).clamp(SMALLEST_BURST, LARGEST_BURST)
}

fn span(bytes: u64, limit: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1))
}

impl State {
    fn enter(&mut self, share: Share, bytes: u64, woken: Arc<Notify>) -> (u64, u64) {
        let got = self.got.entry(share).or_default();
        let at = (*got).max(self.now);
        *got = at.saturating_add(bytes);
        self.number += 1;
        self.waiting.insert((at, self.number), woken);
        (at, self.number)
    }

    fn turn(&mut self, who: (u64, u64), bytes: u64, limit: u64, now: Duration) -> Turn {
        if self.waiting.first_key_value().is_some_and(|(first, _)| *first != who) {
            return Turn::Wait;
        }
        let full = self.full.max(now) + span(bytes, limit);
        let most = now + span(burst(limit), limit);
        if full > most {
            return Turn::Sleep(full - most);
        }
        self.full = full;
        self.now = self.now.max(who.0);
        self.leave(who);
        Turn::Go
    }

    fn leave(&mut self, who: (u64, u64)) {
        self.waiting.remove(&who);
        if let Some((_, next)) = self.waiting.first_key_value() {
            next.notify_one();
        }
    }
}

/// One in the queue; leaves it when dropped.
struct InQueue<'a> {
    rate: &'a Rate,
    who: (u64, u64),
}

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        self.rate.with(|state| state.leave(self.who));
    }
}

impl Rate {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on so many bytes per second; `None`: as many as come.
    pub(crate) fn set(&self, limit: Option<u64>) {
        let limit = limit.map_or(0, |limit| limit.max(1));
        if self.limit.swap(limit, Relaxed) != limit {
            self.with(|state| {
                // What was owed was reckoned by the old limit.
                state.full = Duration::ZERO;
                state.waiting.values().for_each(|one| one.notify_one());
            });
        }
    }

    /// Ends when so many bytes may pass.
    pub(crate) async fn take(&self, share: Share, mut bytes: u64, clock: &dyn Clock) {
        while bytes > 0 {
            let limit = self.limit.load(Relaxed);
            if limit == 0 {
                return;
            }
            let piece = bytes.min(PIECE).min(burst(limit));
            self.take_piece(share, piece, clock).await;
            bytes -= piece;
        }
    }

    async fn take_piece(&self, share: Share, piece: u64, clock: &dyn Clock) {
        let woken = Arc::new(Notify::new());
        let who = self.with(|state| state.enter(share, piece, woken.clone()));
        let _in_queue = InQueue { rate: self, who };
        loop {
            let limit = self.limit.load(Relaxed);
            if limit == 0 {
                return;
            }
            // A piece that was cut for a higher limit may be longer than the bucket.
            let piece = piece.min(burst(limit));
            match self.with(|state| state.turn(who, piece, limit, clock.monotonic())) {
                Turn::Go => return,
                Turn::Wait => woken.notified().await,
                Turn::Sleep(span) => tokio::select! {
                    biased;
                    () = clock.sleep(span) => {}
                    () = woken.notified() => {}
                },
            }
        }
    }

    /// That one asks no more.
    pub(crate) fn forget(&self, share: Share) {
        self.with(|state| state.got.remove(&share));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Virtual;

    type Passed = Arc<Mutex<Vec<(Duration, Share, u64)>>>;

    /// Takes `pieces` of `bytes`, one after the other, and writes down when each passed.
    async fn taker(rate: Arc<Rate>, clock: Arc<Virtual>, share: Share, bytes: u64, pieces: u32, passed: Passed) {
        for _ in 0..pieces {
            rate.take(share, bytes, &*clock).await;
            passed.lock().unwrap().push((clock.monotonic(), share, bytes));
        }
    }

    fn world(limit: u64) -> (Arc<Rate>, Arc<Virtual>, Passed) {
        let rate = Arc::new(Rate::default());
        rate.set(Some(limit));
        (rate, Arc::default(), Passed::default())
    }

    fn of(passed: &[(Duration, Share, u64)], share: Share) -> u64 {
        passed.iter().filter(|(_, of, _)| *of == share).map(|(_, _, bytes)| bytes).sum()
    }

    #[tokio::test]
    async fn over_any_span_no_more_passes_than_the_limit_and_one_bucket_and_no_less_than_can() {
        for (limit, bytes, pieces) in [(1 << 20, 100_000, 400), (64 << 10, 16 << 10, 200), (50 << 20, 250_000, 2000)] {
            let (rate, clock, passed) = world(limit);
            let takers =
                (0..4).map(|share| taker(rate.clone(), clock.clone(), share, bytes, pieces / 4, passed.clone()));
            clock.run(futures::future::join_all(takers)).await;
            let passed = passed.lock().unwrap().clone();
            assert_eq!(passed.len(), pieces as usize);
            for (first, (begun, ..)) in passed.iter().enumerate() {
                let mut sum = 0;
                for (at, _, bytes) in &passed[first..] {
                    sum += bytes;
                    let most = (at.saturating_sub(*begun).as_secs_f64() * limit as f64) as u64 + burst(limit) + 1;
                    assert!(sum <= most, "{sum} bytes from {begun:?} to {at:?} at {limit} per second");
                }
            }
            // It makes the progress that it may make.
            let (all, whole) = (u64::from(pieces) * bytes, passed.last().unwrap().0.as_secs_f64());
            assert!(whole <= all as f64 / limit as f64 * 1.01 + 0.01, "{all} bytes took {whole} s at {limit}");
        }
    }

    #[tokio::test]
    async fn two_tasks_get_the_same_however_much_one_asks_for_at_once() {
        let (rate, clock, passed) = world(10 << 20);
        // One asks for small pieces one by one, the other with sixty requests at once, for eight times as much each.
        let one = taker(rate.clone(), clock.clone(), 1, 128 << 10, 400, passed.clone());
        let others = (0..60).map(|_| taker(rate.clone(), clock.clone(), 2, 1 << 20, 100, passed.clone()));
        let others = futures::future::join_all(others);
        clock
            .run(async {
                tokio::select! { () = one => (), _ = others => panic!("the greedy one was first") }
            })
            .await;
        let passed = passed.lock().unwrap().clone();
        let (one, other) = (of(&passed, 1), of(&passed, 2));
        let took = passed.last().unwrap().0.as_secs_f64();
        // What is under way of sixty requests isn't counted yet.
        assert!(other <= one + (1 << 20) && other + (61 << 20) >= one, "{one} and {other} bytes");
        assert!((one as f64) > took * 10.0 * f64::from(1 << 20) * 0.49, "{one} bytes in {took} s");
    }

    #[tokio::test]
    async fn one_that_comes_late_gets_its_half_and_no_more() {
        let (rate, clock, passed) = world(1 << 20);
        let first = taker(rate.clone(), clock.clone(), 1, 64 << 10, 1000, passed.clone());
        let second = async {
            clock.sleep(Duration::from_secs(10)).await;
            taker(rate.clone(), clock.clone(), 2, 64 << 10, 160, passed.clone()).await;
        };
        clock
            .run(async {
                tokio::join!(async {
                    tokio::select! { () = first => (), () = second => () }
                })
            })
            .await;
        let passed = passed.lock().unwrap().clone();
        let since: Vec<_> = passed.iter().filter(|(at, ..)| *at >= Duration::from_secs(10)).copied().collect();
        let (first, second) = (of(&since, 1), of(&since, 2));
        assert_eq!(second, 10 << 20);
        assert!(first.abs_diff(second) <= 1 << 20, "{first} {second}");
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody_and_a_new_limit_counts_at_once() {
        let (rate, clock, passed) = world(64 << 10);
        let given_up = async {
            let long = rate.take(1, 100 << 20, &*clock);
            tokio::select! { () = long => panic!("too early"), () = clock.sleep(Duration::from_secs(1)) => () }
        };
        let other = taker(rate.clone(), clock.clone(), 2, 16 << 10, 8, passed.clone());
        clock.run(async { tokio::join!(given_up, other) }).await;
        assert!(clock.monotonic() < Duration::from_secs(5), "{:?}", clock.monotonic());
        let begun = clock.monotonic();
        let long = async {
            let all = rate.take(3, 1 << 30, &*clock);
            tokio::join!(all, async {
                clock.sleep(Duration::from_secs(1)).await;
                rate.set(None);
            });
        };
        clock.run(long).await;
        assert!(clock.monotonic() - begun < Duration::from_secs(2));
        rate.forget(3);
    }
}
