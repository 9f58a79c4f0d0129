//! Everything that a team, a save and a restore need.
#![expect(elided_lifetimes_in_paths, reason = "the trait hides the lifetime, and an implementation must do as it does")]

use sea_orm_migration::prelude::*;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Column types as both engines spell them.
const TABLES: &[&str] = &[
    "CREATE TABLE teams (id UUID PRIMARY KEY, name TEXT NOT NULL UNIQUE, created BIGINT NOT NULL)",
    "CREATE TABLE users (id UUID PRIMARY KEY, name TEXT NOT NULL UNIQUE, created BIGINT NOT NULL)",
    "CREATE TABLE memberships (team UUID NOT NULL REFERENCES teams(id), user_id UUID NOT NULL REFERENCES users(id), \
     role TEXT NOT NULL, PRIMARY KEY (team, user_id))",
    "CREATE TABLE tokens (id UUID PRIMARY KEY, user_id UUID NOT NULL REFERENCES users(id), name TEXT NOT NULL, \
     hash TEXT NOT NULL UNIQUE, scope TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT, revoked BIGINT)",
    "CREATE TABLE sign_in_codes (hash TEXT PRIMARY KEY, user_id UUID NOT NULL REFERENCES users(id), \
     expires BIGINT NOT NULL, used BIGINT)",
    "CREATE TABLE grants (id UUID PRIMARY KEY, object_kind TEXT NOT NULL, object UUID NOT NULL, subject_kind TEXT NOT NULL, \
     subject UUID, access TEXT NOT NULL, expires BIGINT, created BIGINT NOT NULL)",
    "CREATE TABLE audit (id UUID PRIMARY KEY, at BIGINT NOT NULL, team UUID, user_id UUID, action TEXT NOT NULL, \
     subject TEXT NOT NULL, detail TEXT NOT NULL)",
    "CREATE TABLE sites (id UUID PRIMARY KEY, name TEXT NOT NULL UNIQUE, created BIGINT NOT NULL, \
     reported BIGINT, report TEXT)",
    "CREATE TABLE repositories (id UUID PRIMARY KEY, name TEXT NOT NULL UNIQUE, location TEXT NOT NULL, created BIGINT NOT NULL)",
    "CREATE TABLE images (id UUID PRIMARY KEY, team UUID NOT NULL REFERENCES teams(id), record TEXT NOT NULL, \
     name TEXT NOT NULL, application TEXT NOT NULL, site TEXT NOT NULL, creator TEXT NOT NULL, comment TEXT NOT NULL, \
     bytes BIGINT NOT NULL, new_bytes BIGINT NOT NULL, created BIGINT NOT NULL, search TEXT NOT NULL, \
     body TEXT NOT NULL, deleting BIGINT)",
    "CREATE INDEX images_by_team ON images (team, created)",
    "CREATE UNIQUE INDEX images_by_record ON images (record)",
    "CREATE TABLE image_labels (image UUID NOT NULL REFERENCES images(id) ON DELETE CASCADE, label TEXT NOT NULL, \
     value TEXT NOT NULL, PRIMARY KEY (image, label))",
    "CREATE INDEX image_labels_by_label ON image_labels (label, value)",
    "CREATE TABLE image_comments (id UUID PRIMARY KEY, image UUID NOT NULL REFERENCES images(id) ON DELETE CASCADE, \
     author TEXT NOT NULL, at BIGINT NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE operations (id UUID PRIMARY KEY, team UUID NOT NULL REFERENCES teams(id), kind TEXT NOT NULL, \
     state TEXT NOT NULL, title TEXT NOT NULL, creator TEXT NOT NULL, site UUID REFERENCES sites(id), image UUID, \
     environment UUID, request TEXT NOT NULL, context TEXT NOT NULL, result TEXT, failure TEXT, \
     cancel_requested BIGINT, stage BIGINT NOT NULL, version BIGINT NOT NULL, created BIGINT NOT NULL, \
     updated BIGINT NOT NULL, ended BIGINT)",
    "CREATE INDEX operations_by_team ON operations (team, created)",
    "CREATE INDEX operations_by_state ON operations (state)",
    "CREATE TABLE tasks (id UUID PRIMARY KEY, operation UUID NOT NULL REFERENCES operations(id), label TEXT NOT NULL, \
     kind TEXT NOT NULL, site UUID REFERENCES sites(id), undo BIGINT NOT NULL, state TEXT NOT NULL, attempt BIGINT NOT NULL, \
     most_attempts BIGINT NOT NULL, instance UUID, lease_until BIGINT, not_before BIGINT NOT NULL, needs TEXT NOT NULL, \
     spec TEXT NOT NULL, output TEXT, failure TEXT, progress TEXT, holder TEXT, created BIGINT NOT NULL, \
     started BIGINT, ended BIGINT)",
    "CREATE UNIQUE INDEX tasks_by_label ON tasks (operation, label)",
    "CREATE INDEX tasks_by_state ON tasks (state, site)",
    "CREATE TABLE attempts (task UUID NOT NULL REFERENCES tasks(id), attempt BIGINT NOT NULL, instance UUID NOT NULL, \
     started BIGINT NOT NULL, ended BIGINT, failure TEXT, PRIMARY KEY (task, attempt))",
    "CREATE TABLE outbox (id UUID PRIMARY KEY, site UUID NOT NULL, task UUID NOT NULL, kind TEXT NOT NULL, created BIGINT NOT NULL)",
    "CREATE TABLE environments (id UUID PRIMARY KEY, team UUID NOT NULL REFERENCES teams(id), name TEXT NOT NULL, \
     site UUID NOT NULL REFERENCES sites(id), image UUID NOT NULL, record TEXT NOT NULL, state TEXT NOT NULL, url TEXT, \
     owner TEXT NOT NULL, placements TEXT NOT NULL, created BIGINT NOT NULL, ended BIGINT)",
    "CREATE INDEX environments_by_team ON environments (team, created)",
    "CREATE TABLE idempotency (team UUID NOT NULL, idempotency_key TEXT NOT NULL, request TEXT NOT NULL, \
     operation UUID NOT NULL, created BIGINT NOT NULL, PRIMARY KEY (team, idempotency_key))",
    "CREATE TABLE epochs (name TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder UUID, lease_until BIGINT)",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        for statement in TABLES {
            connection.execute_unprepared(statement).await?;
        }
        Ok(())
    }

    async fn down(&self, _manager: &SchemaManager) -> Result<(), DbErr> {
        Err(DbErr::Migration("the catalog is never migrated downwards: restore a backup instead".to_owned()))
    }
}
