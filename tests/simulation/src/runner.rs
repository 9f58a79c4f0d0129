//! Runs seeds: one process for each core, since what all copies of a process share is shared by the seeds of one, too.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Child, Command, ExitCode, Stdio},
    str::FromStr,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use ocopea_protocol::seams::CAN_PLANT;

use crate::{
    planted::{Noticed, PLANTED, Planted},
    runtime::lock,
    scenario::{Ended, Template, run},
};

/// Seeds that a broken protection may take to be noticed.
const MOST_SEEDS: u64 = 600;

/// `FIRST..LAST`.
#[derive(Clone, Debug)]
pub struct Seeds(u64, u64);

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "FIRST..LAST is expected".to_owned();
        let (first, last) = text.split_once("..").ok_or_else(wanted)?;
        Ok(Self(first.parse().map_err(|_| wanted())?, last.parse().map_err(|_| wanted())?))
    }
}

fn template() -> anyhow::Result<Template> {
    let place = tempfile::tempdir()?;
    Template::new(place.path()).context("what all seeds begin with can't be made")
}

/// A seed; a panic is something wrong, too.
fn played(template: &Template, seed: u64, loud: bool, plant: Option<String>) -> Result<Ended, String> {
    let played = catch_unwind(AssertUnwindSafe(|| run(template, seed, loud, plant)));
    match played {
        Ok(Ok(ended)) => Ok(ended),
        Ok(Err(error)) => Err(format!("it could not be played: {error:#}")),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("a panic: {said}"))
        }
    }
}

/// Plays one seed, and tells everything.
pub fn one(seed: u64, plant: Option<String>) -> anyhow::Result<ExitCode> {
    let template = template()?;
    let ended = match played(&template, seed, true, plant) {
        Ok(ended) => ended,
        Err(error) => bail!("seed {seed}: {error}"),
    };
    println!(
        "seed {seed}: trace {:016x} of {} polls, {:.3} s of virtual time; {:?}",
        ended.trace,
        ended.polls,
        ended.virtual_time.as_secs_f64(),
        ended.operations
    );
    for wrong in &ended.wrong {
        println!("WRONG {wrong}");
    }
    Ok(if ended.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every so many-th seed: a line for each that is wrong, and for each hundred.
pub fn share(seeds: &Seeds, share: &str, plant: Option<String>, first: bool) -> anyhow::Result<ExitCode> {
    let (own, all) = share.split_once('/').context("OWN/ALL is expected")?;
    let (own, all): (u64, u64) = (own.parse()?, all.parse()?);
    let template = template()?;
    let mut out = std::io::stdout().lock();
    for seed in (seeds.0..seeds.1).filter(|seed| seed % all == own) {
        match played(&template, seed, false, plant.clone()) {
            Ok(ended) => {
                for wrong in &ended.wrong {
                    writeln!(out, "wrong {seed} {wrong}")?;
                }
                let operations: Vec<String> =
                    ended.operations.iter().map(|(end, count)| format!("{count} {end}")).collect();
                let virtual_ms = ended.virtual_time.as_millis();
                writeln!(out, "done {seed} {} {virtual_ms} {}", ended.polls, operations.join(","))?;
                if first && !ended.wrong.is_empty() {
                    break;
                }
            }
            Err(error) => {
                writeln!(out, "wrong {seed} {}", error.replace('\n', " "))?;
                if first {
                    break;
                }
            }
        }
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn start(seeds: &Seeds, own: u64, all: u64, plant: Option<&str>, first: bool) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seeds", &format!("{}..{}", seeds.0, seeds.1), "--share", &format!("{own}/{all}")]);
    command.args(plant.map(|plant| format!("--plant={plant}"))).args(first.then_some("--first"));
    // A panic is told as what is wrong.
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
}

/// Ends with whoever holds it.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All seeds, by so many processes.
pub fn all(seeds: &Seeds, at_most: Option<u64>, jobs: u64, plant: Option<&str>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let (told, lines) = mpsc::channel();
    let mut processes = Vec::new();
    for own in 0..jobs {
        let mut process = start(seeds, own, jobs, plant, false)?;
        let out = process.stdout.take().context("it says nothing")?;
        processes.push(Ends(process));
        let told = told.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if told.send(line).is_err() {
                    return;
                }
            }
        });
    }
    drop(told);
    let (mut done, mut polls, mut virtual_ms, mut wrong) = (0u64, 0u64, 0u64, 0u64);
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let left =
            at_most.map_or(Duration::from_secs(3600), |most| Duration::from_secs(most).saturating_sub(begun.elapsed()));
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(mpsc::RecvTimeoutError::Timeout) if at_most.is_none() => continue,
            Err(_) => break,
        };
        let mut words = line.splitn(3, ' ');
        let (kind, seed, rest) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if kind == Some("wrong") {
            wrong += 1;
            *kinds.entry(rest.split(" (").next().unwrap_or(rest).to_owned()).or_default() += 1;
            println!("seed {seed}: {rest}\n  again: make simulate SEED={seed}");
            continue;
        }
        let mut figures = rest.splitn(3, ' ');
        done += 1;
        polls += figures.next().and_then(|figure| figure.parse::<u64>().ok()).unwrap_or(0);
        virtual_ms += figures.next().and_then(|figure| figure.parse::<u64>().ok()).unwrap_or(0);
        for end in figures.next().unwrap_or_default().split(',') {
            if let Some((count, end)) = end.split_once(' ') {
                *ends.entry(end.to_owned()).or_default() += count.parse::<u64>().unwrap_or(0);
            }
        }
        if done.is_multiple_of(1000) {
            eprintln!("{done} seeds, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    drop(processes);
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{done} seeds from {} on in {seconds:.1} s by {jobs} processes ({:.1} ms of a core for each): {:.0} hours of virtual \
         time, {polls} polls",
        seeds.0,
        seconds * 1000.0 * jobs as f64 / done.max(1) as f64,
        virtual_ms as f64 / 3_600_000.0
    );
    for (end, count) in &ends {
        println!("  {count:>7} {end}");
    }
    for (kind, count) in &kinds {
        println!("wrong {count} times: {kind}");
    }
    if done == 0 || (at_most.is_none() && done + wrong < seeds.1 - seeds.0) {
        bail!("a process ended before its seeds were done");
    }
    println!("{wrong} wrong");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who noticed a broken protection: seed, how many were played, and what was wrong.
type Noticing = Result<Option<(u64, u64, String)>, String>;

fn by_seeds(planted: &Planted, seeds: &Seeds) -> Noticing {
    let seeds = Seeds(seeds.0, seeds.1.min(seeds.0 + MOST_SEEDS));
    let mut process = start(&seeds, 0, 1, Some(planted.name), true).map_err(|error| error.to_string())?;
    let out = process.stdout.take().ok_or("it says nothing")?;
    let _ends = Ends(process);
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        let mut words = line.splitn(3, ' ');
        if words.next() == Some("wrong") {
            let seed: u64 = words.next().and_then(|seed| seed.parse().ok()).unwrap_or(0);
            let what = words.next().unwrap_or_default();
            return Ok(Some((seed, seed + 1 - seeds.0, what.split(" (").next().unwrap_or(what).to_owned())));
        }
    }
    Ok(None)
}

