//! Who uses a claim, and as whom. Read from pods and their templates; nothing is asked.

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The user and groups that a container runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunsAs {
    uid: u64,
    gid: Option<u64>,
    groups: Vec<u64>,
}

impl RunsAs {
    /// As a pod's `securityContext` has it.
    pub(super) fn security(&self) -> Value {
        let mut context = serde_json::json!({"runAsNonRoot": true, "runAsUser": self.uid});
        if let Some(gid) = self.gid {
            context["runAsGroup"] = Value::from(gid);
        }
        if !self.groups.is_empty() {
            // Not `fsGroup`: that would give all files of the volume another group.
            context["supplementalGroups"] = Value::from(self.groups.clone());
        }
        context
    }
}

/// Whether a pod is on a node and has not ended: it may have the claim mounted.
pub(super) fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()));
    placed && !matches!(phase, "Succeeded" | "Failed")
}

/// Whether a pod may write to a claim; `None`: it doesn't have it.
pub(super) fn may_write(pod: &Pod, claim: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let mut volumes = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(source) = volume.persistent_volume_claim.as_ref().filter(|source| source.claim_name == claim) {
            volumes.push((volume.name.as_str(), source.read_only.unwrap_or(false)));
        }
    }
    if volumes.is_empty() {
        return None;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    // What only prepares the pod is over when the pod runs; what keeps running beside it isn't.
    let lasting = |restart: Option<&String>| phase != "Running" || restart.is_some_and(|policy| policy == "Always");
    let inits = spec.init_containers.iter().flatten().filter(|one| lasting(one.restart_policy.as_ref()));
    let debug = spec.ephemeral_containers.iter().flatten().filter_map(|one| one.volume_mounts.as_ref());
    let mut mounts =
        spec.containers.iter().chain(inits).filter_map(|one| one.volume_mounts.as_ref()).chain(debug).flatten();
    Some(mounts.any(|mount| {
        !mount.read_only.unwrap_or(false) && volumes.iter().any(|(name, read_only)| *name == mount.name && !read_only)
    }))
}

/// The user that the container which mounts one of `volumes` runs as, if it isn't root and can be known: from what runs
/// (`status`, may be null), else from what is asked for.
pub fn runs_as(spec: &Value, status: &Value, volumes: &[&str]) -> Option<RunsAs> {
    let mounts = |container: &&Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        mounts.filter_map(|mount| mount["name"].as_str()).any(|name| volumes.contains(&name))
    };
    let container = spec["containers"].as_array()?.iter().find(mounts)?;
    let mut statuses = status["containerStatuses"].as_array().into_iter().flatten();
    let running = statuses.find(|status| status["name"] == container["name"]);
    let running = running.map_or(&Value::Null, |status| &status["user"]["linux"]);
    let pod = &spec["securityContext"];
    let asked = |field: &str| container["securityContext"][field].as_u64().or_else(|| pod[field].as_u64());
    let uid = running["uid"].as_u64().or_else(|| asked("runAsUser")).filter(|uid| *uid != 0)?;
    let gid = running["gid"].as_u64().or_else(|| asked("runAsGroup"));
    let lists = [&running["supplementalGroups"], &pod["supplementalGroups"]];
    let mut groups: Vec<u64> =
        lists.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_u64).collect();
    groups.extend(pod["fsGroup"].as_u64());
    groups.sort_unstable();
    groups.dedup();
    Some(RunsAs { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str, spec: &Value) -> Pod {
        let mut spec = spec.clone();
        spec["nodeName"] = "n".into();
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": phase}})).unwrap()
    }

    fn spec(mount_read_only: bool, claim_read_only: bool) -> Value {
        json!({
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": claim_read_only}}],
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/d", "readOnly": mount_read_only}]}]})
    }

    #[test]
    fn who_may_write_is_seen_in_every_container_and_every_volume_of_the_claim() {
        let of = |spec: &Value| may_write(&pod("Running", spec), "data");
        assert_eq!(of(&spec(false, false)), Some(true));
        assert_eq!((of(&spec(true, false)), of(&spec(false, true))), (Some(false), Some(false)));
        assert_eq!(may_write(&pod("Running", &spec(false, false)), "other"), None);

        // The claim twice in one pod: the second one may be written to.
        let mut twice = spec(true, true);
        twice["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "w", "persistentVolumeClaim": {"claimName": "data"}}));
        twice["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "d", "volumeMounts": [{"name": "w", "mountPath": "/d", "subPath": "logs"}]}));
        assert_eq!(of(&twice), Some(true));

        // A container that prepares writes until the pod runs; one that runs beside it goes on.
        let mut prepared = spec(true, false);
        prepared["initContainers"] = json!([{"name": "i", "volumeMounts": [{"name": "v", "mountPath": "/d"}]}]);
        assert_eq!(of(&prepared), Some(false));
        assert_eq!(may_write(&pod("Pending", &prepared), "data"), Some(true));
        prepared["initContainers"][0]["restartPolicy"] = "Always".into();
        assert_eq!(of(&prepared), Some(true));
        let mut debugged = spec(true, false);
        debugged["ephemeralContainers"] = json!([{"name": "e", "volumeMounts": [{"name": "v", "mountPath": "/d"}]}]);
        assert_eq!(of(&debugged), Some(true));
    }

    #[test]
    fn a_pod_counts_from_the_node_it_is_put_on_to_its_end() {
        let alive = |phase: &str| is_alive(&pod(phase, &spec(false, false)));
        assert!(alive("Running") && alive("Pending") && alive("Unknown"));
        assert!(!alive("Succeeded") && !alive("Failed"));
        let mut waiting = pod("Pending", &spec(false, false));
        waiting.spec.as_mut().unwrap().node_name = None;
        assert!(!is_alive(&waiting));
    }

    #[test]
    fn the_user_is_the_one_that_runs_or_else_the_one_that_is_asked_for() {
        let mut asked = spec(false, false);
        assert_eq!(runs_as(&asked, &Value::Null, &["v"]), None);
        asked["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [7]});
        let found = runs_as(&asked, &Value::Null, &["v"]).unwrap();
        assert_eq!(found, RunsAs { uid: 1000, gid: None, groups: vec![7, 2000] });
        assert!(found.security()["fsGroup"].is_null());
        let status = json!({"containerStatuses": [{"name": "c", "user": {"linux": {"uid": 5, "gid": 6, "supplementalGroups": [6]}}}]});
        assert_eq!(
            runs_as(&asked, &status, &["v"]).unwrap(),
            RunsAs { uid: 5, gid: Some(6), groups: vec![6, 7, 2000] }
        );
        asked["containers"][0]["securityContext"] = json!({"runAsUser": 0});
        assert_eq!(runs_as(&asked, &Value::Null, &["v"]), None, "root is no other user than the mover's own");
        assert_eq!(runs_as(&asked, &Value::Null, &["w"]), None);
    }
}
