//! What the tests of this crate share.

use ocopea_protocol::seams::Seams;
use tokio_util::task::TaskTracker;

/// The machine's own seams.
pub(crate) fn seams() -> Seams {
    Seams::real(TaskTracker::new())
}
