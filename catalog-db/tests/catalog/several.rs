//! Several coordinators on one catalog: one time, one leader, one owner of each hint, transactions that are done again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use ocopea_catalog_db::{Catalog, CatalogError, images::ImageSearch, leader::Epoch, model::Role, tasks::Task};
use ocopea_protocol::{
    failure::TaskFailure,
    seams::{BoxFuture, Clock, Seams},
    time::Timestamp,
};

use crate::{
    on_both_engines,
    postgres::pause,
    world::{LEASE, World, claim, commit, new_task},
};

on_both_engines! {
    one_leads_and_epochs_grow_with_every_change,
    what_was_begun_in_an_epoch_that_is_over_is_refused,
    one_of_its_kind_is_claimed_at_a_time,
    an_operation_that_is_there_is_not_accepted_again,
    labels_that_are_set_at_once_are_all_found,
}

const SPAN: Duration = Duration::from_secs(15);

/// A machine whose clocks are wrong.
struct Wrong {
    real: Arc<dyn Clock>,
    wall: AtomicI64,
    monotonic: AtomicI64,
}

impl Wrong {
    fn by(days: i64) -> Arc<Self> {
        let real = Seams::real(Default::default()).clock;
        Arc::new(Self { real, wall: AtomicI64::new(days * 86_400_000), monotonic: AtomicI64::new(1_000_000_000) })
    }

    fn seams(self: &Arc<Self>) -> Seams {
        Seams { clock: Arc::clone(self) as _, ..Seams::real(Default::default()) }
    }
}

