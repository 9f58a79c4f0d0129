use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    ids::InstanceId,
    needs::{NodesFound, TaintFound, Taken},
    time::Timestamp,
};

const GIB: u64 = 1 << 30;

fn map<V: Clone>(pairs: &[(&str, V)]) -> BTreeMap<String, V> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn node(name: &str) -> NodeFound {
    NodeFound {
        name: name.to_owned(),
        platform: "linux/amd64".to_owned(),
        labels: map(&[("disk", "ssd".to_owned()), ("cores", "4".to_owned())]),
        taints: vec![],
        cpu_m: 4000,
        memory: 8 * GIB,
        extended: map(&[("example.com/gpu", 2)]),
        taken: Some(Taken {
            cpu_m: 1000,
            memory: GIB,
            extended: map(&[("example.com/gpu", 1)]),
            host_ports: vec![9100],
        }),
    }
}

/// A site that has one of everything.
fn site() -> SiteReport {
    SiteReport {
        instance: InstanceId(uuid::Uuid::nil()),
        at: Timestamp(0),
        agent_version: String::new(),
        state: SiteState::Ready,
        platform: "Kubernetes 1.36.0".to_owned(),
        nodes: 1,
        architectures: words(&["linux/amd64", "linux/arm64"]),
        data_kinds: words(&["mongodb", "postgresql", "volume"]),
        may_create_namespaces: true,
        registry: Some("registry:5000".to_owned()),
        storage_classes: words(&["fast"]),
        missing: vec![],
        applications: vec![],
        limits: None,
        capabilities: Capabilities {
            kinds: Known::Found(words(&["v1 Secret", "apps/v1 Deployment", "example.com/v1 Shop"])),
            storage: Known::Found(vec![StorageFound {
                name: "fast".to_owned(),
                default: true,
                shared: Some(true),
                free: Some(10 * GIB),
            }]),
            priority_classes: Known::Found(words(&["high"])),
            runtime_classes: Known::Found(words(&["kata"])),
            ingress_classes: Known::Found(words(&["nginx"])),
            hosts: Known::Found(words(&["taken.example"])),
            nodes: Known::Found(NodesFound { nodes: vec![node("one")], more: 0 }),
            movers: true,
        },
    }
}

fn component(name: &str) -> ComponentName {
    ComponentName::from_lossy(name)
}

fn more(need: Need) -> Needs {
    Needs { more: Some(vec![need]), ..Needs::default() }
}

fn pod(change: impl FnOnce(&mut PodNeed)) -> Needs {
    let mut pod = PodNeed { by: "deployment/web".to_owned(), replicas: 1, ..PodNeed::default() };
    change(&mut pod);
    more(Need::Pod(pod))
}

fn claim(class: Option<&str>, bytes: u64, shared: bool) -> Needs {
    more(Need::StorageClass { claims: words(&["data"]), class: class.map(str::to_owned), bytes, shared })
}

fn by() -> Vec<String> {
    words(&["deployment/web"])
}

fn affinity(operator: &str, key: &str, values: &[&str]) -> Needs {
    let expression = NodeExpression { key: key.to_owned(), operator: operator.to_owned(), values: words(values) };
    pod(|pod| pod.affinity = vec![vec![expression]])
}

/// A need that the site meets, one that it does not, and how the site looks when it can't tell.
struct Row {
    name: &'static str,
    met: Needs,
    not: (Needs, Answer),
    blind: Option<fn(&mut SiteReport)>,
}

fn row(name: &'static str, met: Needs, not: Needs, blind: Option<fn(&mut SiteReport)>) -> Row {
    Row { name, met, not: (not, Answer::No), blind }
}

fn no_nodes(site: &mut SiteReport) {
    site.capabilities.nodes = Known::Unknown("nodes may not be listed".to_owned());
}

fn no_storage(site: &mut SiteReport) {
    site.capabilities.storage = Known::Unknown("classes may not be listed".to_owned());
}

