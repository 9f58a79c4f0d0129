//! Waiting until workloads are really ready, and saying early what keeps them.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api,
    api::{DynamicObject, ListParams},
    core::ApiResource,
};
use ocopea_protocol::failure::TaskFailure;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Platform;
use crate::failures::kubernetes;

/// How long a pod may fail to start before that is called a failure: databases need a moment, their users too.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long an image may not be had: registries stumble, but what isn't there doesn't come.
const PULL_PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks: often while most things become ready, and less so when it takes long.
const LOOK: Duration = Duration::from_millis(200);
const LATER_LOOK: Duration = Duration::from_millis(700);
const SOON: Duration = Duration::from_secs(20);
/// Warnings of the cluster that are quoted.
const WARNINGS: usize = 5;

/// Something that keeps a pod from running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What it is, naming the pod.
    pub what: String,
    /// The pod or workload.
    pub of: String,
    /// For how long it may be waited out.
    pub patience: Duration,
}

impl Platform {
    /// Waits until every one of `workloads` (resource and name) is ready.
    pub async fn await_ready(
        &self,
        namespace: &str,
        workloads: &[(ApiResource, String)],
        deadline: Duration,
        stop: &CancellationToken,
    ) -> Result<(), TaskFailure> {
        let start = self.seams.clock.monotonic();
        // When each trouble was seen first: a pod that crashes now and then counts from the first time.
        let mut since: BTreeMap<(String, Duration), Duration> = BTreeMap::new();
        loop {
            let (mut waiting, mut troubles) = (Vec::new(), Vec::new());
            for (resource, name) in workloads {
                let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, resource);
                let what = format!("can't look after {}/{name}", resource.kind.to_lowercase());
                let object = api.get(name).await.map_err(|error| kubernetes(&what, &error))?;
                let object =
                    serde_json::to_value(object).map_err(|e| TaskFailure::permanent("site.answer", what, e))?;
                if let Some(why) = not_ready(&resource.kind, &object) {
                    waiting.push(format!("{}/{name} {why}", resource.kind.to_lowercase()));
                    troubles.extend(workload_trouble(&resource.kind, name, &object));
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let waited = self.seams.clock.monotonic().saturating_sub(start);
            troubles.extend(self.troubles(namespace).await?);
            let mut lasting = false;
            for trouble in &troubles {
                let first = *since.entry((trouble.of.clone(), trouble.patience)).or_insert(waited);
                lasting |= waited.saturating_sub(first) >= trouble.patience;
            }
            if waited > deadline || lasting {
                let mut causes = waiting;
                causes.extend(troubles.into_iter().map(|trouble| trouble.what));
                causes.extend(self.warnings(namespace).await);
                let cause = causes.join("; ");
                return Err(TaskFailure::permanent(
                    "environment.not-ready",
                    format!("the workloads of {namespace} did not become ready within {} s", waited.as_secs()),
                    cause,
                )
                .next(format!("see what they say: {} -n {namespace} get events", self.kubectl())));
            }
            let pause = if waited < SOON { LOOK } else { LATER_LOOK };
            if !self.seams.sleep_unless(stop, pause).await {
                return Err(TaskFailure::cancelled(format!("stopped waiting for {namespace}")));
            }
        }
    }

    /// What keeps pods from running.
    pub async fn troubles(&self, namespace: &str) -> Result<Vec<Trouble>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let list = pods
            .list(&ListParams::default().limit(500))
            .await
            .map_err(|error| kubernetes(&format!("can't list the pods of {namespace}"), &error))?;
        Ok(list.into_iter().flat_map(|pod| pod_troubles(&pod)).collect())
    }

    /// The latest warnings of the cluster about a namespace: why a claim isn't bound, why pods aren't made.
    async fn warnings(&self, namespace: &str) -> Vec<String> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        // They are there to explain a failure; that they can't be had mustn't hide it.
        let Ok(list) = events.list(&ListParams::default().fields("type=Warning").limit(500)).await else {
            return Vec::new();
        };
        let mut found = list.items;
        found.sort_by_key(|event| event.last_timestamp.as_ref().map(|t| t.0));
        let mut warnings: Vec<String> = Vec::new();
        for event in found.into_iter().rev() {
            let object = event.involved_object;
            let kind = object.kind.unwrap_or_default().to_lowercase();
            let warning = format!(
                "{kind}/{}: {} {:.300}",
                object.name.unwrap_or_default(),
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            );
            if warnings.len() < WARNINGS && !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        warnings
    }

    /// A ready pod that `labels` select, waited for at most `deadline`.
    pub async fn ready_pod(&self, namespace: &str, labels: &str) -> Result<Option<String>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let list = pods
            .list(&ListParams::default().labels(labels).limit(500))
            .await
            .map_err(|error| kubernetes(&format!("can't list the pods of {namespace}"), &error))?;
        let mut names: Vec<String> =
            list.into_iter()
                .filter(|pod| {
                    pod.metadata.deletion_timestamp.is_none()
                        && pod.status.as_ref().and_then(|s| s.conditions.as_ref()).is_some_and(|conditions| {
                            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
                        })
                })
                .filter_map(|pod| pod.metadata.name)
                .collect();
        names.sort();
        Ok(names.into_iter().next())
    }
}

