//! A program in a container of an environment: one HTTP/1.1 connection, upgraded, that carries frames.
//!
//! A frame is a channel (1 byte), the length of what follows (4 bytes, big-endian) and that many bytes, 65,536 at most.
//! From the client: 0 standard input (an empty frame ends it), 4 the terminal's size (columns and rows, 2 bytes each,
//! big-endian). From the server: 1 standard output, 2 standard error, 3 the end: JSON, `{"code":N}` or a `Problem`.

use axum::{
    extract::{Path, Request, State as Extract},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper_util::rt::TokioIo;
use ocopea_catalog_db::model::Role;
use ocopea_protocol::failure::TaskFailure;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
};
use utoipa::IntoParams;

use super::{
    State,
    environments::note_use,
    problem::{Caller, Problem, Query},
};

/// The name in `Upgrade:`.
pub const PROTOCOL: &str = "ocopea-exec";
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
/// Words of a command, and bytes of each.
const MOST_WORDS: usize = 1000;

/// What to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ExecQuery {
    /// The command and its arguments: a JSON array of strings.
    pub command: String,
    /// A workload, pod, container or image by its last name; needed when the environment has several.
    pub component: Option<String>,
    /// With a terminal.
    #[serde(default)]
    pub tty: bool,
    /// With standard input.
    #[serde(default)]
    pub stdin: bool,
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

/// Runs a program in a container of an environment. The connection is upgraded to `ocopea-exec`.
#[utoipa::path(post, path = "/api/v1/environments/{environment}/exec", params(("environment" = String, Path), ExecQuery),
    responses((status = 101, description = "frames follow, see the crate's documentation"), (status = 404, body = Problem),
        (status = 426, body = Problem, description = "the request asks for no upgrade")))]
pub(super) async fn exec(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(environment): Path<String>,
    Query(query): Query<ExecQuery>,
    request: Request,
) -> Result<Response, Problem> {
    let (actor, no_longer) = caller.while_at_least(Role::Operator, &state)?;
    let command: Vec<String> = serde_json::from_str(&query.command)
        .map_err(|_| Problem::invalid("command", "a JSON array of strings is expected"))?;
    if command.is_empty() || command.len() > MOST_WORDS || command.iter().any(|word| word.contains('\0')) {
        return Err(Problem::invalid("command", format!("1 to {MOST_WORDS} words without NUL are expected")));
    }
    let upgrades = request.headers().get(header::UPGRADE).is_some_and(|wish| wish.as_bytes() == PROTOCOL.as_bytes());
    if !upgrades {
        return Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade", format!("Upgrade: {PROTOCOL} is expected")));
    }
    let catalog = &state.coordinator.catalog;
    let (found, site) = super::environments::found(catalog, &actor, &environment).await?;
    // Who ran what where is written down before it runs; not what went through.
    let program = command.first().map_or("", String::as_str);
    let detail = format!("{} {program:.100}", found.name);
    note_use(&state, &actor, "environment.exec", found.id, &detail).await?;
    let started = state.access.exec(&site.name, &found.name, &query, command).await?;
    let upgrade = hyper::upgrade::on(request);
    state.coordinator.seams.spawner.spawn(
        "exec.connection",
        Box::pin(async move {
            match upgrade.await {
                Ok(connection) => {
                    let carried = tokio::select! {
                        carried = carry(TokioIo::new(connection), started) => carried,
                        () = no_longer => Err(std::io::Error::other("its token is no longer good")),
                    };
                    if let Err(error) = carried {
                        tracing::debug!(%error, "a connection to a program ended");
                    }
                }
                Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
            }
        }),
    );
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
    ];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// Carries frames both ways until the program ends or the client is gone.
async fn carry(connection: impl AsyncRead + AsyncWrite, started: Started) -> std::io::Result<()> {
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
            Ok(Ok(code)) => serde_json::json!({ "code": code }),
            Ok(Err(failure)) => serde_json::to_value(Problem::from(failure)).unwrap_or_default(),
            Err(_) => serde_json::json!({ "code": -1 }),
        };
        write_frame(&mut to, END, end.to_string().as_bytes()).await?;
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
        let carrying = tokio::spawn(carry(theirs, started));
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
