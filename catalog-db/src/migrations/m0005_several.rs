//! Several coordinators: whose hint it is, and how far an agent's process has counted, whoever answered it.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const STATEMENTS: &[&str] = &[
    "ALTER TABLE outbox ADD COLUMN origin UUID",
    "ALTER TABLE instances ADD COLUMN turn BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE instances ADD COLUMN mark BIGINT NOT NULL DEFAULT 0",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for statement in STATEMENTS {
            connection.execute_unprepared(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration("the catalog is never migrated downwards: restore a backup instead".to_owned()))
    }
}
