//! Bytes over a websocket of the API server: each message is a channel's number and some of its bytes.
//!
//! The client's own loops cut what is sent into messages of 4 KiB, each with a way of its own through the API server and
//! the kubelet, and look at neither direction while the other one waits. Here a message is whatever is there to be sent,
//! up to [`FRAME`], and the two directions wait for nobody but themselves.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, Sink, SinkExt};
use ocopea_protocol::seams::Seams;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes that one message may carry: above this, only memory is spent.
const FRAME: usize = 64 * 1024;
/// After so long a silence a connection is shown to be alive: what lies between forgets silent ones.
const PING: Duration = Duration::from_secs(60);

/// Sends what `from` gives on `channel`, until it ends.
pub(super) async fn send(
    from: &mut (impl AsyncRead + Unpin + ?Sized),
    channel: u8,
    to: &mut (impl Sink<Message, Error = Error> + Unpin),
    seams: &Seams,
) -> Result<(), Error> {
    let mut frame = BytesMut::new();
    loop {
        frame.reserve(1 + FRAME);
        frame.put_u8(channel);
        let more = loop {
            tokio::select! {
                biased;
                more = fill(from, &mut frame) => break more,
                () = seams.clock.sleep(PING) => to.send(Message::Ping(Bytes::new())).await?,
            }
        };
        // What can't be read any more has ended, too.
        let more = more.unwrap_or(false);
        if frame.len() > 1 {
            to.send(Message::Binary(frame.split().freeze())).await?;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Keeps a connection alive on which nothing is left to be sent.
pub(super) async fn keep(to: &mut (impl Sink<Message, Error = Error> + Unpin), seams: &Seams) -> Result<(), Error> {
    loop {
        seams.clock.sleep(PING).await;
        to.send(Message::Ping(Bytes::new())).await?;
    }
}

/// Waits for bytes, and takes with them whatever is there already; false at the end. May be dropped at any time.
async fn fill(from: &mut (impl AsyncRead + Unpin + ?Sized), frame: &mut BytesMut) -> std::io::Result<bool> {
    loop {
        let room = (1 + FRAME).saturating_sub(frame.len());
        if room == 0 {
            return Ok(true);
        }
        let begun = frame.len() > 1;
        let mut into = (&mut *frame).limit(room);
        let reading = from.read_buf(&mut into);
        let read = if begun {
            let Some(read) = reading.now_or_never() else { return Ok(true) };
            read
        } else {
            reading.await
        };
        if read? == 0 {
            return Ok(false);
        }
    }
}

/// The channel of a message and its bytes; nothing for one that only says that a channel is open, and for other kinds.
pub(super) fn received(message: Message) -> Option<(u8, Bytes)> {
    let Message::Binary(mut bytes) = message else { return None };
    (bytes.len() > 1).then(|| (bytes.split_to(1)[0], bytes))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::AsyncWriteExt;
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn what_is_there_goes_in_few_messages_and_in_order() {
        let all: Vec<u8> = (0u32..300_000).map(|at| (at % 251) as u8).collect();
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 20);
        // In small pieces: how it was written is not how it is sent.
        for piece in all.chunks(1000) {
            ours.write_all(piece).await.unwrap();
        }
        drop(ours);
        let (sink, sent) = futures::channel::mpsc::unbounded();
        let mut sink = sink.sink_map_err(|_| Error::ConnectionClosed);
        send(&mut theirs, 7, &mut sink, &Seams::real(TaskTracker::new())).await.unwrap();
        drop(sink);
        let messages: Vec<(u8, Bytes)> = sent.filter_map(async |message| received(message)).collect().await;
        assert!(messages.len() <= all.len().div_ceil(FRAME), "{} messages", messages.len());
        assert!(messages.iter().all(|(channel, bytes)| *channel == 7 && bytes.len() <= FRAME));
        assert_eq!(messages.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect::<Vec<u8>>(), all);
    }
}
