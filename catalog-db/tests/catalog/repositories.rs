//! Repositories: the given one, added ones, what lies in which, and who holds one against its removal.

use std::time::Duration;

use ocopea_catalog_db::{
    CatalogError,
    images::ImageSearch,
    model::OperationState,
    repositories::{GIVEN, Held, Repository},
};
use ocopea_protocol::{
    ids::RepositoryId,
    image::{Location, StoreLimits},
};
use uuid::Uuid;

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    what_was_there_before_lies_in_the_given_one,
    the_given_one_is_written_down_once_and_follows_its_start,
    an_added_one_is_refused_by_name_where_it_is_there_already,
    how_one_is_got_at_changes_and_nothing_else,
    exactly_one_is_the_default,
    one_goes_only_when_nothing_lies_in_it_and_nobody_uses_it,
    images_are_told_apart_by_where_they_lie,
}

fn place(path: &str) -> Location {
    Location::Directory { path: path.to_owned() }
}

async fn given(world: &World) -> Repository {
    world.catalog.ensure_given_repository(&place("/given"), &StoreLimits::default(), Uuid::from_u128(1)).await.unwrap()
}

fn new(world: &World, name: &str, own: u128) -> Repository {
    Repository {
        id: RepositoryId::generate(&world.catalog.seams),
        name: name.to_owned(),
        location: place(&format!("/{name}")),
        access: "{}".to_owned(),
        sealed: Some("c2VhbGVk".to_owned()),
        limits: StoreLimits { requests: Some(4), upload: None, download: Some(1 << 20) },
        found: None,
        found_at: None,
        own_id: Some(Uuid::from_u128(own)),
        is_given: false,
        is_default: false,
        created: world.catalog.seams.clock.now(),
    }
}

async fn add(world: &World, new: &Repository) {
    commit(&world.catalog, async |t| t.add_repository(new).await.unwrap()).await;
}

async fn remove(world: &World, id: RepositoryId) -> Result<(), CatalogError> {
    let transaction = world.catalog.begin().await?;
    transaction.remove_repository(id).await?;
    transaction.commit().await
}

/// As a coordinator of the version before wrote it, and still does beside this one.
async fn what_was_there_before_lies_in_the_given_one(world: &World) {
    let team = world.admin("one").await.team;
    world.add_image(&world.image(team, "old")).await;
    world.execute("UPDATE images SET repository = NULL").await;
    let given = given(world).await;
    let old = world.catalog.image(team, "old").await.unwrap();
    assert_eq!((old.repository, given.reference()), (None, None));
    let held = world.catalog.held_by_repositories().await.unwrap();
    assert_eq!(held.get(&given.reference()), Some(&Held { images: 1, new_bytes: 4 }));
    let operation = world.running(team, &[]).await;
    assert_eq!(world.catalog.operation(team, operation.id).await.unwrap().repository, None);
}

async fn the_given_one_is_written_down_once_and_follows_its_start(world: &World) {
    let first = given(world).await;
    assert_eq!((first.name.as_str(), first.is_given, first.is_default), (GIVEN, true, true));
    world.catalog.note_repository(first.id, "\"seen\"").await.unwrap();
    world.clock.advance(Duration::from_secs(60));
    let limits = StoreLimits { requests: Some(2), ..StoreLimits::default() };
    let again = world.catalog.ensure_given_repository(&place("/moved"), &limits, Uuid::from_u128(1)).await.unwrap();
    assert_eq!((again.id, again.created, again.found.as_deref()), (first.id, first.created, Some("\"seen\"")));
    assert_eq!((again.location, again.limits), (place("/moved"), limits));
    assert_eq!(world.catalog.repositories().await.unwrap().len(), 1);
}

async fn an_added_one_is_refused_by_name_where_it_is_there_already(world: &World) {
    given(world).await;
    let archive = new(world, "archive", 2);
    add(world, &archive).await;
    let known = world.catalog.repository("archive").await.unwrap();
    assert_eq!(known, archive);
    assert_eq!(world.catalog.repository(&archive.id.to_string()).await.unwrap(), archive);
    for (name, own, why) in [
        ("archive", 3, "there is a repository archive already"),
        ("other", 2, "it is the repository archive already"),
        ("other", 1, "it is the repository default already"),
        ("default", 9, "there is a repository default already"),
    ] {
        let transaction = world.catalog.begin().await.unwrap();
        let refused = transaction.add_repository(&new(world, name, own)).await.unwrap_err();
        assert!(matches!(&refused, CatalogError::Conflict(found) if found.contains(why)), "{refused}");
    }
    let absent = world.catalog.repository("absent").await.unwrap_err();
    assert!(matches!(absent, CatalogError::NotFound { what: "repository", .. }));
}

