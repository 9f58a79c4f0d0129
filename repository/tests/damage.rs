//! Every object of a small repository is damaged in every way: it must be found, named with every image that it
//! affects, and never be read as good.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use ocopea_protocol::ids::ImageId;
use ocopea_repository::{Broken, ImageSession, Note, Scope};

/// A kind of damage, and what it makes of an object; `None` where it can't be done.
type Damage = (&'static str, fn(&[u8], Option<&[u8]>) -> Option<Option<Vec<u8>>>);

fn flipped(bytes: &[u8], at: usize) -> Option<Option<Vec<u8>>> {
    let mut out = bytes.to_vec();
    *out.get_mut(at)? ^= 0x10;
    Some(Some(out))
}

const DAMAGES: [Damage; 8] = [
    ("deleted", |_, _| Some(None)),
    ("emptied", |bytes, _| (!bytes.is_empty()).then(|| Some(vec![]))),
    ("cut by one byte", |bytes, _| bytes.len().checked_sub(1).map(|end| Some(bytes[..end].to_vec()))),
    ("cut in half", |bytes, _| (bytes.len() > 1).then(|| Some(bytes[..bytes.len() / 2].to_vec()))),
    ("flipped at its start", |bytes, _| flipped(bytes, 0)),
    ("flipped in the middle", |bytes, _| flipped(bytes, bytes.len() / 2)),
    ("flipped at its end", |bytes, _| flipped(bytes, bytes.len().checked_sub(2)?)),
    ("swapped with its neighbour", |bytes, other| {
        other.filter(|other| *other != bytes).map(|other| Some(other.to_vec()))
    }),
];

fn class(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').collect();
    parts[..parts.len() - 1].join("/")
}

struct Scene {
    world: World,
    images: Vec<Saved>,
    /// What each image reads as when nothing is damaged.
    good: BTreeMap<ImageId, BTreeMap<String, Vec<u8>>>,
    /// Images that need an object.
    users: BTreeMap<String, BTreeSet<ImageId>>,
}

async fn scene() -> Scene {
    let world = World::new().await;
    let mut content = prose(1_500_000, 1);
    let first = world.save("first", &[(b"a", content.clone()), (b"empty", vec![])], None).await;
    content.extend_from_slice(&prose(400_000, 2));
    let second = world.save("second", &[(b"a", content)], Some(&first.reference.record)).await;
    for body in ["1", "2"] {
        let note =
            Note { kind: "comment".to_owned(), body: body.to_owned(), by: "dana".to_owned(), at: Default::default() };
        world.repository.note(&first.reference.record, &note).await.unwrap();
    }
    world.repository.pin(operation(&world), &[first.reference.record]).await.unwrap();
    // Something unused, so that there is a list of condemned blobs.
    put_blob(&world.begin(None).await.2, b"unused").await;
    let waiting =
        ocopea_repository::CollectOptions { grace: std::time::Duration::from_secs(3600), wait: false, ..now() };
    world.repository.collect(&waiting).await.unwrap();
    std::fs::remove_file(world.path(&format!("blobs/sha256/{}", sha256(b"unused").hex()))).unwrap();
    let images = vec![first, second];
    let mut good = BTreeMap::new();
    for saved in &images {
        let all = read_all(&world.repository, &world.seams, &saved.reference).await.unwrap();
        good.insert(saved.reference.image, all);
    }
    let mut scene = Scene { world, images, good, users: BTreeMap::new() };
    scene.users = users(&scene).await;
    scene
}

/// Who needs what, found by another way than verification's: by what goes when the images are deleted one at a time.
async fn users(scene: &Scene) -> BTreeMap<String, BTreeSet<ImageId>> {
    let all: BTreeSet<ImageId> = scene.images.iter().map(|saved| saved.reference.image).collect();
    let mut users: BTreeMap<String, BTreeSet<ImageId>> = BTreeMap::new();
    for name in scene.world.objects().into_keys() {
        let of = match name.split('/').next().unwrap() {
            "refs" => all.iter().filter(|image| name.ends_with(&image.to_string())).copied().collect(),
            "notes" => BTreeSet::from([scene.images[0].reference.image]),
            "blobs" | "pins" | "condemned" | "index.json" => BTreeSet::new(),
            _ => all.clone(),
        };
        users.insert(name, of);
    }
    for (kept, other) in [(0, 1), (1, 0)] {
        let copy = tempfile::tempdir().unwrap();
        for (name, bytes) in scene.world.objects().iter().filter(|(name, _)| !name.starts_with("pins/")) {
            let path = copy.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let location = ocopea_protocol::image::Location::Directory { path: copy.path().to_str().unwrap().to_owned() };
        let world = &scene.world;
        let repository = ocopea_repository::Repository::open(
            &location,
            &ocopea_repository::StoreAccess::default(),
            &world.keyring,
            &world.seams,
        )
        .await
        .unwrap();
        repository.delete_image(scene.images[other].reference.image).await.unwrap();
        repository.collect(&now()).await.unwrap();
        for name in scene.world.objects().into_keys().filter(|name| name.starts_with("blobs/")) {
            if copy.path().join(&name).exists() {
                users.get_mut(&name).unwrap().insert(scene.images[kept].reference.image);
            }
        }
    }
    users
}

impl Scene {
    async fn broken(&self) -> Vec<Broken> {
        self.world.repository.verify(Scope::All, &|_| {}).await.unwrap().broken
    }

    /// An image reads as it was, or not at all.
    async fn nothing_false_is_read(&self, what: &str) {
        for saved in &self.images {
            if let Ok(read) = read_all(&self.world.repository, &self.world.seams, &saved.reference).await {
                assert!(read == self.good[&saved.reference.image], "{what}: something false was read");
            }
            if let Ok(record) = self.world.repository.read_record(&saved.reference.record).await {
                assert!(record == saved.record, "{what}: a false record was read");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_damage_to_any_object_is_found_named_and_never_read_as_good() {
    let scene = scene().await;
    assert_eq!(scene.broken().await, vec![]);
    let objects = scene.world.objects();
    let mut done = BTreeMap::new();
    for (name, bytes) in &objects {
        if ["clock", "reserve"].contains(&name.as_str()) || name.starts_with("tmp/") || name.starts_with("staging/") {
            continue;
        }
        let mut neighbours = objects.iter().filter(|(other, _)| class(other) == class(name) && *other != name);
        let neighbour = neighbours.next().map(|(_, bytes)| bytes.as_slice());
        for (how, damage) in DAMAGES {
            let Some(damaged) = damage(bytes, neighbour) else { continue };
            let may_go = name.starts_with("pins/") || name.starts_with("condemned/") || name.ends_with("00000002");
            // Whose absence harms nobody can't be missed; a pin is as good as the other one of its operation.
            if may_go && (damaged.is_none() || how.starts_with("swapped")) {
                continue;
            }
            let what = format!("{name} {how}");
            match damaged {
                Some(damaged) => std::fs::write(scene.world.path(name), damaged).unwrap(),
                None => std::fs::remove_file(scene.world.path(name)).unwrap(),
            }
            let broken = scene.broken().await;
            let named =
                broken.iter().find(|broken| broken.object == *name || name.starts_with(&format!("{}/", broken.object)));
            let named = named.unwrap_or_else(|| panic!("{what}: not found; found {broken:?}"));
            let affected: BTreeSet<ImageId> = named.images.iter().copied().collect();
            let expected = &scene.users[name];
            assert!(affected.is_superset(expected), "{what}: {affected:?} where {expected:?} are affected");
            if name == "index.json" {
                assert!(!affected.is_empty(), "{what}: no image is named");
            }
            scene.nothing_false_is_read(&what).await;
            std::fs::write(scene.world.path(name), bytes).unwrap();
            *done.entry(class(name)).or_insert(0) += 1;
        }
    }
    assert_eq!(scene.broken().await, vec![], "all is mended");
    println!("damages by class: {done:?}");
    for needed in ["blobs/sha256", "refs", "keys/repository", "pins", "condemned", ""] {
        assert!(done.keys().any(|class| class.starts_with(needed)), "no object of class {needed:?} was tried");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_key_of_another_image_opens_nothing() {
    let scene = scene().await;
    let mut access = scene.world.repository.access_to_read(&scene.images[0].reference.record).await.unwrap();
    access.image_key =
        scene.world.repository.access_to_read(&scene.images[1].reference.record).await.unwrap().image_key;
    let session = ImageSession::open(&access, &scene.world.stores, &scene.world.seams).await.unwrap();
    assert!(session.read_record(&scene.images[0].reference.record).await.is_err());
    assert!(session.reader(&scene.images[0].data.manifest).await.is_err());
    let config = scene.images[0].record.components[0].manifest;
    assert!(session.read_config(&config).await.is_err());
    // A wrong hash key reads nothing either: no chunk's hash fits.
    let mut access = scene.world.repository.access_to_read(&scene.images[0].reference.record).await.unwrap();
    access.hash_key = ocopea_protocol::secret::Secret32([9; 32]);
    let session = ImageSession::open(&access, &scene.world.stores, &scene.world.seams).await.unwrap();
    assert!(read_stream(&session, &scene.images[0].data.manifest, b"a").await.is_err());
}
