//! The ways into an environment: connections to its services, and what a client needs to use them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, api::ListParams};
use ocopea_protocol::{failure::TaskFailure, image::DataKind, names::Namespace, session::Way, task::Source};
use tokio::io::DuplexStream;
use url::Url;

use crate::{
    application::{Application, Located},
    data::Login,
    failures::kubernetes,
    platform::{Platform, forward::Towards},
};

/// The failure of a name that nothing bears.
const NO_SERVICE: &str = "environment.no-service";

/// How long it stands what a name leads to, before it is looked up anew.
const STANDS: Duration = Duration::from_secs(60);
/// Names that are kept in mind.
const MOST: usize = 64;

/// The ways into environments of one site.
#[derive(Clone)]
pub struct Access {
    platform: Platform,
    /// What names of namespaces lead to, and since when.
    found: Arc<Mutex<Found>>,
}

type Found = HashMap<(Namespace, String), (Duration, Target)>;

/// What a name leads to.
#[derive(Clone)]
struct Target {
    towards: Towards,
    port: u16,
    /// A data service's kind, and the application's own login.
    data: Option<(DataKind, Option<Login>)>,
    what: String,
}

impl Access {
    /// The ways into environments at `platform`.
    pub fn new(platform: Platform) -> Self {
        Self { platform, found: Arc::default() }
    }

    /// The site's cluster.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// What leads to a data service or Service, for a client that will connect to `address`.
    pub async fn way(&self, namespace: &str, service: &str, address: SocketAddr) -> Result<Way, TaskFailure> {
        let namespace = parsed(namespace, service)?;
        let target = self.look_up(&namespace, service).await?;
        let connection = match &target.data {
            Some((kind, login)) => connection_string(*kind, address, login.as_ref()),
            None => format!("http://{address}/"),
        };
        Ok(Way { connection, what: target.what })
    }

