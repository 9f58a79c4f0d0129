//! What the tests of this crate share.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use ocopea_protocol::{
    seams::{BoxFuture, Clock, Seams},
    time::Timestamp,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// The machine's own seams.
pub(crate) fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}

/// Time that passes only when everybody waits for it.
#[derive(Default)]
pub(crate) struct Virtual(Mutex<(Duration, BTreeMap<(Duration, u64), oneshot::Sender<()>>, u64)>);

impl Clock for Virtual {
    fn now(&self) -> Timestamp {
        Timestamp(self.monotonic().as_millis() as i64)
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().0
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        let mut state = self.0.lock().unwrap();
        let (woken, sleeper) = oneshot::channel();
        let (until, number) = (state.0 + span, state.2);
        state.2 += 1;
        state.1.insert((until, number), woken);
        Box::pin(async move { drop(sleeper.await) })
    }
}

impl Virtual {
    /// Lets time pass until `work` is done.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        let passing = async {
            loop {
                for _ in 0..50 {
                    tokio::task::yield_now().await;
                }
                let mut state = self.0.lock().unwrap();
                if let Some(((until, _), woken)) = state.1.pop_first() {
                    state.0 = state.0.max(until);
                    let _ = woken.send(());
                }
            }
        };
        tokio::select! {
            done = work => done,
            () = passing => unreachable!(),
        }
    }
}
