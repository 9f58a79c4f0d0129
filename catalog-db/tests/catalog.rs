//! The catalog's suite: each test on SQLite and on a real PostgreSQL.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers stop at the first surprise"
)]

#[path = "../../agent/tests/support/postgres.rs"]
#[expect(dead_code, reason = "this suite needs less of a server than others")]
mod postgres;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::join_all;
use ocopea_catalog_db::{
    Catalog, CatalogError,
    access::Actor,
    environments::Environment,
    images::{Image, ImageSearch},
    model::{EnvironmentState, OperationState, Role, TaskState},
    operations::Operation,
    tasks::NewTask,
};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::{EnvironmentId, ImageId, InstanceId, OperationId, SiteId},
    names::Digest,
    seams::{BoxFuture, Clock, Seams},
    task::{Claimed, Progress},
    time::Timestamp,
};
use postgres::{PASSWORD, Postgres};
use tokio_util::task::TaskTracker;

/// A clock that tests move.
struct Moved {
    inner: Arc<dyn Clock>,
    by: Mutex<Duration>,
}

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        self.inner.now().plus(*self.by.lock().unwrap())
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic() + *self.by.lock().unwrap()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.inner.sleep(span)
    }
}

struct World {
    catalog: Catalog,
    actor: Actor,
    clock: Arc<Moved>,
    _directory: tempfile::TempDir,
    _server: Option<Postgres>,
}

impl World {
    async fn sqlite() -> Self {
        let (seams, clock) = seams();
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::sqlite(&directory.path().join("catalog.sqlite"), seams).await.unwrap();
        Self::with(catalog, clock, directory, None).await
    }

    async fn postgresql() -> Self {
        let (seams, clock) = seams();
        let server = Postgres::start(&[]);
        let catalog = Catalog::postgresql(&url(&server), seams).await.unwrap();
        Self::with(catalog, clock, tempfile::tempdir().unwrap(), Some(server)).await
    }

    async fn with(catalog: Catalog, clock: Arc<Moved>, directory: tempfile::TempDir, server: Option<Postgres>) -> Self {
        let actor = catalog.ensure_first_user("team", "dana").await.unwrap();
        Self { catalog, actor, clock, _directory: directory, _server: server }
    }

    fn later(&self, span: Duration) {
        *self.clock.by.lock().unwrap() += span;
    }

    async fn operation(&self) -> OperationId {
        let operation = operation(&self.catalog, &self.actor);
        let transaction = self.catalog.begin().await.unwrap();
        transaction.add_operation(&operation).await.unwrap();
        transaction.commit().await.unwrap();
        operation.id
    }

    async fn image(&self, name: &str, change: impl FnOnce(&mut Image)) -> Image {
        let mut image = image(&self.catalog, &self.actor, name);
        change(&mut image);
        let transaction = self.catalog.begin().await.unwrap();
        transaction.add_image(&image).await.unwrap();
        transaction.commit().await.unwrap();
        image
    }

    async fn found(&self, search: ImageSearch) -> Vec<String> {
        let search = ImageSearch { limit: 100, ..search };
        self.catalog.images(self.actor.team, &search).await.unwrap().into_iter().map(|i| i.name).collect()
    }

    fn environment(&self, site: SiteId, name: &str) -> Environment {
        let image = image(&self.catalog, &self.actor, "of it");
        Environment {
            id: EnvironmentId::generate(&self.catalog.seams),
            team: self.actor.team,
            name: name.to_owned(),
            site,
            image: image.id,
            record: image.record,
            state: EnvironmentState::Creating,
            url: None,
            owner: "dana".to_owned(),
            placements: vec![],
            created: self.catalog.seams.clock.now(),
        }
    }

    /// Claims what is ready at a site, as somebody new.
    async fn claim(&self, site: SiteId) -> Option<Claimed> {
        let instance = InstanceId::generate(&self.catalog.seams);
        let ready = self.catalog.ready_tasks(Some(site), 1).await.unwrap().pop()?;
        let transaction = self.catalog.begin().await.unwrap();
        let task = transaction.claim(ready.id, Some(site), instance, LEASE).await.unwrap()?;
        transaction.commit().await.unwrap();
        Some(Claimed { task: task.id, operation: task.operation, attempt: task.attempt, instance })
    }

