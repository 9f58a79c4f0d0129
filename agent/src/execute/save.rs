//! The tasks of a save.

use std::sync::Arc;

use futures::{StreamExt, stream};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{ComponentCopied, ImageAccess},
    inventory::{ContainerFound, DataFound, DeployedFrom, Gap, Inventory},
    names::ComponentName,
    task::{Source, TaskOutput},
};
use ocopea_repository::ImageSession;

use super::Task;
use crate::{
    application::{Application, Located},
    configs::{object_ref, rewrite::split_image, to_files},
    containers::{Credentials, copy_in},
    failures::{kubernetes, repository},
    needs::needs,
    platform::mover::ONE_POD,
    reach::reach,
};

/// Data services that are looked at together.
const AT_ONCE: usize = 8;

impl Task {
    pub(super) async fn inspect(&self, source: &Source) -> Result<TaskOutput, TaskFailure> {
        let platform = &self.site.platform;
        platform.opted_in(source.namespace.as_str()).await?;
        let marks = platform.namespace_marks(source.namespace.as_str()).await?;
        let application = self.gather(source).await?;
        if application.objects.is_empty() {
            return Err(TaskFailure::permanent(
                "application.empty",
                format!("can't find an application in namespace {}", source.namespace),
                match &source.selector {
                    Some(selector) => format!("nothing there carries {selector}"),
                    None => "it holds nothing but what the cluster made".to_owned(),
                },
            )
            .next("see what runs: ocopea applications"));
        }
        let what = "can't find out the cluster's version";
        let version = platform.client.apiserver_version().await.map_err(|error| kubernetes(what, &error))?;
        let mut looks = Vec::new();
        for located in &application.data {
            looks.push(self.look_at(source, located));
        }
        let mut data: Vec<DataFound> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        let inner = leave_out_within(&mut data, &source.without);
        let files = to_files(&application.objects)?;
        let config_bytes = files.values().map(|bytes| bytes.len() as u64).sum();
        let mut platforms: Vec<String> = self.site.platform.architectures().await?;
        platforms.dedup();
        let fingerprint = application.fingerprint();
        let mut gaps = application.gaps;
        if !source.without.is_empty() {
            let all = self.gather(&Source { without: Vec::new(), ..source.clone() }).await?;
            gaps.extend(self.left_out(source, &all, &inner));
        }
        Ok(TaskOutput::Inspected(Box::new(Inventory {
            namespace: source.namespace.clone(),
            selector: source.selector.clone(),
            application: source
                .selector
                .as_ref()
                .and_then(|s| s.split(',').next()?.rsplit_once('=').map(|(_, value)| value.trim()))
                .unwrap_or(source.namespace.as_str())
                .to_owned(),
            kubernetes: version.git_version.trim_start_matches('v').to_owned(),
            platforms,
            objects: application.objects.iter().map(object_ref).collect(),
            config_bytes,
            containers: application.containers,
            data,
            gaps,
            base: marks.map(|(environment, record)| DeployedFrom { environment, record }),
            fingerprint,
        })))
    }

