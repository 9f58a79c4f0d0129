//! Coordinators and agents, bus, catalog and repository under one seeded scheduler with virtual time.
//!
//! The coordinator, the agent's worker, the catalog and the repository are the real ones. Below them are a database, a
//! store, a bus and clusters in memory (`database`, `store`, `bus`, `site` and `work`), which fail as chance says.
//! `scenario` is what happens in a seed, `check` what must hold behind it. `docs/decisions/simulation.md` says why so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a simulation stops at the first surprise, and says so"
)]

mod bus;
mod chance;
mod check;
mod database;
mod people;
mod runtime;
mod scenario;
mod site;
mod store;
mod work;

use clap::Parser;

/// Simulates seeds.
#[derive(Parser)]
struct Arguments {
    /// One seed, with all that happens
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds from FIRST up to LAST (without it)
    #[arg(long, default_value = "0..300")]
    seeds: String,
    /// With the logs of coordinators and agents
    #[arg(long)]
    log: bool,
    /// The protection that is broken
    #[arg(long)]
    plant: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if arguments.log {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(std::io::stderr)
            .without_time()
            .with_ansi(false)
            .init();
    }
    let place = tempfile::tempdir()?;
    let template = scenario::Template::new(place.path())?;
    if let Some(seed) = arguments.seed {
        let ended = scenario::run(&template, seed, true, arguments.plant)?;
        println!(
            "{:?} trace {:016x} polls {} virtual {:?}",
            ended.operations, ended.trace, ended.polls, ended.virtual_time
        );
        for wrong in ended.wrong {
            println!("seed {seed}: {wrong}");
        }
        return Ok(());
    }
    let (first, last) = arguments.seeds.split_once("..").unwrap_or(("0", "300"));
    let begun = std::time::Instant::now();
    let mut count = 0;
    for seed in first.parse::<u64>()?..last.parse()? {
        let ended = scenario::run(&template, seed, false, arguments.plant.clone())?;
        count += 1;
        for wrong in ended.wrong {
            println!("seed {seed}: {wrong}");
        }
    }
    println!("{count} seeds in {:?}", begun.elapsed());
    Ok(())
}
