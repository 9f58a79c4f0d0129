//! A backend whose bytes and requests are bounded: by what its process may move in all, and by what each process may ask
//! of this store.
//!
//! Bytes are counted before they go, and when they came, before anybody sees them. What an upload has taken in goes to the
//! store as fast as it can, and so does what is being read: in the mean the limit holds, for moments there may be as much
//! more as uploads hold in memory, and as requests have under way. What is sent again because an answer was lost isn't
//! counted twice.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::{
    image::{Location, StoreLimits},
    seams::Seams,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Backend, Entry, Put, StoreAbilities, Upload,
    rate::{Rate, Share},
};
use crate::error::{Error, Result};

/// Requests of one process to a store behind a network at the same time, unless said otherwise.
pub const USUAL_REQUESTS: u32 = 32;

/// Requests at the same time, of which more or fewer may be allowed at any time.
#[derive(Default)]
pub(crate) struct Turns(RwLock<Option<(u32, Arc<Semaphore>)>>);

impl Turns {
    /// From now on so many; those that are under way are not counted then.
    pub(crate) fn set(&self, most: Option<u32>) {
        let mut turns = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if turns.as_ref().map(|(most, _)| *most) != most {
            *turns = most.map(|most| (most, Arc::new(Semaphore::new(usize::try_from(most.max(1)).unwrap_or(1)))));
        }
    }

    /// Waits for one; `None` where they aren't counted.
    pub(crate) async fn one(&self) -> Option<OwnedSemaphorePermit> {
        let turns = self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, turns)| turns.clone());
        match turns {
            Some(turns) => turns.acquire_owned().await.ok(),
            None => None,
        }
    }
}

/// What may be moved on one way: to all stores, or to one.
#[derive(Default)]
pub(crate) struct Throttle {
    up: Rate,
    down: Rate,
    turns: Turns,
    /// Requests at the same time unless said otherwise.
    usual: Option<u32>,
}

impl Throttle {
    fn set(&self, limits: &StoreLimits) {
        self.up.set(limits.upload);
        self.down.set(limits.download);
        self.turns.set(limits.requests.or(self.usual));
    }

    /// Waits for a request's turn.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.one().await
    }
}

/// The throttles of a process: its own, and one for each store.
#[derive(Default)]
pub(crate) struct Throttles {
    own: Arc<Throttle>,
    stores: Mutex<HashMap<String, Arc<Throttle>>>,
}

impl Throttles {
    /// What the process may move in all, in bytes per second.
    pub(crate) fn limit(&self, upload: Option<u64>, download: Option<u64>) {
        self.own.set(&StoreLimits { requests: None, upload, download });
    }

    /// That of one store.
    pub(crate) fn of(&self, location: &Location) -> Arc<Throttle> {
        let (name, usual) = match location {
            Location::Directory { path } => (path.clone(), None),
            Location::S3 { endpoint, bucket, prefix, .. } => {
                (format!("{endpoint}\n{bucket}\n{prefix}"), Some(USUAL_REQUESTS))
            }
        };
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, throttle| Arc::strong_count(throttle) > 1);
        let made = || {
            let throttle = Throttle { usual, ..Throttle::default() };
            throttle.turns.set(usual);
            Arc::new(throttle)
        };
        stores.entry(name).or_insert_with(made).clone()
    }
}

/// One who works with a store; what all of them get is shared by them equally.
struct Way {
    throttles: [Arc<Throttle>; 2],
    share: Share,
    seams: Seams,
}

impl Way {
    async fn send(&self, bytes: usize) {
        for throttle in &self.throttles {
            throttle.up.take(self.share, bytes as u64, &*self.seams.clock).await;
        }
    }

    async fn receive(&self, bytes: u64) {
        for throttle in &self.throttles {
            throttle.down.take(self.share, bytes, &*self.seams.clock).await;
        }
    }

    /// Stores behind a network count their requests themselves, each try of them.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        let [_, of_store] = &self.throttles;
        of_store.turn().await
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        for throttle in &self.throttles {
            throttle.up.forget(self.share);
            throttle.down.forget(self.share);
        }
    }
}

/// See the module.
pub(crate) struct LimitedBackend {
    inner: Arc<dyn Backend>,
    way: Arc<Way>,
    /// Whether the backend doesn't count its requests itself.
    counted: bool,
}

