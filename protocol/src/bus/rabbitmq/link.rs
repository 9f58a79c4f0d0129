//! One connection that comes back by itself.
//!
//! A link is a task that connects, runs a [`Session`] on the connection, and begins anew whenever that ends: the
//! broker restarted, the network went away, a channel or a consumer was closed. Nothing is repaired in place; every
//! session starts from nothing, so there is one way to every state. The library's own recovery is off.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt;
use lapin::{Connection, ErrorKind, Event, protocol::AMQPErrorKind};
use rustls::ClientConfig;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    super::BusError,
    address::{InvalidSettings, Settings},
    transport::{self, NoConnection},
};
use crate::{seams::Seams, secret::Secret, time::Timestamp};

/// Between two attempts to connect, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Until a user that was refused is tried again, unless its password is renewed.
const REFUSED: Duration = Duration::from_secs(30);
/// A session that stood so long was a good one: the next pause is a short one again.
const STOOD: Duration = Duration::from_secs(10);
/// How often a connection is looked at, beside what it says by itself.
const LOOK: Duration = Duration::from_secs(1);
/// How long a session may take to begin: a broker that was just started is slow, and some queues must be made anew.
const BEGIN: Duration = Duration::from_secs(30);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a connection is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected: it tries. With the last failure, if there was one.
    Connecting {
        /// What the last attempt, or the last connection, ended with.
        last_error: Option<String>,
    },
    /// The broker doesn't let this user in. It is tried now and then, and at once when its password is renewed.
    Refused {
        /// What it said.
        why: String,
    },
    /// Connected.
    Connected {
        /// Since when.
        since: Timestamp,
        /// Why the broker takes no messages at the moment (an alarm of memory or disk), if it doesn't.
        blocked: Option<String>,
        /// What the connection before this one ended with.
        last_error: Option<String>,
    },
    /// It was closed, for good.
    Closed,
}

impl LinkState {
    /// Why nothing can be published now; `None` when something can, or when it is too early to tell.
    pub(super) fn hindrance(&self) -> Option<BusError> {
        match self {
            Self::Connecting { last_error: None } | Self::Connected { blocked: None, .. } => None,
            Self::Connecting { last_error: Some(why) } | Self::Refused { why } => {
                Some(BusError::Unavailable(why.clone()))
            }
            Self::Connected { blocked: Some(why), .. } => {
                Some(BusError::Unavailable(format!("the broker is short of memory or disk ({why})")))
            }
            Self::Closed => Some(BusError::Closed),
        }
    }

    /// Why it can't be used, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        match self {
            Self::Connecting { last_error } => {
                Some(last_error.clone().unwrap_or_else(|| "not connected yet".to_owned()))
            }
            other => other.hindrance().map(|hindrance| hindrance.to_string()),
        }
    }

    fn last_error(&self) -> Option<String> {
        match self {
            Self::Connecting { last_error } | Self::Connected { last_error, .. } => last_error.clone(),
            Self::Refused { why } => Some(why.clone()),
            Self::Closed => None,
        }
    }
}

/// What is done on a connection, from its beginning until something ends. Dropped when the connection is lost; what
/// others see of it must go with it.
pub(super) trait Session: Send + Sync + 'static {
    /// Channels and consumers.
    type Begun: Send;

    /// Declares and opens what it needs, within a limit of time.
    fn begin(&self, connection: Arc<Connection>) -> impl Future<Output = lapin::Result<Self::Begun>> + Send;

    /// Ends with why it can't go on.
    fn run(&self, begun: Self::Begun) -> impl Future<Output = Result<Infallible, String>> + Send;
}

/// A handle of one link; the task goes on until [`Link::close`].
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    password: Mutex<Secret>,
    renewed: Notify,
    tls: Arc<ClientConfig>,
    seams: Seams,
    state: watch::Sender<LinkState>,
    stop: CancellationToken,
}

/// How a connection, or an attempt at one, ended.
enum Ended {
    Stopped,
    Refused(String),
    Lost(String),
}

/// A link's parts before its session is known.
pub(super) struct Unstarted(Link);

impl Unstarted {
    pub(super) fn new(settings: Settings, seams: &Seams) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let tls = transport::tls(&settings)?;
        let shared = Shared {
            password: Mutex::new(settings.password.clone()),
            settings,
            renewed: Notify::new(),
            tls,
            seams: seams.clone(),
            state: watch::Sender::new(LinkState::Connecting { last_error: None }),
            stop: CancellationToken::new(),
        };
        Ok(Self(Link { shared: Arc::new(shared) }))
    }

    pub(super) fn start(self, session: impl Session) -> Link {
        let shared = Arc::clone(&self.0.shared);
        let spawner = shared.seams.spawner.clone();
        spawner.spawn("rabbitmq.link", Box::pin(async move { shared.supervise(&session).await }));
        self.0
    }
}

