//! Whether an image can run at a site: a pure comparison of what it needs with what the site's agents found.
//!
//! Every reason is given at once. What isn't known never counts as there. More capability never makes a verdict worse
//! (a property test holds it).

use serde::{Deserialize, Serialize};

use crate::{
    image::DataKind,
    message::{SiteReport, SiteState},
    names::ComponentName,
    needs::{Capabilities, Known, Need, NodeExpression, NodeFound, PodNeed, StorageFound, Toleration},
    words::size,
};

/// The answer for one site, from the worst to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Something that is needed is not there.
    No,
    /// Something could not be found out.
    Unknown,
    /// It can run, and something will be different.
    Changes,
    /// It can run as it was.
    Compatible,
}

impl Answer {
    /// The word for it, everywhere.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Unknown => "unknown",
            Self::Changes => "changes",
            Self::Compatible => "compatible",
        }
    }
}

/// Why the answer is no better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What this reason alone makes of the answer.
    pub answer: Answer,
    /// The thing: `deployment/web`.
    pub what: String,
    /// What it needs.
    pub needed: String,
    /// What was found.
    pub found: String,
    /// What would mend it, or how to find out.
    pub mend: String,
}

/// The answer with every reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The worst of all reasons; `compatible` where there is none.
    pub answer: Answer,
    /// The worst first.
    pub reasons: Vec<Reason>,
}

impl From<Vec<Reason>> for Verdict {
    fn from(mut reasons: Vec<Reason>) -> Self {
        reasons.sort_by(|a, b| a.answer.cmp(&b.answer).then_with(|| a.what.cmp(&b.what)));
        reasons.dedup();
        Self { answer: reasons.first().map_or(Answer::Compatible, |reason| reason.answer), reasons }
    }
}

/// What an image needs of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Each container with the platforms that it has, `linux/amd64`; none: it has no platform of its own.
    pub containers: Vec<(ComponentName, Vec<String>)>,
    /// Each data service with its kind.
    pub data: Vec<(ComponentName, DataKind)>,
    /// Kinds of objects: `apps/v1 Deployment`.
    pub kinds: Vec<String>,
    /// All else; `None` for images of releases that didn't note it.
    pub more: Option<Vec<Need>>,
}

/// Whether what `needs` tells of can run where `report` comes from.
pub fn verdict(needs: &Needs, report: &SiteReport) -> Verdict {
    let mut judge = Judge { report, capabilities: &report.capabilities, reasons: Vec::new() };
    if let SiteState::Unreachable(why) = &report.state {
        judge.reason(Answer::No, "its cluster", "an answer", why, "see why its agent doesn't reach it");
        return judge.reasons.into();
    }
    judge.containers(&needs.containers);
    judge.data(&needs.data);
    judge.kinds(&needs.kinds);
    if !report.may_create_namespaces {
        judge.reason(
            Answer::No,
            "its namespace",
            "the right to make one",
            "the agent may not make namespaces",
            "grant {apiGroups: [\"\"], resources: [\"namespaces\"], verbs: [\"create\", \"delete\"]} to the agent's user",
        );
    }
    match &needs.more {
        None => judge.reason(
            Answer::Unknown,
            "what its pods ask for",
            "a note of it",
            "the release that saved this image made none",
            "ask the site: ocopea restore IMAGE --site SITE --dry-run; or save it again",
        ),
        Some(more) => {
            for need in more {
                judge.need(need);
            }
            judge.room(more);
        }
    }
    judge.reasons.into()
}

struct Judge<'a> {
    report: &'a SiteReport,
    capabilities: &'a Capabilities,
    reasons: Vec<Reason>,
}

