//! Keeps the pins of running operations alive. The leader's; a renewal makes no pin where there is none, so that one that
//! comes too late has no effect.

use std::time::Duration;

use ocopea_catalog_db::{CatalogError, leader::Epoch};
use tokio_util::sync::CancellationToken;

use crate::Coordinator;

/// How often pins of running operations are renewed.
const RENEW: Duration = Duration::from_secs(300);

impl Coordinator {
    pub(super) async fn renew_pins(&self, stop: &CancellationToken) {
        while self.seams.sleep_unless(stop, RENEW).await {
            if let Some(epoch) = self.leading()
                && let Err(error) = self.renew_pins_once(epoch).await
            {
                tracing::error!(%error, "pins of running operations could not be renewed");
            }
        }
    }

    pub(super) async fn renew_pins_once(&self, epoch: Epoch) -> Result<(), CatalogError> {
        let open = self.catalog.open_operations().await?;
        for operation in open.iter().filter(|o| matches!(o.kind.as_str(), "save" | "restore")) {
            if self.leading() != Some(epoch) {
                return Ok(());
            }
            self.seams.point("leader", "pin", "found");
            let renewed = match self.repository(operation.repository).await {
                Ok(repository) => repository.renew(operation.id).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = renewed {
                tracing::warn!(error, operation.id = %operation.id, "a pin could not be renewed");
            }
        }
        Ok(())
    }
}
