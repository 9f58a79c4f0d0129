//! Saved images: search against a model in memory, cursors, labels, comments, deletion.

use std::{collections::BTreeMap, time::Duration};

use ocopea_catalog_db::{
    CatalogError,
    images::{Image, ImageSearch},
};
use ocopea_protocol::ids::{ImageId, TeamId};

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    a_search_finds_what_a_plain_comparison_finds,
    wildcards_quotes_and_sql_in_a_search_are_plain_text,
    a_search_that_can_not_be_done_is_refused_not_narrowed,
    labels_applications_persons_and_dates_all_have_to_fit,
    pages_hold_every_image_once_whatever_is_saved_or_deleted_between_them,
    an_image_is_found_by_id_or_by_a_name_that_only_it_has,
    the_last_image_is_that_of_the_application,
    labels_change_and_the_search_follows,
    a_hidden_image_is_nowhere,
    a_removed_image_takes_its_labels_and_comments_along,
    an_image_that_is_added_again_stays_as_it_is,
    comments_come_in_the_order_in_which_they_were_made,
}

fn by_text(words: &[&str]) -> ImageSearch {
    ImageSearch { text: words.iter().map(|w| (*w).to_owned()).collect(), limit: 1000, ..ImageSearch::default() }
}

async fn names(world: &World, team: TeamId, search: &ImageSearch) -> Vec<String> {
    let mut names: Vec<String> =
        world.catalog.images(team, search).await.unwrap().into_iter().map(|image| image.name).collect();
    names.sort();
    names
}

/// What the search must find, written without a database.
fn fits(image: &Image, word: &str) -> bool {
    let word = word.to_lowercase();
    let labels = image.labels.iter().map(|(label, value)| format!("{label}={value}"));
    let fields = [&image.name, &image.comment, &image.application, &image.creator, &image.site];
    fields.into_iter().cloned().chain(labels).any(|field| field.to_lowercase().contains(&word))
}

async fn a_search_finds_what_a_plain_comparison_finds(world: &World) {
    const LETTERS: [char; 12] = ['a', 'B', '%', '_', '\\', '\'', '"', 'é', 'É', '*', '?', 'ß'];
    let team = world.admin("one").await.team;
    let word = |longest: usize| -> String {
        (0..1 + world.numbers.below(longest)).map(|_| LETTERS[world.numbers.below(LETTERS.len())]).collect()
    };
    let mut images = Vec::new();
    for number in 0..60 {
        let mut image = world.image(team, &format!("{} {number}", word(5)));
        image.comment = word(4);
        image.creator = word(3);
        image.labels = BTreeMap::from([(word(3), word(3))]);
        world.add_image(&image).await;
        images.push(image);
    }
    for _ in 0..400 {
        let words: Vec<String> = (0..1 + world.numbers.below(2)).map(|_| word(3)).collect();
        let mut expected: Vec<String> = images
            .iter()
            .filter(|image| words.iter().all(|word| fits(image, word)))
            .map(|image| image.name.clone())
            .collect();
        expected.sort();
        let search = ImageSearch { text: words.clone(), limit: 1000, ..ImageSearch::default() };
        assert_eq!(names(world, team, &search).await, expected, "{words:?}");
    }
}

