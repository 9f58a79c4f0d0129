//! MongoDB, and servers that speak its wire protocol. Documents travel as raw BSON and are never decoded.
//!
//! A stream is one collection: its documents one behind the other, each beginning with its own length, as BSON has
//! it. Options, indexes, users and roles stand in the driver's facts.
//!
//! | file | what it does |
//! |---|---|
//! | `recognise`, `binding` | which containers are servers; ways to them in configuration: pure |
//! | `connect`, `older` | signing in, bounded waiting, errors in words; servers older than the library wants |
//! | `raw` | BSON as bytes |
//! | `catalog`, `accounts` | what is there beside documents, and whether all of it may be read |
//! | `inspect`, `hold` | the first look; a replica set's snapshot, or held writes |
//! | `read`, `copy` | the save |
//! | `start`, `insert`, `load` | the load |
//!
//! What could only be written against MongoDB's documentation, and not be tried, is named in `docs/data-services.md`.

mod accounts;
mod binding;
mod catalog;
mod connect;
mod copy;
mod hold;
mod insert;
mod inspect;
mod load;
mod older;
mod raw;
mod read;
mod recognise;
mod start;

use std::collections::BTreeMap;

use async_trait::async_trait;
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
};
use ocopea_repository::{DataReader, DataWriter};

use super::{
    ContainerView, Copied, DataService, Inspected, Loaded, Login, ParsedBinding, Prepared, Recognised, Setting, Subject,
};

/// The driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct MongoDb;

#[async_trait]
impl DataService for MongoDb {
    fn kind(&self) -> DataKind {
        DataKind::MongoDb
    }

    fn recognise(&self, container: &ContainerView) -> Option<Recognised> {
        recognise::recognise(container)
    }

    fn usual_port(&self) -> Option<u16> {
        Some(recognise::PORT)
    }

    fn parse_binding(&self, name: &str, value: &str) -> Option<ParsedBinding> {
        binding::parse(name, value)
    }

    fn login_beside(&self, host: &Setting<'_>, all: &[Setting<'_>]) -> Option<Login> {
        binding::login_beside(host, all)
    }

    fn rewrite_binding(&self, value: &str, hosts: &BTreeMap<String, String>) -> String {
        binding::rewrite(value, hosts)
    }

    async fn inspect(&self, subject: &Subject) -> Result<Inspected, TaskFailure> {
        inspect::inspect(subject).await
    }

    async fn prepare(&self, subject: &Subject, freeze: bool) -> Result<Box<dyn Prepared>, TaskFailure> {
        Ok(Box::new(hold::prepare(subject, freeze).await?))
    }

    async fn copy(&self, subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
        copy::copy(subject, snapshot, writer).await
    }

    async fn load(&self, subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
        load::load(subject, reader, saved).await
    }

    async fn unfreeze(&self, subject: &Subject) -> Result<(), TaskFailure> {
        hold::unfreeze(subject).await
    }
}
