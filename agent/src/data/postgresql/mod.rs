//! PostgreSQL: whole servers, every database, row by row under one snapshot each.
//!
//! A data service is a *server*: all databases, templates that somebody changed included, the roles with their passwords, settings and grants.
//! Streams are `DATABASE.SCHEMA.TABLE` (rows in `COPY`'s text format, columns by name), and per database
//! `DATABASE (schema)`, `DATABASE (sequences)` and `DATABASE (large objects)`.
//!
//! | file | what it does |
//! |---|---|
//! | `recognise`, `binding` | which containers are servers; ways to them in configuration: pure |
//! | `connect`, `fault` | connections, bounded in time; errors in words |
//! | `catalog`, `facts` | what the catalogs say; what is remembered beside the streams |
//! | `rights`, `unloadable` | what can't be read, or not be made again |
//! | `hold` | the open snapshots, and giving way |
//! | `copy`, `rows`, `large_objects`, `tools` | the save |
//! | `load`, `inside`, `apply`, `roles`, `owners`, `parameters` | the load |
//!
//! Rows are text and not `COPY`'s binary format: arrays and composites carry object numbers there, which differ
//! between servers.

mod apply;
mod binding;
mod catalog;
mod connect;
mod copy;
mod facts;
mod fault;
mod fill;
mod hold;
mod inside;
mod inspect;
mod large_objects;
mod load;
mod owners;
mod parameters;
mod recognise;
mod rights;
mod roles;
mod rows;
mod sql;
mod tools;
mod unloadable;

use std::collections::BTreeMap;

use async_trait::async_trait;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
};
use ocopea_repository::{DataReader, DataWriter};

pub use self::recognise::login_beside;
use super::{ContainerView, Copied, DataService, Inspected, Loaded, ParsedBinding, Prepared, Recognised, Subject};

/// The driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgreSql;

#[async_trait]
impl DataService for PostgreSql {
    fn kind(&self) -> DataKind {
        DataKind::PostgreSql
    }

    fn recognise(&self, container: &ContainerView) -> Option<Recognised> {
        recognise::recognise(container)
    }

    fn parse_binding(&self, name: &str, value: &str) -> Option<ParsedBinding> {
        binding::parse(name, value)
    }

    fn rewrite_binding(&self, value: &str, hosts: &BTreeMap<String, String>) -> String {
        binding::rewrite(value, hosts)
    }

    async fn inspect(&self, subject: &Subject) -> Result<Inspected, TaskFailure> {
        inspect::inspect(subject).await
    }

    async fn prepare(&self, subject: &Subject, _freeze: bool) -> Result<Box<dyn Prepared>, TaskFailure> {
        // A snapshot needs no freeze: writers go on and the copy doesn't see them.
        Ok(Box::new(hold::prepare(subject).await?))
    }

    async fn copy(&self, subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
        Box::pin(copy::copy(subject, snapshot, writer)).await
    }

    async fn load(&self, subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
        Box::pin(load::load(subject, reader, saved)).await
    }

    async fn unfreeze(&self, _subject: &Subject) -> Result<(), TaskFailure> {
        // Nothing is ever frozen.
        Ok(())
    }
}
