//! Kubernetes: the only place of the agent that speaks with a cluster's API.

pub mod apply;
mod channels;
pub mod claim;
pub mod discover;
pub mod exec;
pub mod facts;
pub mod forward;
pub mod hold;
pub mod inside;
pub mod interactive;
pub mod kept;
pub mod logs;
pub mod mover;
pub mod namespace;
pub mod wait;

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use ocopea_protocol::{failure::TaskFailure, seams::Seams};

use crate::failures::chain;

/// The field manager of everything that Ocopea applies.
pub const MANAGER: &str = "ocopea";
/// Label: the environment that an object was made for.
pub const ENVIRONMENT: &str = "ocopea.dev/environment";
/// Label: the operation that made an object.
pub const OPERATION: &str = "ocopea.dev/operation";
/// Label of what belongs to a mover: helpers of an operation, never part of an application.
pub const MOVER: &str = "ocopea.dev/mover";
/// Label of the records of what is held ([`hold`]): they are never part of an application.
pub const HELD: &str = "ocopea.dev/held";
/// Annotation of a namespace: the record that its environment came from.
pub const RECORD: &str = "ocopea.dev/record";

use discover::KnownKinds;
use inside::Account;

/// A cluster, reached through one context of a kubeconfig, or from inside by a service account.
#[derive(Clone)]
pub struct Platform {
    /// The API: requests that are answered within a minute.
    pub client: Client,
    /// The API, for what may be silent for long: exec, forwarded ports, logs.
    pub streams: Client,
    kinds: Arc<Mutex<Option<KnownKinds>>>,
    /// The context's name, for messages.
    pub context: String,
    /// The service account that this is reached by, where its rights end at namespaces that are opted in.
    pub account: Option<Arc<Account>>,
    /// The API server's host: where NodePorts may be looked for.
    pub api_host: String,
    /// Clock, chance, spawning.
    pub seams: Seams,
}

impl Platform {
    /// Reads the kubeconfig; doesn't connect yet.
    pub async fn open(kubeconfig: Option<&Path>, context: &str, seams: Seams) -> Result<Self, TaskFailure> {
        let what = format!("can't use the kubeconfig context {context:?}");
        let fault = |error: &dyn std::error::Error| {
            TaskFailure::permanent("site.kubeconfig", what.clone(), chain(error))
                .next("see the contexts there are: kubectl config get-contexts")
        };
        let file = match kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        }
        .map_err(|error| fault(&error))?;
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(file, &options).await.map_err(|error| fault(&error))?;
        Self::at(config, context, None, seams).map_err(|error| fault(&error))
    }

    /// Where a configuration says; doesn't connect yet.
    fn at(mut config: Config, context: &str, account: Option<Account>, seams: Seams) -> Result<Self, kube::Error> {
        config.connect_timeout = Some(std::time::Duration::from_secs(5));
        config.read_timeout = None;
        let mut answered = config.clone();
        // An API server that takes a connection and never answers must not hold a task for ever.
        answered.read_timeout = Some(std::time::Duration::from_secs(60));
        let api_host = config.cluster_url.host().unwrap_or_default().to_owned();
        let streams = Client::try_from(config)?;
        let client = Client::try_from(answered)?;
        let account = account.map(Arc::new);
        Ok(Self { client, streams, kinds: Arc::default(), context: context.to_owned(), account, api_host, seams })
    }

    /// How `kubectl` is told this cluster, for messages.
    pub fn kubectl(&self) -> String {
        if self.context == inside::CONTEXT {
            "kubectl".to_owned()
        } else {
            format!("kubectl --context {}", self.context)
        }
    }
}
