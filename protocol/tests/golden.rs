//! The bytes of every kind of message, as they go over the wire. They must never change by accident: agents and
//! coordinators of one protocol version are of different builds.
//!
//! A deliberate change: raise `PROTOCOL_VERSION`, run these tests with `OCOPEA_RENEW_GOLDEN=1`, and look at the diff.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers stop at the first surprise")]

use std::collections::BTreeMap;

use ocopea_protocol::{
    envelope::{EnvelopeError, LONGEST, Message, PROTOCOL_VERSION, open, seal},
    failure::TaskFailure,
    image::{ComponentCopied, Consistency, ConsistencyLevel, DataKind, ImageAccess, Location, StreamInfo},
    inventory::{Binding, ContainerFound, DataFound, Gap, ObjectRef},
    message::{Answer, HolderOrder, Request, SiteReport, SiteState, TaskHint},
    plan::{ApplyPhase, ContainerPlacement, DataPlacement, VersionChoice},
    secret::{Secret, Secret32},
    task::{
        Claimed, EnvironmentMark, GivenCredentials, HolderState, Outcome, Progress, RestoreTarget, Source, TaskKind,
        TaskOutput, TaskSpec,
    },
    time::Timestamp,
};

const ID: &str = "018f0000-0000-7000-8000-000000000001";

fn digest() -> ocopea_protocol::names::Digest {
    format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
}

fn claimed() -> Claimed {
    Claimed { task: ID.parse().unwrap(), operation: ID.parse().unwrap(), attempt: 3, instance: ID.parse().unwrap() }
}

fn access() -> ImageAccess {
    ImageAccess {
        location: Location::Directory { path: "/data/repository".to_owned() },
        image_key: Secret32([7; 32]),
        hash_key: Secret32([8; 32]),
        base: None,
    }
}

fn source() -> Source {
    Source {
        namespace: "shop".parse().unwrap(),
        selector: Some("app=shop".to_owned()),
        without: vec!["cache".to_owned()],
        credentials: vec![GivenCredentials {
            service: "db".parse().unwrap(),
            user: "backup".to_owned(),
            password: Secret::new("secret"),
        }],
        freeze: true,
    }
}

fn object() -> ObjectRef {
    ObjectRef { api_version: "apps/v1".to_owned(), kind: "StatefulSet".to_owned(), name: "db".to_owned() }
}

fn consistency() -> Consistency {
    Consistency {
        level: ConsistencyLevel::CrashConsistent,
        why: "why".to_owned(),
        changed: vec!["a".to_owned()],
        changed_count: 1,
        frozen_ms: 5,
    }
}

fn data() -> DataFound {
    DataFound {
        name: "db".parse().unwrap(),
        kind: DataKind::PostgreSql,
        version: Some("15.18".to_owned()),
        workload: Some(object()),
        pod: Some("db-0".to_owned()),
        container: Some("postgres".to_owned()),
        port: 5432,
        hosts: vec!["db".to_owned()],
        claims: vec!["data-db-0".to_owned()],
        bytes: Some(1 << 40),
        streams: Some(12),
        features: vec!["extension hstore".to_owned()],
        consistency: consistency(),
        bindings: vec![Binding {
            object: object(),
            path: "data.url".to_owned(),
            role: "uri".to_owned(),
            consumer: None,
        }],
        rights: vec![Gap {
            name: "db".to_owned(),
            what: "what".to_owned(),
            why: "why".to_owned(),
            blocking: true,
            next: String::new(),
        }],
    }
}

fn container() -> ContainerFound {
    ContainerFound {
        name: "web".parse().unwrap(),
        repository: "registry.example/shop/web".to_owned(),
        tag: Some("1.4".to_owned()),
        digest: digest(),
        used_by: vec![object()],
        pull_secrets: vec!["pull".to_owned()],
    }
}

fn placement() -> ContainerPlacement {
    ContainerPlacement {
        component: "web".parse().unwrap(),
        digest: digest(),
        target: "registry.example/copies/web".to_owned(),
        push: true,
    }
}

fn mark() -> EnvironmentMark {
    EnvironmentMark {
        environment: ID.parse().unwrap(),
        name: "copy".parse().unwrap(),
        operation: ID.parse().unwrap(),
        record: digest(),
    }
}

fn target() -> RestoreTarget {
    RestoreTarget {
        mark: mark(),
        access: access(),
        record: digest(),
        versions: vec![VersionChoice { component: "web".parse().unwrap(), version: "1.5".to_owned() }],
        containers: vec![placement()],
    }
}

