//! The connection, transactions, and what a text may hold.
//!
//! Transactions lock in one order (operation, then its tasks), so that none waits for another in a circle, and each
//! counts on read-committed isolation only: what it decides on, it has locked or makes a condition of its update.

use std::{path::Path, sync::Arc, time::Duration};

use ocopea_protocol::seams::Seams;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr,
    RuntimeErr, TransactionTrait,
    sea_query::OnConflict,
    sqlx::{self, postgres::PgDatabaseError},
};
use sea_orm_migration::MigratorTrait;

use crate::{
    clock::DatabaseClock,
    driver::{Committed, Driver},
    migrations::Migrator,
};

/// Why the catalog could not do it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// What was asked for isn't there (or belongs to another team).
    #[error("{what} {name:?} was not found")]
    NotFound {
        /// `image`, `environment` …
        what: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// Several things are called so.
    #[error("{} {what}s are called {name:?}: {}", .ids.len(), .ids.join(", "))]
    Ambiguous {
        /// `image` …
        what: &'static str,
        /// As it was asked for.
        name: String,
        /// Their ids, newest first.
        ids: Vec<String>,
    },
    /// It contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// It can't be taken as it is.
    #[error("{what} can't be taken: {why}")]
    Invalid {
        /// `the image's name` …
        what: &'static str,
        /// Why, and what would be taken.
        why: &'static str,
    },
    /// What is stored can't be understood.
    #[error("the catalog holds something that this program can't read: {0}")]
    Malformed(String),
    /// A newer version of this program was here.
    #[error(
        "the catalog belongs to a newer version of Ocopea (its step {0} is unknown to this one): start that version, or \
         restore a backup that was made before it ran"
    )]
    Newer(String),
    /// Another coordinator leads: what this one wanted to do as the leader isn't done.
    #[error("another coordinator leads now: nothing was changed")]
    Superseded,
    /// The connection was lost between asking for the commit and its answer.
    #[error("the connection to the catalog's database was lost at a commit, which may have happened: {0}")]
    InDoubt(#[source] DbErr),
    /// The database itself.
    #[error("the catalog's database failed: {0}")]
    Database(#[from] DbErr),
}

/// What the database said, if it was the database that said it.
fn said(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

impl CatalogError {
    /// Whether the database has no room left.
    pub fn is_full(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let words = error.to_string();
        ["disk is full", "No space left", "disk I/O error"].iter().any(|word| words.contains(word))
    }

    /// Whether nothing was changed, and the same transaction may well succeed if it is done again: it lost against
    /// another one, or its connection.
    pub fn is_passing(&self) -> bool {
        let Self::Database(error) = self else { return false };
        match said(error) {
            Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
            Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| match &*code {
                // PostgreSQL: serialization failure, deadlock, lock timeout, shutdown, crash, start, idle for too long.
                "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03" | "25P03" => true,
                // SQLite: busy, locked, and their variants.
                "5" | "6" | "261" | "262" | "517" | "773" => true,
                code => code.len() == 5 && code.starts_with("08"),
            }),
            _ => false,
        }
    }

    pub(crate) fn not_found(what: &'static str, name: impl ToString) -> Self {
        // As much of it as people need to recognise it: it comes from outside.
        Self::NotFound { what, name: name.to_string().chars().take(80).collect() }
    }
}

impl From<serde_json::Error> for CatalogError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The number of the advisory lock under which a PostgreSQL database is migrated; any that nobody else uses.
const MIGRATING: i64 = 0x6f63_6f70_6561;

/// A row that is there already is left as it is, whichever constraint says so; the insert then counts no row.
pub(crate) fn unless_there() -> OnConflict {
    OnConflict::new().do_nothing().to_owned()
}

/// Whether both engines can hold this text: PostgreSQL's can't hold NUL.
pub(crate) fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

/// Refuses texts that one of the engines can't hold, so that both take and refuse the same.
pub(crate) fn storable(what: &'static str, texts: &[&str]) -> Result<(), CatalogError> {
    if texts.iter().all(|text| is_storable(text)) {
        return Ok(());
    }
    Err(CatalogError::Invalid { what, why: "it holds a NUL character" })
}

/// The catalog. Cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) database: DatabaseConnection,
    /// A database that the caller brought.
    driver: Option<Arc<dyn Driver>>,
    /// Whether other coordinators may work on it, too.
    shared: bool,
    /// The server's clock, where several coordinators share it.
    clock: Option<Arc<DatabaseClock>>,
    /// Tells hints that were written through here from those of other coordinators.
    pub(crate) origin: uuid::Uuid,
    /// Clock and chance. On PostgreSQL, what time it is is the server's word.
    pub seams: Seams,
}

