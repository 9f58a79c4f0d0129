//! A save in one cluster and a restore in another, task by task, with the test in the coordinator's place. Needs the
//! testbed (`make testbed`), or two contexts and a registry named by OCOPEA_TEST_KUBECONFIG, OCOPEA_TEST_SITES=A,B
//! and OCOPEA_TEST_REGISTRY.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test fail by panicking")]

#[path = "support/site.rs"]
mod site;

use std::{collections::BTreeMap, time::Duration};

use ocopea_agent::{
    configs::object_ref,
    data::Tools,
    platform::{exec::PodTools, hold::Hold},
};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    ids::{EnvironmentId, ImageId, OperationId, TeamId},
    image::{ComponentCopied, Consistency, ConsistencyLevel, ImageAccess, Location, StreamInfo},
    inventory::Inventory,
    names::{ComponentName, Digest},
    needs::Need,
    plan::{ApplyPhase, RestorePlan, StepAction, VersionChoice},
    task::{EnvironmentMark, RestoreTarget, Source, TaskOutput, TaskSpec},
};
use ocopea_repository::{
    Body, CommitRequest, Component, ImageSession, Keyring, Platform as ImagePlatform, RECORD_VERSION, Record,
    Repository, StoreAccess,
};
use serde_json::json;
use site::{TestSite, image};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

const ROWS: u64 = 5000;

fn objects(namespace: &str) -> Vec<serde_json::Value> {
    let url = format!("postgres://shop:s3cret-canary@postgres.{namespace}.svc:5432/shop");
    vec![
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "stringData": {"password": "s3cret-canary", "url": url}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {
            "app.ini": format!("[db]\nhost = postgres.{namespace}.svc.cluster.local\nname = {namespace}\n")}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "postgres"}, "spec": {"selector": {"app": "postgres"}, "ports": [{"port": 5432}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "postgres"}, "spec": {"serviceName": "postgres",
            "selector": {"matchLabels": {"app": "postgres"}}, "template": {"metadata": {"labels": {"app": "postgres"}}, "spec": {
                "terminationGracePeriodSeconds": 5, "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
                "containers": [{"name": "postgres", "image": image("postgres:15"), "imagePullPolicy": "Always", "ports": [{"containerPort": 5432}],
                    "env": [{"name": "POSTGRES_USER", "value": "shop"}, {"name": "POSTGRES_DB", "value": "shop"},
                        {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},
                        {"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}],
                    "readinessProbe": {"exec": {"command": ["pg_isready", "-h", "127.0.0.1", "-U", "shop"]}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}}),
    ]
}

/// Starts only where the data is there: by its own init container, with the application's own settings.
fn consumers() -> Vec<serde_json::Value> {
    let check = format!(
        "test \"$(psql \"$DATABASE_URL\" -Atc 'select count(*) from items')\" = {ROWS} && grep -q . /etc/app/app.ini"
    );
    vec![
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "scratch", "emptyDir": {}}],
                "initContainers": [{"name": "check", "image": image("postgres:15"), "command": ["bash", "-c", check],
                    "env": [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "db", "key": "url"}}}],
                    "volumeMounts": [{"name": "settings", "mountPath": "/etc/app"}]}],
                "containers": [{"name": "web", "image": image("busybox:1"), "ports": [{"name": "http", "containerPort": 8080}],
                    "command": ["sh", "-c", "mkdir -p /scratch/www && echo shop > /scratch/www/index.html && exec httpd -f -p 8080 -h /scratch/www"],
                    "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}]}}}}),
        // Never ran: only the registry can tell its digest.
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "report"}, "spec": {"schedule": "0 3 * * *", "suspend": true,
            "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "r", "image": image("mongodb:6")}]}}}}}}),
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "migrate"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "m", "image": image("busybox:1"), "command": ["true"]}]}}}}),
    ]
}

async fn sql(site: &TestSite, namespace: &str, statement: &str) -> String {
    let tools = PodTools {
        platform: site.site.platform.clone(),
        namespace: namespace.to_owned(),
        pod: "postgres-0".to_owned(),
        container: Some("postgres".to_owned()),
        port: 5432,
    };
    let arguments =
        ["-h", "/tmp", "-U", "shop", "-d", "shop", "-v", "ON_ERROR_STOP=1", "-Atc", statement].map(str::to_owned);
    let mut tool = tools.start("psql", &arguments, &[], None).await.unwrap();
    let mut output = String::new();
    tool.output.read_to_string(&mut output).await.unwrap();
    let (status, errors) = tool.ended.await.unwrap();
    assert_eq!(status, 0, "{statement}: {errors}");
    output.trim().to_owned()
}

