//! The frames in which a program's input, output and end travel on one connection.
//!
//! A frame is a channel (1 byte), the length of what follows (4 bytes, big-endian) and that many bytes, 65,536 at most.
//! Towards the program: 0 standard input (an empty frame ends it), 4 the terminal's size (columns and rows, 2 bytes each,
//! big-endian). From it: 1 standard output, 2 standard error, 3 the end: JSON, `{"code":N}` or why there is none.

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
};

use crate::failure::TaskFailure;

/// Standard input.
pub const INPUT: u8 = 0;
/// Standard output.
pub const OUTPUT: u8 = 1;
/// Standard error.
pub const ERRORS: u8 = 2;
/// The end.
pub const END: u8 = 3;
/// The terminal's size.
pub const SIZE: u8 = 4;
/// Longest payload of a frame.
pub const LONGEST: usize = 64 * 1024;
/// The end of a program that an agent could not follow to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub failure: TaskFailure,
}

/// A program that was started in a container.
pub struct Started {
    /// Its standard input, where it was wished.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; with a terminal there is none.
    pub errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Columns and rows of the terminal.
    pub size: Option<mpsc::Sender<(u16, u16)>>,
    /// Its exit status. Dropping this ends the program.
    pub ended: oneshot::Receiver<Result<i32, TaskFailure>>,
}

/// Writes one frame.
pub async fn write_frame(to: &mut (impl AsyncWrite + Unpin), channel: u8, bytes: &[u8]) -> std::io::Result<()> {
    for piece in bytes.chunks(LONGEST).chain(bytes.is_empty().then_some(&[][..])) {
        to.write_u8(channel).await?;
        to.write_u32(u32::try_from(piece.len()).unwrap_or(u32::MAX)).await?;
        to.write_all(piece).await?;
    }
    to.flush().await
}

/// Reads one frame; `None` at the end of the connection.
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<(u8, Vec<u8>)>> {
    let channel = match from.read_u8().await {
        Ok(channel) => channel,
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = from.read_u32().await? as usize;
    if length > LONGEST {
        return Err(std::io::Error::other(format!("a frame claims to be {length} bytes long")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes).await?;
    Ok(Some((channel, bytes)))
}

/// Carries frames both ways until the program ends or the client is gone; `failed` words an end that isn't known.
pub async fn carry(
    connection: impl AsyncRead + AsyncWrite,
    started: Started,
    failed: impl Fn(TaskFailure) -> Vec<u8>,
) -> std::io::Result<()> {
    let (mut from, mut to) = tokio::io::split(connection);
    let Started { mut input, mut output, errors, size, mut ended } = started;
    let upwards = async {
        while let Some((channel, bytes)) = read_frame(&mut from).await? {
            match (channel, bytes.as_slice()) {
                (INPUT, []) => {
                    if let Some(mut input) = input.take() {
                        input.shutdown().await?;
                    }
                }
                (INPUT, bytes) => {
                    // A program that reads no more has its reasons: its end says them.
                    if let Some(open) = &mut input
                        && (open.write_all(bytes).await.is_err() || open.flush().await.is_err())
                    {
                        input = None;
                    }
                }
                (SIZE, [a, b, c, d]) => {
                    if let Some(size) = &size {
                        // A program that has ended needs no size.
                        let _ = size.send((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))).await;
                    }
                }
                _ => return Err(std::io::Error::other("a frame of no known channel")),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let downwards = async {
        let mut errors: Box<dyn AsyncRead + Send + Unpin> = errors.unwrap_or_else(|| Box::new(tokio::io::empty()));
        let (mut one, mut two) = (vec![0; LONGEST], vec![0; LONGEST]);
        let (mut first, mut second) = (true, true);
        while first || second {
            tokio::select! {
                read = output.read(&mut one), if first => match read {
                    Ok(0) | Err(_) => first = false,
                    Ok(count) => write_frame(&mut to, OUTPUT, one.get(..count).unwrap_or_default()).await?,
                },
                read = errors.read(&mut two), if second => match read {
                    Ok(0) | Err(_) => second = false,
                    Ok(count) => write_frame(&mut to, ERRORS, two.get(..count).unwrap_or_default()).await?,
                },
            }
        }
        let end = match (&mut ended).await {
            Ok(Ok(code)) => format!("{{\"code\":{code}}}").into_bytes(),
            Ok(Err(failure)) => failed(failure),
            Err(_) => b"{\"code\":-1}".to_vec(),
        };
        write_frame(&mut to, END, &end).await?;
        to.shutdown().await
    };
    tokio::pin!(upwards, downwards);
    tokio::select! {
        carried = &mut downwards => carried,
        gone = &mut upwards => {
            gone?;
            Ok(())
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's own helpers run until it ends")]
mod tests {
    use super::*;

    fn program(
        output: &'static [u8],
        errors: &'static [u8],
    ) -> (Started, tokio::io::DuplexStream, oneshot::Sender<Result<i32, TaskFailure>>) {
        let (input, theirs) = tokio::io::duplex(1024);
        let (done, ended) = oneshot::channel();
        let started = Started {
            input: Some(Box::new(input)),
            output: Box::new(output),
            errors: Some(Box::new(errors)),
            size: None,
            ended,
        };
        (started, theirs, done)
    }

    #[tokio::test]
    async fn input_goes_up_and_output_errors_and_the_status_come_down() {
        let (started, mut input, done) = program(b"out", b"err");
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let carrying = tokio::spawn(carry(theirs, started, |_| Vec::new()));
        let (mut from, mut to) = tokio::io::split(ours);
        write_frame(&mut to, INPUT, &vec![7; LONGEST + 1]).await.unwrap();
        write_frame(&mut to, INPUT, b"").await.unwrap();
        let mut read = Vec::new();
        input.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), LONGEST + 1);
        done.send(Ok(3)).unwrap();
        let mut got = std::collections::BTreeMap::new();
        while let Some((channel, bytes)) = read_frame(&mut from).await.unwrap() {
            got.entry(channel).or_insert_with(Vec::new).extend(bytes);
        }
        assert_eq!(got[&OUTPUT], b"out");
        assert_eq!(got[&ERRORS], b"err");
        assert_eq!(got[&END], br#"{"code":3}"#);
        carrying.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_costs_no_memory_and_ends_the_connection() {
        let mut hostile: &[u8] = &[INPUT, 0xff, 0xff, 0xff, 0xff, 1];
        assert!(read_frame(&mut hostile).await.is_err());
        let mut cut: &[u8] = &[INPUT, 0, 0, 0, 9, 1];
        assert!(read_frame(&mut cut).await.is_err());
    }
}
