//! How the installation is doing: what there is, and what somebody should look at.
//!
//! What is a worry is what `docs/alerts.yml` alerts of, by the same spans.

use std::time::Duration;

use ocopea_catalog_db::figures::Figures;
use ocopea_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 3600;
/// A task waits too long to be claimed.
const WAIT: u64 = 10 * MINUTE;
/// A site is silent.
const SILENT: u64 = 10 * MINUTE;
/// An application was not saved for long.
const UNSAVED: u64 = 2 * DAY;
/// Failures in a row of what looks after the repository.
const FAILURES: u64 = 2;
/// Worries of one kind that are told one by one.
const EACH: usize = 10;

/// After what time the repository was not looked after for too long.
fn overdue(kind: &str) -> u64 {
    if kind == "collect" { 7 * DAY } else { 30 * DAY }
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Worry {
    /// What it is.
    pub what: String,
    /// What to do.
    pub next: String,
}

fn worry(what: String, next: impl Into<String>) -> Worry {
    Worry { what, next: next.into() }
}

/// What to call a collection or a verification.
fn upkeep_name(kind: &str) -> (&'static str, &'static str) {
    if kind == "collect" {
        ("collection", "ocopea repository collect")
    } else {
        ("verification", "ocopea repository verify")
    }
}

fn long(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / MINUTE),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / DAY),
    }
}

/// What somebody should look at, the most urgent first.
pub fn worries(figures: &Figures, bus: Option<&str>, quarantined: Option<u64>, now: Timestamp) -> Vec<Worry> {
    let since =
        |then: Timestamp| Duration::from_millis(u64::try_from(now.0.saturating_sub(then.0)).unwrap_or(0)).as_secs();
    let mut found = Vec::new();
    if let Some(trouble) = bus {
        let next = "check RabbitMQ and its alarms; operations are accepted, and begin when it is back";
        found.push(worry(format!("dispatch is delayed: {trouble}"), next));
    }
    for (kind, last, failures) in &figures.upkeep {
        let (name, command) = upkeep_name(kind);
        if *failures >= FAILURES {
            let what = format!("the {name} of the repository FAILED {failures} times in a row");
            found.push(worry(what, "ocopea operations: why? Space isn't given back, or images may be broken"));
        } else if !figures.saved.is_empty() {
            match last.map(since) {
                Some(ago) if ago > overdue(kind) => {
                    found.push(worry(format!("the last {name} of the repository is {} old", long(ago)), command));
                }
                Some(_) => {}
                None => found.push(worry(format!("no {name} of the repository has succeeded yet"), command)),
            }
        }
    }
    if let Some(waits) = figures.waiting_since.map(since).filter(|waits| *waits > WAIT) {
        let what = format!("a task has waited for {} to be claimed", long(waits));
        found.push(worry(what, "ocopea operations: which site? Start an agent there, or more of them"));
    }
    let silent = figures.reported.iter().filter_map(|(site, at)| match at.map(since) {
        Some(ago) if ago > SILENT => Some(format!("site {site} was not heard of for {}", long(ago))),
        Some(_) => None,
        None => Some(format!("site {site} was never heard of")),
    });
    each(
        &mut found,
        silent.collect(),
        "sites",
        "see its agents' log there, or remove the site: ocopea sites remove NAME",
    );
    if let Some(count) = quarantined.filter(|count| *count > 0) {
        found.push(worry(format!("{count} messages lie in quarantine"), "ocopea quarantine"));
    }
    let unsaved = figures.saved.iter().filter(|(_, _, last)| since(*last) > UNSAVED);
    let unsaved = unsaved
        .map(|(site, application, last)| format!("{application} at {site} was last saved {} ago", long(since(*last))));
    each(
        &mut found,
        unsaved.collect(),
        "applications",
        "ocopea save SITE/APPLICATION; or remove its images, where it is gone",
    );
    found
}

/// Tells the first of them one by one.
fn each(into: &mut Vec<Worry>, all: Vec<String>, name: &str, next: &str) {
    let more = all.len().saturating_sub(EACH);
    into.extend(all.into_iter().take(EACH).map(|what| worry(what, next)));
    if more > 0 {
        into.push(worry(format!("and {more} {name} more"), next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn ago(seconds: i64) -> Timestamp {
        Timestamp(NOW.0 - seconds * 1000)
    }

    fn told(figures: &Figures) -> Vec<String> {
        worries(figures, None, Some(0), NOW).into_iter().map(|worry| worry.what).collect()
    }

    #[test]
    fn all_is_well_where_all_is_young_and_nobody_is_told_of_an_empty_repository() {
        let mut figures = Figures { upkeep: vec![("collect", None, 0), ("verify", None, 1)], ..Figures::default() };
        assert!(told(&figures).is_empty());
        figures.upkeep = vec![("collect", Some(ago(3600)), 1), ("verify", Some(ago(86_400)), 0)];
        figures.saved = vec![("a".to_owned(), "shop".to_owned(), ago(100_000))];
        figures.reported = vec![("a".to_owned(), Some(ago(59)))];
        figures.waiting_since = Some(ago(30));
        assert!(told(&figures).is_empty());
    }

    #[test]
    fn what_is_late_silent_or_failed_twice_is_told_with_what_to_do() {
        let figures = Figures {
            upkeep: vec![("collect", Some(ago(60)), 2), ("verify", Some(ago(40 * 86_400)), 0)],
            saved: (0..12).map(|n| ("a".to_owned(), format!("shop-{n}"), ago(3 * 86_400))).collect(),
            reported: vec![("a".to_owned(), Some(ago(700))), ("b".to_owned(), None)],
            waiting_since: Some(ago(1200)),
            ..Figures::default()
        };
        let all = worries(&figures, Some("no connection to the broker"), Some(3), NOW);
        assert!(all.iter().all(|worry| !worry.next.is_empty()));
        let told: Vec<&str> = all.iter().map(|worry| worry.what.as_str()).collect();
        assert_eq!(
            told[..7],
            [
                "dispatch is delayed: no connection to the broker",
                "the collection of the repository FAILED 2 times in a row",
                "the last verification of the repository is 40 days old",
                "a task has waited for 20 min to be claimed",
                "site a was not heard of for 11 min",
                "site b was never heard of",
                "3 messages lie in quarantine",
            ]
        );
        assert_eq!(told[7], "shop-0 at a was last saved 3 days ago");
        assert_eq!((told.len(), told[17]), (18, "and 2 applications more"));
    }
}
