//! The tasks of an agent at a simulated cluster: what the real ones do beneath `Work`, by the same calls to the repository.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use ocopea_agent::worker::{Begun, Job, Work};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{ComponentCopied, Consistency, ConsistencyLevel, DataKind, ImageAccess, StreamInfo},
    inventory::{ContainerFound, DataFound, Inventory, ObjectRef},
    message::HolderOrder,
    names::{ComponentName, Digest},
    plan::{ApplyPhase, ContainerPlacement, DataPlacement, RestorePlan},
    seams::Seams,
    session::Wish,
    task::{Claimed, EnvironmentMark, HolderState, RestoreTarget, Source, TaskKind, TaskOutput, TaskSpec},
};
use ocopea_repository::{Body, ImageSession, Record, StreamFacts};

use crate::{
    runtime::{Pid, Sim, WORLD},
    scenario::Weather,
    site::{Application, Doing, Loaded, Mover, Namespace, SERVICES, STREAMS, Site, Snapshot, items},
    store::Store,
};

/// After how long a helper ends by itself: the agent's `IDLE_S`.
pub const MOVER: Duration = Duration::from_secs(60);

pub struct SimWork {
    pub sim: Sim,
    pub weather: Weather,
    pub pid: Pid,
    pub site: Site,
    pub store: Store,
    pub seams: Seams,
}

/// Notes who does what; dropped, it is done no more.
struct Busy<'a>(&'a Site, Claimed, Pid);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(doing) = self.0.state().doing.get_mut(&self.1.task) {
            doing.retain(|doing| !(doing.pid == self.2 && doing.attempt == self.1.attempt));
        }
    }
}

/// A snapshot that is closed when nobody holds it.
struct Open<'a>(&'a Site, String);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state().snapshots.remove(&self.1);
    }
}

fn repository(what: &str, error: &ocopea_repository::Error) -> TaskFailure {
    if error.is_permanent() {
        TaskFailure::permanent(error.code(), what, error)
    } else {
        TaskFailure::retryable(error.code(), what, error)
    }
}

fn consistency() -> Consistency {
    let level = ConsistencyLevel::Snapshot;
    Consistency { level, why: String::new(), changed: vec![], changed_count: 0, frozen_ms: 0 }
}

fn data_found(service: &str) -> DataFound {
    DataFound {
        name: ComponentName::from_lossy(service),
        kind: if service == "files" { DataKind::Volume } else { DataKind::MongoDb },
        version: None,
        workload: None,
        pod: None,
        container: None,
        port: 1,
        hosts: vec![],
        claims: vec![],
        bytes: None,
        streams: None,
        features: vec![],
        consistency: consistency(),
        bindings: vec![],
        rights: vec![],
    }
}

/// The layer, configuration and manifest of an application's container image.
pub fn container(application: &str) -> [Bytes; 3] {
    let layer = Bytes::from(format!("the layer of {application}\n").repeat(20));
    let config = Bytes::from(format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"of\":{application:?}}}"));
    let kind = "application/vnd.oci.image";
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}.manifest.v1+json\",\"config\":{{\"mediaType\":\
         \"{kind}.config.v1+json\",\"digest\":\"{}\",\"size\":{}}},\"layers\":[{{\"mediaType\":\"{kind}.layer.v1.tar\",\
         \"digest\":\"{}\",\"size\":{}}}]}}",
        sha256(&config),
        config.len(),
        sha256(&layer),
        layer.len()
    );
    [layer, config, manifest.into()]
}

fn sha256(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Digest(digest.as_ref().try_into().expect("it has 32 bytes"))
}

fn config_of(application: &str) -> BTreeMap<String, Bytes> {
    let file = |name: &str| (format!("v1/{name}.json"), Bytes::from(format!("{{\"{name}\":{application:?}}}")));
    BTreeMap::from(["foundation", "server", "consumers"].map(file))
}

