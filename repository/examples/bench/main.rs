//! Saves and restores a seeded directory tree, beside restic, in interleaved rounds; prints medians and ratios.
//!
//! `bench PLACE [ROUNDS] [MEGABYTES|DIRECTORY] [SEED]`: everything lies under PLACE, which is emptied first. With a
//! directory, copies of its regular files are saved instead of what is made up.
//! `bench s3 PLACE STORE [ROUNDS] [MEGABYTES] [SEED]`: the same in a bucket (STORE is `s3://BUCKET?endpoint=URL…`, its keys
//! in the environment), beside the directory and beside restic in the same bucket.
//! Each measured run is a process of its own (`bench save|restore …`), so that its peak memory is its own.
#![expect(clippy::print_stdout, reason = "it reports to the terminal")]

mod memory;
mod peer;
mod s3;
mod target;
mod tree;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use ocopea_protocol::seams::Seams;
use tokio_util::task::TaskTracker;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let seams = Seams::real(TaskTracker::new());
    // It may be there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match words.as_slice() {
        ["save", tree, place] => runtime.block_on(peer::save(Path::new(tree), Path::new(place), &seams))?,
        ["restore", place, to] => runtime.block_on(peer::restore(Path::new(place), Path::new(to), &seams))?,
        ["memory-save", place, size] => runtime.block_on(memory::save(Path::new(place), size.parse()?, &seams))?,
        ["memory-load", place, size] => runtime.block_on(memory::load(Path::new(place), size.parse()?, &seams))?,
        ["memory", place] => memory(Path::new(place), 8, &seams)?,
        ["memory", place, size] => memory(Path::new(place), size.parse()?, &seams)?,
        ["s3", place, store, rest @ ..] => {
            let number = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |text| text.parse());
            s3::compare(Path::new(place), store, number(0, 3)?, number(1, 1000)?, number(2, 1)?, &seams)?;
        }
        [place, rest @ ..] => {
            let number = |at: usize, default: u64| rest.get(at).map_or(Ok(default), |text| text.parse());
            let content = rest.get(1).copied().unwrap_or("2000");
            compare(Path::new(place), number(0, 3)?, content, number(2, 1)?, &seams)?;
        }
        [] => bail!("usage: bench PLACE [ROUNDS] [MEGABYTES|DIRECTORY] [SEED]\n       bench memory PLACE [GIGABYTES]"),
    }
    Ok(())
}