    /// An operation with one task, claimed.
    async fn claimed(&self) -> (SiteId, Claimed) {
        let (site, operation) = (self.catalog.ensure_site("desk").await.unwrap(), self.operation().await);
        self.add(operation, &[task("a", Some(site), &[])]).await;
        (site, self.claim(site).await.expect("it is ready"))
    }

    async fn add(&self, operation: OperationId, tasks: &[NewTask]) {
        let transaction = self.catalog.begin().await.unwrap();
        transaction.add_tasks(operation, tasks).await.unwrap();
        transaction.commit().await.unwrap();
    }
}

fn url(server: &Postgres) -> String {
    let password: String = PASSWORD.bytes().map(|b| format!("%{b:02X}")).collect();
    format!("postgres://postgres:{password}@{}/postgres", server.address())
}

fn seams() -> (Seams, Arc<Moved>) {
    let seams = Seams::real(TaskTracker::new());
    let clock = Arc::new(Moved { inner: Arc::clone(&seams.clock), by: Mutex::default() });
    (Seams { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..seams }, clock)
}

fn operation(catalog: &Catalog, actor: &Actor) -> Operation {
    Operation {
        id: OperationId::generate(&catalog.seams),
        team: actor.team,
        kind: "save".to_owned(),
        state: OperationState::Running,
        title: "save desk/shop".to_owned(),
        creator: actor.user_name.clone(),
        site: None,
        image: None,
        environment: None,
        request: "{}".to_owned(),
        context: "{}".to_owned(),
        result: None,
        failure: None,
        cancel_requested: None,
        stage: 0,
        version: 1,
        created: catalog.seams.clock.now(),
        ended: None,
    }
}

fn image(catalog: &Catalog, actor: &Actor, name: &str) -> Image {
    let id = ImageId::generate(&catalog.seams);
    let digits = id.to_string().replace('-', "");
    Image {
        id,
        team: actor.team,
        record: format!("sha256:{digits}{digits}").parse::<Digest>().unwrap(),
        name: name.to_owned(),
        application: "shop".to_owned(),
        site: "desk".to_owned(),
        creator: actor.user_name.clone(),
        comment: String::new(),
        bytes: 10,
        new_bytes: 5,
        created: catalog.seams.clock.now(),
        labels: BTreeMap::new(),
        body: "{}".to_owned(),
    }
}

fn task(label: &str, site: Option<SiteId>, needs: &[&str]) -> NewTask {
    NewTask {
        label: label.to_owned(),
        kind: "inspect".to_owned(),
        site,
        undo: false,
        most_attempts: 2,
        needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        spec: "{}".to_owned(),
    }
}

fn text(words: &[&str]) -> ImageSearch {
    ImageSearch { text: words.iter().map(|word| (*word).to_owned()).collect(), ..ImageSearch::default() }
}

const LEASE: Duration = Duration::from_secs(20);

/// Declares each test once for each engine.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::sqlite().await).await; })*
        }
        mod postgresql {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() { super::$name(super::World::postgresql().await).await; })*
        }
    };
}

on_both! {
    the_first_person_is_made_once
    a_sign_in_code_works_once_and_in_time
    a_token_allows_no_more_than_its_scope_and_its_member_and_ends_at_once
    what_a_team_owns_is_not_there_for_another
    images_are_found_by_everything_that_is_said_of_them
    what_looks_like_a_pattern_or_a_statement_is_a_word_like_any_other
    pages_of_images_miss_and_repeat_nothing_while_others_are_saved
    labels_and_comments_change_and_are_found_at_once
    an_image_that_is_added_again_after_a_crash_stays_as_it_is
    two_environments_of_one_name_are_refused_even_at_the_same_moment
    an_environment_goes_only_where_it_may
    an_operation_ends_once
    the_same_key_stands_for_one_operation_even_at_the_same_moment
    tasks_become_ready_when_what_they_need_is_done_with_one_hint_each
    a_task_is_claimed_by_one_of_many
    an_outcome_counts_only_from_the_attempt_that_holds_the_task
    what_fails_is_tried_again_after_a_pause_and_then_no_more
    what_is_lost_is_given_back_and_a_cancelled_task_is_over
    two_outcomes_at_the_same_moment_are_worked_out_one_after_the_other
    what_was_not_committed_never_was
}

