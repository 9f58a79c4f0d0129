//! The measured runs: a tree into a repository as a volume would be, and back.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use ocopea_protocol::{
    ids::{ImageId, TeamId},
    image::{Consistency, ConsistencyLevel, DataKind, Location},
    inventory::DataFound,
    names::ComponentName,
    seams::Seams,
    time::Timestamp,
};
use ocopea_repository::{
    Body, CommitRequest, Component, DataReader, DataWriter, DataWritten, ImageSession, Keyring, Record, Repository,
    Requirements, StoreAccess, StreamFacts, WrappedKey, backend::s3::parse_location,
};

use crate::{
    target::{Space, Target},
    tree,
};

/// Streams that are read at the same time.
const AT_ONCE: usize = 2;
/// Streams of a tree.
const STREAMS: usize = 8;
const PIECE: usize = 1 << 20;

/// Names a bucket to be used instead of a directory.
pub const STORE: &str = "OCOPEA_BENCH_STORE";

fn location(place: &Path) -> Result<Location> {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(store) = variable(STORE) else {
        return Ok(Location::Directory { path: place.join("repository").display().to_string() });
    };
    let Location::S3 { endpoint, region, bucket, path_style, .. } = parse_location(&store, variable)? else {
        bail!("{store} is no bucket");
    };
    let prefix = place.file_name().and_then(|name| name.to_str()).context("the place has no name")?.to_owned();
    Ok(Location::S3 { endpoint, region, bucket, prefix, path_style })
}

/// A save that has begun.
pub struct Saving {
    repository: Repository,
    team: TeamId,
    key: WrappedKey,
    name: ComponentName,
    pub writer: DataWriter,
}

/// Begins a save on top of the newest image, if there is one.
pub async fn begin(place: &Path, seams: &Seams) -> Result<Saving> {
    let (key_file, team_file) = (place.join("repository.key"), place.join("team"));
    let (location, stores) = (location(place)?, StoreAccess::default());
    let (repository, team) = if key_file.exists() {
        let keyring = Keyring::parse(&std::fs::read_to_string(&key_file)?)?;
        let team: TeamId = std::fs::read_to_string(&team_file)?.parse()?;
        (Repository::open(&location, &stores, &keyring, seams).await?, team)
    } else {
        std::fs::create_dir_all(place)?;
        let (keyring, team) = (Keyring::generate(seams), TeamId::generate(seams));
        std::fs::write(&key_file, keyring.to_text().as_bytes())?;
        std::fs::write(&team_file, team.to_string())?;
        (Repository::create(&location, &stores, &keyring, seams).await?, team)
    };
    let base = repository.images().await?.pop().map(|reference| reference.record);
    let key = repository.new_image_key(team).await?;
    let access = repository.access_to_write(&key, base.as_ref()).await?;
    let session = ImageSession::open(&access, &stores, seams).await?;
    let name: ComponentName = "tree".parse()?;
    let writer = session.component(&name, DataKind::Volume).await?;
    Ok(Saving { repository, team, key, name, writer })
}

impl Saving {
    /// Makes the image visible.
    pub async fn commit(self, seams: &Seams) -> Result<DataWritten> {
        let data = self.writer.finish("{}").await?;
        let record = record(self.team, self.name, &data, seams);
        self.repository.commit(&CommitRequest { record, key: self.key }).await?;
        Ok(data)
    }
}

/// Saves `tree` to the moment that its image is visible; on top of the newest image, if there is one.
pub async fn save(tree: &Path, place: &Path, seams: &Seams) -> Result<()> {
    let saving = begin(place, seams).await?;
    let files = tree::files(tree)?;
    let share = files.len().div_ceil(STREAMS).max(1);
    let writer = &saving.writer;
    let parts = files.chunks(share).enumerate().map(|(number, files)| stream_files(writer, number, tree, files, seams));
    stream::iter(parts).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    let data = saving.commit(seams).await?;
    println!("new {} stored {}", data.new_bytes, data.stored_bytes);
    report_peak()
}

/// One stream of files: path length, path, length, content.
async fn stream_files(writer: &DataWriter, number: usize, tree: &Path, files: &[PathBuf], seams: &Seams) -> Result<()> {
    let mut stream = writer.stream(format!("part-{number}").as_bytes()).await?;
    let mut items = writer.item_hasher();
    let mut buffer = BytesMut::with_capacity(PIECE);
    for path in files {
        let name = path.to_str().context("a path is not UTF-8")?.as_bytes();
        let mut file = File::open(tree.join(path))?;
        let length = file.metadata()?.len();
        let mut hasher = items.part_hasher();
        hasher.update(name);
        buffer.extend_from_slice(&u32::try_from(name.len())?.to_le_bytes());
        buffer.extend_from_slice(name);
        buffer.extend_from_slice(&length.to_le_bytes());
        let mut left = usize::try_from(length)?;
        while left > 0 {
            let at = buffer.len();
            let now = left.min(PIECE.saturating_sub(at).max(1));
            let read = move || -> Result<_> {
                buffer.resize(at + now, 0);
                file.read_exact(&mut buffer[at..])?;
                hasher.update(&buffer[at..]);
                Ok((buffer, file, hasher))
            };
            // Small reads aren't worth the way to another thread.
            (buffer, file, hasher) =
                if now < 64 << 10 { read()? } else { seams.compute("bench.read", read).await.context("stopped")?? };
            left -= now;
            if buffer.len() >= PIECE {
                stream.write(buffer.split().freeze()).await?;
                buffer.reserve(PIECE);
            }
        }
        items.add_hash(*hasher.finalize().as_bytes());
    }
    stream.write(buffer.freeze()).await?;
    let facts = StreamFacts {
        unit: "files".to_owned(),
        items: items.items(),
        item_hash: items.sum(),
        attributes: BTreeMap::new(),
    };
    stream.finish(facts).await?;
    Ok(())
}

