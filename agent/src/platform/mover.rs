//! Mover pods: short-lived, beside a volume, for one task.
//!
//! Each is the pod of a Job that ends by itself when nobody has worked in it for a while, and is then removed by the
//! cluster: what a killed agent leaves behind is gone within a minute or two without anybody's doing.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{
    batch::v1::Job as KubernetesJob,
    core::v1::{Event, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams, PropagationPolicy},
};
use ocopea_mover::wire::Job;
use ocopea_protocol::{failure::TaskFailure, ids::OperationId};
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use super::{MOVER, OPERATION, Platform, hold::Hold};
use crate::{
    configs::workload::{self, Sources},
    data::{self, RunningTool, VolumeReach},
    failures::kubernetes,
};

/// Where a mover finds its volume.
const ROOT: &str = "/volume";
/// How long a mover may take to start: a node may have to be found and a volume attached.
const START: Duration = Duration::from_secs(180);
/// How long an image that can't be had, or a pod that isn't allowed, is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a mover that nobody uses stays.
const IDLE_S: u32 = 60;

/// A volume behind a claim.
pub struct PodVolume {
    /// The cluster.
    pub platform: Platform,
    /// The claim's namespace.
    pub namespace: String,
    /// The claim.
    pub claim: String,
    /// Whose work it is, for removing what it left.
    pub operation: OperationId,
    /// Image of the mover.
    pub image: String,
    /// Where the volume's own users may run (`nodeSelector`, `affinity`, `tolerations`): a volume that is made for
    /// its first user must be made where the others can follow.
    pub placement: Value,
    /// Ends the work.
    pub stop: CancellationToken,
}

impl PodVolume {
    fn what(&self) -> String {
        format!("can't start a mover for volume {}", self.claim)
    }

    fn what_of_hold(&self) -> String {
        format!("can't hold the writers of volume {}", self.claim)
    }

    fn hold(&self) -> Hold {
        Hold::new(&self.platform, &self.namespace, self.operation, &self.claim)
    }

    async fn users(&self) -> Result<Vec<Pod>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let all = pods.list(&ListParams::default().labels(&format!("!{MOVER}"))).await;
        let mut all = all.map_err(|error| kubernetes("can't list pods", &error))?.items;
        all.retain(|pod| {
            let alive = pod.status.as_ref().and_then(|s| s.phase.as_deref()).is_some_and(|phase| phase == "Running");
            alive && volume_of(pod, &self.claim).is_some()
        });
        Ok(all)
    }

    /// The job as it is made.
    fn job(&self, name: &str, writable: bool, node: Option<&str>) -> Value {
        let labels = json!({MOVER: "true", OPERATION: self.operation.to_string()});
        let mut pod = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": self.claim, "readOnly": false}}],
            "containers": [{
                "name": "mover",
                "image": self.image,
                "args": ["hold", "--idle", IDLE_S.to_string()],
                "volumeMounts": [{"name": "volume", "mountPath": ROOT, "readOnly": !writable}],
                "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}},
                // Files of any owner are read, and given back to their owners: what root can within a container and
                // nothing of the node.
                "securityContext": {"runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"]}}
            }]
        });
        for field in ["nodeSelector", "affinity", "tolerations"] {
            if !self.placement[field].is_null() {
                pod[field] = self.placement[field].clone();
            }
        }
        if let Some(node) = node {
            // A volume that is attached can be reached there and, mostly, nowhere else.
            pod["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}});
            pod["nodeSelector"] = Value::Null;
            pod["tolerations"] = json!([{"operator": "Exists"}]);
        }
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "labels": labels, "annotations": {"ocopea.dev/claim": self.claim}},
            "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 0,
                "template": {"metadata": {"labels": labels, "annotations": {"sidecar.istio.io/inject": "false"}}, "spec": pod}}
        })
    }

    /// Waits until the job's pod runs; its name.
    async fn started(&self, name: &str) -> Result<String, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={name}"));
        let clock = &self.platform.seams.clock;
        let start = clock.monotonic();
        loop {
            let found = pods.list(&selector).await.map_err(|error| kubernetes(&self.what(), &error))?.items;
            let pod = found.into_iter().next();
            let phase = pod.as_ref().and_then(|p| p.status.as_ref()).and_then(|s| s.phase.clone()).unwrap_or_default();
            let ready = pod.as_ref().and_then(|p| p.status.as_ref()).and_then(|s| s.container_statuses.as_ref());
            let ready = ready.is_some_and(|all| all.iter().all(|one| one.ready));
            if let Some(pod) = &pod
                && phase == "Running"
                && ready
            {
                return Ok(pod.metadata.name.clone().unwrap_or_default());
            }
            let waited = clock.monotonic().saturating_sub(start);
            let (trouble, final_) = trouble(pod.as_ref());
            if waited > START || (final_ && waited > PATIENCE) || matches!(phase.as_str(), "Failed" | "Succeeded") {
                let why = match trouble {
                    Some(trouble) => trouble,
                    None => self.events(name).await,
                };
                return Err(TaskFailure::permanent("volume.mover", self.what(), why).next(format!(
                    "see that nodes can pull {} and that namespace {} allows pods that run as root",
                    self.image, self.namespace
                )));
            }
            if pod.is_none() && waited > PATIENCE {
                let why = self.events(name).await;
                if !why.is_empty() {
                    return Err(TaskFailure::permanent("volume.mover", self.what(), why)
                        .next(format!("see what namespace {} allows", self.namespace)));
                }
            }
            if !self.platform.seams.sleep_unless(&self.stop, Duration::from_millis(200)).await {
                return Err(TaskFailure::cancelled(self.what()));
            }
        }
    }

    /// What the cluster says about the job and its pods.
    async fn events(&self, name: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let Ok(all) = events.list(&ListParams::default().limit(500)).await else { return String::new() };
        let about = |event: &Event| event.involved_object.name.as_deref().is_some_and(|of| of.starts_with(name));
        let warnings = all.items.iter().filter(|event| event.type_.as_deref() == Some("Warning") && about(event));
        let texts: Vec<&str> = warnings.filter_map(|event| event.message.as_deref()).collect();
        texts.last().map_or_else(String::new, |text| (*text).to_owned())
    }
}

