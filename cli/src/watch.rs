//! Follows an operation: bars for a person, one line per event for a pipe.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ocopea_coordinator::api::{OperationView, TaskView};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    client::{Client, Failure},
    commands::now_ms,
    output,
    progress::{self, Kinds},
};

/// How often a coordinator that went away is looked for, a second apart.
const PATIENCE: u32 = 60;
/// The exit status of what a person interrupted.
pub const INTERRUPTED: u8 = 130;

/// Follows until it is over; an operation that failed is an error. Ctrl-C stops the watching, never the operation.
pub async fn follow(client: &Client, id: &str, quiet: bool) -> Result<OperationView, Failure> {
    let mut interrupts = interrupts()?;
    let mut screen = Screen::new(quiet);
    let mut lost = 0;
    loop {
        let watched = tokio::select! {
            watched = watch_once(client, id, &mut screen, &mut lost) => watched,
            _ = interrupts.recv() => return Err(left_running(id, &mut screen)),
        };
        let gone = match watched {
            Ok(Some(operation)) => {
                screen.close();
                return outcome(operation);
            }
            Ok(None) => None,
            Err(failure) if failure.status == 6 => Some(failure),
            Err(failure) => {
                screen.close();
                return Err(failure);
            }
        };
        lost += 1;
        match gone {
            Some(failure) if lost > PATIENCE => {
                screen.close();
                return Err(failure.next(format!("the operation goes on with it: ocopea operations watch {id}")));
            }
            Some(failure) if lost == 1 => screen.remark(&format!("{}: waiting for it", failure.what)),
            _ => {}
        }
        tokio::select! {
            () = pause(Duration::from_secs(1)) => {}
            _ = interrupts.recv() => return Err(left_running(id, &mut screen)),
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client's pause before it asks again is nothing that a simulation runs"
)]
pub async fn pause(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Ctrl-C from now on. None is lost, whatever is being waited for.
pub fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|error| Failure::local(format!("Ctrl-C can't be listened for: {error}")))
}

fn left_running(id: &str, screen: &mut Screen) -> Failure {
    screen.close();
    let what = if screen.title.is_empty() { "the operation".to_owned() } else { screen.title.clone() };
    output::remark(format!("interrupted: {what} goes on"));
    output::remark(format!("  watch: ocopea operations watch {id}"));
    output::remark(format!("  stop:  ocopea cancel {id}"));
    Failure { status: INTERRUPTED, ..Failure::local("") }
}

/// Reads events until the operation is over (`Some`) or the connection ends (`None`).
async fn watch_once(
    client: &Client,
    id: &str,
    screen: &mut Screen,
    lost: &mut u32,
) -> Result<Option<OperationView>, Failure> {
    let events = client.stream(&format!("/api/v1/operations/{id}/events")).await?;
    futures::pin_mut!(events);
    let mut buffer = Vec::new();
    while let Some(chunk) = events.next().await {
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
            *lost = 0;
            screen.show(&operation);
            if operation.ended.is_some() {
                return Ok(Some(operation));
            }
        }
    }
    Ok(None)
}

