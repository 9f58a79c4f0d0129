//! What an S3 service or the way to it did wrong, read once, where the answer arrives.
//!
//! `object_store` tells most of it in text. So the transport turns every answer that isn't a success into a [`Fault`]
//! before it gets there, and [`Fault::of`] takes it out of the error's sources again.

use std::error::Error as StdError;

use crate::error::{Error, Trouble};

/// Longest message of a service that is passed on.
const LONGEST_MESSAGE: usize = 300;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// There is no such object.
    #[error("there is no such object")]
    Missing,
    /// A condition didn't hold: the object exists.
    #[error("it exists")]
    Exists,
    /// Another one writes it at this moment.
    #[error("another process writes it at this moment")]
    Conflict,
    /// The object ends before the range begins.
    #[error("the object ends before that")]
    Range,
    /// There is no room.
    #[error("{0}")]
    Full(String),
    /// There is no such upload in parts.
    #[error("there is no such upload")]
    NoUpload,
    /// The service doesn't know what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// A checksum doesn't fit.
    #[error("{0}")]
    Checksum(String),
    /// All else.
    #[error("{1}")]
    Trouble(Trouble, String),
}

/// What of an answer tells the reason.
pub(crate) struct Refusal<'a> {
    pub(crate) status: u16,
    /// The `Code` of its body; empty where there is none.
    pub(crate) code: &'a str,
    pub(crate) message: &'a str,
    /// The bucket's own region, where the service names it.
    pub(crate) region: Option<&'a str>,
}

impl Fault {
    pub(crate) fn unreachable(why: impl Into<String>) -> Self {
        Self::Trouble(Trouble::Unreachable, why.into())
    }

    pub(crate) fn answer(why: impl Into<String>) -> Self {
        Self::Trouble(Trouble::Answer, why.into())
    }

    /// From what a service answered.
    pub(crate) fn refused(refusal: &Refusal<'_>) -> Self {
        let Refusal { status, code, message, region } = *refusal;
        let message: String = message.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect();
        let said = match (code, message.is_empty()) {
            ("", true) => format!("it answered {status}"),
            ("", false) => format!("it answered {status}: {message}"),
            (code, true) => format!("{code:.80}"),
            (code, false) => format!("{code:.80}: {message}"),
        };
        let trouble = match (code, status) {
            ("NoSuchKey", _) => return Self::Missing,
            ("NoSuchUpload", _) => return Self::NoUpload,
            ("PreconditionFailed", _) => return Self::Exists,
            ("ConditionalRequestConflict" | "OperationAborted", _) => return Self::Conflict,
            ("InvalidRange", _) => return Self::Range,
            ("NotImplemented" | "MethodNotAllowed", _) => return Self::Unsupported(said),
            ("BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch", _) => {
                return Self::Checksum(said);
            }
            ("QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "StorageFull", _) | (_, 507) => {
                return Self::Full(said);
            }
            ("NoSuchBucket", _) => Trouble::NoBucket,
            ("ExpiredToken" | "TokenRefreshRequired" | "RequestExpired", _) => Trouble::Expired,
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "InvalidSecurity"
                | "InvalidClientTokenId",
                _,
            ) => Trouble::Keys,
            ("AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState", _) => Trouble::Rights,
            ("RequestTimeTooSkewed", _) => Trouble::Clock,
            (
                "PermanentRedirect"
                | "TemporaryRedirect"
                | "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException",
                _,
            ) => Trouble::Region,
            (
                "SlowDown" | "ServiceUnavailable" | "InternalError" | "RequestTimeout" | "Throttling"
                | "TooManyRequests",
                _,
            ) => Trouble::Busy,
            (_, 404) if code.is_empty() => return Self::Missing,
            (_, 409) if code.is_empty() => return Self::Conflict,
            (_, 412) => return Self::Exists,
            (_, 416) => return Self::Range,
            (_, 501) => return Self::Unsupported(said),
            (_, 401 | 403) => Trouble::Rights,
            (_, 301 | 302 | 307 | 308) if region.is_some() => Trouble::Region,
            (_, 408 | 429 | 500..=599) => Trouble::Busy,
            _ => Trouble::Answer,
        };
        match (trouble, region) {
            (Trouble::Region, Some(region)) => {
                Self::Trouble(trouble, format!("the bucket is in region {region:.64} ({said})"))
            }
            _ => Self::Trouble(trouble, said),
        }
    }

    /// The fault within an error of the library.
    pub(crate) fn of(error: &object_store::Error) -> Self {
        let mut next: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<Self>() {
                return fault.clone();
            }
            next = error.source();
        }
        // What arrived as a success and can't be read as one.
        Self::answer(format!("its answer can't be understood: {error:.300}"))
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Conflict => true,
            Self::Trouble(trouble, _) => {
                matches!(trouble, Trouble::Unreachable | Trouble::Busy | Trouble::Answer | Trouble::Expired)
            }
            // A bit may have flipped on the way.
            Self::Checksum(_) => true,
            _ => false,
        }
    }

    /// Whether newer keys would help, if there are any.
    pub(crate) fn is_about_keys(&self) -> bool {
        matches!(self, Self::Trouble(Trouble::Expired | Trouble::Keys, _))
    }

    /// As the repository tells it.
    pub(crate) fn into_error(self, action: &'static str, object: &str, place: &str, tries: u32) -> Error {
        let object = object.to_owned();
        let (trouble, reason) = match self {
            Self::Missing | Self::NoUpload => return Error::Missing { object },
            Self::Full(_) => return Error::Full { object },
            Self::Trouble(trouble, reason) => (trouble, reason),
            Self::Conflict => (Trouble::Contended, self.to_string()),
            other => (Trouble::Answer, other.to_string()),
        };
        Error::Remote { action, object, place: place.to_owned(), trouble, reason, tries }
    }
}

