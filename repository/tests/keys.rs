//! Repository keys that are added, rotated and removed, also when that stops between its steps.

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use common::*;
use ocopea_repository::{
    Error, ImageSession, KeyId, Keyring, Repository, Scope,
    backend::{Action, Hook, HookedBackend},
};

/// Every call from one on fails, as for a process that was killed.
struct Killed(AtomicUsize, usize);

#[async_trait]
impl Hook for Killed {
    async fn before(&self, _: Action, name: &str) -> Result<(), Error> {
        if self.0.fetch_add(1, SeqCst) < self.1 {
            return Ok(());
        }
        Err(Error::Store { action: "reach", object: name.to_owned(), cause: std::io::Error::other("killed") })
    }
}

impl World {
    /// Opens the repository for a process that will be killed at a call. `None`: before it was open.
    async fn doomed(&self, at: usize) -> Option<Repository> {
        let backend = HookedBackend::new(self.backend().await, Arc::new(Killed(AtomicUsize::new(0), at)));
        Repository::open_over(Arc::new(backend), &self.location(), &self.keyring, &self.seams).await.ok()
    }

    async fn opened_with(&self, keyring: &Keyring) -> Result<Repository, Error> {
        Repository::open(&self.location(), &self.stores, keyring, &self.seams).await
    }

    fn packs(&self) -> BTreeMap<String, Vec<u8>> {
        self.objects().into_iter().filter(|(name, _)| name.starts_with("blobs/")).collect()
    }
}

fn without(keyring: &Keyring, id: &KeyId) -> Keyring {
    let mut left = keyring.clone();
    left.remove(id).unwrap();
    left
}

/// Every image is read whole, and nothing is broken.
async fn all_is_read(world: &World, keyring: &Keyring, images: usize) {
    let repository = world.opened_with(keyring).await.unwrap();
    let references = repository.images().await.unwrap();
    assert_eq!(references.len(), images);
    for reference in references {
        read_all(&repository, &world.seams, &reference).await.unwrap();
    }
    assert_eq!(repository.verify(Scope::All, &|_| {}).await.unwrap().broken, vec![]);
}

on_every_store!(
    a_key_that_is_added_opens_what_was_saved_before,
    what_an_agent_is_given_for_one_team_opens_nothing_of_another_teams,
);