    /// What was left out by name, and names that nothing has: a typing error must not be found out after the save.
    fn left_out(&self, source: &Source, all: &Application, inner: &[Gap]) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for name in &source.without {
            let gap = all.gaps.iter().chain(inner).find(|g| g.name == *name);
            let exists = gap.is_some()
                || all.containers.iter().any(|c| c.name.as_str() == name)
                || all.data.iter().any(|d| d.found.name.as_str() == name)
                || all.objects.iter().any(|o| object_ref(o).to_string() == *name);
            gaps.push(if exists {
                Gap {
                    name: name.clone(),
                    what: gap.map_or_else(|| format!("component {name}"), |gap| gap.what.clone()),
                    why: "left out by name".to_owned(),
                    blocking: false,
                    next: String::new(),
                }
            } else {
                Gap {
                    name: name.clone(),
                    what: format!("--without {name}"),
                    why: "the application has no component of that name".to_owned(),
                    blocking: true,
                    next: format!("see the names: ocopea inspect {}/{}", self.site.name, source.namespace),
                }
            });
        }
        gaps
    }

    /// Reads the application, and asks registries for the digests that no pod shows.
    async fn gather(&self, source: &Source) -> Result<Application, TaskFailure> {
        let mut application = Application::gather(&self.site.platform, source).await?;
        for image in application.unresolved.clone().into_iter().filter(|image| !image.starting) {
            let (repository, tag, _) = split_image(&image.image);
            let credentials = self.pull_credentials(source, &image.image, &image.pull_secrets).await?;
            let tag = tag.unwrap_or_else(|| "latest".to_owned());
            // Where no registry tells it, the gap stays and says so.
            match self.registries(credentials).resolve(&repository, &tag).await {
                Ok(Some(found)) => application.resolved(&image, found.digest),
                Ok(None) => application.unresolved_because(&image, "its registry has no such tag"),
                Err(failure) => application.unresolved_because(&image, &failure.cause),
            }
        }
        Ok(application)
    }

    /// The pods' own pull secrets first, then the user's Docker configuration.
    async fn pull_credentials(
        &self,
        source: &Source,
        what: &str,
        secrets: &[String],
    ) -> Result<Credentials, TaskFailure> {
        let mut credentials = Credentials::default();
        for name in secrets {
            let text = self.site.platform.docker_config(source.namespace.as_str(), name).await?;
            let Some(text) = text else { continue };
            match Credentials::parse(&format!("secret {name}"), &text) {
                Ok(parsed) => credentials.extend(parsed),
                // As for kubelets: the others may do.
                Err(error) => tracing::warn!(image = what, %error, "a pull secret can't be used"),
            }
        }
        credentials.extend(self.site.credentials.clone());
        Ok(credentials)
    }

    /// What a data service says of itself; what it doesn't let us see blocks the save, named.
    async fn look_at(&self, source: &Source, located: &Located) -> DataFound {
        let mut found = located.found.clone();
        let looked = async {
            let reached = reach(self, &source.namespace, located).await?;
            reached.driver.inspect(&reached.subject).await
        };
        match looked.await {
            Ok(inspected) => {
                found.version = inspected.version;
                found.bytes = inspected.bytes;
                found.streams = inspected.streams;
                found.features = inspected.features;
                found.consistency = inspected.consistency;
                found.rights = inspected.gaps;
            }
            // Read only after what has it was ended, so that nothing of it can be told before.
            Err(failure) if failure.code == ONE_POD && source.freeze => {}
            Err(failure) => found.rights.push(Gap {
                name: found.name.to_string(),
                what: failure.what,
                why: failure.cause,
                blocking: true,
                next: failure.next,
            }),
        }
        found
    }

    pub(super) async fn copy_config(
        &self,
        source: &Source,
        access: &ImageAccess,
        fingerprint: &str,
    ) -> Result<TaskOutput, TaskFailure> {
        let application = self.gather(source).await?;
        if application.fingerprint() != fingerprint {
            return Err(TaskFailure::conflict(
                "application.changed",
                format!("can't save {}", source.namespace),
                "its containers or data services changed while it was being saved",
            )
            .next("save again once the rollout is through"));
        }
        let files = to_files(&application.objects)?;
        let session = self.session(access).await?;
        let written =
            session.put_config(&files).await.map_err(|error| repository("can't save the configuration", &error))?;
        let mut kinds: Vec<String> = application
            .objects
            .iter()
            .map(|object| {
                let reference = object_ref(object);
                format!("{} {}", reference.api_version, reference.kind)
            })
            .collect();
        kinds.sort();
        kinds.dedup();
        Ok(TaskOutput::ConfigCopied {
            component: ComponentCopied {
                name: ComponentName::from_lossy("config"),
                manifest: written.manifest,
                bytes: written.bytes,
                new_bytes: if written.stored_bytes > 0 { written.bytes } else { 0 },
                stored_bytes: written.stored_bytes,
            },
            config_digest: written.config_digest,
            objects: application.objects.len() as u64,
            kinds,
            needs: Some(needs(&application.objects)),
        })
    }

    pub(super) async fn copy_container(
        &self,
        source: &Source,
        container: &ContainerFound,
        access: &ImageAccess,
    ) -> Result<TaskOutput, TaskFailure> {
        let what = format!("container image {}", container.name);
        let credentials = self.pull_credentials(source, &what, &container.pull_secrets).await?;
        let session = self.session(access).await?;
        let copied = copy_in(&self.registries(credentials), container, &session, Arc::clone(&self.progress)).await?;
        Ok(TaskOutput::ContainerCopied { component: copied.component, platforms: copied.platforms })
    }

    pub(super) async fn copy_data(
        &self,
        source: &Source,
        data: &DataFound,
        snapshot: &str,
        access: &ImageAccess,
    ) -> Result<TaskOutput, TaskFailure> {
        let application = Application::gather(&self.site.platform, source).await?;
        let located = application.locate(&data.name)?;
        let reached = reach(self, &source.namespace, located).await?;
        let session: ImageSession = self.session(access).await?;
        let what = format!("can't save {}", data.name);
        let writer = session.component(&data.name, data.kind).await.map_err(|error| repository(&what, &error))?;
        let copied = tokio::select! {
            () = self.stop.cancelled() => return Err(TaskFailure::cancelled(what)),
            copied = reached.driver.copy(&reached.subject, snapshot, &writer) => copied?,
        };
        let written = writer.finish(&copied.facts).await.map_err(|error| repository(&what, &error))?;
        Ok(TaskOutput::DataCopied {
            component: ComponentCopied {
                name: data.name.clone(),
                manifest: written.manifest,
                bytes: written.bytes,
                new_bytes: written.new_bytes,
                stored_bytes: written.stored_bytes,
            },
            streams: copied.streams,
            consistency: copied.consistency,
            version: copied.version,
            features: copied.features,
            notices: copied.notices,
        })
    }

    /// Lets go of what a dead holder may have left.
    pub(super) async fn clean_up(
        &self,
        frozen: &[DataFound],
        source: Option<&Source>,
    ) -> Result<TaskOutput, TaskFailure> {
        let Some(source) = source else { return Ok(TaskOutput::Done) };
        self.site.platform.remove_movers(source.namespace.as_str(), self.claimed.operation, None).await?;
        if frozen.is_empty() {
            return Ok(TaskOutput::Done);
        }
        let application = Application::gather(&self.site.platform, source).await?;
        for data in frozen {
            // A service that is gone holds nothing.
            let Ok(located) = application.locate(&data.name) else { continue };
            let reached = reach(self, &source.namespace, located).await?;
            reached.driver.unfreeze(&reached.subject).await?;
        }
        Ok(TaskOutput::Done)
    }
}

