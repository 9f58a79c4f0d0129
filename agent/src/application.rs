//! An application as it runs: its configuration, the containers that run, and its data services with the ways and
//! logins to reach them. Found without configuration, from what the cluster and the application's own settings say.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel, DataKind},
    inventory::{Binding, ContainerFound, DataFound, Gap, ObjectRef},
    names::{ComponentName, Digest},
    task::Source,
};
use serde_json::Value;

use crate::{
    configs::{
        clean::clean,
        kinds::{self, FINISHED},
        network::{self, names_service},
        object_ref,
        rewrite::split_image,
        workload::{self, Container, Sources},
    },
    data::{self, DataService, Login, LoginOf},
    platform::{Platform, claim::runs_as, discover::Contents},
};

/// A data service with the means to reach it.
#[derive(Clone)]
pub struct Located {
    /// What is known of it.
    pub found: DataFound,
    /// Its driver.
    pub driver: Option<Arc<dyn DataService>>,
    /// Logins, best first.
    pub logins: Vec<Login>,
    /// Where a volume's users may run: `nodeSelector`, `affinity`, `tolerations` of their pods.
    pub placement: Value,
}

/// Kinds of a pod's volumes that are saved with the configuration, as volumes, or not at all by intent.
const KNOWN_VOLUMES: &[&str] =
    &["configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim", "emptyDir", "ephemeral"];

/// What was gathered.
pub struct Application {
    /// Cleaned objects, in canonical order, without what is left out.
    pub objects: Vec<Value>,
    /// Container images by the digest that runs.
    pub containers: Vec<ContainerFound>,
    /// Data services.
    pub data: Vec<Located>,
    /// What would not be saved.
    pub gaps: Vec<Gap>,
    /// Images that no pod shows the digest of; each has its gap, too.
    pub unresolved: Vec<Unresolved>,
}

/// An image of a workload that has no pods (scaled to zero, a cron job): only a registry can tell its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// As its component would be called, which is the name of its gap.
    pub name: ComponentName,
    /// As the workload names it.
    pub image: String,
    /// Why nothing here tells its digest.
    pub why: String,
    /// What uses it.
    pub used_by: Vec<ObjectRef>,
    /// `imagePullSecrets` of its users.
    pub pull_secrets: Vec<String>,
    /// There is a pod that will show it: the registry's tag may be another one by then.
    pub starting: bool,
}

impl Application {
    /// Reads the application that `source` names. Nothing is changed, no data service is connected to.
    pub async fn gather(platform: &Platform, source: &Source) -> Result<Self, TaskFailure> {
        let contents = platform.contents(source.namespace.as_str(), source.selector.as_deref()).await?;
        let raw = contents.configuration.iter().map(|found| found.object.clone()).collect();
        Ok(Gathering::new(source, raw, &contents.unlisted).finish(&contents))
    }

    /// The application that `objects` describe, with the pods that run of it now: at a restore, the consumers that
    /// know a data service's login aren't applied yet when it is loaded.
    pub async fn planned(platform: &Platform, source: &Source, objects: Vec<Value>) -> Result<Self, TaskFailure> {
        let contents = platform.running(source.namespace.as_str()).await?;
        Ok(Gathering::new(source, objects, &[]).finish(&contents))
    }

    /// Takes up an image whose digest a registry told.
    pub fn resolved(&mut self, image: &Unresolved, digest: Digest) {
        let (repository, tag, _) = split_image(&image.image);
        self.gaps.retain(|gap| gap.name != image.name.as_str());
        self.unresolved.retain(|other| other != image);
        self.containers.push(ContainerFound {
            name: image.name.clone(),
            repository,
            tag,
            digest,
            used_by: image.used_by.clone(),
            pull_secrets: image.pull_secrets.clone(),
        });
        self.containers.sort_by(|a, b| (&a.repository, a.digest).cmp(&(&b.repository, b.digest)));
    }

    /// The data service that a workload serves.
    pub fn serving(&self, workload: &ObjectRef) -> Option<&Located> {
        self.data.iter().find(|d| d.found.workload.as_ref() == Some(workload))
    }

    /// One data service of it.
    pub fn locate(&self, name: &ComponentName) -> Result<&Located, TaskFailure> {
        self.data.iter().find(|d| d.found.name == *name).ok_or_else(|| {
            TaskFailure::conflict(
                "application.changed",
                format!("can't find the data service {name}"),
                "it is gone since the operation was planned",
            )
            .next("try again")
        })
    }

