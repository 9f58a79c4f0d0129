//! Create-if-absent on a store that has no such thing: agreement by plain writes and listings.
//!
//! Who wants to create `NAME` writes its bytes to `claims/NAME/bytes/ID` and then takes part in rounds, in each of
//! which it first says for whom it is and then what it has seen (commit and adopt, as Gafni describes it):
//!
//! 1. it writes `ROUND/1/ID-FOR` and lists: it is *sure* where all say the same;
//! 2. it writes `ROUND/2/ID-FOR-sure` or `…-unsure` and lists: where all are sure, it is decided; where one is, it goes
//!    into the next round for that one; else for the lowest.
//!
//! Writing comes before listing, so of two that go on at the same time one sees the other: never are two sure of
//! different ones, and what was decided once is found by everybody who comes later. This needs nothing but that a
//! listing shows what was written before it; no clock is asked. The one that was decided for writes `NAME`. Whoever
//! finds `NAME` there is too late; claims are removed afterwards.
//!
//! What it can't do: a process that is stopped for longer than [`STILL`] between the decision and its write may write
//! `NAME` once more after others have deleted it.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;

use super::{
    calls::{Calls, Failed},
    fault::Fault,
};
use crate::{
    backend::Put,
    error::{Error, Result, Trouble},
};

/// Where claims lie.
pub(crate) const CLAIMS: &str = "claims/";
/// Rounds until somebody gives up.
const ROUNDS: u32 = 30;
/// How long one that lost waits for the winner's write before it is taken for dead and its bytes are written for it.
const STILL: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);
/// Longest object that can be made in this way.
const LONGEST: u64 = 64 << 20;

/// What one says in a round.
struct Said {
    whose: String,
    value: String,
    sure: bool,
}

impl Said {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.rsplit('/').next()?.split('-');
        let (whose, value) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        Some(Self { whose, value, sure: parts.next() == Some("sure") })
    }
}

impl Calls {
    /// Makes an object where there is none; see the module.
    pub(crate) async fn claim(&self, name: &str, bytes: &Bytes) -> Result<Put> {
        let at = |action: &'static str| move |failed: Failed| self.failed(action, name, failed);
        let me = self.common.seams.uuid().simple().to_string();
        let folder = format!("{CLAIMS}{name}/");
        if self.head(name).await.map_err(at("look at"))?.is_some() {
            return Ok(Put::Existed);
        }
        self.put(&format!("{folder}bytes/{me}"), bytes.clone().into()).await.map_err(at("write"))?;
        let mut value = me.clone();
        for round in 0..ROUNDS {
            let first = self.say(&folder, round, 1, &format!("{me}-{value}")).await?;
            // Claims are removed once the object is there: one's own would be missing then, or it is.
            if !first.iter().any(|said| said.whose == me) || self.head(name).await.map_err(at("look at"))?.is_some() {
                return self.too_late(name, &folder, &me).await;
            }
            let sure = first.iter().all(|said| said.value == value);
            let word = if sure { "sure" } else { "unsure" };
            let second = self.say(&folder, round, 2, &format!("{me}-{value}-{word}")).await?;
            if !second.iter().any(|said| said.whose == me) {
                return self.too_late(name, &folder, &me).await;
            }
            let sure: BTreeSet<&str> = second.iter().filter(|said| said.sure).map(|said| said.value.as_str()).collect();
            let chosen = sure.first().map(|chosen| (*chosen).to_owned());
            if let (Some(chosen), true) = (&chosen, second.iter().all(|said| said.sure)) {
                return self.decided(name, &folder, &me, chosen).await;
            }
            let lowest = first.iter().map(|said| said.value.clone()).min();
            value = chosen.or(lowest).unwrap_or(value);
            // Who waits for a random time is alone sooner or later.
            let span = POLL * (round + 1).min(10);
            self.common.seams.clock.sleep(self.common.seams.jittered(span)).await;
        }
        // What was said stays: others may have chosen it.
        let place = self.common.place.to_string();
        let reason = "too many processes want to make it at the same time".to_owned();
        Err(Error::Remote {
            action: "write",
            object: name.to_owned(),
            place,
            trouble: Trouble::Contended,
            reason,
            tries: ROUNDS,
        })
    }

    async fn say(&self, folder: &str, round: u32, phase: u32, what: &str) -> Result<Vec<Said>> {
        let prefix = format!("{folder}{round:04}/{phase}/");
        let name = format!("{prefix}{what}");
        self.put(&name, Bytes::new().into()).await.map_err(|failed| self.failed("write", &name, failed))?;
        Ok(self.list(&prefix).await?.iter().filter_map(|entry| Said::parse(&entry.name)).collect())
    }

    async fn decided(&self, name: &str, folder: &str, me: &str, chosen: &str) -> Result<Put> {
        let at = |action: &'static str| move |failed: Failed| self.failed(action, name, failed);
        if chosen != me {
            let mut waited = Duration::ZERO;
            while waited < STILL {
                if self.head(name).await.map_err(at("look at"))?.is_some() {
                    return self.too_late(name, folder, me).await;
                }
                self.common.seams.clock.sleep(POLL).await;
                waited += POLL;
            }
        }
        let bytes = match self.get(&format!("{folder}bytes/{chosen}"), LONGEST).await {
            Ok(Ok(bytes)) => bytes,
            // Removed: then the object was there.
            Err(Failed { fault: Fault::Missing, .. }) => return self.too_late(name, folder, me).await,
            Ok(Err(size)) => {
                return Err(Error::Limit { what: "the length of a claim".to_owned(), found: size, limit: LONGEST });
            }
            Err(failed) => return Err(self.failed("read", name, failed)),
        };
        self.put(name, bytes.into()).await.map_err(at("write"))?;
        self.forget(folder, None).await;
        Ok(if chosen == me { Put::Created } else { Put::Existed })
    }

    async fn too_late(&self, name: &str, folder: &str, me: &str) -> Result<Put> {
        self.forget(folder, Some(me)).await;
        tracing::debug!(name, "another process made it");
        Ok(Put::Existed)
    }

    /// Removes claims: one's own, or all once the object is there. What stays is removed by collections.
    pub(crate) async fn forget(&self, folder: &str, whose: Option<&str>) {
        let Ok(entries) = self.list(folder).await else { return };
        for entry in entries {
            let last = entry.name.rsplit('/').next().unwrap_or_default();
            if whose.is_none_or(|whose| last.starts_with(whose)) {
                // It is in nobody's way.
                let _ = self.delete(&entry.name).await;
            }
        }
    }
}
