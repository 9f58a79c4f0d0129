//! Making an image visible, and removing it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ocopea_protocol::{ids::ImageId, names::Digest};

use super::{CommitRequest, ImageRef, Reclaim, RefObject, Repository, notes, ref_name};
use crate::{
    Body, Component, Error, Record, Result,
    backend::{Deletion, Put},
    collect::Condemned,
    oci::{self, Descriptor, Index, Manifest},
    record::RECORD_VERSION,
    sealed,
    session::staging,
    store::{LONGEST_MANIFEST, Store, blob_name},
};

/// Most components of one image.
const MOST_COMPONENTS: usize = 10_000;
/// How long a commit waits for a collection that is just deleting.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(200);

/// Blobs of an image with their sizes, and the entries of its index.
pub(crate) struct Parts {
    /// Everything that the record's components consist of, manifests included.
    pub(crate) blobs: BTreeMap<Digest, u64>,
    /// Index entries of components.
    pub(crate) entries: Vec<Descriptor>,
    /// Containers' multi-platform indexes.
    pub(crate) indexes: Vec<Descriptor>,
}

/// Walks the manifests of a record's components.
pub(crate) async fn parts(store: &Store, record: &Record) -> Result<Parts> {
    let mut parts = Parts { blobs: BTreeMap::new(), entries: vec![], indexes: vec![] };
    for component in &record.components {
        match &component.body {
            Body::Container { platforms, .. } => container(store, component, platforms, &mut parts).await?,
            Body::Config { .. } => artifact(store, component, oci::CONFIG, &mut parts).await?,
            Body::Data { found, .. } => artifact(store, component, &oci::data_type(found.kind), &mut parts).await?,
        }
    }
    Ok(parts)
}

async fn artifact(store: &Store, component: &Component, kind: &str, parts: &mut Parts) -> Result<()> {
    let bytes = store.get_blob(&component.manifest, LONGEST_MANIFEST).await?;
    let name = blob_name(&component.manifest);
    let manifest: Manifest = oci::parse(&name, &bytes)?;
    if manifest.artifact_type.as_deref() != Some(kind) {
        return Err(Error::damaged(name, format!("it is not of type {kind}")));
    }
    parts.add(&component.manifest, bytes.len() as u64, &manifest);
    let mut entry = Descriptor::new(oci::MANIFEST, component.manifest, bytes.len() as u64);
    entry.artifact_type = Some(kind.to_owned());
    parts.entry(entry);
    Ok(())
}

async fn container(
    store: &Store,
    component: &Component,
    platforms: &[crate::Platform],
    parts: &mut Parts,
) -> Result<()> {
    let bytes = store.get_blob(&component.manifest, LONGEST_MANIFEST).await?;
    let name = blob_name(&component.manifest);
    if oci::is_index(&oci::media_type(&name, &bytes)?) {
        let size = bytes.len() as u64;
        parts.blobs.insert(component.manifest, size);
        parts.indexes.push(Descriptor::new(oci::CONTAINER_INDEX, component.manifest, size));
        let index: Index = oci::parse(&name, &bytes)?;
        let listed: BTreeSet<Digest> = index.manifests.iter().map(|entry| entry.digest).collect();
        if platforms.iter().any(|platform| !listed.contains(&platform.manifest)) {
            return Err(Error::damaged(name, "a platform of the record isn't in it"));
        }
    } else if platforms.iter().any(|platform| platform.manifest != component.manifest) {
        return Err(Error::damaged(name, "it is the manifest of one platform, the record names others"));
    }
    for platform in platforms {
        let bytes = store.get_blob(&platform.manifest, LONGEST_MANIFEST).await?;
        let name = blob_name(&platform.manifest);
        let media_type = oci::media_type(&name, &bytes)?;
        let manifest: Manifest = oci::parse(&name, &bytes)?;
        parts.add(&platform.manifest, bytes.len() as u64, &manifest);
        let mut entry = Descriptor::new(&media_type, platform.manifest, bytes.len() as u64);
        entry.platform = Some(oci::Platform::parse(&platform.platform));
        entry.annotations.insert(oci::COMPONENT_ANNOTATION.to_owned(), component.name.to_string());
        parts.entry(entry);
    }
    Ok(())
}

impl Parts {
    fn add(&mut self, digest: &Digest, size: u64, manifest: &Manifest) {
        self.blobs.insert(*digest, size);
        self.blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size)));
    }

    fn entry(&mut self, entry: Descriptor) {
        // Two components may be the same container image: an entry for each, told apart by its annotation.
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
    }
}

fn check(record: &Record, request: &CommitRequest) -> Result<()> {
    if record.version != RECORD_VERSION {
        return Err(Error::Misuse(format!("a record of version {} can't be written", record.version)));
    }
    if record.team != request.key.team {
        return Err(Error::Misuse("the record's team is not the key's".to_owned()));
    }
    if record.components.len() > MOST_COMPONENTS {
        let (found, limit) = (record.components.len() as u64, MOST_COMPONENTS as u64);
        return Err(Error::Limit { what: "number of components".to_owned(), found, limit });
    }
    let names: BTreeSet<_> = record.components.iter().map(|component| &component.name).collect();
    if names.len() != record.components.len() {
        return Err(Error::Misuse("two components of the record have one name".to_owned()));
    }
    Ok(())
}

