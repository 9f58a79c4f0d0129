//! Operations and idempotency keys.

use std::time::Duration;

use ocopea_catalog_db::{CatalogError, model::OperationState};
use ocopea_protocol::{failure::TaskFailure, ids::OperationId};

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    the_same_request_at_once_is_one_operation,
    a_key_stands_for_one_request_of_one_team,
    a_request_that_was_rolled_back_can_be_made_again,
    an_operation_is_stored_and_read_back_whole,
    terminal_states_are_never_left,
    every_change_counts_once_though_made_at_once,
    lists_are_paged_newest_first,
    only_what_is_not_over_is_open,
}

async fn the_same_request_at_once_is_one_operation(world: &World) {
    let team = world.admin("one").await.team;
    let other = if world.catalog.is_shared() { world.again().await.unwrap() } else { world.catalog.clone() };
    let asking = (0..100).map(async |number| {
        let operation = world.operation(team);
        let catalog = if number % 2 == 0 { &world.catalog } else { &other };
        let transaction = catalog.begin().await?;
        if let Some(known) = transaction.remember_request(team, "key", "save shop", operation.id).await? {
            return Ok(known);
        }
        transaction.add_operation(&operation).await?;
        transaction.commit().await?;
        Ok::<OperationId, CatalogError>(operation.id)
    });
    let ids = futures::future::join_all(asking).await.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let listed = world.catalog.operations(team, None, 100).await.unwrap();
    assert_eq!(listed.iter().map(|o| o.id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(world.catalog.known_request(team, "key", "save shop").await.unwrap(), Some(ids[0]));
}

async fn a_key_stands_for_one_request_of_one_team(world: &World) {
    let (one, two) = (world.admin("one").await.team, world.admin("two").await.team);
    let (first, second) = (world.operation(one), world.operation(two));
    commit(&world.catalog, async |t| {
        assert_eq!(t.remember_request(one, "key", "a", first.id).await.unwrap(), None);
        assert_eq!(t.remember_request(two, "key", "b", second.id).await.unwrap(), None);
    })
    .await;
    assert_eq!(world.catalog.known_request(one, "key", "a").await.unwrap(), Some(first.id));
    assert_eq!(world.catalog.known_request(two, "key", "b").await.unwrap(), Some(second.id));
    assert_eq!(world.catalog.known_request(one, "other", "a").await.unwrap(), None);
    let transaction = world.catalog.begin().await.unwrap();
    let error = transaction.remember_request(one, "key", "b", second.id).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Conflict(why) if why.contains("Idempotency-Key")), "{error}");
    drop(transaction);
    assert!(world.catalog.known_request(one, "key", "b").await.is_err());
}

async fn a_request_that_was_rolled_back_can_be_made_again(world: &World) {
    let team = world.admin("one").await.team;
    let (first, second) = (world.operation(team), world.operation(team));
    let transaction = world.catalog.begin().await.unwrap();
    transaction.remember_request(team, "key", "a", first.id).await.unwrap();
    transaction.add_operation(&first).await.unwrap();
    drop(transaction);
    assert!(world.catalog.operation(team, first.id).await.is_err());
    commit(&world.catalog, async |t| {
        assert_eq!(t.remember_request(team, "key", "a", second.id).await.unwrap(), None);
    })
    .await;
}

async fn an_operation_is_stored_and_read_back_whole(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[]).await;
    let failure = TaskFailure::permanent("data.x", "can't save \"it's\"", "line\nbreak \0 \u{1F980}").next("again");
    world.clock.advance(Duration::from_secs(5));
    let mut changed = operation.clone();
    changed.state = OperationState::Undoing;
    changed.failure = Some(failure.clone());
    changed.context = r#"{"a":"\u0000"}"#.to_owned();
    changed.stage = 7;
    changed.cancel_requested = Some(world.catalog.seams.clock.now());
    commit(&world.catalog, async |t| t.save_operation(&changed).await.unwrap()).await;
    let found = world.catalog.operation(team, operation.id).await.unwrap();
    assert_eq!((found.version, found.stage, found.failure, found.ended), (2, 7, Some(failure), None));
    assert_eq!((found.context, found.cancel_requested), (changed.context.clone(), changed.cancel_requested));
    changed.state = OperationState::Failed;
    changed.result = Some("{}".to_owned());
    commit(&world.catalog, async |t| t.save_operation(&changed).await.unwrap()).await;
    let found = world.catalog.operation(team, operation.id).await.unwrap();
    assert_eq!((found.ended, found.result.as_deref()), (Some(world.catalog.seams.clock.now()), Some("{}")));
    assert_eq!((found.created, found.title), (operation.created, operation.title));
}

