//! Programs in a container of the application, and on this host.

use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    process::Stdio,
    task::{Context, Poll},
};

use async_trait::async_trait;
use futures::{SinkExt, Stream, StreamExt};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{Resource, api::AttachParams, core::Request};
use ocopea_protocol::{failure::TaskFailure, seams::Seams, secret::Secret};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Platform, channels};
use crate::{
    data::{RunningTool, Tools},
    failures::kubernetes,
};

/// Bytes of standard error that are kept.
const TAIL: usize = 16 * 1024;
/// Bytes that may wait between the API server and the reader.
const BUFFER: usize = 1024 * 1024;
/// The channels of a program, by Kubernetes' remote command protocol.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
/// Followed by a channel's number, since version 5 of the protocol: nothing more will come on it.
const CLOSE: u8 = 255;

/// What a program in a container says, until the connection that carries it breaks: the client's own streams would then
/// stay silent for ever.
pub(super) struct Carried<R> {
    from: R,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<R> Carried<R> {
    /// `lost` is cancelled when the connection is.
    pub(super) fn new(from: R, lost: &CancellationToken) -> Self {
        Self { from, lost: Box::pin(lost.clone().cancelled_owned()) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Carried<R> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(read) = Pin::new(&mut this.from).poll_read(context, into) {
            return Poll::Ready(read);
        }
        if this.lost.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        // What came before the loss, and after the look above.
        match Pin::new(&mut this.from).poll_read(context, into) {
            Poll::Pending => {
                let why = "the connection to the API server broke";
                Poll::Ready(Err(Error::new(ErrorKind::ConnectionAborted, why)))
            }
            read @ Poll::Ready(_) => read,
        }
    }
}

/// Runs programs by exec through the API server.
pub struct PodTools {
    /// The cluster.
    pub platform: Platform,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container.
    pub container: Option<String>,
    /// The port under which the service listens within the pod.
    pub port: u16,
}

impl Platform {
    /// Starts `command` in a container. Environment goes in by `env`, values by standard input never by argument.
    pub async fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        command: &[String],
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure> {
        let what = format!("can't run {} in pod {pod}", command.first().map_or("nothing", String::as_str));
        let mut parameters = AttachParams::default().stdin(input.is_some()).stdout(true).stderr(true);
        if let Some(container) = container {
            parameters = parameters.container(container);
        }
        let request = Request::new(Pod::url_path(&(), Some(namespace))).exec(pod, command.to_vec(), &parameters);
        let request = request.map_err(kube::Error::BuildRequest);
        let connected = async { self.streams.connect(request?).await };
        let connection = connected.await.map_err(|error| kubernetes(&what, &error))?;
        let closes = connection.supports_stream_close();
        let (mut to, mut from) = connection.into_stream().split();
        let lost = CancellationToken::new();
        let (output, mut said) = tokio::io::simplex(BUFFER);
        let output = Carried::new(output, &lost);
        let seams = self.seams.clone();
        let (mut sender, ended) = tokio::sync::oneshot::channel();
        self.seams.spawner.spawn(
            "exec.run",
            Box::pin(async move {
                let sending = async {
                    if let Some(mut input) = input {
                        channels::send(&mut input, STDIN, &mut to, &seams).await?;
                        if closes {
                            to.send(Message::binary(vec![CLOSE, STDIN])).await?;
                        } else {
                            // Older servers know no other end of the input than that of everything.
                            to.close().await?;
                        }
                    }
                    channels::keep(&mut to, &seams).await
                };
                // A program that stops reading ends with its own error: the other direction tells.
                let sending = async {
                    let _ = sending.await;
                    std::future::pending::<()>().await;
                };
                let mut tail = Vec::new();
                let outcome = tokio::select! {
                    () = sender.closed() => None,
                    () = sending => None,
                    status = receive(&mut from, &mut said, &mut tail) => Some(status),
                };
                // Nobody waits any more: the end of the connection ends the program.
                let Some(status) = outcome else { return };
                match &status {
                    Some(_) => drop(said.shutdown().await),
                    None => lost.cancel(),
                }
                let _ = sender.send((exit_code(status.as_ref()), String::from_utf8_lossy(&tail).trim().to_owned()));
            }),
        );
        Ok(RunningTool { output: Box::new(output), ended })
    }
}

/// Takes what a program says, until the API server tells how it ended; nothing when the connection breaks before.
async fn receive(
    from: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    said: &mut (impl AsyncWrite + Unpin),
    tail: &mut Vec<u8>,
) -> Option<Status> {
    while let Some(message) = from.next().await {
        match channels::received(message.ok()?) {
            Some((STDOUT, bytes)) => said.write_all(&bytes).await.ok()?,
            Some((STDERR, bytes)) => keep_tail(tail, &bytes),
            Some((STATUS, bytes)) => return serde_json::from_slice(&bytes).ok(),
            _ => {}
        }
    }
    None
}

/// The exit status that the API server reports.
pub(crate) fn exit_code(status: Option<&Status>) -> i32 {
    let Some(status) = status else { return -1 };
    if status.status.as_deref() == Some("Success") {
        return 0;
    }
    status
        .details
        .as_ref()
        .and_then(|details| details.causes.as_ref())
        .and_then(|causes| causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode")))
        .and_then(|cause| cause.message.as_ref())
        .and_then(|message| message.parse().ok())
        .unwrap_or(-1)
}

/// Reads all, keeps the last [`TAIL`] bytes.
async fn read_tail(from: &mut (impl AsyncRead + Unpin), tail: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0u8; 4096];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        keep_tail(tail, &buffer[..read]);
    }
}

fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    if tail.len() > 2 * TAIL {
        tail.drain(..tail.len() - TAIL);
    }
}

