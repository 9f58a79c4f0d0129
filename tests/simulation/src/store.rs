//! The store of the copy repository: objects in memory, with the store's own clock; slow, failing and full as chance says.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use ocopea_repository::{
    Error,
    backend::{Backend, Entry, Put, Upload},
};

use crate::{
    runtime::{Sim, lock},
    scenario::Weather,
};

type Result<T> = ocopea_repository::Result<T>;

/// What is there: bytes, and when they were written.
pub type Objects = BTreeMap<String, (Bytes, i64)>;

struct Inner {
    objects: Objects,
    /// Bytes that there is room for.
    room: u64,
    clock: i64,
}

#[derive(Clone)]
pub struct Store {
    sim: Sim,
    weather: Weather,
    inner: Arc<Mutex<Inner>>,
}

impl Store {
    pub fn new(sim: &Sim, weather: &Weather, objects: Objects) -> Self {
        let inner = Inner { objects, room: u64::MAX, clock: 0 };
        Self { sim: sim.clone(), weather: weather.clone(), inner: Arc::new(Mutex::new(inner)) }
    }

    pub fn objects(&self) -> Objects {
        lock(&self.inner).objects.clone()
    }

    /// Leaves room for so many bytes more.
    pub fn set_room(&self, more: Option<u64>) {
        let mut inner = lock(&self.inner);
        let used: u64 = inner.objects.values().map(|(bytes, _)| bytes.len() as u64).sum();
        inner.room = more.map_or(u64::MAX, |more| used + more);
    }

    fn failed(&self, action: &'static str, object: &str) -> Error {
        Error::Store { action, object: object.to_owned(), cause: io::Error::other("the store doesn't answer") }
    }

    async fn way(&self, action: &'static str, object: &str) -> Result<()> {
        let (slow, fails) = self.weather.of(|weather| (weather.store_slow, weather.store_fails));
        let (kind, fails) = self.sim.chance(|chance| (chance.below(1000), chance.per_mille(fails)));
        if kind < slow {
            let span = self.sim.chance(|chance| chance.within(200..4000));
            self.sim.sleep(Duration::from_millis(span)).await;
        } else if kind < 250 {
            let span = self.sim.chance(|chance| chance.within(1..5));
            self.sim.sleep(Duration::from_millis(span)).await;
        } else if kind < 600 {
            self.sim.give_way().await;
        }
        if fails { Err(self.failed(action, object)) } else { Ok(()) }
    }

    /// There and back: either may fail, and then what was asked for is done or not.
    async fn call<T>(
        &self,
        action: &'static str,
        object: &str,
        act: impl FnOnce(&mut Inner, i64) -> Result<T> + Send,
    ) -> Result<T> {
        self.way(action, object).await?;
        let answer = {
            let now = i64::try_from(self.sim.now().as_millis()).unwrap_or(0);
            let mut inner = lock(&self.inner);
            inner.clock = now.max(inner.clock + 1);
            let now = inner.clock;
            act(&mut inner, now)
        };
        self.way(action, object).await?;
        answer
    }
}

impl Inner {
    fn put(&mut self, name: &str, bytes: Bytes, now: i64) -> Result<()> {
        let used: u64 = self.objects.values().map(|(bytes, _)| bytes.len() as u64).sum();
        let before = self.objects.get(name).map_or(0, |(bytes, _)| bytes.len() as u64);
        if self.room < u64::MAX && used - before + bytes.len() as u64 > self.room {
            return Err(Error::Full { object: name.to_owned() });
        }
        self.objects.insert(name.to_owned(), (bytes, now));
        Ok(())
    }

    /// Whether a list that was written by `then` condemns it.
    fn was_condemned(&self, digest: &str, then: i64) -> bool {
        let lists =
            self.objects.range("condemned/".to_owned()..).take_while(|(name, _)| name.starts_with("condemned/"));
        lists
            .filter(|(_, (_, modified))| *modified <= then)
            .any(|(_, (bytes, _))| bytes.windows(digest.len()).any(|window| window == digest.as_bytes()))
    }

    fn find(&self, name: &str) -> Result<&Bytes> {
        let found = self.objects.get(name).map(|(bytes, _)| bytes);
        found.ok_or_else(|| Error::Missing { object: name.to_owned() })
    }
}

fn entry(name: &str, (bytes, modified): &(Bytes, i64)) -> Entry {
    Entry { name: name.to_owned(), size: bytes.len() as u64, modified: *modified }
}

#[async_trait]
impl Backend for Store {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put> {
        self.call("write", name, |inner, now| {
            if inner.objects.contains_key(name) {
                return Ok(Put::Existed);
            }
            inner.put(name, bytes, now).map(|()| Put::Created)
        })
        .await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.call("write", name, |inner, now| inner.put(name, bytes, now)).await
    }

    async fn upload(&self, _name: Option<&str>) -> Result<Box<dyn Upload>> {
        Ok(Box::new(Uploading { store: self.clone(), bytes: BytesMut::new() }))
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        let bytes = self.call("read", name, |inner, _| inner.find(name).cloned()).await?;
        if bytes.len() as u64 > limit {
            return Err(Error::Limit { what: name.to_owned(), found: bytes.len() as u64, limit });
        }
        Ok(bytes)
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.call("read", name, |inner, _| {
            let bytes = inner.find(name)?;
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let to = usize::try_from(offset.saturating_add(length)).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes.slice(from..to))
        })
        .await
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>> {
        self.call("look at", name, |inner, _| Ok(inner.objects.get(name).map(|object| entry(name, object)))).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.call("list", prefix, |inner, _| {
            let named = inner.objects.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
            Ok(named.map(|(name, object)| entry(name, object)).collect())
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.call("delete", name, |inner, now| {
            // Every collection here has a grace time of a second at least.
            if let Some(digest) = name.strip_prefix("blobs/sha256/")
                && inner.objects.contains_key(name)
                && !inner.was_condemned(digest, now - 1000)
            {
                self.sim.wrong("a blob was deleted before its grace time was over".to_owned());
            }
            inner.objects.remove(name);
            Ok(())
        })
        .await
    }

    async fn discard_unfinished(&self, _before: i64) -> Result<()> {
        // An upload that isn't finished is nowhere but at its writer.
        Ok(())
    }
}

struct Uploading {
    store: Store,
    bytes: BytesMut,
}

#[async_trait]
impl Upload for Uploading {
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        self.store.way("write", "an upload").await?;
        for piece in pieces {
            self.bytes.extend_from_slice(&piece);
        }
        Ok(())
    }

    async fn finish(self: Box<Self>, name: &str) -> Result<()> {
        let bytes = self.bytes.freeze();
        self.store.call("write", name, |inner, now| inner.put(name, bytes, now)).await
    }
}
