//! The repository of `ocopea up`: a directory beside the catalog, or a bucket.
//!
//! A catalog knows the images of one repository. So where it lies is written down at the first start (`repository.json`;
//! no secret stands in it), and a start that names another place is refused.

use std::{path::Path, time::Duration};

use ocopea_protocol::{
    image::{Location, StoreLimits},
    seams::Seams,
};
use ocopea_repository::{Error, Keyring, Repository, StoreAccess, backend::s3::parse_location};

use super::files::{secret_file, write_secret};
use crate::{client::Failure, output};

const PLACE: &str = "repository.json";
/// How often, and how long apart, a repository is looked for that somebody else makes.
const OTHERS: u32 = 6;
const OTHER: Duration = Duration::from_millis(500);

/// A location as people write it.
pub(super) fn told(location: &Location) -> String {
    match location {
        Location::Directory { .. } => "directory".to_owned(),
        Location::S3 { .. } => ocopea_repository::place(location),
    }
}

fn directory(data: &Path) -> Location {
    Location::Directory { path: data.join("repository").display().to_string() }
}

fn is_empty(directory: &Path) -> bool {
    !std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// What is written down of an earlier start.
fn recorded(data: &Path) -> Result<Option<Location>, Failure> {
    let path = data.join(PLACE);
    let fault = |why: String| Failure::local(format!("{} can't be used: {why}", path.display()));
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| fault(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(Some(directory(data)).filter(|_| !is_empty(&data.join("repository"))))
        }
        Err(error) => Err(fault(error.to_string())),
    }
}

/// Where the repository is to be.
fn place(data: &Path, given: Option<&str>) -> Result<Location, Failure> {
    let given = given.map(|text| parse_location(text, |name| std::env::var(name).ok())).transpose();
    let given = given.map_err(|error| Failure::usage(format!("--repository: {error}")))?;
    match (recorded(data)?, given) {
        (Some(there), Some(given)) if there != given => Err(Failure::usage(format!(
            "the catalog in {} is that of the repository {}, not of {}",
            data.display(),
            told(&there),
            told(&given)
        ))
        .next("leave --repository out, or name another directory with --data")),
        (Some(there), _) => Ok(there),
        (None, Some(given)) => Ok(given),
        (None, None) => Ok(directory(data)),
    }
}

fn failed(error: &Error) -> Failure {
    let next = match error {
        Error::Missing { .. } | Error::Damaged { .. } => {
            "put that object back from a copy of the repository: nothing was changed"
        }
        Error::WrongKey { .. } => "put the backup of its key file back",
        other => other.advice(),
    };
    Failure::local(format!("the repository can't be opened: {error}")).next(next)
}

/// Opens the repository of a data directory, or makes it at the first start.
pub(super) async fn open(
    data: &Path,
    given: Option<&str>,
    limits: StoreLimits,
    seams: &Seams,
) -> Result<(Repository, Location), Failure> {
    let location = place(data, given)?;
    let key = data.join("repository.key");
    check_key(&location, &key, seams).await?;
    if matches!(location, Location::S3 { .. }) && !data.join(PLACE).exists() {
        let text = serde_json::to_string(&location).map_err(|error| Failure::local(error.to_string()))?;
        let path = data.join(PLACE);
        write_secret(&path, &text)
            .map_err(|error| Failure::local(format!("{} can't be written: {error}", path.display())))?;
    }
    let mut stores = StoreAccess::default();
    stores.limits = limits;
    let repository = open_with(&location, &key, stores, seams).await?;
    if matches!(location, Location::Directory { .. }) {
        // The data directory is locked: whoever wrote there before is dead. Of a bucket nobody knows; collections tidy.
        repository.discard_unfinished().await.map_err(|error| failed(&error))?;
    }
    Ok((repository, location))
}

