//! PostgreSQL.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use ocopea_agent::{
    data::{Copied, DataService, Login, LoginOf, Reach, ServerReach, Subject, postgresql::PostgreSql},
    platform::exec::HostTools,
};
use ocopea_protocol::{image::DataKind, names::Digest, seams::Seams, secret::Secret};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Rounds, alone, figure,
    image::{TestImage, TestRepository},
    peak,
    postgres::{PASSWORD, Postgres},
};

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
    let held = PostgreSql.prepare(subject, false).await.unwrap().open().await.unwrap();
    let writer = image.writer(&subject.name, DataKind::PostgreSql).await;
    let copied = PostgreSql.copy(subject, &held.snapshot(), &writer).await.unwrap();
    held.release().await.unwrap();
    let manifest = image.finish(writer, &copied.facts).await;
    (copied, manifest)
}

fn run(command: &mut std::process::Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What fills the longest column of the biggest table.
#[derive(Clone, Copy)]
enum Filler {
    /// pgbench's own: 84 blanks in each row, which compress to nothing.
    Blank,
    /// Text of which a third remains when it is compressed, as it is with most applications.
    Text,
}

/// A pgbench database of this scale (15 MB each), saved and loaded; then one whose rows hold something.
pub async fn compare(scale: u64, rounds: u64) {
    let durable = [("fsync", "on"), ("max_wal_size", "4GB")];
    let source = Postgres::start(&durable);
    let target = Postgres::start(&durable);
    let idle = peak();
    for (filler, of) in [(Filler::Blank, ""), (Filler::Text, " of text")] {
        source.psql("postgres", "DROP DATABASE IF EXISTS bench");
        source.psql("postgres", "CREATE DATABASE bench");
        fill(&source, scale, filler);
        let size = source.psql("bench", "SELECT pg_database_size('bench') / 1000000");
        println!("pgbench database{of} of scale {scale}: {} MB, {rounds} rounds", size.trim());
        one(&source, &target, rounds, of).await;
    }
    alone("memory beyond idle, MB", peak() - idle);
}

fn fill(source: &Postgres, scale: u64, filler: Filler) {
    let scale = scale.to_string();
    let steps = |steps: &str| run(source.command("pgbench").args(["-i", "-q", "-s", &scale, "-I", steps, "bench"]));
    match filler {
        Filler::Blank => steps("dtgvp"),
        Filler::Text => {
            steps("dtg");
            source.psql(
                "bench",
                &format!(
                    "TRUNCATE pgbench_accounts; INSERT INTO pgbench_accounts SELECT n, (n - 1) / 100000 + 1, 0, \
                     left(concat_ws(' ', md5(n::text), md5((n / 7)::text), timestamp '2020-01-01' + n * interval '1 s'), 84) \
                     FROM generate_series(1, 100000 * {scale}) n"
                ),
            );
            steps("vp");
        }
    }
}

/// Rounds of both sides. Each begins behind a checkpoint, and loads find no database: else the first would write, and
/// drop, what the one before it left.
async fn one(source: &Postgres, target: &Postgres, rounds: u64, of: &str) {
    let place = tempfile::tempdir().unwrap();
    let dump = place.path().join("dump");
    let (mut saves, mut dumps, mut loads, mut restores) =
        (Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default());
    // CPU seconds of both processes, client and server: they don't depend on what else the machine does.
    let (mut save_cpu, mut dump_cpu, mut load_cpu, mut restore_cpu) =
        (Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default());
    for _ in 0..rounds {
        source.psql("postgres", "CHECKPOINT");
        let (before, started) = (cpu(source), Instant::now());
        run(source.command("pg_dump").args(["-Fc", "-f"]).arg(&dump).arg("bench"));
        dumps.took(started);
        dump_cpu.0.push(cpu(source) - before);

        let repository = TestRepository::new().await;
        let image = repository.image().await;
        let reach = subject(source);
        source.psql("postgres", "CHECKPOINT");
        let (before, started) = (cpu(source), Instant::now());
        let (copied, manifest) = save(&reach, &image).await;
        saves.took(started);
        save_cpu.0.push(cpu(source) - before);

        let reader = image.reader(&manifest).await;
        let reach = subject(target);
        empty(target);
        let (before, started) = (cpu(target), Instant::now());
        let loaded = PostgreSql.load(&reach, &reader, &copied.streams).await.unwrap();
        loads.took(started);
        load_cpu.0.push(cpu(target) - before);
        assert_eq!(loaded.streams.len(), copied.streams.len());

        empty(target);
        let (before, started) = (cpu(target), Instant::now());
        target.psql("postgres", "CREATE DATABASE bench");
        run(target.command("pg_restore").args(["-j2", "-d", "bench"]).arg(&dump));
        restores.took(started);
        restore_cpu.0.push(cpu(target) - before);
    }
    let (own, peer) = (saves.median(), dumps.median());
    figure(&format!("save{of}, s (pg_dump -Fc)"), own, peer, peer / own);
    let (own, peer) = (loads.median(), restores.median());
    figure(&format!("load{of}, s (pg_restore -j2)"), own, peer, peer / own);
    let (own, peer) = (save_cpu.median(), dump_cpu.median());
    figure(&format!("save{of}, CPU s, server's too"), own, peer, peer / own);
    let (own, peer) = (load_cpu.median(), restore_cpu.median());
    figure(&format!("load{of}, CPU s, server's too"), own, peer, peer / own);
}

fn cpu(server: &Postgres) -> f64 {
    // A session that has just ended counts when it is gone.
    crate::postgres::pause(std::time::Duration::from_millis(200));
    crate::postgres::cpu_of("self") + server.cpu()
}

fn empty(target: &Postgres) {
    target.psql("postgres", "DROP DATABASE IF EXISTS bench");
    target.psql("postgres", "CHECKPOINT");
}

/// Databases of a few rows in one server: what each costs beside its rows.
pub async fn small(number: u64) {
    let many = Postgres::start(&[]);
    for one in 0..number {
        many.psql("postgres", &format!("CREATE DATABASE small{one}"));
        many.psql(
            &format!("small{one}"),
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
    println!("{number} databases");
    alone("save, s for each database", started.elapsed().as_secs_f64() / number as f64);
}
