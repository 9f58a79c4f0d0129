//! Loops: the relay of hints, the reaper of leases, the runner of the coordinator's own tasks.

mod own;

use std::{sync::Arc, time::Duration};

use ocopea_catalog_db::CatalogError;
use ocopea_protocol::{envelope, message::TaskHint, task::TaskKind};
use tokio_util::sync::CancellationToken;

use crate::Coordinator;

/// How often each loop looks without being rung.
const POLL: Duration = Duration::from_millis(1000);
/// How often leases are looked through.
const REAP: Duration = Duration::from_secs(2);
/// How often pins of running operations are renewed.
const RENEW: Duration = Duration::from_secs(300);

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
    /// Waits until something was committed, or for a while; `false` when it is time to stop.
    async fn rung(&self, stop: &CancellationToken, at_most: Duration) -> bool {
        tokio::select! {
            () = stop.cancelled() => false,
            () = self.changed.notified() => true,
            () = self.seams.clock.sleep(at_most) => true,
        }
    }

    /// Publishes hints. A crash between publishing and forgetting publishes twice, which is harmless.
    async fn relay(&self, stop: &CancellationToken) {
        loop {
            if let Err(error) = self.relay_once().await {
                tracing::error!(%error, "hints could not be relayed");
            }
            if !self.rung(stop, POLL).await {
                return;
            }
        }
    }

    async fn relay_once(&self) -> Result<(), CatalogError> {
        for row in self.catalog.outbox(256).await? {
            let kind: TaskKind = serde_json::from_value(serde_json::Value::from(row.kind.clone()))?;
            let hint = TaskHint { task: row.task, kind, least_version: envelope::PROTOCOL_VERSION };
            match envelope::seal(&hint, "") {
                Ok(sealed) => match self.bus.publish(row.site, sealed).await {
                    Ok(()) => self.catalog.published(row.id).await?,
                    Err(error) => tracing::warn!(%error, site.id = %row.site, "a hint could not be published"),
                },
                Err(error) => tracing::error!(%error, "a hint can't be encoded"),
            }
        }
        Ok(())
    }

    /// Gives tasks back whose lease ran out.
    async fn reap(&self, stop: &CancellationToken) {
        loop {
            match self.catalog.expired_tasks().await {
                Ok(expired) => {
                    for task in expired {
                        if let Err(error) = self.reap_one(&task).await {
                            tracing::error!(%error, task.id = %task.id, "a lost task could not be given back");
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "leases could not be looked through"),
            }
            if !self.seams.sleep_unless(stop, REAP).await {
                return;
            }
        }
    }

    async fn reap_one(&self, seen: &ocopea_catalog_db::tasks::Task) -> Result<(), CatalogError> {
        let transaction = self.catalog.begin().await?;
        let now = self.seams.clock.now();
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
