//! The volumes of an application that are copied as files, and those that can't be.

use std::collections::BTreeSet;

use ocopea_protocol::{
    image::DataKind,
    inventory::{DataFound, Gap},
    names::ComponentName,
};
use serde_json::Value;

use super::{Gathering, Located, undriven, unknown_consistency};
use crate::{
    configs::{
        network, object_ref,
        workload::{self, Container, VolumeKind, volume_kind},
    },
    platform::{claim::runs_as, discover::Contents},
};

impl Gathering<'_> {
    /// The claim that a stateful set's template makes comes back with the stateful set.
    pub(super) fn claim_of_template(&self, object: &Value) -> bool {
        self.raw.iter().any(|set| made_by_template(object, set))
    }

    /// Servers that keep data and that no driver knows: saved as their volumes, or not at all.
    pub(super) fn servers_without_driver(&mut self, located: &[Located]) {
        let served = |container: &Container| {
            located.iter().any(|d| {
                d.found.workload.as_ref() == Some(&container.workload)
                    && d.found.container.as_deref() == Some(container.view.name.as_str())
            })
        };
        let mut found = Vec::new();
        for container in self.containers.iter().filter(|c| !c.init && !served(c)) {
            let Some(kind) = undriven::kind(&container.view) else { continue };
            if matches!(container.workload.kind.as_str(), "Job" | "CronJob") {
                continue;
            }
            let Some(object) = self.raw.iter().find(|o| object_ref(o) == container.workload) else { continue };
            let hosts = network::services_of(object, &self.services);
            let wished = hosts.first().unwrap_or(&container.workload.name).clone();
            let mut claims: Vec<String> = container.view.mounts.iter().filter_map(|(_, claim)| claim.clone()).collect();
            claims.sort();
            claims.dedup();
            found.push((wished, kind, container.workload.clone(), claims));
        }
        for (wished, kind, workload, claims) in found {
            let name = self.unique(&wished).to_string();
            let what = format!("{kind} server of {workload}");
            self.gaps.push(if claims.is_empty() {
                Gap {
                    why: format!("there is no driver for {kind}, and it has no volume that could be saved instead"),
                    next: format!(
                        "give it a persistent volume claim, or let the copy start without its data: --without {name}"
                    ),
                    blocking: true,
                    name,
                    what,
                }
            } else {
                Gap {
                    why: format!("there is no driver for {kind}: it is saved as its volume {}", claims.join(", ")),
                    next: String::new(),
                    blocking: false,
                    name,
                    what,
                }
            });
        }
    }

    /// Claims that no recognised server owns: files.
    pub(super) fn volumes(&mut self, contents: &Contents, owned: &BTreeSet<String>) -> Vec<Located> {
        let driver = self.drivers.iter().find(|d| d.kind() == DataKind::Volume).cloned();
        let (mut claims, mut replicas) = (Vec::new(), Vec::new());
        for claim in self.raw.iter().filter(|object| object["kind"] == "PersistentVolumeClaim") {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default();
            if owned.contains(name) {
                continue;
            }
            if self.claim_of_template(claim) && replica_of_owned(name, owned) {
                replicas.push(name.to_owned());
                continue;
            }
            match unreachable_claim(claim) {
                Some(gap) => self.gaps.push(gap),
                None => claims.push(name.to_owned()),
            }
        }
        for claim in replicas {
            let name = self.unique(&claim).to_string();
            self.gaps.push(Gap {
                name,
                what: format!("persistent volume claim {claim}"),
                why: "it is another replica's own copy of data that its server's driver saves".to_owned(),
                blocking: false,
                next: String::new(),
            });
        }
        claims
            .into_iter()
            .map(|claim| {
                let name = self.unique(&claim);
                let mounts = |spec: &Value| {
                    let volumes = spec["volumes"].as_array().into_iter().flatten();
                    volumes.into_iter().any(|v| v["persistentVolumeClaim"]["claimName"] == claim.as_str())
                };
                let running = contents.pods.iter().find(|p| p["status"]["phase"] == "Running" && mounts(&p["spec"]));
                let pod = running.and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned));
                let user = self.raw.iter().find_map(|object| {
                    let spec = workload::pod_spec(object)?;
                    let claims = workload::volume_claims(object, spec);
                    let volume = claims.into_iter().find(|(_, of)| *of == claim || are_replicas(of, &claim))?.0;
                    Some((spec, volume))
                });
                let placement = user.map_or(Value::Null, |(spec, volume)| {
                    serde_json::json!({"nodeSelector": spec["nodeSelector"], "affinity": {"nodeAffinity": spec["affinity"]["nodeAffinity"]},
                        "tolerations": spec["tolerations"], "runsAs": runs_as(spec, &Value::Null, &[&volume])})
                });
                Located {
                    found: DataFound {
                        name,
                        kind: DataKind::Volume,
                        version: None,
                        workload: None,
                        pod,
                        container: None,
                        port: 0,
                        hosts: Vec::new(),
                        claims: vec![claim],
                        bytes: None,
                        streams: None,
                        features: Vec::new(),
                        consistency: unknown_consistency(),
                        bindings: Vec::new(),
                        rights: Vec::new(),
                    },
                    driver: driver.clone(),
                    logins: Vec::new(),
                    placement,
                }
            })
            .collect()
    }

    /// Volumes of pods that aren't claims.
    pub(super) fn volume_gaps(&mut self) {
        let mut gaps = Vec::new();
        for object in &self.raw {
            let Some(spec) = workload::pod_spec(object) else { continue };
            let user = object_ref(object);
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                let name = volume["name"].as_str().unwrap_or_default();
                match volume_kind(volume) {
                    VolumeKind::Configuration | VolumeKind::Claim => {}
                    VolumeKind::Scratch(kind) => gaps.push((
                        name.to_owned(),
                        Gap {
                            name: String::new(),
                            what: format!("scratch volume {name} of {user} ({kind})"),
                            why: "it ends with its pod by intent".to_owned(),
                            blocking: false,
                            next: String::new(),
                        },
                    )),
                    VolumeKind::Other(kind) => gaps.push((
                        name.to_owned(),
                        Gap {
                            name: String::new(),
                            what: format!("{kind:.100} volume {name} of {user}"),
                            why: if kind == "image" {
                                "container images that are mounted are not copied".to_owned()
                            } else {
                                "only persistent volume claims are saved".to_owned()
                            },
                            blocking: true,
                            next: "move its files to a persistent volume claim".to_owned(),
                        },
                    )),
                }
            }
        }
        for (wished, mut gap) in gaps {
            gap.name = self.unique(&wished).to_string();
            if gap.blocking {
                gap.next = format!("{}, or leave it out: --without {}", gap.next, gap.name);
            }
            self.gaps.push(gap);
        }
    }
}

