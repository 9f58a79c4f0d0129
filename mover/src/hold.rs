//! Keeping a pod alive while an agent needs it, and no longer.

use std::time::Duration;

use rustix::process::{WaitOptions, getpid, wait};

use crate::stamp::pause;

/// Waits until `deadline` has passed, or until for `idle` no other process ran in this container: whoever started
/// this pod may have died. Buries orphans meanwhile.
pub fn hold(idle: Duration, deadline: Duration) {
    let (mut alone, mut all) = (Duration::ZERO, Duration::ZERO);
    let step = Duration::from_secs(1);
    while all < deadline && alone < idle {
        pause(1000);
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        all += step;
        alone = if is_alone() { alone + step } else { Duration::ZERO };
    }
}

/// Whether this is the only process that can be seen. Where that can't be found out, nobody is taken for absent.
fn is_alone() -> bool {
    let own = getpid().as_raw_nonzero().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else { return false };
    processes.flatten().all(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        name == own.as_bytes() || !name.iter().all(u8::is_ascii_digit)
    })
}
