//! `lets-chat load`: a history through the storage layer, or a steady writer through HTTP.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::{
    model::NewAccount,
    password,
    store::{SeedAccount, Storage, StoreError},
    world,
};

mod chance;
pub mod data;
mod files;
mod words;
pub mod writer;

pub use data::{History, Sizes};

/// Everybody in a loaded history signs in with it.
pub const PASSWORD: &str = "please-chat";

/// Messages that are made and written together.
const BATCH: usize = 4_000;

/// What a load did.
#[derive(Debug)]
pub struct Loaded {
    /// The sizes that it really had.
    pub sizes: Sizes,
    /// It was there already: nothing was done.
    pub before: bool,
    /// What the database didn't take.
    pub refused: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Fills an empty service, or one that holds just this history already (then it does nothing).
/// Anything else is refused, unless `replace` says that it may go.
pub async fn load(store: &Arc<dyn Storage>, sizes: Sizes, replace: bool) -> anyhow::Result<Loaded> {
    let started = world::Stopwatch::start();
    let mut history = History::new(sizes);
    let sizes = history.sizes();
    let found = store.loaded().await?;
    let done = |before, refused| Loaded { sizes, before, refused, took: started.elapsed() };
    if found.as_ref() == Some(&sizes.mark()) && !replace {
        return Ok(done(true, Vec::new()));
    }
    let counts = store.counts().await?;
    let used =
        counts.entries.iter().find(|(name, count)| matches!(name.as_str(), "messages" | "accounts") && *count > 0);
    if let (Some((name, count)), false) = (used, replace) {
        bail!("there are {count} {name} already; --replace deletes everything that is there first");
    }
    store.clear().await?;
    store.load_accounts(&accounts(&history).await?).await.context("accounts")?;
    store.load_rooms(history.rooms()).await.context("rooms")?;
    let mut batch = history.batch(BATCH);
    while !batch.0.is_empty() {
        let (messages, uploads) = batch;
        let write = async {
            store.load_uploads(&uploads).await?;
            store.load_messages(&messages).await
        };
        // While the database writes, the next batch is made.
        let make = world::compute(move || {
            let next = history.batch(BATCH);
            (history, next)
        });
        let (written, made) = futures::join!(write, make);
        written.context("messages")?;
        (history, batch) = made.context("the generator stopped")?;
    }
    let refused = store.finish_load(&sizes.mark()).await?;
    Ok(done(false, refused))
}

/// Hashing is slow on purpose: as many at once as there are cores.
async fn accounts(history: &History) -> anyhow::Result<Vec<SeedAccount>> {
    let at = history.began();
    let seed = history.sizes().seed;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let accounts: Result<Vec<SeedAccount>, StoreError> = stream::iter(history.people().iter().cloned().enumerate())
        .map(|(index, person)| async move {
            let mut salt = [0; 16];
            chance::Chance::new(seed, "salt", index as u64).fill(&mut salt);
            let hash = password::hash(PASSWORD.to_owned(), salt).await;
            let password_hash = hash.ok_or_else(|| StoreError::Refused("no memory to hash passwords in".into()))?;
            let new = NewAccount { handle: person.handle, display: person.display, password_hash, at };
            Ok(SeedAccount { id: i64::try_from(index + 1).unwrap_or(i64::MAX), new })
        })
        .buffered(cores)
        .try_collect()
        .await;
    accounts.context("accounts")
}
