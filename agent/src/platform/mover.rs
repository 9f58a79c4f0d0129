//! Mover pods: short-lived, beside a volume, for one task.
//!
//! Each is the pod of a Job that ends by itself when nobody has worked in it for a while, and is then removed by the
//! cluster: what a killed agent leaves behind is gone within a minute or two without anybody's doing.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{
    batch::v1::Job as KubernetesJob,
    core::v1::{Event, PersistentVolumeClaim, Pod},
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

use super::{
    MOVER, OPERATION, Platform,
    claim::{RunsAs, is_alive, may_write, runs_as},
    hold::Hold,
};
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
/// How long any mover stays, also one that never came to run: longer than the program itself would.
const LONGEST_S: u32 = 13 * 3600;
/// On the job and its pods: the claim.
const CLAIM: &str = "ocopea.dev/claim";
/// The failure of a claim that one pod may have, and another one has.
pub const ONE_POD: &str = "volume.one-pod";

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
    /// Which opening of the operation's snapshots, and which attempt at it.
    pub round: (u32, u32),
    /// Image of the mover.
    pub image: String,
    /// Where the volume's own users may run (`nodeSelector`, `affinity`, `tolerations`): a volume that is made for
    /// its first user must be made where the others can follow. And as whom they do (`runsAs`).
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
        Hold::new(&self.platform, &self.namespace, self.operation, &self.claim, self.round)
    }

    async fn users(&self) -> Result<Vec<Pod>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let all = pods.list(&ListParams::default().labels(&format!("!{MOVER}"))).await;
        let mut all = all.map_err(|error| kubernetes("can't list pods", &error))?.items;
        all.retain(|pod| is_alive(pod) && may_write(pod, &self.claim).is_some());
        Ok(all)
    }

    /// How a mover for `job` is made beside `users`: as far as possible as the namespace allows it.
    async fn shape(&self, job: Job, users: &[Pod]) -> Result<Shape, TaskFailure> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let claim = claims.get(&self.claim).await.map_err(|error| kubernetes(&self.what(), &error))?;
        let modes = claim.spec.and_then(|spec| spec.access_modes).unwrap_or_default();
        let only = |wanted: &str| !modes.is_empty() && modes.iter().all(|mode| mode == wanted);
        if let Some(user) = users.first().filter(|_| only("ReadWriteOncePod")) {
            let cause = format!(
                "one pod at a time may have it (ReadWriteOncePod), and pod {} has it",
                user.metadata.name.as_deref().unwrap_or_default()
            );
            return Err(TaskFailure::permanent(ONE_POD, self.what(), cause)
                .next("save with --freeze, which ends that pod for the copy"));
        }
        let whole = Shape {
            writable: job == Job::Write,
            claim_read_only: only("ReadOnlyMany"),
            node: users.iter().find_map(|pod| pod.spec.as_ref()?.node_name.clone()),
            user: None,
            resources: true,
        };
        // What is written has to be given to its owners, which only root can do.
        let user = if job == Job::Write { None } else { self.runs_as(users) };
        let mut shapes = Vec::new();
        for user in std::iter::once(None).chain(user.map(Some)) {
            shapes.push(Shape { user: user.clone(), ..whole.clone() });
            // Where a limit range says otherwise, its own figures are taken.
            shapes.push(Shape { user, resources: false, ..whole.clone() });
        }
        let mut refusal = None;
        for shape in shapes {
            match self.refused(&shape).await? {
                None => return Ok(shape),
                Some(why) => {
                    refusal.get_or_insert(why);
                }
            }
        }
        let why = refusal.unwrap_or_default();
        Err(TaskFailure::permanent("volume.mover", self.what(), why).next(format!(
            "let namespace {} take a pod that runs as root with the capabilities to read files of any owner, and 50m of \
             CPU and 64Mi of memory",
            self.namespace
        )))
    }

    /// As whom the volume's users run: the first of which that can be known, they share its files.
    fn runs_as(&self, users: &[Pod]) -> Option<RunsAs> {
        let found = users.iter().find_map(|pod| {
            let pod = serde_json::to_value(pod).ok()?;
            let volumes = pod["spec"]["volumes"].as_array()?.iter();
            let volumes = volumes.filter(|volume| volume["persistentVolumeClaim"]["claimName"] == self.claim.as_str());
            let names: Vec<&str> = volumes.filter_map(|volume| volume["name"].as_str()).collect();
            runs_as(&pod["spec"], &pod["status"], &names)
        });
        found.or_else(|| serde_json::from_value(self.placement["runsAs"].clone()).ok())
    }

    /// Why the cluster would not take such a pod, if it says so. Nothing is made.
    async fn refused(&self, shape: &Shape) -> Result<Option<String>, TaskFailure> {
        let name = format!("ocopea-mover-{}", &self.platform.seams.uuid().simple().to_string()[..12]);
        let job = self.job(&name, shape);
        let template = &job["spec"]["template"];
        let mut metadata = template["metadata"].clone();
        metadata["name"] = Value::from(name);
        let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": template["spec"]}))
            .map_err(|error| TaskFailure::permanent("volume.mover", self.what(), error))?;
        let pods: Api<Pod> = Api::namespaced(self.platform.client.clone(), &self.namespace);
        let parameters = PostParams { dry_run: true, field_manager: None };
        match pods.create(&parameters, &pod).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                // Who may make jobs need not be one who may make pods; and not every webhook takes trials.
                let untold = ["cannot create resource", "does not support dry run"];
                let told = !untold.iter().any(|text| status.message.contains(text));
                Ok(told.then_some(status.message))
            }
            Err(error) => Err(kubernetes(&self.what(), &error)),
        }
    }

    /// The job as it is made.
    fn job(&self, name: &str, shape: &Shape) -> Value {
        let labels = json!({MOVER: "true", OPERATION: self.operation.to_string(), "sidecar.istio.io/inject": "false"});
        let annotations =
            json!({CLAIM: self.claim, "sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"});
        // Files of any owner are read, and given back to their owners: what root can within a container and nothing of
        // the node.
        let mut security = json!({"runAsUser": 0, "runAsGroup": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"]}});
        let mut pod_security = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        if let Some(user) = &shape.user {
            // Where that is forbidden: what the volume's own users may read, and nothing else.
            security = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
            pod_security = user.security();
            pod_security["seccompProfile"] = json!({"type": "RuntimeDefault"});
        }
        let mut pod = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": pod_security,
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": self.claim, "readOnly": shape.claim_read_only}}],
            "containers": [{
                "name": "mover",
                "image": self.image,
                "args": ["hold", "--idle", IDLE_S.to_string()],
                "volumeMounts": [{"name": "volume", "mountPath": ROOT, "readOnly": !shape.writable}],
                "securityContext": security
            }]
        });
        if shape.resources {
            pod["containers"][0]["resources"] =
                json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "2", "memory": "512Mi"}});
        }
        for field in ["nodeSelector", "affinity", "tolerations"] {
            if !self.placement[field].is_null() {
                pod[field] = self.placement[field].clone();
            }
        }
        if let Some(node) = &shape.node {
            // A volume that is attached can be reached there and, mostly, nowhere else.
            pod["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}});
            pod["nodeSelector"] = json!({});
            pod["tolerations"] = json!([{"operator": "Exists"}]);
        }
        if pod["nodeSelector"].is_null() {
            pod["nodeSelector"] = json!({});
        }
        pod["nodeSelector"]["kubernetes.io/os"] = json!("linux");
        json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "labels": labels, "annotations": {CLAIM: self.claim}},
            "spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 0, "activeDeadlineSeconds": LONGEST_S,
                "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}}
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
                let mut why = trouble.unwrap_or_default();
                if !final_ {
                    // What the cluster says of its volume, mostly.
                    let said = self.events(name).await;
                    why = [why, said].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
                }
                if why.is_empty() {
                    why = format!("its pod doesn't run after {} s", waited.as_secs());
                }
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
        let warnings = ListParams::default().fields("type=Warning").limit(500);
        let Ok(all) = events.list(&warnings).await else { return String::new() };
        let about = |event: &Event| event.involved_object.name.as_deref().is_some_and(|of| of.starts_with(name));
        let mut found: Vec<Event> = all.items.into_iter().filter(about).collect();
        found.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        found.pop().and_then(|event| event.message).unwrap_or_default()
    }
}

