//! Keys of a bucket that end in the midst of a copy, and keys that may do only a part.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use common::{
    lender::Lender,
    proxy::Proxy,
    s3::{HASTY, Keeps, Server},
    *,
};
use ocopea_protocol::image::{DataKind, StoreKeys, StoreLimits};
use ocopea_repository::{
    CollectOptions, CommitRequest, Deletion, Error, ImageSession, Scope, StoreAccess, StreamFacts, Trouble,
    backend::s3::{KeySource, WebIdentity},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A world in a bucket of accounts of its own.
async fn world(server: &'static Server, bucket: &str, keys: KeySource) -> World {
    let mut stores = StoreAccess::with_keys(keys);
    stores.patience = HASTY;
    let root = server.files(bucket).join("repo");
    World::at(tempfile::tempdir().unwrap(), root, server.location(bucket), stores).await
}

/// Saves for as long as `span`, piece by piece.
async fn slow_save(world: &World, span: Duration) -> Result<Vec<u8>, Error> {
    let key = world.repository.new_image_key(world.team).await?;
    let access = world.repository.access_to_write(&key, None).await?;
    let session = ImageSession::open(&access, &world.stores, &world.seams).await?;
    let writer = session.component(&name("messages"), DataKind::MongoDb).await?;
    let mut stream = writer.stream(b"a").await?;
    let (begun, mut content) = (world.seams.clock.monotonic(), Vec::new());
    while world.seams.clock.monotonic() - begun < span {
        let piece = noise(6_000_000, content.len() as u64);
        stream.write(Bytes::from(piece.clone())).await?;
        content.extend_from_slice(&piece);
        world.seams.clock.sleep(Duration::from_millis(250)).await;
    }
    let facts = StreamFacts { unit: "pieces".to_owned(), items: 0, item_hash: [0; 32], attributes: BTreeMap::new() };
    stream.finish(facts).await?;
    let data = writer.finish("{}").await?;
    let mut record = empty_record(world, "slow");
    record.components.push(data_component("messages", &data));
    let image = world.repository.commit(&CommitRequest { record, key }).await?;
    assert!(read_all(&world.repository, &world.seams, &image).await?["messages/61"] == content);
    Ok(content)
}

/// A token service: what it answers is what AWS's does.
#[expect(clippy::disallowed_methods, reason = "a server of the test's own")]
async fn token_service(lender: Arc<Lender>, token: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut asked = Vec::new();
            while !String::from_utf8_lossy(&asked).contains("WebIdentityToken=") {
                let mut piece = [0; 4096];
                match client.read(&mut piece).await {
                    Ok(length) if length > 0 => asked.extend_from_slice(&piece[..length]),
                    _ => break,
                }
            }
            let asked = String::from_utf8_lossy(&asked).into_owned();
            let fits = asked.contains(&format!("WebIdentityToken={token}")) && asked.contains("RoleArn=arn%3Aaws");
            let (status, body) = if fits {
                let keys = lender.lend();
                let end = keys.expires.unwrap().rfc3339();
                let (id, secret) = (&keys.id, keys.secret.reveal());
                (
                    200,
                    format!(
                        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><Expiration>{end}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
                    ),
                )
            } else {
                (400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>no</Message></Error></ErrorResponse>".to_owned())
            };
            let answer =
                format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = client.write_all(answer.as_bytes()).await;
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_lent_for_seconds_by_a_token_service_are_renewed_in_the_midst_of_a_copy() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let lender = Arc::new(Lender::new(server, &bucket, Duration::from_secs(4)));
    let place = tempfile::tempdir().unwrap();
    let token_file = place.path().join("token");
    std::fs::write(&token_file, "the-token\n").unwrap();
    let identity = WebIdentity {
        role: "arn:aws:iam::1:role/copies".to_owned(),
        token_file: token_file.clone(),
        session: "test".to_owned(),
        endpoint: token_service(lender.clone(), "the-token").await,
    };
    let world = world(server, &bucket, KeySource::WebIdentity(identity.clone())).await;
    slow_save(&world, Duration::from_secs(9)).await.unwrap();
    let lent = lender.lent.load(SeqCst);
    assert!((3..12).contains(&lent), "{lent} accounts were lent");
    // What was lent first is no key any more: each renewal was needed.
    let old = s3::access(StoreKeys { expires: None, ..lender.accounts[0].clone() });
    let refused = ocopea_repository::Repository::open(&world.location(), &old, &world.keyring, &world.seams).await;
    assert!(matches!(refused.err(), Some(Error::Remote { trouble: Trouble::Keys, .. })));
    // And a token that the service doesn't take is told with the service's name.
    std::fs::write(&token_file, "another").unwrap();
    let other = StoreAccess::with_keys(KeySource::WebIdentity(identity.clone()));
    let refused = ocopea_repository::Repository::open(&world.location(), &other, &world.keyring, &world.seams).await;
    let error = refused.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, Error::Remote { trouble: Trouble::NoKeys, .. }), "{text}");
    assert!(text.contains(&identity.endpoint) && text.contains("InvalidIdentityToken"), "{text}");
    assert!(!text.contains("another"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_that_are_ended_before_their_time_are_replaced_when_the_store_refuses_them() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let lender = Arc::new(Lender::new(server, &bucket, Duration::from_secs(3600)));
    let world = world(server, &bucket, KeySource::Custom(lender.clone())).await;
    assert_eq!(lender.lent.load(SeqCst), 1);
    server.no_user(&lender.accounts[0].id);
    slow_save(&world, Duration::from_secs(1)).await.unwrap();
    assert_eq!(lender.lent.load(SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_keys_of_its_own_works_with_those_of_its_task() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let mut world = world(server, &bucket, KeySource::Static(server.keys())).await;
    let key = world.repository.new_image_key(world.team).await.unwrap();
    let none = StoreAccess::with_keys(KeySource::Static(s3::keys("nobody", "nothing")));
    let access = world.repository.access_to_write(&key, None).await.unwrap();
    assert_eq!(access.store_keys, None, "keys are shared only where that is wanted");
    assert!(ImageSession::open(&access, &none, &world.seams).await.is_err());
    world.stores.shared_with_agents = true;
    let repository = world.reopen().await;
    let access = repository.access_to_write(&key, None).await.unwrap();
    assert_eq!(access.store_keys, Some(server.keys()));
    let session = ImageSession::open(&access, &none, &world.seams).await.unwrap();
    put_data(&session, "messages", &[(b"a", noise(100_000, 1))]).await.unwrap();
    assert!(!format!("{access:?}").contains(server.keys().secret.reveal()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_delete_saves_go_on_and_a_collection_says_what_stays() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let keys = server.user("keeper", "keepersecret");
    server.policy(
        &bucket,
        &["keeper"],
        &["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"],
    );
    let world = world(server, &bucket, KeySource::Static(keys)).await;
    assert_eq!(world.repository.abilities().deletion, Deletion::Refused);
    let first = world.save("first", &[(b"a", noise(300_000, 1))], None).await;
    // A second process saves: nothing that the first couldn't remove is in its way.
    let operation = operation(&world);
    world.repository.pin(operation, &[]).await.unwrap();
    world.repository.unpin(operation).await.unwrap();
    // Something that no image uses.
    let (_, _, session) = world.begin(None).await;
    let unused = put_blob(&session, b"unused").await;
    let expired = CollectOptions { pin_expiry: Duration::ZERO, ..now() };
    world.seams.clock.sleep(Duration::from_millis(1100)).await;
    for _ in 0..2 {
        let report = world.repository.collect(&expired).await.unwrap();
        assert_eq!((report.deleted, report.deleted_bytes), (0, 0), "{report:?}");
        assert!(report.undeletable >= 1 && report.kept.iter().any(|why| why.contains("may not delete")), "{report:?}");
    }
    assert!(session.has_blob(&sha256(b"hello"), 5).await.is_ok());
    assert!(world.path(&format!("blobs/sha256/{}", unused.hex())).exists());
    let second = world.save("second", &[(b"a", noise(300_000, 2))], None).await;
    assert_eq!(world.repository.images().await.unwrap().len(), 2);
    assert_eq!(world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    // To delete an image is more than tidying: that it can't be done is said.
    let error = world.repository.delete_image(first.reference.image).await.unwrap_err();
    assert!(matches!(error, Error::Remote { trouble: Trouble::Rights, .. }), "{error}");
    read_all(&world.repository, &world.seams, &second.reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_versions_are_kept_or_locked_deletions_are_told_as_hidden() {
    let server = Server::of_process();
    for keeps in [Keeps::Versions, Keeps::Locked] {
        let bucket = server.bucket(keeps);
        let world = world(server, &bucket, KeySource::Static(server.keys())).await;
        assert_eq!(world.repository.abilities().deletion, Deletion::Hides);
        let saved = world.save("first", &[(b"a", noise(300_000, 1))], None).await;
        let reclaim = world.repository.delete_image(saved.reference.image).await.unwrap();
        assert!(reclaim.hides && reclaim.bytes > 300_000, "{reclaim:?}");
        let report = world.repository.collect(&now()).await.unwrap();
        assert_eq!((report.deleted, report.deleted_bytes, report.undeletable), (0, 0, 0), "{report:?}");
        assert!(report.hidden > 3 && report.hidden_bytes == reclaim.bytes, "{report:?} {reclaim:?}");
        assert_eq!(world.repository.images().await.unwrap(), vec![]);
        world.save("second", &[(b"a", noise(300_000, 1))], None).await;
        assert_eq!(world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_more_requests_are_under_way_than_a_repository_allows() {
    let server = Server::of_process();
    let bucket = server.bucket(Keeps::Objects);
    let proxy = Proxy::start(&server.endpoint()).await;
    let mut stores = server.access();
    stores.limits = StoreLimits { requests: Some(3), ..StoreLimits::default() };
    let location = s3::location(&proxy.endpoint, &bucket);
    let root = server.files(&bucket).join("repo");
    let mut world = World::at(tempfile::tempdir().unwrap(), root, location, stores).await;
    // Not as many as allowed, then as many as are asked for.
    for (allowed, most) in [(Some(3), 3), (None, 32)] {
        world.stores.limits.requests = allowed;
        let repository = world.reopen().await;
        let key = repository.new_image_key(world.team).await.unwrap();
        // What an agent may is told with the task.
        let access = repository.access_to_write(&key, None).await.unwrap();
        assert_eq!(access.limits.requests, allowed);
        let own = server.access();
        let session = ImageSession::open(&access, &own, &world.seams).await.unwrap();
        proxy.most.store(0, SeqCst);
        let asked = (0..100u8).map(|number| {
            let session = session.clone();
            async move { session.has_blob(&sha256(&[number]), 1).await.unwrap() }
        });
        futures::future::join_all(asked).await;
        let found = proxy.most.load(SeqCst);
        assert!(found <= most && found > 2, "{found} requests at once, {most} are allowed");
        assert!(allowed.is_some() || found > 3, "{found}: without a limit there are more");
    }
}
