//! Why a task failed, and what that means for trying again.

use serde::{Deserialize, Serialize};

/// What the coordinator does about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureClass {
    /// May go better next time: tried again with back-off while attempts last.
    Retryable,
    /// Will not go better by trying again.
    Permanent,
    /// The application or the target is not as the plan says: the operation ends, nothing was harmed.
    Conflict,
    /// The user asked to stop.
    Cancelled,
}

/// A failure as people read it: what, why, what now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct TaskFailure {
    /// Whether trying again makes sense.
    pub class: FailureClass,
    /// A stable word for programs: `data.authentication`, `repository.full`, `site.unreachable` …
    pub code: String,
    /// What could not be done, naming the thing: `can't save "messages"`.
    pub what: String,
    /// Why, naming the peer, never a credential.
    pub cause: String,
    /// What the user may do next; empty where there is nothing to advise.
    pub next: String,
}

/// How long one text of a failure may be; longer ones are cut.
const LONGEST: usize = 4000;

impl TaskFailure {
    fn new(class: FailureClass, code: &str, what: impl Into<String>, cause: impl ToString) -> Self {
        let cut = |text: String| if text.len() > LONGEST { text.chars().take(LONGEST).collect() } else { text };
        Self {
            class,
            code: code.to_owned(),
            what: cut(what.into()),
            cause: cut(cause.to_string()),
            next: String::new(),
        }
    }

    /// May go better next time.
    pub fn retryable(code: &str, what: impl Into<String>, cause: impl ToString) -> Self {
        Self::new(FailureClass::Retryable, code, what, cause)
    }

    /// Will not go better.
    pub fn permanent(code: &str, what: impl Into<String>, cause: impl ToString) -> Self {
        Self::new(FailureClass::Permanent, code, what, cause)
    }

    /// Something is not as the plan assumed.
    pub fn conflict(code: &str, what: impl Into<String>, cause: impl ToString) -> Self {
        Self::new(FailureClass::Conflict, code, what, cause)
    }

    /// The user's wish.
    pub fn cancelled(what: impl Into<String>) -> Self {
        Self::new(FailureClass::Cancelled, "cancelled", what, "the operation was cancelled")
    }

    /// Adds what the user may do.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// Whether another attempt makes sense.
    pub fn is_retryable(&self) -> bool {
        self.class == FailureClass::Retryable
    }
}
