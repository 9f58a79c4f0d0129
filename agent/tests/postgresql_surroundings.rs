//! Servers in odd surroundings: settings that get in the way, standbys, full and silent servers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers stop at the first surprise too"
)]

#[path = "support/postgres_copy.rs"]
mod postgres_copy;

use std::time::Duration;

use ocopea_agent::data::{DataService, LoginOf, postgresql::PostgreSql};
use ocopea_protocol::failure::FailureClass;
use postgres_copy::{
    administrator,
    image::TestRepository,
    load, login, open,
    postgres::{Postgres, differences, pause},
    save, stream, subject, subject_at, subject_with, text,
};

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_roles_and_databases_and_functions_in_the_way_change_nothing() {
    let source = Postgres::start(&[]);
    let hostile = "SET search_path = evil, public, pg_catalog; SET statement_timeout = '300ms'; SET lock_timeout = '1ms'; \
         SET idle_in_transaction_session_timeout = '200ms'; SET idle_session_timeout = '300ms'; SET row_security = on; \
         SET default_transaction_read_only = on; SET default_transaction_isolation = 'serializable'; \
         SET default_transaction_deferrable = on; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'; \
         SET timezone = 'Asia/Tokyo'; SET extra_float_digits = -15; SET quote_all_identifiers = on; SET client_encoding = 'LATIN1'; \
         SET standard_conforming_strings = off; SET array_nulls = off; SET transform_null_equals = on; SET xmloption = document; \
         SET default_toast_compression = 'pglz'; SET check_function_bodies = on; SET escape_string_warning = on; \
         SET lc_messages = 'C'; SET client_min_messages = debug5; SET enable_seqscan = off; SET zero_damaged_pages = on; \
         SET backslash_quote = off; SET session_replication_role = replica; SET role = 'app'";
    source.psql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE DATABASE shop OWNER app");
    source.psql(
        "shop",
        "CREATE SCHEMA evil; SET search_path = ''; \
         CREATE FUNCTION evil.getdatabaseencoding() RETURNS name LANGUAGE sql AS $$ SELECT 'EVIL'::name $$; \
         CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT -1'; \
         CREATE FUNCTION evil.eq(oid, oid) RETURNS bool LANGUAGE sql AS 'SELECT false'; \
         CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.eq); \
         CREATE FUNCTION evil.pg_export_snapshot() RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$; \
         CREATE TABLE public.pg_class (oid oid, relkind text); CREATE TABLE evil.pg_database (datname text); \
         CREATE TABLE public.t (at timestamptz, i interval, b bytea, f float8, x xml, texts text[], d date); \
         INSERT INTO public.t VALUES ('2024-01-02 03:04:05+00', '1 day 02:00', '\\x00ff', 0.1, '<a/><b/>', '{NULL,\"null\"}', '2024-02-03'); \
         CREATE TABLE public.slow AS SELECT i, repeat('x', 500) AS filler FROM pg_catalog.generate_series(1, 40000) i; \
         CREATE VIEW public.v AS SELECT count(*) FROM public.slow; ALTER TABLE public.t OWNER TO app",
    );
    for setting in hostile.split("; ") {
        source.psql("postgres", &format!("ALTER DATABASE shop {setting}; ALTER ROLE app {setting}"));
    }
    source
        .psql("postgres", "ALTER ROLE postgres SET search_path = evil; ALTER ROLE ALL SET statement_timeout = '400ms'");
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let inspected = PostgreSql.inspect(&subject(&source)).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    assert!(inspected.gaps.is_empty(), "{:#?}", inspected.gaps);
    let source_subject = subject(&source);
    let mut held = open(&source_subject).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    pause(Duration::from_millis(700));
    held.check().await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let saved = postgres_copy::copy_under(&source_subject, held.as_ref(), &image)
        .await
        .unwrap_or_else(|failure| panic!("{}", text(&failure)));
    held.release().await.unwrap();
    assert_eq!(stream(&saved.copied.streams, "shop.public.slow").items, 40000);
    let target = Postgres::start(&[]);
    target.psql("postgres", "ALTER ROLE postgres SET default_transaction_read_only = on; ALTER ROLE postgres SET statement_timeout = '300ms'");
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    for server in [&source, &target] {
        let reset: Vec<String> = hostile
            .split("; ")
            .map(|setting| setting.split_whitespace().nth(1).unwrap())
            .map(|name| format!("ALTER DATABASE shop RESET {name}; ALTER ROLE app RESET {name}"))
            .collect();
        // Both carry all of them before they are taken off for the comparison.
        let count = "SELECT count(*) FROM pg_db_role_setting, unnest(setconfig)";
        server.psql("postgres", "SET statement_timeout = 0; ALTER ROLE ALL RESET ALL; ALTER ROLE postgres RESET ALL");
        let of_shop = server.psql("postgres", count).parse::<usize>().unwrap();
        assert!(of_shop >= 2 * reset.len(), "{of_shop}");
        server.psql("postgres", &reset.join("; "));
    }
    let differing = differences(&source.picture(), &target.picture());
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_the_connection_and_says_nothing_is_a_named_failure_in_bounded_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let subject = subject_at(address, vec![login(LoginOf::Application, "app", "x"), administrator()]);
    let started = subject.seams.clock.monotonic();
    for failure in [PostgreSql.inspect(&subject).await.err(), PostgreSql.prepare(&subject, false).await.err()] {
        let failure = failure.unwrap();
        assert_eq!(
            (failure.code.as_str(), failure.class),
            ("data.unreachable", FailureClass::Retryable),
            "{}",
            text(&failure)
        );
        assert!(failure.cause.contains(&address.to_string()), "{}", text(&failure));
    }
    assert!(subject.seams.clock.monotonic() - started < Duration::from_secs(45));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_saved_as_well_as_its_primary_or_says_what_it_can_not_read() {
    let primary = Postgres::start(&[]);
    primary.psql(
        "postgres",
        "CREATE TABLE t AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; CREATE SEQUENCE s; \
         CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; SELECT nextval('s'), lo_from_bytea(1, 'x')",
    );
    let standby = Postgres::standby(&primary);
    for _ in 0..100 {
        if standby.try_psql("postgres", "SELECT lo_get(1), (SELECT count(*) FROM t), * FROM m").is_ok() {
            break;
        }
        pause(Duration::from_millis(50));
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&subject(&standby), &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let target = Postgres::start(&[]);
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let differing = differences(&primary.picture(), &target.picture());
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    // What only the primary can read is named before a byte is copied.
    primary.psql("postgres", "CREATE UNLOGGED TABLE un (x int); INSERT INTO un VALUES (1)");
    while standby.psql("postgres", "SELECT count(*) FROM pg_class WHERE relname = 'un'") == "0" {
        pause(Duration::from_millis(50));
    }
    let inspected = PostgreSql.inspect(&subject(&standby)).await.unwrap();
    assert!(inspected.gaps.iter().any(|gap| gap.blocking && gap.what.contains("public.un")), "{:#?}", inspected.gaps);
    // A load needs a server that takes writes, and says so.
    let failure = load(&subject(&standby), &image, &saved).await.unwrap_err();
    assert_eq!(failure.code, "data.standby", "{}", text(&failure));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_hardly_a_connection_left_is_saved_or_says_so() {
    let source =
        Postgres::start(&[("max_connections", "8"), ("superuser_reserved_connections", "2"), ("max_wal_senders", "0")]);
    source.psql("postgres", "CREATE TABLE t AS SELECT i, repeat('x', 900) FROM generate_series(1, 150000) i");
    let sleepers: Vec<_> = (0..5).map(|_| source.psql_beside("postgres", "SELECT pg_sleep(600);\n")).collect();
    pause(Duration::from_millis(500));
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let failure = save(&subject(&source), &image).await.err().unwrap();
    assert_eq!((failure.code.as_str(), failure.class), ("data.busy", FailureClass::Retryable), "{}", text(&failure));
    assert!(failure.next.contains("max_connections"), "{}", text(&failure));
    drop(sleepers);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_read_is_listed_whole_and_what_is_advised_is_enough() {
    let source = Postgres::start(&[]);
    source.psql("postgres", "CREATE ROLE app LOGIN PASSWORD 'app'; CREATE ROLE o; CREATE DATABASE shop; CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC");
    source.psql(
        "shop",
        "CREATE SCHEMA s; CREATE TABLE s.t (x int) PARTITION BY LIST (x); CREATE TABLE s.t1 PARTITION OF s.t DEFAULT; INSERT INTO s.t VALUES (1); \
         CREATE MATERIALIZED VIEW s.m AS SELECT * FROM s.t; CREATE TABLE s.ident (x int GENERATED ALWAYS AS IDENTITY, y text); \
         CREATE TABLE s.some (x int, y int); GRANT SELECT (x) ON s.some TO app; \
         SELECT lo_from_bytea(i, 'x') FROM generate_series(1, 30) i",
    );
    let bound = subject_with(&source, vec![login(LoginOf::Application, "app", "app")]);
    for _ in 0..4 {
        let inspected = PostgreSql.inspect(&bound).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
        for gap in inspected.gaps.iter().filter(|gap| gap.blocking) {
            println!("{}: {} → {}", gap.what, gap.why, gap.next);
            let (place, statements) = gap.next.split_once(": ").unwrap_or(("", gap.next.strip_prefix("run ").unwrap()));
            let database = if place.contains("\"closed\"") { "closed" } else { "shop" };
            source.psql(database, statements);
        }
    }
    let repository = TestRepository::new().await;
    let image = repository.image().await;
    let saved = save(&bound, &image).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let target = Postgres::start(&[]);
    load(&subject(&target), &image, &saved).await.unwrap_or_else(|failure| panic!("{}", text(&failure)));
    let (mut before, mut after) = (source.picture(), target.picture());
    before.remove("roles");
    after.remove("roles");
    let differing = differences(&before, &after);
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