impl Clock for Wrong {
    fn now(&self) -> Timestamp {
        Timestamp(self.real.now().0 + self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        self.real.monotonic() + Duration::from_millis(self.monotonic.load(Ordering::SeqCst) as u64)
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.real.sleep(span)
    }
}

/// What the catalog's time is ahead of this machine's, in milliseconds; the server runs here, too.
fn ahead(catalog: &Catalog) -> i64 {
    catalog.seams.clock.now().0 - Seams::real(Default::default()).clock.now().0
}

/// What another process may delay a test by.
const NEAR: i64 = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_with_clocks_days_apart_take_no_lease_from_each_other() {
    let world = World::postgresql().await;
    let (early, late) = (Wrong::by(-1), Wrong::by(1));
    let one = Catalog::connect(&world.url, early.seams()).await.unwrap();
    let two = Catalog::connect(&world.url, late.seams()).await.unwrap();
    for catalog in [&one, &two] {
        assert!(ahead(catalog).abs() < NEAR, "{} ms", ahead(catalog));
    }
    let team = one.ensure_member("one", "ann", Role::Administrator).await.unwrap().team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let (holder, other) = (world.instance(), world.instance());
    // What was given through one is held, by the other's time, and to be taken by nobody.
    let transaction = one.begin().await.unwrap();
    transaction.claim(task.id, None, holder, LEASE).await.unwrap().unwrap();
    transaction.commit().await.unwrap();
    for catalog in [&one, &two] {
        assert!(catalog.expired_tasks(catalog.seams.clock.now()).await.unwrap().is_empty());
    }
    let held = two.tasks(team, operation.id).await.unwrap().remove(0).lease_until.unwrap();
    let left = held.0 - two.seams.clock.now().0;
    assert!((10_000..=20_000).contains(&left), "{left} ms of 20 s");
    assert!(one.lead(holder, SPAN).await.unwrap().is_some());
    assert_eq!(two.lead(other, SPAN).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_own_clock_that_is_set_or_was_asleep_changes_no_time_in_the_catalog() {
    let world = World::postgresql().await;
    let wrong = Wrong::by(0);
    let catalog = Catalog::connect(&world.url, wrong.seams()).await.unwrap();
    for days in [3, -5] {
        wrong.wall.store(days * 86_400_000, Ordering::SeqCst);
        assert!(ahead(&catalog).abs() < NEAR, "{} ms at once", ahead(&catalog));
        drop(catalog.begin().await.unwrap());
        assert!(ahead(&catalog).abs() < NEAR, "{} ms after a transaction", ahead(&catalog));
    }
    // Asleep for an hour: the monotonic clock stood still, as seen from the server.
    wrong.monotonic.fetch_sub(3_600_000, Ordering::SeqCst);
    assert!(ahead(&catalog) < -3_000_000, "the machine was not asleep");
    drop(catalog.begin().await.unwrap());
    assert!(ahead(&catalog).abs() < NEAR, "{} ms", ahead(&catalog));
    assert!(catalog.clock_error() < Duration::from_millis(NEAR as u64));
    // In use, it goes on with the server's time.
    let before = catalog.seams.clock.now();
    pause(Duration::from_millis(300));
    let passed = catalog.seams.clock.now().0 - before.0;
    assert!((295..300 + NEAR).contains(&passed), "{passed} ms");
}

async fn one_leads_and_epochs_grow_with_every_change(world: &World) {
    let (one, two) = (world.instance(), world.instance());
    let (first, second) = (&world.catalog, world.again().await.unwrap());
    assert_eq!(first.lead(one, SPAN).await.unwrap(), Some(Epoch(1)));
    if !first.is_shared() {
        // Nobody else can be there: who led before is gone.
        assert_eq!(first.lead(two, SPAN).await.unwrap(), Some(Epoch(2)));
        return;
    }
    assert_eq!(second.lead(two, SPAN).await.unwrap(), None);
    world.clock.advance(SPAN - Duration::from_secs(1));
    assert_eq!(first.lead(one, SPAN).await.unwrap(), Some(Epoch(1)), "the same goes on");
    world.clock.advance(SPAN - Duration::from_secs(1));
    assert_eq!(second.lead(two, SPAN).await.unwrap(), None, "it went on");
    world.clock.advance(Duration::from_secs(2));
    assert_eq!(second.lead(two, SPAN).await.unwrap(), Some(Epoch(2)));
    assert_eq!(first.lead(one, SPAN).await.unwrap(), None);
    // Not its own to give up any more.
    first.step_down(one).await.unwrap();
    assert_eq!(first.lead(one, SPAN).await.unwrap(), None);
    second.step_down(two).await.unwrap();
    assert_eq!(first.lead(one, SPAN).await.unwrap(), Some(Epoch(3)));
    first.step_down(one).await.unwrap();
    assert_eq!(first.lead(one, SPAN).await.unwrap(), Some(Epoch(4)), "leading again is another time");
    // The server's clock was put back by a day: nobody waits for a day.
    world.clock.back(Duration::from_secs(86_400));
    assert_eq!(second.lead(two, SPAN).await.unwrap(), Some(Epoch(5)));
    // Asked for by many at once, when it is free, it is one's.
    second.step_down(two).await.unwrap();
    let asked = futures::future::join_all((0..12).map(|_| first.lead(world.instance(), SPAN))).await;
    let leaders: Vec<_> = asked.into_iter().filter_map(|answer| answer.unwrap()).collect();
    assert_eq!(leaders, [Epoch(6)]);
}

async fn what_was_begun_in_an_epoch_that_is_over_is_refused(world: &World) {
    let (one, two) = (world.instance(), world.instance());
    let epoch = world.catalog.lead(one, SPAN).await.unwrap().unwrap();
    let transaction = world.catalog.begin_leading(epoch).await.unwrap();
    transaction.audit(None, None, "leader", "one", "").await.unwrap();
    transaction.commit().await.unwrap();
    world.clock.advance(SPAN * 2);
    // Its time is over, but nobody took over: what it does still counts.
    drop(world.catalog.begin_leading(epoch).await.unwrap());
    let next = world.catalog.lead(two, SPAN).await.unwrap().unwrap();
    assert!(matches!(world.catalog.begin_leading(epoch).await, Err(CatalogError::Superseded)));
    drop(world.catalog.begin_leading(next).await.unwrap());
    world.catalog.step_down(two).await.unwrap();
    assert!(matches!(world.catalog.begin_leading(next).await, Err(CatalogError::Superseded)));
    assert!(matches!(world.catalog.begin_leading(Epoch(0)).await, Err(CatalogError::Superseded)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_over_within_a_leaders_transaction_nor_waits_long_for_a_frozen_one() {
    let world = World::postgresql().await;
    let (one, two) = (world.instance(), world.instance());
    let epoch = world.catalog.lead(one, SPAN).await.unwrap().unwrap();
    let second = world.again().await.unwrap();
    let real = Seams::real(Default::default());
    let transaction = world.catalog.begin_leading(epoch).await.unwrap();
    transaction.audit(None, None, "leader", "in time", "").await.unwrap();
    world.clock.advance(SPAN * 2);
    let takes = second.lead(two, SPAN);
    tokio::pin!(takes);
    assert!(real.timeout(Duration::from_millis(500), &mut takes).await.is_none(), "taken over in the midst");
    transaction.commit().await.unwrap();
    assert_eq!(takes.await.unwrap(), Some(Epoch(2)));
    assert_eq!(world.number("SELECT count(*) FROM audit WHERE subject = 'in time'").await, 1);
    // One that is frozen with its transaction open: the server ends that.
    let frozen = second.begin_leading(Epoch(2)).await.unwrap();
    frozen.audit(None, None, "leader", "too late", "").await.unwrap();
    world.clock.advance(SPAN * 2);
    let begun = real.clock.monotonic();
    let taken = world.catalog.again(|| world.catalog.lead(one, SPAN)).await.unwrap();
    assert_eq!(taken, Some(Epoch(3)));
    assert!(real.clock.monotonic() - begun < Duration::from_secs(14), "{:?}", real.clock.monotonic() - begun);
    assert!(frozen.commit().await.is_err());
    assert_eq!(world.number("SELECT count(*) FROM audit WHERE subject = 'too late'").await, 0);
}

async fn one_of_its_kind_is_claimed_at_a_time(world: &World) {
    let team = world.admin("one").await.team;
    let mut collect = new_task("collect", None, &[]);
    collect.kind = "collect".to_owned();
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let operation = world.running(team, std::slice::from_ref(&collect)).await;
        tasks.push(world.only_task(&operation).await);
    }
    let other = world.running(team, &[new_task("other", None, &[])]).await;
    let other = world.only_task(&other).await;
    let catalogs = [world.catalog.clone(), world.again().await.unwrap()];
    let catalogs = if world.catalog.is_shared() { &catalogs[..] } else { &catalogs[..1] };
    let take = async |catalog: &Catalog, task: &Task| {
        let transaction = catalog.begin().await.unwrap();
        let taken = transaction.claim_alone(task, world.instance(), LEASE).await.unwrap();
        transaction.commit().await.unwrap();
        taken
    };
    for round in 1..=3 {
        let asked = tasks.iter().enumerate().map(|(at, task)| take(&catalogs[at % catalogs.len()], task));
        let taken: Vec<_> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        assert_eq!(taken.len(), 1, "round {round}");
        // Of another kind, it is nobody's matter.
        assert_eq!(claim(&world.catalog, &other, world.instance()).await.is_some(), round == 1);
        // Lost is not free until it was given back.
        world.execute("UPDATE tasks SET lease_until = 1 WHERE kind = 'collect'").await;
        assert!(
            futures::future::join_all(tasks.iter().map(|task| take(&catalogs[0], task)))
                .await
                .iter()
                .all(Option::is_none)
        );
        let lost = TaskFailure::retryable(ocopea_catalog_db::tasks::LOST, "lost", "killed");
        commit(&world.catalog, async |t| t.hand_back(&taken[0], &lost).await.unwrap()).await;
    }
}

async fn an_operation_that_is_there_is_not_accepted_again(world: &World) {
    let team = world.admin("one").await.team;
    let mut operation = world.operation(team);
    assert!(commit(&world.catalog, async |t| t.add_operation(&operation).await.unwrap()).await);
    operation.title = "another".to_owned();
    assert!(!commit(&world.catalog, async |t| t.add_operation(&operation).await.unwrap()).await);
    assert_eq!(world.catalog.operation(team, operation.id).await.unwrap().title, "save desk/shop");
}

async fn labels_that_are_set_at_once_are_all_found(world: &World) {
    let team = world.admin("one").await.team;
    let image = world.image(team, "labelled");
    world.add_image(&image).await;
    let setting = (0..12).map(|number| {
        let mut image = image.clone();
        async move {
            let changes = [(format!("label-{number}"), Some("v".to_owned()))].into();
            commit(&world.catalog, async |t| t.change_labels(&mut image, &changes).await.unwrap()).await;
        }
    });
    futures::future::join_all(setting).await;
    for number in 0..12 {
        let text = vec![format!("label-{number}=v")];
        let search = ImageSearch { text, limit: 10, ..ImageSearch::default() };
        assert_eq!(world.catalog.images(team, &search).await.unwrap().len(), 1, "label {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_is_its_writers_and_after_a_while_the_leaders_too() {
    let world = World::postgresql().await;
    let (one, two) = (&world.catalog, world.again().await.unwrap());
    let team = world.admin("one").await.team;
    let site = one.ensure_site("desk").await.unwrap();
    world.running(team, &[new_task("a", Some(site), &[])]).await;
    let count = async |catalog: &Catalog, leads| catalog.own_outbox(None, 100, leads).await.unwrap().len();
    for (ours, theirs) in [(1, 0), (1, 0)] {
        assert_eq!((count(one, true).await, count(one, false).await), (ours, ours));
        assert_eq!((count(&two, true).await, count(&two, false).await), (theirs, theirs));
        world.clock.advance(Duration::from_secs(2));
    }
    world.clock.advance(Duration::from_secs(2));
    assert_eq!((count(&two, true).await, count(&two, false).await), (1, 0));
    // A coordinator of a version that knew of no writers put it there; or the clock was put back since.
    world.execute("UPDATE outbox SET origin = NULL").await;
    assert_eq!((count(one, false).await, count(one, true).await), (0, 1));
    world.clock.back(Duration::from_secs(3600));
    assert_eq!((count(&two, true).await, count(&two, false).await), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_pass_over_what_another_coordinator_holds() {
    let world = World::postgresql().await;
    let team = world.admin("one").await.team;
    let (held, free) = (world.running(team, &[]).await, world.running(team, &[]).await);
    let frozen = world.catalog.begin().await.unwrap();
    assert!(frozen.lock_if_free(held.id).await.unwrap());
    let other = world.catalog.begin().await.unwrap();
    assert!(!other.lock_if_free(held.id).await.unwrap());
    assert!(other.lock_if_free(free.id).await.unwrap());
    drop(frozen);
    assert!(world.catalog.begin().await.unwrap().lock_if_free(held.id).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_costs_neither_of_the_two() {
    let world = World::postgresql().await;
    let team = world.admin("one").await.team;
    let (a, b) = (world.running(team, &[]).await.id, world.running(team, &[]).await.id);
    let meet = tokio::sync::Barrier::new(2);
    let change = async |first, second, alone: &AtomicI64| {
        let transaction = world.catalog.begin().await?;
        let mut one = transaction.operation(first).await?;
        // The first time both have their first lock before they want the second.
        if alone.fetch_add(1, Ordering::SeqCst) == 0 {
            meet.wait().await;
        }
        let mut other = transaction.operation(second).await?;
        one.stage += 1;
        other.stage += 1;
        transaction.save_operation(&one).await?;
        transaction.save_operation(&other).await?;
        transaction.commit().await
    };
    let counts = [AtomicI64::new(0), AtomicI64::new(0)];
    let (one, two) = tokio::join!(
        world.catalog.again(|| change(a, b, &counts[0])),
        world.catalog.again(|| change(b, a, &counts[1]))
    );
    one.unwrap();
    two.unwrap();
    let tries = counts.map(|count| count.load(Ordering::SeqCst));
    assert_eq!(tries.iter().sum::<i64>(), 3, "one of them was tried twice: {tries:?}");
    for id in [a, b] {
        assert_eq!(world.catalog.operation(team, id).await.unwrap().stage, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_before_the_commit_is_done_again_and_one_at_the_commit_is_in_doubt() {
    let world = World::postgresql().await;
    let team = world.admin("one").await.team;
    let operation = world.operation(team);
    let tries = AtomicI64::new(0);
    let add = async || {
        let transaction = world.catalog.begin().await?;
        if tries.fetch_add(1, Ordering::SeqCst) == 0 {
            world.disconnect();
        }
        transaction.add_operation(&operation).await?;
        transaction.commit().await
    };
    world.catalog.again(&add).await.unwrap();
    assert_eq!(tries.load(Ordering::SeqCst), 2);
    assert!(world.catalog.operation(team, operation.id).await.is_ok());
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_operation(&world.operation(team)).await.unwrap();
    world.disconnect();
    let error = transaction.commit().await.unwrap_err();
    assert!(matches!(error, CatalogError::InDoubt(_)) && !error.is_passing(), "{error:?}");
    // What the database refuses isn't tried again.
    let tries = AtomicI64::new(0);
    let nowhere = world.operation(ocopea_protocol::ids::TeamId::generate(&world.catalog.seams));
    let refused = world.catalog.again(|| async {
        tries.fetch_add(1, Ordering::SeqCst);
        world.catalog.begin().await?.add_operation(&nowhere).await
    });
    assert!(refused.await.is_err());
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}
