//! What goes on, and what went on.

use ocopea_coordinator::api::{OperationView, Page};

use super::{all_pages, save::took, segment, when};
use crate::{
    arguments::{Format, Operations, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, line},
    progress, watch,
};

/// Operations that are looked at again and again: what moves is among the newest.
const WATCHED: &str = "/api/v1/operations?limit=40";

pub(super) async fn operations(
    client: &Client,
    format: Format,
    command: Option<Operations>,
    watch: Watch,
) -> Result<(), Failure> {
    match command {
        None => {
            let row = |o: &OperationView| {
                let cause = o.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default();
                let cause = progress::cut(cause.lines().next().unwrap_or_default(), 80);
                vec![o.id.clone(), o.title.clone(), o.state.clone(), o.creator.clone(), when(&o.created), cause]
            };
            let listing = Listing {
                head: &["OPERATION", "WHAT", "STATE", "BY", "BEGAN", "WHY"],
                row: &row,
                name: &|o| o.id.clone(),
                empty: "nothing was done yet",
            };
            let fetch = async || {
                if !watch.watch {
                    return all_pages(client, "/api/v1/operations?").await;
                }
                let page: Page<OperationView> = client.get(WATCHED).await?;
                Ok(page.items)
            };
            listing.run(format, watch, fetch).await
        }
        Some(Operations::Show { id }) => {
            let operation: OperationView = client.get(&format!("/api/v1/operations/{}", segment(&id))).await?;
            if format != Format::Table {
                return output::print(format, &operation);
            }
            line(format!("{}   {}   {}", operation.title, operation.state, operation.id));
            if let Some(trace) = &operation.trace {
                line(format!("  trace.id {trace}   (of every line that was logged for it)"));
            }
            for task in &operation.tasks {
                let failure = task.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default();
                line(format!(
                    "  {:<28} {:<10} attempt {} of {}  {failure}",
                    task.label, task.state, task.attempt, task.most_attempts
                ));
            }
            Ok(())
        }
        Some(Operations::Watch { id }) => {
            let done = watch::follow(client, &id, format != Format::Table).await?;
            match format {
                Format::Json | Format::Yaml => output::print(format, &done)?,
                Format::Name => line(&done.id),
                Format::Table => line(format!("✓ {} done in {}", done.title, took(&done))),
            }
            Ok(())
        }
    }
}
