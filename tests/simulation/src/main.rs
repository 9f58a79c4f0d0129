//! Coordinators and agents, bus, catalog and repository under one seeded scheduler with virtual time.
//!
//! The coordinator, the agent's worker, the catalog and the repository are the real ones. Below them are a database, a
//! store, a bus and clusters in memory (`database`, `store`, `bus`, `site` and `work`), which fail as chance says.
//! `scenario` is what happens in a seed, `check` what must hold behind it, `planted` what breaks it on purpose.
//! `docs/decisions/simulation.md` says why so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a simulation stops at the first surprise, and says so; it takes real time to run"
)]

mod bus;
mod chance;
mod check;
mod database;
mod people;
mod planted;
mod runner;
mod runtime;
mod scenario;
mod site;
mod store;
mod work;

use std::process::ExitCode;

use clap::Parser;

/// Simulates seeds: coordinators and agents with faults, in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Plays one seed, and tells what happens
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds from FIRST up to LAST (without it)
    #[arg(long, value_name = "FIRST..LAST", default_value = "0..10000")]
    seeds: runner::Seeds,
    /// Ends after so many seconds, whatever was done
    #[arg(long = "for", value_name = "SECONDS")]
    at_most: Option<u64>,
    /// Processes; as many as there are cores
    #[arg(long)]
    jobs: Option<u64>,
    /// With the logs of coordinators and agents
    #[arg(long)]
    log: bool,
    /// Breaks this protection
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
    /// Breaks this protection, or one after the other, until it is noticed; prints who noticed what
    #[arg(long, value_name = "NAME|all", conflicts_with_all = ["seed", "plant"])]
    planted: Option<String>,
    /// One of the processes: every so many-th seed, from its own
    #[arg(long, hide = true, value_name = "OWN/ALL")]
    share: Option<String>,
    /// Ends with the first seed that is wrong
    #[arg(long, hide = true)]
    first: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.log {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::stderr);
        log.without_time().with_ansi(false).init();
    }
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get() as u64);
    let jobs = arguments.jobs.unwrap_or(cores).max(1);
    if let Some(seed) = arguments.seed {
        return runner::one(seed, arguments.plant);
    }
    if let Some(share) = &arguments.share {
        return runner::share(&arguments.seeds, share, arguments.plant, arguments.first);
    }
    if let Some(planted) = &arguments.planted {
        return runner::planted(planted, &arguments.seeds, jobs);
    }
    runner::all(&arguments.seeds, arguments.at_most, jobs, arguments.plant.as_deref())
}
