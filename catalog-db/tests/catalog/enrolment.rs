//! How sites come and go, and whose word counts as theirs.

use std::time::Duration;

use ocopea_catalog_db::{
    CatalogError,
    agents::SignedIn,
    enrolment::{Applicant, MOST_USES, NewEnrolmentKey},
    model::Standing,
};
use ocopea_protocol::{
    identity::{Instance, PublicKey, SiteKey},
    ids::{InstanceId, SiteId},
    names::SiteName,
    seams::Clock,
    time::Timestamp,
};

use crate::{on_both_engines, world::World};

on_both_engines! {
    a_join_token_lets_one_agent_in_and_a_copy_of_it_nobody,
    an_enrolment_key_lets_in_so_many_sites_of_fitting_names_until_it_ends,
    of_many_that_come_at_once_as_many_as_may_get_in,
    a_site_that_waits_signs_nobody_in_until_it_is_accepted,
    an_instance_is_taken_for_what_its_site_signed_and_ends_with_it,
    two_processes_of_one_id_both_end,
    an_identity_beside_another_cluster_is_refused,
}

const HOUR: Duration = Duration::from_secs(3600);

fn name(text: &str) -> SiteName {
    text.parse().unwrap()
}

fn public(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn expires(world: &World) -> Timestamp {
    world.clock.now().plus(HOUR)
}

fn conflict<T: std::fmt::Debug>(answer: Result<T, CatalogError>, word: &str) {
    match answer {
        Err(CatalogError::Conflict(why)) if why.contains(word) => {}
        other => panic!("{other:?} instead of a conflict that says {word:?}"),
    }
}

async fn a_join_token_lets_one_agent_in_and_a_copy_of_it_nobody(world: &World) {
    let admin = world.admin("team").await;
    let catalog = &world.catalog;
    let site = catalog.add_site(&admin, &name("edge"), false, "hash-1", expires(world)).await.unwrap();
    // The one before it is worth nothing any more.
    assert_eq!(catalog.add_site(&admin, &name("edge"), false, "hash-2", expires(world)).await.unwrap(), site);
    let with = |hash, key| Applicant { hash, name: None, key: public(key) };
    conflict(catalog.enrol(&with("hash-1", 1)).await, "revoked");
    assert!(matches!(catalog.enrol(&with("nothing", 1)).await, Err(CatalogError::NotFound { .. })));
    assert!(matches!(catalog.enrol(&with("nul\0", 1)).await, Err(CatalogError::NotFound { .. })));
    let enrolled = catalog.enrol(&with("hash-2", 1)).await.unwrap();
    assert_eq!((enrolled.id, enrolled.standing, enrolled.key), (site, Standing::Active, Some(public(1))));
    // Its answer was lost: the same again, even when the token has expired since.
    world.clock.advance(HOUR * 2);
    assert_eq!(catalog.enrol(&with("hash-2", 1)).await.unwrap().id, site);
    conflict(catalog.enrol(&with("hash-2", 2)).await, "expired");
    world.clock.back(HOUR * 2);
    conflict(catalog.enrol(&with("hash-2", 2)).await, "taken");
    assert_eq!(catalog.site("edge").await.unwrap().key, Some(public(1)));
    conflict(catalog.add_site(&admin, &name("edge"), false, "hash-3", expires(world)).await, "there already");
    // Removed: the key of its agent opens nothing, and the name is free.
    catalog.remove_site(&admin, site).await.unwrap();
    conflict(catalog.remove_site(&admin, site).await, "removed");
    assert_eq!(catalog.enrol(&with("hash-2", 1)).await.unwrap().standing, Standing::Removed);
    conflict(catalog.enrol(&with("hash-2", 3)).await, "taken");
    assert!(catalog.sites().await.unwrap().is_empty());
    assert_ne!(catalog.add_site(&admin, &name("edge"), false, "hash-4", expires(world)).await.unwrap(), site);
    let kept = catalog.enrolment_keys().await.unwrap();
    assert!(kept.iter().all(|key| key.site.is_some()));
    assert_eq!((kept.len(), kept.iter().map(|key| key.uses).sum::<u32>()), (3, 1));
}

fn key<'a>(world: &World, hash: &'a str, most_uses: u32, approves: bool) -> NewEnrolmentKey<'a> {
    NewEnrolmentKey { hash, name: "edges", names: "edge-*", approves, most_uses, expires: expires(world) }
}

