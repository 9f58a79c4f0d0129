//! The cluster that this process itself runs in, reached by service accounts: one saves, another restores.
//!
//! What a pod's own account may do is little: it may ask for tokens of these two, and of no other account. The tokens lie in
//! files of a directory of their own (in memory, in a pod), which the clients read anew every minute, and are asked for
//! again long before they end. Saves and restores can't use each other's rights: each has a [`Platform`] of its own.
//!
//! An account has its rights where somebody bound it: that binding is how a namespace is opted in. Namespaces that restores
//! make are bound by the account that makes them, to one cluster role, its own.

use std::{io::Write, path::PathBuf, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::ServiceAccount,
    rbac::v1::RoleBinding,
};
use kube::{Api, Client, Config, api::PostParams};
use ocopea_protocol::{failure::TaskFailure, seams::Seams};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};
use tokio_util::sync::CancellationToken;

use super::Platform;
use crate::failures::{chain, kubernetes};

/// What the cluster is called in messages: there is no context.
pub const CONTEXT: &str = "this cluster";
/// How long a token is asked to last.
const LASTS: i64 = 3600;
/// How often tokens are asked for: no server gives one for less than ten minutes.
const RENEWED: Duration = Duration::from_secs(240);
/// How soon it is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the first answer of the cluster may take.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

/// A service account that is bound to the cluster role of its own name, where a namespace is opted in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The namespace that the account lies in: this pod's.
    pub namespace: String,
    /// Its name, and the name of its cluster role.
    pub name: String,
    /// Where objects are tried out that are to be made in a namespace that isn't there yet.
    pub trial: String,
    /// What it is for, and the value of the chart that lists its namespaces.
    pub purpose: &'static str,
}

impl Account {
    /// `kubectl` that gives it its rights in `namespace`.
    pub fn opt_in(&self, namespace: &str) -> String {
        let Self { namespace: home, name, .. } = self;
        format!(
            "kubectl create rolebinding {name} --clusterrole={name} --serviceaccount={home}:{name} --namespace={namespace}"
        )
    }

    /// Whether an object is what opts a namespace in: it belongs to agents, and to no application.
    pub fn is_opt_in(&self, object: &Value) -> bool {
        let (role, subjects) = (&object["roleRef"], object["subjects"].as_array());
        object["kind"] == "RoleBinding"
            && role["kind"] == "ClusterRole"
            && subjects.is_some_and(|subjects| {
                subjects.len() == 1
                    && subjects[0]["kind"] == "ServiceAccount"
                    && subjects[0]["namespace"] == self.namespace.as_str()
                    && subjects[0]["name"] == role["name"]
            })
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.namespace, self.name)
    }
}

/// The accounts' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// The one that looks and saves.
    pub save: String,
    /// The one that restores.
    pub restore: String,
    /// Where the latter may try objects out.
    pub trial: String,
}

/// The cluster, ways into it.
pub struct Inside {
    /// By the rights of saves.
    pub saving: Platform,
    /// By the rights of restores; `None`: all is done by the pod's own account.
    pub restoring: Option<Platform>,
    /// By the pod's own account.
    pub own: Client,
    /// The namespace of the pod.
    pub namespace: String,
    tokens: Option<Tokens>,
}

/// Whether this process runs in a pod.
pub fn is_inside() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

