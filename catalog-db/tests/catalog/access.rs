//! Teams, people, tokens, sign-in codes, audit.

use std::time::Duration;

use ocopea_catalog_db::{CatalogError, model::Role};
use ocopea_protocol::ids::{TokenId, UserId};

use crate::{
    on_both_engines,
    world::{World, commit},
};

on_both_engines! {
    the_first_person_is_made_once_though_asked_for_at_once,
    a_member_is_made_once_and_their_role_follows,
    a_token_allows_the_lesser_of_its_scope_and_its_owners_role,
    a_token_ends_when_it_expires_or_is_revoked,
    only_its_owner_ends_a_token,
    a_sign_in_code_works_once_though_used_at_once,
    a_sign_in_that_can_t_be_finished_leaves_the_code_as_it_was,
    a_sign_in_code_works_only_in_time,
    an_act_and_its_audit_row_are_there_together_or_not_at_all,
}

const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Administrator];

async fn the_first_person_is_made_once_though_asked_for_at_once(world: &World) {
    assert!(world.catalog.is_new().await.unwrap());
    let asking = (0..8).map(|_| world.catalog.ensure_first_user("team", "ann"));
    let actors = futures::future::try_join_all(asking).await.unwrap();
    assert!(actors.iter().all(|actor| *actor == actors[0]), "{actors:?}");
    assert_eq!(actors[0].role, Role::Administrator);
    assert!(!world.catalog.is_new().await.unwrap());
    for table in ["teams", "users", "memberships"] {
        assert_eq!(world.number(&format!("SELECT count(*) FROM {table}")).await, 1, "{table}");
    }
    // Once there is somebody, another name changes nothing.
    assert_eq!(world.catalog.ensure_first_user("other", "bob").await.unwrap(), actors[0]);
}

async fn a_member_is_made_once_and_their_role_follows(world: &World) {
    let ann = world.catalog.ensure_member("one", "ann", Role::Viewer).await.unwrap();
    let promoted = world.catalog.ensure_member("one", "ann", Role::Operator).await.unwrap();
    assert_eq!((promoted.user, promoted.team, promoted.role), (ann.user, ann.team, Role::Operator));
    let elsewhere = world.catalog.ensure_member("two", "ann", Role::Viewer).await.unwrap();
    assert_eq!(elsewhere.user, ann.user);
    assert_ne!(elsewhere.team, ann.team);
    assert_eq!(world.number("SELECT count(*) FROM memberships").await, 2);
    assert_eq!(world.number("SELECT count(*) FROM users").await, 1);
}

async fn a_token_allows_the_lesser_of_its_scope_and_its_owners_role(world: &World) {
    for role in ROLES {
        for scope in ROLES {
            let name = format!("{}-{}", role.as_str(), scope.as_str());
            let member = world.catalog.ensure_member("team", &name, role).await.unwrap();
            world.catalog.add_token(member.user, "t", &name, scope, None).await.unwrap();
            let actor = world.catalog.authenticate(&name).await.unwrap().unwrap();
            assert_eq!((actor.user, actor.team, actor.role), (member.user, member.team, role.min(scope)));
            assert_eq!(actor.narrowed, scope < role, "{name}");
        }
    }
    // What a person may do is looked up at every use, not kept in the token.
    world.catalog.ensure_member("team", "administrator-administrator", Role::Viewer).await.unwrap();
    let actor = world.catalog.authenticate("administrator-administrator").await.unwrap().unwrap();
    assert_eq!(actor.role, Role::Viewer);
    for unknown in ["", "viewer", "' OR '1'='1", "%", "viewer-viewer ", "a\0b"] {
        assert_eq!(world.catalog.authenticate(unknown).await.unwrap(), None, "{unknown:?}");
    }
}

async fn a_token_ends_when_it_expires_or_is_revoked(world: &World) {
    let ann = world.admin("one").await;
    let soon = world.catalog.seams.clock.now().plus(Duration::from_secs(60));
    world.catalog.add_token(ann.user, "short", "short", Role::Viewer, Some(soon)).await.unwrap();
    let long = world.catalog.add_token(ann.user, "long", "long", Role::Operator, None).await.unwrap();
    world.clock.advance(Duration::from_millis(59_999));
    assert!(world.catalog.authenticate("short").await.unwrap().is_some());
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(world.catalog.authenticate("short").await.unwrap(), None);
    world.catalog.revoke_token(ann.user, long).await.unwrap();
    world.catalog.revoke_token(ann.user, long).await.unwrap();
    assert_eq!(world.catalog.authenticate("long").await.unwrap(), None);
    let listed = world.catalog.tokens(ann.user).await.unwrap();
    let shown: Vec<_> = listed.iter().map(|t| (t.name.as_str(), t.scope, t.revoked, t.expires)).collect();
    let expected = [("short", Role::Viewer, false, Some(soon)), ("long", Role::Operator, true, None)];
    assert!(expected.iter().all(|one| shown.contains(one)) && shown.len() == 2, "{shown:?}");
    // Two tokens can't share a secret.
    assert!(world.catalog.add_token(ann.user, "again", "long", Role::Viewer, None).await.is_err());
}

