//! Which containers are PostgreSQL servers, and what their environment says of logins.

use std::collections::BTreeMap;

use ocopea_protocol::secret::Secret;

use crate::data::{ContainerView, Login, LoginOf, Recognised};

/// Where the server listens unless told otherwise.
pub(super) const PORT: u16 = 5432;

/// Option of a login whose password lies in a file within the container.
pub(super) const PASSWORD_FILE: &str = "password_file";

/// Words of an image's name that make it a helper of a server and not a server.
const HELPERS: [&str; 17] = [
    "exporter",
    "operator",
    "client",
    "backup",
    "bouncer",
    "pgbouncer",
    "pool",
    "pgpool",
    "proxy",
    "admin",
    "pgadmin",
    "migrate",
    "migrations",
    "rest",
    "metrics",
    "barman",
    "init",
];

/// Whether a container looks like a server.
pub(super) fn recognise(container: &ContainerView) -> Option<Recognised> {
    if !(by_image(&container.image) || by_command(&container.command) || by_environment(container)) {
        return None;
    }
    let env = |name: &str| container.env.get(name).map(Secret::reveal).filter(|value| !value.is_empty());
    let port = ["PGPORT", "POSTGRESQL_PORT_NUMBER", "POSTGRES_PORT"]
        .iter()
        .find_map(|name| env(name)?.parse().ok())
        .or_else(|| port_argument(&container.command))
        .or_else(|| container.ports.iter().copied().find(|port| *port == PORT))
        .or_else(|| container.ports.first().copied())
        .unwrap_or(PORT);
    let custom = if env("POSTGRESQL_PASSWORD").is_some() || container.image.contains("bitnami") {
        "/bitnami/postgresql/data"
    } else {
        "/var/lib/postgresql/data"
    };
    Some(Recognised {
        port,
        administrator: administrator(&container.env),
        data_path: Some(env("PGDATA").unwrap_or(custom).to_owned()),
    })
}

/// The last part of an image's reference, without tag and digest.
fn base_name(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split(':').next().unwrap_or(last)
}

fn by_image(image: &str) -> bool {
    let name = base_name(image).to_ascii_lowercase();
    let mut words = name.split(['-', '_', '.']).peekable();
    if words.clone().any(|word| HELPERS.contains(&word)) {
        return false;
    }
    let first = words.peek().copied().unwrap_or_default();
    let server = |word: &str| {
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        ["postgres", "postgresql"].contains(&word)
    };
    ["postgis", "timescaledb", "pgvector", "spilo", "citus"].contains(&first) || words.any(server)
}

fn by_command(command: &[String]) -> bool {
    let program = |word: &String| matches!(word.rsplit('/').next(), Some("postgres" | "postmaster"));
    command.iter().take(2).any(program)
}

fn by_environment(container: &ContainerView) -> bool {
    container.ports.contains(&PORT)
        && ["PGDATA", "POSTGRES_PASSWORD", "POSTGRES_PASSWORD_FILE", "POSTGRESQL_PASSWORD", "POSTGRES_INITDB_ARGS"]
            .iter()
            .any(|name| container.env.contains_key(*name))
}

fn port_argument(command: &[String]) -> Option<u16> {
    let mut words = command.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let value = match word {
            "-p" => words.next().unwrap_or_default(),
            _ => match word.trim_start_matches(['-', 'c']).strip_prefix("port=") {
                Some(value) => value,
                None => continue,
            },
        };
        if let Ok(port) = value.parse() {
            return Some(port);
        }
    }
    None
}

/// The administrator as the server's own environment has it. A password that lies in a file can't be known from
/// outside: the login then says so, and a failure to sign in names the file.
fn administrator(env: &BTreeMap<String, Secret>) -> Option<Login> {
    let get = |name: &str| env.get(name).map(Secret::reveal).filter(|value| !value.is_empty());
    let first = |names: &[&str]| names.iter().find_map(|name| get(name).map(str::to_owned));
    let database = first(&["POSTGRES_DB", "POSTGRESQL_DATABASE", "PGDATABASE"]);
    // In Bitnami's images the named user is not the administrator when `postgres` has a password of its own.
    let (user, password, file) = if let Some(password) = get("POSTGRESQL_POSTGRES_PASSWORD") {
        ("postgres".to_owned(), Some(password.to_owned()), None)
    } else {
        (
            first(&["POSTGRES_USER", "POSTGRESQL_USERNAME", "PGUSER"]).unwrap_or_else(|| "postgres".to_owned()),
            first(&["POSTGRES_PASSWORD", "POSTGRESQL_PASSWORD", "PGPASSWORD", "PGPASSWORD_SUPERUSER"]),
            first(&["POSTGRES_PASSWORD_FILE", "POSTGRESQL_PASSWORD_FILE", "POSTGRESQL_POSTGRES_PASSWORD_FILE"]),
        )
    };
    let mut options = BTreeMap::new();
    let trusted = get("POSTGRES_HOST_AUTH_METHOD") == Some("trust") || get("ALLOW_EMPTY_PASSWORD") == Some("yes");
    match (&password, file) {
        (None, Some(file)) => {
            options.insert(PASSWORD_FILE.to_owned(), file);
        }
        (None, None) if !trusted => return None,
        _ => {}
    }
    Some(Login {
        of: LoginOf::Administrator,
        user,
        password: Secret::new(password.unwrap_or_default()),
        database,
        options,
    })
}

