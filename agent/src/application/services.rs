//! The servers of an application: recognised by their drivers, with the ways and logins that the application's own
//! settings name.

use std::{collections::BTreeMap, sync::Arc};

use ocopea_protocol::inventory::{Binding, DataFound, Gap, ObjectRef};
use serde_json::Value;

use super::{Gathering, Located, images::owner_of, undriven, unknown_consistency};
use crate::{
    configs::{
        network::{self, names_service},
        object_ref,
        workload::Container,
    },
    data::{DataService, Login, LoginOf, Recognised, Setting},
    platform::discover::Contents,
};

impl Gathering<'_> {
    /// Containers that drivers recognise as servers.
    pub(super) fn servers(&mut self, contents: &Contents) -> Vec<Located> {
        let mut servers = Vec::new();
        let all = std::mem::take(&mut self.containers);
        for container in all.iter().filter(|c| !c.init && !matches!(c.workload.kind.as_str(), "Job" | "CronJob")) {
            let recognised = self.drivers.iter().find_map(|d| d.recognise(&container.view).map(|r| (Arc::clone(d), r)));
            let recognised = recognised.or_else(|| self.wired(container, &all));
            let Some((driver, recognised)) = recognised else { continue };
            let Some(object) = self.raw.iter().find(|o| object_ref(o) == container.workload) else { continue };
            let hosts = network::services_of(object, &self.services);
            let name = self.unique(hosts.first().unwrap_or(&container.workload.name));
            let owns = |path: &str| {
                recognised.data_path.as_deref().is_none_or(|data| data.starts_with(path) || path.starts_with(data))
            };
            let claims: Vec<String> = container
                .view
                .mounts
                .iter()
                .filter(|(path, _)| owns(path))
                .filter_map(|(_, claim)| claim.clone())
                .collect();
            self.shared(&claims, container, &all, &owns);
            let (bindings, mut logins) = self.bindings(driver.as_ref(), &container.workload, &hosts, &all);
            logins.extend(recognised.administrator);
            let given = self.source.credentials.iter().find(|c| c.service == name).map(|c| Login {
                of: LoginOf::Given,
                user: c.user.clone(),
                password: c.password.clone(),
                database: logins.iter().find_map(|l| l.database.clone()),
                options: BTreeMap::new(),
            });
            if let Some(given) = given {
                logins = vec![given];
            }
            servers.push(Located {
                found: DataFound {
                    name,
                    kind: driver.kind(),
                    version: None,
                    workload: Some(container.workload.clone()),
                    pod: ready_pod(&container.workload, contents),
                    container: Some(container.view.name.clone()),
                    port: recognised.port,
                    hosts,
                    claims,
                    bytes: None,
                    streams: None,
                    features: Vec::new(),
                    consistency: unknown_consistency(),
                    bindings,
                    rights: Vec::new(),
                },
                driver: Some(driver),
                logins,
                placement: Value::Null,
            });
        }
        self.containers = all;
        servers
    }

    /// A server that nothing of its own tells, but the others' settings do: a connection string of a driver's kind leads
    /// to a Service of it.
    fn wired(&self, container: &Container, all: &[Container]) -> Option<(Arc<dyn DataService>, Recognised)> {
        // Of several containers of a pod nothing tells which one serves.
        let alone = all.iter().filter(|c| !c.init && c.workload == container.workload).count() == 1;
        if !alone || undriven::kind(&container.view).is_some() {
            return None;
        }
        let object = self.raw.iter().find(|o| object_ref(o) == container.workload)?;
        let hosts = network::services_of(object, &self.services);
        let leads_here = |driver: &dyn DataService, setting: &Setting<'_>| {
            driver.parse_binding(setting.name, setting.value).is_some_and(|parsed| {
                let names = |host: &String| hosts.iter().any(|of| names_service(host, of, self.namespace));
                parsed.login.is_some() && parsed.hosts.iter().any(names)
            })
        };
        let others = || all.iter().filter(|c| c.workload != container.workload).flat_map(settings);
        self.drivers.iter().filter(|_| !hosts.is_empty()).find_map(|driver| {
            let port = driver.usual_port()?;
            if !others().any(|setting| leads_here(driver.as_ref(), &setting)) {
                return None;
            }
            let mut view = container.view.clone();
            if view.ports.is_empty() {
                view.ports.push(port);
            }
            let port = *view.ports.first()?;
            let recognised = driver.recognise(&view);
            let bare = || Recognised { port, administrator: None, data_path: None };
            Some((Arc::clone(driver), recognised.unwrap_or_else(bare)))
        })
    }

    /// Claims of a server that hold files of others, too: its driver copies only what the server knows.
    fn shared(&mut self, claims: &[String], server: &Container, all: &[Container], owns: &dyn Fn(&str) -> bool) {
        for claim in claims {
            let mounts = |c: &Container| c.view.mounts.iter().any(|(_, of)| of.as_ref() == Some(claim));
            let recognised = |c: &Container| self.drivers.iter().any(|d| d.recognise(&c.view).is_some());
            let other = all.iter().find(|c| c.workload != server.workload && mounts(c) && !recognised(c));
            let elsewhere = server.view.mounts.iter().find(|(at, of)| of.as_ref() == Some(claim) && !owns(at));
            let user = match (other, elsewhere) {
                (Some(other), _) => other.workload.to_string(),
                (None, Some((at, _))) => format!("its own {at}"),
                (None, None) => continue,
            };
            let name = self.unique(claim).to_string();
            self.gaps.push(Gap {
                what: format!("files on persistent volume claim {claim}"),
                why: format!(
                    "{user} uses it, too, and of the data service of {} only what the server knows is copied",
                    server.workload
                ),
                blocking: true,
                next: format!("give each a claim of its own, or do without these files: --without {name}"),
                name,
            });
        }
    }

    /// Where the application's own settings name this server, and with which login.
    fn bindings(
        &self,
        driver: &dyn DataService,
        server: &ObjectRef,
        hosts: &[String],
        all: &[Container],
    ) -> (Vec<Binding>, Vec<Login>) {
        let (mut bindings, mut logins): (Vec<Binding>, Vec<Login>) = (Vec::new(), Vec::new());
        for container in all.iter().filter(|c| c.workload != *server) {
            for setting in &container.settings {
                let Some(parsed) = driver.parse_binding(&setting.name, setting.value.reveal()) else { continue };
                let ours = parsed
                    .hosts
                    .iter()
                    .any(|host| hosts.iter().any(|service| names_service(host, service, self.namespace)));
                if !ours {
                    continue;
                }
                let binding = Binding {
                    object: setting.object.clone(),
                    path: setting.path.clone(),
                    role: if parsed.login.is_some() { "uri" } else { "host" }.to_owned(),
                    consumer: Some(container.workload.clone()),
                };
                if !bindings.contains(&binding) {
                    bindings.push(binding);
                }
                let login = parsed.login.or_else(|| {
                    let all: Vec<Setting<'_>> = settings(container).collect();
                    driver.login_beside(&Setting { name: &setting.name, value: setting.value.reveal() }, &all)
                });
                if let Some(login) = login.filter(|login| !logins.contains(login)) {
                    logins.push(login);
                }
            }
        }
        (bindings, logins)
    }
}

