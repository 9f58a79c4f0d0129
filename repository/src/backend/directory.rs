//! A directory of this machine. Objects are files; writes go to a temporary file, are synced, and linked into place.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use ocopea_protocol::seams::Seams;

use super::{Backend, Entry, Put, Upload, check_name};
use crate::error::{Error, Result};

/// Unfinished objects lie here, out of sight of listings. What a dead process left is removed by collections.
const TEMPORARY: &str = "tmp";
/// The longest single read that memory is set aside for beforehand.
const READ_AT_ONCE: u64 = 64 << 20;

/// Objects below a directory.
#[derive(Clone)]
pub struct DirectoryBackend {
    root: PathBuf,
    seams: Seams,
}

impl DirectoryBackend {
    /// Opens it; `make` creates it (0700) where it is missing.
    pub async fn open(root: &Path, seams: Seams, make: bool) -> Result<Self> {
        let backend = Self { root: root.to_owned(), seams };
        let (root, object) = (backend.root.clone(), root.display().to_string());
        backend
            .blocking("open", object.clone(), move || {
                if make {
                    fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
                }
                if !fs::metadata(&root)?.is_dir() {
                    return Err(ErrorKind::NotADirectory.into());
                }
                Ok(())
            })
            .await
            .map_err(|error| match error {
                Error::Missing { .. } => Error::NoRepository { place: object },
                other => other,
            })?;
        Ok(backend)
    }

