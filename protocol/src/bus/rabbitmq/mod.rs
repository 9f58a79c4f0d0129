//! The bus over RabbitMQ: AMQP 0-9-1, one queue per site, answers by direct reply-to.
//!
//! The catalog is the truth and agents poll, so nothing here is repaired in place: whatever is lost ends a [`link`]'s
//! session, and the next one begins from nothing. What is published counts as done when a queue on disk has it. From
//! whom a message is, the broker says (`user_id`), never the message.
//!
//! - [`address`]: where the broker is, and the settings; [`transport`]: TCP and TLS; [`guard`]: what is taken out of the
//!   broker's bytes before the client library reads them; [`link`]: a connection that comes back.
//! - [`topology`]: every name, number and right; `docs/rabbitmq.md` says why.
//! - [`coordinator`] with [`publisher`] and [`fair`] is one end, [`agent`] the other.
//!
//! To add a kind of message: a queue and its arguments in [`topology`], a session or a method at each end, and what any
//! bus must do with it in [`super::conformance`].

mod address;
mod agent;
mod coordinator;
mod fair;
mod guard;
mod link;
mod publisher;
pub mod topology;
mod transport;

pub use address::{Address, InvalidSettings, Settings};
pub use agent::{AgentState, RabbitAgentBus};
pub use coordinator::{CoordinatorState, RabbitCoordinatorBus};
pub use link::LinkState;

use crate::seams::Seams;

/// A connection with nothing on it, for tests and tools that do what no end of the bus does. It ends when dropped.
pub struct Bare {
    /// The library's.
    pub connection: lapin::Connection,
    _cut: transport::Cut,
}

impl Bare {
    /// Connects once. Needs tokio's runtime.
    pub async fn open(settings: &Settings, seams: &Seams) -> Result<Self, String> {
        settings.check().map_err(|error| error.to_string())?;
        let tls = transport::tls(settings).map_err(|error| error.to_string())?;
        let opening = transport::open(settings, &settings.password, &tls, seams);
        match seams.timeout(settings.limit, Box::pin(opening)).await {
            Some(Ok(open)) => Ok(Self { connection: open.connection, _cut: open.cut }),
            Some(Err(transport::NoConnection::Unreachable(why))) => Err(why),
            Some(Err(transport::NoConnection::Library(error))) => Err(link::explain(&error)),
            None => Err(format!("nobody speaks at {}", settings.address)),
        }
    }
}

/// What comes through of a broker's bytes, for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn guarded(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut guard = guard::Guard::default();
    guard.take(bytes)?;
    let (mut out, mut piece) = (Vec::new(), [0; 4096]);
    while let count @ 1.. = guard.give(&mut piece) {
        out.extend_from_slice(&piece[..count]);
    }
    Ok(out)
}