impl Repository {
    /// Makes an image visible: writes its record and index, checks that every blob is there, creates the ref. The
    /// same request again gives the same answer.
    pub async fn commit(&self, request: &CommitRequest) -> Result<ImageRef> {
        let record = &request.record;
        check(record, request)?;
        if let Some(reference) = self.image(record.image).await? {
            return self.committed(record, reference).await;
        }
        let store = self.store();
        let image_key = self.unwrap(&request.key).await?;
        let mut parts = parts(store, record).await?;
        let (digest, size) = self.put_record(request, &image_key, &mut parts).await?;
        let mut first = Descriptor::new(oci::MANIFEST, digest, size);
        first.artifact_type = Some(oci::IMAGE.to_owned());
        let entries = std::iter::once(first).chain(parts.entries.iter().cloned()).collect();
        let index = oci::to_json(&Index::new(Some(oci::IMAGE), entries))?;
        let index_size = index.len() as u64;
        let index = store.put_blob(index.into()).await?;
        parts.blobs.extend([(digest, size), (index, index_size)]);
        let (image, team) = (record.image, record.team);
        let reference = ImageRef { image, team, record: digest, index, index_size };
        self.await_no_deleting(&parts.blobs).await?;
        present(store, &parts.blobs).await?;
        match store.create_small(&ref_name(record.image), &RefObject::from(reference.clone())).await? {
            Put::Created => {}
            Put::Existed => {
                let there = self.image(record.image).await?;
                let there = there.ok_or_else(|| Error::Conflict { object: ref_name(record.image) })?;
                return self.committed(record, there).await;
            }
        }
        // A collection that began to delete before it could see this ref may have deleted what the ref names.
        let after = async {
            self.await_no_deleting(&parts.blobs).await?;
            present(store, &parts.blobs).await
        };
        if let Err(error) = after.await {
            store.backend.delete(&ref_name(record.image)).await?;
            return Err(error);
        }
        self.finished(&reference, &image_key).await?;
        Ok(reference)
    }

    /// The answer where the ref is there already: the same, if it is the same image.
    async fn committed(&self, record: &Record, reference: ImageRef) -> Result<ImageRef> {
        let wrapped = self.wrapped_key(&reference.record).await?;
        let image_key = self.unwrap(&wrapped).await?;
        if crate::record::read(self.store(), &image_key, &reference.record).await? != *record {
            return Err(Error::Conflict { object: ref_name(record.image) });
        }
        self.finished(&reference, &image_key).await?;
        Ok(reference)
    }

    /// What follows a ref's creation, and is done again by whoever finds the ref there.
    async fn finished(&self, _reference: &ImageRef, image_key: &ocopea_protocol::secret::Secret32) -> Result<()> {
        self.refresh_layout(None).await?;
        self.forget_staging(image_key).await
    }

    async fn put_record(
        &self,
        request: &CommitRequest,
        image_key: &ocopea_protocol::secret::Secret32,
        parts: &mut Parts,
    ) -> Result<(Digest, u64)> {
        let store = self.store();
        let sealed = sealed::seal(image_key, sealed::RECORD, &oci::to_json(&request.record)?, &store.seams)?;
        let config_size = sealed.len() as u64;
        let config = Descriptor::new(oci::RECORD, store.put_blob(sealed.into()).await?, config_size);
        let empty = store.put_blob(oci::EMPTY_BLOB.into()).await?;
        parts.blobs.insert(empty, oci::EMPTY_BLOB.len() as u64);
        let mut manifest = Manifest::artifact(oci::IMAGE, config, parts.indexes.clone());
        let wrapped = String::from_utf8_lossy(&oci::to_json(&request.key)?).into_owned();
        manifest.annotations.insert(oci::KEY_ANNOTATION.to_owned(), wrapped);
        parts.blobs.insert(manifest.config.digest, config_size);
        let bytes = oci::to_json(&manifest)?;
        let size = bytes.len() as u64;
        Ok((store.put_blob(bytes.into()).await?, size))
    }

    async fn forget_staging(&self, image_key: &ocopea_protocol::secret::Secret32) -> Result<()> {
        for entry in self.store().backend.list(&staging(image_key)).await? {
            self.store().forget(&entry.name).await?;
        }
        Ok(())
    }

    /// Forgets what an image that will not be committed had stored, so that collections take it.
    pub async fn abandon(&self, key: &crate::WrappedKey) -> Result<()> {
        self.forget_staging(&self.unwrap(key).await?).await
    }

