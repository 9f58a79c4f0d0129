//! Sites that enrol themselves, and the processes that sign in for them.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

const STATEMENTS: &[&str] = &[
    "ALTER TABLE sites ADD COLUMN standing TEXT NOT NULL DEFAULT 'active'",
    "ALTER TABLE sites ADD COLUMN site_key TEXT",
    "ALTER TABLE sites ADD COLUMN cluster TEXT",
    // 1 while the broker may know a user of this site.
    "ALTER TABLE sites ADD COLUMN at_broker BIGINT NOT NULL DEFAULT 0",
    "ALTER TABLE sites ADD COLUMN removed BIGINT",
    "CREATE TABLE instances (id UUID PRIMARY KEY, site UUID NOT NULL REFERENCES sites(id), instance_key TEXT NOT NULL, \
     cluster TEXT NOT NULL, created BIGINT NOT NULL, seen BIGINT NOT NULL, ended BIGINT, why TEXT)",
    "CREATE INDEX instances_by_site ON instances (site, seen)",
    "CREATE TABLE enrolment_keys (id UUID PRIMARY KEY, hash TEXT NOT NULL UNIQUE, name TEXT NOT NULL, \
     site UUID REFERENCES sites(id), names TEXT NOT NULL, approves BIGINT NOT NULL, uses BIGINT NOT NULL, \
     most_uses BIGINT NOT NULL, expires BIGINT NOT NULL, created BIGINT NOT NULL, creator UUID NOT NULL REFERENCES users(id), \
     revoked BIGINT)",
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
