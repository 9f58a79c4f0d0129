//! What happens in one seed: processes, people who ask for things, and faults; then all is well again, and what is left is
//! looked at.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use ocopea_agent::worker::{Identity, Limits, Worker};
use ocopea_catalog_db::{Catalog, access::Actor};
use ocopea_coordinator::{Coordinator, vault::Vault};
use ocopea_protocol::{
    identity::SiteKey,
    ids::{OperationId, SiteId},
    image::Location,
    seams::BoxFuture,
    secret::Secret32,
};
use ocopea_repository::{Keyring, Repository};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    bus::Bus,
    check,
    database::{self, SimDatabase},
    people::{self, Wish},
    runtime::{Pid, Sim, WORLD, lock},
    site::{Application, Site},
    store::{Objects, Store},
    work::SimWork,
};

/// How often something goes wrong, per mille.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub store_slow: u64,
    pub store_fails: u64,
    pub database_slow: u64,
    pub database_fails: u64,
    pub bus_slow: u64,
    pub bus_loses: u64,
    pub bus_doubles: u64,
    pub bus_reorders: u64,
    pub bus_refuses: u64,
    pub cluster_slow: u64,
    pub cluster_fails: u64,
    pub cluster_refuses: u64,
}

/// The rates of this moment, for everybody.
#[derive(Clone, Default)]
pub struct Weather(Arc<Mutex<Rates>>);

impl Weather {
    pub fn of<T>(&self, read: impl FnOnce(&Rates) -> T) -> T {
        read(&lock(&self.0))
    }

    pub fn set(&self, rates: Rates) {
        *lock(&self.0) = rates;
    }
}

/// What all seeds begin with: a migrated catalog with a team and two sites, and an empty repository.
pub struct Template {
    database: rusqlite::Connection,
    objects: Objects,
    keyring: Keyring,
    pub actor: Actor,
    sites: Vec<(SiteId, SiteKey)>,
}

const SITES: [&str; 2] = ["desk", "lab"];
/// Agents of each site.
const AGENTS: usize = 2;

pub fn location() -> Location {
    Location::Directory { path: "simulated".to_owned() }
}

impl Template {
    /// Made by the real migrations, in a file below `place`.
    pub fn new(place: &Path) -> anyhow::Result<Self> {
        let (sim, weather) = (Sim::new(0, false, None), Weather::default());
        let seams = sim.seams(WORLD);
        let path = place.join("catalog");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let keys: Vec<SiteKey> =
            [1u8, 2].iter().map(|n| SiteKey::parse(&format!("{n:02x}").repeat(32))).collect::<Result<_, _>>()?;
        let (actor, sites) = runtime.block_on(async {
            let catalog = Catalog::sqlite(&path, seams.clone()).await?;
            let actor = catalog.ensure_first_user("team", "ann").await?;
            let mut sites = Vec::new();
            for (name, key) in SITES.iter().zip(keys) {
                let id = catalog.ensure_site(name).await?;
                catalog.set_site_key(id, &key.public()?).await?;
                sites.push((id, key));
            }
            anyhow::Ok((actor, sites))
        })?;
        drop(runtime);
        let database = database::template(&path)?;
        let keyring = Keyring::generate(&seams);
        let store = Store::new(&sim, &weather, Objects::new());
        let made = Arc::new(Mutex::new(None));
        let (told, backend, ring) = (made.clone(), Arc::new(store.clone()), keyring.clone());
        sim.run(Box::pin(async move {
            let repository = Repository::create_over(backend, &location(), &ring, &seams).await;
            *lock(&told) = Some(repository.map(drop));
        }));
        let created = lock(&made).take();
        created.ok_or_else(|| anyhow::anyhow!("the repository was not made"))??;
        Ok(Self { database, objects: store.objects(), keyring, actor, sites })
    }
}

