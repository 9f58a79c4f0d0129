//! One value of every message, and of every variant inside them. Fixed: their bytes are stored.

use std::ops::Not;

use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    identity::{PublicKey, Sealed, SignIn},
    ids::{EnvironmentId, InstanceId, OperationId, SessionId, TaskId},
    image::{
        BaseAccess, ComponentCopied, Consistency, ConsistencyLevel, DataKind, ImageAccess, Location, StoreKeys,
        StoreLimits, StreamInfo,
    },
    inventory::{Binding, ContainerFound, DataFound, DeployedFrom, Gap, Inventory, ObjectRef},
    message::{Answer, ApplicationFound, HolderOrder, Request, SiteLimits, SiteReport, SiteState, TaskHint},
    names::Digest,
    needs::{
        Capabilities, Known, Need, NodeExpression, NodeFound, NodesFound, PodNeed, StorageFound, TaintFound, Taken,
        Toleration,
    },
    plan::{ApplyPhase, ContainerPlacement, DataPlacement, PlanStep, Refusal, RestorePlan, StepAction, VersionChoice},
    secret::{Secret, Secret32},
    task::{
        Claimed, EnvironmentMark, GivenCredentials, HolderState, Outcome, Progress, RestoreTarget, Source, TaskKind,
        TaskOutput, TaskSpec,
    },
    time::Timestamp,
};
use uuid::Uuid;

use crate::Any;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x018b_cfe5_6800_7000_8000_0000_0000_0000 + number)
}

pub fn kinds() -> Vec<TaskKind> {
    use TaskKind::{
        ApplyObjects, AwaitReady, CleanUp, CopyConfig, CopyContainer, CopyData, CreateNamespace, Inspect, LoadData,
        OpenSnapshot, PlanRestore, PushContainer, RemoveContainer, RemoveNamespace,
    };
    // Adding a kind: the compiler asks for it here, and then it belongs in the list as well.
    match Inspect {
        Inspect | CopyConfig | CopyContainer | OpenSnapshot | CopyData | PlanRestore | CreateNamespace
        | RemoveNamespace | PushContainer | RemoveContainer | ApplyObjects | LoadData | AwaitReady | CleanUp => {}
    }
    vec![
        Inspect,
        CopyConfig,
        CopyContainer,
        OpenSnapshot,
        CopyData,
        PlanRestore,
        CreateNamespace,
        RemoveNamespace,
        PushContainer,
        RemoveContainer,
        ApplyObjects,
        LoadData,
        AwaitReady,
        CleanUp,
    ]
}

pub fn claimed() -> Claimed {
    Claimed { task: TaskId(id(1)), operation: OperationId(id(2)), attempt: 300, instance: InstanceId(id(3)) }
}

fn source() -> Source {
    Source {
        namespace: "shop".parse().unwrap(),
        selector: Some("app=shop".to_owned()),
        without: vec!["cache".to_owned()],
        credentials: vec![GivenCredentials {
            service: "messages".parse().unwrap(),
            user: "copier".to_owned(),
            password: Secret::new("pässword"),
        }],
        freeze: true,
    }
}

fn object(kind: &str, name: &str) -> ObjectRef {
    ObjectRef { api_version: "apps/v1".to_owned(), kind: kind.to_owned(), name: name.to_owned() }
}

fn container() -> ContainerFound {
    ContainerFound {
        name: "web".parse().unwrap(),
        repository: "registry:5000/shop/web".to_owned(),
        tag: Some("1.4".to_owned()),
        digest: Digest([0xab; 32]),
        used_by: vec![object("Deployment", "web")],
        pull_secrets: vec!["pull".to_owned()],
    }
}

fn consistency(level: ConsistencyLevel) -> Consistency {
    Consistency {
        level,
        why: "single server".to_owned(),
        changed: vec!["shop.carts".to_owned()],
        changed_count: 1,
        frozen_ms: 70_000,
    }
}

fn data(kind: DataKind) -> DataFound {
    DataFound {
        name: "messages".parse().unwrap(),
        kind,
        version: Some("15.4".to_owned()),
        workload: Some(object("StatefulSet", "messages")),
        pod: Some("messages-0".to_owned()),
        container: Some("server".to_owned()),
        port: 5432,
        hosts: vec!["messages".to_owned(), "messages.shop.svc".to_owned()],
        claims: vec!["data-messages-0".to_owned()],
        bytes: Some(5_000_000_000),
        streams: None,
        features: vec!["extension:pg_trgm".to_owned()],
        consistency: consistency(ConsistencyLevel::Snapshot),
        bindings: vec![Binding {
            object: object("Secret", "db"),
            path: "data.DATABASE_URL".to_owned(),
            role: "uri".to_owned(),
            consumer: None,
        }],
        rights: vec![gap()],
    }
}

