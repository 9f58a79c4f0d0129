//! What the service talks about, whatever holds it. Everything from outside is parsed into these.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::world::{Millis, rfc3339};

/// Longest message, in characters.
pub const MAX_BODY: usize = 4_000;
/// Largest upload, in bytes.
pub const MAX_UPLOAD: usize = 2 * 1024 * 1024;
/// Most messages on a page.
pub const MAX_PAGE: usize = 200;
/// Most rooms that a list shows.
pub const MAX_ROOMS: i64 = 500;

/// Text that doesn't fit its type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} {reason}")]
pub struct Invalid {
    /// The field's name in the API.
    pub field: &'static str,
    /// What is wrong and what would do.
    pub reason: String,
}

fn invalid(field: &'static str, reason: impl Into<String>) -> Invalid {
    Invalid { field, reason: reason.into() }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Text that comes out of the database, where it was put by this type.
            pub(crate) fn stored(text: impl Into<String>) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type! {
    /// A user's name: 2 to 32 of `a-z 0-9 . _ -`, beginning with a letter or digit.
    Handle
}
text_type! {
    /// A room's name in addresses: 1 to 48 of `a-z 0-9 -`.
    Slug
}
text_type! {
    /// What somebody said: 1 to [`MAX_BODY`] characters, no control characters but line feed and tab.
    Body
}
text_type! {
    /// What people read: 1 to 80 characters on one line.
    Title
}
text_type! {
    /// One emoji, as a reaction.
    Emoji
}

impl Handle {
    /// Capitals become small letters.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let name = text.trim().to_ascii_lowercase();
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if (2..=32).contains(&name.len()) && starts && name.bytes().all(good) {
            Ok(Self(name))
        } else {
            Err(invalid(
                "name",
                "takes 2 to 32 of a-z, 0-9, dot, underscore, hyphen, and begins with a letter or digit",
            ))
        }
    }
}

impl Slug {
    /// See the type.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=48).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid("room", "takes 1 to 48 of a-z, 0-9, hyphen, and doesn't begin with a hyphen"))
        }
    }
}

impl Body {
    /// Space around the text goes away.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let length = text.chars().count();
        if length == 0 {
            return Err(invalid("body", "is empty"));
        }
        if length > MAX_BODY {
            return Err(invalid("body", format!("has {length} characters, {MAX_BODY} are the most")));
        }
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(invalid("body", "holds control characters"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The beginning, for a quote.
    pub fn excerpt(&self) -> String {
        let mut text: String = self.0.chars().take(80).map(|c| if c == '\n' { ' ' } else { c }).collect();
        if self.0.chars().count() > 80 {
            text.push('…');
        }
        text
    }
}

impl Title {
    /// `field` is the name in the API.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if (1..=80).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(field, "takes 1 to 80 characters on one line"))
        }
    }
}

impl Emoji {
    /// The reactions that the page offers.
    pub const ALL: [&'static str; 8] = ["👍", "❤️", "😂", "🎉", "👀", "🚀", "🙏", "✅"];

    /// One of [`Self::ALL`].
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if Self::ALL.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid("emoji", format!("is none of {}", Self::ALL.join(" "))))
        }
    }
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its number in the database.
    pub id: i64,
    /// See [`Handle`].
    pub handle: Handle,
    /// The name that others read.
    pub display: Title,
}

/// An account to be made.
#[derive(Debug, Clone)]
pub struct NewAccount {
    /// See [`Handle`].
    pub handle: Handle,
    /// The name that others read.
    pub display: Title,
    /// A PHC string.
    pub password_hash: String,
    /// When.
    pub at: Millis,
}

/// Who may read a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoomKind {
    /// Everybody, signed in or not.
    Public,
    /// Its members.
    Private,
}

impl RoomKind {
    /// As it stands in databases.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }

    /// The reverse; anything unknown is treated as private.
    pub fn stored(text: &str) -> Self {
        if text == "public" { Self::Public } else { Self::Private }
    }
}

