//! As whom a worker speaks: an instance of its site, with a key of its own, until its word counts no more.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use ocopea_protocol::{
    identity::{IdentityError, Instance, SignIn, SiteKey},
    ids::{InstanceId, SiteId},
    message::Request,
    seams::{BoxFuture, Seams},
};

use crate::platform::Platform;

/// What makes a process an agent of its site.
#[derive(Clone)]
pub struct Identity {
    /// The site.
    pub site: SiteId,
    /// Signs its instances in.
    pub key: SiteKey,
    /// Finds out what tells the site's cluster from others; empty where that can't be told now.
    pub cluster: Arc<dyn Fn() -> BoxFuture<String> + Send + Sync>,
}

impl Identity {
    /// For a cluster that is reached through this platform.
    pub fn beside(platform: &Platform, site: SiteId, key: SiteKey) -> Self {
        let platform = platform.clone();
        let cluster = move || -> BoxFuture<String> {
            let platform = platform.clone();
            Box::pin(async move { platform.cluster_uid().await })
        };
        Self { site, key, cluster: Arc::new(cluster) }
    }
}

pub(super) struct Speaker {
    identity: Identity,
    instance: Mutex<Arc<Instance>>,
    turn: AtomicU64,
}

impl Speaker {
    pub(super) fn new(identity: Identity, seams: &Seams) -> Result<Self, IdentityError> {
        let instance = Instance::generate(InstanceId::generate(seams))?;
        Ok(Self { identity, instance: Mutex::new(Arc::new(instance)), turn: AtomicU64::new(0) })
    }

    pub(super) fn instance(&self) -> Arc<Instance> {
        Arc::clone(&self.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another instance takes the place of this one.
    pub(super) fn renew(&self, seams: &Seams) -> Result<(), IdentityError> {
        let instance = Arc::new(Instance::generate(InstanceId::generate(seams))?);
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = instance;
        Ok(())
    }

    pub(super) async fn sign_in(&self) -> Result<SignIn, IdentityError> {
        let cluster = (self.identity.cluster)().await;
        self.identity.key.sign_in(self.identity.site, &self.instance(), &cluster)
    }

    pub(super) fn poll(&self, most: u32, seams: &Seams) -> Request {
        let mut mark = [0; 8];
        seams.entropy.fill(&mut mark);
        // Zero stands for none.
        let mark = u64::from_le_bytes(mark) | 1;
        Request::Poll { instance: self.instance().id, most, turn: self.turn.fetch_add(1, Ordering::SeqCst) + 1, mark }
    }
}
