//! The coordinator's end: one connection publishes, another takes requests. During an alarm the broker stops the first
//! and not the second.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use uuid::Uuid;

use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::{
    super::{BusError, CoordinatorBus, Incoming},
    address::{InvalidSettings, Settings},
    fair::{Asked, Waiting},
    guard::MARK,
    link::{Link, LinkState, Session, Unstarted, explain},
    publisher::Publisher,
    topology,
};
use crate::{envelope, ids::SiteId, seams::Seams};

/// Requests that the broker sends before the first of them was acknowledged.
const PREFETCH: u16 = 256;
/// Messages on their way into quarantine at a time; the broker puts more there by itself, without the reason.
const QUARANTINING: usize = 8;
/// How long an asker waits that doesn't say so, and how long any may wait, in milliseconds.
const PATIENCE: (u64, u64) = (10_000, 60_000);
/// A correlation id is no longer.
const CORRELATION: usize = 64;

/// What was not answered, since the start.
#[derive(Debug, Default)]
struct Counts {
    quarantined: AtomicU64,
    dropped: AtomicU64,
}

/// How the coordinator's end is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorState {
    /// The connection for hints and answers.
    pub publishing: LinkState,
    /// The connection for requests.
    pub requests: LinkState,
    /// Messages that nobody could read or that came from no site, since the start.
    pub quarantined: u64,
    /// Requests beyond their site's share, since the start; agents ask again.
    pub dropped: u64,
}

/// The coordinator's end of the bus on RabbitMQ.
pub struct RabbitCoordinatorBus {
    /// What the own queue of its connection is called by.
    own: watch::Receiver<Uuid>,
    publisher: Arc<Publisher>,
    intake: Link,
    waiting: Arc<Waiting>,
    counts: Arc<Counts>,
    seams: Seams,
}

impl RabbitCoordinatorBus {
    /// Starts to connect, with a user that may do everything in its virtual host. Needs tokio's runtime.
    pub fn start(settings: &Settings, seams: &Seams) -> Result<Self, InvalidSettings> {
        let named = |what| Settings { name: format!("{} {what}", settings.name), ..settings.clone() };
        let intake = Unstarted::new(named("requests"), seams)?;
        let anew = Arc::new(Notify::new());
        let publisher = Arc::new(Publisher::start(named("publishing"), Arc::clone(&anew), seams)?);
        let (waiting, counts) = (Arc::new(Waiting::default()), Arc::new(Counts::default()));
        let (naming, own) = watch::channel(seams.uuid());
        let intake = intake.start(Intake {
            own: naming,
            waiting: Arc::clone(&waiting),
            counts: Arc::clone(&counts),
            publisher: Arc::clone(&publisher),
            quarantining: Arc::new(Semaphore::new(QUARANTINING)),
            anew,
            seams: seams.clone(),
        });
        Ok(Self { own, publisher, intake, waiting, counts, seams: seams.clone() })
    }

    /// How it is doing.
    pub fn state(&self) -> CoordinatorState {
        CoordinatorState {
            publishing: self.publisher.state().borrow().clone(),
            requests: self.intake.state().borrow().clone(),
            quarantined: self.counts.quarantined.load(Relaxed),
            dropped: self.counts.dropped.load(Relaxed),
        }
    }

    /// Changes of the connections for publishing and for requests.
    pub fn watch(&self) -> [watch::Receiver<LinkState>; 2] {
        [self.publisher.state(), self.intake.state()]
    }

    /// Makes sure that a site's queue is there, so that its agents can wait at it.
    pub async fn ensure_site(&self, site: SiteId) -> Result<(), BusError> {
        self.publisher.ensure(site).await
    }

    /// Deletes a site's queue. Fine where there is none.
    pub async fn remove_site(&self, site: SiteId) -> Result<(), BusError> {
        self.publisher.remove(site).await
    }

    /// Hints that wait at a site's queue, not counting those that agents hold. An error where there is no queue.
    pub async fn waiting_hints(&self, site: SiteId) -> Result<u32, BusError> {
        self.publisher.waiting(site).await
    }
}

#[async_trait]
impl CoordinatorBus for RabbitCoordinatorBus {
    async fn publish(&self, site: SiteId, hint: Bytes) -> Result<(), BusError> {
        too_long(&hint)?;
        self.publisher.hint(site, &hint).await
    }

