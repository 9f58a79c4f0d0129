//! Tasks: claims, leases, fences, attempts, what follows from what, and hints.

use std::{collections::BTreeSet, time::Duration};

use ocopea_catalog_db::{model::TaskState, tasks::Task};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::SiteId,
    task::{Claimed, HolderState, Progress},
};

use crate::{
    on_both_engines,
    world::{LEASE, World, claim, claimed_of, commit, new_task},
};

on_both_engines! {
    eight_at_once_claim_every_task_once,
    a_task_is_ready_when_all_that_it_needs_has_succeeded,
    a_label_is_added_once,
    tasks_are_listed_as_they_were_added,
    every_ready_task_has_a_hint,
    only_its_own_site_claims_a_task,
    a_heartbeat_renews_the_lease_and_keeps_progress,
    an_outcome_counts_only_from_the_attempt_that_holds_the_task,
    a_success_is_never_taken_back_by_whoever_looked_before,
    a_claim_that_looked_before_another_attempt_is_refused,
    a_retryable_failure_is_tried_again_after_a_pause_while_tries_last,
    a_lost_attempt_is_no_try,
    a_clock_that_is_set_costs_nobody_a_lease_and_delays_nothing,
    a_heartbeat_without_news_writes_nothing,
    a_holders_heartbeat_that_comes_late_closes_no_snapshot,
    a_permanent_failure_ends_the_task,
    a_lease_that_ran_out_gives_the_task_to_another,
    a_task_that_is_lost_again_and_again_fails_at_last,
    leases_of_the_dead_end_at_once,
    what_is_called_off_is_not_claimed_and_learns_it,
}

async fn site(world: &World) -> SiteId {
    world.catalog.ensure_site("desk").await.unwrap()
}

async fn now(world: &World, task: &Task) -> Task {
    commit(&world.catalog, async |t| t.task(task.id).await.unwrap().unwrap()).await
}

fn lost() -> TaskFailure {
    TaskFailure::retryable("data.broken", "it was not finished", "its agent is gone")
}

async fn eight_at_once_claim_every_task_once(world: &World) {
    let team = world.admin("one").await.team;
    let site = site(world).await;
    let mut all = Vec::new();
    for _ in 0..3 {
        let new: Vec<_> = (0..10).map(|n| new_task(&format!("task {n}"), Some(site), &[])).collect();
        let operation = world.running(team, &new).await;
        all.extend(world.catalog.tasks(team, operation.id).await.unwrap());
    }
    let workers = (0..8).map(|_| {
        let instance = world.instance();
        let tasks = all.clone();
        async move {
            let mut mine = Vec::new();
            for task in &tasks {
                mine.extend(claim(&world.catalog, task, instance).await);
            }
            mine
        }
    });
    let claims: Vec<Claimed> = futures::future::join_all(workers).await.concat();
    assert_eq!(claims.len(), 30);
    assert_eq!(claims.iter().map(|c| c.task).collect::<BTreeSet<_>>().len(), 30);
    assert!(claims.iter().all(|c| c.attempt == 1));
    assert_eq!(world.number("SELECT count(*) FROM attempts").await, 30);
    // Each outcome is told by all eight at once, with the true fence and with invented ones: it counts once.
    for one in claims.iter().take(5) {
        let telling = (0..8u32).map(|n| async move {
            let mut told = *one;
            told.attempt = if n % 2 == 0 { 1 } else { n };
            commit(&world.catalog, async |t| t.succeed(&told, "{}").await.unwrap()).await
        });
        let counted = futures::future::join_all(telling).await;
        assert_eq!(counted.iter().filter(|counted| **counted).count(), 1, "{counted:?}");
    }
}

