//! The wire format of messages: the only user of bincode.
//!
//! ```text
//! magic "OCPA" | protocol version u16 LE | kind u8 | trace context length u8 | trace context | payload
//! ```
//! The payload is bincode 2 (standard configuration: little endian, variable-length integers) of the message
//! type that `kind` names. bincode is positional: any change of a message's fields is a new protocol version,
//! and the golden bytes in `tests/golden/` must then be renewed on purpose.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    image::StoreKeys,
    message::{Answer, Request, TaskHint},
    session::{Invitation, Opening},
    task::TaskSpec,
};

/// What this build speaks.
pub const PROTOCOL_VERSION: u16 = 3;
/// No message is longer; what is bigger belongs in the repository.
pub const LONGEST: usize = 8 * 1024 * 1024;
const MAGIC: [u8; 4] = *b"OCPA";
const HEAD: usize = 8;

/// Bytes that are not a message of ours.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Too long to be looked at.
    #[error("message of {0} bytes: at most {LONGEST} are taken")]
    TooLong(usize),
    /// Cut off.
    #[error("message ends after {0} bytes, inside its head")]
    Truncated(usize),
    /// Not ours at all.
    #[error("not an Ocopea message: it doesn't start with the magic bytes")]
    Magic,
    /// Another version.
    #[error("message of protocol version {theirs}, this program speaks {PROTOCOL_VERSION}: {}", advice(*theirs))]
    Version {
        /// Theirs.
        theirs: u16,
    },
    /// Of another kind than expected here.
    #[error("message of kind {found} where kind {expected} was expected")]
    Kind {
        /// Expected.
        expected: u8,
        /// Found.
        found: u8,
    },
    /// The head holds something that can't be.
    #[error("message head is malformed: {0}")]
    Head(&'static str),
    /// The payload can't be read.
    #[error("message payload is malformed: {0}")]
    Payload(String),
    /// The payload can't be written.
    #[error("message can't be encoded: {0}")]
    Encode(String),
}

fn advice(theirs: u16) -> &'static str {
    if theirs > PROTOCOL_VERSION { "upgrade this side" } else { "upgrade the sender" }
}

/// A type that travels in an envelope.
pub trait Message: Serialize + DeserializeOwned {
    /// Its number in the head.
    const KIND: u8;
}

impl Message for TaskHint {
    const KIND: u8 = 1;
}

impl Message for Request {
    const KIND: u8 = 2;
}

impl Message for Answer {
    const KIND: u8 = 3;
}

/// Travels sealed, inside of an answer.
impl Message for TaskSpec {
    const KIND: u8 = 4;
}

impl Message for Invitation {
    const KIND: u8 = 5;
}

/// Travels sealed, inside of an answer.
impl Message for Opening {
    const KIND: u8 = 6;
}

/// Travels sealed, inside of an answer.
impl Message for StoreKeys {
    const KIND: u8 = 7;
}

fn configuration() -> Configuration<LittleEndian, Varint, Limit<LONGEST>> {
    bincode::config::standard().with_limit::<LONGEST>()
}

/// A message with the trace context it came with (W3C `traceparent`, may be empty).
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<M> {
    /// The message.
    pub message: M,
    /// Its trace context.
    pub trace: String,
}

/// Wraps `message`.
pub fn seal<M: Message>(message: &M, trace: &str) -> Result<bytes::Bytes, EnvelopeError> {
    let length = u8::try_from(trace.len()).map_err(|_| EnvelopeError::Head("trace context over 255 bytes"))?;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    out.push(M::KIND);
    out.push(length);
    out.extend_from_slice(trace.as_bytes());
    let payload = bincode::serde::encode_to_vec(message, configuration())
        .map_err(|error| EnvelopeError::Encode(error.to_string()))?;
    out.extend_from_slice(&payload);
    if out.len() > LONGEST {
        return Err(EnvelopeError::TooLong(out.len()));
    }
    Ok(out.into())
}

/// Unwraps `bytes`; every byte must belong to the message.
pub fn open<M: Message>(bytes: &[u8]) -> Result<Opened<M>, EnvelopeError> {
    if bytes.len() > LONGEST {
        return Err(EnvelopeError::TooLong(bytes.len()));
    }
    let Some((head, rest)) = bytes.split_at_checked(HEAD) else {
        return Err(EnvelopeError::Truncated(bytes.len()));
    };
    if head[..4] != MAGIC {
        return Err(EnvelopeError::Magic);
    }
    let theirs = u16::from_le_bytes([head[4], head[5]]);
    if theirs != PROTOCOL_VERSION {
        return Err(EnvelopeError::Version { theirs });
    }
    if head[6] != M::KIND {
        return Err(EnvelopeError::Kind { expected: M::KIND, found: head[6] });
    }
    let Some((trace, payload)) = rest.split_at_checked(usize::from(head[7])) else {
        return Err(EnvelopeError::Truncated(bytes.len()));
    };
    let trace = std::str::from_utf8(trace).map_err(|_| EnvelopeError::Head("trace context is not UTF-8"))?;
    let (message, used) = bincode::serde::decode_from_slice(payload, configuration())
        .map_err(|error| EnvelopeError::Payload(error.to_string()))?;
    if used != payload.len() {
        return Err(EnvelopeError::Payload(format!("{} bytes behind its end", payload.len() - used)));
    }
    Ok(Opened { message, trace: trace.to_owned() })
}