fn stream() -> StreamInfo {
    StreamInfo {
        name: "shop.items".to_owned(),
        unit: "rows".to_owned(),
        items: 300,
        bytes: 70_000,
        content: "00".repeat(32),
    }
}

fn specs() -> Vec<(&'static str, TaskSpec)> {
    vec![
        ("inspect", TaskSpec::Inspect { source: source() }),
        ("copy-config", TaskSpec::CopyConfig { source: source(), access: access(), fingerprint: "f".to_owned() }),
        ("copy-container", TaskSpec::CopyContainer { source: source(), container: container(), access: access() }),
        ("open-snapshot", TaskSpec::OpenSnapshot { source: source(), data: data(), epoch: 2 }),
        (
            "copy-data",
            TaskSpec::CopyData {
                source: source(),
                data: data(),
                holder: ID.parse().unwrap(),
                holder_attempt: 1,
                snapshot: "{}".to_owned(),
                access: access(),
            },
        ),
        ("plan-restore", TaskSpec::PlanRestore(target())),
        ("create-namespace", TaskSpec::CreateNamespace(mark())),
        ("remove-namespace", TaskSpec::RemoveNamespace(mark())),
        (
            "push-container",
            TaskSpec::PushContainer { placement: placement(), access: access(), environment: ID.parse().unwrap() },
        ),
        ("remove-container", TaskSpec::RemoveContainer { placement: placement(), environment: ID.parse().unwrap() }),
        (
            "apply-objects",
            TaskSpec::ApplyObjects {
                target: target(),
                phase: ApplyPhase::Server("db".parse().unwrap()),
                objects_digest: "d".to_owned(),
            },
        ),
        (
            "load-data",
            TaskSpec::LoadData {
                target: target(),
                placement: DataPlacement {
                    component: "db".parse().unwrap(),
                    kind: DataKind::MongoDb,
                    manifest: digest(),
                    server: vec![object()],
                    claims: vec![],
                },
                streams: vec![stream()],
            },
        ),
        ("await-ready", TaskSpec::AwaitReady { target: target(), deadline_s: 600 }),
        (
            "clean-up",
            TaskSpec::CleanUp {
                namespace: "shop".parse().unwrap(),
                operation: ID.parse().unwrap(),
                frozen: vec![data()],
                source: Some(source()),
            },
        ),
    ]
}

fn all() -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut put = |name: &str, bytes: bytes::Bytes| {
        assert!(out.insert(name.to_owned(), bytes.to_vec()).is_none(), "{name} twice");
    };
    let hint = TaskHint { task: ID.parse().unwrap(), kind: TaskKind::CopyData, least_version: 1 };
    put("hint", seal(&hint, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap());
    let progress =
        Progress { phase: "reading".to_owned(), bytes: 1, of_bytes: 300, new_bytes: 70_000, items: 5_000_000_000 };
    let copied = TaskOutput::DataCopied {
        component: ComponentCopied {
            name: "db".parse().unwrap(),
            manifest: digest(),
            bytes: 1,
            new_bytes: 2,
            stored_bytes: 3,
        },
        streams: vec![stream()],
        consistency: consistency(),
        version: None,
        features: vec![],
        notices: vec!["n".to_owned()],
    };
    let report = SiteReport {
        instance: ID.parse().unwrap(),
        at: Timestamp(1_700_000_000_000),
        agent_version: "0.1.0".to_owned(),
        state: SiteState::Unreachable("why".to_owned()),
        platform: "Kubernetes 1.36.0".to_owned(),
        nodes: 3,
        architectures: vec!["linux/amd64".to_owned()],
        data_kinds: vec!["mongodb".to_owned()],
        may_create_namespaces: true,
        registry: None,
        storage_classes: vec!["standard".to_owned()],
        missing: vec![],
        applications: vec![],
    };
    let held = HolderState::Open { snapshot: "{}".to_owned(), at: Timestamp(1_700_000_000_000) };
    let requests = [
        ("claim", Request::Claim { task: ID.parse().unwrap(), instance: ID.parse().unwrap() }),
        ("heartbeat", Request::Heartbeat { claimed: claimed(), progress, holder: Some(held) }),
        ("finish", Request::Finish { claimed: claimed(), outcome: Outcome::Succeeded(Box::new(copied)) }),
        (
            "finish-failed",
            Request::Finish {
                claimed: claimed(),
                outcome: Outcome::Failed(TaskFailure::retryable("code", "what", "cause").next("next")),
            },
        ),
        ("hand-back", Request::HandBack { claimed: claimed() }),
        ("poll", Request::Poll { instance: ID.parse().unwrap(), most: 64 }),
        ("report", Request::Report(Box::new(report))),
    ];
    for (name, request) in requests {
        put(&format!("request {name}"), seal(&request, "").unwrap());
    }
    let mut answers = vec![
        ("refused".to_owned(), Answer::Refused { why: "taken".to_owned() }),
        ("continue".to_owned(), Answer::Continue { lease_ms: 20_000, holder: HolderOrder::OpenNow }),
        ("cancel".to_owned(), Answer::Cancel),
        ("recorded".to_owned(), Answer::Recorded),
        ("tasks".to_owned(), Answer::Tasks(vec![hint])),
        ("try-later".to_owned(), Answer::TryLater { why: "busy".to_owned() }),
    ];
    answers.extend(specs().into_iter().map(|(name, spec)| {
        (format!("granted {name}"), Answer::Granted { claimed: claimed(), lease_ms: 20_000, spec: Box::new(spec) })
    }));
    for (name, answer) in answers {
        put(&format!("answer {name}"), seal(&answer, "").unwrap());
    }
    out
}