async fn a_task_is_ready_when_all_that_it_needs_has_succeeded(world: &World) {
    let team = world.admin("one").await.team;
    let new = [
        new_task("a", None, &[]),
        new_task("b", None, &[]),
        new_task("c", None, &["a", "b"]),
        new_task("d", None, &["c", "nothing of this name"]),
    ];
    let operation = world.running(team, &new).await;
    let states = || async {
        let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
        tasks.iter().map(|t| (t.label.clone(), t.state.as_str())).collect::<std::collections::BTreeMap<_, _>>()
    };
    for (label, waiting) in [("a", "c d"), ("b", "d"), ("c", "d")] {
        let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
        let task = tasks.iter().find(|t| t.label == label).unwrap();
        assert_eq!(task.state, TaskState::Ready);
        let claimed = claim(&world.catalog, task, world.instance()).await.unwrap();
        commit(&world.catalog, async |t| {
            assert!(t.succeed(&claimed, "{}").await.unwrap());
            t.promote(operation.id).await.unwrap();
        })
        .await;
        let states = states().await;
        let found: Vec<_> = states.iter().filter(|(_, s)| **s == "waiting").map(|(l, _)| l.as_str()).collect();
        assert_eq!(found.join(" "), waiting, "{states:?}");
    }
}

async fn a_label_is_added_once(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let mut again = new_task("a", None, &["b"]);
    again.spec = "other".to_owned();
    // Twice in one call, and again later.
    world.clock.advance(Duration::from_millis(1));
    let new = [again.clone(), new_task("b", None, &[]), new_task("b", None, &[])];
    commit(&world.catalog, async |t| t.add_tasks(operation.id, &new).await.unwrap()).await;
    let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
    let shown: Vec<_> = tasks.iter().map(|t| (t.label.as_str(), t.spec.as_str(), t.state)).collect();
    assert_eq!(shown, [("a", "{}", TaskState::Ready), ("b", "{}", TaskState::Ready)]);
}

async fn tasks_are_listed_as_they_were_added(world: &World) {
    let team = world.admin("one").await.team;
    let labels: Vec<String> = (0..40).map(|n| format!("task {n}")).collect();
    let new: Vec<_> = labels.iter().map(|label| new_task(label, None, &[])).collect();
    let operation = world.running(team, &new).await;
    let found = world.catalog.tasks(team, operation.id).await.unwrap();
    assert_eq!(found.into_iter().map(|t| t.label).collect::<Vec<_>>(), labels);
}

async fn every_ready_task_has_a_hint(world: &World) {
    let team = world.admin("one").await.team;
    let site = site(world).await;
    let new = [new_task("a", Some(site), &[]), new_task("b", Some(site), &["a"]), new_task("own", None, &[])];
    let operation = world.running(team, &new).await;
    let hints = world.catalog.outbox(None, 100).await.unwrap();
    let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
    let a = tasks.iter().find(|t| t.label == "a").unwrap();
    assert_eq!(
        hints.iter().map(|h| (h.site, h.task, h.kind.as_str())).collect::<Vec<_>>(),
        [(site, a.id, "copy-data")]
    );
    for _ in 0..2 {
        world.catalog.published(hints[0].id).await.unwrap();
    }
    assert!(world.catalog.outbox(None, 100).await.unwrap().is_empty());
    // Rolled back, neither the task nor its hint was ever there.
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_tasks(operation.id, &[new_task("c", Some(site), &[])]).await.unwrap();
    drop(transaction);
    assert!(world.catalog.outbox(None, 100).await.unwrap().is_empty());
    assert_eq!(world.catalog.tasks(team, operation.id).await.unwrap().len(), 3);
    // A task that is given back is offered again.
    let claimed = claim(&world.catalog, a, world.instance()).await.unwrap();
    let held = now(world, a).await;
    commit(&world.catalog, async |t| t.hand_back(&held, &lost()).await.unwrap()).await;
    assert_eq!(world.catalog.outbox(None, 100).await.unwrap()[0].task, claimed.task);
}

async fn only_its_own_site_claims_a_task(world: &World) {
    let team = world.admin("one").await.team;
    let (desk, lab) = (site(world).await, world.catalog.ensure_site("lab").await.unwrap());
    let operation = world.running(team, &[new_task("a", Some(desk), &[])]).await;
    let task = world.only_task(&operation).await;
    for (wrong, most) in [(Some(lab), 0), (None, 0)] {
        let taken =
            commit(&world.catalog, async |t| t.claim(task.id, wrong, world.instance(), LEASE).await.unwrap().is_some())
                .await;
        assert!(!taken, "{wrong:?}");
        assert_eq!(world.catalog.ready_tasks(wrong, 10).await.unwrap().len(), most);
    }
    assert_eq!(world.catalog.ready_tasks(Some(desk), 10).await.unwrap()[0].id, task.id);
    assert!(claim(&world.catalog, &task, world.instance()).await.is_some());
    assert!(world.catalog.ready_tasks(Some(desk), 10).await.unwrap().is_empty());
}

