//! What a site can do, found out, not believed.

mod details;

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{Api, api::ListParams};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::InstanceId,
    message::{ApplicationFound, SiteReport, SiteState},
    needs::Capabilities,
};
use serde::de::DeserializeOwned;

use crate::{
    containers::{Credentials, RegistryContext},
    data::{self, ContainerView},
    execute::Site,
    failures::kubernetes,
    quantity::whole,
    rights::rights,
};

/// Lists that are asked for at the same time.
const AT_ONCE: usize = 8;
/// Namespaces that belong to the cluster itself.
const SYSTEM: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Of pods and of claims, so many are looked at for each request.
const MOST_RUNNING: u32 = 5000;

/// What runs, as far as it may be seen.
struct Running<K> {
    found: Vec<K>,
    /// There is nothing else in the cluster.
    all: bool,
}

impl Site {
    /// Looks at the site now. A cluster that can't be reached is a state of the report, not an error.
    pub async fn report(&self, instance: InstanceId) -> SiteReport {
        let mut report = SiteReport {
            instance,
            at: self.seams.clock.now(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            state: SiteState::Ready,
            platform: String::new(),
            nodes: 0,
            architectures: Vec::new(),
            data_kinds: data::all().iter().map(|driver| driver.kind().to_string()).collect(),
            may_create_namespaces: false,
            registry: None,
            storage_classes: Vec::new(),
            missing: Vec::new(),
            applications: Vec::new(),
            limits: Some(self.limits),
            capabilities: Capabilities { movers: self.mover_image.is_some(), ..Capabilities::default() },
        };
        if let Err(failure) = self.probe(&mut report).await {
            report.state = SiteState::Unreachable(failure.cause);
        } else if !report.missing.is_empty() {
            report.state = SiteState::Limited;
        }
        report
    }

    async fn probe(&self, report: &mut SiteReport) -> Result<(), TaskFailure> {
        let platform = &self.platform;
        let what = format!("can't reach site {}", self.name);
        let version = self
            .seams
            .timeout(std::time::Duration::from_secs(10), platform.client.apiserver_version())
            .await
            .ok_or_else(|| TaskFailure::retryable("site.unreachable", what.clone(), "no answer within 10 s"))?
            .map_err(|error| kubernetes(&what, &error))?;
        report.platform = format!("Kubernetes {}", version.git_version.trim_start_matches('v'));
        let rights = rights(platform, self.restoring.as_ref().unwrap_or(platform)).await?;
        report.may_create_namespaces = rights.may_create_namespaces;
        report.missing = rights.missing;
        let architectures = platform.architectures().await?;
        report.nodes = u32::try_from(architectures.len()).unwrap_or(u32::MAX);
        report.architectures = architectures;
        report.architectures.dedup();
        if report.nodes == 0 && rights.may_list_nodes {
            report.missing.push("no node is ready: nothing can run".to_owned());
        }
        match platform.storage_classes().await {
            Ok(classes) => report.storage_classes = classes.names,
            // Among the rights that are missing.
            Err(failure) if failure.code == "site.forbidden" => {}
            Err(failure) => report.missing.push(format!("{failure}")),
        }
        self.probe_registry(report).await;
        let namespaces = rights.namespaces.as_deref();
        let pods = self.running::<Pod>(namespaces).await?;
        report.applications = self.applications(&pods.found, namespaces).await?;
        // What is free on nodes depends on all pods, whoever's they are.
        let everywhere = if namespaces.is_some() { self.running::<Pod>(None).await? } else { pods };
        self.look_closely(&mut report.capabilities, &everywhere).await;
        Ok(())
    }

    async fn probe_registry(&self, report: &mut SiteReport) {
        let Some(registry) = &self.registry else {
            report.missing.push(
                "no registry to push container images to: restores need --site NAME=CONTEXT,registry=HOST/PATH"
                    .to_owned(),
            );
            return;
        };
        let context = RegistryContext {
            credentials: std::sync::Arc::new(Credentials::clone(&self.credentials)),
            plain_hosts: if registry.plain { vec![registry.host.clone()] } else { Vec::new() },
            seams: self.seams.clone(),
            stop: tokio_util::sync::CancellationToken::new(),
        };
        match context.answers(registry).await {
            Ok(()) => report.registry = Some(registry.base()),
            Err(failure) => report.missing.push(format!("registry {}: {}", registry.base(), failure.cause)),
        }
    }

    /// Pods and claims of all namespaces, or of those that are opted in. What may not be listed is no error: it is among
    /// the rights that are missing.
    async fn running<K>(&self, namespaces: Option<&[String]>) -> Result<Running<K>, TaskFailure>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let client = &self.platform.client;
        let apis = match namespaces {
            None => vec![Api::<K>::all(client.clone())],
            Some(names) => names.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
        };
        let mut asked = Vec::new();
        for api in apis {
            asked.push(async move { api.list(&ListParams::default().limit(MOST_RUNNING)).await });
        }
        let mut lists = stream::iter(asked).buffered(AT_ONCE);
        let mut running = Running { found: Vec::new(), all: namespaces.is_none() };
        while let Some(list) = lists.next().await {
            match list {
                Ok(list) => {
                    running.all &= list.metadata.continue_.as_deref().unwrap_or_default().is_empty();
                    running.found.extend(list.items);
                }
                Err(kube::Error::Api(status)) if status.code == 403 => running.all = false,
                Err(error) => return Err(kubernetes("can't list what runs", &error)),
            }
        }
        Ok(running)
    }