    /// Digest over what runs: changes when containers or data services do.
    pub fn fingerprint(&self) -> String {
        let mut parts: Vec<String> = self.containers.iter().map(|c| format!("{}@{}", c.repository, c.digest)).collect();
        parts.extend(self.data.iter().map(|d| format!("{} {}", d.found.kind, d.found.name)));
        parts.sort();
        crate::containers::digest_of(parts.join("\n").as_bytes()).to_string()
    }
}

struct Gathering<'a> {
    source: &'a Source,
    namespace: &'a str,
    raw: Vec<Value>,
    services: Vec<network::Service>,
    containers: Vec<Container>,
    names: BTreeSet<String>,
    gaps: Vec<Gap>,
    unresolved: Vec<Unresolved>,
    drivers: Vec<Arc<dyn DataService>>,
}

impl<'a> Gathering<'a> {
    fn new(source: &'a Source, raw: Vec<Value>, unlisted: &[String]) -> Self {
        let sources = Sources::of(&raw);
        let containers = raw.iter().flat_map(|object| workload::containers(object, &sources)).collect();
        let mut gaps = Vec::new();
        for unlisted in unlisted {
            gaps.push(Gap {
                name: unlisted.split(':').next().unwrap_or_default().to_owned(),
                what: "objects that may not be listed".to_owned(),
                why: unlisted.clone(),
                blocking: true,
                next: "grant \"list\" on them to the user of this context, or leave them out by that name".to_owned(),
            });
        }
        Self {
            source,
            namespace: source.namespace.as_str(),
            services: network::services(&raw),
            raw,
            containers,
            names: BTreeSet::from(["config".to_owned()]),
            gaps,
            unresolved: Vec::new(),
            drivers: data::all(),
        }
    }

    fn finish(mut self, contents: &Contents) -> Application {
        let containers = self.running(contents);
        let mut located = self.servers(contents);
        let owned: BTreeSet<String> = located.iter().flat_map(|d| d.found.claims.clone()).collect();
        located.extend(self.volumes(contents, &owned));
        self.volume_gaps();
        let left_out = |name: &str| self.source.without.iter().any(|w| w == name);
        let dropped: BTreeSet<ObjectRef> = containers
            .iter()
            .filter(|c| left_out(c.name.as_str()))
            .flat_map(|c| c.used_by.clone())
            .chain(self.unresolved.iter().filter(|u| left_out(u.name.as_str())).flat_map(|u| u.used_by.clone()))
            .collect();
        // What is written to has to be there before the stateful set that would make it.
        let saved = |object: &Value| {
            let claim = object["metadata"]["name"].as_str().unwrap_or_default();
            let volumes = located.iter().filter(|d| d.found.kind == DataKind::Volume);
            volumes.filter(|d| !left_out(d.found.name.as_str())).any(|d| d.found.claims.iter().any(|c| c == claim))
        };
        let mut objects: Vec<Value> = self
            .raw
            .iter()
            .filter(|o| !left_out(&object_ref(o).to_string()) && !dropped.contains(&object_ref(o)))
            .filter(|o| !self.claim_of_template(o) || saved(o))
            .map(|o| {
                let mut cleaned = clean(o);
                if kinds::is_finished(o) {
                    if !cleaned["metadata"]["annotations"].is_object() {
                        cleaned["metadata"]["annotations"] = serde_json::json!({});
                    }
                    cleaned["metadata"]["annotations"][FINISHED] = Value::from("true");
                }
                cleaned
            })
            .collect();
        objects.sort_by_key(|o| (kinds::rank(o).unwrap_or(usize::MAX), object_ref(o)));
        let kept = containers.into_iter().filter(|c| !left_out(c.name.as_str())).collect();
        located.retain(|d| !left_out(d.found.name.as_str()));
        self.gaps.retain(|gap| !left_out(&gap.name));
        self.unresolved.retain(|image| !left_out(image.name.as_str()));
        Application { objects, containers: kept, data: located, gaps: self.gaps, unresolved: self.unresolved }
    }

