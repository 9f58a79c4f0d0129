//! Messages that nobody should send: they are refused, quarantined or answered with a refusal, and others go on.

use std::collections::BTreeMap;

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldArray, FieldTable},
};
use ocopea_catalog_db::Catalog;
use ocopea_coordinator::{Coordinator, vault::Vault};
use ocopea_protocol::{envelope, image::Location, message::Answer, secret::Secret32};
use ocopea_repository::{Keyring, Repository, StoreAccess};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::*;

/// Answers everything with the site that it is said to come from.
fn served(bus: &Arc<RabbitCoordinatorBus>) -> AbortOnDropHandle<()> {
    let bus = Arc::clone(bus);
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok(incoming) = bus.next_request().await {
            drop(incoming.reply.send(incoming.site.to_string().into()));
        }
    }))
}

/// A request as an agent sends it, but for what a test changes.
fn proper(settings: &Settings) -> BasicProperties {
    BasicProperties::default()
        .with_user_id(settings.user.as_str().into())
        .with_reply_to("amq.rabbitmq.reply-to".into())
        .with_correlation_id("1".into())
        .with_expiration("30000".into())
}

/// Sends as a site's user, whatever it is; the way back is open.
async fn send(settings: &Settings, key: &str, body: &[u8], properties: BasicProperties) -> Result<(), lapin::Error> {
    let bare = Bare::open(settings, &seams()).await.unwrap();
    let channel = bare.connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let without_acks = lapin::options::BasicConsumeOptions { no_ack: true, ..Default::default() };
    // Dropped, it is ended, and there is no way back.
    let _answers =
        channel.basic_consume("amq.rabbitmq.reply-to".into(), "".into(), without_acks, FieldTable::default()).await?;
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    channel.basic_publish("events".into(), key.into(), options, body, properties).await?.await?;
    Ok(())
}

fn nested(depth: usize) -> FieldTable {
    let mut table = FieldTable::default();
    for _ in 0..depth {
        let mut outer = FieldTable::default();
        outer.insert("k".into(), AMQPValue::FieldTable(table));
        table = outer;
    }
    table
}

