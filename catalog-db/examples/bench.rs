//! How long people wait for a page of very many images, on both engines.
//!
//! `cargo run --release -p ocopea-catalog-db --example bench -- IMAGES ROUNDS SEED`: makes a catalog of so many images on a
//! PostgreSQL server of its own and in a SQLite file, then asks for each kind of page so many times, each time for another.
//! Prints a line per figure: what, the 99th of 100 answers in ms, the most that it may be, the ratio.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench measures real time and stops at the first surprise"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use ocopea_catalog_db::{
    Catalog,
    images::{Image, ImageSearch},
    model::Role,
};
use ocopea_protocol::{
    ids::{ImageId, TeamId},
    names::Digest,
    seams::{BoxFuture, Clock, Seams},
    time::Timestamp,
};

#[path = "../../agent/tests/support/postgres.rs"]
#[allow(dead_code, reason = "shared with the tests of the PostgreSQL driver, which use more of it")]
mod postgres;

/// The most that a page may take, in ms.
const MOST: f64 = 50.0;
/// Images of one page.
const PAGE: u64 = 100;
/// Images that are added in one transaction.
const AT_ONCE: usize = 500;
/// From one image to the next, in ms.
const STEP: i64 = 60_000;
const START: i64 = 1_700_000_000_000;

struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst).unsigned_abs())
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(span))
    }
}

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }

    /// Small ones are much more frequent.
    fn skewed(&mut self, limit: u64) -> u64 {
        self.below(limit).min(self.below(limit)).min(self.below(limit))
    }
}

fn image(catalog: &Catalog, team: TeamId, number: u64, numbers: &mut Numbers) -> Image {
    let application = format!("shop-{}", numbers.skewed(200));
    let mut record = [0; 32];
    catalog.seams.entropy.fill(&mut record);
    Image {
        id: ImageId::generate(&catalog.seams),
        team,
        record: Digest(record),
        name: format!("{application} nightly {number}"),
        application,
        site: format!("site-{}", numbers.below(20)),
        creator: format!("person-{}", numbers.below(50)),
        comment: format!("before the upgrade to version 3.{}", numbers.below(1000)),
        bytes: 1 << 30,
        new_bytes: 1 << 20,
        created: catalog.seams.clock.now(),
        repository: None,
        labels: [
            ("environment".to_owned(), ["production", "staging", "test"][numbers.skewed(3) as usize].to_owned()),
            ("ticket".to_owned(), format!("OPS-{}", numbers.below(20_000))),
            ("build".to_owned(), number.to_string()),
        ]
        .into(),
        body: format!("{{\"components\":[{}]}}", vec!["{\"name\":\"database\",\"bytes\":1}"; 64].join(",")),
    }
}

async fn fill(engine: &str, catalog: &Catalog, clock: &Moved, images: u64, seed: u64) -> (TeamId, Vec<ImageId>) {
    let begun = Instant::now();
    let team = catalog.ensure_member("one", "ann", Role::Administrator).await.unwrap().team;
    let other = catalog.ensure_member("two", "ben", Role::Administrator).await.unwrap().team;
    let (mut numbers, mut ids) = (Numbers(seed), Vec::new());
    let mut transaction = catalog.begin().await.unwrap();
    for number in 0..images {
        clock.0.fetch_add(STEP, Ordering::SeqCst);
        // Now and then one of another team, in between.
        let of = if number % 10 == 0 { other } else { team };
        let image = image(catalog, of, number, &mut numbers);
        transaction.add_image(&image).await.unwrap();
        if of == team {
            ids.push(image.id);
        }
        if number as usize % AT_ONCE == AT_ONCE - 1 {
            transaction.commit().await.unwrap();
            transaction = catalog.begin().await.unwrap();
        }
    }
    transaction.commit().await.unwrap();
    println!("# {engine}: {images} images (seed {seed}) in {:.0} s", begun.elapsed().as_secs_f64());
    (team, ids)
}

type Asks<'a> = Box<dyn Fn(&mut Numbers) -> ImageSearch + 'a>;

