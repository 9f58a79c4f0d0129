//! How messages move: hints to sites, requests with answers back.
//!
//! A message may be lost, doubled or late: the catalog is the truth, agents poll, and every answer is fenced.
//! Two implementations: [`in_process`], and [`rabbitmq`] by configuration. Both pass [`conformance`].
//! The bus carries sealed envelopes as bytes, in process too, so that what is tested is what is sent.

use async_trait::async_trait;
use bytes::Bytes;

use uuid::Uuid;

use crate::ids::SiteId;

pub mod conformance;
pub mod in_process;
pub mod rabbitmq;

/// The bus could not do it now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// Nobody took it, or nobody can at the moment: try again.
    #[error("the bus can't take messages now: {0}")]
    Unavailable(String),
    /// No answer came in time: the request may or may not have been handled.
    #[error("no answer within {0} ms")]
    NoAnswer(u64),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

/// The coordinator's end.
#[async_trait]
pub trait CoordinatorBus: Send + Sync {
    /// Offers a hint to a site. `Ok` means it is queued there, not that anybody has read it.
    async fn publish(&self, site: SiteId, hint: Bytes) -> Result<(), BusError>;

    /// The next request of any agent. `Err(Closed)` ends the loop.
    async fn next_request(&self) -> Result<Incoming, BusError>;

    /// By what agents send a request to this coordinator and to no other; `None` where there is only one.
    fn address(&self) -> Option<Uuid> {
        None
    }

    /// Why nothing goes out or comes in now, for people; `None` when all is well.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Ends it, for good: everything that waits on it, and all that is asked of it later, is told `Closed`.
    async fn close(&self);
}

/// A request and the way back.
pub struct Incoming {
    /// The site that it comes from, as the bus knows it (never as the message claims).
    pub site: SiteId,
    /// The sealed request.
    pub request: Bytes,
    /// Where the sealed answer goes; dropping it means no answer.
    pub reply: tokio::sync::oneshot::Sender<Bytes>,
}

/// A hint that an agent has in hand.
///
/// It counts as accepted when it is dropped without a word: whoever took it may have done so in vain, and polls then.
pub struct Hint {
    /// The sealed hint.
    pub bytes: Bytes,
    settle: Option<Box<dyn FnOnce(Verdict) + Send>>,
}

/// What becomes of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was read, and doesn't come again.
    Accepted,
    /// Nobody could read it: it is put where people can look at it, if the bus has such a place.
    Rejected,
}

impl Hint {
    /// A hint; `settle` hears what becomes of it.
    pub fn new(bytes: Bytes, settle: impl FnOnce(Verdict) + Send + 'static) -> Self {
        Self { bytes, settle: Some(Box::new(settle)) }
    }

    /// It was read.
    pub fn accept(self) {
        drop(self);
    }

    /// Nobody here can read it.
    pub fn reject(mut self) {
        if let Some(settle) = self.settle.take() {
            settle(Verdict::Rejected);
        }
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle(Verdict::Accepted);
        }
    }
}

/// An agent's end.
#[async_trait]
pub trait AgentBus: Send + Sync {
    /// The next hint for this site. `Err(Closed)` ends the loop. Taken by one agent of the site only.
    async fn next_hint(&self) -> Result<Hint, BusError>;

    /// Asks the coordinator and waits for its answer, at most `patience_ms`.
    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError>;

    /// Asks the coordinator of that address, and no other.
    async fn request_of(&self, coordinator: Option<Uuid>, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        let _ = coordinator;
        self.request(request, patience_ms).await
    }

    /// Ends it, for good: everything that waits on it, and all that is asked of it later, is told `Closed`.
    async fn close(&self);
}
