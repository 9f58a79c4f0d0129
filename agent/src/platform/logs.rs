//! What containers say, line by line, of one or all pods, followed across restarts if wished.

use std::{collections::BTreeSet, time::Duration};

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use ocopea_protocol::failure::TaskFailure;
use tokio::sync::mpsc;

use super::Platform;
use crate::failures::kubernetes;

/// A line is cut here: logs are outside input.
const LONGEST: u64 = 64 * 1024;
/// Lines that wait for a slow reader; beyond that the pods' own log files wait.
const WAITING: usize = 1024;
/// How often new pods are looked for.
const AGAIN: Duration = Duration::from_secs(2);

/// One line of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The pod.
    pub pod: String,
    /// The container within it.
    pub container: String,
    /// The line, without its end; what is not UTF-8 is replaced.
    pub text: String,
}

/// Which logs.
#[derive(Clone, Debug, Default)]
pub struct LogWish {
    /// A workload (`lets-chat`, `deployment/lets-chat`), pod, container or image by its last name; all when absent.
    pub component: Option<String>,
    /// Goes on with what comes.
    pub follow: bool,
    /// Begins this many lines before the end.
    pub tail: Option<u32>,
}

impl Platform {
    /// The logs of `namespace`. Ends with the pods' logs, or when the receiver is dropped.
    pub async fn logs(&self, namespace: &str, wish: &LogWish) -> Result<mpsc::Receiver<LogLine>, TaskFailure> {
        let first = self.log_sources(namespace, wish.component.as_deref()).await?;
        if first.is_empty() {
            let wanted = wish.component.as_deref().unwrap_or("any component");
            return Err(TaskFailure::permanent(
                "environment.no-component",
                format!("can't show logs of {wanted:.200}"),
                format!("no pod in {namespace} belongs to it"),
            )
            .next("see the components: ocopea environments -o json"));
        }
        let (lines, receiver) = mpsc::channel(WAITING);
        let (platform, namespace, wish) = (self.clone(), namespace.to_owned(), wish.clone());
        let spawner = self.seams.spawner.clone();
        spawner.spawn(
            "logs",
            Box::pin(async move {
                let mut known = BTreeSet::new();
                let mut found = first;
                loop {
                    for source in found.difference(&known.clone()).cloned().collect::<Vec<_>>() {
                        known.insert(source.clone());
                        let tail = if known.len() > found.len() { None } else { wish.tail };
                        let one = platform.clone().one_log(namespace.clone(), source, wish.follow, tail, lines.clone());
                        platform.seams.spawner.spawn("logs.container", Box::pin(one));
                    }
                    if !wish.follow {
                        return;
                    }
                    tokio::select! {
                        () = lines.closed() => return,
                        () = platform.seams.clock.sleep(AGAIN) => {}
                    }
                    // A pod that can't be listed now is found the next time.
                    found = platform.log_sources(&namespace, wish.component.as_deref()).await.unwrap_or_default();
                }
            }),
        );
        Ok(receiver)
    }

    /// Pods and containers that `component` means and that have begun.
    async fn log_sources(
        &self,
        namespace: &str,
        component: Option<&str>,
    ) -> Result<BTreeSet<(String, String, i32)>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let list = pods
            .list(&ListParams::default().limit(500))
            .await
            .map_err(|error| kubernetes(&format!("can't list the pods of {namespace}"), &error))?;
        let mut found = BTreeSet::new();
        for pod in list {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let statuses = pod.status.as_ref();
            let begun = statuses
                .into_iter()
                .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()))
                .filter(|s| s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some()));
            for status in begun {
                if component.is_none_or(|wanted| means(wanted, &pod, &status.name, &status.image)) {
                    found.insert((name.clone(), status.name.clone(), status.restart_count));
                }
            }
        }
        Ok(found)
    }

    async fn one_log(
        self,
        namespace: String,
        (pod, container, _): (String, String, i32),
        follow: bool,
        tail: Option<u32>,
        lines: mpsc::Sender<LogLine>,
    ) {
        let pods: Api<Pod> = Api::namespaced(self.streams.clone(), &namespace);
        let parameters = LogParams {
            container: Some(container.clone()),
            follow,
            tail_lines: tail.map(i64::from),
            ..LogParams::default()
        };
        let line = |text: String| LogLine { pod: pod.clone(), container: container.clone(), text };
        match pods.log_stream(&pod, &parameters).await {
            Ok(mut stream) => {
                let read = async {
                    while let Some(text) = next_line(&mut stream).await {
                        if lines.send(line(text)).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = lines.closed() => {}
                    () = read => {}
                }
            }
            Err(error) => {
                let failure = kubernetes("no logs", &error);
                let _ = lines.send(line(format!("({failure})"))).await;
            }
        }
    }
}

/// The next line, cut at [`LONGEST`]; what is beyond is skipped.
async fn next_line(stream: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let read = (&mut *stream).take(LONGEST).read_until(b'\n', &mut bytes).await.ok()?;
    if read == 0 {
        return None;
    }
    if bytes.last() != Some(&b'\n') && read as u64 >= LONGEST {
        skip_line(stream).await;
    }
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_end_matches(['\n', '\r']).to_owned())
}

async fn skip_line(stream: &mut (impl AsyncBufRead + Unpin)) {
    loop {
        let mut more = Vec::new();
        match (&mut *stream).take(LONGEST).read_until(b'\n', &mut more).await {
            Ok(read) if read > 0 && more.last() != Some(&b'\n') => {}
            _ => return,
        }
    }
}

/// Whether `wanted` names this container, its pod, its workload or its image.
pub(crate) fn means(wanted: &str, pod: &Pod, container: &str, image: &str) -> bool {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let wanted = wanted.rsplit_once('/').map_or(wanted, |(_, name)| name);
    let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    let of_workload = owner.is_some_and(|owner| {
        // A Deployment's pods belong to a ReplicaSet that is called after it and the template's hash.
        let hash = pod.metadata.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
        owner.name == wanted || hash.is_some_and(|hash| owner.name == format!("{wanted}-{hash}"))
    });
    let (repository, _, _) = crate::configs::rewrite::split_image(image);
    wanted == container || wanted == pod_name || of_workload || repository.rsplit('/').next() == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn endless_lines_are_cut_and_the_next_one_is_whole() {
        let mut text = vec![b'x'; 200_000];
        text.extend_from_slice(b"\nnext\r\n\xff\n");
        let mut stream = futures::io::Cursor::new(text);
        assert_eq!(next_line(&mut stream).await.map(|l| l.len() as u64), Some(LONGEST));
        assert_eq!(next_line(&mut stream).await.as_deref(), Some("next"));
        assert_eq!(next_line(&mut stream).await.as_deref(), Some("\u{fffd}"));
        assert_eq!(next_line(&mut stream).await, None);
    }

    #[test]
    fn a_component_is_known_by_any_of_its_names() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "web-5f6-x2", "labels": {"pod-template-hash": "5f6"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5f6", "uid": "u", "controller": true}]}}))
        .unwrap();
        for name in ["web", "deployment/web", "web-5f6-x2", "main", "lets-chat"] {
            assert!(means(name, &pod, "main", "h:5000/a/lets-chat@sha256:00"), "{name}");
        }
        assert!(!means("we", &pod, "main", "h:5000/a/lets-chat:1"));
    }
}
