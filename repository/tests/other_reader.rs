//! The reader in `tests/reader`, written in another language from the document alone, reads what this crate writes.

mod common;

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::OnceLock};

use bytes::Bytes;
use common::*;
use ocopea_protocol::image::DataKind;
use ocopea_repository::{DataWritten, ImageSession, StreamFacts};

/// The program, built once.
fn reader() -> &'static PathBuf {
    static READER: OnceLock<PathBuf> = OnceLock::new();
    READER.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reader");
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ocopea-reader");
        let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(source).status();
        assert!(built.is_ok_and(|status| status.success()), "the reader can't be built: go is needed");
        program
    })
}

struct Told {
    fine: bool,
    output: String,
    error: String,
}

fn check(world: &World) -> Told {
    let key = world.place.path().join("key");
    std::fs::write(&key, world.keyring.to_text().as_bytes()).unwrap();
    let output =
        Command::new(reader()).arg("check").arg(world.path("")).arg("--key").arg(key).args(["-o", "json"]).output();
    let output = output.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{error}");
    Told { fine: output.status.success(), output: String::from_utf8(output.stdout).unwrap(), error }
}

/// Documents of all kinds of lengths, one behind the other.
fn documents(count: u32) -> Vec<Vec<u8>> {
    (0..count)
        .map(|n| {
            let text = prose((n as usize * 37) % 900, u64::from(n));
            let mut one = vec![0; 4];
            one.extend_from_slice(&text);
            one.push(0);
            let length = u32::try_from(one.len()).unwrap();
            one[..4].copy_from_slice(&length.to_le_bytes());
            one
        })
        .collect()
}

async fn put_items(
    session: &ImageSession,
    kind: DataKind,
    stream: &str,
    unit: &str,
    items: &[Vec<u8>],
    ends: &[u8],
) -> DataWritten {
    let writer = session.component(&name("messages"), kind).await.unwrap();
    let mut hasher = writer.item_hasher();
    let mut open = writer.stream(stream.as_bytes()).await.unwrap();
    for item in items {
        hasher.add(item);
        open.write(Bytes::from([item.as_slice(), ends].concat())).await.unwrap();
    }
    let facts =
        StreamFacts { unit: unit.to_owned(), items: hasher.items(), item_hash: hasher.sum(), ..StreamFacts::default() };
    open.finish(facts).await.unwrap();
    writer.finish("{}").await.unwrap()
}

