//! Verification: reads everything, and names what is broken with every image that it affects.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt};
use ocopea_protocol::{
    ids::{ImageId, TeamId},
    names::Digest,
    secret::Secret32,
};

use crate::{
    Body, Broken, Error, ImageRef, Record, Repository, Result, Scope, VerifyProgress, VerifyReport,
    oci::{self, Index, Manifest},
    repository::{
        DESCRIPTION, INDEX_JSON, OCI_LAYOUT, OCI_LAYOUT_NAME, check_format, derive_index_json, index_json_images,
        parts, read_note, read_pins, ref_name, repository_key_name,
    },
    session,
    store::{LONGEST_MANIFEST, LONGEST_SMALL, blob_name},
    toc::TocReader,
};

/// Blobs that are read at the same time.
const AT_ONCE: usize = 3;

/// What is found while reading: each object once, with all images that need it.
#[derive(Default)]
struct Findings {
    broken: BTreeMap<String, (String, BTreeSet<ImageId>)>,
}

impl Findings {
    fn add(&mut self, object: impl Into<String>, why: impl ToString, images: impl IntoIterator<Item = ImageId>) {
        let found = self.broken.entry(object.into()).or_insert_with(|| (why.to_string(), BTreeSet::new()));
        found.1.extend(images);
    }

    /// Takes an error that tells of a broken object; gives back any other.
    fn take(&mut self, error: Error, images: impl IntoIterator<Item = ImageId>) -> Result<()> {
        let (object, why) = match error {
            Error::Missing { object } => (object, "it is missing".to_owned()),
            Error::Damaged { object, why } => (object, why),
            Error::Newer { object, found, .. } => {
                (object, format!("it has format version {found}, which is not known here"))
            }
            Error::WrongKey { object, given, wanted } => {
                (object, format!("none of the keys {given} opens it; {wanted} would"))
            }
            Error::Store { action: "read" | "look at", object, cause } => {
                (object, format!("it can't be read: {cause}"))
            }
            other => return Err(other),
        };
        self.add(object, why, images);
        Ok(())
    }
}

/// What one image consists of.
struct Checked {
    reference: ImageRef,
    team: TeamId,
    blobs: BTreeMap<Digest, u64>,
}

impl Repository {
    /// Reads everything (or one image) and names what is broken, with the images affected.
    pub async fn verify(
        &self,
        scope: Scope,
        progress: &(dyn Fn(VerifyProgress) + Send + Sync),
    ) -> Result<VerifyReport> {
        let _one = self.inner.verifying.lock().await;
        let mut findings = Findings::default();
        let mut images = Vec::new();
        let names: Vec<String> = match scope {
            Scope::All => self.store().backend.list("refs/").await?.into_iter().map(|entry| entry.name).collect(),
            Scope::Image(image) => vec![ref_name(image)],
        };
        let mut readable = Vec::new();
        let mut all = BTreeSet::new();
        for name in &names {
            let id = name.strip_prefix("refs/").and_then(|id| id.parse::<ImageId>().ok());
            all.extend(id);
            match self.read_ref(name).await {
                Ok(reference) => {
                    readable.push(reference.clone());
                    images.push(self.check_image(reference, &mut findings).await?);
                }
                Err(error) => findings.take(error, id)?,
            }
        }
        if scope == Scope::All {
            self.check_layout(&readable, &all, &mut findings).await?;
            self.check_keys(&images, &mut findings).await?;
            self.check_bookkeeping(&mut findings).await?;
        }
        let (blobs, bytes) = self.check_blobs(&images, &mut findings, progress).await?;
        let broken = findings.broken.into_iter().map(|(object, (why, images))| Broken {
            object,
            why,
            images: images.into_iter().collect(),
        });
        Ok(VerifyReport { images: names.len() as u64, blobs, bytes, broken: broken.collect() })
    }

