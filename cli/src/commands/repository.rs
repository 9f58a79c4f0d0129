//! The repository: verification, collection, keys.

use ocopea_coordinator::api::{Accepted, CollectInput, KeyView, NewKey, Reindexed, VerifyInput};
use reqwest::Method;
use serde_json::{Value, json};

use super::segment;
use crate::{
    arguments::{Format, KeyCommand, RepositoryCommand},
    client::{Client, Failure},
    listing::Listing,
    output::{self, count, line, size},
    watch,
};

pub(super) async fn repository(
    client: &Client,
    format: Format,
    repository: Option<String>,
    command: RepositoryCommand,
) -> Result<(), Failure> {
    match command {
        RepositoryCommand::Verify { image } => {
            let input = VerifyInput { image, repository };
            let accepted: Accepted = client.post("/api/v1/repository/verifications", &input).await?;
            let done = watch::follow(client, &accepted.operation, true).await?;
            let report = done.result.unwrap_or_default();
            if matches!(format, Format::Json | Format::Yaml) {
                output::print(format, &report)?;
            } else {
                line(format!(
                    "{}, {}, {} read back",
                    count(report["images"].as_u64().unwrap_or(0), "image"),
                    count(report["blobs"].as_u64().unwrap_or(0), "object"),
                    size(report["bytes"].as_u64().unwrap_or(0))
                ));
            }
            let broken: Vec<&Value> = report["broken"].as_array().into_iter().flatten().collect();
            for one in &broken {
                let images: Vec<&str> =
                    one["images"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                line(format!(
                    "broken   {}: {}; affects {}",
                    one["object"].as_str().unwrap_or_default(),
                    one["why"].as_str().unwrap_or_default(),
                    images.join(", ")
                ));
            }
            if broken.is_empty() {
                return Ok(());
            }
            Err(Failure::local(format!("{} objects of the repository are broken", broken.len()))
                .next("restore them from a copy of the repository, or delete the affected images and save again"))
        }
        RepositoryCommand::Key { .. } if repository.is_some() => {
            Err(Failure::usage("keys are those of all repositories together: leave --repository out"))
        }
        RepositoryCommand::Key { command } => keys(client, format, command).await,
        RepositoryCommand::Collect { grace } => {
            let grace_s = output::parse_span(&grace)?;
            let input = CollectInput { grace_s, repository };
            let accepted: Accepted = client.post("/api/v1/repository/collections", &input).await?;
            let done = watch::follow(client, &accepted.operation, true).await?;
            let report = done.result.unwrap_or_default();
            if matches!(format, Format::Json | Format::Yaml) {
                return output::print(format, &report);
            }
            let number = |field: &str| report[field].as_u64().unwrap_or(0);
            line(format!(
                "reclaimed {} ({} objects); {} more found dead, deleted by a collection after the grace time; {} live",
                size(number("deleted_bytes")),
                number("deleted"),
                size(number("condemned_bytes")),
                size(number("live_bytes"))
            ));
            if number("hidden") > 0 {
                line(format!(
                    "hidden {} ({} objects): the store keeps versions of what is deleted, and frees them when they expire",
                    size(number("hidden_bytes")),
                    number("hidden")
                ));
            }
            for why in report["kept"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                line(format!("kept for now: {why}"));
            }
            Ok(())
        }
        RepositoryCommand::Reindex => {
            let of = repository.map_or_else(String::new, |name| format!("?repository={}", segment(&name)));
            let path = format!("/api/v1/repository/reindexes{of}");
            let found: Reindexed = client.ask(Method::POST, &path, Some(json!({}))).await?;
            if matches!(format, Format::Json | Format::Yaml) {
                output::print(format, &found)?;
            } else {
                line(format!("{} images in the repository, {} of them new to the catalog", found.images, found.added));
                for one in &found.failed {
                    line(format!("broken   {}: {}", one.object, one.why));
                }
            }
            if found.failed.is_empty() {
                return Ok(());
            }
            Err(Failure::local(format!("{} could not be read", count(found.failed.len() as u64, "image")))
                .next("see all that is broken: ocopea repository verify"))
        }
    }
}

async fn keys(client: &Client, format: Format, command: KeyCommand) -> Result<(), Failure> {
    const PATH: &str = "/api/v1/repository/keys";
    let changes = !matches!(command, KeyCommand::List);
    let keys: Vec<KeyView> = match command {
        KeyCommand::List => client.get(PATH).await?,
        KeyCommand::Add => client.post(PATH, &NewKey { rotate: false }).await?,
        KeyCommand::Rotate => client.post(PATH, &NewKey { rotate: true }).await?,
        KeyCommand::Remove { id } => client.ask(Method::DELETE, &format!("{PATH}/{}", segment(&id)), None).await?,
    };
    let row = |key: &KeyView| vec![key.id.clone(), if key.current { "current".to_owned() } else { String::new() }];
    let listing = Listing { head: &["KEY", ""], row: &row, name: &|key| key.id.clone(), empty: "there is no key" };
    listing.print(format, &keys)?;
    if changes {
        output::remark("the key file has changed: back it up now, beside the coordinator's data directory");
    }
    Ok(())
}
