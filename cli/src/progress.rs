//! How an operation's tasks are put into words: one line for each component.
//!
//! The columns are `name  kind  bytes  [bar]  rate  what is to be known`. A task that runs has a bar, one that ended
//! has its sums. What has no bytes says how long it took, if that was long.

use std::collections::BTreeMap;

use ocopea_coordinator::api::{OperationView, TaskView};
use serde_json::Value;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::{count, parse_time, plain, size};

/// Cells of the column of names: longer ones push the others aside.
const NAME: usize = 14;
/// Cells of the column of kinds.
const KIND: usize = 11;
/// Cells of a bar.
const BAR: u64 = 14;

/// What the tasks of one operation say about each other: which kind of data service bears which name.
#[derive(Debug, Default)]
pub struct Kinds(BTreeMap<String, String>);

impl Kinds {
    /// Learns from what was found (a save) or planned (a restore).
    pub fn learn(&mut self, operation: &OperationView) {
        for output in operation.tasks.iter().filter_map(|task| task.output.as_ref()) {
            let found = output["Inspected"]["data"].as_array().into_iter().flatten().map(|one| (one, "name"));
            let planned = output["Planned"]["data"].as_array().into_iter().flatten().map(|one| (one, "component"));
            for (one, field) in found.chain(planned) {
                if let (Some(name), Some(kind)) = (one[field].as_str(), one["kind"].as_str()) {
                    self.0.insert(name.to_owned(), kind.to_owned());
                }
            }
        }
    }

    fn of(&self, name: &str) -> &str {
        self.0.get(name).map_or("data", String::as_str)
    }
}

/// Whether a task is worth a line while all goes well.
pub fn is_shown(task: &TaskView) -> bool {
    let quiet = matches!(task.kind.as_str(), "pin" | "unpin" | "open-snapshot");
    !quiet || matches!(task.state.as_str(), "failed") || (task.state == "ready" && task.attempt > 0)
}

/// Name and kind of what a task is about: `data:messages:0` is `messages`, `mongodb`.
pub fn subject(task: &TaskView, kinds: &Kinds) -> (String, String) {
    let label = task.label.strip_prefix("undo:").unwrap_or(&task.label);
    let mut parts = label.split(':');
    let first = parts.next().unwrap_or_default();
    let (name, kind) = match (first, parts.next()) {
        ("data" | "load", Some(name)) => (name, kinds.of(name)),
        ("open", Some(name)) => (name, "snapshot"),
        ("container" | "push", Some(name)) => (name, "container"),
        ("server", Some(name)) => (name, "server"),
        (other, _) => (other, ""),
    };
    let kind = if task.undo { "take back" } else { kind };
    (name.to_owned(), kind.to_owned())
}

/// The line of a task.
pub fn line(task: &TaskView, kinds: &Kinds, now_ms: i64) -> String {
    let (name, kind) = subject(task, kinds);
    let Cells { amount, bar, rate, rest } = cells(task, now_ms);
    let mut text = format!("  {} {} ", padded(&name, NAME), padded(&kind, KIND));
    if !bar.is_empty() {
        text.push_str(&format!("{amount:<17} {bar} {rate:>10}   "));
    } else if !amount.is_empty() {
        text.push_str(&format!("{amount:<8} {rate:>10}   "));
    }
    plain((text + &rest).trim_end())
}

/// The line folded between words, so that what is behind the columns stays there where a terminal is narrow.
pub fn folded(line: &str, cells: usize) -> String {
    const INDENT: usize = 2 + NAME + 1 + KIND + 1;
    if line.width() < cells || cells < 2 * INDENT {
        return line.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    // Spaces belong to the word behind them: columns keep theirs.
    let mut rest = line;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start().len();
        let end = rest.get(spaces..).and_then(|word| word.find(' ')).map_or(rest.len(), |at| spaces + at);
        let (word, behind) = rest.split_at(end);
        if used > INDENT && used + word.width() >= cells {
            out.push('\n');
            out.push_str(&" ".repeat(INDENT));
            out.push_str(word.trim_start());
            used = INDENT + word.trim_start().width();
        } else {
            out.push_str(word);
            used += word.width();
        }
        rest = behind;
    }
    out
}

/// What a line says behind the name.
#[derive(Default)]
struct Cells {
    amount: String,
    bar: String,
    rate: String,
    rest: String,
}

impl Cells {
    fn only(rest: impl Into<String>) -> Self {
        Self { rest: rest.into(), ..Self::default() }
    }
}

fn cells(task: &TaskView, now_ms: i64) -> Cells {
    let cause = || task.failure.as_ref().and_then(|f| f["cause"].as_str()).unwrap_or("failed").to_owned();
    match task.state.as_str() {
        "failed" => Cells::only(format!("✗ {}", cause())),
        "cancelled" => Cells::only("called off"),
        "succeeded" => ended(task),
        "ready" if task.attempt > 0 => Cells::only(format!("waits before attempt {}: {}", task.attempt + 1, cause())),
        "ready" | "waiting" => Cells::only("waits"),
        _ => running(task, now_ms),
    }
}