    /// Whether it holds nothing but entries of these names.
    pub(crate) async fn holds_only(&self, names: &'static [&'static str]) -> Result<bool> {
        let root = self.root.clone();
        self.blocking("list", root.display().to_string(), move || {
            for item in fs::read_dir(&root)? {
                if !item?.file_name().to_str().is_some_and(|name| names.contains(&name)) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    fn temporary(&self) -> Temporary {
        Temporary(self.root.join(TEMPORARY).join(self.seams.uuid().simple().to_string()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        object: String,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = self.seams.compute("repository.directory", work).await.ok_or(Error::Stopped)?;
        done.map_err(|cause| fault(action, object, cause))
    }
}

fn fault(action: &'static str, object: String, cause: std::io::Error) -> Error {
    match cause.kind() {
        ErrorKind::NotFound => Error::Missing { object },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Full { object },
        _ => Error::Store { action, object, cause },
    }
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the directory of `path`, and its name durable up to the first one that was there.
fn make_parent(path: &Path) -> std::io::Result<&Path> {
    let parent = path.parent().unwrap_or(path);
    if !parent.is_dir() {
        let above = make_parent(parent)?;
        match fs::DirBuilder::new().mode(0o700).create(parent) {
            Ok(()) => sync_directory(above)?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parent)
}

/// Puts a file into its place and makes that durable. A directory that goes at this moment is made again.
fn in_place(path: &Path, put: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
    for _ in 0..8 {
        let parent = make_parent(path)?;
        match put() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                // Who finds it there relies on it, too.
                sync_directory(parent)?;
                return Err(error);
            }
            Ok(()) => return sync_directory(parent),
        }
    }
    put()
}

/// Whether a directory is one of those that come and go.
fn is_short_lived(root: &Path, directory: &Path) -> bool {
    let above = directory.parent().and_then(|above| above.strip_prefix(root).ok());
    above.is_some_and(|above| above == Path::new("pins") || above == Path::new("staging"))
}

/// Removes the temporary file when a write ends, however it ends.
struct Temporary(PathBuf);

impl Temporary {
    fn create(&self) -> std::io::Result<File> {
        match File::create_new(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_parent(&self.0)?;
                File::create_new(&self.0)
            }
            other => other,
        }
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = self.create()?;
        file.write_all(bytes)?;
        file.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It may have been renamed into place; then nothing is left to remove.
        let _ = fs::remove_file(&self.0);
    }
}

#[async_trait]
impl Backend for DirectoryBackend {
    async fn create(&self, name: &str, bytes: Bytes) -> Result<Put> {
        let (path, temporary) = (self.path(name)?, self.temporary());
        self.blocking("write", name.to_owned(), move || {
            if fs::symlink_metadata(&path).is_ok() {
                return Ok(Put::Existed);
            }
            temporary.write(&bytes)?;
            let put = in_place(&path, || fs::hard_link(&temporary.0, &path));
            match put {
                Ok(()) => Ok(Put::Created),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Existed),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> Result<()> {
        let (path, temporary) = (self.path(name)?, self.temporary());
        self.blocking("write", name.to_owned(), move || {
            temporary.write(&bytes)?;
            in_place(&path, || fs::rename(&temporary.0, &path))
        })
        .await
    }

    async fn upload(&self, _name: Option<&str>) -> Result<Box<dyn Upload>> {
        let temporary = self.temporary();
        let (temporary, file) = self
            .blocking("write", TEMPORARY.to_owned(), move || {
                let file = temporary.create()?;
                Ok((temporary, file))
            })
            .await?;
        Ok(Box::new(DirectoryUpload { backend: self.clone(), state: Some((temporary, file)) }))
    }

    async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        let path = self.path(name)?;
        let bytes = self
            .blocking("read", name.to_owned(), move || {
                let file = File::open(&path)?;
                let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len().min(limit)).unwrap_or(0) + 1);
                file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
                Ok(bytes)
            })
            .await?;
        if bytes.len() as u64 > limit {
            return Err(Error::damaged(name, format!("it is longer than {limit} bytes")));
        }
        Ok(bytes.into())
    }

    async fn range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes> {
        let path = self.path(name)?;
        self.blocking("read", name.to_owned(), move || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::with_capacity(usize::try_from(length.min(READ_AT_ONCE)).unwrap_or(0));
            file.take(length).read_to_end(&mut bytes)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn head(&self, name: &str) -> Result<Option<Entry>> {
        let (path, object) = (self.path(name)?, name.to_owned());
        self.blocking("look at", name.to_owned(), move || match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(entry(object, &meta))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let prefix = prefix.trim_end_matches('/').to_owned();
        let root = self.path(&prefix)?;
        self.blocking("list", prefix.clone(), move || {
            let mut found = Vec::new();
            let mut open = vec![(root, prefix)];
            while let Some((path, name)) = open.pop() {
                let entries = match fs::read_dir(&path) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                for item in entries {
                    let item = item?;
                    let Ok(part) = item.file_name().into_string() else { continue };
                    let full = format!("{name}/{part}");
                    match item.metadata() {
                        Ok(meta) if meta.is_dir() => open.push((item.path(), full)),
                        Ok(meta) => found.push(entry(full, &meta)),
                        // Deleted between listing and looking: as if it had never been listed.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let (path, root) = (self.path(name)?, self.root.clone());
        self.blocking("delete", name.to_owned(), move || match fs::remove_file(&path) {
            Ok(()) => {
                // What belongs to one operation or image has a directory of its own, which goes with its last file.
                if let Some(parent) = path.parent().filter(|parent| is_short_lived(&root, parent)) {
                    let _ = fs::remove_dir(parent);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        })
        .await
    }

    async fn discard_unfinished(&self, before: i64) -> Result<()> {
        let path = self.root.join(TEMPORARY);
        self.blocking("tidy", TEMPORARY.to_owned(), move || {
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            for item in entries {
                let item = item?;
                // Finished or removed since it was listed: as good.
                if item.metadata().is_ok_and(|meta| modified(&meta) < before) {
                    let _ = fs::remove_file(item.path());
                }
            }
            Ok(())
        })
        .await
    }
}

/// Milliseconds since the epoch.
fn modified(meta: &fs::Metadata) -> i64 {
    meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000
}

struct DirectoryUpload {
    backend: DirectoryBackend,
    /// Absent after a failed write: what came before it is of no use.
    state: Option<(Temporary, File)>,
}

#[async_trait]
impl Upload for DirectoryUpload {
    async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let (temporary, mut file) = self.state.take().ok_or(Error::Stopped)?;
        let state = self
            .backend
            .blocking("write", TEMPORARY.to_owned(), move || {
                for piece in pieces {
                    file.write_all(&piece)?;
                }
                Ok((temporary, file))
            })
            .await?;
        self.state = Some(state);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, name: &str) -> Result<()> {
        let path = self.backend.path(name)?;
        let (temporary, file) = self.state.take().ok_or(Error::Stopped)?;
        self.backend
            .blocking("write", name.to_owned(), move || {
                file.sync_all()?;
                let parent = make_parent(&path)?;
                fs::rename(&temporary.0, &path)?;
                sync_directory(parent)
            })
            .await
    }
}

fn entry(name: String, meta: &fs::Metadata) -> Entry {
    Entry { name, size: meta.len(), modified: modified(meta) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seams;

    #[tokio::test]
    async fn a_directory_keeps_the_rules_of_backends() {
        let place = tempfile::tempdir().unwrap();
        let backend = DirectoryBackend::open(&place.path().join("new"), seams(), true).await.unwrap();
        super::super::conformance::check(&backend).await;
        let left = fs::read_dir(place.path().join("new/tmp")).unwrap().count();
        assert_eq!(left, 0, "no temporary file is left");
    }

    #[tokio::test]
    async fn a_place_that_is_not_there_is_no_repository() {
        let place = tempfile::tempdir().unwrap();
        let opened = DirectoryBackend::open(&place.path().join("absent"), seams(), false).await;
        assert!(matches!(opened.err(), Some(Error::NoRepository { .. })));
    }
}
