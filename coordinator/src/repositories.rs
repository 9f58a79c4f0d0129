//! The copy repositories of an installation: the one that coordinators are started with, and those that were added.
//!
//! An added one stands in the catalog, so every coordinator knows it at the moment it is used. Its store's secret keys are
//! sealed there with the installation's key. All repositories are opened with the same key file: whoever has that and a
//! copy of any of them can read it, catalog or no catalog. What is open stays open until its row says another way to it.

use std::{
    collections::HashMap,
    ops::Deref,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ocopea_catalog_db::{CatalogError, repositories as rows};
use ocopea_protocol::{
    failure::TaskFailure,
    ids::RepositoryId,
    image::{Location, StoreKeys, StoreLimits},
    secret::Secret,
};
use ocopea_repository::{Error, Keyring, Repository, StoreAbilities, backend::s3::KeySource};
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::{
    Coordinator,
    serve::repository_failure,
    vault::{Vault, VaultError},
};

/// Where the keys of a store come from, as it stands in the catalog: without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum Keys {
    /// Where the coordinator's own come from.
    #[default]
    Environment,
    /// A profile in the files of the tools of AWS.
    Profile {
        /// Its name.
        profile: String,
    },
    /// Lent for the token of the coordinator's environment, by the token service of its environment: were these said here,
    /// whoever adds repositories could have any file of the coordinator's sent anywhere.
    WebIdentity {
        /// The role.
        role: String,
        /// For the service's logs.
        session: String,
    },
    /// These; the secret is sealed beside it.
    Static {
        /// The access key's id.
        id: String,
    },
}

/// How a store is got at, as it stands in the catalog.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// Where the keys come from.
    pub keys: Keys,
    /// Whether agents have keys of their own; else tasks bring them.
    pub agents_have_keys: bool,
}

/// The secret part of static keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeys {
    /// What requests are signed with.
    pub secret: Secret,
    /// Goes with keys that were lent for a time.
    pub token: Option<Secret>,
}

/// What came of looking at a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// It can be used, and can this.
    Abilities(StoreAbilities),
    /// It can't be used, and why.
    Trouble(String),
}

/// A repository can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It isn't known, or the catalog isn't there.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Its store or it.
    #[error("the repository {name}: {error}")]
    Repository {
        /// Which.
        name: String,
        /// Why.
        error: Error,
    },
    /// Its keys were sealed with another installation's key.
    #[error("the keys of the repository {name} can't be opened: {error}")]
    Sealed {
        /// Which.
        name: String,
        /// Why.
        error: VaultError,
    },
}

impl Unusable {
    /// As people read it.
    pub(crate) fn failure(&self, what: &str) -> TaskFailure {
        match self {
            Self::Catalog(error @ CatalogError::NotFound { .. }) => {
                TaskFailure::permanent("repository.unknown", what, error)
                    .next("see the repositories: ocopea repositories")
            }
            Self::Catalog(error) => TaskFailure::retryable("catalog", what, error),
            Self::Repository { name, error } => {
                let failure = repository_failure(what, error);
                TaskFailure { cause: format!("repository {name}: {}", failure.cause), ..failure }
            }
            Self::Sealed { .. } => TaskFailure::permanent("repository.sealed", what, self)
                .next("start with the installation's key file, or remove the repository and add it again"),
        }
    }
}

/// How one was got at when it was opened: another way opens it anew.
#[derive(Clone, PartialEq, Eq)]
struct Way {
    access: String,
    sealed: Option<String>,
    limits: StoreLimits,
}

impl Way {
    fn of(row: &rows::Repository) -> Self {
        Self { access: row.access.clone(), sealed: row.sealed.clone(), limits: row.limits }
    }
}

struct Opened {
    way: Way,
    repository: Arc<OnceCell<Repository>>,
}

/// See the module.
pub struct Repositories {
    given: Repository,
    /// Written to while keys change; nothing is saved or read then.
    keys: Arc<RwLock<()>>,
    added: Mutex<HashMap<RepositoryId, Opened>>,
    /// The given one's row.
    row: OnceCell<rows::Repository>,
}

