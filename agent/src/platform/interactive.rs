//! A program in a container, for a person or a script that speaks with it.

use std::collections::BTreeSet;

use futures::SinkExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, ListParams, TerminalSize},
};
use ocopea_protocol::failure::TaskFailure;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    Platform,
    exec::{Carried, exit_code},
    logs::means,
};
use crate::failures::kubernetes;

/// Bytes of a stream that may wait: left to itself the client takes 1 KiB at a time.
const ROOM: usize = 128 * 1024;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// A workload, pod, container or image by its last name.
    pub component: Option<String>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// With standard input.
    pub stdin: bool,
    /// With a terminal.
    pub tty: bool,
}

/// A program that was started.
pub struct Interactive {
    /// Its standard input.
    pub input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output.
    pub output: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error; with a terminal there is none.
    pub errors: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Columns and rows of the terminal.
    pub size: Option<mpsc::Sender<(u16, u16)>>,
    /// Its exit status; dropping this ends the connection.
    pub ended: oneshot::Receiver<Result<i32, TaskFailure>>,
}

impl Platform {
    /// Starts a program in the first running container that `wish` means.
    pub async fn interactive(&self, namespace: &str, wish: &Wish) -> Result<Interactive, TaskFailure> {
        let wanted = wish.component.as_deref().unwrap_or("the application");
        let what = format!(
            "can't run {:.100} in {wanted:.200} of {namespace}",
            wish.command.first().map_or("", String::as_str)
        );
        let (pod, container) = self.running_container(namespace, wish.component.as_deref(), &what).await?;
        let pods: Api<Pod> = Api::namespaced(self.streams.clone(), namespace);
        let parameters = AttachParams::default()
            .container(container)
            .stdin(wish.stdin)
            .tty(wish.tty)
            .stdout(true)
            .stderr(!wish.tty)
            .max_stdin_buf_size(ROOM)
            .max_stdout_buf_size(ROOM)
            .max_stderr_buf_size(ROOM);
        let mut process =
            pods.exec(&pod, wish.command.clone(), &parameters).await.map_err(|error| kubernetes(&what, &error))?;
        let missing = || TaskFailure::retryable("exec.streams", what.clone(), "the API server opened no streams");
        let lost = CancellationToken::new();
        let output = Carried::new(process.stdout().ok_or_else(missing)?, &lost);
        let status = process.take_status().ok_or_else(missing)?;
        let input = process.stdin().map(|input| Box::new(input) as Box<dyn AsyncWrite + Send + Unpin>);
        let errors = process.stderr().map(|errors| Carried::new(errors, &lost));
        let errors = errors.map(|errors| Box::new(errors) as Box<dyn AsyncRead + Send + Unpin>);
        let size = process.terminal_size().map(|mut terminal| {
            let (size, mut sizes) = mpsc::channel::<(u16, u16)>(4);
            let follow = async move {
                while let Some((width, height)) = sizes.recv().await {
                    if terminal.send(TerminalSize { width, height }).await.is_err() {
                        return;
                    }
                }
            };
            self.seams.spawner.spawn("exec.size", Box::pin(follow));
            size
        });
        let (mut sender, ended) = oneshot::channel();
        self.seams.spawner.spawn(
            "exec.wait",
            Box::pin(async move {
                tokio::select! {
                    () = sender.closed() => process.abort(),
                    status = status => {
                        let outcome = match &status {
                            None => {
                                lost.cancel();
                                Err(TaskFailure::retryable("exec.lost", what, "the connection to the API server broke"))
                            }
                            Some(status) if status.reason.as_deref() == Some("InternalError") => {
                                // The program isn't there, or may not be run: the runtime's own words.
                                let cause = status.message.clone().unwrap_or_default();
                                Err(TaskFailure::permanent("exec.start", what, cause))
                            }
                            status => Ok(exit_code(status.as_ref())),
                        };
                        // Nobody waits any more: the client is gone.
                        let _ = sender.send(outcome);
                    }
                }
            }),
        );
        Ok(Interactive { input, output: Box::new(output), errors, size, ended })
    }

    /// A running container that `component` means; without one, the only workload's.
    async fn running_container(
        &self,
        namespace: &str,
        component: Option<&str>,
        what: &str,
    ) -> Result<(String, String), TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let all = pods.list(&ListParams::default().limit(500)).await.map_err(|error| kubernetes(what, &error))?;
        let mut found = Vec::new();
        let mut names = BTreeSet::new();
        for pod in all {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
            for status in statuses {
                if status.state.as_ref().is_none_or(|state| state.running.is_none()) {
                    continue;
                }
                names.insert(status.name.clone());
                if component.is_none_or(|wanted| means(wanted, &pod, &status.name, &status.image)) {
                    found.push((name.clone(), status.name));
                }
            }
        }
        found.sort();
        let several =
            component.is_none() && found.iter().map(|(_, container)| container).collect::<BTreeSet<_>>().len() > 1;
        let listed = names.into_iter().collect::<Vec<_>>().join(", ");
        if several {
            let cause = format!("several components run: {listed}");
            return Err(TaskFailure::permanent("exec.which", what, cause)
                .next("name one: ocopea exec ENVIRONMENT COMPONENT -- COMMAND"));
        }
        found.into_iter().next().ok_or_else(|| {
            let cause =
                if listed.is_empty() { "nothing runs there".to_owned() } else { format!("what runs is {listed}") };
            TaskFailure::permanent("environment.no-component", what, cause).next("name one of these")
        })
    }
}
