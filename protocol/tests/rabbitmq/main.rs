//! The bus on a real RabbitMQ.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers stop at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests live in the machine's own time")]

mod losses;
mod server;

use std::time::Duration;

use bytes::Bytes;
use ocopea_protocol::{
    bus::{
        AgentBus, BusError, CoordinatorBus, conformance,
        rabbitmq::{LinkState, RabbitAgentBus, RabbitCoordinatorBus, Settings, topology},
    },
    secret::Secret,
};
use reqwest::Method;
use serde_json::json;
use server::{Server, seams, soon, until};

fn coordinator(server: &Server) -> RabbitCoordinatorBus {
    RabbitCoordinatorBus::start(&server.own_settings(), &seams()).unwrap()
}

fn agent(site: ocopea_protocol::ids::SiteId, settings: &Settings) -> RabbitAgentBus {
    RabbitAgentBus::start(site, settings, &seams()).unwrap()
}

/// Answers everything with what was asked, for as long as it is kept.
fn echo(bus: std::sync::Arc<RabbitCoordinatorBus>) -> tokio_util::task::AbortOnDropHandle<()> {
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(incoming) = bus.next_request().await {
            drop(incoming.reply.send(incoming.request));
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bus_on_rabbitmq_conforms() {
    // Nobody else's requests may come in between.
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = coordinator(server);
    let (one, two) = (server.site().await, server.site().await);
    let settings = std::collections::BTreeMap::from([one.clone(), two.clone()]);
    conformance::check(&conformance::Fixture {
        coordinator: &bus,
        sites: [one.0, two.0],
        agent: &|site| Box::new(agent(site, &settings[&site])) as Box<dyn AgentBus>,
        seams: &seams(),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_hint_is_kept_where_people_can_see_it() {
    let server = &Server::calm().await;
    let bus = coordinator(server);
    let (site, settings) = server.site().await;
    let agent = agent(site, &settings);
    bus.publish(site, Bytes::from_static(b"of another version")).await.unwrap();
    soon("it comes", agent.next_hint()).await.unwrap().reject();
    until("it lies in quarantine", async || {
        server.messages(topology::QUARANTINE).await.iter().any(|message| {
            message["properties"]["headers"]["x-first-death-queue"] == topology::tasks(site)
                && message["properties"]["headers"]["x-first-death-reason"] == "rejected"
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_hints_are_published_side_by_side() {
    let server = &Server::calm().await;
    let bus = coordinator(server);
    let (site, _) = server.site().await;
    let published = (0..500u32).map(|number| bus.publish(site, number.to_le_bytes().to_vec().into()));
    let results = soon("all are published", futures::future::join_all(published)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(bus.waiting_hints(site).await, Ok(500));
    bus.remove_site(site).await.unwrap();
    assert!(bus.waiting_hints(site).await.is_err());
    bus.remove_site(site).await.unwrap();
    bus.ensure_site(site).await.unwrap();
    assert_eq!(bus.waiting_hints(site).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_and_takes_again_when_there_is_room() {
    let server = &Server::calm().await;
    let bus = coordinator(server);
    let (site, settings) = server.site().await;
    bus.ensure_site(site).await.unwrap();
    let policy = format!("policies/{{v}}/small-{site}");
    let body = json!({"pattern": format!("^tasks\\.{site}$"), "definition": {"max-length": 3}, "apply-to": "queues"});
    server.done(Method::PUT, &policy, Some(body)).await;
    let hint = || bus.publish(site, Bytes::from_static(b"hint"));
    let mut refused = None;
    until("it is full", async || {
        refused = hint().await.err();
        refused.is_some()
    })
    .await;
    let refused = refused.unwrap().to_string();
    assert!(refused.contains("too many hints wait at the site"), "{refused}");
    let agent = agent(site, &settings);
    soon("a hint comes", agent.next_hint()).await.unwrap().accept();
    until("there is room", async || {
        while let Ok(Ok(hint)) = tokio::time::timeout(Duration::from_millis(10), agent.next_hint()).await {
            hint.accept();
        }
        hint().await.is_ok()
    })
    .await;
    server.done(Method::DELETE, &policy, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_said_to_be_one_and_a_renewed_one_is_used_at_once() {
    let server = &Server::calm().await;
    let bus = std::sync::Arc::new(coordinator(server));
    let _served = echo(std::sync::Arc::clone(&bus));
    let (site, settings) = server.site().await;
    bus.ensure_site(site).await.unwrap();
    let mut wrong = settings.clone();
    wrong.password = Secret::new("another");
    let agent = agent(site, &wrong);
    let refused = soon("it is refused", agent.request(Bytes::from_static(b"?"), 60_000)).await.unwrap_err();
    let expected = format!("the broker refused the password of {}", settings.user);
    assert_eq!(refused, BusError::Unavailable(expected.clone()));
    assert_eq!(agent.state().requests, LinkState::Refused { why: expected });
    agent.renew_password(&settings.password);
    until("it is let in", async || agent.request(Bytes::from_static(b"!"), 5_000).await.is_ok()).await;
    assert!(matches!(agent.state().requests, LinkState::Connected { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_the_virtual_host_is_named() {
    let server = &Server::calm().await;
    let (site, settings) = server.site().await;
    server.done(Method::DELETE, &format!("permissions/{{v}}/{}", settings.user), None).await;
    let agent = agent(site, &settings);
    let refused = soon("it is refused", agent.request(Bytes::from_static(b"?"), 60_000)).await.unwrap_err().to_string();
    assert!(refused.contains(&settings.user) && refused.contains("vhost"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified() {
    let server = &Server::secured().await;
    let right = server.own_settings();
    let bus = RabbitCoordinatorBus::start(&right, &seams()).unwrap();
    let (site, _) = server.site().await;
    bus.publish(site, Bytes::from_static(b"over TLS")).await.unwrap();
    let mut missing = right.clone();
    missing.certificates = None;
    let mut wrong = right.clone();
    wrong.certificates = Some(include_str!("another-ca.pem").to_owned());
    for settings in [missing, wrong] {
        let bus = RabbitCoordinatorBus::start(&settings, &seams()).unwrap();
        until("it is refused", async || {
            let error = bus.publish(site, Bytes::from_static(b"x")).await.unwrap_err().to_string();
            error.contains("no TLS with") && error.contains("certificate")
        })
        .await;
    }
    let mut none = right.clone();
    none.certificates = Some("no certificate".to_owned());
    assert!(RabbitCoordinatorBus::start(&none, &seams()).is_err());
    // A client that doesn't speak TLS gets nowhere either.
    let mut plain = right;
    plain.address.tls = false;
    let bus = RabbitCoordinatorBus::start(&plain, &seams()).unwrap();
    until("it is refused", async || bus.publish(site, Bytes::from_static(b"x")).await.is_err()).await;
}
