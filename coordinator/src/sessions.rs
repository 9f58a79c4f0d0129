//! Sessions with agents elsewhere: what people do by hand in an environment, as bytes both ways.
//!
//! A session lives in the coordinator that the person speaks with; agents address that one alone (`protocol::session`). It
//! ends with what the person holds of it, or when its agent falls silent. To add a wish: a variant of `Wish`, what the
//! agent does with it, and whoever opens it here.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use ocopea_catalog_db::CatalogError;
use ocopea_protocol::{
    envelope,
    failure::TaskFailure,
    identity::{self, PublicKey},
    ids::{InstanceId, SessionId, SiteId},
    message::Answer,
    secret::Secret32,
    session::{Cipher, Direction, Invitation, LONGEST, Opening, Wish},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf},
    sync::{Mutex as AsyncMutex, oneshot},
};

use crate::Coordinator;

/// Sessions at a time.
const MOST: usize = 256;
/// How long an agent may take to attach and to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// How long a question for the next piece waits for one.
const WAIT: Duration = Duration::from_secs(5);
/// An agent that was not heard of for so long is lost.
const SILENT: Duration = Duration::from_secs(45);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Bytes that wait in each direction.
const ROOM: usize = 256 * 1024;

/// All sessions of this coordinator.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<SessionId, Arc<Held>>>);

struct Held {
    site: SiteId,
    wish: Wish,
    key: Secret32,
    cipher: Cipher,
    state: Mutex<State>,
    up: AsyncMutex<Up>,
    down: AsyncMutex<Down>,
}

struct State {
    /// Whose session it is.
    instance: Option<InstanceId>,
    begun: Option<oneshot::Sender<Option<TaskFailure>>>,
    heard: Duration,
}

struct Up {
    next: u64,
    /// What the person has not taken yet of the piece `next`.
    left: Option<Bytes>,
    to: Option<WriteHalf<DuplexStream>>,
}

struct Down {
    next: u64,
    last: Option<Vec<u8>>,
    /// The person says nothing more.
    ended: bool,
    from: Option<ReadHalf<DuplexStream>>,
}

/// The person's end of a session; dropping it ends the session.
pub struct Session {
    stream: DuplexStream,
    _ends: Ends,
}

struct Ends {
    id: SessionId,
    coordinator: Weak<Coordinator>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Some(coordinator) = self.coordinator.upgrade() {
            coordinator.sessions.with(|all| all.remove(&self.id));
        }
    }
}

impl AsyncRead for Session {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Session {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Sessions {
    fn with<T>(&self, act: impl FnOnce(&mut HashMap<SessionId, Arc<Held>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, id: SessionId) -> Option<Arc<Held>> {
        self.with(|all| all.get(&id).cloned())
    }
}

impl Held {
    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The agent is lost, or will say nothing more: whoever reads comes to the end.
    async fn end(&self) {
        self.up.lock().await.to = None;
        self.down.lock().await.from = None;
    }
}

fn unknown() -> Answer {
    Answer::Refused { why: "this session is over, or another agent's".to_owned() }
}

impl Coordinator {
    /// Opens a session at a site, and waits until an agent has begun it.
    pub async fn open_session(self: &Arc<Self>, site: SiteId, name: &str, wish: Wish) -> Result<Session, TaskFailure> {
        let what = format!("can't reach site {name}");
        let failed =
            |code: &str, cause: String, next: &str| TaskFailure::retryable(code, what.clone(), cause).next(next);
        let mut key = [0; 32];
        self.seams.entropy.fill(&mut key);
        let key = Secret32(key);
        let cipher = Cipher::new(&key).map_err(|error| failed("session.key", error.to_string(), "try again"))?;
        let id = SessionId::generate(&self.seams);
        let (theirs, ours) = tokio::io::duplex(ROOM);
        let (from, to) = tokio::io::split(ours);
        let (begun, has_begun) = oneshot::channel();
        let heard = self.seams.clock.monotonic();
        let held = Arc::new(Held {
            site,
            wish,
            key,
            cipher,
            state: Mutex::new(State { instance: None, begun: Some(begun), heard }),
            up: AsyncMutex::new(Up { next: 0, left: None, to: Some(to) }),
            down: AsyncMutex::new(Down { next: 0, last: None, ended: false, from: Some(from) }),
        });
        let fits = self.sessions.with(|all| {
            let fits = all.len() < MOST;
            if fits {
                all.insert(id, Arc::clone(&held));
            }
            fits
        });
        if !fits {
            let cause = format!("{MOST} sessions are open at this coordinator");
            return Err(failed("session.many", cause, "close some, and try again"));
        }
        let session = Session { stream: theirs, _ends: Ends { id, coordinator: Arc::downgrade(self) } };
        let invitation = Invitation { session: id, coordinator: self.bus.address() };
        let sealed =
            envelope::seal(&invitation, "").map_err(|e| failed("session.invite", e.to_string(), "try again"))?;
        self.bus.publish(site, sealed).await.map_err(|error| {
            failed("session.bus", error.to_string(), "see that the broker is well: /readyz of the coordinator")
        })?;
        match self.seams.timeout(BEGIN, has_begun).await {
            Some(Ok(None)) => {}
            Some(Ok(Some(failure))) => return Err(failure),
            Some(Err(_)) | None => {
                let cause = format!("none of its agents has answered within {} s", BEGIN.as_secs());
                return Err(failed("session.agent", cause, "see that its agents run: ocopea sites"));
            }
        }
        let (one, watched) = (Arc::downgrade(self), Arc::downgrade(&held));
        drop(held);
        self.seams.spawner.spawn("session", Box::pin(watch(one, watched)));
        Ok(session)
    }

