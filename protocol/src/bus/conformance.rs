//! What every bus must do. Each implementation's tests call [`check`].
#![expect(clippy::panic, reason = "a conformance suite fails by panicking; it runs in tests only")]

use bytes::Bytes;

use super::{AgentBus, BusError, CoordinatorBus};
use crate::ids::SiteId;

/// Two sites and the way to make an agent's end for each.
pub struct Fixture<'a> {
    /// The coordinator's end.
    pub coordinator: &'a dyn CoordinatorBus,
    /// Two sites.
    pub sites: [SiteId; 2],
    /// An agent's end for a site.
    pub agent: &'a dyn Fn(SiteId) -> Box<dyn AgentBus>,
}

/// Runs the whole suite.
pub async fn check(fixture: &Fixture<'_>) {
    hints_reach_their_site_in_order_and_once(fixture).await;
    a_request_gets_its_own_answer(fixture).await;
    an_unanswered_request_ends(fixture).await;
}

fn require(holds: bool, what: &str) {
    if !holds {
        panic!("bus conformance: {what}");
    }
}

async fn hints_reach_their_site_in_order_and_once(fixture: &Fixture<'_>) {
    let [one, two] = fixture.sites;
    for (site, text) in [(one, "a"), (two, "x"), (one, "b"), (one, "c")] {
        let published = fixture.coordinator.publish(site, Bytes::from_static(text.as_bytes())).await;
        require(published.is_ok(), "a hint is taken");
    }
    let (first, second) = ((fixture.agent)(one), (fixture.agent)(one));
    let mut seen = Vec::new();
    seen.push(first.next_hint().await);
    seen.push(second.next_hint().await);
    seen.push(first.next_hint().await);
    let expected: Vec<Result<Bytes, BusError>> = ["a", "b", "c"].map(|t| Ok(Bytes::from(t))).into();
    require(seen == expected, "hints of a site come in order, each to one agent");
    require((fixture.agent)(two).next_hint().await == Ok(Bytes::from("x")), "hints reach their own site only");
}

async fn a_request_gets_its_own_answer(fixture: &Fixture<'_>) {
    let [one, two] = fixture.sites;
    let (first, second) = ((fixture.agent)(one), (fixture.agent)(two));
    let serve = async {
        for _ in 0..2 {
            let Ok(incoming) = fixture.coordinator.next_request().await else {
                panic!("bus conformance: a request arrives");
            };
            let answer = format!("{} for {}", String::from_utf8_lossy(&incoming.request), incoming.site);
            require(incoming.reply.send(answer.into()).is_ok(), "the asker still waits");
        }
    };
    let (a, b, ()) =
        tokio::join!(first.request(Bytes::from("1"), 5_000), second.request(Bytes::from("2"), 5_000), serve);
    require(a == Ok(Bytes::from(format!("1 for {one}"))), "the answer names the bus's own idea of the site");
    require(b == Ok(Bytes::from(format!("2 for {two}"))), "answers aren't mixed up");
}

async fn an_unanswered_request_ends(fixture: &Fixture<'_>) {
    let agent = (fixture.agent)(fixture.sites[0]);
    let drop_it = async {
        let _ = fixture.coordinator.next_request().await;
    };
    let (answer, ()) = tokio::join!(agent.request(Bytes::from("?"), 200), drop_it);
    require(answer.is_err(), "a request that nobody answers is an error, not a hang");
}