async fn wildcards_quotes_and_sql_in_a_search_are_plain_text(world: &World) {
    let team = world.admin("one").await.team;
    for name in ["100% done", "100 done", "a_b", "axb", r"c:\temp", "it's", "say \"hi\"", "-- comment", "; DROP TABLE"]
    {
        world.add_image(&world.image(team, name)).await;
    }
    for (words, expected) in [
        (vec!["%"], vec!["100% done"]),
        (vec!["100%"], vec!["100% done"]),
        (vec!["_"], vec!["a_b"]),
        (vec!["a_b"], vec!["a_b"]),
        (vec![r"\"], vec![r"c:\temp"]),
        (vec![r":\t"], vec![r"c:\temp"]),
        (vec!["'"], vec!["it's"]),
        (vec!["\"HI\""], vec!["say \"hi\""]),
        (vec!["--"], vec!["-- comment"]),
        (vec!["drop", "table", ";"], vec!["; DROP TABLE"]),
        (vec!["' OR '1'='1"], vec![]),
        (vec!["'; DELETE FROM images; --"], vec![]),
        (vec!["\\%"], vec![]),
        (vec!["$1"], vec![]),
        (vec!["?"], vec![]),
    ] {
        assert_eq!(names(world, team, &by_text(&words)).await, expected, "{words:?}");
    }
    for hostile in ["' OR 1=1 --", "x'; DROP TABLE images; --", "%", "_", "\\"] {
        let some = || Some(hostile.to_owned());
        for search in [
            ImageSearch { application: some(), ..ImageSearch::default() },
            ImageSearch { creator: some(), ..ImageSearch::default() },
            ImageSearch { labels: vec![(hostile.to_owned(), None)], ..ImageSearch::default() },
            ImageSearch { labels: vec![("l".to_owned(), some())], ..ImageSearch::default() },
        ] {
            assert!(world.catalog.images(team, &search).await.unwrap().is_empty(), "{search:?}");
        }
        let error = world.catalog.image(team, hostile).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { .. }), "{error}");
    }
    assert_eq!(world.number("SELECT count(*) FROM images").await, 9);
}

async fn a_search_that_can_not_be_done_is_refused_not_narrowed(world: &World) {
    let team = world.admin("one").await.team;
    world.add_image(&world.image(team, "a b c d e f g h i j k l m n o p")).await;
    let letters: Vec<String> = ('a'..='p').map(String::from).collect();
    let most = ImageSearch { text: letters.clone(), ..ImageSearch::default() };
    assert_eq!(world.catalog.images(team, &most).await.unwrap().len(), 1);
    let label = |n: usize| (n.to_string(), None);
    for (what, search) in [
        ("17 words", ImageSearch { text: [letters, vec!["zzz".to_owned()]].concat(), ..ImageSearch::default() }),
        ("17 labels", ImageSearch { labels: (0..17).map(label).collect(), ..ImageSearch::default() }),
        ("a word of 60 kB", by_text(&[&"x".repeat(60_000)])),
        ("a word of 60 kB of wildcards", by_text(&[&"%".repeat(60_000)])),
        ("NUL in a word", by_text(&["a\0b"])),
        ("NUL in a label", ImageSearch { labels: vec![("a\0".to_owned(), None)], ..ImageSearch::default() }),
        ("NUL in a value", ImageSearch { labels: vec![("a".to_owned(), Some("\0".to_owned()))], ..Default::default() }),
        ("NUL in the application", ImageSearch { application: Some("\0".to_owned()), ..ImageSearch::default() }),
        ("NUL in the person", ImageSearch { creator: Some("\0".to_owned()), ..ImageSearch::default() }),
    ] {
        let error = world.catalog.images(team, &search).await.expect_err(what);
        assert!(matches!(error, CatalogError::Invalid { .. }), "{what}: {error}");
        assert!(error.to_string().len() < 300, "{what}");
    }
}