/// A room.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Room {
    /// Its number in PostgreSQL; MongoDB knows rooms by their slug.
    #[serde(skip)]
    pub id: i64,
    /// See [`Slug`].
    pub slug: Slug,
    /// What people read.
    pub title: Title,
    /// What it is about; may be empty.
    pub topic: String,
    /// See [`RoomKind`].
    pub kind: RoomKind,
    /// How many messages it says it has.
    pub messages: i64,
    /// When the last one came; 0: never.
    pub last_at: Millis,
}

/// A room to be made.
#[derive(Debug, Clone)]
pub struct NewRoom {
    /// See [`Slug`].
    pub slug: Slug,
    /// What people read.
    pub title: Title,
    /// At most 200 characters.
    pub topic: String,
    /// See [`RoomKind`].
    pub kind: RoomKind,
    /// When.
    pub at: Millis,
}

/// What a message answers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quote {
    /// That message's number.
    pub n: i64,
    /// Who said it.
    pub author: Handle,
    /// How it begins.
    pub excerpt: String,
}

/// A file that came with a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upload {
    /// Its id.
    pub id: Uuid,
    /// The file's name.
    pub name: Title,
    /// Media type.
    pub content_type: String,
    /// Bytes.
    pub length: i64,
    /// BLAKE3 over the bytes.
    #[serde(skip)]
    pub checksum: [u8; 32],
}

/// How often an emoji was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reaction {
    /// Which.
    pub emoji: Emoji,
    /// How often.
    pub count: i64,
}

/// A message, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its number among all messages: later ones have greater numbers.
    pub n: i64,
    /// Its number in its room (schema 2).
    pub seq: Option<i64>,
    /// Who said it; `None`: the account is gone.
    pub author: Option<Account>,
    /// The sender's time.
    pub at: Millis,
    /// What.
    pub body: Body,
    /// To what.
    pub reply: Option<Quote>,
    /// With what.
    pub upload: Option<Upload>,
    /// Reactions (schema 2).
    pub reactions: Vec<Reaction>,
}

impl Message {
    /// As the API gives it.
    pub fn to_json(&self) -> serde_json::Value {
        let author = match &self.author {
            Some(account) => serde_json::json!({ "name": account.handle, "display": account.display }),
            None => serde_json::Value::Null,
        };
        serde_json::json!({
            "n": self.n, "seq": self.seq, "author": author, "at": rfc3339(self.at), "body": self.body,
            "reply": self.reply, "upload": self.upload, "reactions": self.reactions,
        })
    }
}

/// A message to be posted.
#[derive(Debug, Clone)]
pub struct NewMessage {
    /// The sender's time.
    pub at: Millis,
    /// What.
    pub body: Body,
    /// The number of the message that it answers to.
    pub reply_to: Option<i64>,
    /// The upload that it brings.
    pub upload: Option<Uuid>,
}

/// Some messages of a room, oldest first.
#[derive(Debug, Clone)]
pub struct MessagePage {
    /// In the order in which they are to be read.
    pub messages: Vec<Message>,
    /// Where the page before this one ends; `None`: there is none.
    pub older: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_bodies_and_titles_are_bounded_and_say_what_would_do() {
        assert_eq!(Handle::parse(" Dana.K ").unwrap().as_str(), "dana.k");
        for bad in ["", "a", ".dot", "with space", "ünal", "x\0y", "a\r\nb", &"n".repeat(33), "../etc"] {
            assert_eq!(Handle::parse(bad).unwrap_err().field, "name", "{bad:?}");
        }
        for bad in ["", "-x", "A", "a/b", "..", "a%2f", &"r".repeat(49)] {
            assert!(Slug::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Body::parse(&"ä".repeat(MAX_BODY)).is_ok());
        assert!(Body::parse(&"ä".repeat(MAX_BODY + 1)).unwrap_err().reason.contains("4001"));
        assert!(Body::parse(" \n ").is_err() && Body::parse("bell\u{7}").is_err());
        assert!(Title::parse("title", "two\nlines").is_err());
        assert!(Emoji::parse("<b>").is_err() && Emoji::parse("🚀").is_ok());
    }
}
