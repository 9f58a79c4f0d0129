//! What the user of a context, or the service accounts inside a cluster, must be allowed, and what of it is missing: asked of
//! the API server, said as the rule that would grant it.
//!
//! A kubeconfig's user is asked about in all namespaces. Service accounts have their rights where they are bound: each
//! namespace that is opted in is asked about, and the one where restores try things out.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
    core::v1::Namespace,
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use ocopea_protocol::failure::TaskFailure;

use crate::{
    failures::kubernetes,
    platform::{Platform, inside::Account},
};

/// Questions that are asked at the same time.
const AT_ONCE: usize = 8;
/// Namespaces of a cluster that are looked at.
const MOST_NAMESPACES: u32 = 1000;

/// Who needs something, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Saves, in the application's namespace.
    Save,
    /// Restores, in the environment's namespace.
    Restore,
    /// Both of them.
    Both,
    /// Both of them, outside of all namespaces.
    Cluster,
    /// Restores, before there is a namespace.
    Maker,
}

/// Something that saving and restoring need.
#[derive(Clone, Copy, Debug)]
struct Need {
    purpose: &'static str,
    of: Of,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
}

const fn need(
    purpose: &'static str,
    of: Of,
    verbs: &'static [&'static str],
    group: &'static str,
    resources: &'static [&'static str],
) -> Need {
    Need { purpose, of, verbs, group, resources }
}

/// Everything that they need. `charts/ocopea-agent/templates/roles.yaml` grants it.
const NEEDED: &[Need] = &[
    need("to save", Of::Save, &["get"], "", &["namespaces"]),
    need(
        "to save",
        Of::Save,
        &["list"],
        "",
        &[
            "pods",
            "services",
            "configmaps",
            "secrets",
            "serviceaccounts",
            "persistentvolumeclaims",
            "endpoints",
            "limitranges",
            "resourcequotas",
            "replicationcontrollers",
            "podtemplates",
        ],
    ),
    need("to save", Of::Save, &["get"], "", &["secrets"]),
    need("to save", Of::Save, &["list"], "apps", &["deployments", "statefulsets", "daemonsets", "replicasets"]),
    need("to save", Of::Save, &["list"], "batch", &["jobs", "cronjobs"]),
    need("to save", Of::Save, &["list"], "networking.k8s.io", &["ingresses", "networkpolicies"]),
    need("to save", Of::Save, &["list"], "rbac.authorization.k8s.io", &["roles", "rolebindings"]),
    need("to save", Of::Save, &["list"], "autoscaling", &["horizontalpodautoscalers"]),
    need("to save", Of::Save, &["list"], "policy", &["poddisruptionbudgets"]),
    need("to save", Of::Save, &["list"], "discovery.k8s.io", &["endpointslices"]),
    need("to reach data services", Of::Both, &["create"], "", &["pods/portforward", "pods/exec"]),
    need("to read and write volumes", Of::Both, &["create"], "batch", &["jobs"]),
    need("to read and write volumes", Of::Both, &["delete"], "batch", &["jobs"]),
    need("to show logs", Of::Restore, &["get"], "", &["pods/log"]),
    need("to restore", Of::Maker, &["create"], "", &["namespaces"]),
    need("to restore", Of::Restore, &["delete"], "", &["namespaces"]),
    need("to restore", Of::Restore, &["get"], "", &["pods", "serviceaccounts"]),
    need("to restore", Of::Restore, &["get"], "apps", &["deployments", "statefulsets", "daemonsets"]),
    need(
        "to restore",
        Of::Restore,
        &["create", "patch"],
        "",
        &["services", "configmaps", "secrets", "serviceaccounts", "persistentvolumeclaims", "pods"],
    ),
    need("to restore", Of::Restore, &["create", "patch"], "apps", &["deployments", "statefulsets", "daemonsets"]),
    need("to restore", Of::Restore, &["create", "patch"], "batch", &["jobs", "cronjobs"]),
    need("to restore", Of::Restore, &["create", "patch"], "networking.k8s.io", &["ingresses", "networkpolicies"]),
    need("to restore", Of::Restore, &["create", "patch"], "rbac.authorization.k8s.io", &["roles", "rolebindings"]),
    need("to restore", Of::Cluster, &["list"], "storage.k8s.io", &["storageclasses"]),
    need("to know where it can run", Of::Cluster, &["list"], "", &["nodes"]),
];

