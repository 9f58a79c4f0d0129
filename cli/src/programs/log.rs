//! Where programs that go on running say what they do.

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tracing_subscriber::EnvFilter;

use crate::{client::Failure, output};

/// Logs into a file of this directory.
pub(super) fn log_to(data: &Path) -> Result<(), Failure> {
    let log = Log::open(data.join("ocopea.log"))
        .map_err(|(path, error)| Failure::local(format!("{} can't be written: {error}", path.display())))?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter()).with_ansi(false).with_writer(std::sync::Mutex::new(log));
    log.try_init().map_err(|error| Failure::local(format!("no log: {error}")))
}

/// Logs to standard error, a JSON object a line: what runs programs collects that.
pub(super) fn log_to_stderr() -> Result<(), Failure> {
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter());
    let log = log.with_ansi(false).with_writer(std::io::stderr);
    log.try_init().map_err(|error| Failure::local(format!("no log: {error}")))
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("OCOPEA_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,kube=warn,lapin=off"))
}

/// Where a log begins anew; the one before is kept beside it.
const LONGEST_LOG: u64 = 32 * 1024 * 1024;

/// The log file, bounded. A disk without room costs lines, and is said once.
struct Log {
    path: PathBuf,
    file: std::fs::File,
    length: u64,
    broken: bool,
}

impl Log {
    fn open(path: PathBuf) -> Result<Self, (PathBuf, std::io::Error)> {
        let opened = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        match opened.and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((length, file)) => Ok(Self { path, file, length, broken: false }),
            Err(error) => Err((path, error)),
        }
    }

    fn begin_anew(&mut self) -> std::io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, old)?;
        *self = Self::open(self.path.clone()).map_err(|(_, error)| error)?;
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let room = if self.length >= LONGEST_LOG { self.begin_anew() } else { Ok(()) };
        match room.and_then(|()| self.file.write_all(line)) {
            Ok(()) => {
                self.length += line.len() as u64;
                self.broken = false;
            }
            Err(error) if !self.broken => {
                self.broken = true;
                output::remark(format!("the log {} can't be written: {error}", self.path.display()));
            }
            Err(_) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