fn gap() -> Gap {
    Gap {
        name: "uploads".to_owned(),
        what: "persistent volume claim uploads".to_owned(),
        why: "no pod mounts it".to_owned(),
        blocking: true,
        next: "--without uploads".to_owned(),
    }
}

fn inventory() -> Inventory {
    Inventory {
        namespace: "shop".parse().unwrap(),
        selector: None,
        application: "shop".to_owned(),
        kubernetes: "1.36.0".to_owned(),
        platforms: vec!["linux/amd64".to_owned()],
        objects: vec![object("Deployment", "web")],
        config_bytes: 65_536,
        containers: vec![container()],
        data: vec![data(DataKind::MongoDb), data(DataKind::PostgreSql), data(DataKind::Volume)],
        gaps: vec![gap()],
        base: Some(DeployedFrom { environment: id(4).to_string(), record: Digest([1; 32]).to_string() }),
        fingerprint: "f".repeat(64),
    }
}

fn access() -> ImageAccess {
    ImageAccess {
        location: Location::Directory { path: "/srv/copies".to_owned() },
        image_key: Secret32([0x11; 32]),
        hash_key: Secret32([0x22; 32]),
        base: Some(BaseAccess {
            image_key: Secret32([0x33; 32]),
            components: vec![("config".parse().unwrap(), Digest([0x44; 32]))],
        }),
        store_keys: None,
        limits: StoreLimits::default(),
    }
}

fn access_in_a_bucket() -> ImageAccess {
    let location = Location::S3 {
        endpoint: "https://s3.example.com".to_owned(),
        region: "eu-west-1".to_owned(),
        bucket: "copies".to_owned(),
        prefix: "team/a".to_owned(),
        path_style: true,
    };
    let store_keys = Some(StoreKeys {
        id: "AKIDEXAMPLE".to_owned(),
        secret: Secret::new("secret"),
        token: Some(Secret::new("token")),
        expires: Some(Timestamp(1_795_680_000_000)),
    });
    let limits = StoreLimits { requests: Some(8), upload: Some(50 << 20), download: None };
    ImageAccess { location, store_keys, limits, ..access() }
}

fn mark() -> EnvironmentMark {
    EnvironmentMark {
        environment: EnvironmentId(id(5)),
        name: "debug-4711".parse().unwrap(),
        operation: OperationId(id(2)),
        record: Digest([1; 32]),
    }
}

fn placement() -> ContainerPlacement {
    ContainerPlacement {
        component: "web".parse().unwrap(),
        digest: Digest([0xab; 32]),
        target: "registry:5000/ocopea/web".to_owned(),
        push: true,
    }
}

fn target() -> RestoreTarget {
    RestoreTarget {
        mark: mark(),
        access: access(),
        record: Digest([1; 32]),
        versions: vec![VersionChoice { component: "web".parse().unwrap(), version: "1.5".to_owned() }],
        containers: vec![placement()],
    }
}

fn data_placement() -> DataPlacement {
    DataPlacement {
        component: "messages".parse().unwrap(),
        kind: DataKind::PostgreSql,
        manifest: Digest([6; 32]),
        server: vec![object("StatefulSet", "messages")],
        claims: vec!["data-messages-0".to_owned()],
    }
}

fn stream() -> StreamInfo {
    StreamInfo {
        name: "public.users".to_owned(),
        unit: "rows".to_owned(),
        items: 100_000,
        bytes: 1 << 33,
        content: "c".repeat(64),
    }
}

fn component() -> ComponentCopied {
    ComponentCopied {
        name: "messages".parse().unwrap(),
        manifest: Digest([6; 32]),
        bytes: 1 << 33,
        new_bytes: 1 << 20,
        stored_bytes: 250,
    }
}

fn plan() -> RestorePlan {
    use StepAction::{Change, Create, Leave, Load, Push, Wait};
    let step = |action| PlanStep {
        action,
        what: "deployment/web".to_owned(),
        detail: "image 1.4 → 1.5".to_owned(),
        why: "--set".to_owned(),
    };
    RestorePlan {
        environment: "debug-4711".parse().unwrap(),
        steps: [Create, Change, Push, Load, Leave, Wait].map(step).to_vec(),
        refusals: vec![Refusal {
            what: "claim uploads".to_owned(),
            needed: "10 GB".to_owned(),
            found: "2 GB".to_owned(),
            next: "another class".to_owned(),
        }],
        notices: vec!["a notice".to_owned()],
        containers: vec![placement()],
        data: vec![data_placement()],
        objects_digest: Digest([8; 32]).to_string(),
        digest: Digest([9; 32]).to_string(),
    }
}