/// A repository in a directory of its own.
struct Store {
    _place: tempfile::TempDir,
    repository: Repository,
    team: TeamId,
}

impl Store {
    async fn new(site: &TestSite) -> Self {
        let place = tempfile::tempdir().unwrap();
        let location = Location::Directory { path: place.path().join("repository").display().to_string() };
        let keyring = Keyring::generate(&site.site.seams);
        let repository =
            Repository::create(&location, &StoreAccess::default(), &keyring, &site.site.seams).await.unwrap();
        Self { _place: place, repository, team: TeamId::generate(&site.site.seams) }
    }
}

struct Saved {
    record: Digest,
    inventory: Inventory,
    config_digest: String,
    containers: BTreeMap<String, Digest>,
    streams: BTreeMap<ComponentName, Vec<StreamInfo>>,
    consistency: BTreeMap<ComponentName, Consistency>,
    new_bytes: u64,
}

/// What the coordinator does at a save.
async fn save(site: &TestSite, store: &Store, source: &Source, base: Option<&Digest>) -> Saved {
    let TaskOutput::Inspected(inventory) = site.run(TaskSpec::Inspect { source: source.clone() }).await.unwrap() else {
        panic!("not inspected")
    };
    let blocking: Vec<_> = inventory.gaps.iter().filter(|gap| gap.blocking).collect();
    assert!(
        blocking.is_empty() && inventory.data.iter().all(|d| d.rights.is_empty()),
        "{blocking:?} {:?}",
        inventory.data
    );
    let key = store.repository.new_image_key(store.team).await.unwrap();
    let access = store.repository.access_to_write(&key, base).await.unwrap();

    // All snapshots are open at one instant, before the first copy begins.
    let mut holders = Vec::new();
    for data in &inventory.data {
        let spec = TaskSpec::OpenSnapshot { source: source.clone(), data: data.clone(), epoch: 1 };
        holders.push(site.start(spec));
    }
    for holder in &holders {
        holder.prepared().await;
    }
    let mut snapshots = Vec::new();
    for holder in &holders {
        holder.open_now();
    }
    for holder in &holders {
        snapshots.push(holder.opened().await);
    }
    let mut components = Vec::new();
    let fingerprint = inventory.fingerprint.clone();
    let spec = TaskSpec::CopyConfig { source: source.clone(), access: access.clone(), fingerprint };
    let TaskOutput::ConfigCopied { component, config_digest, objects, kinds, needs } = site.run(spec).await.unwrap()
    else {
        panic!("no configuration")
    };
    assert_eq!(objects, inventory.objects.len() as u64);
    assert!(needs.iter().flatten().any(|need| matches!(need, Need::Pod(_))), "{needs:?}");
    components.push(part(&component, Body::Config { objects, kinds }));
    let mut containers = BTreeMap::new();
    for container in &inventory.containers {
        let spec =
            TaskSpec::CopyContainer { source: source.clone(), container: container.clone(), access: access.clone() };
        let TaskOutput::ContainerCopied { component, platforms } = site.run(spec).await.unwrap() else {
            panic!("no container")
        };
        assert_eq!(component.manifest, container.digest);
        containers.insert(container.name.to_string(), container.digest);
        let platforms =
            platforms.into_iter().map(|(platform, manifest)| ImagePlatform { platform, manifest }).collect();
        components.push(part(&component, Body::Container { found: container.clone(), platforms }));
    }
    let (mut streams, mut consistencies, mut new_bytes) = (BTreeMap::new(), BTreeMap::new(), 0);
    for ((data, snapshot), holder) in inventory.data.iter().zip(snapshots).zip(&holders) {
        let spec = TaskSpec::CopyData {
            source: source.clone(),
            data: data.clone(),
            holder: holder.claimed.task,
            holder_attempt: 1,
            snapshot,
            access: access.clone(),
        };
        let TaskOutput::DataCopied { component, streams: copied, consistency, version, features, notices } =
            site.run(spec).await.unwrap()
        else {
            panic!("no data")
        };
        new_bytes += component.new_bytes;
        let mut of_contents = copied.clone();
        // A dump of the schema carries the time at which it was made: its length may differ, what it says may not.
        of_contents.iter_mut().filter(|stream| stream.unit == "statements").for_each(|stream| stream.bytes = 0);
        streams.insert(data.name.clone(), of_contents);
        consistencies.insert(data.name.clone(), consistency.clone());
        let body = Body::Data { found: data.clone(), version, features, streams: copied, consistency, notices };
        components.push(part(&component, body));
    }
    for holder in holders {
        let output = holder.release().await.unwrap();
        assert!(
            matches!(output, TaskOutput::SnapshotReleased { frozen_ms } if (frozen_ms > 0) == source.freeze),
            "{output:?}"
        );
    }
    let record = Record {
        version: RECORD_VERSION,
        image: ImageId::generate(&site.site.seams),
        name: "a test".to_owned(),
        labels: BTreeMap::new(),
        comment: String::new(),
        team: store.team,
        creator: "tester".to_owned(),
        created: site.site.seams.clock.now(),
        application: inventory.application.clone(),
        site: site.site.name.clone(),
        namespace: source.namespace.to_string(),
        selector: None,
        components,
        left_out: Vec::new(),
        requirements: ocopea_repository::Requirements::default(),
        lineage: ocopea_repository::Lineage::default(),
        instant: ocopea_repository::Instant::default(),
        config_digest: config_digest.clone(),
    };
    let reference = store.repository.commit(&CommitRequest { record, key }).await.unwrap();
    Saved {
        record: reference.record,
        inventory: *inventory,
        config_digest,
        containers,
        streams,
        consistency: consistencies,
        new_bytes,
    }
}

