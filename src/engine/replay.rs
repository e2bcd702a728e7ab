//! Decode steps that are recorded once and then replayed: on a GPU, a step of a hundred launches becomes one call, by a
//! graph of them or, where that is asked for and there is a kernel for it, as one launch.
//!
//! What a step reads that differs from the one before (tokens, slots, positions) lies in device memory, and so does what it
//! gives, so one recording serves every step of as many sequences, whatever their lengths: attention is given as many
//! blocks as the cache could need, finds on the device into which parts the keys of each sequence come, and what is left
//! over ends at once. The first step of so many runs launch by launch, which lets products choose their kernels by the
//! clock and the workspace grow, and is recorded right after: neither can be part of a recording.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::kernels::gpu::{Gpu, Graph, OneLaunch};

/// Recorded steps by the number of sequences.
pub(super) struct Replays {
    enabled: bool,
    steps: HashMap<usize, Recorded>,
}

/// A step as it is replayed.
enum Recorded {
    Graph(Graph),
    OneLaunch(OneLaunch),
}

impl Recorded {
    fn launch(&self, gpu: &Gpu) -> Result<()> {
        match self {
            Self::Graph(graph) => graph.launch(),
            Self::OneLaunch(step) => step.launch(gpu),
        }
    }
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

    /// How a step of `rows` sequences is replayed, in words; `None` before the first.
    pub(super) fn describe(&self, rows: usize) -> Option<String> {
        Some(match self.steps.get(&rows)? {
            Recorded::OneLaunch(step) => format!("one launch: {}", step.describe()),
            Recorded::Graph(_) => "a graph".into(),
        })
    }

    /// A step of `rows` sequences: `work`, or what was recorded of it.
    ///
    /// # Errors
    /// Those of `work`, or if the device fails; [`Error::Config`] where steps of one sequence are to be one launch and no
    /// kernel is for this one.
    pub(super) fn step(
        &mut self,
        device: &Device,
        rows: usize,
        mut work: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let Device::Gpu(gpu) = device else {
            return work();
        };
        if let Some(recorded) = self.steps.get(&rows) {
            return recorded.launch(gpu);
        }
        work()?;
        let recorded = if gpu.persistent() && rows == 1 {
            let step = gpu.gather(work)?.map_err(|why| {
                Error::Config(format!(
                    "no kernel decodes a token of this model in one launch: {why}; leave out --persistent"
                ))
            })?;
            Recorded::OneLaunch(step)
        } else {
            Recorded::Graph(gpu.capture(work)?)
        };
        self.steps.insert(rows, recorded);
        Ok(())
    }
}