/// How a mover's pod is made.
#[derive(Clone, Debug)]
struct Shape {
    writable: bool,
    /// The claim can't be had otherwise.
    claim_read_only: bool,
    node: Option<String>,
    /// Not root but this user.
    user: Option<RunsAs>,
    /// With figures of its own.
    resources: bool,
}

/// What keeps a pod from running, and whether waiting longer would be of no use.
fn trouble(pod: Option<&Pod>) -> (Option<String>, bool) {
    let Some(status) = pod.and_then(|pod| pod.status.as_ref()) else { return (None, false) };
    let ended = status.container_statuses.iter().flatten().find_map(|one| one.state.as_ref()?.terminated.clone());
    if status.phase.as_deref() == Some("Failed") {
        let words = [
            status.reason.clone(),
            status.message.clone(),
            ended.as_ref().and_then(|ended| ended.reason.clone()),
            ended.as_ref().and_then(|ended| ended.message.clone()),
        ];
        let words: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
        return ((!words.is_empty()).then(|| words.join(": ")), true);
    }
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
        let said = waiting.message.filter(|message| !message.is_empty());
        return (Some(said.map_or(reason.clone(), |said| format!("{reason}: {said}"))), hopeless);
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
        let users = self.users().await?.into_iter().filter(|pod| may_write(pod, &self.claim) == Some(true));
        Ok(users.filter_map(|pod| pod.metadata.name).map(|name| format!("pod {name}")).collect())
    }

    async fn hold_writers(&self) -> Result<Option<String>, TaskFailure> {
        let pods: Vec<Pod> =
            self.users().await?.into_iter().filter(|pod| may_write(pod, &self.claim) == Some(true)).collect();
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
        self.hold().hold(&pods, &self.stop, || self.writers()).await
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
        let shape = self.shape(job, &self.users().await?).await?;
        let name = format!("ocopea-mover-{}", &self.platform.seams.uuid().simple().to_string()[..12]);
        let made: KubernetesJob = serde_json::from_value(self.job(&name, &shape))
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
            claim.is_none_or(|claim| annotations.and_then(|a| a.get(CLAIM)).is_some_and(|of| of == claim))
        };
        for job in jobs.list(&ours).await.map_err(|error| kubernetes(&what, &error))?.items {
            if of_claim(job.metadata.annotations.as_ref()) {
                delete(self, namespace, &job.metadata.name.unwrap_or_default()).await;
            }
        }
        // Those of jobs that are gone already, too: a pod may outlive its job by some moments.
        for _ in 0..300 {
            let left = pods.list(&ours).await.map_err(|error| kubernetes(&what, &error))?.items;
            if !left.iter().any(|pod| of_claim(pod.metadata.annotations.as_ref())) {
                return Ok(());
            }
            self.seams.clock.sleep(Duration::from_millis(200)).await;
        }
        Err(TaskFailure::retryable("volume.mover", what, "their pods are still there after a minute"))
    }
}
