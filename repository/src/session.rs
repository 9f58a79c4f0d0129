//! An agent's view of the repository: the keys of one image and of its base, nothing else.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    sync::Arc,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use ocopea_protocol::{
    image::{BaseAccess, DataKind, ImageAccess},
    names::{ComponentName, Digest},
    seams::Seams,
    secret::Secret32,
};
use tokio::sync::OnceCell;

use crate::{
    DataReader, DataWriter, Error, ItemHasher, Record, Result,
    backend::{self, Backend, StoreAccess},
    chunk::Cutter,
    config, keys, oci, sealed,
    store::{LONGEST_MANIFEST, PIECE, Sha256, Store, blob_name},
};

/// Reads and writes one image. Cheap to clone.
#[derive(Clone)]
pub struct ImageSession {
    core: Arc<Core>,
}

/// What everything that works on one image needs.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) image_key: Secret32,
    pub(crate) hash_key: Secret32,
    pub(crate) chunk_key: Secret32,
    pub(crate) cutter: Cutter,
    pub(crate) base: Option<BaseAccess>,
    /// Blobs that a collection may delete: absent for this session, which began behind its pin.
    condemned: OnceCell<HashSet<Digest>>,
}

impl Core {
    pub(crate) async fn condemned(&self) -> Result<&HashSet<Digest>> {
        self.condemned.get_or_try_init(|| self.store.condemned()).await
    }

    /// Where this image's finished packs are marked until it is committed. Nobody without its key knows whose they are.
    pub(crate) fn staging(&self) -> String {
        staging(&self.image_key)
    }
}

pub(crate) fn staging(image_key: &Secret32) -> String {
    let derived = keys::derive(keys::STAGING, &image_key.0);
    format!("staging/{}/", hex::encode(derived.0.get(..16).unwrap_or_default()))
}

/// The configuration component as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWritten {
    /// Its manifest.
    pub manifest: Digest,
    /// Digest over the canonical plaintext, keyed per team: 64 hexadecimal digits.
    pub config_digest: String,
    /// Raw bytes.
    pub bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
}

impl ImageSession {
    /// Opens the repository for one image: with the keys of the store that came with it, else with those of `stores`.
    pub async fn open(access: &ImageAccess, stores: &StoreAccess, seams: &Seams) -> Result<Self> {
        let stores = stores.or_own(access.store_keys.as_ref());
        let backend = backend::open(&access.location, &stores, seams, false).await?;
        Self::over(backend, access, seams).await
    }

    /// Opens a repository that lies in `backend`.
    pub async fn over(backend: Arc<dyn Backend>, access: &ImageAccess, seams: &Seams) -> Result<Self> {
        let store = Store::new(backend, seams.clone());
        crate::repository::check_format(&store).await?;
        let core = Core {
            store,
            image_key: access.image_key.clone(),
            hash_key: access.hash_key.clone(),
            chunk_key: keys::derive(keys::CHUNKS, &access.hash_key.0),
            cutter: Cutter::new(&access.hash_key),
            base: access.base.clone(),
            condemned: OnceCell::new(),
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// Begins (or, after a crash, begins again) a data component. What an earlier attempt stored is used again.
    pub async fn component(&self, name: &ComponentName, kind: DataKind) -> Result<DataWriter> {
        DataWriter::begin(self.core.clone(), name, kind).await
    }

    /// Opens a data component for reading.
    pub async fn reader(&self, manifest: &Digest) -> Result<DataReader> {
        DataReader::open(self.core.clone(), manifest).await
    }

    /// An empty set for the content hash of a stream.
    pub fn item_hasher(&self) -> ItemHasher {
        ItemHasher::new(&self.core.hash_key)
    }

    /// Writes the configuration: one file per object, by path. Read back and verified when this returns.
    pub async fn put_config(&self, files: &BTreeMap<String, Bytes>) -> Result<ConfigWritten> {
        let store = &self.core.store;
        let (files, core) = (files.clone(), self.core.clone());
        let work = move || {
            let tar = config::tar(&files)?;
            let sealed = sealed::seal(&core.image_key, sealed::CONFIG, &config::compress(&tar)?, &core.store.seams)?;
            Ok::<_, Error>((config::digest(&core.hash_key, &tar), tar.len() as u64, sealed))
        };
        let (config_digest, bytes, sealed) = store.compute(work).await??;
        let size = sealed.len() as u64;
        let layer = oci::Descriptor::new(oci::CONFIG_TAR, store.put_blob(sealed.into()).await?, size);
        store.put_blob(oci::EMPTY_BLOB.into()).await?;
        let manifest = oci::to_json(&oci::Manifest::artifact(oci::CONFIG, oci::Descriptor::empty(), vec![layer]))?;
        let stored_bytes = size + manifest.len() as u64;
        let manifest = store.put_blob(manifest.into()).await?;
        Ok(ConfigWritten { manifest, config_digest, bytes, stored_bytes })
    }

    /// The digest that [`Self::put_config`] would give, without writing.
    pub fn config_digest(&self, files: &BTreeMap<String, Bytes>) -> Result<String> {
        config_digest(&self.core.hash_key, files)
    }

    /// Reads the configuration.
    pub async fn read_config(&self, manifest: &Digest) -> Result<BTreeMap<String, Bytes>> {
        read_config(&self.core.store, &self.core.image_key, manifest).await
    }

    /// Reads and decrypts the image's record.
    pub async fn read_record(&self, record: &Digest) -> Result<Record> {
        crate::record::read(&self.core.store, &self.core.image_key, record).await
    }

    /// Whether a blob (a container's layer or config) of this size is there and stays there. One that was cut is not:
    /// it is to be stored again.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        if self.core.condemned().await?.contains(digest) {
            return Ok(false);
        }
        Ok(self.core.store.backend.head(&blob_name(digest)).await?.is_some_and(|entry| entry.size == size))
    }