impl Link {
    pub(super) fn state(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    pub(super) fn hindrance(&self) -> Option<BusError> {
        self.shared.state.borrow().hindrance()
    }

    pub(super) fn renew(&self, password: Secret) {
        *self.shared.password.lock().unwrap_or_else(PoisonError::into_inner) = password;
        self.shared.renewed.notify_one();
    }

    pub(super) fn close(&self) {
        self.shared.stop.cancel();
        self.shared.state.send_replace(LinkState::Closed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    async fn supervise<S: Session>(&self, session: &S) {
        let mut pause = PAUSE.0;
        loop {
            let began = self.seams.clock.monotonic();
            let (why, rest) = match Box::pin(self.attempt(session)).await {
                Ended::Stopped => break,
                Ended::Refused(why) => {
                    self.enter(LinkState::Refused { why: why.clone() });
                    (why, REFUSED)
                }
                Ended::Lost(why) => {
                    self.enter(LinkState::Connecting { last_error: Some(why.clone()) });
                    if self.seams.clock.monotonic().saturating_sub(began) >= STOOD {
                        pause = PAUSE.0;
                    }
                    let rest = pause;
                    pause = (pause * 2).min(PAUSE.1);
                    (why, rest)
                }
            };
            let rest = self.seams.jittered(rest);
            tracing::warn!(
                connection = self.settings.name,
                why,
                again_ms = rest.as_millis(),
                "no connection to the broker"
            );
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.renewed.notified() => pause = PAUSE.0,
                () = self.seams.clock.sleep(rest) => {}
            }
        }
        self.state.send_replace(LinkState::Closed);
    }

    /// A closed link stays closed.
    fn enter(&self, state: LinkState) {
        self.state.send_modify(|current| {
            if *current != LinkState::Closed {
                *current = state;
            }
        });
    }

    async fn attempt<S: Session>(&self, session: &S) -> Ended {
        let password = self.password.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let limit = self.settings.limit;
        let opening = self.seams.timeout(limit, transport::open(&self.settings, &password, &self.tls, &self.seams));
        let opened = tokio::select! {
            () = self.stop.cancelled() => return Ended::Stopped,
            opened = Box::pin(opening) => opened,
        };
        let open = match opened {
            Some(Ok(open)) => open,
            Some(Err(NoConnection::Unreachable(why))) => return Ended::Lost(why),
            Some(Err(NoConnection::Library(error))) => return self.refusal(&error),
            None => {
                let address = &self.settings.address;
                return Ended::Lost(format!("nobody speaks at {address}: no answer within {} s", limit.as_secs()));
            }
        };
        let connection = Arc::new(open.connection);
        let last_error = self.state.borrow().last_error();
        self.enter(LinkState::Connected { since: self.seams.clock.now(), blocked: None, last_error });
        tracing::info!(connection = self.settings.name, broker = %self.settings.address, "connected to the broker");
        let work = async {
            match self.seams.timeout(BEGIN, session.begin(Arc::clone(&connection))).await {
                Some(Ok(begun)) => match session.run(begun).await {
                    Err(why) => why,
                    Ok(never) => match never {},
                },
                Some(Err(error)) => explain(&error),
                None => format!("the broker made no channel, queue or consumer within {} s", BEGIN.as_secs()),
            }
        };
        let ended = tokio::select! {
            biased;
            () = self.stop.cancelled() => Ended::Stopped,
            ended = self.listen(&connection) => ended,
            why = work => Ended::Lost(why),
        };
        // Whatever comes of it: the stream is cut behind it.
        let farewell = connection.close(200, "done".into());
        let _ = self.seams.timeout(FAREWELL, farewell).await;
        drop(open.cut);
        ended
    }

    /// Hears what the connection says of itself, until it is no more.
    async fn listen(&self, connection: &Connection) -> Ended {
        let mut events = Box::pin(connection.events_listener());
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(why)) => self.block(Some(why.chars().take(200).collect())),
                    Some(Event::ConnectionUnblocked) => self.block(None),
                    Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                    Some(Event::Error(error)) => return Ended::Lost(explain(&error)),
                    Some(_) => {}
                    None => return Ended::Lost("the connection ended".to_owned()),
                },
                () = self.seams.clock.sleep(LOOK) => {
                    if !connection.status().connected() {
                        return Ended::Lost("the connection to the broker was lost".to_owned());
                    }
                }
            }
        }
    }

    fn block(&self, why: Option<String>) {
        if let Some(why) = &why {
            tracing::warn!(connection = self.settings.name, why, "the broker takes no messages");
        }
        self.state.send_if_modified(|state| match state {
            LinkState::Connected { blocked, .. } if *blocked != why => {
                *blocked = why;
                true
            }
            _ => false,
        });
    }

    /// What the broker said while the connection was opened.
    fn refusal(&self, error: &lapin::Error) -> Ended {
        let user = &self.settings.user;
        match error.kind() {
            ErrorKind::ProtocolError(said) => match said.get_id() {
                403 => Ended::Refused(format!("the broker refused the password of {user}")),
                530 => Ended::Refused(format!("the broker refused {user}: {}", said.get_message())),
                _ => Ended::Lost(explain(error)),
            },
            _ => Ended::Lost(explain(error)),
        }
    }
}

/// An error of the library, for people.
pub(super) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(said) => {
            let what = match said.kind() {
                AMQPErrorKind::Soft(_) => "the broker refused it",
                AMQPErrorKind::Hard(_) => "the broker closed the connection",
            };
            format!("{what}: {}", said.get_message())
        }
        ErrorKind::IOError(error) => format!("the connection to the broker was lost: {error}"),
        ErrorKind::MissingHeartbeatError => "the broker fell silent".to_owned(),
        _ => format!("the connection to the broker was lost: {error}"),
    }
}