/// A container's settings as drivers see them.
fn settings(container: &Container) -> impl Iterator<Item = Setting<'_>> {
    container.settings.iter().map(|setting| Setting { name: &setting.name, value: setting.value.reveal() })
}

/// The first ready pod of a workload, by name.
fn ready_pod(workload: &ObjectRef, contents: &Contents) -> Option<String> {
    let mut names: Vec<&str> = contents
        .pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter(|pod| {
            pod["status"]["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        })
        .filter(|pod| owner_of(pod, contents).as_ref() == Some(workload))
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names.first().map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ocopea_protocol::{image::DataKind, task::Source};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_told_by_who_uses_it_and_its_login_by_settings_that_stand_one_by_one() {
        let workload = |name: &str, container: Value| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"template": {
                "metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}})
        };
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "store"}, "spec": {"selector": {"app": "own"}}});
        let server = workload("own", json!({"name": "own", "image": "registry/odd-name:1"}));
        let source = Source {
            namespace: "shop".parse().unwrap(),
            selector: None,
            without: vec![],
            credentials: vec![],
            freeze: false,
        };
        let contents = Contents {
            configuration: vec![],
            pods: vec![],
            owned: vec![],
            selected: None,
            unlisted: vec![],
            held: vec![],
        };
        let found = |env: Value| {
            let web = workload("web", json!({"name": "web", "image": "web:1", "env": env}));
            let mut gathering = Gathering::new(&source, vec![service.clone(), server.clone(), web], &[]);
            gathering.servers(&contents)
        };
        let by_uri = found(json!([{"name": "DB", "value": "mongodb://u:p@store.shop.svc/chat"}]));
        assert_eq!((by_uri.len(), by_uri[0].found.kind, by_uri[0].found.port), (1, DataKind::MongoDb, 27017));
        assert_eq!(by_uri[0].logins[0].user, "u");
        assert!(found(json!([{"name": "DB", "value": "mongodb://elsewhere/chat"}])).is_empty());
        assert!(found(json!([{"name": "DB", "value": "store"}])).is_empty());
        let env = json!([{"name": "A", "value": "mongodb://store"}, {"name": "MONGO_HOST", "value": "store"},
            {"name": "MONGO_USER", "value": "me"}, {"name": "MONGO_PASSWORD", "value": "secret"}]);
        let users: BTreeSet<String> = found(env)[0].logins.iter().map(|login| login.user.clone()).collect();
        assert!(users.contains("me"), "{users:?}");
    }
}