#[async_trait]
impl Tools for PodTools {
    fn place(&self) -> String {
        format!("pod {}", self.pod)
    }

    fn address(&self) -> (String, u16) {
        ("127.0.0.1".to_owned(), self.port)
    }

    async fn start(
        &self,
        program: &str,
        arguments: &[String],
        environment: &[(String, Secret)],
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure> {
        // The environment must not stand in the process list of the node: the shell reads it from its own input,
        // one NAME=VALUE line each up to an empty line, and hands the rest on.
        let script = "while IFS= read -r l && [ -n \"$l\" ]; do export \"$l\"; done; exec \"$@\"";
        let mut command: Vec<String> = ["sh", "-c", script, "sh", program].into_iter().map(str::to_owned).collect();
        command.extend(arguments.iter().cloned());
        let mut head = String::new();
        for (name, value) in environment {
            if value.reveal().contains(['\n', '\0']) {
                return Err(TaskFailure::permanent(
                    "exec.environment",
                    format!("can't run {program} in pod {}", self.pod),
                    format!("the value of {name} holds a line break"),
                ));
            }
            head.push_str(&format!("{name}={}\n", value.reveal()));
        }
        head.push('\n');
        let head = std::io::Cursor::new(head.into_bytes());
        let input: Box<dyn AsyncRead + Send + Unpin> = match input {
            Some(rest) => Box::new(head.chain(rest)),
            None => Box::new(head),
        };
        self.platform.exec(&self.namespace, &self.pod, self.container.as_deref(), &command, Some(input)).await
    }
}

/// Runs programs of this machine.
pub struct HostTools {
    /// Where the service is reached from here.
    pub address: std::net::SocketAddr,
    /// For waiting.
    pub seams: Seams,
}

#[async_trait]
impl Tools for HostTools {
    fn place(&self) -> String {
        "this host".to_owned()
    }

    fn address(&self) -> (String, u16) {
        (self.address.ip().to_string(), self.address.port())
    }

    async fn start(
        &self,
        program: &str,
        arguments: &[String],
        environment: &[(String, Secret)],
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure> {
        let what = format!("can't run {program} on this host");
        let missing = || TaskFailure::permanent("tool.streams", what.clone(), "no streams");
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name.as_str(), value.reveal())))
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| TaskFailure::permanent("tool.missing", what.clone(), error))?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let mut errors = child.stderr.take().ok_or_else(missing)?;
        if let (Some(mut input), Some(mut stdin)) = (input, child.stdin.take()) {
            self.seams.spawner.spawn(
                "tool.input",
                Box::pin(async move {
                    let _ = tokio::io::copy(&mut input, &mut stdin).await;
                    let _ = stdin.shutdown().await;
                }),
            );
        }
        let (mut sender, ended) = tokio::sync::oneshot::channel();
        self.seams.spawner.spawn(
            "tool.wait",
            Box::pin(async move {
                let waited = async {
                    let mut tail = Vec::new();
                    let _ = read_tail(&mut errors, &mut tail).await;
                    let status = child.wait().await;
                    let code = status.ok().and_then(|status| status.code()).unwrap_or(-1);
                    (code, String::from_utf8_lossy(&tail).trim().to_owned())
                };
                tokio::select! {
                    () = sender.closed() => {}
                    outcome = waited => { let _ = sender.send(outcome); }
                }
            }),
        );
        Ok(RunningTool { output: Box::new(output), ended })
    }
}