/// Turns a failed operation into an error with cause, place and next step.
pub fn outcome(operation: OperationView) -> Result<OperationView, Failure> {
    if operation.state == "succeeded" {
        return Ok(operation);
    }
    let text = |field: &str| operation.failure.as_ref().and_then(|f| f[field].as_str()).unwrap_or_default().to_owned();
    let (code, class) = (text("code"), text("class"));
    let status = match class.as_str() {
        _ if code.ends_with(".refused") => 4,
        _ if code.contains("not-found") => 3,
        "Conflict" => 5,
        _ => 1,
    };
    let failed = operation.tasks.iter().find(|task| task.state == "failed" && !task.undo);
    let place = match failed {
        None => format!("{}, operation {}", operation.title, operation.id),
        Some(task) => {
            let again = match class.as_str() {
                "Permanent" if task.attempt < task.most_attempts => " (not tried again: it would end the same way)",
                _ => "",
            };
            let attempt = format!("attempt {} of {}{again}", task.attempt, task.most_attempts);
            format!("{}, task {} ({}), {attempt}", operation.title, task.label, task.id)
        }
    };
    let what = match text("what") {
        empty if empty.is_empty() => format!("{} {}", operation.title, operation.state),
        what => what,
    };
    // Whatever could not be taken back stands in the cause.
    let clean = operation.tasks.iter().all(|task| !task.undo || task.state == "succeeded");
    let left = match operation.kind.as_str() {
        "save" => "nothing was saved",
        "restore" if clean && operation.tasks.iter().any(|task| task.undo) => "all that it had made was taken back",
        _ => "",
    };
    let next = [text("next").as_str(), left].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    Err(Failure { status, what, cause: text("cause"), place, next })
}

/// What is seen of an operation while it runs. On a terminal, what runs has a bar at the bottom, and what ended is
/// written above; else one line per event.
struct Screen {
    bars: Option<MultiProgress>,
    running: BTreeMap<String, ProgressBar>,
    told: BTreeMap<String, String>,
    kinds: Kinds,
    title: String,
    quiet: bool,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let bars = (!quiet && output::is_terminal()).then(MultiProgress::new);
        Self {
            bars,
            running: BTreeMap::new(),
            told: BTreeMap::new(),
            kinds: Kinds::default(),
            title: String::new(),
            quiet,
        }
    }

    fn close(&mut self) {
        for (_, bar) in std::mem::take(&mut self.running) {
            bar.finish_and_clear();
        }
    }

    fn remark(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| output::remark(text)),
            None if self.quiet => {}
            None => output::remark(text),
        }
    }

    fn show(&mut self, operation: &OperationView) {
        self.title.clone_from(&operation.title);
        if self.quiet {
            return;
        }
        self.kinds.learn(operation);
        let now_ms = now_ms();
        for task in operation.tasks.iter().filter(|task| progress::is_shown(task)) {
            if matches!(task.state.as_str(), "succeeded" | "failed" | "cancelled") {
                self.ended(task, now_ms);
            } else if self.bars.is_some() {
                self.bar(task, now_ms);
            } else {
                self.tell(task, now_ms);
            }
        }
    }

    /// Says once how a task ended. What was called off before it began is nobody's news.
    fn ended(&mut self, task: &TaskView, now_ms: i64) {
        if let Some(bar) = self.running.remove(&task.label) {
            bar.finish_and_clear();
        }
        if task.state == "cancelled" && task.attempt == 0 {
            return;
        }
        let mut line = progress::line(task, &self.kinds, now_ms);
        if self.bars.is_some() {
            line = progress::folded(&line, output::width());
        }
        let state = format!("{} {}", task.state, task.attempt);
        if self.told.insert(task.label.clone(), state.clone()) != Some(state) {
            self.remark(&line);
        }
    }

    fn bar(&mut self, task: &TaskView, now_ms: i64) {
        if task.attempt == 0 {
            return;
        }
        let Some(bars) = &self.bars else { return };
        let bar = self.running.entry(task.label.clone()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::no_length());
            if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(progress::line(task, &self.kinds, now_ms));
    }

    /// A line when a task begins, and when it must be tried again; not for each byte.
    fn tell(&mut self, task: &TaskView, now_ms: i64) {
        if task.attempt == 0 {
            return;
        }
        let state = format!("{} {}", task.state, task.attempt);
        if self.told.insert(task.label.clone(), state.clone()) == Some(state) {
            return;
        }
        if task.state == "claimed" {
            let fresh = TaskView { progress: None, ..task.clone() };
            let line = progress::line(&fresh, &self.kinds, now_ms);
            output::remark(format!("{} begins", line.trim_end_matches(" …").trim_end()));
        } else {
            output::remark(progress::line(task, &self.kinds, now_ms));
        }
    }
}
