//! A backend with a hook in front of and behind every call: for faults, quotas, and pauses between steps.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Entry, Put, StoreAbilities, Upload};
use crate::error::Result;

/// What is being done to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create-if-absent of so many bytes.
    Create(usize),
    /// Overwriting with so many bytes.
    Replace(usize),
    /// Beginning an upload.
    Upload,
    /// Appending so many bytes to an upload.
    Write(usize),
    /// Naming an upload.
    Finish,
    /// Reading.
    Read,
    /// Looking at size and time.
    Head,
    /// Listing.
    List,
    /// Removing.
    Delete,
}

/// Sees every call. An error from `before` fails the call undone; one from `after` fails it done.
#[async_trait]
pub trait Hook: Send + Sync {
    /// Before the call.
    async fn before(&self, action: Action, name: &str) -> Result<()>;

    /// After the call succeeded.
    async fn after(&self, action: Action, name: &str) -> Result<()> {
        let _ = (action, name);
        Ok(())
    }
}

/// See the module.
#[derive(Clone)]
pub struct HookedBackend {
    inner: Arc<dyn Backend>,
    hook: Arc<dyn Hook>,
}

impl HookedBackend {
    /// Wraps `inner`.
    pub fn new(inner: Arc<dyn Backend>, hook: Arc<dyn Hook>) -> Self {
        Self { inner, hook }
    }

    async fn hooked<T>(&self, action: Action, name: &str, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.hook.before(action, name).await?;
        let value = call.await?;
        self.hook.after(action, name).await?;
        Ok(value)
    }
}

#[async_trait]
impl Backend for HookedBackend {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put> {
        self.hooked(Action::Create(bytes.len()), name, self.inner.create(name, bytes)).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        self.hooked(Action::Replace(bytes.len()), name, self.inner.replace(name, bytes)).await
    }

    async fn upload(&self, name: Option<&str>) -> Result<Box<dyn Upload>> {
        let inner = self.hooked(Action::Upload, "", self.inner.upload(name)).await?;
        Ok(Box::new(HookedUpload { inner, hook: self.hook.clone() }))
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        self.hooked(Action::Read, name, self.inner.get(name, limit)).await
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.hooked(Action::Read, name, self.inner.range(name, offset, length)).await
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>> {
        self.hooked(Action::Head, name, self.inner.head(name)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.hooked(Action::List, prefix, self.inner.list(prefix)).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.hooked(Action::Delete, name, self.inner.delete(name)).await
    }

    async fn discard_unfinished(&self, before: i64) -> Result<()> {
        self.hooked(Action::Delete, "", self.inner.discard_unfinished(before)).await
    }

    fn abilities(&self) -> StoreAbilities {
        self.inner.abilities()
    }

    fn pack_target(&self) -> u64 {
        self.inner.pack_target()
    }
}

struct HookedUpload {
    inner: Box<dyn Upload>,
    hook: Arc<dyn Hook>,
}

#[async_trait]
impl Upload for HookedUpload {
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let action = Action::Write(pieces.iter().map(Bytes::len).sum());
        self.hook.before(action, "").await?;
        self.inner.write(pieces).await?;
        self.hook.after(action, "").await
    }

    async fn finish(self: Box<Self>, name: &str) -> Result<()> {
        self.hook.before(Action::Finish, name).await?;
        self.inner.finish(name).await?;
        self.hook.after(Action::Finish, name).await
    }
}
