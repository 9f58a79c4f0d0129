//! Work in what was restored.

use futures::StreamExt;
use ocopea_coordinator::api::EnvironmentView;

use super::{all_pages, segment, when};
use crate::{
    arguments::{Format, Watch},
    client::{Client, Failure},
    listing::Listing,
};

pub(super) async fn environments(client: &Client, format: Format, watch: Watch) -> Result<(), Failure> {
    let row = |e: &EnvironmentView| {
        vec![
            e.name.clone(),
            e.site.clone(),
            e.state.clone(),
            e.image.clone(),
            e.owner.clone(),
            when(&e.created),
            e.url.clone().unwrap_or_default(),
        ]
    };
    let head = ["ENVIRONMENT", "SITE", "STATE", "IMAGE", "OWNER", "MADE", "URL"];
    let listing = Listing {
        head: &head,
        row: &row,
        name: &|e| e.name.clone(),
        empty: "there is no environment; make one: ocopea restore IMAGE --site SITE --as NAME",
    };
    listing.run(format, watch, async || all_pages(client, "/api/v1/environments?").await).await
}

pub(super) async fn logs(
    client: &Client,
    environment: &str,
    component: Option<String>,
    follow: bool,
) -> Result<(), Failure> {
    let mut path = format!("/api/v1/environments/{}/logs?follow={follow}", segment(environment));
    if let Some(component) = component {
        path.push_str(&format!("&component={}", segment(&component)));
    }
    let stream = client.stream(&path).await?;
    futures::pin_mut!(stream);
    while let Some(chunk) = stream.next().await {
        use std::io::Write;
        if std::io::stdout().write_all(&chunk?).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