    /// Waits until no collection is deleting any of these blobs.
    async fn await_no_deleting(&self, blobs: &BTreeMap<Digest, u64>) -> Result<()> {
        let store = self.store();
        let mut waited = Duration::ZERO;
        loop {
            let mut deleting = None;
            for entry in store.backend.list("condemned/").await? {
                if !entry.name.ends_with(crate::collect::DELETING) {
                    continue;
                }
                match store.get_small::<Condemned>(&entry.name).await {
                    Ok(list) if list.blobs.iter().all(|blob| !blobs.contains_key(&blob.digest)) => {}
                    Err(Error::Missing { .. }) => {}
                    Ok(_) | Err(_) => deleting = Some(entry.name),
                }
            }
            match deleting {
                None => return Ok(()),
                Some(object) if waited >= PATIENCE => {
                    let cause = std::io::Error::other("a collection that would delete its blobs hasn't ended");
                    return Err(Error::Store { action: "wait for", object, cause });
                }
                Some(_) => store.seams.clock.sleep(POLL).await,
            }
            waited += POLL;
        }
    }

    /// Removes an image's ref and notes. Its bytes come back with the next collection. Works when the store is full.
    pub async fn delete_image(&self, image: ImageId) -> Result<Reclaim> {
        let store = self.store();
        let reference = match self.image(image).await {
            // Deleted already, or lost: then `index.json` may still name it.
            Ok(None) => {
                self.refresh_layout(Some(image)).await?;
                return Ok(Reclaim::default());
            }
            Ok(Some(reference)) => Some(reference),
            // What can't be read can still be deleted.
            Err(error) if error.is_of_one_object() => None,
            Err(error) => return Err(error),
        };
        // Figures are worth less than the deletion: an image with damaged manifests goes too.
        let reclaim = match self.reclaimable(image).await {
            Ok(reclaim) => reclaim,
            Err(error) if error.is_of_one_object() => Reclaim::default(),
            Err(error) => return Err(error),
        };
        self.refresh_layout(Some(image)).await?;
        store.backend.delete(&ref_name(image)).await?;
        // A commit that ran at the same time may have put it back from what it had read before.
        self.refresh_layout(Some(image)).await?;
        if let Some(reference) = reference {
            for entry in store.backend.list(&notes::prefix(&reference.record)).await? {
                store.forget(&entry.name).await?;
            }
        }
        Ok(reclaim)
    }

    /// What [`Self::delete_image`] would answer.
    pub async fn reclaimable(&self, image: ImageId) -> Result<Reclaim> {
        let Some(reference) = self.image(image).await? else { return Ok(Reclaim::default()) };
        let store = self.store();
        let own = reachable(store, &reference).await?;
        let mut shared = BTreeSet::new();
        for other in self.images().await?.iter().filter(|other| other.image != image) {
            match reachable(store, other).await {
                Ok(blobs) => shared.extend(blobs.into_keys().filter(|digest| own.contains_key(digest))),
                Err(error) if error.is_of_one_object() => {}
                Err(error) => return Err(error),
            }
        }
        let hides = store.backend.abilities().deletion == Deletion::Hides;
        let mut reclaim = Reclaim { hides, ..Reclaim::default() };
        for (digest, size) in own {
            if shared.contains(&digest) {
                reclaim.shared_bytes += size;
            } else {
                reclaim.bytes += size;
            }
        }
        Ok(reclaim)
    }
}

/// Every blob that an image needs, found from its plain manifests alone: no key is needed.
pub(crate) async fn reachable(store: &Store, reference: &ImageRef) -> Result<BTreeMap<Digest, u64>> {
    let mut blobs = BTreeMap::from([(reference.index, reference.index_size)]);
    let bytes = store.get_blob(&reference.index, LONGEST_MANIFEST).await?;
    let index: Index = oci::parse(&blob_name(&reference.index), &bytes)?;
    for entry in index.manifests {
        let bytes = store.get_blob(&entry.digest, LONGEST_MANIFEST).await?;
        let manifest: Manifest = oci::parse(&blob_name(&entry.digest), &bytes)?;
        blobs.insert(entry.digest, bytes.len() as u64);
        blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size)));
    }
    Ok(blobs)
}

/// As [`reachable`], for a record whose ref may be gone: what its image consists of, the index aside.
pub(crate) async fn reachable_from_record(repository: &Repository, digest: &Digest) -> Result<BTreeMap<Digest, u64>> {
    let store = repository.store();
    let bytes = store.get_blob(digest, LONGEST_MANIFEST).await?;
    let manifest: Manifest = oci::parse(&blob_name(digest), &bytes)?;
    let record = repository.read_record(digest).await?;
    let mut blobs = parts(store, &record).await?.blobs;
    blobs.insert(*digest, bytes.len() as u64);
    blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size)));
    Ok(blobs)
}

/// Refuses when a blob is missing or has another size.
async fn present(store: &Store, blobs: &BTreeMap<Digest, u64>) -> Result<()> {
    let missing = store.missing(blobs.iter().map(|(digest, size)| (*digest, *size)).collect()).await?;
    if missing.is_empty() { Ok(()) } else { Err(Error::BlobsMissing { blobs: missing }) }
}
