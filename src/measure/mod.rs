//! What surrounds a measurement: time, repetition, and the state of the machine. Nothing here knows what is measured.
//!
//! - [`clock`], [`window`]: real and scripted time, and spans of it.
//! - [`interrupt`], [`trial`]: how long something is repeated, and how the user ends it early.
//! - [`gpu`], [`board`], [`nvml`]: what a GPU is and does, its sensors, and the one place that asks NVML.
//! - [`tape`], [`sampler`], [`energy`]: readings taken beside a timed loop, and joules found from them.
//! - [`throttle`]: whether heat or the power supply slowed a trial, and waiting until they no longer do.
//! - [`self_test`]: how often the sensors of a board renew themselves, and whether they agree.
//! - [`memory`]: host memory.
//! - [`unavailable`]: the absence of a figure, with its reason.
//! - [`environment`]: the facts about the machine that a record needs to be reproduced.
//!
//! Two rules hold throughout. A figure that cannot be had is absent with its reason, never zero; and what takes time
//! from the outside takes it through [`Clock`](crate::units::Clock), so that all but the calls into NVML is tested on
//! tapes.

use crate::units;

pub mod board;
pub mod clock;
pub mod energy;
pub mod environment;
pub mod gpu;
pub mod interrupt;
pub mod memory;
pub mod nvml;
pub mod sampler;
pub mod self_test;
pub mod tape;
pub mod throttle;
pub mod trial;
pub mod unavailable;
pub mod window;

pub use board::Board;
pub use clock::{SystemClock, VirtualClock};
pub use energy::{EnergyReading, energy_in};
pub use environment::Environment;
pub use gpu::{GpuFacts, GpuSnapshot, GpuState, Throttle};
pub use interrupt::Interrupt;
pub use memory::{HostMemory, PeakMeter};
pub use nvml::{GpuSelector, NvmlGpu};
pub use sampler::{PowerSource, Recording, Sampler};
pub use tape::{Conditions, Sample, Tape};
pub use throttle::{Cooling, ThrottleWatch};
pub use trial::{StopReason, StopRule, Trials, Until, WarmUp};
pub use unavailable::Unavailable;
pub use window::Window;

/// What a GPU is and does at this moment.
///
/// # Errors
/// The reason why nothing is known.
pub fn gpu_now(selector: &GpuSelector) -> Result<(GpuFacts, GpuSnapshot), Unavailable> {
    let gpu = NvmlGpu::open(selector)?;
    Ok((gpu.facts(), gpu.snapshot()))
}

/// What this process holds of a GPU's memory; `None` where the driver does not tell, as in a container that numbers its
/// processes anew.
pub fn gpu_memory_of_this_process(selector: &GpuSelector) -> Option<units::Bytes> {
    let (_, now) = gpu_now(selector).ok()?;
    let own = |process: &gpu::GpuProcess| process.pid == std::process::id();
    now.processes?.into_iter().find(own)?.memory
}
