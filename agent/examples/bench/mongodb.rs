//! MongoDB: a save beside a raw read of the same collections to nowhere, which no save can be faster than.

use std::time::Instant;

use futures::{StreamExt, future};
use mongodb::{
    Client,
    bson::{Document, RawDocumentBuf, doc},
};

use crate::{
    Rounds, alone, figure,
    image::TestRepository,
    mongod::{self, Mongod},
    peak,
    subject::{differences, load, save, subject},
};

/// One large collection and three small ones: what most applications look like.
const SHARES: [(&str, u64); 4] = [("messages", 70), ("rooms", 10), ("people", 10), ("files", 10)];

const WORDS: [&str; 16] = [
    "ship", "harbour", "the", "of", "and", "anchor", "tomorrow", "release", "rope", "tide", "why", "morning", "light",
    "crew", "north", "again",
];

/// Documents of chat: some words, some numbers, some bytes that nobody can compress.
fn documents(random: &mut blake3::OutputReader, enough: u64) -> Vec<Vec<u8>> {
    let (mut all, mut sum) = (Vec::new(), 0);
    while sum < enough {
        let mut bytes = [0; 200];
        random.fill(&mut bytes);
        let words = 20 + usize::from(bytes[0]) % 100;
        let text: Vec<&str> = (0..words).map(|at| WORDS[usize::from(bytes[at]) % WORDS.len()]).collect();
        let document: Document = doc! {
            "_id": i64::try_from(all.len()).unwrap(),
            "room": i32::from(bytes[1]),
            "at": mongodb::bson::DateTime::from_millis(1_700_000_000_000 + i64::try_from(all.len()).unwrap() * 977),
            "text": text.join(" "),
            "seen": { "by": [i32::from(bytes[2]), i32::from(bytes[3])], "last": i32::from(bytes[4]) },
            "hash": mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes: bytes[..64].to_vec() },
        };
        let document = mongod::bytes(&document);
        sum += document.len() as u64;
        all.push(document);
    }
    all
}

/// Every document of one collection, read and let fall.
async fn read(client: &Client, collection: &str) -> u64 {
    let mut bytes = 0;
    let collection = client.database("bench").collection::<RawDocumentBuf>(collection);
    // The testbed's server would put everything into one answer that no driver takes.
    let mut batches = collection.find(doc! {}).batch_size(8_000).batch().await.unwrap();
    while let Some(batch) = batches.next().await {
        for one in batch.unwrap().doc_slices().unwrap() {
            bytes += one.unwrap().as_document().unwrap().as_bytes().len() as u64;
        }
    }
    bytes
}

/// Every document of one collection, inserted in batches, two at once, and nothing looked at afterwards.
async fn write(client: &Client, collection: &str, documents: &[Vec<u8>]) {
    let half = documents.len() / 2;
    let (first, second) = documents.split_at(half);
    tokio::join!(
        mongod::insert(client, "bench", collection, first),
        mongod::insert(client, "bench", collection, second)
    );
}

/// The same bytes in one collection as in four: what a save of each takes.
async fn one_beside_four(megabytes: u64, rounds: u64, seed: u64) {
    let (one, four) = (Mongod::start(), Mongod::start());
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let all = documents(&mut random, megabytes * 1_000_000);
    mongod::insert(&one.client(), "bench", "all", &all).await;
    for (number, some) in all.chunks(all.len().div_ceil(4)).enumerate() {
        mongod::insert(&four.client(), "bench", &format!("part {number}"), some).await;
    }
    let (mut of_one, mut of_four) = (Rounds::default(), Rounds::default());
    for round in 0..=rounds {
        for (server, took) in [(&one, &mut of_one), (&four, &mut of_four)] {
            let repository = TestRepository::new().await;
            let image = repository.image().await;
            let started = Instant::now();
            save(&subject(server.address()), &image).await.unwrap();
            // The first answers are the slowest.
            if round > 0 {
                took.took(started);
            }
        }
    }
    figure(
        "save of one collection, s (of four)",
        of_one.median(),
        of_four.median(),
        of_one.median() / of_four.median(),
    );
}

/// So many megabytes in four collections.
pub async fn compare(megabytes: u64, rounds: u64, seed: u64) {
    let (source, target) = (Mongod::start(), Mongod::start());
    let client = source.client();
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let (mut total, mut all) = (0, Vec::new());
    for (name, percent) in SHARES {
        let documents = documents(&mut random, megabytes * 10_000 * percent);
        total += documents.iter().map(|one| one.len() as u64).sum::<u64>();
        mongod::insert(&client, "bench", name, &documents).await;
        all.push((name, documents));
    }
    println!("{} MB in {} collections (seed {seed}), {rounds} rounds", total / 1_000_000, SHARES.len());
    let idle = peak();
    let (mut saves, mut one_by_one, mut at_once, mut loads, mut writes) =
        (Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default(), Rounds::default());
    // The server's first answers are its slowest: none of the rounds is to have them.
    for (name, _) in SHARES {
        read(&client, name).await;
    }
    for _ in 0..rounds {
        let started = Instant::now();
        let mut seen = 0;
        for (name, _) in SHARES {
            seen += read(&client, name).await;
        }
        one_by_one.took(started);
        assert_eq!(seen, total);
        let started = Instant::now();
        future::join_all(SHARES.map(|(name, _)| read(&client, name))).await;
        at_once.took(started);

        let repository = TestRepository::new().await;
        let image = repository.image().await;
        let started = Instant::now();
        let saved = save(&subject(source.address()), &image).await.unwrap();
        saves.took(started);
        assert_eq!(saved.copied.streams.iter().map(|stream| stream.bytes).sum::<u64>(), total);

        target.client().database("bench").drop().await.unwrap();
        let started = Instant::now();
        let loaded = load(&subject(target.address()), &image, &saved).await.unwrap();
        loads.took(started);
        assert_eq!(differences(&saved.copied.streams, &loaded.streams), Vec::<String>::new());

        target.client().database("bench").drop().await.unwrap();
        let started = Instant::now();
        for (name, documents) in &all {
            write(&target.client(), name, documents).await;
        }
        writes.took(started);
    }
    let own = saves.median();
    for (what, peer) in
        [("one collection after another", one_by_one.median()), ("all collections at once", at_once.median())]
    {
        figure(&format!("save, s ({what})"), own, peer, own / peer);
    }
    figure("load, s (raw inserts)", loads.median(), writes.median(), loads.median() / writes.median());
    alone("memory beyond idle, MB", peak() - idle);
    drop((source, target, all));
    one_beside_four(megabytes, rounds, seed).await;
}
