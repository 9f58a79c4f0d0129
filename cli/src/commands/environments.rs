//! Work in what was restored.

use futures::StreamExt;
use ocopea_coordinator::api::EnvironmentView;

use super::{all_pages, segment, when};
use crate::{
    arguments::{Format, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, line},
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

pub(super) async fn connect(client: &Client, environment: &str, service: &str, port: u16) -> Result<(), Failure> {
    let path = format!("/api/v1/environments/{}/connections/{}?port={port}", segment(environment), segment(service));
    let stream = client.stream(&path).await?;
    futures::pin_mut!(stream);
    let mut first = Vec::new();
    while !first.contains(&b'\n') {
        match stream.next().await {
            Some(chunk) => first.extend_from_slice(&chunk?),
            None => return Err(Failure::local("the connection was closed at once")),
        }
    }
    let open: ocopea_coordinator::api::Connection = serde_json::from_slice(first.trim_ascii_end())
        .map_err(|error| Failure::local(format!("the coordinator's answer can't be read: {error}")))?;
    line(&open.connection);
    output::remark(format!("listening at {} until interrupted (Ctrl-C)", open.address));
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = stream.next() => Err(Failure { status: 6, ..Failure::local("the coordinator closed the connection") }),
    }
}
