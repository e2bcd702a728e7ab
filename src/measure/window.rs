//! A span between two readings of one clock.

use crate::units::Seconds;

/// The time from `begin` to `end`, both readings of the same clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// When it opens.
    pub begin: Seconds,
    /// When it closes; not before `begin`.
    pub end: Seconds,
}

impl Window {
    /// The span from `begin` to `end`.
    pub const fn new(begin: Seconds, end: Seconds) -> Self {
        Self { begin, end }
    }

    /// How long it lasts.
    pub fn duration(self) -> Seconds {
        self.end - self.begin
    }

    /// Whether `time` lies in it; both edges do.
    pub fn contains(self, time: Seconds) -> bool {
        (self.begin..=self.end).contains(&time)
    }
}
