//! `ocopea coordinator`: API, catalog and engine on PostgreSQL, RabbitMQ and S3; agents run elsewhere. Several of them run
//! side by side on the same engines.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ocopea_catalog_db::Catalog;
use ocopea_coordinator::{Coordinator, api};
use ocopea_protocol::{
    image::{Location, StoreLimits},
    seams::{BoxFuture, Seams},
    secret::Secret,
};
use ocopea_repository::{
    Keyring, StoreAccess,
    backend::{MOST_REQUESTS, s3::parse_location},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::{
    access::Elsewhere,
    broker::{self, BrokerSettings},
    files::{self, KeyFile},
    log, metrics,
    settings::{Given, Program, Setting, Values, contents, path, text},
    signals::Signals,
    storage,
    tls::{self, Identity},
    up,
};
use crate::{arguments::CoordinatorCommand, client::Failure, output};

/// How long a stop waits for requests and the coordinator's own tasks.
const GRACE: Duration = Duration::from_secs(30);

/// The settings of `ocopea coordinator`.
pub struct CoordinatorProgram;

impl Program for CoordinatorProgram {
    const SETTINGS: &'static [Setting] = &[
        Setting {
            name: "listen",
            value: "ADDRESS:PORT",
            help: "Where API and pages are served",
            usual: Some("127.0.0.1:8700"),
        },
        Setting {
            name: "public-url",
            value: "URL",
            help: "Where people and agents reach it; else as it listens",
            usual: None,
        },
        Setting { name: "tls-certificate", value: "FILE", help: "Its certificate, with its chain (PEM)", usual: None },
        Setting { name: "tls-key", value: "FILE", help: "The certificate's key (PEM)", usual: None },
        Setting {
            name: "allow-plain-http",
            value: "",
            help: "Serve other machines without TLS: behind a proxy that ends it",
            usual: None,
        },
        Setting {
            name: "catalog",
            value: "postgres://USER@HOST/DATABASE",
            help: "The catalog's database; TLS is verified beyond this machine unless ?sslmode= says otherwise",
            usual: None,
        },
        Setting { name: "catalog-password-file", value: "FILE", help: "The database user's password", usual: None },
        Setting {
            name: "repository",
            value: "s3://BUCKET/PREFIX[?…]",
            help: "The copy repository, as for `ocopea up`; its keys come from AWS_ACCESS_KEY_ID and so on",
            usual: None,
        },
        Setting {
            name: "repository-requests",
            value: "N",
            help: "Requests of each process to that bucket at the same time",
            usual: Some("32"),
        },
        Setting {
            name: "repository-upload-limit",
            value: "BYTES/s",
            help: "What each process may send to that bucket: 50MiB/s; as much as there is room for unless given",
            usual: None,
        },
        Setting {
            name: "repository-download-limit",
            value: "BYTES/s",
            help: "What each process may read from that bucket; likewise",
            usual: None,
        },
        Setting {
            name: "repository-key-file",
            value: "FILE",
            help: "The repository's keys; made at the first start of all, the same for every coordinator",
            usual: None,
        },
        Setting {
            name: "installation-key-file",
            value: "FILE",
            help: "The key that secrets in the catalog are sealed with; as above",
            usual: None,
        },
        Setting { name: "broker", value: "amqps://HOST[:PORT]/VHOST", help: "RabbitMQ", usual: None },
        Setting { name: "broker-user", value: "NAME", help: "The coordinators' user there", usual: None },
        Setting { name: "broker-password-file", value: "FILE", help: "Its password", usual: None },
        Setting {
            name: "broker-certificates",
            value: "FILE",
            help: "Certificates (PEM) that the broker is checked against, in place of the system's; agents get them, too",
            usual: None,
        },
        Setting {
            name: "broker-management",
            value: "https://HOST[:PORT]",
            help: "RabbitMQ's management API, which makes and removes the sites' users",
            usual: None,
        },
        Setting {
            name: "broker-for-agents",
            value: "amqps://HOST[:PORT]/VHOST",
            help: "RabbitMQ as the agents reach it; else as --broker says",
            usual: None,
        },
        Setting {
            name: "allow-plain-broker",
            value: "",
            help: "Speak with a broker on another machine without TLS",
            usual: None,
        },
        Setting {
            name: "metrics-listen",
            value: "ADDRESS:PORT",
            help: "Serve metrics for Prometheus there, without tokens; not unless given",
            usual: None,
        },
        Setting {
            name: "first-user",
            value: "NAME",
            help: "The administrator who is made in an empty catalog",
            usual: Some("admin"),
        },
    ];
}