    fn unique(&mut self, wished: &str) -> ComponentName {
        let base = ComponentName::from_lossy(wished);
        let mut name = base.clone();
        let mut number = 2;
        while !self.names.insert(name.to_string()) {
            name = ComponentName::from_lossy(&format!("{:.58}-{number}", base.as_str()));
            number += 1;
        }
        name
    }

    /// The claim that a stateful set's template makes comes back with the stateful set.
    fn claim_of_template(&self, object: &Value) -> bool {
        if object["kind"] != "PersistentVolumeClaim" {
            return false;
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.raw.iter().filter(|o| o["kind"] == "StatefulSet").any(|set| {
            let owner = set["metadata"]["name"].as_str().unwrap_or_default();
            set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().any(|template| {
                let stem = format!("{}-{owner}-", template["metadata"]["name"].as_str().unwrap_or_default());
                name.strip_prefix(&stem)
                    .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
            })
        })
    }

    /// Container images by the digest that runs, from the pods' own status.
    fn running(&mut self, contents: &Contents) -> Vec<ContainerFound> {
        let mut by_digest: BTreeMap<(String, Digest), ContainerFound> = BTreeMap::new();
        let mut unknown: BTreeMap<String, Unresolved> = BTreeMap::new();
        let mut seen: BTreeSet<(ObjectRef, String)> = BTreeSet::new();
        for pod in &contents.pods {
            let Some(owner) = owner_of(pod, contents) else { continue };
            let spec = &pod["spec"];
            let pull_secrets = pull_secrets(spec);
            for (list, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")] {
                for container in spec[list].as_array().into_iter().flatten() {
                    let name = container["name"].as_str().unwrap_or_default();
                    let image = container["image"].as_str().unwrap_or_default();
                    let status = pod["status"][statuses].as_array().into_iter().flatten().find(|s| s["name"] == name);
                    let id = status.and_then(|s| s["imageID"].as_str()).unwrap_or_default();
                    let digest = id.rsplit_once('@').and_then(|(_, digest)| digest.parse::<Digest>().ok());
                    let Some(digest) = digest else {
                        let why = if id.is_empty() {
                            format!(
                                "it doesn't run yet in pod {}",
                                pod["metadata"]["name"].as_str().unwrap_or_default()
                            )
                        } else {
                            "its node has it from no registry".to_owned()
                        };
                        note_unknown(&mut unknown, image, why, true, &owner, &pull_secrets);
                        continue;
                    };
                    seen.insert((owner.clone(), image.to_owned()));
                    note_known(&mut by_digest, image, digest, &owner, &pull_secrets);
                }
            }
        }
        // What is held at zero for a save runs what it ran.
        for held in &contents.held {
            let object = self.raw.iter().find(|object| object_ref(object) == held.workload);
            let pull_secrets = object.and_then(workload::pod_spec).map(pull_secrets).unwrap_or_default();
            for (image, digest) in &held.digests {
                let Ok(digest) = digest.parse::<Digest>() else { continue };
                seen.insert((held.workload.clone(), image.clone()));
                note_known(&mut by_digest, image, digest, &held.workload, &pull_secrets);
            }
        }
        // A workload without pods (scaled to zero, a cron job, a done job) whose very image runs elsewhere uses that one.
        for container in &self.containers {
            let (repository, tag, digest) = split_image(&container.view.image);
            if seen.contains(&(container.workload.clone(), container.view.image.clone())) {
                continue;
            }
            let same = by_digest.values_mut().find(|found| {
                found.repository == repository
                    && match &digest {
                        Some(digest) => found.digest.to_string() == *digest,
                        None => found.tag == tag,
                    }
            });
            match (same, digest.and_then(|d| d.parse::<Digest>().ok())) {
                (Some(found), _) => {
                    if !found.used_by.contains(&container.workload) {
                        found.used_by.push(container.workload.clone());
                    }
                }
                (None, Some(digest)) => {
                    note_known(&mut by_digest, &container.view.image, digest, &container.workload, &[]);
                }
                (None, None) => {
                    let why = format!("{} has no pod that shows which digest it means", container.workload);
                    let object = self.raw.iter().find(|object| object_ref(object) == container.workload);
                    let secrets = object.and_then(workload::pod_spec).map(pull_secrets).unwrap_or_default();
                    note_unknown(&mut unknown, &container.view.image, why, false, &container.workload, &secrets);
                }
            }
        }
        let found = by_digest
            .into_values()
            .map(|mut found| {
                found.used_by.sort();
                found.name = self.unique(found.name.as_str());
                found
            })
            .collect();
        for (_, mut image) in unknown {
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

    /// Containers that drivers recognise as servers.
    fn servers(&mut self, contents: &Contents) -> Vec<Located> {
        let mut servers = Vec::new();
        let all = std::mem::take(&mut self.containers);
        for container in all.iter().filter(|c| !c.init && !matches!(c.workload.kind.as_str(), "Job" | "CronJob")) {
            let recognised = self.drivers.iter().find_map(|d| d.recognise(&container.view).map(|r| (Arc::clone(d), r)));
            let Some((driver, recognised)) = recognised else { continue };
            let Some(object) = self.raw.iter().find(|o| object_ref(o) == container.workload) else { continue };
            let hosts = network::services_of(object, &self.services);
            let name = self.unique(hosts.first().unwrap_or(&container.workload.name));
            let owns = |path: &str| {
                recognised.data_path.as_deref().is_none_or(|data| data.starts_with(path) || path.starts_with(data))
            };
            let claims = container
                .view
                .mounts
                .iter()
                .filter(|(path, _)| owns(path))
                .filter_map(|(_, claim)| claim.clone())
                .collect();
            let (bindings, mut logins) = self.bindings(driver.as_ref(), &container.workload, &hosts, &all);
            logins.extend(recognised.administrator);
            let given = self.source.credentials.iter().find(|c| c.service == name).map(|c| Login {
                of: LoginOf::Given,
                user: c.user.clone(),
                password: c.password.clone(),
                database: logins.iter().find_map(|l| l.database.clone()),
                options: BTreeMap::new(),
            });
            if let Some(given) = given {
                logins = vec![given];
            }
            servers.push(Located {
                found: DataFound {
                    name,
                    kind: driver.kind(),
                    version: None,
                    workload: Some(container.workload.clone()),
                    pod: ready_pod(&container.workload, contents),
                    container: Some(container.view.name.clone()),
                    port: recognised.port,
                    hosts,
                    claims,
                    bytes: None,
                    streams: None,
                    features: Vec::new(),
                    consistency: unknown_consistency(),
                    bindings,
                    rights: Vec::new(),
                },
                driver: Some(driver),
                logins,
                placement: Value::Null,
            });
        }
        self.containers = all;
        servers
    }

    /// Where the application's own settings name this server, and with which login.
    fn bindings(
        &self,
        driver: &dyn DataService,
        server: &ObjectRef,
        hosts: &[String],
        all: &[Container],
    ) -> (Vec<Binding>, Vec<Login>) {
        let (mut bindings, mut logins): (Vec<Binding>, Vec<Login>) = (Vec::new(), Vec::new());
        for container in all.iter().filter(|c| c.workload != *server) {
            for setting in &container.settings {
                let Some(parsed) = driver.parse_binding(&setting.name, setting.value.reveal()) else { continue };
                let ours = parsed
                    .hosts
                    .iter()
                    .any(|host| hosts.iter().any(|service| names_service(host, service, self.namespace)));
                if !ours {
                    continue;
                }
                let binding = Binding {
                    object: setting.object.clone(),
                    path: setting.path.clone(),
                    role: if parsed.login.is_some() { "uri" } else { "host" }.to_owned(),
                    consumer: Some(container.workload.clone()),
                };
                if !bindings.contains(&binding) {
                    bindings.push(binding);
                }
                if let Some(login) = parsed.login.filter(|login| !logins.contains(login)) {
                    logins.push(login);
                }
            }
        }
        (bindings, logins)
    }

    /// Claims that no recognised server owns: files.
    fn volumes(&mut self, contents: &Contents, owned: &BTreeSet<String>) -> Vec<Located> {
        let driver = self.drivers.iter().find(|d| d.kind() == DataKind::Volume).cloned();
        let mut claims = Vec::new();
        for claim in self.raw.iter().filter(|object| object["kind"] == "PersistentVolumeClaim") {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default();
            if owned.contains(name) || self.replica_of_owned(name, owned) {
                continue;
            }
            match unreachable_claim(claim) {
                Some(gap) => self.gaps.push(gap),
                None => claims.push(name.to_owned()),
            }
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
                    let volume = claims.into_iter().find(|(_, of)| *of == claim || replicas(of, &claim))?.0;
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

    /// `data-db-1` beside an owned `data-db-0`: another replica's own copy of the same data.
    fn replica_of_owned(&self, claim: &str, owned: &BTreeSet<String>) -> bool {
        claim.rsplit_once('-').is_some_and(|(stem, number)| {
            number.bytes().all(|b| b.is_ascii_digit()) && owned.contains(&format!("{stem}-0"))
        })
    }

    /// Volumes of pods that aren't claims.
    fn volume_gaps(&mut self) {
        let mut gaps = Vec::new();
        for object in &self.raw {
            let Some(spec) = workload::pod_spec(object) else { continue };
            let user = object_ref(object);
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                let name = volume["name"].as_str().unwrap_or_default();
                let kind = volume.as_object().into_iter().flatten().find(|(_, value)| value.is_object());
                if let Some((kind, _)) = kind.filter(|(kind, _)| !KNOWN_VOLUMES.contains(&kind.as_str())) {
                    gaps.push(Gap {
                        name: name.to_owned(),
                        what: format!("{kind} volume {name} of {user}"),
                        why: "only persistent volume claims are saved".to_owned(),
                        blocking: true,
                        next: format!("move its files to a persistent volume claim, or leave it out: --without {name}"),
                    });
                }
                if let Some(kind) = ["emptyDir", "ephemeral"].into_iter().find(|kind| volume[*kind].is_object()) {
                    gaps.push(Gap {
                        name: name.to_owned(),
                        what: format!("scratch volume {name} of {user} ({kind})"),
                        why: "it ends with its pod by intent".to_owned(),
                        blocking: false,
                        next: String::new(),
                    });
                }
            }
        }
        self.gaps.extend(gaps);
    }
}

/// Whether two claims come from one template of a stateful set: `data-db-0` and `data-db-1`.
fn replicas(one: &str, other: &str) -> bool {
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

fn pull_secrets(spec: &Value) -> Vec<String> {
    let secrets = spec["imagePullSecrets"].as_array().into_iter().flatten();
    secrets.filter_map(|secret| secret["name"].as_str().map(str::to_owned)).collect()
}

fn note_known(
    known: &mut BTreeMap<(String, Digest), ContainerFound>,
    image: &str,
    digest: Digest,
    user: &ObjectRef,
    pull_secrets: &[String],
) {
    let (repository, tag, _) = split_image(image);
    let found = known.entry((repository.clone(), digest)).or_insert_with(|| ContainerFound {
        name: ComponentName::from_lossy(repository.rsplit('/').next().unwrap_or("container")),
        repository,
        tag,
        digest,
        used_by: Vec::new(),
        pull_secrets: Vec::new(),
    });
    if !found.used_by.contains(user) {
        found.used_by.push(user.clone());
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

fn unknown_consistency() -> Consistency {
    Consistency {
        level: ConsistencyLevel::Inconsistent,
        why: "not looked at yet".to_owned(),
        changed: Vec::new(),
        changed_count: 0,
        frozen_ms: 0,
    }
}

/// The workload of the configuration that a pod belongs to.
fn owner_of(pod: &Value, contents: &Contents) -> Option<ObjectRef> {
    let controller = |object: &Value| {
        object["metadata"]["ownerReferences"].as_array().and_then(|owners| {
            owners.iter().find(|o| o["controller"] == true).map(|o| ObjectRef {
                api_version: o["apiVersion"].as_str().unwrap_or_default().to_owned(),
                kind: o["kind"].as_str().unwrap_or_default().to_owned(),
                name: o["name"].as_str().unwrap_or_default().to_owned(),
            })
        })
    };
    let Some(owner) = controller(pod) else { return Some(object_ref(pod)) };
    if owner.kind == "ReplicaSet" {
        let set = contents.replica_sets.iter().find(|set| set["metadata"]["name"] == owner.name.as_str());
        return Some(set.and_then(controller).unwrap_or(owner));
    }
    Some(owner)
}

/// The first ready pod of a workload, by name.
fn ready_pod(workload: &ObjectRef, contents: &Contents) -> Option<String> {
    let mut names: Vec<&str> = contents
        .pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter(|pod| {
            pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .filter(|pod| owner_of(pod, contents).as_ref() == Some(workload))
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names.first().map(|name| (*name).to_owned())
}
