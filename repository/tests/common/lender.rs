//! Keys that are lent for seconds, by whoever has real accounts to lend.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use async_trait::async_trait;
use ocopea_protocol::{image::StoreKeys, seams::Seams, time::Timestamp};
use ocopea_repository::backend::s3::GivesKeys;
use tokio_util::task::TaskTracker;

use super::s3::Server;

/// Lends the keys of one account after the other, each for `life`; when the next is lent, the one before is ended.
#[derive(Debug)]
pub struct Lender {
    pub server: &'static Server,
    pub accounts: Vec<StoreKeys>,
    /// How long each of them lives.
    pub life: Duration,
    pub lent: AtomicUsize,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server")
    }
}

impl Lender {
    pub fn new(server: &'static Server, bucket: &str, life: Duration) -> Self {
        let accounts: Vec<StoreKeys> =
            (0..12).map(|n| server.user(&format!("{bucket}-{n}"), &format!("secret-of-{n}"))).collect();
        let names: Vec<&str> = accounts.iter().map(|keys| keys.id.as_str()).collect();
        server.policy(bucket, &names, &["s3:*"]);
        Self { server, accounts, life, lent: AtomicUsize::new(0) }
    }

    pub fn lend(&self) -> StoreKeys {
        let number = self.lent.fetch_add(1, SeqCst);
        if number > 0 {
            self.server.no_user(&self.accounts[number - 1].id);
        }
        let expires = Some(Timestamp(Seams::real(TaskTracker::new()).clock.now().0).plus(self.life));
        StoreKeys { expires, ..self.accounts[number].clone() }
    }
}

#[async_trait]
impl GivesKeys for Lender {
    async fn keys(&self, _: Option<&str>) -> Result<StoreKeys, String> {
        Ok(self.lend())
    }
}
