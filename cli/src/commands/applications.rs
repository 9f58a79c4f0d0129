//! What runs where, and what a save of it would hold.

use std::collections::BTreeMap;

use ocopea_coordinator::api::{Accepted, ApplicationView, SiteView};
use serde_json::Value;

use super::{save::save_input, when};
use crate::{
    arguments::{Format, Source, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, count, line, size},
    watch,
};

pub(super) async fn applications(
    client: &Client,
    format: Format,
    site: Option<String>,
    watch: Watch,
) -> Result<(), Failure> {
    let row = |a: &ApplicationView| {
        let components =
            format!("{}, {}", count(a.containers.into(), "container image"), count(a.workloads.into(), "workload"));
        let mut kinds = BTreeMap::<&str, u64>::new();
        a.data.iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
        let several =
            |(kind, number): (&str, u64)| if number > 1 { format!("{number} {kind}") } else { kind.to_owned() };
        let mut data: Vec<String> = kinds.into_iter().map(several).collect();
        if a.claimed_bytes > 0 {
            data.push(format!("{} of volumes", size(a.claimed_bytes)));
        }
        let saved = a.saved.as_deref().map_or_else(|| "never".to_owned(), when);
        let saved = saved + &a.saved_bytes.map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
        vec![a.site.clone(), a.application.clone(), components, data.join(", "), saved]
    };
    let listing = Listing {
        head: &["SITE", "APPLICATION", "COMPONENTS", "DATA", "SAVED"],
        row: &row,
        name: &|a| format!("{}/{}", a.site, a.application),
        empty: "nothing runs at the sites",
    };
    let fetch = async || {
        let mut found: Vec<ApplicationView> = client.get("/api/v1/applications").await?;
        if let Some(site) = &site {
            // A site that doesn't exist is not one where nothing runs.
            let sites: Vec<SiteView> = client.get("/api/v1/sites").await?;
            if !sites.iter().any(|known| known.name == *site) {
                return Err(Failure { status: 3, ..Failure::local(format!("site {site:?} was not found")) }
                    .next("see the sites: ocopea sites"));
            }
            found.retain(|application| application.site == *site);
        }
        Ok(found)
    };
    listing.run(format, watch, fetch).await
}

pub(super) async fn inspect(client: &Client, format: Format, source: &Source) -> Result<(), Failure> {
    let accepted: Accepted = client.post("/api/v1/inspections", &save_input(source)?).await?;
    let done = watch::follow(client, &accepted.operation, true).await?;
    let result = done.result.unwrap_or_default();
    let inventory = &result["Inspected"];
    if format != Format::Table {
        return output::print(format, inventory);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line(format!("{}   Kubernetes {}", text(&inventory["application"]), text(&inventory["kubernetes"])));
    let objects = inventory["objects"].as_array().map_or(0, Vec::len);
    line(format!(
        "  config      {}, {}",
        count(objects as u64, "object"),
        size(inventory["config_bytes"].as_u64().unwrap_or(0))
    ));
    for c in inventory["containers"].as_array().into_iter().flatten() {
        let tag = c["tag"].as_str().map_or_else(String::new, |tag| format!(":{tag}"));
        line(format!(
            "  container   {:<20} {}{tag}@{:.19}…",
            text(&c["name"]),
            text(&c["repository"]),
            text(&c["digest"])
        ));
    }
    for d in inventory["data"].as_array().into_iter().flatten() {
        let bytes = d["bytes"].as_u64().map_or_else(|| "size unknown".to_owned(), size);
        let streams = d["streams"].as_u64().map_or_else(String::new, |n| format!(", {}", count(n, "stream")));
        let (level, why) = (text(&d["consistency"]["level"]), text(&d["consistency"]["why"]));
        line(format!(
            "  data        {:<20} {} {}   {bytes}{streams}   {level} {why}",
            text(&d["name"]),
            text(&d["kind"]),
            text(&d["version"])
        ));
        let named = |object: &Value| format!("{}/{}", text(&object["kind"]).to_lowercase(), text(&object["name"]));
        let mut bindings = BTreeMap::<String, Vec<String>>::new();
        for b in d["bindings"].as_array().into_iter().flatten() {
            let place = format!("{} in {}", named(&b["object"]), text(&b["path"]));
            bindings.entry(place).or_default().extend(b["consumer"].is_object().then(|| named(&b["consumer"])));
        }
        for (place, readers) in bindings {
            let readers =
                if readers.is_empty() { String::new() } else { format!(", read by {}", readers.join(" and ")) };
            line(format!("              named by {place}{readers}"));
        }
    }
    let data = inventory["data"].as_array().into_iter().flatten();
    let rights = data.flat_map(|d| d["rights"].as_array().into_iter().flatten());
    for gap in inventory["gaps"].as_array().into_iter().flatten().chain(rights) {
        let word = if gap["blocking"].as_bool() == Some(true) { "REFUSED   " } else { "not saved " };
        line(format!("  {word}  {}: {}", text(&gap["what"]), text(&gap["why"])));
        if let Some(next) = gap["next"].as_str().filter(|next| !next.is_empty()) {
            line(format!("              next: {next}"));
        }
    }
    Ok(())
}