/// The application's login from an environment that names host, user and password one by one, as
/// `PGUSER`/`PGPASSWORD`, `DB_USER`/`DB_PASSWORD`, `SHOP_DB_USERNAME`/`SHOP_DB_PASS` do. `host_name` is the variable
/// that holds the host: the others are looked for beside it, under the same prefix.
pub fn login_beside(host_name: &str, env: &BTreeMap<String, Secret>) -> Option<Login> {
    let upper = host_name.to_ascii_uppercase();
    let stem = ["HOSTADDR", "HOSTNAME", "HOST", "SERVER", "ADDRESS", "ADDR", "SERVICE"]
        .iter()
        .find_map(|end| upper.strip_suffix(end))?;
    let get = |ends: &[&str]| {
        ends.iter().find_map(|end| {
            let wanted = format!("{stem}{end}");
            let (_, value) = env.iter().find(|(name, _)| name.to_ascii_uppercase() == wanted)?;
            Some(value.reveal().to_owned()).filter(|value| !value.is_empty())
        })
    };
    Some(Login {
        of: LoginOf::Application,
        user: get(&["USER", "USERNAME", "USER_NAME", "LOGIN"])?,
        password: Secret::new(get(&["PASSWORD", "PASS", "PASSWD", "PWD", "SECRET"]).unwrap_or_default()),
        database: get(&["DATABASE", "DB", "DBNAME", "NAME", "DB_NAME", "DATABASE_NAME"]),
        options: BTreeMap::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str, env: &[(&str, &str)]) -> ContainerView {
        ContainerView {
            image: image.to_owned(),
            env: env.iter().map(|(k, v)| ((*k).to_owned(), Secret::new(*v))).collect(),
            ..ContainerView::default()
        }
    }

    #[test]
    fn servers_are_told_from_their_helpers_by_the_image_name() {
        for image in [
            "postgres",
            "postgres:15-alpine",
            "docker.io/library/postgres@sha256:00",
            "bitnami/postgresql:15",
            "postgis/postgis:15-3.3",
            "timescale/timescaledb-ha:pg15",
            "ghcr.io/cloudnative-pg/postgresql:15.4",
            "registry:5000/samples/postgresql15:1",
            "pgvector/pgvector:pg16",
        ] {
            assert!(recognise(&container(image, &[])).is_some(), "{image}");
        }
        for image in [
            "postgrest/postgrest",
            "quay.io/x/postgres-exporter",
            "postgres-operator",
            "edoburu/pgbouncer",
            "shop:1",
            "mysql",
            "registry/postgres/shop:1",
            "",
        ] {
            assert!(recognise(&container(image, &[])).is_none(), "{image}");
        }
    }

    #[test]
    fn the_administrator_is_read_from_the_servers_own_environment() {
        let docker =
            recognise(&container("postgres:15", &[("POSTGRES_USER", "shop"), ("POSTGRES_PASSWORD", "s3cret")]));
        let login = docker.and_then(|r| r.administrator).unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("shop", "s3cret"));
        let bitnami = [
            ("POSTGRESQL_USERNAME", "app"),
            ("POSTGRESQL_PASSWORD", "a"),
            ("POSTGRESQL_POSTGRES_PASSWORD", "root"),
            ("POSTGRESQL_PORT_NUMBER", "6000"),
        ];
        let bitnami = recognise(&container("bitnami/postgresql:15", &bitnami)).unwrap();
        assert_eq!(bitnami.port, 6000);
        assert_eq!(bitnami.data_path.as_deref(), Some("/bitnami/postgresql/data"));
        let login = bitnami.administrator.unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("postgres", "root"));
        let file = recognise(&container("postgres:15", &[("POSTGRES_PASSWORD_FILE", "/run/secrets/pw")])).unwrap();
        let login = file.administrator.unwrap();
        assert_eq!(login.options.get(PASSWORD_FILE).map(String::as_str), Some("/run/secrets/pw"));
        assert!(recognise(&container("postgres:15", &[])).unwrap().administrator.is_none());
    }

    #[test]
    fn a_login_given_in_pieces_is_found_beside_its_host() {
        let env = container(
            "",
            &[("SHOP_DB_HOST", "db"), ("SHOP_DB_USERNAME", "shop"), ("SHOP_DB_PASS", "x"), ("DB_USER", "no")],
        )
        .env;
        let login = login_beside("SHOP_DB_HOST", &env).unwrap();
        assert_eq!((login.user.as_str(), login.password.reveal()), ("shop", "x"));
        assert!(login_beside("SHOP_DB_PORT", &env).is_none());
    }

    #[test]
    fn a_port_in_the_command_is_seen() {
        let mut other = container("postgres:15", &[]);
        other.command = vec!["postgres".into(), "-c".into(), "port=5544".into()];
        assert_eq!(recognise(&other).unwrap().port, 5544);
        other.command = vec!["postgres".into(), "-p".into(), "5545".into()];
        assert_eq!(recognise(&other).unwrap().port, 5545);
    }
}