/// What is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Namespaces may be made.
    pub may_create_namespaces: bool,
    /// Nodes may be listed.
    pub may_list_nodes: bool,
    /// What is missing, each with the rule that grants it.
    pub missing: Vec<String>,
    /// The namespaces that are opted in; `None`: all are.
    pub namespaces: Option<Vec<String>>,
}

/// Asks what is allowed, to saves and to restores.
pub async fn rights(saving: &Platform, restoring: &Platform) -> Result<Rights, TaskFailure> {
    if let (Some(saver), Some(restorer)) = (&saving.account, &restoring.account) {
        return of_accounts((saving, saver), (restoring, restorer)).await;
    }
    let all = Rights { may_create_namespaces: true, may_list_nodes: true, ..Rights::default() };
    // Administrators need one question.
    if saving.may("*", "*", "*", None, None).await? {
        return Ok(all);
    }
    let mut asked = Vec::new();
    for need in NEEDED {
        for verb in need.verbs {
            for resource in need.resources {
                asked.push(async move {
                    let allowed = saving.may(verb, need.group, resource, None, None).await?;
                    Ok::<_, TaskFailure>(((*verb, need.group, *resource), allowed))
                });
            }
        }
    }
    let answers: Vec<(Right, bool)> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let denied: BTreeSet<Right> = answers.into_iter().filter_map(|(right, yes)| (!yes).then_some(right)).collect();
    let allowed = |verb, group, resource| !denied.contains(&(verb, group, resource));
    let context = &saving.context;
    let grant = |rule: &str| format!("grant {rule} to the user of context {context}");
    let missing = NEEDED.iter().filter_map(|need| judge(need, "in all namespaces", &grant, &allowed)).collect();
    Ok(Rights {
        may_create_namespaces: allowed("create", "", "namespaces"),
        may_list_nodes: allowed("list", "", "nodes"),
        missing,
        ..Rights::default()
    })
}