    /// Follows an image from its ref to its last manifest; gives the blobs that it needs.
    async fn check_image(&self, reference: ImageRef, findings: &mut Findings) -> Result<Checked> {
        let mut checked = Checked { team: reference.team, blobs: BTreeMap::new(), reference };
        let (reference, image) = (checked.reference.clone(), checked.reference.image);
        checked.blobs.insert(reference.index, reference.index_size);
        // What plain manifests name is checked even where the record can't be read.
        match self.index_blobs(&reference, &mut checked.blobs, findings).await {
            Ok(()) => {}
            Err(error) => findings.take(error, [image])?,
        }
        let key = async { self.unwrap(&self.wrapped_key(&reference.record).await?).await };
        let key = match key.await {
            Ok(key) => key,
            Err(error) => {
                findings.take(error, [image])?;
                return Ok(checked);
            }
        };
        match self.check_record(&reference, &key, &mut checked.blobs, findings).await {
            Ok(()) => {}
            Err(error) => findings.take(error, [image])?,
        }
        self.check_notes(&reference, &key, findings).await?;
        Ok(checked)
    }

    async fn index_blobs(
        &self,
        reference: &ImageRef,
        blobs: &mut BTreeMap<Digest, u64>,
        findings: &mut Findings,
    ) -> Result<()> {
        let store = self.store();
        let bytes = store.get_blob(&reference.index, LONGEST_MANIFEST).await?;
        let index: Index = oci::parse(&blob_name(&reference.index), &bytes)?;
        for entry in index.manifests {
            blobs.insert(entry.digest, entry.size);
            let manifest = async {
                let bytes = store.get_blob(&entry.digest, LONGEST_MANIFEST).await?;
                oci::parse::<Manifest>(&blob_name(&entry.digest), &bytes)
            };
            match manifest.await {
                Ok(manifest) => blobs.extend(manifest.blobs().map(|blob| (blob.digest, blob.size))),
                Err(error) => findings.take(error, [reference.image])?,
            }
        }
        Ok(())
    }

    async fn check_record(
        &self,
        reference: &ImageRef,
        key: &Secret32,
        blobs: &mut BTreeMap<Digest, u64>,
        findings: &mut Findings,
    ) -> Result<()> {
        let store = self.store();
        let record = crate::record::read(store, key, &reference.record).await?;
        let name = ref_name(reference.image);
        if record.image != reference.image || record.team != reference.team {
            return Err(Error::damaged(name, "its record is about another image"));
        }
        let parts = parts(store, &record).await?;
        if parts.blobs.keys().any(|digest| !blobs.contains_key(digest)) {
            findings.add(
                blob_name(&reference.index),
                "it doesn't name all components of its record",
                [reference.image],
            );
        }
        blobs.extend(parts.blobs);
        for component in &record.components {
            let checked = match &component.body {
                Body::Config { .. } => self.check_config(&record, key, &component.manifest).await,
                Body::Data { .. } => self.check_data(key, &component.manifest, component.bytes).await,
                Body::Container { .. } => Ok(()),
            };
            if let Err(error) = checked {
                findings.take(error, [reference.image])?;
            }
        }
        Ok(())
    }

    async fn check_config(&self, record: &Record, key: &Secret32, manifest: &Digest) -> Result<()> {
        let files = session::read_config(self.store(), key, manifest).await?;
        let hash_key = self.team_keys(record.team).await?.hash_key;
        if session::config_digest(&hash_key, &files)? == record.config_digest {
            return Ok(());
        }
        Err(Error::damaged(blob_name(manifest), "the configuration isn't the one that the record names"))
    }

    async fn check_data(&self, key: &Secret32, digest: &Digest, bytes: u64) -> Result<()> {
        let store = self.store();
        let name = blob_name(digest);
        let manifest: Manifest = oci::parse(&name, &store.get_blob(digest, LONGEST_MANIFEST).await?)?;
        let toc = TocReader::open(store, key, &manifest.config.digest, manifest.config.size).await?;
        let packs: BTreeSet<Digest> = toc.packs().await?.iter().map(|row| row.digest).collect();
        let layers: BTreeSet<Digest> =
            manifest.layers.iter().filter(|layer| layer.media_type == oci::PACK).map(|layer| layer.digest).collect();
        if packs != layers {
            return Err(Error::damaged(name, "it doesn't list the packs that its table of contents names"));
        }
        let sum: u64 = toc.streams().await?.iter().map(|row| row.bytes).sum();
        if sum != toc.root.bytes || sum != bytes {
            return Err(Error::damaged(toc.name(), format!("its streams have {sum} bytes, the record says {bytes}")));
        }
        Ok(())
    }