async fn a_heartbeat_renews_the_lease_and_keeps_progress(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
    world.clock.advance(LEASE / 2);
    let progress = Progress { phase: "reading \"it\"".to_owned(), bytes: u64::MAX, ..Progress::default() };
    let holder = HolderState::Open { snapshot: "{\"a\":1}".to_owned(), at: world.catalog.seams.clock.now() };
    commit(&world.catalog, async |t| {
        t.heartbeat(&claimed, &progress, Some(&holder), LEASE).await.unwrap().unwrap();
        // One without a holder's state leaves it as it is.
        t.heartbeat(&claimed, &progress, None, LEASE).await.unwrap().unwrap();
    })
    .await;
    let found = now(world, &task).await;
    assert_eq!(found.lease_until, Some(world.catalog.seams.clock.now().plus(LEASE)));
    assert_eq!((found.progress, found.holder), (Some(progress.clone()), Some(holder)));
    world.clock.advance(LEASE);
    assert!(world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap().is_empty());
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap()[0].id, task.id);
    // Late, but nobody else has it: it may go on.
    commit(&world.catalog, async |t| t.heartbeat(&claimed, &progress, None, LEASE).await.unwrap().unwrap()).await;
    assert!(world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap().is_empty());
}

/// Everything that one who doesn't hold the task may try.
async fn tries_in_vain(world: &World, stranger: &Claimed) {
    commit(&world.catalog, async |t| {
        assert!(t.heartbeat(stranger, &Progress::default(), None, LEASE).await.unwrap().is_none(), "{stranger:?}");
        assert!(!t.succeed(stranger, "\"forged\"").await.unwrap(), "{stranger:?}");
        assert!(t.fail(stranger, &lost()).await.unwrap().is_none(), "{stranger:?}");
    })
    .await;
}

async fn an_outcome_counts_only_from_the_attempt_that_holds_the_task(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let other = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let unborn = Claimed { task: task.id, operation: operation.id, attempt: 0, instance: world.instance() };
    tries_in_vain(world, &unborn).await;
    let first = claim(&world.catalog, &task, world.instance()).await.unwrap();
    let held = now(world, &task).await;
    commit(&world.catalog, async |t| t.hand_back(&held, &lost()).await.unwrap()).await;
    let second = claim(&world.catalog, &task, first.instance).await.unwrap();
    assert_eq!((first.attempt, second.attempt), (1, 2));
    for stranger in [
        first,
        Claimed { attempt: 3, ..second },
        Claimed { instance: world.instance(), ..second },
        Claimed { operation: other.id, ..second },
        Claimed { task: world.only_task(&other).await.id, ..second },
    ] {
        tries_in_vain(world, &stranger).await;
    }
    commit(&world.catalog, async |t| assert!(t.succeed(&second, "\"true\"").await.unwrap())).await;
    tries_in_vain(world, &second).await;
    let ended = now(world, &task).await;
    assert_eq!((ended.state, ended.output.as_deref(), ended.failure), (TaskState::Succeeded, Some("\"true\""), None));
    assert_eq!(world.only_task(&other).await.state, TaskState::Ready);
    assert_eq!(world.number("SELECT count(*) FROM attempts WHERE ended IS NOT NULL").await, 2);
}

/// The reaper reads, decides, and writes; in between the outcome may come in.
async fn a_success_is_never_taken_back_by_whoever_looked_before(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
    let seen = now(world, &task).await;
    commit(&world.catalog, async |t| assert!(t.succeed(&claimed, "{}").await.unwrap())).await;
    let transaction = world.catalog.begin().await.unwrap();
    let _ = transaction.hand_back(&seen, &lost()).await;
    transaction.commit().await.unwrap();
    assert_eq!(now(world, &task).await.state, TaskState::Succeeded);
    // Nor does it take a later attempt from its holder.
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    claim(&world.catalog, &task, world.instance()).await.unwrap();
    let seen = now(world, &task).await;
    commit(&world.catalog, async |t| t.hand_back(&seen, &lost()).await.unwrap()).await;
    let second = claim(&world.catalog, &task, world.instance()).await.unwrap();
    let transaction = world.catalog.begin().await.unwrap();
    let _ = transaction.hand_back(&seen, &lost()).await;
    transaction.commit().await.unwrap();
    let held = now(world, &task).await;
    assert_eq!((held.state, held.instance), (TaskState::Claimed, Some(second.instance)));
}

