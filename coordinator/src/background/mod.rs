//! Loops. Each coordinator relays the hints of what it accepted and does tasks of the coordinators' own; the one that
//! leads ([`leader`]) also reaps leases, renews pins, tidies the broker and relays what others left.

mod broker;
pub(crate) mod leader;
mod own;
mod pins;
mod reaper;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ocopea_catalog_db::CatalogError;
use ocopea_protocol::{envelope, message::TaskHint, task::TaskKind};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Coordinator;

/// How often each loop looks without being rung.
const POLL: Duration = Duration::from_millis(1000);
/// Hints that are read at a time.
const OUTBOX_PAGE: u64 = 256;

pub(crate) fn start(coordinator: &Arc<Coordinator>, stop: &CancellationToken) {
    let spawner = coordinator.seams.spawner.clone();
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("leader", Box::pin(async move { one.lead(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("relay", Box::pin(async move { one.relay(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("reaper", Box::pin(async move { one.reap(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("runner", Box::pin(async move { one.run_own(&token).await }));
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn(
        "repositories",
        Box::pin(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = one.look_at_repositories() => {}
            }
        }),
    );
    let (one, token) = (Arc::clone(coordinator), stop.clone());
    spawner.spawn("pins", Box::pin(async move { one.renew_pins(&token).await }));
}

impl Coordinator {
    /// Waits until something was committed since `seen` (or who leads has changed), or for a while; `false` when it is time
    /// to stop.
    async fn rung<T>(&self, seen: &mut watch::Receiver<T>, stop: &CancellationToken, at_most: Duration) -> bool {
        tokio::select! {
            biased;
            () = stop.cancelled() => false,
            // The sender lives as long as this coordinator.
            _ = seen.changed() => true,
            () = self.seams.clock.sleep(at_most) => true,
        }
    }

    /// Publishes hints. A crash between publishing and forgetting publishes twice, which is harmless. A hint is published
    /// by the coordinator through which it was written, and after some seconds by the leader, too: twice at the most.
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
            let rows = self.catalog.own_outbox(after, OUTBOX_PAGE, self.leading().is_some()).await?;
            for row in &rows {
                if blocked.contains(&row.site) {
                    continue;
                }
                let kind = serde_json::from_value::<TaskKind>(serde_json::Value::from(row.kind.clone()));
                let sealed = kind.map_err(|error| error.to_string()).and_then(|kind| {
                    let hint = TaskHint { task: row.task, kind, least_version: envelope::PROTOCOL_VERSION };
                    envelope::seal(&hint, "").map_err(|error| error.to_string())
                });
                if self.seams.planted("hint-forgotten-first") {
                    self.catalog.published(row.id).await?;
                }
                match sealed {
                    Ok(sealed) => match self.bus.publish(row.site, sealed).await {
                        Ok(()) => {
                            self.measure(|metrics| metrics.hint(true));
                            self.catalog.published(row.id).await?;
                        }
                        Err(error) => {
                            self.measure(|metrics| metrics.hint(false));
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
}
