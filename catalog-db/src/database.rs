//! The connection, and transactions that are tried again when the database asks for it.

use std::path::Path;

use ocopea_protocol::seams::Seams;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait,
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
        let url = format!("sqlite://{}?mode=rwc", path.display());
        let mut options = ConnectOptions::new(url);
        // One writer is all that SQLite has: one connection makes waiting orderly instead of an error.
        options.max_connections(1).min_connections(1).sqlx_logging(false);
        let database = Database::connect(options).await?;
        for pragma in ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000"] {
            database.execute_unprepared(&format!("PRAGMA {pragma}")).await?;
        }
        Self::open(database, seams).await
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
        Migrator::up(&database, None).await?;
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
