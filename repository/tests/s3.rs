//! A bucket as the repository's store, on a real S3 server.

mod common;

use std::sync::Arc;

use common::{
    proxy::{Do, Proxy},
    s3::{Keeps, Server},
    *,
};
use ocopea_repository::{
    Deletion,
    backend::{self, Backend, conformance},
};

async fn opened(server: &Server, endpoint: &str, keeps: Keeps) -> Arc<dyn Backend> {
    let location = s3::location(endpoint, &server.bucket(keeps));
    backend::open(&location, &server.access(), &seams(), false).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_rules_of_backends() {
    let server = Server::of_process();
    let backend = opened(server, &server.endpoint(), Keeps::Objects).await;
    let abilities = backend.abilities();
    assert_eq!((abilities.conditional_writes, abilities.deletion), (true, Deletion::Frees));
    assert!(abilities.checksum.is_some(), "{abilities:?}");
    conformance::check(&*backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_with_versions_keeps_the_rules_of_backends_and_hides_what_is_deleted() {
    let server = Server::of_process();
    let backend = opened(server, &server.endpoint(), Keeps::Versions).await;
    let abilities = backend.abilities();
    assert_eq!((abilities.conditional_writes, abilities.deletion), (true, Deletion::Hides));
    conformance::check(&*backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_conditional_writes_keeps_the_rules_of_backends_by_listings() {
    let server = Server::of_process();
    let proxy = Proxy::start(&server.endpoint()).await;
    let keys = server.keys();
    proxy.rule(move |_| Do::Unconditional(keys.clone()));
    let backend = opened(server, &proxy.endpoint, Keeps::Objects).await;
    assert!(!backend.abilities().conditional_writes);
    conformance::check(&*backend).await;
}