fn header(name: &str, value: AMQPValue) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(name.into(), value);
    table
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_goes_into_quarantine_with_its_reason_and_others_go_on() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = coordinator(server);
    let _served = served(&bus);
    let (site, settings) = admitted(server).await;
    let (other, others) = admitted(server).await;
    let agent = RabbitAgentBus::start(other, &others, &seams()).unwrap();
    let goes_on = async || {
        let answer = soon("others go on", agent.request(Bytes::from_static(b"?"), 30_000)).await;
        assert_eq!(answer, Ok(other.to_string().into()));
    };
    goes_on().await;
    let connected = bus.state().requests;
    server.manage(Method::DELETE, "queues/{v}/quarantine/contents", None).await;

    let key = format!("event.{site}.request");
    let foreign = topology::tasks(other);
    let long = vec![0u8; envelope::LONGEST + 1];
    let longer = vec![0u8; envelope::LONGEST + 4096];
    let without_user = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to".into());
    let cases: Vec<(&str, &[u8], BasicProperties)> = vec![
        ("from whom", b"anonymous", without_user.with_correlation_id("1".into())),
        ("no way back", b"mute", BasicProperties::default().with_user_id(settings.user.as_str().into())),
        ("leads to tasks.", b"aimed", proper(&settings).with_reply_to(foreign.as_str().into())),
        ("leads to quarantine", b"aimed", proper(&settings).with_reply_to("quarantine".into())),
        ("told from others", b"vague", proper(&settings).with_correlation_id("x".repeat(65).into())),
        ("bytes, and", &long, proper(&settings)),
        // These the broker puts there by itself, whole.
        ("rejected", &longer, proper(&settings)),
        ("rejected", b"deep", proper(&settings).with_headers(nested(40))),
        ("rejected", b"deeper", proper(&settings).with_headers(nested(60))),
    ];
    let mut expected = BTreeMap::new();
    for (why, body, properties) in cases {
        send(&settings, &key, body, properties).await.unwrap();
        *expected.entry(why).or_insert(0) += 1;
        goes_on().await;
    }
    // By the coordinator's own user, as somebody would who has its password: that is no site.
    send(&server.own_settings(), &key, b"impostor", proper(&server.own_settings())).await.unwrap();
    expected.insert("no site's user", 1);
    let total: usize = expected.values().sum();
    let reasons = async || {
        let messages = server.messages(topology::QUARANTINE).await;
        let of = |message: &serde_json::Value| {
            let headers = &message["properties"]["headers"];
            let said = headers[topology::REASON].as_str().or(headers["x-first-death-reason"].as_str());
            said.unwrap_or_default().to_owned()
        };
        messages.iter().map(of).collect::<Vec<_>>()
    };
    until("all lie in quarantine", async || reasons().await.len() >= total).await;
    let reasons_again = async || reasons().await.len();
    let reasons = reasons().await;
    for (why, count) in expected {
        assert_eq!(reasons.iter().filter(|reason| reason.contains(why)).count(), count, "{why}: {reasons:?}");
    }
    assert_eq!(bus.state().quarantined, u64::try_from(total).unwrap());
    // As an administrator sees it, without the management pages.
    let shown = broker(server).quarantined(100).await.unwrap();
    assert_eq!((shown.messages, shown.items.len()), (total as u64, total));
    let of_the_site = shown.items.iter().filter(|item| item.site == Some(site)).count();
    assert!(of_the_site >= 5, "{shown:?}");
    assert!(shown.items.iter().all(|item| item.since.is_some() && item.routing_key == key), "{shown:?}");
    let because = |why: &str| shown.items.iter().filter(|item| item.reason.contains(why)).count();
    assert_eq!((because("no way back"), because("it could not be read (from requests)")), (1, 3), "{shown:?}");
    assert_eq!(shown.items.iter().map(|item| item.bytes).max(), Some(longer.len() as u64));
    assert_eq!(broker(server).quarantined(2).await.unwrap().items.len(), 2);
    assert_eq!(reasons_again().await, total, "they stay");
    // No connection was lost over any of it, and nothing reached another's queue.
    assert_eq!(bus.state().requests, connected);
    assert_eq!(bus.waiting_hints(other).await, Ok(0));

    // What is longer than the broker takes doesn't get so far.
    assert!(send(&settings, &key, &vec![0; 10 << 20], proper(&settings)).await.is_err());
    goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_name_another_site_change_nothing() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = coordinator(server);
    let (site, settings) = admitted(server).await;
    let (other, _) = admitted(server).await;
    let key = format!("event.{site}.request");
    let lies = [format!("event.{other}.request"), topology::tasks(other), "requests".to_owned()];
    let named: Vec<AMQPValue> = lies.iter().map(|lie| AMQPValue::LongString(lie.as_str().into())).collect();
    for kind in ["CC", "BCC"] {
        let headers = header(kind, AMQPValue::FieldArray(FieldArray::from(named.clone())));
        send(&settings, &key, kind.as_bytes(), proper(&settings).with_headers(headers)).await.unwrap();
        let incoming = soon("it arrives", bus.next_request()).await.unwrap();
        assert_eq!((incoming.site, &incoming.request[..]), (site, kind.as_bytes()));
    }
    assert_eq!(bus.waiting_hints(other).await, Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_site_that_floods_does_not_keep_another_waiting() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let bus = coordinator(server);
    let (flooding, settings) = admitted(server).await;
    let (other, others) = admitted(server).await;
    let flood = RabbitAgentBus::start(flooding, &settings, &seams()).unwrap();
    let agent = RabbitAgentBus::start(other, &others, &seams()).unwrap();
    // Nobody serves yet.
    let asking: Vec<_> = (0..1500).map(|_| flood.request(Bytes::from_static(b"!"), 30_000)).collect();
    let mut asking = Box::pin(futures::future::join_all(asking));
    tokio::select! {
        _ = &mut asking => panic!("nobody served"),
        () = until("its share is used up", async || bus.state().dropped > 500) => {}
    }
    let mut turns = 0;
    let serve = async {
        loop {
            let incoming = bus.next_request().await.unwrap();
            turns += 1;
            let done = incoming.site == other;
            drop(incoming.reply.send(Bytes::new()));
            if done {
                return;
            }
            // As slow as a catalog.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (answer, ()) =
        soon("the other is served", async { tokio::join!(agent.request(Bytes::from_static(b"?"), 30_000), serve) })
            .await;
    answer.unwrap();
    println!("the other's turn came after {turns}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_other_versions_are_answered_with_a_refusal() {
    let server = &Server::rough();
    let _alone = server.rough.lock().await;
    let directory = tempfile::tempdir().unwrap();
    let seams = seams();
    let catalog = Catalog::sqlite(&directory.path().join("catalog.sqlite"), seams.clone()).await.unwrap();
    let location = Location::Directory { path: directory.path().join("repository").to_str().unwrap().to_owned() };
    let keyring = Keyring::generate(&seams);
    let repository = Repository::create(&location, &StoreAccess::default(), &keyring, &seams).await.unwrap();
    let vault = Vault::new(&Secret32([5; 32])).unwrap();
    let bus = coordinator(server);
    let coordinator =
        Coordinator::new(catalog, repository, vault, Arc::clone(&bus) as Arc<dyn CoordinatorBus>, seams.clone());
    let stop = CancellationToken::new();
    coordinator.start(&stop);
    let _stop = stop.drop_guard();

    let (site, settings) = admitted(server).await;
    let agent = RabbitAgentBus::start(site, &settings, &seams).unwrap();
    let later = [b"OCPA".as_slice(), &(envelope::PROTOCOL_VERSION + 1).to_le_bytes(), &[2, 0, 1, 2, 3]].concat();
    let earlier = [b"OCPA".as_slice(), &1u16.to_le_bytes(), &[2, 0]].concat();
    let wrong_kind = [b"OCPA".as_slice(), &envelope::PROTOCOL_VERSION.to_le_bytes(), &[1, 0]].concat();
    let cut = [b"OCPA".as_slice(), &envelope::PROTOCOL_VERSION.to_le_bytes(), &[2, 0]].concat();
    for (request, why) in [
        (later.as_slice(), "upgrade this side"),
        (earlier.as_slice(), "upgrade the sender"),
        (wrong_kind.as_slice(), "kind"),
        (cut.as_slice(), "payload"),
        (b"OC", "head"),
        (b"", "head"),
        (&[0xff; 100_000], "not an Ocopea message"),
    ] {
        let answer = soon("it is answered", agent.request(Bytes::copy_from_slice(request), 30_000)).await.unwrap();
        match envelope::open::<Answer>(&answer).unwrap().message {
            Answer::Refused { why: said } => assert!(said.contains(why), "{said}"),
            other => panic!("{other:?}"),
        }
    }
}
