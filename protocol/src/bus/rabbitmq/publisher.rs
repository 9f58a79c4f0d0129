//! The coordinator's publishing connection: confirmed messages, and answers.
//!
//! A confirm and a returned message are told apart by what else is on the channel, so each channel carries one
//! unconfirmed message at a time; several go side by side on several channels. A channel whose message wasn't
//! confirmed in time is closed: nothing that comes later can be taken for another's.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    super::BusError,
    address::{InvalidSettings, Settings},
    link::{Link, LinkState, Session, Unstarted, explain},
    topology,
};
use crate::{ids::SiteId, seams::Seams, time::Timestamp};

/// Messages that wait for their confirm at a time; more wait for their turn.
const AT_ONCE: usize = 128;
/// How long the queue of requests may take to confirm a message when the connection begins. One that doesn't is made anew, for
/// the same reason as a site's queue (`SILENT`).
const PROBE: Duration = Duration::from_secs(5);
/// How often a hint that a queue refused is offered again, and after what time. A new queue (3.10) refuses for a moment, until
/// it has a leader; a full one goes on to.
const REFUSALS: u32 = 3;
const REFUSED: Duration = Duration::from_millis(100);
/// How long a queue that somebody deleted stays away. Were it there again at once, the broker (3.10) would move the old
/// one's consumers to it, and deliver nothing to them; after this time they were ended, and begin anew.
const DELETED: Duration = Duration::from_secs(1);
/// How often in a row a site's queue may fail to confirm in time before it is made anew. A broker that lost power within
/// moments of the queue's declaration knows it and has no process for it: that one never speaks again.
const SILENT: u32 = 2;
/// How often the channel for answers is looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Publisher {
    link: Link,
    live: watch::Receiver<Option<Arc<Live>>>,
    turns: Semaphore,
    /// Sites whose queue didn't confirm in time, and how often in a row.
    silent: Mutex<HashMap<SiteId, u32>>,
    seams: Seams,
    limit: Duration,
}

/// What there is while the connection stands.
pub(super) struct Live {
    connection: Arc<Connection>,
    /// Channels in confirm mode with nothing unconfirmed.
    idle: Mutex<Vec<Channel>>,
    /// Sites whose queue this connection declared.
    declared: Mutex<HashSet<SiteId>>,
    /// For answers, which nobody confirms.
    answers: Channel,
}

struct Publishing {
    live: watch::Sender<Option<Arc<Live>>>,
    /// Rung when the queue of requests was made anew.
    anew: Arc<Notify>,
    seams: Seams,
}

/// Takes away what others see, when the connection goes.
struct Shown<'a>(&'a watch::Sender<Option<Arc<Live>>>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Session for Publishing {
    type Begun = Live;

    async fn begin(&self, connection: Arc<Connection>) -> lapin::Result<Live> {
        let answers = connection.create_channel().await?;
        topology::declare(&answers).await?;
        let live = Live { connection, idle: Mutex::default(), declared: Mutex::default(), answers };
        let probe = BasicProperties::default().with_delivery_mode(1).with_type(topology::PROBE.into());
        let probed = live.publish(topology::REQUESTS, &[], probe.with_expiration("1000".into()));
        let silent = self.seams.timeout(PROBE, probed).await.transpose()?.is_none();
        // During an alarm, the broker reads nothing.
        if silent && !live.connection.status().blocked() {
            // What agents ask meanwhile, they ask again.
            tracing::warn!("the queue of requests takes nothing: it is made anew");
            live.answers.queue_delete(topology::REQUESTS.into(), QueueDeleteOptions::default()).await?;
            self.seams.clock.sleep(DELETED).await;
            topology::declare(&live.answers).await?;
            self.anew.notify_one();
        }
        Ok(live)
    }

    async fn run(&self, live: Live) -> Result<Infallible, String> {
        let _shown = Shown(&self.live);
        let answers = live.answers.clone();
        self.live.send_replace(Some(Arc::new(live)));
        // The connection's own end is the link's to notice.
        loop {
            if !answers.status().connected() {
                return Err("the broker closed the channel for answers".to_owned());
            }
            self.seams.clock.sleep(LOOK).await;
        }
    }
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// A queue has it, on disk.
    Taken,
    /// There was no queue for it.
    Returned,
    /// The queue was full.
    Refused,
}

