//! The `ocopea` command: the client, and `ocopea up`: coordinator and agents in one process.

mod arguments;
mod client;
mod commands;
mod listing;
mod output;
mod programs;
mod progress;

mod terminal;

mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::{arguments::Arguments, client::Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return output::fail(&Failure::local("the cryptographic provider was installed twice"));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(&Failure::local(format!("no runtime could be started: {error}"))),
    };
    let ended = runtime.block_on(commands::run(arguments));
    // A thread that still waits for a key to be pressed must not keep the command from ending.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // The program that `exec` ran has said what there is to say.
        Err(failure) if failure.what.is_empty() => ExitCode::from(failure.status),
        Err(failure) => output::fail(&failure),
    }
}
