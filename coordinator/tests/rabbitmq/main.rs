//! Sites at a real RabbitMQ: who is let in, what they may do there, and what comes of messages that nobody should send.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers stop at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests live in the machine's own time")]

mod admission;
mod hostile;
mod rights;
#[path = "../../../protocol/tests/rabbitmq/server.rs"]
mod server;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ocopea_coordinator::{
    api::enrolment::{Admission, SiteBroker},
    broker::{BrokerSettings, RabbitSiteBroker},
};
use ocopea_protocol::{
    bus::{
        AgentBus, CoordinatorBus,
        rabbitmq::{Bare, LinkState, RabbitAgentBus, RabbitCoordinatorBus, Settings, topology},
    },
    ids::SiteId,
    secret::Secret,
};
use reqwest::Method;
use serde_json::json;
use server::{Server, seams, soon, until};

fn managed(server: &Server) -> BrokerSettings {
    BrokerSettings {
        management: server.management().parse().unwrap(),
        user: "admin".to_owned(),
        password: server.password(),
        certificates: server.certificates(),
        plain_allowed: false,
        agents: server.url().to_owned(),
        agents_certificates: server.certificates(),
    }
}

fn broker(server: &Server) -> RabbitSiteBroker {
    RabbitSiteBroker::new(managed(server), &seams()).unwrap()
}

fn coordinator(server: &Server) -> Arc<RabbitCoordinatorBus> {
    Arc::new(RabbitCoordinatorBus::start(&server.own_settings(), &seams()).unwrap())
}

/// What an agent makes of its admission.
fn settings(admission: &Admission) -> Settings {
    let mut settings =
        Settings::new(admission.url.parse().unwrap(), admission.user.clone(), admission.password.clone());
    settings.certificates = admission.certificates.clone();
    settings
}

async fn admitted(server: &Server) -> (SiteId, Settings) {
    let site = SiteId::generate(&seams());
    (site, settings(&broker(server).admit(site).await.unwrap()))
}
