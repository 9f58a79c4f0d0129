//! Lets sites in at RabbitMQ and throws them out, over its management API.
//!
//! A site's user has the rights of [`topology::rights`] and no others. They are set before the one that lets it into the
//! virtual host, so there is no moment at which it could do more. Everything here may be repeated.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use ocopea_protocol::{
    bus::rabbitmq::{Address, topology},
    failure::TaskFailure,
    ids::SiteId,
    seams::Seams,
    secret::Secret,
    time::Timestamp,
};
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use crate::{
    api::enrolment::{Admission, Quarantine, Quarantined, SiteBroker},
    tokens,
};

/// How long connecting may take, and how long one act.
const LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));
/// An answer is no longer, in bytes.
const LONGEST: usize = 32 << 20;
/// Rounds in which a user's connections are closed: the broker lists a new one a moment after it was opened.
const ROUNDS: u32 = 5;
/// Between two rounds.
const ROUND: Duration = Duration::from_millis(200);

/// How the broker is managed, and by what address agents reach it.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// `https://HOST:PORT[/PREFIX]` of the management API.
    pub management: Url,
    /// A user with the tag `administrator`.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Certificates (PEM) that the management API's is checked against, instead of the system's.
    pub certificates: Option<String>,
    /// Lets passwords go to the management API without TLS beyond this machine.
    pub plain_allowed: bool,
    /// Where agents connect to; its virtual host is the coordinator's, too.
    pub agents: String,
    /// Certificates (PEM) that agents check the broker's against, instead of their system's.
    pub agents_certificates: Option<String>,
}

