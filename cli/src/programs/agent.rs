//! `ocopea agent`: one agent of one site, beside its cluster. It dials out only: to the coordinator once, to become its
//! site's; then to the broker and the repository.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ocopea_agent::{
    containers::RegistryHost,
    execute::Site,
    platform::{
        Platform,
        inside::{self, Accounts},
        kept::KeptSecret,
    },
    worker::{Identity, Worker},
};
use ocopea_protocol::{
    failure::TaskFailure,
    identity::IdentityError,
    message::SiteLimits,
    names::SiteName,
    seams::{BoxFuture, Seams},
    secret::Secret,
};
use ocopea_repository::StoreAccess;
use reqwest::Certificate;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use super::{
    attend, broker,
    identity::{Application, Broker, Enrolment, IdentityFile, Kept, Place},
    log, metrics,
    settings::{Given, Program, Setting, Values, contents, path, text},
    signals::Signals,
};
use crate::{
    client::{Failure, is_loopback, parse_url},
    output,
};

/// Most copies at the same time that can be asked for.
pub(super) const MOST_COPIES: u32 = 256;
/// How often a site that waits to be accepted asks.
const ASK: Duration = Duration::from_secs(5);
/// How long an agent that the broker refuses waits before it asks the coordinator for another password.
const REFUSED: Duration = Duration::from_secs(10);
/// How long a stop waits for what runs.
const GRACE: Duration = Duration::from_secs(30);

/// The settings of `ocopea agent`.
pub struct AgentProgram;

impl Program for AgentProgram {
    const SETTINGS: &'static [Setting] = &[
        Setting { name: "coordinator", value: "URL", help: "The coordinator to join; needed once", usual: None },
        Setting {
            name: "coordinator-certificates",
            value: "FILE",
            help: "Certificates (PEM) that the coordinator is checked against, beside the system's",
            usual: None,
        },
        Setting {
            name: "join-token",
            value: "TOKEN",
            help: "The join token or enrolment key; needed once, with --coordinator",
            usual: None,
        },
        Setting { name: "join-token-file", value: "FILE", help: "The same, from a file", usual: None },
        Setting {
            name: "name",
            value: "NAME",
            help: "The site's name, with an enrolment key; a join token knows its own",
            usual: None,
        },
        Setting {
            name: "identity",
            value: "FILE",
            help: "What makes this an agent of its site (0600); else a file of that context's name below ~/.local/share/ocopea/agents",
            usual: None,
        },
        Setting {
            name: "kubeconfig",
            value: "FILE",
            help: "The kubeconfig; else $KUBECONFIG, else ~/.kube/config",
            usual: None,
        },
        Setting {
            name: "context",
            value: "CONTEXT",
            help: "The cluster, as the kubeconfig calls it; in a pod, the pod's own cluster unless given",
            usual: None,
        },
        Setting {
            name: "identity-secret",
            value: "NAME",
            help: "In a pod: a Secret of its namespace that keeps the identity in place of a file",
            usual: None,
        },
        Setting {
            name: "save-account",
            value: "NAME",
            help: "In a pod: the service account that saves, bound to the cluster role of its name",
            usual: None,
        },
        Setting {
            name: "restore-account",
            value: "NAME",
            help: "In a pod: the service account that restores, likewise",
            usual: None,
        },
        Setting {
            name: "trial-namespace",
            value: "NAME",
            help: "In a pod: the namespace where plans of restores have objects tried out, and nothing is made",
            usual: Some("default"),
        },
        Setting {
            name: "registry",
            value: "[http://]HOST/PATH",
            help: "The registry that restores push to and the cluster's nodes pull from",
            usual: None,
        },
        Setting {
            name: "mover-image",
            value: "IMAGE",
            help: "The image of the pods that read and write volumes",
            usual: None,
        },
        Setting { name: "copies", value: "N", help: "Copies at the same time", usual: Some("4") },
        Setting {
            name: "upload-limit",
            value: "BYTES/s",
            help: "What this agent may send to all repositories together: 50MiB/s; as much as there is room for unless given",
            usual: None,
        },
        Setting {
            name: "download-limit",
            value: "BYTES/s",
            help: "What this agent may read from all repositories together; likewise",
            usual: None,
        },
        Setting {
            name: "metrics-listen",
            value: "ADDRESS:PORT",
            help: "Serve metrics for Prometheus there, without tokens; not unless given",
            usual: None,
        },
        Setting {
            name: "allow-plain-http",
            value: "",
            help: "Join a coordinator on another machine without TLS",
            usual: None,
        },
        Setting {
            name: "allow-plain-broker",
            value: "",
            help: "Speak with a broker on another machine without TLS",
            usual: None,
        },
    ];
}