/// The volume of a pod that is this claim, if it may write to it.
fn volume_of(pod: &Pod, claim: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let volume = spec
        .volumes
        .as_ref()?
        .iter()
        .find(|volume| volume.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim))?;
    let read_only = volume.persistent_volume_claim.as_ref().and_then(|source| source.read_only).unwrap_or(false);
    let mounts = spec.containers.iter().flat_map(|c| c.volume_mounts.iter().flatten());
    Some(!read_only && mounts.filter(|m| m.name == volume.name).any(|m| !m.read_only.unwrap_or(false)))
}

/// What keeps a pod from running, and whether waiting longer would be of no use.
fn trouble(pod: Option<&Pod>) -> (Option<String>, bool) {
    let Some(status) = pod.and_then(|pod| pod.status.as_ref()) else { return (None, false) };
    let waiting = status.container_statuses.iter().flatten().find_map(|one| one.state.as_ref()?.waiting.clone());
    if let Some(waiting) = waiting {
        let reason = waiting.reason.unwrap_or_default();
        let hopeless = matches!(
            reason.as_str(),
            "ErrImagePull"
                | "ImagePullBackOff"
                | "InvalidImageName"
                | "CreateContainerConfigError"
                | "CreateContainerError"
        );
        return (Some(format!("{reason}: {}", waiting.message.unwrap_or_default())), hopeless);
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    (unscheduled.and_then(|condition| condition.message.clone()), false)
}

#[async_trait]
impl VolumeReach for PodVolume {
    fn claim(&self) -> String {
        self.claim.clone()
    }

    async fn writers(&self) -> Result<Vec<String>, TaskFailure> {
        let users = self.users().await?.into_iter().filter(|pod| volume_of(pod, &self.claim) == Some(true));
        Ok(users.filter_map(|pod| pod.metadata.name).map(|name| format!("pod {name}")).collect())
    }

    async fn hold_writers(&self) -> Result<Option<String>, TaskFailure> {
        let pods: Vec<Pod> =
            self.users().await?.into_iter().filter(|pod| volume_of(pod, &self.claim) == Some(true)).collect();
        for pod in &pods {
            // Who holds a data service's writers must not end the data service.
            let object = serde_json::to_value(pod).unwrap_or_default();
            let views = workload::containers(&object, &Sources::default());
            if views
                .iter()
                .any(|container| data::all().iter().any(|driver| driver.recognise(&container.view).is_some()))
            {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let cause = format!("pod {name} writes to it and is a data service itself");
                return Err(TaskFailure::permanent("save.freeze", self.what_of_hold(), cause)
                    .next("end what writes to it by hand and save without --freeze"));
            }
        }
        self.hold().hold(&pods, || self.writers()).await
    }

    async fn let_go(&self, hold: Option<&str>) -> Result<(), TaskFailure> {
        self.hold().let_go(hold).await
    }

    async fn mover(
        &self,
        job: Job,
        input: Option<Box<dyn AsyncRead + Send + Unpin>>,
    ) -> Result<RunningTool, TaskFailure> {
        let what = self.what();
        // An attempt that was lost may still write: nothing begins before it is gone.
        self.platform.remove_movers(&self.namespace, self.operation, Some(&self.claim)).await?;
        let node = self.users().await?.into_iter().find_map(|pod| pod.spec.and_then(|spec| spec.node_name));
        let name = format!("ocopea-mover-{}", &self.platform.seams.uuid().simple().to_string()[..12]);
        let made: KubernetesJob = serde_json::from_value(self.job(&name, job == Job::Write, node.as_deref()))
            .map_err(|error| TaskFailure::permanent("volume.mover", what.clone(), error))?;
        let jobs: Api<KubernetesJob> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        jobs.create(&PostParams::default(), &made).await.map_err(|error| kubernetes(&what, &error))?;
        let remove = Remove { platform: self.platform.clone(), namespace: self.namespace.clone(), name: name.clone() };
        let verb = match job {
            Job::Read => "read",
            Job::Count => "count",
            Job::Scan => "scan",
            Job::Write => "write",
        };
        let command = ["/ocopea-mover", verb, "--root", ROOT].map(str::to_owned);
        let pod = self.started(&name).await?;
        let tool = self.platform.exec(&self.namespace, &pod, Some("mover"), &command, input).await?;
        let (mut sender, ended) = tokio::sync::oneshot::channel();
        self.platform.seams.spawner.spawn(
            "mover.wait",
            Box::pin(async move {
                let outcome = tokio::select! {
                    // Nobody waits any more: dropping the inner end stops the program.
                    () = sender.closed() => None,
                    ended = tool.ended => ended.ok(),
                };
                remove.now().await;
                if let Some(outcome) = outcome {
                    let _ = sender.send(outcome);
                }
            }),
        );
        Ok(RunningTool { output: tool.output, ended })
    }
}

/// Removes a mover's job when dropped, or at once.
struct Remove {
    platform: Platform,
    namespace: String,
    name: String,
}

impl Remove {
    async fn now(mut self) {
        let name = std::mem::take(&mut self.name);
        delete(&self.platform, &self.namespace, &name).await;
    }
}

impl Drop for Remove {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        let (platform, namespace) = (self.platform.clone(), std::mem::take(&mut self.namespace));
        let name = std::mem::take(&mut self.name);
        let spawner = self.platform.seams.spawner.clone();
        spawner.spawn("mover.remove", Box::pin(async move { delete(&platform, &namespace, &name).await }));
    }
}

