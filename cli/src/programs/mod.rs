//! Programs that go on running until they are told to stop: `ocopea up`, `ocopea coordinator`, `ocopea agent`.

mod access;
pub mod agent;
mod attend;
mod broker;
pub mod coordinator;
mod files;
mod identity;
pub mod join;
mod log;
mod metrics;
pub mod settings;
mod signals;
mod storage;
mod tls;
pub mod up;
