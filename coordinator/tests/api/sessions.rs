//! Sessions, as an agent sees them that does what it wants.

use ocopea_coordinator::sessions::Session;
use ocopea_protocol::{
    bus::AgentBus,
    envelope,
    ids::{InstanceId, SessionId},
    message::{self, Request},
    session::{Cipher, Direction, Invitation, LONGEST, Opening, Wish},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{agents::Agent, *};

fn wish() -> Wish {
    Wish::Logs { namespace: "shop".to_owned(), component: None, follow: false }
}

/// The session that this agent is invited to next.
async fn invited(agent: &Agent) -> SessionId {
    loop {
        let hint = agent.bus.next_hint().await.unwrap();
        let bytes = hint.bytes.clone();
        hint.accept();
        if let Ok(opened) = envelope::open::<Invitation>(&bytes) {
            return opened.message.session;
        }
    }
}

async fn attached(agent: &Agent, session: SessionId) -> Option<Opening> {
    match agent.ask(Request::Attach { session, instance: agent.instance.id }).await {
        message::Answer::Attached { sealed } => Some(agent.instance.open_session(session, &sealed).unwrap()),
        message::Answer::Refused { .. } => None,
        other => panic!("{other:?}"),
    }
}

async fn begun(server: &Server, agent: &Agent) -> (Session, SessionId, Cipher) {
    let site = agent.site;
    let (session, (id, cipher)) = tokio::join!(server.coordinator.open_session(site, "desk", wish()), async {
        let id = invited(agent).await;
        let opening = attached(agent, id).await.unwrap();
        assert_eq!(opening.wish, wish());
        let begun = Request::Begun { session: id, instance: agent.instance.id, failure: None };
        assert_eq!(agent.ask(begun).await, message::Answer::Recorded);
        (id, Cipher::new(&opening.key).unwrap())
    });
    (session.unwrap(), id, cipher)
}

fn refused(answer: &message::Answer) -> bool {
    matches!(answer, message::Answer::Refused { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_once_and_in_order_and_the_persons_end_ends_it() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let (mut session, id, cipher) = begun(&server, &desk).await;
    let instance = desk.instance.id;
    let push = async |number: u64, piece: &[u8]| {
        let sealed = cipher.seal(Direction::Up, number, piece).unwrap();
        desk.ask(Request::Push { session: id, instance, number, sealed }).await
    };
    for number in [0, 0, 1] {
        assert_eq!(push(number, if number == 0 { b"one " } else { b"two" }).await, message::Answer::Recorded);
    }
    assert!(refused(&push(3, b"too early").await));
    let forged = cipher.seal(Direction::Up, 9, b"forged").unwrap();
    assert!(refused(&desk.ask(Request::Push { session: id, instance, number: 2, sealed: forged }).await));
    let mut read = [0; 7];
    session.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"one two");
    let pull = async |number: u64| match desk.ask(Request::Pull { session: id, instance, number }).await {
        message::Answer::Piece { sealed } => {
            sealed.map(|sealed| cipher.open(Direction::Down, number, &sealed).unwrap())
        }
        other => panic!("{other:?}"),
    };
    session.write_all(&vec![7; LONGEST + 5]).await.unwrap();
    let first = pull(0).await.unwrap();
    assert_eq!(pull(0).await.unwrap(), first, "asked again, it is the same");
    let mut all = first;
    let mut number = 1;
    while all.len() < LONGEST + 5 {
        all.extend(pull(number).await.unwrap());
        number += 1;
    }
    assert_eq!(all, vec![7; LONGEST + 5]);
    session.shutdown().await.unwrap();
    assert_eq!(pull(number).await.unwrap(), b"", "the person says nothing more");
    assert_eq!(push(2, b"and hears").await, message::Answer::Recorded);
    assert_eq!(push(3, b"").await, message::Answer::Recorded);
    let mut rest = Vec::new();
    session.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"and hears");
    drop(session);
    assert!(refused(&push(4, b"late").await));
    assert!(refused(&desk.ask(Request::Pull { session: id, instance, number: number + 1 }).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_sites_first_agents_and_nobody_elses() {
    let server = Server::start().await;
    let (desk, other) = (Agent::of(&server, "desk").await, Agent::of(&server, "silent").await);
    for agent in [&desk, &other] {
        assert_eq!(agent.sign_in().await, message::Answer::Recorded);
    }
    let (mut session, id, cipher) = begun(&server, &desk).await;
    assert!(attached(&other, id).await.is_none(), "another site's agent");
    let second = Agent {
        site: desk.site,
        key: desk.key.clone(),
        instance: agents::instance(&server),
        bus: server.bus.agent(desk.site),
    };
    assert_eq!(second.sign_in().await, message::Answer::Recorded);
    assert!(attached(&second, id).await.is_none(), "it is taken");
    let sealed = cipher.seal(Direction::Up, 0, b"x").unwrap();
    for agent in [&other, &second] {
        for instance in [agent.instance.id, desk.instance.id] {
            // Only over its own site's way of the bus, and as the instance that attached.
            if agent.site == desk.site && instance == desk.instance.id {
                continue;
            }
            let push = Request::Push { session: id, instance, number: 0, sealed: sealed.clone() };
            assert!(refused(&agent.ask(push).await));
            assert!(refused(&agent.ask(Request::Pull { session: id, instance, number: 0 }).await));
        }
    }
    let stranger = InstanceId::generate(&server.catalog.seams);
    let attach = Request::Attach { session: id, instance: stranger };
    assert_eq!(desk.ask(attach).await, message::Answer::SignIn);
    let push = Request::Push { session: id, instance: desk.instance.id, number: 0, sealed };
    assert_eq!(desk.ask(push).await, message::Answer::Recorded);
    let mut read = [0];
    session.read_exact(&mut read).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_takes_nothing_for_a_while_gets_all_of_it_once() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let (mut session, id, cipher) = begun(&server, &desk).await;
    let pieces: Vec<Vec<u8>> = (0..6).map(|number| vec![number; LONGEST]).collect();
    let push = async |number: usize| {
        let number = number as u64;
        let sealed = cipher.seal(Direction::Up, number, &pieces[usize::try_from(number).unwrap()]).unwrap();
        desk.ask(Request::Push { session: id, instance: desk.instance.id, number, sealed }).await
    };
    let mut number = 0;
    while push(number).await == message::Answer::Recorded {
        number += 1;
    }
    assert!(number < pieces.len(), "what waits is bounded");
    assert!(matches!(push(number).await, message::Answer::TryLater { .. }));
    let reading = async {
        let mut all = vec![0; 6 * LONGEST];
        session.read_exact(&mut all).await.unwrap();
        all
    };
    let (all, ()) = tokio::join!(reading, async {
        while number < pieces.len() {
            number += usize::from(push(number).await == message::Answer::Recorded);
        }
    });
    assert!(all == pieces.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_at_a_site_ends_when_the_site_is_removed() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let (mut session, id, cipher) = begun(&server, &desk).await;
    server.coordinator.forget_agents(desk.site);
    let mut rest = Vec::new();
    session.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    let sealed = cipher.seal(Direction::Up, 0, b"x").unwrap();
    let push = Request::Push { session: id, instance: desk.instance.id, number: 0, sealed };
    assert!(refused(&desk.ask(push).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_begun_says_the_agents_own_reason() {
    let server = Server::start().await;
    let desk = Agent::of(&server, "desk").await;
    assert_eq!(desk.sign_in().await, message::Answer::Recorded);
    let (opened, ()) = tokio::join!(server.coordinator.open_session(desk.site, "desk", wish()), async {
        let session = invited(&desk).await;
        attached(&desk, session).await.unwrap();
        let failure = TaskFailure::permanent("environment.no-component", "can't show logs", "nothing runs there");
        let begun = Request::Begun { session, instance: desk.instance.id, failure: Some(failure) };
        assert_eq!(desk.ask(begun).await, message::Answer::Recorded);
    });
    assert_eq!(opened.err().unwrap().cause, "nothing runs there");
}
