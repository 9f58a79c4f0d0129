//! The PostgreSQL driver on real servers: what is saved is what comes back, and what goes wrong is named.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers stop at the first surprise too"
)]

#[path = "support/postgres_copy.rs"]
mod postgres_copy;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ocopea_agent::data::{DataService, LoginOf, Subject, postgresql::PostgreSql};
use ocopea_protocol::{
    failure::{FailureClass, TaskFailure},
    image::DataKind,
    task::Progress,
};
use postgres_copy::{
    Saved, administrator, copy_under,
    image::TestRepository,
    load, login, open,
    postgres::{PASSWORD, Postgres, binaries, differences, pause},
    save, stream, subject, subject_with, text,
};

const CORPUS: &str = include_str!("corpus/postgresql.sql");

/// A server with the corpus in databases of several kinds, and roles with everything that roles can have.
fn corpus() -> Postgres {
    let server =
        Postgres::start(&[("shared_preload_libraries", "pg_stat_statements"), ("default_toast_compression", "pglz")]);
    server.psql(
        "postgres",
        "CREATE ROLE \"shop owner\" LOGIN PASSWORD 'shop''s' CONNECTION LIMIT 50; CREATE ROLE reader NOLOGIN; \
         CREATE ROLE plain LOGIN PASSWORD 'plain' VALID UNTIL '2030-01-01' IN ROLE reader; \
         CREATE ROLE strong SUPERUSER CREATEROLE CREATEDB REPLICATION BYPASSRLS; CREATE ROLE without LOGIN; \
         SET password_encryption = md5; CREATE ROLE old LOGIN PASSWORD 'md5'; RESET password_encryption; \
         GRANT reader TO \"shop owner\" WITH ADMIN OPTION; GRANT pg_read_all_data TO old; \
         COMMENT ON ROLE reader IS 'reads'; ALTER ROLE plain SET search_path = app, \"Odd.schema \"\"x\"\"\", public; \
         ALTER ROLE plain SET statement_timeout = '5s'; ALTER ROLE ALL SET application_name = 'all''s'; \
         CREATE DATABASE shop OWNER \"shop owner\"; \
         CREATE DATABASE \"Odd \"\"db\"\". name=x\" OWNER plain; COMMENT ON DATABASE shop IS 'the shop'; \
         CREATE DATABASE latin OWNER reader ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'; \
         CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'; \
         CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de' LOCALE 'C.UTF-8' CONNECTION LIMIT 20; \
         REVOKE CONNECT ON DATABASE shop FROM PUBLIC; GRANT CONNECT, TEMPORARY ON DATABASE shop TO reader WITH GRANT OPTION; \
         ALTER DATABASE shop SET work_mem = '7MB'; ALTER DATABASE shop SET app.tenant = 'it''s'; \
         ALTER ROLE plain IN DATABASE shop SET search_path = 'app';",
    );
    server.psql("shop", CORPUS);
    server.psql(
        "Odd \"db\". name=x",
        "CREATE TABLE t (x text); INSERT INTO t VALUES ('odd'); DROP SCHEMA IF EXISTS nothing",
    );
    server.psql(
        "latin",
        "CREATE TABLE latin (x text); INSERT INTO latin VALUES ('Ärger'), (chr(160)); DROP TABLE IF EXISTS y",
    );
    server.psql("ascii", "SET client_encoding = 'SQL_ASCII'; CREATE TABLE bytes (x text); INSERT INTO bytes VALUES (E'\\xff\\xfe caf\\xe9')");
    server.psql("icu", "DROP SCHEMA public; CREATE SCHEMA other; CREATE TABLE other.t (x text PRIMARY KEY); INSERT INTO other.t VALUES ('ä'), ('z'), ('a')");
    server
}

