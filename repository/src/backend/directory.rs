//! A directory of this machine. Objects are files; writes go to a temporary file, are synced, and linked into place.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use ocopea_protocol::seams::Seams;

use super::{Backend, Entry, Put};
use crate::{crypto::Sha256, error::Error};

/// Objects below a directory.
#[derive(Clone)]
pub struct DirectoryBackend {
    root: PathBuf,
    seams: Seams,
}

impl DirectoryBackend {
    /// Makes the directory (0700) where it is missing.
    pub fn open(root: &Path, seams: Seams) -> Result<Self, Error> {
        let io = |source| Error::Io { object: root.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join("tmp")).map_err(io)?;
        Ok(Self { root: root.to_owned(), seams })
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        let fits = !name.is_empty()
            && name.len() <= 512
            && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.'));
        if fits { Ok(self.root.join(name)) } else { Err(Error::Limit(format!("{name:.80?} is not an object's name"))) }
    }

    fn temporary(&self) -> PathBuf {
        self.root.join("tmp").join(self.seams.uuid().simple().to_string())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.seams.compute("repository.directory", work).await.ok_or(Error::Stopped)?
    }
}

fn fault(object: &str, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::NotFound => Error::NotFound(object.to_owned()),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Full(format!("{object}: {source}")),
        _ => Error::Io { object: object.to_owned(), source },
    }
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives a finished temporary file its name, if nothing has it.
fn link(temporary: &Path, path: &Path) -> std::io::Result<Put> {
    let parent = path.parent().unwrap_or(path);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let put = match fs::hard_link(temporary, path) {
        Ok(()) => Put::Created,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Put::Existed,
        Err(error) => return Err(error),
    };
    sync_directory(parent)?;
    Ok(put)
}

/// Removes the temporary file when a write ends, however it ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may have been renamed into place; then nothing is left to remove.
        let _ = fs::remove_file(&self.0);
    }
}

#[async_trait]
impl Backend for DirectoryBackend {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put, Error> {
        let (path, temporary, name) = (self.path(name)?, Temporary(self.temporary()), name.to_owned());
        self.blocking(move || {
            let write = || {
                if path.exists() {
                    return Ok(Put::Existed);
                }
                let mut file = File::create_new(&temporary.0)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                link(&temporary.0, &path)
            };
            write().map_err(|error| fault(&name, error))
        })
        .await
    }

    async fn create_stream(
        &self,
        name: &str,
        size: u64,
        mut stream: BoxStream<'static, Result<Bytes, std::io::Error>>,
    ) -> Result<Put, Error> {
        let path = self.path(name)?;
        let expected = name.rsplit('/').next().unwrap_or_default().to_owned();
        let temporary = Temporary(self.temporary());
        let file = File::create_new(&temporary.0).map_err(|error| fault(name, error))?;
        let mut state = (file, Sha256::new(), 0u64);
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| Error::Io { object: name.to_owned(), source })?;
            if state.2 + chunk.len() as u64 > size {
                return Err(Error::damaged(name, format!("more than the {size} bytes that it claims")));
            }
            let object = name.to_owned();
            state = self
                .blocking(move || {
                    let (mut file, mut hash, written) = state;
                    hash.update(&chunk);
                    file.write_all(&chunk).map_err(|error| fault(&object, error))?;
                    Ok((file, hash, written + chunk.len() as u64))
                })
                .await?;
        }
        let (file, hash, written) = state;
        if written != size {
            return Err(Error::damaged(name, format!("{written} bytes instead of {size}")));
        }
        let found = hash.finish();
        if found.hex() != expected {
            let expected = format!("sha256:{expected}").parse().map_err(|error| Error::damaged(name, error))?;
            return Err(Error::WrongDigest { expected, found });
        }
        let name = name.to_owned();
        self.blocking(move || {
            let finish = || {
                file.sync_all()?;
                link(&temporary.0, &path)
            };
            finish().map_err(|error| fault(&name, error))
        })
        .await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let (path, temporary, name) = (self.path(name)?, Temporary(self.temporary()), name.to_owned());
        self.blocking(move || {
            let write = || {
                let mut file = File::create_new(&temporary.0)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                let parent = path.parent().unwrap_or(&path);
                fs::create_dir_all(parent)?;
                fs::rename(&temporary.0, &path)?;
                sync_directory(parent)
            };
            write().map_err(|error| fault(&name, error))
        })
        .await
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes, Error> {
        let (path, name) = (self.path(name)?, name.to_owned());
        self.blocking(move || {
            let mut file = File::open(&path).map_err(|error| fault(&name, error))?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(limit + 1).read_to_end(&mut bytes).map_err(|error| fault(&name, error))?;
            if bytes.len() as u64 > limit {
                return Err(Error::damaged(name, format!("longer than {limit} bytes")));
            }
            Ok(bytes.into())
        })
        .await
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Error> {
        let (path, name) = (self.path(name)?, name.to_owned());
        self.blocking(move || {
            let read = || {
                let mut file = File::open(&path)?;
                file.seek(SeekFrom::Start(offset))?;
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0).min(64 << 20));
                file.take(length).read_to_end(&mut bytes)?;
                Ok(Bytes::from(bytes))
            };
            read().map_err(|error| fault(&name, error))
        })
        .await
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>, Error> {
        let (path, name) = (self.path(name)?, name.to_owned());
        self.blocking(move || match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(entry(name, &meta))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(fault(&name, error)),
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>, Error> {
        let root = self.path(prefix.trim_end_matches('/'))?;
        let prefix = prefix.trim_end_matches('/').to_owned();
        self.blocking(move || {
            let mut found = Vec::new();
            let mut open = vec![(root, prefix)];
            while let Some((path, name)) = open.pop() {
                let entries = match fs::read_dir(&path) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(fault(&name, error)),
                };
                for item in entries {
                    let item = item.map_err(|error| fault(&name, error))?;
                    let Ok(part) = item.file_name().into_string() else { continue };
                    let full = format!("{name}/{part}");
                    match item.metadata() {
                        Ok(meta) if meta.is_dir() => open.push((item.path(), full)),
                        Ok(meta) => found.push(entry(full, &meta)),
                        // Deleted between listing and looking: as if it had never been listed.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(fault(&full, error)),
                    }
                }
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<(), Error> {
        let (path, name) = (self.path(name)?, name.to_owned());
        self.blocking(move || match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(fault(&name, error)),
        })
        .await
    }
}

fn entry(name: String, meta: &fs::Metadata) -> Entry {
    Entry { name, size: meta.len(), modified: meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000 }
}
