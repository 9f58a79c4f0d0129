//! The bucket beside the directory and beside restic: `bench s3 PLACE STORE [ROUNDS] [MEGABYTES] [SEED]`.

use std::path::Path;

use anyhow::{Result, bail};
use ocopea_protocol::{image::Location, seams::Seams};
use ocopea_repository::backend::s3::parse_location;

use crate::{Times, emptied, median, round_of_ours, round_of_restic, tree};

/// Interleaved rounds of all three, who begins changing; prints medians, and ratios to the bucket's.
pub fn compare(place: &Path, store: &str, rounds: u64, megabytes: u64, seed: u64, seams: &Seams) -> Result<()> {
    let Location::S3 { endpoint, bucket, .. } = parse_location(store, |name| std::env::var(name).ok())? else {
        bail!("{store} is no bucket");
    };
    let restic_store = format!("s3:{endpoint}/{bucket}");
    let (one, two) = emptied(place)?;
    let bytes = tree::make(&one, megabytes << 20, seed)?;
    let changed = tree::change(&one, &two, seed + 1)?;
    println!("tree of {} MB (seed {seed}), then {} MB of it changed", bytes / 1_000_000, changed / 1_000_000);
    let (mut bucket, mut directory, mut restic) = (Times::default(), Times::default(), Times::default());
    for round in 1..=rounds {
        for turn in 0..3 {
            let trees = [one.as_path(), two.as_path()];
            match (round + turn) % 3 {
                0 => round_of_ours(place, round, trees, &mut bucket, Some(store), seams)?,
                1 => round_of_ours(place, round, trees, &mut directory, None, seams)?,
                _ => round_of_restic(place, round, trees, &mut restic, Some(&restic_store), seams)?,
            }
        }
        println!("round {round} of {rounds} done");
    }
    println!("{:36}{:>12}{:>12}{:>10}", "", "bucket", "peer", "ratio");
    for (peer, times) in [("directory", &directory), ("restic", &restic)] {
        let steps = [
            ("first save", &bucket.first, &times.first),
            ("second save (5 %)", &bucket.second, &times.second),
            ("restore", &bucket.restore, &times.restore),
        ];
        for (step, own, other) in steps {
            let (own, other) = (median(own), median(other));
            println!("{:36}{own:12.2}{other:12.2}{:10.3}", format!("{step}, s ({peer})"), other / own);
        }
    }
    println!("{:36}{:12.1}", "peak memory, MB", bucket.peak_kb as f64 / 1024.0);
    Ok(())
}
