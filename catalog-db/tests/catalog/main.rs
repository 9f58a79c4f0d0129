//! The catalog's conformance suite: the same tests on SQLite (a file) and on a real PostgreSQL server.
//!
//! A test is a function of a [`World`]; `on_both_engines!` makes one of it per engine. Where the engines would differ
//! (waiting, types, what text may hold) there must be a test here: everything above relies on their being the same.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers stop at the first surprise"
)]

mod access;
mod crash;
mod enrolment;
mod environments;
mod hostile;
mod images;
mod operations;
mod repositories;
mod schema;
mod several;
mod tasks;
mod teams;
mod world;

#[path = "../../../agent/tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the PostgreSQL driver, which use more of it")]
mod postgres;

/// Makes a test per engine of each function.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod sqlite {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&crate::world::World::sqlite().await).await;
            }
        )*}
        mod postgresql {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(&crate::world::World::postgresql().await).await;
            }
        )*}
    };
}
pub(crate) use on_both_engines;