fn table() -> Vec<Row> {
    let container = |platforms: &[&str]| Needs {
        containers: vec![(component("web"), words(platforms))],
        more: Some(vec![]),
        ..Needs::default()
    };
    let kinds = |kinds: &[&str]| Needs { kinds: words(kinds), more: Some(vec![]), ..Needs::default() };
    let host = |host: &str| more(Need::Host { host: host.to_owned(), by: "ingress/web".to_owned() });
    vec![
        row(
            "an architecture",
            container(&["linux/amd64"]),
            container(&["linux/s390x"]),
            Some(|site| site.architectures = vec![]),
        ),
        row(
            "a variant of one",
            container(&["linux/s390x", "linux/arm64/v8"]),
            container(&["linux/arm/v7"]),
            Some(|site| site.architectures = vec![]),
        ),
        row(
            "a kind",
            kinds(&["v1 Secret"]),
            kinds(&["v1 Secret", "apps/v2 Deployment"]),
            Some(|site| {
                site.capabilities.kinds = Known::default();
            }),
        ),
        row(
            "a custom resource",
            kinds(&["example.com/v1 Shop"]),
            kinds(&["example.com/v1 Mill"]),
            Some(|site| {
                site.capabilities.kinds = Known::default();
            }),
        ),
        row("a storage class", claim(Some("fast"), GIB, false), claim(Some("slow"), GIB, false), Some(no_storage)),
        row("room in it", claim(Some("fast"), 10 * GIB, false), claim(Some("fast"), 10 * GIB + 1, false), None),
        row(
            "a shared volume",
            claim(Some("fast"), 1, true),
            claim(Some("slow"), 1, true),
            Some(|site| {
                if let Known::Found(found) = &mut site.capabilities.storage {
                    found[0].shared = None;
                }
            }),
        ),
        row("a default class", claim(None, 1, false), claim(None, 11 * GIB, false), Some(no_storage)),
        row(
            "a priority class",
            more(Need::PriorityClass { name: "high".to_owned(), by: by() }),
            more(Need::PriorityClass { name: "low".to_owned(), by: by() }),
            Some(|site| site.capabilities.priority_classes = Known::default()),
        ),
        row(
            "a runtime class",
            more(Need::RuntimeClass { name: "kata".to_owned(), by: by() }),
            more(Need::RuntimeClass { name: "gvisor".to_owned(), by: by() }),
            Some(|site| site.capabilities.runtime_classes = Known::default()),
        ),
        row(
            "an ingress class",
            more(Need::IngressClass { name: "nginx".to_owned(), by: by() }),
            more(Need::IngressClass { name: "traefik".to_owned(), by: by() }),
            Some(|site| site.capabilities.ingress_classes = Known::default()),
        ),
        Row {
            name: "a host name of its own",
            met: host("free.example"),
            not: (host("taken.example"), Answer::Changes),
            blind: None,
        },
        row("cores", pod(|pod| pod.cpu_m = 3000), pod(|pod| pod.cpu_m = 3001), Some(no_nodes)),
        row("memory", pod(|pod| pod.memory = 7 * GIB), pod(|pod| pod.memory = 7 * GIB + 1), Some(no_nodes)),
        row(
            "room for all",
            pod(|pod| (pod.cpu_m, pod.replicas) = (1000, 3)),
            pod(|pod| (pod.cpu_m, pod.replicas) = (1000, 4)),
            Some(|site| {
                if let Known::Found(found) = &mut site.capabilities.nodes {
                    found.nodes[0].taken = None;
                }
            }),
        ),
        row(
            "an extended resource",
            pod(|pod| pod.extended = map(&[("example.com/gpu", 1)])),
            pod(|pod| pod.extended = map(&[("example.com/gpu", 2)])),
            Some(no_nodes),
        ),
        row(
            "a resource that no node knows",
            pod(|pod| pod.extended = map(&[("example.com/gpu", 1)])),
            pod(|pod| pod.extended = map(&[("example.com/fpga", 1)])),
            Some(no_nodes),
        ),
        row(
            "a label of the node",
            pod(|pod| pod.node = map(&[("disk", "ssd".to_owned())])),
            pod(|pod| pod.node = map(&[("disk", "tape".to_owned())])),
            Some(no_nodes),
        ),
        row(
            "a port of the node",
            pod(|pod| pod.host_ports = vec![9101]),
            pod(|pod| pod.host_ports = vec![9100]),
            Some(no_nodes),
        ),
        row("affinity In", affinity("In", "disk", &["ssd"]), affinity("In", "disk", &["tape"]), Some(no_nodes)),
        row(
            "affinity NotIn",
            affinity("NotIn", "disk", &["tape"]),
            affinity("NotIn", "disk", &["ssd"]),
            Some(no_nodes),
        ),
        row("affinity Exists", affinity("Exists", "disk", &[]), affinity("Exists", "zone", &[]), Some(no_nodes)),
        row(
            "affinity DoesNotExist",
            affinity("DoesNotExist", "zone", &[]),
            affinity("DoesNotExist", "disk", &[]),
            Some(no_nodes),
        ),
        row("affinity Gt", affinity("Gt", "cores", &["3"]), affinity("Gt", "cores", &["4"]), Some(no_nodes)),
        row("affinity Lt", affinity("Lt", "cores", &["5"]), affinity("Lt", "cores", &["4"]), Some(no_nodes)),
    ]
}

