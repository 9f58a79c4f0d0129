//! Repository → registry, and taking it back.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{RegistryOperation, errors::OciDistributionError};
use ocopea_protocol::{failure::TaskFailure, names::Digest, plan::ContainerPlacement, task::Progress};
use ocopea_repository::ImageSession;

use super::{
    manifest::{self, Blob, Manifest},
    registry::{DENIED, RegistryContext, Remote},
};
use crate::failures::repository;

/// Layers that are pushed at the same time.
const AT_ONCE: usize = 3;
/// Everything that Ocopea pushes carries this tag, so that a registry's own garbage collection keeps it.
const TAG: &str = "ocopea";

/// Makes the image available at `placement.target`, unchanged. What is there already is not sent again.
pub async fn push(
    context: &RegistryContext,
    placement: &ContainerPlacement,
    session: &ImageSession,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
) -> Result<(), TaskFailure> {
    let remote = context.remote(&placement.target, RegistryOperation::Push).await?;
    let what = format!("{}@{}", remote.name(), placement.digest);
    if remote.manifest(&format!("@{}", placement.digest)).await?.is_some() {
        return Ok(());
    }
    let failed = |error: &ocopea_repository::Error| repository(&format!("can't push {what}"), error);
    let (top, media) = session.get_manifest(&placement.digest).await.map_err(|e| failed(&e))?;
    let mut inner = Vec::new();
    let mut blobs: Vec<Blob> = Vec::new();
    match manifest::parse(&what, &top)?.0 {
        Manifest::Image { config, layers } => {
            blobs.push(config);
            blobs.extend(layers);
        }
        Manifest::Index { entries } => {
            for entry in entries {
                let (bytes, media) = session.get_manifest(&entry.digest).await.map_err(|e| failed(&e))?;
                if let Manifest::Image { config, layers } = manifest::parse(&what, &bytes)?.0 {
                    blobs.push(config);
                    blobs.extend(layers);
                }
                inner.push((entry.digest, bytes, media));
            }
        }
    }
    blobs.sort_by_key(|blob| blob.digest);
    blobs.dedup_by_key(|blob| blob.digest);
    let total: u64 = blobs.iter().map(|blob| blob.size).sum();
    let done = std::sync::atomic::AtomicU64::new(0);
    let uploads = blobs.into_iter().map(|blob| {
        let (done, remote, progress) = (&done, &remote, &progress);
        async move {
            if !remote.has_blob(&blob.digest).await? {
                push_blob(remote, &blob, session).await?;
            }
            let bytes = done.fetch_add(blob.size, std::sync::atomic::Ordering::Relaxed) + blob.size;
            progress(Progress { phase: "pushing".to_owned(), bytes, of_bytes: total, ..Progress::default() });
            Ok::<(), TaskFailure>(())
        }
    });
    stream::iter(uploads).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    // Tagged from the first on: what has a tag is found again if the rest never comes.
    for (digest, bytes, media) in &inner {
        let digest = digest.to_string();
        let short = digest.rsplit(':').next().unwrap_or_default();
        remote.push_manifest(&format!("{TAG}-{short:.16}"), media, bytes).await?;
    }
    remote.push_manifest(TAG, &media, &top).await?;
    // What the nodes will pull is asked for by digest once more: a registry that changed it is found here.
    match remote.manifest(&format!("@{}", placement.digest)).await? {
        Some(_) => Ok(()),
        None => Err(TaskFailure::permanent(
            "registry.lost",
            format!("can't push {what}"),
            "the registry took it, but doesn't serve it by its digest",
        )),
    }
}

async fn push_blob(remote: &Remote, blob: &Blob, session: &ImageSession) -> Result<(), TaskFailure> {
    let name = remote.name();
    remote
        .push_blob(&blob.digest, blob.size, || async {
            let stream = session
                .get_blob(&blob.digest)
                .await
                .map_err(|error| repository(&format!("can't push {name}"), &error))?;
            Ok(stream.map_err(|error| OciDistributionError::IoError(std::io::Error::other(error.to_string()))).boxed())
        })
        .await
}

/// Takes back what [`push`] brought to `target`, a path that belongs to one environment alone: all that is tagged there,
/// so that a push that ended midway leaves nothing either.
pub async fn remove(context: &RegistryContext, target: &str, digest: &Digest) -> Result<(), TaskFailure> {
    let remote = context.remote(target, RegistryOperation::Push).await?;
    let tags = match remote.tags().await {
        Ok(tags) => tags,
        // Who may push and delete may not always list.
        Err(failure) if failure.code == DENIED => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let mut found: Vec<Digest> = Vec::new();
    for version in tags.into_iter().chain([format!("@{digest}")]) {
        let Some((digest, bytes)) = remote.manifest(&version).await? else { continue };
        // An index goes before what it names.
        found.insert(0, digest);
        if let Manifest::Index { entries } = manifest::parse(target, &bytes)?.0 {
            found.extend(entries.iter().map(|entry| entry.digest));
        }
    }
    let mut gone = Vec::new();
    for digest in found {
        if !gone.contains(&digest) {
            remote.delete_manifest(&digest).await?;
            gone.push(digest);
        }
    }
    Ok(())
}