fn part(component: &ComponentCopied, body: Body) -> Component {
    Component {
        name: component.name.clone(),
        manifest: component.manifest,
        bytes: component.bytes,
        new_bytes: component.new_bytes,
        stored_bytes: component.stored_bytes,
        body,
    }
}

async fn plan(site: &TestSite, target: &RestoreTarget) -> RestorePlan {
    let TaskOutput::Planned(plan) = site.run(TaskSpec::PlanRestore(target.clone())).await.unwrap() else {
        panic!("not planned")
    };
    *plan
}

/// What the coordinator does once a plan is approved. Every task is done twice: the second time must change nothing.
async fn execute(site: &TestSite, target: &RestoreTarget, plan: &RestorePlan, saved: &Saved) -> TaskOutput {
    let apply =
        |phase| TaskSpec::ApplyObjects { target: target.clone(), phase, objects_digest: plan.objects_digest.clone() };
    let mut tasks = vec![TaskSpec::CreateNamespace(target.mark.clone())];
    for placement in &plan.containers {
        tasks.push(TaskSpec::PushContainer {
            placement: placement.clone(),
            access: target.access.clone(),
            environment: target.mark.environment,
        });
    }
    tasks.push(apply(ApplyPhase::Foundation));
    for data in plan.data.iter().filter(|data| !data.server.is_empty()) {
        tasks.push(apply(ApplyPhase::Server(data.component.clone())));
    }
    for data in &plan.data {
        let streams = saved.streams[&data.component].clone();
        tasks.push(TaskSpec::LoadData { target: target.clone(), placement: data.clone(), streams });
    }
    tasks.push(apply(ApplyPhase::Consumers));
    for task in tasks {
        let kind = task.kind();
        for _ in 0..2 {
            if let Err(failure) = site.run(task.clone()).await {
                panic!("{kind:?}: {failure:?}");
            }
        }
    }
    site.run(TaskSpec::AwaitReady { target: target.clone(), deadline_s: 120 }).await.unwrap()
}

