//! What a team owns is that team's: every call that takes a team, called for each of two.

use std::collections::BTreeMap;

use ocopea_catalog_db::{Catalog, CatalogError, access::Actor, images::ImageSearch, model::Role};
use ocopea_protocol::ids::{EnvironmentId, ImageId, OperationId};

use crate::{
    on_both_engines,
    world::{World, commit, new_task},
};

on_both_engines! {
    a_team_sees_what_it_owns_and_nothing_else,
    a_role_never_widens_what_a_team_sees,
}

/// What one team owns.
struct Own {
    admin: Actor,
    image: ImageId,
    environment: EnvironmentId,
    operation: OperationId,
}

/// The same names in every team: only ids and contents tell them apart.
async fn furnish(world: &World, team: &str) -> Own {
    let admin = world.admin(team).await;
    let site = world.catalog.ensure_site(&format!("site-of-{team}")).await.unwrap();
    let mut image = world.image(admin.team, "same name");
    image.labels = BTreeMap::from([("label".to_owned(), "same".to_owned())]);
    let environment = world.environment(admin.team, site, "same-name");
    let operation = world.running(admin.team, &[new_task("one", Some(site), &[])]).await;
    commit(&world.catalog, async |t| {
        t.add_image(&image).await.unwrap();
        t.add_comment(image.id, "ann", team).await.unwrap();
        t.add_environment(&environment).await.unwrap();
        t.remember_request(admin.team, "same key", "request", operation.id).await.unwrap();
    })
    .await;
    Own { admin, image: image.id, environment: environment.id, operation: operation.id }
}

/// Every way to ask for something of a team: the call's name and the ids that it answers with.
async fn everything_seen(catalog: &Catalog, asker: &Actor, ids: &Own) -> BTreeMap<&'static str, Vec<String>> {
    let team = asker.team;
    let found = |answer: Result<String, CatalogError>| match answer {
        Ok(id) => vec![id],
        Err(CatalogError::NotFound { .. }) => vec![],
        Err(error) => panic!("{error}"),
    };
    let with = |search: ImageSearch| async move {
        let images = catalog.images(team, &ImageSearch { limit: 100, ..search }).await.unwrap();
        images.iter().map(|image| image.id.to_string()).collect::<Vec<_>>()
    };
    let text = |word: &str| ImageSearch { text: vec![word.to_owned()], ..ImageSearch::default() };
    let label = ImageSearch { labels: vec![("label".to_owned(), None)], ..ImageSearch::default() };
    let labelled = ImageSearch { labels: vec![("label".to_owned(), Some("same".to_owned()))], ..Default::default() };
    let application = ImageSearch { application: Some("shop".to_owned()), ..ImageSearch::default() };
    let creator = ImageSearch { creator: Some("ann".to_owned()), ..ImageSearch::default() };
    let known = catalog.known_request(team, "same key", "request").await.unwrap();
    BTreeMap::from([
        ("images", with(ImageSearch::default()).await),
        ("images by text", with(text("same")).await),
        ("images by label", with(label).await),
        ("images by label's value", with(labelled).await),
        ("images by application", with(application).await),
        ("images by person", with(creator).await),
        ("image by id", found(catalog.image(team, &ids.image.to_string()).await.map(|i| i.id.to_string()))),
        ("image by name", found(catalog.image(team, "same name").await.map(|i| i.id.to_string()))),
        (
            "last image",
            catalog.last_image_of(team, "shop", None, None).await.unwrap().iter().map(|i| i.id.to_string()).collect(),
        ),
        ("comments", catalog.comments(team, ids.image).await.unwrap().into_iter().map(|c| c.body).collect()),
        (
            "environments",
            catalog.environments(team, None, 1000).await.unwrap().iter().map(|e| e.id.to_string()).collect(),
        ),
        (
            "environment by id",
            found(catalog.environment(team, &ids.environment.to_string()).await.map(|e| e.id.to_string())),
        ),
        ("environment by name", found(catalog.environment(team, "same-name").await.map(|e| e.id.to_string()))),
        ("operations", catalog.operations(team, None, 100).await.unwrap().iter().map(|o| o.id.to_string()).collect()),
        ("operation", found(catalog.operation(team, ids.operation).await.map(|o| o.id.to_string()))),
        ("tasks", catalog.tasks(team, ids.operation).await.unwrap().iter().map(|t| t.operation.to_string()).collect()),
        ("known request", known.iter().map(ToString::to_string).collect()),
    ])
}

async fn a_team_sees_what_it_owns_and_nothing_else(world: &World) {
    let (one, two) = (furnish(world, "one").await, furnish(world, "two").await);
    for (asker, own, name) in [(&one.admin, &one, "one"), (&two.admin, &two, "two")] {
        for (call, seen) in everything_seen(&world.catalog, asker, own).await {
            let expected = match call {
                "comments" => name.to_owned(),
                call if call.contains("environment") => own.environment.to_string(),
                "operations" | "operation" | "tasks" | "known request" => own.operation.to_string(),
                _ => own.image.to_string(),
            };
            assert_eq!(seen, [expected], "{name}: {call}");
        }
    }
    // Ids of the other team's things lead nowhere; names lead to one's own.
    for (asker, own, other) in [(&one.admin, &one, &two), (&two.admin, &two, &one)] {
        for (call, seen) in everything_seen(&world.catalog, asker, other).await {
            let foreign = [other.image.to_string(), other.environment.to_string(), other.operation.to_string()];
            assert!(seen.iter().all(|id| !foreign.contains(id)), "{call}: {seen:?}");
            if call.ends_with("by id") || matches!(call, "comments" | "operation" | "tasks") {
                assert!(seen.is_empty(), "{call}: {seen:?}");
            }
        }
        assert_ne!(own.image, other.image);
    }
    // A team of nobody's sees nothing.
    let stranger = world.admin("three").await;
    for (call, seen) in everything_seen(&world.catalog, &stranger, &one).await {
        assert!(seen.is_empty(), "{call}: {seen:?}");
    }
}

async fn a_role_never_widens_what_a_team_sees(world: &World) {
    let (one, two) = (furnish(world, "one").await, furnish(world, "two").await);
    let expected = everything_seen(&world.catalog, &one.admin, &one).await;
    for role in [Role::Viewer, Role::Operator, Role::Administrator] {
        let member = world.catalog.ensure_member("one", role.as_str(), role).await.unwrap();
        world.catalog.add_token(member.user, "t", role.as_str(), role, None).await.unwrap();
        let actor = world.catalog.authenticate(role.as_str()).await.unwrap().unwrap();
        assert_eq!((actor.team, actor.role), (one.admin.team, role));
        assert_eq!(everything_seen(&world.catalog, &actor, &one).await, expected, "{role:?}");
        let foreign = everything_seen(&world.catalog, &actor, &two).await;
        assert!(foreign["image by id"].is_empty() && foreign["operation"].is_empty(), "{role:?}");
    }
}
