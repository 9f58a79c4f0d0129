//! Names and common ways over a backend: blobs by digest, and small objects that notice their own damage.

use std::{collections::HashSet, sync::Arc};

use aws_lc_rs::digest;
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use ocopea_protocol::{names::Digest, seams::Seams};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    backend::{Backend, Put},
    error::{Error, Result},
    limits::Limits,
};

/// Longest manifest, index or record manifest that is read.
pub(crate) const LONGEST_MANIFEST: u64 = 64 << 20;
/// Longest small object (ref, pin, key …).
pub(crate) const LONGEST_SMALL: u64 = 64 << 20;
/// How much of a blob is read at once when it is passed on.
pub(crate) const PIECE: u64 = 1 << 20;
/// How much of a blob is read at once when it is verified: every piece waits for its turn on a core.
const VERIFIED: u64 = 2 << 20;

/// Blobs that are looked for at the same time.
const LOOKED_FOR: usize = 16;

/// SHA-256, as OCI names blobs.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    to_digest(&digest::digest(&digest::SHA256, bytes))
}

/// SHA-256 in parts.
#[derive(Clone)]
pub(crate) struct Sha256(digest::Context);

impl Sha256 {
    pub(crate) fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        to_digest(&self.0.finish())
    }
}

fn to_digest(digest: &digest::Digest) -> Digest {
    let mut out = [0u8; 32];
    out.copy_from_slice(digest.as_ref());
    Digest(out)
}

/// Where a blob lies.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest of a blob by its name in the store.
pub(crate) fn blob_digest(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix("blobs/sha256/")?).parse().ok()
}

/// A backend with clock, spawner and the process's limits.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) seams: Seams,
    pub(crate) limits: &'static Limits,
}

impl Store {
    pub(crate) fn new(backend: Arc<dyn Backend>, seams: Seams) -> Self {
        Self { backend, seams, limits: Limits::of_process() }
    }

    /// Runs CPU-bound work; as many at once in the process as there are cores.
    pub(crate) async fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _core = self.limits.cores.acquire().await.map_err(|_| Error::Stopped)?;
        self.seams.compute("repository.compute", work).await.ok_or(Error::Stopped)
    }

    /// Stores a small blob and reads it back.
    pub(crate) async fn put_blob(&self, bytes: Bytes) -> Result<Digest> {
        let digest = sha256(&bytes);
        let size = bytes.len() as u64;
        self.backend.replace(&blob_name(&digest), bytes).await?;
        self.verify_blob(&digest, size).await?;
        Ok(digest)
    }

    /// Reads a small blob whole and checks its digest.
    pub(crate) async fn get_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let bytes = self.backend.get(&blob_name(digest), limit).await?;
        let hashed = bytes.clone();
        let found = self.compute(move || sha256(&hashed)).await?;
        if found == *digest {
            Ok(bytes)
        } else {
            Err(Error::damaged(blob_name(digest), "its content doesn't have the digest that it is named by"))
        }
    }

    /// Reads a blob and throws it away, checking size and digest. A piece is hashed while the next is read.
    pub(crate) async fn verify_blob(&self, digest: &Digest, size: u64) -> Result<()> {
        let name = blob_name(digest);
        let (mut sha, mut offset) = (Sha256::new(), 0);
        let mut piece = self.backend.range(&name, 0, VERIFIED).await?;
        while !piece.is_empty() {
            offset += piece.len() as u64;
            if offset > size {
                break;
            }
            let hashed = self.compute(move || {
                sha.update(&piece);
                sha
            });
            (sha, piece) = if offset < size {
                futures::try_join!(hashed, self.backend.range(&name, offset, VERIFIED))?
            } else {
                // One byte more than there should be is enough to tell.
                (hashed.await?, self.backend.range(&name, offset, 1).await?)
            };
        }
        if offset != size {
            let longer = if offset > size { "more than ".to_owned() } else { format!("{offset} instead of ") };
            return Err(Error::damaged(name, format!("it has {longer}{size} bytes")));
        }
        if sha.finish() == *digest {
            Ok(())
        } else {
            Err(Error::damaged(name, "its content doesn't have the digest that it is named by"))
        }
    }

    /// Those of these blobs that aren't there, or have another size.
    pub(crate) async fn missing(&self, wanted: Vec<(Digest, u64)>) -> Result<Vec<Digest>> {
        // Owned items: with borrowed ones the compiler can't see that the future may move between threads.
        let looked = stream::iter(wanted).map(|(digest, size)| async move {
            let entry = self.backend.head(&blob_name(&digest)).await?;
            Ok::<_, Error>((digest, entry.is_some_and(|entry| entry.size == size)))
        });
        let all: Vec<(Digest, bool)> = looked.buffer_unordered(LOOKED_FOR).try_collect().await?;
        Ok(all.into_iter().filter(|(_, there)| !there).map(|(digest, _)| digest).collect())
    }

    /// Every blob of every condemned list: not to be taken for present by a writer.
    pub(crate) async fn condemned(&self) -> Result<HashSet<Digest>> {
        let mut all = HashSet::new();
        for entry in self.backend.list("condemned/").await? {
            match self.get_small::<crate::collect::Condemned>(&entry.name).await {
                Ok(list) => all.extend(list.blobs.into_iter().map(|blob| blob.digest)),
                // Its collection ended meanwhile, or it is damaged and deletes nothing any more.
                Err(Error::Missing { .. } | Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Removes what is in nobody's way where it has to stay; false where these keys may not.
    pub(crate) async fn forget(&self, name: &str) -> Result<bool> {
        match self.backend.delete(name).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_about_rights() => {
                tracing::debug!(%error, "it stays");
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn get_small<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        parse_small(name, &self.backend.get(name, LONGEST_SMALL).await?)
    }

    pub(crate) async fn create_small<T: Serialize>(&self, name: &str, value: &T) -> Result<Put> {
        self.backend.create(name, small(value)?).await
    }

    pub(crate) async fn replace_small<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.backend.replace(name, small(value)?).await
    }
}

/// A small object: one line of JSON, then a line with the digest of the first.
pub(crate) fn small<T: Serialize>(value: &T) -> Result<Bytes> {
    let mut line = serde_json::to_vec(value).map_err(|error| Error::Misuse(format!("not JSON: {error}")))?;
    let check = sha256(&line);
    line.push(b'\n');
    line.extend_from_slice(check.to_string().as_bytes());
    line.push(b'\n');
    Ok(line.into())
}

#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// The newest version of all small objects.
pub(crate) const SMALL_VERSION: u32 = 1;

pub(crate) fn parse_small<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T> {
    let damaged = |why: &str| Error::damaged(name, why);
    let rest = bytes.strip_suffix(b"\n").ok_or_else(|| damaged("its end is missing"))?;
    let split = rest.iter().rposition(|byte| *byte == b'\n').ok_or_else(|| damaged("its check line is missing"))?;
    let (line, check) = (rest.get(..split).unwrap_or_default(), rest.get(split + 1..).unwrap_or_default());
    if sha256(line).to_string().as_bytes() != check {
        return Err(damaged("its content doesn't fit its check line"));
    }
    let versioned: Versioned = serde_json::from_slice(line).map_err(|error| Error::damaged(name, error))?;
    if versioned.version > SMALL_VERSION {
        return Err(Error::Newer { object: name.to_owned(), found: versioned.version, known: SMALL_VERSION });
    }
    serde_json::from_slice(line).map_err(|error| Error::damaged(name, error))
}