    /// A connection to it.
    pub async fn tunnel(&self, namespace: &str, service: &str) -> Result<DuplexStream, TaskFailure> {
        let namespace = parsed(namespace, service)?;
        let key = (namespace.clone(), service.to_owned());
        let now = self.platform.seams.clock.monotonic();
        let stands = |since: Duration| now.saturating_sub(since) < STANDS;
        let known = self.found().get(&key).filter(|(since, _)| stands(*since)).map(|(_, target)| target.clone());
        let target = match known {
            Some(target) => target,
            None => self.look_up(&namespace, service).await?,
        };
        let opened = self.platform.tunnel(namespace.as_str(), &target.towards, target.port).await;
        // Its pod may have been replaced: the next one looks again.
        opened.inspect_err(|_| drop(self.found().remove(&key)))
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_up(&self, namespace: &Namespace, service: &str) -> Result<Target, TaskFailure> {
        let target = self.find(namespace, service).await?;
        let now = self.platform.seams.clock.monotonic();
        let mut found = self.found();
        if found.len() >= MOST {
            found.clear();
        }
        found.insert((namespace.clone(), service.to_owned()), (now, target.clone()));
        Ok(target)
    }

    async fn find(&self, namespace: &Namespace, service: &str) -> Result<Target, TaskFailure> {
        let source = Source {
            namespace: namespace.clone(),
            selector: None,
            without: Vec::new(),
            credentials: Vec::new(),
            freeze: false,
        };
        let application = Application::gather(&self.platform, &source).await?;
        let (volumes, servers): (Vec<&Located>, Vec<&Located>) =
            application.data.iter().partition(|located| located.found.kind == DataKind::Volume);
        let server = servers.into_iter().find(|located| {
            let found = &located.found;
            found.name.as_str() == service
                || found.hosts.iter().any(|host| host == service)
                || found.workload.as_ref().is_some_and(|w| w.name == service || w.to_string() == service)
        });
        if let Some(located) = server {
            return self.find_data(namespace, located);
        }
        let failed = match self.find_service(namespace, service, &application).await {
            Err(failure) if failure.code == NO_SERVICE => failure,
            other => return other,
        };
        if volumes.iter().any(|located| located.found.name.as_str() == service) {
            let cause = "it is a volume, and nothing listens there";
            return Err(TaskFailure::permanent("environment.volume", failed.what, cause)
                .next(format!("look into it where it is mounted: ocopea exec {namespace} COMPONENT -- ls PATH")));
        }
        Err(failed)
    }

    fn find_data(&self, namespace: &Namespace, located: &Located) -> Result<Target, TaskFailure> {
        let found = &located.found;
        let what = format!("can't connect to {} of {namespace}", found.name);
        let pod = found.pod.clone().ok_or_else(|| {
            TaskFailure::retryable("data.no-pod", what, "no pod of it is ready")
                .next(format!("see why: {} -n {namespace} get pods", self.platform.kubectl()))
        })?;
        Ok(Target {
            towards: Towards::Pod(pod),
            port: found.port,
            data: Some((found.kind, located.logins.first().cloned())),
            what: format!("{} {}", found.kind, found.name),
        })
    }

    async fn find_service(
        &self,
        namespace: &Namespace,
        name: &str,
        application: &Application,
    ) -> Result<Target, TaskFailure> {
        let what = format!("can't connect to {name:.200} of {namespace}");
        let services: Api<Service> = Api::namespaced(self.platform.client.clone(), namespace.as_str());
        let unknown = || {
            let servers = application.data.iter().filter(|d| d.found.kind != DataKind::Volume);
            let mut names: Vec<String> = servers.map(|d| d.found.name.to_string()).collect();
            let of_kind = application.objects.iter().filter(|o| o["kind"] == "Service");
            names.extend(of_kind.filter_map(|o| o["metadata"]["name"].as_str().map(str::to_owned)));
            names.sort();
            names.dedup();
            TaskFailure::permanent(NO_SERVICE, what.clone(), "there is no data service or Service of that name")
                .next(format!("there are: {}", names.join(", ")))
        };
        // What isn't a name at all would make a malformed request.
        if name.parse::<ocopea_protocol::names::ComponentName>().is_err() {
            return Err(unknown());
        }
        let service = services.get_opt(name).await.map_err(|error| kubernetes(&what, &error))?.ok_or_else(unknown)?;
        let spec = service.spec.unwrap_or_default();
        let selector = labels(&spec.selector.unwrap_or_default());
        let port = spec.ports.and_then(|ports| ports.into_iter().next());
        let (Some(selector), Some(port)) = (selector, port) else {
            return Err(TaskFailure::permanent(
                "environment.no-pods",
                what,
                "the Service selects no pods, or has no port",
            ));
        };
        let target = match port.target_port {
            Some(IntOrString::Int(number)) => u16::try_from(number).ok(),
            Some(IntOrString::String(name)) => self.named_port(namespace, &selector, &name, &what).await?,
            None => u16::try_from(port.port).ok(),
        };
        let Some(target) = target else {
            return Err(TaskFailure::permanent("environment.no-port", what, "no pod of the Service has its port"));
        };
        Ok(Target { towards: Towards::Selected(selector), port: target, data: None, what: format!("service {name}") })
    }

    async fn named_port(
        &self,
        namespace: &Namespace,
        selector: &str,
        name: &str,
        what: &str,
    ) -> Result<Option<u16>, TaskFailure> {
        let pods: Api<Pod> = Api::namespaced(self.platform.client.clone(), namespace.as_str());
        let list = pods
            .list(&ListParams::default().labels(selector).limit(50))
            .await
            .map_err(|error| kubernetes(what, &error))?;
        let containers = list.into_iter().filter_map(|pod| pod.spec).flat_map(|spec| spec.containers);
        let mut ports = containers.flat_map(|container| container.ports.unwrap_or_default());
        Ok(ports
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok()))
    }
}

