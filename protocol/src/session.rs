//! Sessions: what people do by hand in an environment (logs, programs), carried between a coordinator and an agent that
//! dials out only.
//!
//! A coordinator invites a site; whichever agent takes the invitation attaches to the session at that coordinator, is told
//! the wish and a key (sealed to its instance), and says whether it could be begun. From then on bytes go both ways: the
//! agent pushes what comes from the cluster and asks for what goes there. Every piece is sealed (AES-256-GCM) under the
//! session's key and its number: the broker in between sees neither logs nor input. A request that is repeated changes
//! nothing; a piece of no bytes ends its direction.

use std::net::SocketAddr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

use crate::{ids::SessionId, secret::Secret32};

/// The longest piece, in bytes.
pub const LONGEST: usize = 64 * 1024;

/// Bytes both ways, wherever they come from.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// See [`Stream`].
pub type BoxedStream = Box<dyn Stream>;

/// Coordinator → site: somebody wants something there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The session.
    pub session: SessionId,
    /// Which coordinator holds it; `None` where there is only one.
    pub coordinator: Option<Uuid>,
}

/// What is wished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// Lines of logs, as text. Nothing goes the other way.
    Logs {
        /// The environment's namespace.
        namespace: String,
        /// Only of this component.
        component: Option<String>,
        /// Goes on with what comes.
        follow: bool,
    },
    /// A program in a container: [`crate::frames`] both ways, the last one [`crate::frames::Failed`] where its end isn't
    /// known.
    Exec {
        /// The environment's namespace.
        namespace: String,
        /// Which component, where there are several.
        component: Option<String>,
        /// The command and its arguments.
        command: Vec<String>,
        /// With standard input.
        stdin: bool,
        /// With a terminal.
        tty: bool,
    },
    /// What leads to a data service or Service: a [`Way`] as JSON. Nothing goes the other way.
    Way {
        /// The environment's namespace.
        namespace: String,
        /// The service.
        service: String,
        /// Where its client will connect to.
        address: SocketAddr,
    },
    /// A connection to it: its bytes, both ways.
    Connect {
        /// The environment's namespace.
        namespace: String,
        /// The service.
        service: String,
    },
}

/// What leads to a service of an environment. Its words hold a password: it is never printed for debugging.
#[derive(Clone, Serialize, Deserialize)]
pub struct Way {
    /// Ready to paste, credentials included.
    pub connection: String,
    /// What it leads to: `mongodb "messages"`, `service web`.
    pub what: String,
}

/// What an agent is told that attaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// What to do.
    pub wish: Wish,
    /// Seals what is carried.
    pub key: Secret32,
}

/// Which way a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the cluster to the person.
    Up,
    /// From the person to the cluster.
    Down,
}

/// It isn't a piece of this session at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a piece of this session, or not the next one")]
pub struct NotOurs;

/// Seals and opens the pieces of one session.
pub struct Cipher(LessSafeKey);

impl Cipher {
    /// With the session's key.
    pub fn new(key: &Secret32) -> Result<Self, NotOurs> {
        UnboundKey::new(&AES_256_GCM, &key.0).map(|key| Self(LessSafeKey::new(key))).map_err(|_| NotOurs)
    }

    /// Each number is used once in each direction: a piece that is sent again is the same piece.
    fn nonce(direction: Direction, number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[0] = match direction {
            Direction::Up => 1,
            Direction::Down => 2,
        };
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals a piece.
    pub fn seal(&self, direction: Direction, number: u64, piece: &[u8]) -> Result<Vec<u8>, NotOurs> {
        let mut bytes = piece.to_vec();
        let sealed = self.0.seal_in_place_append_tag(Self::nonce(direction, number), Aad::empty(), &mut bytes);
        sealed.map(|()| bytes).map_err(|_| NotOurs)
    }

    /// Opens a piece.
    pub fn open(&self, direction: Direction, number: u64, sealed: &[u8]) -> Result<Vec<u8>, NotOurs> {
        if sealed.len() > LONGEST + AES_256_GCM.tag_len() {
            return Err(NotOurs);
        }
        let mut bytes = sealed.to_vec();
        let opened = self.0.open_in_place(Self::nonce(direction, number), Aad::empty(), &mut bytes);
        opened.map(|piece| piece.to_vec()).map_err(|_| NotOurs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_good_in_its_session_at_its_place_in_its_direction_and_nowhere_else() {
        let (cipher, other) = (Cipher::new(&Secret32([1; 32])).unwrap(), Cipher::new(&Secret32([2; 32])).unwrap());
        let sealed = cipher.seal(Direction::Up, 7, b"canary").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        assert_eq!(cipher.open(Direction::Up, 7, &sealed).unwrap(), b"canary");
        assert_eq!(cipher.seal(Direction::Up, 7, b"canary").unwrap(), sealed, "repeated, it is the same");
        assert_eq!(cipher.open(Direction::Up, 8, &sealed), Err(NotOurs));
        assert_eq!(cipher.open(Direction::Down, 7, &sealed), Err(NotOurs));
        assert_eq!(other.open(Direction::Up, 7, &sealed), Err(NotOurs));
        assert_eq!(cipher.open(Direction::Up, 7, &vec![0; LONGEST + 17]), Err(NotOurs));
        assert_eq!(cipher.open(Direction::Up, 7, b""), Err(NotOurs));
        let end = cipher.seal(Direction::Down, 0, b"").unwrap();
        assert_eq!(cipher.open(Direction::Down, 0, &end).unwrap(), b"");
    }
}
