//! What a site can do, found out, not believed.

mod details;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, api::ListParams};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::InstanceId,
    message::{ApplicationFound, SiteReport, SiteState},
    needs::Capabilities,
};

use crate::{
    containers::{Credentials, RegistryContext},
    data::{self, ContainerView},
    execute::Site,
    failures::kubernetes,
    quantity::whole,
    rights::rights,
};

/// Namespaces that belong to the cluster itself.
const SYSTEM: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Pods that are looked at.
const MOST_PODS: u32 = 5000;

/// Pods of a whole cluster.
struct Pods {
    pods: Vec<Pod>,
    /// There are no others.
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
        let rights = rights(platform).await?;
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
        let pods = self.all_pods().await?;
        report.applications = self.applications(pods.as_ref()).await?;
        self.look_closely(&mut report.capabilities, pods.as_ref()).await;
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

    /// Pods of all namespaces; `None` where they may not be listed.
    async fn all_pods(&self) -> Result<Option<Pods>, TaskFailure> {
        let api: Api<Pod> = Api::all(self.platform.client.clone());
        match api.list(&ListParams::default().limit(MOST_PODS)).await {
            Ok(list) => {
                let all = list.metadata.continue_.as_deref().unwrap_or_default().is_empty();
                Ok(Some(Pods { pods: list.items, all }))
            }
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(kubernetes("can't list what runs", &error)),
        }
    }

    /// Namespaces that hold pods, cheaply counted.
    async fn applications(&self, pods: Option<&Pods>) -> Result<Vec<ApplicationFound>, TaskFailure> {
        let what = "can't list what runs";
        let Some(pods) = pods else { return Ok(Vec::new()) };
        let claims: Api<PersistentVolumeClaim> = Api::all(self.platform.client.clone());
        let drivers = data::all();
        let mut found: BTreeMap<
            String,
            (ApplicationFound, std::collections::BTreeSet<String>, std::collections::BTreeSet<String>),
        > = BTreeMap::new();
        for pod in &pods.pods {
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
        let claims = match claims.list(&ListParams::default().limit(5000)).await {
            Ok(claims) => claims.items,
            Err(kube::Error::Api(status)) if status.code == 403 => Vec::new(),
            Err(error) => return Err(kubernetes(what, &error)),
        };
        for claim in claims {
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