async fn an_enrolment_key_lets_in_so_many_sites_of_fitting_names_until_it_ends(world: &World) {
    let admin = world.admin("team").await;
    let catalog = &world.catalog;
    for wrong in [0, MOST_USES + 1] {
        let made = catalog.add_enrolment_key(&admin, &key(world, "wrong", wrong, true)).await;
        assert!(matches!(made, Err(CatalogError::Invalid { .. })));
    }
    let id = catalog.add_enrolment_key(&admin, &key(world, "hash", 2, true)).await.unwrap();
    let (one, two, three, lab) = (name("edge-1"), name("edge-2"), name("edge-3"), name("lab"));
    let (four, five) = (name("edge-4"), name("edge-5"));
    let with = |name, key| Applicant { hash: "hash", name, key: public(key) };
    assert!(matches!(catalog.enrol(&with(None, 1)).await, Err(CatalogError::Invalid { .. })));
    conflict(catalog.enrol(&with(Some(&lab), 1)).await, "edge-*");
    let first = catalog.enrol(&with(Some(&one), 1)).await.unwrap();
    assert_eq!((first.name.as_str(), first.standing), ("edge-1", Standing::Active));
    assert_eq!(catalog.enrol(&with(Some(&one), 1)).await.unwrap().id, first.id);
    // A name that somebody has can't be had by a second one.
    conflict(catalog.enrol(&with(Some(&one), 2)).await, "taken");
    // Nor that of a site which waits for its join token.
    catalog.add_site(&admin, &two, false, "token", expires(world)).await.unwrap();
    conflict(catalog.enrol(&with(Some(&two), 2)).await, "taken");
    catalog.enrol(&with(Some(&three), 3)).await.unwrap();
    conflict(catalog.enrol(&with(Some(&four), 4)).await, "all that it may");
    assert_eq!(catalog.enrolment_keys().await.unwrap().iter().find(|key| key.id == id).unwrap().uses, 2);
    catalog.revoke_enrolment_key(&admin, id).await.unwrap();
    conflict(catalog.enrol(&with(Some(&five), 5)).await, "revoked");
    assert_eq!(catalog.sites().await.unwrap().len(), 3);
}

async fn of_many_that_come_at_once_as_many_as_may_get_in(world: &World) {
    let admin = world.admin("team").await;
    world.catalog.add_enrolment_key(&admin, &key(world, "hash", 3, true)).await.unwrap();
    let come = |number: u8| {
        let catalog = world.catalog.clone();
        async move {
            let name = name(&format!("edge-{number}"));
            catalog.enrol(&Applicant { hash: "hash", name: Some(&name), key: public(number) }).await.is_ok()
        }
    };
    let came = futures::future::join_all((0..8).map(come)).await;
    assert_eq!(came.into_iter().filter(|came| *came).count(), 3);
    assert_eq!(world.catalog.sites().await.unwrap().len(), 3);
    // One name, two keys.
    world.catalog.add_enrolment_key(&admin, &key(world, "more", 8, true)).await.unwrap();
    let come = |number: u8| {
        let catalog = world.catalog.clone();
        async move {
            catalog.enrol(&Applicant { hash: "more", name: Some(&name("edge-x")), key: public(number) }).await.is_ok()
        }
    };
    let came = futures::future::join_all((0..8).map(come)).await;
    assert_eq!(came.into_iter().filter(|came| *came).count(), 1);
}

fn instance(world: &World) -> Instance {
    Instance::generate(InstanceId::generate(&world.catalog.seams)).unwrap()
}

/// A site that is enrolled with a true key.
async fn enrolled(world: &World, approves: bool) -> (SiteId, SiteKey) {
    let admin = world.admin("team").await;
    let own = SiteKey::generate().unwrap();
    world.catalog.add_enrolment_key(&admin, &key(world, "enrolled", 9, approves)).await.unwrap();
    let name = name("edge-0");
    let applicant = Applicant { hash: "enrolled", name: Some(&name), key: own.public().unwrap() };
    (world.catalog.enrol(&applicant).await.unwrap().id, own)
}

