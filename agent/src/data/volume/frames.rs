//! Frames from a mover, read without blocking a thread.

use std::time::Duration;

use ocopea_mover::{
    Class, Fault,
    wire::{FrameDecoder, HEAD, Job, Message, SUM},
};
use ocopea_protocol::{failure::TaskFailure, seams::Seams};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::failure;
use crate::data::RunningTool;

/// A mover that works tells something more often than this, even where there is nothing to tell.
const SILENCE: Duration = Duration::from_secs(300);
/// How long a program that ended its stream is asked for the reason.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a mover tells.
pub(super) struct Frames {
    from: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    ended: Option<tokio::sync::oneshot::Receiver<(i32, String)>>,
    decoder: FrameDecoder,
    payload: Vec<u8>,
    seams: Seams,
    what: String,
}

impl Frames {
    /// Of a started mover; `what` begins the failures. Waits for its greeting.
    pub(super) async fn open(tool: RunningTool, job: Job, seams: &Seams, what: &str) -> Result<Self, TaskFailure> {
        let mut frames = Self {
            from: BufReader::with_capacity(256 << 10, tool.output),
            ended: Some(tool.ended),
            decoder: FrameDecoder::default(),
            payload: Vec::new(),
            seams: seams.clone(),
            what: what.to_owned(),
        };
        match frames.next().await? {
            Message::Hello { job: does, .. } if does == job => Ok(frames),
            _ => Err(failure(what, &Fault::new(Class::Protocol, "it doesn't begin with a greeting"))),
        }
    }

    /// The next frame; a fault that the mover tells is this call's failure.
    pub(super) async fn next(&mut self) -> Result<Message<'_>, TaskFailure> {
        let head = match self.seams.clone().timeout(SILENCE, self.receive()).await {
            Some(Ok(head)) => head,
            Some(Err(fault)) => return Err(self.last_words(fault).await),
            None => {
                let cause = format!("the mover said nothing for {} s", SILENCE.as_secs());
                return Err(TaskFailure::retryable("data.silent", self.what.clone(), cause)
                    .next("see whether the volume's storage answers"));
            }
        };
        let (head, length, sum) = head;
        let payload = self.payload.get(..length).unwrap_or_default();
        match self.decoder.decode(&head, payload, sum) {
            Ok(Message::Fault(fault)) => Err(failure(&self.what, &fault)),
            Ok(message) => Ok(message),
            Err(fault) => Err(failure(&self.what, &fault)),
        }
    }

    async fn receive(&mut self) -> Result<([u8; HEAD], usize, [u8; SUM]), Fault> {
        let (mut head, mut sum) = ([0; HEAD], [0; SUM]);
        self.from.read_exact(&mut head).await.map_err(|error| self.decoder.cut(&error))?;
        let length = self.decoder.length(&head)?;
        if self.payload.len() < length {
            self.payload.resize(length, 0);
        }
        let payload = self.payload.get_mut(..length).unwrap_or_default();
        self.from.read_exact(payload).await.map_err(|error| self.decoder.cut(&error))?;
        self.from.read_exact(&mut sum).await.map_err(|error| self.decoder.cut(&error))?;
        Ok((head, length, sum))
    }

    /// What the program said on its standard error, where its stream just ends.
    async fn last_words(&mut self, fault: Fault) -> TaskFailure {
        let mut failed = failure(&self.what, &fault);
        if let Some(ended) = self.ended.take()
            && let Some(Ok((code, text))) = self.seams.timeout(LAST_WORDS, ended).await
            && !text.is_empty()
        {
            failed.cause = format!("{}; the mover ended with status {code}: {text:.500}", failed.cause);
        }
        failed
    }

    /// Waits until the mover is gone.
    pub(super) async fn end(mut self) {
        if let Some(ended) = self.ended.take() {
            // All that it had to tell was told: however it ends, nothing depends on it.
            let _ = self.seams.timeout(LAST_WORDS, ended).await;
        }
    }
}
