//! Leads, or tries to: what only one coordinator may do is done by the one that leads.
//!
//! To add such a job: a loop that asks [`Coordinator::leading`] in every round, and that begins each of its transactions
//! with `begin_leading`. The first spares work; the second is what holds, for a coordinator that believes to lead may have
//! been frozen since it asked. What such a job does outside of the catalog must be harmless when two do it.

use std::time::Duration;

use ocopea_catalog_db::leader::Epoch;
use tokio_util::sync::CancellationToken;

use crate::Coordinator;

/// For how long a coordinator leads without saying so again.
const LEAD: Duration = Duration::from_secs(15);
/// How often it says so, and how often the others look whether they may.
const RENEW: Duration = Duration::from_secs(4);
/// The pause after the catalog could not be asked.
const AGAIN: Duration = Duration::from_secs(1);

/// That this coordinator leads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leading {
    epoch: Epoch,
    /// Until when, by its own monotonic clock: before it is over by anybody else's.
    until: Duration,
}

impl Coordinator {
    /// The epoch within which this coordinator leads now, if it does.
    pub fn leading(&self) -> Option<Epoch> {
        let leading = (*self.leadership.borrow())?;
        (self.seams.clock.monotonic() < leading.until).then_some(leading.epoch)
    }

    pub(super) async fn lead(&self, stop: &CancellationToken) {
        loop {
            let asked = self.seams.clock.monotonic();
            let pause = match self.catalog.again(|| self.catalog.lead(self.instance, LEAD)).await {
                Ok(epoch) => {
                    self.now_leads(epoch.map(|epoch| Leading { epoch, until: asked + LEAD * 3 / 4 }));
                    RENEW
                }
                Err(error) => {
                    tracing::warn!(%error, "can't ask the catalog who leads");
                    AGAIN
                }
            };
            if !self.seams.sleep_unless(stop, pause).await {
                break;
            }
        }
        // What its jobs are just doing doesn't count from here on; another one does it.
        self.leadership.send_replace(None);
        if let Err(error) = self.catalog.step_down(self.instance).await {
            tracing::warn!(%error, "the next leader waits until this one's time is over");
        }
    }

    fn now_leads(&self, leading: Option<Leading>) {
        let epoch = leading.map(|leading| leading.epoch);
        let before = self.leadership.send_replace(leading).map(|before| before.epoch);
        if before != epoch {
            tracing::info!(instance = %self.instance, epoch = epoch.map(|epoch| epoch.0), "who leads has changed");
        }
    }
}
