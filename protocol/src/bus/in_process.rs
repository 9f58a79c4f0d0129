//! The bus of `ocopea up`: bounded channels within one process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{AgentBus, BusError, CoordinatorBus, Hint, Incoming, Verdict};
use crate::{ids::SiteId, seams::Seams};

/// Hints that wait at a site at most; a full queue refuses, and the relay tries again.
const HINTS: usize = 4096;
/// Requests that wait for the coordinator at most; agents wait beyond that.
const REQUESTS: usize = 1024;

/// One bus; cheap to clone.
#[derive(Clone)]
pub struct InProcessBus {
    shared: Arc<Shared>,
}

struct Shared {
    seams: Seams,
    sites: Mutex<HashMap<SiteId, Queue>>,
    requests: mpsc::Sender<Incoming>,
    incoming: AsyncMutex<mpsc::Receiver<Incoming>>,
    closed: CancellationToken,
}

struct Queue {
    hints: mpsc::Sender<Bytes>,
    receiver: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
}

impl InProcessBus {
    /// A bus with no site yet.
    pub fn new(seams: Seams) -> Self {
        let (requests, incoming) = mpsc::channel(REQUESTS);
        let (sites, incoming) = (Mutex::default(), AsyncMutex::new(incoming));
        Self { shared: Arc::new(Shared { seams, sites, requests, incoming, closed: CancellationToken::new() }) }
    }

    /// An agent's end for `site`. Several of one site share its queue.
    pub fn agent(&self, site: SiteId) -> InProcessAgentBus {
        let receiver = self.with_queue(site, |queue| Arc::clone(&queue.receiver));
        let closed = self.shared.closed.child_token();
        InProcessAgentBus { shared: Arc::clone(&self.shared), site, receiver, closed }
    }

    fn with_queue<T>(&self, site: SiteId, use_it: impl FnOnce(&Queue) -> T) -> T {
        let mut sites = self.shared.sites.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(sites.entry(site).or_insert_with(|| {
            let (hints, receiver) = mpsc::channel(HINTS);
            Queue { hints, receiver: Arc::new(AsyncMutex::new(receiver)) }
        }))
    }
}

#[async_trait]
impl CoordinatorBus for InProcessBus {
    async fn publish(&self, site: SiteId, hint: Bytes) -> Result<(), BusError> {
        if self.shared.closed.is_cancelled() {
            return Err(BusError::Closed);
        }
        let hints = self.with_queue(site, |queue| queue.hints.clone());
        hints.try_send(hint).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BusError::Unavailable(format!("{HINTS} hints wait at the site")),
            mpsc::error::TrySendError::Closed(_) => BusError::Closed,
        })
    }

    async fn next_request(&self) -> Result<Incoming, BusError> {
        until(&self.shared.closed, async { self.shared.incoming.lock().await.recv().await.ok_or(BusError::Closed) })
            .await
    }

    async fn close(&self) {
        self.shared.closed.cancel();
    }
}

/// What comes of `work`, unless the bus is closed first.
async fn until<T>(closed: &CancellationToken, work: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
    tokio::select! {
        biased;
        () = closed.cancelled() => Err(BusError::Closed),
        result = work => result,
    }
}

/// The end of one agent.
pub struct InProcessAgentBus {
    shared: Arc<Shared>,
    site: SiteId,
    receiver: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
    closed: CancellationToken,
}

#[async_trait]
impl AgentBus for InProcessAgentBus {
    async fn next_hint(&self) -> Result<Hint, BusError> {
        let site = self.site;
        let next = async { self.receiver.lock().await.recv().await.ok_or(BusError::Closed) };
        let bytes = until(&self.closed, next).await?;
        Ok(Hint::new(bytes, move |verdict| {
            if verdict == Verdict::Rejected {
                // Both ends are one program here: there is nobody else who could read it.
                tracing::error!(site.id = %site, "a hint that this program wrote can't be read by it");
            }
        }))
    }

    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let incoming = Incoming { site: self.site, request, reply };
            self.shared.requests.send(incoming).await.map_err(|_| BusError::Closed)?;
            answer.await.map_err(|_| BusError::Unavailable("the request was dropped unanswered".to_owned()))
        };
        let answer = self.shared.seams.timeout(Duration::from_millis(patience_ms), until(&self.closed, exchange)).await;
        answer.unwrap_or(Err(BusError::NoAnswer(patience_ms)))
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}