fn target(site: &TestSite, access: ImageAccess, record: Digest, name: &str) -> RestoreTarget {
    let environment = EnvironmentId::generate(&site.site.seams);
    let id = environment.to_string();
    let mark = EnvironmentMark {
        environment,
        name: format!("{name}-{}", &id[id.len() - 6..]).parse().unwrap(),
        operation: OperationId::generate(&site.site.seams),
        record,
    };
    RestoreTarget { mark, access, record, versions: Vec::new(), containers: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_saved_in_one_cluster_runs_in_another_exactly_as_it_was() {
    let [here, there] = site::two().await;
    let shop = here.namespace("e2e-shop").await;
    let name = shop.mark.name.to_string();
    for object in objects(&name) {
        here.apply(&name, &object).await;
    }
    here.ready(&name, &[("StatefulSet", "postgres")]).await;
    let fill = format!(
        "CREATE TABLE items (id bigserial PRIMARY KEY, body text NOT NULL, at timestamptz DEFAULT now());
         INSERT INTO items (body) SELECT 'item ' || i || ' ' || md5(i::text) FROM generate_series(1, {ROWS}) i;
         CREATE TABLE \"odd \"\"name\" (v jsonb); INSERT INTO \"odd \"\"name\" VALUES ('{{\"a\": [1, null, \"ä\"]}}'), (NULL);"
    );
    sql(&here, &name, &fill).await;
    for object in consumers() {
        here.apply(&name, &object).await;
    }
    here.ready(&name, &[("Deployment", "web")]).await;
    here.job_done(&name, "migrate").await;

    let store = Store::new(&here).await;
    let source = Source {
        namespace: name.parse().unwrap(),
        selector: None,
        without: vec![],
        credentials: vec![],
        freeze: false,
    };
    let saved = save(&here, &store, &source, None).await;
    assert_eq!(saved.containers.keys().map(String::as_str).collect::<Vec<_>>(), ["busybox", "mongodb", "postgres"]);
    assert_eq!(saved.inventory.data.len(), 1, "{:?}", saved.inventory.data);
    let binding = saved.inventory.data[0].bindings.iter().find(|b| b.object.kind == "Secret");
    assert_eq!(binding.map(|b| b.path.as_str()), Some("data.url"));
    let scratch: Vec<&str> = saved.inventory.gaps.iter().map(|gap| gap.name.as_str()).collect();
    assert_eq!(scratch, ["scratch"], "the emptyDir is named, and blocks nothing");

    // A second save of the unchanged application: the same configuration, the same contents, nothing new.
    let again = save(&here, &store, &source, Some(&saved.record)).await;
    assert_eq!((&again.config_digest, &again.streams), (&saved.config_digest, &saved.streams));
    // A dump of the schema carries the time at which it was made; rows are all known already.
    assert!(again.new_bytes < 16 * 1024, "{} bytes are new", again.new_bytes);

    // The original and its data are damaged, then gone, before anything is restored.
    sql(&here, &name, "DELETE FROM items").await;
    shop.remove().await;

    let access = store.repository.access_to_read(&saved.record).await.unwrap();
    let mut wish = target(&there, access.clone(), saved.record, "e2e-copy");
    let planned = plan(&there, &wish).await;
    assert_eq!(planned.refusals, vec![]);
    let line = |plan: &RestorePlan, what: &str| {
        plan.steps.iter().find(|s| s.what == what).cloned().unwrap_or_else(|| panic!("{plan:#?}"))
    };
    assert_eq!(line(&planned, "job/migrate").action, StepAction::Leave);
    assert_eq!(line(&planned, "secret/db").action, StepAction::Change);
    assert!(planned.steps.iter().all(|s| !format!("{s:?}").contains("canary")), "no plan shows a secret's value");
    assert!(!there.site.platform.namespace_exists(wish.mark.name.as_str()).await.unwrap(), "a plan makes nothing");
    assert_eq!(plan(&there, &wish).await.digest, planned.digest, "the same plan has the same digest");

    wish.containers.clone_from(&planned.containers);
    let ready = execute(&there, &wish, &planned, &saved).await;
    let TaskOutput::Ready { url, .. } = ready else { panic!("not ready") };
    let url = url.unwrap();
    let page = there.get(&url).await;
    assert!(page.contains("shop"), "{url}: {page}");
    let copy = wish.mark.name.to_string();
    assert_eq!(
        sql(&there, &copy, "SELECT count(*), min(body) FROM items").await,
        format!("{ROWS}|item 1 c4ca4238a0b923820dcc509a6f75849b")
    );
    assert_eq!(
        sql(&there, &copy, "SELECT current_setting('is_superuser') FROM pg_roles WHERE rolname = 'shop'").await,
        "on"
    );

    // A save of the copy: the same containers and contents, a configuration that differs only in what the plan said.
    let of_copy = Source { namespace: copy.parse().unwrap(), ..source.clone() };
    let copied = save(&there, &store, &of_copy, Some(&saved.record)).await;
    assert_eq!((&copied.containers, &copied.streams), (&saved.containers, &saved.streams));
    assert_eq!(copied.inventory.base.as_ref().map(|base| base.record.clone()), Some(saved.record.to_string()));
    let changed = differing(&store, &there, &saved, &copied).await;
    for object in &changed {
        let step = line(&planned, object);
        assert!(
            matches!(step.action, StepAction::Change | StepAction::Leave),
            "{object} differs, but the plan said {step:?}"
        );
    }
    assert!(
        changed.contains(&"secret/db".to_owned()) && changed.contains(&"configmap/settings".to_owned()),
        "{changed:?}"
    );

    // What exists is never touched; wishes that can't be fulfilled are refused by name.
    let taken = RestoreTarget {
        mark: EnvironmentMark { environment: EnvironmentId::generate(&here.site.seams), ..wish.mark.clone() },
        ..wish.clone()
    };
    assert!(plan(&there, &taken).await.refusals.iter().any(|r| r.what.contains(&copy)));
    let refused = there.run(TaskSpec::CreateNamespace(taken.mark)).await.unwrap_err();
    assert_eq!(refused.class, FailureClass::Conflict);
    let versions = vec![VersionChoice { component: "busybox".parse().unwrap(), version: "no-such-tag".to_owned() }];
    let other = target(&there, access, saved.record, "e2e-other");
    let refusals = plan(&there, &RestoreTarget { versions, ..other }).await.refusals;
    assert!(refusals.iter().any(|r| r.what.contains("busybox=no-such-tag")), "{refusals:?}");

    // Removing takes exactly what was made, and doing it again is no error.
    for _ in 0..2 {
        there.run(TaskSpec::RemoveNamespace(wish.mark.clone())).await.unwrap();
        for placement in &planned.containers {
            let spec = TaskSpec::RemoveContainer { placement: placement.clone(), environment: wish.mark.environment };
            there.run(spec).await.unwrap();
        }
    }
    assert!(!there.site.platform.namespace_exists(&copy).await.unwrap());
    for placement in &planned.containers {
        assert!(!there.in_registry(&placement.target, &placement.digest).await, "{} is still there", placement.target);
    }
    assert!(there.in_registry(image("busybox:1").split_once(":1").unwrap().0, &saved.containers["busybox"]).await);
}

/// Objects that are not the same in two saves.
async fn differing(store: &Store, site: &TestSite, one: &Saved, other: &Saved) -> Vec<String> {
    let mut files = Vec::new();
    for saved in [one, other] {
        let access = store.repository.access_to_read(&saved.record).await.unwrap();
        let session = ImageSession::open(&access, &StoreAccess::default(), &site.site.seams).await.unwrap();
        let record = session.read_record(&saved.record).await.unwrap();
        let manifest = record.component(&"config".parse().unwrap()).unwrap().manifest;
        files.push(session.read_config(&manifest).await.unwrap());
    }
    let mut found = Vec::new();
    for (path, bytes) in &files[0] {
        if files[1].get(path) != Some(bytes) {
            found.push(object_ref(&serde_json::from_slice(bytes).unwrap()).to_string());
        }
    }
    let more: Vec<&String> = files[1].keys().filter(|path| !files[0].contains_key(*path)).collect();
    assert!(more.is_empty(), "the copy has more than was saved: {more:?}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_is_cancelled_lets_go_of_its_snapshot() {
    let [here, _] = site::two().await;
    let shop = here.namespace("e2e-hold").await;
    let name = shop.mark.name.to_string();
    for object in objects(&name) {
        here.apply(&name, &object).await;
    }
    here.ready(&name, &[("StatefulSet", "postgres")]).await;
    let source = Source {
        namespace: name.parse().unwrap(),
        selector: None,
        without: vec![],
        credentials: vec![],
        freeze: false,
    };
    let TaskOutput::Inspected(inventory) = here.run(TaskSpec::Inspect { source: source.clone() }).await.unwrap() else {
        panic!("not inspected")
    };
    let holder = here.start(TaskSpec::OpenSnapshot { source, data: inventory.data[0].clone(), epoch: 1 });
    holder.prepared().await;
    holder.open_now();
    holder.opened().await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()";
    assert_ne!(sql(&here, &name, open).await, "0", "a snapshot is held");
    let failure = holder.cancel().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Cancelled);
    for _ in 0..50 {
        if sql(&here, &name, open).await == "0" {
            shop.remove().await;
            return;
        }
        here.site.seams.clock.sleep(Duration::from_millis(100)).await;
    }
    panic!("the snapshot is still held");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_asks_for_the_node_is_saved_but_refused_by_name() {
    let [here, there] = site::two().await;
    let shop = here.namespace("e2e-node").await;
    let name = shop.mark.name.to_string();
    let pod = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "reaches-out"}, "spec": {
        "selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"hostPID": true, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": image("busybox:1"), "command": ["sleep", "3600"], "securityContext": {"privileged": true}}]}}}});
    here.apply(&name, &pod).await;
    here.ready(&name, &[("Deployment", "reaches-out")]).await;
    let store = Store::new(&here).await;
    let source = Source {
        namespace: name.parse().unwrap(),
        selector: None,
        without: vec![],
        credentials: vec![],
        freeze: false,
    };
    let saved = save(&here, &store, &source, None).await;
    let access = store.repository.access_to_read(&saved.record).await.unwrap();
    let planned = plan(&there, &target(&there, access, saved.record, "e2e-refused")).await;
    let needed: Vec<String> = planned.refusals.iter().map(|r| format!("{} {}", r.what, r.needed)).collect();
    assert_eq!(needed, ["deployment/reaches-out hostPID", "deployment/reaches-out a privileged container"]);
    shop.remove().await;
}