/// A repository whose key file is gone must not be taken for one that isn't there yet.
pub(super) async fn check_key(location: &Location, key: &Path, seams: &Seams) -> Result<(), Failure> {
    if key.exists() {
        return Ok(());
    }
    let holds = match location {
        Location::Directory { path } => !is_empty(Path::new(path)),
        // Any key tells a repository from none.
        Location::S3 { .. } => {
            let any = Keyring::generate(seams);
            match Repository::open(location, &StoreAccess::default(), &any, seams).await {
                Err(Error::NoRepository { .. }) => false,
                Ok(_) | Err(Error::WrongKey { .. }) => true,
                Err(error) => return Err(failed(&error)),
            }
        }
    };
    if holds {
        return Err(Failure::local(format!("the repository's key file {} is missing", key.display()))
            .next("put its backup back: without it nobody can read the images"));
    }
    Ok(())
}

/// Opens what somebody else makes, once it is whole; says that the place is occupied where nothing comes of it.
async fn made_by_another(
    location: &Location,
    stores: &StoreAccess,
    keyring: &Keyring,
    seams: &Seams,
    place: String,
) -> Result<Repository, Error> {
    for _ in 0..OTHERS {
        seams.clock.sleep(OTHER).await;
        match Repository::open(location, stores, keyring, seams).await {
            Err(Error::NoRepository { .. }) => {}
            opened => return opened,
        }
    }
    Err(Error::Occupied { place })
}

/// Opens a repository with the keys in this file; makes both where there are none.
pub(super) async fn open_with(
    location: &Location,
    key: &Path,
    stores: StoreAccess,
    seams: &Seams,
) -> Result<Repository, Failure> {
    let (text, _) = secret_file(key, || Ok(Keyring::generate(seams).to_text().to_string()))?;
    let failed = |error: Error| failed(&error);
    let keyring = Keyring::parse(&text).map_err(failed)?;
    let repository = match Repository::open(location, &stores, &keyring, seams).await {
        // A kill may have come in the midst of the first start: what it began is taken to its end.
        Err(Error::NoRepository { .. }) => match Repository::create(location, &stores, &keyring, seams).await {
            // Another coordinator may be making it at this very moment, with the same keys.
            Err(Error::Occupied { place }) => made_by_another(location, &stores, &keyring, seams, place).await,
            made => made,
        },
        other => other,
    };
    let repository = repository.map_err(failed)?;
    // A kill may have come between the key file and the repository: what the file holds opens everything.
    match repository.key_add(&keyring).await {
        // Images of a team whose keys are broken can't be read; all others can, and `verify` tells.
        Err(error) if error.is_breakage() => {
            output::remark(format!("{error}"));
            tracing::error!(%error, "keys in the repository are broken");
        }
        other => other.map_err(failed)?,
    }
    Ok(repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalog_stays_with_its_repository() {
        let data = tempfile::tempdir().unwrap();
        let of = |given| place(data.path(), given);
        assert_eq!(of(None).unwrap(), directory(data.path()));
        let bucket = of(Some("s3://copies/a?endpoint=http://127.0.0.1:7070&region=r")).unwrap();
        assert_eq!(told(&bucket), "s3://copies/a at http://127.0.0.1:7070");
        std::fs::write(data.path().join(PLACE), serde_json::to_string(&bucket).unwrap()).unwrap();
        assert_eq!(of(None).unwrap(), bucket);
        let refused = of(Some("s3://others?region=r")).unwrap_err();
        assert!(refused.what.contains("s3://copies/a"), "{}", refused.what);
        assert!(of(Some("ftp://copies")).is_err());
    }

    #[test]
    fn a_directory_that_holds_a_repository_is_not_left_for_a_bucket() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("repository")).unwrap();
        std::fs::write(data.path().join("repository/ocopea-repository"), "x").unwrap();
        assert!(place(data.path(), Some("s3://copies")).is_err());
        assert_eq!(place(data.path(), None).unwrap(), directory(data.path()));
    }
}
