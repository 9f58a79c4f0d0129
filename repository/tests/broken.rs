//! What is broken costs what it must, and no more: later saves, other images, other objects go on.

mod common;

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use async_trait::async_trait;
use common::*;
use futures::StreamExt;
use ocopea_repository::{
    CollectOptions, Error, Note, Repository, Scope,
    backend::{Action, Hook, HookedBackend},
};

fn note(body: &str) -> Note {
    Note { kind: "comment".to_owned(), body: body.to_owned(), by: "dana".to_owned(), at: Default::default() }
}

fn packs(world: &World) -> BTreeSet<String> {
    world.objects().into_iter().filter(|(_, bytes)| bytes.starts_with(b"OCOPPAK1")).map(|(name, _)| name).collect()
}

async fn broken(repository: &Repository) -> Vec<String> {
    let report = repository.verify(Scope::All, &|_| {}).await.unwrap();
    report.broken.into_iter().map(|broken| broken.object).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_lost_a_pack_costs_space_and_not_the_next_save() {
    for cut in [None, Some(1000)] {
        let world = World::new().await;
        let content = noise(400_000, 1);
        let first = world.save("first", &[(b"a", content.clone())], None).await;
        let pack = packs(&world).pop_first().unwrap();
        match cut {
            Some(length) => {
                fs::OpenOptions::new().write(true).open(world.path(&pack)).unwrap().set_len(length).unwrap()
            }
            None => fs::remove_file(world.path(&pack)).unwrap(),
        }
        let second = world.save("second", &[(b"a", content.clone())], Some(&first.reference.record)).await;
        let all = read_all(&world.repository, &world.seams, &second.reference).await.unwrap();
        assert!(all["messages/61"] == content, "{cut:?}");
        assert_eq!(second.data.new_bytes, 400_000, "{cut:?}: nothing of the lost pack is named");
        assert_eq!(broken(&world.repository).await, [pack], "{cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_whose_record_is_broken_is_no_base() {
    let world = World::new().await;
    let first = world.save("first", &[(b"a", prose(400_000, 1))], None).await;
    let record = world.path(&format!("blobs/sha256/{}", first.reference.record.hex()));
    fs::write(&record, b"{}").unwrap();
    let second = world.save("second", &[(b"a", prose(400_000, 1))], Some(&first.reference.record)).await;
    fs::remove_file(&record).unwrap();
    let third = world.save("third", &[(b"a", prose(400_000, 1))], Some(&first.reference.record)).await;
    for saved in [second, third] {
        read_all(&world.repository, &world.seams, &saved.reference).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_whose_table_of_contents_is_broken_anywhere_costs_space_and_not_the_next_save() {
    let world = World::new().await;
    let content = prose(900_000, 1);
    let first = world.save("first", &[(b"a", content.clone())], None).await;
    let toc = world.objects().into_iter().find(|(_, bytes)| bytes.starts_with(b"OCOPTOC1")).unwrap();
    for at in (0..toc.1.len()).step_by(97) {
        let mut flipped = toc.1.clone();
        flipped[at] ^= 4;
        fs::write(world.path(&toc.0), flipped).unwrap();
        let (_, _, session) = world.begin(Some(&first.reference.record)).await;
        let data = put_data(&session, "messages", &[(b"a", content.clone())]).await.unwrap();
        assert!(read_stream(&session, &data.manifest, b"a").await.unwrap() == content, "byte {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_another_team_gives_no_key_away() {
    let mut world = World::new().await;
    let first = world.save("first", &[(b"a", prose(1000, 1))], None).await;
    world.team = ocopea_protocol::ids::TeamId::generate(&world.seams);
    let (_, access, _) = world.begin(Some(&first.reference.record)).await;
    assert!(access.base.is_none());
}

on_every_store!(
    a_layer_that_was_cut_is_stored_again,
    an_object_that_cannot_be_read_is_named_and_all_others_are_verified,
    an_image_that_is_broken_keeps_no_other_from_a_reindex,
    an_image_whose_ref_was_lost_is_forgotten_by_its_deletion,
    a_pin_is_renewed_only_while_it_is_there,
);

async fn a_layer_that_was_cut_is_stored_again(world: World) {
    let (_, _, session) = world.begin(None).await;
    let layer = gzip(&noise(3000, 1));
    let digest = put_blob(&session, &layer).await;
    let path = world.path(&format!("blobs/sha256/{}", digest.hex()));
    fs::write(&path, &layer[..100]).unwrap();
    put_blob(&session, &layer).await;
    assert!(fs::read(&path).unwrap() == layer);
}

/// A bad sector: one object can't be read.
struct BadSector(String);

#[async_trait]
impl Hook for BadSector {
    async fn before(&self, action: Action, name: &str) -> Result<(), Error> {
        if matches!(action, Action::Read) && name == self.0 {
            let cause = std::io::Error::other("input/output error");
            return Err(Error::Store { action: "read", object: name.to_owned(), cause });
        }
        Ok(())
    }
}

async fn an_object_that_cannot_be_read_is_named_and_all_others_are_verified(world: World) {
    world.save("first", &[(b"a", prose(100_000, 1))], None).await;
    // Broken in another way, in an image whose objects can all be read.
    let other = packs(&world).pop_last().unwrap();
    let good = fs::read(world.path(&other)).unwrap();
    fs::write(world.path(&other), b"short").unwrap();
    let before = world.objects();
    world.save("second", &[(b"a", prose(100_000, 2))], None).await;
    let objects = world.objects();
    let of_images = objects.keys().filter(|name| name.starts_with("blobs/") || name.starts_with("refs/"));
    for name in of_images.filter(|name| !before.contains_key(*name)) {
        let backend = Arc::new(HookedBackend::new(world.backend().await, Arc::new(BadSector(name.clone()))));
        let repository = Repository::open_over(backend, &world.location(), &world.keyring, &world.seams).await.unwrap();
        let report = repository.verify(Scope::All, &|_| {}).await.unwrap();
        let found = report.broken.iter().find(|broken| broken.object == *name);
        let found = found.unwrap_or_else(|| panic!("{name} is not named: {:?}", report.broken));
        assert!(!found.images.is_empty() && found.why.contains("input/output error"), "{found:?}");
        assert!(report.broken.iter().any(|broken| broken.object == other), "{name}: {:?}", report.broken);
    }
    fs::write(world.path(&other), good).unwrap();
    assert_eq!(broken(&world.repository).await, Vec::<String>::new());
}

async fn an_image_that_is_broken_keeps_no_other_from_a_reindex(world: World) {
    let mut saved = Vec::new();
    for title in ["first", "second", "third"] {
        saved.push(world.save(title, &[(b"a", prose(1000, 1))], None).await);
    }
    saved.sort_by_key(|saved| saved.reference.image);
    fs::remove_file(world.path(&format!("blobs/sha256/{}", saved[0].reference.record.hex()))).unwrap();
    fs::write(world.path(&format!("refs/{}", saved[1].reference.image)), b"no ref").unwrap();
    let found: Vec<_> = world.repository.reindex().collect().await;
    assert_eq!(found.len(), 3);
    for (saved, (object, one)) in saved.iter().zip(&found) {
        assert_eq!(object.as_deref(), Some(format!("refs/{}", saved.reference.image).as_str()));
        assert_eq!(one.is_ok(), saved.reference.image == found[2].1.as_ref().unwrap().reference.image, "{object:?}");
    }
}

async fn an_image_whose_ref_was_lost_is_forgotten_by_its_deletion(world: World) {
    let saved = world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let reference = format!("refs/{}", saved.reference.image);
    fs::remove_file(world.path(&reference)).unwrap();
    assert_eq!(broken(&world.repository).await, [reference]);
    world.repository.delete_image(saved.reference.image).await.unwrap();
    assert_eq!(broken(&world.repository).await, Vec::<String>::new());
}

/// Fails every call from one on.
struct Killed(std::sync::atomic::AtomicUsize, usize);

#[async_trait]
impl Hook for Killed {
    async fn before(&self, _: Action, name: &str) -> Result<(), Error> {
        if self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < self.1 {
            return Ok(());
        }
        Err(Error::Store { action: "reach", object: name.to_owned(), cause: std::io::Error::other("killed") })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_is_killed_anywhere_and_done_again_leaves_nothing() {
    for at in 0.. {
        let world = World::new().await;
        let kept = world.save("kept", &[(b"a", prose(1000, 1))], None).await;
        let gone = world.save("gone", &[(b"a", prose(1000, 2))], None).await;
        for saved in [&kept, &gone] {
            world.repository.note(&saved.reference.record, &note("one")).await.unwrap();
            world.repository.note(&saved.reference.record, &note("two")).await.unwrap();
        }
        let backend = HookedBackend::new(world.backend().await, Arc::new(Killed(Default::default(), at)));
        let doomed =
            Repository::open_over(Arc::new(backend), &world.location(), &world.keyring, &world.seams).await.ok();
        let ended = match &doomed {
            Some(doomed) => doomed.delete_image(gone.reference.image).await.is_ok(),
            None => false,
        };
        world.repository.delete_image(gone.reference.image).await.unwrap();
        world.repository.collect(&now()).await.unwrap();
        assert_eq!(broken(&world.repository).await, Vec::<String>::new(), "call {at}");
        assert_eq!(world.repository.notes(&kept.reference.record).await.unwrap().len(), 2);
        for (name, bytes) in world.objects() {
            let traces = [gone.reference.image.to_string(), gone.reference.record.hex()];
            let text = String::from_utf8_lossy(&bytes).into_owned();
            assert!(
                !traces.iter().any(|trace| name.contains(trace) || text.contains(trace)),
                "call {at}: {name} is left"
            );
        }
        if ended {
            return;
        }
        assert!(at < 200, "a deletion comes to its end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collection_that_was_killed_at_its_end_leaves_holds_no_save_up() {
    let world = World::new().await;
    let (_, _, session) = world.begin(None).await;
    let layer = gzip(b"layer");
    put_blob(&session, &layer).await;
    // The list of a collection that has deleted all of it: its epoch is gone, this is not.
    let waiting = CollectOptions { grace: Duration::from_secs(3600), wait: false, ..now() };
    world.repository.collect(&waiting).await.unwrap();
    let epoch = world.objects().into_keys().find(|name| name.starts_with("condemned/")).unwrap();
    fs::rename(world.path(&epoch), world.path(&format!("{epoch}.deleting"))).unwrap();
    // An operation that began before it was found.
    let running = operation(&world);
    world.repository.pin(running, &[]).await.unwrap();
    let old = fs::File::options().write(true).open(world.path(&format!("pins/{running}/begun"))).unwrap();
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(600)).unwrap();
    world.repository.collect(&waiting).await.unwrap();
    assert!(world.objects().into_keys().all(|name| !name.ends_with(".deleting")));
}

async fn a_pin_is_renewed_only_while_it_is_there(world: World) {
    let one = operation(&world);
    world.repository.renew(one).await.unwrap();
    assert_eq!(world.repository.pins().await.unwrap(), [], "a renewal makes no pin");
    world.repository.pin(one, &[]).await.unwrap();
    world.repository.renew(one).await.unwrap();
    assert_eq!(world.repository.pins().await.unwrap(), [one]);
    world.repository.unpin(one).await.unwrap();
    world.repository.renew(one).await.unwrap();
    assert_eq!(world.repository.pins().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_opens_with_its_key_when_what_tells_of_the_key_is_lost() {
    let world = World::new().await;
    let saved = world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let name = format!("keys/repository/{}", world.keyring.ids()[0]);
    fs::remove_file(world.path(&name)).unwrap();
    let repository = world.reopen().await;
    assert_eq!(broken(&repository).await, [name]);
    read_all(&repository, &world.seams, &saved.reference).await.unwrap();
    let stranger = ocopea_repository::Keyring::generate(&world.seams);
    assert!(Repository::open(&world.location(), &world.stores, &stranger, &world.seams).await.is_err());
    // The next start makes it again.
    repository.key_add(&world.keyring).await.unwrap();
    assert_eq!(broken(&repository).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_keys_of_one_team_keep_no_other_team_from_a_new_key() {
    let mut world = World::new().await;
    world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let keys = world.objects().into_keys().find(|name| name.starts_with("keys/teams/")).unwrap();
    world.team = ocopea_protocol::ids::TeamId::generate(&world.seams);
    let second = world.save("second", &[(b"a", prose(1000, 2))], None).await;
    fs::write(world.path(&keys), b"nothing").unwrap();
    let mut both = world.keyring.clone();
    both.add_generated(&world.seams);
    let told = world.repository.key_add(&both).await;
    assert!(matches!(told, Err(Error::Damaged { .. })), "{told:?}");
    both.remove(&world.keyring.ids()[0]).unwrap();
    let repository = Repository::open(&world.location(), &world.stores, &both, &world.seams).await.unwrap();
    read_all(&repository, &world.seams, &second.reference).await.unwrap();
}
