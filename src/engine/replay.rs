//! Decode steps that are recorded once and then replayed: on a GPU, a step of a hundred launches becomes one call.
//!
//! What a step reads that differs from the one before (tokens, slots, positions) lies in device memory, and so does what it
//! gives, so one recording serves every step of as many sequences. The first step of so many runs launch by launch, which
//! lets products choose their kernels by the clock and the workspace grow, and is recorded right after: neither can be part
//! of a recording.

use std::collections::HashMap;

use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::gpu::Graph;

/// Recorded steps by the number of sequences.
pub(super) struct Replays {
    enabled: bool,
    steps: HashMap<usize, Graph>,
}

impl Replays {
    /// Of an engine on `device`; on the CPU there is nothing to record.
    pub(super) fn new(device: &Device) -> Self {
        Self {
            enabled: matches!(device, Device::Gpu(_)),
            steps: HashMap::new(),
        }
    }

    /// Whether steps are recorded at all.
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// From now on runs every step launch by launch, or not.
    pub(super) fn set(&mut self, enabled: bool, device: &Device) {
        self.enabled = enabled && matches!(device, Device::Gpu(_));
    }

    /// Records every step anew.
    pub(super) fn forget(&mut self) {
        self.steps.clear();
    }

    /// A step of `rows` sequences: `work`, or what was recorded of it.
    ///
    /// # Errors
    /// Those of `work`, or if the device fails.
    pub(super) fn step(
        &mut self,
        device: &Device,
        rows: usize,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let Device::Gpu(gpu) = device else {
            return work();
        };
        if let Some(graph) = self.steps.get(&rows) {
            return graph.launch();
        }
        work()?;
        self.steps.insert(rows, gpu.capture(work)?);
        Ok(())
    }
}
