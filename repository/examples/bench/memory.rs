//! One long stream written and read back, to see what memory that takes: `bench memory PLACE [GIGABYTES]`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::StreamExt;
use ocopea_protocol::seams::Seams;

use crate::{peer, tree::Random};

const PIECE: usize = 1 << 20;

/// What a process may need beyond what it has when it begins.
pub const MOST_KB: u64 = 128 << 10;

/// Piece number `number` of the stream: half of it can be compressed, and no two are alike.
fn piece(number: u64) -> Vec<u8> {
    let mut random = Random::new(number + 1);
    let mut out = Vec::with_capacity(PIECE + 64);
    while out.len() < PIECE / 2 {
        out.extend_from_slice(&random.next().to_le_bytes());
    }
    while out.len() < PIECE {
        out.extend_from_slice(format!("row {:08x} of the table is active; ", random.next() & 0xffff_ffff).as_bytes());
    }
    out.truncate(PIECE);
    out
}

/// A line of /proc/self/status, in kB.
fn status(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.context("/proc doesn't tell it")?.trim().trim_end_matches(" kB").parse()?)
}

#[expect(clippy::print_stdout, reason = "read by the process that compares")]
fn report(idle: u64) -> Result<()> {
    println!("idle-kb {idle}\npeak-kb {}", status("VmHWM")?);
    Ok(())
}

pub async fn save(place: &Path, gigabytes: u64, seams: &Seams) -> Result<()> {
    let idle = status("VmRSS")?;
    let saving = peer::begin(place, seams).await?;
    let mut stream = saving.writer.stream(b"long").await?;
    for number in 0..gigabytes << 10 {
        stream.write(Bytes::from(piece(number))).await?;
    }
    stream.finish(Default::default()).await?;
    saving.commit(seams).await?;
    report(idle)
}

pub async fn load(place: &Path, gigabytes: u64, seams: &Seams) -> Result<()> {
    let idle = status("VmRSS")?;
    let reader = peer::newest(place, seams).await?;
    let mut pieces = reader.read(b"long").await?;
    let (mut number, mut left) = (0, Vec::new());
    while let Some(bytes) = pieces.next().await {
        left.extend_from_slice(&bytes?);
        let mut at = 0;
        while left.len() - at >= PIECE {
            if left[at..at + PIECE] != piece(number) {
                bail!("piece {number} of the stream came back otherwise than it was saved");
            }
            (number, at) = (number + 1, at + PIECE);
        }
        left.drain(..at);
    }
    if number != gigabytes << 10 || !left.is_empty() {
        bail!("{number} pieces came back of {}", gigabytes << 10);
    }
    report(idle)
}
