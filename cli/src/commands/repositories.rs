//! The repositories: which there are, and how they come and go.

use ocopea_coordinator::api::{ChangedRepository, NewRepository, RepositoryKeys, RepositoryView, StoreLimitsInput};
use reqwest::Method;

use super::{segment, to_json, when};
use crate::{
    arguments::{AddRepository, ChangeRepository, Format, KeyOptions, LimitOptions, Repositories, Watch},
    client::{Client, Failure},
    listing::Listing,
    output::{self, count, line, size},
};

const PATH: &str = "/api/v1/repositories";

pub(super) async fn repositories(
    client: &Client,
    format: Format,
    command: Option<Repositories>,
    watch: Watch,
) -> Result<(), Failure> {
    match command {
        None | Some(Repositories::List) => list(client, format, watch).await,
        Some(Repositories::Add(options)) => {
            let added: RepositoryView = client.post(PATH, &new(*options)?).await?;
            print(format, &added)?;
            if format == Format::Table {
                output::remark(format!("✓ repository {} added: ocopea save … --repository {0}", added.name));
            }
            Ok(())
        }
        Some(Repositories::Change(options)) => {
            let path = format!("{PATH}/{}", segment(&options.name));
            let now: RepositoryView = client.get(&path).await?;
            let change = to_json(&changed(*options, &now.limits)?)?;
            print(format, &client.ask(Method::PATCH, &path, change).await?)
        }
        Some(Repositories::Show { name }) => {
            let found: RepositoryView = client.get(&format!("{PATH}/{}", segment(&name))).await?;
            print(format, &found)
        }
        Some(Repositories::Remove { name }) => {
            client.order(Method::DELETE, &format!("{PATH}/{}", segment(&name)), None).await?;
            output::remark(format!("✓ repository {name} forgotten; what lies there was not touched"));
            Ok(())
        }
        Some(Repositories::Default { name }) => {
            client.order(Method::PUT, &format!("{PATH}/{}/default", segment(&name)), None).await?;
            output::remark(format!("✓ saves that name no repository go to {name}"));
            Ok(())
        }
    }
}

/// Where keys come from, if that was said.
fn keys(options: KeyOptions) -> Result<Option<RepositoryKeys>, Failure> {
    let KeyOptions { profile, role, access_key_id, secret_key_file } = options;
    Ok(match (profile, role, access_key_id, secret_key_file) {
        (Some(profile), ..) => Some(RepositoryKeys::Profile { profile }),
        (None, Some(role), ..) => Some(RepositoryKeys::WebIdentity { role, session: None }),
        (None, None, Some(id), Some(file)) => {
            let fault = |error| Failure::usage(format!("{} can't be read: {error}", file.display()));
            let secret = std::fs::read_to_string(&file).map_err(fault)?.trim().to_owned();
            Some(RepositoryKeys::Static { id, secret, token: None })
        }
        _ => None,
    })
}

fn new(options: AddRepository) -> Result<NewRepository, Failure> {
    let AddRepository { name, location, agents_have_keys, .. } = options;
    let keys = keys(options.keys)?.unwrap_or_default();
    let LimitOptions { requests, upload_limit: upload, download_limit: download } = options.limits;
    let limits = StoreLimitsInput { requests, upload, download };
    // As the coordinator knows it, which is this machine's where there are directories.
    let location = match std::path::absolute(&location) {
        Ok(path) if !location.contains("://") && !location.is_empty() => path.display().to_string(),
        _ => location,
    };
    Ok(NewRepository { name, location, keys, agents_have_keys, limits })
}

/// What isn't given stays: of limits too, one by one.
fn changed(options: ChangeRepository, now: &StoreLimitsInput) -> Result<ChangedRepository, Failure> {
    let keys = if options.environment { Some(RepositoryKeys::Environment) } else { keys(options.keys)? };
    let LimitOptions { requests, upload_limit: upload, download_limit: download } = options.limits;
    let limits = if options.no_limits {
        Some(StoreLimitsInput::default())
    } else {
        let given = requests.is_some() || upload.is_some() || download.is_some();
        given.then(|| StoreLimitsInput {
            requests: requests.or(now.requests),
            upload: upload.or(now.upload),
            download: download.or(now.download),
        })
    };
    if keys.is_none() && limits.is_none() && options.agents_have_keys.is_none() {
        return Err(
            Failure::usage("there is nothing to change").next("see what can be: ocopea repositories change --help")
        );
    }
    Ok(ChangedRepository { keys, agents_have_keys: options.agents_have_keys, limits })
}

async fn list(client: &Client, format: Format, watch: Watch) -> Result<(), Failure> {
    let row = |one: &RepositoryView| {
        vec![
            one.name.clone(),
            if one.is_default { "default".to_owned() } else { String::new() },
            one.location.clone(),
            one.state.clone(),
            one.images.to_string(),
            size(one.new_bytes),
            limits(&one.limits),
            one.why.clone(),
        ]
    };
    let head = ["REPOSITORY", "", "LOCATION", "STATE", "IMAGES", "BROUGHT", "LIMITS", "WHY"];
    let listing = Listing { head: &head, row: &row, name: &|one| one.name.clone(), empty: "there is no repository" };
    listing.run(format, watch, async || client.get(PATH).await).await
}

fn limits(limits: &StoreLimitsInput) -> String {
    let requests = limits.requests.map(|most| count(most.into(), "request"));
    let rate = |word: &str, rate: Option<u64>| rate.map(|rate| format!("{word} {}/s", size(rate)));
    let all = [requests, rate("up", limits.upload), rate("down", limits.download)];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn print(format: Format, one: &RepositoryView) -> Result<(), Failure> {
    match format {
        Format::Json | Format::Yaml => return output::print(format, one),
        Format::Name => {
            line(&one.name);
            return Ok(());
        }
        Format::Table => {}
    }
    let default = if one.is_default { "   (the default one)" } else { "" };
    line(format!("{}   {}{default}", one.name, one.id));
    line(format!("  location    {}", one.location));
    if !one.keys.is_empty() {
        let agents = if one.agents_have_keys { "agents have their own" } else { "agents get them with their tasks" };
        line(format!("  keys        {}; {agents}", one.keys));
    }
    let limits = limits(&one.limits);
    if !limits.is_empty() {
        line(format!("  limits      {limits}, for each process"));
    }
    line(format!("  holds       {}, which brought {}", count(one.images, "image"), size(one.new_bytes)));
    let looked = one.found_at.as_deref().map_or_else(|| "never".to_owned(), when);
    line(format!("  state       {}, looked at {looked}", one.state));
    for found in &one.found {
        line(format!("              {found}"));
    }
    if !one.why.is_empty() {
        line(format!("              {}", one.why));
    }
    Ok(())
}
