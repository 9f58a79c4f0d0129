//! Follows an operation: bars for a person, one line per event for a pipe.

use std::collections::BTreeMap;

use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ocopea_coordinator::api::{OperationView, TaskView};

use crate::{
    client::{Client, Failure},
    output::{self, count, size},
};

/// Follows until it is over; an operation that failed is an error.
pub async fn follow(client: &Client, id: &str, quiet: bool) -> Result<OperationView, Failure> {
    let mut screen = Screen::new(quiet);
    let mut lost = 0;
    loop {
        let watched = watch_once(client, id, &mut screen).await;
        match watched {
            Ok(Some(operation)) => {
                screen.close();
                return outcome(operation);
            }
            Ok(None) => {}
            Err(failure) if failure.status == 6 && lost < 30 => {
                lost += 1;
                tokio::select! {
                    () = pause() => {}
                    () = interrupted() => return Err(left_running(id)),
                }
            }
            Err(failure) if failure.status == 130 => return Err(left_running(id)),
            Err(failure) => return Err(failure),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client's pause before it asks again is nothing that a simulation runs"
)]
async fn pause() {
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn left_running(id: &str) -> Failure {
    Failure {
        status: 130,
        ..Failure::local(format!("the operation goes on: {id}"))
            .next(format!("look again: ocopea operations watch {id}; stop it: ocopea cancel {id}"))
    }
}

/// Reads events until the operation is over (`Some`) or the connection ends (`None`).
async fn watch_once(client: &Client, id: &str, screen: &mut Screen) -> Result<Option<OperationView>, Failure> {
    let events = client.stream(&format!("/api/v1/operations/{id}/events")).await?;
    futures::pin_mut!(events);
    let mut buffer = Vec::new();
    loop {
        let chunk = tokio::select! {
            chunk = events.next() => chunk,
            () = interrupted() => return Err(Failure { status: 130, ..Failure::local("interrupted") }),
        };
        let Some(chunk) = chunk else { return Ok(None) };
        buffer.extend_from_slice(&chunk?);
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let data: String =
                text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
            if data.is_empty() {
                continue;
            }
            let operation: OperationView = serde_json::from_str(&data)
                .map_err(|error| Failure::local(format!("an event can't be read: {error}")))?;
            screen.show(&operation);
            if operation.ended.is_some() {
                return Ok(Some(operation));
            }
        }
    }
}

/// Turns a failed operation into an error with cause, place and next step.
pub fn outcome(operation: OperationView) -> Result<OperationView, Failure> {
    if operation.state == "succeeded" {
        return Ok(operation);
    }
    let text = |field: &str| operation.failure.as_ref().and_then(|f| f[field].as_str()).unwrap_or_default().to_owned();
    let code = text("code");
    let status = match operation.failure.as_ref().and_then(|f| f["class"].as_str()) {
        _ if code.ends_with(".refused") => 4,
        _ if code.contains("not-found") => 3,
        Some("Conflict") => 5,
        _ => 1,
    };
    let failed = operation.tasks.iter().find(|task| task.state == "failed");
    let place = failed.map_or_else(
        || format!("operation {}", operation.id),
        |task| format!("task {} ({}), attempt {} of {}", task.label, task.id, task.attempt, task.most_attempts),
    );
    let what = match text("what") {
        empty if empty.is_empty() => format!("{} {}", operation.title, operation.state),
        what => what,
    };
    Err(Failure { status, what, cause: text("cause"), place, next: text("next") })
}

struct Screen {
    bars: Option<MultiProgress>,
    lines: BTreeMap<String, ProgressBar>,
    told: BTreeMap<String, String>,
    quiet: bool,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let bars = (!quiet && output::is_terminal()).then(MultiProgress::new);
        Self { bars, lines: BTreeMap::new(), told: BTreeMap::new(), quiet }
    }

    fn close(&mut self) {
        for bar in self.lines.values() {
            if !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn show(&mut self, operation: &OperationView) {
        for task in &operation.tasks {
            if matches!(task.kind.as_str(), "pin" | "unpin") || (task.kind == "open-snapshot" && self.bars.is_some()) {
                continue;
            }
            if self.bars.is_some() { self.bar(task) } else { self.tell(task) }
        }
    }

    fn bar(&mut self, task: &TaskView) {
        if task.state == "waiting" || (task.state == "cancelled" && task.attempt == 0) {
            return;
        }
        let Some(bars) = &self.bars else { return };
        let bar = self.lines.entry(task.label.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_prefix(format!("{:<24}", readable(task)));
            bar
        });
        if bar.is_finished() {
            return;
        }
        let number = |field: &str| task.progress.as_ref().and_then(|p| p[field].as_u64()).unwrap_or(0);
        let (bytes, of_bytes) = (number("bytes"), number("of_bytes").max(number("bytes")));
        let template = if of_bytes > 0 && task.state == "claimed" {
            bar.set_length(of_bytes);
            bar.set_position(bytes);
            "  {prefix} {bytes}/{total_bytes} {bar:16} {bytes_per_sec} {wide_msg}"
        } else {
            "  {prefix} {wide_msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(describe(task));
        if matches!(task.state.as_str(), "succeeded" | "failed" | "cancelled") {
            bar.finish();
        }
    }

    fn tell(&mut self, task: &TaskView) {
        let text = match task.state.as_str() {
            "waiting" | "ready" => return,
            "claimed" => format!("{}: begins (attempt {})", readable(task), task.attempt),
            _ => format!("{}: {}", readable(task), describe(task)),
        };
        let known = self.told.insert(task.label.clone(), text.clone());
        if !self.quiet && known.as_ref() != Some(&text) {
            output::remark(text);
        }
    }
}

/// `data:messages:0` as people say it.
fn readable(task: &TaskView) -> String {
    let mut parts = task.label.split(':');
    let kind = parts.next().unwrap_or_default();
    match (kind, parts.next()) {
        ("data", Some(name)) => name.to_owned(),
        ("open", Some(name)) => format!("{name} snapshot"),
        ("container" | "push", Some(name)) => format!("{kind} {name}"),
        ("server", Some(name)) => format!("{name} server"),
        ("load", Some(name)) => format!("load {name}"),
        ("undo", Some(name)) => format!("take back {name}"),
        (kind, _) => kind.to_owned(),
    }
}

fn describe(task: &TaskView) -> String {
    let output = task.output.as_ref();
    match task.state.as_str() {
        "failed" => format!("✗ {}", task.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or("failed")),
        "cancelled" => "called off".to_owned(),
        "succeeded" => {
            let copied = output
                .and_then(|o| ["DataCopied", "ContainerCopied", "ConfigCopied"].iter().find_map(|kind| o.get(kind)));
            if let Some(copied) = copied {
                let number = |field: &str| copied["component"][field].as_u64().unwrap_or(0);
                let new = number("new_bytes");
                let mut text = if new == 0 {
                    format!("{:>9}   already in the repository", size(number("bytes")))
                } else {
                    format!("{:>9}   new {}", size(number("bytes")), size(new))
                };
                if let Some(why) = copied["consistency"]["why"].as_str().filter(|why| !why.is_empty()) {
                    text.push_str(&format!("   {}", why));
                }
                return text;
            }
            if let Some(loaded) = output.and_then(|o| o.get("Loaded")) {
                let streams = loaded["streams"].as_array().map_or(0, Vec::len) as u64;
                let items: u64 =
                    loaded["streams"].as_array().into_iter().flatten().filter_map(|s| s["items"].as_u64()).sum();
                return format!("{}, {} counted and equal", count(streams, "stream"), count(items, "item"));
            }
            "done".to_owned()
        }
        "ready" if task.attempt > 0 => format!(
            "waits before attempt {}: {}",
            task.attempt + 1,
            task.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or_default()
        ),
        "ready" => "waits for its agent".to_owned(),
        _ => task.progress.as_ref().and_then(|p| p["phase"].as_str()).unwrap_or_default().to_owned(),
    }
}