pub fn specs() -> Vec<TaskSpec> {
    let phases =
        [ApplyPhase::Foundation, ApplyPhase::Server("messages".parse().unwrap()), ApplyPhase::Consumers].into_iter();
    let mut all = vec![
        TaskSpec::Inspect { source: source() },
        TaskSpec::CopyConfig { source: source(), access: access_in_a_bucket(), fingerprint: "f".repeat(64) },
        TaskSpec::CopyContainer { source: source(), container: container(), access: access() },
        TaskSpec::OpenSnapshot { source: source(), data: data(DataKind::MongoDb), epoch: 2 },
        TaskSpec::CopyData {
            source: source(),
            data: data(DataKind::Volume),
            holder: TaskId(id(6)),
            holder_attempt: 1,
            snapshot: "{\"name\":\"0001\"}".to_owned(),
            access: access(),
        },
        TaskSpec::PlanRestore(target()),
        TaskSpec::CreateNamespace(mark()),
        TaskSpec::RemoveNamespace(mark()),
        TaskSpec::PushContainer { placement: placement(), access: access(), environment: EnvironmentId(id(5)) },
        TaskSpec::RemoveContainer { placement: placement(), environment: EnvironmentId(id(5)) },
        TaskSpec::LoadData { target: target(), placement: data_placement(), streams: vec![stream()] },
        TaskSpec::AwaitReady { target: target(), deadline_s: 600 },
        TaskSpec::CleanUp {
            namespace: "shop".parse().unwrap(),
            operation: OperationId(id(2)),
            frozen: vec![data(DataKind::MongoDb)],
            source: Some(source()),
        },
    ];
    all.extend(phases.map(|phase| TaskSpec::ApplyObjects {
        target: target(),
        phase,
        objects_digest: Digest([8; 32]).to_string(),
    }));
    all
}

fn outputs() -> Vec<(&'static str, TaskOutput)> {
    let copied = |level| TaskOutput::DataCopied {
        component: component(),
        streams: vec![stream()],
        consistency: consistency(level),
        version: None,
        features: vec!["collation:icu".to_owned()],
        notices: vec![String::new()],
    };
    let all = vec![
        TaskOutput::Done,
        TaskOutput::Inspected(Box::new(inventory())),
        TaskOutput::ConfigCopied {
            component: component(),
            config_digest: "d".repeat(64),
            objects: 17,
            kinds: vec!["apps/v1 Deployment".to_owned()],
            needs: Some(needs()),
        },
        TaskOutput::ContainerCopied {
            component: component(),
            platforms: vec![("linux/arm64/v8".to_owned(), Digest([2; 32]))],
        },
        TaskOutput::SnapshotReleased { frozen_ms: 251 },
        copied(ConsistencyLevel::Snapshot),
        copied(ConsistencyLevel::CrashConsistent),
        copied(ConsistencyLevel::Inconsistent),
        TaskOutput::Planned(Box::new(plan())),
        TaskOutput::Loaded { streams: vec![stream()], notices: vec![] },
        TaskOutput::Ready { url: Some("http://shop".to_owned()), notes: vec!["ocopea connect".to_owned()] },
    ];
    let name = |output: &TaskOutput| match output {
        TaskOutput::Done => "done",
        TaskOutput::Inspected(_) => "inspected",
        TaskOutput::ConfigCopied { .. } => "config-copied",
        TaskOutput::ContainerCopied { .. } => "container-copied",
        TaskOutput::SnapshotReleased { .. } => "snapshot-released",
        TaskOutput::DataCopied { .. } => "data-copied",
        TaskOutput::Planned(_) => "planned",
        TaskOutput::Loaded { .. } => "loaded",
        TaskOutput::Ready { .. } => "ready",
    };
    all.into_iter().map(|output| (name(&output), output)).collect()
}

fn failures() -> Vec<TaskFailure> {
    use FailureClass::{Cancelled, Conflict, Permanent, Retryable};
    let failure = |class| TaskFailure {
        class,
        code: "data.authentication".to_owned(),
        what: "can't save \"messages\"".to_owned(),
        cause: "the server refused\nthe password".to_owned(),
        next: "--credentials".to_owned(),
    };
    [Retryable, Permanent, Conflict, Cancelled].map(failure).to_vec()
}