#[test]
fn every_need_is_met_or_not_or_not_known() {
    for Row { name, met, not: (not, worse), blind } in table() {
        assert_eq!(verdict(&met, &site()), Verdict { answer: Answer::Compatible, reasons: vec![] }, "{name}");
        let refused = verdict(&not, &site());
        assert_eq!(refused.answer, worse, "{name}: {refused:?}");
        for reason in &refused.reasons {
            let said = [&reason.what, &reason.needed, &reason.found, &reason.mend];
            assert!(said.iter().all(|text| !text.is_empty()), "{name}: {reason:?}");
        }
        if let Some(blind) = blind {
            let mut site = site();
            blind(&mut site);
            assert_eq!(verdict(&met, &site).answer, Answer::Unknown, "{name}");
        }
    }
}

#[test]
fn what_a_site_lacks_is_said_all_at_once() {
    let needs = Needs {
        containers: vec![(component("web"), words(&["linux/s390x"]))],
        data: vec![(component("db"), DataKind::MongoDb), (component("uploads"), DataKind::Volume)],
        kinds: words(&["example.com/v1 Mill"]),
        more: Some(vec![
            Need::PriorityClass { name: "low".to_owned(), by: by() },
            Need::Host { host: "taken.example".to_owned(), by: "ingress/web".to_owned() },
        ]),
    };
    let mut poor = site();
    (poor.registry, poor.may_create_namespaces, poor.capabilities.movers) = (None, false, false);
    poor.data_kinds = words(&["volume"]);
    let found = verdict(&needs, &poor);
    assert_eq!(found.answer, Answer::No);
    let answers: Vec<Answer> = found.reasons.iter().map(|reason| reason.answer).collect();
    assert_eq!((answers.len(), answers.last()), (8, Some(&Answer::Changes)), "{found:#?}");
    assert!(answers.is_sorted(), "the worst first");
}

#[test]
fn a_cluster_that_does_not_answer_can_run_nothing_and_an_older_image_is_not_known() {
    let mut away = site();
    away.state = SiteState::Unreachable("no route to host".to_owned());
    let found = verdict(&Needs { more: Some(vec![]), ..Needs::default() }, &away);
    assert!(found.answer == Answer::No && found.reasons[0].found.contains("no route"), "{found:?}");
    let older = verdict(&Needs::default(), &site());
    assert!(older.answer == Answer::Unknown && older.reasons[0].mend.contains("--dry-run"), "{older:?}");
}

#[test]
fn a_host_name_that_may_be_taken_is_a_change_at_worst() {
    let mut blind = site();
    blind.capabilities.hosts = Known::default();
    let host = more(Need::Host { host: "free.example".to_owned(), by: "ingress/web".to_owned() });
    assert_eq!(verdict(&host, &blind).answer, Answer::Changes);
}

