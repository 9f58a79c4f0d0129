//! Environments and sites.

use ocopea_catalog_db::{CatalogError, model::EnvironmentState};
use ocopea_protocol::ids::{InstanceId, OperationId};
use ocopea_protocol::message::{SiteReport, SiteState};
use ocopea_protocol::plan::ContainerPlacement;
use ocopea_protocol::{names::Digest, needs::Capabilities};

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    a_name_is_taken_once_per_site_though_asked_for_at_once,
    a_name_is_free_again_when_its_environment_is_gone,
    states_follow_only_where_they_may,
    one_operation_removes_an_environment,
    facts_are_kept,
    an_environment_is_found_among_very_many,
    a_site_is_made_once_though_asked_for_at_once,
    a_report_replaces_the_one_before,
}

async fn a_name_is_taken_once_per_site_though_asked_for_at_once(world: &World) {
    let (one, two) = (world.admin("one").await.team, world.admin("two").await.team);
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let asking = (0..8).map(|number| async move {
        // Of any team: the name is the namespace's.
        let new = world.environment(if number % 2 == 0 { one } else { two }, site, "shop");
        let transaction = world.catalog.begin().await.unwrap();
        let answer = transaction.add_environment(&new).await;
        if answer.is_ok() {
            transaction.commit().await.unwrap();
        }
        answer
    });
    let answers = futures::future::join_all(asking).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for error in answers.into_iter().filter_map(Result::err) {
        assert!(matches!(&error, CatalogError::Conflict(why) if why.contains("\"shop\"")), "{error}");
    }
    let elsewhere = world.catalog.ensure_site("lab").await.unwrap();
    let (same, other) = (world.environment(one, elsewhere, "shop"), world.environment(one, site, "shop-2"));
    commit(&world.catalog, async |t| {
        t.add_environment(&same).await.unwrap();
        t.add_environment(&other).await.unwrap();
    })
    .await;
}

async fn a_name_is_free_again_when_its_environment_is_gone(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    use EnvironmentState::{Creating, Failed, Removed, Removing, Running};
    for path in [vec![Failed], vec![Running, Removing, Removed], vec![]] {
        let new = world.environment(team, site, "shop");
        commit(&world.catalog, async |t| {
            t.add_environment(&new).await.unwrap();
            for state in path {
                t.set_environment_state(new.id, state).await.unwrap();
                // A repeated step changes nothing.
                t.set_environment_state(new.id, state).await.unwrap();
            }
        })
        .await;
    }
    let left = world.catalog.environments(team, None, 1000).await.unwrap();
    assert_eq!(left.iter().map(|e| e.state).collect::<Vec<_>>(), [Creating]);
    assert_eq!(world.number("SELECT count(*) FROM environments WHERE ended IS NOT NULL").await, 2);
    assert_eq!(world.number("SELECT count(*) FROM environments").await, 3);
}

async fn states_follow_only_where_they_may(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    use EnvironmentState::{Creating, Failed, Removed, Removing, Running};
    for (at, path, refused) in [
        ("creating", vec![], vec![Removed]),
        ("running", vec![Running], vec![Creating, Failed, Removed]),
        ("removing", vec![Running, Removing], vec![Creating, Failed]),
        ("removed", vec![Running, Removing, Removed], vec![Creating, Running, Removing, Failed]),
        ("failed", vec![Failed], vec![Creating, Running, Removing, Removed]),
    ] {
        let new = world.environment(team, site, at);
        let transaction = world.catalog.begin().await.unwrap();
        transaction.add_environment(&new).await.unwrap();
        for state in path {
            transaction.set_environment_state(new.id, state).await.unwrap();
        }
        for state in refused {
            let error = transaction.set_environment_state(new.id, state).await.unwrap_err();
            assert!(matches!(error, CatalogError::Conflict(_)), "{at}: {error}");
            assert_eq!(transaction.environment(new.id).await.unwrap().state.as_str(), at);
        }
        transaction.commit().await.unwrap();
    }
}