/// The first text between `<tag>` and `</tag>`. Enough for error documents, whose order and namespaces differ.
pub(crate) fn text_of<'a>(document: &'a str, tag: &str) -> &'a str {
    let rest = document.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    rest.split_once(&format!("</{tag}>")).map_or("", |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str) -> Fault {
        Fault::refused(&Refusal { status, code, message: "why", region: None })
    }

    #[test]
    fn a_bucket_that_is_gone_is_no_missing_object() {
        assert_eq!(refused(404, "NoSuchKey"), Fault::Missing);
        assert_eq!(refused(404, ""), Fault::Missing);
        assert!(matches!(refused(404, "NoSuchBucket"), Fault::Trouble(Trouble::NoBucket, _)));
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, code) in [(503, "SlowDown"), (500, "InternalError"), (500, ""), (429, ""), (400, "ExpiredToken")] {
            assert!(refused(status, code).may_pass(), "{code}");
        }
        for (status, code) in [(403, "AccessDenied"), (403, "InvalidAccessKeyId"), (404, "NoSuchBucket"), (412, "")] {
            assert!(!refused(status, code).may_pass(), "{code}");
        }
    }

    #[test]
    fn a_services_message_is_shown_in_bounds_and_on_one_line() {
        let message = "x\n\u{1b}[31m".repeat(1000);
        let fault = Fault::refused(&Refusal { status: 403, code: "AccessDenied", message: &message, region: None });
        let text = fault.to_string();
        assert!(text.len() < 400 && text.bytes().all(|b| !b.is_ascii_control()), "{text}");
    }

    #[test]
    fn texts_of_documents_are_found_or_empty() {
        assert_eq!(text_of("<Error><Code>NoSuchKey</Code></Error>", "Code"), "NoSuchKey");
        assert_eq!(text_of("<Error><Code>NoSuch", "Code"), "");
        assert_eq!(text_of("", "Code"), "");
    }
}