async fn labels_applications_persons_and_dates_all_have_to_fit(world: &World) {
    let team = world.admin("one").await.team;
    let start = world.catalog.seams.clock.now();
    for (name, application, creator, labels) in [
        ("a", "shop", "ann", vec![("bug", "4711"), ("env", "prod")]),
        ("b", "shop", "bob", vec![("bug", "4712")]),
        ("c", "desk", "ann", vec![("bug", ""), ("env", "test")]),
        ("d", "desk", "bob", vec![]),
    ] {
        let mut image = world.image(team, name);
        image.application = application.to_owned();
        image.creator = creator.to_owned();
        image.labels = labels.iter().map(|(l, v)| ((*l).to_owned(), (*v).to_owned())).collect();
        world.add_image(&image).await;
        world.clock.advance(Duration::from_secs(60));
    }
    let minute = |n: u64| Some(start.plus(Duration::from_secs(60 * n)));
    let label = |l: &str, v: Option<&str>| (l.to_owned(), v.map(str::to_owned));
    let some = |text: &str| Some(text.to_owned());
    let all = ImageSearch { limit: 10, ..ImageSearch::default() };
    for (search, expected) in [
        (all.clone(), "abcd"),
        (ImageSearch { labels: vec![label("bug", None)], ..all.clone() }, "abc"),
        (ImageSearch { labels: vec![label("bug", Some("4711"))], ..all.clone() }, "a"),
        (ImageSearch { labels: vec![label("bug", Some(""))], ..all.clone() }, "c"),
        (ImageSearch { labels: vec![label("bug", Some("471"))], ..all.clone() }, ""),
        (ImageSearch { labels: vec![label("bug", None), label("env", None)], ..all.clone() }, "ac"),
        (ImageSearch { labels: vec![label("BUG", None)], ..all.clone() }, ""),
        (ImageSearch { application: some("shop"), ..all.clone() }, "ab"),
        (ImageSearch { application: some("sho"), ..all.clone() }, ""),
        (ImageSearch { creator: some("ann"), ..all.clone() }, "ac"),
        (ImageSearch { creator: some("ann"), application: some("desk"), ..all.clone() }, "c"),
        (ImageSearch { since: minute(1), ..all.clone() }, "bcd"),
        (ImageSearch { until: minute(1), ..all.clone() }, "ab"),
        (ImageSearch { since: minute(1), until: minute(2), ..all.clone() }, "bc"),
        (ImageSearch { since: minute(3), until: minute(2), ..all.clone() }, ""),
        (ImageSearch { text: vec!["bug=471".to_owned()], creator: some("bob"), ..all.clone() }, "b"),
        (ImageSearch { text: vec!["PROD".to_owned()], since: minute(0), ..all.clone() }, "a"),
    ] {
        assert_eq!(names(world, team, &search).await.concat(), expected, "{search:?}");
    }
}

async fn pages_hold_every_image_once_whatever_is_saved_or_deleted_between_them(world: &World) {
    let team = world.admin("one").await.team;
    let mut wanted: Vec<ImageId> = Vec::new();
    for number in 0..25 {
        // Some of one millisecond: the order is total all the same.
        if number % 3 == 0 {
            world.clock.advance(Duration::from_millis(1));
        }
        let image = world.image(team, &format!("image {number}"));
        world.add_image(&image).await;
        wanted.push(image.id);
    }
    let mut seen: Vec<ImageId> = Vec::new();
    let mut before = None;
    let mut new = 0;
    loop {
        let search = ImageSearch { before, limit: 4, ..ImageSearch::default() };
        let page = world.catalog.images(team, &search).await.unwrap();
        assert!(page.len() <= 4);
        let Some(last) = page.last() else { break };
        seen.extend(page.iter().map(|image| image.id));
        before = Some(last.id);
        // Newer ones appear at the front, the cursor's own image is deleted: neither moves what is behind it.
        world.clock.advance(Duration::from_millis(1));
        world.add_image(&world.image(team, "newer")).await;
        let last = last.id;
        commit(&world.catalog, async |t| t.remove_image(last).await.unwrap()).await;
        new += 1;
        assert!(new < 100);
    }
    let mut sorted = seen.clone();
    sorted.sort_by(|a, b| b.cmp(a));
    assert_eq!(seen, sorted, "newest first");
    wanted.sort_by(|a, b| b.cmp(a));
    assert_eq!(seen, wanted);
    for nobody in [uuid::Uuid::nil(), uuid::Uuid::from_u128(1)] {
        let search = ImageSearch { before: Some(ImageId(nobody)), limit: 4, ..ImageSearch::default() };
        assert!(world.catalog.images(team, &search).await.unwrap().is_empty());
    }
    let search = ImageSearch { before: Some(ImageId(uuid::Uuid::max())), limit: 0, ..ImageSearch::default() };
    assert_eq!(world.catalog.images(team, &search).await.unwrap().len(), 1, "a limit of nothing gives one");
    let search = ImageSearch { limit: u64::MAX, ..ImageSearch::default() };
    assert!(world.catalog.images(team, &search).await.unwrap().len() <= 1000);
}

