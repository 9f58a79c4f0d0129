//! What every bus must do. Each implementation's tests call [`check`].
#![expect(clippy::panic, reason = "a conformance suite fails by panicking; it runs in tests only")]

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};

use super::{AgentBus, BusError, CoordinatorBus, Hint, Incoming};
use crate::{envelope, ids::SiteId, seams::Seams};

/// Two sites and the way to make an agent's end for each.
pub struct Fixture<'a> {
    /// The coordinator's end. It is closed in the end.
    pub coordinator: &'a dyn CoordinatorBus,
    /// Two sites, with nothing waiting at them.
    pub sites: [SiteId; 2],
    /// An agent's end for a site.
    pub agent: &'a dyn Fn(SiteId) -> Box<dyn AgentBus>,
    /// Time for what must happen, and for what must not.
    pub seams: &'a Seams,
}

/// What must happen has happened by then.
const SOON: Duration = Duration::from_secs(30);
/// The same, for askers.
const PATIENT: u64 = 30_000;

/// Runs the whole suite.
pub async fn check(fixture: &Fixture<'_>) {
    hints_reach_their_site_in_order(fixture).await;
    a_hint_is_one_agents(fixture).await;
    a_rejected_hint_does_not_come_again(fixture).await;
    a_request_gets_its_own_answer(fixture).await;
    many_askers_are_told_apart(fixture).await;
    messages_may_be_as_long_as_an_envelope(fixture).await;
    an_unanswered_request_ends(fixture).await;
    a_late_answer_is_nobodys(fixture).await;
    an_end_that_is_closed_says_so(fixture).await;
}

fn require(holds: bool, what: &str) {
    if !holds {
        panic!("bus conformance: {what}");
    }
}

impl Fixture<'_> {
    async fn soon<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        match self.seams.timeout(SOON, work).await {
            Some(value) => value,
            None => panic!("bus conformance: not within {} s: {what}", SOON.as_secs()),
        }
    }

    async fn publish(&self, site: SiteId, hint: impl Into<Bytes>) {
        let hint = hint.into();
        if let Err(error) = self.soon("a hint is taken", self.coordinator.publish(site, hint)).await {
            panic!("bus conformance: a hint is taken: {error}");
        }
    }

    async fn hint(&self, agent: &dyn AgentBus) -> Bytes {
        match self.soon("a hint comes", agent.next_hint()).await {
            Ok(hint) => hint.bytes.clone(),
            Err(error) => panic!("bus conformance: a hint comes: {error}"),
        }
    }

    async fn incoming(&self) -> Incoming {
        match self.soon("a request arrives", self.coordinator.next_request()).await {
            Ok(incoming) => incoming,
            Err(error) => panic!("bus conformance: a request arrives: {error}"),
        }
    }
}

async fn hints_reach_their_site_in_order(fixture: &Fixture<'_>) {
    let [one, two] = fixture.sites;
    // Nobody is there yet: hints wait for an agent that comes later.
    for (site, text) in [(one, "a"), (two, "x"), (one, "b"), (one, "c")] {
        fixture.publish(site, text).await;
    }
    let agent = (fixture.agent)(one);
    for expected in ["a", "b", "c"] {
        require(fixture.hint(&*agent).await == expected, "hints of a site come in order");
    }
    agent.close().await;
    let other = (fixture.agent)(two);
    require(fixture.hint(&*other).await == "x", "hints reach their own site only");
    other.close().await;
}

async fn a_hint_is_one_agents(fixture: &Fixture<'_>) {
    const MANY: u8 = 200;
    let site = fixture.sites[0];
    let (first, second) = ((fixture.agent)(site), (fixture.agent)(site));
    for number in 0..MANY {
        fixture.publish(site, vec![number]).await;
    }
    let mut seen = BTreeSet::new();
    for number in 0..MANY {
        let taken = async {
            tokio::select! {
                hint = first.next_hint() => hint,
                hint = second.next_hint() => hint,
            }
        };
        match fixture.soon(&format!("hint {number} comes"), taken).await {
            Ok(hint) => require(seen.insert(hint.bytes.clone()), "a hint is one agent's"),
            Err(error) => panic!("bus conformance: every hint comes: {error}"),
        }
    }
    first.close().await;
    second.close().await;
}

async fn a_rejected_hint_does_not_come_again(fixture: &Fixture<'_>) {
    let site = fixture.sites[0];
    let agent = (fixture.agent)(site);
    fixture.publish(site, "not to be read").await;
    fixture.publish(site, "to be read").await;
    fixture.soon("a hint comes", agent.next_hint()).await.map(Hint::reject).unwrap_or_default();
    require(fixture.hint(&*agent).await == "to be read", "the others come");
    agent.close().await;
    let later = (fixture.agent)(site);
    fixture.publish(site, "a later one").await;
    require(fixture.hint(&*later).await == "a later one", "what was rejected doesn't come again");
    later.close().await;
}

async fn a_request_gets_its_own_answer(fixture: &Fixture<'_>) {
    let [one, two] = fixture.sites;
    let (first, second) = ((fixture.agent)(one), (fixture.agent)(two));
    let serve = async {
        for _ in 0..2 {
            let incoming = fixture.incoming().await;
            let answer = format!("{} for {}", String::from_utf8_lossy(&incoming.request), incoming.site);
            require(incoming.reply.send(answer.into()).is_ok(), "the asker still waits");
        }
    };
    let (a, b, ()) =
        tokio::join!(first.request(Bytes::from("1"), PATIENT), second.request(Bytes::from("2"), PATIENT), serve);
    require(a == Ok(Bytes::from(format!("1 for {one}"))), "the answer names the bus's own idea of the site");
    require(b == Ok(Bytes::from(format!("2 for {two}"))), "answers aren't mixed up");
    first.close().await;
    second.close().await;
}

