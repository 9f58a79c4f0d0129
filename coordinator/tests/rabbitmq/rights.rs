//! What a site's user may do at the broker: every line of the table, tried.

use lapin::{
    BasicProperties, Channel, ErrorKind, ExchangeKind,
    options::{
        BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions,
        ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
        QueuePurgeOptions,
    },
    types::FieldTable,
};

use super::*;

/// The code that the broker refused with, or 0.
fn code<T>(result: Result<T, lapin::Error>) -> u16 {
    match result {
        Ok(_) => 0,
        Err(error) => match error.kind() {
            ErrorKind::ProtocolError(said) => said.get_id(),
            other => panic!("not refused, but: {other:?}"),
        },
    }
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    properties: BasicProperties,
) -> Result<(), lapin::Error> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let options = BasicPublishOptions::default();
    channel.basic_publish(exchange.into(), key.into(), options, b"hello", properties).await?.await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_can_do_nothing_but_read_its_hints_and_ask() {
    const REFUSED: u16 = 403;
    let server = &Server::calm().await;
    let _coordinator = coordinator(server);
    let (site, settings) = admitted(server).await;
    let (other, _) = admitted(server).await;
    let (own, foreign) = (topology::tasks(site), topology::tasks(other));
    until("the coordinator's queues are there", async || {
        server.manage(Method::GET, "queues/{v}/requests", None).await.0.is_success()
    })
    .await;
    let bare = Bare::open(&settings, &seams()).await.unwrap();
    let channel = async || bare.connection.create_channel().await.unwrap();
    let none = FieldTable::default;

    for queue in [foreign.as_str(), "requests", "quarantine"] {
        let consumed =
            channel().await.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), none()).await;
        assert_eq!(code(consumed), REFUSED, "consume {queue}");
        let got = channel().await.basic_get(queue.into(), BasicGetOptions::default()).await;
        assert_eq!(code(got), REFUSED, "get {queue}");
        let purged = channel().await.queue_purge(queue.into(), QueuePurgeOptions::default()).await;
        assert_eq!(code(purged), REFUSED, "purge {queue}");
    }
    for queue in [own.as_str(), foreign.as_str(), "requests", "quarantine"] {
        let deleted = channel().await.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        assert_eq!(code(deleted), REFUSED, "delete {queue}");
        let bound = channel()
            .await
            .queue_bind(queue.into(), "events".into(), "event.#".into(), QueueBindOptions::default(), none())
            .await;
        assert_eq!(code(bound), REFUSED, "bind {queue}");
        let unbound = channel().await.queue_unbind(queue.into(), "events".into(), "event.#".into(), none()).await;
        assert_eq!(code(unbound), REFUSED, "unbind {queue}");
        let sent = publish(&channel().await, "", queue, BasicProperties::default()).await;
        assert_eq!(code(sent), REFUSED, "publish to {queue} by the default exchange");
    }
    for queue in ["", "mine", "tasks.mine", &format!("{own}.too"), "amq.mine"] {
        let declared = channel().await.queue_declare(queue.into(), QueueDeclareOptions::default(), none()).await;
        assert_eq!(code(declared), REFUSED, "declare {queue:?}");
    }
    for exchange in ["mine", "events.mine"] {
        let declared = channel()
            .await
            .exchange_declare(exchange.into(), ExchangeKind::Fanout, ExchangeDeclareOptions::default(), none())
            .await;
        assert_eq!(code(declared), REFUSED, "declare {exchange}");
    }
    let deleted = channel().await.exchange_delete("events".into(), ExchangeDeleteOptions::default()).await;
    assert_eq!(code(deleted), REFUSED, "delete events");
    for (to, from) in [("events", "amq.fanout"), ("amq.fanout", "events")] {
        let bound = channel()
            .await
            .exchange_bind(to.into(), from.into(), "#".into(), ExchangeBindOptions::default(), none())
            .await;
        assert_eq!(code(bound), REFUSED, "bind {to} to {from}");
    }
    for exchange in ["amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match", "amq.rabbitmq.trace"] {
        let sent = publish(&channel().await, exchange, &own, BasicProperties::default()).await;
        assert_eq!(code(sent), REFUSED, "publish to {exchange}");
    }
    let foreign_key = format!("event.{other}.request");
    let almost = format!("event.{site}");
    for key in [foreign_key.as_str(), "event", "event.x", "", &almost, &format!("x.event.{site}.request")] {
        let sent = publish(&channel().await, "events", key, BasicProperties::default()).await;
        assert_eq!(code(sent), REFUSED, "publish {key:?}");
    }
    let key = format!("event.{site}.request");
    for user in ["admin", &topology::user(other)] {
        let lie = BasicProperties::default().with_user_id(user.into());
        assert_eq!(code(publish(&channel().await, "events", &key, lie).await), 406, "as {user}");
    }

    // What it may do.
    assert_eq!(code(publish(&channel().await, "events", &key, BasicProperties::default()).await), 0);
    let own_purged = channel().await.queue_purge(own.as_str().into(), QueuePurgeOptions::default()).await;
    // Who may read its hints may throw them away: polls find what they were about.
    assert_eq!(code(own_purged), 0);
    let consumed =
        channel().await.basic_consume(own.as_str().into(), "".into(), BasicConsumeOptions::default(), none()).await;
    assert_eq!(code(consumed), 0);

    // Another virtual host, and the management API, are closed to it.
    let mut elsewhere = settings.clone();
    elsewhere.address.vhost = "/".to_owned();
    assert!(Bare::open(&elsewhere, &seams()).await.is_err());
    let whoami = reqwest::Client::builder().no_proxy().build().unwrap();
    let whoami = whoami.get(format!("{}/api/overview", server.management()));
    let answer = whoami.basic_auth(&settings.user, Some(settings.password.reveal())).send().await.unwrap();
    assert_eq!(answer.status(), 401);
}
