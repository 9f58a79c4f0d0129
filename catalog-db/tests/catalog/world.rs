//! A catalog on one of the engines, a clock that the test moves, and short ways to fill it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use ocopea_catalog_db::{
    Catalog, CatalogError, Transaction,
    access::Actor,
    environments::Environment,
    images::Image,
    model::{EnvironmentState, OperationState, Role},
    operations::Operation,
    tasks::{NewTask, Task},
};
use ocopea_protocol::{
    ids::{EnvironmentId, ImageId, InstanceId, OperationId, SiteId, TeamId},
    names::Digest,
    seams::{BoxFuture, Clock, Entropy, Seams},
    task::Claimed,
    time::Timestamp,
};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, QueryResult, Statement};
use tempfile::TempDir;

use crate::postgres::Postgres;

/// Stands still until the test moves it.
pub struct TestClock(AtomicI64);

impl TestClock {
    pub fn advance(&self, span: Duration) {
        self.0.fetch_add(span.as_millis() as i64, Ordering::SeqCst);
    }

    pub fn back(&self, span: Duration) {
        self.0.fetch_sub(span.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst) as u64)
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        // Only before a transaction is done again, which no test decides by how long it took.
        Seams::real(Default::default()).clock.sleep(span)
    }
}

/// Different every time, the same in every run.
pub struct Numbers(pub AtomicU64);

