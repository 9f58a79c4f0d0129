//! The server's own settings: set again where that is harmless and needs no restart, else listed.
//!
//! Most come with the server's command line or its files, which are the application's own configuration and are the
//! same at the target. What is left is what `ALTER SYSTEM` or a hand wrote into the data directory.

use std::{collections::BTreeMap, time::Duration};

use ocopea_protocol::failure::TaskFailure;
use serde::Deserialize;

use super::{connect::Session, facts::Facts, roles, sql};

/// What is never set from an image: commands and libraries that the server would run, files and addresses of another
/// machine, replication with servers that aren't here.
const NEVER: [&str; 9] = [
    "Connections and Authentication",
    "Customized Options",
    "Developer Options",
    "File Locations",
    "Replication",
    "Reporting and Logging / Where to Log",
    "Client Connection Defaults / Shared Library Preloading",
    "Write-Ahead Log / Arch",
    "Write-Ahead Log / Recovery",
];
/// The same, by name.
const NEVER_NAMED: [&str; 4] = ["dynamic_library_path", "default_tablespace", "temp_tablespaces", "cluster_name"];
/// How often it is looked whether the server took what was set.
const LOOKS: usize = 30;

#[derive(Deserialize)]
struct Here {
    name: String,
    context: String,
    category: String,
}

/// Sets what differs from the saved server, and says what was set and what is not as it was.
pub(super) async fn apply(admin: &mut Session, facts: &Facts) -> Result<Vec<String>, TaskFailure> {
    let mut differing = differing(admin, facts).await?;
    if differing.is_empty() {
        return Ok(vec![]);
    }
    let names: Vec<String> = differing.iter().map(|(name, _)| sql::literal(name)).collect();
    let here: Vec<Here> = admin
        .list(&format!("SELECT name, context, category FROM pg_settings WHERE name IN ({})", names.join(", ")))
        .await?;
    let here: BTreeMap<&str, &Here> = here.iter().map(|here| (here.name.as_str(), here)).collect();
    let mut set: Vec<&str> = Vec::new();
    for (name, value) in &differing {
        let harmless = here.get(name.as_str()).is_some_and(|here| {
            ["sighup", "superuser", "user", "backend", "superuser-backend"].contains(&here.context.as_str())
                && !NEVER.iter().any(|category| here.category.starts_with(category))
                && !NEVER_NAMED.contains(&name.as_str())
        });
        let Some(assignment) = roles::assignment(&format!("{name}={value}")).filter(|_| harmless) else { continue };
        if admin.run(&format!("ALTER SYSTEM SET {assignment}")).await.is_ok() {
            set.push(name);
        }
    }
    let set: Vec<String> = set.into_iter().map(str::to_owned).collect();
    if !set.is_empty() {
        admin.run("SELECT pg_reload_conf()").await?;
        for _ in 0..LOOKS {
            differing = self::differing(admin, facts).await?;
            if !differing.iter().any(|(name, _)| set.contains(name)) {
                break;
            }
            admin.server.seams.clock.sleep(Duration::from_millis(100)).await;
        }
    }
    let mut notices = Vec::new();
    let taken: Vec<&str> =
        set.iter().filter(|name| !differing.iter().any(|(other, _)| other == *name)).map(String::as_str).collect();
    if !taken.is_empty() {
        notices.push(format!("server settings that were set as they were saved: {}", taken.join(", ")));
    }
    if !differing.is_empty() {
        let names: Vec<&str> = differing.iter().map(|(name, _)| name.as_str()).take(40).collect();
        notices.push(format!("server settings that are not as saved: {}", names.join(", ")));
    }
    Ok(notices)
}

async fn differing(admin: &mut Session, facts: &Facts) -> Result<Vec<(String, String)>, TaskFailure> {
    let here = admin.parameters(true).await?;
    Ok(facts.parameters.iter().filter(|saved| !here.contains(saved)).cloned().collect())
}
