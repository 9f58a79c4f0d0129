//! The bus of `ocopea up`: bounded channels within one process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use super::{AgentBus, BusError, CoordinatorBus, Incoming};
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
}

struct Queue {
    hints: mpsc::Sender<Bytes>,
    receiver: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
}

impl InProcessBus {
    /// A bus with no site yet.
    pub fn new(seams: Seams) -> Self {
        let (requests, incoming) = mpsc::channel(REQUESTS);
        Self {
            shared: Arc::new(Shared { seams, sites: Mutex::default(), requests, incoming: AsyncMutex::new(incoming) }),
        }
    }

    /// An agent's end for `site`. Several of one site share its queue.
    pub fn agent(&self, site: SiteId) -> InProcessAgentBus {
        let receiver = self.with_queue(site, |queue| Arc::clone(&queue.receiver));
        InProcessAgentBus { shared: Arc::clone(&self.shared), site, receiver }
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
        let hints = self.with_queue(site, |queue| queue.hints.clone());
        hints.try_send(hint).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => BusError::Unavailable(format!("{HINTS} hints wait at the site")),
            mpsc::error::TrySendError::Closed(_) => BusError::Closed,
        })
    }

    async fn next_request(&self) -> Result<Incoming, BusError> {
        self.shared.incoming.lock().await.recv().await.ok_or(BusError::Closed)
    }
}

/// The end of one agent.
pub struct InProcessAgentBus {
    shared: Arc<Shared>,
    site: SiteId,
    receiver: Arc<AsyncMutex<mpsc::Receiver<Bytes>>>,
}

#[async_trait]
impl AgentBus for InProcessAgentBus {
    async fn next_hint(&self) -> Result<Bytes, BusError> {
        self.receiver.lock().await.recv().await.ok_or(BusError::Closed)
    }

    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            let incoming = Incoming { site: self.site, request, reply };
            self.shared.requests.send(incoming).await.map_err(|_| BusError::Closed)?;
            answer.await.map_err(|_| BusError::Unavailable("the request was dropped unanswered".to_owned()))
        };
        self.shared
            .seams
            .timeout(Duration::from_millis(patience_ms), exchange)
            .await
            .unwrap_or(Err(BusError::NoAnswer(patience_ms)))
    }
}