    /// Namespaces that hold pods, cheaply counted.
    async fn applications(
        &self,
        pods: &[Pod],
        namespaces: Option<&[String]>,
    ) -> Result<Vec<ApplicationFound>, TaskFailure> {
        let drivers = data::all();
        let mut found: BTreeMap<
            String,
            (ApplicationFound, std::collections::BTreeSet<String>, std::collections::BTreeSet<String>),
        > = BTreeMap::new();
        for pod in pods {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            if SYSTEM.contains(&namespace.as_str()) {
                continue;
            }
            let entry = found.entry(namespace.clone()).or_insert_with(|| {
                let empty =
                    ApplicationFound { namespace, containers: 0, workloads: 0, data: Vec::new(), claimed_bytes: 0 };
                (empty, Default::default(), Default::default())
            });
            let owner = pod.metadata.owner_references.iter().flatten().next().map(|o| o.name.clone());
            entry.2.insert(owner.or(pod.metadata.name.clone()).unwrap_or_default());
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                let image = container.image.clone().unwrap_or_default();
                let view = ContainerView {
                    image: image.clone(),
                    name: container.name.clone(),
                    ports: container
                        .ports
                        .iter()
                        .flatten()
                        .filter_map(|port| u16::try_from(port.container_port).ok())
                        .collect(),
                    ..ContainerView::default()
                };
                if let Some(driver) = drivers.iter().find(|driver| driver.recognise(&view).is_some()) {
                    let kind = driver.kind().to_string();
                    if entry.1.insert(image.clone()) {
                        entry.0.data.push(kind);
                    }
                } else {
                    entry.1.insert(image);
                }
            }
        }
        for claim in self.running::<PersistentVolumeClaim>(namespaces).await?.found {
            let Some(entry) = claim.metadata.namespace.as_deref().and_then(|namespace| found.get_mut(namespace)) else {
                continue;
            };
            let size =
                claim.status.and_then(|s| s.capacity).and_then(|mut c| c.remove("storage")).map_or(0, |q| whole(&q.0));
            entry.0.claimed_bytes = entry.0.claimed_bytes.saturating_add(size);
        }
        Ok(found
            .into_values()
            .map(|(mut application, images, workloads)| {
                application.containers = u32::try_from(images.len()).unwrap_or(u32::MAX);
                application.workloads = u32::try_from(workloads.len()).unwrap_or(u32::MAX);
                application
            })
            .collect())
    }
}