/// Takes from what data services can't save whatever is left out by name: a driver leaves out what it could not load.
fn leave_out_within(data: &mut [DataFound], without: &[String]) -> Vec<Gap> {
    let mut left_out = Vec::new();
    for found in data {
        let (left, stay): (Vec<Gap>, Vec<Gap>) = std::mem::take(&mut found.rights)
            .into_iter()
            .partition(|gap| gap.name != found.name.as_str() && without.contains(&gap.name));
        found.rights = stay;
        left_out.extend(left);
    }
    left_out
}

#[cfg(test)]
mod tests {
    use ocopea_protocol::image::{Consistency, ConsistencyLevel, DataKind};

    use super::*;

    #[test]
    fn what_a_data_service_can_not_restore_is_left_out_by_its_own_name_and_nothing_else_is() {
        let gap = |name: &str| Gap {
            name: name.to_owned(),
            what: String::new(),
            why: String::new(),
            blocking: true,
            next: String::new(),
        };
        let mut data = [DataFound {
            name: ComponentName::from_lossy("shop-db"),
            kind: DataKind::PostgreSql,
            version: None,
            workload: None,
            pod: None,
            container: None,
            port: 5432,
            hosts: vec![],
            claims: vec![],
            bytes: None,
            streams: None,
            features: vec![],
            consistency: Consistency {
                level: ConsistencyLevel::Snapshot,
                why: String::new(),
                changed: vec![],
                changed_count: 0,
                frozen_ms: 0,
            },
            bindings: vec![],
            rights: vec![gap("shop-db"), gap("shop-db:event-trigger:shop.audit"), gap("shop-db:subscription:shop.s")],
        }];
        let without = ["shop-db".to_owned(), "shop-db:event-trigger:shop.audit".to_owned()];
        let left: Vec<String> = leave_out_within(&mut data, &without).into_iter().map(|gap| gap.name).collect();
        assert_eq!(left, ["shop-db:event-trigger:shop.audit"]);
        let stay: Vec<&str> = data[0].rights.iter().map(|gap| gap.name.as_str()).collect();
        assert_eq!(stay, ["shop-db", "shop-db:subscription:shop.s"]);
    }
}
