//! Writers of a volume, held: the workloads of their pods are scaled to zero, and later to what they were.
//!
//! What they were stands in a config map of the same namespace, written before anything is scaled: whoever comes next,
//! after a kill too, can let go. As long as it stands there, an application counts as running as before
//! ([`Platform::held`]).
//!
//! An attempt that lost its task may still be at work beside the one that took its place. Each record carries its round:
//! who holds in a later one takes over what is there, who comes late finds that out and leaves, and whoever lets go
//! looks whether somebody else holds the same.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use ocopea_protocol::{failure::TaskFailure, ids::OperationId, inventory::ObjectRef};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{HELD, OPERATION, Platform};
use crate::failures::kubernetes;

/// Kinds that can be scaled, with their plurals.
const SCALABLE: [(&str, &str, &str); 4] = [
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("v1", "ReplicationController", "replicationcontrollers"),
];
/// The record's key within its config map.
const KEY: &str = "held.json";
/// How long pods may take to end.
const ENDING: Duration = Duration::from_secs(90);

/// One workload that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldWorkload {
    /// It.
    pub workload: ObjectRef,
    /// What it is scaled to when it is let go.
    pub replicas: u64,
    /// Digests of the images that ran in its pods, by image as the workload names it.
    pub digests: BTreeMap<String, String>,
}

/// What one holder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HeldRecord {
    /// For which volume.
    claim: String,
    workloads: Vec<HeldWorkload>,
    /// It is being let go: who else holds the same decides without it.
    leaving: bool,
    /// Which opening of the save's snapshots, and which attempt at it.
    #[serde(default)]
    round: (u32, u32),
}

/// Its place in the cluster.
#[derive(Clone)]
pub struct Hold {
    platform: Platform,
    namespace: String,
    operation: OperationId,
    claim: String,
    round: (u32, u32),
}

impl Platform {
    /// Workloads of a namespace that are held now, whoever holds them.
    pub async fn held(&self, namespace: &str) -> Result<Vec<HeldWorkload>, TaskFailure> {
        let records = self.records(namespace, HELD).await?;
        Ok(records.into_iter().flat_map(|(_, record)| record.workloads).collect())
    }

    async fn records(&self, namespace: &str, selector: &str) -> Result<Vec<(String, HeldRecord)>, TaskFailure> {
        let what = format!("can't see what is held in namespace {namespace}");
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = maps.list(&ListParams::default().labels(selector)).await;
        let mut records = Vec::new();
        for map in found.map_err(|error| kubernetes(&what, &error))?.items {
            let name = map.metadata.name.unwrap_or_default();
            let text = map.data.as_ref().and_then(|data| data.get(KEY)).map(String::as_str).unwrap_or_default();
            match serde_json::from_str(text) {
                Ok(record) => records.push((name, record)),
                Err(error) => {
                    let cause = format!("config map {name} is not as it was written: {error}");
                    return Err(TaskFailure::permanent("save.freeze", what, cause)
                        .next("scale what it names to what it says, and delete it"));
                }
            }
        }
        Ok(records)
    }
}

impl Hold {
    /// For one volume, one operation, and one round of it.
    pub fn new(platform: &Platform, namespace: &str, operation: OperationId, claim: &str, round: (u32, u32)) -> Self {
        Self { platform: platform.clone(), namespace: namespace.to_owned(), operation, claim: claim.to_owned(), round }
    }

    fn what(&self) -> String {
        format!("can't hold the writers of volume {}", self.claim)
    }

    fn failure(&self, error: &kube::Error) -> TaskFailure {
        kubernetes(&self.what(), error)
    }