struct Settings {
    application: Option<Application>,
    certificates: Vec<Certificate>,
    name: Option<SiteName>,
    identity: Option<PathBuf>,
    identity_secret: Option<String>,
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    accounts: Option<Accounts>,
    registry: Option<RegistryHost>,
    mover_image: Option<String>,
    limits: SiteLimits,
    plain_broker: bool,
    metrics: Option<SocketAddr>,
}

fn certificates(file: &str) -> Result<Vec<Certificate>, String> {
    let held = Certificate::from_pem_bundle(contents(file)?.as_bytes()).unwrap_or_default();
    if held.is_empty() { Err(format!("{file} holds no certificate (PEM)")) } else { Ok(held) }
}

/// Where the identity of a context's site lies unless told.
pub(super) fn usual_identity(context: &str) -> Option<PathBuf> {
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = context.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    Some(base.join("ocopea").join("agents").join(format!("{name}.json")))
}

fn application(values: &mut Values) -> Option<Application> {
    let plain = values.is_on("allow-plain-http");
    let coordinator: Option<Url> = values.optional("coordinator", |text| {
        let url = parse_url(text).map_err(|failure| failure.what)?;
        if url.scheme() == "http" && !is_loopback(&url) && !plain {
            return Err(format!(
                "{text}: without TLS, others would read the token; use https://, or --allow-plain-http"
            ));
        }
        Ok(url)
    });
    let token = values.optional("join-token", text);
    let token = values.optional("join-token-file", contents).or(token);
    match (coordinator, token) {
        (Some(coordinator), Some(token)) => Some(Application { coordinator, token: Secret::new(token) }),
        (None, Some(_)) => {
            values.problem("join-token: it is good for one coordinator: give --coordinator URL, too");
            None
        }
        // An address alone is of no harm: the identity file knows the rest.
        _ => None,
    }
}

/// The two accounts, or neither.
fn accounts(values: &mut Values) -> Option<Accounts> {
    let (save, restore) = (values.optional("save-account", text), values.optional("restore-account", text));
    let trial = values.required("trial-namespace", text)?;
    match (save, restore) {
        (Some(save), Some(restore)) => Some(Accounts { save, restore, trial }),
        (None, None) => None,
        _ => {
            values.problem("save-account, restore-account: give both, or neither");
            None
        }
    }
}

/// Ways into the cluster: for saves, for restores where they have rights of their own, and what keeps the identity.
struct Ways {
    platform: Platform,
    restoring: Option<Platform>,
    place: Place,
}

async fn ways(settings: &Settings, seams: &Seams, stop: &CancellationToken) -> Result<Ways, Failure> {
    let missing = || Failure::usage("there is no place to keep the site's identity in").next("give --identity FILE");
    let file = || settings.identity.clone().map(Place::File).ok_or_else(missing);
    let Some(context) = &settings.context else {
        let mut inside = inside::open(settings.accounts.clone(), seams).await.map_err(unusable)?;
        inside.keep_fresh(stop);
        let place = match &settings.identity_secret {
            Some(name) => Place::Secret(Box::new(KeptSecret::new(inside.own.clone(), &inside.namespace, name))),
            None => file()?,
        };
        return Ok(Ways { platform: inside.saving, restoring: inside.restoring, place });
    };
    let platform = Platform::open(settings.kubeconfig.as_deref(), context, seams.clone()).await.map_err(unusable)?;
    Ok(Ways { platform, restoring: None, place: file()? })
}

