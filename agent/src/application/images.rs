//! Which container images run, by digest: what the pods' own status says.

use std::collections::BTreeMap;

use ocopea_protocol::{
    inventory::{ContainerFound, Gap, ObjectRef},
    names::{ComponentName, Digest},
};
use serde_json::Value;

use super::{Gathering, Unresolved};
use crate::{
    configs::{object_ref, rewrite::split_image, workload},
    platform::discover::Contents,
};

/// Images by repository, tag and digest: the same digest under two tags is two components, so that each workload's
/// reference always means one of them.
#[derive(Default)]
struct Known {
    /// The first that was seen first: of the youngest pod.
    found: Vec<ContainerFound>,
    unknown: BTreeMap<String, Unresolved>,
    /// What each workload's references mean.
    seen: BTreeMap<(ObjectRef, String), Digest>,
}

impl Gathering<'_> {
    /// Container images by the digest that runs, from the pods' own status.
    pub(super) fn running(&mut self, contents: &Contents) -> Vec<ContainerFound> {
        let mut known = Known::default();
        for pod in youngest_first(&contents.pods) {
            let Some(owner) = owner_of(pod, contents) else { continue };
            if self.selects(pod, &owner, contents) {
                self.of_pod(pod, &owner, &mut known);
            }
        }
        // What is held at zero for a save runs what it ran.
        for held in &contents.held {
            let pull_secrets = self.pull_secrets(&held.workload);
            for (image, digest) in &held.digests {
                let Ok(digest) = digest.parse::<Digest>() else { continue };
                known.note(image, digest, &held.workload, &pull_secrets);
            }
        }
        self.without_pods(&mut known);
        let Known { mut found, unknown, seen } = known;
        found.sort_by(|a, b| (&a.repository, a.digest, &a.tag).cmp(&(&b.repository, b.digest, &b.tag)));
        for container in &mut found {
            container.used_by.sort();
            container.name = self.unique(container.name.as_str());
        }
        for (reference, mut image) in unknown {
            // Another pod of the same workload showed it.
            image.used_by.retain(|user| !seen.contains_key(&(user.clone(), reference.clone())));
            if image.used_by.is_empty() {
                continue;
            }
            image.name = self.unique(image.name.as_str());
            self.gaps.push(Gap {
                name: image.name.to_string(),
                what: format!("container image {:.300}", image.image),
                why: image.why.clone(),
                blocking: true,
                next: "let it run once, name it by digest, push it to a registry, or leave it out by name".to_owned(),
            });
            self.unresolved.push(image);
        }
        found
    }

    /// Whether a pod belongs to what the selector selects.
    fn selects(&self, pod: &Value, owner: &ObjectRef, contents: &Contents) -> bool {
        let Some(selected) = &contents.selected else { return true };
        pod["metadata"]["uid"].as_str().is_some_and(|uid| selected.contains(uid))
            || self.raw.iter().any(|object| object_ref(object) == *owner)
    }

    fn of_pod(&mut self, pod: &Value, owner: &ObjectRef, known: &mut Known) {
        let spec = &pod["spec"];
        let pull_secrets = named(&spec["imagePullSecrets"]);
        let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
        for (list, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")] {
            for container in spec[list].as_array().into_iter().flatten() {
                let name = container["name"].as_str().unwrap_or_default();
                let image = container["image"].as_str().unwrap_or_default();
                let status = pod["status"][statuses].as_array().into_iter().flatten().find(|s| s["name"] == name);
                let id = status.and_then(|s| s["imageID"].as_str()).unwrap_or_default();
                let digest = id.rsplit_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok());
                let before = known.seen.get(&(owner.clone(), image.to_owned())).copied();
                match (digest, before) {
                    (Some(digest), Some(before)) if digest != before => {
                        if !is_over(pod) {
                            let name = self.unique(&format!("{pod_name}-{name}"));
                            self.gaps.push(other_digest(&name, pod_name, owner, image, digest, before));
                        }
                    }
                    (Some(digest), _) => known.note(image, digest, owner, &pull_secrets),
                    (None, Some(_)) => {}
                    // What was evicted before it began is no part of what runs.
                    (None, None) if is_over(pod) => {}
                    (None, None) => {
                        let why = if id.is_empty() {
                            let waits = status.and_then(|s| s["state"]["waiting"]["reason"].as_str());
                            let waits = waits.map(|reason| format!(" ({reason:.100})")).unwrap_or_default();
                            format!("it doesn't run yet in pod {pod_name}{waits}")
                        } else {
                            "its node has it from no registry".to_owned()
                        };
                        note_unknown(&mut known.unknown, image, why, true, owner, &pull_secrets);
                    }
                }
            }
        }
    }

    /// A workload without pods (scaled to zero, a cron job, a done job) whose very image runs elsewhere uses that one.
    fn without_pods(&self, known: &mut Known) {
        for container in &self.containers {
            let (image, user) = (&container.view.image, &container.workload);
            if known.seen.contains_key(&(user.clone(), image.clone())) {
                continue;
            }
            let (repository, tag, digest) = split_image(image);
            let secrets = self.pull_secrets(user);
            let same = known.found.iter().find(|found| found.repository == repository && found.tag == tag);
            match (digest.and_then(|d| d.parse::<Digest>().ok()), same.map(|found| found.digest)) {
                (Some(digest), _) | (None, Some(digest)) => known.note(image, digest, user, &secrets),
                (None, None) => {
                    let why = format!("{user} has no pod that shows which digest it means");
                    note_unknown(&mut known.unknown, image, why, false, user, &secrets);
                }
            }
        }
    }

    /// The pull secrets of a workload's pods: its own, else those of its service account, as admission adds them.
    fn pull_secrets(&self, workload: &ObjectRef) -> Vec<String> {
        let object = self.raw.iter().find(|object| object_ref(object) == *workload);
        let Some(spec) = object.and_then(workload::pod_spec) else { return Vec::new() };
        let own = named(&spec["imagePullSecrets"]);
        if !own.is_empty() {
            return own;
        }
        let name = ["serviceAccountName", "serviceAccount"].iter().find_map(|field| spec[*field].as_str());
        let name = name.unwrap_or("default");
        let account = self.raw.iter().find(|o| o["kind"] == "ServiceAccount" && o["metadata"]["name"] == name);
        account.map(|account| named(&account["imagePullSecrets"])).unwrap_or_default()
    }
}

