//! An agent's end: one connection takes hints, another asks. Direct reply-to wants question and answer on one channel,
//! and a connection that publishes is stopped during an alarm.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use uuid::Uuid;

use lapin::{
    Acker, BasicProperties, Channel, Confirmation, Connection, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    super::{AgentBus, BusError, Hint, Verdict},
    address::{InvalidSettings, Settings},
    coordinator::too_long,
    link::{Link, LinkState, Session, Unstarted, explain},
    topology,
};
use crate::{ids::SiteId, seams::Seams, secret::Secret};

/// Hints that the broker sends before the first of them was taken; the others of the site get the rest.
const PREFETCH: u16 = 16;
/// Requests whose taking over the broker has not yet confirmed, at most; more wait for their turn.
const AT_ONCE: usize = 128;

/// How long the end waits, when it is closed, for its last words about hints to go out.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How an agent's end is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// The connection for hints.
    pub hints: LinkState,
    /// The connection for requests.
    pub requests: LinkState,
}

/// An agent's end of the bus on RabbitMQ.
pub struct RabbitAgentBus {
    hints: Link,
    requests: Link,
    inbox: Arc<Inbox>,
    asking: watch::Receiver<Option<mpsc::Sender<Ask>>>,
    pending: Arc<Pending>,
    seams: Seams,
}

impl RabbitAgentBus {
    /// Starts to connect, as the user of `site`. Needs tokio's runtime.
    pub fn start(site: SiteId, settings: &Settings, seams: &Seams) -> Result<Self, InvalidSettings> {
        let named = |what| Settings { name: format!("{} {what}", settings.name), ..settings.clone() };
        let (hints, requests) = (Unstarted::new(named("hints"), seams)?, Unstarted::new(named("requests"), seams)?);
        let (inbox, pending) = (Arc::new(Inbox::default()), Arc::new(Pending::default()));
        let sender = watch::Sender::new(None);
        let asking = sender.subscribe();
        let hints = hints.start(Hints { site, inbox: Arc::clone(&inbox) });
        let user = settings.user.clone();
        let requests = requests.start(Requests { site, user, asking: sender, pending: Arc::clone(&pending) });
        Ok(Self { hints, requests, inbox, asking, pending, seams: seams.clone() })
    }

    /// How it is doing.
    pub fn state(&self) -> AgentState {
        AgentState { hints: self.hints.state().borrow().clone(), requests: self.requests.state().borrow().clone() }
    }

    /// Changes of the connections for hints and for requests.
    pub fn watch(&self) -> [watch::Receiver<LinkState>; 2] {
        [self.hints.state(), self.requests.state()]
    }

    /// Another password from now on; a connection that stands goes on.
    pub fn renew_password(&self, password: &Secret) {
        self.hints.renew(password.clone());
        self.requests.renew(password.clone());
    }

    /// The way to ask, once there is one. Waits while the connection is being made, unless the user is refused or the
    /// broker takes no messages.
    async fn asker(&self) -> Result<mpsc::Sender<Ask>, BusError> {
        let (mut asking, mut state) = (self.asking.clone(), self.requests.state());
        loop {
            let seen = state.borrow_and_update().clone();
            if !matches!(seen, LinkState::Connecting { .. })
                && let Some(hindrance) = seen.hindrance()
            {
                return Err(hindrance);
            }
            if let Some(asker) = asking.borrow_and_update().clone() {
                return Ok(asker);
            }
            tokio::select! {
                changed = asking.changed() => changed.map_err(|_| BusError::Closed)?,
                changed = state.changed() => changed.map_err(|_| BusError::Closed)?,
            }
        }
    }

