//! A copy repository of a test's own, and what a driver is given to work with it.

use std::sync::Arc;

use ocopea_protocol::{
    ids::TeamId,
    image::{DataKind, Location},
    names::{ComponentName, Digest},
    seams::Seams,
};
use ocopea_repository::{DataReader, DataWriter, ImageSession, Keyring, Repository, StoreAccess};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

/// A repository in a directory of its own.
pub struct TestRepository {
    _directory: TempDir,
    repository: Repository,
    team: TeamId,
    pub seams: Seams,
}

/// One image in it, open for writing and reading.
pub struct TestImage {
    session: ImageSession,
}

impl TestRepository {
    pub async fn new() -> Self {
        let seams = Seams::real(TaskTracker::new());
        let directory = TempDir::new().unwrap();
        let location = Location::Directory { path: directory.path().join("repository").to_str().unwrap().to_owned() };
        let repository =
            Repository::create(&location, &StoreAccess::default(), &Keyring::generate(&seams), &seams).await.unwrap();
        let team = TeamId::generate(&seams);
        Self { _directory: directory, repository, team, seams }
    }

    pub async fn image(&self) -> TestImage {
        let key = self.repository.new_image_key(self.team).await.unwrap();
        let access = self.repository.access_to_write(&key, None).await.unwrap();
        let session = ImageSession::open(&access, &StoreAccess::default(), &self.seams).await.unwrap();
        TestImage { session }
    }
}

impl TestImage {
    pub async fn writer(&self, name: &ComponentName, kind: DataKind) -> Arc<DataWriter> {
        Arc::new(self.session.component(name, kind).await.unwrap())
    }

    /// Ends a component.
    pub async fn finish(&self, writer: Arc<DataWriter>, facts: &str) -> Digest {
        let writer = Arc::into_inner(writer).expect("nobody else writes any more");
        writer.finish(facts).await.unwrap().manifest
    }

    pub async fn reader(&self, manifest: &Digest) -> DataReader {
        self.session.reader(manifest).await.unwrap()
    }
}
