//! Requests that wait for the coordinator, site by site.
//!
//! Every site has its turn: one that floods waits for itself. What is beyond a site's share, or older than its asker's
//! patience, is dropped: agents ask again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lapin::types::ShortString;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ids::SiteId;

/// Of one site, at most.
const SHARE: usize = 512;
/// Bytes of one site, at most; what is over it alone is let in.
const SHARE_BYTES: usize = 16 << 20;
/// Bytes of all sites together, at most.
const BYTES: usize = 256 << 20;

/// One request.
pub(super) struct Asked {
    pub(super) site: SiteId,
    pub(super) request: Bytes,
    pub(super) reply_to: ShortString,
    pub(super) correlation: ShortString,
    /// By the monotonic clock: later, nobody waits for the answer.
    pub(super) until: Duration,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Asked>,
    bytes: usize,
}

#[derive(Default)]
struct Lanes {
    sites: HashMap<SiteId, Lane>,
    /// Whose turn it is, of the sites that have something waiting.
    turns: VecDeque<SiteId>,
    bytes: usize,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Waiting {
    lanes: Mutex<Lanes>,
    rung: Notify,
    closed: CancellationToken,
}

impl Waiting {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request in, unless its site has its share already.
    pub(super) fn offer(&self, asked: Asked) -> bool {
        let mut lanes = self.lanes();
        let lanes = &mut *lanes;
        let size = asked.request.len();
        let lane = lanes.sites.entry(asked.site).or_default();
        let full = lane.waiting.len() >= SHARE || (lane.bytes > 0 && lane.bytes + size > SHARE_BYTES);
        if full || lanes.bytes + size > BYTES {
            if lane.waiting.is_empty() {
                lanes.sites.remove(&asked.site);
            }
            return false;
        }
        if lane.waiting.is_empty() {
            lanes.turns.push_back(asked.site);
        }
        lane.bytes += size;
        lanes.bytes += size;
        lane.waiting.push_back(asked);
        self.rung.notify_one();
        true
    }

    fn take(&self) -> Option<Asked> {
        let mut lanes = self.lanes();
        let site = lanes.turns.pop_front()?;
        let lane = lanes.sites.get_mut(&site)?;
        let asked = lane.waiting.pop_front()?;
        lane.bytes -= asked.request.len();
        if lane.waiting.is_empty() {
            lanes.sites.remove(&site);
        } else {
            lanes.turns.push_back(site);
        }
        lanes.bytes -= asked.request.len();
        if !lanes.turns.is_empty() {
            self.rung.notify_one();
        }
        Some(asked)
    }

    /// The next one whose asker still waits at `now()`; `None` when closed.
    pub(super) async fn next(&self, now: impl Fn() -> Duration) -> Option<Asked> {
        loop {
            if self.closed.is_cancelled() {
                return None;
            }
            match self.take() {
                Some(asked) if asked.until > now() => return Some(asked),
                Some(_) => {}
                None => tokio::select! {
                    () = self.rung.notified() => {}
                    () = self.closed.cancelled() => return None,
                },
            }
        }
    }

    pub(super) fn close(&self) {
        self.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn asked(site: u128, size: usize, text: u8) -> Asked {
        Asked {
            site: SiteId(uuid::Uuid::from_u128(site)),
            request: vec![text; size].into(),
            reply_to: "r".into(),
            correlation: "c".into(),
            until: NOW + Duration::from_secs(1),
        }
    }

    async fn next(waiting: &Waiting) -> (u128, u8) {
        let asked = waiting.next(|| NOW).await.unwrap();
        (asked.site.0.as_u128(), asked.request[0])
    }

    #[tokio::test]
    async fn a_site_that_floods_waits_for_itself() {
        let waiting = Waiting::default();
        let taken = (0..1000).filter(|_| waiting.offer(asked(1, 1, 1))).count();
        assert_eq!(taken, SHARE);
        assert!(waiting.offer(asked(2, 1, 2)) && waiting.offer(asked(2, 1, 3)) && waiting.offer(asked(3, 1, 4)));
        let mut seen = Vec::new();
        for _ in 0..6 {
            seen.push(next(&waiting).await);
        }
        assert_eq!(seen, [(1, 1), (2, 2), (3, 4), (1, 1), (2, 3), (1, 1)]);
        for _ in 0..SHARE - 3 {
            assert_eq!(next(&waiting).await, (1, 1));
        }
        let lanes = waiting.lanes();
        assert!(lanes.sites.is_empty() && lanes.turns.is_empty() && lanes.bytes == 0);
    }

    #[tokio::test]
    async fn bytes_are_bounded_for_each_site_and_for_all() {
        let waiting = Waiting::default();
        assert!(waiting.offer(asked(1, SHARE_BYTES, 1)));
        assert!(!waiting.offer(asked(1, 1, 1)));
        for site in 2..17 {
            assert!(waiting.offer(asked(site, SHARE_BYTES, 1)));
        }
        assert!(!waiting.offer(asked(17, 1, 1)));
        assert_eq!(next(&waiting).await.0, 1);
        assert!(waiting.offer(asked(17, 1, 1)));
    }

    #[tokio::test]
    async fn nobody_is_answered_who_waits_no_more() {
        let waiting = Waiting::default();
        assert!(waiting.offer(Asked { until: NOW, ..asked(1, 1, 1) }) && waiting.offer(asked(1, 1, 2)));
        assert_eq!(next(&waiting).await, (1, 2));
        waiting.close();
        assert!(waiting.next(|| NOW).await.is_none());
    }
}