impl LimitedBackend {
    /// One more who works with the store in `location`.
    pub(crate) fn new(
        inner: Arc<dyn Backend>,
        location: &Location,
        throttles: &Throttles,
        limits: &StoreLimits,
        seams: &Seams,
    ) -> Self {
        static SHARES: AtomicU64 = AtomicU64::new(0);
        let of_store = throttles.of(location);
        of_store.set(limits);
        let counted = matches!(location, Location::Directory { .. });
        let throttles = [throttles.own.clone(), of_store];
        let way = Way { throttles, share: SHARES.fetch_add(1, Relaxed), seams: seams.clone() };
        Self { inner, way: Arc::new(way), counted }
    }

    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        if self.counted { self.way.turn().await } else { None }
    }
}

#[async_trait]
impl Backend for LimitedBackend {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put> {
        self.way.send(bytes.len()).await;
        let _turn = self.turn().await;
        self.inner.create(name, bytes).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.way.send(bytes.len()).await;
        let _turn = self.turn().await;
        self.inner.replace(name, bytes).await
    }

    async fn upload(&self, name: Option<&str>) -> Result<Box<dyn Upload>> {
        let inner = self.inner.upload(name).await?;
        Ok(Box::new(LimitedUpload { inner, way: self.way.clone(), counted: self.counted }))
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        let read = {
            let _turn = self.turn().await;
            self.inner.get(name, limit).await?
        };
        // How long it is was not known before.
        self.way.receive(read.len() as u64).await;
        Ok(read)
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        let read = {
            let _turn = self.turn().await;
            self.inner.range(name, offset, length).await?
        };
        // Much may be asked for where little is: what comes is what counts.
        self.way.receive(read.len() as u64).await;
        Ok(read)
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>> {
        let _turn = self.turn().await;
        self.inner.head(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let _turn = self.turn().await;
        self.inner.list(prefix).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let _turn = self.turn().await;
        self.inner.delete(name).await
    }

    async fn discard_unfinished(&self, before: i64) -> Result<()> {
        self.inner.discard_unfinished(before).await
    }

    fn abilities(&self) -> StoreAbilities {
        self.inner.abilities()
    }

    fn pack_target(&self) -> u64 {
        self.inner.pack_target()
    }
}

struct LimitedUpload {
    inner: Box<dyn Upload>,
    way: Arc<Way>,
    counted: bool,
}

#[async_trait]
impl Upload for LimitedUpload {
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.way.send(pieces.iter().map(Bytes::len).sum()).await;
        let _turn = if self.counted { self.way.turn().await } else { None };
        self.inner.write(pieces).await
    }

    async fn finish(self: Box<Self>, name: &str) -> Result<()> {
        self.inner.finish(name).await
    }
}

/// The least that bytes per second may be limited to: below, requests would take longer than stores wait.
pub const LEAST_RATE: u64 = 64 << 10;
/// The most requests at the same time that may be set.
pub const MOST_REQUESTS: u32 = 1024;

/// Refuses limits with which nothing would work.
pub fn check_limits(limits: &StoreLimits) -> Result<()> {
    let slow = |rate: Option<u64>| rate.is_some_and(|rate| rate < LEAST_RATE);
    if slow(limits.upload) || slow(limits.download) {
        return Err(Error::Misuse(format!("bandwidth can be limited to {LEAST_RATE} bytes per second, not to less")));
    }
    match limits.requests {
        Some(requests) if !(1..=MOST_REQUESTS).contains(&requests) => {
            Err(Error::Misuse(format!("of requests at the same time 1 to {MOST_REQUESTS} can be allowed")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ocopea_protocol::seams::Clock;

    use super::*;
    use crate::{
        backend::{DirectoryBackend, conformance},
        testing::{Virtual, seams},
    };

    /// A directory, and time that passes only while somebody waits for it.
    struct World {
        place: tempfile::TempDir,
        clock: Arc<Virtual>,
        seams: Seams,
        throttles: Throttles,
    }

    impl World {
        fn new() -> Self {
            let clock = Arc::new(Virtual::default());
            let seams = Seams { clock: clock.clone(), ..seams() };
            Self { place: tempfile::tempdir().unwrap(), clock, seams, throttles: Throttles::default() }
        }

        async fn backend(&self, limits: StoreLimits) -> LimitedBackend {
            let path = self.place.path().to_str().unwrap().to_owned();
            let inner = DirectoryBackend::open(self.place.path(), self.seams.clone(), true).await.unwrap();
            let location = Location::Directory { path };
            LimitedBackend::new(Arc::new(inner), &location, &self.throttles, &limits, &self.seams)
        }

        /// How long some work takes, in seconds.
        async fn takes<T>(&self, work: impl Future<Output = T>) -> f64 {
            let begun = self.clock.monotonic();
            self.clock.run(work).await;
            (self.clock.monotonic() - begun).as_secs_f64()
        }
    }

    fn limits(upload: Option<u64>, download: Option<u64>) -> StoreLimits {
        StoreLimits { requests: None, upload, download }
    }

    async fn upload(backend: &LimitedBackend, name: &str, bytes: usize) {
        let mut upload = backend.upload(Some(name)).await.unwrap();
        for _ in 0..bytes >> 16 {
            upload.write(vec![Bytes::from(vec![7; 1 << 16])]).await.unwrap();
        }
        upload.finish(name).await.unwrap();
    }

    async fn read(backend: &LimitedBackend, name: &str, bytes: u64) {
        for offset in (0..bytes).step_by(1 << 18) {
            assert_eq!(backend.range(name, offset, 1 << 18).await.unwrap().len(), 1 << 18);
        }
        // Asked for beyond the end: what doesn't come isn't counted.
        assert!(backend.range(name, bytes, 1 << 30).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_limited_backend_is_one_like_any_other() {
        let place = tempfile::tempdir().unwrap();
        let inner = DirectoryBackend::open(place.path(), seams(), true).await.unwrap();
        let location = Location::Directory { path: place.path().to_str().unwrap().to_owned() };
        let limits = StoreLimits { requests: Some(1), upload: Some(8 << 20), download: Some(8 << 20) };
        let limited = LimitedBackend::new(Arc::new(inner), &location, &Throttles::default(), &limits, &seams());
        conformance::check(&limited).await;
    }

    #[tokio::test]
    async fn bytes_go_and_come_as_fast_as_the_store_and_the_process_may_and_no_faster() {
        const SIZE: usize = 4 << 20;
        let near = |took: f64, expected: f64| {
            // The bucket is full at first, and again after each rest.
            assert!(took <= expected + 0.01 && took >= expected - 0.26, "{took} s instead of {expected} s");
        };
        let world = World::new();
        let free = world.backend(limits(None, None)).await;
        assert!(world.takes(upload(&free, "a", SIZE)).await < 0.001);
        assert!(world.takes(read(&free, "a", SIZE as u64)).await < 0.001);
        // By the store's limits, each direction by itself.
        let slow = world.backend(limits(Some(1 << 20), Some(2 << 20))).await;
        near(world.takes(upload(&slow, "b", SIZE)).await, 4.0);
        near(world.takes(read(&slow, "b", SIZE as u64)).await, 2.0);
        world.clock.run(world.clock.sleep(Duration::from_secs(1))).await;
        near(world.takes(async { slow.get("b", SIZE as u64).await.unwrap() }).await, 2.0);
        // They count for all who work with the store: two take as long as one with twice as much.
        let other = world.backend(limits(Some(1 << 20), Some(2 << 20))).await;
        let both = async { tokio::join!(upload(&slow, "c", SIZE), upload(&other, "d", SIZE)) };
        near(world.takes(both).await, 8.0);
        // The process may do less, and whoever came before hears of it.
        world.throttles.limit(Some(512 << 10), None);
        near(world.takes(upload(&slow, "e", SIZE)).await, 8.0);
        world.throttles.limit(None, None);
        let _last = world.backend(limits(None, None)).await;
        assert!(world.takes(upload(&slow, "f", SIZE)).await < 0.001, "the limits were taken away");
    }

    #[tokio::test]
    async fn no_more_requests_than_allowed_are_under_way() {
        let turns = Turns::default();
        assert!(turns.one().await.is_none(), "they aren't counted");
        turns.set(Some(2));
        let held = [turns.one().await, turns.one().await];
        assert!(held.iter().all(Option::is_some));
        let waits = async |turns: &Turns| {
            let third = turns.one();
            tokio::pin!(third);
            futures::poll!(&mut third).is_pending()
        };
        assert!(waits(&turns).await);
        turns.set(Some(2));
        assert!(waits(&turns).await, "the same limit once more is no new one");
        drop(held);
        assert!(!waits(&turns).await);
    }

    #[test]
    fn limits_with_which_nothing_would_work_are_refused() {
        let slow = limits(Some(LEAST_RATE - 1), None);
        let none = StoreLimits { requests: Some(0), ..StoreLimits::default() };
        let many = StoreLimits { requests: Some(MOST_REQUESTS + 1), ..StoreLimits::default() };
        for wrong in [slow, none, many] {
            assert!(check_limits(&wrong).is_err(), "{wrong:?}");
        }
        let least = StoreLimits { requests: Some(1), upload: Some(LEAST_RATE), download: Some(LEAST_RATE) };
        assert!(check_limits(&least).is_ok() && check_limits(&StoreLimits::default()).is_ok());
    }
}