struct Settings {
    listen: SocketAddr,
    public_url: Option<Url>,
    tls: Option<Identity>,
    catalog: Secret,
    repository: Location,
    limits: StoreLimits,
    repository_key: PathBuf,
    installation_key: PathBuf,
    broker: BrokerSettings,
    metrics: Option<SocketAddr>,
    first_user: String,
}

fn settings(given: Given<CoordinatorProgram>) -> Result<Settings, Failure> {
    let mut values = given.collect();
    let listen: Option<SocketAddr> = values.required("listen", |text| {
        text.parse().map_err(|_| format!("{text:?}: an IP address and a port are expected, as 0.0.0.0:8700"))
    });
    let tls = tls_identity(&mut values);
    if let Some(listen) = listen
        && tls.is_none()
        && !values.is_on("allow-plain-http")
        && !listen.ip().is_loopback()
    {
        values.problem(format!(
            "listen: {listen} is reached from other machines, and TLS is not set up: give --tls-certificate and --tls-key, or --allow-plain-http behind a proxy that ends TLS"
        ));
    }
    let public_url = values.optional("public-url", web_address);
    let password = values.optional("catalog-password-file", contents);
    let catalog = values.required("catalog", |text| catalog_address(text, password.as_deref()));
    let repository = values.required("repository", |text| {
        if !text.starts_with("s3://") {
            return Err(format!("{text:?}: s3://BUCKET/PREFIX is expected: agents elsewhere reach no directory"));
        }
        parse_location(text, |name| std::env::var(name).ok()).map_err(|error| error.to_string())
    });
    let requests = values.required("repository-requests", |text| output::parse_number(text, MOST_REQUESTS));
    let upload = values.optional("repository-upload-limit", output::parse_rate);
    let download = values.optional("repository-download-limit", output::parse_rate);
    let repository_key = values.required("repository-key-file", path);
    let installation_key = values.required("installation-key-file", path);
    let broker = broker::settings(&mut values);
    let metrics = metrics::setting(&mut values);
    let first_user = values.required("first-user", text);
    let settings = (|| {
        Some(Settings {
            listen: listen?,
            public_url,
            tls,
            catalog: catalog?,
            repository: repository?,
            limits: StoreLimits { requests: Some(requests?), upload, download },
            repository_key: repository_key?,
            installation_key: installation_key?,
            broker: broker?,
            metrics,
            first_user: first_user?,
        })
    })();
    values.end(settings)
}

fn tls_identity(values: &mut Values) -> Option<Identity> {
    let certificate = values.optional("tls-certificate", path);
    let key = values.optional("tls-key", path);
    match (certificate, key) {
        (Some(certificate), Some(key)) => match Identity::read(&certificate, &key) {
            Ok(identity) => Some(identity),
            Err(why) => {
                values.problem(why);
                None
            }
        },
        (None, None) => None,
        _ => {
            values.problem("tls-certificate and tls-key: both are needed, or none");
            None
        }
    }
}

fn web_address(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.query().is_none() => Ok(url),
        _ => Err(format!("{text:?}: https://HOST[:PORT] is expected")),
    }
}

