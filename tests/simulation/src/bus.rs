//! The bus: what RabbitMQ promises after a confirm holds (a hint stays queued until somebody took it), and what it doesn't
//! promise is broken: hints come late, twice, in another order, and are lost when a queue is purged; publishing is in doubt;
//! requests and answers are lost, doubled, late; a site is cut off; who was connected isn't any more.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::{
    bus::{AgentBus, BusError, CoordinatorBus, Hint, Incoming},
    envelope::open,
    ids::{SiteId, TaskId},
    message::{Answer, Request, TaskHint},
    seams::Seams,
    task::Outcome,
};
use tokio::sync::{Notify, oneshot};

use crate::{
    database::SimDatabase,
    runtime::{Pid, Sim, WORLD, lock},
    scenario::Weather,
};

struct Asked {
    site: SiteId,
    by: Pid,
    bytes: Bytes,
    back: Arc<Mutex<Option<oneshot::Sender<Bytes>>>>,
}

#[derive(Default)]
struct Inner {
    hints: BTreeMap<SiteId, VecDeque<Bytes>>,
    asked: VecDeque<Asked>,
    cut_off: BTreeSet<SiteId>,
    /// Agents that are cut off alone.
    alone: BTreeSet<Pid>,
    /// Tasks that were hinted at.
    hinted: BTreeSet<TaskId>,
}

pub struct Bus {
    sim: Sim,
    weather: Weather,
    database: Arc<SimDatabase>,
    inner: Mutex<Inner>,
    /// Something came, or a way is open again.
    news: Notify,
}

impl Bus {
    pub fn new(sim: &Sim, weather: &Weather, database: Arc<SimDatabase>) -> Arc<Self> {
        let (sim, weather) = (sim.clone(), weather.clone());
        Arc::new(Self { sim, weather, database, inner: Mutex::default(), news: Notify::new() })
    }

    pub fn coordinator(self: &Arc<Self>) -> Arc<dyn CoordinatorBus> {
        Arc::new(CoordinatorEnd { bus: self.clone() })
    }

    pub fn agent(self: &Arc<Self>, pid: Pid, site: SiteId, seams: Seams) -> Arc<dyn AgentBus> {
        Arc::new(AgentEnd { bus: self.clone(), pid, site, seams })
    }

    /// Cuts a site off from the broker, or joins it again.
    pub fn cut_off(&self, site: SiteId, cut: bool) {
        let mut inner = lock(&self.inner);
        if cut {
            inner.cut_off.insert(site);
        } else {
            inner.cut_off.remove(&site);
        }
        drop(inner);
        self.news.notify_waiters();
    }

    /// Cuts one agent off, or joins it again.
    pub fn cut_off_alone(&self, agent: Pid, cut: bool) {
        let mut inner = lock(&self.inner);
        if cut {
            inner.alone.insert(agent);
        } else {
            inner.alone.remove(&agent);
        }
        drop(inner);
        self.news.notify_waiters();
    }

    /// Loses all hints of a site.
    pub fn purge(&self, site: SiteId) {
        lock(&self.inner).hints.remove(&site);
    }

    /// Loses all requests that nobody has taken.
    pub fn lose_requests(&self) {
        lock(&self.inner).asked.clear();
    }

    /// Whether a hint at the task was ever put into its site's queue.
    pub fn was_hinted(&self, task: &str) -> bool {
        task.parse().is_ok_and(|task| lock(&self.inner).hinted.contains(&task))
    }

    /// A success that was taken must be that of the last attempt.
    fn look_at(&self, request: &Bytes, answer: &Bytes) {
        let (Ok(request), Ok(answer)) = (open::<Request>(request), open::<Answer>(answer)) else { return };
        let Request::Finish { claimed, outcome: Outcome::Succeeded(_) } = request.message else { return };
        let sql = format!(
            "SELECT attempt FROM tasks WHERE id = x'{}' AND attempt <> {}",
            claimed.task.0.simple(),
            claimed.attempt
        );
        if matches!(answer.message, Answer::Recorded) && !self.database.ask(&sql).is_empty() {
            self.sim.wrong("the outcome of an older attempt was taken".to_owned());
        }
    }

    fn is_cut_off(&self, site: SiteId, agent: Pid) -> bool {
        let inner = lock(&self.inner);
        inner.cut_off.contains(&site) || inner.alone.contains(&agent)
    }

    fn latency(&self) -> Duration {
        let slow = self.weather.of(|weather| weather.bus_slow);
        self.sim.chance(|chance| {
            Duration::from_millis(if chance.per_mille(slow) { chance.within(50..6000) } else { chance.within(0..4) })
        })
    }

    fn happens(&self, what: impl FnOnce(&crate::scenario::Rates) -> u64) -> bool {
        let rate = self.weather.of(what);
        self.sim.chance(|chance| chance.per_mille(rate))
    }

    fn enqueue(self: &Arc<Self>, site: SiteId, hint: Bytes) {
        if let Ok(opened) = open::<TaskHint>(&hint) {
            lock(&self.inner).hinted.insert(opened.message.task);
        }
        let (bus, latency) = (self.clone(), self.latency());
        let work = async move {
            bus.sim.sleep(latency).await;
            let front = bus.happens(|rates| rates.bus_reorders);
            let mut inner = lock(&bus.inner);
            let queue = inner.hints.entry(site).or_default();
            if front {
                queue.push_front(hint)
            } else {
                queue.push_back(hint)
            }
            drop(inner);
            bus.news.notify_waiters();
        };
        self.sim.spawn(WORLD, "bus.hint", Box::pin(work));
    }