fn running(task: &TaskView, now_ms: i64) -> Cells {
    let progress = task.progress.clone().unwrap_or_default();
    let number = |field: &str| progress[field].as_u64().unwrap_or(0);
    let (bytes, new) = (number("bytes"), number("new_bytes"));
    let mut phase = progress["phase"].as_str().unwrap_or_default().to_owned();
    if task.attempt > 1 {
        phase = format!("{phase} (attempt {} of {})", task.attempt, task.most_attempts).trim_start().to_owned();
    }
    if bytes == 0 {
        return Cells::only(if phase.is_empty() { "…" } else { &phase });
    }
    let all = number("of_bytes");
    let (amount, bar) = if all == 0 {
        (size(bytes), String::new())
    } else {
        // What was estimated may be less than what comes.
        let all = all.max(bytes);
        let full = bytes.saturating_mul(BAR) / all;
        let bar = (0..BAR).map(|cell| if cell < full { '█' } else { '░' }).collect();
        (format!("{}/{}", size(bytes), size(all)), bar)
    };
    let since = task.started.as_deref().and_then(parse_time).map_or(0, |began| now_ms - began);
    if new > 0 {
        phase = format!("new {}   {phase}", size(new));
    }
    Cells { amount, bar, rate: rate(bytes, since), rest: phase }
}

fn ended(task: &TaskView) -> Cells {
    let took = span(task);
    let Some(output) = task.output.as_ref() else { return Cells::only(took_words(took)) };
    let copied = ["DataCopied", "ContainerCopied", "ConfigCopied"].iter().find_map(|kind| output.get(kind));
    if let Some(copied) = copied {
        let number = |field: &str| copied["component"][field].as_u64().unwrap_or(0);
        let (bytes, new) = (number("bytes"), number("new_bytes"));
        let mut rest = Vec::new();
        rest.extend(copied["objects"].as_u64().map(|objects| count(objects, "object")));
        rest.push(if new > 0 || bytes == 0 {
            format!("new {}", size(new))
        } else {
            "already in the repository".to_owned()
        });
        rest.extend(consistency(&copied["consistency"]));
        let is_data = output.get("DataCopied").is_some();
        let rate = if is_data { rate(bytes, took) } else { String::new() };
        return Cells { amount: size(bytes), rate, rest: rest.join("   "), ..Cells::default() };
    }
    if let Some(inventory) = output.get("Inspected") {
        let many = |field: &str| inventory[field].as_array().map_or(0, Vec::len) as u64;
        let parts = [
            count(many("containers"), "container image"),
            count(many("objects"), "object"),
            count(many("data"), "data service"),
        ];
        return Cells::only(parts.join(", "));
    }
    if let Some(plan) = output.get("Planned") {
        let many = |field: &str| plan[field].as_array().map_or(0, Vec::len) as u64;
        return Cells::only(match many("refusals") {
            0 => count(many("steps"), "step"),
            refusals => format!("{}, {}", count(many("steps"), "step"), count(refusals, "refusal")),
        });
    }
    if let Some(loaded) = output.get("Loaded") {
        let streams: Vec<&Value> = loaded["streams"].as_array().into_iter().flatten().collect();
        let sum = |field: &str| streams.iter().filter_map(|s| s[field].as_u64()).sum::<u64>();
        let equal = format!("{} in {} counted: equal", items(&streams), count(streams.len() as u64, "stream"));
        let bytes = sum("bytes");
        return Cells { amount: size(bytes), rate: rate(bytes, took), rest: equal, ..Cells::default() };
    }
    Cells::only(took_words(took))
}

/// `100 000 documents`; of several units `12 items`.
fn items(streams: &[&Value]) -> String {
    let sum: u64 = streams.iter().filter_map(|s| s["items"].as_u64()).sum();
    let mut units: Vec<&str> = streams.iter().filter_map(|s| s["unit"].as_str()).collect();
    units.sort_unstable();
    units.dedup();
    match (units.as_slice(), sum) {
        ([unit], 1) => format!("1 {}", unit.strip_suffix('s').unwrap_or(unit)),
        ([unit], _) => format!("{sum} {unit}"),
        _ => count(sum, "item"),
    }
}

/// What is to be known of a copy's consistency.
fn consistency(found: &Value) -> Option<String> {
    let (level, why) = (found["level"].as_str()?, found["why"].as_str().unwrap_or_default());
    Some(match (level, why) {
        (level, "") => level.to_owned(),
        (level, why) if why.starts_with(level) => why.to_owned(),
        (level, why) => format!("{level}: {why}"),
    })
}

fn span(task: &TaskView) -> i64 {
    let moment = |text: &Option<String>| text.as_deref().and_then(parse_time);
    moment(&task.ended).zip(moment(&task.started)).map_or(0, |(end, begin)| end - begin)
}

fn took_words(ms: i64) -> String {
    if ms < 1000 { "done".to_owned() } else { format!("done in {}.{} s", ms / 1000, ms % 1000 / 100) }
}

/// `412 MB/s`; nothing where the time is too short to tell.
fn rate(bytes: u64, ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(ms) if ms >= 100 && bytes > 0 => format!("{}/s", size(bytes.saturating_mul(1000) / ms)),
        _ => String::new(),
    }
}

/// Text in a column of so many cells of a terminal, whatever script it is in.
pub fn padded(text: &str, cells: usize) -> String {
    format!("{text}{}", " ".repeat(cells.saturating_sub(text.width())))
}

/// Text cut to so many cells, with a mark where it was cut.
pub fn cut(text: &str, cells: usize) -> String {
    if text.width() <= cells {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = cells.saturating_sub(1);
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if wide > left {
            break;
        }
        left -= wide;
        out.push(c);
    }
    out.push('…');
    out
}