fn needs() -> Vec<Need> {
    let (name, by) = ("high".to_owned(), vec!["deployment/web".to_owned()]);
    let expression = NodeExpression { key: "zone".to_owned(), operator: "In".to_owned(), values: vec!["a".to_owned()] };
    let toleration = Toleration { key: "a".to_owned(), value: Some("b".to_owned()), effect: "NoSchedule".to_owned() };
    vec![
        Need::Pod(PodNeed {
            by: "deployment/web".to_owned(),
            replicas: 3,
            cpu_m: 250,
            memory: 1 << 30,
            extended: [("example.com/gpu".to_owned(), 1)].into(),
            node: [("disk".to_owned(), "ssd".to_owned())].into(),
            affinity: vec![vec![expression]],
            tolerations: vec![toleration],
            host_ports: vec![8080],
        }),
        Need::StorageClass { claims: by.clone(), class: None, bytes: 1 << 30, shared: true },
        Need::PriorityClass { name: name.clone(), by: by.clone() },
        Need::RuntimeClass { name: name.clone(), by: by.clone() },
        Need::IngressClass { name: name.clone(), by },
        Need::Host { host: "shop.example".to_owned(), by: "ingress/web".to_owned() },
    ]
}

fn capabilities() -> Capabilities {
    let names = || Known::Found(vec!["high".to_owned()]);
    Capabilities {
        kinds: Known::Found(vec!["apps/v1 Deployment".to_owned()]),
        storage: Known::Found(vec![StorageFound {
            name: "fast".to_owned(),
            default: true,
            shared: Some(false),
            free: Some(1 << 40),
        }]),
        priority_classes: names(),
        runtime_classes: names(),
        ingress_classes: names(),
        hosts: Known::Unknown("grant it".to_owned()),
        nodes: Known::Found(NodesFound {
            nodes: vec![NodeFound {
                name: "one".to_owned(),
                platform: "linux/amd64".to_owned(),
                labels: [("disk".to_owned(), "ssd".to_owned())].into(),
                taints: vec![TaintFound {
                    key: "a".to_owned(),
                    value: "b".to_owned(),
                    effect: "NoSchedule".to_owned(),
                }],
                cpu_m: 4000,
                memory: 1 << 33,
                extended: [("example.com/gpu".to_owned(), 2)].into(),
                taken: Some(Taken {
                    cpu_m: 100,
                    memory: 1 << 30,
                    extended: Default::default(),
                    host_ports: vec![9100],
                }),
            }],
            more: 7,
        }),
        movers: true,
    }
}

fn report(state: SiteState) -> SiteReport {
    SiteReport {
        instance: InstanceId(id(3)),
        at: Timestamp(-1),
        agent_version: "0.1.0".to_owned(),
        platform: "Kubernetes 1.36.0".to_owned(),
        nodes: 3,
        architectures: vec!["linux/amd64".to_owned()],
        data_kinds: vec!["volume".to_owned()],
        may_create_namespaces: matches!(state, SiteState::Ready),
        registry: matches!(state, SiteState::Ready).not().then(|| "registry:5000".to_owned()),
        storage_classes: vec![],
        missing: vec!["pods/exec".to_owned()],
        applications: vec![ApplicationFound {
            namespace: "shop".to_owned(),
            containers: 2,
            workloads: 3,
            data: vec!["mongodb".to_owned()],
            claimed_bytes: 1 << 30,
        }],
        limits: matches!(state, SiteState::Ready).then_some(SiteLimits {
            copies: 4,
            upload: Some(1 << 20),
            download: None,
        }),
        capabilities: if matches!(state, SiteState::Ready) { capabilities() } else { Capabilities::default() },
        state,
    }
}