impl Judge<'_> {
    fn reason(
        &mut self,
        answer: Answer,
        what: impl Into<String>,
        needed: impl Into<String>,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) {
        let (what, needed, found, mend) = (what.into(), needed.into(), found.into(), mend.into());
        self.reasons.push(Reason { answer, what, needed, found, mend });
    }

    fn unknown(&mut self, what: &str, needed: &str, why: &str) {
        self.reason(Answer::Unknown, what, needed, "not known", why);
    }

    fn containers(&mut self, containers: &[(ComponentName, Vec<String>)]) {
        let Some(first) = containers.first() else { return };
        if self.report.registry.is_none() {
            self.reason(
                Answer::No,
                if containers.len() == 1 { format!("container {}", first.0) } else { "its containers".to_owned() },
                "a registry that restores push to and the site's nodes pull from",
                "none is configured, or it doesn't answer",
                "name one to the site's agent: registry=HOST/PATH",
            );
        }
        for (name, platforms) in containers {
            if platforms.is_empty() || platforms.iter().any(|p| self.report.architectures.iter().any(|n| runs(p, n))) {
                continue;
            }
            let needed = format!("a node of {}", platforms.join(" or "));
            if self.report.architectures.is_empty() {
                self.unknown(
                    &format!("container {name}"),
                    &needed,
                    "let the agent see nodes: grant list of nodes to its user",
                );
            } else {
                let found = self.report.architectures.join(", ");
                self.reason(Answer::No, format!("container {name}"), needed, found, "choose another site");
            }
        }
    }

    fn data(&mut self, data: &[(ComponentName, DataKind)]) {
        for (name, kind) in data {
            if !self.report.data_kinds.iter().any(|found| found == kind.as_str()) {
                self.reason(
                    Answer::No,
                    format!("{kind} {name}"),
                    format!("an agent that can load {kind}"),
                    self.report.data_kinds.join(", "),
                    "upgrade the site's agent",
                );
            }
            if *kind == DataKind::Volume && !self.capabilities.movers {
                self.reason(
                    Answer::No,
                    format!("volume {name}"),
                    "an image for the pod that writes its files",
                    "none is configured at the site",
                    "start its agent with --mover-image HOST/PATH/ocopea-mover@sha256:…",
                );
            }
        }
    }

    fn kinds(&mut self, kinds: &[String]) {
        match &self.capabilities.kinds {
            Known::Unknown(why) if !kinds.is_empty() => {
                let why = why.clone();
                self.unknown("its configuration", &format!("{} kinds of objects", kinds.len()), &why);
            }
            Known::Unknown(_) => {}
            Known::Found(served) => {
                for kind in kinds.iter().filter(|kind| !served.contains(kind)) {
                    let name = kind.split_once(' ').map_or(kind.as_str(), |(_, name)| name);
                    let other = served.iter().find(|s| s.ends_with(&format!(" {name}")));
                    let found = other.map_or_else(|| "no such kind".to_owned(), |other| format!("only {other}"));
                    let mend = if kind.contains('.') && !kind.contains(".k8s.io/") {
                        "install what defines it (its CustomResourceDefinition)"
                    } else {
                        "choose a site whose cluster serves it"
                    };
                    self.reason(Answer::No, "its configuration", kind.clone(), found, mend);
                }
            }
        }
    }

    fn need(&mut self, need: &Need) {
        match need {
            Need::Pod(pod) => self.pod(pod),
            Need::StorageClass { claims, class, bytes, shared } => {
                self.storage(claims, class.as_deref(), *bytes, *shared);
            }
            Need::PriorityClass { name, by } => self.class("priority class", name, by, |c| &c.priority_classes),
            Need::RuntimeClass { name, by } => self.class("runtime class", name, by, |c| &c.runtime_classes),
            Need::IngressClass { name, by } => self.class("ingress class", name, by, |c| &c.ingress_classes),
            Need::Host { host, by } => self.host(host, by),
        }
    }

    fn class(&mut self, kind: &str, name: &str, by: &[String], of: fn(&Capabilities) -> &Known<Vec<String>>) {
        let needed = format!("{kind} {name}");
        match of(self.capabilities) {
            Known::Found(names) if names.iter().any(|found| found == name) => {}
            Known::Found(names) => {
                let found = if names.is_empty() { format!("no {kind}") } else { names.join(", ") };
                self.reason(Answer::No, by.join(", "), needed, found, format!("make that {kind} at the site"));
            }
            Known::Unknown(why) => self.unknown(&by.join(", "), &needed, &why.clone()),
        }
    }

    fn host(&mut self, host: &str, by: &str) {
        match &self.capabilities.hosts {
            Known::Found(taken) if !taken.iter().any(|taken| taken == host) => {}
            Known::Found(_) => self.reason(
                Answer::Changes,
                by,
                format!("to answer for {host}"),
                "another ingress there answers for it",
                "both may get its requests: leave the ingress out, or remove the other",
            ),
            // The worst that could be found out is that something will be different.
            Known::Unknown(why) => {
                let why = why.clone();
                let needed = format!("to answer for {host}");
                self.reason(Answer::Changes, by, needed, "whether another ingress there does is not known", why);
            }
        }
    }

    fn storage(&mut self, claims: &[String], class: Option<&str>, bytes: u64, shared: bool) {
        let what = claims.iter().map(|claim| format!("volume claim {claim}")).collect::<Vec<_>>().join(", ");
        let needed = class.map_or("a default storage class".to_owned(), |class| format!("storage class {class}"));
        let found = match &self.capabilities.storage {
            // An empty name asks for a volume that somebody made by hand.
            _ if class == Some("") => {
                let mend = "make such a volume, or save it with a storage class";
                return self.reason(Answer::Unknown, what, "a volume made by hand", "not looked for", mend);
            }
            Known::Unknown(why) => return self.unknown(&what, &needed, &why.clone()),
            Known::Found(found) => found,
        };
        let is = |s: &&StorageFound| class.map_or(s.default, |class| s.name == class);
        let Some(storage) = found.iter().find(is) else {
            let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
            let found = if names.is_empty() { "no storage class".to_owned() } else { names.join(", ") };
            let mend = class.map_or("mark one as the default".to_owned(), |class| format!("make a class {class}"));
            return self.reason(Answer::No, what, needed, found, mend);
        };
        let (name, free, can_share) = (storage.name.clone(), storage.free, storage.shared);
        if let Some(free) = free.filter(|free| *free < bytes) {
            let needed = format!("{} of storage class {name}", size(bytes));
            let mend = "make room, or leave the volume out";
            self.reason(Answer::No, what.clone(), needed, format!("{} are free", size(free)), mend);
        }
        match can_share {
            Some(false) if shared => self.reason(
                Answer::No,
                what,
                "ReadWriteMany",
                format!("storage class {name} has volumes for one node only"),
                "choose a site with a class of that name that can be shared",
            ),
            None if shared => self.unknown(
                &what,
                "ReadWriteMany",
                &format!("the provisioner of storage class {name} doesn't tell: try it with one claim"),
            ),
            _ => {}
        }
    }

    /// Some node must be able to take each pod by itself.
    fn pod(&mut self, pod: &PodNeed) {
        if !asks(pod) {
            return;
        }
        let nodes = match &self.capabilities.nodes {
            Known::Unknown(why) => return self.unknown(&pod.by, &asked(pod), &why.clone()),
            Known::Found(nodes) => nodes,
        };
        let fitting: Vec<&NodeFound> = nodes.nodes.iter().filter(|node| admits(node, pod)).collect();
        if fitting.iter().any(|node| takes(node, pod)) {
            return;
        }
        let (answer, mend) = if nodes.more > 0 {
            (Answer::Unknown, format!("{} more nodes were not looked at: ask for a dry run", nodes.more))
        } else if fitting.is_empty() {
            (Answer::No, "label or add a node".to_owned())
        } else {
            (Answer::No, "add a node, or free one".to_owned())
        };
        let found = match fitting.iter().max_by_key(|node| free(node)) {
            None => {
                let names: Vec<&str> = nodes.nodes.iter().take(5).map(|node| node.name.as_str()).collect();
                format!("no node that fits (of {})", names.join(", "))
            }
            Some(node) => format!("the roomiest node, {}, has {} free", node.name, room_of(node)),
        };
        self.reason(answer, pod.by.clone(), asked(pod), found, mend);
    }

    /// All pods together must fit into what is free.
    fn room(&mut self, needs: &[Need]) {
        let Known::Found(found) = &self.capabilities.nodes else { return };
        let pods = needs.iter().filter_map(|need| if let Need::Pod(pod) = need { Some(pod) } else { None });
        let (mut cpu_m, mut memory) = (0u64, 0u64);
        for pod in pods {
            cpu_m = cpu_m.saturating_add(pod.cpu_m.saturating_mul(u64::from(pod.replicas)));
            memory = memory.saturating_add(pod.memory.saturating_mul(u64::from(pod.replicas)));
        }
        if (cpu_m, memory) == (0, 0) || found.more > 0 {
            return;
        }
        let needed = room(cpu_m, memory);
        if found.nodes.iter().any(|node| node.taken.is_none()) {
            let why = "let the agent see all pods: grant list of pods to its user";
            return self.unknown("all of its pods together", &needed, why);
        }
        let (free_cpu, free_memory) = found
            .nodes
            .iter()
            .map(free)
            .fold((0u64, 0u64), |sum, (cpu, memory)| (sum.0.saturating_add(cpu), sum.1.saturating_add(memory)));
        if free_cpu < cpu_m || free_memory < memory {
            let found = format!("{} free on {} nodes", room(free_cpu, free_memory), found.nodes.len());
            self.reason(Answer::No, "all of its pods together", needed, found, "add a node, or free some");
        }
    }
}

