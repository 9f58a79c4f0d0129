//! A port of a pod, as a port of this machine. One connection through the API server for each connection here.

use std::{net::SocketAddr, time::Duration};

use futures::{SinkExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, client::Connection as Upstream, core::Request};
use ocopea_protocol::failure::TaskFailure;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Platform, channels};

/// The channel of a port's bytes; the next one is of its errors.
const DATA: u8 = 0;

/// Bytes that wait in each direction of a tunnel.
const ROOM: usize = 256 * 1024;
/// How long an answer may take to come to an end after its client has said all.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A forwarded port; dropping it closes it and all of its connections.
pub struct Forward {
    /// Where it listens: loopback, a port of the system's choice unless one was wished.
    pub address: SocketAddr,
    _stop: DropGuard,
}

/// Where connections go.
#[derive(Clone, Debug)]
pub enum Towards {
    /// One pod.
    Pod(String),
    /// Any ready pod with these labels, chosen anew for each connection: it may be replaced meanwhile.
    Selected(String),
}

impl Platform {
    /// Forwards a loopback port to `pod`'s `port`. `listen` 0 takes any free one.
    pub async fn forward(&self, namespace: &str, pod: &str, port: u16, listen: u16) -> Result<Forward, TaskFailure> {
        self.forward_to(namespace, Towards::Pod(pod.to_owned()), port, listen).await
    }

    /// As [`Self::forward`], to one of several pods.
    pub async fn forward_to(
        &self,
        namespace: &str,
        towards: Towards,
        port: u16,
        listen: u16,
    ) -> Result<Forward, TaskFailure> {
        let fault = |error: std::io::Error| {
            TaskFailure::retryable("forward.listen", format!("can't forward a loopback port to {namespace}"), error)
                .next("choose another port, or let the system choose one")
        };
        let listener = TcpListener::bind(("127.0.0.1", listen)).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let stop = CancellationToken::new();
        let (platform, namespace) = (self.clone(), namespace.to_owned());
        let token = stop.clone();
        self.seams.spawner.spawn(
            "forward.accept",
            Box::pin(async move {
                loop {
                    let accepted = tokio::select! {
                        () = token.cancelled() => return,
                        accepted = listener.accept() => accepted,
                    };
                    let Ok((connection, _)) = accepted else {
                        // Out of file descriptors, most likely: a moment later it may go again.
                        platform.seams.clock.sleep(std::time::Duration::from_millis(50)).await;
                        continue;
                    };
                    let (platform, namespace, towards, token) =
                        (platform.clone(), namespace.clone(), towards.clone(), token.clone());
                    let spawner = platform.seams.spawner.clone();
                    spawner.spawn(
                        "forward.connection",
                        Box::pin(async move {
                            tokio::select! {
                                () = token.cancelled() => {}
                                ended = platform.join(&namespace, &towards, port, connection) => {
                                    if let Err(error) = ended {
                                        tracing::debug!(?towards, port, error, "forwarded connection ended");
                                    }
                                }
                            }
                        }),
                    );
                }
            }),
        );
        Ok(Forward { address, _stop: stop.drop_guard() })
    }

    async fn join(
        &self,
        namespace: &str,
        towards: &Towards,
        port: u16,
        mut connection: TcpStream,
    ) -> Result<(), String> {
        // Small requests and answers go back and forth: waiting for more bytes would only add latency.
        connection.set_nodelay(true).map_err(|error| error.to_string())?;
        let upstream = self.upstream(namespace, towards, port).await?;
        self.carry(upstream, port, connection.split()).await
    }

    /// One connection to a port, without a port of this machine's.
    pub async fn tunnel(&self, namespace: &str, towards: &Towards, port: u16) -> Result<DuplexStream, TaskFailure> {
        let upstream = self.upstream(namespace, towards, port).await.map_err(|why| {
            TaskFailure::retryable("forward.open", format!("can't connect to port {port} in {namespace}"), why)
                .next(format!("see whether it runs: {} -n {namespace} get pods", self.kubectl()))
        })?;
        let (ours, theirs) = tokio::io::duplex(ROOM);
        let platform = self.clone();
        self.seams.spawner.spawn(
            "forward.tunnel",
            Box::pin(async move {
                if let Err(error) = platform.carry(upstream, port, tokio::io::split(theirs)).await {
                    tracing::debug!(port, error, "a tunnel ended");
                }
            }),
        );
        Ok(ours)
    }

    async fn upstream(&self, namespace: &str, towards: &Towards, port: u16) -> Result<Upstream, String> {
        let pod = match towards {
            Towards::Pod(pod) => pod.clone(),
            Towards::Selected(labels) => {
                let ready = self.ready_pod(namespace, labels).await.map_err(|failure| failure.to_string())?;
                ready.ok_or_else(|| format!("no pod with {labels} is ready"))?
            }
        };
        let request = Request::new(Pod::url_path(&(), Some(namespace))).portforward(&pod, &[port]);
        let request = request.map_err(|error| error.to_string())?;
        self.streams.connect(request).await.map_err(|error| error.to_string())
    }

    async fn carry(
        &self,
        upstream: Upstream,
        port: u16,
        (mut reading, mut writing): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    ) -> Result<(), String> {
        let (mut to, mut from) = upstream.into_stream().split();
        let received = {
            let mut receiving = std::pin::pin!(receive(&mut from, &mut writing, port));
            tokio::select! {
                sent = channels::send(&mut reading, DATA, &mut to, &self.seams) => {
                    sent.map_err(|error| error.to_string())?;
                    // The protocol has no end of one direction: what is still to come is waited for a while, and then
                    // the other side learns that nobody is here any more.
                    self.seams.timeout(LAST_WORDS, &mut receiving).await.unwrap_or(Ok(()))
                }
                received = &mut receiving => received,
            }
        };
        // The other side may have closed first.
        let _ = to.close().await;
        received?;
        // What was received stays readable until the other side has taken it.
        writing.shutdown().await.map_err(|error| error.to_string())?;
        let _ = tokio::io::copy(&mut reading, &mut tokio::io::sink()).await;
        Ok(())
    }
}

/// Takes what the port says, until it ends.
async fn receive(
    from: &mut (impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin),
    into: &mut (impl AsyncWrite + Unpin),
    port: u16,
) -> Result<(), String> {
    // Each channel begins with the number of its port.
    let mut begun = [false; 2];
    while let Some(message) = from.next().await {
        let Some((channel, bytes)) = channels::received(message.map_err(|error| error.to_string())?) else { continue };
        match begun.get_mut(usize::from(channel)) {
            Some(begun) if !*begun => {
                if bytes[..] != port.to_le_bytes() {
                    return Err(format!("channel {channel} is not of port {port}"));
                }
                *begun = true;
            }
            Some(_) if channel == DATA => into.write_all(&bytes).await.map_err(|error| error.to_string())?,
            Some(_) => return Err(String::from_utf8_lossy(&bytes).into_owned()),
            None => return Err(format!("there is no channel {channel}")),
        }
    }
    Ok(())
}
