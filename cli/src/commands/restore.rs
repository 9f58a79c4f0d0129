//! Restores and their plans.

use std::collections::BTreeMap;

use ocopea_coordinator::api::{Accepted, EnvironmentView, RestoreInput};
use serde_json::Value;

use super::{save::took, segment};
use crate::{
    arguments::{Format, Restore},
    client::{Client, Failure},
    output::{self, line},
    watch,
};

pub(super) async fn restore(client: &Client, format: Format, options: &Restore) -> Result<(), Failure> {
    let mut versions = BTreeMap::new();
    for choice in &options.versions {
        let (component, version) = choice
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("--set {choice}: expected COMPONENT=TAG or COMPONENT=@DIGEST")))?;
        versions.insert(component.to_owned(), version.to_owned());
    }
    let input = RestoreInput {
        image: options.image.clone(),
        site: options.site.clone(),
        name: options.name.clone(),
        versions,
        dry_run: options.dry_run,
        approve: options.approve.clone(),
    };
    let accepted: Accepted = client.post("/api/v1/restores", &input).await?;
    if options.detach {
        match format {
            Format::Json | Format::Yaml => output::print(format, &accepted)?,
            Format::Table | Format::Name => line(accepted.operation),
        }
        return Ok(());
    }
    let quiet = options.dry_run || format != Format::Table;
    let done = watch::follow(client, &accepted.operation, quiet).await?;
    if options.dry_run {
        let plan = done.result.unwrap_or_default();
        return if format == Format::Table { print_plan(&plan) } else { output::print(format, &plan) };
    }
    let environment: EnvironmentView = client.get(&format!("/api/v1/environments/{}", segment(&options.name))).await?;
    match format {
        Format::Json | Format::Yaml => output::print(format, &environment),
        Format::Name => {
            line(&environment.name);
            Ok(())
        }
        Format::Table => {
            line(format!("✓ environment {} runs at {} after {}", environment.name, environment.site, took(&done)));
            match &environment.url {
                Some(url) => line(format!("  open   {url}")),
                None => line(format!("  open   ocopea connect {} SERVICE", environment.name)),
            }
            line(format!("  logs   ocopea logs {} -f", environment.name));
            Ok(())
        }
    }
}

fn print_plan(plan: &Value) -> Result<(), Failure> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for step in plan["steps"].as_array().into_iter().flatten() {
        let why = match text(&step["why"]) {
            why if why.is_empty() => why,
            why => format!("   ({why})"),
        };
        line(
            format!("{:<8} {}   {}{why}", text(&step["action"]), text(&step["what"]), text(&step["detail"])).trim_end(),
        );
    }
    for notice in plan["notices"].as_array().into_iter().flatten() {
        line(format!("notice   {}", text(notice)));
    }
    let refusals: Vec<&Value> = plan["refusals"].as_array().into_iter().flatten().collect();
    for refusal in &refusals {
        line(format!(
            "refused  {}: needs {}, found: {}",
            text(&refusal["what"]),
            text(&refusal["needed"]),
            text(&refusal["found"])
        ));
        line(format!("         next: {}", text(&refusal["next"])));
    }
    line(format!("plan {}", text(&plan["digest"])));
    if refusals.is_empty() {
        line(format!(
            "nothing was changed. Run again with --approve {} to execute exactly this.",
            text(&plan["digest"])
        ));
        return Ok(());
    }
    Err(Failure { status: 4, ..Failure::local("this plan can't be executed") })
}
