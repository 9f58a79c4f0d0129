//! Uploads as files in a directory: `ab/abcdef01-…`, the id's first two letters as a folder.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use super::{Result, StoreError};
use crate::model::Upload;

/// The directory.
pub(super) struct Files(PathBuf);

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    move |source| StoreError::Files { path: path.display().to_string(), source }
}

impl Files {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Where an upload lies. An id has no letters that could lead elsewhere.
    fn path(&self, id: Uuid) -> PathBuf {
        let name = id.to_string();
        self.0.join(&name[..2]).join(&name)
    }

    /// The file appears whole or not at all, and stays.
    pub(super) async fn write(&self, id: Uuid, bytes: &[u8], lasting: bool) -> Result<()> {
        let path = self.path(id);
        let folder = path.parent().unwrap_or(&self.0);
        tokio::fs::create_dir_all(folder).await.map_err(failed(folder))?;
        let partial = path.with_extension("partial");
        let mut file = tokio::fs::File::create(&partial).await.map_err(failed(&partial))?;
        file.write_all(bytes).await.map_err(failed(&partial))?;
        file.flush().await.map_err(failed(&partial))?;
        if lasting {
            file.sync_all().await.map_err(failed(&partial))?;
        }
        tokio::fs::rename(&partial, &path).await.map_err(failed(&path))
    }

    /// The bytes, held against the description.
    pub(super) async fn read(&self, upload: &Upload) -> Result<Bytes> {
        let path = self.path(upload.id);
        let bytes = tokio::fs::read(&path).await.map_err(failed(&path))?;
        if blake3::hash(&bytes).as_bytes() == &upload.checksum {
            Ok(bytes.into())
        } else {
            Err(StoreError::Damaged {
                what: format!("upload {}", upload.id),
                reason: format!("{} of {} bytes, and not with its checksum", bytes.len(), upload.length),
            })
        }
    }

    /// Whether it can be written to.
    pub(super) async fn probe(&self) -> Result<()> {
        let metadata = tokio::fs::metadata(&self.0).await.map_err(failed(&self.0))?;
        if metadata.is_dir() {
            Ok(())
        } else {
            Err(failed(&self.0)(std::io::Error::from(std::io::ErrorKind::NotADirectory)))
        }
    }

    /// Removes every upload, and nothing that isn't one.
    pub(super) async fn clear(&self) -> Result<()> {
        for first in 0..=255_u8 {
            let folder = self.0.join(format!("{first:02x}"));
            match tokio::fs::remove_dir_all(&folder).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(&folder)(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Title;

    #[tokio::test]
    async fn a_file_that_is_not_what_it_was_is_not_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned());
        let bytes = b"forty-two".repeat(1000);
        let upload = Upload {
            id: Uuid::from_bytes([0xab; 16]),
            name: Title::stored("a.txt"),
            content_type: "text/plain".into(),
            length: bytes.len() as i64,
            checksum: *blake3::hash(&bytes).as_bytes(),
        };
        files.write(upload.id, &bytes, true).await.unwrap();
        assert_eq!(files.read(&upload).await.unwrap(), bytes);
        files.write(upload.id, b"other", false).await.unwrap();
        assert!(matches!(files.read(&upload).await, Err(StoreError::Damaged { .. })));
        std::fs::write(dir.path().join("keep"), "x").unwrap();
        files.clear().await.unwrap();
        assert!(matches!(files.read(&upload).await, Err(StoreError::Files { .. })));
        assert!(dir.path().join("keep").exists());
    }
}
