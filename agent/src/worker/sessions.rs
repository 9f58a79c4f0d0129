//! Sessions: what a person does by hand at this site, as bytes both ways (`protocol::session`).

use std::{sync::Arc, time::Duration};

use ocopea_protocol::{
    bus::BusError,
    envelope::{open, seal},
    failure::TaskFailure,
    frames::{Failed, Started, carry},
    ids::{InstanceId, SessionId},
    message::{Answer, Request},
    seams::Seams,
    session::{Cipher, Direction, Invitation, LONGEST, Wish},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};
use uuid::Uuid;

use super::{Silence, Worker};
use crate::{
    access::Access,
    platform::{
        Platform,
        interactive::{self, Interactive},
        logs::{LogLine, LogWish},
    },
};

/// Sessions at a time.
pub(super) const MOST: usize = 64;
/// Bytes that wait in each direction.
const ROOM: usize = 256 * 1024;
/// How long one question may take; a coordinator answers within less.
const PATIENCE: Duration = Duration::from_secs(20);
/// A coordinator that didn't answer for so long is lost.
const SILENT: Duration = Duration::from_secs(45);
/// How often a coordinator hears of an agent whose program takes no input.
const ALIVE: Duration = Duration::from_secs(10);
/// The pause after a question that was not answered.
const AGAIN: Duration = Duration::from_secs(1);

/// What was begun for a wish.
pub enum Begun {
    /// Lines to be told.
    Lines(mpsc::Receiver<LogLine>),
    /// A program to be spoken with.
    Program(Started),
    /// An answer, and nothing more.
    Answer(Vec<u8>),
    /// A connection to be carried.
    Connection(DuplexStream),
}

/// Begins what is wished at a site.
pub(super) async fn begin(platform: &Platform, access: &Access, wish: Wish) -> Result<Begun, TaskFailure> {
    match wish {
        Wish::Logs { namespace, component, follow } => {
            let wish = LogWish { component, follow, tail: None };
            platform.logs(&namespace, &wish).await.map(Begun::Lines)
        }
        Wish::Exec { namespace, component, command, stdin, tty } => {
            let wish = interactive::Wish { component, command, stdin, tty };
            let Interactive { input, output, errors, size, ended } = platform.interactive(&namespace, &wish).await?;
            Ok(Begun::Program(Started { input, output, errors, size, ended }))
        }
        Wish::Way { namespace, service, address } => {
            let way = access.way(&namespace, &service, address).await?;
            let told = serde_json::to_vec(&way);
            told.map(Begun::Answer)
                .map_err(|error| TaskFailure::permanent("environment.way", "can't tell what leads there", error))
        }
        Wish::Connect { namespace, service } => access.tunnel(&namespace, &service).await.map(Begun::Connection),
    }
}

/// Carries it: until it ends, or the other end does.
async fn serve(begun: Begun, mut stream: DuplexStream) {
    match begun {
        Begun::Lines(mut lines) => {
            while let Some(line) = lines.recv().await {
                let text = format!("{} {}  {}\n", line.pod, line.container, line.text);
                if stream.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
        Begun::Program(started) => {
            let failed = |failure| serde_json::to_vec(&Failed { failure }).unwrap_or_default();
            if let Err(error) = carry(stream, started, failed).await {
                tracing::debug!(%error, "a session with a program ended");
            }
        }
        Begun::Answer(bytes) => {
            // Who doesn't listen any more needs no answer.
            let _ = stream.write_all(&bytes).await;
        }
        Begun::Connection(mut connection) => {
            if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut connection).await {
                tracing::debug!(%error, "a session with a connection ended");
            }
        }
    }
}

/// One session, as this agent speaks for it.
struct Line<'a> {
    worker: &'a Worker,
    to: Option<Uuid>,
    id: SessionId,
    instance: InstanceId,
    cipher: Cipher,
}