    async fn exchange(&self, to: Option<Uuid>, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        let asker = self.asker().await?;
        let mut random = [0u8; 16];
        self.seams.entropy.fill(&mut random);
        let correlation = hex::encode(random);
        let (done, answer) = oneshot::channel();
        let _asked = self.pending.enter(&correlation, done);
        let ask = Ask { correlation, to, request, patience_ms };
        let lost = || BusError::Unavailable("the connection to the broker was lost".to_owned());
        asker.send(ask).await.map_err(|_| lost())?;
        drop(asker);
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

#[async_trait]
impl AgentBus for RabbitAgentBus {
    async fn next_hint(&self) -> Result<Hint, BusError> {
        self.inbox.next().await.ok_or(BusError::Closed)
    }

    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        self.request_of(None, request, patience_ms).await
    }

    async fn request_of(&self, coordinator: Option<Uuid>, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        too_long(&request)?;
        let exchange = self.exchange(coordinator, request, patience_ms);
        match self.seams.timeout(Duration::from_millis(patience_ms), exchange).await {
            Some(Err(_)) if self.requests.hindrance() == Some(BusError::Closed) => Err(BusError::Closed),
            Some(result) => result,
            // Why there was no answer, where that is known.
            None => Err(self.requests.hindrance().unwrap_or(BusError::NoAnswer(patience_ms))),
        }
    }

    async fn close(&self) {
        self.inbox.close();
        self.requests.close();
        // What was accepted shall not come again.
        let mut unsaid = self.inbox.unsaid.subscribe();
        let _ = self.seams.timeout(LAST_WORDS, unsaid.wait_for(|count| *count == 0)).await;
        self.hints.close();
    }
}

/// Hints that came and that nobody took yet.
#[derive(Default)]
struct Inbox {
    held: Mutex<VecDeque<Held>>,
    rung: Notify,
    closed: CancellationToken,
    /// Verdicts that the broker has not been told yet.
    unsaid: watch::Sender<usize>,
}

struct Held {
    bytes: Bytes,
    acker: Acker,
    /// Where the session hears what became of it: at most one word for each of [`PREFETCH`] deliveries.
    settle: mpsc::UnboundedSender<(Acker, Verdict)>,
}

impl Inbox {
    fn held(&self) -> MutexGuard<'_, VecDeque<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, held: Held) {
        self.held().push_back(held);
        self.rung.notify_one();
    }

    async fn next(self: &Arc<Self>) -> Option<Hint> {
        loop {
            if self.closed.is_cancelled() {
                return None;
            }
            let taken = {
                let mut held = self.held();
                let taken = held.pop_front();
                if !held.is_empty() {
                    self.rung.notify_one();
                }
                taken
            };
            if let Some(Held { bytes, acker, settle }) = taken {
                // Where the session is over, the broker gives the hint to another.
                let inbox = Arc::clone(self);
                return Some(Hint::new(bytes, move |verdict| {
                    inbox.unsaid.send_modify(|count| *count += 1);
                    if settle.send((acker, verdict)).is_err() {
                        inbox.said();
                    }
                }));
            }
            tokio::select! {
                () = self.rung.notified() => {}
                () = self.closed.cancelled() => return None,
            }
        }
    }

    fn said(&self) {
        self.unsaid.send_modify(|count| *count = count.saturating_sub(1));
    }

    fn close(&self) {
        self.closed.cancel();
        self.held().clear();
    }
}

/// Takes hints from the broker.
struct Hints {
    site: SiteId,
    inbox: Arc<Inbox>,
}

/// The hints of a connection that is gone come again on another.
struct Emptied<'a>(&'a Inbox);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        self.0.held().clear();
        self.0.unsaid.send_replace(0);
    }
}

impl Session for Hints {
    type Begun = (Channel, Consumer);

    async fn begin(&self, connection: Arc<Connection>) -> lapin::Result<(Channel, Consumer)> {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let queue = topology::tasks(self.site);
        let options = BasicConsumeOptions::default();
        let consume = channel.basic_consume(queue.as_str().into(), "agent".into(), options, FieldTable::default());
        let deliveries = consume.await?;
        Ok((channel, deliveries))
    }

    async fn run(&self, (_channel, mut deliveries): (Channel, Consumer)) -> Result<Infallible, String> {
        let _emptied = Emptied(&self.inbox);
        let (settle, mut settled) = mpsc::unbounded_channel::<(Acker, Verdict)>();
        let mut words: FuturesUnordered<BoxFuture<'static, lapin::Result<bool>>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                delivery = deliveries.next() => match delivery {
                    Some(Ok(delivery)) => {
                        let bytes = delivery.data.into();
                        self.inbox.put(Held { bytes, acker: delivery.acker, settle: settle.clone() });
                    }
                    Some(Err(error)) => return Err(explain(&error)),
                    None => return Err("the broker ended the consumer: the site's queue is gone".to_owned()),
                },
                Some((acker, verdict)) = settled.recv() => words.push(async move {
                    match verdict {
                        Verdict::Accepted => acker.ack(BasicAckOptions::default()).await,
                        Verdict::Rejected => acker.nack(BasicNackOptions { requeue: false, multiple: false }).await,
                    }
                }.boxed()),
                Some(word) = words.next() => {
                    self.inbox.said();
                    word.map_err(|error| explain(&error))?;
                }
            }
        }
    }
}

/// A request on its way.
struct Ask {
    correlation: String,
    /// To one coordinator alone.
    to: Option<Uuid>,
    request: Bytes,
    patience_ms: u64,
}

