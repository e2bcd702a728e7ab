//! The two clocks: one that runs by itself and one that a test moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::units::{Clock, Seconds};

/// Time since the clock was made, by the system's monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock that reads zero now.
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Seconds {
        Seconds(self.origin.elapsed().as_secs_f64())
    }
}

/// Time that stands still until it is moved. Shared between threads by reference.
///
/// Kept in whole nanoseconds, so that ten steps of 0.1 s read 1.0 s exactly.
#[derive(Debug, Default)]
pub struct VirtualClock {
    nanoseconds: AtomicU64,
}

impl VirtualClock {
    /// A clock that reads zero until it is moved.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves on by `step`; a negative step moves nothing.
    pub fn advance(&self, step: Seconds) {
        self.nanoseconds
            .fetch_add(nanoseconds(step), Ordering::SeqCst);
    }

    /// Moves to `time`; a time that has passed already moves nothing, since a [`Clock`] never goes back.
    pub fn set(&self, time: Seconds) {
        self.nanoseconds
            .fetch_max(nanoseconds(time), Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Seconds {
        Seconds(self.nanoseconds.load(Ordering::SeqCst) as f64 / 1e9)
    }

    /// Moves on at once, by no less than it can tell: who waits until a moment gets there.
    fn wait(&self, span: Seconds) {
        if span.0 > 0.0 {
            self.advance(Seconds(span.0.max(1e-9)));
        }
    }
}

/// The nearest whole number of nanoseconds; below zero it is zero.
fn nanoseconds(time: Seconds) -> u64 {
    (time.0 * 1e9).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_starts_at_zero_and_never_goes_back() {
        let clock = SystemClock::new();
        let readings: Vec<_> = (0..100).map(|_| clock.now()).collect();
        assert!(readings[0] < Seconds(1.0));
        assert!(readings.is_sorted());
    }

    #[test]
    fn the_virtual_clock_moves_only_forward_and_without_rounding() {
        let clock = VirtualClock::new();
        for _ in 0..10 {
            clock.advance(Seconds(0.1));
        }
        assert_eq!(clock.now(), Seconds(1.0));
        clock.set(Seconds(0.5));
        clock.advance(Seconds(-3.0));
        assert_eq!(clock.now(), Seconds(1.0));
        clock.set(Seconds(2.5));
        assert_eq!(clock.now(), Seconds(2.5));
        clock.wait(Seconds(3600.0));
        assert_eq!(clock.now(), Seconds(3602.5));
    }
}