/// Finds the cluster around this process. Without accounts, the pod's own does all.
pub async fn open(accounts: Option<Accounts>, seams: &Seams) -> Result<Inside, TaskFailure> {
    let what = "can't use the cluster that this runs in";
    let fault = |error: &dyn std::error::Error| TaskFailure::permanent("site.inside", what, chain(error));
    let config = Config::incluster().map_err(|error| {
        fault(&error).next("run it in a pod whose service account's token is mounted, or give --context")
    })?;
    let namespace = config.default_namespace.clone();
    let own = Platform::at(config.clone(), CONTEXT, None, seams.clone()).map_err(|error| fault(&error))?;
    let client = own.client.clone();
    let Some(accounts) = accounts else {
        return Ok(Inside { saving: own, restoring: None, own: client, namespace, tokens: None });
    };
    // In memory where there is such a place.
    let place = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let place = tempfile::Builder::new().prefix("ocopea-tokens-").tempdir_in(place).map_err(|error| fault(&error))?;
    let names = vec![accounts.save.clone(), accounts.restore.clone()];
    let tokens = Tokens { own: own.client, namespace: namespace.clone(), names, place, seams: seams.clone() };
    let asked = seams.timeout(FIRST_ANSWER, tokens.renew()).await;
    asked.ok_or_else(|| {
        let cause = format!("its API server didn't answer within {} s", FIRST_ANSWER.as_secs());
        TaskFailure::retryable("site.unreachable", what, cause)
            .next("check that network policies let this pod reach the API server")
    })??;
    let by = |name: &str, purpose| {
        let mut config = config.clone();
        config.auth_info.token_file = Some(tokens.file(name).to_string_lossy().into_owned());
        let trial = accounts.trial.clone();
        let account = Account { namespace: namespace.clone(), name: name.to_owned(), trial, purpose };
        Platform::at(config, CONTEXT, Some(account), seams.clone()).map_err(|error| fault(&error))
    };
    let (saving, restoring) = (by(&accounts.save, "save")?, by(&accounts.restore, "restore")?);
    Ok(Inside { saving, restoring: Some(restoring), own: client, namespace, tokens: Some(tokens) })
}

impl Inside {
    /// Keeps the tokens fresh until stopped. They are gone when this is.
    pub fn keep_fresh(&mut self, stop: &CancellationToken) {
        let Some(tokens) = self.tokens.take() else { return };
        let (stop, seams) = (stop.clone(), tokens.seams.clone());
        let renewing = async move {
            let mut pause = RENEWED;
            while seams.sleep_unless(&stop, seams.jittered(pause)).await {
                pause = match tokens.renew().await {
                    Ok(()) => RENEWED,
                    Err(failure) => {
                        tracing::warn!(%failure, "the tokens of service accounts could not be renewed");
                        AGAIN
                    }
                };
            }
        };
        self.saving.seams.spawner.spawn("agent.tokens", Box::pin(renewing));
    }
}

/// Tokens of accounts, a file each.
struct Tokens {
    own: Client,
    namespace: String,
    names: Vec<String>,
    place: TempDir,
    seams: Seams,
}

impl Tokens {
    fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    async fn renew(&self) -> Result<(), TaskFailure> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.own.clone(), &self.namespace);
        for name in &self.names {
            let what = format!("can't get a token of service account {}:{name}", self.namespace);
            let spec = TokenRequestSpec { expiration_seconds: Some(LASTS), ..TokenRequestSpec::default() };
            let request = TokenRequest { spec, ..TokenRequest::default() };
            let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
            let answer = answer.map_err(|error| {
                let failure = kubernetes(&what, &error);
                if failure.code != "site.forbidden" {
                    return failure;
                }
                failure.next(format!(
                    "grant {{apiGroups: [\"\"], resources: [\"serviceaccounts/token\"], resourceNames: [{:?}], verbs: [\"create\"]}} \
                     to this pod's service account",
                    name
                ))
            })?;
            let token = answer.status.map(|status| status.token).unwrap_or_default();
            if token.is_empty() {
                return Err(TaskFailure::retryable("site.token", what, "the answer holds none"));
            }
            let written = NamedTempFile::new_in(self.place.path())
                .and_then(|mut file| file.write_all(token.as_bytes()).map(|()| file))
                .and_then(|file| file.persist(self.file(name)).map_err(|error| error.error));
            written.map_err(|error| TaskFailure::retryable("site.token", what, error))?;
        }
        Ok(())
    }
}

impl Platform {
    /// Where objects are tried out that are to be made in a namespace that isn't there yet.
    pub fn trial_namespace(&self) -> &str {
        self.account.as_ref().map_or("default", |account| &account.trial)
    }