fn unusable(failure: TaskFailure) -> Failure {
    Failure { status: 2, cause: failure.cause, next: failure.next, ..Failure::local(failure.what) }
}

fn settings(given: Given<AgentProgram>) -> Result<Settings, Failure> {
    let mut values = given.collect();
    let application = application(&mut values);
    let certificates = values.optional("coordinator-certificates", certificates).unwrap_or_default();
    let name = values.optional("name", str::parse::<SiteName>);
    let kubeconfig = values.optional("kubeconfig", path);
    let mut context = values.optional("context", text);
    let inside = context.is_none() && kubeconfig.is_none() && inside::is_inside();
    if context.is_none() && !inside {
        context = values.required("context", text);
    }
    let identity_secret = values.optional("identity-secret", text);
    let accounts = accounts(&mut values);
    if context.is_some() && (identity_secret.is_some() || accounts.is_some()) {
        values.problem(
            "identity-secret, save-account, restore-account: they are for a pod's own cluster: leave --context out",
        );
    }
    let identity = values.optional("identity", path);
    let usual = context.as_deref().or(inside.then_some("pod")).filter(|_| identity_secret.is_none());
    let identity = identity.or_else(|| usual.and_then(usual_identity));
    if identity.is_none() && usual.is_some() {
        values.problem("identity is missing, and there is no home directory: give --identity FILE");
    }
    let registry = values.optional("registry", str::parse::<RegistryHost>);
    let mover_image = values.optional("mover-image", text);
    let copies = values.required("copies", |text| output::parse_number(text, MOST_COPIES));
    let upload = values.optional("upload-limit", output::parse_rate);
    let download = values.optional("download-limit", output::parse_rate);
    let plain_broker = values.is_on("allow-plain-broker");
    let metrics = metrics::setting(&mut values);
    let settings = (|| {
        Some(Settings {
            application,
            certificates,
            name,
            identity,
            identity_secret,
            kubeconfig,
            context,
            accounts,
            registry,
            mover_image,
            limits: SiteLimits { copies: copies?, upload, download },
            plain_broker,
            metrics,
        })
    })();
    values.end(settings)
}

/// The site's identity, asked for until it is accepted.
struct Joining<'a> {
    file: &'a IdentityFile,
    kept: Kept,
    name: Option<String>,
    seams: &'a Seams,
}

impl Joining<'_> {
    /// Asks until somebody has accepted the site. What can't get better by waiting is an error.
    async fn until_accepted(&mut self) -> Result<(Enrolment, Broker), Failure> {
        let mut said = false;
        loop {
            match self.file.enrol(&mut self.kept, self.name.as_deref()).await {
                // The coordinator, or the way to it, is down.
                Err(failure) if failure.status == 6 => {
                    if !said {
                        output::remark(format!("{}: {}; asking again and again", failure.what, failure.cause));
                        said = true;
                    }
                }
                Err(failure) => return Err(failure),
                Ok(()) => {
                    if let Some(site) = &self.kept.site {
                        if let Some(broker) = &site.broker {
                            return Ok((site.clone(), broker.clone()));
                        }
                        if !said {
                            let name = &site.name;
                            output::line(format!("site {name} waits to be accepted: ocopea sites approve {name}"));
                            said = true;
                        }
                    }
                }
            }
            self.seams.clock.sleep(self.seams.jittered(ASK)).await;
        }
    }

    /// The broker refuses the password that this agent knows: another agent of the site may have got a newer one, which
    /// stands in the file; else a new one is asked for.
    async fn again(&mut self, refused: &Broker) -> Result<Broker, Failure> {
        if let Some(kept) = self.file.load().await?
            && let Some(newer) = kept.site.as_ref().and_then(|site| site.broker.clone())
            && newer != *refused
        {
            self.kept = kept;
            return Ok(newer);
        }
        Ok(self.until_accepted().await?.1)
    }
}