impl Known {
    fn note(&mut self, image: &str, digest: Digest, user: &ObjectRef, pull_secrets: &[String]) {
        self.seen.insert((user.clone(), image.to_owned()), digest);
        let (repository, tag, _) = split_image(image);
        note_known(&mut self.found, repository, tag, digest, std::slice::from_ref(user), pull_secrets);
    }
}

/// What runs before what ends, and the youngest first: a workload's reference means what it was pulled as last.
fn youngest_first(pods: &[Value]) -> Vec<&Value> {
    let mut pods: Vec<&Value> = pods.iter().collect();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pods.sort_by_key(|pod| {
        let metadata = &pod["metadata"];
        (is_over(pod), std::cmp::Reverse(text(&metadata["creationTimestamp"])), text(&metadata["name"]))
    });
    pods
}

/// It ended, was evicted, or is being deleted.
fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
        || !pod["metadata"]["deletionTimestamp"].is_null()
}

fn other_digest(
    name: &ComponentName,
    pod: &str,
    owner: &ObjectRef,
    image: &str,
    digest: Digest,
    before: Digest,
) -> Gap {
    Gap {
        name: name.to_string(),
        what: format!("what pod {pod} of {owner} runs as {image:.300}: {digest}"),
        why: format!("the tag meant something else when a younger pod of it was started: that is saved, {before}"),
        blocking: false,
        next: String::new(),
    }
}

/// The names in a list of references.
fn named(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str().map(str::to_owned)).collect()
}

/// Takes an image up, or its users where it is known.
pub(super) fn note_known(
    known: &mut Vec<ContainerFound>,
    repository: String,
    tag: Option<String>,
    digest: Digest,
    users: &[ObjectRef],
    pull_secrets: &[String],
) {
    let same = |c: &ContainerFound| c.repository == repository && c.tag == tag && c.digest == digest;
    let index = known.iter().position(same).unwrap_or_else(|| {
        let name = ComponentName::from_lossy(repository.rsplit('/').next().unwrap_or("container"));
        let (used_by, pull_secrets) = (Vec::new(), Vec::new());
        known.push(ContainerFound { name, repository, tag, digest, used_by, pull_secrets });
        known.len() - 1
    });
    let Some(found) = known.get_mut(index) else { return };
    for user in users {
        if !found.used_by.contains(user) {
            found.used_by.push(user.clone());
        }
    }
    for secret in pull_secrets {
        if !found.pull_secrets.contains(secret) {
            found.pull_secrets.push(secret.clone());
        }
    }
}

fn note_unknown(
    unknown: &mut BTreeMap<String, Unresolved>,
    image: &str,
    why: String,
    starting: bool,
    user: &ObjectRef,
    pull_secrets: &[String],
) {
    let entry = unknown.entry(image.to_owned()).or_insert_with(|| Unresolved {
        name: ComponentName::from_lossy(split_image(image).0.rsplit('/').next().unwrap_or("container")),
        image: image.to_owned(),
        why,
        used_by: Vec::new(),
        pull_secrets: Vec::new(),
        starting,
    });
    entry.starting |= starting;
    if !entry.used_by.contains(user) {
        entry.used_by.push(user.clone());
    }
    for secret in pull_secrets {
        if !entry.pull_secrets.contains(secret) {
            entry.pull_secrets.push(secret.clone());
        }
    }
}

/// The workload of the configuration that a pod belongs to: its owner's owner, as far as there is one.
pub(super) fn owner_of(pod: &Value, contents: &Contents) -> Option<ObjectRef> {
    let controller = |object: &Value| {
        object["metadata"]["ownerReferences"].as_array().and_then(|owners| {
            owners.iter().find(|o| o["controller"] == true).map(|o| ObjectRef {
                api_version: o["apiVersion"].as_str().unwrap_or_default().to_owned(),
                kind: o["kind"].as_str().unwrap_or_default().to_owned(),
                name: o["name"].as_str().unwrap_or_default().to_owned(),
            })
        })
    };
    let Some(mut owner) = controller(pod) else { return Some(object_ref(pod)) };
    // Owners may name each other in a circle.
    for _ in 0..8 {
        let above = contents.owned.iter().find(|object| object_ref(object) == owner).and_then(controller);
        let Some(above) = above else { break };
        owner = above;
    }
    Some(owner)
}
