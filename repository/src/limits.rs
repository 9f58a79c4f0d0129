//! What all copies of one process share: cores for computing, and bytes that may be under way.

use std::sync::OnceLock;

use tokio::sync::Semaphore;

/// Raw bytes being hashed, compressed and stored at once, for each core.
const BYTES_PER_CORE: usize = 8 << 20;
/// Raw bytes read ahead of consumers at once, in all.
const READ_AHEAD: usize = 24 << 20;
/// Packs being synced and read back at once.
const SEALING: usize = 2;

/// One per process.
pub(crate) struct Limits {
    /// Threads that may compute.
    pub(crate) cores: Semaphore,
    /// Raw bytes that writers may have under way.
    pub(crate) writing: Semaphore,
    /// Raw bytes that readers may have ahead of their consumers, each one's next piece aside.
    pub(crate) reading: Semaphore,
    /// Packs between their last byte and their verification.
    pub(crate) sealing: Semaphore,
}

impl Limits {
    /// Made on first use from the number of cores.
    pub(crate) fn of_process() -> &'static Self {
        static LIMITS: OnceLock<Limits> = OnceLock::new();
        LIMITS.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            Self {
                cores: Semaphore::new(cores),
                writing: Semaphore::new((cores * BYTES_PER_CORE).clamp(16 << 20, 48 << 20)),
                reading: Semaphore::new(READ_AHEAD),
                sealing: Semaphore::new(SEALING),
            }
        })
    }
}