async fn the_first_person_is_made_once(world: World) {
    let again = world.catalog.ensure_first_user("other", "eve").await.unwrap();
    assert_eq!(again, world.actor);
    assert_eq!(again.role, Role::Administrator);
    assert!(!world.catalog.is_new().await.unwrap());
}

async fn a_sign_in_code_works_once_and_in_time(world: World) {
    let expires = world.catalog.seams.clock.now().plus(Duration::from_secs(600));
    for code in ["one", "two"] {
        world.catalog.add_sign_in_code(world.actor.user, code, expires).await.unwrap();
    }
    let all = join_all((0..8).map(|_| world.catalog.use_sign_in_code("one"))).await;
    assert_eq!(all.iter().filter(|used| used.is_ok()).count(), 1, "eight at once: {all:?}");
    assert!(world.catalog.use_sign_in_code("nonsense").await.is_err());
    world.later(Duration::from_secs(601));
    assert!(matches!(world.catalog.use_sign_in_code("two").await, Err(CatalogError::NotFound { .. })));
}

async fn a_token_allows_no_more_than_its_scope_and_its_member_and_ends_at_once(world: World) {
    let catalog = &world.catalog;
    let viewer = catalog.add_user("vera", world.actor.team, Role::Viewer).await.unwrap();
    for (user, scope, role) in [
        (world.actor.user, Role::Viewer, Role::Viewer),
        (world.actor.user, Role::Administrator, Role::Administrator),
        (viewer.user, Role::Administrator, Role::Viewer),
    ] {
        let hash = format!("{user}{}", scope.as_str());
        let token = catalog.add_token(user, "t", &hash, scope, None).await.unwrap();
        assert_eq!(catalog.authenticate(&hash).await.unwrap().unwrap().role, role);
        let other = if user == viewer.user { world.actor.user } else { viewer.user };
        assert!(catalog.revoke_token(other, token).await.is_err(), "of somebody else");
        catalog.revoke_token(user, token).await.unwrap();
        assert_eq!(catalog.authenticate(&hash).await.unwrap(), None);
    }
    let soon = catalog.seams.clock.now().plus(Duration::from_secs(5));
    catalog.add_token(viewer.user, "short", "short", Role::Viewer, Some(soon)).await.unwrap();
    assert!(catalog.authenticate("short").await.unwrap().is_some());
    world.later(Duration::from_secs(6));
    assert_eq!(catalog.authenticate("short").await.unwrap(), None);
    assert_eq!(catalog.authenticate("unknown").await.unwrap(), None);
}