async fn an_image_is_found_by_id_or_by_a_name_that_only_it_has(world: &World) {
    let team = world.admin("one").await.team;
    let old = world.image(team, "shop");
    world.clock.advance(Duration::from_secs(1));
    let new = world.image(team, "shop");
    world.add_image(&new).await;
    world.add_image(&old).await;
    let error = world.catalog.image(team, "shop").await.unwrap_err();
    assert_eq!(error.to_string(), format!("2 images are called \"shop\": {}, {}", new.id, old.id));
    let other = world.admin("two").await.team;
    world.add_image(&world.image(other, "shop")).await;
    commit(&world.catalog, async |t| t.hide_image(old.id).await.unwrap()).await;
    assert_eq!(world.catalog.image(team, "shop").await.unwrap().id, new.id);
    commit(&world.catalog, async |t| t.show_image(old.id).await.unwrap()).await;
    assert_eq!(world.catalog.image(team, &old.id.to_string()).await.unwrap().id, old.id);
    let found = world.catalog.image(team, &new.id.to_string().to_uppercase()).await.unwrap();
    assert_eq!((found.record, found.bytes, found.new_bytes, found.created), (new.record, 10, 4, new.created));
    for absent in ["", "Shop", "shop ", "sho%", &ImageId::generate(&world.catalog.seams).to_string()] {
        let error = world.catalog.image(team, absent).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { what: "image", .. }), "{error}");
    }
}

async fn the_last_image_is_that_of_the_application(world: &World) {
    let team = world.admin("one").await.team;
    assert!(world.catalog.last_image_of(team, "shop", None, None).await.unwrap().is_none());
    for application in ["shop", "shop", "desk"] {
        world.clock.advance(Duration::from_secs(1));
        let mut image = world.image(team, application);
        image.application = application.to_owned();
        image.comment = world.catalog.seams.clock.now().0.to_string();
        world.add_image(&image).await;
    }
    let last = world.catalog.last_image_of(team, "shop", None, None).await.unwrap().unwrap();
    assert_eq!(last.created.0, world.catalog.seams.clock.now().0 - 1000);
}

async fn labels_change_and_the_search_follows(world: &World) {
    let team = world.admin("one").await.team;
    let mut image = world.image(team, "shop");
    image.labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    world.add_image(&image).await;
    let some = |text: &str| Some(text.to_owned());
    let changes = BTreeMap::from([
        ("a".to_owned(), some("changed")),
        ("b".to_owned(), None),
        ("c".to_owned(), some("100%_'\"")),
        ("never".to_owned(), None),
    ]);
    commit(&world.catalog, async |t| t.change_labels(&mut image, &changes).await.unwrap()).await;
    let expected = BTreeMap::from([("a".to_owned(), "changed".to_owned()), ("c".to_owned(), "100%_'\"".to_owned())]);
    assert_eq!(image.labels, expected);
    assert_eq!(world.catalog.image(team, "shop").await.unwrap().labels, expected);
    for (word, found) in [("a=changed", 1), ("a=1", 0), ("b=2", 0), ("c=100%_'\"", 1), ("never", 0)] {
        assert_eq!(names(world, team, &by_text(&[word])).await.len(), found, "{word}");
    }
    // Not committed, not there.
    let transaction = world.catalog.begin().await.unwrap();
    let changes = BTreeMap::from([("a".to_owned(), None)]);
    transaction.change_labels(&mut image.clone(), &changes).await.unwrap();
    drop(transaction);
    assert_eq!(world.catalog.image(team, "shop").await.unwrap().labels, expected);
}

