//! Listings that are whole, or an error: collections decide by them what nobody needs.
//!
//! Names are listed twice, in two ways: by the service's own tokens in its longest pages, and by the last name of the
//! page before in shorter ones. A page that gets lost is another one each time, so the two differ. What stands in one
//! only was written or deleted meanwhile; if it was there all the time, the listing is no good.

use std::collections::{BTreeMap, HashSet};

use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};

use super::{
    calls::{Calls, Failed, entry, fault},
    fault::Fault,
};
use crate::{
    backend::Entry,
    error::{Error, Result, Trouble},
};

/// What a service gives at most.
const LONG_PAGE: usize = 1000;
/// No divisor of the other, so that pages end elsewhere.
const SHORT_PAGE: usize = 617;
/// Names of one listing.
const MOST: usize = 20_000_000;
/// Pages without a name in a row.
const MOST_EMPTY: usize = 10;
/// Names that may differ between the two: what is written and deleted in the time of a listing.
const MOST_DIFFERENT: usize = 10_000;
/// How far the clocks of a service's machines may be apart, in milliseconds.
const CLOCKS: i64 = 5000;

fn lost(why: impl Into<String>) -> Fault {
    Fault::Trouble(Trouble::Listing, why.into())
}

impl Calls {
    /// Everything whose name starts with `prefix`, by name.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let began = self.common.seen.date.load(std::sync::atomic::Ordering::Relaxed);
        let whole = async {
            let first = self.by_tokens(prefix).await?;
            let second = self.by_names(prefix).await?;
            self.both(first, second, began).await
        };
        whole.await.map_err(|failed: Failed| self.failed("list", prefix, failed))
    }

    async fn page(
        &self,
        prefix: &str,
        size: usize,
        token: Option<&str>,
        after: Option<&str>,
    ) -> Result<PaginatedListResult, Failed> {
        let prefix = self.common.place.key(prefix);
        let after = after.map(|name| self.common.place.key(name));
        self.tried(|_| {
            let options = PaginatedListOptions {
                offset: after.clone(),
                max_keys: Some(size),
                page_token: token.map(str::to_owned),
                ..PaginatedListOptions::default()
            };
            let prefix = &prefix;
            async move { self.store.list_paginated(Some(prefix), options).await.map_err(fault) }
        })
        .await
    }

    /// Adds a page; its names come behind those before, and all start as they should.
    fn add(&self, all: &mut Vec<Entry>, prefix: &str, page: &PaginatedListResult) -> Result<(), Failed> {
        let failed = |fault| Failed { fault, tries: 1 };
        for object in &page.result.objects {
            let key = object.location.as_ref();
            let name = self.common.place.name(key).filter(|name| name.starts_with(prefix));
            let name = name.ok_or_else(|| failed(lost(format!("it lists {key:.200?}, which wasn't asked for"))))?;
            if all.last().is_some_and(|last| last.name.as_str() >= name) {
                return Err(failed(lost(format!("it lists {name:.200?} twice or out of order"))));
            }
            all.push(entry(name.to_owned(), object).map_err(failed)?);
        }
        if all.len() > MOST {
            return Err(failed(lost(format!("it lists more than {MOST} objects"))));
        }
        Ok(())
    }

    async fn by_tokens(&self, prefix: &str) -> Result<Vec<Entry>, Failed> {
        let failed = |why: &str| Err(Failed { fault: lost(why), tries: 1 });
        let (mut all, mut tokens, mut token, mut empty) = (Vec::new(), HashSet::new(), None::<String>, 0);
        loop {
            let page = self.page(prefix, LONG_PAGE, token.as_deref(), None).await?;
            self.add(&mut all, prefix, &page)?;
            empty = if page.result.objects.is_empty() { empty + 1 } else { 0 };
            let Some(next) = page.page_token else { return Ok(all) };
            if empty > MOST_EMPTY {
                return failed("it gives empty pages without end");
            }
            if !tokens.insert(next.clone()) {
                return failed("it repeats itself: the same page is to follow twice");
            }
            token = Some(next);
        }
    }

    async fn by_names(&self, prefix: &str) -> Result<Vec<Entry>, Failed> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let before = all.len();
            let after = all.last().map(|entry| entry.name.clone());
            let page = self.page(prefix, SHORT_PAGE, None, after.as_deref()).await?;
            self.add(&mut all, prefix, &page)?;
            // Whether more follows is asked, not believed.
            if all.len() == before {
                return Ok(all);
            }
        }
    }

    /// What both have. What only one has is looked at.
    async fn both(&self, first: Vec<Entry>, second: Vec<Entry>, began: i64) -> Result<Vec<Entry>, Failed> {
        let mut all: BTreeMap<String, (Entry, bool)> =
            first.into_iter().map(|entry| (entry.name.clone(), (entry, false))).collect();
        for entry in second {
            match all.get_mut(&entry.name) {
                // Written again in between: the newer counts.
                Some((known, both)) => {
                    *both = true;
                    if entry.modified >= known.modified {
                        *known = entry;
                    }
                }
                None => {
                    all.insert(entry.name.clone(), (entry, false));
                }
            }
        }
        let mut different = 0;
        let mut out = Vec::with_capacity(all.len());
        for (name, (entry, both)) in all {
            if both {
                out.push(entry);
                continue;
            }
            different += 1;
            if different > MOST_DIFFERENT {
                return Err(Failed { fault: lost("two listings of the same have hardly a name in common"), tries: 1 });
            }
            let Some(now) = self.head(&name).await? else { continue };
            if now.modified + CLOCKS < began {
                let why = format!("it left out {name:.200?}, which is there");
                return Err(Failed { fault: lost(why), tries: 1 });
            }
            out.push(now);
        }
        Ok(out)
    }

    /// Whether nothing but objects and prefixes of these names is there.
    pub(crate) async fn holds_only(&self, names: &[&str]) -> Result<bool> {
        let root = self.common.place.key("");
        let root = if root == "/" { String::new() } else { root };
        let mut token: Option<String> = None;
        // What is there is either little, or soon found to be foreign.
        for _ in 0..MOST_EMPTY {
            let listed = self.tried(|_| {
                let options = PaginatedListOptions {
                    delimiter: Some("/".into()),
                    page_token: token.clone(),
                    ..PaginatedListOptions::default()
                };
                let root = &root;
                async move {
                    self.store
                        .list_paginated(Some(root).filter(|root| !root.is_empty()).map(String::as_str), options)
                        .await
                        .map_err(fault)
                }
            });
            let page = listed.await.map_err(|failed| self.failed("list", "", failed))?;
            let objects = page.result.objects.iter().map(|object| object.location.as_ref());
            let prefixes = page.result.common_prefixes.iter().map(AsRef::as_ref);
            for key in objects.chain(prefixes) {
                let name = self.common.place.name(key).map(|name| name.trim_matches('/'));
                if !name.is_some_and(|name| names.contains(&name)) {
                    return Ok(false);
                }
            }
            match page.page_token {
                Some(next) => token = Some(next),
                None => return Ok(true),
            }
        }
        Err(Error::Misuse(format!("{} can't be listed to its end", self.common.place)))
    }
}