impl Numbers {
    pub fn next(&self) -> u64 {
        let mut x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub fn below(&self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

impl Entropy for Numbers {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

pub struct World {
    pub catalog: Catalog,
    pub clock: Arc<TestClock>,
    pub numbers: Arc<Numbers>,
    pub url: String,
    raw: DatabaseConnection,
    pub server: Option<(Arc<Server>, String)>,
    _place: Option<TempDir>,
}

pub fn seams() -> (Seams, Arc<TestClock>, Arc<Numbers>) {
    let clock = Arc::new(TestClock(AtomicI64::new(1_700_000_000_000)));
    let numbers = Arc::new(Numbers(AtomicU64::new(42)));
    let real = Seams::real(Default::default());
    (Seams { clock: clock.clone(), entropy: numbers.clone(), ..real }, clock, numbers)
}

/// One PostgreSQL server for all tests that run at a time; gone, with its files, when the last of them ends.
pub struct Server {
    postgres: Postgres,
    databases: AtomicU64,
    // The server dies with the thread that started it: that one waits until this is dropped.
    _thread: std::sync::mpsc::Sender<()>,
}

impl std::ops::Deref for Server {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        &self.postgres
    }
}

impl Server {
    fn shared() -> Arc<Self> {
        static CURRENT: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut current = CURRENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = current.upgrade() {
            return server;
        }
        let (alive, wait) = std::sync::mpsc::channel::<()>();
        let (started, server) = std::sync::mpsc::channel();
        let start = move || {
            started.send(Postgres::start(&[("max_connections", "400")])).unwrap();
            let _ = wait.recv();
        };
        std::thread::Builder::new().spawn(start).unwrap();
        let postgres = server.recv().unwrap();
        let server = Arc::new(Server { postgres, databases: AtomicU64::new(0), _thread: alive });
        *current = Arc::downgrade(&server);
        server
    }

    pub fn new_database(&self) -> String {
        let name = format!("catalog_{}", self.databases.fetch_add(1, Ordering::SeqCst));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    pub fn url(&self, database: &str) -> String {
        let password = crate::postgres::PASSWORD.replace('\'', "%27").replace(' ', "%20").replace('"', "%22");
        format!("postgres://postgres:{password}@127.0.0.1:{}/{database}", self.port)
    }
}

impl World {
    pub async fn sqlite() -> Self {
        let place = tempfile::tempdir().unwrap();
        // A name that a URL would misread.
        let path = place.path().join("the catalog?100%#1.sqlite");
        let url = format!("sqlite:{}", path.display());
        let (seams, clock, numbers) = seams();
        let catalog = Catalog::connect(&url, seams).await.unwrap();
        let link = place.path().join("raw");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let raw = Database::connect(format!("sqlite://{}", link.display())).await.unwrap();
        Self { catalog, clock, numbers, url, raw, server: None, _place: Some(place) }
    }

    pub async fn postgresql() -> Self {
        let server = Server::shared();
        let database = server.new_database();
        let url = server.url(&database);
        let (seams, clock, numbers) = seams();
        let catalog = Catalog::simulated(&url, seams).await.unwrap();
        let raw = Database::connect(&url).await.unwrap();
        Self { catalog, clock, numbers, url, raw, server: Some((server, database)), _place: None }
    }

    /// Ends every connection to this world's PostgreSQL database, as a restart of the server does.
    pub fn disconnect(&self) {
        let (server, database) = self.server.as_ref().unwrap();
        let ended = server.psql(
            "postgres",
            &format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'"),
        );
        assert!(ended.parse::<u32>().unwrap() > 0);
    }

    /// Another connection to the same catalog, as a second coordinator has it.
    pub async fn again(&self) -> Result<Catalog, CatalogError> {
        Catalog::simulated(&self.url, self.catalog.seams.clone()).await
    }

    /// Rows, asked for around the catalog.
    pub async fn rows(&self, sql: &str) -> Vec<QueryResult> {
        let statement = Statement::from_string(self.raw.get_database_backend(), sql.to_owned());
        self.raw.query_all_raw(statement).await.unwrap()
    }

    /// Does something around the catalog.
    pub async fn execute(&self, sql: &str) {
        self.raw.execute_unprepared(sql).await.unwrap();
    }

    /// One number, asked for around the catalog.
    pub async fn number(&self, sql: &str) -> i64 {
        self.rows(sql).await[0].try_get_by_index(0).unwrap()
    }

    pub async fn admin(&self, team: &str) -> Actor {
        self.catalog.ensure_member(team, &format!("admin of {team}"), Role::Administrator).await.unwrap()
    }

    pub fn instance(&self) -> InstanceId {
        InstanceId::generate(&self.catalog.seams)
    }

    pub fn image(&self, team: TeamId, name: &str) -> Image {
        let mut record = [0u8; 32];
        self.catalog.seams.entropy.fill(&mut record);
        Image {
            id: ImageId::generate(&self.catalog.seams),
            team,
            record: Digest(record),
            name: name.to_owned(),
            application: "shop".to_owned(),
            site: "desk".to_owned(),
            creator: "ann".to_owned(),
            comment: String::new(),
            bytes: 10,
            new_bytes: 4,
            created: self.catalog.seams.clock.now(),
            repository: None,
            labels: BTreeMap::new(),
            body: "{}".to_owned(),
        }
    }

    pub async fn add_image(&self, image: &Image) {
        let transaction = self.catalog.begin().await.unwrap();
        transaction.add_image(image).await.unwrap();
        transaction.commit().await.unwrap();
    }

    pub fn environment(&self, team: TeamId, site: SiteId, name: &str) -> Environment {
        Environment {
            id: EnvironmentId::generate(&self.catalog.seams),
            team,
            name: name.to_owned(),
            site,
            image: ImageId::generate(&self.catalog.seams),
            record: Digest([7; 32]),
            state: EnvironmentState::Creating,
            url: None,
            owner: "ann".to_owned(),
            placements: Vec::new(),
            created: self.catalog.seams.clock.now(),
        }
    }

    pub fn operation(&self, team: TeamId) -> Operation {
        Operation {
            id: OperationId::generate(&self.catalog.seams),
            team,
            kind: "save".to_owned(),
            state: OperationState::Running,
            title: "save desk/shop".to_owned(),
            creator: "ann".to_owned(),
            site: None,
            image: None,
            environment: None,
            repository: None,
            request: "{}".to_owned(),
            context: "{}".to_owned(),
            result: None,
            failure: None,
            cancel_requested: None,
            stage: 0,
            version: 1,
            created: self.catalog.seams.clock.now(),
            ended: None,
        }
    }

    /// An operation with these tasks, the ready ones offered.
    pub async fn running(&self, team: TeamId, tasks: &[NewTask]) -> Operation {
        let operation = self.operation(team);
        let transaction = self.catalog.begin().await.unwrap();
        transaction.add_operation(&operation).await.unwrap();
        transaction.add_tasks(operation.id, tasks).await.unwrap();
        transaction.commit().await.unwrap();
        operation
    }

    pub async fn only_task(&self, operation: &Operation) -> Task {
        let mut tasks = self.catalog.tasks(operation.team, operation.id).await.unwrap();
        assert_eq!(tasks.len(), 1);
        tasks.remove(0)
    }
}

pub fn new_task(label: &str, site: Option<SiteId>, needs: &[&str]) -> NewTask {
    NewTask {
        label: label.to_owned(),
        kind: "copy-data".to_owned(),
        site,
        undo: false,
        most_attempts: 3,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        spec: "{}".to_owned(),
    }
}

pub const LEASE: Duration = Duration::from_secs(20);

/// Claims in a transaction of its own.
pub async fn claim(catalog: &Catalog, task: &Task, instance: InstanceId) -> Option<Claimed> {
    let transaction = catalog.begin().await.unwrap();
    let claimed = transaction.claim(task.id, task.site, instance, LEASE).await.unwrap();
    transaction.commit().await.unwrap();
    claimed.map(|task| claimed_of(&task, instance))
}

pub fn claimed_of(task: &Task, instance: InstanceId) -> Claimed {
    Claimed { task: task.id, operation: task.operation, attempt: task.attempt, instance }
}

/// Does something in a transaction of its own.
pub async fn commit<T>(catalog: &Catalog, work: impl AsyncFnOnce(&Transaction) -> T) -> T {
    let transaction = catalog.begin().await.unwrap();
    let answer = work(&transaction).await;
    transaction.commit().await.unwrap();
    answer
}
