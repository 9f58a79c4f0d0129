//! The test vectors of `docs/repository-format.md`: whoever changes one of these changes the format.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use ocopea_protocol::{
    ids::TeamId,
    seams::{Entropy, Seams},
    secret::Secret32,
};

use crate::{
    KeyId, config, keys,
    pack::{OpenPack, Ready},
    sealed,
    store::{Store, blob_name},
    testing,
};

/// Gives 0, 1, 2 … on every call.
struct Counting;

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.iter_mut().zip(0u8..).for_each(|(byte, count)| *byte = count);
    }
}

fn counting() -> Seams {
    Seams { entropy: Arc::new(Counting), ..testing::seams() }
}

fn key() -> Secret32 {
    let mut key = Secret32([0; 32]);
    Counting.fill(&mut key.0);
    key
}

/// The document, without line breaks within vectors.
fn documented(vector: &str) -> bool {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/repository-format.md");
    let text: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    text.contains(&vector.split_whitespace().collect::<String>())
}

fn check(what: &str, vector: &str) {
    assert!(documented(vector), "the document doesn't have the vector of {what}: {vector}");
}

#[test]
fn derived_keys_are_as_documented() {
    check("key id", KeyId::of(&key()).as_str());
    for context in [keys::CHUNKS, keys::ITEMS, keys::CONFIG_HASH, keys::PACK_WRAP, keys::STAGING] {
        check(context, &format!("{context} {}", hex::encode(keys::derive(context, &key().0).0)));
    }
    let mut items = crate::ItemHasher::new(&key());
    items.add(b"first");
    check("one item", &hex::encode(items.sum()));
    items.add(b"second");
    check("two items", &hex::encode(items.sum()));
    let chunk_key = keys::derive(keys::CHUNKS, &key().0);
    check("chunk hash", blake3::keyed_hash(&chunk_key.0, b"hello, chunk").to_hex().as_str());
}

#[test]
fn a_sealed_object_is_as_documented() {
    let sealed = sealed::seal(&key(), sealed::RECORD, b"{\"version\":1}", &counting()).unwrap();
    check("sealed object", &hex::encode(sealed));
    let team: TeamId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
    let aad = format!("ocopea/image-key/v1/{team}");
    check("wrap", &keys::wrap_text(&key(), aad.as_bytes(), &[7; 32], &counting()).unwrap());
}

#[test]
fn a_configuration_is_as_documented() {
    let files = BTreeMap::from([("v1/service/web.json".to_owned(), Bytes::from_static(b"{}"))]);
    let tar = config::tar(&files).unwrap();
    check("tar", &crate::store::sha256(&tar).to_string());
    check("configuration digest", &config::digest(&key(), &tar));
}

#[tokio::test]
async fn a_pack_is_as_documented() {
    let place = tempfile::tempdir().unwrap();
    let seams = counting();
    let backend = crate::backend::DirectoryBackend::open(place.path(), seams.clone(), true).await.unwrap();
    let store = Store::new(Arc::new(backend), seams);
    let chunk_key = keys::derive(keys::CHUNKS, &key().0);
    let raw = b"hello, chunk";
    let ready = Ready {
        hash: *blake3::keyed_hash(&chunk_key.0, raw).as_bytes(),
        raw: raw.len() as u32,
        flags: 0,
        frame: raw.to_vec(),
    };
    let pack = OpenPack::begin(&store, 0).await.unwrap();
    let (pack, _) = pack.append(&store, vec![ready]).await.unwrap();
    let packed = pack.seal(&store, &key()).await.unwrap();
    let bytes = std::fs::read(place.path().join(blob_name(&packed.digest))).unwrap();
    check("pack", &hex::encode(bytes));
    check("pack digest", &packed.digest.to_string());
}
