//! The user's wish to stop, seen by every loop that runs long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::units::{Clock, Seconds};

/// Longest time that somebody who waits does not look at the flag.
const LOOK: Seconds = Seconds(0.1);

/// A flag that is raised once, by the handler of Ctrl-C for one, and looked at between units of work. All clones share
/// it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag for good.
    pub fn request(&self) {
        // Nothing else is published through the flag, so no ordering beyond its own is needed.
        self.requested.store(true, Ordering::Relaxed);
    }

    /// The flag itself, for what must not know of this type.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.requested)
    }

    /// Whether the flag has been raised.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Passes unless the flag has been raised.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once it has.
    pub fn check(&self) -> Result<()> {
        if self.is_requested() {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Lets `span` pass by `clock`, unless the flag is raised meanwhile.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once it is.
    pub fn wait(&self, span: Seconds, clock: &dyn Clock) -> Result<()> {
        let end = clock.now() + span;
        loop {
            self.check()?;
            let left = end - clock.now();
            if left <= Seconds(0.0) {
                return Ok(());
            }
            clock.wait(Seconds(left.0.min(LOOK.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::clock::VirtualClock;

    #[test]
    fn waiting_takes_its_time_and_ends_with_a_request() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        interrupt.wait(Seconds(2.05), &clock).unwrap();
        assert!((clock.now().0 - 2.05).abs() < 1e-6, "{:?}", clock.now());
        interrupt.request();
        let ended = interrupt.wait(Seconds(1.0), &clock);
        assert!(matches!(ended, Err(Error::Interrupted)));
    }

    #[test]
    fn a_request_on_one_clone_is_seen_by_all() {
        let interrupt = Interrupt::new();
        let handler = interrupt.clone();
        assert!(interrupt.check().is_ok());
        handler.request();
        assert!(matches!(interrupt.check(), Err(Error::Interrupted)));
    }
}
