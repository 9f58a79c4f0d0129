//! What goes on, and what went on.

use ocopea_coordinator::api::{OperationView, Page};

use super::{segment, when};
use crate::{
    arguments::{Format, Operations},
    client::{Client, Failure},
    output::{self, line, list},
    watch,
};

pub(super) async fn operations(client: &Client, format: Format, command: Option<Operations>) -> Result<(), Failure> {
    match command {
        None => {
            let page: Page<OperationView> = client.get("/api/v1/operations?limit=100").await?;
            let row = |o: &OperationView| {
                let cause = o.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default();
                vec![
                    o.id.clone(),
                    o.title.clone(),
                    o.state.clone(),
                    o.creator.clone(),
                    when(&o.created),
                    cause.chars().take(80).collect(),
                ]
            };
            let head = ["OPERATION", "WHAT", "STATE", "BY", "BEGAN", "WHY"];
            list(format, &page.items, &head, row, |o| o.id.clone(), "nothing was done yet")
        }
        Some(Operations::Show { id }) => {
            let operation: OperationView = client.get(&format!("/api/v1/operations/{}", segment(&id))).await?;
            if format != Format::Table {
                return output::print(format, &operation);
            }
            line(format!("{}   {}   {}", operation.title, operation.state, operation.id));
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
            if matches!(format, Format::Json | Format::Yaml) { output::print(format, &done) } else { Ok(()) }
        }
    }
}