    /// Ends what people do at a site: it is one no more.
    pub(crate) fn end_sessions(&self, site: SiteId) {
        self.sessions.with(|all| all.retain(|_, held| held.site != site));
    }

    /// The session, if it is this agent's.
    fn session_of(&self, site: SiteId, id: SessionId, instance: InstanceId) -> Option<Arc<Held>> {
        let held = self.sessions.get(id).filter(|held| held.site == site)?;
        let now = self.seams.clock.monotonic();
        held.state(|state| {
            state.heard = now;
            state.instance == Some(instance)
        })
        .then_some(held)
    }

    pub(crate) fn attach(
        &self,
        site: SiteId,
        id: SessionId,
        instance: InstanceId,
        key: &PublicKey,
    ) -> Result<Answer, CatalogError> {
        let Some(held) = self.sessions.get(id).filter(|held| held.site == site) else { return Ok(unknown()) };
        // The first who comes; again, where its answer was lost.
        if !held.state(|state| *state.instance.get_or_insert(instance) == instance) {
            return Ok(unknown());
        }
        let opening = Opening { wish: held.wish.clone(), key: held.key.clone() };
        match identity::seal_opening(key, id, instance, &opening) {
            Ok(sealed) => Ok(Answer::Attached { sealed }),
            Err(error) => Ok(Answer::Refused { why: error.to_string() }),
        }
    }

    pub(crate) fn begun(
        &self,
        site: SiteId,
        id: SessionId,
        instance: InstanceId,
        failure: Option<&TaskFailure>,
    ) -> Answer {
        let Some(held) = self.session_of(site, id, instance) else { return unknown() };
        if let Some(begun) = held.state(|state| state.begun.take()) {
            // Who gave up waiting has dropped the session.
            let _ = begun.send(failure.cloned());
        }
        Answer::Recorded
    }

    /// Takes a piece. While the person takes none, it is asked for again and again: a session may stand still for hours.
    pub(crate) async fn push(
        &self,
        site: SiteId,
        id: SessionId,
        instance: InstanceId,
        number: u64,
        sealed: &[u8],
    ) -> Answer {
        let Some(held) = self.session_of(site, id, instance) else { return unknown() };
        let mut up = held.up.lock().await;
        let up = &mut *up;
        // Sent again: its answer was lost.
        if number.checked_add(1) == Some(up.next) {
            return Answer::Recorded;
        }
        let piece = held.cipher.open(Direction::Up, number, sealed);
        let (Ok(piece), true, Some(to)) = (piece, number == up.next, &mut up.to) else { return unknown() };
        if piece.is_empty() && to.shutdown().await.is_err() {
            return unknown();
        }
        let left = up.left.get_or_insert_with(|| piece.into());
        while !left.is_empty() {
            match self.seams.timeout(WAIT, to.write(left)).await {
                None => return Answer::TryLater { why: "the person has not taken it yet".to_owned() },
                Some(Ok(taken @ 1..)) => left.advance(taken),
                Some(_) => return unknown(),
            }
        }
        up.left = None;
        up.next += 1;
        Answer::Recorded
    }

    /// Gives the next piece, when there is one.
    pub(crate) async fn pull(&self, site: SiteId, id: SessionId, instance: InstanceId, number: u64) -> Answer {
        let Some(held) = self.session_of(site, id, instance) else { return unknown() };
        let mut down = held.down.lock().await;
        if number.checked_add(1) == Some(down.next) {
            return Answer::Piece { sealed: down.last.clone() };
        }
        if number != down.next {
            return unknown();
        }
        if down.ended {
            drop(down);
            self.seams.clock.sleep(WAIT).await;
            return if self.sessions.get(id).is_some() { Answer::Piece { sealed: None } } else { unknown() };
        }
        let Some(from) = &mut down.from else { return unknown() };
        let mut piece = vec![0; LONGEST];
        let read = match self.seams.timeout(WAIT, from.read(&mut piece)).await {
            None => return Answer::Piece { sealed: None },
            Some(Ok(read)) => read,
            Some(Err(_)) => return unknown(),
        };
        piece.truncate(read);
        match held.cipher.seal(Direction::Down, number, &piece) {
            Ok(sealed) => {
                down.next += 1;
                down.ended = read == 0;
                down.last = Some(sealed.clone());
                Answer::Piece { sealed: Some(sealed) }
            }
            Err(error) => Answer::Refused { why: error.to_string() },
        }
    }
}

/// Ends a session whose agent is not heard of any more.
async fn watch(coordinator: Weak<Coordinator>, held: Weak<Held>) {
    loop {
        let Some((one, session)) = coordinator.upgrade().zip(held.upgrade()) else { return };
        let silent = one.seams.clock.monotonic().saturating_sub(session.state(|state| state.heard));
        if silent > SILENT {
            tracing::warn!(site.id = %session.site, "the agent of a session is lost");
            session.end().await;
            return;
        }
        let slept = one.seams.clock.sleep(LOOK);
        drop((one, session));
        slept.await;
    }
}