/// Whether a host, as it stands in an address, is this machine.
pub(super) fn is_here(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The database's address with its password. What is wrong with it is said without it.
fn catalog_address(text: &str, password: Option<&str>) -> Result<Secret, String> {
    let wrong = "postgres://USER@HOST[:PORT]/DATABASE is expected";
    let mut url = Url::parse(text).map_err(|_| wrong.to_owned())?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.path().len() < 2 {
        return Err(wrong.to_owned());
    }
    if url.password().is_some() {
        return Err("a password doesn't belong here, where others see it: give --catalog-password-file".to_owned());
    }
    url.set_password(password).map_err(|()| wrong.to_owned())?;
    // Without a host it is a socket of this machine.
    let here = url.host_str().is_none_or(is_here);
    let says = url.query_pairs().any(|(name, _)| matches!(&*name, "sslmode" | "ssl-mode" | "host"));
    if !here && !says {
        url.query_pairs_mut().append_pair("sslmode", "verify-full");
    }
    Ok(Secret::new(url.as_str()))
}

async fn open_catalog(settings: &Settings, seams: &Seams) -> Result<Catalog, Failure> {
    Catalog::postgresql(settings.catalog.reveal(), seams.clone()).await.map_err(|error| {
        Failure { status: 6, cause: error.to_string(), ..Failure::local("the catalog's database can't be used") }
            .next("check catalog and catalog-password-file, and that the database runs")
    })
}

/// Runs until SIGTERM or Ctrl-C, or does what the command says.
pub async fn run(given: Given<CoordinatorProgram>, command: Option<CoordinatorCommand>) -> Result<(), Failure> {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if let Some(CoordinatorCommand::MakeKeys { directory }) = &command {
        return make_keys(directory);
    }
    let settings = settings(given)?;
    match command {
        None | Some(CoordinatorCommand::MakeKeys { .. }) => serve(settings).await,
        Some(CoordinatorCommand::SignInCode) => {
            let catalog = open_catalog(&settings, &Seams::real(TaskTracker::new())).await?;
            let actor = catalog.ensure_first_user("team", &settings.first_user).await;
            let actor = actor.map_err(|error| Failure::local(error.to_string()))?;
            let code = up::sign_in_code(&catalog, &actor).await?;
            let url = address(&settings, settings.listen);
            output::line(format!("{url}/sign-in?code={}", code.reveal()));
            Ok(())
        }
    }
}

/// The files that a first start would make.
fn make_keys(directory: &Path) -> Result<(), Failure> {
    let fault = |error: std::io::Error| Failure::local(format!("{} can't be used: {error}", directory.display()));
    std::fs::create_dir_all(directory).map_err(fault)?;
    let seams = Seams::real(TaskTracker::new());
    let repository = directory.join("repository.key");
    files::secret_file(&repository, || Ok(Keyring::generate(&seams).to_text().to_string()))?;
    let installation = directory.join("installation.key");
    files::open_vault(&installation)?;
    output::line(format!(
        "{} and {}: back them up; without the first nobody can read the images.",
        repository.display(),
        installation.display()
    ));
    Ok(())
}

/// Where people reach it.
fn address(settings: &Settings, listening: SocketAddr) -> String {
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let own = format!("{scheme}://{listening}");
    settings.public_url.as_ref().map_or(own, |url| url.as_str().trim_end_matches('/').to_owned())
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    log::log_to_stderr()?;
    let mut signals = Signals::listen()?;
    let tracker = TaskTracker::new();
    let seams = Seams::real(tracker.clone());
    let catalog = open_catalog(&settings, &seams).await?;
    storage::check_key(&settings.repository, &settings.repository_key, &seams).await?;
    // Agents elsewhere have no keys of the bucket.
    let mut stores = StoreAccess::default();
    stores.shared_with_agents = true;
    stores.limits = settings.limits;
    let repository = storage::open_with(&settings.repository, &settings.repository_key, stores, &seams).await?;
    let abilities = repository.abilities();
    let vault = files::open_vault(&settings.installation_key)?;
    let fault = |error: ocopea_catalog_db::CatalogError| Failure::local(error.to_string());
    let actor = catalog.ensure_first_user("team", &settings.first_user).await.map_err(fault)?;
    let tls = settings.tls.as_ref().map(tls::acceptor).transpose()?;
    let listener = tokio::net::TcpListener::bind(settings.listen).await.map_err(|error| {
        Failure::local(format!("can't listen at {}: {error}", settings.listen))
            .next("choose another address with --listen")
    })?;
    let listening = listener.local_addr().map_err(|error| Failure::local(error.to_string()))?;
    let stop = CancellationToken::new();
    let broker = broker::connect(&settings.broker, &seams).await?;
    let coordinator = Coordinator::new(catalog.clone(), repository, vault, broker.bus(), seams.clone());
    coordinator.start(&stop);
    coordinator.keep_broker_tidy(broker.sites(), &stop);
    let url = address(&settings, listening);
    output::line(format!(
        "Ocopea {}   coordinator at {url} (catalog: PostgreSQL, bus: RabbitMQ, repository: {}, encrypted)",
        env!("CARGO_PKG_VERSION"),
        storage::told(&settings.repository)
    ));
    output::line(format!("The repository's store: {}", abilities.told().join("; ")));
    if !catalog.has_signed_in(&actor).await.map_err(fault)? {
        let code = up::sign_in_code(&catalog, &actor).await?;
        output::line(format!(
            "Sign in: ocopea sign-in '{url}/sign-in?code={}'   (works once, for ten minutes; another one: ocopea coordinator … sign-in-code)",
            code.reveal()
        ));
        output::line(format!(
            "Back up the key files {} and {}: without the first nobody can read the images.",
            settings.repository_key.display(),
            settings.installation_key.display()
        ));
    }
    let router = api::router(api::State {
        coordinator: Arc::clone(&coordinator),
        access: Arc::new(Elsewhere { coordinator: Arc::clone(&coordinator) }),
        keys: Arc::new(KeyFile(settings.repository_key.clone())),
        broker: Some(broker.sites()),
    });
    let closed = CancellationToken::new();
    let measuring = Arc::clone(&coordinator);
    let measured = move || -> BoxFuture<String> {
        let coordinator = Arc::clone(&measuring);
        Box::pin(async move { coordinator.measured().await })
    };
    metrics::serve(settings.metrics, Arc::new(measured), &seams, &closed).await?;
    let serving = api::serve(listener, tls, router, seams.clone(), closed.clone());
    seams.spawner.spawn("api", Box::pin(serving));
    signals.next().await;
    output::line("stopping: requests are answered to their end, own tasks handed back");
    closed.cancel();
    stop.cancel();
    coordinator.bus.close().await;
    tracker.close();
    tokio::select! {
        ended = seams.timeout(GRACE, tracker.wait()) => if ended.is_none() {
            output::remark("some connections did not end in time; what ran goes on at another coordinator, or the next start");
        },
        () = signals.next() => output::remark("asked twice: left at once; what ran goes on at the next start"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_beyond_this_machine_is_verified_and_a_password_comes_from_a_file_alone() {
        let of = |text: &str| catalog_address(text, Some("p:@/")).map(|secret| secret.reveal().to_owned());
        assert_eq!(of("postgres://o@localhost/c").unwrap(), "postgres://o:p%3A%40%2F@localhost/c");
        assert_eq!(of("postgres://o@[::1]:5433/c").unwrap(), "postgres://o:p%3A%40%2F@[::1]:5433/c");
        assert!(of("postgres://o@db.example/c").unwrap().ends_with("/c?sslmode=verify-full"));
        assert!(of("postgres://o@10.0.0.1/c?sslmode=require").unwrap().ends_with("/c?sslmode=require"));
        let refused = of("postgres://o:secret@db.example/c").unwrap_err();
        assert!(refused.contains("--catalog-password-file") && !refused.contains("secret"), "{refused}");
        for wrong in ["", "mysql://o@h/c", "postgres://o@h", "postgres://o@h/", "sqlite:x"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