async fn one_operation_removes_an_environment(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let new = world.environment(team, site, "shop");
    let mut making = world.operation(team);
    making.environment = Some(new.id);
    commit(&world.catalog, async |t| {
        t.add_environment(&new).await.unwrap();
        t.add_operation(&making).await.unwrap();
    })
    .await;
    let begin = || async {
        let transaction = world.catalog.begin().await.unwrap();
        let begun = transaction.begin_removing(new.id, OperationId(uuid::Uuid::nil())).await;
        if begun.is_ok() {
            transaction.commit().await.unwrap();
        }
        begun
    };
    let error = begin().await.unwrap_err().to_string();
    assert!(error.contains("still being made") && error.contains(&making.id.to_string()), "{error}");
    commit(&world.catalog, async |t| t.set_environment_state(new.id, EnvironmentState::Running).await.unwrap()).await;
    let answers = futures::future::join_all((0..8).map(|_| begin())).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "{answers:?}");
    for error in answers.into_iter().filter_map(Result::err) {
        assert!(matches!(&error, CatalogError::Conflict(why) if why.contains("being removed already")), "{error}");
    }
    commit(&world.catalog, async |t| t.set_environment_state(new.id, EnvironmentState::Removed).await.unwrap()).await;
    assert!(matches!(begin().await, Err(CatalogError::NotFound { .. })));
}

async fn facts_are_kept(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let new = world.environment(team, site, "shop");
    let placement = ContainerPlacement {
        component: "web".parse().unwrap(),
        digest: Digest([3; 32]),
        target: "registry:5000/ocopea/web".to_owned(),
        push: true,
    };
    commit(&world.catalog, async |t| {
        t.add_environment(&new).await.unwrap();
        let url = Some("http://shop.example/?a='%_".to_owned());
        t.set_environment_facts(new.id, url, std::slice::from_ref(&placement)).await.unwrap();
    })
    .await;
    for name in ["shop", &new.id.to_string()] {
        let found = world.catalog.environment(team, name).await.unwrap();
        assert_eq!((found.url.as_deref(), found.record), (Some("http://shop.example/?a='%_"), new.record));
        assert_eq!(found.placements, std::slice::from_ref(&placement));
    }
    for absent in ["", "Shop", "sho_", "shop'--", "s\0"] {
        let error = world.catalog.environment(team, absent).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { what: "environment", .. }), "{error}");
    }
}

async fn an_environment_is_found_among_very_many(world: &World) {
    let team = world.admin("one").await.team;
    let site = world.catalog.ensure_site("desk").await.unwrap();
    let first = world.environment(team, site, "first");
    commit(&world.catalog, async |t| {
        t.add_environment(&first).await.unwrap();
        world.clock.advance(std::time::Duration::from_secs(1));
        for number in 0..1001 {
            t.add_environment(&world.environment(team, site, &format!("later-{number}"))).await.unwrap();
        }
    })
    .await;
    assert_eq!(world.catalog.environment(team, "first").await.unwrap().id, first.id);
    assert_eq!(world.catalog.environment(team, &first.id.to_string()).await.unwrap().id, first.id);
}

async fn a_site_is_made_once_though_asked_for_at_once(world: &World) {
    let ids = futures::future::try_join_all((0..8).map(|_| world.catalog.ensure_site("desk"))).await.unwrap();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(world.catalog.sites().await.unwrap().len(), 1);
    for name in ["desk", &ids[0].to_string()] {
        assert_eq!(world.catalog.site(name).await.unwrap().id, ids[0]);
    }
    for absent in ["", "Desk", "des%", "' OR ''='", "d\0", &"x".repeat(10_000)] {
        let error = world.catalog.site(absent).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { what: "site", .. }), "{error}");
        assert!(error.to_string().len() < 300);
    }
}

async fn a_report_replaces_the_one_before(world: &World) {
    let site = world.catalog.ensure_site("desk").await.unwrap();
    assert!(world.catalog.site("desk").await.unwrap().report.is_none());
    for (state, why) in [(SiteState::Ready, ""), (SiteState::Unreachable("no route\0\u{1F980}'".to_owned()), "later")] {
        world.clock.advance(std::time::Duration::from_secs(60));
        let report = SiteReport {
            instance: InstanceId::generate(&world.catalog.seams),
            at: world.catalog.seams.clock.now(),
            agent_version: "0.1.0".to_owned(),
            state,
            platform: why.to_owned(),
            nodes: 1,
            architectures: vec![],
            data_kinds: vec![],
            may_create_namespaces: true,
            registry: None,
            storage_classes: vec![],
            missing: vec![],
            applications: vec![],
            limits: None,
            capabilities: Capabilities::default(),
        };
        world.catalog.report_site(site, &report).await.unwrap();
        let found = world.catalog.site("desk").await.unwrap();
        assert_eq!((found.reported, found.report), (Some(world.catalog.seams.clock.now()), Some(report)));
    }
}
