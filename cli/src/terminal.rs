//! `ocopea exec`: this terminal, or these pipes, joined to a program in a container.

use std::{
    io::{IsTerminal, Write},
    os::fd::AsFd,
};

use ocopea_coordinator::api::{Problem, exec::PROTOCOL};
use ocopea_protocol::frames::{END, ERRORS, INPUT, OUTPUT, SIZE, read_frame, write_frame};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::client::{Client, Failure};

/// The terminal as it was, given back when this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Option<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = tcsetattr(std::io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

/// Runs a program in a container of an environment; answers for its exit status.
pub async fn exec(client: &Client, path: &str, component: Option<&str>, command: &[String]) -> Result<u8, Failure> {
    let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let command = serde_json::to_string(command).map_err(|error| Failure::local(error.to_string()))?;
    let mut query = vec![("command", command), ("tty", tty.to_string()), ("stdin", "true".to_owned())];
    query.extend(component.map(|component| ("component", component.to_owned())));
    let connection = client.upgrade(path, &query, PROTOCOL).await?;
    let (mut from, to) = tokio::io::split(connection);
    let raw = if tty { Raw::begin() } else { None };
    let upwards = upwards(to, tty);
    let downwards = async {
        while let Some((channel, bytes)) = read_frame(&mut from).await? {
            match channel {
                OUTPUT => {
                    let mut out = std::io::stdout().lock();
                    if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                        // Nobody reads it any more: `exec … | head` has what it wanted.
                        return Ok(Some(br#"{"code": 0}"#.to_vec()));
                    }
                }
                ERRORS => std::io::stderr().write_all(&bytes)?,
                END => return Ok(Some(bytes)),
                _ => {}
            }
        }
        Ok(None)
    };
    let ended: std::io::Result<Option<Vec<u8>>> = tokio::select! {
        ended = downwards => ended,
        error = upwards => Err(error),
    };
    drop(raw);
    let lost =
        |why: String| Failure { status: 6, cause: why, ..Failure::local("the connection to the program was lost") };
    match ended {
        Ok(Some(end)) => {
            let end: serde_json::Value = serde_json::from_slice(&end).unwrap_or_default();
            if let Some(code) = end["code"].as_i64() {
                return Ok(u8::try_from(code).unwrap_or(255));
            }
            let problem: Problem = serde_json::from_value(end).map_err(|error| lost(error.to_string()))?;
            Err(Failure { next: problem.next, ..Failure::local(problem.detail) })
        }
        Ok(None) => Err(lost("it ended without a word".to_owned())),
        Err(error) => Err(lost(error.to_string())),
    }
}

/// Sends what is typed or piped in, until that fails.
async fn upwards(mut to: impl AsyncWrite + Unpin, tty: bool) -> std::io::Error {
    let sending = async {
        if tty {
            send_size(&mut to).await?;
        }
        let mut resized = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
        let (mut stdin, mut buffer) = (tokio::io::stdin(), vec![0; 16 * 1024]);
        let mut open = true;
        loop {
            tokio::select! {
                read = stdin.read(&mut buffer), if open => {
                    let count = read?;
                    open = count > 0;
                    write_frame(&mut to, INPUT, buffer.get(..count).unwrap_or_default()).await?;
                }
                _ = resized.recv() => if tty { send_size(&mut to).await? },
            }
        }
    };
    let failed: Result<std::convert::Infallible, std::io::Error> = sending.await;
    match failed {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn send_size(to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    let Ok(size) = tcgetwinsize(std::io::stdout().as_fd()) else { return Ok(()) };
    let mut bytes = size.ws_col.to_be_bytes().to_vec();
    bytes.extend_from_slice(&size.ws_row.to_be_bytes());
    write_frame(to, SIZE, &bytes).await
}