/// Figures of one tool over all rounds, in seconds.
#[derive(Default)]
struct Times {
    first: Vec<f64>,
    second: Vec<f64>,
    restore: Vec<f64>,
    cpu: [f64; 3],
    stored: u64,
    stored_second: u64,
    peak_kb: u64,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn compare(place: &Path, rounds: u64, content: &str, seed: u64, seams: &Seams) -> Result<()> {
    let (one, two) = emptied(place)?;
    let bytes = match content.parse::<u64>() {
        Ok(megabytes) => tree::make(&one, megabytes << 20, seed)?,
        Err(_) => tree::copy(Path::new(content), &one)?,
    };
    let changed = tree::change(&one, &two, seed + 1)?;
    println!("tree of {} MB (seed {seed}), then {} MB of it changed", bytes / 1_000_000, changed / 1_000_000);
    let (mut ours, mut restic) = (Times::default(), Times::default());
    for round in 1..=rounds {
        // Who begins changes from round to round.
        if round % 2 == 0 {
            round_of_restic(place, round, [&one, &two], &mut restic, None, seams)?;
            round_of_ours(place, round, [&one, &two], &mut ours, None, seams)?;
        } else {
            round_of_ours(place, round, [&one, &two], &mut ours, None, seams)?;
            round_of_restic(place, round, [&one, &two], &mut restic, None, seams)?;
        }
        println!("round {round} of {rounds} done");
    }
    println!("{:28}{:>12}{:>12}{:>10}", "", "ocopea", "restic", "ratio");
    let line = |what: &str, own: f64, peer: f64, ratio: f64| println!("{what:28}{own:12.2}{peer:12.2}{ratio:10.3}");
    let steps = ["first save", "second save (5 %)", "restore"];
    let walls = [(&ours.first, &restic.first), (&ours.second, &restic.second), (&ours.restore, &restic.restore)];
    for (step, (own, peer)) in steps.iter().zip(walls) {
        let (own, peer) = (median(own), median(peer));
        line(&format!("{step}, s"), own, peer, peer / own);
    }
    for (at, step) in steps.iter().enumerate() {
        let (own, peer) = (ours.cpu[at] / rounds as f64, restic.cpu[at] / rounds as f64);
        line(&format!("{step}, CPU s"), own, peer, peer / own);
    }
    for (what, own, peer) in [
        ("stored, MB", ours.stored, restic.stored),
        ("stored with second, MB", ours.stored_second, restic.stored_second),
    ] {
        line(what, own as f64 / 1e6, peer as f64 / 1e6, own as f64 / peer as f64);
    }
    println!("{:28}{:12.1}", "peak memory, MB", ours.peak_kb as f64 / 1024.0);
    Ok(())
}

/// An empty place, and where the trees go.
fn emptied(place: &Path) -> Result<(PathBuf, PathBuf)> {
    if place.exists() {
        std::fs::remove_dir_all(place)?;
    }
    std::fs::create_dir_all(place)?;
    Ok((place.join("tree-1"), place.join("tree-2")))
}

/// Processor time of all children that have ended, in seconds.
fn cpu_of_children() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Behind the name in parentheses: children's user and system time are the 14th and 15th word, in hundredths.
    let words = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ticks: u64 = words.skip(13).take(2).map(|word| word.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 / 100.0)
}

/// Wall time, processor time, and what it said.
fn timed(seams: &Seams, command: &mut Command) -> Result<(f64, f64, String)> {
    let (start, cpu) = (seams.clock.monotonic(), cpu_of_children()?);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let took = seams.clock.monotonic() - start;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((took.as_secs_f64(), cpu_of_children()? - cpu, said))
}

fn round_of_ours(
    place: &Path,
    round: u64,
    [one, two]: [&Path; 2],
    times: &mut Times,
    store: Option<&str>,
    seams: &Seams,
) -> Result<()> {
    let kind = if store.is_some() { "bucket" } else { "ours" };
    let (repository, out) = (place.join(format!("{kind}-{round}")), place.join(format!("{kind}-out-{round}")));
    let own = std::env::current_exe()?;
    let mut run = |step: usize, words: &[&std::ffi::OsStr]| -> Result<f64> {
        let mut command = Command::new(&own);
        if let Some(store) = store {
            command.env(peer::STORE, store);
        }
        let (took, cpu, said) = timed(seams, command.args(words))?;
        times.cpu[step] += cpu;
        let peak = said.lines().find_map(|line| line.strip_prefix("peak-kb ")?.parse().ok()).unwrap_or(0);
        times.peak_kb = times.peak_kb.max(peak);
        Ok(took)
    };
    let first = run(0, &["save".as_ref(), one.as_os_str(), repository.as_os_str()])?;
    let blobs = repository.join("repository").join("blobs");
    let size = || if store.is_some() { Ok(0) } else { size_of(&blobs) };
    let stored = size()?;
    let second = run(1, &["save".as_ref(), two.as_os_str(), repository.as_os_str()])?;
    let restore = run(2, &["restore".as_ref(), repository.as_os_str(), out.as_os_str()])?;
    times.stored = stored;
    times.stored_second = size()?;
    times.first.push(first);
    times.second.push(second);
    times.restore.push(restore);
    same(two, &out, seams)?;
    Ok(())
}