    /// Stores a blob as it comes. It becomes visible only when size and digest are what was announced, and this
    /// returns when it was read back.
    pub async fn put_blob<E: Display>(
        &self,
        digest: &Digest,
        size: u64,
        mut bytes: impl Stream<Item = std::result::Result<Bytes, E>> + Send + Unpin,
    ) -> Result<()> {
        let store = &self.core.store;
        let mut upload = store.backend.upload(Some(&blob_name(digest))).await?;
        let (mut sha, mut found) = (Sha256::new(), 0u64);
        while let Some(piece) = bytes.next().await {
            let piece =
                piece.map_err(|error| Error::Source { object: digest.to_string(), cause: error.to_string() })?;
            found += piece.len() as u64;
            if found > size {
                break;
            }
            let hashed = piece.clone();
            sha = store
                .compute(move || {
                    sha.update(&hashed);
                    sha
                })
                .await?;
            upload.write(vec![piece]).await?;
        }
        if found != size {
            return Err(Error::WrongSize { object: digest.to_string(), expected: size, found });
        }
        let found = sha.finish();
        if found != *digest {
            return Err(Error::WrongDigest { expected: *digest, found });
        }
        upload.finish(&blob_name(digest)).await?;
        store.verify_blob(digest, size).await
    }

    /// Reads a blob. The last piece comes only when the digest of the whole is right; else an error comes instead.
    pub async fn get_blob(&self, digest: &Digest) -> Result<BoxStream<'static, Result<Bytes>>> {
        let (store, digest) = (self.core.store.clone(), *digest);
        let name = blob_name(&digest);
        let Some(entry) = store.backend.head(&name).await? else {
            return Err(Error::Missing { object: name });
        };
        let begun = Some((Sha256::new(), 0u64));
        Ok(stream::unfold(begun, move |state| {
            let (store, name) = (store.clone(), name.clone());
            async move {
                let (sha, offset) = state?;
                match next_piece(&store, &name, &digest, entry.size, sha, offset).await {
                    Ok(None) => None,
                    Ok(Some((piece, state))) => Some((Ok(piece), state)),
                    Err(error) => Some((Err(error), None)),
                }
            }
        })
        .boxed())
    }

    /// Stores a container's manifest or index, unchanged.
    pub async fn put_manifest(&self, bytes: &[u8], media_type: &str) -> Result<Digest> {
        if bytes.len() as u64 > LONGEST_MANIFEST {
            let (found, limit) = (bytes.len() as u64, LONGEST_MANIFEST);
            return Err(Error::Limit { what: "the length of a manifest".to_owned(), found, limit });
        }
        let found = oci::media_type("the manifest", bytes)?;
        if oci::is_index(&found) != oci::is_index(media_type) {
            return Err(Error::Misuse(format!("a manifest was given as {media_type:.80} and is {found}")));
        }
        self.core.store.put_blob(Bytes::copy_from_slice(bytes)).await
    }

    /// Reads a container's manifest or index, and its media type.
    pub async fn get_manifest(&self, digest: &Digest) -> Result<(Bytes, String)> {
        let bytes = self.core.store.get_blob(digest, LONGEST_MANIFEST).await?;
        let media_type = oci::media_type(&blob_name(digest), &bytes)?;
        Ok((bytes, media_type))
    }
}

type Next = Option<(Bytes, Option<(Sha256, u64)>)>;

/// One piece of a blob, and what is needed for the next.
async fn next_piece(
    store: &Store,
    name: &str,
    digest: &Digest,
    size: u64,
    mut sha: Sha256,
    offset: u64,
) -> Result<Next> {
    let piece = store.backend.range(name, offset, PIECE).await?;
    let hashed = piece.clone();
    let sha = store
        .compute(move || {
            sha.update(&hashed);
            sha
        })
        .await?;
    let end = offset + piece.len() as u64;
    if end < size && !piece.is_empty() {
        return Ok(Some((piece, Some((sha, end)))));
    }
    if sha.finish() != *digest {
        return Err(Error::damaged(name, "its content doesn't have the digest that it is named by"));
    }
    Ok((!piece.is_empty()).then_some((piece, None)))
}

/// Digest over the canonical form of a configuration, keyed with a team's hash key: 64 hexadecimal digits.
pub fn config_digest(hash_key: &Secret32, files: &BTreeMap<String, Bytes>) -> Result<String> {
    Ok(config::digest(hash_key, &config::tar(files)?))
}

pub(crate) async fn read_config(
    store: &Store,
    image_key: &Secret32,
    digest: &Digest,
) -> Result<BTreeMap<String, Bytes>> {
    let name = blob_name(digest);
    let manifest: oci::Manifest = oci::parse(&name, &store.get_blob(digest, LONGEST_MANIFEST).await?)?;
    let layer = manifest.layers.first().filter(|layer| layer.media_type == oci::CONFIG_TAR);
    let layer = layer.ok_or_else(|| Error::damaged(&name, "it is not the manifest of a configuration"))?;
    let bytes = store.get_blob(&layer.digest, config::LONGEST as u64).await?;
    let (image_key, name) = (image_key.clone(), blob_name(&layer.digest));
    let work = move || {
        let packed = sealed::open(&image_key, sealed::CONFIG, &name, &bytes)?;
        config::untar(&name, &config::decompress(&name, &packed)?)
    };
    store.compute(work).await?
}
