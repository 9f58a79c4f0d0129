//! Names that come from outside, parsed once at the edge.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A name was refused.
#[derive(Debug, thiserror::Error)]
#[error("invalid {what} {text:?}: {why}")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    why: &'static str,
}

/// Why `text` is not a DNS label (RFC 1123), if it isn't.
fn label_fault(text: &str, longest: usize) -> Option<&'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > longest {
        Some("it is too long (63 characters at most)")
    } else if !text.bytes().all(inner) {
        Some("only a-z, 0-9 and '-' are allowed")
    } else if text.starts_with('-') || text.ends_with('-') {
        Some("it must not start or end with '-'")
    } else {
        None
    }
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                match label_fault(text, 63) {
                    Some(why) => Err(InvalidName { what: $what, text: text.chars().take(80).collect(), why }),
                    None => Ok(Self(text.to_owned())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

labels! {
    /// A site's name.
    SiteName = "site name";
    /// The name of a copy repository.
    RepositoryName = "repository name";
    /// A Kubernetes namespace.
    Namespace = "namespace";
    /// An environment's name; also the namespace that it lives in.
    EnvironmentName = "environment name";
    /// A component's name: unique within one image.
    ComponentName = "component name";
}

impl From<EnvironmentName> for Namespace {
    fn from(name: EnvironmentName) -> Self {
        Self(name.0)
    }
}

impl ComponentName {
    /// The nearest valid name to `text`: lower-cased, other characters replaced by '-', cut to 63.
    pub fn from_lossy(text: &str) -> Self {
        let mut out = String::new();
        for c in text.chars().take(63) {
            let c = c.to_ascii_lowercase();
            out.push(if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' });
        }
        let trimmed = out.trim_matches('-');
        Self(if trimmed.is_empty() { "component".to_owned() } else { trimmed.to_owned() })
    }
}

/// Characters that turn the direction of all that follows: in a list, they make one text look like another. Letters of
/// right-to-left scripts need none of them.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text that people read: a name, a comment. No control characters but line breaks and tabs, limited length.
pub fn check_text(what: &'static str, text: &str, longest: usize, lines: bool) -> Result<(), InvalidName> {
    let fault = if text.len() > longest {
        Some("it is too long")
    } else if text.chars().any(|c| c.is_control() && !(lines && matches!(c, '\n' | '\t' | '\r'))) {
        Some("it holds control characters")
    } else if text.chars().any(turns) {
        Some("it holds characters that turn the direction of the text")
    } else {
        None
    };
    match fault {
        Some(why) => Err(InvalidName { what, text: text.chars().take(80).collect(), why }),
        None => Ok(()),
    }
}

/// A `sha256:` digest as OCI writes it: text in JSON, 32 bytes in an envelope.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

impl Digest {
    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let fault = |why| InvalidName { what: "digest", text: text.chars().take(80).collect(), why };
        let digits = text.strip_prefix("sha256:").ok_or_else(|| fault("it doesn't start with sha256:"))?;
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fault("64 lower-case hexadecimal digits are expected"));
        }
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| fault("64 lower-case hexadecimal digits are expected"))?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused_and_said_why() {
        for text in ["", "../etc", "a\0b", "a\r\nb", "\"a\"", "A", "-a", "a-", "a/b", &"x".repeat(10_000)] {
            let refused = text.parse::<EnvironmentName>();
            assert!(refused.is_err_and(|e| e.to_string().len() < 300), "{text:.20?}");
        }
        assert!("debug-4711".parse::<EnvironmentName>().is_ok());
        assert!(check_text("comment", "first\nsecond", 100, true).is_ok());
        assert!(check_text("name", "first\nsecond", 100, false).is_err());
        assert!(check_text("name", "עברית 🙂 العربية", 100, false).is_ok());
        assert!(check_text("name", "evil\u{202e}gpj.exe", 100, false).is_err());
    }

    #[test]
    fn a_digest_survives_printing() {
        let text = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(text.parse::<Digest>().map(|d| d.to_string()).ok(), Some(text.clone()));
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!("sha256:00".parse::<Digest>().is_err());
    }
}
