//! Files of programs that go on running: the data directory and its lock, secrets (0600), keys.

use std::{
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ocopea_coordinator::{api, vault::Vault};
use ocopea_protocol::secret::Secret32;
use ocopea_repository::Keyring;

use crate::client::Failure;

/// The directory of `ocopea up`, made where there is none.
pub(super) fn data_directory(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let base = given.or_else(|| {
        std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
            .map(|base| base.join("ocopea"))
    });
    let path = base.ok_or_else(|| Failure::usage("there is no home directory").next("name a directory with --data"))?;
    let fault =
        |error: std::io::Error| Failure::local(format!("the data directory {} can't be used: {error}", path.display()));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(fault)?;
    path.canonicalize().map_err(fault)
}

/// Keeps a second process off the directory for as long as it is held.
pub(super) fn lock(data: &Path) -> Result<std::fs::File, Failure> {
    let path = data.join("lock");
    let fault = |error: std::io::Error| Failure::local(format!("{} can't be used: {error}", path.display()));
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fault)?;
    if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let owner = std::fs::read_to_string(&path).unwrap_or_default();
        return Err(Failure {
            status: 5,
            ..Failure::local(format!("another process uses {}: {}", data.display(), owner.trim()))
                .next("stop it first, or choose another directory with --data")
        });
    }
    file.set_len(0).map_err(fault)?;
    writeln!(file, "process {}", std::process::id()).map_err(fault)?;
    Ok(file)
}

/// Reads a secret file, or makes it (0600) with what `make` gives. Whole or not at all.
pub(super) fn secret_file(
    path: &Path,
    make: impl FnOnce() -> Result<String, Failure>,
) -> Result<(String, bool), Failure> {
    let fault = |error: std::io::Error| Failure::local(format!("{} can't be used: {error}", path.display()));
    match std::fs::read_to_string(path) {
        Ok(text) => return Ok((text, false)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(fault(error)),
    }
    let text = make()?;
    write_secret(path, &text).map_err(fault)?;
    Ok((text, true))
}

/// Writes a secret file (0600): whole or not at all, and on the disk when this returns.
pub(super) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    // Left by a crash before it got its name: never used.
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The installation's key, made where there is none.
pub(super) fn open_vault(path: &Path) -> Result<Vault, Failure> {
    let fault = |error: ocopea_coordinator::vault::VaultError| Failure::local(error.to_string());
    let made = Vault::generate_key().map_err(fault)?;
    let (text, _) = secret_file(path, || Ok(hex::encode(made.0)))?;
    let mut key = [0u8; 32];
    hex::decode_to_slice(text.trim(), &mut key)
        .map_err(|_| Failure::local(format!("{} is not a key file", path.display())))?;
    Vault::new(&Secret32(key)).map_err(fault)
}

/// The file of the repository's keys.
pub(super) struct KeyFile(pub(super) PathBuf);

impl api::KeyFile for KeyFile {
    fn store(&self, keys: &Keyring) -> Result<(), String> {
        write_secret(&self.0, &keys.to_text())
            .map_err(|error| format!("the key file {} can't be written: {error}", self.0.display()))
    }
}