/// Many claim, fail and hand back one task for a while: attempts are numbered without a gap or a repetition, and no
/// transaction fails for anything but having come too late.
async fn a_claim_that_looked_before_another_attempt_is_refused(world: &World) {
    let team = world.admin("one").await.team;
    let mut new = new_task("a", None, &[]);
    new.most_attempts = 1000;
    let operation = world.running(team, &[new]).await;
    let task = world.only_task(&operation).await;
    let workers = (0..8).map(|_| {
        let (instance, task) = (world.instance(), task.clone());
        async move {
            let mut mine = Vec::new();
            for _ in 0..15 {
                let Some(claimed) = claim(&world.catalog, &task, instance).await else { continue };
                mine.push(claimed.attempt);
                let held = now(world, &task).await;
                let failure = lost();
                commit(&world.catalog, async |t| {
                    if claimed.attempt % 2 == 0 {
                        t.fail(&claimed, &failure).await.unwrap();
                    } else {
                        let _ = t.hand_back(&held, &failure).await.unwrap();
                    }
                })
                .await;
                world.clock.advance(Duration::from_secs(200));
            }
            mine
        }
    });
    let mut attempts = futures::future::join_all(workers).await.concat();
    attempts.sort_unstable();
    assert_eq!(attempts, (1..=attempts.len() as u32).collect::<Vec<_>>());
    assert!(attempts.len() > 5, "{}", attempts.len());
}

async fn a_retryable_failure_is_tried_again_after_a_pause_while_tries_last(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", Some(site(world).await), &[])]).await;
    let task = world.only_task(&operation).await;
    for attempt in 1..=3u32 {
        let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
        assert_eq!(claimed.attempt, attempt);
        let state = commit(&world.catalog, async |t| t.fail(&claimed, &lost()).await.unwrap()).await;
        let pause = Duration::from_secs(1 << attempt);
        if attempt < 3 {
            assert_eq!(state, Some(TaskState::Ready));
            assert!(claim(&world.catalog, &task, world.instance()).await.is_none(), "at once");
            world.clock.advance(pause.mul_f64(0.74));
            assert!(claim(&world.catalog, &task, world.instance()).await.is_none(), "too early");
            assert!(world.catalog.ready_tasks(task.site, 10).await.unwrap().is_empty());
            world.clock.advance(pause.mul_f64(0.52));
            assert_eq!(world.catalog.ready_tasks(task.site, 10).await.unwrap().len(), 1);
        } else {
            assert_eq!(state, Some(TaskState::Failed));
        }
    }
    let ended = now(world, &task).await;
    assert_eq!((ended.state, ended.failure), (TaskState::Failed, Some(lost())));
    assert!(ended.ended.is_some() && ended.lease_until.is_none());
    world.clock.advance(Duration::from_secs(1000));
    assert!(claim(&world.catalog, &task, world.instance()).await.is_none());
}

async fn a_lost_attempt_is_no_try(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", Some(site(world).await), &[])]).await;
    let task = world.only_task(&operation).await;
    // Killed more often than the work itself may fail.
    for _ in 0..5 {
        claim(&world.catalog, &task, world.instance()).await.unwrap();
        let seen = now(world, &task).await;
        let why = TaskFailure::retryable(ocopea_catalog_db::tasks::LOST, "a was not finished", "its agent died");
        let state = commit(&world.catalog, async |t| t.hand_back(&seen, &why).await.unwrap()).await;
        assert_eq!(state, Some(TaskState::Ready));
    }
    for attempt in 1..=3 {
        let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
        let state = commit(&world.catalog, async |t| t.fail(&claimed, &lost()).await.unwrap()).await;
        assert_eq!(state, Some(if attempt < 3 { TaskState::Ready } else { TaskState::Failed }), "try {attempt}");
        world.clock.advance(Duration::from_secs(200));
    }
}

