//! Two sites to test with, and tasks run on them as a worker would.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use ocopea_agent::{
    containers::{Credentials, RegistryContext, RegistryHost},
    execute::{HolderCell, Site, Task},
    platform::{Platform, apply::resource_of},
};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::{EnvironmentId, InstanceId, OperationId, TaskId},
    message::HolderOrder,
    names::Digest,
    seams::Seams,
    task::{Claimed, EnvironmentMark, HolderState, TaskOutput, TaskSpec},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn setting(name: &str, usual: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| usual.to_owned())
}

fn registry_host() -> String {
    setting("OCOPEA_TEST_REGISTRY", "172.31.0.254:5000")
}

/// An image of the testbed.
pub fn image(name: &str) -> String {
    format!("{}/testbed/{name}", registry_host())
}

/// The mover's image as the testbed has it: built and pushed unless it is there.
fn mover_image() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    let made = || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/testbed/mover-image.sh");
        let output = std::process::Command::new(script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    };
    IMAGE.get_or_init(|| std::env::var("OCOPEA_MOVER_IMAGE").unwrap_or_else(|_| made())).clone()
}

pub struct TestSite {
    pub site: Arc<Site>,
}

/// The two sites.
pub async fn two() -> [TestSite; 2] {
    let names = setting("OCOPEA_TEST_SITES", "a,b");
    let (one, other) = names.split_once(',').expect("OCOPEA_TEST_SITES is A,B");
    [TestSite::open(one).await, TestSite::open(other).await]
}

impl TestSite {
    pub async fn open(context: &str) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/../.testbed/kubeconfig");
        let path = PathBuf::from(setting("OCOPEA_TEST_KUBECONFIG", usual));
        assert!(path.exists(), "no clusters to test with at {}: bring them up with `make testbed`", path.display());
        let seams = Seams::real(TaskTracker::new());
        let platform = Platform::open(Some(&path), context, seams.clone()).await.unwrap();
        let registry: RegistryHost = format!("http://{}/ocopea-test", registry_host()).parse().unwrap();
        let mover_image = Some(mover_image());
        let credentials = Credentials::default();
        let name = context.to_owned();
        Self {
            site: Arc::new(Site {
                name,
                platform,
                restoring: None,
                registry: Some(registry),
                mover_image,
                credentials,
                stores: Default::default(),
                limits: Default::default(),
                seams,
            }),
        }
    }

    fn task(&self, operation: OperationId) -> (Task, CancellationToken) {
        let seams = &self.site.seams;
        let stop = CancellationToken::new();
        let task = Task {
            site: Arc::clone(&self.site),
            claimed: Claimed {
                task: TaskId::generate(seams),
                operation,
                attempt: 1,
                instance: InstanceId::generate(seams),
            },
            stop: stop.clone(),
            progress: Arc::new(|_| {}),
            holder: Arc::new(HolderCell::default()),
            way: None,
        };
        (task, stop)
    }

    /// Does a task to its end.
    pub async fn run(&self, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        self.run_as(OperationId::generate(&self.site.seams), spec).await
    }

    /// Does a task of this operation to its end.
    pub async fn run_as(&self, operation: OperationId, spec: TaskSpec) -> Result<TaskOutput, TaskFailure> {
        let (task, _) = self.task(operation);
        let kind = spec.kind();
        let begun = self.site.seams.clock.monotonic();
        let result = task.run(spec).await;
        println!("{:?} {} {kind:?}", self.site.seams.clock.monotonic() - begun, self.site.name);
        result
    }

    /// Starts a holder.
    pub fn start(&self, spec: TaskSpec) -> Holder {
        let (task, stop) = self.task(OperationId::generate(&self.site.seams));
        let (cell, claimed) = (Arc::clone(&task.holder), task.claimed);
        let (sender, ended) = oneshot::channel();
        self.site.seams.spawner.spawn(
            "test.holder",
            Box::pin(async move {
                let _ = sender.send(task.run(spec).await);
            }),
        );
        Holder { cell, claimed, stop, ended, seams: self.site.seams.clone() }
    }

    /// A namespace of its own; removed by [`TestNamespace::remove`], or when the test fails.
    pub async fn namespace(&self, name: &str) -> TestNamespace {
        let environment = EnvironmentId::generate(&self.site.seams);
        let id = environment.to_string();
        let mark = EnvironmentMark {
            environment,
            name: format!("{name}-{}", &id[id.len() - 6..]).parse().unwrap(),
            operation: OperationId::generate(&self.site.seams),
            record: Digest([0; 32]),
        };
        self.site.platform.create_namespace(&mark).await.unwrap();
        TestNamespace { site: Arc::clone(&self.site), mark, removed: false }
    }

    pub async fn apply(&self, namespace: &str, object: &Value) {
        let resources = self.site.platform.namespaced_resources().await.unwrap();
        let resource = resource_of(&resources, object).unwrap();
        self.site.platform.apply(resource, namespace, object, false).await.unwrap();
    }

    /// What runs there or is just ending.
    pub async fn pods(&self, namespace: &str) -> Vec<Pod> {
        let pods: kube::Api<Pod> = kube::Api::namespaced(self.site.platform.client.clone(), namespace);
        pods.list(&kube::api::ListParams::default()).await.unwrap().items
    }

    /// Waits until a pod that nothing controls runs.
    pub async fn pod_ready(&self, namespace: &str, name: &str) {
        for _ in 0..300 {
            let running = |pod: &Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                pod.metadata.name.as_deref() == Some(name) && phase == Some("Running")
            };
            if self.pods(namespace).await.iter().any(running) {
                return;
            }
            self.site.seams.clock.sleep(Duration::from_millis(100)).await;
        }
        panic!("pod {name} doesn't run");
    }

    /// Waits until workloads are ready.
    pub async fn ready(&self, namespace: &str, workloads: &[(&str, &str)]) {
        let resources = self.site.platform.namespaced_resources().await.unwrap();
        let of = |kind: &str| resource_of(&resources, &json!({"apiVersion": "apps/v1", "kind": kind})).unwrap().clone();
        let workloads: Vec<_> = workloads.iter().map(|(kind, name)| (of(kind), (*name).to_owned())).collect();
        let stop = CancellationToken::new();
        self.site.platform.await_ready(namespace, &workloads, Duration::from_secs(120), &stop).await.unwrap();
    }

    pub async fn job_done(&self, namespace: &str, name: &str) {
        for _ in 0..200 {
            let contents = self.site.platform.contents(namespace, None).await.unwrap();
            let job = contents
                .configuration
                .iter()
                .find(|f| f.resource.kind == "Job" && f.object["metadata"]["name"] == name);
            if job.is_some_and(|job| job.object["status"]["succeeded"] == 1) {
                return;
            }
            self.site.seams.clock.sleep(Duration::from_millis(300)).await;
        }
        panic!("job {name} isn't done");
    }

    /// A page over plain HTTP. A node opens a port some time after the cluster has accepted it: refusals are
    /// tried again for ten seconds.
    pub async fn get(&self, url: &str) -> String {
        let host = url.strip_prefix("http://").unwrap().trim_end_matches('/');
        let mut refused = 0;
        let mut connection = loop {
            match tokio::net::TcpStream::connect(host).await {
                Ok(connection) => break connection,
                Err(error) if refused == 50 => panic!("{host}: {error}"),
                Err(_) => refused += 1,
            }
            self.site.seams.clock.sleep(Duration::from_millis(200)).await;
        };
        let request = format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub async fn in_registry(&self, repository: &str, digest: &Digest) -> bool {
        let context = RegistryContext {
            credentials: Arc::default(),
            plain_hosts: vec![registry_host()],
            seams: self.site.seams.clone(),
            stop: CancellationToken::new(),
        };
        context.resolve(repository, &format!("@{digest}")).await.unwrap().is_some()
    }
}

