//! A port of a pod, as a port of this machine. One connection through the API server for each connection here.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use ocopea_protocol::failure::TaskFailure;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Platform;

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
        let pod = match towards {
            Towards::Pod(pod) => pod.clone(),
            Towards::Selected(labels) => {
                let ready = self.ready_pod(namespace, labels).await.map_err(|failure| failure.to_string())?;
                ready.ok_or_else(|| format!("no pod with {labels} is ready"))?
            }
        };
        let pods: Api<Pod> = Api::namespaced(self.streams.clone(), namespace);
        let mut forwarder = pods.portforward(&pod, &[port]).await.map_err(|error| error.to_string())?;
        let mut upstream = forwarder.take_stream(port).ok_or("no stream for the port")?;
        // Small requests and answers go back and forth: waiting for more bytes would only add latency.
        connection.set_nodelay(true).map_err(|error| error.to_string())?;
        tokio::io::copy_bidirectional_with_sizes(&mut connection, &mut upstream, 256 * 1024, 256 * 1024)
            .await
            .map_err(|error| error.to_string())?;
        drop(upstream);
        forwarder.abort();
        Ok(())
    }
}
