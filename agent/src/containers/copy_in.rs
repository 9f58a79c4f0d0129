//! Registry → repository.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{RegistryOperation, errors::DigestError};
use ocopea_protocol::{
    failure::TaskFailure, image::ComponentCopied, inventory::ContainerFound, names::Digest, task::Progress,
};
use ocopea_repository::{Error, ImageSession};

use super::{
    manifest::{self, Blob, Manifest},
    registry::{DAMAGED, RegistryContext, Remote},
};
use crate::failures::repository;

/// Layers that are fetched at the same time.
const AT_ONCE: usize = 3;

/// A container image that now lies in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerCopy {
    /// Its manifest is the one that ran (an index stays an index).
    pub component: ComponentCopied,
    /// Manifests by platform.
    pub platforms: Vec<(String, Digest)>,
}

/// Copies `container` with all of its platforms. Layers that the repository has are not fetched again.
pub async fn copy_in(
    context: &RegistryContext,
    container: &ContainerFound,
    session: &ImageSession,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
) -> Result<ContainerCopy, TaskFailure> {
    let remote = context.remote(&container.repository, RegistryOperation::Pull).await?;
    let what = format!("{}@{}", remote.name(), container.digest);
    let top = fetch_manifest(&remote, &container.digest).await?;
    let (parsed, media) = manifest::parse(&what, &top)?;
    let mut blobs: Vec<Blob> = Vec::new();
    let mut manifests: Vec<(Vec<u8>, String)> = Vec::new();
    let mut platforms = Vec::new();
    match parsed {
        Manifest::Image { config, layers } => {
            platforms.push((platform_of(&remote, &what, &config).await?, container.digest));
            blobs.push(config);
            blobs.extend(layers);
        }
        Manifest::Index { entries } => {
            for entry in entries {
                // A registry may hold only some platforms of an index (mirrors do): then the copy would not be whole.
                let bytes = fetch_manifest(&remote, &entry.digest).await?;
                let (inner, inner_media) = manifest::parse(&what, &bytes)?;
                let Manifest::Image { config, layers } = inner else {
                    return Err(TaskFailure::permanent(
                        "container.manifest",
                        format!("can't copy container image {what}"),
                        format!("its index names another index ({})", entry.digest),
                    ));
                };
                blobs.push(config);
                blobs.extend(layers);
                platforms.push((entry.platform, entry.digest));
                manifests.push((bytes, inner_media));
            }
        }
    }
    blobs.sort_by_key(|blob| blob.digest);
    blobs.dedup_by_key(|blob| blob.digest);
    if let Some(foreign) = blobs.iter().find(|blob| blob.foreign) {
        return Err(TaskFailure::permanent(
            "container.foreign-layer",
            format!("can't copy container image {what}"),
            format!("its layer {} may not be redistributed and lies outside the registry", foreign.digest),
        )
        .next(format!("leave it out with --without {}", container.name)));
    }
    let total: u64 = blobs.iter().map(|blob| blob.size).sum();
    let copied = copy_blobs(&remote, &what, blobs, session, total, &progress).await?;
    for (bytes, media) in manifests.iter().map(|(b, m)| (b.as_slice(), m)).chain([(top.as_slice(), &media)]) {
        session.put_manifest(bytes, media).await.map_err(|error| repository(&format!("can't save {what}"), &error))?;
    }
    Ok(ContainerCopy {
        component: ComponentCopied {
            name: container.name.clone(),
            manifest: container.digest,
            bytes: total,
            new_bytes: copied,
            stored_bytes: copied,
        },
        platforms,
    })
}

async fn fetch_manifest(remote: &Remote, digest: &Digest) -> Result<Vec<u8>, TaskFailure> {
    match remote.manifest(&format!("@{digest}")).await? {
        Some((_, bytes)) => Ok(bytes.to_vec()),
        None => Err(TaskFailure::permanent(
            "container.absent",
            format!("can't copy container image {}@{digest}", remote.name()),
            "its registry doesn't have it (any more)",
        )
        .next("push it again, or leave the component out with --without NAME")),
    }
}

/// The platform of a single-platform image, from its config.
async fn platform_of(remote: &Remote, what: &str, config: &Blob) -> Result<String, TaskFailure> {
    #[derive(serde::Deserialize)]
    struct Config {
        os: Option<String>,
        architecture: Option<String>,
        variant: Option<String>,
    }
    let fault =
        |why: String| TaskFailure::permanent("container.config", format!("can't copy container image {what}"), why);
    if config.size > manifest::LONGEST as u64 {
        return Err(fault(format!("its config claims {} bytes", config.size)));
    }
    let mut bytes = Vec::new();
    let mut stream = remote.blob(&config.digest).await?;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            TaskFailure::retryable("registry.unreachable", format!("can't copy container image {what}"), error)
        })?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > config.size {
            return Err(fault("its config is longer than its manifest says".to_owned()));
        }
    }
    let found = super::registry::sha256(&bytes);
    if found != config.digest {
        return Err(remote.wrong_digest(&config.digest.to_string(), &found));
    }
    let parsed: Config =
        serde_json::from_slice(&bytes).map_err(|error| fault(format!("its config is not valid: {error}")))?;
    let os = parsed.os.unwrap_or_else(|| "linux".to_owned());
    let architecture = parsed.architecture.unwrap_or_else(|| "unknown".to_owned());
    Ok(match parsed.variant.filter(|variant| !variant.is_empty()) {
        Some(variant) => format!("{os}/{architecture}/{variant}"),
        None => format!("{os}/{architecture}"),
    })
}

/// Copies what is missing; answers for how many bytes that was.
async fn copy_blobs(
    remote: &Remote,
    what: &str,
    blobs: Vec<Blob>,
    session: &ImageSession,
    total: u64,
    progress: &Arc<dyn Fn(Progress) + Send + Sync>,
) -> Result<u64, TaskFailure> {
    let done = AtomicU64::new(0);
    let failed = |error: &Error| repository(&format!("can't save {what}"), error);
    let copies = blobs.into_iter().map(|blob| {
        let done = &done;
        async move {
            let present = session.has_blob(&blob.digest, blob.size).await.map_err(|e| failed(&e))?;
            if !present {
                let stream = remote.blob(&blob.digest).await?;
                let wrong = AtomicBool::new(false);
                let stream = stream.inspect_err(|error| {
                    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>());
                    wrong.fetch_or(inner.is_some(), Ordering::Relaxed);
                });
                session.put_blob(&blob.digest, blob.size, stream).await.map_err(|error| match error {
                    // Not the repository's fault, and not a matter of trying again.
                    Error::WrongDigest { .. } => served_wrong(what, &error),
                    Error::Source { .. } if wrong.load(Ordering::Relaxed) => served_wrong(what, &error),
                    error => failed(&error),
                })?;
            }
            let bytes = done.fetch_add(blob.size, Ordering::Relaxed) + blob.size;
            progress(Progress { phase: "copying".to_owned(), bytes, of_bytes: total, ..Progress::default() });
            Ok::<u64, TaskFailure>(if present { 0 } else { blob.size })
        }
    });
    stream::iter(copies).buffer_unordered(AT_ONCE).try_fold(0, |sum, new| async move { Ok(sum + new) }).await
}

fn served_wrong(what: &str, error: &Error) -> TaskFailure {
    TaskFailure::permanent("container.digest", format!("can't copy container image {what}"), error).next(DAMAGED)
}
