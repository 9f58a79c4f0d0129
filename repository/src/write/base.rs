//! Chunks that need not be stored again: of the base image, and of packs that an earlier attempt finished.

use std::collections::HashSet;

use ocopea_protocol::{names::Digest, secret::Secret32};

use super::table::Places;
use crate::{
    chunk::Chunk,
    error::Result,
    oci,
    pack::{self, Packed},
    session::Core,
    store::{LONGEST_MANIFEST, blob_digest},
    toc::{PackRow, TocReader},
};

/// Most chunks of earlier attempts that are remembered.
const MOST_STAGED: usize = 256 << 10;

/// What may be used again.
pub(crate) struct Reusable {
    base: Option<Base>,
    staged: Places,
    staged_packs: Vec<Packed>,
}

struct Base {
    toc: TocReader,
    packs: Vec<PackRow>,
    /// Packs that are less than half in use: what is still used of them is copied out, so that they can go.
    sparse: HashSet<u32>,
}

/// A chunk that was found, and the pack that holds it.
pub(crate) struct Found {
    pub(crate) chunk: Chunk,
    pub(crate) pack: Packed,
}

impl Reusable {
    /// Opens the base's component of the same name, and the packs that earlier attempts at this image left.
    pub(crate) async fn open(core: &Core, base: Option<(&Secret32, &Digest)>) -> Result<Self> {
        let condemned = core.condemned().await?;
        let base = match base {
            Some((key, manifest)) => match Base::open(core, key, manifest, condemned).await {
                Ok(base) => Some(base),
                // A base that can't be read costs space, not the save. It is `verify` that reports it.
                Err(error) if error.is_breakage() => {
                    tracing::warn!(%error, "the base can't be read: everything is stored anew");
                    None
                }
                Err(error) => return Err(error),
            },
            None => None,
        };
        let mut reusable = Self { base, staged: Places::default(), staged_packs: vec![] };
        reusable.add_staged(core, condemned).await?;
        Ok(reusable)
    }

    async fn add_staged(&mut self, core: &Core, condemned: &HashSet<Digest>) -> Result<()> {
        for entry in core.store.backend.list(&core.staging()).await? {
            let digest = entry.name.rsplit('/').next().and_then(|hex| blob_digest(&format!("blobs/sha256/{hex}")));
            let Some(digest) = digest.filter(|digest| !condemned.contains(digest)) else { continue };
            let Some(blob) = core.store.backend.head(&crate::store::blob_name(&digest)).await? else { continue };
            // Whatever is wrong with an unfinished attempt's pack: it is written again, and nobody names this one.
            let Ok((packed, chunks)) = pack::read_index(&core.store, &core.image_key, &digest, blob.size).await else {
                continue;
            };
            if self.staged.len() + chunks.len() > MOST_STAGED {
                break;
            }
            let number = u32::try_from(self.staged_packs.len()).unwrap_or(u32::MAX);
            self.staged_packs.push(packed);
            chunks.iter().for_each(|chunk| self.staged.insert(&Chunk { pack: number, ..*chunk }));
        }
        Ok(())
    }

    /// Looks a chunk up.
    pub(crate) async fn find(&self, hash: &[u8; 32]) -> Result<Option<Found>> {
        if let Some(chunk) = self.staged.get(hash)
            && let Some(pack) = self.staged_packs.get(chunk.pack as usize)
        {
            return Ok(Some(Found { chunk, pack: pack.clone() }));
        }
        let Some(base) = &self.base else { return Ok(None) };
        let Some(chunk) = base.toc.find(hash).await?.filter(|chunk| !base.sparse.contains(&chunk.pack)) else {
            return Ok(None);
        };
        let Some(row) = base.packs.get(chunk.pack as usize) else { return Ok(None) };
        let pack = Packed { digest: row.digest, size: row.size, key: row.key.clone(), chunks: row.chunks };
        Ok(Some(Found { chunk, pack }))
    }

    /// Whether look-ups are worth their time.
    pub(crate) fn is_empty(&self) -> bool {
        self.base.is_none() && self.staged_packs.is_empty()
    }
}

impl Base {
    async fn open(core: &Core, key: &Secret32, manifest: &Digest, condemned: &HashSet<Digest>) -> Result<Self> {
        let bytes = core.store.get_blob(manifest, LONGEST_MANIFEST).await?;
        let manifest: oci::Manifest = oci::parse(&manifest.to_string(), &bytes)?;
        let toc = TocReader::open(&core.store, key, &manifest.config.digest, manifest.config.size).await?;
        let packs = toc.packs().await?;
        let unfit = |row: &PackRow| row.live < row.size / 2 || condemned.contains(&row.digest);
        let sparse = (0u32..).zip(&packs).filter(|(_, row)| unfit(row)).map(|(number, _)| number).collect();
        Ok(Self { toc, packs, sparse })
    }
}
