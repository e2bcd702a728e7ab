//! Memory that launches need besides their arguments: reserved before the first launch where the need is known, else grown
//! when a launch asks for more, and never given back before the GPU.

use super::device::Gpu;
use super::launch::Address;
use super::memory::GpuBytes;
use crate::error::Result;
use crate::units::Bytes;

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
    /// What is read to make the second-level cache forget all else.
    Eviction,
}

const PURPOSES: [Scratch; 7] = [
    Scratch::Partial,
    Scratch::Counters,
    Scratch::Dequantized,
    Scratch::Ordered,
    Scratch::Sums,
    Scratch::Unwanted,
    Scratch::Eviction,
];

/// The most that launches need of each purpose, found from shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkspaceNeed([usize; PURPOSES.len()]);

impl WorkspaceNeed {
    /// As much as before, and `bytes` bytes for a purpose at least.
    pub(super) fn at_least(&mut self, purpose: Scratch, bytes: usize) {
        let held = &mut self.0[purpose as usize];
        *held = (*held).max(bytes);
    }

    /// Of all purposes together.
    pub fn bytes(&self) -> Bytes {
        Bytes(
            self.0
                .iter()
                .fold(0, |sum: u64, &n| sum.saturating_add(n as u64)),
        )
    }

    #[cfg(test)]
    pub(super) fn of(&self, purpose: Scratch) -> usize {
        self.0[purpose as usize]
    }
}

/// The memory of a GPU for all purposes.
#[derive(Default)]
pub(super) struct Workspace {
    held: [Option<GpuBytes>; PURPOSES.len()],
    /// What was too small for a later launch; a recorded step may still use it.
    outgrown: Vec<GpuBytes>,
}

impl Workspace {
    /// `bytes` bytes for a purpose, zero when new. What a launch before left there may be overwritten.
    pub(super) fn get(&mut self, gpu: &Gpu, purpose: Scratch, bytes: usize) -> Result<Address> {
        // A little more than asked for, lest batches that grow one by one allocate each time.
        self.hold(gpu, purpose, bytes, bytes.next_power_of_two())
    }

    /// Holds as much as is needed for all purposes, to the byte where nothing is held yet.
    pub(super) fn reserve(&mut self, gpu: &Gpu, need: &WorkspaceNeed) -> Result<()> {
        for purpose in PURPOSES {
            let bytes = need.0[purpose as usize];
            if bytes > 0 {
                self.hold(gpu, purpose, bytes, bytes)?;
            }
        }
        Ok(())
    }

    /// All that is held.
    pub(super) fn bytes(&self) -> Bytes {
        let held = self.held.iter().flatten().chain(&self.outgrown);
        Bytes(held.map(|bytes| bytes.len() as u64).sum())
    }

    fn hold(&mut self, gpu: &Gpu, purpose: Scratch, least: usize, new: usize) -> Result<Address> {
        let slot = &mut self.held[purpose as usize];
        if slot.as_ref().is_none_or(|held| held.len() < least) {
            self.outgrown.extend(slot.replace(gpu.alloc(new)?));
        }
        let held = slot.as_ref().expect("just filled");
        Ok(Address::at(gpu.address(held)?))
    }
}
