//! A volume has no snapshots of its own. What is held is the knowledge who could write to it; with `--freeze`, those who
//! could, ended until the copy is done.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use ocopea_protocol::{failure::TaskFailure, seams::Seams};
use serde::{Deserialize, Serialize};

use super::reach;
use crate::data::{Held, LONGEST_FREEZE, Prepared, Subject, VolumeReach, frozen_too_long};

/// What a copy is told of the moment at which all data services were opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Pods that could write.
    pub(super) writers: Vec<String>,
    /// Those that could have been were ended.
    pub(super) frozen: bool,
}

impl Snapshot {
    pub(super) fn parse(subject: &Subject, text: &str) -> Result<Self, TaskFailure> {
        serde_json::from_str(text).map_err(|error| {
            TaskFailure::permanent("data.snapshot", format!("can't save volume {}", subject.name), error)
        })
    }
}

/// Ended writers. They run again when it is dropped.
struct Ended {
    volume: Arc<dyn VolumeReach>,
    seams: Seams,
    since: Duration,
    hold: Option<String>,
}

impl Ended {
    fn held(&self) -> Duration {
        self.seams.clock.monotonic().saturating_sub(self.since)
    }

    async fn let_go(mut self) -> Result<u64, TaskFailure> {
        let held = u64::try_from(self.held().as_millis()).unwrap_or(u64::MAX);
        self.volume.let_go(self.hold.as_deref()).await?;
        self.hold = None;
        Ok(held)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let volume = Arc::clone(&self.volume);
        let letting_go = async move {
            if let Err(failure) = volume.let_go(Some(&hold)).await {
                tracing::error!(claim = volume.claim(), %failure, "ended writers could not be started again");
            }
        };
        self.seams.spawner.spawn("volume.let-go", Box::pin(letting_go));
    }
}

pub(super) struct Ready {
    subject: Subject,
    volume: Arc<dyn VolumeReach>,
    ended: Option<Ended>,
}

/// Ending takes as long as pods take to end: it is done before the moment at which everything is opened.
pub(super) async fn prepare(subject: &Subject, freeze: bool) -> Result<Ready, TaskFailure> {
    let volume = reach(subject)?;
    let mut ended = None;
    let since = subject.seams.clock.monotonic();
    if freeze && let Some(hold) = volume.hold_writers().await? {
        ended = Some(Ended { volume: Arc::clone(&volume), seams: subject.seams.clone(), since, hold: Some(hold) });
    }
    Ok(Ready { subject: subject.clone(), volume, ended })
}

#[async_trait]
impl Prepared for Ready {
    async fn open(self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure> {
        let writers = self.volume.writers().await?;
        let snapshot = Snapshot { writers, frozen: self.ended.is_some() };
        Ok(Box::new(Open { subject: self.subject, volume: self.volume, snapshot, ended: self.ended }))
    }
}

struct Open {
    subject: Subject,
    volume: Arc<dyn VolumeReach>,
    snapshot: Snapshot,
    ended: Option<Ended>,
}

#[async_trait]
impl Held for Open {
    fn snapshot(&self) -> String {
        // A list of names and a flag: there is nothing in it that could not be written.
        serde_json::to_string(&self.snapshot).unwrap_or_default()
    }

    async fn check(&mut self) -> Result<(), TaskFailure> {
        let Some(ended) = &self.ended else { return Ok(()) };
        if ended.held() > LONGEST_FREEZE {
            return Err(frozen_too_long(&self.subject.name));
        }
        // An API server that doesn't answer for a moment says nothing about writers; the copy's end asks once more.
        let writers = self.volume.writers().await.unwrap_or_default();
        if writers.is_empty() {
            return Ok(());
        }
        let what = format!("can't hold the writers of volume {}", self.subject.name);
        let cause = format!("somebody started them again: {} can write to it", writers.join(", "));
        Err(TaskFailure::retryable("save.freeze-lost", what, cause)
            .next("pause what scales them (GitOps, an operator), or save without --freeze"))
    }

    async fn release(self: Box<Self>) -> Result<u64, TaskFailure> {
        match self.ended {
            Some(ended) => ended.let_go().await,
            None => Ok(0),
        }
    }
}
