//! A bucket as the repository's store, on a real S3 server.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    proxy::{Do, Proxy},
    s3::{Keeps, Server},
    *,
};
use futures::future::join_all;
use ocopea_repository::{
    Deletion,
    backend::{self, Backend, Put, conformance},
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_processes_without_conditional_writes_one_creates_and_its_bytes_are_there() {
    let server = Server::of_process();
    let proxy = Proxy::start(&server.endpoint()).await;
    let keys = server.keys();
    proxy.rule(move |_| Do::Unconditional(keys.clone()));
    let location = s3::location(&proxy.endpoint, &server.bucket(Keeps::Objects));
    // Each has a connection and a probe of its own, as processes have.
    let mut backends = Vec::new();
    for _ in 0..4 {
        backends.push(backend::open(&location, &server.access(), &seams(), false).await.unwrap());
    }
    for round in 0..6u8 {
        let name = format!("refs/{round}");
        let tries = backends.iter().zip(0u8..).map(|(backend, n)| {
            let (name, seams) = (&name, seams());
            async move {
                // From all at once to one after the other.
                seams.clock.sleep(Duration::from_millis(u64::from(n) * u64::from(round) * 15)).await;
                (n, backend.create(name, Bytes::from(vec![n; 100])).await.unwrap())
            }
        });
        let won: Vec<u8> =
            join_all(tries).await.into_iter().filter(|(_, put)| *put == Put::Created).map(|(n, _)| n).collect();
        assert_eq!(won.len(), 1, "round {round}");
        assert_eq!(backends[0].get(&name, 1000).await.unwrap(), vec![won[0]; 100], "round {round}");
        // Once it is deleted, it can be made again, by whoever comes first.
        backends[1].delete(&name).await.unwrap();
        assert_eq!(backends[2].create(&name, Bytes::from_static(b"again")).await.unwrap(), Put::Created);
        assert_eq!(backends[3].get(&name, 1000).await.unwrap(), "again");
    }
    assert_eq!(backends[0].list("claims/").await.unwrap(), vec![], "no claim is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_process_claimed_that_died_keeps_no_other_from_creating() {
    let server = Server::of_process();
    let proxy = Proxy::start(&server.endpoint()).await;
    let keys = server.keys();
    let location = s3::location(&proxy.endpoint, &server.bucket(Keeps::Objects));
    let harm = keys.clone();
    proxy.rule(move |_| Do::Unconditional(harm.clone()));
    let backend = backend::open(&location, &server.access(), &seams(), false).await.unwrap();
    for dies_at in 0..8usize {
        let name = format!("refs/{dies_at}");
        let (own, count) = (keys.clone(), AtomicUsize::new(0));
        proxy.rule(move |asked| {
            let from_here = asked.method == "PUT" && count.fetch_add(1, SeqCst) >= dies_at;
            if from_here { Do::Refuse(403, "AccessDenied") } else { Do::Unconditional(own.clone()) }
        });
        let died = backend.create(&name, Bytes::from_static(b"first")).await;
        let own = keys.clone();
        proxy.rule(move |_| Do::Unconditional(own.clone()));
        let second = backend.create(&name, Bytes::from_static(b"second")).await.unwrap();
        let there = backend.get(&name, 100).await.unwrap();
        match (died, second) {
            (Ok(Put::Created), Put::Existed) | (Err(_), Put::Existed) => assert_eq!(there, "first", "{dies_at}"),
            (Err(_), Put::Created) => assert_eq!(there, "second", "{dies_at}"),
            other => panic!("{dies_at}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn uploads_of_any_length_are_whole_and_given_up_ones_leave_nothing() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let backend = backend::open(&server.location(&bucket), &server.access(), &seams(), false).await.unwrap();
    // Around a part, what is kept whole, and several of each at once: more than all may hold.
    let lengths = [0, 1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, (20 << 20) + 1, (36 << 20) + 7];
    let uploads = lengths.iter().enumerate().flat_map(|(n, length)| {
        [None, Some(format!("blobs/known-{n}"))].map(|known| {
            let (backend, content) = (backend.clone(), noise(*length, n as u64));
            async move {
                let name = known.clone().unwrap_or(format!("blobs/late-{n}"));
                let mut upload = backend.upload(known.as_deref()).await.unwrap();
                for pieces in content.chunks(3_000_001) {
                    upload.write(vec![Bytes::copy_from_slice(pieces)]).await.unwrap();
                }
                upload.finish(&name).await.unwrap();
                let read = backend.get(&name, 1 << 30).await.unwrap();
                assert!(read == content, "{name}");
            }
        })
    });
    join_all(uploads).await;
    assert_eq!(backend.list("blobs/").await.unwrap().len(), 2 * lengths.len());
    assert_eq!(backend.list("tmp/").await.unwrap(), vec![]);
    let mut upload = backend.upload(None).await.unwrap();
    upload.write(vec![Bytes::from(noise(30 << 20, 9))]).await.unwrap();
    drop(upload);
    let mut died = backend.upload(Some("blobs/died")).await.unwrap();
    died.write(vec![Bytes::from(noise(30 << 20, 9))]).await.unwrap();
    // As a process that is killed: nobody ends it but a collection.
    std::mem::forget(died);
    let parts = server.files(&bucket).join(".sgwtmp/multipart");
    let unfinished = || walk(&parts);
    for _ in 0..100 {
        if unfinished() <= 1 {
            break;
        }
        seams().clock.sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(unfinished(), 1, "the one that was dropped is gone");
    backend.discard_unfinished(1).await.unwrap();
    assert_eq!(unfinished(), 1, "the other was begun later");
    backend.discard_unfinished(i64::MAX).await.unwrap();
    assert_eq!(unfinished(), 0);
    assert_eq!(backend.head("blobs/died").await.unwrap(), None);
}

/// How many uploads in parts the server knows.
fn walk(parts: &std::path::Path) -> usize {
    let directories = std::fs::read_dir(parts).into_iter().flatten().flatten();
    directories.map(|object| std::fs::read_dir(object.path()).into_iter().flatten().count()).sum()
}
