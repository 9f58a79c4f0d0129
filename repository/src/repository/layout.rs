//! The OCI image layout: `oci-layout`, and `index.json`, which is derived from the refs.
//!
//! `index.json` never names an image that has no ref, but for moments: an image is added behind its ref's creation
//! and taken out in front of its deletion. So a name without a ref tells that a ref was lost.

use std::collections::{BTreeMap, BTreeSet};

use ocopea_protocol::ids::ImageId;

use super::{ImageRef, RESERVE, Repository};
use crate::{
    Error, Result,
    oci::{self, COMPONENT_ANNOTATION, Descriptor, Index, REF_NAME},
    store::{LONGEST_MANIFEST, LONGEST_SMALL, Store},
};

pub(crate) const OCI_LAYOUT_NAME: &str = "oci-layout";
pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX_JSON: &str = "index.json";
/// How often it is written again when refs come and go meanwhile.
const TRIES: usize = 10;

/// What `index.json` says of one image: its index, and each of its container manifests.
pub(crate) async fn entries_of(store: &Store, reference: &ImageRef) -> Result<Vec<Descriptor>> {
    let bytes = store.get_blob(&reference.index, LONGEST_MANIFEST).await?;
    let index: Index = oci::parse(&crate::store::blob_name(&reference.index), &bytes)?;
    let mut whole = Descriptor::new(oci::INDEX, reference.index, reference.index_size);
    whole.artifact_type = Some(oci::IMAGE.to_owned());
    whole.annotations.insert(REF_NAME.to_owned(), reference.image.to_string());
    let mut entries = vec![whole];
    let mut seen = BTreeSet::new();
    for mut entry in index.manifests {
        let Some(component) = entry.annotations.get(COMPONENT_ANNOTATION).cloned() else { continue };
        let mut name = format!("{}/{component}", reference.image);
        if !seen.insert(component)
            && let Some(platform) = &entry.platform
        {
            name = format!("{name}-{}-{}", platform.os, platform.architecture);
            if let Some(variant) = &platform.variant {
                name = format!("{name}-{variant}");
            }
        }
        entry.annotations = BTreeMap::from([(REF_NAME.to_owned(), name)]);
        entries.push(entry);
    }
    Ok(entries)
}

/// `index.json` as it must be for these refs.
pub(crate) async fn derive_index_json(store: &Store, references: &[ImageRef]) -> Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    for reference in references {
        entries.insert(reference.image, entries_of(store, reference).await?);
    }
    to_bytes(entries)
}

fn to_bytes(entries: BTreeMap<ImageId, Vec<Descriptor>>) -> Result<Vec<u8>> {
    oci::to_json(&Index::new(None, entries.into_values().flatten().collect()))
}

/// Which images `index.json` names.
pub(crate) fn index_json_images(bytes: &[u8]) -> Result<BTreeMap<ImageId, Vec<Descriptor>>> {
    let index: Index = oci::parse(INDEX_JSON, bytes)?;
    let mut images: BTreeMap<ImageId, Vec<Descriptor>> = BTreeMap::new();
    for entry in index.manifests {
        let name = entry.annotations.get(REF_NAME).map(String::as_str).unwrap_or_default();
        let image = name.split('/').next().and_then(|image| image.parse().ok());
        let image = image.ok_or_else(|| Error::damaged(INDEX_JSON, "it names something that is no image"))?;
        images.entry(image).or_default().push(entry);
    }
    Ok(images)
}

impl Repository {
    /// Adds images that have a ref and takes `without` out.
    ///
    /// Another process may do the same at the same time and overwrite what is written here. Whoever writes looks at
    /// the refs once more afterwards, so the last one to write sees what the others did.
    pub(crate) async fn refresh_layout(&self, without: Option<ImageId>) -> Result<()> {
        let _one = self.inner.layout.lock().await;
        let store = self.store();
        let mut gone: BTreeSet<ImageId> = without.into_iter().collect();
        for _ in 0..TRIES {
            let (old, mut images) = match store.backend.get(INDEX_JSON, LONGEST_SMALL).await {
                // A damaged one is made anew: it is derived.
                Ok(bytes) => (Some(bytes.clone()), index_json_images(&bytes).unwrap_or_default()),
                Err(Error::Missing { .. }) => (None, BTreeMap::new()),
                Err(error) => return Err(error),
            };
            let listed = self.listed().await?;
            images.retain(|image, _| !gone.contains(image));
            for image in listed.iter().filter(|image| !gone.contains(image)) {
                if !images.contains_key(image)
                    && let Some(entries) = self.entries(*image).await?
                {
                    images.insert(*image, entries);
                }
            }
            let named: BTreeSet<ImageId> = images.keys().copied().collect();
            let bytes = to_bytes(images)?;
            if old.is_none_or(|old| old != bytes) {
                self.replace_index(bytes).await?;
            }
            let now = self.listed().await?;
            // What had a ref a moment ago was deleted; what never had one since was lost, and stays named.
            let deleted: Vec<ImageId> =
                named.iter().filter(|image| listed.contains(image) && !now.contains(image)).copied().collect();
            if deleted.is_empty() && now.is_subset(&listed) {
                return Ok(());
            }
            gone.extend(deleted);
        }
        Ok(())
    }

    /// Writes `index.json`, also where there is no room for a second one: it is derived, and may be gone for a moment.
    async fn replace_index(&self, bytes: Vec<u8>) -> Result<()> {
        match self.replace_even_if_full(INDEX_JSON, bytes.clone()).await {
            Err(Error::Full { .. }) => {
                self.store().backend.delete(INDEX_JSON).await?;
                self.store().backend.replace(INDEX_JSON, bytes.into()).await
            }
            other => other,
        }
    }

    async fn listed(&self) -> Result<BTreeSet<ImageId>> {
        let entries = self.store().backend.list("refs/").await?;
        Ok(entries.iter().filter_map(|entry| entry.name.strip_prefix("refs/")?.parse().ok()).collect())
    }

    /// What is said of an image; nothing while it is damaged, or when it is gone.
    async fn entries(&self, image: ImageId) -> Result<Option<Vec<Descriptor>>> {
        let entries = match self.image(image).await {
            Ok(Some(reference)) => entries_of(self.store(), &reference).await,
            Ok(None) => return Ok(None),
            Err(error) => Err(error),
        };
        match entries {
            Ok(entries) => Ok(Some(entries)),
            // One image that is damaged must not keep others from being named; `verify` reports it.
            Err(error) if error.is_of_one_object() => {
                tracing::warn!(%error, %image, "not named in index.json");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes something small that lets space be given back: when the store is full, the reserve is given up for it.
    pub(crate) async fn replace_even_if_full(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let bytes = bytes::Bytes::from(bytes);
        match self.store().backend.replace(name, bytes.clone()).await {
            Err(Error::Full { .. }) => {
                self.store().backend.delete(RESERVE).await?;
                self.store().backend.replace(name, bytes).await
            }
            other => other,
        }
    }
}
