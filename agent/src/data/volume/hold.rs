//! A volume has no snapshots of its own: what is held is the knowledge who could write to it.

use std::sync::Arc;

use async_trait::async_trait;
use ocopea_protocol::failure::TaskFailure;
use serde::{Deserialize, Serialize};

use super::reach;
use crate::data::{Held, Prepared, Subject, VolumeReach};

/// What a copy is told of the moment at which all data services were opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Pods that could write.
    pub(super) writers: Vec<String>,
    /// Writes were to be held.
    pub(super) freeze: bool,
}

impl Snapshot {
    pub(super) fn parse(subject: &Subject, text: &str) -> Result<Self, TaskFailure> {
        serde_json::from_str(text).map_err(|error| {
            TaskFailure::permanent("data.snapshot", format!("can't save volume {}", subject.name), error)
        })
    }
}

pub(super) struct Ready {
    volume: Arc<dyn VolumeReach>,
    freeze: bool,
}

pub(super) async fn prepare(subject: &Subject, freeze: bool) -> Result<Ready, TaskFailure> {
    Ok(Ready { volume: reach(subject)?, freeze })
}

#[async_trait]
impl Prepared for Ready {
    async fn open(self: Box<Self>) -> Result<Box<dyn Held>, TaskFailure> {
        let writers = self.volume.writers().await?;
        Ok(Box::new(Open { snapshot: Snapshot { writers, freeze: self.freeze } }))
    }
}

struct Open {
    snapshot: Snapshot,
}

#[async_trait]
impl Held for Open {
    fn snapshot(&self) -> String {
        // A list of names and a flag: there is nothing in it that could not be written.
        serde_json::to_string(&self.snapshot).unwrap_or_default()
    }

    async fn check(&mut self) -> Result<(), TaskFailure> {
        Ok(())
    }

    async fn release(self: Box<Self>) -> Result<u64, TaskFailure> {
        Ok(0)
    }
}
