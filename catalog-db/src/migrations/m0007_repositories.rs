//! Several repositories side by side. What was saved before, and what is under way, belongs to the one that is given at
//! start: there the column is empty.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const CHANGES: &[&str] = &[
    "ALTER TABLE repositories ADD COLUMN access TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE repositories ADD COLUMN sealed TEXT",
    "ALTER TABLE repositories ADD COLUMN limits TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE repositories ADD COLUMN found TEXT",
    "ALTER TABLE repositories ADD COLUMN found_at BIGINT",
    "ALTER TABLE repositories ADD COLUMN own_id UUID",
    "ALTER TABLE repositories ADD COLUMN given_at_start BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE repositories ADD COLUMN is_default BIGINT NOT NULL DEFAULT 0",
    "CREATE UNIQUE INDEX repositories_by_own_id ON repositories (own_id)",
    "ALTER TABLE images ADD COLUMN repository UUID REFERENCES repositories(id)",
    "CREATE INDEX images_by_repository ON images (repository)",
    "ALTER TABLE operations ADD COLUMN repository UUID",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for statement in CHANGES {
            connection.execute_unprepared(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration("the catalog is never migrated downwards: restore a backup instead".to_owned()))
    }
}