#[test]
fn the_bytes_of_every_message_are_those_of_this_protocol_version() {
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    let mut text = format!("# protocol version {PROTOCOL_VERSION}\n");
    for (name, bytes) in all() {
        text.push_str(&format!("{name}: {}\n", hex::encode(bytes)));
    }
    if std::env::var_os("OCOPEA_RENEW_GOLDEN").is_some() {
        std::fs::write(place, &text).unwrap();
    }
    let golden = std::fs::read_to_string(place).unwrap();
    for (ours, golden) in text.lines().zip(golden.lines()) {
        assert_eq!(ours, golden, "a message's bytes have changed: see the head of this file");
    }
    assert_eq!(text, golden);
}

fn tries<M: Message + std::fmt::Debug + PartialEq>(bytes: &[u8]) {
    let opened = open::<M>(bytes).unwrap();
    assert_eq!(seal(&opened.message, &opened.trace).unwrap(), bytes, "what is read is written the same");
    for end in 0..bytes.len() {
        assert!(open::<M>(&bytes[..end]).is_err(), "cut at {end}");
    }
    let longer = [bytes, &[0]].concat();
    assert!(matches!(open::<M>(&longer), Err(EnvelopeError::Payload(_))));
    for (at, version) in [(4, 0u8), (4, 2), (5, 1)] {
        let mut other = bytes.to_vec();
        other[at] = version;
        let error = open::<M>(&other).unwrap_err();
        assert!(matches!(error, EnvelopeError::Version { .. }) && error.to_string().contains("upgrade"), "{error}");
    }
    let mut other = bytes.to_vec();
    other[0] ^= 1;
    assert!(matches!(open::<M>(&other), Err(EnvelopeError::Magic)));
    let mut other = bytes.to_vec();
    other[6] = 77;
    assert!(matches!(open::<M>(&other), Err(EnvelopeError::Kind { found: 77, .. })));
    // Any flipped bit is another message or a fault, never a panic and never much memory.
    for at in 8..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << bit;
            let _ = open::<M>(&flipped);
        }
    }
}

#[test]
fn what_is_cut_lengthened_of_another_version_or_kind_is_refused_by_its_reason() {
    for (name, bytes) in all() {
        match name.split(' ').next().unwrap() {
            "hint" => tries::<TaskHint>(&bytes),
            "request" => tries::<Request>(&bytes),
            "answer" => tries::<Answer>(&bytes),
            other => panic!("{other}"),
        }
    }
    assert!(matches!(open::<Answer>(&vec![0; LONGEST + 1]), Err(EnvelopeError::TooLong(_))));
}

#[test]
fn lengths_that_claim_too_much_are_refused() {
    // A list of tasks that claims 2^63 entries.
    let mut bytes = seal(&Answer::Tasks(vec![]), "").unwrap().to_vec();
    bytes.truncate(bytes.len() - 1);
    bytes.extend_from_slice(&[253, 0, 0, 0, 0, 0, 0, 0, 128]);
    assert!(matches!(open::<Answer>(&bytes), Err(EnvelopeError::Payload(_))));
}
