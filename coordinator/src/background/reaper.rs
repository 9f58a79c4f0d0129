//! Gives tasks back whose lease ran out, and ends those of removed sites. The leader's.

use std::time::Duration;

use ocopea_catalog_db::{CatalogError, leader::Epoch, model::TaskState, tasks::Task};
use ocopea_protocol::{failure::TaskFailure, time::Timestamp};
use tokio_util::sync::CancellationToken;

use crate::{Coordinator, engine, metrics::Metrics, serve::LEASE};

/// How often leases are looked through.
const REAP: Duration = Duration::from_secs(2);
/// What the clock of the catalog may differ from the monotonic one between two looks without having been set, in
/// milliseconds.
const CLOCK_SET: u64 = 1500;

/// One moment by the catalog's clock and by the monotonic one.
type Moment = (Timestamp, Duration);

/// By how many milliseconds the catalog's clock was set between two looks, if it was.
fn set_by((before, monotonic_before): Moment, (now, monotonic): Moment) -> Option<i64> {
    let passed = i64::try_from(monotonic.saturating_sub(monotonic_before).as_millis()).unwrap_or(i64::MAX);
    let jump = now.0.saturating_sub(before.0).saturating_sub(passed);
    (jump.unsigned_abs() > CLOCK_SET).then_some(jump)
}

impl Coordinator {
    pub(super) async fn reap(&self, stop: &CancellationToken) {
        let mut before = (self.seams.clock.now(), self.seams.clock.monotonic());
        let mut leadership = self.leadership.subscribe();
        loop {
            let moment = (self.seams.clock.now(), self.seams.clock.monotonic());
            let reaped = match self.leading() {
                Some(epoch) => self.reap_once(epoch, before, moment).await.map(|()| true),
                // Whoever leads sees to a clock that was set. Nobody may lead just now: it is not forgotten.
                None => Ok(set_by(before, moment).is_none()),
            };
            match reaped {
                Ok(true) => before = moment,
                Ok(false) => {}
                Err(CatalogError::Superseded) => tracing::info!("another coordinator looks through the leases now"),
                Err(error) => tracing::error!(%error, "leases could not be looked through"),
            }
            if !self.rung(&mut leadership, stop, REAP).await {
                return;
            }
        }
    }

    /// Leases stand in the catalog by the machine's wall clock, or by its server's. When that one was set, all that are
    /// held begin anew: nobody loses a task because of it, and no dead one's task waits for hours.
    async fn reap_once(&self, epoch: Epoch, before: Moment, moment: Moment) -> Result<(), CatalogError> {
        let (now, _) = moment;
        let jump = set_by(before, moment);
        // A lease that ends later than any that is given now was written before the clock was put back, unseen by this one.
        let set = jump.is_some() || self.catalog.is_leased_beyond(now.plus(2 * LEASE)).await?;
        if set && !self.seams.planted("clock-set-unseen") {
            tracing::warn!(by_ms = jump, "the clock was set: leases begin anew");
            let transaction = self.catalog.begin_leading(epoch).await?;
            transaction.renew_leases(now.plus(LEASE)).await?;
            transaction.commit().await?;
        }
        let early = self.seams.planted("lease-ends-early");
        let now = if early { now.plus(LEASE.mul_f64(0.9)) } else { now };
        for task in self.catalog.expired_tasks(now).await? {
            self.seams.point("leader", "reap", "found");
            match self.catalog.again(|| self.reap_one(epoch, &task, now)).await {
                Err(CatalogError::Superseded) => return Err(CatalogError::Superseded),
                Err(error) => tracing::error!(%error, task.id = %task.id, "a lost task could not be given back"),
                Ok(()) => {}
            }
        }
        for task in self.catalog.tasks_of_removed_sites().await? {
            match self.catalog.again(|| self.abandon(epoch, &task)).await {
                Err(CatalogError::Superseded) => return Err(CatalogError::Superseded),
                Err(error) => {
                    tracing::error!(%error, task.id = %task.id, "a task of a removed site could not be ended")
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// What only a removed site could do fails: nobody waits for it.
    async fn abandon(&self, epoch: Epoch, task: &Task) -> Result<(), CatalogError> {
        let failure =
            TaskFailure::permanent("site.removed", format!("can't finish {}", task.label), "its site was removed")
                .next("what it made at the site is still there: remove it by hand");
        let transaction = self.catalog.begin_leading(epoch).await?;
        if transaction.lock_if_free(task.operation).await? && transaction.abandon(task, &failure).await? {
            engine::settle(&transaction, task.operation).await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(())
    }

    async fn reap_one(&self, epoch: Epoch, seen: &Task, now: Timestamp) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin_leading(epoch).await?;
        self.seams.point("leader", "reap", "begun");
        // Somebody who changes it just now may be giving a sign of life.
        if !transaction.lock_if_free(seen.operation).await? {
            return Ok(());
        }
        let still = transaction.task(seen.id).await?.filter(|task| {
            task.state == TaskState::Claimed
                && task.attempt == seen.attempt
                && task.lease_until.is_some_and(|until| until < now)
        });
        if let Some(task) = still {
            tracing::warn!(task.id = %task.id, label = task.label, task.attempt = task.attempt, "the lease ran out");
            self.measure(Metrics::lease_lost);
            self.give_back(&transaction, &task, "its agent was not heard of any more").await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(())
    }
}