impl Worker {
    pub(super) async fn attend_session(self: &Arc<Self>, invitation: Invitation) {
        let Invitation { session, coordinator } = invitation;
        let mut instance = self.speaker.instance();
        let attach = |instance| Request::Attach { session, instance };
        let mut answer = self.ask_of(coordinator, &attach(instance.id)).await;
        if matches!(answer, Ok(Answer::SignIn)) && self.sign_in().await {
            instance = self.speaker.instance();
            answer = self.ask_of(coordinator, &attach(instance.id)).await;
        }
        let sealed = match answer {
            Ok(Answer::Attached { sealed }) => sealed,
            Ok(other) => return tracing::debug!(%session, ?other, "not attached to a session"),
            Err(error) => return tracing::debug!(%session, %error, "not attached to a session"),
        };
        let opened = instance.open_session(session, &sealed).map_err(|error| error.to_string());
        let opened = opened.and_then(|o| Cipher::new(&o.key).map(|c| (o.wish, c)).map_err(|error| error.to_string()));
        let (wish, cipher) = match opened {
            Ok(opened) => opened,
            Err(error) => return tracing::warn!(%session, error, "a session can't be opened"),
        };
        let line = Line { worker: self, to: coordinator, id: session, instance: instance.id, cipher };
        let begun = self.work.session(wish).await;
        let failure = begun.as_ref().err().cloned();
        let told = self.ask_of(coordinator, &Request::Begun { session, instance: instance.id, failure }).await;
        let (Ok(Answer::Recorded), Ok(begun)) = (told, begun) else { return };
        let (ours, theirs) = tokio::io::duplex(ROOM);
        let (from, to) = tokio::io::split(ours);
        let seams = &self.seams;
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = async { tokio::join!(serve(begun, theirs), line.push(from, seams)); } => {}
            // The person has gone, or the coordinator is lost.
            () = line.pull(to, seams) => {}
        }
    }

    async fn ask_of(&self, coordinator: Option<Uuid>, request: &Request) -> Result<Answer, Silence> {
        let patience = u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX);
        let answer = self.bus.request_of(coordinator, seal(request, "")?, patience).await?;
        Ok(open::<Answer>(&answer)?.message)
    }
}

impl Line<'_> {
    /// Asks until it is answered; `None` when there is nobody to ask any more.
    async fn ask(&self, request: &Request, seams: &Seams) -> Option<Answer> {
        let mut heard = seams.clock.monotonic();
        loop {
            match self.worker.ask_of(self.to, request).await {
                Ok(Answer::TryLater { .. }) => heard = seams.clock.monotonic(),
                Ok(answer) => return Some(answer),
                Err(Silence::Bus(BusError::Closed)) => return None,
                Err(error) => tracing::debug!(session = %self.id, %error, "a piece of a session was not answered"),
            }
            if seams.clock.monotonic().saturating_sub(heard) > SILENT {
                return None;
            }
            seams.clock.sleep(seams.jittered(AGAIN)).await;
        }
    }

    /// What comes from the cluster, to its end.
    async fn push(&self, mut from: impl tokio::io::AsyncRead + Unpin, seams: &Seams) {
        let (session, instance) = (self.id, self.instance);
        let mut piece = vec![0; LONGEST];
        for number in 0.. {
            let read = from.read(&mut piece).await.unwrap_or(0);
            let Ok(sealed) = self.cipher.seal(Direction::Up, number, piece.get(..read).unwrap_or_default()) else {
                return;
            };
            let told = self.ask(&Request::Push { session, instance, number, sealed }, seams).await;
            if read == 0 || told != Some(Answer::Recorded) {
                return;
            }
        }
    }

    /// What goes to the cluster; comes back when the session is over, and not before.
    async fn pull(&self, mut to: impl tokio::io::AsyncWrite + Unpin, seams: &Seams) {
        let (session, instance) = (self.id, self.instance);
        let mut number = 0;
        // Whether the program still takes input.
        let mut takes = true;
        loop {
            let sealed = match self.ask(&Request::Pull { session, instance, number }, seams).await {
                Some(Answer::Piece { sealed: Some(sealed) }) => sealed,
                Some(Answer::Piece { sealed: None }) => continue,
                _ => return,
            };
            let Ok(piece) = self.cipher.open(Direction::Down, number, &sealed) else { return };
            number += 1;
            if !takes {
                continue;
            }
            let given = async {
                // The person says nothing more, and may still listen.
                if piece.is_empty() { to.shutdown().await } else { to.write_all(&piece).await }
            };
            tokio::pin!(given);
            loop {
                tokio::select! {
                    given = &mut given => match given {
                        Ok(()) => break,
                        // It has its reasons, and may still speak: whether the person is there is asked as before.
                        Err(_) => {
                            takes = false;
                            break;
                        }
                    },
                    // A program may take its time: that this agent is there is said by asking for the same once more.
                    () = seams.clock.sleep(ALIVE) => {
                        let again = Request::Pull { session, instance, number: number - 1 };
                        if !matches!(self.ask(&again, seams).await, Some(Answer::Piece { .. })) {
                            return;
                        }
                    }
                }
            }
        }
    }
}