/// A coordinator that runs.
#[derive(Clone)]
struct Running {
    pid: Pid,
    stop: CancellationToken,
    coordinator: Arc<Mutex<Option<Arc<Coordinator>>>>,
}

/// An agent that runs, and what tells it to stop.
type RunningAgent = (Pid, CancellationToken);

/// Everything of one seed; cheap to clone.
#[derive(Clone)]
pub struct World {
    pub sim: Sim,
    pub weather: Weather,
    pub database: Arc<SimDatabase>,
    pub store: Store,
    pub actor: Actor,
    pub sites: Vec<(SiteId, SiteKey)>,
    pub clusters: Vec<Site>,
    pub bus: Arc<Bus>,
    keyring: Keyring,
    coordinators: Arc<Mutex<Vec<Option<Running>>>>,
    agents: Arc<Mutex<Vec<Option<RunningAgent>>>>,
    /// When the database's clock was set last.
    clock_set: Arc<Mutex<Option<Duration>>>,
    /// What people were told: the operations that their requests stand for.
    pub accepted: Arc<Mutex<BTreeMap<String, OperationId>>>,
}

/// What became of a seed.
pub struct Ended {
    pub wrong: Vec<String>,
    pub trace: u64,
    pub polls: u64,
    pub virtual_time: Duration,
    pub operations: BTreeMap<String, u64>,
}

pub fn run(template: &Template, seed: u64, loud: bool, planted: Option<String>) -> anyhow::Result<Ended> {
    let (sim, weather) = (Sim::new(seed, loud, planted), Weather::default());
    let database = Arc::new(SimDatabase::new(&sim, &weather, &template.database)?);
    let world = World {
        bus: Bus::new(&sim, &weather, database.clone()),
        store: Store::new(&sim, &weather, template.objects.clone()),
        database,
        actor: template.actor.clone(),
        sites: template.sites.clone(),
        clusters: SITES.iter().map(|_| Site::default()).collect(),
        keyring: template.keyring.clone(),
        coordinators: Arc::default(),
        agents: Arc::default(),
        clock_set: Arc::default(),
        accepted: Arc::default(),
        sim: sim.clone(),
        weather,
    };
    let all = world.clone();
    if !sim.run(Box::pin(async move { all.play().await })) {
        sim.wrong("nothing can go on".to_owned());
    }
    let operations = check::ends(&world);
    let (trace, polls) = sim.trace();
    let (wrong, virtual_time) = (sim.wrongs(), sim.now());
    world.end();
    Ok(Ended { wrong, trace, polls, virtual_time, operations })
}

impl World {
    async fn sleep(&self, millis: std::ops::Range<u64>) {
        let span = self.sim.chance(|chance| chance.within(millis));
        self.sim.sleep(Duration::from_millis(span)).await;
    }

    fn spawn(&self, name: &'static str, work: BoxFuture<()>) {
        self.sim.spawn(WORLD, name, work);
    }

    async fn play(&self) {
        for cluster in &self.clusters {
            for name in ["shop", "blog"] {
                let application = Application { name: name.to_owned(), version: 1, frozen: BTreeMap::new() };
                cluster.state().applications.insert(name.to_owned(), application);
            }
        }
        self.spawn("applications", Box::pin(self.clone().applications()));
        let coordinators = self.sim.chance(|chance| chance.within(1..4));
        (0..coordinators).for_each(|at| self.start_coordinator(at as usize));
        (0..SITES.len() * AGENTS).for_each(|at| self.start_agent(at));
        // Somebody saves before anything goes wrong, so that there is something to restore.
        people::ask_for(self, "first".to_owned(), Wish::Save { site: 0, application: "shop", freeze: false }).await;
        let calm = self.sim.chance(|chance| chance.within(0..8000));
        self.sim.sleep(Duration::from_millis(calm)).await;
        let storm = CancellationToken::new();
        let over = Arc::new(tokio::sync::Semaphore::new(0));
        let faults = self.storm(&storm, &over);
        let people = self.sim.chance(|chance| chance.within(2..6));
        let asked: Vec<_> = (0..people).map(|number| people::person(self.clone(), number)).collect();
        futures::future::join_all(asked).await;
        self.sleep(0..20_000).await;
        storm.cancel();
        // Each of them puts in order what it harmed.
        let _ = over.acquire_many(faults).await;
        self.heal();
        if !self.all_ended(Duration::from_secs(1500)).await {
            return;
        }
        check::after_recovery(self).await;
        people::clear(self).await;
        if self.all_ended(Duration::from_secs(1500)).await {
            check::after_clearing(self).await;
        }
    }

