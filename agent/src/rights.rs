//! What the user of a context must be allowed, and what of it is missing: asked of the API server, said as the rule that
//! would grant it.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};
use ocopea_protocol::failure::TaskFailure;

use crate::{failures::kubernetes, platform::Platform};

/// Questions that are asked at the same time.
const AT_ONCE: usize = 8;

/// What for, verb, API group, resources.
type Need = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// What saving and restoring need.
const NEEDED: &[Need] = &[
    ("to save", "get", "", &["namespaces"]),
    (
        "to save",
        "list",
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
    ("to save", "get", "", &["secrets"]),
    ("to save", "list", "apps", &["deployments", "statefulsets", "daemonsets", "replicasets"]),
    ("to save", "list", "batch", &["jobs", "cronjobs"]),
    ("to save", "list", "networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("to save", "list", "rbac.authorization.k8s.io", &["roles", "rolebindings"]),
    ("to save", "list", "autoscaling", &["horizontalpodautoscalers"]),
    ("to save", "list", "policy", &["poddisruptionbudgets"]),
    ("to save", "list", "discovery.k8s.io", &["endpointslices"]),
    ("to reach data services", "create", "", &["pods/portforward", "pods/exec"]),
    ("to read and write volumes", "create", "batch", &["jobs"]),
    ("to read and write volumes", "delete", "batch", &["jobs"]),
    ("to show logs", "get", "", &["pods/log"]),
    ("to restore", "create", "", &["namespaces"]),
    ("to restore", "delete", "", &["namespaces"]),
    ("to restore", "get", "", &["pods", "serviceaccounts"]),
    ("to restore", "get", "apps", &["deployments", "statefulsets", "daemonsets"]),
    (
        "to restore",
        "patch",
        "",
        &["services", "configmaps", "secrets", "serviceaccounts", "persistentvolumeclaims", "pods"],
    ),
    ("to restore", "patch", "apps", &["deployments", "statefulsets", "daemonsets"]),
    ("to restore", "patch", "batch", &["jobs", "cronjobs"]),
    ("to restore", "patch", "networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("to restore", "patch", "rbac.authorization.k8s.io", &["roles", "rolebindings"]),
    ("to restore", "list", "storage.k8s.io", &["storageclasses"]),
    ("to know where it can run", "list", "", &["nodes"]),
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
}

/// Asks what the user of the context may do in all namespaces.
pub async fn rights(platform: &Platform) -> Result<Rights, TaskFailure> {
    // Administrators need one question.
    if may(platform, "*", "*", "*").await? {
        return Ok(Rights { may_create_namespaces: true, may_list_nodes: true, missing: Vec::new() });
    }
    let mut asked = Vec::new();
    for (index, (_, verb, group, resources)) in NEEDED.iter().enumerate() {
        for resource in *resources {
            asked.push(async move { Ok((index, *resource, may(platform, verb, group, resource).await?)) });
        }
    }
    let answers: Vec<(usize, &str, bool)> = stream::iter(asked).buffered(AT_ONCE).try_collect::<Vec<_>>().await?;
    Ok(judge(&answers, &platform.context))
}

/// What follows from the answers: index into [`NEEDED`], resource, whether it is allowed.
fn judge(answers: &[(usize, &str, bool)], context: &str) -> Rights {
    let allowed = |verb: &str, resource: &str| {
        answers
            .iter()
            .any(|(index, of, yes)| *yes && *of == resource && NEEDED.get(*index).is_some_and(|n| n.1 == verb))
    };
    let mut rights = Rights {
        may_create_namespaces: allowed("create", "namespaces"),
        may_list_nodes: allowed("list", "nodes"),
        missing: Vec::new(),
    };
    let mut by_rule: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for (index, resource, _) in answers.iter().filter(|(_, _, yes)| !yes) {
        by_rule.entry(*index).or_default().push(resource);
    }
    for (index, resources) in by_rule {
        let Some((purpose, verb, group, _)) = NEEDED.get(index) else { continue };
        let quoted: Vec<String> = resources.iter().map(|resource| format!("\"{resource}\"")).collect();
        rights.missing.push(format!(
            "{purpose}: may not {verb} {} in all namespaces: grant {{apiGroups: [\"{group}\"], resources: [{}], verbs: [\"{verb}\"]}} to the user of context {context}",
            resources.join(", "),
            quoted.join(", "),
        ));
    }
    rights
}

async fn may(platform: &Platform, verb: &str, group: &str, resource: &str) -> Result<bool, TaskFailure> {
    let (resource, subresource) = match resource.split_once('/') {
        Some((resource, sub)) => (resource, Some(sub.to_owned())),
        None => (resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(platform.client.clone());
    let answer = api
        .create(&PostParams::default(), &review)
        .await
        .map_err(|error| kubernetes("can't ask what is allowed", &error))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_as_the_rule_that_grants_it() {
        let answers: Vec<(usize, &str, bool)> = NEEDED
            .iter()
            .enumerate()
            .flat_map(|(index, (_, _, _, resources))| resources.iter().map(move |resource| (index, *resource, true)))
            .collect();
        let all = judge(&answers, "desk");
        assert_eq!(all, Rights { may_create_namespaces: true, may_list_nodes: true, missing: vec![] });
        let short: Vec<(usize, &str, bool)> = answers
            .into_iter()
            .map(|(index, resource, _)| (index, resource, !matches!(resource, "secrets" | "configmaps" | "nodes")))
            .collect();
        let short = judge(&short, "desk");
        assert!(!short.may_list_nodes && short.may_create_namespaces);
        assert_eq!(short.missing.len(), 4, "{:#?}", short.missing);
        assert!(short.missing[0].contains(r#"may not list configmaps, secrets in all namespaces: grant {apiGroups: [""], resources: ["configmaps", "secrets"], verbs: ["list"]} to the user of context desk"#), "{:#?}", short.missing);
    }
}
