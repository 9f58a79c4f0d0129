//! The one place that touches the machine's clock, randomness, runtime and signals.
//!
//! A sample stands on its own, so it has these few lines instead of a dependency on Ocopea's crates.

#![expect(clippy::disallowed_methods, reason = "the one place where the machine's own clock and runtime are used")]

use std::{future::Future, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

/// Milliseconds since 1970, UTC: the resolution in which messages carry their time.
pub type Millis = i64;

/// Now. May jump, as machines' clocks do: version 1.4.1 shows what comes of trusting it.
pub fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A stopwatch.
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts one.
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits.
pub async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

/// `None` when `span` passes first.
pub async fn within<T>(span: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(span, work).await.ok()
}

/// Starts work beside the caller; `tracker` waits for it at the end.
pub fn spawn(tracker: &TaskTracker, work: impl Future<Output = ()> + Send + 'static) {
    tracker.spawn(work);
}

/// Runs `compute` away from the async threads. `None` when it panicked.
pub async fn compute<T: Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(compute).await.ok()
}

/// 32 random bytes.
pub fn random() -> [u8; 32] {
    // A version 4 UUID has 122 random bits of the system's generator; three of them are condensed to 256 bits.
    let mut source = blake3::Hasher::new();
    for _ in 0..3 {
        source.update(Uuid::new_v4().as_bytes());
    }
    *source.finalize().as_bytes()
}

/// A random UUID.
pub fn uuid() -> Uuid {
    Uuid::new_v4()
}

/// Cancelled by the first SIGTERM or SIGINT.
pub fn stop_signal(tracker: &TaskTracker) -> std::io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    spawn(tracker, async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = cancel.cancelled() => {}
        }
        cancel.cancel();
    });
    Ok(stop)
}

/// `2026-11-23T15:59:00.123Z`; out of range reads as the epoch.
pub fn rfc3339(at: Millis) -> String {
    let nanos = i128::from(at) * 1_000_000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The reverse of [`rfc3339`].
pub fn parse_rfc3339(text: &str) -> Option<Millis> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}
