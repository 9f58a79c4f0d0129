//! Streams → volume, then a walk of what arrived.

use ocopea_mover::{
    Class, Fault,
    wire::{FrameWriter, Job, Message, PIECE, Totals},
};
use ocopea_protocol::{failure::TaskFailure, image::StreamInfo, task::Progress};
use ocopea_repository::DataReader;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::{
    CONTENTS, FILES, FORMAT, Facts, failure,
    frames::Frames,
    items::Items,
    reach,
    records::{Broken, Reading, Record},
};
use crate::{
    data::{Loaded, Subject, VolumeReach},
    failures::repository,
};

/// Bytes on their way to the mover.
const UNDER_WAY: usize = 1 << 20;

pub(super) async fn load(subject: &Subject, reader: &DataReader, saved: &[StreamInfo]) -> Result<Loaded, TaskFailure> {
    let what = format!("can't load volume {}", subject.name);
    let facts: Facts = serde_json::from_str(reader.facts())
        .map_err(|error| TaskFailure::permanent("data.facts", what.clone(), error))?;
    if facts.format != FORMAT {
        let cause = format!("its files are stored in format {}, this agent knows {FORMAT}", facts.format);
        return Err(TaskFailure::permanent("data.format", what, cause).next("use a newer release"));
    }
    let volume = reach(subject)?;
    let streams = match write(subject, volume.as_ref(), reader, &facts, &what).await {
        // An earlier attempt may have finished and not have been heard: what is there is compared, not written again.
        Err(failure) if failure.code == "data.not-empty" => {
            let there = count(subject, volume.as_ref(), reader, &what).await?;
            if there.iter().map(|s| (&s.name, &s.content)).ne(saved.iter().map(|s| (&s.name, &s.content))) {
                return Err(failure);
            }
            there
        }
        other => other?,
    };
    Ok(Loaded { streams, notices: Vec::new() })
}

async fn write(
    subject: &Subject,
    volume: &dyn VolumeReach,
    reader: &DataReader,
    facts: &Facts,
    what: &str,
) -> Result<Vec<StreamInfo>, TaskFailure> {
    let (ours, theirs) = tokio::io::duplex(UNDER_WAY);
    let tool = volume.mover(Job::Write, Some(Box::new(theirs))).await?;
    let frames = Frames::open(tool, Job::Write, &subject.seams, what).await?;
    let sending = send(subject, reader, facts, ours, what);
    let receiving = arrived(frames, reader, what);
    tokio::pin!(sending, receiving);
    tokio::select! {
        // The mover's own words say more than that it no longer listens.
        told = &mut receiving => told,
        sent = &mut sending => {
            sent?;
            receiving.await
        }
    }
}

async fn count(
    subject: &Subject,
    volume: &dyn VolumeReach,
    reader: &DataReader,
    what: &str,
) -> Result<Vec<StreamInfo>, TaskFailure> {
    let tool = volume.mover(Job::Count, None).await?;
    arrived(Frames::open(tool, Job::Count, &subject.seams, what).await?, reader, what).await
}

/// What a mover counts and hashes, to its end.
async fn arrived(mut frames: Frames, reader: &DataReader, what: &str) -> Result<Vec<StreamInfo>, TaskFailure> {
    let mut items = Items::new(reader.item_hasher());
    let totals = loop {
        let message = frames.next().await?;
        items.take(&message).map_err(|fault| failure(what, &fault))?;
        if let Message::End(totals) = message {
            break totals;
        }
    };
    frames.end().await;
    let (info, _) = items.finish(totals).map_err(|fault| failure(what, &fault))?;
    Ok(vec![info])
}

/// Frames to the mover's standard input.
struct Sender {
    to: DuplexStream,
    frames: FrameWriter<Vec<u8>>,
}

impl Sender {
    /// Whether the mover still listens.
    async fn send(&mut self, message: &Message<'_>) -> Result<bool, Fault> {
        self.frames.send(message)?;
        if self.frames.get_mut().len() < PIECE && !matches!(message, Message::End(_) | Message::Hello { .. }) {
            return Ok(true);
        }
        let sent = self.to.write_all(self.frames.get_mut()).await.is_ok() && self.to.flush().await.is_ok();
        self.frames.get_mut().clear();
        Ok(sent)
    }
}

/// Tells the mover what to make. A mover that no longer listens has said why, or will.
async fn send(
    subject: &Subject,
    reader: &DataReader,
    facts: &Facts,
    to: DuplexStream,
    what: &str,
) -> Result<(), TaskFailure> {
    let store = |error: ocopea_repository::Error| repository(what, &error);
    let broken = |broken: Broken| match broken {
        Broken::Store(error) => repository(what, &error),
        Broken::Records(fault) => failure(what, &fault),
    };
    let fault = |fault: Fault| failure(what, &fault);
    let mut files = Reading::new(reader.read(FILES.as_bytes()).await.map_err(store)?);
    let mut contents = Reading::new(reader.read(CONTENTS.as_bytes()).await.map_err(store)?);
    let mut sender = Sender { to, frames: FrameWriter::new(Vec::new()) };
    let hello = Message::Hello { job: Job::Write, trusted: false, entries: facts.entries, data: facts.data };
    let mut listens = sender.send(&hello).await.map_err(fault)?;
    let (mut totals, mut data) = (Totals::default(), 0u64);
    while let Some(record) = files.record().await.map_err(broken)? {
        match record {
            Record::Entry(entry) => {
                totals.count(&entry);
                listens &= sender.send(&Message::Entry(entry)).await.map_err(fault)?;
            }
            Record::Extent { mut offset, mut length } => {
                while length > 0 && listens {
                    let bytes = contents.bytes(length.min(PIECE as u64)).await.map_err(broken)?;
                    listens &= sender.send(&Message::Data { offset, bytes: &bytes }).await.map_err(fault)?;
                    offset = offset.saturating_add(bytes.len() as u64);
                    length -= bytes.len() as u64;
                    data += bytes.len() as u64;
                    report(subject, data, facts.data, totals.entries);
                }
            }
            Record::Done { size, hash } => {
                totals.bytes = totals.bytes.saturating_add(size);
                listens &= sender.send(&Message::Done { size, hash }).await.map_err(fault)?;
            }
            Record::Void => {
                totals.entries = totals.entries.saturating_sub(1);
                totals.files = totals.files.saturating_sub(1);
                listens &= sender.send(&Message::Again).await.map_err(fault)?;
            }
        }
        if !listens {
            return Ok(());
        }
    }
    if !contents.is_over().await.map_err(broken)? {
        return Err(failure(what, &Fault::new(Class::Refused, "there are more contents than its records tell of")));
    }
    sender.send(&Message::End(totals)).await.map_err(fault)?;
    // What the other side's buffer still holds is read before it is closed.
    let _ = sender.to.shutdown().await;
    Ok(())
}

fn report(subject: &Subject, bytes: u64, of_bytes: u64, items: u64) {
    (subject.progress)(Progress { phase: "writing".to_owned(), bytes, of_bytes, new_bytes: 0, items });
}