/// What is asked for, by name; another of the kind for every number.
fn kinds(ids: &[ImageId]) -> Vec<(&'static str, Asks<'_>)> {
    let page = || ImageSearch { limit: PAGE, ..ImageSearch::default() };
    let words = move |text: Vec<String>| ImageSearch { text, ..page() };
    let label =
        move |name: &str, value: Option<String>| ImageSearch { labels: vec![(name.to_owned(), value)], ..page() };
    let span = ids.len() as u64 * STEP as u64;
    vec![
        ("newest", Box::new(move |_| page())),
        (
            "a page in the midst",
            Box::new(move |n| ImageSearch { before: Some(ids[n.below(ids.len() as u64) as usize]), ..page() }),
        ),
        (
            "of an application",
            Box::new(move |n| ImageSearch { application: Some(format!("shop-{}", n.below(200))), ..page() }),
        ),
        ("of a site", Box::new(move |n| ImageSearch { site: Some(format!("site-{}", n.below(20))), ..page() })),
        ("of no site", Box::new(move |n| ImageSearch { site: Some(format!("nowhere-{}", n.below(20))), ..page() })),
        ("of a person", Box::new(move |n| ImageSearch { creator: Some(format!("person-{}", n.below(50))), ..page() })),
        (
            "at a site and of an application",
            Box::new(move |n| ImageSearch {
                application: Some(format!("shop-{}", n.below(200))),
                site: Some(format!("site-{}", n.below(20))),
                ..page()
            }),
        ),
        (
            "of a day",
            Box::new(move |n| {
                let since = START + i64::try_from(n.below(span)).unwrap();
                ImageSearch { since: Some(Timestamp(since)), until: Some(Timestamp(since + 86_400_000)), ..page() }
            }),
        ),
        ("a frequent label", Box::new(move |_| label("environment", Some("production".to_owned())))),
        ("a rare label", Box::new(move |n| label("ticket", Some(format!("OPS-{}", n.below(20_000)))))),
        ("a label of any value", Box::new(move |_| label("ticket", None))),
        ("a label that nothing has", Box::new(move |n| label(&format!("nothing-{}", n.below(9)), None))),
        (
            "two labels",
            Box::new(move |n| ImageSearch {
                labels: vec![
                    ("environment".to_owned(), Some("test".to_owned())),
                    ("ticket".to_owned(), Some(format!("OPS-{}", n.below(20_000)))),
                ],
                ..page()
            }),
        ),
        ("a frequent word", Box::new(move |_| words(vec!["nightly".to_owned()]))),
        ("a rare word", Box::new(move |n| words(vec![format!("ops-{}", n.below(20_000))]))),
        ("a word that nothing has", Box::new(move |n| words(vec![format!("absent{}", n.below(1000))]))),
        ("two letters", Box::new(move |n| words(vec![["zz", "qx", "3."][n.below(3) as usize].to_owned()]))),
        (
            "three words",
            Box::new(move |n| {
                words(vec!["upgrade".to_owned(), format!("person-{}", n.below(50)), format!("3.{}", n.below(1000))])
            }),
        ),
    ]
}

async fn measure(engine: &str, catalog: &Catalog, team: TeamId, ids: &[ImageId], rounds: u64, seed: u64) {
    let mut numbers = Numbers(seed ^ 0xbe7c);
    for (what, kind) in kinds(ids) {
        let mut took = Vec::new();
        for round in 0..rounds + 5 {
            let search = kind(&mut numbers);
            let begun = Instant::now();
            let found = catalog.images(team, &search).await.unwrap();
            // The first ones warm up.
            if round >= 5 {
                took.push(begun.elapsed().as_secs_f64() * 1000.0);
            }
            assert!(found.len() as u64 <= PAGE && found.iter().all(|image| image.team == team));
        }
        took.sort_by(f64::total_cmp);
        let p99 = took[(took.len() * 99).div_ceil(100) - 1];
        println!("{engine}: {what} {p99:.2} {MOST} {:.3}", p99 / MOST);
    }
}

#[tokio::main]
async fn main() {
    let given: Vec<u64> = std::env::args().skip(1).map(|text| text.parse().expect("IMAGES ROUNDS SEED")).collect();
    let [images, rounds, seed] = given[..] else { panic!("IMAGES ROUNDS SEED") };
    let clock = || Arc::new(Moved(AtomicI64::new(START)));
    let seams = |clock: &Arc<Moved>| Seams { clock: clock.clone(), ..Seams::real(Default::default()) };
    let server = postgres::Postgres::start(&[("shared_buffers", "256MB")]);
    server.psql("postgres", "CREATE DATABASE catalog");
    let password = postgres::PASSWORD.replace('\'', "%27").replace(' ', "%20").replace('"', "%22");
    let url = format!("postgres://postgres:{password}@127.0.0.1:{}/catalog", server.port);
    let own = clock();
    let catalog = Catalog::simulated(&url, seams(&own)).await.unwrap();
    let (team, ids) = fill("PostgreSQL", &catalog, &own, images, seed).await;
    // As the server does by itself within a minute.
    server.psql("catalog", "VACUUM ANALYZE");
    measure("PostgreSQL", &catalog, team, &ids, rounds, seed).await;
    let place = tempfile::tempdir().unwrap();
    let own = clock();
    let catalog = Catalog::sqlite(&place.path().join("catalog.sqlite"), seams(&own)).await.unwrap();
    let (team, ids) = fill("SQLite", &catalog, &own, images, seed).await;
    measure("SQLite", &catalog, team, &ids, rounds, seed).await;
}
