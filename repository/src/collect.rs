//! Collection: giving back the space of what nothing uses any more, beside running saves.
//!
//! Decided from refs and pins alone, by the store's own clock. Two passes: what no ref reaches is *condemned*
//! (`condemned/EPOCH`); after the grace time, what is still unreached, still unchanged, and condemned before every
//! running operation began, is deleted. Who needs a condemned blob stores it again, which renews its time.
//!
//! Just before it deletes, a collection says so (`condemned/EPOCH.deleting`) and only then reads pins and refs; a
//! commit creates its ref and only then looks for such objects. So at least one sees the other: the collection keeps
//! the blob, or the commit waits, finds out whether it is gone, and takes its ref back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use ocopea_protocol::names::Digest;
use serde::{Deserialize, Serialize};

use crate::{
    CollectOptions, CollectReport, Error, Repository, Result,
    backend::{Deletion, Entry},
    repository::{Pin, RESERVE, pin_objects, reachable, reachable_from_record, read_pins},
    store::{blob_digest, blob_name, small},
};

/// Behind the name of an epoch whose blobs are being deleted.
pub(crate) const DELETING: &str = ".deleting";
const CLOCK: &str = "clock";
/// Most blobs of one list; the next collection takes the rest.
const MOST_CONDEMNED: usize = 200_000;
/// Most blobs of one list where there is no room but the reserve: two of them and what else is written fit into it.
const MOST_CONDEMNED_IF_FULL: usize = 1000;

/// `condemned/EPOCH`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Condemned {
    version: u32,
    pub(crate) blobs: Vec<CondemnedBlob>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CondemnedBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// The store's time of it: another one tells that it was stored again.
    pub(crate) modified: i64,
}

/// What is known at one moment.
struct Moment {
    /// The store's clock.
    now: i64,
    grace: i64,
    /// Pins that count.
    pins: Vec<Pin>,
}

impl CollectReport {
    /// What became of a blob; `None`: it may not be deleted.
    fn count(&mut self, blob: &CondemnedBlob, deletion: Option<Deletion>) {
        match deletion {
            Some(Deletion::Hides) => {
                self.hidden += 1;
                self.hidden_bytes += blob.size;
            }
            Some(_) => {
                self.deleted += 1;
                self.deleted_bytes += blob.size;
            }
            None => {
                if self.undeletable == 0 {
                    self.kept.push("the store's keys may not delete all that nothing uses".to_owned());
                }
                self.undeletable += 1;
            }
        }
    }
}

impl Repository {
    /// Deletes what nothing uses any more.
    pub async fn collect(&self, options: &CollectOptions) -> Result<CollectReport> {
        let _one = self.inner.collecting.lock().await;
        let mut report = CollectReport::default();
        self.pass(options, &mut report).await?;
        if options.wait && report.condemned > 0 {
            // The store's clock may be coarser than ours.
            if !self.store().seams.planted("no-grace") {
                self.store().seams.clock.sleep(options.grace + Duration::from_millis(10)).await;
            }
            let CollectReport { deleted, deleted_bytes, hidden, hidden_bytes, .. } = report;
            report = CollectReport { deleted, deleted_bytes, hidden, hidden_bytes, ..CollectReport::default() };
            self.pass(options, &mut report).await?;
        }
        self.restore_reserve().await?;
        Ok(report)
    }

