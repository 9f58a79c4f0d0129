//! Servers older than the library talks to: MongoDB 3.6 to 4.2, and others of the protocol that say they are one.
//!
//! They know every message and command that is sent here, so what they say of their age is told otherwise on its way:
//! a loopback port in front of the server that changes one number in its answer to hello, and nothing else.

use std::net::{Ipv4Addr, SocketAddr};

use ocopea_protocol::failure::TaskFailure;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::raw;
use crate::data::Subject;

/// The oldest that has the messages that are used (3.6), and what the library wants (4.4).
const OLDEST: i32 = 6;
const WANTED: i32 = 9;
/// An answer to hello is not longer.
const LONGEST: usize = 16 * 1024;

/// The port in front of a server; closed when it is dropped.
pub(super) struct Disguise {
    pub(super) address: SocketAddr,
    _stop: DropGuard,
}

impl Disguise {
    /// Opens one.
    pub(super) async fn before(subject: &Subject, server: SocketAddr) -> Result<Self, TaskFailure> {
        let fault = |error: std::io::Error| {
            TaskFailure::retryable("forward.listen", format!("can't reach \"{}\"", subject.name), error)
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let stop = CancellationToken::new();
        let (token, spawner) = (stop.clone(), subject.seams.spawner.clone());
        let accepting = async move {
            loop {
                let accepted = tokio::select! {
                    () = token.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((client, _)) = accepted else { return };
                let token = token.clone();
                let passing = async move {
                    tokio::select! {
                        () = token.cancelled() => {}
                        // Either end may go at any time; the other then sees it.
                        _ = pass(client, server) => {}
                    }
                };
                spawner.spawn("mongodb.older", Box::pin(passing));
            }
        };
        subject.seams.spawner.spawn("mongodb.older", Box::pin(accepting));
        Ok(Self { address, _stop: stop.drop_guard() })
    }
}

async fn pass(client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((mut from_client, to_client), (from_server, mut to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        up = tokio::io::copy(&mut from_client, &mut to_server) => up.map(|_| ()),
        down = answers(from_server, to_client) => down,
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    let mut head = [0; 16];
    loop {
        from.read_exact(&mut head).await?;
        let [a, b, c, d, ..] = head;
        let length = usize::try_from(i32::from_le_bytes([a, b, c, d])).unwrap_or(0).saturating_sub(head.len());
        if length <= LONGEST {
            let mut message = head.to_vec();
            message.resize(head.len() + length, 0);
            from.read_exact(message.get_mut(head.len()..).unwrap_or_default()).await?;
            told_otherwise(&mut message);
            to.write_all(&message).await?;
        } else {
            to.write_all(&head).await?;
            let passed = tokio::io::copy(&mut (&mut from).take(length as u64), &mut to).await?;
            if passed < length as u64 {
                return Ok(());
            }
        }
    }
}

/// Changes what an answer itself says of its server's age, never what a document within it holds.
fn told_otherwise(message: &mut [u8]) {
    let Some(kind) = message.get(12..16).and_then(|kind| kind.first_chunk::<4>()) else { return };
    // OP_MSG with one section, or OP_REPLY to the very first hello.
    let start = match i32::from_le_bytes(*kind) {
        2013 => 21,
        1 => 36,
        _ => return,
    };
    let Some(answer) = message.get_mut(start..) else { return };
    let Some(found) = raw::get(answer, "maxWireVersion").filter(|found| found.kind == 0x10) else { return };
    let old = found.value.first_chunk::<4>().is_some_and(|age| (OLDEST..WANTED).contains(&i32::from_le_bytes(*age)));
    let at = found.value.as_ptr() as usize - answer.as_ptr() as usize;
    if let Some(age) = answer.get_mut(at..at + 4).filter(|_| old) {
        age.copy_from_slice(&WANTED.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Document, RawDocumentBuf, doc};

    use super::*;

    fn message(answer: &Document) -> Vec<u8> {
        let mut message = vec![0; 12];
        message.extend_from_slice(&2013i32.to_le_bytes());
        message.extend_from_slice(&[0; 5]);
        message.extend_from_slice(RawDocumentBuf::try_from(answer).unwrap().as_bytes());
        message
    }

    fn told(answer: &Document) -> Document {
        let mut message = message(answer);
        told_otherwise(&mut message);
        Document::try_from(RawDocumentBuf::from_bytes(message[21..].to_vec()).unwrap()).unwrap()
    }

    #[test]
    fn only_a_servers_own_age_is_told_otherwise_and_only_where_that_works() {
        assert_eq!(
            told(&doc! {"ismaster": true, "maxWireVersion": 6, "ok": 1.0}).get_i32("maxWireVersion").unwrap(),
            9
        );
        for same in [
            doc! {"maxWireVersion": 5},
            doc! {"maxWireVersion": 17},
            doc! {"maxWireVersion": "7"},
            doc! {"cursor": {"firstBatch": [{"maxWireVersion": 7}]}, "ok": 1.0},
        ] {
            assert_eq!(told(&same), same);
        }
        for at in 0..60 {
            told_otherwise(&mut message(&doc! {"maxWireVersion": 7, "x": "y"})[..at.min(50)].to_vec());
        }
    }
}
