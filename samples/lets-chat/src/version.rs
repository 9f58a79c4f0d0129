//! Which Lets-chat this is. One binary is in all images; the image's `/etc/lets-chat-version` says how it behaves.

use std::{fmt, path::Path, str::FromStr};

use anyhow::{Context as _, bail};

/// Where an image says what it is.
pub const VERSION_FILE: &str = "/etc/lets-chat-version";

/// Without an image (on a developer's machine) the environment may say it.
pub const VERSION_ENV: &str = "LETS_CHAT_VERSION";

/// The released versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Orders messages by their time alone: wrong when a clock stepped back, or when a millisecond holds several.
    V1_4_1,
    /// Orders messages by the number that the database gave them.
    V1_4_2,
    /// Numbers messages within their room and knows reactions: schema 2, made by `lets-chat migrate`.
    V1_5_0,
}

/// How the messages of a room are ordered and paged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By the sender's time only.
    Time,
    /// By the message's number.
    Number,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 3] = [Self::V1_4_1, Self::V1_4_2, Self::V1_5_0];

    /// The one schema that this version reads and writes.
    pub fn schema(self) -> u32 {
        match self {
            Self::V1_4_1 | Self::V1_4_2 => 1,
            Self::V1_5_0 => 2,
        }
    }

    /// See [`Order`].
    pub fn order(self) -> Order {
        match self {
            Self::V1_4_1 => Order::Time,
            Self::V1_4_2 | Self::V1_5_0 => Order::Number,
        }
    }

    /// Whether messages can be reacted to.
    pub fn reactions(self) -> bool {
        self.schema() >= 2
    }

    /// The version that the image, else the environment, else nobody names (then 1.4.2).
    pub fn of_this_machine(file: &Path) -> anyhow::Result<Self> {
        match std::fs::read_to_string(file) {
            Ok(text) => text.parse().with_context(|| format!("{} names no version", file.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match std::env::var(VERSION_ENV) {
                Ok(text) => text.parse().with_context(|| format!("{VERSION_ENV} names no version")),
                Err(_) => Ok(Self::V1_4_2),
            },
            Err(error) => Err(error).with_context(|| format!("{} can't be read", file.display())),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_4_1 => "1.4.1",
            Self::V1_4_2 => "1.4.2",
            Self::V1_5_0 => "1.5.0",
        })
    }
}

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let text = text.trim();
        let Some(version) = Self::ALL.into_iter().find(|version| version.to_string() == text) else {
            bail!("{text:?} is no version of Lets-chat; there are 1.4.1, 1.4.2 and 1.5.0")
        };
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_file_says_the_version_and_a_wrong_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("version");
        for version in Version::ALL {
            std::fs::write(&file, format!("{version}\n")).unwrap();
            assert_eq!(Version::of_this_machine(&file).unwrap(), version);
        }
        std::fs::write(&file, "1.4").unwrap();
        assert!(format!("{:#}", Version::of_this_machine(&file).unwrap_err()).contains("1.4.2 and 1.5.0"));
    }
}