/// A task that holds a snapshot.
pub struct Holder {
    cell: Arc<HolderCell>,
    pub claimed: Claimed,
    stop: CancellationToken,
    ended: oneshot::Receiver<Result<TaskOutput, TaskFailure>>,
    seams: Seams,
}

impl Holder {
    async fn state(&self, fits: impl Fn(&HolderState) -> bool) -> HolderState {
        for _ in 0..600 {
            if let Some(state) = self.cell.state().filter(&fits) {
                return state;
            }
            assert!(!self.ended.is_terminated(), "the holder has ended");
            self.seams.clock.sleep(Duration::from_millis(50)).await;
        }
        panic!("the holder never came so far: {:?}", self.cell.state());
    }

    pub async fn prepared(&self) {
        self.state(|state| matches!(state, HolderState::Prepared)).await;
    }

    pub fn open_now(&self) {
        self.cell.order(HolderOrder::OpenNow);
    }

    pub async fn opened(&self) -> String {
        match self.state(|state| matches!(state, HolderState::Open { .. })).await {
            HolderState::Open { snapshot, .. } => snapshot,
            HolderState::Prepared => unreachable!(),
        }
    }

    pub async fn release(self) -> Result<TaskOutput, TaskFailure> {
        self.cell.order(HolderOrder::Release);
        self.ended.await.unwrap()
    }

    pub async fn ended(self) -> Result<TaskOutput, TaskFailure> {
        self.ended.await.unwrap()
    }

    pub async fn cancel(self) -> Result<TaskOutput, TaskFailure> {
        self.stop.cancel();
        self.ended.await.unwrap()
    }
}

pub struct TestNamespace {
    site: Arc<Site>,
    pub mark: EnvironmentMark,
    removed: bool,
}

impl TestNamespace {
    pub async fn remove(mut self) {
        self.site.platform.remove_namespace(&self.mark, &CancellationToken::new()).await.unwrap();
        self.removed = true;
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (site, mark) = (Arc::clone(&self.site), self.mark.clone());
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let _ = site.platform.remove_namespace(&mark, &CancellationToken::new()).await;
            });
        });
    }
}