async fn a_site_that_waits_signs_nobody_in_until_it_is_accepted(world: &World) {
    let (site, own) = enrolled(world, false).await;
    let one = own.sign_in(site, &instance(world), "cluster").unwrap();
    let refused = world.catalog.sign_in_instance(site, &one).await.unwrap();
    assert!(matches!(refused, SignedIn::Refused(why) if why.contains("waits")));
    let admin = world.admin("team").await;
    world.catalog.approve_site(&admin, site).await.unwrap();
    conflict(world.catalog.approve_site(&admin, site).await, "active");
    assert_eq!(world.catalog.sign_in_instance(site, &one).await.unwrap(), SignedIn::Recorded);
}

async fn an_instance_is_taken_for_what_its_site_signed_and_ends_with_it(world: &World) {
    let (site, own) = enrolled(world, true).await;
    let catalog = &world.catalog;
    let one = instance(world);
    let stranger = SiteKey::generate().unwrap().sign_in(site, &one, "cluster").unwrap();
    let refused = catalog.sign_in_instance(site, &stranger).await.unwrap();
    assert!(matches!(refused, SignedIn::Refused(why) if why.contains("signature")));
    assert_eq!(catalog.instance(site, one.id).await.unwrap(), None);
    let sign_in = own.sign_in(site, &one, "cluster").unwrap();
    for _ in 0..2 {
        assert_eq!(catalog.sign_in_instance(site, &sign_in).await.unwrap(), SignedIn::Recorded);
    }
    let kept = catalog.instance(site, one.id).await.unwrap().unwrap();
    assert_eq!((kept.key, kept.ended), (one.public(), None));
    // Another site's agents can't speak as this one's.
    let other = catalog.ensure_site("lab").await.unwrap();
    assert_eq!(catalog.instance(other, one.id).await.unwrap(), None);
    world.clock.advance(HOUR);
    catalog.instance_seen(one.id, (7, u64::MAX)).await.unwrap();
    let seen = catalog.instance(site, one.id).await.unwrap().unwrap();
    assert_eq!((seen.seen, seen.poll), (world.clock.now(), (7, u64::MAX)));
    catalog.remove_site(&world.admin("team").await, site).await.unwrap();
    assert_eq!(catalog.instance(site, one.id).await.unwrap().unwrap().ended.as_deref(), Some("its site was removed"));
    let refused = catalog.sign_in_instance(site, &sign_in).await.unwrap();
    assert!(matches!(refused, SignedIn::Refused(why) if why.contains("removed")));
}

async fn two_processes_of_one_id_both_end(world: &World) {
    let (site, own) = enrolled(world, true).await;
    let id = InstanceId::generate(&world.catalog.seams);
    let [one, two] = [(); 2].map(|()| own.sign_in(site, &Instance::generate(id).unwrap(), "cluster").unwrap());
    assert_eq!(world.catalog.sign_in_instance(site, &one).await.unwrap(), SignedIn::Recorded);
    for sign_in in [&two, &one] {
        let refused = world.catalog.sign_in_instance(site, sign_in).await.unwrap();
        assert!(matches!(refused, SignedIn::Refused(why) if why.contains("same id")));
    }
    assert!(world.catalog.instance(site, id).await.unwrap().unwrap().ended.is_some());
}

async fn an_identity_beside_another_cluster_is_refused(world: &World) {
    let (site, own) = enrolled(world, true).await;
    let sign_in = |cluster| own.sign_in(site, &instance(world), cluster).unwrap();
    assert_eq!(world.catalog.sign_in_instance(site, &sign_in("here")).await.unwrap(), SignedIn::Recorded);
    assert_eq!(world.catalog.sign_in_instance(site, &sign_in("here")).await.unwrap(), SignedIn::Recorded);
    // One that could not find out yet where it is comes again when it can.
    assert_eq!(world.catalog.sign_in_instance(site, &sign_in("")).await.unwrap(), SignedIn::Recorded);
    for cluster in ["there", "nul\0"] {
        let refused = world.catalog.sign_in_instance(site, &sign_in(cluster)).await.unwrap();
        assert!(matches!(refused, SignedIn::Refused(_)), "{cluster:?}");
    }
    // An agent of ours cuts it; another's words are bounded here.
    let mut long = sign_in("here");
    long.cluster = "x".repeat(1 << 20);
    let refused = world.catalog.sign_in_instance(site, &long).await.unwrap();
    assert!(matches!(refused, SignedIn::Refused(why) if why.contains("too long")));
}