async fn only_its_owner_ends_a_token(world: &World) {
    let (ann, bob) = (world.admin("one").await, world.admin("two").await);
    let token = world.catalog.add_token(ann.user, "t", "hash", Role::Viewer, None).await.unwrap();
    for (who, which) in [(bob.user, token), (ann.user, TokenId::generate(&world.catalog.seams))] {
        let error = world.catalog.revoke_token(who, which).await.unwrap_err();
        assert!(matches!(error, CatalogError::NotFound { what: "token", .. }), "{error}");
    }
    assert!(world.catalog.authenticate("hash").await.unwrap().is_some());
    assert_eq!(world.number("SELECT count(*) FROM audit WHERE action = 'token.revoke'").await, 0);
    assert!(world.catalog.tokens(bob.user).await.unwrap().is_empty());
}

async fn a_sign_in_code_works_once_though_used_at_once(world: &World) {
    let ann = world.admin("one").await;
    let until = world.catalog.seams.clock.now().plus(Duration::from_secs(600));
    world.catalog.add_sign_in_code(ann.user, "code", until).await.unwrap();
    let uses =
        futures::future::join_all((0..8).map(|_| world.catalog.sign_in("code", "sign-in", "token of code", None)))
            .await;
    let taken: Vec<UserId> = uses.into_iter().filter_map(Result::ok).collect();
    assert_eq!(taken, [ann.user]);
    assert!(world.catalog.sign_in("code", "sign-in", "token of code", None).await.is_err());
    assert!(world.catalog.sign_in("cod_", "sign-in", "token of cod_", None).await.is_err());
}

async fn a_sign_in_that_can_t_be_finished_leaves_the_code_as_it_was(world: &World) {
    let ann = world.admin("one").await;
    let until = world.catalog.seams.clock.now().plus(Duration::from_secs(600));
    world.catalog.add_sign_in_code(ann.user, "code", until).await.unwrap();
    world.catalog.add_token(ann.user, "t", "taken", Role::Viewer, None).await.unwrap();
    assert!(world.catalog.sign_in("code", "sign-in", "taken", None).await.is_err());
    assert_eq!(world.catalog.sign_in("code", "sign-in", "free", None).await.unwrap(), ann.user);
    assert_eq!(world.number("SELECT count(*) FROM audit WHERE subject = 'sign-in'").await, 1);
}

async fn a_sign_in_code_works_only_in_time(world: &World) {
    let ann = world.admin("one").await;
    let until = world.catalog.seams.clock.now().plus(Duration::from_secs(600));
    for code in ["early", "late"] {
        world.catalog.add_sign_in_code(ann.user, code, until).await.unwrap();
    }
    world.clock.advance(Duration::from_millis(599_999));
    assert_eq!(world.catalog.sign_in("early", "sign-in", "token of early", None).await.unwrap(), ann.user);
    world.clock.advance(Duration::from_millis(1));
    let error = world.catalog.sign_in("late", "sign-in", "token of late", None).await.unwrap_err();
    // The code is a secret: not even a wrong one is repeated.
    assert!(matches!(&error, CatalogError::NotFound { .. }) && !error.to_string().contains("late"), "{error}");
}

async fn an_act_and_its_audit_row_are_there_together_or_not_at_all(world: &World) {
    let ann = world.admin("one").await;
    let image = world.image(ann.team, "shop");
    let transaction = world.catalog.begin().await.unwrap();
    transaction.add_image(&image).await.unwrap();
    transaction.audit(Some(ann.team), Some(ann.user), "image.test", "shop", "dropped").await.unwrap();
    drop(transaction);
    assert_eq!(world.number("SELECT count(*) FROM images").await, 0);
    assert_eq!(world.number("SELECT count(*) FROM audit WHERE action = 'image.test'").await, 0);
    world.clock.advance(Duration::from_secs(5));
    commit(&world.catalog, async |t| {
        t.add_image(&image).await.unwrap();
        t.audit(Some(ann.team), Some(ann.user), "image.test", "shop", "kept").await.unwrap();
    })
    .await;
    let rows = world.rows("SELECT detail, at FROM audit WHERE action = 'image.test'").await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].try_get_by_index::<String>(0).unwrap(), "kept");
    assert_eq!(rows[0].try_get_by_index::<i64>(1).unwrap(), world.catalog.seams.clock.now().0);
}
