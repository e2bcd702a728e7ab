//! The user's wish to stop, seen by every loop that runs long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_on_one_clone_is_seen_by_all() {
        let interrupt = Interrupt::new();
        let handler = interrupt.clone();
        assert!(interrupt.check().is_ok());
        handler.request();
        assert!(matches!(interrupt.check(), Err(Error::Interrupted)));
    }
}