async fn many_askers_are_told_apart(fixture: &Fixture<'_>) {
    const MANY: usize = 100;
    let [one, two] = fixture.sites;
    let agents = [(fixture.agent)(one), (fixture.agent)(two), (fixture.agent)(one)];
    let mut asked = FuturesUnordered::new();
    for number in 0..MANY {
        let agent = &agents[number % agents.len()];
        asked.push(async move {
            let text = format!("question {number}");
            agent.request(text.clone().into(), PATIENT).await == Ok(Bytes::from(format!("answer to {text}")))
        });
    }
    let serve = async {
        let mut waiting = Vec::new();
        for _ in 0..MANY {
            waiting.push(fixture.incoming().await);
        }
        // The last is answered first.
        for incoming in waiting.into_iter().rev() {
            let answer = format!("answer to {}", String::from_utf8_lossy(&incoming.request));
            require(incoming.reply.send(answer.into()).is_ok(), "askers still wait");
        }
    };
    let all = async {
        while let Some(right) = asked.next().await {
            require(right, "every asker gets the answer to its own question");
        }
    };
    tokio::join!(all, serve);
    for agent in &agents {
        agent.close().await;
    }
}

async fn messages_may_be_as_long_as_an_envelope(fixture: &Fixture<'_>) {
    let long = Bytes::from(vec![7u8; envelope::LONGEST]);
    let site = fixture.sites[0];
    let agent = (fixture.agent)(site);
    let serve = async {
        let incoming = fixture.incoming().await;
        require(incoming.request == long, "a long request arrives whole");
        require(incoming.reply.send(incoming.request).is_ok(), "the asker still waits");
    };
    let (answer, ()) = tokio::join!(agent.request(long.clone(), PATIENT), serve);
    require(answer.as_ref() == Ok(&long), "a long answer arrives whole");
    fixture.publish(site, long.clone()).await;
    require(fixture.hint(&*agent).await == long, "a long hint arrives whole");
    agent.close().await;
}

async fn an_unanswered_request_ends(fixture: &Fixture<'_>) {
    let agent = (fixture.agent)(fixture.sites[0]);
    let first = async {
        // Once connected, so that what follows is about the answer.
        drop(fixture.incoming().await.reply.send(Bytes::new()));
    };
    let (connected, ()) = tokio::join!(agent.request(Bytes::from("?"), PATIENT), first);
    require(connected.is_ok(), "a request is answered");
    let drop_it = async { drop(fixture.incoming().await) };
    let ended = fixture.soon("a request ends", agent.request(Bytes::from("?"), 2_000));
    let (answer, ()) = tokio::join!(ended, drop_it);
    require(answer.is_err(), "a request that nobody answers is an error, not a hang");
    agent.close().await;
}

async fn a_late_answer_is_nobodys(fixture: &Fixture<'_>) {
    let agent = (fixture.agent)(fixture.sites[0]);
    let first = async {
        // Its asker gives up as soon as the request is here.
        fixture.incoming().await
    };
    let given_up = AtomicBool::new(false);
    let asked = async {
        let request = agent.request(Bytes::from("early"), PATIENT);
        tokio::pin!(request);
        loop {
            tokio::select! {
                _ = &mut request => panic!("bus conformance: nobody answered"),
                () = fixture.seams.clock.sleep(Duration::from_millis(10)) => {
                    if given_up.load(SeqCst) {
                        return;
                    }
                }
            }
        }
    };
    let late = async {
        let late = first.await;
        given_up.store(true, SeqCst);
        late
    };
    let ((), late) = tokio::join!(asked, late);
    drop(late.reply.send(Bytes::from("late")));
    let serve = async {
        let incoming = fixture.incoming().await;
        require(incoming.request == "next", "the next request arrives");
        require(incoming.reply.send(Bytes::from("right")).is_ok(), "the asker still waits");
    };
    let (answer, ()) = tokio::join!(agent.request(Bytes::from("next"), PATIENT), serve);
    require(answer == Ok(Bytes::from("right")), "an answer that comes late is nobody's");
    agent.close().await;
}

async fn an_end_that_is_closed_says_so(fixture: &Fixture<'_>) {
    let agent = (fixture.agent)(fixture.sites[0]);
    let waiting = async { (agent.next_hint().await.map(drop), agent.request(Bytes::from("?"), PATIENT).await) };
    let close = async {
        fixture.seams.clock.sleep(Duration::from_millis(50)).await;
        agent.close().await;
    };
    let ((hint, answer), ()) = fixture.soon("an agent's end closes", async { tokio::join!(waiting, close) }).await;
    require(hint == Err(BusError::Closed), "who waits for a hint is told that the bus was closed");
    require(answer == Err(BusError::Closed), "nothing is asked on a bus that was closed");
    let waiting = fixture.coordinator.next_request();
    let close = async {
        fixture.seams.clock.sleep(Duration::from_millis(50)).await;
        fixture.coordinator.close().await;
    };
    let (request, ()) = fixture.soon("the coordinator's end closes", async { tokio::join!(waiting, close) }).await;
    require(request.is_err_and(|error| error == BusError::Closed), "who waits for a request is told, too");
    let published = fixture.coordinator.publish(fixture.sites[0], Bytes::from("x")).await;
    require(published == Err(BusError::Closed), "nothing is published on a bus that was closed");
}
