//! Host memory that stands for a GPU's: every allocation lies between two guards that nobody may touch. Their bytes are
//! 0xFF, NaN in every floating-point type, so that what is read there shows, too.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::super::driver::{Mapped, Memory};
use super::Emulator;
use crate::error::{Error, Result};

/// Bytes of a guard.
const GUARD: usize = 4096;

/// What addresses are multiples of, as the CUDA driver's are.
const ALIGNMENT: usize = 256;

const UNTOUCHED: u8 = 0xFF;

/// Every allocation of an emulated GPU: its size by its address.
#[derive(Default)]
pub(super) struct Arena {
    allocations: BTreeMap<u64, usize>,
    /// The most bytes at once since the peak was reset.
    peak: u64,
    /// A fault that nobody has been told of yet.
    fault: Option<Error>,
}

impl Arena {
    /// Bytes allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.allocations.values().map(|&bytes| bytes as u64).sum()
    }

    /// The most bytes that were allocated at once since [`Arena::reset_peak`].
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// Lets the peak begin at what is allocated now.
    pub(super) fn reset_peak(&mut self) {
        self.peak = self.bytes();
    }

    /// A fault found where it could not be told.
    pub(super) fn fault(&mut self) -> Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// Whether every guard is untouched after `doing`; mends those that are not, so that each fault is told once.
    pub(super) fn check(&mut self, doing: &str) -> Result<()> {
        self.fault()?;
        let mut found = None;
        for (&address, &bytes) in &self.allocations {
            // SAFETY: the allocation is on the list until it is given back, and nobody uses its guards but this one holder
            // of the list.
            let touched = unsafe { touched_guard(address, bytes) };
            if let Some(at) = touched {
                found.get_or_insert_with(|| {
                    Error::Device(format!("{doing} wrote at byte {at} of a buffer of {bytes}"))
                });
            }
        }
        found.map_or(Ok(()), Err)
    }
}

/// Where, relative to its start, the first byte was written outside an allocation; mends its guards.
///
/// # Safety
/// An allocation of `bytes` begins at `address`, and nothing else uses its guards meanwhile.
unsafe fn touched_guard(address: u64, bytes: usize) -> Option<isize> {
    let mut touched = None;
    for (start, offset) in [
        (address as usize - GUARD, -(GUARD as isize)),
        (address as usize + bytes, bytes as isize),
    ] {
        // SAFETY: guards of this size lie on both sides by contract, and were written when they were made.
        let guard = unsafe { slice::from_raw_parts_mut(start as *mut u8, GUARD) };
        if let Some(at) = guard.iter().position(|&byte| byte != UNTOUCHED) {
            touched = touched.or(Some(offset + at as isize));
            guard.fill(UNTOUCHED);
        }
    }
    touched
}

/// An allocation between its guards.
pub(super) struct Allocation {
    emulator: Arc<Emulator>,
    address: u64,
    bytes: usize,
}

fn layout(bytes: usize) -> Option<Layout> {
    let bytes = bytes.checked_add(2 * GUARD)?;
    Layout::from_size_align(bytes, ALIGNMENT).ok()
}

impl Allocation {
    /// `bytes` zeros; `None` if the host has no room.
    pub(super) fn new(emulator: &Arc<Emulator>, bytes: usize) -> Option<Self> {
        let layout = layout(bytes)?;
        // SAFETY: the layout is not empty; what is written lies within it.
        let address = unsafe {
            let start = alloc(layout);
            if start.is_null() {
                return None;
            }
            start.write_bytes(UNTOUCHED, layout.size());
            start.add(GUARD).write_bytes(0, bytes);
            start.expose_provenance() + GUARD
        } as u64;
        let mut state = emulator.state();
        state.arena.allocations.insert(address, bytes);
        state.arena.peak = state.arena.peak.max(state.arena.bytes());
        drop(state);
        Some(Self {
            emulator: Arc::clone(emulator),
            address,
            bytes,
        })
    }
}

impl Memory for Allocation {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Mapped for Allocation {
    fn words(&self) -> &[AtomicU64] {
        let start = self.address as *const AtomicU64;
        // SAFETY: host memory of this size, aligned to more than a word, there as long as `self`; kernels write it by
        // atomic stores.
        unsafe { slice::from_raw_parts(start, self.bytes / size_of::<u64>()) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let mut state = self.emulator.state();
        if let Err(fault) = state.arena.check("something since the last launch") {
            state.arena.fault.get_or_insert(fault);
        }
        state.arena.allocations.remove(&self.address);
        drop(state);
        if let Some(layout) = layout(self.bytes) {
            // SAFETY: allocated with this layout, and off the list.
            unsafe { dealloc((self.address as usize - GUARD) as *mut u8, layout) };
        }
    }
}
