//! What each command does: a file for each kind of thing.

mod applications;
mod environments;
mod images;
mod operations;
mod repository;
mod restore;
mod save;
mod tokens;

use clap::CommandFactory;
use ocopea_coordinator::api::{Accepted, NewComment};
use reqwest::Method;
use serde_json::Value;

use crate::{
    arguments::{Arguments, Command},
    client::{self, Client, Failure},
    output::{self, ago, parse_time, size},
    terminal, up, watch,
};

/// Runs what was typed.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let format = arguments.output;
    match arguments.command {
        Command::Up(options) => return up::run(options).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "ocopea", &mut std::io::stdout());
            return Ok(());
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
        Command::Up(_) | Command::Completions { .. } | Command::SignIn { .. } => Ok(()),
        Command::Sites => applications::sites(&client, format).await,
        Command::Applications { site } => applications::applications(&client, format, site).await,
        Command::Inspect(source) => applications::inspect(&client, format, &source).await,
        Command::Save(save) => save::save(&client, format, &save).await,
        Command::Restore(restore) => restore::restore(&client, format, &restore).await,
        Command::Images(query) => images::images(&client, format, &query).await,
        Command::Show { image } => images::show(&client, format, &image).await,
        Command::Label { image, labels } => images::label(&client, &image, &labels).await,
        Command::Comment { image, text } => {
            let path = format!("/api/v1/images/{}/comments", segment(&image));
            client.order(Method::POST, &path, to_json(&NewComment { body: text })?).await
        }
        Command::Rm { image } => {
            let path = format!("/api/v1/images/{}", segment(&image));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            let done = watch::follow(&client, &accepted.operation, false).await?;
            let bytes = done.result.as_ref().and_then(|r| r["bytes"].as_u64()).unwrap_or(0);
            output::remark(format!("✓ deleted; {} can be reclaimed: ocopea repository collect", size(bytes)));
            Ok(())
        }
        Command::Environments => environments::environments(&client, format).await,
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
        Command::Connect { environment, service, port } => {
            environments::connect(&client, &environment, &service, port).await
        }
        Command::Remove { environment } => {
            let path = format!("/api/v1/environments/{}", segment(&environment));
            let accepted: Accepted = client.ask(Method::DELETE, &path, None).await?;
            watch::follow(&client, &accepted.operation, false).await?;
            output::remark(format!("✓ environment {environment} removed"));
            Ok(())
        }
        Command::Operations { command } => operations::operations(&client, format, command).await,
        Command::Cancel { operation } => {
            client.order(Method::POST, &format!("/api/v1/operations/{}/cancel", segment(&operation)), None).await?;
            match watch::follow(&client, &operation, false).await {
                Err(failure) if failure.status == 1 => {
                    output::remark("✓ cancelled; what it had made was taken back");
                    Ok(())
                }
                other => other.map(drop),
            }
        }
        Command::Repository { command } => repository::repository(&client, format, command).await,
        Command::Tokens { command } => tokens::tokens(&client, format, command).await,
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

fn now_ms() -> i64 {
    ocopea_protocol::seams::Seams::real(tokio_util::task::TaskTracker::new()).clock.now().0
}

fn when(text: &str) -> String {
    parse_time(text).map_or_else(|| text.to_owned(), |then| ago(now_ms(), then))
}