async fn a_hidden_image_is_nowhere(world: &World) {
    let team = world.admin("one").await.team;
    let image = world.image(team, "shop");
    world.add_image(&image).await;
    commit(&world.catalog, async |t| t.hide_image(image.id).await.unwrap()).await;
    assert!(world.catalog.image(team, "shop").await.is_err());
    assert!(world.catalog.image(team, &image.id.to_string()).await.is_err());
    assert!(world.catalog.images(team, &by_text(&[])).await.unwrap().is_empty());
    assert!(world.catalog.last_image_of(team, "shop", None, None).await.unwrap().is_none());
    // Of two who delete it, one does.
    let again = world.catalog.begin().await.unwrap().hide_image(image.id).await;
    assert!(matches!(again, Err(CatalogError::NotFound { what: "image", .. })), "{again:?}");
}

async fn a_removed_image_takes_its_labels_and_comments_along(world: &World) {
    let team = world.admin("one").await.team;
    for name in ["gone", "kept"] {
        let mut image = world.image(team, name);
        image.labels = BTreeMap::from([("label".to_owned(), name.to_owned())]);
        world.add_image(&image).await;
        commit(&world.catalog, async |t| t.add_comment(image.id, "ann", name).await.unwrap()).await;
    }
    let gone = world.catalog.image(team, "gone").await.unwrap().id;
    for _ in 0..2 {
        commit(&world.catalog, async |t| t.remove_image(gone).await.unwrap()).await;
    }
    for table in ["images", "image_labels", "image_comments"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 1, "{table}");
    }
    let kept = world.catalog.image(team, "kept").await.unwrap();
    assert_eq!(world.catalog.comments(team, kept.id).await.unwrap()[0].body, "kept");
}

async fn an_image_that_is_added_again_stays_as_it_is(world: &World) {
    let (one, two) = (world.admin("one").await.team, world.admin("two").await.team);
    let image = world.image(one, "shop");
    assert!(commit(&world.catalog, async |t| t.add_image(&image).await.unwrap()).await);
    let mut changed = image.clone();
    changed.name = "another".to_owned();
    changed.labels = BTreeMap::from([("new".to_owned(), "label".to_owned())]);
    assert!(!commit(&world.catalog, async |t| t.add_image(&changed).await.unwrap()).await);
    // Not even another team's: whoever asks learns that nothing was added, and adds nothing to it.
    changed.team = two;
    assert!(!commit(&world.catalog, async |t| t.add_image(&changed).await.unwrap()).await);
    let found = world.catalog.image(one, &image.id.to_string()).await.unwrap();
    assert_eq!((found.name.as_str(), found.labels.len()), ("shop", 0));
    assert!(world.catalog.images(two, &by_text(&[])).await.unwrap().is_empty());
    // One record is one image.
    let mut same_record = world.image(one, "copy");
    same_record.record = image.record;
    assert!(world.catalog.begin().await.unwrap().add_image(&same_record).await.is_err());
}

async fn comments_come_in_the_order_in_which_they_were_made(world: &World) {
    let team = world.admin("one").await.team;
    let image = world.image(team, "shop");
    world.add_image(&image).await;
    for number in 0..20 {
        world.clock.advance(Duration::from_millis(u64::from(number % 4 == 0)));
        let body = format!("{number}");
        commit(&world.catalog, async |t| t.add_comment(image.id, "ann", &body).await.unwrap()).await;
    }
    let comments = world.catalog.comments(team, image.id).await.unwrap();
    let instants: Vec<i64> = comments.iter().map(|c| c.at.0).collect();
    assert!(instants.is_sorted() && comments.len() == 20, "{instants:?}");
}