    fn ask(self: &Arc<Self>, asked: Asked) {
        let (bus, latency) = (self.clone(), self.latency());
        let work = async move {
            bus.sim.sleep(latency).await;
            lock(&bus.inner).asked.push_back(asked);
            bus.news.notify_waiters();
        };
        self.sim.spawn(WORLD, "bus.request", Box::pin(work));
    }

    /// Waits until `take` finds something.
    async fn wait<T>(&self, mut take: impl FnMut(&mut Inner) -> Option<T>) -> T {
        loop {
            let news = self.news.notified();
            if let Some(found) = take(&mut lock(&self.inner)) {
                return found;
            }
            news.await;
        }
    }
}

struct CoordinatorEnd {
    bus: Arc<Bus>,
}

#[async_trait]
impl CoordinatorBus for CoordinatorEnd {
    async fn publish(&self, site: SiteId, hint: Bytes) -> Result<(), BusError> {
        let bus = &self.bus;
        bus.sim.sleep(bus.latency()).await;
        if bus.happens(|rates| rates.bus_refuses) {
            return Err(BusError::Unavailable("an alarm".to_owned()));
        }
        bus.enqueue(site, hint.clone());
        if bus.happens(|rates| rates.bus_doubles) {
            bus.enqueue(site, hint);
        }
        bus.sim.sleep(bus.latency()).await;
        if bus.happens(|rates| rates.bus_refuses) {
            return Err(BusError::Unavailable("the confirm was lost".to_owned()));
        }
        Ok(())
    }

    async fn next_request(&self) -> Result<Incoming, BusError> {
        let bus = &self.bus;
        let asked = bus.wait(|inner| inner.asked.pop_front()).await;
        let (reply, answer) = oneshot::channel();
        let Asked { site, by, bytes: request, back } = asked;
        let (way_back, question) = (bus.clone(), request.clone());
        let work = async move {
            let Ok(answer) = answer.await else { return };
            way_back.look_at(&question, &answer);
            if way_back.happens(|rates| rates.bus_loses) {
                return;
            }
            way_back.sim.sleep(way_back.latency()).await;
            while way_back.is_cut_off(site, by) {
                way_back.sim.sleep(Duration::from_millis(500)).await;
            }
            let asker = lock(&back).take();
            if let Some(asker) = asker {
                // Who gave up waiting doesn't hear it.
                let _ = asker.send(answer);
            }
        };
        // What is on its way back doesn't depend on who sent it.
        bus.sim.spawn(WORLD, "bus.answer", Box::pin(work));
        Ok(Incoming { site, request, reply })
    }

    async fn close(&self) {}
}

struct AgentEnd {
    bus: Arc<Bus>,
    pid: Pid,
    site: SiteId,
    seams: Seams,
}

#[async_trait]
impl AgentBus for AgentEnd {
    async fn next_hint(&self) -> Result<Hint, BusError> {
        let (bus, site) = (&self.bus, self.site);
        if bus.happens(|rates| rates.bus_refuses) {
            return Err(BusError::Unavailable("the connection was lost".to_owned()));
        }
        let pid = self.pid;
        let take = |inner: &mut Inner| {
            if inner.cut_off.contains(&site) || inner.alone.contains(&pid) {
                None
            } else {
                inner.hints.get_mut(&site)?.pop_front()
            }
        };
        let bytes = bus.wait(take).await;
        let (way_back, pid, again) = (bus.clone(), self.pid, bytes.clone());
        Ok(Hint::new(bytes, move |_| {
            // Taken by one that died: the broker gives it to another.
            if !way_back.sim.is_alive(pid) {
                way_back.enqueue(site, again);
            }
        }))
    }

    async fn request(&self, request: Bytes, patience_ms: u64) -> Result<Bytes, BusError> {
        let bus = &self.bus;
        if bus.is_cut_off(self.site, self.pid) && bus.happens(|_| 500) {
            bus.sim.sleep(bus.latency()).await;
            return Err(BusError::Unavailable("the broker can't be reached".to_owned()));
        }
        let (back, answer) = oneshot::channel();
        let back = Arc::new(Mutex::new(Some(back)));
        let exchange = async {
            while bus.is_cut_off(self.site, self.pid) {
                bus.sim.sleep(Duration::from_millis(500)).await;
            }
            let (lost, doubled) = (bus.happens(|rates| rates.bus_loses), bus.happens(|rates| rates.bus_doubles));
            let asked = || Asked { site: self.site, by: self.pid, bytes: request.clone(), back: back.clone() };
            if !lost {
                bus.ask(asked());
            }
            if doubled {
                bus.ask(asked());
            }
            answer.await.map_err(|_| BusError::Unavailable("the answer was lost".to_owned()))
        };
        let answered = self.seams.timeout(Duration::from_millis(patience_ms), exchange).await;
        answered.unwrap_or(Err(BusError::NoAnswer(patience_ms)))
    }

    async fn close(&self) {}
}
