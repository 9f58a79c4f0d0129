//! What a MongoDB driver is given in a test, and a whole save and load with it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use ocopea_agent::data::{
    Copied, DataService, Held, Loaded, Login, LoginOf, Reach, ServerReach, Subject, mongodb::MongoDb,
};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{DataKind, StreamInfo},
    names::Digest,
    seams::{BoxFuture, Clock, Seams},
    secret::Secret,
    time::Timestamp,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::image::TestImage;

/// A clock of which some waits are shorter, so that limits are reached within a test.
struct Fast(Arc<dyn Clock>, fn(Duration) -> Duration);

impl Clock for Fast {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        self.0.sleep(self.1(span))
    }
}

pub fn subject(address: SocketAddr) -> Subject {
    subject_with(address, vec![])
}

pub fn subject_with(address: SocketAddr, logins: Vec<Login>) -> Subject {
    Subject {
        name: "messages".parse().unwrap(),
        reach: Reach::Server(ServerReach { address, logins, tools: vec![], hosts: vec!["mongo".to_owned()] }),
        seams: Seams::real(TaskTracker::new()),
        stop: CancellationToken::new(),
        progress: Arc::new(|_| {}),
    }
}

/// The same with other waits. Let a wait that must not run out keep its length: the machine may be busy.
pub fn hurried(mut subject: Subject, waits: fn(Duration) -> Duration) -> Subject {
    subject.seams.clock = Arc::new(Fast(subject.seams.clock, waits));
    subject
}

pub fn login(of: LoginOf, user: &str, password: &str, options: &[(&str, &str)]) -> Login {
    let options: BTreeMap<String, String> = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Login { of, user: user.to_owned(), password: Secret::new(password), database: None, options }
}

pub struct Saved {
    pub copied: Copied,
    pub manifest: Digest,
}

pub async fn open(subject: &Subject, freeze: bool) -> Result<Box<dyn Held>, TaskFailure> {
    MongoDb.prepare(subject, freeze).await?.open().await
}

pub async fn copy(subject: &Subject, held: &dyn Held, image: &TestImage) -> Result<Saved, TaskFailure> {
    let writer = image.writer(&subject.name, DataKind::MongoDb).await;
    let copied = MongoDb.copy(subject, &held.snapshot(), &writer).await?;
    let manifest = image.finish(writer, &copied.facts).await;
    Ok(Saved { copied, manifest })
}

pub async fn save(subject: &Subject, image: &TestImage) -> Result<Saved, TaskFailure> {
    let mut held = open(subject, false).await?;
    let saved = copy(subject, held.as_ref(), image).await?;
    held.check().await?;
    held.release().await?;
    Ok(saved)
}

pub async fn load(subject: &Subject, image: &TestImage, saved: &Saved) -> Result<Loaded, TaskFailure> {
    MongoDb.load(subject, &image.reader(&saved.manifest).await, &saved.copied.streams).await
}

/// What the caller of a load compares.
pub fn differences(saved: &[StreamInfo], loaded: &[StreamInfo]) -> Vec<String> {
    let mut out = Vec::new();
    for stream in saved {
        match loaded.iter().find(|other| other.name == stream.name) {
            None => out.push(format!("{} is missing", stream.name)),
            Some(other) if other.items != stream.items => {
                out.push(format!("{}: {} instead of {}", stream.name, other.items, stream.items))
            }
            Some(other) if other.content != stream.content => out.push(format!("{} has other contents", stream.name)),
            Some(_) => {}
        }
    }
    out
}

pub fn text(failure: &TaskFailure) -> String {
    format!("{}: {} [{}] → {}", failure.what, failure.cause, failure.code, failure.next)
}
