//! The first look: what there is, and what of it can't be read.

use ocopea_mover::{
    show,
    wire::{Job, Message, Skip},
};
use ocopea_protocol::{
    failure::TaskFailure,
    image::{Consistency, ConsistencyLevel},
    inventory::Gap,
};

use super::{MOST_NAMED, frames::Frames, reach};
use crate::data::{Inspected, Subject};

pub(super) async fn inspect(subject: &Subject) -> Result<Inspected, TaskFailure> {
    let what = format!("can't look into volume {}", subject.name);
    let volume = reach(subject)?;
    let writers = volume.writers().await?;
    let mut frames = Frames::open(volume.mover(Job::Scan, None).await?, Job::Scan, &subject.seams, &what).await?;
    let mut gaps = Vec::new();
    let totals = loop {
        match frames.next().await? {
            Message::Unreadable(fault) if gaps.len() < MOST_NAMED => gaps.push(Gap {
                name: subject.name.to_string(),
                what: format!("a file of volume {}", subject.name),
                why: fault.to_string(),
                blocking: true,
                next: format!("mend the file or its rights, or leave the volume out: --without {}", subject.name),
            }),
            Message::Skipped(why, path) if gaps.len() < MOST_NAMED => gaps.push(Gap {
                name: subject.name.to_string(),
                what: format!("\"{}\" in volume {}", show(path), subject.name),
                why: skipped(why).to_owned(),
                // Files below it are files of the application, for all we know.
                blocking: why == Skip::MountPoint,
                next: String::new(),
            }),
            Message::End(totals) => break totals,
            _ => {}
        }
    };
    frames.end().await;
    Ok(Inspected {
        version: None,
        bytes: Some(totals.bytes),
        streams: Some(1),
        features: Vec::new(),
        consistency: consistency(&writers, false, &[], 0),
        gaps,
    })
}

/// Why something is not saved, in words.
pub(super) fn skipped(why: Skip) -> &'static str {
    match why {
        Skip::Socket => "a socket means something only to the process that made it",
        Skip::Device => "device files are not saved",
        Skip::MountPoint => "another filesystem is mounted there",
        Skip::Attribute => "it has an attribute of a kind that isn't saved",
    }
}

/// What a copy is worth, given who could write meanwhile and what was seen to change.
pub(super) fn consistency(writers: &[String], frozen: bool, changed: &[String], changed_count: u64) -> Consistency {
    let (level, why) = if changed_count > 0 {
        let who = if writers.is_empty() { "somebody".to_owned() } else { writers.join(", ") };
        (ConsistencyLevel::Inconsistent, format!("{who} wrote to it while it was read"))
    } else if !writers.is_empty() {
        // Nothing changed from the first entry to the last: what was read is one moment of a running writer.
        let why = format!("nothing changed while it was read, but {} could have written", writers.join(", "));
        (ConsistencyLevel::CrashConsistent, why)
    } else if frozen {
        (ConsistencyLevel::Snapshot, "what writes to it was ended for the copy".to_owned())
    } else {
        (ConsistencyLevel::Snapshot, String::new())
    };
    Consistency { level, why, changed: changed.to_vec(), changed_count, frozen_ms: 0 }
}