    fn refused(&self, cause: impl ToString) -> TaskFailure {
        TaskFailure::permanent("save.freeze", self.what(), cause)
            .next("end what writes to it by hand and save without --freeze")
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.platform.client.clone(), &self.namespace)
    }

    fn workload(&self, of: &ObjectRef) -> Option<Api<DynamicObject>> {
        let (version, kind, plural) =
            SCALABLE.into_iter().find(|(version, kind, _)| *version == of.api_version && *kind == of.kind)?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Some(Api::namespaced_with(self.platform.client.clone(), &self.namespace, &resource))
    }

    /// What controls an object, if anything does.
    fn controller(
        owners: Option<&Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference>>,
    ) -> Option<ObjectRef> {
        let owner = owners?.iter().find(|owner| owner.controller == Some(true))?;
        Some(ObjectRef { api_version: owner.api_version.clone(), kind: owner.kind.clone(), name: owner.name.clone() })
    }

    /// What has to be scaled to end a pod.
    async fn scalable(&self, pod: &Pod) -> Result<ObjectRef, TaskFailure> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(mut owner) = Self::controller(pod.metadata.owner_references.as_ref()) else {
            return Err(self.refused(format!("pod {name} belongs to nothing that could be scaled to zero")));
        };
        // A replica set is its deployment's; what an operator owns, it would scale back.
        loop {
            let Some(api) = self.workload(&owner) else {
                return Err(self.refused(format!("pod {name} belongs to {owner}, which can't be scaled to zero")));
            };
            let object = api.get_metadata(&owner.name).await.map_err(|error| self.failure(&error))?;
            match Self::controller(object.metadata.owner_references.as_ref()) {
                Some(above) => owner = above,
                None => return Ok(owner),
            }
        }
    }

    /// Scales to zero what `pods` belong to, and waits until `writers` says that none is left. Answers with what
    /// [`Self::let_go`] takes, if there was anything to end.
    pub async fn hold<W>(
        &self,
        pods: &[Pod],
        stop: &CancellationToken,
        writers: impl Fn() -> W,
    ) -> Result<Option<String>, TaskFailure>
    where
        W: Future<Output = Result<Vec<String>, TaskFailure>>,
    {
        let mut workloads = BTreeMap::<String, HeldWorkload>::new();
        for pod in pods {
            let workload = self.scalable(pod).await?;
            let held = workloads.entry(workload.to_string()).or_insert_with(|| HeldWorkload {
                workload,
                replicas: 0,
                digests: BTreeMap::new(),
            });
            let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            let digests = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|container| {
                let status = statuses.clone().find(|status| status.name == container.name)?;
                let (_, digest) = status.image_id.rsplit_once('@')?;
                Some((container.image.clone()?, digest.to_owned()))
            });
            held.digests.extend(digests);
        }
        for held in workloads.values_mut() {
            held.replicas = self.replicas(&held.workload).await?;
        }
        // Read after the scale: who scaled it before us wrote down what it had been before. What was ended for this very
        // volume, by another save or by an attempt that is lost, is held on.
        let records = self.platform.records(&self.namespace, HELD).await?;
        for (_, record) in &records {
            for other in &record.workloads {
                let name = other.workload.to_string();
                if let Some(held) = workloads.get_mut(&name) {
                    held.replicas = held.replicas.max(other.replicas);
                    held.digests.extend(other.digests.clone());
                } else if record.claim == self.claim && !record.leaving {
                    workloads.insert(name, other.clone());
                }
            }
        }
        let workloads: Vec<HeldWorkload> = workloads.into_values().collect();
        if workloads.is_empty() {
            return Ok(None);
        }
        let earlier = self.mine().await?;
        if earlier.iter().any(|(_, record)| record.round > self.round) {
            let cause = "a later attempt holds them";
            return Err(TaskFailure::retryable("save.freeze-late", self.what(), cause));
        }
        let name = self.write_down(&workloads).await?;
        for (earlier, _) in &earlier {
            self.forget(earlier).await?;
        }
        match self.end(&workloads, stop, writers).await {
            Ok(()) => Ok(Some(name)),
            Err(failure) => {
                self.let_go(Some(&name)).await?;
                Err(failure)
            }
        }
    }

    async fn end<W>(
        &self,
        workloads: &[HeldWorkload],
        stop: &CancellationToken,
        writers: impl Fn() -> W,
    ) -> Result<(), TaskFailure>
    where
        W: Future<Output = Result<Vec<String>, TaskFailure>>,
    {
        for held in workloads {
            self.scale(&held.workload, 0).await?;
        }
        let clock = &self.platform.seams.clock;
        let start = clock.monotonic();
        loop {
            let left = writers().await?;
            if left.is_empty() {
                return Ok(());
            }
            if clock.monotonic().saturating_sub(start) > ENDING {
                let cause = format!("{} still run {} s after they were told to end", left.join(", "), ENDING.as_secs());
                return Err(self.refused(cause));
            }
            if !self.platform.seams.sleep_unless(stop, Duration::from_millis(200)).await {
                return Err(TaskFailure::cancelled(self.what()));
            }
        }
    }

    async fn replicas(&self, of: &ObjectRef) -> Result<u64, TaskFailure> {
        let Some(api) = self.workload(of) else { return Err(self.refused(format!("{of} can't be scaled"))) };
        let object = api.get(&of.name).await.map_err(|error| self.failure(&error))?;
        let spec = &object.data["spec"];
        if spec["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete" {
            let cause =
                format!("{of} deletes its claims when it is scaled down (persistentVolumeClaimRetentionPolicy)");
            return Err(self.refused(cause).next(format!("set whenScaled of {of} to Retain")));
        }
        Ok(spec["replicas"].as_u64().unwrap_or(1))
    }

    async fn scale(&self, of: &ObjectRef, replicas: u64) -> Result<(), TaskFailure> {
        let Some(api) = self.workload(of) else { return Ok(()) };
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        match api.patch(&of.name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            // Somebody removed it: there is nothing to give back.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(self.failure(&error).next(format!(
                "the user of context {} needs \"get\" and \"patch\" on {of}, and \"create\", \"patch\" and \"delete\" on config maps",
                self.platform.context
            ))),
        }
    }

    async fn write_down(&self, workloads: &[HeldWorkload]) -> Result<String, TaskFailure> {
        let record =
            HeldRecord { claim: self.claim.clone(), workloads: workloads.to_vec(), leaving: false, round: self.round };
        let name = format!("ocopea-held-{}", &self.platform.seams.uuid().simple().to_string()[..12]);
        let map: Value = json!({
            "metadata": {"name": name, "labels": {HELD: "true", OPERATION: self.operation.to_string()}},
            "data": {KEY: serde_json::to_string(&record).unwrap_or_default()}
        });
        let map: ConfigMap = serde_json::from_value(map).map_err(|error| self.refused(error))?;
        self.maps().create(&PostParams::default(), &map).await.map_err(|error| self.failure(&error))?;
        Ok(name)
    }

    /// What this operation holds for this volume.
    async fn mine(&self) -> Result<Vec<(String, HeldRecord)>, TaskFailure> {
        let selector = format!("{HELD},{OPERATION}={}", self.operation);
        let mut records = self.platform.records(&self.namespace, &selector).await?;
        records.retain(|(_, record)| record.claim == self.claim);
        Ok(records)
    }

    async fn forget(&self, name: &str) -> Result<(), TaskFailure> {
        match self.maps().delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Lets go of one hold and of those of earlier rounds, or of all that this operation has on this volume. Harmless
    /// where there is none.
    pub async fn let_go(&self, hold: Option<&str>) -> Result<(), TaskFailure> {
        let ours = |(name, record): &(String, HeldRecord)| {
            hold.is_none_or(|hold| hold == name.as_str() || record.round < self.round)
        };
        for (name, mut record) in self.mine().await?.into_iter().filter(ours) {
            record.leaving = true;
            let patch = Patch::Merge(json!({"data": {KEY: serde_json::to_string(&record).unwrap_or_default()}}));
            match self.maps().patch(&name, &PatchParams::default(), &patch).await {
                Ok(_) => {}
                // Taken over meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(self.failure(&error)),
            }
            for held in &record.workloads {
                if self.stays_held(&name, &held.workload).await? {
                    continue;
                }
                self.scale(&held.workload, held.replicas).await?;
                // Somebody who began to hold it in this very moment must not find it running.
                if self.stays_held(&name, &held.workload).await? {
                    self.scale(&held.workload, 0).await?;
                }
            }
            self.forget(&name).await?;
        }
        Ok(())
    }

    /// Whether somebody else than the record `name` holds a workload.
    async fn stays_held(&self, name: &str, of: &ObjectRef) -> Result<bool, TaskFailure> {
        let records = self.platform.records(&self.namespace, HELD).await?;
        let mut others = records.iter().filter(|(other, record)| other != name && !record.leaving);
        Ok(others.any(|(_, record)| record.workloads.iter().any(|held| held.workload == *of)))
    }
}
