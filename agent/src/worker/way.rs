//! How a task gets newer keys of the store, when those that came with it end in the midst of a copy.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use ocopea_protocol::{
    bus::AgentBus,
    envelope::{open, seal},
    identity::Instance,
    image::StoreKeys,
    message::{Answer, Request},
    seams::Seams,
    task::Claimed,
};
use ocopea_repository::backend::s3::GivesKeys;

/// How long a coordinator that can't answer now is asked again. A lease is over by then.
const WHOLE: Duration = Duration::from_secs(20);
/// Between two of these questions.
const PAUSE: Duration = Duration::from_secs(1);

/// The coordinator, asked for one attempt.
pub(super) struct Way {
    pub(super) bus: Arc<dyn AgentBus>,
    pub(super) instance: Arc<Instance>,
    pub(super) claimed: Claimed,
    /// How long one answer may take.
    pub(super) patience: Duration,
    pub(super) seams: Seams,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Way({})", self.claimed.task)
    }
}

impl Way {
    /// The error is for good; the one within may pass.
    async fn once(&self, request: &Request) -> Result<Result<StoreKeys, String>, String> {
        let whole = |error: &dyn fmt::Display| format!("the coordinator can't be asked for newer keys: {error}");
        let patience_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX).max(50);
        let bytes = seal(request, "").map_err(|error| whole(&error))?;
        let answer = match self.bus.request(bytes, patience_ms).await {
            Ok(answer) => open::<Answer>(&answer).map_err(|error| whole(&error))?.message,
            Err(error) => return Ok(Err(whole(&error))),
        };
        match answer {
            Answer::StoreKeys { sealed } => {
                self.instance.open_store_keys(&self.claimed, &sealed).map(Ok).map_err(|error| whole(&error))
            }
            Answer::Refused { why } | Answer::Ended { why } => {
                Err(format!("the coordinator gives no newer keys: {why:.300}"))
            }
            Answer::TryLater { why } => Ok(Err(format!("the coordinator gives no newer keys now: {why:.300}"))),
            // The heartbeat signs in again, where that is called for.
            Answer::SignIn => Ok(Err("the coordinator wants this agent to sign in first".to_owned())),
            _ => Err("the coordinator answers something else than keys".to_owned()),
        }
    }
}

#[async_trait]
impl GivesKeys for Way {
    async fn keys(&self, refused: Option<&str>) -> Result<StoreKeys, String> {
        let request = Request::StoreKeys { claimed: self.claimed, refused: refused.map(str::to_owned) };
        let begun = self.seams.clock.monotonic();
        loop {
            let why = match self.once(&request).await? {
                Ok(keys) => return Ok(keys),
                Err(why) => why,
            };
            if self.seams.clock.monotonic().saturating_sub(begun) >= WHOLE {
                return Err(why);
            }
            self.seams.clock.sleep(self.seams.jittered(PAUSE)).await;
        }
    }
}
