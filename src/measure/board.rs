//! A board whose sensors can be read. What measures knows no other: NVML's boards are one kind, those of tests another.

use std::fmt;

use super::gpu::{GpuFacts, GpuProcess, GpuState, PowerReading, ThrottleTime};
use super::unavailable::Unavailable;

/// The sensors of one board.
pub trait Board: fmt::Debug + Send + Sync {
    /// What stays as it is.
    fn facts(&self) -> GpuFacts;

    /// Energy and power, in one call to the driver.
    ///
    /// # Errors
    /// What the driver says when it answers nothing at all, as for a GPU that fell off the bus.
    fn power(&self) -> Result<PowerReading, Unavailable>;

    /// Clocks, heat, throttling and memory.
    fn state(&self) -> GpuState;

    /// For how long heat and the power supply have slowed it.
    fn throttle_time(&self) -> ThrottleTime;

    /// Processes with a compute context on it; `None` where the driver does not tell.
    fn processes(&self) -> Option<Vec<GpuProcess>>;
}
