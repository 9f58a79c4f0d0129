//! Lets-chat: a small chat service, worth saving.
//!
//! One binary in two shapes: *all* data in one MongoDB, or accounts, rooms and messages in PostgreSQL and uploads
//! in a volume. The environment decides: `MONGODB_URI`, or `DATABASE_URL` with `UPLOADS_DIR`.
//! And in three versions that differ in behaviour ([`version`]); the image says which one it is.
//!
//! `store` is the one seam between what the service does and where its data lies. A third shape is one more
//! implementation of [`store::Store`] and [`store::Upkeep`] and an arm in `store::open`; nothing else changes.

pub mod cli;
pub mod client;
pub mod config;
pub mod load;
pub mod model;
pub mod password;
pub mod store;
pub mod version;
pub mod web;
pub mod world;
