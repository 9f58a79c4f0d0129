//! Names and texts as nobody sane writes them: kept to the byte, or refused, and alike on both engines.

use std::collections::BTreeMap;

use ocopea_catalog_db::{CatalogError, images::ImageSearch, model::Role};

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    strange_texts_are_kept_to_the_byte,
    a_text_with_nul_is_refused_and_leaves_nothing,
    what_was_asked_for_is_not_repeated_at_length,
}

fn strange() -> Vec<String> {
    let mut texts: Vec<String> = [
        "it's",
        "\"quoted\"",
        "`back`",
        "a;b--c/*d*/",
        "'; DROP TABLE images; --",
        "$1 ? :name @x %s {}",
        "../../etc",
        r"C:\x\y",
        "100%_",
        "line\r\nbreak\ttab",
        "\u{7f}\u{1b}[31m",
        "日本語 한국어 עברית",
        "e\u{301} é",
        "🦀👩‍👩‍👧",
        "\u{202e}right to left",
        "\u{feff}bom",
        "\u{10ffff}",
        "<script>alert(1)</script>",
        "NULL",
        "İstanbul ŞẞΣς",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    texts.push("x".repeat(10_000));
    texts.push("é'".repeat(5_000));
    texts
}

async fn strange_texts_are_kept_to_the_byte(world: &World) {
    let team = world.admin("one").await.team;
    for text in strange() {
        let site = world.catalog.ensure_site(&text).await.unwrap();
        assert_eq!(world.catalog.ensure_site(&text).await.unwrap(), site);
        assert_eq!(world.catalog.site(&text).await.unwrap().name, text);

        let mut image = world.image(team, &text);
        image.application = text.clone();
        image.creator = text.clone();
        image.comment = text.clone();
        image.site = text.clone();
        image.body = text.clone();
        image.labels = BTreeMap::from([(text.clone(), text.clone())]);
        let environment = world.environment(team, site, &text);
        let mut operation = world.operation(team);
        operation.title = text.clone();
        operation.creator = text.clone();
        commit(&world.catalog, async |t| {
            t.add_image(&image).await.unwrap();
            t.add_comment(image.id, &text, &text).await.unwrap();
            t.add_environment(&environment).await.unwrap();
            t.add_operation(&operation).await.unwrap();
            t.remember_request(team, &text, &text, operation.id).await.unwrap();
            t.audit(Some(team), None, "test", &text, &text).await.unwrap();
        })
        .await;
        let found = world.catalog.image(team, &text).await.unwrap();
        assert_eq!(found.id, image.id);
        let texts = [&found.name, &found.application, &found.creator, &found.comment, &found.site, &found.body];
        assert!(texts.iter().all(|found| **found == text), "{text:.40?}");
        assert_eq!(found.labels, image.labels);
        let comments = world.catalog.comments(team, image.id).await.unwrap();
        assert_eq!((&comments[0].author, &comments[0].body), (&text, &text));
        assert_eq!(world.catalog.environment(team, &text).await.unwrap().id, environment.id);
        assert_eq!(world.catalog.operation(team, operation.id).await.unwrap().title, text);
        assert_eq!(world.catalog.known_request(team, &text, &text).await.unwrap(), Some(operation.id));
        for search in [
            ImageSearch { labels: vec![(text.clone(), Some(text.clone()))], ..ImageSearch::default() },
            ImageSearch { application: Some(text.clone()), ..ImageSearch::default() },
            ImageSearch { creator: Some(text.clone()), ..ImageSearch::default() },
        ] {
            let found = world.catalog.images(team, &ImageSearch { limit: 10, ..search }).await.unwrap();
            assert_eq!(found.iter().map(|i| i.id).collect::<Vec<_>>(), [image.id], "{text:.40?}");
        }

        let user = world.catalog.ensure_member(&text, &text, Role::Viewer).await.unwrap();
        assert_eq!(user.user_name, text);
        world.catalog.add_token(user.user, &text, &text, Role::Viewer, None).await.unwrap();
        assert_eq!(world.catalog.tokens(user.user).await.unwrap()[0].name, text);
        assert_eq!(world.catalog.authenticate(&text).await.unwrap().unwrap().user, user.user);
    }
    assert_eq!(world.number("SELECT count(*) FROM images").await, strange().len() as i64);
}

async fn a_text_with_nul_is_refused_and_leaves_nothing(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let nul = "a\0b".to_owned();
    let refused = |what: &str, answer: Result<(), CatalogError>| {
        let error = answer.expect_err(what);
        assert!(matches!(error, CatalogError::Invalid { .. }), "{what}: {error}");
    };
    let begin = || async { world.catalog.begin().await.unwrap() };
    let plain = world.image(team, "plain");
    world.add_image(&plain).await;
    let mut images: Vec<_> = (0..6).map(|_| world.image(team, "x")).collect();
    images[0].name = nul.clone();
    images[1].application = nul.clone();
    images[2].creator = nul.clone();
    images[3].comment = nul.clone();
    images[4].labels = BTreeMap::from([(nul.clone(), "v".to_owned())]);
    images[5].labels = BTreeMap::from([("l".to_owned(), nul.clone())]);
    for image in &images {
        refused("an image", begin().await.add_image(image).await.map(drop));
    }
    for changes in [(nul.clone(), Some("v".to_owned())), ("l".to_owned(), Some(nul.clone())), (nul.clone(), None)] {
        let changes = BTreeMap::from([changes]);
        refused("labels", begin().await.change_labels(&mut plain.clone(), &changes).await);
    }
    refused("a comment", begin().await.add_comment(plain.id, "ann", &nul).await);
    refused("an author", begin().await.add_comment(plain.id, &nul, "x").await);
    refused("an environment", begin().await.add_environment(&world.environment(team, site, &nul)).await);
    let mut operation = world.operation(team);
    operation.title = nul.clone();
    refused("an operation", begin().await.add_operation(&operation).await.map(drop));
    refused("a key", begin().await.remember_request(team, &nul, "r", operation.id).await.map(drop));
    refused("an audit row", begin().await.audit(Some(team), None, "a", &nul, "d").await);
    refused("a site", world.catalog.ensure_site(&nul).await.map(drop));
    refused("a team", world.catalog.ensure_member(&nul, "u", Role::Viewer).await.map(drop));
    refused("a person", world.catalog.ensure_member("t", &nul, Role::Viewer).await.map(drop));
    let admin = world.admin("one").await;
    refused("a token", world.catalog.add_token(admin.user, &nul, "h", Role::Viewer, None).await.map(drop));
    for (table, left) in [("images", 1), ("image_labels", 0), ("image_comments", 0), ("sites", 1), ("teams", 1)] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, left, "{table}");
    }
    for missing in [
        world.catalog.image(team, &nul).await.map(drop),
        world.catalog.site(&nul).await.map(drop),
        world.catalog.environment(team, &nul).await.map(drop),
        world.catalog.sign_in(&nul, "t", "t", None).await.map(drop),
    ] {
        let error = missing.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
    }
    assert_eq!(world.catalog.known_request(team, &nul, "r").await.unwrap(), None);
}

async fn what_was_asked_for_is_not_repeated_at_length(world: &World) {
    let team = world.admin("one").await.team;
    for text in [&"x".repeat(10_000), &"🦀".repeat(5_000), &"\u{1b}[2J\r\nSet-Cookie: a".repeat(500)] {
        for error in [
            world.catalog.image(team, text).await.unwrap_err(),
            world.catalog.site(text).await.unwrap_err(),
            world.catalog.environment(team, text).await.unwrap_err(),
        ] {
            let shown = error.to_string();
            assert!(shown.len() < 1000 && !shown.contains(['\r', '\n', '\u{1b}']), "{shown}");
        }
    }
}