async fn what_a_team_owns_is_not_there_for_another(world: World) {
    let catalog = &world.catalog;
    let (ours, other) = (world.actor.team, catalog.add_team("other").await.unwrap());
    let image = world.image("ours", |_| {}).await;
    let operation = world.operation().await;
    let site = catalog.ensure_site("desk").await.unwrap();
    let transaction = catalog.begin().await.unwrap();
    transaction.add_environment(&world.environment(site, "copy")).await.unwrap();
    transaction.remember_request(ours, "key", "request", operation).await.unwrap();
    assert_eq!(transaction.known_request(other, "key", "another").await.unwrap(), None);
    transaction.commit().await.unwrap();
    let search = ImageSearch { limit: 10, ..ImageSearch::default() };
    assert_eq!(catalog.images(ours, &search).await.unwrap().len(), 1);
    assert_eq!(catalog.images(other, &search).await.unwrap().len(), 0);
    for name in [image.id.to_string(), image.name.clone()] {
        assert!(catalog.image(ours, &name).await.is_ok());
        assert!(matches!(catalog.image(other, &name).await, Err(CatalogError::NotFound { .. })));
    }
    assert!(catalog.last_image_of(ours, "shop").await.unwrap().is_some());
    assert!(catalog.last_image_of(other, "shop").await.unwrap().is_none());
    assert!(catalog.operation(ours, operation).await.is_ok());
    assert!(matches!(catalog.operation(other, operation).await, Err(CatalogError::NotFound { .. })));
    assert_eq!(catalog.operations(other, None, 10).await.unwrap().len(), 0);
    assert!(catalog.environment(ours, "copy").await.is_ok());
    assert!(matches!(catalog.environment(other, "copy").await, Err(CatalogError::NotFound { .. })));
    assert_eq!(catalog.environments(other).await.unwrap().len(), 0);
}

async fn images_are_found_by_everything_that_is_said_of_them(world: World) {
    let start = world.catalog.seams.clock.now();
    world
        .image("Messages in wrong order", |image| {
            image.comment = "seen by accident".to_owned();
            image.labels = [("bug".to_owned(), "4711".to_owned()), ("keep".to_owned(), String::new())].into();
        })
        .await;
    world.later(Duration::from_secs(3600));
    let middle = world.catalog.seams.clock.now();
    world
        .image("Größe ÜBER alles", |image| {
            image.application = "other".to_owned();
            image.creator = "eve".to_owned();
        })
        .await;
    let (first, second) = (["Messages in wrong order"], ["Größe ÜBER alles"]);
    let none: [&str; 0] = [];
    assert_eq!(world.found(ImageSearch::default()).await, [second[0], first[0]], "newest first");
    assert_eq!(world.found(text(&["WRONG", "accident"])).await, first);
    assert_eq!(world.found(text(&["wrong", "nowhere"])).await, none);
    assert_eq!(world.found(text(&["über"])).await, second);
    assert_eq!(world.found(text(&["bug=4711"])).await, first);
    let label = |name: &str, value: Option<&str>| ImageSearch {
        labels: vec![(name.to_owned(), value.map(str::to_owned))],
        ..ImageSearch::default()
    };
    assert_eq!(world.found(label("bug", None)).await, first);
    assert_eq!(world.found(label("bug", Some("4711"))).await, first);
    assert_eq!(world.found(label("bug", Some("4712"))).await, none);
    assert_eq!(world.found(label("keep", Some(""))).await, first);
    let search = ImageSearch { application: Some("other".to_owned()), ..ImageSearch::default() };
    assert_eq!(world.found(search).await, second);
    let search = ImageSearch { creator: Some("dana".to_owned()), ..ImageSearch::default() };
    assert_eq!(world.found(search).await, first);
    assert_eq!(world.found(ImageSearch { since: Some(middle), ..ImageSearch::default() }).await, second);
    let until = Some(start.plus(Duration::from_secs(60)));
    assert_eq!(world.found(ImageSearch { until, ..ImageSearch::default() }).await, first);
}

async fn what_looks_like_a_pattern_or_a_statement_is_a_word_like_any_other(world: World) {
    let long = "x".repeat(10_000);
    let names =
        ["100% sure", "under_score", "back\\slash", "'; DROP TABLE images; --", "quote\"d", "line\nbreak", &long];
    for name in names {
        world.image(name, |_| {}).await;
    }
    for (word, wanted) in [
        ("100%", 1),
        ("%", 1),
        ("_", 1),
        ("\\", 1),
        ("'; drop table", 1),
        ("\"", 1),
        ("\n", 1),
        (long.as_str(), 1),
        ("r_s", 1),
        ("s%re", 0),
        ("\0", 0),
    ] {
        assert_eq!(world.found(text(&[word])).await.len(), wanted, "{word:.20}");
    }
    for name in names {
        assert_eq!(world.catalog.image(world.actor.team, name).await.unwrap().name, name);
    }
    assert!(matches!(world.catalog.image(world.actor.team, "a\0b").await, Err(CatalogError::NotFound { .. })));
}

