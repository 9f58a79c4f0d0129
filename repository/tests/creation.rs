//! A repository's beginning, stopped at any step, and places that must not become one.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use async_trait::async_trait;
use common::*;
use ocopea_protocol::{ids::TeamId, image::Location};
use ocopea_repository::{
    Error, Keyring, Repository, Scope, StoreAccess,
    backend::{Action, Backend, DirectoryBackend, Hook, HookedBackend},
};

/// Ends at the call of one number: it and everything after it fails, as for a process that was killed. `done`: the
/// call itself still took effect.
struct Killed {
    count: AtomicUsize,
    at: usize,
    done: bool,
}

#[async_trait]
impl Hook for Killed {
    async fn before(&self, _: Action, name: &str) -> Result<(), Error> {
        let number = self.count.fetch_add(1, SeqCst);
        if number > self.at || (number == self.at && !self.done) { Err(killed(name)) } else { Ok(()) }
    }

    async fn after(&self, _: Action, name: &str) -> Result<(), Error> {
        if self.done && self.count.load(SeqCst) > self.at { Err(killed(name)) } else { Ok(()) }
    }
}

fn killed(name: &str) -> Error {
    Error::Store { action: "reach", object: name.to_owned(), cause: std::io::Error::other("killed") }
}

/// Creates with a kill; answers whether it came through.
async fn create_killed(place: &tempfile::TempDir, keyring: &Keyring, at: usize, done: bool) -> bool {
    let root = place.path().join("repo");
    let location = Location::Directory { path: root.display().to_string() };
    let backend = Arc::new(DirectoryBackend::open(&root, seams(), true).await.unwrap()) as Arc<dyn Backend>;
    let backend = Arc::new(HookedBackend::new(backend, Arc::new(Killed { count: AtomicUsize::new(0), at, done })));
    Repository::create_over(backend, &location, keyring, &seams()).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_killed_anywhere_is_finished_by_the_next_one() {
    for done in [false, true] {
        for same_key in [true, false] {
            for at in 0.. {
                let (place, seams) = (tempfile::tempdir().unwrap(), seams());
                let first = Keyring::generate(&seams);
                let keyring = if same_key { first.clone() } else { Keyring::generate(&seams) };
                let through = create_killed(&place, &first, at, done).await;
                let location = Location::Directory { path: place.path().join("repo").display().to_string() };
                let repository = match Repository::open(&location, &StoreAccess::default(), &first, &seams).await {
                    // The kill came behind its last step.
                    Ok(repository) => repository,
                    Err(Error::NoRepository { .. }) => {
                        assert!(!through);
                        let created = Repository::create(&location, &StoreAccess::default(), &keyring, &seams).await;
                        created.unwrap_or_else(|error| panic!("killed at call {at} ({done}): {error}"))
                    }
                    Err(error) => panic!("killed at call {at} ({done}): {error}"),
                };
                let (root, stores) = (place.path().join("repo"), StoreAccess::default());
                let team = TeamId::generate(&seams);
                let world = World { place, root, location, stores, team, seams, keyring, repository };
                let saved = world.save("first", &[(b"a", prose(1000, 1))], None).await;
                assert_eq!(world.repository.images().await.unwrap(), [saved.reference]);
                assert_eq!(world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
                let keys = world.objects().into_keys().filter(|name| name.starts_with("keys/repository/")).count();
                assert_eq!(keys, 1, "no key is left that opens nothing");
                if through {
                    break;
                }
                assert!(at < 100, "creation comes to its end");
            }
        }
    }
}

on_every_store!(what_holds_images_or_other_files_never_becomes_a_new_repository,);

async fn what_holds_images_or_other_files_never_becomes_a_new_repository(world: World) {
    world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let before = world.objects();
    let other = Keyring::generate(&world.seams);
    let refused = Repository::create(&world.location(), &world.stores, &other, &world.seams).await.err();
    assert!(matches!(refused, Some(Error::Occupied { .. })), "{refused:?}");
    assert_eq!(world.objects(), before);

    // Damage that took its description doesn't make it a place for another one.
    std::fs::remove_file(world.path("ocopea-repository")).unwrap();
    let before = world.objects();
    for keyring in [&other, &world.keyring] {
        let refused = Repository::create(&world.location(), &world.stores, keyring, &world.seams).await.err();
        assert!(matches!(refused, Some(Error::Occupied { .. })), "{refused:?}");
        let over = Repository::create_over(world.backend().await, &world.location(), keyring, &world.seams).await;
        assert!(matches!(over.err(), Some(Error::Occupied { .. })));
    }
    assert_eq!(world.objects(), before);

    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("thesis.txt"), "mine").unwrap();
    let location = Location::Directory { path: place.path().display().to_string() };
    let refused = Repository::create(&location, &StoreAccess::default(), &other, &world.seams).await.err();
    assert!(matches!(refused, Some(Error::Occupied { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_creations_at_once_one_wins_and_its_key_opens_it() {
    for _ in 0..20 {
        let (place, seams) = (tempfile::tempdir().unwrap(), seams());
        let location = Location::Directory { path: place.path().join("repo").display().to_string() };
        let keyrings = [Keyring::generate(&seams), Keyring::generate(&seams)];
        let stores = StoreAccess::default();
        let both = keyrings.each_ref().map(|keyring| Repository::create(&location, &stores, keyring, &seams));
        let made = futures::future::join_all(both).await;
        let won: Vec<usize> = (0..2).filter(|n| made[*n].is_ok()).collect();
        assert_eq!(won.len(), 1, "{:?}", made.iter().map(|made| made.as_ref().err()).collect::<Vec<_>>());
        Repository::open(&location, &StoreAccess::default(), &keyrings[won[0]], &seams).await.unwrap();
    }
}
