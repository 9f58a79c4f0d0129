//! `ocopea up`: coordinator, catalog and one agent per site in one process, on embedded defaults.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ocopea_agent::{
    access::Access,
    containers::RegistryHost,
    execute::Site,
    platform::Platform,
    worker::{Identity, Worker},
};
use ocopea_catalog_db::{Catalog, access::Actor, model::Role};
use ocopea_coordinator::{Coordinator, api, tokens};
use ocopea_protocol::{
    bus::in_process::InProcessBus,
    identity::{IdentityError, SiteKey},
    ids::SiteId,
    image::{Location, StoreLimits},
    message::SiteLimits,
    names::SiteName,
    seams::{BoxFuture, Seams},
    secret::Secret,
};
use ocopea_repository::backend::check_limits;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access::Local,
    agent::MOST_COPIES,
    attend,
    files::{self, KeyFile},
    log, metrics,
    signals::Signals,
    storage,
};
use crate::{
    arguments::Up,
    client::{Account, Failure},
    output,
};

/// How long a sign-in code works.
const CODE: Duration = Duration::from_secs(600);

struct SiteOption {
    name: SiteName,
    context: String,
    registry: Option<RegistryHost>,
}

fn parse_site(text: &str) -> Result<SiteOption, Failure> {
    let wrong = |why: String| {
        Failure::usage(format!("--site {text:?}: {why}")).next("expected NAME=CONTEXT[,registry=[http://]HOST/PATH]")
    };
    let mut parts = text.split(',');
    let (name, context) =
        parts.next().and_then(|p| p.split_once('=')).ok_or_else(|| wrong("it names no context".to_owned()))?;
    let name = name.parse().map_err(|error| wrong(format!("{error}")))?;
    let mut registry = None;
    for part in parts {
        match part.split_once('=') {
            Some(("registry", value)) => registry = Some(value.parse().map_err(wrong)?),
            _ => return Err(wrong(format!("{part:?} is not known"))),
        }
    }
    Ok(SiteOption { name, context: context.to_owned(), registry })
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(options: Up) -> Result<(), Failure> {
    let sites = options.sites.iter().map(|text| parse_site(text)).collect::<Result<Vec<_>, _>>()?;
    // What is made from here on is nobody else's to read, the catalog included.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let data = files::data_directory(options.data)?;
    let _lock = files::lock(&data)?;
    log::log_to(&data)?;
    let tracker = TaskTracker::new();
    let seams = Seams::real(tracker.clone());
    let catalog_fault = |error: ocopea_catalog_db::CatalogError| Failure::local(error.to_string());
    let catalog = Catalog::sqlite(&data.join("catalog.sqlite"), seams.clone()).await.map_err(catalog_fault)?;
    let limits = StoreLimits {
        requests: options.repository_requests,
        upload: options.repository_upload_limit,
        download: options.repository_download_limit,
    };
    check_limits(&limits).map_err(|error| Failure::usage(error.to_string()))?;
    if !(1..=MOST_COPIES).contains(&options.copies) {
        return Err(Failure::usage(format!("--copies: a number from 1 to {MOST_COPIES} is expected")));
    }
    let (repository, location) = storage::open(&data, options.repository.as_deref(), limits, &seams).await?;
    let stores = repository.stores().clone();
    stores.limit_process(options.upload_limit, options.download_limit);
    let (copies, upload, download) = (options.copies, options.upload_limit, options.download_limit);
    let abilities = repository.abilities();
    let user = std::env::var("USER").unwrap_or_else(|_| "admin".to_owned());
    let actor = catalog.ensure_first_user("team", &user).await.map_err(catalog_fault)?;
    // One process per directory: whoever held a lease before is dead.
    catalog.expire_all_but(&[]).await.map_err(catalog_fault)?;
    let bus = InProcessBus::new(seams.clone());
    let coordinator = Coordinator::new(
        catalog.clone(),
        repository,
        files::open_vault(&data.join("installation.key"))?,
        Arc::new(bus.clone()),
        seams.clone(),
    );
    let listener = tokio::net::TcpListener::bind(&options.listen).await.map_err(|error| {
        Failure::local(format!("can't listen at {}: {error}", options.listen))
            .next("choose another address with --listen")
    })?;
    let address = listener.local_addr().map_err(|error| Failure::local(error.to_string()))?;
    output::line(format!(
        "Ocopea {}   data in {} (catalog: SQLite, repository: {}, encrypted)",
        env!("CARGO_PKG_VERSION"),
        data.display(),
        storage::told(&location)
    ));
    if matches!(location, Location::S3 { .. }) {
        output::line(format!("The repository's store: {}", abilities.told().join("; ")));
    }
    let credentials = attend::docker_credentials().await?;
    let mut accesses = BTreeMap::new();
    let mut workers = Vec::new();
    for option in sites {
        let id = catalog.ensure_site(option.name.as_str()).await.map_err(catalog_fault)?;
        let platform = match Platform::open(options.kubeconfig.as_deref(), &option.context, seams.clone()).await {
            Ok(platform) => platform,
            Err(failure) => {
                return Err(Failure {
                    status: 2,
                    what: failure.what,
                    cause: failure.cause,
                    place: format!("site {}", option.name),
                    next: failure.next,
                });
            }
        };
        accesses.insert(option.name.to_string(), Access::new(platform.clone()));
        let site = Arc::new(Site {
            name: option.name.to_string(),
            platform,
            restoring: None,
            registry: option.registry,
            mover_image: options.mover_image.clone(),
            credentials: credentials.clone(),
            stores: stores.clone(),
            limits: SiteLimits { copies, upload, download },
            seams: seams.clone(),
        });
        // Agents of this process: their key lives as long as it does.
        let fault = |error: IdentityError| Failure::local(error.to_string());
        let key = SiteKey::generate().map_err(fault)?;
        catalog.set_site_key(id, &key.public().map_err(fault)?).await.map_err(catalog_fault)?;
        let identity = Identity::beside(&site.platform, id, key);
        let worker = Worker::new(site.clone(), Arc::new(bus.agent(id)), identity, seams.clone()).map_err(fault)?;
        workers.push((site, worker, id));
    }
    let stop = CancellationToken::new();
    let agents_stop = CancellationToken::new();
    coordinator.start(&stop);
    // One that doesn't answer holds up no other.
    let reports = workers.iter().map(|(site, worker, _)| site.report(worker.instance()));
    for ((site, _, id), report) in workers.iter().zip(futures::future::join_all(reports).await) {
        catalog.report_site(*id, &report).await.map_err(catalog_fault)?;
        attend::print_site(&site.name, &report);
    }
    let mut signals = Signals::listen()?;
    say_what_waits(&catalog, &workers.iter().map(|(_, _, id)| *id).collect::<Vec<_>>()).await.map_err(catalog_fault)?;
    let agents = TaskTracker::new();
    let mut looks = BTreeMap::new();
    for (site, worker, _) in workers {
        let name = site.name.clone();
        looks.insert(name, attend::start(site, worker, &agents, &agents_stop, &seams));
    }
    agents.close();
    let code = sign_in_code(&catalog, &actor).await?;
    let url = format!("http://{address}");
    let signed_in =
        Account { url: url.clone(), token: shell_token(&catalog, &actor).await.map_err(catalog_fault)? }.store();
    let shell = match signed_in {
        Ok(()) => "this shell's user is signed in".to_owned(),
        Err(error) => format!("this shell could not be signed in: {error}"),
    };
    output::line(format!(
        "Open   {url}/sign-in?code={}   (works once, for ten minutes; elsewhere: ocopea sign-in 'URL'; {shell})",
        code.reveal()
    ));
    output::line(format!(
        "Back up the key file {}: without it nobody can read the images.",
        data.join("repository.key").display()
    ));
    let router = api::router(api::State {
        coordinator: Arc::clone(&coordinator),
        access: Arc::new(Local { sites: accesses, looks }),
        keys: Arc::new(KeyFile(data.join("repository.key"))),
        broker: None,
    });
    let closed = CancellationToken::new();
    let measuring = Arc::clone(&coordinator);
    let measured = move || -> BoxFuture<String> {
        let coordinator = Arc::clone(&measuring);
        Box::pin(async move { coordinator.measured().await })
    };
    metrics::serve(options.metrics_listen, Arc::new(measured), &seams, &closed).await?;
    let serving = api::serve(listener, None, router, seams.clone(), closed.clone());
    seams.spawner.spawn("api", Box::pin(serving));
    signals.next().await;
    closed.cancel();
    output::line("stopping: nothing new is taken, what runs is finished or handed back");
    // The coordinator goes on answering until the agents have handed back what they had.
    agents_stop.cancel();
    tokio::select! {
        ended = seams.timeout(Duration::from_secs(30), agents.wait()) => if ended.is_none() {
            output::remark("some tasks did not end in time: they go on at the next start");
        },
        () = signals.next() => {
            output::remark("asked twice: left at once; what ran goes on at the next start");
            return Ok(());
        }
    }
    stop.cancel();
    tracker.close();
    // Connections that people hold open (logs, ports) end with the process.
    if seams.timeout(Duration::from_secs(3), tracker.wait()).await.is_none() {
        tracing::info!("some connections were still open at the end");
    }
    Ok(())
}

/// A new code that the first user's browser or shell is signed in by.
pub(super) async fn sign_in_code(catalog: &Catalog, actor: &Actor) -> Result<Secret, Failure> {
    let code = tokens::generate("code").ok_or_else(|| Failure::local("the system gives no randomness"))?;
    let expires = catalog.seams.clock.now().plus(CODE);
    let kept = catalog.add_sign_in_code(actor.user, &tokens::hash(code.reveal()), expires).await;
    kept.map_err(|error| Failure::local(error.to_string()))?;
    Ok(code)
}

/// This shell's token: the one that it has, as long as it works here, else a new one.
async fn shell_token(catalog: &Catalog, actor: &Actor) -> Result<String, ocopea_catalog_db::CatalogError> {
    if let Some(kept) = Account::load() {
        let known = catalog.authenticate(&tokens::hash(&kept.token)).await?;
        if known.is_some_and(|known| known.user == actor.user && !known.narrowed) {
            return Ok(kept.token);
        }
    }
    let token = tokens::issue(catalog, actor, "this shell", Role::Administrator, None).await?;
    Ok(token.reveal().to_owned())
}

/// Operations at sites that were not given wait until they are.
async fn say_what_waits(catalog: &Catalog, given: &[SiteId]) -> Result<(), ocopea_catalog_db::CatalogError> {
    let waiting: Vec<_> = catalog
        .open_operations()
        .await?
        .into_iter()
        .filter(|operation| operation.site.is_some_and(|site| !given.contains(&site)))
        .collect();
    for operation in &waiting {
        let site = match operation.site {
            Some(site) => catalog.site(&site.to_string()).await?.name,
            None => continue,
        };
        output::line(format!(
            "  operation {} ({}) waits for site {site}, which was not given: start with --site {site}=CONTEXT",
            operation.id, operation.title
        ));
    }
    Ok(())
}