/// A server as its image's init scripts would have left it.
fn target(settings: &[(&str, &str)]) -> Postgres {
    let server = Postgres::start(settings);
    server.psql(
        "postgres",
        "CREATE ROLE \"shop owner\" LOGIN PASSWORD 'initial'; CREATE DATABASE shop OWNER \"shop owner\"; \
         CREATE DATABASE made_by_init; CREATE TABLE made_by_init (x int); INSERT INTO made_by_init VALUES (1)",
    );
    server
        .psql("shop", "CREATE SCHEMA app; CREATE TABLE app.empty (other text); INSERT INTO app.empty VALUES ('init')");
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_exactly_as_it_was_saved() {
    let source = corpus();
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let inspected = PostgreSql.inspect(&subject(&source)).await.unwrap();
    assert!(inspected.gaps.is_empty(), "{:#?}", inspected.gaps);
    assert!(inspected.version.as_deref().is_some_and(|version| version.starts_with("1")));
    assert!(inspected.features.contains(&"extension:hstore".to_owned()), "{:?}", inspected.features);
    let saved = save(&subject(&source), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let before = source.picture();

    let streams = &saved.copied.streams;
    assert_eq!(stream(streams, "shop.app.nothing").items, 7);
    assert_eq!(stream(streams, "shop.app.huge").items, 2);
    assert!(stream(streams, "shop.app.huge").bytes > 40_000_000);
    assert_eq!(stream(streams, "shop.app.swallowing").items, 3);
    assert_eq!(stream(streams, "shop.app.tenants").items, 2);
    assert_eq!(stream(streams, "shop (large objects)").items, 3);
    assert!(!streams.iter().any(|stream| stream.name.contains("z_first")));

    let target = target(&[("shared_preload_libraries", "pg_stat_statements")]);
    let loaded = load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let after = target.picture();
    let differing = differences(&before, &after);
    assert!(differing.is_empty(), "{}\nnotices: {:#?}", differing.join("\n"), loaded.notices);
    assert_eq!(loaded.streams.len(), streams.len());
    for (saved, loaded) in streams.iter().zip(&loaded.streams) {
        assert_eq!((&saved.name, saved.items, &saved.content), (&loaded.name, loaded.items, &loaded.content));
    }
    // The application's own passwords open the copy, and what the init scripts made is gone.
    assert_eq!(target.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'made_by_init'"), "0");
    let again = TestRepository::new().await;
    let own = subject_with(&target, vec![login(LoginOf::Given, "shop owner", "shop's")]);
    assert!(PostgreSql.inspect(&own).await.is_ok_and(|inspected| !inspected.gaps.is_empty()));

    // Saved again, the copy has the same content under every name.
    let image = again.image().await;
    let second = save(&subject(&target), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    for (first, second) in streams.iter().zip(&second.copied.streams) {
        assert_eq!((&first.name, first.items), (&second.name, second.items));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_repeated_after_a_failure_ends_as_one_that_never_failed() {
    let source = Postgres::start(&[]);
    source.psql(
        "postgres",
        "CREATE ROLE \"shop owner\" LOGIN; CREATE DATABASE shop OWNER \"shop owner\"; CREATE DATABASE other OWNER \"shop owner\"",
    );
    for database in ["shop", "other"] {
        source.psql(
            database,
            "SET ROLE \"shop owner\"; CREATE EXTENSION hstore; CREATE SCHEMA app; \
             CREATE TABLE app.a AS SELECT i, repeat('x', 300) AS filler FROM generate_series(1, 30000) i; \
             ALTER TABLE app.a ADD PRIMARY KEY (i); CREATE TABLE app.b (i int REFERENCES app.a); \
             INSERT INTO app.b SELECT generate_series(1, 100); SELECT lo_from_bytea(1, 'x')",
        );
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(&source), &image).await.unwrap();
    let target = target(&[]);
    let first = subject(&target);
    let stop = first.stop.clone();
    let bytes = Arc::new(Mutex::new(0));
    let seen = bytes.clone();
    let first = Subject {
        progress: Arc::new(move |progress: Progress| {
            *seen.lock().unwrap() = progress.bytes;
            if progress.bytes > 5_000_000 {
                stop.cancel();
            }
        }),
        ..first
    };
    let failure = load(&first, &image, &saved).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Cancelled, "{}", text(&failure));
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let differing = differences(&source.picture(), &target.picture());
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_shows_the_instant_of_its_snapshot_while_writers_go_on() {
    let source = Postgres::start(&[]);
    source.psql(
        "postgres",
        "CREATE TABLE accounts (id int PRIMARY KEY, balance int, filler text); \
         INSERT INTO accounts SELECT i, 100, repeat('x', 200) FROM generate_series(1, 200000) i; \
         CREATE TABLE ledger (id serial PRIMARY KEY, moved int)",
    );
    // Money moves between accounts all the time: every snapshot has the same sum.
    let script = "SELECT format('BEGIN; UPDATE accounts SET balance = balance - %s WHERE id = %s; UPDATE accounts SET \
         balance = balance + %s WHERE id = %s; INSERT INTO ledger (moved) VALUES (%s); COMMIT;', i, 1 + i % 200000, i, \
         1 + (i * 7) % 200000, i) FROM generate_series(1, 40000) i \\gexec\n";
    let _writers = [source.psql_beside("postgres", script), source.psql_beside("postgres", script)];
    while source.psql("postgres", "SELECT count(*) > 100 FROM ledger") != "t" {
        pause(Duration::from_millis(50));
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let source_subject = subject(&source);
    let mut held = open(&source_subject).await.unwrap();
    pause(Duration::from_millis(500));
    held.check().await.unwrap();
    let saved =
        copy_under(&source_subject, held.as_ref(), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    held.check().await.unwrap();
    held.release().await.unwrap();
    let rows: u64 = source.psql("postgres", "SELECT count(*) FROM ledger").parse().unwrap();
    let ledger = stream(&saved.copied.streams, "postgres.public.ledger").items;
    assert!(ledger > 0 && ledger < rows, "{ledger} of {rows}");
    let target = target(&[]);
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert_eq!(target.psql("postgres", "SELECT sum(balance), count(*) FROM accounts"), "20000000|200000");
    let counted: u64 = target.psql("postgres", "SELECT count(*) FROM ledger").parse().unwrap();
    assert_eq!(counted, ledger);
    // A sequence is never behind the rows.
    let next = target.psql("postgres", "SELECT nextval('ledger_id_seq') > (SELECT max(id) FROM ledger)");
    assert_eq!(next, "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_waits_for_a_table_makes_the_holder_give_way_within_two_seconds() {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE TABLE t (x int); INSERT INTO t VALUES (1)");
    let mut held = open(&subject(&source)).await.unwrap();
    held.check().await.unwrap();
    let _migration = source.psql_beside("postgres", "TRUNCATE t;\n");
    pause(Duration::from_millis(500));
    let failure = held.check().await.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.gave-way", FailureClass::Retryable),
        "{}",
        text(&failure)
    );
    drop(held);
    for _ in 0..40 {
        if source.psql("postgres", "SELECT count(*) FROM t") == "0" {
            return;
        }
        pause(Duration::from_millis(50));
    }
    panic!("the migration still waits two seconds after the holder was dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_holder_is_lost_or_in_the_way_ends_as_retryable_and_leaves_nothing() {
    let source = Postgres::start(&[]);
    source.psql(
        "postgres",
        "CREATE TABLE t AS SELECT i, repeat('x', 500) FROM generate_series(1, 300000) i; CREATE TABLE other (x int)",
    );
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let source_subject = subject(&source);
    // Gone before the copy begins.
    let held = open(&source_subject).await.unwrap();
    let text_of_snapshot = held.snapshot();
    drop(held);
    pause(Duration::from_millis(300));
    let writer = image.writer(&source_subject.name, DataKind::PostgreSql).await;
    let failure = PostgreSql.copy(&source_subject, &text_of_snapshot, &writer).await.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.snapshot-lost", FailureClass::Retryable),
        "{}",
        text(&failure)
    );
    // Somebody wants a table while the copy runs: the copy itself lets go too.
    let held = open(&source_subject).await.unwrap();
    let _migration = source.psql_beside("postgres", "ALTER TABLE other ADD y int;\n");
    pause(Duration::from_millis(200));
    let slow = Subject { progress: Arc::new(|_| pause(Duration::from_millis(20))), ..source_subject.clone() };
    let image = repository.image().await;
    let writer = image.writer(&slow.name, DataKind::PostgreSql).await;
    let failure = PostgreSql.copy(&slow, &held.snapshot(), &writer).await.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.gave-way", FailureClass::Retryable),
        "{}",
        text(&failure)
    );
    // A snapshot text from elsewhere is an error and no panic.
    for nonsense in ["", "{}", "{\"version\":9,\"pids\":[],\"databases\":[]}", &"[".repeat(100_000)] {
        assert!(PostgreSql.copy(&source_subject, nonsense, &writer).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_between_export_and_copy_can_not_empty_a_table() {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) x; CREATE TABLE late (x int)");
    let subject = subject(&source);
    let held = open(&subject).await.unwrap();
    // Tables made and dropped meanwhile are neither in the way nor in the copy.
    source.psql("postgres", "CREATE TABLE after AS SELECT 1 AS x; CREATE INDEX ON after (x); DROP TABLE after");
    let refused = source.try_psql("postgres", "SET lock_timeout = '300ms'; TRUNCATE t").unwrap_err();
    assert!(refused.contains("lock timeout"), "{refused}");
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved =
        copy_under(&subject, held.as_ref(), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert_eq!(stream(&saved.copied.streams, "postgres.public.t").items, 1000);
    assert!(!saved.copied.streams.iter().any(|stream| stream.name.contains("after")));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_login_may_not_read_refuse_the_save_with_the_statements_that_would_grant_it() {
    let source = Postgres::start(&[]);
    source.psql(
        "postgres",
        "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE DATABASE shop; \
         CREATE ROLE copier LOGIN PASSWORD 'copier' BYPASSRLS IN ROLE pg_read_all_data",
    );
    source.psql(
        "shop",
        "CREATE TABLE mine (x int, tenant text); INSERT INTO mine VALUES (1, 'a'), (2, 'b'); ALTER TABLE mine OWNER TO app; \
         ALTER TABLE mine ENABLE ROW LEVEL SECURITY; ALTER TABLE mine FORCE ROW LEVEL SECURITY; \
         CREATE POLICY p ON mine USING (tenant = 'nobody'); CREATE SCHEMA closed; CREATE TABLE closed.\"other's\" (x int); \
         CREATE SEQUENCE hidden; SELECT lo_from_bytea(4711, 'x')",
    );
    let bound = subject_with(&source, vec![login(LoginOf::Application, "app", "app")]);
    let inspected = PostgreSql.inspect(&bound).await.unwrap();
    let next: Vec<&str> = inspected.gaps.iter().filter(|gap| gap.blocking).map(|gap| gap.next.as_str()).collect();
    let next = next.join("\n");
    for statement in [
        "ALTER ROLE \"app\" BYPASSRLS;",
        "GRANT USAGE ON SCHEMA \"closed\" TO \"app\";",
        "GRANT SELECT ON TABLE \"closed\".\"other's\" TO \"app\";",
        "GRANT SELECT ON SEQUENCE \"public\".\"hidden\" TO \"app\";",
        "GRANT SELECT ON LARGE OBJECT 4711 TO \"app\";",
    ] {
        assert!(next.contains(statement), "{statement} is not in\n{next}");
    }
    let failure = PostgreSql.prepare(&bound, false).await.err().unwrap();
    assert_eq!((failure.code.as_str(), failure.class), ("data.rights", FailureClass::Permanent), "{}", text(&failure));
    // What was advised is enough.
    for statements in inspected.gaps.iter().filter(|gap| gap.blocking) {
        let (_, statements) = statements.next.split_once(": ").unwrap();
        source.psql("shop", statements);
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&bound, &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert_eq!(stream(&saved.copied.streams, "shop.public.mine").items, 2);
    assert!(saved.copied.notices.iter().any(|notice| notice.contains("password")), "{:?}", saved.copied.notices);
    // Brought back, the application's own role has the password of its configuration.
    let target = Postgres::start(&[]);
    let logins = vec![administrator(), login(LoginOf::Application, "app", "app")];
    load(&subject_with(&target, logins), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let app = subject_with(&target, vec![login(LoginOf::Given, "app", "app")]);
    assert!(PostgreSql.inspect(&app).await.is_ok());
    // A login with rights is taken before one without.
    let both = vec![login(LoginOf::Application, "app", "app"), administrator()];
    assert!(PostgreSql.inspect(&subject_with(&source, both)).await.unwrap().gaps.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_or_unreachable_server_is_named_and_no_secret_is_shown() {
    let mut source = Postgres::start(&[]);
    let wrong = subject_with(&source, vec![login(LoginOf::Given, "postgres", "wrong-password"), administrator()]);
    let failure = PostgreSql.inspect(&wrong).await.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.authentication", FailureClass::Permanent),
        "{}",
        text(&failure)
    );
    assert!(failure.cause.contains("28P01") && failure.next.contains("--credentials"), "{}", text(&failure));
    assert!(!text(&failure).contains("wrong-password"));
    let none = PostgreSql.inspect(&subject_with(&source, vec![])).await.unwrap_err();
    assert!(none.next.contains("--credentials shop-db="), "{}", text(&none));
    let mut hidden = login(LoginOf::Administrator, "postgres", "");
    hidden.options.insert("password_file".to_owned(), "/run/secrets/password".to_owned());
    let failure = PostgreSql.inspect(&subject_with(&source, vec![hidden])).await.unwrap_err();
    assert!(failure.next.contains("/run/secrets/password"), "{}", text(&failure));
    source.kill();
    let failure = PostgreSql.inspect(&subject(&source)).await.unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.class),
        ("data.unreachable", FailureClass::Retryable),
        "{}",
        text(&failure)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_or_hangs_midway_is_a_named_failure_in_bounded_time() {
    for freeze in [false, true] {
        let source = Arc::new(Mutex::new(Postgres::start(&[])));
        source
            .lock()
            .unwrap()
            .psql("postgres", "CREATE TABLE t AS SELECT i, repeat('x', 1000) FROM generate_series(1, 200000) i");
        let repository = TestRepository::new().await;
        let image = repository.image().await;
        let subject = subject(&source.lock().unwrap());
        let held = open(&subject).await.unwrap();
        let fallen = Arc::new(Mutex::new(false));
        let (server, once) = (source.clone(), fallen.clone());
        let subject = Subject {
            progress: Arc::new(move |progress: Progress| {
                let mut fallen = once.lock().unwrap();
                if progress.bytes > 10_000_000 && !*fallen {
                    *fallen = true;
                    let mut server = server.lock().unwrap();
                    if freeze { server.freeze() } else { server.kill() }
                }
            }),
            ..subject
        };
        let started = subject.seams.clock.monotonic();
        let failure = copy_under(&subject, held.as_ref(), &image).await.err().unwrap();
        let took = subject.seams.clock.monotonic() - started;
        assert!(*fallen.lock().unwrap());
        assert_eq!(
            (failure.code.as_str(), failure.class),
            ("data.unreachable", FailureClass::Retryable),
            "{}",
            text(&failure)
        );
        assert!(took < Duration::from_secs(150), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_load_could_make_again_is_named_before_a_byte_is_copied() {
    let source = Postgres::start(&[]);
    source.psql(
        "postgres",
        "CREATE FUNCTION et() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$; \
         CREATE EVENT TRIGGER \"watch.er\" ON ddl_command_end EXECUTE FUNCTION et(); \
         CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=1 password=canary' PUBLICATION p WITH (connect = false); \
         CREATE PUBLICATION everything FOR ALL TABLES; CREATE EXTENSION postgres_fdw; \
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; CREATE FOREIGN TABLE ft (x int) SERVER far; \
         CREATE FUNCTION c() RETURNS int LANGUAGE internal AS 'pg_backend_pid'",
    );
    source.psql("postgres", "CREATE TABLE kept (x int); INSERT INTO kept VALUES (1)");
    let inspected = PostgreSql.inspect(&subject(&source)).await.unwrap();
    let names: Vec<&str> = inspected.gaps.iter().map(|gap| gap.name.as_str()).collect();
    for name in [
        "shop-db:event-trigger:postgres.watch.er",
        "shop-db:subscription:postgres.sub",
        "shop-db:publication:postgres.everything",
        "shop-db:extension:postgres.postgres_fdw",
        "shop-db:foreign-server:postgres.far",
        "shop-db:foreign-table:postgres.public.ft",
        "shop-db:function:postgres.public.c()",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:#?}");
    }
    assert!(inspected.gaps.iter().all(|gap| gap.blocking && !format!("{gap:?}").contains("canary")));
    // A table that can't be made without one of them would be lost with its rows: there is nothing to choose then.
    source.psql(
        "postgres",
        "CREATE TYPE wrapped AS (x int); CREATE DOMAIN d AS int DEFAULT c(); CREATE TABLE needs (y d[], z wrapped); \
         CREATE TABLE needs_too (x int CHECK (x < c())); INSERT INTO needs VALUES ('{1}')",
    );
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let failure = save(&subject(&source), &image).await.err().unwrap();
    assert!(
        failure.cause.contains("table public.needs ") && failure.cause.contains("table public.needs_too "),
        "{}",
        text(&failure)
    );
    source.psql("postgres", "DROP TABLE needs, needs_too");
    // The rest is left out, said so, and what stays comes back.
    let image = repository.image().await;
    let saved = save(&subject(&source), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert!(saved.copied.notices.iter().any(|notice| notice.contains("watch.er")), "{:?}", saved.copied.notices);
    let target = target(&[]);
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert_eq!(target.psql("postgres", "SELECT count(*) FROM kept"), "1");
    assert_eq!(target.psql("postgres", "SELECT count(*) FROM pg_event_trigger"), "0");
    assert_eq!(target.psql("postgres", "SELECT count(*) FROM pg_subscription"), "0");
    assert_eq!(target.psql("postgres", "SELECT string_agg(extname, ',') FROM pg_extension"), "plpgsql");
}

/// Loads a database while somebody puts a trigger on the table `victim` before its rows come.
async fn load_meddled_with(victim: &str, trigger: &'static str) -> TaskFailure {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE DATABASE shop");
    // Bigger tables are loaded first, by two connections, which leaves time to meddle with the small one.
    source.psql(
        "shop",
        &format!(
            "CREATE TABLE big AS SELECT i, repeat('x', 500) FROM generate_series(1, 200000) i; CREATE TABLE big2 AS TABLE big; \
             CREATE TABLE victim AS SELECT x, {victim}"
        ),
    );
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(&source), &image).await.unwrap();
    let target = Postgres::start(&[]);
    // The load drops the database and makes it anew, so the meddler comes back until the table is there.
    let address = target.port;
    let meddler = std::thread::Builder::new()
        .spawn(move || {
            let statement = format!(
                "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.x % 10 = 0 THEN {trigger} END IF; RETURN NEW; END'; \
                 CREATE TRIGGER meddle BEFORE INSERT ON victim FOR EACH ROW EXECUTE FUNCTION meddle();"
            );
            for _ in 0..400 {
                let status = std::process::Command::new(binaries().join("psql"))
                    .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-1", "-h", "127.0.0.1", "-U", "postgres", "-d", "shop", "-p", &address.to_string(), "-c", &statement])
                    .env("PGPASSWORD", PASSWORD)
                    .stderr(std::process::Stdio::null())
                    .status()
                    .unwrap();
                if status.success() {
                    return true;
                }
                pause(Duration::from_millis(5));
            }
            false
        })
        .unwrap();
    let failure = load(&subject(&target), &image, &saved).await.unwrap_err();
    assert!(meddler.join().unwrap(), "{}", text(&failure));
    assert_eq!(failure.class, FailureClass::Permanent, "{}", text(&failure));
    assert!(failure.cause.contains("shop.public.victim"), "{}", text(&failure));
    failure
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_something_at_the_target_swallows_fail_the_load_and_name_the_stream() {
    let failure = load_meddled_with("0 AS y FROM generate_series(1, 1000) x", "RETURN NULL;").await;
    assert_eq!(failure.code, "data.count", "{}", text(&failure));
    assert!(failure.cause.contains("900 of 1000"), "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_something_at_the_target_changes_fail_the_load_in_tables_of_any_size() {
    for victim in
        ["0 AS y FROM generate_series(1, 1000) x", "0 AS y, repeat('y', 500) AS z FROM generate_series(1, 150000) x"]
    {
        let failure = load_meddled_with(victim, "NEW.y := 1;").await;
        assert_eq!(failure.code, "data.content", "{}", text(&failure));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_the_target_refuses_is_named_with_its_table() {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE DATABASE shop");
    source.psql(
        "shop",
        "CREATE TABLE limits (least int); INSERT INTO limits VALUES (0); \
         CREATE FUNCTION fine(x int) RETURNS bool LANGUAGE sql AS 'SELECT x >= least FROM public.limits'; \
         CREATE TABLE checked (x int, filler text CHECK (public.fine(length(filler)))); \
         INSERT INTO checked SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i; UPDATE limits SET least = 1000",
    );
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(&source), &image).await.unwrap();
    let target = target(&[]);
    // The check reads another table: whether it is empty or full by then, either way its rows are refused by name.
    let result = load(&subject(&target), &image, &saved).await;
    if let Err(failure) = result {
        assert_eq!(
            (failure.code.as_str(), failure.class),
            ("data.refused", FailureClass::Permanent),
            "{}",
            text(&failure)
        );
        assert!(failure.cause.contains("checked"), "{}", text(&failure));
    } else {
        // `CHECK` is satisfied while `limits` is still empty: then the rows are there, counted and compared.
        assert_eq!(target.psql("shop", "SELECT count(*) FROM checked"), "1000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cancelled_stops_at_once_and_lets_go_of_the_server() {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE TABLE t AS SELECT i, repeat('x', 1000) FROM generate_series(1, 300000) i");
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let subject = subject(&source);
    let held = open(&subject).await.unwrap();
    let stop = subject.stop.clone();
    let subject = Subject {
        progress: Arc::new(move |progress: Progress| {
            if progress.bytes > 20_000_000 {
                stop.cancel();
            }
        }),
        ..subject
    };
    let failure = copy_under(&subject, held.as_ref(), &image).await.err().unwrap();
    assert_eq!(failure.class, FailureClass::Cancelled, "{}", text(&failure));
    drop(held);
    for _ in 0..60 {
        let left = source
            .psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('ocopea', 'pg_dump')");
        if left == "0" {
            return;
        }
        pause(Duration::from_millis(50));
    }
    panic!("sessions of a cancelled copy are still there after three seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_newer_server_or_release_is_refused_by_name() {
    let source = Postgres::start(&[]);
    let repository = TestRepository::new().await;
    let subject = subject(&source);
    for (from, to, code) in
        [("\"server\":15", "\"server\":99", "data.version"), ("\"version\":2,", "\"version\":99,", "repository.newer")]
    {
        let image = repository.image().await;
        let held = open(&subject).await.unwrap();
        let writer = image.writer(&subject.name, DataKind::PostgreSql).await;
        let mut copied = PostgreSql.copy(&subject, &held.snapshot(), &writer).await.unwrap();
        let changed = copied.facts.replacen(from, to, 1);
        assert_ne!(changed, copied.facts);
        copied.facts = changed;
        let manifest = image.finish(writer, &copied.facts).await;
        let target = Postgres::start(&[]);
        target.psql("postgres", "CREATE DATABASE untouched");
        let failure =
            load(&subject_with(&target, vec![administrator()]), &image, &Saved { copied, manifest }).await.unwrap_err();
        assert_eq!(failure.code, code, "{}", text(&failure));
        assert_eq!(target.psql("postgres", "SELECT count(*) FROM pg_database WHERE datname = 'untouched'"), "1");
    }
}