    async fn pass(&self, options: &CollectOptions, report: &mut CollectReport) -> Result<()> {
        let store = self.store();
        let moment = self.moment(options).await?;
        self.tidy(&moment).await?;
        let mut waiting: HashMap<Digest, i64> = HashMap::new();
        for entry in store.backend.list("condemned/").await? {
            let epoch = entry.name.trim_end_matches(DELETING).to_owned();
            let begun = entry.name.ends_with(DELETING);
            // The epoch goes first when all of it was done. What a collection that was killed then leaves would only
            // make commits wait.
            if begun && store.backend.head(&epoch).await?.is_none() {
                self.end_list(&entry.name).await?;
                continue;
            }
            let list = match store.get_small::<Condemned>(&entry.name).await {
                Ok(list) => list,
                Err(Error::Missing { .. }) => continue,
                // Nothing is deleted by a list that can't be read; what it named is condemned anew.
                Err(Error::Damaged { .. }) => {
                    self.end_list(&entry.name).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if (begun || entry.modified + moment.grace <= moment.now)
                && self.sweep(&epoch, &entry, &list, options, report).await?
            {
                continue;
            }
            report.condemned += list.blobs.len() as u64;
            report.condemned_bytes += list.blobs.iter().map(|blob| blob.size).sum::<u64>();
            waiting.extend(list.blobs.into_iter().map(|blob| (blob.digest, blob.modified)));
        }
        self.mark(&moment, &waiting, report).await
    }

    async fn moment(&self, options: &CollectOptions) -> Result<Moment> {
        let store = self.store();
        self.replace_even_if_full(CLOCK, small(&Condemned { version: 1, blobs: vec![] })?.to_vec()).await?;
        let clock = store.backend.head(CLOCK).await?.ok_or_else(|| Error::Missing { object: CLOCK.to_owned() })?;
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 4);
        let (now, expiry) = (clock.modified, millis(options.pin_expiry));
        let mut pins = Vec::new();
        for pin in read_pins(store).await? {
            if pin.renewed.saturating_add(expiry) >= now {
                pins.push(pin);
                continue;
            }
            for object in pin_objects(&pin) {
                store.forget(&object).await?;
            }
        }
        if store.seams.planted("pins-ignored") {
            pins.clear();
        }
        let grace = if store.seams.planted("no-grace") { i64::MIN / 4 } else { millis(options.grace) };
        Ok(Moment { now, grace, pins })
    }

    /// Removes what dead writers left outside of blobs.
    async fn tidy(&self, moment: &Moment) -> Result<()> {
        let store = self.store();
        let oldest = moment.pins.iter().map(|pin| pin.begun).min().unwrap_or(i64::MAX);
        let before = (moment.now - moment.grace + 1).min(oldest);
        store.backend.discard_unfinished(before).await?;
        for entry in store.backend.list("staging/").await? {
            if entry.modified < before {
                store.forget(&entry.name).await?;
            }
        }
        self.tidy_notes(moment, before).await
    }

    /// Removes notes of images that are gone: whoever deleted one may have been killed before its notes.
    async fn tidy_notes(&self, moment: &Moment, before: i64) -> Result<()> {
        let store = self.store();
        let notes = store.backend.list("notes/").await?;
        if notes.is_empty() {
            return Ok(());
        }
        // Notes first: an image has its ref before its first note.
        let mut records: BTreeSet<String> = self.images().await?.iter().map(|image| image.record.hex()).collect();
        records.extend(moment.pins.iter().flat_map(|pin| pin.records.iter().flatten()).map(Digest::hex));
        for entry in notes {
            let record = entry.name.split('/').nth(1).unwrap_or_default();
            if entry.modified < before && !records.contains(record) {
                store.forget(&entry.name).await?;
            }
        }
        Ok(())
    }

    /// What refs and pins reach.
    async fn live(&self, pins: &[Pin]) -> Result<BTreeMap<Digest, u64>> {
        let mut live = BTreeMap::new();
        for reference in self.images().await? {
            let blobs = reachable(self.store(), &reference).await.map_err(|error| match error {
                Error::Missing { object } | Error::Damaged { object, .. } => Error::Damaged {
                    object: format!("image {} ({object})", reference.image),
                    why: "what it uses can't be told, so nothing was deleted; delete the image or mend it".to_owned(),
                },
                other => other,
            })?;
            live.extend(blobs);
        }
        let pinned: BTreeSet<Digest> = pins.iter().flat_map(|pin| pin.records.iter().flatten()).copied().collect();
        for record in pinned {
            match reachable_from_record(self, &record).await {
                Ok(blobs) => live.extend(blobs),
                // Gone already: its ref was deleted before it was pinned.
                Err(error) if error.is_breakage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(live)
    }

    /// Deletes what an epoch condemned and nothing uses; false when it has to wait.
    async fn sweep(
        &self,
        epoch: &str,
        entry: &Entry,
        list: &Condemned,
        options: &CollectOptions,
        report: &mut CollectReport,
    ) -> Result<bool> {
        let store = self.store();
        if store.backend.abilities().deletion == Deletion::Refused {
            // Nothing is announced that won't be done: commits would wait for it.
            report.undeletable += list.blobs.len() as u64;
            report.kept.push(format!("the store's keys may not delete: {} blobs of {epoch} stay", list.blobs.len()));
            return Ok(false);
        }
        let deleting = format!("{epoch}{DELETING}");
        let condemned_at = store.backend.head(epoch).await?.map_or(entry.modified, |entry| entry.modified);
        let early = |pins: &[Pin]| {
            let pin = pins.iter().find(|pin| pin.begun <= condemned_at || pin.records.is_none());
            pin.map(|pin| format!("operation {} is running since before {epoch}", pin.operation))
        };
        if let Some(why) = early(&self.moment(options).await?.pins) {
            report.kept.push(why);
            return Ok(false);
        }
        let mut rest = list.blobs.as_slice();
        while !rest.is_empty() {
            // In one go, but on a store that has no room for so long a list.
            let now = self.condemn(&deleting, rest).await?;
            let (now, later) = rest.split_at(now);
            rest = later;
            // Another collection may have taken this one for dead and ended its epoch.
            if store.backend.head(epoch).await?.is_none() {
                self.end_list(&deleting).await?;
                return Ok(true);
            }
            // Pins first: an operation that ended in between has its ref by now.
            let pins = self.moment(options).await?.pins;
            if let Some(why) = early(&pins) {
                self.end_list(&deleting).await?;
                report.kept.push(why);
                return Ok(false);
            }
            let live = match self.live(&pins).await {
                Ok(live) => live,
                Err(error) => {
                    self.end_list(&deleting).await?;
                    return Err(error);
                }
            };
            let unlooked = store.seams.planted("refs-not-looked-at-again");
            for blob in now.iter().filter(|blob| unlooked || !live.contains_key(&blob.digest)) {
                let name = blob_name(&blob.digest);
                let unlooked = store.seams.planted("stored-again-unseen");
                let there = store.backend.head(&name).await?;
                let unchanged = there.is_some_and(|entry| unlooked || entry.modified == blob.modified);
                // As above.
                if unchanged && store.backend.head(&deleting).await?.is_some() {
                    let gone = store.forget(&name).await?;
                    report.count(blob, gone.then(|| store.backend.abilities().deletion));
                }
            }
        }
        self.end_list(epoch).await?;
        self.end_list(&deleting).await?;
        Ok(true)
    }

    /// Ends a list of condemned blobs. One that can't be removed is emptied: then nobody waits for it.
    async fn end_list(&self, object: &str) -> Result<()> {
        if !self.store().forget(object).await? {
            self.store().replace_small(object, &Condemned { version: 1, blobs: vec![] }).await?;
        }
        Ok(())
    }

    /// Writes a list of the first of these blobs: of as many as there is room for. Answers for how many these are.
    async fn condemn(&self, object: &str, blobs: &[CondemnedBlob]) -> Result<usize> {
        let mut count = blobs.len().min(MOST_CONDEMNED);
        loop {
            let list = Condemned { version: 1, blobs: blobs.get(..count).unwrap_or_default().to_vec() };
            match self.replace_even_if_full(object, small(&list)?.to_vec()).await {
                Err(Error::Full { .. }) if count > MOST_CONDEMNED_IF_FULL => count = MOST_CONDEMNED_IF_FULL,
                other => return other.map(|()| count),
            }
        }
    }

    /// Condemns what nothing reaches.
    async fn mark(&self, moment: &Moment, waiting: &HashMap<Digest, i64>, report: &mut CollectReport) -> Result<()> {
        let store = self.store();
        // Blobs first: what is stored and named after this listing isn't in it.
        let blobs = store.backend.list("blobs/").await?;
        let live = self.live(&moment.pins).await?;
        let mut condemned: Vec<CondemnedBlob> = Vec::new();
        for entry in blobs {
            let Some(digest) = blob_digest(&entry.name) else { continue };
            if live.contains_key(&digest) {
                report.live += 1;
                report.live_bytes += entry.size;
            } else if waiting.get(&digest) != Some(&entry.modified) {
                condemned.push(CondemnedBlob { digest, size: entry.size, modified: entry.modified });
            }
        }
        if condemned.is_empty() {
            return Ok(());
        }
        report.condemned += condemned.len() as u64;
        report.condemned_bytes += condemned.iter().map(|blob| blob.size).sum::<u64>();
        // Where not all can be listed, those come first that give the most space back.
        condemned.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        let epoch = format!("condemned/{}", store.seams.uuid().hyphenated());
        self.condemn(&epoch, &condemned).await.map(drop)
    }

    async fn restore_reserve(&self) -> Result<()> {
        let store = self.store();
        if store.backend.head(RESERVE).await?.is_some() {
            return Ok(());
        }
        match store.backend.replace(RESERVE, vec![0u8; crate::repository::RESERVE_BYTES].into()).await {
            // Still full: the next collection tries again.
            Err(Error::Full { .. }) => Ok(()),
            other => other,
        }
    }
}