/// A repository whose keys stay as they are for as long as this is held.
pub struct InUse {
    repository: Repository,
    _keys: OwnedRwLockReadGuard<()>,
}

impl Deref for InUse {
    type Target = Repository;

    fn deref(&self) -> &Repository {
        &self.repository
    }
}

impl Repositories {
    pub(crate) fn new(given: Repository) -> Self {
        Self { given, keys: Arc::default(), added: Mutex::default(), row: OnceCell::new() }
    }

    /// The keys that open every repository. Secret.
    pub(crate) fn keyring(&self) -> Keyring {
        self.given.keyring()
    }

    fn cell(&self, row: &rows::Repository) -> Arc<OnceCell<Repository>> {
        let way = Way::of(row);
        let mut added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |way| Opened { way, repository: Arc::default() };
        let opened = added.entry(row.id).or_insert_with(|| fresh(way.clone()));
        if opened.way != way {
            *opened = fresh(way);
        }
        Arc::clone(&opened.repository)
    }

    /// What is open of one that was removed.
    pub(crate) fn forget(&self, id: RepositoryId) {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// Whether two places are one, or one lies within the other: collections of one would find the other's objects.
pub fn overlap(one: &Location, other: &Location) -> bool {
    match (one, other) {
        (Location::Directory { path: one }, Location::Directory { path: other }) => {
            let whole = |path: &str| std::fs::canonicalize(path).unwrap_or_else(|_| Path::new(path).to_owned());
            let (one, other) = (whole(one), whole(other));
            one.starts_with(&other) || other.starts_with(&one)
        }
        (
            Location::S3 { endpoint: one_at, bucket: one, prefix: one_below, .. },
            Location::S3 { endpoint: other_at, bucket: other, prefix: other_below, .. },
        ) => {
            let within = |inner: &str, outer: &str| {
                outer.is_empty()
                    || inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            one_at.eq_ignore_ascii_case(other_at)
                && one == other
                && (within(one_below, other_below) || within(other_below, one_below))
        }
        _ => false,
    }
}

fn source(row: &rows::Repository, access: &Access, vault: &Vault) -> Result<KeySource, Unusable> {
    Ok(match access.keys.clone() {
        Keys::Environment => KeySource::Environment,
        Keys::Profile { profile } => KeySource::Profile(profile),
        Keys::WebIdentity { role, session } => KeySource::Role { role, session },
        Keys::Static { id } => {
            let fault = |error| Unusable::Sealed { name: row.name.clone(), error };
            let plain = vault.open(row.sealed.as_deref().unwrap_or_default()).map_err(fault)?;
            let SecretKeys { secret, token } = serde_json::from_slice(&plain).map_err(CatalogError::from)?;
            KeySource::Static(StoreKeys { id, secret, token, expires: None })
        }
    })
}

/// Why a repository is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// To be used.
    Known,
    /// It is to be got at another way: somebody waits for the answer.
    Changed,
    /// It is to be added; likewise.
    New,
}

/// How long somebody who adds a repository waits for its store.
const PATIENCE: Duration = Duration::from_secs(20);
const TRIES: u32 = 3;

impl Coordinator {
    /// The repository that images and operations name so.
    pub async fn repository(&self, id: Option<RepositoryId>) -> Result<InUse, Unusable> {
        let held = Arc::clone(&self.repositories.keys).read_owned().await;
        let repository = match id {
            None => self.repositories.given.clone(),
            Some(id) => self.added(id).await?,
        };
        Ok(InUse { repository, _keys: held })
    }

    /// The same for long work, which holds nothing up.
    pub(crate) async fn repository_for_long(&self, id: Option<RepositoryId>) -> Result<Repository, Unusable> {
        Ok(self.repository(id).await?.repository)
    }

    async fn added(&self, id: RepositoryId) -> Result<Repository, Unusable> {
        let row = match self.catalog.repository(&id.to_string()).await {
            Ok(row) => row,
            Err(error) => {
                if matches!(error, CatalogError::NotFound { .. }) {
                    self.repositories.forget(id);
                }
                return Err(error.into());
            }
        };
        let cell = self.repositories.cell(&row);
        let opened = cell.get_or_try_init(async || self.open_repository(&row, Opening::Known).await).await;
        opened.cloned()
    }

    async fn open_repository(&self, row: &rows::Repository, opening: Opening) -> Result<Repository, Unusable> {
        let access: Access = serde_json::from_str(&row.access).map_err(CatalogError::from)?;
        let given = &self.repositories.given;
        let mut stores = given.stores().for_repository(source(row, &access, &self.vault)?, row.limits);
        stores.shared_with_agents = !access.agents_have_keys;
        if opening != Opening::Known {
            stores.patience.whole = stores.patience.whole.min(PATIENCE);
            stores.patience.tries = stores.patience.tries.min(TRIES);
        }
        let ring = given.keyring();
        let fault = |error| Unusable::Repository { name: row.name.clone(), error };
        let repository = match Repository::open(&row.location, &stores, &ring, &self.seams).await {
            Err(Error::NoRepository { .. }) if opening == Opening::New => {
                Repository::create(&row.location, &stores, &ring, &self.seams).await
            }
            other => other,
        };
        let repository = repository.map_err(fault)?;
        // Whatever the key file holds opens every repository.
        match repository.key_add(&ring).await {
            Err(error) if error.is_breakage() => {
                tracing::error!(%error, repository.name = row.name, "keys in the repository are broken");
            }
            other => other.map_err(fault)?,
        }
        Ok(repository)
    }

    /// Looks at a repository that is to be added, makes it where there is none, and gives its row what it found. One that
    /// is known already, to be got at another way, must be the same.
    pub(crate) async fn try_repository(&self, row: &mut rows::Repository) -> Result<(), Unusable> {
        let _keys = Arc::clone(&self.repositories.keys).read_owned().await;
        let opening = if row.own_id.is_some() { Opening::Changed } else { Opening::New };
        let repository = self.open_repository(row, opening).await?;
        if row.own_id.is_some_and(|known| known != repository.id()) {
            let error = Error::Occupied { place: ocopea_repository::place(&row.location) };
            return Err(Unusable::Repository { name: row.name.clone(), error });
        }
        row.own_id = Some(repository.id());
        row.found = Some(serde_json::to_string(&Found::Abilities(repository.abilities())).map_err(CatalogError::from)?);
        row.found_at = Some(self.seams.clock.now());
        Ok(())
    }

    /// The row of the repository that this coordinator was started with.
    pub(crate) async fn given_repository(&self) -> Result<&rows::Repository, CatalogError> {
        let given = &self.repositories.given;
        let write = async || {
            let row =
                self.catalog.ensure_given_repository(given.location(), &given.stores().limits, given.id()).await?;
            let found = serde_json::to_string(&Found::Abilities(given.abilities()))?;
            self.catalog.note_repository(row.id, &found).await?;
            Ok(row)
        };
        self.repositories.row.get_or_try_init(write).await
    }

    /// All of them.
    pub(crate) async fn all_repositories(&self) -> Result<Vec<rows::Repository>, CatalogError> {
        self.given_repository().await?;
        self.catalog.repositories().await
    }

    /// The one of that name, or the default one.
    pub(crate) async fn named_repository(&self, name: Option<&str>) -> Result<rows::Repository, CatalogError> {
        let all = self.all_repositories().await?;
        match name {
            Some(name) => {
                let found = all.into_iter().find(|one| one.name == name || one.id.to_string() == name);
                found
                    .ok_or_else(|| CatalogError::NotFound { what: "repository", name: name.chars().take(80).collect() })
            }
            None => match all.into_iter().find(|one| one.is_default) {
                Some(default) => Ok(default),
                None => self.given_repository().await.cloned(),
            },
        }
    }

    /// All that are there, to change their keys: nobody works with any of them meanwhile. One that can't be reached is
    /// an error: it would be left behind.
    pub(crate) async fn to_change_keys(
        &self,
    ) -> Result<(OwnedRwLockWriteGuard<()>, Vec<(String, Repository)>), Unusable> {
        // Whatever can't be reached is found out before anybody has to wait.
        for row in self.all_repositories().await? {
            self.repository(row.reference()).await?;
        }
        let alone = Arc::clone(&self.repositories.keys).write_owned().await;
        let mut all = Vec::new();
        for row in self.all_repositories().await? {
            let repository = match row.reference() {
                None => self.repositories.given.clone(),
                Some(id) => self.added(id).await?,
            };
            all.push((row.name, repository));
        }
        // The given one first: it says which keys there are.
        all.sort_by_key(|(name, _)| name != rows::GIVEN);
        Ok((alone, all))
    }

    /// At every start, each store is looked at with objects of one's own; what comes of it can be read in the list.
    pub(crate) async fn look_at_repositories(&self) {
        let rows = match self.all_repositories().await {
            Ok(rows) => rows,
            Err(error) => return tracing::warn!(%error, "the repositories can't be listed"),
        };
        // One that doesn't answer holds up no other.
        let added = rows.iter().filter(|row| !row.is_given);
        futures::future::join_all(added.map(|row| self.look_at(row))).await;
    }

    async fn look_at(&self, row: &rows::Repository) {
        let found = match self.repository(row.reference()).await {
            Ok(repository) => Found::Abilities(repository.abilities()),
            Err(error) => {
                tracing::warn!(%error, repository.name = row.name, "a repository can't be used");
                Found::Trouble(error.to_string())
            }
        };
        let noted = async {
            self.catalog.note_repository(row.id, &serde_json::to_string(&found)?).await?;
            Ok::<_, CatalogError>(())
        };
        if let Err(error) = noted.await {
            tracing::warn!(%error, "what was found out of a repository can't be written down");
        }
    }
}

/// Limits that were given for a repository.
pub(crate) fn checked(limits: StoreLimits) -> Result<StoreLimits, Error> {
    ocopea_repository::backend::check_limits(&limits)?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(bucket: &str, prefix: &str) -> Location {
        Location::S3 {
            endpoint: "https://s3.example.com".to_owned(),
            region: "eu-west-1".to_owned(),
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            path_style: true,
        }
    }

    #[test]
    fn places_that_are_one_or_within_another_overlap() {
        let directory = |path: &str| Location::Directory { path: path.to_owned() };
        for (one, other, expected) in [
            (bucket("a", "x"), bucket("a", "x"), true),
            (bucket("a", "x"), bucket("b", "x"), false),
            (bucket("a", "x"), bucket("a", "xy"), false),
            (bucket("a", "x"), bucket("a", "x/y"), true),
            (bucket("a", ""), bucket("a", "x"), true),
            (directory("/absent/a"), directory("/absent/a/b"), true),
            (directory("/absent/a"), directory("/absent/ab"), false),
            (directory("/absent/a"), bucket("a", ""), false),
        ] {
            assert_eq!(overlap(&one, &other), expected, "{one:?} {other:?}");
            assert_eq!(overlap(&other, &one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn secrets_stand_in_no_row_and_no_log() {
        let secret = SecretKeys { secret: Secret::new("canary-88"), token: None };
        assert!(!format!("{secret:?}").contains("canary-88"));
        let access = Access { keys: Keys::Static { id: "AK".to_owned() }, agents_have_keys: false };
        let text = serde_json::to_string(&access).unwrap();
        assert_eq!(text, r#"{"keys":{"source":"static","id":"AK"},"agents_have_keys":false}"#);
        assert_eq!(serde_json::from_str::<Access>("{}").unwrap(), Access::default());
    }
}
