//! Keeps posting to a running service, as its users would, and counts what fails.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{PASSWORD, chance::Chance, files, words};
use crate::{client::Client, model::Upload, world};

/// Posts under way at once; more would only wait in the service.
const IN_FLIGHT: usize = 16;
/// Messages of a thousand that bring a file.
const FILES: usize = 30;

/// What to write, and how long.
#[derive(Debug, Clone)]
pub struct Writing {
    /// Of the service.
    pub url: String,
    /// Messages a second.
    pub rate: u32,
    /// Ends by itself; `None`: when it is stopped.
    pub span: Option<Duration>,
    /// Chooses rooms and words.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// The service said that it has them.
    pub posted: u64,
    /// It didn't, or not in time.
    pub failed: u64,
    /// Seconds.
    pub seconds: f64,
    /// Why the first one failed.
    pub first_failure: Option<String>,
    /// The greatest number that a posted message got.
    pub last_number: u64,
}

#[derive(Default)]
struct Tally {
    posted: AtomicU64,
    failed: AtomicU64,
    last: AtomicU64,
    first_failure: Mutex<Option<String>>,
}

impl Tally {
    fn fail(&self, reason: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut first) = self.first_failure.lock() {
            first.get_or_insert(reason);
        }
    }
}

/// Writes until `stop`, or as long as it should. `progress` hears of it every five seconds.
pub async fn keep_writing(
    writing: &Writing,
    stop: &CancellationToken,
    mut progress: impl FnMut(&Written),
) -> anyhow::Result<Written> {
    let mut client = Client::new(&writing.url)?;
    client.sign_in(&format!("writer-{}", writing.seed), PASSWORD).await?;
    let rooms = client.get("/api/rooms").await?;
    let rooms: Vec<String> = rooms["rooms"]
        .as_array()
        .map(|rooms| rooms.iter().filter_map(|room| room["slug"].as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    // The incident stays as it is: its order is what is to be seen.
    let rooms: Vec<String> = rooms.into_iter().filter(|slug| slug != super::data::INCIDENT).collect();
    anyhow::ensure!(!rooms.is_empty(), "{} has no room to write in", writing.url);

    let (client, tally, tracker) = (Arc::new(client), Arc::new(Tally::default()), TaskTracker::new());
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut chance = Chance::new(writing.seed, "writer", 0);
    let started = world::Stopwatch::start();
    let pause = Duration::from_secs(1) / writing.rate.max(1);
    let (mut due, mut reported) = (Duration::ZERO, Duration::ZERO);
    while !stop.is_cancelled() && writing.span.is_none_or(|span| started.elapsed() < span) {
        let room = &rooms[chance.below(rooms.len())];
        let path = format!("/api/rooms/{room}/messages");
        let body = words::speech(&mut chance);
        // Files come along now and then, as in the loaded history.
        let file = chance.permille(FILES).then(|| files::upload(writing.seed, chance.below(1_000_000)));
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit?,
            () = stop.cancelled() => break,
        };
        let (client, sum) = (client.clone(), tally.clone());
        world::spawn(&tracker, async move {
            match post(&client, &path, &body, file).await {
                Ok(message) => {
                    sum.posted.fetch_add(1, Ordering::Relaxed);
                    sum.last.fetch_max(message.get("n").and_then(Value::as_u64).unwrap_or_default(), Ordering::Relaxed);
                }
                Err(error) => sum.fail(format!("{error:#}")),
            }
            drop(permit);
        });
        due += pause;
        if started.elapsed() - reported >= Duration::from_secs(5) {
            reported = started.elapsed();
            progress(&written(&tally, &started));
        }
        if let Some(wait) = due.checked_sub(started.elapsed()) {
            tokio::select! {
                () = world::sleep(wait) => {}
                () = stop.cancelled() => break,
            }
        }
    }
    tracker.close();
    tracker.wait().await;
    Ok(written(&tally, &started))
}

/// One message, with its file where it has one.
async fn post(client: &Client, path: &str, body: &str, file: Option<(Upload, Bytes)>) -> anyhow::Result<Value> {
    let upload = match file {
        Some((upload, bytes)) => client.upload(upload.name.as_str(), &upload.content_type, bytes).await?,
        None => Value::Null,
    };
    client.post(path, &json!({ "body": body, "upload": upload })).await
}

fn written(tally: &Tally, started: &world::Stopwatch) -> Written {
    Written {
        posted: tally.posted.load(Ordering::Relaxed),
        failed: tally.failed.load(Ordering::Relaxed),
        seconds: started.elapsed().as_secs_f64(),
        first_failure: tally.first_failure.lock().ok().and_then(|first| first.clone()),
        last_number: tally.last.load(Ordering::Relaxed),
    }
}
