//! What each command does: a file for each kind of thing.

mod applications;
mod connect;
mod environments;
mod images;
mod operations;
mod repositories;
mod repository;
mod restore;
mod save;
mod sites;
mod status;
mod tokens;

use clap::CommandFactory;
use ocopea_coordinator::api::{Accepted, NewComment, OperationView, Page};
use reqwest::Method;
use serde_json::Value;

use crate::{
    arguments::{Arguments, Command, Format},
    client::{self, Client, Failure},
    output::{self, ago, parse_time, size},
    programs::{agent, coordinator, join, up},
    terminal, watch,
};

/// Runs what was typed.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let format = arguments.output;
    match arguments.command {
        Command::Up(options) => return up::run(options).await,
        Command::Coordinator { settings, command } => return coordinator::run(settings, command).await,
        Command::Agent { settings } => return agent::run(settings).await,
        Command::Join(options) => return join::run(options, arguments.url, arguments.token).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "ocopea", &mut script);
            return output::raw(&String::from_utf8_lossy(&script));
        }
        Command::SignIn { url } => {
            let account = client::sign_in(&url).await?;
            account.store().map_err(|error| Failure::local(format!("the token can't be kept: {error}")))?;
            output::remark(format!("signed in at {}", account.url));
            return Ok(());
        }
        _ => {}
    }
    let client = Client::new(arguments.url, arguments.token)?;
    match arguments.command {
        Command::Up(_)
        | Command::Coordinator { .. }
        | Command::Agent { .. }
        | Command::Join(_)
        | Command::Completions { .. }
        | Command::SignIn { .. } => Ok(()),
        Command::Sites { command, watch } => sites::sites(&client, format, command, watch).await,
        Command::Applications { site, watch } => applications::applications(&client, format, site, watch).await,
        Command::Inspect(source) => applications::inspect(&client, format, &source).await,
        Command::Save(save) => save::save(&client, format, &save).await,
        Command::Restore(restore) => restore::restore(&client, format, &restore).await,
        Command::Images(query) => images::images(&client, format, &query).await,
        Command::Show { image } => images::show(&client, format, &image).await,
        Command::Label { image, labels } => images::label(&client, format, &image, &labels).await,
        Command::Comment { image, text } => {
            let path = format!("/api/v1/images/{}/comments", segment(&image));
            client.order(Method::POST, &path, to_json(&NewComment { body: text })?).await?;
            output::remark(format!("✓ comment added to {image}"));
            Ok(())
        }
        Command::Rm { image } => {
            let path = format!("/api/v1/images/{}", segment(&image));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            let done = watch::follow(&client, &accepted.operation, false).await?;
            let bytes = done.result.as_ref().and_then(|r| r["bytes"].as_u64()).unwrap_or(0);
            let hides = done.result.as_ref().is_some_and(|r| r["hides"] == true);
            let then = if hides {
                "will be hidden by a collection, and freed when the store's versions expire"
            } else {
                "can be reclaimed: ocopea repository collect"
            };
            output::remark(format!("✓ deleted; {} {then}", size(bytes)));
            Ok(())
        }
        Command::Environments { watch } => environments::environments(&client, format, watch).await,
        Command::Logs { environment, component, follow } => {
            environments::logs(&client, &environment, component, follow).await
        }
        Command::Exec { environment, component, command } => {
            let path = format!("/api/v1/environments/{}/exec", segment(&environment));
            match terminal::exec(&client, &path, component.as_deref(), &command).await? {
                0 => Ok(()),
                status => Err(Failure { status, ..Failure::local("") }),
            }
        }
        Command::Status => status::status(&client, format).await,
        Command::Quarantine => status::quarantine(&client, format).await,
        Command::Connect { environment, service, port } => {
            connect::connect(&client, &environment, &service, port).await
        }
        Command::Remove { environment } => {
            let path = format!("/api/v1/environments/{}", segment(&environment));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            watch::follow(&client, &accepted.operation, false).await?;
            output::remark(format!("✓ environment {environment} removed"));
            Ok(())
        }
        Command::Operations { command, watch } => operations::operations(&client, format, command, watch).await,
        Command::Cancel { operation } => {
            client.order(Method::POST, &format!("/api/v1/operations/{}/cancel", segment(&operation)), None).await?;
            let followed = watch::follow(&client, &operation, format != Format::Table).await;
            let now: OperationView = client.get(&format!("/api/v1/operations/{}", segment(&operation))).await?;
            match followed {
                // A cancelled operation has failed for whoever waits for it, not for who cancelled it.
                Err(failure) if failure.status != watch::INTERRUPTED && now.state == "cancelled" => {
                    if matches!(format, Format::Json | Format::Yaml) {
                        return output::print(format, &now);
                    }
                    output::remark(format!("✓ {} cancelled; what it had made was taken back", now.title));
                    Ok(())
                }
                Ok(_) => Err(Failure { status: 5, ..Failure::local(format!("{} was done already", now.title)) }
                    .next("what it made is there: ocopea operations show ".to_owned() + &operation)),
                Err(failure) => Err(failure),
            }
        }
        Command::Repositories { command, watch } => repositories::repositories(&client, format, command, watch).await,
        Command::Repository { repository, command } => {
            repository::repository(&client, format, repository, command).await
        }
        Command::Tokens { command } => tokens::tokens(&client, format, command).await,
    }
}

/// A list from its first page to its last.
async fn all_pages<T: serde::de::DeserializeOwned>(client: &Client, address: &str) -> Result<Vec<T>, Failure> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page: Page<T> = client.get(&format!("{address}{cursor}")).await?;
        all.extend(page.items);
        match page.next {
            Some(next) => cursor = format!("&limit=1000&cursor={}", segment(&next)),
            None => return Ok(all),
        }
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Option<Value>, Failure> {
    serde_json::to_value(value).map(Some).map_err(|error| Failure::local(error.to_string()))
}

/// A name as one part of a path.
fn segment(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

pub(crate) fn now_ms() -> i64 {
    ocopea_protocol::seams::Seams::real(tokio_util::task::TaskTracker::new()).clock.now().0
}

fn when(text: &str) -> String {
    parse_time(text).map_or_else(|| text.to_owned(), |then| ago(now_ms(), then))
}
