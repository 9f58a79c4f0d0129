//! The connection, transactions, and what a text may hold.
//!
//! Transactions lock in one order (operation, then its tasks), so that none waits for another in a circle, and each
//! counts on read-committed isolation only: what it decides on, it has locked or makes a condition of its update.

use std::path::Path;

use ocopea_protocol::seams::Seams;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseBackend, DatabaseConnection, DatabaseTransaction, DbErr,
    TransactionTrait, sea_query::OnConflict,
};
use sea_orm_migration::MigratorTrait;

use crate::migrations::Migrator;

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
    /// The database itself.
    #[error("the catalog's database failed: {0}")]
    Database(#[from] DbErr),
}

impl CatalogError {
    /// Whether the database has no room left.
    pub fn is_full(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let words = error.to_string();
        ["disk is full", "No space left", "disk I/O error"].iter().any(|word| words.contains(word))
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
    /// Clock and chance.
    pub seams: Seams,
}

/// A transaction of the catalog.
pub struct Transaction {
    pub(crate) inner: DatabaseTransaction,
    /// Clock and chance.
    pub seams: Seams,
}

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
        Self::open(Database::connect(options).await?, seams).await
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

    /// Opens a PostgreSQL database.
    pub async fn postgresql(url: &str, seams: Seams) -> Result<Self, CatalogError> {
        let mut options = ConnectOptions::new(url.to_owned());
        options.max_connections(16).sqlx_logging(false);
        Self::open(Database::connect(options).await?, seams).await
    }

    async fn open(database: DatabaseConnection, seams: Seams) -> Result<Self, CatalogError> {
        // All or nothing: a first start that is killed can be repeated. Several coordinators that start at once take
        // turns: the lock ends with the transaction.
        let transaction = database.begin().await?;
        if database.get_database_backend() == DatabaseBackend::Postgres {
            transaction.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATING})")).await?;
        }
        Migrator::up(&transaction, None).await?;
        transaction.commit().await?;
        Ok(Self { database, seams })
    }

    /// Begins a transaction; dropping it rolls back.
    pub async fn begin(&self) -> Result<Transaction, CatalogError> {
        Ok(Transaction { inner: self.database.begin().await?, seams: self.seams.clone() })
    }
}

impl Transaction {
    /// Makes it so.
    pub async fn commit(self) -> Result<(), CatalogError> {
        Ok(self.inner.commit().await?)
    }
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