/// Whether a node of `node` runs what was made for `platform` (which may name a variant: `linux/arm64/v8`).
fn runs(platform: &str, node: &str) -> bool {
    platform == node || platform.strip_prefix(node).is_some_and(|rest| rest.starts_with('/'))
}

fn asks(pod: &PodNeed) -> bool {
    pod.cpu_m > 0
        || pod.memory > 0
        || !pod.extended.is_empty()
        || !pod.node.is_empty()
        || !pod.affinity.is_empty()
        || !pod.host_ports.is_empty()
}

/// Whether a node lets the pod in, whatever room it has.
fn admits(node: &NodeFound, pod: &PodNeed) -> bool {
    pod.node.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && (pod.affinity.is_empty() || pod.affinity.iter().any(|term| term.iter().all(|e| holds(node, e))))
        && node.taints.iter().all(|taint| {
            pod.tolerations.iter().any(|Toleration { key, value, effect }| {
                (key.is_empty() || *key == taint.key)
                    && value.as_ref().is_none_or(|value| *value == taint.value)
                    && (effect.is_empty() || *effect == taint.effect)
            })
        })
}

fn holds(node: &NodeFound, expression: &NodeExpression) -> bool {
    let value = node.labels.get(&expression.key);
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = |with: fn(&i64, &i64) -> bool| {
        let limit = expression.values.first().and_then(|limit| number(limit));
        value.and_then(|value| number(value)).zip(limit).is_some_and(|(value, limit)| with(&value, &limit))
    };
    match expression.operator.as_str() {
        "In" => value.is_some_and(|value| expression.values.contains(value)),
        "NotIn" => value.is_none_or(|value| !expression.values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(i64::gt),
        "Lt" => compared(i64::lt),
        _ => false,
    }
}

/// Cores and memory that are free; what it has where it is not known what is taken.
fn free(node: &NodeFound) -> (u64, u64) {
    let taken = node.taken.as_ref().map_or((0, 0), |taken| (taken.cpu_m, taken.memory));
    (node.cpu_m.saturating_sub(taken.0), node.memory.saturating_sub(taken.1))
}

fn takes(node: &NodeFound, pod: &PodNeed) -> bool {
    let (cpu_m, memory) = free(node);
    let taken = node.taken.as_ref();
    cpu_m >= pod.cpu_m
        && memory >= pod.memory
        && pod.extended.iter().all(|(name, amount)| {
            let of = |map: &std::collections::BTreeMap<String, u64>| map.get(name).copied().unwrap_or(0);
            of(&node.extended).saturating_sub(taken.map_or(0, |taken| of(&taken.extended))) >= *amount
        })
        && !pod.host_ports.iter().any(|port| taken.is_some_and(|taken| taken.host_ports.contains(port)))
}

fn asked(pod: &PodNeed) -> String {
    let mut parts = Vec::new();
    if pod.cpu_m > 0 || pod.memory > 0 {
        parts.push(room(pod.cpu_m, pod.memory));
    }
    parts.extend(pod.extended.iter().map(|(name, amount)| format!("{amount} {name}")));
    parts.extend(pod.host_ports.iter().map(|port| format!("port {port} of the node")));
    parts.extend(pod.node.iter().map(|(key, value)| format!("the label {key}={value}")));
    if !pod.affinity.is_empty() {
        parts.push("its node affinity".to_owned());
    }
    format!("a node with {}", parts.join(", "))
}

fn room_of(node: &NodeFound) -> String {
    let (cpu_m, memory) = free(node);
    let mut text = room(cpu_m, memory);
    for (name, amount) in &node.extended {
        let taken = node.taken.as_ref().and_then(|taken| taken.extended.get(name)).copied().unwrap_or(0);
        text = format!("{text}, {} {name}", amount.saturating_sub(taken));
    }
    text
}

fn room(cpu_m: u64, memory: u64) -> String {
    format!("{}.{:02} cores, {}", cpu_m / 1000, cpu_m % 1000 / 10, size(memory))
}

#[cfg(test)]
mod tests;
