//! The absence of a figure, with its reason.

/// Why a figure cannot be had, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// The cause, and where there is one, the remedy.
    pub reason: String,
}

impl Unavailable {
    /// Unavailable because of `reason`.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}
