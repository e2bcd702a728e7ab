//! Memory that launches need besides their arguments: grown when a launch asks for more, never given back before the GPU.

use super::device::{Gpu, GpuBytes};
use super::launch::Address;
use crate::error::Result;

/// What it is for; each purpose has memory of its own, for one launch may need several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scratch {
    /// Sums that blocks leave for others to add up.
    Partial,
    /// Counters of such blocks: zero before and after every launch.
    Counters,
    /// Weights on their way to a library's product.
    Dequantized,
    /// Inputs in another order.
    Ordered,
    /// Exact sums on their way to a result.
    Sums,
    /// Results that nobody keeps.
    Unwanted,
    /// What is written to make the second-level cache forget all else.
    Eviction,
}

const PURPOSES: usize = 7;

/// The memory of a GPU for all purposes.
#[derive(Default)]
pub(super) struct Workspace([Option<GpuBytes>; PURPOSES]);

impl Workspace {
    /// `bytes` bytes for a purpose, zero when new. What a launch before left there may be overwritten.
    pub(super) fn get(&mut self, gpu: &Gpu, purpose: Scratch, bytes: usize) -> Result<Address> {
        let slot = &mut self.0[purpose as usize];
        if slot.as_ref().is_none_or(|held| held.len() < bytes) {
            // A little more than asked for, lest batches that grow one by one allocate each time.
            *slot = Some(gpu.alloc(bytes.next_power_of_two())?);
        }
        let held = slot.as_ref().expect("just filled");
        Ok(Address::at(gpu.address(held)?))
    }
}
