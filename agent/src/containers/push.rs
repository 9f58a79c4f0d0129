//! Repository → registry, and taking it back.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{RegistryOperation, errors::OciDistributionError};
use ocopea_protocol::{failure::TaskFailure, names::Digest, plan::ContainerPlacement, task::Progress};
use ocopea_repository::ImageSession;

use super::{
    manifest::{self, Blob, Manifest},
    registry::{RegistryContext, Remote},
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
    let remote = context.remote(&placement.target)?;
    remote.sign_in(RegistryOperation::Push).await?;
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
    for (digest, bytes, media) in &inner {
        remote.push_manifest(&format!("@{digest}"), media, bytes).await?;
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

/// Takes back what [`push`] brought to `target`, a path that belongs to one environment alone.
pub async fn remove(context: &RegistryContext, target: &str, digest: &Digest) -> Result<(), TaskFailure> {
    let remote = context.remote(target)?;
    let Some((_, bytes)) = remote.manifest(&format!("@{digest}")).await? else {
        return Ok(());
    };
    remote.sign_in(RegistryOperation::Push).await?;
    let entries = match manifest::parse(target, &bytes)?.0 {
        Manifest::Image { .. } => Vec::new(),
        Manifest::Index { entries } => entries,
    };
    remote.delete_manifest(digest).await?;
    for entry in entries {
        remote.delete_manifest(&entry.digest).await?;
    }
    Ok(())
}
