//! Saving, reading, finding and removing whole images.

mod common;

use common::*;
use ocopea_protocol::names::Digest;
use ocopea_repository::{Error, ImageSession, Keyring, Note, Repository, Scope};

on_every_store!(
    a_saved_image_is_read_as_it_was_by_whoever_has_the_key,
    the_same_commit_again_gives_the_same_answer_and_another_is_refused,
    a_second_save_stores_only_what_changed,
    a_catalog_is_rebuilt_from_the_repository_alone,
    keys_are_added_rotated_and_removed_without_touching_packs,
    a_retried_task_uses_what_its_first_attempt_stored,
    wrong_bytes_are_refused_and_nothing_of_them_stays,
    an_image_whose_blobs_are_gone_does_not_become_visible,
);

async fn a_saved_image_is_read_as_it_was_by_whoever_has_the_key(world: World) {
    let streams: Vec<(&[u8], Vec<u8>)> = vec![
        (b"db.messages", prose(9_000_000, 1)),
        (b"db.uploads", noise(5_000_000, 2)),
        (b"db.empty", vec![]),
        (b"\0\xff../odd\r\n", b"x".to_vec()),
    ];
    let saved = world.save("first", &streams, None).await;
    assert!(saved.data.stored_bytes < 9_500_000, "{}", saved.data.stored_bytes);
    let repository = world.reopen().await;
    let all = read_all(&repository, &world.seams, &saved.reference).await.unwrap();
    for (name, content) in &streams {
        assert_eq!(all[&format!("messages/{}", hex::encode(name))], *content);
    }
    assert_eq!(all["config/v1/secret/login.json"], b"{\"password\":\"canary-5e1f\"}");
    assert_eq!(repository.read_record(&saved.reference.record).await.unwrap(), saved.record);
    let report = repository.verify(Scope::All, &|_| {}).await.unwrap();
    assert_eq!(report.broken, vec![]);
    for (name, bytes) in world.objects() {
        let found = bytes.windows(11).any(|window| window == b"canary-5e1f");
        assert!(!found, "{name} shows what is secret");
    }
    let left: Vec<_> =
        world.objects().into_keys().filter(|name| name.starts_with("staging") || name.starts_with("tmp")).collect();
    assert_eq!(left, Vec::<String>::new());
}

async fn the_same_commit_again_gives_the_same_answer_and_another_is_refused(world: World) {
    let saved = world.save("first", &[(b"a", prose(10_000, 1))], None).await;
    let mut request = ocopea_repository::CommitRequest { record: saved.record.clone(), key: saved.key.clone() };
    assert_eq!(world.repository.commit(&request).await.unwrap(), saved.reference);
    request.record.comment = "other".to_owned();
    assert!(matches!(world.repository.commit(&request).await, Err(Error::Conflict { .. })));
}

