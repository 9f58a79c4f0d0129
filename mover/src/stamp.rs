//! What tells that a file changed: size, and the times that the system itself sets.

use rustix::{
    fs::Stat,
    time::{ClockId, Timespec, clock_gettime},
};

/// Seconds and nanoseconds.
pub(crate) type Time = (i64, u32);

/// A file as it was at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: i64,
    written: Time,
    changed: Time,
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { size: stat.st_size, written: written(stat), changed: changed(stat) }
    }

    /// All of it, with what `stat` tells of the file's identity, for hashing.
    pub(crate) fn bytes(self, stat: &Stat) -> [u8; 44] {
        let parts = [
            &stat.st_ino.to_le_bytes()[..],
            &stat.st_mode.to_le_bytes(),
            &self.size.to_le_bytes(),
            &self.written.0.to_le_bytes(),
            &self.written.1.to_le_bytes(),
            &self.changed.0.to_le_bytes(),
            &self.changed.1.to_le_bytes(),
        ];
        let mut bytes = [0; 44];
        for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }
}

pub(crate) fn written(stat: &Stat) -> Time {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

pub(crate) fn changed(stat: &Stat) -> Time {
    (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0))
}

/// The clock that the system stamps files with.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::RealtimeCoarse);
    (time.tv_sec, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A moment that everything changed before lies before, and everything changed after doesn't: the system stamps files
/// with a clock that moves in steps of some milliseconds, so the next step is waited for.
pub(crate) fn fresh() -> Time {
    let before = now();
    loop {
        pause(1);
        let time = now();
        if time != before {
            return time;
        }
    }
}

/// Waits. The mover is a program of its own, outside of everything that a simulation could run.
pub(crate) fn pause(milliseconds: i64) {
    let span = Timespec { tv_sec: milliseconds / 1000, tv_nsec: (milliseconds % 1000) * 1_000_000 };
    // Woken early by a signal: whoever waits looks again.
    let _ = rustix::thread::nanosleep(&span);
}
