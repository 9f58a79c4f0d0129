//! Files that people attach.

use bytes::Bytes;
use uuid::Uuid;

use super::{chance::Chance, words};
use crate::model::{Title, Upload};

/// The upload with this number: always the same one for a seed.
pub(super) fn upload(seed: u64, index: usize) -> (Upload, Bytes) {
    let mut chance = Chance::new(seed, "upload", index as u64);
    let (name, content_type, bytes) = match chance.below(10) {
        0..=5 => (format!("screenshot-{index:04}.bmp"), "image/bmp", picture(&mut chance)),
        6 | 7 => (format!("notes {index} – draft.txt"), "text/plain", notes(&mut chance)),
        8 => (format!("export_{index}.csv"), "text/csv", table(&mut chance)),
        _ => (format!("core-{index}.bin"), "application/octet-stream", noise(&mut chance)),
    };
    let mut id = [0; 16];
    chance.fill(&mut id);
    let upload = Upload {
        id: uuid::Builder::from_random_bytes(id).into_uuid(),
        name: Title::stored(name),
        content_type: content_type.to_owned(),
        length: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        checksum: *blake3::hash(&bytes).as_bytes(),
    };
    debug_assert_ne!(upload.id, Uuid::nil());
    (upload, bytes.into())
}

/// A Windows bitmap (BITMAPINFOHEADER, 24 bits, bottom-up): the one picture format that needs no compressor.
fn picture(chance: &mut Chance) -> Vec<u8> {
    let (width, height) = (chance.between(12, 44) * 4, chance.between(40, 130));
    let size = width * height * 3;
    let mut bytes = Vec::with_capacity(54 + size);
    let le = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(b"BM");
    for field in [54 + size, 0, 54, 40, width, height] {
        bytes.extend_from_slice(&le(field));
    }
    bytes.extend_from_slice(&[1, 0, 24, 0]);
    for field in [0, size, 2835, 2835, 0, 0] {
        bytes.extend_from_slice(&le(field));
    }
    // Windows on a sloping sky: flat areas and gradients, as screenshots have them.
    let tint = [chance.below(200), chance.below(200), chance.below(200)];
    let panes: Vec<[usize; 5]> = (0..chance.between(2, 5))
        .map(|_| {
            let (x, y) = (chance.below(width), chance.below(height));
            [x, y, x + chance.between(8, 60), y + chance.between(6, 40), chance.between(160, 255)]
        })
        .collect();
    for y in 0..height {
        for x in 0..width {
            let pane = panes.iter().rev().find(|[x0, y0, x1, y1, _]| (x0..x1).contains(&&x) && (y0..y1).contains(&&y));
            for colour in tint {
                let shade = pane.map_or(colour + (y * 55) / height, |pane| pane[4]);
                bytes.push(u8::try_from(shade).unwrap_or(u8::MAX));
            }
        }
    }
    bytes
}

fn notes(chance: &mut Chance) -> Vec<u8> {
    let mut text = String::new();
    for _ in 0..chance.between(3, 60) {
        text.push_str("- ");
        text.push_str(&words::speech(chance));
        text.push('\n');
    }
    text.into_bytes()
}

fn table(chance: &mut Chance) -> Vec<u8> {
    let mut text = String::from("day;service;requests;errors;p99_ms\r\n");
    for row in 0..chance.between(20, 1500) {
        let (requests, errors, p99) = (chance.below(100_000), chance.below(60), chance.between(3, 900));
        text.push_str(&format!("{};svc-{};{requests};{errors};{p99}\r\n", row / 8 + 1, row % 8));
    }
    text.into_bytes()
}

fn noise(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = vec![0; chance.between(500, 180_000)];
    chance.fill(&mut bytes);
    bytes
}