fn pod_troubles(pod: &Pod) -> Vec<Trouble> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(status) = &pod.status else { return Vec::new() };
    let mut troubles = Vec::new();
    let containers = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    for waiting in containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let patience = match reason {
            "InvalidImageName" => Duration::ZERO,
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => PULL_PATIENCE,
            "CrashLoopBackOff" | "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                PATIENCE
            }
            _ => continue,
        };
        let message = waiting.message.as_deref().unwrap_or_default();
        let what = format!("pod {name}: {reason} {message:.300}");
        troubles.push(Trouble { what, of: name.to_owned(), patience });
    }
    let unplaced = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unplaced {
        let message = condition.message.as_deref().unwrap_or_default();
        let what = format!("pod {name} can't be scheduled: {message:.300}");
        troubles.push(Trouble { what, of: name.to_owned(), patience: PATIENCE });
    }
    troubles
}

/// What keeps a workload from making its pods: a quota, an admission.
fn workload_trouble(kind: &str, name: &str, object: &Value) -> Option<Trouble> {
    let kind = kind.to_lowercase();
    let of = format!("{kind}/{name}");
    let status = &object["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let failed = conditions.into_iter().find(|c| c["type"] == "ReplicaFailure" && c["status"] == "True");
    if let Some(condition) = failed {
        let message = condition["message"].as_str().unwrap_or_default();
        return Some(Trouble { what: format!("{of} can't make its pods: {message:.300}"), of, patience: PATIENCE });
    }
    // Stateful sets say it in events only, which are quoted when the waiting ends.
    let none = match kind.as_str() {
        "statefulset" => status["replicas"].as_i64().unwrap_or(0) == 0,
        "daemonset" => status["currentNumberScheduled"].as_i64().unwrap_or(0) == 0,
        _ => false,
    };
    none.then(|| Trouble { what: format!("{of} has no pods"), of, patience: PATIENCE })
}

/// Why a workload isn't ready, if it isn't.
fn not_ready(kind: &str, object: &Value) -> Option<String> {
    let status = &object["status"];
    let count = |field: &str| status[field].as_i64().unwrap_or(0);
    let seen = status["observedGeneration"].as_i64().unwrap_or(0);
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    match kind {
        "Deployment" | "StatefulSet" | "ReplicaSet" | "ReplicationController" => {
            let wanted = object["spec"]["replicas"].as_i64().unwrap_or(1);
            let fresh = seen >= generation;
            let updated = kind.starts_with("Replica") || count("updatedReplicas") >= wanted || wanted == 0;
            let ready = count("readyReplicas").max(count("availableReplicas"));
            (!fresh || !updated || ready < wanted).then(|| format!("has {ready} of {wanted} ready"))
        }
        "DaemonSet" => {
            let (ready, wanted) = (count("numberReady"), count("desiredNumberScheduled"));
            (seen < generation || ready < wanted).then(|| format!("has {ready} of {wanted} ready"))
        }
        "Pod" => {
            let ready = status["conditions"]
                .as_array()
                .is_some_and(|conditions| conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"));
            let done = status["phase"] == "Succeeded";
            (!ready && !done).then(|| format!("is {}", status["phase"].as_str().unwrap_or("pending").to_lowercase()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_get_better_is_called_a_failure_sooner() {
        let pod = |state: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [
                {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]}}))
            .unwrap()
        };
        let waiting = |reason: &str| pod(json!({"waiting": {"reason": reason, "message": "because"}}));
        assert_eq!(pod_troubles(&waiting("InvalidImageName"))[0].patience, Duration::ZERO);
        assert!(
            pod_troubles(&waiting("ImagePullBackOff"))[0].patience
                < pod_troubles(&waiting("CrashLoopBackOff"))[0].patience
        );
        assert_eq!(pod_troubles(&waiting("ContainerCreating")), []);
        assert!(pod_troubles(&waiting("ErrImagePull"))[0].what.contains("pod p: ErrImagePull because"));
    }

    #[test]
    fn a_workload_that_may_not_make_pods_says_why() {
        let refused = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]}});
        assert!(workload_trouble("Deployment", "web", &refused).unwrap().what.contains("exceeded quota"));
        assert_eq!(workload_trouble("Deployment", "web", &json!({"status": {}})), None);
        assert!(workload_trouble("StatefulSet", "db", &json!({"status": {"replicas": 0}})).is_some());
        assert_eq!(workload_trouble("StatefulSet", "db", &json!({"status": {"replicas": 1}})), None);
    }

    #[test]
    fn a_rollout_counts_only_when_the_controller_has_seen_it() {
        let stale = json!({"metadata": {"generation": 2}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 1, "updatedReplicas": 1, "readyReplicas": 1}});
        assert!(not_ready("Deployment", &stale).is_some());
        let fresh = json!({"metadata": {"generation": 2}, "spec": {"replicas": 1},
            "status": {"observedGeneration": 2, "updatedReplicas": 1, "readyReplicas": 1}});
        assert_eq!(not_ready("Deployment", &fresh), None);
        let none = json!({"metadata": {"generation": 1}, "spec": {"replicas": 0}, "status": {"observedGeneration": 1}});
        assert_eq!(not_ready("StatefulSet", &none), None);
        assert_eq!(
            not_ready("DaemonSet", &json!({"status": {"numberReady": 1, "desiredNumberScheduled": 2}})),
            Some("has 1 of 2 ready".into())
        );
    }
}