impl Live {
    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declared(&self) -> MutexGuard<'_, HashSet<SiteId>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn channel(&self) -> lapin::Result<Channel> {
        while let Some(channel) = { self.idle().pop() } {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) -> lapin::Result<Fate> {
        let channel = self.channel().await?;
        let mandatory = BasicPublishOptions { mandatory: true, immediate: false };
        let confirm = channel.basic_publish("".into(), queue.into(), mandatory, body, properties).await?;
        let fate = match confirm.await? {
            Confirmation::Ack(None) => Fate::Taken,
            Confirmation::Ack(Some(_)) => Fate::Returned,
            Confirmation::Nack(_) | Confirmation::NotRequested => Fate::Refused,
        };
        // Here nothing is unconfirmed on it. A channel that doesn't come so far is closed by being dropped.
        self.idle().push(channel);
        Ok(fate)
    }

    async fn hint(&self, site: SiteId, body: &[u8], seams: &Seams) -> lapin::Result<Fate> {
        let properties = BasicProperties::default().with_delivery_mode(2);
        if !self.declared().contains(&site) {
            self.declare(site).await?;
        }
        let mut fate = self.publish(&topology::tasks(site), body, properties.clone()).await?;
        for _ in 0..REFUSALS {
            if fate == Fate::Refused {
                seams.clock.sleep(REFUSED).await;
                fate = self.publish(&topology::tasks(site), body, properties.clone()).await?;
            }
        }
        if fate != Fate::Returned {
            return Ok(fate);
        }
        // Somebody deleted its queue.
        self.declared().remove(&site);
        seams.clock.sleep(DELETED).await;
        self.declare(site).await?;
        self.publish(&topology::tasks(site), body, properties).await
    }

    async fn declare(&self, site: SiteId) -> lapin::Result<()> {
        let channel = self.channel().await?;
        topology::declare_tasks(&channel, site).await?;
        self.declared().insert(site);
        self.idle().push(channel);
        Ok(())
    }
}

