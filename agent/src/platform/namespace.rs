//! Namespaces of environments: made with a mark, removed only by that mark.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use ocopea_protocol::{failure::TaskFailure, task::EnvironmentMark};
use tokio_util::sync::CancellationToken;

use super::{ENVIRONMENT, OPERATION, Platform, RECORD};
use crate::failures::kubernetes;

/// How long the first answer of a cluster may take.
const FIRST_ANSWER: Duration = Duration::from_secs(15);

impl Platform {
    /// Whether a namespace of that name exists.
    pub async fn namespace_exists(&self, name: &str) -> Result<bool, TaskFailure> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let found = api.get_opt(name).await.map_err(|e| kubernetes(&format!("can't look for namespace {name}"), &e))?;
        Ok(found.is_some())
    }

    /// The labels and annotations of a namespace.
    pub async fn namespace_marks(&self, name: &str) -> Result<Option<(String, String)>, TaskFailure> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let what = format!("can't read namespace {name}");
        // The first question of an operation: a cluster that takes connections and never answers is found out here.
        let asked = self.seams.timeout(FIRST_ANSWER, api.get_opt(name)).await.ok_or_else(|| {
            let cause = format!("its API server didn't answer within {} s", FIRST_ANSWER.as_secs());
            TaskFailure::retryable("site.unreachable", what.clone(), cause)
                .next("check that the cluster runs and can be reached from here")
        })?;
        let found = match asked {
            Ok(found) => found,
            // Who may not see the namespace itself may still see what is in it.
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
            Err(error) => return Err(kubernetes(&what, &error)),
        };
        let Some(found) = found else {
            return Err(TaskFailure::permanent(
                "application.not-found",
                format!("can't find the application {name:?}"),
                format!("context {} has no namespace of that name", self.context),
            )
            .next("see what runs: ocopea applications"));
        };
        let environment = found.metadata.labels.and_then(|mut labels| labels.remove(ENVIRONMENT));
        let record = found.metadata.annotations.and_then(|mut annotations| annotations.remove(RECORD));
        Ok(environment.zip(record))
    }

    /// Whether the cluster would let us make the environment's namespace; makes nothing.
    pub async fn try_namespace(&self, mark: &EnvironmentMark) -> Result<(), TaskFailure> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let parameters = PostParams { dry_run: true, field_manager: None };
        let tried = api.create(&parameters, &marked(mark)).await;
        tried.map(|_| ()).map_err(|error| kubernetes(&format!("can't make namespace {}", mark.name), &error))
    }

    /// Makes the environment's namespace. One that this operation made before is fine; any other is refused.
    pub async fn create_namespace(&self, mark: &EnvironmentMark) -> Result<(), TaskFailure> {
        let name = mark.name.as_str();
        let what = format!("can't make namespace {name}");
        let api: Api<Namespace> = Api::all(self.client.clone());
        let namespace = marked(mark);
        match api.create(&PostParams::default(), &namespace).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let there = api.get_opt(name).await.map_err(|error| kubernetes(&what, &error))?;
                if !there.is_some_and(|there| carries(&there, mark)) {
                    return Err(TaskFailure::conflict(
                        "environment.exists",
                        what,
                        "a namespace of that name exists already",
                    )
                    .next("choose another name with --as"));
                }
            }
            Err(error) => return Err(kubernetes(&what, &error)),
        }
        self.bind_account(name).await?;
        // The first pods would be refused before the default service account is there.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        for _ in 0..120 {
            match accounts.get_opt("default").await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                // A binding that was made counts some moments later.
                Err(kube::Error::Api(status)) if status.code == 403 && self.account.is_some() => {}
                Err(error) => return Err(kubernetes(&what, &error)),
            }
            self.seams.clock.sleep(Duration::from_millis(250)).await;
        }
        Err(TaskFailure::retryable("site.service-account", what, "its default service account didn't come within 30 s"))
    }

    /// Deletes the environment's namespace, if it carries the mark, and waits until it is gone.
    pub async fn remove_namespace(&self, mark: &EnvironmentMark, stop: &CancellationToken) -> Result<(), TaskFailure> {
        let name = mark.name.as_str();
        let what = format!("can't remove namespace {name}");
        let api: Api<Namespace> = Api::all(self.client.clone());
        for round in 0..600 {
            let early = round < 20;
            let Some(there) = api.get_opt(name).await.map_err(|error| kubernetes(&what, &error))? else {
                return Ok(());
            };
            if !carries(&there, mark) {
                // Ours is gone, or never was: what has the name now belongs to somebody else.
                return Ok(());
            }
            if there.metadata.deletion_timestamp.is_none() {
                // One that was made, and the agent ended before it was given its rights there.
                self.bind_account(name).await?;
                let only = Preconditions { uid: there.metadata.uid, resource_version: None };
                let parameters = DeleteParams { preconditions: Some(only), ..DeleteParams::background() };
                match api.delete(name, &parameters).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    // A binding that was made counts some moments later.
                    Err(kube::Error::Api(status)) if status.code == 403 && self.account.is_some() && early => {}
                    Err(error) => return Err(kubernetes(&what, &error)),
                }
            }
            if !self.seams.sleep_unless(stop, Duration::from_millis(500)).await {
                return Err(TaskFailure::cancelled(what));
            }
        }
        Err(TaskFailure::retryable("site.namespace-stuck", what, "it is still there after five minutes")
            .next(format!("see what holds it: kubectl get namespace {name} -o yaml")))
    }
}

/// The namespace as it is made.
fn marked(mark: &EnvironmentMark) -> Namespace {
    let labels = [(ENVIRONMENT, mark.environment.to_string()), (OPERATION, mark.operation.to_string())];
    Namespace {
        metadata: ObjectMeta {
            name: Some(mark.name.to_string()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            annotations: Some([(RECORD.to_owned(), mark.record.to_string())].into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

fn carries(namespace: &Namespace, mark: &EnvironmentMark) -> bool {
    namespace
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(ENVIRONMENT))
        .is_some_and(|environment| *environment == mark.environment.to_string())
}