/// Verb, API group, resource.
type Right = (&'static str, &'static str, &'static str);

/// What is missing of a need, with the rule that grants it.
fn judge(
    need: &Need,
    place: &str,
    grant: &dyn Fn(&str) -> String,
    allowed: &dyn Fn(&'static str, &'static str, &'static str) -> bool,
) -> Option<String> {
    let lacks = |verb: &&'static str, resource: &&'static str| !allowed(verb, need.group, resource);
    let of = |all: &'static [&'static str], some: &dyn Fn(&&'static str) -> bool| -> Vec<&'static str> {
        all.iter().copied().filter(|one| some(one)).collect()
    };
    let resources = of(need.resources, &|resource| need.verbs.iter().any(|verb| lacks(verb, resource)));
    let verbs = of(need.verbs, &|verb| need.resources.iter().any(|resource| lacks(verb, resource)));
    if resources.is_empty() {
        return None;
    }
    let quoted = |all: &[&str]| all.iter().map(|one| format!("\"{one}\"")).collect::<Vec<_>>().join(", ");
    let rule = format!(
        "{{apiGroups: [\"{}\"], resources: [{}], verbs: [{}]}}",
        need.group,
        quoted(&resources),
        quoted(&verbs)
    );
    let (purpose, verbs, resources) = (need.purpose, verbs.join(" and "), resources.join(", "));
    Some(format!("{purpose}: may not {verbs} {resources} {place}: {}", grant(&rule)))
}

/// What accounts may do, in each namespace that is opted in.
async fn of_accounts(saver: (&Platform, &Account), restorer: (&Platform, &Account)) -> Result<Rights, TaskFailure> {
    let namespaces: Api<Namespace> = Api::all(saver.0.client.clone());
    let listed = namespaces.list_metadata(&ListParams::default().limit(MOST_NAMESPACES)).await;
    let mut rights = Rights::default();
    let names: Vec<String> = match listed {
        Ok(listed) => listed.items.into_iter().filter_map(|namespace| namespace.metadata.name).collect(),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            rights.missing.push(format!(
                "to know what runs: may not list namespaces: grant {{apiGroups: [\"\"], resources: [\"namespaces\"], verbs: [\"list\"]}} \
                 in all namespaces to service account {}",
                saver.1
            ));
            Vec::new()
        }
        Err(error) => return Err(kubernetes("can't list the namespaces", &error)),
    };
    let mut asked = Vec::new();
    for name in &names {
        asked.push(async move { Ok::<_, TaskFailure>((name, rules(saver.0, name).await?)) });
    }
    let answers: Vec<(&String, Vec<ResourceRule>)> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let opted_in: Vec<_> = answers.iter().filter(|(_, rules)| covers(rules, "list", "", "pods")).collect();
    rights.namespaces = Some(opted_in.iter().map(|(name, _)| (*name).clone()).collect());
    // Namespaces that lack the same are said together.
    let mut short: BTreeMap<(usize, String), Vec<&str>> = BTreeMap::new();
    let add = |account: &Account| {
        let name = account.name.clone();
        move |rule: &str| format!("add {rule} to cluster role {name}")
    };
    for (name, rules) in opted_in {
        for (index, need) in NEEDED.iter().enumerate().filter(|(_, need)| matches!(need.of, Of::Save | Of::Both)) {
            let allowed = |verb, group, resource| covers(rules, verb, group, resource);
            if let Some(missing) = judge(need, "in PLACE", &add(saver.1), &allowed) {
                short.entry((index, missing)).or_default().push(name);
            }
        }
    }
    rights.missing.extend(short.into_iter().map(|((_, missing), names)| {
        let (some, more) = names.split_at(names.len().min(3));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        missing.replacen("in PLACE", &format!("in namespace {}{more}", some.join(", ")), 1)
    }));
    let trial = &restorer.1.trial;
    let there = rules(restorer.0, trial).await?;
    if covers(&there, "patch", "", "services") {
        let place = "in namespaces that it makes";
        for need in NEEDED.iter().filter(|need| matches!(need.of, Of::Restore | Of::Both)) {
            let allowed = |verb, group, resource| covers(&there, verb, group, resource);
            rights.missing.extend(judge(need, place, &add(restorer.1), &allowed));
        }
    } else {
        let opt_in = restorer.1.opt_in(trial);
        rights.missing.push(format!("to restore: nothing can be tried out in namespace {trial}: {opt_in}"));
    }
    let everywhere = |account: &Account| {
        let account = account.to_string();
        move |rule: &str| format!("grant {rule} in all namespaces to service account {account}")
    };
    for need in NEEDED.iter().filter(|need| need.of == Of::Cluster) {
        // Rules of a namespace include those of the cluster, and no role of ours names these in a namespace.
        let allowed = |verb, group, resource| covers(&there, verb, group, resource);
        rights.missing.extend(judge(need, "", &everywhere(restorer.1), &allowed));
    }
    rights.may_list_nodes = covers(&there, "list", "", "nodes");
    let role = Some(restorer.1.name.as_str());
    let group = "rbac.authorization.k8s.io";
    let making = [
        ("create", "", "namespaces", None),
        ("create", group, "rolebindings", None),
        ("bind", group, "clusterroles", role),
    ];
    rights.may_create_namespaces = true;
    for (verb, group, resource, name) in making {
        if !restorer.0.may(verb, group, resource, name, None).await? {
            rights.may_create_namespaces = false;
            let only = name.map(|name| format!(", resourceNames: [\"{name}\"]")).unwrap_or_default();
            let rule = format!("{{apiGroups: [\"{group}\"], resources: [\"{resource}\"]{only}, verbs: [\"{verb}\"]}}");
            let grant = everywhere(restorer.1)(&rule);
            rights.missing.push(format!("to make namespaces: may not {verb} {resource}: {grant}"));
        }
    }
    Ok(rights)
}

/// All rules that hold for the platform's user in a namespace.
async fn rules(platform: &Platform, namespace: &str) -> Result<Vec<ResourceRule>, TaskFailure> {
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
    let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
    let api: Api<SelfSubjectRulesReview> = Api::all(platform.client.clone());
    let answer = api.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|error| kubernetes("can't ask what is allowed", &error))?;
    Ok(answer.status.map(|status| status.resource_rules).unwrap_or_default())
}