    /// Data changes all the time, but where its writes are held.
    async fn applications(self) {
        loop {
            self.sim.sleep(Duration::from_millis(900)).await;
            for cluster in &self.clusters {
                for application in cluster.state().applications.values_mut() {
                    application.version += u64::from(application.frozen.is_empty());
                }
            }
        }
    }

    fn start_coordinator(&self, at: usize) {
        let pid = self.sim.process(format!("coordinator-{at}"));
        self.sim.note(|| format!("coordinator-{at} starts"));
        let (stop, slot) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
        let running = Running { pid, stop: stop.clone(), coordinator: slot.clone() };
        {
            let mut all = lock(&self.coordinators);
            if all.len() <= at {
                all.resize(at + 1, None);
            }
            all[at] = Some(running);
        }
        let world = self.clone();
        let boot = async move {
            let (seams, database) = (world.sim.database_seams(pid), world.database.clone());
            let opened = loop {
                let store = Arc::new(world.store.clone());
                match Repository::open_over(store, &location(), &world.keyring, &seams).await {
                    Ok(opened) => break opened,
                    Err(_) => world.sim.sleep(Duration::from_millis(300)).await,
                }
            };
            let catalog = Catalog::driven(database, seams.clone());
            let Ok(vault) = Vault::new(&Secret32([7; 32])) else {
                return world.sim.wrong("a coordinator could not start".to_owned());
            };
            let coordinator = Coordinator::new(catalog, opened, vault, world.bus.coordinator(), seams);
            coordinator.start(&stop);
            *lock(&slot) = Some(coordinator);
        };
        self.sim.spawn(pid, "boot", Box::pin(boot));
    }

    fn start_agent(&self, at: usize) {
        let site = at / AGENTS;
        let pid = self.sim.process(format!("agent-{at}"));
        self.sim.note(|| format!("agent-{at} starts"));
        let seams = self.sim.seams(pid);
        let work = SimWork {
            sim: self.sim.clone(),
            weather: self.weather.clone(),
            pid,
            site: self.clusters[site].clone(),
            store: self.store.clone(),
            seams: seams.clone(),
        };
        let (id, key) = self.sites[site].clone();
        let cluster =
            Arc::new(move || -> BoxFuture<String> { Box::pin(std::future::ready(format!("cluster {site}"))) });
        let identity = Identity { site: id, key, cluster };
        let bus = self.bus.agent(pid, id, seams.clone());
        let stop = CancellationToken::new();
        match Worker::with(Arc::new(work), bus, identity, seams, Limits::default()) {
            Ok(worker) => self.sim.spawn(pid, "agent", Box::pin(worker.run(stop.clone()))),
            Err(error) => self.sim.wrong(format!("an agent could not start: {error}")),
        }
        let mut all = lock(&self.agents);
        if all.len() <= at {
            all.resize(at + 1, None);
        }
        all[at] = Some((pid, stop));
    }

    /// A clock that is put forward while no coordinator looks costs leases: nobody can know (`docs/reliability.md`).
    fn excuse_lost_leases(&self) {
        let count = lock(&self.coordinators).iter().flatten().count();
        let set = lock(&self.clock_set).is_some_and(|set| self.sim.now() < set + Duration::from_secs(8));
        if set && count < lock(&self.coordinators).len() {
            self.clusters.iter().for_each(Site::lease_may_be_lost);
        }
    }

