//! Whole saves and loads of PostgreSQL servers, as a test asks for them, with the servers and a repository.

use std::{collections::BTreeMap, sync::Arc};

use ocopea_agent::{
    data::{Copied, DataService, Held, Loaded, Login, LoginOf, Reach, ServerReach, Subject, postgresql::PostgreSql},
    platform::exec::HostTools,
};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
    names::Digest,
    seams::Seams,
    secret::Secret,
    task::Progress,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[path = "image.rs"]
pub mod image;
#[path = "postgres.rs"]
pub mod postgres;

use image::TestImage;
use postgres::{PASSWORD, Postgres};

pub fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}

pub fn login(of: LoginOf, user: &str, password: &str) -> Login {
    Login { of, user: user.to_owned(), password: Secret::new(password), database: None, options: BTreeMap::new() }
}

pub fn administrator() -> Login {
    login(LoginOf::Administrator, "postgres", PASSWORD)
}

pub fn subject_with(server: &Postgres, logins: Vec<Login>) -> Subject {
    subject_at(server.address(), logins)
}

pub fn subject_at(address: std::net::SocketAddr, logins: Vec<Login>) -> Subject {
    let seams = seams();
    Subject {
        name: "shop-db".parse().unwrap(),
        reach: Reach::Server(ServerReach {
            address,
            logins,
            tools: vec![Arc::new(HostTools { address, seams: seams.clone() })],
            hosts: vec!["shop-db".to_owned()],
        }),
        seams,
        stop: CancellationToken::new(),
        progress: Arc::new(|_: Progress| {}),
    }
}

pub fn subject(server: &Postgres) -> Subject {
    subject_with(server, vec![administrator()])
}

pub struct Saved {
    pub copied: Copied,
    pub manifest: Digest,
}

pub async fn open(subject: &Subject) -> Result<Box<dyn Held>, TaskFailure> {
    PostgreSql.prepare(subject, false).await?.open().await
}

pub async fn copy_under(subject: &Subject, held: &dyn Held, image: &TestImage) -> Result<Saved, TaskFailure> {
    let writer = image.writer(&subject.name, DataKind::PostgreSql).await;
    let copied = PostgreSql.copy(subject, &held.snapshot(), &writer).await?;
    let manifest = image.finish(writer, &copied.facts).await;
    Ok(Saved { copied, manifest })
}

pub async fn save(subject: &Subject, image: &TestImage) -> Result<Saved, TaskFailure> {
    let held = open(subject).await?;
    let saved = copy_under(subject, held.as_ref(), image).await?;
    held.release().await?;
    Ok(saved)
}

pub async fn load(subject: &Subject, image: &TestImage, saved: &Saved) -> Result<Loaded, TaskFailure> {
    PostgreSql.load(subject, &image.reader(&saved.manifest).await, &saved.copied.streams).await
}

pub fn stream<'a>(streams: &'a [StreamInfo], name: &str) -> &'a StreamInfo {
    streams.iter().find(|stream| stream.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
        panic!("no stream {name} among {names:?}")
    })
}

pub fn text(failure: &TaskFailure) -> String {
    format!("{}: {} [{}] → {}", failure.what, failure.cause, failure.code, failure.next)
}