/// A transaction of the catalog.
pub struct Transaction {
    pub(crate) inner: DatabaseTransaction,
    driver: Option<Arc<dyn Driver>>,
    pub(crate) origin: uuid::Uuid,
    /// Clock and chance.
    pub seams: Seams,
}

/// Whether the database has rows that several processes lock.
pub(crate) fn is_shared(connection: &impl ConnectionTrait) -> bool {
    connection.get_database_backend() == DatabaseBackend::Postgres
}

/// Connections of one coordinator.
const CONNECTIONS: u32 = 16;
/// How long a caller waits for a connection: one that is being restarted is back by then, or said to be away.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the server ends by itself (a coordinator that is frozen in the midst of a transaction holds up nobody for longer), and
/// that it plans for what is asked: a label that every image has is looked for in another way than one that few have.
const SETTINGS: [(&str, &str); 4] = [
    ("idle_in_transaction_session_timeout", "10s"),
    ("lock_timeout", "15s"),
    ("statement_timeout", "60s"),
    ("plan_cache_mode", "force_custom_plan"),
];
/// Migrations wait for each other, and may have much to do.
const UNLIMITED: &str = "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0";

impl Catalog {
    /// Opens (and makes) a SQLite file: write-ahead log, every commit on disk.
    pub async fn sqlite(path: &Path, seams: Seams) -> Result<Self, CatalogError> {
        let path = path.to_owned();
        // The path is set below, as it is: within a URL, some characters would mean something.
        let mut options = ConnectOptions::new("sqlite://catalog");
        // One writer is all that SQLite has: one connection makes waiting orderly instead of an error.
        options.max_connections(1).min_connections(1).sqlx_logging(false);
        // For every connection that the pool makes, not only for its first.
        options.map_sqlx_sqlite_opts(move |options| {
            options
                .filename(&path)
                .create_if_missing(true)
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "FULL")
                .pragma("foreign_keys", "ON")
                .pragma("busy_timeout", "10000")
        });
        Self::open(Database::connect(options).await?, None, seams).await
    }

    /// Opens what `url` names: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`. Everything behind this call
    /// is the same for both.
    pub async fn connect(url: &str, seams: Seams) -> Result<Self, CatalogError> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            return Self::sqlite(Path::new(path), seams).await;
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::postgresql(url, seams).await;
        }
        // The address may hold a password: it isn't repeated.
        Err(CatalogError::Invalid {
            what: "the catalog's address",
            why: "sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE is expected",
        })
    }

    /// Opens a PostgreSQL database, which several coordinators may share: its clock is that of all of them.
    pub async fn postgresql(url: &str, seams: Seams) -> Result<Self, CatalogError> {
        let clock = Arc::new(DatabaseClock::new(Arc::clone(&seams.clock)));
        let seams = Seams { clock: Arc::clone(&clock) as _, ..seams };
        Self::open(Self::connect_to_server(url).await?, Some(clock), seams).await
    }

    /// As [`Self::connect`], under a clock that the caller moves, whatever the server's says.
    pub async fn simulated(url: &str, seams: Seams) -> Result<Self, CatalogError> {
        if url.starts_with("sqlite:") {
            return Self::connect(url, seams).await;
        }
        Self::open(Self::connect_to_server(url).await?, None, seams).await
    }

    /// On a database that the caller brings, migrated by [`Self::sqlite`] before. Several catalogs may share it.
    pub fn driven(driver: Arc<dyn Driver>, seams: Seams) -> Self {
        let database = crate::driver::connect(Arc::clone(&driver));
        let origin = seams.uuid();
        Self { database, driver: Some(driver), shared: true, clock: None, origin, seams }
    }

    async fn connect_to_server(url: &str) -> Result<DatabaseConnection, CatalogError> {
        let mut options = ConnectOptions::new(url.to_owned());
        options.max_connections(CONNECTIONS).acquire_timeout(PATIENCE).sqlx_logging(false);
        options.map_sqlx_postgres_opts(|options| options.application_name("ocopea").options(SETTINGS));
        Ok(Database::connect(options).await?)
    }

    async fn open(
        database: DatabaseConnection,
        clock: Option<Arc<DatabaseClock>>,
        seams: Seams,
    ) -> Result<Self, CatalogError> {
        // All or nothing: a first start that is killed can be repeated. Several coordinators that start at once take
        // turns: the lock ends with the transaction.
        let transaction = database.begin().await?;
        if is_shared(&transaction) {
            transaction.execute_unprepared(UNLIMITED).await?;
            transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATING})")).await?;
        }
        let known: Vec<String> = Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
        let done = Migrator::get_migration_models(&transaction).await?;
        if let Some(unknown) = done.into_iter().find(|done| !known.contains(&done.version)) {
            return Err(CatalogError::Newer(unknown.version));
        }
        Migrator::up(&transaction, None).await?;
        if let Some(clock) = &clock {
            clock.keep(&transaction).await?;
        }
        transaction.commit().await?;
        let (origin, shared) = (seams.uuid(), is_shared(&database));
        Ok(Self { database, driver: None, shared, clock, origin, seams })
    }

    /// Whether other coordinators may work on the same catalog.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// By how much two coordinators' times of one moment may differ.
    pub fn clock_error(&self) -> Duration {
        self.clock.as_ref().map_or(Duration::ZERO, |clock| clock.error())
    }

    /// Begins a transaction; dropping it rolls back.
    pub async fn begin(&self) -> Result<Transaction, CatalogError> {
        if let Some(driver) = &self.driver {
            driver.pause().await;
        }
        let inner = self.database.begin().await?;
        if let Some(clock) = &self.clock {
            clock.keep(&inner).await?;
        }
        Ok(Transaction { inner, driver: self.driver.clone(), origin: self.origin, seams: self.seams.clone() })
    }

    /// Does `work`, which is one whole transaction or none, and does it again while what stopped it passes: another
    /// transaction that was faster, a connection that was cut. What may have happened is not done again.
    pub async fn again<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T, CatalogError>
    where
        F: Future<Output = Result<T, CatalogError>>,
    {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match work().await {
                Err(error) if error.is_passing() => {
                    tracing::debug!(%error, "a transaction is done again");
                    self.seams.clock.sleep(self.seams.jittered(pause)).await;
                    pause *= 2;
                }
                answer => return answer,
            }
        }
        work().await
    }
}

