//! The OCI image layout: `oci-layout`, and `index.json`, which is derived from the refs.
//!
//! `index.json` never names an image that has no ref, but for moments: an image is added behind its ref's creation
//! and taken out in front of its deletion. So a name without a ref tells that a ref was lost.

use std::collections::{BTreeMap, BTreeSet};

use ocopea_protocol::ids::ImageId;

use super::{ImageRef, Repository, RESERVE};
use crate::{
    Error, Result,
    oci::{self, COMPONENT_ANNOTATION, Descriptor, Index, REF_NAME},
    store::{LONGEST_MANIFEST, LONGEST_SMALL, Store},
};

pub(crate) const OCI_LAYOUT_NAME: &str = "oci-layout";
pub(crate) const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
pub(crate) const INDEX_JSON: &str = "index.json";

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
    pub(super) async fn refresh_layout(&self, without: Option<ImageId>) -> Result<()> {
        let _one = self.inner.layout.lock().await;
        let store = self.store();
        let (mut images, old) = match store.backend.get(INDEX_JSON, LONGEST_SMALL).await {
            // A damaged one is made anew: it is derived.
            Ok(bytes) => (index_json_images(&bytes).unwrap_or_default(), Some(bytes)),
            Err(Error::Missing { .. }) => (BTreeMap::new(), None),
            Err(error) => return Err(error),
        };
        for entry in store.backend.list("refs/").await? {
            let image = entry.name.strip_prefix("refs/").and_then(|image| image.parse::<ImageId>().ok());
            let Some(image) = image.filter(|image| !images.contains_key(image) && Some(*image) != without) else { continue };
            let entries = match self.read_ref(&entry.name).await {
                Ok(reference) => entries_of(store, &reference).await,
                Err(error) => Err(error),
            };
            match entries {
                Ok(entries) => drop(images.insert(image, entries)),
                // One image that is damaged must not keep others from being named; `verify` reports it.
                Err(error) if error.is_breakage() => tracing::warn!(%error, %image, "not named in index.json"),
                Err(error) => return Err(error),
            }
        }
        if let Some(image) = without {
            images.remove(&image);
        }
        let bytes = to_bytes(images)?;
        if old.is_some_and(|old| old == bytes) {
            return Ok(());
        }
        self.replace_even_if_full(INDEX_JSON, bytes).await
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
