//! Several coordinators: whose hint it is, and how far an agent's process has counted, whoever answered it. And pages of very
//! many images on the server that they share.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

const STATEMENTS: &[&str] = &[
    "ALTER TABLE outbox ADD COLUMN origin UUID",
    "ALTER TABLE instances ADD COLUMN turn BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE instances ADD COLUMN mark BIGINT NOT NULL DEFAULT 0",
    "CREATE INDEX IF NOT EXISTS images_by_site ON images (team, site, id) WHERE deleting IS NULL",
];

/// Words within texts. The extension is part of PostgreSQL's distribution, but may be neither installed nor allowed: then
/// rare words are looked for in every row, as on SQLite.
const ON_POSTGRESQL: &str = "DO $$ BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
    CREATE INDEX IF NOT EXISTS images_by_text ON images USING gin (search gin_trgm_ops);
EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE 'words of images are found without an index: %', SQLERRM;
END $$";

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for statement in STATEMENTS {
            connection.execute_unprepared(statement).await?;
        }
        if manager.get_database_backend() == DbBackend::Postgres {
            connection.execute_unprepared(ON_POSTGRESQL).await?;
        }
        Ok(())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration("the catalog is never migrated downwards: restore a backup instead".to_owned()))
    }
}