fn parsed(namespace: &str, service: &str) -> Result<Namespace, TaskFailure> {
    namespace.parse().map_err(|error| {
        TaskFailure::permanent(
            "environment.name",
            format!("can't connect to {service:.100} of {namespace:.100}"),
            error,
        )
    })
}

/// A label selector; `None` when there are no labels, which would select everything.
fn labels(selector: &BTreeMap<String, String>) -> Option<String> {
    let pairs: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}

/// A connection string for `address`, with a login's user, password, database and options.
fn connection_string(kind: DataKind, address: SocketAddr, login: Option<&Login>) -> String {
    let scheme = match kind {
        DataKind::MongoDb => "mongodb",
        DataKind::PostgreSql => "postgresql",
        DataKind::Volume => "file",
    };
    let Ok(mut url) = Url::parse(&format!("{scheme}://{address}/")) else { return address.to_string() };
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    if let Some(login) = login {
        if !login.user.is_empty() {
            // Both fail only for URLs that can't have them, which these can.
            let _ = url.set_username(&login.user);
            let _ = url.set_password(Some(login.password.reveal()));
        }
        if let Some(database) = &login.database {
            url.set_path(database);
        }
        // What only the drivers know the meaning of.
        let own = ["srv", "beside", "password_file"];
        options.extend(login.options.clone().into_iter().filter(|(name, _)| !own.contains(&name.as_str())));
    }
    if kind == DataKind::MongoDb {
        // The other members of a replica set can't be reached through one port, and no certificate names this one.
        let not_here = ["replicaset", "loadbalanced", "directconnection", "tlsinsecure"];
        options.retain(|name, _| !not_here.contains(&name.to_ascii_lowercase().as_str()));
        options.insert("directConnection".to_owned(), "true".to_owned());
        let is_on = |name: &str| options.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if is_on("tls") || is_on("ssl") {
            options.insert("tlsInsecure".to_owned(), "true".to_owned());
        }
    }
    if kind == DataKind::PostgreSql {
        // Clients refuse what isn't theirs to know; and no certificate names this address.
        let of_everybody = ["sslmode", "options", "application_name"];
        options.retain(|name, _| of_everybody.contains(&name.as_str()));
        if options.get("sslmode").is_some_and(|mode| mode.starts_with("verify")) {
            options.insert("sslmode".to_owned(), "require".to_owned());
        }
    }
    if !options.is_empty() {
        url.query_pairs_mut().extend_pairs(&options);
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use ocopea_protocol::secret::Secret;

    use super::*;
    use crate::data::LoginOf;

    #[test]
    fn a_connection_string_is_ready_for_use() {
        let address: SocketAddr = "127.0.0.1:4711".parse().unwrap();
        let login = Login {
            of: LoginOf::Application,
            user: "chat user".to_owned(),
            password: Secret::new("p@ss/w:rd"),
            database: Some("chat".to_owned()),
            options: [("replicaSet", "rs0"), ("authSource", "admin"), ("srv", "true"), ("tls", "true")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        assert_eq!(
            connection_string(DataKind::MongoDb, address, Some(&login)),
            "mongodb://chat%20user:p%40ss%2Fw%3Ard@127.0.0.1:4711/chat?authSource=admin&directConnection=true&tls=true&tlsInsecure=true"
        );
        assert_eq!(connection_string(DataKind::PostgreSql, address, None), "postgresql://127.0.0.1:4711/");
        let options = [("sslmode", "verify-full"), ("sslrootcert", "/etc/ca.crt"), ("pool_max_conns", "4")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            connection_string(DataKind::PostgreSql, address, Some(&Login { options: options.into(), ..login })),
            "postgresql://chat%20user:p%40ss%2Fw%3Ard@127.0.0.1:4711/chat?sslmode=require"
        );
        assert_eq!(labels(&BTreeMap::new()), None);
    }
}
