//! The catalog: what there is, and what is being done. The truth; everything else is a hint or a copy.
//!
//! The principle: a change of state, the tasks that follow from it, and the hints that announce them commit in one
//! transaction. States change in one place each ([`model`], pure); queries live in one file per aggregate; every
//! query of something that a team owns takes the team. The same code runs on SQLite and PostgreSQL; the latter may be
//! shared by several coordinators, whose clock it then is (`clock.rs`), and of which one leads ([`leader`]).

pub mod access;
pub mod agents;
mod clock;
mod database;
pub mod driver;
pub mod enrolment;
mod entities;
pub mod environments;
pub mod figures;
pub mod images;
pub mod leader;
mod migrations;
pub mod model;
pub mod operations;
pub mod repositories;
pub mod sites;
pub mod tasks;

pub use database::{Catalog, CatalogError, Transaction};