fn requests() -> Vec<(String, Request)> {
    let (task, instance) = (TaskId(id(1)), InstanceId(id(3)));
    let progress = Progress { phase: "reading".to_owned(), bytes: 1, of_bytes: 250, new_bytes: 251, items: u64::MAX };
    let open = HolderState::Open { snapshot: "{}".to_owned(), at: Timestamp(1_700_000_000_000) };
    let mut all = vec![
        ("claim".to_owned(), Request::Claim { task, instance }),
        ("hand-back".to_owned(), Request::HandBack { claimed: claimed() }),
        ("poll".to_owned(), Request::Poll { instance, most: 64, turn: 1, mark: u64::MAX }),
    ];
    let sign_in = SignIn { instance, key: PublicKey([7; 32]), cluster: "018bcfe5".to_owned(), signature: vec![9; 64] };
    all.push(("sign-in".to_owned(), Request::SignIn(Box::new(sign_in))));
    for (name, holder) in [("", None), (".prepared", Some(HolderState::Prepared)), (".open", Some(open))] {
        let beat = Request::Heartbeat { claimed: claimed(), progress: progress.clone(), holder };
        all.push((format!("heartbeat{name}"), beat));
    }
    for (number, (name, output)) in outputs().into_iter().enumerate() {
        let outcome = Outcome::Succeeded(Box::new(output));
        all.push((format!("finish.{number:02}.{name}"), Request::Finish { claimed: claimed(), outcome }));
    }
    for failure in failures() {
        let name = format!("finish.failed.{:?}", failure.class).to_lowercase();
        all.push((name, Request::Finish { claimed: claimed(), outcome: Outcome::Failed(failure) }));
    }
    let states = [SiteState::Ready, SiteState::Limited, SiteState::Unreachable("no route".to_owned())];
    for (number, state) in states.into_iter().enumerate() {
        all.push((format!("report.{number}"), Request::Report(Box::new(report(state)))));
    }
    let session = SessionId(id(4));
    all.push(("attach".to_owned(), Request::Attach { session, instance }));
    for (name, failure) in [("begun", None), ("begun.failed", failures().pop())] {
        all.push((name.to_owned(), Request::Begun { session, instance, failure }));
    }
    all.push(("push".to_owned(), Request::Push { session, instance, number: 251, sealed: vec![3; 40] }));
    all.push(("pull".to_owned(), Request::Pull { session, instance, number: u64::MAX }));
    for (name, refused) in [("store-keys", None), ("store-keys.refused", Some("AKIDEXAMPLE".to_owned()))] {
        all.push((name.to_owned(), Request::StoreKeys { claimed: claimed(), refused }));
    }
    all
}

fn answers() -> Vec<(String, Answer)> {
    let mut all = vec![
        ("refused".to_owned(), Answer::Refused { why: "taken".to_owned() }),
        ("cancel".to_owned(), Answer::Cancel),
        ("recorded".to_owned(), Answer::Recorded),
        ("tasks".to_owned(), Answer::Tasks(kinds().into_iter().map(hint).collect())),
        ("sign-in".to_owned(), Answer::SignIn),
        ("ended".to_owned(), Answer::Ended { why: "another process has the same id".to_owned() }),
        ("try-later".to_owned(), Answer::TryLater { why: "the database is away".to_owned() }),
    ];
    use HolderOrder::{Hold, OpenNow, Release, Wait};
    for holder in [Wait, OpenNow, Hold, Release] {
        all.push((format!("continue.{holder:?}").to_lowercase(), Answer::Continue { lease_ms: 20_000, holder }));
    }
    let sealed = Sealed { encapsulated: vec![1; 32], bytes: vec![2; 300] };
    all.push(("granted".to_owned(), Answer::Granted { claimed: claimed(), lease_ms: 20_000, sealed: sealed.clone() }));
    all.push(("attached".to_owned(), Answer::Attached { sealed: sealed.clone() }));
    all.push(("store-keys".to_owned(), Answer::StoreKeys { sealed }));
    all.push(("piece".to_owned(), Answer::Piece { sealed: Some(vec![4; 40]) }));
    all.push(("piece.none".to_owned(), Answer::Piece { sealed: None }));
    all
}

fn granted() -> Vec<(String, TaskSpec)> {
    let named = |(number, spec): (usize, TaskSpec)| {
        let kind = spec.kind().as_str();
        (if kind == "apply-objects" { format!("{kind}.{number}") } else { kind.to_owned() }, spec)
    };
    specs().into_iter().enumerate().map(named).collect()
}

fn hint(kind: TaskKind) -> TaskHint {
    TaskHint { task: TaskId(id(1)), kind, least_version: 1 }
}

/// All of them, by name.
pub fn all() -> Vec<(String, Any)> {
    let mut all = Vec::new();
    all.extend(kinds().into_iter().map(|kind| (format!("hint.{}", kind.as_str()), Any::Hint(hint(kind)))));
    all.extend(requests().into_iter().map(|(name, one)| (format!("request.{name}"), Any::Request(Box::new(one)))));
    all.extend(answers().into_iter().map(|(name, one)| (format!("answer.{name}"), Any::Answer(Box::new(one)))));
    all.extend(granted().into_iter().map(|(name, one)| (format!("spec.{name}"), Any::Spec(Box::new(one)))));
    all
}

#[test]
fn every_kind_of_task_is_granted_once_at_least() {
    let granted: std::collections::HashSet<TaskKind> = specs().iter().map(TaskSpec::kind).collect();
    assert!(kinds().iter().all(|kind| granted.contains(kind)));
}