async fn pages_of_images_miss_and_repeat_nothing_while_others_are_saved(world: World) {
    let mut wanted = BTreeSet::new();
    for number in 0..25 {
        world.later(Duration::from_millis(2));
        wanted.insert(world.image(&format!("image {number}"), |_| {}).await.name);
    }
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let search = ImageSearch { before, limit: 7, ..ImageSearch::default() };
        let page = world.catalog.images(world.actor.team, &search).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        seen.extend(page.into_iter().map(|image| image.name));
        world.later(Duration::from_millis(2));
        world.image("meanwhile", |_| {}).await;
    }
    assert_eq!(seen.len(), 25);
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), wanted);
}

async fn labels_and_comments_change_and_are_found_at_once(world: World) {
    let mut image = world.image("one", |_| {}).await;
    let transaction = world.catalog.begin().await.unwrap();
    let changes = [("bug".to_owned(), Some("1".to_owned())), ("never".to_owned(), None)].into();
    transaction.change_labels(&mut image, &changes).await.unwrap();
    transaction.change_labels(&mut image, &[("bug".to_owned(), Some("2".to_owned()))].into()).await.unwrap();
    transaction.add_comment(image.id, "dana", "first").await.unwrap();
    transaction.commit().await.unwrap();
    let stored = world.catalog.image(world.actor.team, "one").await.unwrap();
    assert_eq!(stored.labels, [("bug".to_owned(), "2".to_owned())].into());
    assert_eq!(world.catalog.comments(image.id).await.unwrap()[0].body, "first");
    assert_eq!(world.found(text(&["bug=2"])).await.len(), 1);
    assert_eq!(world.found(text(&["bug=1"])).await.len(), 0);
    let transaction = world.catalog.begin().await.unwrap();
    transaction.change_labels(&mut image, &[("bug".to_owned(), None)].into()).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(world.found(text(&["bug"])).await.len(), 0);
}

async fn an_image_that_is_added_again_after_a_crash_stays_as_it_is(world: World) {
    let image = world.image("one", |_| {}).await;
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_image(&Image { name: "other".to_owned(), ..image.clone() }).await.unwrap();
    transaction.hide_image(image.id).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(world.found(ImageSearch::default()).await.is_empty(), "hidden while it is being deleted");
    let transaction = world.catalog.begin().await.unwrap();
    transaction.show_image(image.id).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(world.found(ImageSearch::default()).await, ["one"]);
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_comment(image.id, "dana", "goes with it").await.unwrap();
    transaction.remove_image(image.id).await.unwrap();
    transaction.remove_image(image.id).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(world.found(ImageSearch::default()).await.is_empty());
    assert!(world.catalog.comments(image.id).await.unwrap().is_empty());
}

