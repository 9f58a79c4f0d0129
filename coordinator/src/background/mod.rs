//! Loops: the relay of hints, the reaper of leases, the runner of the coordinator's own tasks.

mod own;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ocopea_catalog_db::CatalogError;
use ocopea_protocol::{envelope, failure::TaskFailure, message::TaskHint, task::TaskKind, time::Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Coordinator, engine, serve::LEASE};

/// How often each loop looks without being rung.
const POLL: Duration = Duration::from_millis(1000);
/// How often leases are looked through.
const REAP: Duration = Duration::from_secs(2);
/// How often pins of running operations are renewed.
const RENEW: Duration = Duration::from_secs(300);
/// Hints that are read at a time.
const OUTBOX_PAGE: u64 = 256;
/// What the wall clock may differ from the monotonic one between two looks without having been set, in milliseconds.
const CLOCK_SET: u64 = 1500;

pub(crate) fn start(coordinator: &Arc<Coordinator>, stop: &CancellationToken) {
    let spawner = coordinator.seams.spawner.clone();
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("relay", Box::pin(async move { one.relay(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("reaper", Box::pin(async move { one.reap(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("runner", Box::pin(async move { one.run_own(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("pins", Box::pin(async move { one.renew_pins(&token).await }));
}

impl Coordinator {
    /// Waits until something was committed since `seen`, or for a while; `false` when it is time to stop.
    async fn rung(&self, seen: &mut watch::Receiver<u64>, stop: &CancellationToken, at_most: Duration) -> bool {
        tokio::select! {
            () = stop.cancelled() => false,
            // The sender lives as long as this coordinator.
            _ = seen.changed() => true,
            () = self.seams.clock.sleep(at_most) => true,
        }
    }

    /// Publishes hints. A crash between publishing and forgetting publishes twice, which is harmless.
    async fn relay(&self, stop: &CancellationToken) {
        let mut seen = self.version.subscribe();
        loop {
            if let Err(error) = self.relay_once().await {
                tracing::error!(%error, "hints could not be relayed");
            }
            if !self.rung(&mut seen, stop, POLL).await {
                return;
            }
        }
    }

    /// What a site doesn't take waits, and holds up no other site's.
    async fn relay_once(&self) -> Result<(), CatalogError> {
        let mut blocked = BTreeSet::new();
        let mut after = None;
        loop {
            let rows = self.catalog.outbox(after, OUTBOX_PAGE).await?;
            for row in &rows {
                if blocked.contains(&row.site) {
                    continue;
                }
                let kind = serde_json::from_value::<TaskKind>(serde_json::Value::from(row.kind.clone()));
                let sealed = kind.map_err(|error| error.to_string()).and_then(|kind| {
                    let hint = TaskHint { task: row.task, kind, least_version: envelope::PROTOCOL_VERSION };
                    envelope::seal(&hint, "").map_err(|error| error.to_string())
                });
                match sealed {
                    Ok(sealed) => match self.bus.publish(row.site, sealed).await {
                        Ok(()) => self.catalog.published(row.id).await?,
                        Err(error) => {
                            tracing::debug!(%error, site.id = %row.site, "hints wait for the site");
                            blocked.insert(row.site);
                        }
                    },
                    Err(error) => {
                        // The task itself is found by a poll, where anybody can do it.
                        tracing::error!(%error, task.id = %row.task, "a hint can't be written and is dropped");
                        self.catalog.published(row.id).await?;
                    }
                }
            }
            match rows.last() {
                Some(last) if rows.len() as u64 == OUTBOX_PAGE => after = Some(last.id),
                _ => return Ok(()),
            }
        }
    }

    /// Gives tasks back whose lease ran out.
    async fn reap(&self, stop: &CancellationToken) {
        let mut before = (self.seams.clock.now(), self.seams.clock.monotonic());
        loop {
            let moment = (self.seams.clock.now(), self.seams.clock.monotonic());
            if let Err(error) = self.reap_once(before, moment).await {
                tracing::error!(%error, "leases could not be looked through");
            } else {
                before = moment;
            }
            if !self.seams.sleep_unless(stop, REAP).await {
                return;
            }
        }
    }

    /// Leases stand in the catalog by the wall clock. When that one was set, all that are held begin anew: nobody
    /// loses a task because of it, and no dead one's task waits for hours.
    async fn reap_once(
        &self,
        before: (Timestamp, Duration),
        (now, monotonic): (Timestamp, Duration),
    ) -> Result<(), CatalogError> {
        let passed = i64::try_from(monotonic.saturating_sub(before.1).as_millis()).unwrap_or(i64::MAX);
        let jump = now.0.saturating_sub(before.0.0).saturating_sub(passed);
        if jump.unsigned_abs() > CLOCK_SET {
            tracing::warn!(by_ms = jump, "the clock was set: leases begin anew");
            self.catalog.renew_leases(now.plus(LEASE)).await?;
        }
        for task in self.catalog.expired_tasks(now).await? {
            if let Err(error) = self.reap_one(&task, now).await {
                tracing::error!(%error, task.id = %task.id, "a lost task could not be given back");
            }
        }
        for task in self.catalog.tasks_of_removed_sites().await? {
            if let Err(error) = self.abandon(&task).await {
                tracing::error!(%error, task.id = %task.id, "a task of a removed site could not be ended");
            }
        }
        Ok(())
    }

    /// What only a removed site could do fails: nobody waits for it.
    async fn abandon(&self, task: &ocopea_catalog_db::tasks::Task) -> Result<(), CatalogError> {
        let failure =
            TaskFailure::permanent("site.removed", format!("can't finish {}", task.label), "its site was removed")
                .next("what it made at the site is still there: remove it by hand");
        let transaction = self.catalog.begin().await?;
        transaction.operation(task.operation).await?;
        if transaction.abandon(task, &failure).await? {
            engine::settle(&transaction, task.operation).await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(())
    }

    async fn reap_one(&self, seen: &ocopea_catalog_db::tasks::Task, now: Timestamp) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin().await?;
        let still = transaction.task(seen.id).await?.filter(|task| {
            task.state == ocopea_catalog_db::model::TaskState::Claimed
                && task.attempt == seen.attempt
                && task.lease_until.is_some_and(|until| until < now)
        });
        if let Some(task) = still {
            tracing::warn!(task.id = %task.id, label = task.label, task.attempt = task.attempt, "the lease ran out");
            self.give_back(&transaction, &task, "its agent was not heard of any more").await?;
            transaction.commit().await?;
            self.ring();
        }
        Ok(())
    }

    async fn renew_pins(&self, stop: &CancellationToken) {
        while self.seams.sleep_unless(stop, RENEW).await {
            let open = match self.catalog.open_operations().await {
                Ok(open) => open,
                Err(error) => {
                    tracing::error!(%error, "running operations could not be listed");
                    continue;
                }
            };
            for operation in open.iter().filter(|o| matches!(o.kind.as_str(), "save" | "restore")) {
                if let Err(error) = self.repository.read().await.renew(operation.id).await {
                    tracing::warn!(%error, operation.id = %operation.id, "a pin could not be renewed");
                }
            }
        }
    }
}