    async fn check_notes(&self, reference: &ImageRef, key: &Secret32, findings: &mut Findings) -> Result<()> {
        let store = self.store();
        let prefix = format!("notes/{}/", reference.record.hex());
        let mut expected = 1;
        for entry in store.backend.list(&prefix).await? {
            let sequence = match read_note(store, key, &reference.record, &entry.name).await {
                Ok((sequence, _)) => sequence,
                Err(error) => {
                    findings.take(error, [reference.image])?;
                    entry.name.rsplit('/').next().and_then(|digits| digits.parse().ok()).unwrap_or(expected)
                }
            };
            for missing in expected..sequence {
                findings.add(format!("{prefix}{missing:08}"), "it is missing", [reference.image]);
            }
            expected = sequence + 1;
        }
        Ok(())
    }

    async fn check_layout(
        &self,
        readable: &[ImageRef],
        all: &BTreeSet<ImageId>,
        findings: &mut Findings,
    ) -> Result<()> {
        let store = self.store();
        if let Err(error) = check_format(store).await {
            match error {
                Error::NoRepository { .. } => findings.add(DESCRIPTION, "it is missing", all.iter().copied()),
                other => findings.take(other, all.iter().copied())?,
            }
        }
        match store.backend.get(OCI_LAYOUT_NAME, LONGEST_SMALL).await {
            Ok(bytes) if bytes == OCI_LAYOUT => {}
            Ok(_) => findings.add(OCI_LAYOUT_NAME, "it isn't what OCI asks for", all.iter().copied()),
            Err(error) => findings.take(error, all.iter().copied())?,
        }
        let bytes = match store.backend.get(INDEX_JSON, LONGEST_SMALL).await {
            Ok(bytes) => bytes,
            Err(error) => return findings.take(error, all.iter().copied()),
        };
        let named = match index_json_images(&bytes) {
            Ok(named) => named,
            Err(error) => return findings.take(error, all.iter().copied()),
        };
        for image in named.keys().filter(|image| !all.contains(image)) {
            findings.add(ref_name(*image), "it is missing, and index.json names its image", [*image]);
        }
        match derive_index_json(store, readable).await {
            Ok(derived) if derived == bytes => {}
            Ok(derived) => {
                let derived = index_json_images(&derived)?;
                // A commit that stopped behind its ref's creation: nothing is damaged, only not written yet.
                if named.iter().all(|(image, entries)| derived.get(image) == Some(entries)) {
                    return self.refresh_layout(None).await;
                }
                let differ = derived.iter().filter(|(image, entries)| named.get(image) != Some(entries));
                let mut images: Vec<ImageId> = differ.map(|(image, _)| *image).collect();
                let lost = named.keys().any(|image| !derived.contains_key(image));
                if images.is_empty() && !lost {
                    images = all.iter().copied().collect();
                }
                if !images.is_empty() {
                    findings.add(INDEX_JSON, "it isn't what the refs say", images);
                }
            }
            // Reported with the image that it belongs to.
            Err(error) if error.is_of_one_object() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn check_keys(&self, images: &[Checked], findings: &mut Findings) -> Result<()> {
        let store = self.store();
        let of = |team: TeamId| images.iter().filter(move |checked| checked.team == team).map(|c| c.reference.image);
        let mut wrapped_by: BTreeMap<crate::KeyId, BTreeSet<ImageId>> = BTreeMap::new();
        for entry in store.backend.list("keys/teams/").await? {
            let team = entry.name.split('/').nth(2).and_then(|team| team.parse::<TeamId>().ok());
            match self.open_team(&entry.name).await {
                Ok((object, keys)) => {
                    for wrap in object.wraps {
                        wrapped_by.entry(wrap.by).or_default().extend(of(keys.team));
                    }
                }
                Err(error) => findings.take(error, team.into_iter().flat_map(of))?,
            }
        }
        let mut there = BTreeSet::new();
        for entry in store.backend.list("keys/repository/").await? {
            match self.verify_repository_key(&entry.name).await {
                Ok(id) => drop(there.insert(id)),
                Err(error) => {
                    let id = entry.name.rsplit('/').next().and_then(|id| crate::KeyId::try_from(id.to_owned()).ok());
                    let affected = id.as_ref().and_then(|id| wrapped_by.get(id)).cloned().unwrap_or_default();
                    there.extend(id);
                    findings.take(error, affected)?;
                }
            }
        }
        for (id, affected) in wrapped_by {
            if !there.contains(&id) && self.is_lost(&id).await? {
                findings.add(repository_key_name(&id), "it is missing", affected);
            }
        }
        Ok(())
    }

    /// Whether team keys are wrapped by a key that has no object; looked at once more, since keys may be changing.
    async fn is_lost(&self, id: &crate::KeyId) -> Result<bool> {
        let store = self.store();
        // A removal takes the wraps first, an addition brings the object first: absent before and behind the wraps.
        let absent = async || Ok::<_, Error>(store.backend.head(&repository_key_name(id)).await?.is_none());
        if !absent().await? {
            return Ok(false);
        }
        for entry in store.backend.list("keys/teams/").await? {
            if let Ok((object, _)) = self.open_team(&entry.name).await
                && object.wraps.iter().any(|wrap| wrap.by == *id)
            {
                return absent().await;
            }
        }
        Ok(false)
    }

    /// Objects that no image needs, but collections go by.
    async fn check_bookkeeping(&self, findings: &mut Findings) -> Result<()> {
        let store = self.store();
        for pin in read_pins(store).await?.iter().filter(|pin| pin.records.is_none()) {
            findings.add(format!("pins/{}", pin.operation), "it is damaged: nothing is deleted while it is there", []);
        }
        for entry in store.backend.list("condemned/").await? {
            match store.get_small::<crate::collect::Condemned>(&entry.name).await {
                Ok(_) | Err(Error::Missing { .. }) => {}
                Err(error) => findings.take(error, [])?,
            }
        }
        Ok(())
    }

    /// Reads every blob once.
    async fn check_blobs(
        &self,
        images: &[Checked],
        findings: &mut Findings,
        progress: &(dyn Fn(VerifyProgress) + Send + Sync),
    ) -> Result<(u64, u64)> {
        let store = self.store();
        let mut users: BTreeMap<Digest, (u64, Vec<ImageId>)> = BTreeMap::new();
        for checked in images {
            for (digest, size) in &checked.blobs {
                users.entry(*digest).or_insert((*size, vec![])).1.push(checked.reference.image);
            }
        }
        let of_bytes = users.values().map(|(size, _)| size).sum();
        let mut at = VerifyProgress { blobs: 0, of_blobs: users.len() as u64, bytes: 0, of_bytes };
        let reads = users.into_iter().map(|(digest, (size, images))| async move {
            (store.verify_blob(&digest, size).await, digest, size, images)
        });
        let mut reads = stream::iter(reads).buffer_unordered(AT_ONCE);
        while let Some((result, digest, size, images)) = reads.next().await {
            at.blobs += 1;
            at.bytes += size;
            progress(at);
            match result {
                Ok(()) => {
                    // Found broken by its content: then every image that has it is affected.
                    if let Some((_, affected)) = findings.broken.get_mut(&blob_name(&digest)) {
                        affected.extend(images);
                    }
                }
                Err(error) => {
                    if let Some((why, _)) = findings.broken.remove(&blob_name(&digest)) {
                        findings.add(blob_name(&digest), why, images.iter().copied());
                    }
                    findings.take(error, images)?;
                }
            }
        }
        Ok((at.blobs, at.bytes))
    }
}
