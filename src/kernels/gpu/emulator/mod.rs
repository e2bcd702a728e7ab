//! The driver of no GPU: the kernels compiled for the host (`kernels/host/`), host memory with guards around it, and every
//! call done when it returns. It is for tests, and as slow as that sounds.

mod gemm;
mod library;
mod memory;
mod timing;

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::library::Kernel;
use self::memory::{Allocation, Arena};
use self::timing::Recorded;
use super::driver::{Driver, Facts, Grid, Mapped, Mark, Memory, Pool, Recording};
use super::gemm::Gemm;
use crate::error::{Error, Result};

/// Memory that the emulated GPU has, in bytes.
const TOTAL_MEMORY: u64 = 16 << 30;

/// The most threads of a block.
const MAX_THREADS: u32 = 1024;

/// The most blocks along y and z; along x there may be 2^31 - 1.
const MAX_BLOCKS: u32 = 65_535;

/// The most bytes of dynamic shared memory of a block: that of compute capability 9.0, less what the system takes.
const SHARED_BYTES: usize = 227 << 10;

/// The kernels of a folder and the memory they run on.
pub(super) struct Emulator {
    facts: Facts,
    kernels: HashMap<String, Kernel>,
    /// See [`Driver::set_order`].
    order: AtomicU64,
    state: Mutex<State>,
}

/// What changes while it runs.
#[derive(Default)]
struct State {
    arena: Arena,
    /// Work done so far, in calls.
    done: u64,
    /// What is recorded instead of being run.
    steps: Option<Vec<Recorded>>,
}

/// Opens the libraries of `folder`.
///
/// # Errors
/// If there are none, or one is not a library of kernels.
pub(super) fn open(folder: &Path) -> Result<Arc<Emulator>> {
    Ok(Arc::new(Emulator {
        facts: Facts {
            name: "host emulator".into(),
            uuid: None,
            compute_capability: (9, 0),
            // Few and small, so that small shapes already come in many waves and pieces.
            multiprocessors: 4,
            cache_bytes: 1 << 20,
            shared_bytes: SHARED_BYTES,
            memory_clock_khz: None,
            memory_bus_bits: None,
        },
        kernels: library::open_all(folder)?,
        order: AtomicU64::new(0),
        state: Mutex::default(),
    }))
}

