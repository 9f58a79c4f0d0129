//! Kill -9: what was committed is there, what was not is not, whatever the instant.
//!
//! The test's own program is started again as the process that is killed; it does what an environment variable says.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ocopea_catalog_db::{Catalog, model::Role};
use ocopea_protocol::{ids::OperationId, seams::Seams};
use tempfile::TempDir;

use crate::{
    postgres::pause,
    world::{World, new_task},
};

const ROLE: &str = "OCOPEA_TEST_CRASH";

fn start(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::the_process_that_is_killed", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{role} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

async fn open(path: &Path) -> Catalog {
    Catalog::connect(&format!("sqlite:{}", path.display()), Seams::real(Default::default())).await.unwrap()
}

/// Nothing when it is run as a test; else what it was started for, until it is killed.
#[tokio::test]
async fn the_process_that_is_killed() {
    let Ok(told) = std::env::var(ROLE) else { return };
    let (role, path) = told.split_once(' ').unwrap();
    let catalog = open(Path::new(path)).await;
    let admin = catalog.ensure_first_user("team", "ann").await.unwrap();
    let site = catalog.ensure_site("desk").await.unwrap();
    match role {
        "open" => {}
        "hold" => {
            let transaction = catalog.begin().await.unwrap();
            let mut operation = blank(&catalog, admin.team);
            operation.site = Some(site);
            transaction.add_operation(&operation).await.unwrap();
            transaction.add_tasks(operation.id, &[new_task("a", Some(site), &[])]).await.unwrap();
            transaction.audit(Some(admin.team), None, "crash", "x", "y").await.unwrap();
            println!("held {}", operation.id);
            std::future::pending::<()>().await;
        }
        _ => loop {
            let operation = blank(&catalog, admin.team);
            let transaction = catalog.begin().await.unwrap();
            transaction.remember_request(admin.team, &operation.id.to_string(), "r", operation.id).await.unwrap();
            transaction.add_operation(&operation).await.unwrap();
            let new: Vec<_> = (0..5).map(|n| new_task(&format!("task {n}"), Some(site), &[])).collect();
            transaction.add_tasks(operation.id, &new).await.unwrap();
            transaction.audit(Some(admin.team), None, "crash", &operation.id.to_string(), "").await.unwrap();
            transaction.commit().await.unwrap();
            println!("committed {}", operation.id);
        },
    }
    println!("opened");
    std::future::pending::<()>().await;
}

fn blank(catalog: &Catalog, team: ocopea_protocol::ids::TeamId) -> ocopea_catalog_db::operations::Operation {
    ocopea_catalog_db::operations::Operation {
        id: OperationId::generate(&catalog.seams),
        team,
        kind: "save".to_owned(),
        state: ocopea_catalog_db::model::OperationState::Running,
        title: "save".to_owned(),
        creator: "ann".to_owned(),
        site: None,
        image: None,
        environment: None,
        repository: None,
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

/// Reads what the process says until it said it, or went silent.
fn hear(child: &mut Child, wanted: &str, most: usize) -> Vec<String> {
    let mut heard = Vec::new();
    for line in BufReader::new(child.stdout.as_mut().unwrap()).lines() {
        let line = line.unwrap();
        // The harness's own words stand in front of the first line.
        if let Some((_, rest)) = line.split_once(wanted) {
            heard.push(rest.trim().to_owned());
            if heard.len() == most {
                break;
            }
        }
    }
    heard
}

#[tokio::test]
async fn a_process_killed_in_a_transaction_leaves_the_state_before() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("catalog.sqlite");
    let mut child = start("hold", &path);
    let held: OperationId = hear(&mut child, "held ", 1)[0].parse().unwrap();
    kill(child);
    let catalog = open(&path).await;
    let admin = catalog.ensure_first_user("team", "ann").await.unwrap();
    assert!(catalog.operation(admin.team, held).await.is_err());
    assert!(catalog.operations(admin.team, None, 10).await.unwrap().is_empty());
    assert!(catalog.tasks(admin.team, held).await.unwrap().is_empty());
    assert!(catalog.outbox(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_committed_survives_a_kill_at_any_instant_and_nothing_is_there_by_half() {
    let place = TempDir::new().unwrap();
    let path = place.path().join("catalog.sqlite");
    let mut committed: Vec<OperationId> = Vec::new();
    for round in 0..6usize {
        let mut child = start("work", &path);
        let heard = hear(&mut child, "committed ", 3 + 7 * round);
        // Somewhere within the next one.
        pause(Duration::from_micros(300 * round as u64));
        kill(child);
        assert_eq!(heard.len(), 3 + 7 * round);
        committed.extend(heard.iter().map(|id| id.parse::<OperationId>().unwrap()));
        let catalog = open(&path).await;
        let admin = catalog.ensure_first_user("team", "ann").await.unwrap();
        for id in &committed {
            catalog.operation(admin.team, *id).await.unwrap();
        }
        // Those that were committed but could not say so any more are whole, too.
        let all = catalog.operations(admin.team, None, 1000).await.unwrap();
        assert!(all.len() >= committed.len());
        for operation in &all {
            assert_eq!(catalog.tasks(admin.team, operation.id).await.unwrap().len(), 5);
            let known = catalog.known_request(admin.team, &operation.id.to_string(), "r").await.unwrap();
            assert_eq!(known, Some(operation.id));
        }
        assert_eq!(catalog.outbox(None, 100_000).await.unwrap().len(), 5 * all.len());
    }
}

#[tokio::test]
async fn a_first_start_that_is_killed_at_any_instant_can_be_repeated() {
    let place = TempDir::new().unwrap();
    for round in 0..24u64 {
        let path = place.path().join(format!("{round}.sqlite"));
        let child = start("open", &path);
        pause(Duration::from_micros(2_000 + 1_500 * round));
        kill(child);
        let catalog = open(&path).await;
        catalog.ensure_first_user("team", "ann").await.unwrap();
        assert_eq!(catalog.ensure_member("team", "ann", Role::Viewer).await.unwrap().role, Role::Viewer);
    }
}

#[tokio::test]
async fn postgresql_keeps_what_was_committed_when_its_client_goes_in_a_transaction() {
    let world = World::postgresql().await;
    let admin = world.admin("one").await;
    let operation = world.operation(admin.team);
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_operation(&operation).await.unwrap();
    world.disconnect();
    assert!(transaction.commit().await.is_err());
    assert!(world.catalog.operation(admin.team, operation.id).await.is_err());
}