async fn a_key_that_is_added_opens_what_was_saved_before(world: World) {
    world.save("first", &[(b"a", prose(10_000, 1))], None).await;
    let packs = world.packs();
    let mut both = world.keyring.clone();
    let new = both.add_generated(&world.seams);
    world.repository.key_add(&both).await.unwrap();
    all_is_read(&world, &without(&both, &world.keyring.ids()[0]), 1).await;
    all_is_read(&world, &without(&both, &new), 1).await;
    assert_eq!(world.packs(), packs, "no pack is touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_opens_nothing_that_is_there_and_nothing_new_even_with_old_copies_of_key_objects() {
    let mut world = World::new().await;
    let old = world.keyring.clone();
    let first = world.save("first", &[(b"a", prose(10_000, 1))], None).await;
    // Whoever had the key once may have kept copies of what it opened.
    let copies: BTreeMap<String, Vec<u8>> =
        world.objects().into_iter().filter(|(name, _)| name.starts_with("keys/")).collect();
    world.keyring.add_generated(&world.seams);
    world.repository.key_rotate(&world.keyring).await.unwrap();
    world.repository.key_remove(&old.ids()[0]).await.unwrap();
    world.keyring = world.repository.keyring();
    let second = world.save("second", &[(b"a", prose(10_000, 2))], Some(&first.reference.record)).await;
    let refused = world.opened_with(&old).await.err();
    assert!(matches!(refused, Some(Error::WrongKey { .. })), "{refused:?}");
    all_is_read(&world, &world.keyring, 2).await;

    let kept = world.objects();
    for (name, bytes) in &copies {
        std::fs::write(world.path(name), bytes).unwrap();
    }
    let thief = world.opened_with(&old).await.unwrap();
    assert_eq!(thief.read_record(&first.reference.record).await.unwrap(), first.record);
    let read = thief.read_record(&second.reference.record).await.err();
    assert!(matches!(read, Some(Error::WrongKey { .. })), "{read:?}");
    for name in copies.keys() {
        match kept.get(name) {
            Some(bytes) => std::fs::write(world.path(name), bytes).unwrap(),
            None => std::fs::remove_file(world.path(name)).unwrap(),
        }
    }
    all_is_read(&world, &world.keyring, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_does_not_come_back_through_somebody_who_still_holds_it() {
    let mut world = World::new().await;
    world.save("first", &[(b"a", prose(1000, 1))], None).await;
    let old = world.keyring.ids()[0].clone();
    world.keyring.add_generated(&world.seams);
    world.repository.key_add(&world.keyring).await.unwrap();
    let other = world.reopen().await;
    world.repository.key_remove(&old).await.unwrap();
    // The other one has both keys still, and makes keys for another team, too.
    other.new_image_key(world.team).await.unwrap();
    other.new_image_key(ocopea_protocol::ids::TeamId::generate(&world.seams)).await.unwrap();
    for (name, bytes) in world.objects() {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!name.starts_with("keys/") || !text.contains(old.as_str()), "{name} is wrapped for the removed key");
    }
    let alone = Keyring::parse(&other.keyring().to_text()).unwrap();
    all_is_read(&world, &without(&alone, &old), 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_changed_and_killed_anywhere_leave_every_image_readable_and_are_changed_by_the_next_try() {
    for change in ["add", "rotate", "remove"] {
        for at in 0.. {
            let mut world = World::new().await;
            let first = world.keyring.ids()[0].clone();
            world.save("first", &[(b"a", prose(1000, 1))], None).await;
            world.team = ocopea_protocol::ids::TeamId::generate(&world.seams);
            world.save("second", &[(b"a", prose(1000, 2))], None).await;
            let mut both = world.keyring.clone();
            both.add_generated(&world.seams);
            if change == "remove" {
                world.repository.key_add(&both).await.unwrap();
                world.keyring = both.clone();
            }
            let run = async |repository: &Repository| match change {
                "add" => repository.key_add(&both).await,
                "rotate" => repository.key_rotate(&both).await,
                _ => repository.key_remove(&first).await,
            };
            let ended = match world.doomed(at).await {
                Some(repository) => run(&repository).await.is_ok(),
                None => false,
            };
            // Whoever comes next holds the key file, which has both.
            all_is_read(&world, &both, 2).await;
            let next = world.opened_with(&both).await.unwrap();
            run(&next).await.unwrap();
            let left = if change == "remove" { without(&both, &first) } else { both.clone() };
            all_is_read(&world, &left, 2).await;
            let old = without(&both, &left.ids()[0]);
            if change == "remove" {
                assert!(matches!(world.opened_with(&old).await.err(), Some(Error::WrongKey { .. })));
            } else {
                all_is_read(&world, &old, 2).await;
            }
            if ended {
                break;
            }
            assert!(at < 100, "{change} comes to its end");
        }
    }
}

/// The bucket is shared, and an agent may read all of it. What it was given for its own work opens that work alone.
async fn what_an_agent_is_given_for_one_team_opens_nothing_of_another_teams(mut world: World) {
    let canary = b"canary-of-another-team";
    let theirs = world.save("canary-of-another-team", &[(b"a", canary.repeat(400))], None).await;
    world.team = ocopea_protocol::ids::TeamId::generate(&world.seams);
    let own = world.save("ours", &[(b"a", prose(5000, 1))], None).await;
    let next = world.begin(Some(&own.reference.record)).await.1;
    let given = [world.repository.access_to_read(&own.reference.record).await.unwrap(), next];
    let same_team = world.save("ours, too", &[(b"a", prose(5000, 2))], None).await;
    for access in &given {
        let session = ImageSession::open(access, &world.stores, &world.seams).await.unwrap();
        // Neither another team's image, nor another image of its own team.
        for other in [&theirs, &same_team] {
            assert!(session.read_record(&other.reference.record).await.is_err());
            for component in &other.record.components {
                assert!(session.read_config(&component.manifest).await.is_err(), "{}", component.name);
                let opened = async { session.reader(&component.manifest).await?.streams().await.map(drop) };
                assert!(opened.await.is_err(), "{}", component.name);
            }
        }
        // Nor can it be given away by what the store holds: the keys that open more are not among those that it has.
        let held = keys_in(access);
        let mut keys = vec![world.repository.unwrap(&theirs.key).await.unwrap()];
        keys.push(world.repository.unwrap(&same_team.key).await.unwrap());
        for key in keys {
            assert!(!held.windows(32).any(|part| part == key.0), "a key that isn't its own");
        }
    }
    assert!(world.objects().values().all(|bytes| !bytes.windows(canary.len()).any(|part| part == canary)));
}

/// All bytes of what goes to the agent, keys included.
fn keys_in(access: &ocopea_protocol::image::ImageAccess) -> Vec<u8> {
    let mut held = access.image_key.0.to_vec();
    held.extend(access.hash_key.0);
    held.extend(access.base.iter().flat_map(|base| base.image_key.0));
    held
}