async fn delete(platform: &Platform, namespace: &str, name: &str) {
    let jobs: Api<KubernetesJob> = Api::namespaced(platform.client.clone(), namespace);
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    if let Err(error) = jobs.delete(name, &parameters).await
        && !matches!(&error, kube::Error::Api(status) if status.code == 404)
    {
        // It ends by itself, only later.
        tracing::warn!(namespace, name, %error, "a mover could not be removed at once");
    }
}

impl Platform {
    /// Removes the movers of an operation (of one claim, if given) and waits until their pods are gone.
    pub async fn remove_movers(
        &self,
        namespace: &str,
        operation: OperationId,
        claim: Option<&str>,
    ) -> Result<(), TaskFailure> {
        let what = format!("can't remove the movers of namespace {namespace}");
        let jobs: Api<KubernetesJob> = Api::namespaced(self.client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let ours = ListParams::default().labels(&format!("{MOVER}=true,{OPERATION}={operation}"));
        let of_claim = |annotations: Option<&BTreeMap<String, String>>| {
            claim.is_none_or(|claim| annotations.and_then(|a| a.get("ocopea.dev/claim")).is_some_and(|of| of == claim))
        };
        let mut names = Vec::new();
        for job in jobs.list(&ours).await.map_err(|error| kubernetes(&what, &error))?.items {
            if of_claim(job.metadata.annotations.as_ref()) {
                let name = job.metadata.name.unwrap_or_default();
                delete(self, namespace, &name).await;
                names.push(name);
            }
        }
        for _ in 0..300 {
            if names.is_empty() {
                return Ok(());
            }
            let left = pods.list(&ours).await.map_err(|error| kubernetes(&what, &error))?.items;
            let left = left.iter().any(|pod| {
                let of = pod.metadata.labels.as_ref().and_then(|l| l.get("batch.kubernetes.io/job-name"));
                of.is_some_and(|of| names.contains(of))
            });
            if !left {
                return Ok(());
            }
            self.seams.clock.sleep(Duration::from_millis(200)).await;
        }
        Err(TaskFailure::retryable("volume.mover", what, "their pods are still there after a minute"))
    }
}
