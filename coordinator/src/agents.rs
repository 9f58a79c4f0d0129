//! Whose word counts: instances of agents, as they signed in for their sites.
//!
//! An instance belongs to one site and holds tasks under its own id, so whoever speaks for an attempt must come over that
//! site's way of the bus. What the catalog says of an instance is remembered for a few seconds: holders ask many times a
//! second. Each poll of an instance is counted by it and carries a random mark: two polls of one turn with different marks,
//! or polls far behind, come from two processes that believe to be one, and then neither counts. Where several coordinators
//! answer, each may hear only one of the two: so each writes down now and then what it heard last, and compares what
//! another wrote with what it heard itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ocopea_catalog_db::{
    CatalogError,
    agents::{AgentInstance, CLONED, SignedIn},
};
use ocopea_protocol::{
    identity::{PublicKey, SignIn},
    ids::{InstanceId, SiteId},
    message::Answer,
};

use crate::{Coordinator, serve::hint_of};

/// How long the catalog's word is remembered.
const FRESH: Duration = Duration::from_secs(5);
/// How often the catalog is told that an instance was heard of, where nobody else listens.
const SEEN: Duration = Duration::from_secs(30);
/// And where other coordinators compare.
const SEEN_BY_OTHERS: Duration = Duration::from_secs(5);
/// Instances that are remembered at most.
const MOST: usize = 20_000;
/// How many turns a late poll may lie behind.
const BEHIND: u64 = 20;
/// Polls of an instance that are remembered.
const POLLS: usize = 32;

/// What is remembered of an instance.
struct Known {
    site: SiteId,
    key: PublicKey,
    ended: Option<String>,
    looked: Duration,
    told: Option<Duration>,
    polls: Polls,
}

/// The polls that were heard last: turn and mark, in the order of turns.
#[derive(Default)]
struct Polls(VecDeque<(u64, u64)>);

impl Polls {
    /// Takes note of one; `false` when it can't be the same process's as the others.
    fn heard(&mut self, turn: u64, mark: u64) -> bool {
        let at = self.0.partition_point(|(known, _)| *known < turn);
        match self.0.get(at) {
            Some((known, other)) if *known == turn => return *other == mark,
            Some(_) if self.0.back().is_some_and(|(last, _)| turn.saturating_add(BEHIND) < *last) => return false,
            _ => self.0.insert(at, (turn, mark)),
        }
        if self.0.len() > POLLS {
            self.0.pop_front();
        }
        true
    }

    /// Takes note of one that another coordinator heard some time ago; `false` as above.
    fn told(&mut self, (turn, mark): (u64, u64)) -> bool {
        let old = self.0.front().is_some_and(|(first, _)| turn < *first);
        mark == 0 || old || self.heard(turn, mark)
    }

    fn last(&self) -> (u64, u64) {
        self.0.back().copied().unwrap_or_default()
    }
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
        let AgentInstance { id, site: own, key, ended, poll, .. } = found;
        let (answer, one) = self.agents.with(|known| {
            if known.len() >= MOST {
                known.retain(|_, known| now.saturating_sub(known.looked) < FRESH);
            }
            let entry = known.entry(id).or_insert_with(|| Known {
                site,
                key,
                ended: None,
                looked: now,
                told: None,
                polls: Polls::default(),
            });
            (entry.site, entry.key, entry.ended, entry.looked) = (own, key, ended, now);
            (answer(entry), entry.polls.told(poll))
        });
        if one || answer.is_err() {
            return Ok(answer);
        }
        self.both_lose_their_word(site, id).await?;
        Ok(Err(Answer::Ended { why: CLONED.to_owned() }))
    }

    /// Two processes speak as one agent.
    async fn both_lose_their_word(&self, site: SiteId, instance: InstanceId) -> Result<(), CatalogError> {
        tracing::error!(site.id = %site, instance = %instance, "two processes speak as one agent: neither counts");
        self.catalog.again(|| self.catalog.instance_cloned(site, instance)).await?;
        self.agents.with(|known| known.remove(&instance));
        Ok(())
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
        self.end_sessions(site);
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
        let often = if self.catalog.is_shared() { SEEN_BY_OTHERS } else { SEEN };
        let (one, tell) = self.agents.with(|known| {
            let Some(known) = known.get_mut(&instance) else { return (true, None) };
            let one = known.polls.heard(turn, mark);
            let tell = known.told.is_none_or(|told| now.saturating_sub(told) >= often);
            if tell {
                known.told = Some(now);
            }
            (one, tell.then(|| known.polls.last()))
        });
        if !one {
            self.both_lose_their_word(site, instance).await?;
            return self.agent(site, instance).await.map(|answer| answer.err().unwrap_or(Answer::SignIn));
        }
        if let Some(last) = tell {
            self.catalog.instance_seen(instance, last).await?;
        }
        let ready = self.catalog.ready_tasks(Some(site), u64::from(most)).await?;
        Ok(Answer::Tasks(ready.iter().filter_map(hint_of).collect()))
    }
}
