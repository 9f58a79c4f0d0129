//! RabbitMQ, as coordinators and agents are told of it.

use std::sync::Arc;

use ocopea_coordinator::{
    api::enrolment::SiteBroker,
    broker::{BrokerSettings as ManagementSettings, RabbitSiteBroker},
};
use ocopea_protocol::{
    bus::{
        AgentBus, CoordinatorBus,
        rabbitmq::{Address, InvalidSettings, LinkState, RabbitAgentBus, RabbitCoordinatorBus, Settings},
    },
    failure::{FailureClass, TaskFailure},
    ids::SiteId,
    seams::Seams,
    secret::Secret,
};
use url::Url;

use super::{
    coordinator::is_here,
    identity::Broker,
    settings::{Values, contents, text},
};
use crate::{client::Failure, output};

/// What a coordinator is told.
pub(super) struct BrokerSettings {
    url: Url,
    user: String,
    password: Secret,
    certificates: Option<String>,
    management: Url,
    for_agents: Option<Url>,
    plain: bool,
}

fn address(text: &str, schemes: [&str; 2], wanted: &str, plain: bool) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| format!("{text:?}: {wanted} is expected"))?;
    if !schemes.contains(&url.scheme()) || url.host().is_none() || url.query().is_some() {
        return Err(format!("{wanted} is expected"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("user and password don't belong into the address: {wanted} is expected"));
    }
    if url.scheme() == schemes[0] && !url.host_str().is_some_and(is_here) && !plain {
        return Err(format!(
            "{text}: without TLS, others would read what is said; use {}://, or --allow-plain-broker",
            schemes[1]
        ));
    }
    Ok(url)
}

const AMQP: [&str; 2] = ["amqp", "amqps"];
const AMQP_LIKE: &str = "amqps://HOST[:PORT]/VHOST";

/// Reads what concerns the broker.
pub(super) fn settings(values: &mut Values) -> Option<BrokerSettings> {
    let plain = values.is_on("allow-plain-broker");
    let amqp = |text: &str| address(text, AMQP, AMQP_LIKE, plain);
    let url = values.required("broker", amqp);
    let for_agents = values.optional("broker-for-agents", |text| address(text, AMQP, AMQP_LIKE, true));
    let user = values.required("broker-user", text);
    let password = values.required("broker-password-file", contents);
    let certificates = values.optional("broker-certificates", contents);
    let management =
        values.required("broker-management", |text| address(text, ["http", "https"], "https://HOST[:PORT]", plain));
    Some(BrokerSettings {
        url: url?,
        user: user?,
        password: Secret::new(password?),
        certificates,
        management: management?,
        for_agents,
        plain,
    })
}

/// A coordinator's bus, and who lets sites in there.
pub(super) struct Connected {
    bus: Arc<RabbitCoordinatorBus>,
    sites: Arc<RabbitSiteBroker>,
}

impl Connected {
    pub(super) fn bus(&self) -> Arc<dyn CoordinatorBus> {
        self.bus.clone()
    }

    pub(super) fn sites(&self) -> Arc<dyn SiteBroker> {
        self.sites.clone()
    }
}

fn unusable(error: &InvalidSettings) -> Failure {
    Failure::usage(error.to_string())
}

/// Begins to connect. A broker that is down now is waited for; one that manages nothing for this user is an error.
pub(super) async fn connect(settings: &BrokerSettings, seams: &Seams) -> Result<Connected, Failure> {
    let wrong = |what: &str| Failure::usage(format!("{what} can't be used"));
    let address: Address = settings.url.as_str().parse().map_err(|error| wrong(&format!("broker: {error}")))?;
    let mut bus = Settings::new(address, settings.user.clone(), settings.password.clone());
    bus.certificates.clone_from(&settings.certificates);
    bus.plain_allowed = settings.plain;
    bus.name = format!("ocopea coordinator {}", std::process::id());
    let sites = RabbitSiteBroker::new(
        ManagementSettings {
            management: settings.management.clone(),
            user: settings.user.clone(),
            password: settings.password.clone(),
            certificates: settings.certificates.clone(),
            plain_allowed: settings.plain,
            agents: settings.for_agents.as_ref().unwrap_or(&settings.url).to_string(),
            agents_certificates: settings.certificates.clone(),
        },
        seams,
    );
    let sites = sites.map_err(|failure| told(&failure))?;
    match sites.check().await {
        // It may come later than this process; sites can't join until then.
        Err(failure) if failure.class == FailureClass::Retryable => {
            output::remark(format!("{}: {}; going on without it until it is there", failure.what, failure.cause));
        }
        other => other.map_err(|failure| told(&failure))?,
    }
    let bus = RabbitCoordinatorBus::start(&bus, seams).map_err(|error| unusable(&error))?;
    Ok(Connected { bus: Arc::new(bus), sites: Arc::new(sites) })
}

fn told(failure: &TaskFailure) -> Failure {
    let TaskFailure { what, cause, next, .. } = failure.clone();
    Failure { cause, next, ..Failure::local(what) }
}

fn is_refused(state: &LinkState) -> bool {
    matches!(state, LinkState::Refused { .. })
}

/// An agent's bus.
pub(super) struct AgentConnected {
    bus: Arc<RabbitAgentBus>,
}

impl AgentConnected {
    pub(super) fn bus(&self) -> Arc<dyn AgentBus> {
        self.bus.clone()
    }

    /// Whether the broker lets this site in no more.
    pub(super) fn is_refused(&self) -> bool {
        self.bus.watch().iter().any(|state| is_refused(&state.borrow()))
    }

    /// Ends when the broker lets this site in no more.
    pub(super) async fn refused(&self) {
        let [mut hints, mut requests] = self.bus.watch();
        tokio::select! {
            // A bus that was closed is refused by nobody.
            Ok(_) = hints.wait_for(is_refused) => {}
            Ok(_) = requests.wait_for(is_refused) => {}
            else => std::future::pending().await,
        }
    }

    /// Goes on with another password.
    pub(super) fn renew(&self, broker: &Broker) {
        self.bus.renew_password(&broker.password);
    }
}

/// Begins to connect as a site's agent.
pub(super) fn connect_agent(
    broker: &Broker,
    site: SiteId,
    plain: bool,
    seams: &Seams,
) -> Result<AgentConnected, Failure> {
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::local(format!("the broker's address {:?} can't be used: {error}", broker.url))
            .next("the coordinator gave it: see its setting broker-for-agents")
    };
    let address: Address = broker.url.parse().map_err(|error| wrong(&error))?;
    let mut settings = Settings::new(address, broker.user.clone(), broker.password.clone());
    settings.certificates.clone_from(&broker.certificates);
    settings.plain_allowed = plain;
    settings.name = format!("ocopea agent {}", std::process::id());
    let bus = RabbitAgentBus::start(site, &settings, seams).map_err(|error| wrong(&error))?;
    Ok(AgentConnected { bus: Arc::new(bus) })
}
