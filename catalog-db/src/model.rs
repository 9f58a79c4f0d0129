//! States and how they change. Pure.

use serde::{Deserialize, Serialize};

/// The state it was in doesn't allow this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {state}: it can't become {wanted}")]
pub struct InvalidTransition {
    what: &'static str,
    state: String,
    wanted: &'static str,
}

macro_rules! states {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$vdoc])* $variant),* }

        impl $name {
            /// The stable word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// Reads the stable word.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }

            /// This state, if `from` may be followed by it.
            pub fn after(self, from: Self) -> Result<Self, InvalidTransition> {
                if from.may_become(self) {
                    Ok(self)
                } else {
                    Err(InvalidTransition { what: $what, state: from.as_str().to_owned(), wanted: self.as_str() })
                }
            }
        }
    };
}

states! {
    /// How a site stands with its installation.
    Standing, "site" {
        /// Enrolled by its own word: somebody has to say that it may be one.
        Pending = "pending",
        /// One of ours.
        Active = "active",
        /// Was one of ours.
        Removed = "removed",
    }
}

impl Standing {
    fn may_become(self, next: Self) -> bool {
        matches!((self, next), (Self::Pending, Self::Active | Self::Removed) | (Self::Active, Self::Removed))
    }
}

states! {
    /// An operation: exactly one terminal state, which nothing leaves.
    OperationState, "operation" {
        /// Its tasks are being done.
        Running = "running",
        /// It failed or was cancelled: what it made is being removed.
        Undoing = "undoing",
        /// Done.
        Succeeded = "succeeded",
        /// Not done; nothing of it is left.
        Failed = "failed",
        /// Stopped by a user; nothing of it is left.
        Cancelled = "cancelled",
    }
}

states! {
    /// A task.
    TaskState, "task" {
        /// Others must succeed first.
        Waiting = "waiting",
        /// Anybody may claim it.
        Ready = "ready",
        /// Somebody works on it under a lease.
        Claimed = "claimed",
        /// Done.
        Succeeded = "succeeded",
        /// Not done, and not tried again.
        Failed = "failed",
        /// No longer wanted.
        Cancelled = "cancelled",
    }
}

states! {
    /// An environment.
    EnvironmentState, "environment" {
        /// Being made.
        Creating = "creating",
        /// Runs.
        Running = "running",
        /// Being removed.
        Removing = "removing",
        /// Gone.
        Removed = "removed",
        /// Could not be made; nothing of it is left.
        Failed = "failed",
        /// Could not be made, and not all of it could be taken back; or its removal ended on the way. It can be removed.
        Incomplete = "incomplete",
    }
}

impl OperationState {
    /// Whether nothing more happens.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn may_become(self, next: Self) -> bool {
        match self {
            Self::Running => next != Self::Running,
            Self::Undoing => matches!(next, Self::Failed | Self::Cancelled),
            Self::Succeeded | Self::Failed | Self::Cancelled => false,
        }
    }
}

impl TaskState {
    /// Whether nothing more happens.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    fn may_become(self, next: Self) -> bool {
        match self {
            Self::Waiting => matches!(next, Self::Ready | Self::Cancelled),
            Self::Ready => matches!(next, Self::Claimed | Self::Cancelled),
            Self::Claimed => matches!(next, Self::Ready | Self::Succeeded | Self::Failed | Self::Cancelled),
            Self::Succeeded | Self::Failed | Self::Cancelled => false,
        }
    }
}

impl EnvironmentState {
    fn may_become(self, next: Self) -> bool {
        match self {
            Self::Creating => matches!(next, Self::Running | Self::Failed | Self::Incomplete | Self::Removing),
            Self::Running | Self::Incomplete => next == Self::Removing,
            Self::Removing => matches!(next, Self::Removed | Self::Running | Self::Incomplete),
            Self::Removed | Self::Failed => false,
        }
    }
}

/// What a person may do in a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Saves, restores, removes.
    Operator,
    /// Everything.
    Administrator,
}

impl Role {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Administrator => "administrator",
        }
    }

    /// Reads the stable word.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Administrator].into_iter().find(|role| role.as_str() == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_states_are_never_left() {
        use OperationState as O;
        for terminal in [O::Succeeded, O::Failed, O::Cancelled] {
            for next in [O::Running, O::Undoing, O::Succeeded, O::Failed, O::Cancelled] {
                assert!(next.after(terminal).is_err());
            }
        }
        use TaskState as T;
        for terminal in [T::Succeeded, T::Failed, T::Cancelled] {
            for next in [T::Waiting, T::Ready, T::Claimed, T::Succeeded, T::Failed, T::Cancelled] {
                assert!(next.after(terminal).is_err());
            }
        }
    }

    #[test]
    fn an_undone_operation_never_succeeds() {
        assert!(OperationState::Succeeded.after(OperationState::Undoing).is_err());
        assert!(OperationState::Failed.after(OperationState::Undoing).is_ok());
    }

    #[test]
    fn words_are_read_back() {
        for state in [TaskState::Waiting, TaskState::Claimed, TaskState::Cancelled] {
            assert_eq!(TaskState::parse(state.as_str()), Some(state));
        }
        assert_eq!(TaskState::parse("x"), None);
    }
}
