//! Saves and loads of data services, beside what others do with the same servers, in interleaved rounds.
//!
//! `cargo run --release -p ocopea-agent --example bench -- postgresql SCALE ROUNDS`: a pgbench database beside
//! `pg_dump -Fc` and `pg_restore -j2`; `… -- mongodb MEGABYTES ROUNDS SEED`: collections beside a raw read of them to
//! nowhere; `… -- small NUMBER`: databases of a few rows. Prints a line per figure: what, ours, the peer's, the ratio.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures real time and stops at the first surprise"
)]
#![allow(dead_code, reason = "the tests' support is shared")]

#[path = "../../tests/support/image.rs"]
mod image;
#[path = "../../tests/support/mongod.rs"]
mod mongod;
mod mongodb;
#[path = "../../tests/support/postgres.rs"]
mod postgres;
mod postgresql;
#[path = "../../tests/support/subject.rs"]
mod subject;

/// Seconds of several rounds.
#[derive(Default)]
struct Rounds(Vec<f64>);

impl Rounds {
    fn took(&mut self, since: std::time::Instant) {
        self.0.push(since.elapsed().as_secs_f64());
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

/// One line. `ratio` is what its section says it is.
fn figure(what: &str, own: f64, peer: f64, ratio: f64) {
    println!("{what:36}{own:10.2}{peer:10.2}{ratio:10.3}");
}

/// One line without a peer.
fn alone(what: &str, own: f64) {
    println!("{what:36}{own:10.3}");
}

/// The most memory that this process ever had resident.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

#[tokio::main]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, otherwise: u64| words.get(at).map_or(otherwise, |text| text.parse().unwrap());
    match words.first().map(String::as_str) {
        Some("postgresql") => postgresql::compare(number(1, 20), number(2, 3)).await,
        Some("small") => postgresql::small(number(1, 30)).await,
        Some("mongodb") => mongodb::compare(number(1, 100), number(2, 3), number(3, 1)).await,
        _ => panic!("what is to be measured? postgresql, small or mongodb"),
    }
}
