//! Which containers are MongoDB servers, and what their environment says of logins. Pure.

use std::collections::BTreeMap;

use ocopea_protocol::secret::Secret;

use crate::data::{ContainerView, Login, LoginOf, Recognised};

/// The port that servers listen on unless told otherwise.
pub(super) const PORT: u16 = 27017;

/// Option of a login whose password lies in a file within the container.
pub(super) const PASSWORD_FILE: &str = "password_file";

/// Last parts of image names that are servers.
const SERVERS: [&str; 12] = [
    "mongo",
    "mongodb",
    "mongod",
    "percona-server-mongodb",
    "mongodb-community-server",
    "mongodb-enterprise-server",
    "mongodb-community",
    "mongodb-enterprise",
    "mongodb-sharded",
    "mongo-java-server",
    "ferretdb",
    "documentdb",
];

/// Words of an image's name that make it a helper of a server and not a server.
const HELPERS: [&str; 15] = [
    "exporter",
    "express",
    "operator",
    "client",
    "backup",
    "agent",
    "migrate",
    "shell",
    "mongosh",
    "tools",
    "proxy",
    "init",
    "seed",
    "connector",
    "compass",
];

/// Programs that talk to servers.
const CLIENTS: [&str; 7] = ["mongosh", "mongo", "mongodump", "mongorestore", "mongoexport", "mongoimport", "sleep"];

/// Words behind which a program stands.
const BEFORE_PROGRAMS: [&str; 12] = ["exec", "-c", "--", "&&", "||", "&", ";", "do", "then", "nohup", "-lc", "-ec"];

/// Whether a container looks like a server.
pub(super) fn recognise(container: &ContainerView) -> Option<Recognised> {
    let name = base_name(&container.image).to_ascii_lowercase();
    let helper = name.split(['-', '_', '.']).any(|word| HELPERS.contains(&word));
    let by_image =
        SERVERS.contains(&name.as_str()) || SERVERS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit()));
    let words = || container.command.iter().flat_map(|word| word.split_whitespace());
    let program = |word: &str| word.trim_end_matches(';').rsplit('/').next().unwrap_or_default().to_owned();
    let by_command = words().zip(std::iter::once("").chain(words())).any(|(word, before)| {
        // Where a program stands; elsewhere it may be a host's name.
        let starts =
            before.is_empty() || before.ends_with(';') || BEFORE_PROGRAMS.contains(&before) || word.contains('/');
        starts && matches!(program(word).as_str(), "mongod" | "mongos" | "ferretdb")
    });
    // A server's image is a client's, too: a sidecar that initiates, a script that dumps.
    let client = by_image
        && !by_command
        && !words().next().is_some_and(|first| first.starts_with('-'))
        && words().any(|word| CLIENTS.contains(&program(word).as_str()));
    let set = |name: &str| container.env.contains_key(name);
    let by_environment =
        ["MONGO_INITDB_ROOT_USERNAME", "MONGO_INITDB_DATABASE", "MONGODB_ROOT_PASSWORD", "MONGODB_REPLICA_SET_MODE"]
            .iter()
            .any(|name| set(name));
    let by_port = container.ports.contains(&PORT);
    if client {
        return None;
    }
    if !(by_image || by_command || (!helper && by_port) || (!helper && by_environment && container.ports.is_empty())) {
        return None;
    }
    let env = |names: &[&str]| {
        names.iter().find_map(|name| container.env.get(*name)).map(Secret::reveal).filter(|v| !v.is_empty())
    };
    let argument = |name: &str| {
        let mut words = words();
        while let Some(word) = words.next() {
            if word == name {
                return words.next();
            }
            if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
        None
    };
    let port = argument("--port")
        .or_else(|| env(&["MONGODB_PORT_NUMBER", "MONGO_PORT"]))
        .or_else(|| env(&["FERRETDB_LISTEN_ADDR"]).and_then(|address| address.rsplit(':').next()))
        .and_then(|port| port.parse().ok())
        .or_else(|| by_port.then_some(PORT))
        .or_else(|| container.ports.first().copied())
        .unwrap_or(PORT);
    let custom = if container.image.contains("bitnami") {
        "/bitnami/mongodb"
    } else if name.contains("ferretdb") {
        "/state"
    } else {
        "/data/db"
    };
    Some(Recognised {
        port,
        administrator: administrator(&container.env),
        data_path: Some(argument("--dbpath").unwrap_or(custom).to_owned()),
    })
}

/// The last part of an image's reference, without tag and digest.
fn base_name(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split(':').next().unwrap_or(last)
}

