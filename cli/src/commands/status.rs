//! How the installation is doing, and what nobody could read.

use std::collections::BTreeMap;

use ocopea_coordinator::api::{CountView, QuarantineView, QuarantinedView, StatusView};

use super::when;
use crate::{
    arguments::{Format, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, line, size},
};

/// Applications that are shown; all of them are in JSON.
const SHOWN: usize = 10;

pub(super) async fn status(client: &Client, format: Format) -> Result<(), Failure> {
    let found: StatusView = client.get("/api/v1/status").await?;
    if matches!(format, Format::Json | Format::Yaml) {
        return output::print(format, &found);
    }
    for worry in &found.worries {
        line(format!("! {}", worry.what));
        line(format!("  next:  {}", worry.next));
    }
    if found.worries.is_empty() {
        line("✓ all is well");
    }
    line("");
    let leads = if found.leads { "leads" } else { "another one leads" };
    line(format!("coordinator   {}, {leads}", found.version));
    line(format!("dispatch      {}", found.bus.as_deref().unwrap_or("works")));
    line(format!("operations    {}", in_words(&found.operations)));
    line(format!("tasks         {}", in_words(&found.tasks)));
    for upkeep in &found.upkeep {
        let last = upkeep.last.as_deref().map_or_else(|| "never yet".to_owned(), when);
        let failed = match upkeep.failed_since {
            0 => String::new(),
            1 => ", failed once since".to_owned(),
            times => format!(", FAILED {times} times since"),
        };
        line(format!("{:<13} {last}{failed}", if upkeep.kind == "collect" { "collection" } else { "verification" }));
    }
    if let Some(messages) = found.quarantined {
        line(format!("quarantine    {messages} messages"));
    }
    for (number, saved) in found.saved.iter().take(SHOWN).enumerate() {
        let head = if number == 0 { "last saves" } else { "" };
        line(format!("{head:<13} {}/{}  {}", saved.site, saved.application, when(&saved.last)));
    }
    if found.saved.len() > SHOWN {
        line(format!("{:<13} and {} more: -o json", "", found.saved.len() - SHOWN));
    }
    Ok(())
}

/// `save: 2 running, 1 undoing; restore: 1 running`
fn in_words(counts: &[CountView]) -> String {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for count in counts {
        all.entry(&count.of).or_default().push(format!("{} {}", count.number, count.state));
    }
    if all.is_empty() {
        return "none".to_owned();
    }
    all.into_iter().map(|(of, states)| format!("{of}: {}", states.join(", "))).collect::<Vec<_>>().join("; ")
}

pub(super) async fn quarantine(client: &Client, format: Format) -> Result<(), Failure> {
    let found: QuarantineView = client.get("/api/v1/quarantine").await?;
    if matches!(format, Format::Json | Format::Yaml) {
        return output::print(format, &found);
    }
    let row = |item: &QuarantinedView| {
        let since = item.since.as_deref().map_or_else(|| "-".to_owned(), when);
        let site = item.site.clone().unwrap_or_else(|| "-".to_owned());
        vec![since, site, size(item.bytes), item.routing_key.clone(), item.reason.clone()]
    };
    let listing = Listing {
        head: &["SINCE", "SITE", "SIZE", "SENT TO", "WHY"],
        row: &row,
        name: &|item| item.routing_key.clone(),
        empty: "nothing lies in quarantine",
    };
    let shown = found.items.len() as u64;
    listing.run(format, Watch::default(), async || Ok(found.items.clone())).await?;
    if found.messages > shown {
        output::remark(format!("and {} more", found.messages - shown));
    }
    Ok(())
}