/// How often a transaction is tried, and the first pause in between, which doubles: some two seconds in all.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(50);

impl Transaction {
    /// Makes it so.
    pub async fn commit(self) -> Result<(), CatalogError> {
        self.inner.commit().await.map_err(|error| match said(&error) {
            Some(sqlx::Error::Database(answer))
                if answer.try_downcast_ref::<PgDatabaseError>().is_none_or(|answer| !ends(answer)) =>
            {
                CatalogError::Database(error)
            }
            _ => CatalogError::InDoubt(error),
        })?;
        let Some(driver) = self.driver else { return Ok(()) };
        let committed = driver.committed();
        driver.pause().await;
        match committed {
            Committed::NotDone => Err(CatalogError::Database(crate::driver::cut())),
            Committed::InDoubt => Err(CatalogError::InDoubt(crate::driver::cut())),
            Committed::Done => Ok(()),
        }
    }
}

/// Whether this is the last that a connection said: what it did before is then not known.
fn ends(answer: &PgDatabaseError) -> bool {
    use sqlx::postgres::PgSeverity::{Fatal, Panic};
    matches!(answer.severity(), Fatal | Panic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_connection_to_sqlite_is_fully_synced_and_holds_references() {
        let place = tempfile::tempdir().unwrap();
        let catalog = Catalog::sqlite(&place.path().join("catalog"), Seams::real(Default::default())).await.unwrap();
        let pool = catalog.database.get_sqlite_connection_pool();
        for round in 0..2 {
            let mut connection = pool.acquire().await.unwrap();
            for (pragma, expected) in [("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 10_000)] {
                let sql = sea_orm::sqlx::AssertSqlSafe(format!("PRAGMA {pragma}"));
                let found: i64 = sea_orm::sqlx::query_scalar(sql).fetch_one(&mut *connection).await.unwrap();
                assert_eq!(found, expected, "{pragma} in round {round}");
            }
            // The pool makes another one, as it does when one is old.
            connection.close().await.unwrap();
        }
    }
}
