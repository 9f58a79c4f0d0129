//! Exchanges, queues, users and rights: every name and every number is here.
//!
//! ```text
//! agent ── event.SITE.request ──> events (topic) ── event.*.request ──> requests ──> any coordinator
//! agent ── event.SITE.to.ID ──> events (topic) ── event.*.to.ID ──> coordinator.ID ──> that coordinator alone
//! coordinator ── default exchange ──> tasks.SITE ──> agents of the site
//! coordinator ── default exchange ──> the asker's amq.rabbitmq.reply-to.…
//! requests ── rejected, delivered too often, or too old ──> returned ── all but the last ──> quarantine
//! tasks.SITE ── rejected, or delivered too often ──> quarantine
//! ```
//! Only the coordinator's end declares anything. All queues are quorum queues: they survive a broker that is killed.

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Map, Value};

use uuid::Uuid;

use crate::ids::SiteId;

/// Where agents publish.
pub const EVENTS: &str = "events";
/// Where what they publish waits for a coordinator.
pub const REQUESTS: &str = "requests";
/// What comes back from there: questions that nobody answered in time, and what was given out too often.
pub(super) const RETURNED: &str = "returned";
/// Where messages are kept that nobody could read.
pub const QUARANTINE: &str = "quarantine";
/// What is published there carries the reason under this name, if it was known.
pub const REASON: &str = "x-ocopea-reason";
/// Where it was sent to.
pub const ROUTING_KEY: &str = "x-ocopea-routing-key";
/// Whose it is.
pub const USER: &str = "x-ocopea-user";
/// The `type` of a message that says nothing: whether its queue confirms it is what its sender wants to know.
pub(super) const PROBE: &str = "ocopea.probe";
/// What the bound queue takes.
const ALL_EVENTS: &str = "event.*.request";
/// What an agent names as the way back of a request; the broker puts the real one in its place.
pub(super) const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Hints that wait at one site at most; more are refused, and the relay tries again.
pub const HINTS: u32 = 100_000;
/// Requests that wait at the broker at most; agents ask again.
pub const WAITING_REQUESTS: u32 = 20_000;
/// Messages that are kept in quarantine at most; the oldest go first.
pub const QUARANTINED: u32 = 10_000;
/// How often a hint is given out at most: one that ends every agent that takes it stops here.
pub const DELIVERIES: u32 = 20;
/// How often a request is given out at most: its asker asks again.
pub const REQUEST_DELIVERIES: u32 = 3;

/// The queue of a site.
pub fn tasks(site: SiteId) -> String {
    format!("tasks.{site}")
}

/// The broker's user of a site.
pub fn user(site: SiteId) -> String {
    format!("site-{site}")
}

/// The site whose user this is. Exactly as [`user`] writes it: the broker tells `A` from `a`.
pub fn site_of(name: &str) -> Option<SiteId> {
    let site = name.strip_prefix("site-")?.parse().ok()?;
    (user(site) == name).then_some(site)
}

/// The site whose queue this is.
pub fn site_of_queue(name: &str) -> Option<SiteId> {
    let site = name.strip_prefix("tasks.")?.parse().ok()?;
    (tasks(site) == name).then_some(site)
}

/// What a site's requests are published under.
pub(super) fn request_key(site: SiteId, coordinator: Option<Uuid>) -> String {
    match coordinator {
        None => format!("event.{site}.request"),
        Some(coordinator) => format!("event.{site}.to.{coordinator}"),
    }
}

/// The queue of one coordinator alone: it goes with its connection.
pub(super) fn own(coordinator: Uuid) -> String {
    format!("coordinator.{coordinator}")
}

/// What a site's user may do: regular expressions, as the broker takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Declare and delete: nothing.
    pub configure: String,
    /// Publish: to [`EVENTS`] only, never to the default exchange.
    pub write: String,
    /// Consume: the site's queue only.
    pub read: String,
    /// Routing keys under which it may publish to [`EVENTS`].
    pub topic_write: String,
    /// Routing keys to which it may bind from [`EVENTS`]: none.
    pub topic_read: String,
}

/// The rights of a site's user. Direct reply-to needs no further one (tried on 3.10).
pub fn rights(site: SiteId) -> Rights {
    Rights {
        configure: "^$".to_owned(),
        write: format!("^{EVENTS}$"),
        read: format!(r"^tasks\.{site}$"),
        topic_write: format!(r"^event\.{site}\."),
        topic_read: "^$".to_owned(),
    }
}

