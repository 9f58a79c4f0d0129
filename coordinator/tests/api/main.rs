//! The API as it is served: tokens, roles, teams, and what it does with input that nobody should send.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test's helpers stop at the first surprise, and wait in real time for what is real"
)]

mod access;
mod agents;
mod browser;
mod ends;
mod repositories;
mod requests;
mod server;
mod sessions;
mod several;
mod verdicts;

#[path = "../../../agent/tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the PostgreSQL driver, which use more of it")]
mod postgres;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::StreamExt;
use ocopea_catalog_db::{
    Catalog,
    access::Actor,
    environments::Environment,
    images::Image,
    model::{EnvironmentState, Role},
};
use ocopea_coordinator::{
    api::{self, enrolment::SiteBroker},
    tokens,
};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::{EnvironmentId, ImageId, InstanceId, SiteId},
    image::Location,
    names::Digest,
    seams::Seams,
};
use ocopea_repository::{Keyring, Repository, StoreAccess};
use reqwest::StatusCode;
use serde_json::{Value, json};
use server::{Answer, Server};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const NOBODY: &str = "018f0000-0000-7000-8000-000000000001";

/// An image, and an environment of it, as if they had been made.
async fn furnish(server: &Server, owner: &Actor, name: &str) -> (ImageId, EnvironmentId) {
    let desk = server.catalog.site("desk").await.unwrap().id;
    furnish_at(server, owner, name, desk).await
}

async fn furnish_at(server: &Server, owner: &Actor, name: &str, site: SiteId) -> (ImageId, EnvironmentId) {
    let seams = &server.catalog.seams;
    let image = image(server, owner, name, "shop");
    let environment = Environment {
        id: EnvironmentId::generate(seams),
        team: owner.team,
        name: name.to_owned(),
        site,
        image: image.id,
        record: image.record,
        state: EnvironmentState::Running,
        url: None,
        owner: owner.user_name.clone(),
        placements: vec![],
        created: seams.clock.now(),
    };
    let transaction = server.catalog.begin().await.unwrap();
    transaction.add_image(&image).await.unwrap();
    transaction.add_comment(image.id, &owner.user_name, &format!("comment of {name}")).await.unwrap();
    transaction.add_environment(&environment).await.unwrap();
    transaction.commit().await.unwrap();
    (image.id, environment.id)
}

/// An image that was saved at this moment; it isn't in the catalog yet.
fn image(server: &Server, owner: &Actor, name: &str, application: &str) -> Image {
    let seams = &server.catalog.seams;
    let mut record = [0u8; 32];
    seams.entropy.fill(&mut record);
    Image {
        id: ImageId::generate(seams),
        team: owner.team,
        record: Digest(record),
        name: name.to_owned(),
        application: application.to_owned(),
        site: "desk".to_owned(),
        creator: owner.user_name.clone(),
        comment: String::new(),
        bytes: 1,
        new_bytes: 1,
        created: seams.clock.now(),
        repository: None,
        labels: BTreeMap::from([("of".to_owned(), name.to_owned())]),
        body: json!({"components": []}).to_string(),
    }
}