async fn a_clock_that_is_set_costs_nobody_a_lease_and_delays_nothing(world: &World) {
    let team = world.admin("one").await.team;
    let labels = [new_task("held", None, &[]), new_task("failed", None, &[]), new_task("dead", None, &[])];
    let operation = world.running(team, &labels).await;
    let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
    let alive = world.instance();
    claim(&world.catalog, &tasks[0], alive).await.unwrap();
    let failed = claim(&world.catalog, &tasks[1], alive).await.unwrap();
    commit(&world.catalog, async |t| t.fail(&failed, &lost()).await.unwrap()).await;
    claim(&world.catalog, &tasks[2], world.instance()).await.unwrap();
    world.execute("UPDATE tasks SET lease_until = 0 WHERE label = 'dead'").await;
    // An hour back: what was to wait two seconds doesn't wait an hour longer.
    world.clock.back(Duration::from_secs(3600));
    let ready = world.catalog.ready_tasks(None, 10).await.unwrap();
    assert_eq!(ready.iter().map(|task| task.id).collect::<Vec<_>>(), [tasks[1].id]);
    assert!(claim(&world.catalog, &tasks[1], alive).await.is_some());
    for jump in [0, 2 * 3600] {
        world.clock.advance(Duration::from_secs(jump));
        let present = world.catalog.seams.clock.now();
        commit(&world.catalog, async |t| t.renew_leases(present.plus(LEASE)).await.unwrap()).await;
        let expired = world.catalog.expired_tasks(present).await.unwrap();
        assert_eq!(expired.iter().map(|task| task.id).collect::<Vec<_>>(), [tasks[2].id]);
        let held = world.catalog.tasks(team, operation.id).await.unwrap().remove(0);
        assert_eq!(held.lease_until, Some(present.plus(LEASE)));
    }
}

async fn a_heartbeat_without_news_writes_nothing(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
    let (quiet, news) = (Progress::default(), Progress { bytes: 1, ..Progress::default() });
    let beat = async |progress: &Progress, holder: Option<&HolderState>| {
        commit(&world.catalog, async |t| t.heartbeat(&claimed, progress, holder, LEASE).await.unwrap().unwrap())
            .await
            .written
    };
    assert!(!beat(&quiet, None).await);
    assert!(beat(&news, None).await);
    assert!(!beat(&news, None).await);
    assert!(beat(&news, Some(&HolderState::Prepared)).await);
    assert!(!beat(&news, Some(&HolderState::Prepared)).await);
    world.clock.advance(LEASE / 3);
    assert!(beat(&news, Some(&HolderState::Prepared)).await, "the lease is renewed in time");
}

async fn a_permanent_failure_ends_the_task(world: &World) {
    let team = world.admin("one").await.team;
    for (failure, end) in [
        (TaskFailure::permanent("x", "a", "b"), TaskState::Failed),
        (TaskFailure::conflict("x", "a", "b"), TaskState::Failed),
        (TaskFailure::cancelled("a"), TaskState::Cancelled),
    ] {
        let operation = world.running(team, &[new_task("a", None, &[])]).await;
        let task = world.only_task(&operation).await;
        let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
        let state = commit(&world.catalog, async |t| t.fail(&claimed, &failure).await.unwrap()).await;
        assert_eq!(state, Some(end));
        let ended = now(world, &task).await;
        assert_eq!((ended.state, ended.failure), (end, Some(failure)));
    }
}

