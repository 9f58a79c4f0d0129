//! Letting sites in and throwing them out.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_is_let_in_with_its_rights_and_no_others() {
    let server = &Server::calm().await;
    let broker = broker(server);
    broker.check().await.unwrap();
    let site = SiteId::generate(&seams());
    let first = broker.admit(site).await.unwrap();
    let user = topology::user(site);
    assert_eq!((first.url.as_str(), &first.user), (server.url(), &user));
    let seen = async |path: &str| server.manage(Method::GET, path, None).await.1;
    assert_eq!(seen(&format!("users/{user}")).await["tags"], json!([]));
    let permissions = seen(&format!("users/{user}/permissions")).await;
    let queue = format!("^tasks\\.{site}$");
    let expected =
        json!({"user": user, "vhost": server.vhost(), "configure": "^$", "write": "^events$", "read": queue});
    assert_eq!(permissions, json!([expected]));
    let topics = seen(&format!("users/{user}/topic-permissions")).await;
    let write = format!("^event\\.{site}\\.");
    let expected = json!({"user": user, "vhost": server.vhost(), "exchange": "events", "write": write, "read": "^$"});
    assert_eq!(topics, json!([expected]));
    let queue = format!("queues/{{v}}/{}", topology::tasks(site));
    assert_eq!(seen(&queue).await["type"], "quorum");
    // The coordinator's end declares it alike.
    let bus = coordinator(server);
    bus.ensure_site(site).await.unwrap();

    let second = broker.admit(site).await.unwrap();
    assert_ne!(first.password, second.password);
    assert!(Bare::open(&settings(&first), &seams()).await.err().unwrap().contains("ACCESS_REFUSED"));
    assert!(Bare::open(&settings(&second), &seams()).await.is_ok());
    assert!(broker.sites().await.unwrap().contains(&site));

    broker.expel(site).await.unwrap();
    assert!(!broker.sites().await.unwrap().contains(&site));
    assert!(Bare::open(&settings(&second), &seams()).await.is_err());
    assert_eq!(server.manage(Method::GET, &queue, None).await.0, reqwest::StatusCode::NOT_FOUND);
    broker.expel(site).await.unwrap();
    broker.expel(SiteId::generate(&seams())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_is_thrown_out_is_out_at_once() {
    let server = &Server::calm().await;
    let bus = coordinator(server);
    let (site, settings) = admitted(server).await;
    let agent = RabbitAgentBus::start(site, &settings, &seams()).unwrap();
    let asked = async { agent.request(Bytes::from_static(b"?"), 30_000).await };
    let served = async {
        let incoming = soon("it asks", bus.next_request()).await.unwrap();
        assert_eq!(incoming.site, site);
        drop(incoming.reply.send(incoming.request));
    };
    let (answer, ()) = tokio::join!(asked, served);
    answer.unwrap();
    let bare = Bare::open(&settings, &seams()).await.unwrap();
    // In the very moment it comes in many times more.
    let coming = futures::future::join_all((0..8).map(|_| async {
        let mut came = Vec::new();
        while let Ok(one) = Bare::open(&settings, &seams()).await {
            came.push(one);
        }
        came
    }));
    let (came, expelled) = tokio::join!(coming, async { broker(server).expel(site).await });
    expelled.unwrap();
    let came: Vec<Bare> = came.into_iter().flatten().collect();
    println!("{} came in beside it", came.len());
    until("it is out", async || {
        let state = agent.state();
        !bare.connection.status().connected()
            && came.iter().all(|bare| !bare.connection.status().connected())
            && [state.hints, state.requests].iter().all(|link| !matches!(link, LinkState::Connected { .. }))
    })
    .await;
    until("it isn't let in again", async || {
        let state = agent.state();
        [state.hints, state.requests].iter().all(|link| matches!(link, LinkState::Refused { .. }))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_management_api_is_verified_and_its_refusals_are_named() {
    let server = &Server::secured().await;
    let right = managed(server);
    RabbitSiteBroker::new(right.clone(), &seams()).unwrap().check().await.unwrap();
    let (site, settings) = admitted(server).await;
    assert!(Bare::open(&settings, &seams()).await.is_ok());
    broker(server).expel(site).await.unwrap();

    let code = async |settings: BrokerSettings| {
        let failure = RabbitSiteBroker::new(settings, &seams()).unwrap().check().await.unwrap_err();
        assert!(!failure.next.is_empty(), "{failure}");
        (failure.code.clone(), failure.to_string())
    };
    let missing = BrokerSettings { certificates: None, ..right.clone() };
    let (class, text) = code(missing).await;
    assert!(class == "broker.unreachable" && text.contains("certificate"), "{text}");
    let another = include_str!("../../../protocol/tests/rabbitmq/another-ca.pem");
    let wrong = BrokerSettings { certificates: Some(another.to_owned()), ..right.clone() };
    let (class, text) = code(wrong).await;
    assert!(class == "broker.unreachable" && text.contains("certificate"), "{text}");
    let stranger = BrokerSettings { password: Secret::new("wrong"), ..right.clone() };
    let (class, text) = code(stranger).await;
    assert!(class == "broker.refused" && !text.contains("wrong"), "{text}");
    let mut nobody = right.clone();
    nobody.management = "https://127.0.0.1:1".parse().unwrap();
    assert_eq!(code(nobody).await.0, "broker.unreachable");

    for (management, allowed) in [
        ("http://rabbit.example:15672", false),
        ("ftp://rabbit.example", true),
        ("https://user:pw@rabbit.example", true),
    ] {
        let settings =
            BrokerSettings { management: management.parse().unwrap(), plain_allowed: allowed, ..right.clone() };
        assert!(RabbitSiteBroker::new(settings, &seams()).is_err(), "{management}");
    }
}