async fn save_items(world: &World, kind: DataKind, unit: &str, items: &[Vec<u8>], ends: &[u8]) {
    let (key, _, session) = world.begin(None).await;
    let config = put_config(&session, unit).await;
    let (manifest, platforms) = put_container(&session, unit).await;
    let data = put_items(&session, kind, "all", unit, items, ends).await;
    let mut record = record(world, unit, &config, (manifest, &platforms), &data);
    for component in &mut record.components {
        if let ocopea_repository::Body::Data { found, .. } = &mut component.body {
            found.kind = kind;
        }
    }
    world.repository.commit(&ocopea_repository::CommitRequest { record, key }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stream_of_every_image_is_read_and_hashed_the_same() {
    let world = World::new().await;
    let mut content = prose(3_000_000, 1);
    let streams: [(&[u8], Vec<u8>); 4] = [
        (b"a", content.clone()),
        (b"empty", vec![]),
        (b"noise", noise(2_000_000, 3)),
        (b"odd \n\xff", vec![0; 5_000_000]),
    ];
    let first = world.save("first", &streams, None).await;
    content.splice(1_000_000..1_000_000, *b"something new");
    let second = world.save("second", &[(b"a", content)], Some(&first.reference.record)).await;
    save_items(&world, DataKind::MongoDb, "documents", &documents(3000), b"").await;
    let rows: Vec<Vec<u8>> = (0..2000).map(|n| format!("{n}\\tname {n}\\t\\\\N").into_bytes()).collect();
    save_items(&world, DataKind::PostgreSql, "rows", &rows, b"\n").await;
    let told = check(&world);
    assert!(told.fine, "{}", told.error);
    let lines: Vec<BTreeMap<String, serde_json::Value>> = serde_json::from_str(&told.output).unwrap();
    for saved in [&first, &second] {
        let own: Vec<_> = lines.iter().filter(|l| l["image"] == saved.reference.image.to_string()).collect();
        assert!(own.iter().any(|l| l["kind"] == "container" && l["items"] == 2));
        for stream in &saved.data.streams {
            let shown = String::from_utf8_lossy(&stream.name).into_owned();
            let line = own.iter().find(|l| l.get("stream").is_some_and(|s| *s == shown)).unwrap();
            assert_eq!(line["bytes"], stream.bytes);
            assert_eq!(line["items"], stream.facts.items);
            assert_eq!(line["content"], hex::encode(stream.facts.item_hash));
        }
    }
    for (unit, items) in [("documents", 3000), ("rows", 2000)] {
        assert!(lines.iter().any(|l| l.get("unit").is_some_and(|u| *u == unit) && l["items"] == items));
    }

    // One stream's bytes, as they were written.
    let key = world.place.path().join("key");
    let output = Command::new(reader())
        .arg("cat")
        .arg(world.path(""))
        .arg("--key")
        .arg(&key)
        .args([first.reference.image.to_string(), "messages".to_owned(), "noise".to_owned()])
        .output()
        .unwrap();
    assert!(output.stdout == noise(2_000_000, 3));

    // Another repository's key opens nothing.
    std::fs::write(&key, ocopea_repository::Keyring::generate(&world.seams).to_text().as_bytes()).unwrap();
    let output = Command::new(reader()).arg("check").arg(world.path("")).arg("--key").arg(&key).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_counts_and_hashes_of_items_are_told() {
    for (items, ends) in [(documents(10), b"".as_slice()), (vec![b"5 bytes".to_vec()], b"")] {
        let world = World::new().await;
        // Rows without line feeds, documents whose length is not theirs: hashed as the writer says, not as the bytes do.
        let unit = if ends.is_empty() && items.len() == 10 { "rows" } else { "documents" };
        let kind = if unit == "rows" { DataKind::PostgreSql } else { DataKind::MongoDb };
        save_items(&world, kind, unit, &items, ends).await;
        assert!(!check(&world).fine, "{unit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_object_that_an_image_needs_is_found() {
    let world = World::new().await;
    let first = world.save("first", &[(b"a", prose(1_500_000, 1))], None).await;
    world.save("second", &[(b"a", prose(1_600_000, 1)), (b"b", noise(1000, 5))], Some(&first.reference.record)).await;
    assert!(check(&world).fine);
    let needed = ["blobs/", "refs/", "keys/", "index.json", "oci-layout", "ocopea-repository"];
    let objects = world.objects();
    let mut tried = 0;
    for (object, bytes) in objects.iter().filter(|(name, _)| needed.iter().any(|class| name.starts_with(class))) {
        let path = world.path(object);
        let mut flipped = bytes.clone();
        if let Some(byte) = flipped.get_mut(bytes.len() / 2) {
            *byte ^= 0x10;
        }
        let neighbour = objects.values().find(|other| *other != bytes).unwrap().clone();
        for damaged in
            [flipped, bytes[..bytes.len() / 2].to_vec(), bytes[..bytes.len() - 1].to_vec(), vec![], neighbour]
        {
            std::fs::write(&path, damaged).unwrap();
            let told = check(&world);
            assert!(!told.fine && !told.error.is_empty(), "damage of {object} is not found");
            assert!(!told.error.contains("panic"), "{}", told.error);
            tried += 1;
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!check(&world).fine, "the loss of {object} is not found");
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(tried > 100 && check(&world).fine);
}
