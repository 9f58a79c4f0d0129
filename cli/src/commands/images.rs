//! The catalog.

use std::{collections::BTreeMap, time::Duration};

use ocopea_coordinator::api::ImageView;
use reqwest::Method;
use serde_json::{Value, json};

use super::{all_pages, now_ms, segment, when};
use crate::{
    arguments::{Format, Images},
    client::{Client, Failure},
    listing::Listing,
    output::{self, count, line, size},
};

pub(super) async fn images(client: &Client, format: Format, query: &Images) -> Result<(), Failure> {
    let mut parameters: Vec<(&str, String)> = Vec::new();
    if !query.words.is_empty() {
        parameters.push(("q", query.words.join(" ")));
    }
    for (name, value) in [
        ("label", &query.label),
        ("application", &query.application),
        ("site", &query.site),
        ("repository", &query.repository),
        ("by", &query.by),
    ] {
        if let Some(value) = value {
            parameters.push((name, value.clone()));
        }
    }
    for (name, text) in [("since_ms", &query.since), ("until_ms", &query.before)] {
        if let Some(text) = text {
            parameters.push((name, output::parse_moment(text, now_ms())?.to_string()));
        }
    }
    let query_text: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
    let address = format!("/api/v1/images?{}", query_text.join("&"));
    let row = |image: &ImageView| {
        let labels: Vec<String> = image.labels.iter().map(|(l, v)| format!("{l}={v}")).collect();
        vec![
            image.id.clone(),
            image.name.clone(),
            when(&image.created),
            size(image.bytes),
            size(image.new_bytes),
            image.application.clone(),
            image.repository.clone(),
            labels.join(" "),
            image.creator.clone(),
        ]
    };
    let head = ["IMAGE", "NAME", "SAVED", "SIZE", "NEW", "APPLICATION", "REPOSITORY", "LABELS", "BY"];
    let empty = if parameters.is_empty() {
        "there is no image; make one: ocopea save SITE/NAMESPACE --name NAME"
    } else {
        "no image fits"
    };
    let listing = Listing { head: &head, row: &row, name: &|image| image.id.clone(), empty };
    listing.run(format, query.watch, async || all_pages(client, &address).await).await
}

pub(super) async fn show(client: &Client, format: Format, image: &str) -> Result<(), Failure> {
    let image: ImageView = client.get(&format!("/api/v1/images/{}", segment(image))).await?;
    if format != Format::Table {
        return output::print(format, &image);
    }
    let body = image.body.clone().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    line(format!("{}   {}", image.name, image.id));
    line(format!(
        "  saved       {} by {} from {}/{}",
        image.created,
        image.creator,
        image.site,
        text(&body["namespace"])
    ));
    if !image.comment.is_empty() {
        line(format!("  comment     {}", image.comment));
    }
    for (label, value) in &image.labels {
        line(format!("  label       {label}={value}"));
    }
    line(format!("  repository  {}", image.repository));
    line(format!("  record      {}", image.record));
    line(format!("  size        {}, {} of it new", size(image.bytes), size(image.new_bytes)));
    if let Some(from) = body["lineage"]["restored_from"].as_str() {
        line(format!("  made from   {from}"));
    }
    if let Some(skew) = body["instant"]["skew_us"].as_u64() {
        line(format!("  instant     all snapshots within {} ms", skew.div_ceil(1000)));
    }
    for component in body["components"].as_array().into_iter().flatten() {
        let (name, bytes) = (text(&component["name"]), component["bytes"].as_u64().unwrap_or(0));
        let body = &component["body"];
        if let Some(container) = body.get("container") {
            line(format!("  container   {name:<20} {:>9}  {}", size(bytes), text(&container["found"]["digest"])));
        } else if let Some(config) = body.get("config") {
            line(format!(
                "  config      {:<20} {:>9}  {}",
                name,
                size(bytes),
                count(config["objects"].as_u64().unwrap_or(0), "object")
            ));
        } else if let Some(data) = body.get("data") {
            let consistency = &data["consistency"];
            line(format!(
                "  data        {name:<20} {:>9}  {} {}   {} {}",
                size(bytes),
                text(&data["found"]["kind"]),
                text(&data["version"]),
                text(&consistency["level"]),
                text(&consistency["why"])
            ));
            for stream in data["streams"].as_array().into_iter().flatten() {
                line(format!(
                    "                {:<32} {:>10} {:<10} {:>9}  {:.12}…",
                    text(&stream["name"]),
                    stream["items"],
                    text(&stream["unit"]),
                    size(stream["bytes"].as_u64().unwrap_or(0)),
                    text(&stream["content"])
                ));
            }
            if let Some(frozen) = consistency["frozen_ms"].as_u64().filter(|frozen| *frozen > 0) {
                line(format!("                writes held for {:.1} s", Duration::from_millis(frozen).as_secs_f64()));
            }
            let named = consistency["changed"].as_array().map_or(&[][..], Vec::as_slice);
            for changed in named {
                line(format!("                changed: {}", text(changed)));
            }
            let more = consistency["changed_count"].as_u64().unwrap_or(0).saturating_sub(named.len() as u64);
            if more > 0 {
                line(format!("                changed: {more} more"));
            }
            for notice in data["notices"].as_array().into_iter().flatten() {
                line(format!("                {}", text(notice)));
            }
        }
    }
    for left in body["left_out"].as_array().into_iter().flatten() {
        line(format!("  left out    {}: {}", text(&left["what"]), text(&left["why"])));
    }
    for comment in &image.comments {
        line(format!("  {} {}: {}", comment.at, comment.author, comment.body));
    }
    Ok(())
}

pub(super) async fn label(client: &Client, format: Format, image: &str, labels: &[String]) -> Result<(), Failure> {
    let mut changes = BTreeMap::new();
    for label in labels {
        match (label.split_once('='), label.strip_suffix('-')) {
            (Some((name, value)), _) => changes.insert(name.to_owned(), Some(value.to_owned())),
            (None, Some(name)) => changes.insert(name.to_owned(), None),
            (None, None) => {
                return Err(Failure::usage(format!("{label:?}: expected NAME=VALUE, or NAME- to take it away")));
            }
        };
    }
    let path = format!("/api/v1/images/{}/labels", segment(image));
    let image: ImageView = client.ask(Method::PATCH, &path, Some(json!({"labels": changes}))).await?;
    if matches!(format, Format::Json | Format::Yaml) {
        return output::print(format, &image);
    }
    let labels: Vec<String> = image.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
    output::remark(format!("✓ labels of {}: {}", image.name, labels.join(" ")));
    Ok(())
}