/// `true`: the test fails, as it should.
fn by_test(planted: &Planted, package: &str, target: &str, name: &str) -> Result<bool, String> {
    let mut command = Command::new("cargo");
    command.args(["test", "-q", "--locked", "-p", package, "--test", target, name]).env("OCOPEA_PLANTED", planted.name);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().map_err(|error| error.to_string())?;
    Ok(!status.success())
}

/// Breaks protections until it is noticed, and prints the table.
pub fn planted(name: &str, seeds: &Seeds, jobs: u64) -> anyhow::Result<ExitCode> {
    if !CAN_PLANT {
        bail!("protections can be broken in builds for development only: make simulate PLANTED={name}");
    }
    let wanted: Vec<&Planted> = PLANTED.iter().filter(|planted| name == "all" || planted.name == name).collect();
    if wanted.is_empty() {
        bail!("nothing is called {name}: see tests/simulation/src/planted.rs");
    }
    let (waiting, found) = (Mutex::new(wanted.clone()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(planted) = lock(&waiting).pop() else { return };
                    let noticed = match planted.noticed {
                        Noticed::BySeeds => by_seeds(planted, seeds),
                        Noticed::ByTest(package, target, test) => by_test(planted, package, target, test)
                            .map(|failed| failed.then(|| (0, 0, format!("{target}: {test}")))),
                    };
                    eprintln!("{}: {noticed:?}", planted.name);
                    lock(&found).insert(planted.name, noticed);
                }
            });
        }
    });
    let found = lock(&found);
    let mut unnoticed = 0;
    println!("| broken | what then happens | noticed by | seed |\n|---|---|---|---|");
    for planted in wanted {
        let (by, seed) = match found.get(planted.name) {
            Some(Ok(Some((_, 0, test)))) => (format!("the test `{test}`"), String::new()),
            Some(Ok(Some((seed, played, wrong)))) => (wrong.clone(), format!("{seed} (after {played})")),
            Some(Err(error)) => (format!("**could not be tried: {error}**"), String::new()),
            _ => ("**nobody**".to_owned(), String::new()),
        };
        unnoticed += u32::from(by.starts_with("**"));
        println!("| `{}` | {} | {by} | {seed} |", planted.name, planted.what);
    }
    println!("{unnoticed} unnoticed");
    Ok(if unnoticed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