impl Publisher {
    /// `anew` is rung when the queue of requests was made anew: whoever consumes it begins anew, too.
    pub(super) fn start(settings: Settings, anew: Arc<Notify>, seams: &Seams) -> Result<Self, InvalidSettings> {
        let limit = settings.limit;
        let unstarted = Unstarted::new(settings, seams)?;
        let sender = watch::Sender::new(None);
        let live = sender.subscribe();
        let link = unstarted.start(Publishing { live: sender, anew, seams: seams.clone() });
        Ok(Self { link, live, turns: Semaphore::new(AT_ONCE), silent: Mutex::default(), seams: seams.clone(), limit })
    }

    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.link.state()
    }

    pub(super) fn close(&self) {
        self.link.close();
    }

    /// Does `act` on the connection as it stands, in its turn, within the limit of time.
    async fn within<T>(&self, act: impl AsyncFnOnce(&Live) -> lapin::Result<T>) -> Result<T, BusError> {
        self.bounded(async {
            let _turn = self.turns.acquire().await.map_err(|_| BusError::Closed)?;
            self.at_once(act).await
        })
        .await
    }

    async fn at_once<T>(&self, act: impl AsyncFnOnce(&Live) -> lapin::Result<T>) -> Result<T, BusError> {
        let live = self.live().await?;
        act(&live).await.map_err(|error| BusError::Unavailable(explain(&error)))
    }

    async fn bounded<T>(&self, acting: impl Future<Output = Result<T, BusError>>) -> Result<T, BusError> {
        match self.seams.timeout(self.limit, acting).await {
            Some(Err(error)) if self.link.hindrance() == Some(BusError::Closed) => {
                tracing::debug!(%error, "the bus was closed meanwhile");
                Err(BusError::Closed)
            }
            Some(result) => result,
            None => Err(self.link.hindrance().unwrap_or_else(|| {
                BusError::Unavailable(format!("the broker said nothing within {} s", self.limit.as_secs()))
            })),
        }
    }

    /// The connection; waits for the first one, and never for one that is known to be gone.
    async fn live(&self) -> Result<Arc<Live>, BusError> {
        let (mut live, mut state) = (self.live.clone(), self.link.state());
        loop {
            if let Some(hindrance) = state.borrow_and_update().hindrance() {
                return Err(hindrance);
            }
            if let Some(live) = live.borrow_and_update().clone() {
                return Ok(live);
            }
            tokio::select! {
                changed = live.changed() => changed.map_err(|_| BusError::Closed)?,
                changed = state.changed() => changed.map_err(|_| BusError::Closed)?,
            }
        }
    }

    /// Offers a hint to a site.
    pub(super) async fn hint(&self, site: SiteId, body: &[u8]) -> Result<(), BusError> {
        let sent = OnceLock::new();
        let result = self.offer(site, body, &sent).await;
        let waited = sent.get().map(|sent| self.seams.clock.monotonic().saturating_sub(*sent));
        // Waiting for a turn says nothing about this site's queue.
        let silence =
            result.is_err() && self.link.hindrance().is_none() && waited.is_some_and(|waited| waited >= self.limit / 2);
        let often = {
            let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            let often = if silence { silent.get(&site).copied().unwrap_or(0) + 1 } else { 0 };
            if often == 0 || often >= SILENT {
                silent.remove(&site)
            } else {
                silent.insert(site, often)
            };
            often
        };
        if often >= SILENT {
            tracing::warn!(site.id = %site, "the site's queue doesn't take hints: it is made anew");
            if let Err(error) = self.remove(site).await {
                tracing::warn!(%error, site.id = %site, "it could not be deleted");
            }
        }
        result
    }

    /// `sent` is set when its turn has come.
    async fn offer(&self, site: SiteId, body: &[u8], sent: &OnceLock<Duration>) -> Result<(), BusError> {
        let act = async |live: &Live| {
            sent.get_or_init(|| self.seams.clock.monotonic());
            live.hint(site, body, &self.seams).await
        };
        match self.within(act).await? {
            Fate::Taken => Ok(()),
            Fate::Returned => Err(BusError::Unavailable("the site's queue vanishes as soon as it is made".to_owned())),
            Fate::Refused => Err(BusError::Unavailable("too many hints wait at the site".to_owned())),
        }
    }

    /// Puts a message where somebody can look at it.
    pub(super) async fn quarantine(&self, body: &[u8], headers: FieldTable, now: Timestamp) -> Result<(), BusError> {
        let seconds = u64::try_from(now.0 / 1000).unwrap_or(0);
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers).with_timestamp(seconds);
        match self.within(async |live| live.publish(topology::QUARANTINE, body, properties).await).await? {
            Fate::Taken => Ok(()),
            Fate::Returned | Fate::Refused => Err(BusError::Unavailable("there is no quarantine".to_owned())),
        }
    }

    /// Sends an answer. Nobody confirms it: an asker that hears nothing asks again.
    pub(super) async fn answer(&self, to: ShortString, correlation: ShortString, body: &[u8]) -> Result<(), BusError> {
        let properties = BasicProperties::default().with_delivery_mode(1).with_correlation_id(correlation);
        let publish = BasicPublishOptions::default();
        // It waits behind no hint.
        let send = self
            .at_once(async |live| live.answers.basic_publish("".into(), to, publish, body, properties).await.map(drop));
        self.bounded(send).await
    }

    /// Makes sure that a site's queue is there.
    pub(super) async fn ensure(&self, site: SiteId) -> Result<(), BusError> {
        self.within(async |live| live.declare(site).await).await
    }

    /// Deletes a site's queue, with all that is in it. Fine where there is none.
    pub(super) async fn remove(&self, site: SiteId) -> Result<(), BusError> {
        self.within(async |live| {
            live.declared().remove(&site);
            let channel = live.channel().await?;
            channel.queue_delete(topology::tasks(site).into(), QueueDeleteOptions::default()).await?;
            live.idle().push(channel);
            Ok(())
        })
        .await
    }

    /// Hints that wait at a site's queue, not counting those that agents hold. An error where there is no queue.
    pub(super) async fn waiting(&self, site: SiteId) -> Result<u32, BusError> {
        self.within(async |live| {
            // A queue that isn't there costs the channel.
            let channel = live.channel().await?;
            let look = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = channel.queue_declare(topology::tasks(site).into(), look, FieldTable::default()).await?;
            live.idle().push(channel);
            Ok(queue.message_count())
        })
        .await
    }
}
