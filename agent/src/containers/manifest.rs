//! Image manifests and indexes, as far as they must be understood to copy them.

use ocopea_protocol::{failure::TaskFailure, names::Digest};
use serde::Deserialize;

/// Manifests are refused beyond this (the distribution specification's own limit is 4 MiB).
pub(super) const LONGEST: usize = 4 * 1024 * 1024;
/// Layers of one image, and platforms of one index.
const MOST: usize = 512;
/// One layer.
const LARGEST_BLOB: u64 = 512 * 1024 * 1024 * 1024;

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// One manifest, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Manifest {
    /// Of one platform: config and layers.
    Image { config: Blob, layers: Vec<Blob> },
    /// Of several.
    Index { entries: Vec<Entry> },
}

/// A blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Foreign layers (Windows base images) may not be redistributed and lie elsewhere.
    pub(super) foreign: bool,
}

/// A platform of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    /// `linux/amd64`, `linux/arm/v7`; `unknown/unknown` for attestations.
    pub(super) platform: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    digest: String,
    size: u64,
    media_type: Option<String>,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Reads a manifest. `what` names the image in errors.
pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<(Manifest, String), TaskFailure> {
    let fault =
        |why: String| TaskFailure::permanent("container.manifest", format!("can't copy container image {what}"), why);
    if bytes.len() > LONGEST {
        return Err(fault(format!("its manifest is longer than {LONGEST} bytes")));
    }
    let raw: Raw =
        serde_json::from_slice(bytes).map_err(|error| fault(format!("its manifest is not valid: {error}")))?;
    if raw.schema_version != 2 {
        return Err(fault(format!("its manifest has schema version {}, only 2 is supported", raw.schema_version)));
    }
    let blob = |d: &RawDescriptor| -> Result<Blob, TaskFailure> {
        let digest = d.digest.parse().map_err(|error| fault(format!("{error}")))?;
        if d.size > LARGEST_BLOB {
            return Err(fault(format!("blob {digest} claims {} bytes", d.size)));
        }
        let foreign = d.media_type.as_deref().is_some_and(|m| m.contains("foreign") || m.contains("nondistributable"));
        Ok(Blob { digest, size: d.size, foreign })
    };
    if let Some(entries) = raw.manifests {
        if entries.len() > MOST {
            return Err(fault(format!("its index names {} manifests, {MOST} at most", entries.len())));
        }
        let entries = entries
            .iter()
            .map(|d| {
                let platform = d.platform.as_ref().map_or_else(
                    || "unknown/unknown".to_owned(),
                    |p| match &p.variant {
                        Some(variant) => format!("{}/{}/{variant}", p.os, p.architecture),
                        None => format!("{}/{}", p.os, p.architecture),
                    },
                );
                Ok(Entry { digest: blob(d)?.digest, platform })
            })
            .collect::<Result<Vec<_>, TaskFailure>>()?;
        return Ok((Manifest::Index { entries }, raw.media_type.unwrap_or_else(|| OCI_INDEX.to_owned())));
    }
    let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
        return Err(fault("its manifest names neither layers nor platforms".to_owned()));
    };
    if layers.len() > MOST {
        return Err(fault(format!("its manifest names {} layers, {MOST} at most", layers.len())));
    }
    let layers = layers.iter().map(&blob).collect::<Result<Vec<_>, _>>()?;
    let media = raw.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
    Ok((Manifest::Image { config: blob(&config)?, layers }, media))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_manifests_are_refused() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let many = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            vec![format!(r#"{{"digest":"{digest}","size":1}}"#); 600].join(",")
        );
        let cases = [
            "{}".to_owned(),
            r#"{"schemaVersion":1}"#.to_owned(),
            r#"{"schemaVersion":2}"#.to_owned(),
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#.to_owned(),
            format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":-1}},"layers":[]}}"#),
            format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":1125899906842624}},"layers":[]}}"#),
            many,
            "[".repeat(100_000),
        ];
        for case in cases {
            let error = parse("app", case.as_bytes()).unwrap_err();
            assert!(error.what.contains("app"), "{case:.60}");
        }
    }

    #[test]
    fn platforms_and_foreign_layers_are_recognised() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","size":1,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#
        );
        let (parsed, media) = parse("app", index.as_bytes()).unwrap();
        assert_eq!(media, OCI_INDEX);
        let Manifest::Index { entries } = parsed else { panic!("an index") };
        assert_eq!(entries[0].platform, "linux/arm/v7");
    }
}