/// Pods that write to a volume all the time.
fn writers(kind: &str, name: &str) -> serde_json::Value {
    let pod = json!({"metadata": {"labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 2,
        "containers": [{"name": "w", "image": image("busybox:1"), "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "command": ["sh", "-c", "trap exit TERM; while :; do date +%s%N >> /v/$HOSTNAME; done"]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "uploads"}}]}});
    if kind == "Pod" {
        return json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod["spec"]});
    }
    let mut object = json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": pod}});
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = json!(name);
        object["spec"]["replicas"] = json!(1);
        // Its writer runs beside a container that only reads.
        let spec = &mut object["spec"]["template"]["spec"];
        let mut reader = spec["containers"][0].clone();
        reader["name"] = json!("r");
        reader["command"] = json!(["sh", "-c", "trap exit TERM; while :; do sleep 1; done"]);
        reader["volumeMounts"][0]["readOnly"] = json!(true);
        let mut beside = std::mem::replace(&mut spec["containers"], json!([reader]));
        beside[0]["restartPolicy"] = json!("Always");
        spec["initContainers"] = beside;
    }
    object
}

async fn replicas(site: &TestSite, namespace: &str) -> Vec<u64> {
    let contents = site.site.platform.contents(namespace, None).await.unwrap();
    assert_eq!(contents.held.len(), 0, "nothing is held any more");
    let workloads = contents.configuration.iter().filter(|found| found.resource.group == "apps");
    workloads.map(|found| found.object["spec"]["replicas"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_save_ends_what_writes_to_a_volume_and_lets_it_run_again_whatever_happens() {
    let [here, _] = site::two().await;
    let shop = here.namespace("e2e-freeze").await;
    let name = shop.mark.name.to_string();
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "uploads"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "64Mi"}}}});
    for object in [claim, writers("Deployment", "first"), writers("StatefulSet", "second")] {
        here.apply(&name, &object).await;
    }
    let workloads = [("Deployment", "first"), ("StatefulSet", "second")];
    here.ready(&name, &workloads).await;
    let store = Store::new(&here).await;
    let mut source = Source {
        namespace: name.parse().unwrap(),
        selector: None,
        without: vec![],
        credentials: vec![],
        freeze: false,
    };
    let uploads: ComponentName = "uploads".parse().unwrap();
    let running = save(&here, &store, &source, None).await;
    assert_ne!(running.consistency[&uploads].level, ConsistencyLevel::Snapshot);

    // The image of a held application is that of the running one: as many replicas, the same containers.
    source.freeze = true;
    let frozen = save(&here, &store, &source, None).await;
    assert_eq!(frozen.consistency[&uploads].level, ConsistencyLevel::Snapshot, "{:?}", frozen.consistency);
    assert_eq!((&frozen.config_digest, &frozen.containers), (&running.config_digest, &running.containers));
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // Cancelled.
    let data = &frozen.inventory.data[0];
    let spec = TaskSpec::OpenSnapshot { source: source.clone(), data: data.clone(), epoch: 1 };
    let holder = here.start(spec.clone());
    holder.prepared().await;
    assert_eq!(here.site.platform.held(&name).await.unwrap().len(), 2);
    assert_eq!(holder.cancel().await.unwrap_err().class, FailureClass::Cancelled);
    for _ in 0..100 {
        if here.site.platform.held(&name).await.unwrap().is_empty() {
            break;
        }
        here.site.seams.clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // After a kill two attempts may be at work at once: the one that comes late takes nothing over from the other, and the
    // one that leaves lets go only of what no later one holds.
    let running = || async {
        let pods = here.pods(&name).await;
        Ok::<Vec<String>, TaskFailure>(pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect())
    };
    let operation = OperationId::generate(&here.site.seams);
    let attempt = |round| Hold::new(&here.site.platform, &name, operation, "uploads", round);
    let go_on = CancellationToken::new();
    attempt((0, 1)).hold(&here.pods(&name).await, &go_on, running).await.unwrap().unwrap();
    let late = attempt((0, 2)).hold(&[], &go_on, running).await.unwrap().unwrap();
    let mine = attempt((1, 1)).hold(&[], &go_on, running).await.unwrap().unwrap();
    let refused = attempt((0, 2)).hold(&[], &go_on, running).await.unwrap_err();
    assert_eq!(refused.code, "save.freeze-late");
    attempt((0, 2)).let_go(Some(&late)).await.unwrap();
    assert_eq!(here.site.platform.held(&name).await.unwrap().len(), 2, "the later one holds on");
    assert!(here.pods(&name).await.is_empty());
    attempt((1, 1)).let_go(Some(&mine)).await.unwrap();
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // Told to stop while the writers end: they run again at once.
    let stopped = CancellationToken::new();
    stopped.cancel();
    let failure = attempt((2, 1)).hold(&here.pods(&name).await, &stopped, running).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Cancelled);
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // Somebody starts the writers while they are held: the holder says so instead of copying what is written to.
    let holder = here.start(spec.clone());
    holder.prepared().await;
    holder.open_now();
    holder.opened().await;
    here.apply(&name, &writers("Deployment", "first")).await;
    let failure = holder.ended().await.unwrap_err();
    assert!(failure.code == "save.freeze-lost" && failure.is_retryable(), "{failure:?}");
    for _ in 0..100 {
        if here.site.platform.held(&name).await.unwrap().is_empty() {
            break;
        }
        here.site.seams.clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // Killed while two saves held it: the first that lets go must not start what the second holds, and who comes after a
    // kill knows what there was.
    let operations = [0, 1].map(|_| OperationId::generate(&here.site.seams));
    for operation in operations {
        let hold = Hold::new(&here.site.platform, &name, operation, "uploads", (0, 1));
        let pods = here.pods(&name).await;
        hold.hold(&pods, &CancellationToken::new(), running).await.unwrap();
    }
    let clean_up = |operation| TaskSpec::CleanUp {
        namespace: source.namespace.clone(),
        operation,
        frozen: vec![data.clone()],
        source: Some(source.clone()),
    };
    here.run_as(operations[0], clean_up(operations[0])).await.unwrap();
    assert!(here.pods(&name).await.is_empty(), "the other save still holds it");
    here.run_as(operations[1], clean_up(operations[1])).await.unwrap();
    here.run_as(operations[1], clean_up(operations[1])).await.unwrap();
    assert_eq!(replicas(&here, &name).await, [2, 1]);
    here.ready(&name, &workloads).await;

    // What would delete its claims with its pods isn't scaled down.
    let mut third = writers("StatefulSet", "third");
    third["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    here.apply(&name, &third).await;
    here.ready(&name, &[("StatefulSet", "third")]).await;
    let failure = here.start(spec.clone()).release().await.unwrap_err();
    assert!(failure.code == "save.freeze" && failure.cause.contains("deletes its claims"), "{failure:?}");
    assert_eq!(replicas(&here, &name).await, [2, 1, 1]);

    // What nobody would start again isn't ended.
    here.apply(&name, &writers("Pod", "alone")).await;
    here.pod_ready(&name, "alone").await;
    let failure = here.start(spec).release().await.unwrap_err();
    assert!(failure.code == "save.freeze" && failure.cause.contains("pod alone"), "{failure:?}");
    assert_eq!(replicas(&here, &name).await, [2, 1, 1]);
    shop.remove().await;
}
