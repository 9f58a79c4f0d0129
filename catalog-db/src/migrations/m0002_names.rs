//! A name is taken once per site while its environment is there; lists are read in the order of their index.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const STATEMENTS: &[&str] = &[
    "CREATE UNIQUE INDEX environments_there ON environments (site, name) WHERE state NOT IN ('removed', 'failed')",
    "CREATE INDEX images_newest ON images (team, id)",
    "CREATE INDEX operations_newest ON operations (team, id)",
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