/// The data of the newest image.
pub async fn newest(place: &Path, seams: &Seams) -> Result<DataReader> {
    let keyring = Keyring::parse(&std::fs::read_to_string(place.join("repository.key"))?)?;
    let stores = StoreAccess::default();
    let repository = Repository::open(&location(place)?, &stores, &keyring, seams).await?;
    let newest = repository.images().await?.pop().context("there is no image")?;
    let session = ImageSession::open(&repository.access_to_read(&newest.record).await?, &stores, seams).await?;
    let record = session.read_record(&newest.record).await?;
    let component = record.components.first().context("the image has no component")?;
    Ok(session.reader(&component.manifest).await?)
}

/// Restores the newest image into `to`.
pub async fn restore(place: &Path, to: &Path, seams: &Seams) -> Result<()> {
    let reader = newest(place, seams).await?;
    let streams = reader.streams().await?;
    let parts = streams.iter().map(|entry| restore_stream(&reader, &entry.name, to, seams));
    stream::iter(parts).buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
    report_peak()
}

/// Where the reading of a stream is.
#[derive(Default)]
struct Place {
    header: Vec<u8>,
    open: Option<Target>,
    space: Space,
}

async fn restore_stream(reader: &DataReader, name: &[u8], to: &Path, seams: &Seams) -> Result<()> {
    let mut pieces = reader.read(name).await?;
    let mut place = Place::default();
    // Some pieces at a time go to a thread that may block.
    let mut pieces = (&mut pieces).ready_chunks(8);
    while let Some(piece) = pieces.next().await {
        let piece: Vec<Bytes> = piece.into_iter().collect::<Result<_, _>>()?;
        let to = to.to_owned();
        place = seams
            .compute("bench.write", move || -> Result<_> {
                for piece in &piece {
                    place.write(&to, piece)?;
                }
                Ok(place)
            })
            .await
            .context("stopped")??;
    }
    if place.open.is_some() || !place.header.is_empty() {
        bail!("the stream ends within a file");
    }
    Ok(())
}

impl Place {
    fn write(&mut self, to: &Path, mut piece: &[u8]) -> Result<()> {
        while !piece.is_empty() {
            if let Some(target) = &mut self.open {
                piece = target.take(piece, &mut self.space)?;
                if target.is_complete() {
                    self.open = None;
                }
                continue;
            }
            let wanted = match self.header.first_chunk::<4>() {
                Some(length) => 4 + u32::from_le_bytes(*length) as usize + 8,
                None => 4,
            };
            let (now, rest) = piece.split_at(piece.len().min(wanted - self.header.len()));
            self.header.extend_from_slice(now);
            piece = rest;
            if self.header.len() == wanted && wanted > 4 {
                let (name, length) = self.header[4..].split_at(wanted - 12);
                let path = to.join(std::str::from_utf8(name)?);
                let length = u64::from_le_bytes(length.try_into()?);
                let target = match Target::create(&path, length) {
                    Ok(target) => target,
                    Err(_) => {
                        std::fs::create_dir_all(path.parent().unwrap_or(to))?;
                        Target::create(&path, length)?
                    }
                };
                self.open = (length > 0).then_some(target);
                self.header.clear();
            }
        }
        Ok(())
    }
}

fn report_peak() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("peak-kb {}", peak.unwrap_or("0").trim().trim_end_matches(" kB"));
    Ok(())
}

fn record(team: TeamId, name: ComponentName, data: &DataWritten, seams: &Seams) -> Record {
    let consistency = Consistency {
        level: ConsistencyLevel::Snapshot,
        why: String::new(),
        changed: vec![],
        changed_count: 0,
        frozen_ms: 0,
    };
    let found = DataFound {
        name: name.clone(),
        kind: DataKind::Volume,
        version: None,
        workload: None,
        pod: None,
        container: None,
        port: 0,
        hosts: vec![],
        claims: vec![],
        bytes: Some(data.bytes),
        streams: Some(data.streams.len() as u64),
        features: vec![],
        consistency: consistency.clone(),
        bindings: vec![],
        rights: vec![],
    };
    let body = Body::Data { found, version: None, features: vec![], streams: vec![], consistency, notices: vec![] };
    let component = Component {
        name,
        manifest: data.manifest,
        bytes: data.bytes,
        new_bytes: data.new_bytes,
        stored_bytes: data.stored_bytes,
        body,
    };
    Record {
        version: 1,
        image: ImageId::generate(seams),
        name: "bench".to_owned(),
        labels: BTreeMap::new(),
        comment: String::new(),
        team,
        creator: "bench".to_owned(),
        created: Timestamp(0),
        application: "tree".to_owned(),
        site: "here".to_owned(),
        namespace: "tree".to_owned(),
        selector: None,
        components: vec![component],
        left_out: vec![],
        requirements: Requirements::default(),
        lineage: Default::default(),
        instant: Default::default(),
        config_digest: String::new(),
    }
}
