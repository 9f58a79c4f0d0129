//! The agent beside a cluster: takes tasks and does the container, configuration and data copies.
//!
//! `worker` turns hints into claims, permits and heartbeats; `execute` is one match on `TaskSpec`; `platform` is
//! the only place that knows Kubernetes' API; `configs` cleans, orders and rewrites objects and is pure;
//! `containers` moves container images; `data` holds the drivers; `capability` and `rights` find out what the
//! site can do, `needs` what an application asks of one.

pub mod access;
pub mod application;
pub mod capability;
pub mod configs;
pub mod containers;
pub mod data;
pub mod execute;
pub mod failures;
pub mod metrics;
pub mod needs;
pub mod platform;
mod quantity;
pub mod reach;
pub mod rights;
pub mod worker;
