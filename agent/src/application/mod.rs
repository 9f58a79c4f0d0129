//! An application as it runs: its configuration, the containers that run, and its data services with the ways and
//! logins to reach them. Found without configuration, from what the cluster and the application's own settings say.

mod images;
mod selection;
mod services;
mod undriven;
mod volumes;

use std::{collections::BTreeSet, sync::Arc};

use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel, DataKind},
    inventory::{ContainerFound, DataFound, Gap, ObjectRef},
    names::{ComponentName, Digest},
    task::Source,
};
use serde_json::Value;

use crate::{
    configs::{
        clean::clean,
        kinds::{self, FINISHED},
        network, object_ref,
        rewrite::split_image,
        workload::{self, Container, Sources},
    },
    data::{self, DataService, Login},
    platform::{Platform, discover::Contents},
};

use images::note_known;

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
        let mut raw = contents.configuration.iter().map(|found| found.object.clone()).collect();
        if let Some(selected) = &contents.selected {
            raw = selection::narrow(raw, selected);
        }
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
        let known = self.containers.len();
        note_known(&mut self.containers, repository, tag, digest, &image.used_by, &image.pull_secrets);
        if let Some(added) = self.containers.get_mut(known) {
            added.name = image.name.clone();
        }
        self.containers.sort_by(|a, b| (&a.repository, a.digest, &a.tag).cmp(&(&b.repository, b.digest, &b.tag)));
    }

    /// Says in an image's gap why no registry told its digest.
    pub fn unresolved_because(&mut self, image: &Unresolved, why: &str) {
        for gap in self.gaps.iter_mut().filter(|gap| gap.name == image.name.as_str()) {
            gap.why = format!("{}, and from its registry it can't be had: {why}", gap.why);
        }
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
                what: format!("what there is of {}", unlisted.split(':').next().unwrap_or_default()),
                why: format!("it can't be listed: {}", unlisted.split_once(": ").map_or("", |(_, why)| why)),
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
        let mut containers = self.running(contents);
        let mut located = self.servers(contents);
        let owned: BTreeSet<String> = located.iter().flat_map(|d| d.found.claims.clone()).collect();
        located.extend(self.volumes(contents, &owned));
        self.servers_without_driver(&located);
        self.volume_gaps();
        let left_out = |name: &str| self.source.without.iter().any(|w| w == name);
        let dropped = self.dropped(&containers);
        let claim_dropped =
            |claim: &String| dropped.iter().any(|o| o.kind == "PersistentVolumeClaim" && o.name == *claim);
        // With an object goes what only it has: images, and the data that it serves or holds.
        for container in &mut containers {
            container.used_by.retain(|user| !dropped.contains(user));
        }
        containers.retain(|c| !c.used_by.is_empty() && !left_out(c.name.as_str()));
        let mut gone = Vec::new();
        located.retain(|data| {
            let with = match &data.found.workload {
                Some(workload) => dropped.contains(workload).then(|| workload.to_string()),
                None => data.found.claims.iter().find(|claim| claim_dropped(claim)).cloned(),
            };
            if let Some(with) = with.filter(|_| !left_out(data.found.name.as_str())) {
                gone.push(Gap {
                    name: data.found.name.to_string(),
                    what: format!("{} {}", data.found.kind, data.found.name),
                    why: format!("left out with {with}"),
                    blocking: false,
                    next: String::new(),
                });
                return false;
            }
            !left_out(data.found.name.as_str())
        });
        // What is written to has to be there before the stateful set that would make it.
        let saved = |object: &Value| {
            let claim = object["metadata"]["name"].as_str().unwrap_or_default();
            let mut volumes = located.iter().filter(|d| d.found.kind == DataKind::Volume);
            volumes.any(|d| d.found.claims.iter().any(|c| c == claim))
        };
        let mut objects: Vec<Value> = self
            .raw
            .iter()
            .filter(|o| !dropped.contains(&object_ref(o)))
            .filter(|o| !self.claim_of_template(o) || saved(o))
            .map(marked_clean)
            .collect();
        objects.sort_by_key(|o| (kinds::rank(o).unwrap_or(usize::MAX), object_ref(o)));
        self.gaps.retain(|gap| !left_out(&gap.name));
        self.gaps.extend(gone);
        let (open, closed) = self.unresolved.into_iter().partition::<Vec<_>, _>(|image| {
            !left_out(image.name.as_str()) && image.used_by.iter().any(|user| !dropped.contains(user))
        });
        self.gaps.retain(|gap| !closed.iter().any(|image| image.name.as_str() == gap.name));
        Application { objects, containers, data: located, gaps: self.gaps, unresolved: open }
    }

    /// Objects that are left out: by their own name, or with a container image that they need.
    fn dropped(&self, containers: &[ContainerFound]) -> BTreeSet<ObjectRef> {
        let left_out = |name: &str| self.source.without.iter().any(|w| w == name);
        let by_image = containers.iter().filter(|c| left_out(c.name.as_str())).flat_map(|c| c.used_by.clone());
        let unresolved = self.unresolved.iter().filter(|u| left_out(u.name.as_str())).flat_map(|u| u.used_by.clone());
        let by_name = self.raw.iter().map(object_ref).filter(|reference| left_out(&reference.to_string()));
        by_image.chain(unresolved).chain(by_name).collect()
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
}

/// Cleaned; cleaning takes the status away that said that it had done its work.
fn marked_clean(object: &Value) -> Value {
    let mut cleaned = clean(object);
    if kinds::is_finished(object) {
        if !cleaned["metadata"]["annotations"].is_object() {
            cleaned["metadata"]["annotations"] = serde_json::json!({});
        }
        cleaned["metadata"]["annotations"][FINISHED] = Value::from("true");
    }
    cleaned
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