impl Emulator {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work`, or records `step` where that is asked for.
    fn run_or_record(
        &self,
        step: impl FnOnce() -> Recorded,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state();
        state.arena.fault()?;
        if let Some(steps) = &mut state.steps {
            steps.push(step());
            return Ok(());
        }
        drop(state);
        work()
    }

    /// Counts a piece of work as done, and looks whether it stayed within its memory.
    fn finish(&self, doing: &str) -> Result<()> {
        let mut state = self.state();
        state.done += 1;
        state.arena.check(doing)
    }

    /// # Safety
    /// As [`Driver::launch`].
    unsafe fn run(&self, kernel: &str, grid: Grid, args: &mut [*mut c_void]) -> Result<()> {
        let order = self.order.load(Ordering::Relaxed);
        // SAFETY: by contract.
        let ran = unsafe { self.kernel(kernel)?.run(kernel, grid, args, order) };
        // A guard that was touched tells more than what came of it.
        self.finish(&format!("kernel '{kernel}'"))?;
        ran
    }

    /// # Safety
    /// As [`Driver::copy`].
    unsafe fn run_copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: host memory, within allocations that do not overlap, by contract.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        self.finish("a copy")
    }

    /// # Safety
    /// As [`Driver::gemm`].
    unsafe fn run_gemm(&self, product: &Gemm) -> Result<()> {
        // SAFETY: host memory, of these shapes by contract.
        unsafe { gemm::gemm(product) };
        self.finish("a product by the library")
    }

    fn kernel(&self, name: &str) -> Result<&Kernel> {
        self.kernels
            .get(name)
            .ok_or_else(|| Error::Internal(format!("there is no kernel '{name}'")))
    }
}

/// Refuses what a GPU would refuse.
fn check_grid(kernel: &str, grid: Grid) -> Result<()> {
    let [x, y, z] = grid.blocks;
    let blocks_fit = x > 0
        && y > 0
        && z > 0
        && x <= i32::MAX.cast_unsigned()
        && y <= MAX_BLOCKS
        && z <= MAX_BLOCKS;
    let threads_fit = grid.threads > 0 && grid.threads <= MAX_THREADS;
    if !blocks_fit || !threads_fit || grid.shared_bytes as usize > SHARED_BYTES {
        return Err(Error::Device(format!(
            "kernel '{kernel}': no GPU launches {grid:?}"
        )));
    }
    Ok(())
}

/// `bytes` zeros, if there is room.
fn allocation(emulator: &Arc<Emulator>, bytes: usize) -> Result<Allocation> {
    let (free, _) = emulator.memory()?;
    let fits = bytes as u64 <= free;
    let memory = fits.then(|| Allocation::new(emulator, bytes)).flatten();
    memory.ok_or_else(|| {
        Error::OutOfMemory(format!(
            "cannot allocate {bytes} bytes on the emulated GPU, which has {free} left"
        ))
    })
}

impl Driver for Arc<Emulator> {
    fn kind(&self) -> &'static str {
        "emulator"
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn kernels(&self) -> Vec<String> {
        self.kernels.keys().cloned().collect()
    }

    fn memory(&self) -> Result<(u64, u64)> {
        let used = self.state().arena.bytes();
        Ok((TOTAL_MEMORY.saturating_sub(used), TOTAL_MEMORY))
    }

    /// Memory goes back as soon as it is dropped.
    fn pool(&self) -> Result<Pool> {
        let state = self.state();
        let used = state.arena.bytes();
        Ok(Pool {
            used,
            used_peak: state.arena.peak(),
            reserved: used,
            release_threshold: 0,
        })
    }

    fn settle_pool(&self) -> Result<()> {
        self.state().arena.reset_peak();
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        Ok(Box::new(allocation(self, bytes)?))
    }

    fn alloc_mapped(&self, words: usize) -> Result<Box<dyn Mapped>> {
        Ok(Box::new(allocation(
            self,
            words.saturating_mul(size_of::<u64>()),
        )?))
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: host memory, within one allocation by contract, which no slice of the host leads into.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        self.synchronize()
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len());
        }
        self.synchronize()
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.run_or_record(
            || Recorded::Copy { from, to, bytes },
            // SAFETY: by contract.
            || unsafe { self.run_copy(from, to, bytes) },
        )
    }

    /// Nothing is ever under way; what is left is to tell of faults.
    fn synchronize(&self) -> Result<()> {
        self.state().arena.fault()
    }

    fn is_idle(&self) -> Result<bool> {
        self.synchronize().map(|()| true)
    }

    /// Two on each multiprocessor, if they fit.
    fn resident_blocks(&self, kernel: &str, _threads: u32, shared_bytes: u32) -> Result<usize> {
        self.kernel(kernel)?;
        let fit = SHARED_BYTES / (shared_bytes as usize).max(1);
        Ok(fit.min(2) * self.facts.multiprocessors)
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        args: &mut [*mut c_void],
        sizes: &[usize],
    ) -> Result<()> {
        check_grid(kernel, grid)?;
        self.kernel(kernel)?.check_arguments(kernel, sizes)?;
        let places: &[*mut c_void] = &*args;
        // SAFETY: the arguments have these sizes by contract.
        let step = unsafe { timing::recorded_launch(kernel, grid, places, sizes) };
        let mut args = args.to_vec();
        self.run_or_record(
            step,
            // SAFETY: by contract.
            || unsafe { self.run(kernel, grid, &mut args) },
        )
    }

    unsafe fn gemm(&self, product: &Gemm) -> Result<()> {
        self.run_or_record(
            || Recorded::Gemm(*product),
            // SAFETY: by contract.
            || unsafe { self.run_gemm(product) },
        )
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        Ok(Box::new(timing::EmulatedMark::new(self)))
    }

    fn begin_recording(&self) -> Result<()> {
        self.state().steps = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<Box<dyn Recording>> {
        let steps = self.state().steps.take().unwrap_or_default();
        Ok(Box::new(timing::EmulatedRecording::new(self, steps)))
    }

    fn candle(&self) -> Option<candle_core::Device> {
        None
    }

    fn set_order(&self, order: u64) {
        self.order.store(order, Ordering::Relaxed);
    }
}