async fn a_holders_heartbeat_that_comes_late_closes_no_snapshot(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("open:db:0", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let claimed = claim(&world.catalog, &task, world.instance()).await.unwrap();
    let open = HolderState::Open { snapshot: "{}".to_owned(), at: world.catalog.seams.clock.now() };
    for said in [&HolderState::Prepared, &open, &HolderState::Prepared] {
        let beat = async |t: &ocopea_catalog_db::Transaction| {
            t.heartbeat(&claimed, &Progress::default(), Some(said), LEASE).await.unwrap().unwrap()
        };
        commit(&world.catalog, beat).await;
    }
    assert_eq!(now(world, &task).await.holder, Some(open));
}

async fn a_lease_that_ran_out_gives_the_task_to_another(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let slow = claim(&world.catalog, &task, world.instance()).await.unwrap();
    assert!(claim(&world.catalog, &task, world.instance()).await.is_none());
    world.clock.advance(LEASE + Duration::from_millis(1));
    let expired = world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap();
    commit(&world.catalog, async |t| t.hand_back(&expired[0], &lost()).await.unwrap()).await;
    let given = now(world, &task).await;
    assert_eq!((given.instance, given.lease_until, given.holder), (None, None, None));
    let quick = claim(&world.catalog, &task, world.instance()).await.unwrap();
    tries_in_vain(world, &slow).await;
    commit(&world.catalog, async |t| assert!(t.succeed(&quick, "{}").await.unwrap())).await;
}

async fn a_task_that_is_lost_again_and_again_fails_at_last(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[])]).await;
    let task = world.only_task(&operation).await;
    let mut tries = 0;
    while claim(&world.catalog, &task, world.instance()).await.is_some() {
        tries += 1;
        assert!(tries < 100, "it never ends");
        let held = now(world, &task).await;
        commit(&world.catalog, async |t| t.hand_back(&held, &lost()).await.unwrap()).await;
    }
    assert_eq!(tries, 23, "its 3 tries and 20 lost leases");
    assert_eq!(now(world, &task).await.state, TaskState::Failed);
}

async fn leases_of_the_dead_end_at_once(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[new_task("a", None, &[]), new_task("b", None, &[])]).await;
    let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
    let (dead, alive) = (world.instance(), world.instance());
    claim(&world.catalog, &tasks[0], dead).await.unwrap();
    claim(&world.catalog, &tasks[1], alive).await.unwrap();
    if world.catalog.is_shared() {
        // Another coordinator starts, and knows of nobody: those who work go on.
        assert_eq!(world.again().await.unwrap().expire_all_but(&[]).await.unwrap(), 0);
        let expired = world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap();
        assert!(expired.is_empty(), "{expired:?}");
        return;
    }
    assert_eq!(world.catalog.expire_all_but(&[alive]).await.unwrap(), 1);
    let expired = world.catalog.expired_tasks(world.catalog.seams.clock.now()).await.unwrap();
    assert_eq!(expired.iter().map(|t| t.id).collect::<Vec<_>>(), [tasks[0].id]);
    assert_eq!(world.catalog.expire_all_but(&[]).await.unwrap(), 2);
}

async fn what_is_called_off_is_not_claimed_and_learns_it(world: &World) {
    let team = world.admin("one").await.team;
    let mut undo = new_task("undo:a", None, &[]);
    undo.undo = true;
    let new = [new_task("a", None, &[]), new_task("b", None, &[]), new_task("c", None, &["b"]), undo];
    let operation = world.running(team, &new).await;
    let tasks = world.catalog.tasks(team, operation.id).await.unwrap();
    let claimed = claim(&world.catalog, &tasks[0], world.instance()).await.unwrap();
    commit(&world.catalog, async |t| t.cancel_waiting(operation.id, false).await.unwrap()).await;
    let states = world.catalog.tasks(team, operation.id).await.unwrap();
    let states: Vec<_> = states.iter().map(|t| (t.label.as_str(), t.state)).collect();
    use TaskState::{Cancelled, Claimed as Held, Ready};
    assert_eq!(states, [("a", Held), ("b", Cancelled), ("c", Cancelled), ("undo:a", Ready)]);
    assert!(claim(&world.catalog, &tasks[1], world.instance()).await.is_none());
    for _ in 0..2 {
        commit(&world.catalog, async |t| t.cancel_task(claimed.task).await.unwrap()).await;
    }
    assert_eq!(world.number("SELECT count(*) FROM attempts WHERE ended IS NULL").await, 0, "it is over at once");
    tries_in_vain(world, &claimed).await;
    let undo = claim(&world.catalog, &tasks[3], world.instance()).await.unwrap();
    commit(&world.catalog, async |t| {
        assert!(t.succeed(&undo, "{}").await.unwrap());
        t.cancel_task(undo.task).await.unwrap();
    })
    .await;
    let ended = now(world, &tasks[3]).await;
    assert_eq!(ended.state, TaskState::Succeeded, "what is over stays as it is");
    assert_eq!(claimed_of(&ended, undo.instance).attempt, 1);
}