    fn address(&self) -> Option<Uuid> {
        Some(*self.own.borrow())
    }

    fn trouble(&self) -> Option<String> {
        let state = self.state();
        state.publishing.trouble().or_else(|| state.requests.trouble())
    }

    async fn next_request(&self) -> Result<Incoming, BusError> {
        let now = || self.seams.clock.monotonic();
        let asked = self.waiting.next(now).await.ok_or(BusError::Closed)?;
        let (reply, answer) = oneshot::channel::<Bytes>();
        let left = asked.until.saturating_sub(now());
        let (publisher, seams) = (Arc::clone(&self.publisher), self.seams.clone());
        let (reply_to, correlation, site) = (asked.reply_to, asked.correlation, asked.site);
        let send = async move {
            // An asker that waits no more has asked again.
            let Some(Ok(answer)) = seams.timeout(left, answer).await else { return };
            let sent = match too_long(&answer) {
                Ok(()) => publisher.answer(reply_to, correlation, &answer).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, site.id = %site, "an answer could not be sent");
            }
        };
        self.seams.spawner.spawn("rabbitmq.answer", Box::pin(send));
        Ok(Incoming { site, request: asked.request, reply })
    }

    async fn close(&self) {
        self.publisher.close();
        self.intake.close();
        self.waiting.close();
    }
}

/// What an envelope could not have sealed.
pub(super) fn too_long(message: &[u8]) -> Result<(), BusError> {
    if message.len() <= envelope::LONGEST {
        return Ok(());
    }
    Err(BusError::Unavailable(format!("a message has {} bytes, and {} at most", message.len(), envelope::LONGEST)))
}

/// Takes requests from the broker.
struct Intake {
    /// What this connection's own queue is called by. A connection that was lost may hold its queue for a while.
    own: watch::Sender<Uuid>,
    waiting: Arc<Waiting>,
    counts: Arc<Counts>,
    publisher: Arc<Publisher>,
    quarantining: Arc<Semaphore>,
    anew: Arc<Notify>,
    seams: Seams,
}

/// A word to the broker about one message.
type Verdict = BoxFuture<'static, lapin::Result<bool>>;

impl Session for Intake {
    type Begun = (Channel, [Consumer; 3]);

    async fn begin(&self, connection: Arc<Connection>) -> lapin::Result<(Channel, [Consumer; 3])> {
        let channel = connection.create_channel().await?;
        topology::declare(&channel).await?;
        let own = self.seams.uuid();
        topology::declare_own(&channel, own).await?;
        self.own.send_replace(own);
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let own = topology::own(own);
        let consume = async |queue: &str, tag: &str| {
            channel.basic_consume(queue.into(), tag.into(), BasicConsumeOptions::default(), FieldTable::default()).await
        };
        let deliveries = consume(topology::REQUESTS, "coordinator").await?;
        let own = consume(&own, "own").await?;
        let returned = consume(topology::RETURNED, "returned").await?;
        Ok((channel, [deliveries, own, returned]))
    }

    async fn run(&self, (_channel, consumers): (Channel, [Consumer; 3])) -> Result<Infallible, String> {
        let [mut deliveries, mut own, mut returned] = consumers;
        let mut verdicts: FuturesUnordered<Verdict> = FuturesUnordered::new();
        loop {
            tokio::select! {
                delivery = deliveries.next() => match delivery {
                    Some(Ok(delivery)) => verdicts.push(self.take(delivery)),
                    Some(Err(error)) => return Err(explain(&error)),
                    None => return Err("the broker ended the consumer: the queue of requests is gone".to_owned()),
                },
                delivery = own.next() => match delivery {
                    Some(Ok(delivery)) => verdicts.push(self.take(delivery)),
                    Some(Err(error)) => return Err(explain(&error)),
                    None => return Err("the broker ended the consumer: this coordinator's queue is gone".to_owned()),
                },
                delivery = returned.next() => match delivery {
                    Some(Ok(delivery)) => verdicts.push(sorted(delivery)),
                    Some(Err(error)) => return Err(explain(&error)),
                    None => return Err("the broker ended the consumer: the queue of what is returned is gone".to_owned()),
                },
                () = self.anew.notified() => return Err("the queue of requests was made anew".to_owned()),
                Some(verdict) = verdicts.next() => {
                    verdict.map_err(|error| explain(&error))?;
                }
            }
        }
    }
}