async fn a_second_save_stores_only_what_changed(world: World) {
    let mut content = prose(20_000_000, 3);
    let first = world.save("first", &[(b"a", content.clone())], None).await;
    content[5_000_000..5_000_100].fill(b'!');
    content.splice(11_000_000..11_000_000, *b"inserted");
    let second = world.save("second", &[(b"a", content.clone())], Some(&first.reference.record)).await;
    assert!(second.data.new_bytes < 3_000_000, "{:?}", second.data.new_bytes);
    assert!(second.data.stored_bytes < 1_500_000, "{:?}", second.data.stored_bytes);
    let repository = world.reopen().await;
    // The first one goes; what the second shares with it stays.
    let reclaim = repository.delete_image(first.reference.image).await.unwrap();
    assert!(reclaim.bytes > 0 && reclaim.shared_bytes > 2_000_000, "{reclaim:?}");
    let report = repository.collect(&now()).await.unwrap();
    assert_eq!(report.deleted_bytes, reclaim.bytes, "{report:?}");
    let all = read_all(&repository, &world.seams, &second.reference).await.unwrap();
    assert!(all[&format!("messages/{}", hex::encode(b"a"))] == content);
    assert_eq!(repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    repository.delete_image(second.reference.image).await.unwrap();
    repository.collect(&now()).await.unwrap();
    let blobs: Vec<_> = world.objects().into_keys().filter(|name| name.starts_with("blobs/")).collect();
    assert_eq!(blobs, Vec::<String>::new(), "nothing is left of them");
}

async fn a_catalog_is_rebuilt_from_the_repository_alone(world: World) {
    let first = world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let second = world.save("second", &[(b"a", prose(2000, 2))], None).await;
    let note = |body: &str| Note {
        kind: "labels".to_owned(),
        body: body.to_owned(),
        by: "dana".to_owned(),
        at: Default::default(),
    };
    assert_eq!(world.repository.note(&first.reference.record, &note("1")).await.unwrap(), 1);
    assert_eq!(world.repository.note(&first.reference.record, &note("2")).await.unwrap(), 2);
    let repository = world.reopen().await;
    let found: Vec<_> = futures::StreamExt::collect(repository.reindex()).await;
    let mut found: Vec<_> = found.into_iter().map(|(_, one)| one.unwrap()).collect();
    found.sort_by_key(|found: &ocopea_repository::Reindexed| found.reference.image);
    assert_eq!(found[0].record, first.record);
    assert_eq!(found[0].key, first.key);
    assert_eq!(found[0].notes, [note("1"), note("2")]);
    assert_eq!((&found[1].record, found[1].notes.len()), (&second.record, 0));
}

async fn keys_are_added_rotated_and_removed_without_touching_packs(world: World) {
    let first = world.save("first", &[(b"a", prose(100_000, 1))], None).await;
    let packs = || world.objects().into_iter().filter(|(name, _)| name.starts_with("blobs/")).collect::<Vec<_>>();
    let before = packs();
    let old = world.keyring.ids()[0].clone();
    let stranger = Keyring::generate(&world.seams);
    let opened = Repository::open(&world.location(), &world.stores, &stranger, &world.seams).await;
    assert!(matches!(opened.err(), Some(Error::WrongKey { .. })));

    let mut keyring = world.keyring.clone();
    let new = keyring.add_generated(&world.seams);
    world.repository.key_rotate(&keyring).await.unwrap();
    let second_key = world.repository.new_image_key(world.team).await.unwrap();
    assert_ne!(second_key.by, first.key.by, "new images get a new team key");
    world.repository.key_remove(&old).await.unwrap();
    assert_eq!(packs(), before);

    let opened = Repository::open(&world.location(), &world.stores, &world.keyring, &world.seams).await;
    assert!(matches!(opened.err(), Some(Error::WrongKey { .. })), "the removed key opens nothing");
    keyring.remove(&old).unwrap();
    let repository = Repository::open(&world.location(), &world.stores, &keyring, &world.seams).await.unwrap();
    assert_eq!(repository.read_record(&first.reference.record).await.unwrap(), first.record);
    assert_eq!(repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
    assert!(matches!(repository.key_remove(&new).await, Err(Error::Misuse(_))), "the last key stays");
}

async fn a_retried_task_uses_what_its_first_attempt_stored(world: World) {
    let content = noise(60_000_000, 5);
    let (key, access, session) = world.begin(None).await;
    let writer = session.component(&name("messages"), ocopea_protocol::image::DataKind::MongoDb).await.unwrap();
    let mut stream = writer.stream(b"a").await.unwrap();
    for piece in content.chunks(1 << 20) {
        stream.write(bytes::Bytes::copy_from_slice(piece)).await.unwrap();
    }
    // Two packs of 24 MiB are full by now; the attempt dies when both are verified.
    for _ in 0..2000 {
        if writer.written().verified_bytes >= 48 << 20 {
            break;
        }
        world.seams.clock.sleep(std::time::Duration::from_millis(5)).await;
    }
    drop((stream, writer));
    let session = ImageSession::open(&access, &world.stores, &world.seams).await.unwrap();
    let data = put_data(&session, "messages", &[(b"a", content.clone())]).await.unwrap();
    assert!(data.stored_bytes < 12 << 20, "only the rest is stored again: {}", data.stored_bytes);
    assert_eq!(read_stream(&session, &data.manifest, b"a").await.unwrap(), content);
    let mut record = empty_record(&world, "retried");
    record.components.push(data_component("messages", &data));
    world.repository.commit(&ocopea_repository::CommitRequest { record, key }).await.unwrap();
    assert!(world.objects().into_keys().all(|name| !name.starts_with("staging/")));
}

async fn wrong_bytes_are_refused_and_nothing_of_them_stays(world: World) {
    let (_, _, session) = world.begin(None).await;
    let digest = sha256(b"hello");
    let stream = |bytes: &'static [u8]| futures::stream::iter([Ok::<_, String>(bytes::Bytes::from_static(bytes))]);
    assert!(matches!(session.put_blob(&digest, 5, stream(b"hullo")).await, Err(Error::WrongDigest { .. })));
    assert!(matches!(session.put_blob(&digest, 5, stream(b"hello world")).await, Err(Error::WrongSize { .. })));
    assert!(matches!(session.put_blob(&digest, 5, stream(b"hell")).await, Err(Error::WrongSize { .. })));
    let cut = futures::stream::iter([Err::<bytes::Bytes, _>("gone".to_owned())]);
    assert!(matches!(session.put_blob(&digest, 5, cut).await, Err(Error::Source { .. })));
    assert!(!session.has_blob(&digest, 5).await.unwrap());
    session.put_blob(&digest, 5, stream(b"hello")).await.unwrap();
    assert!(session.has_blob(&digest, 5).await.unwrap());
    assert!(!session.has_blob(&digest, 6).await.unwrap(), "of another size it is not the one");
    let other = Digest([7; 32]);
    assert!(matches!(session.get_manifest(&other).await, Err(Error::Missing { .. })));
    assert!(matches!(session.reader(&other).await.err(), Some(Error::Missing { .. })));
}

async fn an_image_whose_blobs_are_gone_does_not_become_visible(world: World) {
    let (key, _, session) = world.begin(None).await;
    let data = put_data(&session, "messages", &[(b"a", prose(100_000, 1))]).await.unwrap();
    let pack = world.objects().into_iter().find(|(_, bytes)| bytes.starts_with(b"OCOPPAK1")).unwrap().0;
    std::fs::remove_file(world.path(&pack)).unwrap();
    let mut record = empty_record(&world, "broken");
    record.components.push(data_component("messages", &data));
    let refused = world.repository.commit(&ocopea_repository::CommitRequest { record, key }).await;
    assert!(matches!(refused, Err(Error::BlobsMissing { .. })), "{refused:?}");
    assert!(world.repository.images().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_a_newer_format_is_refused_clearly() {
    let world = World::new().await;
    let path = world.path("ocopea-repository");
    let text = std::fs::read_to_string(&path).unwrap();
    let line = text.lines().next().unwrap().replace("\"version\":1", "\"version\":2");
    std::fs::write(&path, format!("{line}\n{}\n", sha256(line.as_bytes()))).unwrap();
    let refused = Repository::open(&world.location(), &world.stores, &world.keyring, &world.seams).await.err().unwrap();
    assert!(matches!(refused, Error::Newer { found: 2, known: 1, .. }), "{refused}");
    let again = Repository::create(&world.location(), &world.stores, &world.keyring, &world.seams).await.err().unwrap();
    assert!(matches!(again, Error::Occupied { .. }), "{again}");
}