fn round_of_restic(
    place: &Path,
    round: u64,
    [one, two]: [&Path; 2],
    times: &mut Times,
    store: Option<&str>,
    seams: &Seams,
) -> Result<()> {
    let (repository, out) = (place.join(format!("restic-{round}")), place.join(format!("restic-out-{round}")));
    let repository = store.map_or(repository, |store| PathBuf::from(format!("{store}/restic-{round}")));
    let size = || if store.is_some() { Ok(0) } else { size_of(&repository) };
    let (live, cache) = (place.join("live"), place.join(format!("restic-cache-{round}")));
    let run = |directory: &Path, words: &[&std::ffi::OsStr]| -> Result<(f64, f64)> {
        let mut command = Command::new("restic");
        command.env("RESTIC_PASSWORD", "bench").env("RESTIC_CACHE_DIR", &cache);
        command.args(["-q", "-o", "s3.bucket-lookup=path", "-r"]).arg(&repository).args(words).current_dir(directory);
        let (took, cpu, _) = timed(seams, &mut command)?;
        Ok((took, cpu))
    };
    run(place, &["init".as_ref()])?;
    // Its second save finds the first by the path: both trees are saved from one place.
    std::fs::rename(one, &live)?;
    let first = run(&live, &["backup".as_ref(), ".".as_ref()]);
    std::fs::rename(&live, one)?;
    let stored = size()?;
    std::fs::rename(two, &live)?;
    let second = run(&live, &["backup".as_ref(), ".".as_ref()]);
    std::fs::rename(&live, two)?;
    let restore = run(place, &["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), out.as_os_str()])?;
    times.stored = stored;
    times.stored_second = size()?;
    for (step, (values, (took, cpu))) in
        [(&mut times.first, first?), (&mut times.second, second?), (&mut times.restore, restore)]
            .into_iter()
            .enumerate()
    {
        values.push(took);
        times.cpu[step] += cpu;
    }
    Ok(())
}

/// Writes and reads one long stream, each in a process of its own, and tells what memory that took.
fn memory(place: &Path, gigabytes: u64, seams: &Seams) -> Result<()> {
    if place.exists() {
        std::fs::remove_dir_all(place)?;
    }
    let own = std::env::current_exe()?;
    println!("{:28}{:>12}{:>12}{:>12}{:>10}", "", "idle, MB", "peak, MB", "beyond, MB", "s");
    let mut most = 0;
    for (what, word) in [("write", "memory-save"), ("read", "memory-load")] {
        let mut command = Command::new(&own);
        let (took, _, said) = timed(seams, command.arg(word).arg(place).arg(gigabytes.to_string()))?;
        let figure = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let (idle, peak) = figure("idle-kb").zip(figure("peak-kb")).context("a run didn't tell its memory")?;
        let mb = |kb: u64| kb as f64 / 1024.0;
        let line = format!("{what} a stream of {gigabytes} GB");
        println!("{line:28}{:12.1}{:12.1}{:12.1}{took:10.1}", mb(idle), mb(peak), mb(peak - idle));
        most = most.max(peak - idle);
    }
    std::fs::remove_dir_all(place)?;
    if most > memory::MOST_KB {
        bail!("more than {} MB beyond idle", memory::MOST_KB >> 10);
    }
    Ok(())
}

/// Bytes of all files below.
fn size_of(place: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in tree::files(place)? {
        sum += std::fs::metadata(place.join(path))?.len();
    }
    Ok(sum)
}

/// What was restored is what was saved.
fn same(saved: &Path, restored: &Path, _seams: &Seams) -> Result<()> {
    let (own, back): (Vec<PathBuf>, Vec<PathBuf>) = (tree::files(saved)?, tree::files(restored)?);
    if own != back {
        bail!("{} files were saved and {} restored", own.len(), back.len());
    }
    for path in own {
        if std::fs::read(saved.join(&path))? != std::fs::read(restored.join(&path))? {
            bail!("{} was restored otherwise than it was saved", path.display());
        }
    }
    Ok(())
}
