//! Volume → streams.

use bytes::Bytes;
use ocopea_mover::{
    show,
    wire::{Change, Job, Message},
};
use ocopea_protocol::{failure::TaskFailure, task::Progress};
use ocopea_repository::{DataWriter, StreamFacts, StreamWriter};

use super::{
    CONTENTS, FILES, FORMAT, Facts, MOST_NAMED, failure,
    frames::Frames,
    hold::Snapshot,
    inspect::{consistency, skipped},
    items::Items,
    reach,
    records::Recorder,
};
use crate::{
    data::{Copied, Subject},
    failures::repository,
};

/// Records that are handed on together.
const RECORDS: usize = 256 << 10;

/// What is not as one would expect, for people.
#[derive(Default)]
struct Remarks {
    changed: Vec<String>,
    changed_count: u64,
    notices: Vec<String>,
    more: u64,
}

impl Remarks {
    fn take(&mut self, message: &Message<'_>) {
        match message {
            Message::Changed(how, path) => {
                let how = match how {
                    Change::WhileRead => "changed while it was read",
                    Change::Vanished => "vanished while it was read",
                    Change::AfterStart => "made or changed after the copy began",
                    Change::Unnamed => "something in it changed after the copy began",
                };
                self.changed_count += 1;
                if self.changed.len() < MOST_NAMED {
                    let path = if path.is_empty() { ".".to_owned() } else { show(path) };
                    self.changed.push(format!("{path} ({how})"));
                }
            }
            Message::Skipped(why, path) if self.notices.len() < MOST_NAMED => {
                self.notices.push(format!("not saved: \"{}\": {}", show(path), skipped(*why)));
            }
            Message::Skipped(..) => self.more += 1,
            _ => {}
        }
    }
}

pub(super) async fn copy(subject: &Subject, snapshot: &str, writer: &DataWriter) -> Result<Copied, TaskFailure> {
    let what = format!("can't save volume {}", subject.name);
    let store = |error: ocopea_repository::Error| repository(&what, &error);
    let snapshot = Snapshot::parse(subject, snapshot)?;
    let volume = reach(subject)?;
    let mut frames = Frames::open(volume.mover(Job::Read, None).await?, Job::Read, &subject.seams, &what).await?;
    let mut contents = writer.stream(CONTENTS.as_bytes()).await.map_err(store)?;
    let mut files = writer.stream(FILES.as_bytes()).await.map_err(store)?;
    let (mut items, mut recorder) = (Items::new(writer.item_hasher()), Recorder::default());
    let (mut remarks, mut data) = (Remarks::default(), 0u64);
    let totals = loop {
        let message = frames.next().await?;
        items.take(&message).map_err(|fault| failure(&what, &fault))?;
        recorder.take(&message);
        remarks.take(&message);
        match message {
            Message::Data { bytes, .. } => {
                data += bytes.len() as u64;
                contents.write(Bytes::copy_from_slice(bytes)).await.map_err(store)?;
                report(subject, writer, data, items.entries());
            }
            Message::End(totals) => break totals,
            _ => {}
        }
        if let Some(records) = recorder.ready(RECORDS) {
            files.write(records).await.map_err(store)?;
            report(subject, writer, data, items.entries());
        }
    };
    if let Some(records) = recorder.ready(1) {
        files.write(records).await.map_err(store)?;
    }
    frames.end().await;
    if totals.data != data {
        let fault = ocopea_mover::Fault::new(ocopea_mover::Class::Cut, "contents that the mover told are missing");
        return Err(failure(&what, &fault));
    }
    let (info, hasher) = items.finish(totals).map_err(|fault| failure(&what, &fault))?;
    finish(contents, "bytes", 0, writer.item_hasher().sum()).await.map_err(store)?;
    finish(files, "entries", hasher.items(), hasher.sum()).await.map_err(store)?;
    let mut writers = snapshot.writers;
    writers.extend(volume.writers().await?);
    writers.sort();
    writers.dedup();
    if remarks.more > 0 {
        remarks.notices.push(format!("and {} more are not saved", remarks.more));
    }
    let facts = Facts { format: FORMAT, entries: totals.entries, data };
    Ok(Copied {
        streams: vec![info],
        consistency: consistency(&writers, snapshot.frozen, &remarks.changed, remarks.changed_count),
        version: None,
        features: Vec::new(),
        notices: remarks.notices,
        facts: serde_json::to_string(&facts).map_err(|error| TaskFailure::permanent("data.facts", what, error))?,
    })
}

async fn finish(stream: StreamWriter, unit: &str, items: u64, item_hash: [u8; 32]) -> ocopea_repository::Result<()> {
    stream.finish(StreamFacts { unit: unit.to_owned(), items, item_hash, ..StreamFacts::default() }).await.map(|_| ())
}

fn report(subject: &Subject, writer: &DataWriter, bytes: u64, items: u64) {
    let new_bytes = writer.written().new_bytes;
    (subject.progress)(Progress { phase: "reading".to_owned(), bytes, of_bytes: 0, new_bytes, items });
}