#[test]
fn taints_are_borne_by_those_who_say_so() {
    let mut tainted = site();
    if let Known::Found(found) = &mut tainted.capabilities.nodes {
        found.nodes[0].taints =
            vec![TaintFound { key: "for".to_owned(), value: "batch".to_owned(), effect: "NoSchedule".to_owned() }];
    }
    let bears = |key: &str, value: Option<&str>, effect: &str| {
        let toleration = Toleration { key: key.to_owned(), value: value.map(str::to_owned), effect: effect.to_owned() };
        let needs = pod(|pod| (pod.cpu_m, pod.tolerations) = (1, vec![toleration]));
        verdict(&needs, &tainted).answer
    };
    assert_eq!(verdict(&pod(|pod| pod.cpu_m = 1), &tainted).answer, Answer::No);
    assert_eq!(bears("", None, ""), Answer::Compatible);
    assert_eq!(bears("for", None, "NoSchedule"), Answer::Compatible);
    assert_eq!(bears("for", Some("batch"), ""), Answer::Compatible);
    assert_eq!(bears("for", Some("web"), ""), Answer::No);
    assert_eq!(bears("for", None, "NoExecute"), Answer::No);
    assert_eq!(bears("against", None, ""), Answer::No);
}

#[test]
fn nodes_that_were_not_looked_at_leave_it_open() {
    let mut large = site();
    if let Known::Found(found) = &mut large.capabilities.nodes {
        found.more = 40;
    }
    assert_eq!(verdict(&pod(|pod| pod.cpu_m = 3001), &large).answer, Answer::Unknown);
    assert_eq!(verdict(&pod(|pod| pod.cpu_m = 3000), &large).answer, Answer::Compatible);
}

/// What a richer site has besides.
#[derive(Clone, Copy, Debug)]
enum Gain {
    Registry,
    Namespaces,
    Movers,
    Data,
    Architecture,
    Kind,
    Class,
    Storage,
    Node,
}

fn richer(site: &SiteReport, gain: Gain) -> SiteReport {
    let mut site = site.clone();
    let found = &mut site.capabilities;
    match gain {
        Gain::Registry => site.registry = Some("registry".to_owned()),
        Gain::Namespaces => site.may_create_namespaces = true,
        Gain::Movers => found.movers = true,
        Gain::Data => site.data_kinds.push("mongodb".to_owned()),
        Gain::Architecture => site.architectures.push("linux/s390x".to_owned()),
        Gain::Kind => push(&mut found.kinds, "example.com/v1 Mill".to_owned()),
        Gain::Class => {
            push(&mut found.priority_classes, "low".to_owned());
            push(&mut found.runtime_classes, "gvisor".to_owned());
            push(&mut found.ingress_classes, "traefik".to_owned());
        }
        Gain::Storage => push(
            &mut found.storage,
            StorageFound { name: "slow".to_owned(), default: false, shared: Some(true), free: None },
        ),
        Gain::Node => {
            if let Known::Found(nodes) = &mut found.nodes {
                nodes.nodes.push(node("another"));
            }
        }
    }
    site
}

fn push<T>(known: &mut Known<Vec<T>>, one: T) {
    if let Known::Found(found) = known {
        found.push(one);
    }
}

proptest! {
    #[test]
    fn more_capability_never_makes_a_verdict_worse(
        rows in proptest::collection::vec((0..25usize, any::<bool>()), 1..6),
        poor in proptest::collection::vec(0..5usize, 0..4),
        gain in prop_oneof![
            Just(Gain::Registry), Just(Gain::Namespaces), Just(Gain::Movers), Just(Gain::Data), Just(Gain::Architecture),
            Just(Gain::Kind), Just(Gain::Class), Just(Gain::Storage), Just(Gain::Node),
        ],
    ) {
        let table = table();
        let mut needs = Needs { more: Some(vec![]), ..Needs::default() };
        for (index, met) in rows {
            let Some(row) = table.get(index) else { continue };
            let wanted = if met { &row.met } else { &row.not.0 };
            needs.containers.extend(wanted.containers.clone());
            needs.kinds.extend(wanted.kinds.clone());
            needs.more.get_or_insert_default().extend(wanted.more.clone().unwrap_or_default());
        }
        let mut before = site();
        for lack in poor {
            match lack {
                0 => before.registry = None,
                1 => before.may_create_namespaces = false,
                2 => before.capabilities.movers = false,
                3 => before.capabilities.storage = Known::Found(vec![]),
                _ => before.capabilities.nodes = Known::Found(NodesFound::default()),
            }
        }
        let after = richer(&before, gain);
        prop_assert!(verdict(&needs, &after).answer >= verdict(&needs, &before).answer);
    }
}
