//! Saves and loads a pgbench database, side by side with `pg_dump -Fc` and `pg_restore -j2`, in interleaved rounds.
//!
//! `cargo run --release -p ocopea-agent --example bench_postgresql -- [SCALE] [ROUNDS] [SMALL DATABASES]`
//! Prints one line per figure: ours, the peer's, the ratio and the floor.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures real time and stops at the first surprise"
)]
#![allow(dead_code, reason = "the tests' support is shared")]

#[path = "../tests/support/image.rs"]
mod image;
#[path = "../tests/support/postgres.rs"]
mod postgres;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use image::{TestImage, TestRepository};
use ocopea_agent::{
    data::{Copied, DataService, Login, LoginOf, Reach, ServerReach, Subject, postgresql::PostgreSql},
    platform::exec::HostTools,
};
use ocopea_protocol::{image::DataKind, names::Digest, seams::Seams, secret::Secret};
use postgres::{PASSWORD, Postgres};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

fn subject(server: &Postgres) -> Subject {
    let seams = Seams::real(TaskTracker::new());
    let login = Login {
        of: LoginOf::Administrator,
        user: "postgres".to_owned(),
        password: Secret::new(PASSWORD),
        database: None,
        options: BTreeMap::new(),
    };
    Subject {
        name: "bench".parse().unwrap(),
        reach: Reach::Server(ServerReach {
            address: server.address(),
            logins: vec![login],
            tools: vec![Arc::new(HostTools { address: server.address(), seams: seams.clone() })],
            hosts: vec![],
        }),
        seams,
        stop: CancellationToken::new(),
        progress: Arc::new(|_| {}),
    }
}

async fn save(subject: &Subject, image: &TestImage) -> (Copied, Digest) {
    let started = Instant::now();
    let held = PostgreSql.prepare(subject, false).await.unwrap().open().await.unwrap();
    let opened = started.elapsed();
    let writer = image.writer(&subject.name, DataKind::PostgreSql).await;
    let copied = PostgreSql.copy(subject, &held.snapshot(), &writer).await.unwrap();
    let read = started.elapsed();
    held.release().await.unwrap();
    let manifest = image.finish(writer, &copied.facts).await;
    println!("  opened after {opened:.2?}, read after {read:.2?}, verified after {:.2?}", started.elapsed());
    (copied, manifest)
}

fn run(command: &mut std::process::Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

fn figure(name: &str, ours: f64, peer: &str, theirs: f64, floor: f64) {
    println!("{name:28} ours {ours:7.2} s   {peer:16} {theirs:7.2} s   {:5.2} x   (floor {floor} x)", theirs / ours);
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

#[tokio::main]
async fn main() {
    let argument =
        |at: usize, otherwise: usize| std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let (scale, rounds, small) = (argument(1, 20), argument(2, 3), argument(3, 30));
    let durable = [("fsync", "on"), ("max_wal_size", "4GB")];
    let source = Postgres::start(&durable);
    source.psql("postgres", "CREATE DATABASE bench");
    run(source.command("pgbench").args(["-i", "-q", "-s", &scale.to_string(), "bench"]));
    let size = source.psql("bench", "SELECT pg_database_size('bench') / 1000000");
    println!("pgbench scale {scale}: {size} MB, {rounds} rounds");
    let target = Postgres::start(&durable);
    let place = tempfile::tempdir().unwrap();
    let dump = place.path().join("dump");
    let (mut saves, mut dumps, mut loads, mut restores) = (vec![], vec![], vec![], vec![]);
    println!("memory before: {} MB", peak());
    for _ in 0..rounds {
        let started = Instant::now();
        run(source.command("pg_dump").args(["-Fc", "-f"]).arg(&dump).arg("bench"));
        dumps.push(started.elapsed());

        let repository = TestRepository::new().await;
        let image = repository.image().await;
        let reach = subject(&source);
        let started = Instant::now();
        let (copied, manifest) = save(&reach, &image).await;
        saves.push(started.elapsed());

        let reader = image.reader(&manifest).await;
        let reach = subject(&target);
        let started = Instant::now();
        let loaded = PostgreSql.load(&reach, &reader, &copied.streams).await.unwrap();
        loads.push(started.elapsed());
        assert_eq!(loaded.streams.len(), copied.streams.len());

        target.psql("postgres", "DROP DATABASE IF EXISTS bench");
        let started = Instant::now();
        target.psql("postgres", "CREATE DATABASE bench");
        run(target.command("pg_restore").args(["-j2", "-d", "bench"]).arg(&dump));
        restores.push(started.elapsed());
    }
    figure("postgresql save", median(&mut saves), "pg_dump -Fc", median(&mut dumps), 2.0);
    figure("postgresql load", median(&mut loads), "pg_restore -j2", median(&mut restores), 1.0);
    println!("peak memory of this process: {} MB", peak());
    drop(target);

    // Many small databases: what each costs beside its rows.
    let many = Postgres::start(&durable);
    for number in 0..small {
        many.psql("postgres", &format!("CREATE DATABASE small{number}"));
        many.psql(
            &format!("small{number}"),
            "CREATE TABLE users (id serial PRIMARY KEY, name text UNIQUE); CREATE TABLE things (id serial PRIMARY KEY, owner int \
             REFERENCES users, body jsonb); INSERT INTO users (name) SELECT 'user ' || i FROM generate_series(1, 500) i; \
             INSERT INTO things (owner, body) SELECT i, json_build_object('n', i) FROM generate_series(1, 500) i",
        );
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let reach = subject(&many);
    let started = Instant::now();
    save(&reach, &image).await;
    let each = started.elapsed().as_secs_f64() / small as f64;
    println!("{small} small databases          {each:.3} s each   (limit 0.3 s)");
}