/// A question that came too late is no fault of anybody's, and was asked again: it goes. All else goes into quarantine.
fn sorted(delivery: Delivery) -> Verdict {
    let deaths = delivery.properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death"));
    let last = match deaths {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
        _ => None,
    };
    let is_late = match last {
        Some(AMQPValue::FieldTable(death)) => match death.inner().get("reason") {
            Some(AMQPValue::LongString(reason)) => reason.as_bytes() == b"expired",
            _ => false,
        },
        _ => false,
    };
    async move {
        match is_late {
            true => delivery.acker.ack(BasicAckOptions::default()).await,
            false => delivery.acker.nack(BasicNackOptions { requeue: false, multiple: false }).await,
        }
    }
    .boxed()
}

impl Intake {
    fn take(&self, mut delivery: Delivery) -> Verdict {
        // Its queue has confirmed it: it is of no more use, whoever sent it.
        if delivery.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == topology::PROBE) {
            return async move { delivery.acker.ack(BasicAckOptions::default()).await }.boxed();
        }
        match self.read(&mut delivery) {
            Ok(asked) => {
                if !self.waiting.offer(asked) {
                    self.counts.dropped.fetch_add(1, Relaxed);
                }
                // A request is a question: whoever gets no answer asks again.
                async move { delivery.acker.ack(BasicAckOptions::default()).await }.boxed()
            }
            Err(why) => self.quarantine(delivery, why),
        }
    }

    /// The request, from whom the broker says it is. Routing key and headers are the sender's own words.
    fn read(&self, delivery: &mut Delivery) -> Result<Asked, String> {
        let properties = &delivery.properties;
        if let Some(why) = properties.kind().as_ref().and_then(|kind| kind.as_str().strip_prefix(MARK)) {
            return Err(why.to_owned());
        }
        let user = properties.user_id().as_ref().ok_or("it doesn't say from whom it is")?;
        let site = topology::site_of(user.as_str()).ok_or_else(|| format!("{user} is no site's user"))?;
        let size = delivery.data.len();
        if size > envelope::LONGEST {
            return Err(format!("it has {size} bytes, and {} at most", envelope::LONGEST));
        }
        let reply_to = properties.reply_to().clone().ok_or("it names no way back")?;
        // Anything else would be another's queue, written to with the coordinator's rights.
        if !reply_to.as_str().starts_with(topology::REPLY_TO) || reply_to.as_str() == topology::REPLY_TO {
            return Err(format!("its way back leads to {reply_to}"));
        }
        let correlation = properties.correlation_id().clone().filter(|id| id.as_str().len() <= CORRELATION);
        let correlation = correlation.ok_or("its answer could not be told from others")?;
        let patience = properties.expiration().as_ref().and_then(|text| text.as_str().parse().ok());
        let patience = Duration::from_millis(patience.unwrap_or(PATIENCE.0).min(PATIENCE.1));
        let until = self.seams.clock.monotonic() + patience;
        Ok(Asked { site, request: std::mem::take(&mut delivery.data).into(), reply_to, correlation, until })
    }

    fn quarantine(&self, delivery: Delivery, why: String) -> Verdict {
        self.counts.quarantined.fetch_add(1, Relaxed);
        let key = delivery.routing_key.clone();
        tracing::warn!(why, routing_key = key.as_str(), "a message goes into quarantine");
        let permit = Arc::clone(&self.quarantining).try_acquire_owned().ok();
        let mangled = delivery.properties.kind().as_ref().is_some_and(|kind| kind.as_str().starts_with(MARK));
        let (publisher, now) = (Arc::clone(&self.publisher), self.seams.clock.now());
        async move {
            // What was not let through as it came is put there by the broker, which has it whole.
            if permit.is_some() && !mangled {
                let mut headers = FieldTable::default();
                headers.insert(topology::REASON.into(), AMQPValue::LongString(why.into()));
                headers.insert(topology::ROUTING_KEY.into(), AMQPValue::LongString(key.as_str().into()));
                if let Some(user) = delivery.properties.user_id() {
                    headers.insert(topology::USER.into(), AMQPValue::LongString(user.as_str().into()));
                }
                if publisher.quarantine(&delivery.data, headers, now).await.is_ok() {
                    return delivery.acker.ack(BasicAckOptions::default()).await;
                }
            }
            delivery.acker.nack(BasicNackOptions { requeue: false, multiple: false }).await
        }
        .boxed()
    }
}