/// The administrator as the server's own environment has it. A password that lies in a file can't be known from
/// outside: the login then says so, and a failure to sign in names the file.
fn administrator(env: &BTreeMap<String, Secret>) -> Option<Login> {
    let get = |names: &[&str]| names.iter().find_map(|name| env.get(*name)).filter(|value| !value.reveal().is_empty());
    let user = get(&[
        "MONGO_INITDB_ROOT_USERNAME",
        "MONGODB_INITDB_ROOT_USERNAME",
        "MONGODB_ROOT_USER",
        "MONGODB_ROOT_USERNAME",
        "FERRETDB_SETUP_USERNAME",
    ]);
    let password = get(&[
        "MONGO_INITDB_ROOT_PASSWORD",
        "MONGODB_INITDB_ROOT_PASSWORD",
        "MONGODB_ROOT_PASSWORD",
        "FERRETDB_SETUP_PASSWORD",
    ]);
    let file = get(&["MONGO_INITDB_ROOT_PASSWORD_FILE", "MONGODB_ROOT_PASSWORD_FILE"]);
    let mut options = BTreeMap::from([("authSource".to_owned(), "admin".to_owned())]);
    match (password, file) {
        (None, Some(file)) => {
            options.insert(PASSWORD_FILE.to_owned(), file.reveal().to_owned());
        }
        (None, None) => return None,
        _ => {}
    }
    Some(Login {
        of: LoginOf::Administrator,
        user: user.map_or("root", Secret::reveal).to_owned(),
        password: password.cloned().unwrap_or_else(|| Secret::new("")),
        database: None,
        options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str, ports: &[u16], env: &[(&str, &str)]) -> ContainerView {
        ContainerView {
            image: image.to_owned(),
            ports: ports.to_vec(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            ..ContainerView::default()
        }
    }

    #[test]
    fn servers_are_told_from_their_helpers() {
        for image in [
            "mongo",
            "mongo:7",
            "docker.io/library/mongo@sha256:00",
            "bitnami/mongodb:6.0",
            "percona/percona-server-mongodb:6",
            "quay.io/mongodb/mongodb-community-server:7.0-ubi8",
            "ghcr.io/ferretdb/ferretdb:1",
            "registry:5000/testbed/mongodb:6",
        ] {
            assert!(recognise(&container(image, &[], &[])).is_some(), "{image}");
        }
        for image in [
            "mongo-express",
            "bitnami/mongodb-exporter",
            "mongodb-kubernetes-operator",
            "shop:1",
            "postgres",
            "registry/mongo/shop",
            "",
        ] {
            assert!(recognise(&container(image, &[], &[])).is_none(), "{image}");
        }
        assert!(recognise(&container("own/store", &[PORT], &[])).is_some());
        assert!(recognise(&container("mongodb-exporter", &[PORT], &[])).is_none());
        let mut own = container("own/store", &[], &[]);
        own.command = vec!["sh".into(), "-c".into(), "exec /usr/bin/mongod --port 27020 --dbpath=/srv/db".into()];
        let found = recognise(&own).unwrap();
        assert_eq!(
            (found.port, found.data_path.as_deref()),
            (27020, Some("/srv/db")),
            "the program is deep in a script"
        );
        let mut sidecar = container("mongo:7", &[], &[]);
        sidecar.command =
            vec!["bash".into(), "-c".into(), "until mongosh --eval 'rs.initiate()'; do sleep 1; done".into()];
        assert!(recognise(&sidecar).is_none(), "a client from a server's image");
        sidecar.command =
            vec!["sh".into(), "-c".into(), "mongod --replSet rs0 & sleep 5; mongosh --eval 'rs.initiate()'".into()];
        assert!(recognise(&sidecar).is_some(), "both");
        sidecar.command = vec!["--replSet".into(), "rs0".into()];
        assert!(recognise(&sidecar).is_some(), "arguments only");
        sidecar.command = vec!["--keyFile".into(), "/etc/mongo/key".into()];
        assert!(recognise(&sidecar).is_some(), "arguments with a client's name in a path");
        let mut waiting = container("shop:1", &[], &[]);
        waiting.command = vec!["sh".into(), "-c".into(), "until nc -z mongod 27017; do sleep 1; done; shop".into()];
        assert!(recognise(&waiting).is_none(), "a host of that name");
        own.command = vec!["/usr/bin/mongod".into(), "--port".into(), "27020".into(), "--dbpath=/srv/db".into()];
        let found = recognise(&own).unwrap();
        assert_eq!((found.port, found.data_path.as_deref()), (27020, Some("/srv/db")));
    }

    #[test]
    fn the_administrator_is_read_from_the_servers_own_environment() {
        let docker = [("MONGO_INITDB_ROOT_USERNAME", "boss"), ("MONGO_INITDB_ROOT_PASSWORD", "s3cret")];
        let login = recognise(&container("mongo:7", &[PORT], &docker)).and_then(|r| r.administrator).unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("boss", "s3cret"));
        let login = recognise(&container("bitnami/mongodb", &[], &[("MONGODB_ROOT_PASSWORD", "x")]))
            .unwrap()
            .administrator
            .unwrap();
        assert_eq!(login.user, "root");
        let file = [("MONGO_INITDB_ROOT_PASSWORD_FILE", "/run/secrets/p")];
        let login = recognise(&container("mongo", &[], &file)).unwrap().administrator.unwrap();
        assert_eq!(login.options.get(PASSWORD_FILE).map(String::as_str), Some("/run/secrets/p"));
        assert!(recognise(&container("mongo", &[], &[])).unwrap().administrator.is_none());
    }
}
