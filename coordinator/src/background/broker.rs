//! Tells the broker of sites that were removed while it could not be told. The leader's; telling it twice is harmless.

use std::{sync::Arc, time::Duration};

use ocopea_catalog_db::{CatalogError, leader::Epoch};
use tokio_util::sync::CancellationToken;

use crate::{Coordinator, api::enrolment::SiteBroker};

/// How often removed sites are looked through.
const TIDY: Duration = Duration::from_secs(30);
/// How often one that doesn't lead sees whether it does.
const LOOK: Duration = Duration::from_secs(2);

impl Coordinator {
    /// Keeps the broker free of removed sites, until `stop`.
    pub fn keep_broker_tidy(self: &Arc<Self>, broker: Arc<dyn SiteBroker>, stop: &CancellationToken) {
        let (one, stop) = (Arc::clone(self), stop.clone());
        self.seams.spawner.spawn(
            "broker",
            Box::pin(async move {
                loop {
                    let pause = match one.leading() {
                        Some(epoch) => {
                            if let Err(error) = one.tidy_broker(&*broker, epoch).await {
                                tracing::warn!(%error, "removed sites could not be looked through");
                            }
                            TIDY
                        }
                        None => LOOK,
                    };
                    if !one.seams.sleep_unless(&stop, pause).await {
                        return;
                    }
                }
            }),
        );
    }

    async fn tidy_broker(&self, broker: &dyn SiteBroker, epoch: Epoch) -> Result<(), CatalogError> {
        for site in self.catalog.to_forget_at_broker().await? {
            if let Err(error) = broker.expel(site).await {
                tracing::warn!(%error, site.id = %site, "the broker still knows a removed site");
                continue;
            }
            let transaction = self.catalog.begin_leading(epoch).await?;
            transaction.forgotten_at_broker(site).await?;
            transaction.commit().await?;
        }
        Ok(())
    }
}