/// Whether one of the rules allows it for all names.
fn covers(rules: &[ResourceRule], verb: &str, group: &str, resource: &str) -> bool {
    let has = |all: Option<&[String]>, one: &str| all.unwrap_or_default().iter().any(|each| each == one || each == "*");
    rules.iter().any(|rule| {
        has(Some(&rule.verbs), verb)
            && has(rule.api_groups.as_deref(), group)
            && has(rule.resources.as_deref(), resource)
            && rule.resource_names.as_deref().unwrap_or_default().is_empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(denied: &[&str]) -> Vec<String> {
        let grant = |rule: &str| format!("grant {rule} to the user of context desk");
        let allowed = |_, _, resource| !denied.contains(&resource);
        NEEDED.iter().filter_map(|need| judge(need, "in all namespaces", &grant, &allowed)).collect()
    }

    #[test]
    fn what_is_missing_is_said_as_the_rule_that_grants_it() {
        assert_eq!(missing(&[]), [""; 0]);
        let short = missing(&["secrets", "configmaps", "nodes"]);
        assert_eq!(short.len(), 4, "{short:#?}");
        assert!(short[0].contains(r#"may not list configmaps, secrets in all namespaces: grant {apiGroups: [""], resources: ["configmaps", "secrets"], verbs: ["list"]} to the user of context desk"#), "{short:#?}");
        assert!(short[2].contains(r#"may not create and patch configmaps, secrets"#), "{short:#?}");
    }

    /// The rules of a cluster role that the agent's chart makes, as `tests/charts.sh` keeps it.
    fn granted(role: &str) -> Vec<ResourceRule> {
        let golden = include_str!("../../charts/ocopea-agent/rbac.golden.yaml");
        let objects = golden.split("\n---\n").filter_map(|part| serde_saphyr::from_str::<serde_json::Value>(part).ok());
        let role = objects.into_iter().find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == role).unwrap();
        serde_json::from_value(role["rules"].clone()).unwrap()
    }

    #[test]
    fn the_chart_grants_what_is_needed() {
        let of = |role: &str| granted(&format!("ocopea-agent-{role}"));
        let (save, restore, look, make) = (of("save"), of("restore"), of("look"), of("make"));
        for need in NEEDED {
            let roles = match need.of {
                Of::Save => vec![&save],
                Of::Restore => vec![&restore],
                Of::Both => vec![&save, &restore],
                Of::Cluster => vec![&look],
                Of::Maker => vec![&make],
            };
            for rules in roles {
                let allowed = |verb, group, resource| covers(rules, verb, group, resource);
                assert_eq!(judge(need, "anywhere", &str::to_owned, &allowed), None);
            }
        }
        assert!(!covers(&save, "create", "", "secrets") && !covers(&save, "delete", "", "namespaces"));
    }

    #[test]
    fn a_rule_for_one_name_is_no_right_to_all() {
        let rule = |names: &[&str]| ResourceRule {
            verbs: vec!["get".to_owned()],
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".to_owned()]),
            resource_names: Some(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        assert!(covers(&[rule(&[])], "get", "", "secrets"));
        assert!(!covers(&[rule(&["one"])], "get", "", "secrets"));
        assert!(!covers(&[rule(&[])], "list", "", "secrets"));
        assert!(!covers(&[rule(&[])], "get", "apps", "secrets"));
    }
}