type Answered = oneshot::Sender<Result<Bytes, BusError>>;

/// Who waits for an answer.
#[derive(Default)]
struct Pending {
    askers: Mutex<HashMap<String, Answered>>,
}

/// Forgets an asker that waits no more.
struct Entered<'a> {
    pending: &'a Pending,
    correlation: String,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.pending.askers().remove(&self.correlation);
    }
}

impl Pending {
    fn askers(&self) -> MutexGuard<'_, HashMap<String, Answered>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, correlation: &str, answered: Answered) -> Entered<'_> {
        self.askers().insert(correlation.to_owned(), answered);
        Entered { pending: self, correlation: correlation.to_owned() }
    }

    /// An answer that nobody waits for is dropped.
    fn settle(&self, correlation: &str, answer: Result<Bytes, BusError>) {
        let asker = self.askers().remove(correlation);
        if let Some(asker) = asker {
            drop(asker.send(answer));
        }
    }

    fn lose(&self) {
        // Each hears that its line is gone.
        self.askers().clear();
    }
}

/// Publishes requests and takes the answers.
struct Requests {
    site: SiteId,
    user: String,
    asking: watch::Sender<Option<mpsc::Sender<Ask>>>,
    pending: Arc<Pending>,
}

/// Takes the way to ask away when the connection goes, and tells those who wait.
struct Asking<'a>(&'a Requests);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.asking.send_replace(None);
        self.0.pending.lose();
    }
}

impl Session for Requests {
    type Begun = (Channel, Consumer);

    async fn begin(&self, connection: Arc<Connection>) -> lapin::Result<(Channel, Consumer)> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let without_acks = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let answers = FieldTable::default();
        let consume = channel.basic_consume(topology::REPLY_TO.into(), "answers".into(), without_acks, answers);
        let answers = consume.await?;
        Ok((channel, answers))
    }

    async fn run(&self, (channel, mut answers): (Channel, Consumer)) -> Result<Infallible, String> {
        // It goes last: what was handed over before is then known to be lost.
        let _asking = Asking(self);
        let (asker, mut asks) = mpsc::channel(AT_ONCE);
        self.asking.send_replace(Some(asker));
        let mut confirms: FuturesUnordered<BoxFuture<'_, Result<(), String>>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                answer = answers.next() => match answer {
                    Some(Ok(answer)) => {
                        if let Some(correlation) = answer.properties.correlation_id() {
                            let fits = too_long(&answer.data).map(|()| Bytes::from(answer.data));
                            self.pending.settle(correlation.as_str(), fits);
                        }
                    }
                    Some(Err(error)) => return Err(explain(&error)),
                    None => return Err("the broker ended the consumer of answers".to_owned()),
                },
                Some(ask) = asks.recv(), if confirms.len() < AT_ONCE => confirms.push(self.ask(&channel, ask).boxed()),
                Some(confirmed) = confirms.next() => confirmed?,
            }
        }
    }
}

impl Requests {
    async fn ask(&self, channel: &Channel, ask: Ask) -> Result<(), String> {
        let Ask { correlation, to, request, patience_ms } = ask;
        let id = ShortString::try_new(correlation.as_str()).map_err(|error| error.to_string())?;
        let user = ShortString::try_new(self.user.as_str()).map_err(|error| error.to_string())?;
        let properties = BasicProperties::default()
            .with_delivery_mode(1)
            .with_user_id(user)
            .with_reply_to(topology::REPLY_TO.into())
            .with_correlation_id(id)
            .with_expiration(patience_ms.to_string().into());
        let mandatory = BasicPublishOptions { mandatory: true, immediate: false };
        let key = topology::request_key(self.site, to);
        let publish = channel.basic_publish(topology::EVENTS.into(), key.into(), mandatory, &request, properties);
        let confirm = publish.await.map_err(|error| explain(&error))?;
        let unavailable = |why: &str| Err(BusError::Unavailable(why.to_owned()));
        match confirm.await.map_err(|error| explain(&error))? {
            Confirmation::Ack(None) | Confirmation::NotRequested => {}
            // The library hands a returned message to whichever confirm comes next: only the message says whose it is.
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                if let Some(id) = returned.delivery.properties.correlation_id() {
                    self.pending.settle(id.as_str(), unavailable("no coordinator has been at this broker yet"));
                }
            }
            Confirmation::Nack(None) => {
                self.pending.settle(&correlation, unavailable("too many requests wait for the coordinator"));
            }
        }
        Ok(())
    }
}
