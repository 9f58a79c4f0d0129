//! Whose word counts: instances of agents, as they signed in for their sites.
//!
//! An instance belongs to one site and holds tasks under its own id, so whoever speaks for an attempt must come over that
//! site's way of the bus. What the catalog says of an instance is remembered for a few seconds: holders ask many times a
//! second. Each poll of an instance is counted by it and carries a random mark: two polls of one turn with different marks,
//! or polls far behind, come from two processes that believe to be one, and then neither counts.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ocopea_catalog_db::{CatalogError, agents::SignedIn};
use ocopea_protocol::{
    identity::{PublicKey, SignIn},
    ids::{InstanceId, SiteId},
    message::Answer,
};

use crate::{Coordinator, serve::hint_of};

/// How long the catalog's word is remembered.
const FRESH: Duration = Duration::from_secs(5);
/// How often the catalog is told that an instance was heard of.
const SEEN: Duration = Duration::from_secs(30);
/// Instances that are remembered at most.
const MOST: usize = 20_000;
/// How many turns a late poll may lie behind.
const BEHIND: u64 = 20;

/// What is remembered of an instance.
struct Known {
    site: SiteId,
    key: PublicKey,
    ended: Option<String>,
    looked: Duration,
    told: Option<Duration>,
    turn: u64,
    mark: u64,
}

/// What is remembered of all.
#[derive(Default)]
pub(crate) struct Agents(Mutex<HashMap<InstanceId, Known>>);

impl Agents {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<InstanceId, Known>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Coordinator {
    /// The key of a site's instance whose word counts; else what it is answered.
    pub(crate) async fn agent(
        &self,
        site: SiteId,
        instance: InstanceId,
    ) -> Result<Result<PublicKey, Answer>, CatalogError> {
        let now = self.seams.clock.monotonic();
        let answer = |known: &Known| match &known.ended {
            _ if known.site != site => Err(Answer::SignIn),
            Some(why) => Err(Answer::Ended { why: why.clone() }),
            None => Ok(known.key),
        };
        let remembered = self.agents.with(|known| {
            let known = known.get(&instance).filter(|known| now.saturating_sub(known.looked) < FRESH)?;
            Some(answer(known))
        });
        if let Some(answer) = remembered {
            return Ok(answer);
        }
        let Some(found) = self.catalog.instance(site, instance).await? else { return Ok(Err(Answer::SignIn)) };
        Ok(self.agents.with(|known| {
            if known.len() >= MOST {
                known.retain(|_, known| now.saturating_sub(known.looked) < FRESH);
            }
            let entry = known.entry(instance).or_insert_with(|| Known {
                site,
                key: found.key,
                ended: None,
                looked: now,
                told: None,
                turn: 0,
                mark: 0,
            });
            (entry.site, entry.key, entry.ended, entry.looked) = (found.site, found.key, found.ended, now);
            answer(entry)
        }))
    }

    pub(crate) async fn sign_in(&self, site: SiteId, sign_in: &SignIn) -> Result<Answer, CatalogError> {
        let signed_in = self.catalog.sign_in_instance(site, sign_in).await?;
        self.agents.with(|known| known.remove(&sign_in.instance));
        match signed_in {
            SignedIn::Recorded => Ok(Answer::Recorded),
            SignedIn::Refused(why) => {
                tracing::warn!(site.id = %site, instance = %sign_in.instance, why, "an agent was not signed in");
                Ok(Answer::Ended { why })
            }
        }
    }

    /// A site was removed: nothing of its agents is remembered.
    pub fn forget_agents(&self, site: SiteId) {
        self.agents.with(|known| known.retain(|_, known| known.site != site));
    }

    pub(crate) async fn poll(
        &self,
        site: SiteId,
        instance: InstanceId,
        most: u32,
        (turn, mark): (u64, u64),
    ) -> Result<Answer, CatalogError> {
        if let Err(answer) = self.agent(site, instance).await? {
            return Ok(answer);
        }
        let now = self.seams.clock.monotonic();
        let (is_clone, tell) = self.agents.with(|known| {
            let Some(known) = known.get_mut(&instance) else { return (false, false) };
            let other = turn == known.turn && known.mark != 0 && mark != known.mark;
            if turn > known.turn {
                (known.turn, known.mark) = (turn, mark);
            }
            let tell = known.told.is_none_or(|told| now.saturating_sub(told) >= SEEN);
            if tell {
                known.told = Some(now);
            }
            (other || turn.saturating_add(BEHIND) < known.turn, tell)
        });
        if is_clone {
            tracing::error!(site.id = %site, instance = %instance, "two processes speak as one agent: neither counts");
            self.catalog.instance_cloned(site, instance).await?;
            self.agents.with(|known| known.remove(&instance));
            return self.agent(site, instance).await.map(|answer| answer.err().unwrap_or(Answer::SignIn));
        }
        if tell {
            self.catalog.instance_seen(instance).await?;
        }
        let ready = self.catalog.ready_tasks(Some(site), u64::from(most)).await?;
        Ok(Answer::Tasks(ready.iter().filter_map(hint_of).collect()))
    }
}