/// Whether a template of the stateful set makes this claim.
pub(super) fn made_by_template(claim: &Value, set: &Value) -> bool {
    if claim["kind"] != "PersistentVolumeClaim" || set["kind"] != "StatefulSet" {
        return false;
    }
    let name = claim["metadata"]["name"].as_str().unwrap_or_default();
    let owner = set["metadata"]["name"].as_str().unwrap_or_default();
    set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().any(|template| {
        let stem = format!("{}-{owner}-", template["metadata"]["name"].as_str().unwrap_or_default());
        name.strip_prefix(&stem).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    })
}

/// `data-db-1` beside an owned `data-db-0`: another replica's own copy of the same data, where a template made both.
fn replica_of_owned(claim: &str, owned: &BTreeSet<String>) -> bool {
    owned.iter().any(|of| of.ends_with("-0") && are_replicas(of, claim))
}

/// Whether two claims come from one template of a stateful set, by their names: `data-db-0` and `data-db-1`.
fn are_replicas(one: &str, other: &str) -> bool {
    let stem = |claim: &str| -> Option<String> {
        let (stem, number) = claim.rsplit_once('-')?;
        (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.to_owned())
    };
    stem(one).is_some_and(|of| Some(of) == stem(other))
}

/// Why the files behind a claim can't be read, if they can't.
fn unreachable_claim(claim: &Value) -> Option<Gap> {
    let name = claim["metadata"]["name"].as_str().unwrap_or_default();
    let gap = |why: &str, blocking, next: String| Gap {
        name: ComponentName::from_lossy(name).to_string(),
        what: format!("persistent volume claim {name}"),
        why: why.to_owned(),
        blocking,
        next,
    };
    let without = format!("leave it out by name: --without {}", ComponentName::from_lossy(name));
    if claim["spec"]["volumeMode"] == "Block" {
        return Some(gap("it is a raw block device: only filesystems are saved", true, without));
    }
    match claim["status"]["phase"].as_str() {
        // Nobody has used it yet: to look into it would make the volume.
        Some("Pending") => Some(gap("no volume is bound to it: it holds nothing yet", false, String::new())),
        Some("Lost") => Some(gap("the volume that it was bound to is gone", true, without)),
        _ => None,
    }
}
