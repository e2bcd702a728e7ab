//! What timing asks of a loaded variant, so that a scripted one can stand in its place.

use super::runner::Runner;
use crate::engine::{Arrivals, DeviceWeights, Footprint, Limits, StepPlan};
use crate::error::Result;
use crate::units::{Bytes, Clock};

/// Something that takes prompts and gives tokens, each stamped as it becomes visible to the host.
pub(super) trait Target {
    /// Makes room for a cell.
    fn prepare(&mut self, limits: Limits) -> Result<()>;

    /// Runs prompts from position `start` of each slot; gives the next token of each.
    fn prefill(&mut self, prompts: &[Vec<u32>], start: usize) -> Result<Vec<u32>>;

    /// Runs prompts from position `start` of each slot and `steps - 1` steps after them.
    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        start: usize,
        steps: usize,
        clock: &dyn Clock,
    ) -> Result<Arrivals>;

    /// Whether every sequence starts anew, whatever is in the cache.
    fn starts_anew(&self) -> bool;

    /// All resident weights.
    fn weight_bytes(&self) -> Bytes;

    /// What is allocated, where that is known.
    fn footprint(&self) -> Option<Footprint>;

    /// A digest of how it really runs.
    fn configuration(&self) -> String;

    /// The weights and the way of a step through them, where they are known.
    fn known_work(&self) -> Option<(&DeviceWeights, StepPlan)>;
}

impl Target for Runner {
    fn prepare(&mut self, limits: Limits) -> Result<()> {
        Self::prepare(self, limits)
    }

    fn prefill(&mut self, prompts: &[Vec<u32>], start: usize) -> Result<Vec<u32>> {
        Self::prefill(self, prompts, start)
    }

    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        start: usize,
        steps: usize,
        clock: &dyn Clock,
    ) -> Result<Arrivals> {
        Self::generate(self, prompts, start, steps, clock)
    }

    fn starts_anew(&self) -> bool {
        matches!(self, Self::Candle(_))
    }

    fn weight_bytes(&self) -> Bytes {
        Self::weight_bytes(self)
    }

    fn footprint(&self) -> Option<Footprint> {
        Self::footprint(self)
    }

    fn configuration(&self) -> String {
        Self::configuration(self)
    }

    fn known_work(&self) -> Option<(&DeviceWeights, StepPlan)> {
        Some((self.weights()?, self.step_plan()?))
    }
}