async fn terminal_states_are_never_left(world: &World) {
    use OperationState::{Cancelled, Failed, Running, Succeeded, Undoing};
    let team = world.admin("one").await.team;
    for end in [Succeeded, Failed, Cancelled] {
        let mut operation = world.running(team, &[]).await;
        operation.state = end;
        commit(&world.catalog, async |t| t.save_operation(&operation).await.unwrap()).await;
        for next in [Running, Undoing, Succeeded, Failed, Cancelled].into_iter().filter(|next| *next != end) {
            operation.state = next;
            let error = world.catalog.begin().await.unwrap().save_operation(&operation).await.unwrap_err();
            assert!(matches!(error, CatalogError::Conflict(_)), "{end:?} → {next:?}: {error}");
        }
        assert_eq!(world.catalog.operation(team, operation.id).await.unwrap().state, end);
    }
}

async fn every_change_counts_once_though_made_at_once(world: &World) {
    let team = world.admin("one").await.team;
    let operation = world.running(team, &[]).await;
    let changing = (0..10).map(|_| async {
        commit(&world.catalog, async |t| {
            // As the engine does it: read for changing, decide, store.
            let mut now = t.operation(operation.id).await.unwrap();
            now.stage += 1;
            t.save_operation(&now).await.unwrap();
            t.touch_operation(operation.id).await.unwrap();
        })
        .await;
    });
    futures::future::join_all(changing).await;
    let found = world.catalog.operation(team, operation.id).await.unwrap();
    assert_eq!((found.stage, found.version), (10, 21));
}

async fn lists_are_paged_newest_first(world: &World) {
    let team = world.admin("one").await.team;
    let mut wanted = Vec::new();
    for number in 0..13 {
        world.clock.advance(Duration::from_millis(number % 2));
        wanted.push(world.running(team, &[]).await.id);
    }
    wanted.sort_by(|a, b| b.cmp(a));
    let (mut seen, mut before) = (Vec::new(), None);
    loop {
        let page = world.catalog.operations(team, before, 5).await.unwrap();
        seen.extend(page.iter().map(|o| o.id));
        world.clock.advance(Duration::from_millis(1));
        world.running(team, &[]).await;
        before = page.last().map(|o| o.id);
        if before.is_none() {
            break;
        }
    }
    assert_eq!(seen, wanted);
    assert_eq!(world.catalog.operations(team, None, 0).await.unwrap().len(), 1);
    assert!(world.catalog.operations(team, Some(OperationId(uuid::Uuid::nil())), 5).await.unwrap().is_empty());
}

async fn only_what_is_not_over_is_open(world: &World) {
    use OperationState::{Cancelled, Failed, Running, Succeeded, Undoing};
    let (one, two) = (world.admin("one").await.team, world.admin("two").await.team);
    let mut open = Vec::new();
    for (team, state) in
        [(one, Running), (two, Undoing), (one, Succeeded), (two, Failed), (one, Cancelled), (two, Running)]
    {
        let mut operation = world.running(team, &[]).await;
        operation.state = state;
        commit(&world.catalog, async |t| t.save_operation(&operation).await.unwrap()).await;
        if !state.is_terminal() {
            open.push(operation.id);
        }
    }
    let mut found: Vec<_> = world.catalog.open_operations().await.unwrap().iter().map(|o| o.id).collect();
    found.sort();
    open.sort();
    assert_eq!(found, open);
}