/// Runs until SIGTERM or Ctrl-C.
pub async fn run(given: Given<AgentProgram>) -> Result<(), Failure> {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let settings = settings(given)?;
    log::log_to_stderr()?;
    let mut signals = Signals::listen()?;
    let tracker = TaskTracker::new();
    let seams = Seams::real(tracker.clone());
    let (agents, stop) = (TaskTracker::new(), CancellationToken::new());
    let Ways { platform, restoring, place } = ways(&settings, &seams, &stop).await?;
    let file = IdentityFile::new(place, &settings.certificates)?;
    let kept = file.open(settings.application).await?;
    let known = kept.site.clone().and_then(|site| Some((site.broker.clone()?, site)));
    let mut joining = Joining { file: &file, kept, name: settings.name.map(|name| name.to_string()), seams: &seams };
    let (site, mut broker) = match known {
        Some((broker, site)) => (site, broker),
        None => tokio::select! {
            accepted = joining.until_accepted() => accepted?,
            () = signals.next() => return Ok(()),
        },
    };
    let bus = broker::connect_agent(&broker, site.id, settings.plain_broker, &seams)?;
    output::line(format!(
        "Ocopea {}   agent of site {} at {} (identity: {})",
        env!("CARGO_PKG_VERSION"),
        site.name,
        broker.url,
        file.place()
    ));
    let stores = StoreAccess::default();
    stores.limit_process(settings.limits.upload, settings.limits.download);
    let at = Arc::new(Site {
        name: site.name.clone(),
        platform,
        restoring,
        registry: settings.registry,
        mover_image: settings.mover_image,
        credentials: attend::docker_credentials().await?,
        stores,
        limits: settings.limits,
        seams: seams.clone(),
    });
    let fault = |error: IdentityError| Failure::local(error.to_string());
    let identity = Identity::beside(&at.platform, site.id, joining.kept.key()?);
    let worker = Worker::new(Arc::clone(&at), bus.bus(), identity, seams.clone()).map_err(fault)?;
    attend::print_site(&site.name, &at.report(worker.instance()).await);
    let numbers = worker.metrics();
    let measured = move || -> BoxFuture<String> {
        let text = numbers.as_ref().map(|numbers| numbers.text()).unwrap_or_default();
        Box::pin(std::future::ready(text))
    };
    metrics::serve(settings.metrics, Arc::new(measured), &seams, &stop).await?;
    let look = attend::start(at, worker, &agents, &stop, &seams);
    look.notify_one();
    agents.close();
    let mut outcome = Ok(());
    loop {
        tokio::select! {
            () = signals.next() => break,
            () = bus.refused() => {
                let asking = async {
                    seams.clock.sleep(seams.jittered(REFUSED)).await;
                    // The one that was given last may be in use by now.
                    if !bus.is_refused() {
                        return Ok(None);
                    }
                    tracing::warn!("the broker refuses this site's password: another one is asked for");
                    joining.again(&broker).await.map(Some)
                };
                let answered = tokio::select! {
                    answered = asking => answered,
                    () = signals.next() => break,
                };
                match answered {
                    Ok(None) => {}
                    Ok(Some(newer)) => {
                        bus.renew(&newer);
                        broker = newer;
                    }
                    Err(failure) => {
                        outcome = Err(failure);
                        break;
                    }
                }
            }
        }
    }
    output::line("stopping: nothing new is taken, what runs is finished or handed back");
    stop.cancel();
    tokio::select! {
        ended = seams.timeout(GRACE, agents.wait()) => if ended.is_none() {
            output::remark("some tasks did not end in time: their leases run out, and others go on with them");
        },
        () = signals.next() => output::remark("asked twice: left at once; what ran goes on when its leases ran out"),
    }
    bus.bus().close().await;
    tracker.close();
    seams.timeout(Duration::from_secs(3), tracker.wait()).await;
    outcome
}
