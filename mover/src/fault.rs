//! What went wrong, with the file that it went wrong with; travels as a frame.

use rustix::io::Errno;

/// What kind of fault, as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// A file, its attributes or a directory can't be read.
    Unreadable = 1,
    /// Something can't be written as it was.
    Unwritable = 2,
    /// The filesystem is full, or a quota is used up.
    Full = 3,
    /// The directory to write to holds something already.
    NotEmpty = 4,
    /// What was sent may not be written: a way out of the root, a name twice, a length that isn't true …
    Refused = 5,
    /// The other side doesn't keep to the protocol, or bytes were changed on their way.
    Protocol = 6,
    /// The stream ended before its end.
    Cut = 7,
    /// More than is supported.
    Limit = 8,
    /// Somebody else works on the same volume.
    Busy = 9,
    /// The tree was rebuilt under the reader's feet.
    Moved = 10,
}

impl Class {
    /// From the wire.
    pub fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Class; 10] = [
            Class::Unreadable,
            Class::Unwritable,
            Class::Full,
            Class::NotEmpty,
            Class::Refused,
            Class::Protocol,
            Class::Cut,
            Class::Limit,
            Class::Busy,
            Class::Moved,
        ];
        ALL.into_iter().find(|class| *class as u8 == byte)
    }
}

/// A fault; its text names the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", text(path, message))]
pub struct Fault {
    /// Its kind.
    pub class: Class,
    /// The file, from the root; empty for the root itself and for what concerns no file.
    pub path: Vec<u8>,
    /// Why.
    pub message: String,
}

/// Bytes of a path that are shown.
const LONGEST_SHOWN: usize = 400;

/// A path for people: whatever its bytes, it stays one line that harms no terminal.
pub fn show(path: &[u8]) -> String {
    let cut = path.len().saturating_sub(LONGEST_SHOWN);
    let text = match std::str::from_utf8(path) {
        Ok(text) if cut == 0 && !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.get(cut..).unwrap_or_default().escape_ascii().to_string(),
    };
    if cut > 0 { format!("…{text}") } else { text }
}

fn text(path: &[u8], message: &str) -> String {
    if path.is_empty() { message.to_owned() } else { format!("\"{}\": {message}", show(path)) }
}

impl Fault {
    /// A fault about one file.
    pub fn of(class: Class, path: &[u8], message: impl Into<String>) -> Self {
        Self { class, path: path.to_vec(), message: message.into() }
    }

    /// A fault about no file.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self::of(class, &[], message)
    }

    pub(crate) fn reading(path: &[u8], what: &str, error: Errno) -> Self {
        Self::of(Class::Unreadable, path, format!("{what}: {}", reason(error)))
    }

    pub(crate) fn writing(path: &[u8], what: &str, error: Errno) -> Self {
        let class = if matches!(error, Errno::NOSPC | Errno::DQUOT) { Class::Full } else { Class::Unwritable };
        Self::of(class, path, format!("{what}: {}", reason(error)))
    }

    pub(crate) fn refused(path: &[u8], message: impl Into<String>) -> Self {
        Self::of(Class::Refused, path, message)
    }
}

/// The system's reason, in small letters like everything else.
fn reason(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_bytes_are_shown_on_one_harmless_line() {
        assert_eq!(show("ünï/b".as_bytes()), "ünï/b");
        assert_eq!(show(b"a\nb\x1b[2J"), "a\\nb\\x1b[2J");
        assert_eq!(show(b"\xff\xfe"), "\\xff\\xfe");
        assert!(show(&[b'x'; 100_000]).len() < 500);
    }

    #[test]
    fn classes_come_back_from_the_wire() {
        for byte in 0..=255 {
            if let Some(class) = Class::from_byte(byte) {
                assert_eq!(class as u8, byte);
            }
        }
        assert_eq!(Class::from_byte(1), Some(Class::Unreadable));
        assert_eq!((Class::from_byte(0), Class::from_byte(11)), (None, None));
    }
}