fn objects_digest(files: &BTreeMap<String, Bytes>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (path, bytes) in files {
        hasher.update(path.as_bytes()).update(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

fn stream_info(name: &str, items: &[Bytes], hash: [u8; 32]) -> StreamInfo {
    StreamInfo {
        name: name.to_owned(),
        unit: "items".to_owned(),
        items: items.len() as u64,
        bytes: items.iter().map(|item| item.len() as u64).sum(),
        content: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[async_trait]
impl Work for SimWork {
    async fn run(&self, job: Job, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        let _busy = self.begin(&job.claimed, spec.kind());
        let stop = job.stop.clone();
        if let TaskSpec::OpenSnapshot { source, data, .. } = &spec {
            return self.hold(&job, source, data).await;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(TaskFailure::cancelled("stopped")),
            done = self.done(&job, spec) => done,
        }
    }

    async fn session(&self, _wish: Wish) -> Result<Begun, TaskFailure> {
        Err(TaskFailure::permanent("session.none", "can't begin", "nobody does anything by hand here"))
    }
}

impl SimWork {
    /// No two do one task at the same time, but for one that was frozen and doesn't know yet that it is another's.
    fn begin(&self, claimed: &Claimed, kind: TaskKind) -> Busy<'_> {
        self.sim
            .note(|| format!("{:?} begins {} {} attempt {}", self.pid, kind.as_str(), claimed.task, claimed.attempt));
        let mut state = self.site.state();
        let doing = state.doing.entry(claimed.task).or_default();
        let other = doing.iter().find(|other| !other.was_frozen);
        if other.is_some() {
            self.sim.wrong(format!("two agents do one task at the same time ({})", kind.as_str()));
        }
        doing.push(Doing { pid: self.pid, attempt: claimed.attempt, was_frozen: false });
        Busy(&self.site, *claimed, self.pid)
    }

    async fn way(&self, what: &str) -> Result<(), TaskFailure> {
        let (slow, fails, hopeless) =
            self.weather.of(|rates| (rates.cluster_slow, rates.cluster_fails, rates.cluster_refuses));
        let (span, fails, hopeless) = self.sim.chance(|chance| {
            let span = if chance.per_mille(slow) { chance.within(500..30_000) } else { chance.within(1..30) };
            (span, chance.per_mille(fails), chance.per_mille(hopeless))
        });
        self.sim.sleep(Duration::from_millis(span)).await;
        if hopeless {
            return Err(TaskFailure::permanent("site.refused", what, "the cluster refuses it"));
        }
        if fails { Err(TaskFailure::retryable("site.unreachable", what, "the cluster doesn't answer")) } else { Ok(()) }
    }

    /// Asks the cluster for something. An answer may be lost, and then it was done.
    async fn call<T>(
        &self,
        what: &str,
        act: impl FnOnce(&mut crate::site::State) -> Result<T, TaskFailure> + Send,
    ) -> Result<T, TaskFailure> {
        self.way(what).await?;
        let answer = act(&mut self.site.state());
        self.way(what).await?;
        answer
    }

    async fn application(&self, source: &Source) -> Result<Application, TaskFailure> {
        let what = format!("can't find {}", source.namespace);
        self.call(&what, |state| {
            let found = state.applications.get(source.namespace.as_str()).cloned();
            found.ok_or_else(|| TaskFailure::permanent("application.not-found", &what, "there is none"))
        })
        .await
    }

    async fn image(&self, access: &ImageAccess) -> Result<ImageSession, TaskFailure> {
        ImageSession::over(Arc::new(self.store.clone()), access, &self.seams)
            .await
            .map_err(|error| repository("can't open the copy repository", &error))
    }

    async fn done(&self, job: &Job, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        match spec {
            TaskSpec::Inspect { source } => self.inspect(&source).await,
            TaskSpec::CopyConfig { source, access, .. } => self.copy_config(&source, &access).await,
            TaskSpec::CopyContainer { source, container, access } => {
                self.copy_container(&source, &container, &access).await
            }
            // Held by `hold`.
            TaskSpec::OpenSnapshot { .. } => Ok(TaskOutput::Done),
            TaskSpec::CopyData { data, snapshot, access, .. } => self.copy_data(job, &data, &snapshot, &access).await,
            TaskSpec::PlanRestore(target) => self.plan(&target).await,
            TaskSpec::CreateNamespace(mark) => self.create_namespace(&mark).await,
            TaskSpec::RemoveNamespace(mark) => self.remove_namespace(&mark).await,
            TaskSpec::PushContainer { placement, access, environment } => {
                let session = self.image(&access).await?;
                let what = "can't push an image";
                let pushed = session.get_manifest(&placement.digest).await;
                pushed.map_err(|error| repository(what, &error))?;
                self.call(what, |state| {
                    state.registry.insert(placement.target.clone(), (environment, placement.digest));
                    Ok(TaskOutput::Done)
                })
                .await
            }
            TaskSpec::RemoveContainer { placement, environment } => {
                self.call("can't remove an image", |state| {
                    if state.registry.get(&placement.target).is_some_and(|(of, _)| *of == environment) {
                        state.registry.remove(&placement.target);
                    }
                    Ok(TaskOutput::Done)
                })
                .await
            }
            TaskSpec::ApplyObjects { target, phase, objects_digest } => {
                self.apply(&target, &phase, &objects_digest).await
            }
            TaskSpec::LoadData { target, placement, streams } => self.load(&target, &placement, &streams).await,
            TaskSpec::AwaitReady { target, .. } => {
                self.within(&target.mark, "can't wait", |namespace| {
                    namespace.ready = true;
                    Ok(())
                })
                .await?;
                Ok(TaskOutput::Ready { url: None, notes: vec![] })
            }
            TaskSpec::CleanUp { operation, frozen, source, .. } => {
                self.call("can't clean up", |state| {
                    state.cleaned.insert(operation);
                    state.movers.retain(|_, mover| mover.operation != operation);
                    let namespace = source.map(|source| source.namespace.to_string()).unwrap_or_default();
                    if let Some(application) = state.applications.get_mut(&namespace) {
                        application.frozen.retain(|service, by| {
                            !(*by == operation && frozen.iter().any(|data| data.name.as_str() == service))
                        });
                    }
                    Ok(TaskOutput::Done)
                })
                .await
            }
        }
    }

    async fn inspect(&self, source: &Source) -> Result<TaskOutput, TaskFailure> {
        let application = self.application(source).await?;
        let [.., manifest] = container(&application.name);
        let web = ObjectRef { api_version: "v1".to_owned(), kind: "Deployment".to_owned(), name: "web".to_owned() };
        Ok(TaskOutput::Inspected(Box::new(Inventory {
            namespace: source.namespace.clone(),
            selector: None,
            application: application.name.clone(),
            kubernetes: "1.33.0".to_owned(),
            platforms: vec!["linux/amd64".to_owned()],
            objects: vec![web.clone()],
            config_bytes: 1,
            containers: vec![ContainerFound {
                name: ComponentName::from_lossy("web"),
                repository: "registry/web".to_owned(),
                tag: None,
                digest: sha256(&manifest),
                used_by: vec![web],
                pull_secrets: vec![],
            }],
            data: SERVICES.iter().map(|service| data_found(service)).collect(),
            gaps: vec![],
            base: None,
            fingerprint: application.name,
        })))
    }

    async fn copy_config(&self, source: &Source, access: &ImageAccess) -> Result<TaskOutput, TaskFailure> {
        let application = self.application(source).await?;
        let session = self.image(access).await?;
        let files = config_of(&application.name);
        let written =
            session.put_config(&files).await.map_err(|error| repository("can't save the configuration", &error))?;
        Ok(TaskOutput::ConfigCopied {
            component: ComponentCopied {
                name: ComponentName::from_lossy("config"),
                manifest: written.manifest,
                bytes: written.bytes,
                new_bytes: written.bytes,
                stored_bytes: written.stored_bytes,
            },
            config_digest: written.config_digest,
            objects: files.len() as u64,
            kinds: vec!["v1 Deployment".to_owned()],
            needs: Some(vec![]),
        })
    }

    async fn copy_container(
        &self,
        source: &Source,
        found: &ContainerFound,
        access: &ImageAccess,
    ) -> Result<TaskOutput, TaskFailure> {
        let what = "can't save a container image";
        let failed = |error: ocopea_repository::Error| repository(what, &error);
        let application = self.application(source).await?;
        let session = self.image(access).await?;
        let [layer, config, manifest] = container(&application.name);
        let mut stored = 0;
        for blob in [layer, config] {
            let (digest, size) = (sha256(&blob), blob.len() as u64);
            if !session.has_blob(&digest, size).await.map_err(failed)? {
                self.way(what).await?;
                let pieces = futures::stream::iter([Ok::<_, String>(blob)]);
                session.put_blob(&digest, size, pieces).await.map_err(failed)?;
                stored += size;
            }
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let digest = session.put_manifest(&manifest, kind).await.map_err(failed)?;
        Ok(TaskOutput::ContainerCopied {
            component: ComponentCopied {
                name: found.name.clone(),
                manifest: digest,
                bytes: stored,
                new_bytes: stored,
                stored_bytes: stored,
            },
            platforms: vec![("linux/amd64".to_owned(), digest)],
        })
    }

    /// As the real holder: prepare, open when all are prepared, hold, release.
    async fn hold(&self, job: &Job, source: &Source, data: &DataFound) -> Result<TaskOutput, TaskFailure> {
        let what = format!("can't hold a snapshot of {}", data.name);
        let operation = job.claimed.operation;
        let prepared = async {
            let application = self.application(source).await?;
            job.holder.set(HolderState::Prepared);
            self.seams.timeout(Duration::from_secs(120), job.holder.ordered(HolderOrder::OpenNow)).await.ok_or_else(
                || TaskFailure::retryable("save.barrier", what.as_str(), "the other data services were not prepared"),
            )?;
            Ok(application.name)
        };
        let application = tokio::select! {
            biased;
            () = job.stop.cancelled() => return Err(TaskFailure::cancelled(what)),
            prepared = prepared => prepared?,
        };
        let service = data.name.as_str();
        let opened = self.call(&what, |state| {
            state.next += 1;
            let id = format!("snapshot-{}", state.next);
            let found = state.applications.get_mut(&application);
            let found = found.ok_or_else(|| TaskFailure::permanent("application.not-found", &what, "it is gone"))?;
            if source.freeze {
                found.frozen.insert(service.to_owned(), operation);
            }
            let version = found.version;
            state.snapshots.insert(id.clone(), Snapshot { by: self.pid, application: application.clone(), version });
            Ok(Open(&self.site, id))
        });
        let open = opened.await?;
        job.holder.set(HolderState::Open { snapshot: open.1.clone(), at: self.seams.clock.now() });
        let released = tokio::select! {
            biased;
            () = job.stop.cancelled() => false,
            () = job.holder.ordered(HolderOrder::Release) => true,
        };
        // Whoever is told to let go does so, however often it takes.
        let let_go = |state: &mut crate::site::State| {
            release(state, &application, service, operation);
            Ok(())
        };
        while self.call(&what, let_go).await.is_err() {
            self.sim.sleep(Duration::from_millis(500)).await;
        }
        if released { Ok(TaskOutput::SnapshotReleased { frozen_ms: 0 }) } else { Err(TaskFailure::cancelled(what)) }
    }

    async fn copy_data(
        &self,
        job: &Job,
        data: &DataFound,
        snapshot: &str,
        access: &ImageAccess,
    ) -> Result<TaskOutput, TaskFailure> {
        let what = format!("can't save {}", data.name);
        let failed = |error: ocopea_repository::Error| repository(&what, &error);
        let (operation, service) = (job.claimed.operation, data.name.as_str());
        let mover = match data.kind {
            DataKind::Volume => Some(self.begin_mover(operation, service).await?),
            _ => None,
        };
        let session = self.image(access).await?;
        let writer = session.component(&data.name, data.kind).await.map_err(failed)?;
        let mut streams = Vec::new();
        for stream in STREAMS {
            let found = self
                .call(&what, |state| {
                    state.snapshots.get(snapshot).cloned().ok_or_else(|| {
                        TaskFailure::retryable("snapshot.gone", &what, "the snapshot is not open any more")
                    })
                })
                .await?;
            let (mut hasher, mut pieces) = (writer.item_hasher(), Vec::new());
            let mut to = writer.stream(stream.as_bytes()).await.map_err(failed)?;
            for item in items(&found.application, service, stream, found.version) {
                hasher.add(item.as_bytes());
                let item = Bytes::from(item);
                to.write(item.clone()).await.map_err(failed)?;
                pieces.push(item);
            }
            let (items, item_hash) = (hasher.items(), hasher.sum());
            let facts = StreamFacts { unit: "items".to_owned(), items, item_hash, attributes: BTreeMap::new() };
            to.finish(facts).await.map_err(failed)?;
            streams.push(stream_info(stream, &pieces, item_hash));
        }
        let written = writer.finish("{}").await.map_err(failed)?;
        if let Some(mover) = mover {
            self.call(&what, |state| Ok(state.movers.remove(&mover))).await?;
        }
        Ok(TaskOutput::DataCopied {
            component: ComponentCopied {
                name: data.name.clone(),
                manifest: written.manifest,
                bytes: written.bytes,
                new_bytes: written.new_bytes,
                stored_bytes: written.stored_bytes,
            },
            streams,
            consistency: consistency(),
            version: None,
            features: vec![],
            notices: vec![],
        })
    }

    /// A helper that reads files. It replaces that of an attempt before, and ends by itself at last.
    async fn begin_mover(
        &self,
        operation: ocopea_protocol::ids::OperationId,
        service: &str,
    ) -> Result<u64, TaskFailure> {
        let service = service.to_owned();
        let (sim, site) = (self.sim.clone(), self.site.clone());
        self.call("can't start a helper", |state| {
            let late = state.cleaned.contains(&operation);
            let mover = Mover { operation, service, late };
            state.movers.retain(|_, one| (one.operation, &one.service) != (operation, &mover.service));
            state.next += 1;
            let id = state.next;
            state.movers.insert(id, mover);
            // Whatever becomes of whoever began it.
            let clock = sim.clone();
            let end = async move {
                clock.sleep(MOVER).await;
                site.state().movers.remove(&id);
            };
            sim.spawn(WORLD, "mover", Box::pin(end));
            Ok(id)
        })
        .await
    }

    async fn record(&self, target: &RestoreTarget) -> Result<(ImageSession, Record), TaskFailure> {
        let session = self.image(&target.access).await?;
        let record = session.read_record(&target.record).await;
        Ok((session, record.map_err(|error| repository("can't read the image", &error))?))
    }

    async fn files(&self, target: &RestoreTarget) -> Result<(Record, BTreeMap<String, Bytes>), TaskFailure> {
        let (session, record) = self.record(target).await?;
        let config = record.components.iter().find(|component| matches!(component.body, Body::Config { .. }));
        let config = config.ok_or_else(|| TaskFailure::permanent("image.config", "can't restore", "it has none"))?;
        let files = session.read_config(&config.manifest).await;
        Ok((record, files.map_err(|error| repository("can't read the configuration", &error))?))
    }

    async fn plan(&self, target: &RestoreTarget) -> Result<TaskOutput, TaskFailure> {
        let (record, files) = self.files(target).await?;
        self.way("can't plan").await?;
        let environment = target.mark.environment;
        let (mut containers, mut data) = (Vec::new(), Vec::new());
        for component in &record.components {
            match &component.body {
                Body::Container { .. } => containers.push(ContainerPlacement {
                    component: component.name.clone(),
                    digest: component.manifest,
                    target: format!("registry/{environment}/{}", component.name),
                    push: true,
                }),
                Body::Data { found, .. } => data.push(DataPlacement {
                    component: component.name.clone(),
                    kind: found.kind,
                    manifest: component.manifest,
                    server: vec![ObjectRef {
                        api_version: "v1".to_owned(),
                        kind: "StatefulSet".to_owned(),
                        name: component.name.to_string(),
                    }],
                    claims: vec![],
                }),
                Body::Config { .. } => {}
            }
        }
        Ok(TaskOutput::Planned(Box::new(RestorePlan {
            environment: target.mark.name.clone(),
            steps: vec![],
            refusals: vec![],
            notices: vec![],
            containers,
            data,
            objects_digest: objects_digest(&files),
            digest: objects_digest(&files),
        })))
    }

    async fn create_namespace(&self, mark: &EnvironmentMark) -> Result<TaskOutput, TaskFailure> {
        let what = format!("can't make namespace {}", mark.name);
        self.call(&what, |state| {
            let made =
                || Namespace { mark: mark.clone(), objects: BTreeSet::new(), data: BTreeMap::new(), ready: false };
            let there = state.namespaces.entry(mark.name.to_string()).or_insert_with(made);
            if there.mark.environment != mark.environment {
                return Err(TaskFailure::conflict("environment.exists", &what, "there is another"));
            }
            Ok(TaskOutput::Done)
        })
        .await
    }

    async fn remove_namespace(&self, mark: &EnvironmentMark) -> Result<TaskOutput, TaskFailure> {
        self.call("can't remove a namespace", |state| {
            let name = mark.name.as_str();
            if state.namespaces.get(name).is_some_and(|there| there.mark.environment == mark.environment) {
                state.namespaces.remove(name);
            }
            Ok(TaskOutput::Done)
        })
        .await
    }

    /// Something within the environment's own namespace.
    async fn within<T>(
        &self,
        mark: &EnvironmentMark,
        what: &str,
        act: impl FnOnce(&mut Namespace) -> Result<T, TaskFailure> + Send,
    ) -> Result<T, TaskFailure> {
        self.call(what, |state| {
            let there = state.namespaces.get_mut(mark.name.as_str());
            let own = there.filter(|there| there.mark.environment == mark.environment);
            act(own.ok_or_else(|| TaskFailure::permanent("environment.gone", what, "its namespace is not there"))?)
        })
        .await
    }

    async fn apply(
        &self,
        target: &RestoreTarget,
        phase: &ApplyPhase,
        approved: &str,
    ) -> Result<TaskOutput, TaskFailure> {
        let what = "can't apply the configuration";
        let (record, files) = self.files(target).await?;
        if objects_digest(&files) != approved {
            return Err(TaskFailure::conflict("restore.changed", what, "it is not what was planned"));
        }
        let data = record.components.iter().filter(|component| matches!(component.body, Body::Data { .. }));
        let data: Vec<String> = data.map(|component| component.name.to_string()).collect();
        let object = match phase {
            ApplyPhase::Foundation => "foundation".to_owned(),
            ApplyPhase::Server(name) => format!("server {name}"),
            ApplyPhase::Consumers => "consumers".to_owned(),
        };
        self.within(&target.mark, what, |namespace| {
            let complete = data.iter().all(|name| namespace.data.get(name).is_some_and(|data| data.complete));
            if *phase == ApplyPhase::Consumers && !complete {
                self.sim.wrong("an application was started before its data was there".to_owned());
            }
            namespace.objects.insert(object);
            Ok(TaskOutput::Done)
        })
        .await
    }

    async fn load(
        &self,
        target: &RestoreTarget,
        placement: &DataPlacement,
        wanted: &[StreamInfo],
    ) -> Result<TaskOutput, TaskFailure> {
        let what = format!("can't load {}", placement.component);
        let failed = |error: ocopea_repository::Error| repository(&what, &error);
        let name = placement.component.to_string();
        let session = self.image(&target.access).await?;
        let reader = session.reader(&placement.manifest).await.map_err(failed)?;
        let by = self.sim.chance(crate::chance::Chance::next);
        // Whatever an attempt before has loaded goes, and so does its connection.
        self.within(&target.mark, &what, |namespace| {
            namespace.data.insert(name.clone(), Loaded { by, ..Loaded::default() });
            Ok(())
        })
        .await?;
        let mut counted = Vec::new();
        for stream in reader.streams().await.map_err(failed)? {
            let label = String::from_utf8_lossy(&stream.name).into_owned();
            let mut pieces = reader.read(&stream.name).await.map_err(failed)?;
            let mut all = Vec::new();
            while let Some(piece) = pieces.try_next().await.map_err(failed)? {
                all.extend_from_slice(&piece);
                let done = self.within(&target.mark, &what, |namespace| {
                    let data = namespace.data.entry(name.clone()).or_default();
                    if data.by != by {
                        return Err(TaskFailure::retryable("load.lost", &what, "another load has begun"));
                    }
                    data.streams.insert(label.clone(), all.clone());
                    Ok(())
                });
                done.await?;
            }
            let mut hasher = session.item_hasher();
            let items: Vec<Bytes> = all.split_inclusive(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect();
            items.iter().for_each(|item| hasher.add(item));
            counted.push(stream_info(&label, &items, hasher.sum()));
        }
        if counted != wanted {
            let cause = "what arrived is not what was saved";
            return Err(TaskFailure::permanent("load.differs", what, cause));
        }
        self.within(&target.mark, &what, |namespace| {
            let data = namespace.data.entry(name.clone()).or_default();
            if data.by != by {
                return Err(TaskFailure::retryable("load.lost", &what, "another load has begun"));
            }
            data.complete = true;
            Ok(())
        })
        .await?;
        Ok(TaskOutput::Loaded { streams: counted, notices: vec![] })
    }
}

fn release(
    state: &mut crate::site::State,
    application: &str,
    service: &str,
    operation: ocopea_protocol::ids::OperationId,
) {
    if let Some(found) = state.applications.get_mut(application)
        && found.frozen.get(service) == Some(&operation)
    {
        found.frozen.remove(service);
    }
}