    fn kill(&self, pid: Pid) {
        self.sim.kill(pid);
        self.clusters.iter().for_each(|cluster| cluster.process_ended(pid));
    }

    /// Has a coordinator do something as one of its requests; `None` where nobody answers.
    pub async fn at_coordinator<T: Send + 'static>(
        &self,
        act: impl FnOnce(Arc<Coordinator>) -> BoxFuture<T> + Send + 'static,
    ) -> Option<T> {
        let all: Vec<(Pid, Arc<Coordinator>)> = {
            let all = lock(&self.coordinators);
            let up = all.iter().flatten();
            up.filter_map(|one| Some((one.pid, lock(&one.coordinator).clone()?))).collect()
        };
        let one = self.sim.chance(|chance| chance.below(all.len() as u64));
        let (pid, coordinator) = all.get(one as usize)?.clone();
        let (done, answer) = oneshot::channel();
        let work = async move {
            // Nobody waits any more.
            let _ = done.send(act(coordinator).await);
        };
        self.sim.spawn(pid, "request", Box::pin(work));
        self.sim.seams(WORLD).timeout(Duration::from_secs(30), answer).await?.ok()
    }

    /// Begins what goes wrong in this seed; how many faults there are.
    fn storm(&self, storm: &CancellationToken, over: &Arc<tokio::sync::Semaphore>) -> u32 {
        let rates = self.sim.chance(|chance| {
            let mut up_to = |most: u64| if chance.per_mille(350) { chance.within(0..most) } else { 0 };
            Rates {
                store_slow: up_to(60),
                store_fails: up_to(25),
                database_slow: up_to(25),
                database_fails: up_to(25),
                bus_slow: up_to(150),
                bus_loses: up_to(150),
                bus_doubles: up_to(200),
                bus_reorders: up_to(300),
                bus_refuses: up_to(150),
                cluster_slow: up_to(60),
                cluster_fails: up_to(80),
                cluster_refuses: up_to(10),
            }
        });
        self.sim.note(|| format!("{rates:?}"));
        self.weather.set(rates);
        let mut count = 0;
        let mut begin = |name: &'static str, chance_of: u64, fault: BoxFuture<()>| {
            if self.sim.chance(|chance| chance.per_mille(chance_of)) {
                let (storm, over) = (storm.clone(), over.clone());
                count += 1;
                let _ = &storm;
                let work = async move {
                    fault.await;
                    over.add_permits(1);
                };
                self.sim.spawn(WORLD, name, Box::pin(work));
            }
        };
        begin("fault.coordinators", 500, Box::pin(self.clone().coordinators_end(storm.clone())));
        begin("fault.agents", 500, Box::pin(self.clone().agents_end(storm.clone())));
        begin("fault.freezes", 300, Box::pin(self.clone().freezes(storm.clone())));
        begin("fault.partitions", 300, Box::pin(self.clone().partitions(storm.clone())));
        begin("fault.clocks", 250, Box::pin(self.clone().clocks(storm.clone())));
        begin("fault.disk", 200, Box::pin(self.clone().disk(storm.clone())));
        begin("fault.purges", 250, Box::pin(self.clone().purges(storm.clone())));
        count
    }

    /// Sleeps for a while within the storm; `false` when it is over.
    async fn rages(&self, storm: &CancellationToken, millis: std::ops::Range<u64>) -> bool {
        let span = self.sim.chance(|chance| chance.within(millis));
        self.sim.seams(WORLD).sleep_unless(storm, Duration::from_millis(span)).await
    }

    async fn coordinators_end(self, storm: CancellationToken) {
        while self.rages(&storm, 500..15_000).await {
            let count = lock(&self.coordinators).len() as u64;
            let (at, politely) = self.sim.chance(|chance| (chance.below(count) as usize, chance.per_mille(300)));
            let Some(running) = lock(&self.coordinators)[at].take() else { continue };
            self.sim.note(|| format!("coordinator-{at} ends, politely: {politely}"));
            if politely {
                running.stop.cancel();
                self.sleep(1..3000).await;
            }
            self.kill(running.pid);
            self.excuse_lost_leases();
            self.rages(&storm, 100..12_000).await;
            self.start_coordinator(at);
        }
    }

    async fn agents_end(self, storm: CancellationToken) {
        while self.rages(&storm, 300..12_000).await {
            let count = lock(&self.agents).len() as u64;
            let (at, politely) = self.sim.chance(|chance| (chance.below(count) as usize, chance.per_mille(300)));
            let Some((pid, stop)) = lock(&self.agents)[at].take() else { continue };
            self.sim.note(|| format!("agent-{at} ends, politely: {politely}"));
            if politely {
                stop.cancel();
                self.sleep(1..25_000).await;
            }
            self.kill(pid);
            self.rages(&storm, 100..20_000).await;
            self.start_agent(at);
        }
    }

    async fn freezes(self, storm: CancellationToken) {
        while self.rages(&storm, 1000..15_000).await {
            let pids: Vec<Pid> = {
                let coordinators = lock(&self.coordinators).iter().flatten().map(|one| one.pid).collect::<Vec<_>>();
                let agents = lock(&self.agents).iter().flatten().map(|(pid, _)| *pid).collect::<Vec<_>>();
                coordinators.into_iter().chain(agents).collect()
            };
            let one = self.sim.chance(|chance| chance.below(pids.len() as u64));
            let Some(pid) = pids.get(one as usize) else { continue };
            self.sim.note(|| format!("{pid:?} is frozen"));
            self.sim.freeze(*pid, true);
            self.clusters.iter().for_each(|cluster| cluster.process_frozen(*pid));
            let set = lock(&self.clock_set).is_some_and(|set| self.sim.now() < set + Duration::from_secs(8));
            if set {
                self.clusters.iter().for_each(Site::lease_may_be_lost);
            }
            self.rages(&storm, 1000..40_000).await;
            self.sim.note(|| format!("{pid:?} goes on"));
            self.sim.freeze(*pid, false);
        }
    }

    async fn partitions(self, storm: CancellationToken) {
        while self.rages(&storm, 500..15_000).await {
            let (at, alone) = self.sim.chance(|chance| (chance.below(self.sites.len() as u64), chance.per_mille(600)));
            if alone {
                let agents: Vec<Pid> = lock(&self.agents).iter().flatten().map(|(pid, _)| *pid).collect();
                let one = self.sim.chance(|chance| chance.below(agents.len() as u64));
                let Some(agent) = agents.get(one as usize) else { continue };
                self.sim.note(|| format!("{agent:?} is cut off"));
                self.bus.cut_off_alone(*agent, true);
                self.rages(&storm, 500..45_000).await;
                self.sim.note(|| format!("{agent:?} is there again"));
                self.bus.cut_off_alone(*agent, false);
                continue;
            }
            let site = self.sites[at as usize].0;
            self.sim.note(|| format!("{} is cut off", SITES[at as usize]));
            self.bus.cut_off(site, true);
            self.rages(&storm, 500..40_000).await;
            self.sim.note(|| format!("{} is there again", SITES[at as usize]));
            self.bus.cut_off(site, false);
        }
    }

    async fn clocks(self, storm: CancellationToken) {
        while self.rages(&storm, 1000..20_000).await {
            let ahead = self.sim.chance(|chance| chance.below(4 * 86_400_000)) as i64 - 2 * 86_400_000;
            let pids: Vec<Pid> = lock(&self.agents).iter().flatten().map(|(pid, _)| *pid).collect();
            let one = self.sim.chance(|chance| chance.below(pids.len() as u64 + 1));
            match pids.get(one as usize) {
                Some(pid) => self.sim.set_clock(*pid, ahead),
                None => {
                    self.sim.note(|| format!("the database's clock is set: {ahead} ms"));
                    self.sim.set_database_clock(ahead);
                    *lock(&self.clock_set) = Some(self.sim.now());
                    self.excuse_lost_leases();
                }
            }
        }
    }

    async fn disk(self, storm: CancellationToken) {
        while self.rages(&storm, 1000..15_000).await {
            let room = self.sim.chance(|chance| chance.below(6000));
            self.sim.note(|| format!("the store has room for {room} bytes"));
            self.store.set_room(Some(room));
            self.rages(&storm, 500..20_000).await;
            self.store.set_room(None);
        }
    }

    async fn purges(self, storm: CancellationToken) {
        while self.rages(&storm, 500..8000).await {
            let at = self.sim.chance(|chance| chance.below(self.sites.len() as u64 + 1));
            match self.sites.get(at as usize) {
                Some((site, _)) => self.bus.purge(*site),
                None => self.bus.lose_requests(),
            }
        }
    }

    /// All is well, and everybody is there again.
    fn heal(&self) {
        self.sim.note(|| "all is well again".to_owned());
        self.weather.set(Rates::default());
        self.store.set_room(None);
        for (site, _) in &self.sites {
            self.bus.cut_off(*site, false);
        }
        let down: Vec<usize> = positions(&lock(&self.coordinators));
        down.into_iter().for_each(|at| self.start_coordinator(at));
        let down: Vec<usize> = positions(&lock(&self.agents));
        down.into_iter().for_each(|at| self.start_agent(at));
    }

    /// Waits until every operation has ended.
    async fn all_ended(&self, at_most: Duration) -> bool {
        let begun = self.sim.now();
        loop {
            let open = self.database.ask("SELECT id FROM operations WHERE state IN ('running', 'undoing')");
            if open.is_empty() {
                return true;
            }
            if self.sim.now() - begun > at_most {
                for task in self.database.ask(
                    "SELECT operations.kind || ' ' || label || ' ' || tasks.state || ' attempt ' || attempt || ' lease ' || \
                     coalesce(lease_until, '-') || ' not before ' || not_before FROM tasks JOIN operations ON \
                     operations.id = operation WHERE tasks.state NOT IN ('succeeded', 'failed', 'cancelled')",
                ) {
                    let now = self.sim.database_seams(WORLD).clock.now().0;
                    self.sim.note(|| format!("not over: {task} (now {now})"));
                }
                self.sim.wrong("an operation does not end".to_owned());
                return false;
            }
            self.sim.sleep(Duration::from_millis(1000)).await;
        }
    }

    /// A repository of our own, to look at.
    pub async fn repository(&self) -> Result<Repository, ocopea_repository::Error> {
        let store = Arc::new(self.store.clone());
        Repository::open_over(store, &location(), &self.keyring, &self.sim.seams(WORLD)).await
    }

    /// A catalog of our own, to look at.
    pub fn catalog(&self) -> Catalog {
        Catalog::driven(self.database.clone(), self.sim.database_seams(WORLD))
    }

    /// Lets go of everything: processes refer to each other.
    fn end(&self) {
        let coordinators: Vec<Running> = lock(&self.coordinators).drain(..).flatten().collect();
        for running in coordinators {
            self.sim.kill(running.pid);
            lock(&running.coordinator).take();
        }
        let agents: Vec<RunningAgent> = lock(&self.agents).drain(..).flatten().collect();
        agents.into_iter().for_each(|(pid, _)| self.sim.kill(pid));
        self.sim.kill(WORLD);
    }
}

fn positions<T>(slots: &[Option<T>]) -> Vec<usize> {
    slots.iter().enumerate().filter(|(_, slot)| slot.is_none()).map(|(at, _)| at).collect()
}
