//! Migrations and what the schema itself forbids.

use std::collections::BTreeSet;

use ocopea_catalog_db::{Catalog, CatalogError};
use ocopea_protocol::ids::{OperationId, SiteId, TeamId, UserId};
use ocopea_protocol::time::Timestamp;

use crate::{
    on_both_engines,
    world::{World, claim, commit, new_task, seams},
};

on_both_engines! {
    an_empty_database_gets_every_table,
    migrating_again_changes_nothing,
    what_refers_to_nothing_is_refused,
    a_lost_connection_is_made_again,
    a_catalog_of_a_newer_version_is_refused_in_words_and_left_as_it_is,
    a_coordinator_goes_on_beside_a_newer_version_that_added_to_the_catalog,
}

async fn tables(world: &World) -> BTreeSet<String> {
    let sql = if world.server.is_some() {
        "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'public'"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    };
    world.rows(sql).await.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

async fn an_empty_database_gets_every_table(world: &World) {
    let found = tables(world).await;
    for table in [
        "teams",
        "users",
        "memberships",
        "tokens",
        "sign_in_codes",
        "grants",
        "audit",
        "sites",
        "repositories",
        "images",
        "image_labels",
        "image_comments",
        "operations",
        "tasks",
        "attempts",
        "outbox",
        "environments",
        "idempotency",
        "epochs",
    ] {
        assert!(found.contains(table), "{table} is missing among {found:?}");
    }
}

async fn migrating_again_changes_nothing(world: &World) {
    let admin = world.admin("one").await;
    world.add_image(&world.image(admin.team, "kept")).await;
    let before = tables(world).await;
    let applied = world.number("SELECT count(*) FROM seaql_migrations").await;
    for _ in 0..2 {
        let again = world.again().await.unwrap();
        assert_eq!(again.image(admin.team, "kept").await.unwrap().name, "kept");
    }
    assert_eq!(tables(world).await, before);
    assert_eq!(world.number("SELECT count(*) FROM seaql_migrations").await, applied);
}

async fn what_refers_to_nothing_is_refused(world: &World) {
    let seams = &world.catalog.seams;
    let (no_team, no_user, no_site) = (TeamId::generate(seams), UserId::generate(seams), SiteId::generate(seams));
    let admin = world.admin("one").await;
    let refused = |what: &str, answer: Result<(), CatalogError>| {
        let error = answer.expect_err(what).to_string();
        assert!(error.to_lowercase().contains("foreign key"), "{what}: {error}");
    };
    let begin = || async { world.catalog.begin().await.unwrap() };

    refused("an operation of no team", begin().await.add_operation(&world.operation(no_team)).await.map(drop));
    let mut nowhere = world.operation(admin.team);
    nowhere.site = Some(no_site);
    refused("an operation at no site", begin().await.add_operation(&nowhere).await.map(drop));
    let nothing = OperationId::generate(seams);
    refused("a task of no operation", begin().await.add_tasks(nothing, &[new_task("a", None, &[])]).await);
    refused("an image of no team", begin().await.add_image(&world.image(no_team, "x")).await.map(drop));
    let gone = world.image(admin.team, "never added");
    refused("a comment on no image", begin().await.add_comment(gone.id, "ann", "hello").await);
    let nowhere = world.environment(admin.team, no_site, "env");
    refused("an environment at no site", begin().await.add_environment(&nowhere).await);
    refused("a code of nobody", world.catalog.add_sign_in_code(no_user, "hash", Timestamp(1)).await);
    let token = world.catalog.add_token(no_user, "x", "hash", ocopea_catalog_db::model::Role::Viewer, None).await;
    refused("a token of nobody", token.map(drop));

    for table in ["operations", "tasks", "images", "image_comments", "environments", "sign_in_codes", "tokens"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

/// PostgreSQL's server may be restarted under a running coordinator; SQLite's file may be open elsewhere.
async fn a_lost_connection_is_made_again(world: &World) {
    let admin = world.admin("one").await;
    if world.server.is_some() {
        world.disconnect();
    } else {
        world.again().await.unwrap();
    }
    world.add_image(&world.image(admin.team, "after")).await;
    assert!(world.catalog.image(admin.team, "after").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_coordinators_start_at_once_on_an_empty_database() {
    let world = World::postgresql().await;
    let (server, _) = world.server.as_ref().unwrap();
    let fresh = server.new_database();
    let url = server.url(&fresh);
    let opening: Vec<_> = (0..6)
        .map(|_| {
            let url = url.clone();
            async move { Catalog::connect(&url, seams().0).await.map(drop) }
        })
        .collect();
    for opened in futures::future::join_all(opening).await {
        opened.unwrap();
    }
    let applied = server.psql(&fresh, "SELECT count(*) FROM seaql_migrations");
    assert_eq!(applied, world.number("SELECT count(*) FROM seaql_migrations").await.to_string());
}

#[tokio::test]
async fn an_address_that_is_no_database_is_refused_without_repeating_it() {
    for url in ["", "mysql://root:hunter2@db/x", "http://hunter2@example.org", "/var/lib/hunter2"] {
        let error = Catalog::connect(url, seams().0).await.err().unwrap().to_string();
        assert!(error.contains("postgres://") && error.contains("sqlite:"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let unreachable = "postgres://ocopea:hunter2@127.0.0.1:1/ocopea";
    let error = Catalog::connect(unreachable, seams().0).await.err().unwrap().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_coordinators_start_at_once_on_the_catalog_of_an_older_version() {
    let world = World::postgresql().await;
    let (server, database) = world.server.as_ref().unwrap();
    let admin = world.admin("one").await;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let operation = world.running(admin.team, &[new_task("a", Some(site), &[])]).await;
    // As the version before left it.
    world.execute("ALTER TABLE outbox DROP COLUMN origin").await;
    world.execute("ALTER TABLE instances DROP COLUMN turn, DROP COLUMN mark").await;
    world.execute("DELETE FROM seaql_migrations WHERE version = 'm0005_several'").await;
    let before = world.number("SELECT count(*) FROM seaql_migrations").await;
    let opening = (0..4).map(|_| async { Catalog::connect(&world.url, seams().0).await });
    let opened: Vec<_> = futures::future::join_all(opening).await.into_iter().map(Result::unwrap).collect();
    for catalog in &opened {
        assert_eq!(catalog.tasks(admin.team, operation.id).await.unwrap().len(), 1);
        assert_eq!(catalog.outbox(None, 10).await.unwrap().len(), 1);
    }
    assert_eq!(server.psql(database, "SELECT count(*) FROM seaql_migrations"), (before + 1).to_string());
}

async fn a_catalog_of_a_newer_version_is_refused_in_words_and_left_as_it_is(world: &World) {
    let admin = world.admin("one").await;
    world.add_image(&world.image(admin.team, "kept")).await;
    world.execute("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_from_the_future', 1)").await;
    let error = world.again().await.err().unwrap();
    assert!(matches!(error, CatalogError::Newer(_)), "{error:?}");
    let words = error.to_string();
    assert!(words.contains("m9999_from_the_future") && words.contains("newer version of Ocopea"), "{words}");
    // One that runs goes on.
    assert!(world.catalog.image(admin.team, "kept").await.is_ok());
    world.execute("DELETE FROM seaql_migrations WHERE version = 'm9999_from_the_future'").await;
    assert!(world.again().await.unwrap().image(admin.team, "kept").await.is_ok());
}

async fn a_coordinator_goes_on_beside_a_newer_version_that_added_to_the_catalog(world: &World) {
    let admin = world.admin("one").await;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let work = async |name: &str| {
        world.add_image(&world.image(admin.team, name)).await;
        let operation = world.running(admin.team, &[new_task("a", Some(site), &[])]).await;
        let task = world.only_task(&operation).await;
        let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
        commit(&world.catalog, async |t| assert!(t.succeed(&claimed, "{}").await.unwrap())).await;
        assert_eq!(world.catalog.tasks(admin.team, operation.id).await.unwrap().len(), 1);
        assert!(world.catalog.image(admin.team, name).await.is_ok());
        assert!(world.catalog.operations(admin.team, None, 10).await.unwrap().iter().any(|o| o.id == operation.id));
        assert!(!world.catalog.sites().await.unwrap().is_empty());
    };
    // Its statements are prepared by then.
    work("before").await;
    world.execute("CREATE TABLE of_the_future (id BIGINT PRIMARY KEY)").await;
    let tables =
        ["teams", "users", "images", "operations", "tasks", "attempts", "outbox", "sites", "instances", "audit"];
    for table in tables {
        world.execute(&format!("ALTER TABLE {table} ADD COLUMN future_word TEXT")).await;
        world.execute(&format!("ALTER TABLE {table} ADD COLUMN future_count BIGINT NOT NULL DEFAULT 7")).await;
    }
    work("after").await;
    work("and again").await;
}
