//! Holding a data service's snapshot open while it is copied: prepare, open when all are prepared, hold, release.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ocopea_protocol::{
    failure::TaskFailure,
    inventory::DataFound,
    message::HolderOrder,
    task::{HolderState, Source, TaskOutput},
};
use tokio::sync::{Notify, watch};

use super::Task;
use crate::{application::Application, reach::reach_in};

/// How long all holders of a save may take to get prepared.
const PATIENCE: Duration = Duration::from_secs(120);

/// A holder's line to the coordinator: its state goes out with heartbeats, orders come back.
pub struct HolderCell {
    state: Mutex<Option<HolderState>>,
    /// Told when the state changes, so that a heartbeat goes out at once.
    pub changed: Notify,
    orders: watch::Sender<HolderOrder>,
}

impl Default for HolderCell {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), orders: watch::Sender::new(HolderOrder::Wait) }
    }
}

impl HolderCell {
    /// What the next heartbeat says.
    pub fn state(&self) -> Option<HolderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether an order is awaited eagerly: heartbeats then come in quick succession.
    pub fn is_eager(&self) -> bool {
        matches!(self.state(), Some(HolderState::Prepared))
    }

    /// What the coordinator said.
    pub fn order(&self, order: HolderOrder) {
        // Orders only go forward: a late "wait" must not call back an "open now".
        self.orders.send_if_modified(|now| {
            let forward = rank(order) > rank(*now);
            if forward {
                *now = order;
            }
            forward
        });
    }

    /// How far the holder is.
    pub fn set(&self, state: HolderState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        self.changed.notify_one();
    }

    /// Waits for this order, or one behind it.
    pub async fn ordered(&self, least: HolderOrder) {
        let mut orders = self.orders.subscribe();
        // The sender lives as long as this cell does.
        let _ = orders.wait_for(|order| rank(*order) >= rank(least)).await;
    }
}

fn rank(order: HolderOrder) -> u8 {
    match order {
        HolderOrder::Wait => 0,
        HolderOrder::OpenNow => 1,
        HolderOrder::Hold => 2,
        HolderOrder::Release => 3,
    }
}

impl Task {
    pub(super) async fn hold_snapshot(
        &self,
        source: &Source,
        data: &DataFound,
        epoch: u32,
    ) -> Result<TaskOutput, TaskFailure> {
        let what = || format!("can't hold a snapshot of {}", data.name);
        let application = Application::gather(&self.site.platform, source).await?;
        let located = application.locate(&data.name)?;
        let reached = reach_in(self, &source.namespace, located, epoch).await?;
        let prepared = reached.driver.prepare(&reached.subject, source.freeze).await?;
        self.holder.set(HolderState::Prepared);
        let seams = &self.site.seams;
        tokio::select! {
            () = self.stop.cancelled() => return Err(TaskFailure::cancelled(what())),
            () = seams.clock.sleep(PATIENCE) => {
                return Err(TaskFailure::retryable("save.barrier", what(), format!("the other data services were not prepared within {} s", PATIENCE.as_secs())));
            }
            () = self.holder.ordered(HolderOrder::OpenNow) => {}
        }
        let mut held = prepared.open().await?;
        self.holder.set(HolderState::Open { snapshot: held.snapshot(), at: seams.clock.now() });
        loop {
            tokio::select! {
                () = self.stop.cancelled() => {
                    held.release().await?;
                    return Err(TaskFailure::cancelled(what()));
                }
                () = self.holder.ordered(HolderOrder::Release) => break,
                () = seams.clock.sleep(Duration::from_secs(1)) => held.check().await?,
            }
        }
        let frozen_ms = held.release().await?;
        Ok(TaskOutput::SnapshotReleased { frozen_ms })
    }
}