    /// Whether a verb is allowed; everywhere, or in a namespace.
    pub async fn may(
        &self,
        verb: &str,
        group: &str,
        resource: &str,
        name: Option<&str>,
        namespace: Option<&str>,
    ) -> Result<bool, TaskFailure> {
        let (resource, subresource) = match resource.split_once('/') {
            Some((resource, sub)) => (resource, Some(sub.to_owned())),
            None => (resource, None),
        };
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource,
            name: name.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| kubernetes("can't ask what is allowed", &error))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Refuses a namespace that nobody opted in, with what would.
    pub async fn opted_in(&self, namespace: &str) -> Result<(), TaskFailure> {
        let Some(account) = &self.account else { return Ok(()) };
        if self.may("list", "", "pods", None, Some(namespace)).await? {
            return Ok(());
        }
        let cause = format!("namespace {namespace} isn't opted in: service account {account} has no rights there");
        Err(TaskFailure::permanent("site.not-opted-in", format!("can't {} {namespace}", account.purpose), cause).next(
            format!(
                "{}, or name it in {}.namespaces of the chart's values",
                account.opt_in(namespace),
                account.purpose
            ),
        ))
    }

    /// Gives the account that this platform is reached by its rights in a namespace that it made.
    pub(super) async fn bind_account(&self, namespace: &str) -> Result<(), TaskFailure> {
        let Some(account) = &self.account else { return Ok(()) };
        let what = format!("can't bind cluster role {} in namespace {namespace}", account.name);
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": account.name, "labels": {"app.kubernetes.io/managed-by": super::MANAGER}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": account.name},
            "subjects": [{"kind": "ServiceAccount", "namespace": account.namespace, "name": account.name}]
        }))
        .map_err(|error| TaskFailure::permanent("site.binding", what.clone(), error))?;
        let bindings: Api<RoleBinding> = Api::namespaced(self.client.clone(), namespace);
        match bindings.create(&PostParams::default(), &binding).await {
            Ok(_) => Ok(()),
            // Made before, by this operation: nobody else makes one of that name there.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => {
                let failure = kubernetes(&what, &error);
                if failure.code != "site.forbidden" {
                    return Err(failure);
                }
                let name = &account.name;
                Err(failure.next(format!(
                    "grant {{apiGroups: [\"rbac.authorization.k8s.io\"], resources: [\"rolebindings\"], verbs: [\"create\"]}} and \
                     {{apiGroups: [\"rbac.authorization.k8s.io\"], resources: [\"clusterroles\"], resourceNames: [{name:?}], verbs: [\"bind\"]}} \
                     in all namespaces to service account {account}"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opts_a_namespace_in_is_told_from_the_applications_own_bindings() {
        let account = Account {
            namespace: "ocopea".to_owned(),
            name: "agent-save".to_owned(),
            trial: String::new(),
            purpose: "save",
        };
        let binding = |role: &str, namespace: &str, name: &str| {
            json!({"kind": "RoleBinding", "roleRef": {"kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": name}]})
        };
        assert!(account.is_opt_in(&binding("agent-save", "ocopea", "agent-save")));
        assert!(account.is_opt_in(&binding("agent-restore", "ocopea", "agent-restore")));
        assert!(!account.is_opt_in(&binding("view", "ocopea", "agent-save")));
        assert!(!account.is_opt_in(&binding("agent-save", "shop", "agent-save")));
    }

    #[test]
    fn a_namespace_is_opted_in_by_one_command() {
        let account = Account {
            namespace: "ocopea".to_owned(),
            name: "agent-save".to_owned(),
            trial: "agent-trial".to_owned(),
            purpose: "save",
        };
        assert_eq!(
            account.opt_in("shop"),
            "kubectl create rolebinding agent-save --clusterrole=agent-save --serviceaccount=ocopea:agent-save --namespace=shop"
        );
    }
}