async fn how_one_is_got_at_changes_and_nothing_else(world: &World) {
    let given = given(world).await;
    let archive = new(world, "archive", 2);
    add(world, &archive).await;
    let changed = Repository {
        access: "{\"agents_have_keys\":true}".to_owned(),
        sealed: None,
        limits: StoreLimits::default(),
        found: Some("\"seen\"".to_owned()),
        found_at: Some(world.catalog.seams.clock.now()),
        ..archive.clone()
    };
    let other_name = Repository { name: "other".to_owned(), location: place("/other"), ..changed.clone() };
    commit(&world.catalog, async |t| t.change_repository(&other_name).await.unwrap()).await;
    assert_eq!(world.catalog.repository("archive").await.unwrap(), changed);
    let transaction = world.catalog.begin().await.unwrap();
    let refused = transaction.change_repository(&given).await;
    assert!(matches!(refused, Err(CatalogError::NotFound { .. })), "it is set where coordinators are started");
}

async fn exactly_one_is_the_default(world: &World) {
    let given = given(world).await;
    let added = [new(world, "a", 2), new(world, "b", 3)];
    for one in &added {
        add(world, one).await;
    }
    for id in [added[0].id, added[1].id, given.id, added[1].id] {
        commit(&world.catalog, async |t| t.set_default_repository(id).await.unwrap()).await;
        let all = world.catalog.repositories().await.unwrap();
        let defaults: Vec<_> = all.iter().filter(|one| one.is_default).map(|one| one.id).collect();
        assert_eq!(defaults, [id]);
    }
    let transaction = world.catalog.begin().await.unwrap();
    let nowhere = transaction.set_default_repository(RepositoryId::generate(&world.catalog.seams)).await;
    assert!(matches!(nowhere, Err(CatalogError::NotFound { .. })));
}

async fn one_goes_only_when_nothing_lies_in_it_and_nobody_uses_it(world: &World) {
    let team = world.admin("one").await.team;
    let given = given(world).await;
    let archive = new(world, "archive", 2);
    add(world, &archive).await;
    let refusal = async |id| remove(world, id).await.unwrap_err().to_string();
    assert!(refusal(given.id).await.contains("started with"));
    commit(&world.catalog, async |t| t.set_default_repository(archive.id).await.unwrap()).await;
    assert!(refusal(archive.id).await.contains("is the default one"));
    commit(&world.catalog, async |t| t.set_default_repository(given.id).await.unwrap()).await;
    let mut images = [world.image(team, "a"), world.image(team, "b")];
    for image in &mut images {
        image.repository = Some(archive.id);
        world.add_image(image).await;
    }
    assert!(refusal(archive.id).await.contains("archive holds 2 images"));
    // One that is being deleted is there until it is gone.
    commit(&world.catalog, async |t| t.hide_image(images[0].id).await.unwrap()).await;
    commit(&world.catalog, async |t| t.remove_image(images[1].id).await.unwrap()).await;
    assert!(refusal(archive.id).await.contains("archive holds 1 image"));
    commit(&world.catalog, async |t| t.remove_image(images[0].id).await.unwrap()).await;
    let mut operation = world.operation(team);
    operation.repository = Some(archive.id);
    commit(&world.catalog, async |t| {
        t.hold_repository(operation.repository).await.unwrap();
        t.add_operation(&operation).await.unwrap();
    })
    .await;
    assert!(refusal(archive.id).await.contains("used by 1 operation"));
    operation.state = OperationState::Failed;
    commit(&world.catalog, async |t| t.save_operation(&operation).await.unwrap()).await;
    remove(world, archive.id).await.unwrap();
    assert!(matches!(remove(world, archive.id).await, Err(CatalogError::NotFound { .. })));
    let late = world.catalog.begin().await.unwrap();
    assert!(matches!(late.hold_repository(Some(archive.id)).await, Err(CatalogError::NotFound { .. })));
    // Its name and its place are free again.
    drop(late);
    add(world, &new(world, "archive", 2)).await;
}

async fn images_are_told_apart_by_where_they_lie(world: &World) {
    let team = world.admin("one").await.team;
    given(world).await;
    let archive = new(world, "archive", 2);
    add(world, &archive).await;
    for (name, repository) in [("here", None), ("there", Some(archive.id))] {
        world.clock.advance(Duration::from_secs(1));
        let mut image = world.image(team, name);
        image.repository = repository;
        world.add_image(&image).await;
        let last = world.catalog.last_image_of(team, "shop", None, repository).await.unwrap().unwrap();
        assert_eq!((last.name.as_str(), last.repository), (name, repository));
    }
    let last = world.catalog.last_image_of(team, "shop", None, None).await.unwrap().unwrap();
    assert_eq!(last.name, "here", "what lies elsewhere can't be shared with");
    let all = ImageSearch { limit: 10, ..ImageSearch::default() };
    assert_eq!(world.catalog.images(team, &all).await.unwrap().len(), 2);
    let held = world.catalog.held_by_repositories().await.unwrap();
    assert_eq!(held.get(&Some(archive.id)), Some(&Held { images: 1, new_bytes: 4 }));
    // An image can't lie where nothing is.
    let mut lost = world.image(team, "lost");
    lost.repository = Some(RepositoryId::generate(&world.catalog.seams));
    let transaction = world.catalog.begin().await.unwrap();
    assert!(transaction.add_image(&lost).await.is_err());
}