/// A queue's argument.
enum Argument {
    Text(&'static str),
    Number(u32),
}

type Arguments = Vec<(&'static str, Argument)>;

fn quorum(most: u32, megabytes: u32, overflow: &'static str) -> Arguments {
    vec![
        ("x-queue-type", Argument::Text("quorum")),
        ("x-max-length", Argument::Number(most)),
        ("x-max-length-bytes", Argument::Number(megabytes << 20)),
        ("x-overflow", Argument::Text(overflow)),
    ]
}

fn dead_lettered(mut arguments: Arguments, deliveries: u32, to: &'static str) -> Arguments {
    arguments.extend([
        ("x-delivery-limit", Argument::Number(deliveries)),
        ("x-dead-letter-exchange", Argument::Text("")),
        ("x-dead-letter-routing-key", Argument::Text(to)),
    ]);
    arguments
}

/// Full, it says so to who publishes.
fn tasks_arguments() -> Arguments {
    dead_lettered(quorum(HINTS, 64, "reject-publish"), DELIVERIES, QUARANTINE)
}

fn requests_arguments() -> Arguments {
    dead_lettered(quorum(WAITING_REQUESTS, 512, "reject-publish"), REQUEST_DELIVERIES, RETURNED)
}

/// Full, it lets the oldest go, as quarantine does: what was asked in vain is asked again.
fn returned_arguments() -> Arguments {
    dead_lettered(quorum(WAITING_REQUESTS, 512, "drop-head"), REQUEST_DELIVERIES, QUARANTINE)
}

/// Full, it lets the oldest go: it never stands in anybody's way.
fn quarantine_arguments() -> Arguments {
    quorum(QUARANTINED, 256, "drop-head")
}

fn table(arguments: Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.into()),
            Argument::Number(number) => AMQPValue::LongLongInt(i64::from(number)),
        };
        table.insert(name.into(), value);
    }
    table
}

/// The arguments of a site's queue, as the management API takes them.
pub fn tasks_arguments_json() -> Map<String, Value> {
    let arguments = tasks_arguments().into_iter().map(|(name, value)| {
        let value = match value {
            Argument::Text(text) => Value::from(text),
            Argument::Number(number) => Value::from(number),
        };
        (name.to_owned(), value)
    });
    arguments.collect()
}

/// Makes sure that the exchange and the coordinator's queues are there.
pub(super) async fn declare(channel: &Channel) -> lapin::Result<()> {
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare(EVENTS.into(), ExchangeKind::Topic, durable, FieldTable::default()).await?;
    declare_queue(channel, QUARANTINE, quarantine_arguments()).await?;
    declare_queue(channel, RETURNED, returned_arguments()).await?;
    declare_queue(channel, REQUESTS, requests_arguments()).await?;
    let bind = QueueBindOptions::default();
    channel.queue_bind(REQUESTS.into(), EVENTS.into(), ALL_EVENTS.into(), bind, FieldTable::default()).await
}

/// Makes the queue of one coordinator alone, on the connection that it goes with.
pub(super) async fn declare_own(channel: &Channel, coordinator: Uuid) -> lapin::Result<()> {
    let name = own(coordinator);
    let passing = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let arguments = table(vec![
        ("x-max-length", Argument::Number(WAITING_REQUESTS)),
        ("x-max-length-bytes", Argument::Number(64 << 20)),
        ("x-overflow", Argument::Text("reject-publish")),
    ]);
    channel.queue_declare(name.as_str().into(), passing, arguments).await?;
    let key = format!("event.*.to.{coordinator}");
    let bind = QueueBindOptions::default();
    channel.queue_bind(name.as_str().into(), EVENTS.into(), key.as_str().into(), bind, FieldTable::default()).await
}

/// Makes sure that a site's queue is there.
pub(super) async fn declare_tasks(channel: &Channel, site: SiteId) -> lapin::Result<()> {
    declare_queue(channel, &tasks(site), tasks_arguments()).await
}

async fn declare_queue(channel: &Channel, name: &str, arguments: Arguments) -> lapin::Result<()> {
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(name.into(), durable, table(arguments)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_name_is_a_sites_only_as_it_is_written() {
        let site: SiteId = "0197f3a0-7c7e-7d2a-8a50-3d3c1f6b2a10".parse().unwrap();
        assert_eq!(site_of(&user(site)), Some(site));
        for name in [
            "0197f3a0-7c7e-7d2a-8a50-3d3c1f6b2a10",
            "site-",
            "site-0197F3A0-7C7E-7D2A-8A50-3D3C1F6B2A10",
            "site-0197f3a07c7e7d2a8a503d3c1f6b2a10",
            "site-{0197f3a0-7c7e-7d2a-8a50-3d3c1f6b2a10}",
            "site-0197f3a0-7c7e-7d2a-8a50-3d3c1f6b2a10 ",
            "coordinator",
        ] {
            assert_eq!(site_of(name), None, "{name}");
        }
    }
}
