//! One clock for several coordinators: that of the PostgreSQL server which they share.
//!
//! Leases, expiries and what was seen when stand in the catalog as times. Two coordinators whose clocks differ would take
//! each other's leases away. So there the time is the coordinator's own monotonic clock plus an offset, measured against
//! the server's `clock_timestamp()`: its answer was given somewhere between the question and its arrival, which bounds the
//! offset from both sides. The offset that there was is kept within those bounds and moved no further than to them.
//!
//! It is measured when a transaction begins and the last measurement is old, or when the own wall clock has moved against
//! the monotonic one since: one of them was set, or the machine was asleep. What the wall clock says counts for nothing else.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ocopea_protocol::{
    seams::{BoxFuture, Clock},
    time::Timestamp,
};
use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, Statement};

/// How old a measurement becomes.
const OLD: Duration = Duration::from_secs(5);
/// What the own two clocks may move against each other before something must have happened to one, in milliseconds.
const MOVED: u64 = 500;
/// Questions of one measurement; the answer that came fastest counts.
const QUESTIONS: usize = 3;

/// What was measured, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Measured {
    /// The server's time less the own monotonic one.
    offset: i64,
    /// By how much that may be wrong.
    error: i64,
}

impl Measured {
    /// From a question asked at `before`, answered with `time` until `after`: the middle, if nothing is known yet.
    fn new(before: i64, time: i64, after: i64) -> Self {
        let (least, most) = (time.saturating_sub(after), time.saturating_sub(before));
        Self { offset: least.midpoint(most), error: most.saturating_sub(least) }
    }

    /// This one, moved no further than the newer one wants.
    fn corrected(self, newer: Self) -> Self {
        let half = newer.error / 2;
        let offset = self.offset.clamp(newer.offset.saturating_sub(half), newer.offset.saturating_add(half));
        Self { offset, error: newer.error }
    }
}

struct State {
    measured: Option<Measured>,
    /// When, by the own monotonic clock.
    at: Duration,
    /// What the own wall clock was ahead of it, in milliseconds.
    ahead: i64,
}

/// See the module's head.
pub(crate) struct DatabaseClock {
    own: Arc<dyn Clock>,
    state: Mutex<State>,
    measuring: tokio::sync::Mutex<()>,
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

impl DatabaseClock {
    /// One that goes by `own` until it is measured.
    pub(crate) fn new(own: Arc<dyn Clock>) -> Self {
        let state = State { measured: None, at: own.monotonic(), ahead: 0 };
        Self { own, state: Mutex::new(state), measuring: tokio::sync::Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the own wall clock is ahead of the monotonic one, in milliseconds.
    fn ahead(&self) -> i64 {
        self.own.now().0.saturating_sub(micros(self.own.monotonic()) / 1000)
    }

    /// By how much the time may be wrong.
    pub(crate) fn error(&self) -> Duration {
        let error = self.state().measured.map_or(0, |measured| measured.error);
        Duration::from_micros(u64::try_from(error).unwrap_or(0))
    }

    /// Measures, where it is time to.
    pub(crate) async fn keep(&self, connection: &impl ConnectionTrait) -> Result<(), DbErr> {
        let (unknown, old, moved) = self.due();
        let _one = if unknown || moved {
            // Whoever comes meanwhile must not go on with a time that is wrong.
            self.measuring.lock().await
        } else if old && let Ok(one) = self.measuring.try_lock() {
            one
        } else {
            return Ok(());
        };
        let (unknown, old, moved) = self.due();
        if unknown || old || moved { self.measure(connection).await } else { Ok(()) }
    }

    /// Whether it was never measured, is old, or something happened to the own clocks.
    fn due(&self) -> (bool, bool, bool) {
        let (now, ahead) = (self.own.monotonic(), self.ahead());
        let state = self.state();
        let moved = ahead.saturating_sub(state.ahead).unsigned_abs() > MOVED;
        (state.measured.is_none(), now.saturating_sub(state.at) >= OLD, moved)
    }

    async fn measure(&self, connection: &impl ConnectionTrait) -> Result<(), DbErr> {
        let ahead = self.ahead();
        let mut best: Option<Measured> = None;
        for _ in 0..QUESTIONS {
            let question = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
            let question = Statement::from_string(DatabaseBackend::Postgres, question);
            let before = micros(self.own.monotonic());
            let answer = connection.query_one_raw(question).await?;
            let after = micros(self.own.monotonic());
            let time = answer.ok_or_else(|| DbErr::RecordNotFound("the server's time".to_owned()))?;
            let measured = Measured::new(before, time.try_get_by_index(0)?, after);
            if best.is_none_or(|best| measured.error < best.error) {
                best = Some(measured);
            }
        }
        let mut state = self.state();
        let before = state.measured;
        state.measured = best.map(|best| before.map_or(best, |before| before.corrected(best)));
        (state.at, state.ahead) = (self.own.monotonic(), ahead);
        let (Some(before), Some(now)) = (before, state.measured) else { return Ok(()) };
        let by_ms = now.offset.saturating_sub(before.offset) / 1000;
        if by_ms.unsigned_abs() > MOVED {
            tracing::warn!(by_ms, "the database's clock was set, or this machine was asleep");
        }
        Ok(())
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        match self.state().measured {
            Some(measured) => Timestamp(micros(self.own.monotonic()).saturating_add(measured.offset).div_euclid(1000)),
            None => self.own.now(),
        }
    }

    fn monotonic(&self) -> Duration {
        self.own.monotonic()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.own.sleep(span)
    }
}

#[cfg(test)]
mod tests {
    use super::Measured;

    #[test]
    fn an_offset_lies_between_question_and_answer_and_moves_no_further_than_it_must() {
        let first = Measured::new(1_000, 50_000, 1_200);
        assert_eq!(first, Measured { offset: 48_900, error: 200 });
        // A slow answer says little: what was known is within it.
        let slow = Measured::new(2_000, 52_000, 9_000);
        assert_eq!(first.corrected(slow).offset, first.offset);
        // One that contradicts it moves it to its edge.
        let later = Measured::new(10_000, 59_000, 10_100);
        assert_eq!(first.corrected(later).offset, 48_900);
        let later = Measured::new(10_000, 59_010, 10_100);
        assert_eq!(first.corrected(later).offset, 48_910);
        // The server's clock was put back by a day.
        let day = 86_400_000_000;
        let back = Measured::new(20_000, 69_000 - day, 20_100);
        assert_eq!(first.corrected(back).offset, 49_000 - day);
    }
}
