//! Lists and searches of very many images read an index, not every record.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const STATEMENTS: &[&str] = &[
    "CREATE INDEX images_there ON images (team, id) WHERE deleting IS NULL",
    "CREATE INDEX images_by_application ON images (team, application, id) WHERE deleting IS NULL",
    "CREATE INDEX images_by_name ON images (team, name, id) WHERE deleting IS NULL",
    "CREATE INDEX images_by_creator ON images (team, creator, id) WHERE deleting IS NULL",
    // Ids are in the order of time: by this one, lists of a span would be read whole and sorted.
    "DROP INDEX images_by_team",
    "DROP INDEX images_newest",
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