async fn two_environments_of_one_name_are_refused_even_at_the_same_moment(world: World) {
    let catalog = &world.catalog;
    let (desk, lab) = (catalog.ensure_site("desk").await.unwrap(), catalog.ensure_site("lab").await.unwrap());
    assert_eq!(catalog.ensure_site("desk").await.unwrap(), desk);
    let attempts = (0..6).map(|_| async {
        let transaction = catalog.begin().await.unwrap();
        transaction.add_environment(&world.environment(desk, "copy")).await?;
        transaction.commit().await
    });
    let all = join_all(attempts).await;
    assert_eq!(all.iter().filter(|made| made.is_ok()).count(), 1);
    assert!(all.iter().all(|made| matches!(made, Ok(()) | Err(CatalogError::Conflict(_)))), "{all:?}");
    let transaction = catalog.begin().await.unwrap();
    transaction.add_environment(&world.environment(lab, "copy")).await.unwrap();
    transaction.commit().await.unwrap();
    // A name is free again when what had it is gone.
    let all = catalog.environments(world.actor.team).await.unwrap();
    let first = all.into_iter().find(|environment| environment.site == desk).unwrap();
    let transaction = catalog.begin().await.unwrap();
    transaction.set_environment_state(first.id, EnvironmentState::Failed).await.unwrap();
    transaction.add_environment(&world.environment(desk, "copy")).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn an_environment_goes_only_where_it_may(world: World) {
    use EnvironmentState as S;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let new = world.environment(site, "copy");
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_environment(&new).await.unwrap();
    for state in [S::Running, S::Running, S::Removing, S::Removed] {
        transaction.set_environment_state(new.id, state).await.unwrap();
    }
    assert!(matches!(transaction.set_environment_state(new.id, S::Running).await, Err(CatalogError::Conflict(_))));
    transaction.commit().await.unwrap();
    assert!(world.catalog.environments(world.actor.team).await.unwrap().is_empty());
}

async fn an_operation_ends_once(world: World) {
    let id = world.operation().await;
    let transaction = world.catalog.begin().await.unwrap();
    let mut operation = transaction.operation(id).await.unwrap();
    operation.state = OperationState::Undoing;
    operation.failure = Some(TaskFailure::permanent("code", "what", "cause"));
    transaction.save_operation(&operation).await.unwrap();
    operation.state = OperationState::Succeeded;
    assert!(matches!(transaction.save_operation(&operation).await, Err(CatalogError::Conflict(_))));
    operation.state = OperationState::Failed;
    transaction.save_operation(&operation).await.unwrap();
    transaction.commit().await.unwrap();
    let ended = world.catalog.operation(world.actor.team, id).await.unwrap();
    assert!(ended.ended.is_some() && ended.version > 1);
    assert_eq!(ended.failure.unwrap().cause, "cause");
    assert!(world.catalog.open_operations().await.unwrap().is_empty());
}

async fn the_same_key_stands_for_one_operation_even_at_the_same_moment(world: World) {
    let team = world.actor.team;
    let attempts = (0..6).map(|_| async {
        let operation = operation(&world.catalog, &world.actor);
        let transaction = world.catalog.begin().await?;
        if let Some(known) = transaction.known_request(team, "key", "same").await? {
            return Ok(known);
        }
        transaction.add_operation(&operation).await?;
        transaction.remember_request(team, "key", "same", operation.id).await?;
        transaction.commit().await?;
        Ok::<OperationId, CatalogError>(operation.id)
    });
    let all = join_all(attempts).await;
    let made: BTreeSet<String> = all.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(made.len(), 1, "{all:?}");
    assert!(all.iter().all(|one| matches!(one, Ok(_) | Err(CatalogError::Taken(_)))), "{all:?}");
    assert_eq!(world.catalog.operations(team, None, 10).await.unwrap().len(), 1);
    let transaction = world.catalog.begin().await.unwrap();
    assert!(matches!(transaction.known_request(team, "key", "another").await, Err(CatalogError::Conflict(_))));
}

async fn tasks_become_ready_when_what_they_need_is_done_with_one_hint_each(world: World) {
    let catalog = &world.catalog;
    let (site, id) = (catalog.ensure_site("desk").await.unwrap(), world.operation().await);
    for _ in 0..2 {
        world.add(id, &[task("a", Some(site), &[]), task("b", Some(site), &["a"]), task("own", None, &[])]).await;
    }
    assert_eq!(catalog.tasks(id).await.unwrap().len(), 3);
    let ready = catalog.ready_tasks(Some(site), 10).await.unwrap();
    assert_eq!(ready.iter().map(|t| t.label.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(catalog.ready_tasks(None, 10).await.unwrap().len(), 1);
    let hints = catalog.outbox(10).await.unwrap();
    assert_eq!(hints.iter().map(|hint| hint.task).collect::<Vec<_>>(), [ready[0].id]);
    catalog.published(hints[0].id).await.unwrap();
    let claimed = world.claim(site).await.unwrap();
    let transaction = catalog.begin().await.unwrap();
    assert!(transaction.succeed(&claimed, "{}").await.unwrap());
    transaction.promote(id).await.unwrap();
    transaction.promote(id).await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(catalog.outbox(10).await.unwrap().len(), 1);
    assert_eq!(catalog.ready_tasks(Some(site), 10).await.unwrap()[0].label, "b");
}

async fn a_task_is_claimed_by_one_of_many(world: World) {
    let catalog = &world.catalog;
    let (site, id) = (catalog.ensure_site("desk").await.unwrap(), world.operation().await);
    let many: Vec<NewTask> = (0..20).map(|n| task(&format!("t{n}"), Some(site), &[])).collect();
    world.add(id, &many).await;
    let ids: Vec<_> = catalog.tasks(id).await.unwrap().into_iter().map(|t| t.id).collect();
    let claimers = (0..8).map(|_| async {
        let instance = InstanceId::generate(&catalog.seams);
        let mut got = Vec::new();
        for id in &ids {
            let transaction = catalog.begin().await.unwrap();
            if transaction.claim(*id, Some(site), instance, LEASE).await.unwrap().is_some() {
                got.push(id.to_string());
            }
            transaction.commit().await.unwrap();
        }
        got
    });
    let all: Vec<String> = join_all(claimers).await.into_iter().flatten().collect();
    assert_eq!(all.len(), 20);
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>().len(), 20);
    let other = catalog.ensure_site("lab").await.unwrap();
    world.add(id, &[task("more", Some(site), &[])]).await;
    let more = catalog.ready_tasks(Some(site), 1).await.unwrap()[0].id;
    let transaction = catalog.begin().await.unwrap();
    let stranger = InstanceId::generate(&catalog.seams);
    assert!(transaction.claim(more, Some(other), stranger, LEASE).await.unwrap().is_none(), "of another site");
    assert!(transaction.claim(more, None, stranger, LEASE).await.unwrap().is_none(), "not the coordinator's own");
}

async fn an_outcome_counts_only_from_the_attempt_that_holds_the_task(world: World) {
    let (site, first) = world.claimed().await;
    assert!(world.catalog.expired_tasks().await.unwrap().is_empty());
    world.later(LEASE + Duration::from_secs(1));
    let lost = world.catalog.expired_tasks().await.unwrap().pop().unwrap();
    let transaction = world.catalog.begin().await.unwrap();
    transaction.hand_back(&lost, &TaskFailure::retryable("task.lost", "x", "y")).await.unwrap();
    transaction.commit().await.unwrap();
    let second = world.claim(site).await.unwrap();
    assert_eq!((first.attempt, second.attempt), (1, 2));
    let transaction = world.catalog.begin().await.unwrap();
    assert!(!transaction.succeed(&first, "{}").await.unwrap(), "it holds the task no longer");
    assert!(transaction.heartbeat(&first, &Progress::default(), None, LEASE).await.unwrap().is_none());
    let failure = TaskFailure::permanent("x", "y", "z");
    assert!(transaction.fail(&first, &failure).await.unwrap().is_none());
    assert!(transaction.heartbeat(&second, &Progress::default(), None, LEASE).await.unwrap().is_some());
    assert!(transaction.succeed(&second, "{\"n\":1}").await.unwrap());
    assert!(!transaction.succeed(&second, "{\"n\":2}").await.unwrap(), "once");
    transaction.commit().await.unwrap();
    let task = world.catalog.tasks(first.operation).await.unwrap().pop().unwrap();
    assert_eq!((task.state, task.output.as_deref()), (TaskState::Succeeded, Some("{\"n\":1}")));
}

async fn what_fails_is_tried_again_after_a_pause_and_then_no_more(world: World) {
    let (site, first) = world.claimed().await;
    let failure = TaskFailure::retryable("busy", "can't", "busy");
    let transaction = world.catalog.begin().await.unwrap();
    assert_eq!(transaction.fail(&first, &failure).await.unwrap(), Some(TaskState::Ready));
    transaction.commit().await.unwrap();
    assert!(world.claim(site).await.is_none(), "not at once");
    world.later(Duration::from_secs(10));
    let second = world.claim(site).await.unwrap();
    let transaction = world.catalog.begin().await.unwrap();
    assert_eq!(transaction.fail(&second, &failure).await.unwrap(), Some(TaskState::Failed), "two tries are allowed");
    transaction.commit().await.unwrap();
    let task = world.catalog.tasks(first.operation).await.unwrap().pop().unwrap();
    assert_eq!(task.failure.unwrap().code, "busy");
}

async fn what_is_lost_is_given_back_and_a_cancelled_task_is_over(world: World) {
    let (site, first) = world.claimed().await;
    assert_eq!(world.catalog.expire_all_but(&[first.instance]).await.unwrap(), 0);
    assert_eq!(world.catalog.expire_all_but(&[]).await.unwrap(), 1);
    let lost = world.catalog.expired_tasks().await.unwrap().pop().unwrap();
    let transaction = world.catalog.begin().await.unwrap();
    transaction.hand_back(&lost, &TaskFailure::retryable("task.lost", "x", "y")).await.unwrap();
    transaction.commit().await.unwrap();
    let second = world.claim(site).await.unwrap();
    world.add(first.operation, &[task("b", Some(site), &["a"])]).await;
    let transaction = world.catalog.begin().await.unwrap();
    transaction.cancel_waiting(first.operation, false).await.unwrap();
    transaction.cancel_task(second.task).await.unwrap();
    assert!(transaction.heartbeat(&second, &Progress::default(), None, LEASE).await.unwrap().is_none());
    transaction.commit().await.unwrap();
    let tasks = world.catalog.tasks(first.operation).await.unwrap();
    assert!(tasks.len() == 2 && tasks.iter().all(|task| task.state == TaskState::Cancelled), "{tasks:?}");
}

async fn two_outcomes_at_the_same_moment_are_worked_out_one_after_the_other(world: World) {
    let catalog = &world.catalog;
    let (site, id) = (catalog.ensure_site("desk").await.unwrap(), world.operation().await);
    let new = [task("a", Some(site), &[]), task("b", Some(site), &[]), task("c", Some(site), &["a", "b"])];
    world.add(id, &new).await;
    let mut held = Vec::new();
    while let Some(one) = world.claim(site).await {
        held.push(one);
    }
    assert_eq!(held.len(), 2);
    let ends = held.iter().map(|one| async move {
        let transaction = catalog.begin().await.unwrap();
        transaction.succeed(one, "{}").await.unwrap();
        // Whoever works out what follows sees all that was recorded before.
        transaction.operation(id).await.unwrap();
        transaction.promote(id).await.unwrap();
        transaction.commit().await.unwrap();
    });
    join_all(ends).await;
    let ready = catalog.ready_tasks(Some(site), 10).await.unwrap();
    assert_eq!(ready.iter().map(|t| t.label.as_str()).collect::<Vec<_>>(), ["c"]);
}

async fn what_was_not_committed_never_was(world: World) {
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_image(&image(&world.catalog, &world.actor, "never")).await.unwrap();
    drop(transaction);
    assert!(world.found(ImageSearch::default()).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_are_applied_once_and_what_was_stored_is_there_again() {
    let (seams, _) = seams();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.sqlite");
    let server = Postgres::start(&[]);
    for engine in ["sqlite", "postgresql"] {
        let mut actors = Vec::new();
        for _ in 0..2 {
            let catalog = match engine {
                "sqlite" => Catalog::sqlite(&path, seams.clone()).await.unwrap(),
                _ => Catalog::postgresql(&url(&server), seams.clone()).await.unwrap(),
            };
            actors.push(catalog.ensure_first_user("team", "dana").await.unwrap());
        }
        assert_eq!(actors[0], actors[1], "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_catalog_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.sqlite");
    std::fs::write(&path, "this is no database, and long enough to be told from an empty one".repeat(100)).unwrap();
    let error = Catalog::sqlite(&path, seams().0).await.err().unwrap();
    assert!(error.to_string().contains("database"), "{error}");
}
