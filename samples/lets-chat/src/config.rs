//! What the environment says.

use std::path::PathBuf;

use anyhow::bail;

use crate::version::Version;

/// Where the data lies.
#[derive(Clone)]
pub enum Database {
    /// Everything in one MongoDB.
    Mongo {
        /// `mongodb://…/DATABASE`; holds a password, so it is never printed.
        uri: String,
    },
    /// Accounts, rooms and messages in PostgreSQL, uploads in a directory.
    Postgres {
        /// `postgres://…/DATABASE`; holds a password, so it is never printed.
        url: String,
        /// The uploads' directory.
        uploads: PathBuf,
    },
}

impl Database {
    /// The shape's name.
    pub fn shape(&self) -> &'static str {
        match self {
            Self::Mongo { .. } => "mongodb",
            Self::Postgres { .. } => "postgres",
        }
    }

    /// `MONGODB_URI`, or `DATABASE_URL` and `UPLOADS_DIR`.
    pub fn from_values(mongo: Option<String>, url: Option<String>, uploads: Option<PathBuf>) -> anyhow::Result<Self> {
        let filled = |value: Option<String>| value.filter(|text| !text.trim().is_empty());
        match (filled(mongo), filled(url)) {
            (Some(uri), None) => Ok(Self::Mongo { uri }),
            (None, Some(url)) => {
                Ok(Self::Postgres { url, uploads: uploads.unwrap_or_else(|| PathBuf::from("/uploads")) })
            }
            (Some(_), Some(_)) => bail!("MONGODB_URI and DATABASE_URL are both set: set the one of the wanted shape"),
            (None, None) => {
                bail!(
                    "no database: set MONGODB_URI=mongodb://HOST/NAME, or DATABASE_URL=postgres://HOST/NAME and UPLOADS_DIR"
                )
            }
        }
    }
}

/// All that a command needs to know.
#[derive(Clone)]
pub struct Config {
    /// See [`Version`].
    pub version: Version,
    /// See [`Database`].
    pub database: Database,
    /// What the page calls this installation.
    pub title: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_database_makes_a_shape() {
        let text = |value: &str| Some(value.to_owned());
        assert_eq!(Database::from_values(text("mongodb://h/d"), None, None).unwrap().shape(), "mongodb");
        assert_eq!(Database::from_values(text(""), text("postgres://h/d"), None).unwrap().shape(), "postgres");
        assert!(Database::from_values(text("a"), text("b"), None).is_err());
        let nothing = Database::from_values(None, None, None).err().unwrap().to_string();
        assert!(nothing.contains("MONGODB_URI") && nothing.contains("DATABASE_URL"));
    }
}