/// The management API of one broker.
pub struct RabbitSiteBroker {
    settings: BrokerSettings,
    vhost: String,
    client: Client,
    seams: Seams,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

fn refused(cause: impl ToString, next: &str) -> TaskFailure {
    TaskFailure::permanent("broker.settings", "can't manage the broker", cause).next(next)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl RabbitSiteBroker {
    /// Checks the settings; asks nobody yet.
    pub fn new(settings: BrokerSettings, seams: &Seams) -> Result<Self, TaskFailure> {
        let url = &settings.management;
        let plain = match url.scheme() {
            "https" => false,
            "http" => true,
            other => return Err(refused(format!("its address begins with {other}://"), "give an https:// address")),
        };
        if plain && !settings.plain_allowed && !is_loopback(url) {
            let next = "use https://, or allow it where the way is your own";
            return Err(refused("passwords would go over the network in the clear", next));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.cannot_be_a_base() {
            return Err(refused("its address has more than a place", "give user and password apart from it"));
        }
        let agents: Address = settings.agents.parse().map_err(|error| refused(error, "amqps://HOST:PORT/VHOST"))?;
        let mut builder = Client::builder()
            .connect_timeout(LIMITS.0)
            .timeout(LIMITS.1)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(!plain);
        if let Some(certificates) = &settings.certificates {
            let pem = reqwest::Certificate::from_pem_bundle(certificates.as_bytes());
            builder = builder.tls_certs_only(pem.map_err(|error| refused(error, "give certificates as PEM"))?);
        }
        let client = builder.build().map_err(|error| refused(told(&error), "see the certificates"))?;
        Ok(Self { vhost: agents.vhost, settings, client, seams: seams.clone() })
    }

    /// Whether the management API lets this user do what is needed.
    pub async fn check(&self) -> Result<(), TaskFailure> {
        let what = "can't manage the broker";
        self.ask(what, Method::GET, &["users", &self.settings.user], None).await?;
        self.ask(what, Method::GET, &["vhosts", &self.vhost], None).await.map(drop)
    }

    /// The sites that have a user at the broker, whether or not they are known to anybody else.
    pub async fn sites(&self) -> Result<Vec<SiteId>, TaskFailure> {
        let what = "can't list the broker's users";
        let answer = self.ask(what, Method::GET, &["users"], None).await?;
        let users: Vec<Named> = parsed(what, &answer)?;
        Ok(users.iter().filter_map(|user| topology::site_of(&user.name)).collect())
    }

    /// One request; the body of a good answer. What isn't there answers with nothing.
    async fn ask(
        &self,
        what: &str,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<Option<Vec<u8>>, TaskFailure> {
        let mut url = self.settings.management.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("api").extend(path);
        }
        let gone = method == Method::DELETE;
        let mut request =
            self.client.request(method, url).basic_auth(&self.settings.user, Some(self.settings.password.reveal()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable = |cause: String| {
            TaskFailure::retryable("broker.unreachable", what, cause)
                .next("see whether the broker's management API runs")
        };
        let answer = request.send().await.map_err(|error| unreachable(told(&error)))?;
        let status = answer.status();
        let mut bytes = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| unreachable(told(&error)))?;
            if bytes.len() + piece.len() > LONGEST {
                return Err(unreachable(format!("its answer has more than {LONGEST} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        if status.is_success() {
            return Ok(Some(bytes));
        }
        if status == StatusCode::NOT_FOUND && gone {
            return Ok(None);
        }
        let said: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(300).collect();
        let cause = format!("the broker answered {status}: {said}");
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => TaskFailure::permanent("broker.refused", what, cause)
                .next("give a user with the tag administrator, and its password"),
            status if status.is_client_error() => TaskFailure::permanent("broker.refused", what, cause)
                .next("see that the virtual host is there, and its queues are as docs/rabbitmq.md says"),
            _ => unreachable(cause),
        })
    }

    async fn put(&self, what: &str, path: &[&str], body: &Value) -> Result<(), TaskFailure> {
        self.ask(what, Method::PUT, path, Some(body)).await.map(drop)
    }

    async fn delete(&self, what: &str, path: &[&str]) -> Result<(), TaskFailure> {
        self.ask(what, Method::DELETE, path, None).await.map(drop)
    }

    async fn connections_of(&self, what: &str, user: &str) -> Result<Vec<String>, TaskFailure> {
        // By user they come from what the broker keeps track of; the long list is from statistics, seconds old.
        let answer = self.ask(what, Method::GET, &["connections", "username", user], None).await?;
        let connections: Vec<Named> = parsed(what, &answer)?;
        Ok(connections.into_iter().map(|connection| connection.name).collect())
    }
}

fn parsed<'a, T: Deserialize<'a>>(what: &str, answer: &'a Option<Vec<u8>>) -> Result<T, TaskFailure> {
    serde_json::from_slice(answer.as_deref().unwrap_or_default())
        .map_err(|error| TaskFailure::permanent("broker.answer", what, format!("its answer can't be read: {error}")))
}

/// Without the address: it may be anything.
fn told(error: &reqwest::Error) -> String {
    let mut text =
        if error.is_timeout() { "it didn't answer in time".to_owned() } else { "it can't be reached".to_owned() };
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

#[async_trait]
impl SiteBroker for RabbitSiteBroker {
    async fn admit(&self, site: SiteId) -> Result<Admission, TaskFailure> {
        let what = "can't let the site in at the broker";
        let (user, vhost, queue) = (topology::user(site), self.vhost.as_str(), topology::tasks(site));
        let rights = topology::rights(site);
        let password = tokens::generate("site")
            .ok_or_else(|| TaskFailure::retryable("broker.random", what, "the system gives no randomness"))?;
        self.put(what, &["users", &user], &json!({"password": password.reveal(), "tags": ""})).await?;
        let topic = json!({"exchange": topology::EVENTS, "write": rights.topic_write, "read": rights.topic_read});
        self.put(what, &["topic-permissions", vhost, &user], &topic).await?;
        let arguments = topology::tasks_arguments_json();
        let declared = json!({"durable": true, "auto_delete": false, "arguments": arguments});
        self.put(what, &["queues", vhost, &queue], &declared).await?;
        // From here on it is let in.
        let permissions = json!({"configure": rights.configure, "write": rights.write, "read": rights.read});
        self.put(what, &["permissions", vhost, &user], &permissions).await?;
        Ok(Admission {
            url: self.settings.agents.clone(),
            user,
            password,
            certificates: self.settings.agents_certificates.clone(),
        })
    }

    async fn expel(&self, site: SiteId) -> Result<(), TaskFailure> {
        let what = "can't throw the site out at the broker";
        let user = topology::user(site);
        // First nobody comes in any more; then those leave who are in.
        self.delete(what, &["users", &user]).await?;
        for round in 0..ROUNDS {
            let connections = self.connections_of(what, &user).await?;
            for connection in &connections {
                self.delete(what, &["connections", connection]).await?;
            }
            if connections.is_empty() && round > 0 {
                break;
            }
            self.seams.clock.sleep(ROUND).await;
        }
        self.delete(what, &["queues", &self.vhost, &topology::tasks(site)]).await
    }

    async fn quarantined(&self, most: u32) -> Result<Quarantine, TaskFailure> {
        let what = "can't look into quarantine";
        // The queue's own count is from statistics, seconds old: each message says how many are behind it. They are put back;
        // what they hold is of no interest here.
        let wish = json!({"count": most.max(1), "ackmode": "reject_requeue_true", "encoding": "base64", "truncate": 1});
        let path = ["queues", &self.vhost, topology::QUARANTINE, "get"];
        let answer = self.ask(what, Method::POST, &path, Some(&wish)).await?;
        let found: Vec<Message> = parsed(what, &answer)?;
        let behind = found.last().map_or(0, |last| last.message_count);
        let messages = behind.saturating_add(found.len() as u64);
        let items = found.into_iter().take(most as usize).map(Message::told).collect();
        Ok(Quarantine { messages, items })
    }
}

/// A message as the management API shows it.
#[derive(Deserialize)]
struct Message {
    /// Those behind it.
    message_count: u64,
    payload_bytes: u64,
    routing_key: String,
    /// A list where there are none.
    #[serde(default)]
    properties: Value,
}

impl Message {
    fn told(self) -> Quarantined {
        let headers = &self.properties["headers"];
        let text = |value: &Value| value.as_str().map(shown);
        // What the broker put there by itself; the last is the first that happened.
        let death = headers["x-death"].as_array().and_then(|deaths| deaths.last()).unwrap_or(&Value::Null);
        let from = text(&death["queue"]);
        let reason = text(&headers[topology::REASON]).unwrap_or_else(|| {
            let reason = match death["reason"].as_str() {
                Some("rejected") => "it could not be read",
                Some("expired") => "nobody took it in time",
                Some("delivery_limit") => "it was delivered too often",
                Some("maxlen") => "there was no room for it",
                _ => "nobody knows",
            };
            from.as_ref().map_or_else(|| reason.to_owned(), |queue| format!("{reason} (from {queue})"))
        });
        let site = headers[topology::USER].as_str().and_then(topology::site_of);
        let site = site.or_else(|| from.as_deref().and_then(topology::site_of_queue));
        let routing_key = text(&headers[topology::ROUTING_KEY]).or_else(|| text(&death["routing-keys"][0]));
        let since = self.properties["timestamp"].as_i64().or_else(|| death["time"].as_i64());
        Quarantined {
            since: since.and_then(|seconds| seconds.checked_mul(1000)).map(Timestamp),
            reason,
            site,
            routing_key: routing_key.unwrap_or_else(|| shown(&self.routing_key)),
            bytes: self.payload_bytes,
        }
    }
}

/// Somebody's words, for people.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
