//! What runs kernels: the interface between the launch functions and a driver, which is a real GPU's or the emulator's.

use std::ffi::c_void;
use std::sync::atomic::AtomicU64;

use super::gemm::Gemm;
use crate::error::Result;
use crate::units::Seconds;

/// What a GPU is, as far as plans and reports ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// The marketing name.
    pub name: String,
    /// The identity under which NVML knows it too; `None` where there is no board.
    pub uuid: Option<[u8; 16]>,
    /// Compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of the second-level cache.
    pub cache_bytes: usize,
    /// The most bytes of shared memory that one block may have.
    pub shared_bytes: usize,
    /// Clock of the memory, in kHz, where the driver tells.
    pub memory_clock_khz: Option<u32>,
    /// Width of the memory's bus in bits, where the driver tells.
    pub memory_bus_bits: Option<u32>,
}

/// What the allocator of a GPU holds of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pool {
    /// Bytes in use now.
    pub used: u64,
    /// The most that was in use at once since [`Gpu::settle_pool`](super::Gpu::settle_pool).
    pub used_peak: u64,
    /// Bytes that it has taken from the device, in use or kept for later.
    pub reserved: u64,
    /// Bytes that it may keep: what is unused beyond them goes back to the device whenever the host waits for it.
    pub release_threshold: u64,
}

/// Shared memory that the system takes for itself, of every block; as much is left for what a kernel declares beside what
/// its launch asks for.
const RESERVED_SHARED_BYTES: usize = 1 << 10;

impl Facts {
    /// How many blocks of `dynamic` bytes of shared memory a multiprocessor has room for. It has a little more than its
    /// largest block may have.
    pub(super) const fn blocks_by_shared_memory(&self, dynamic: usize) -> usize {
        (self.shared_bytes + RESERVED_SHARED_BYTES) / (dynamic + RESERVED_SHARED_BYTES)
    }

    /// Whether a block may have `dynamic` bytes of shared memory beside what its kernel declares.
    pub(super) const fn has_room_for(&self, dynamic: usize) -> bool {
        dynamic + RESERVED_SHARED_BYTES <= self.shared_bytes
    }

    /// Whether it has the matrix instructions of warpgroups: compute capability 9.0 alone, later ones have others instead.
    pub(super) fn has_wgmma(&self) -> bool {
        self.compute_capability == (9, 0)
    }
}

#[cfg(test)]
impl Facts {
    /// Those of an H100, for tests of plans.
    pub(super) fn h100() -> Self {
        Self {
            name: "H100".into(),
            uuid: None,
            compute_capability: (9, 0),
            multiprocessors: 132,
            cache_bytes: 50 << 20,
            shared_bytes: 232_448,
            memory_clock_khz: None,
            memory_bus_bits: None,
        }
    }
}

/// How many blocks of how many threads a launch has, and how it follows the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grid {
    /// Blocks along x, y and z.
    pub(super) blocks: [u32; 3],
    /// Threads of a block.
    pub(super) threads: u32,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: u32,
    /// How it follows the grid before it in the stream.
    pub(super) follows: Follows,
}

/// When a grid starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// When the one before it is done.
    Done,
    /// It may while the one before it still runs (programmatic dependent launch): every kernel waits for its predecessor
    /// before it reads what that wrote. As above before compute capability 9.
    Overlapping,
    /// When all of its blocks can run at the same time, as those do that wait for each other (cooperative launch).
    Together,
}

/// A type that a kernel takes by value.
///
/// # Safety
/// The layout is that of the C++ parameter of the kernel, and it holds no reference.
pub(super) unsafe trait KernelArg: Copy + 'static {
    /// Where the argument lies, as launches want it.
    fn place(&self) -> *mut c_void {
        (&raw const *self).cast_mut().cast()
    }
}

// SAFETY: the same numbers in Rust and in CUDA C++ on every platform that CUDA supports.
unsafe impl KernelArg for u32 {}
// SAFETY: as above.
unsafe impl KernelArg for u64 {}
// SAFETY: as above; size_t.
unsafe impl KernelArg for usize {}
// SAFETY: as above.
unsafe impl KernelArg for f32 {}

/// An allocation; dropping it gives the memory back after all work in the stream that may use it.
pub(super) trait Memory: Send + Sync {
    /// Where it begins, aligned to 256 bytes.
    fn address(&self) -> u64;
    /// Its size in bytes.
    fn bytes(&self) -> usize;
}

/// Memory of the host that kernels can write too; dropping it waits for all work in the stream.
pub(super) trait Mapped: Memory {
    /// The words as the host sees them; the device writes each at once.
    fn words(&self) -> &[AtomicU64];
}

/// A point in the stream.
pub(super) trait Mark: Send + Sync {
    /// Puts it behind everything that was asked for.
    fn record(&self) -> Result<()>;
    /// Waits until everything before it is done.
    fn wait(&self) -> Result<()>;
    /// Time from `start` to here by the device's own clock; both are recorded and done. `start` is of the same driver.
    fn since(&self, start: &dyn Mark) -> Result<Seconds>;
    /// So that a driver recognises its own.
    fn any(&self) -> &dyn std::any::Any;
}

/// Work recorded once, to be run often.
pub(super) trait Recording: Send + Sync {
    /// Puts all of it into the stream.
    ///
    /// # Safety
    /// The memory that it uses is still there.
    unsafe fn launch(&self) -> Result<()>;
}

/// One stream of work on one device: calls take effect in their order. Addresses are those of [`Memory`].
pub(super) trait Driver: Send + Sync {
    /// `cuda` or `emulator`.
    fn kind(&self) -> &'static str;

    fn facts(&self) -> &Facts;

    /// The kernels that can be launched, in any order.
    fn kernels(&self) -> Vec<String>;

    /// Identifies the code of the kernels, where the driver has a clock to choose among them by.
    fn kernels_hash(&self) -> Option<&'static str> {
        None
    }

    /// Free and total memory in bytes.
    fn memory(&self) -> Result<(u64, u64)>;

    /// What the allocator holds.
    fn pool(&self) -> Result<Pool>;

    /// Gives back what is unused, after all work, and lets the peak begin at what is used now.
    fn settle_pool(&self) -> Result<()>;

    /// `bytes` bytes, all zero.
    fn alloc(&self, bytes: usize) -> Result<Box<dyn Memory>>;

    /// `words` words of the host's memory, all zero, which kernels can write.
    fn alloc_mapped(&self, words: usize) -> Result<Box<dyn Mapped>>;

    /// # Safety
    /// `bytes.len()` bytes from `to` on lie within one allocation.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Returns when the bytes are there.
    ///
    /// # Safety
    /// `bytes.len()` bytes from `from` on lie within one allocation.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// # Safety
    /// `bytes` bytes from both addresses on lie within one allocation each, and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    fn synchronize(&self) -> Result<()>;

    /// Whether everything that was asked for is done; does not wait.
    fn is_idle(&self) -> Result<bool>;

    /// How many blocks of this kernel run at the same time on the whole device.
    fn resident_blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<usize>;

    /// Launches the kernel of this name. `args` leads to the arguments, `sizes` holds their sizes; they are read before
    /// the call returns.
    ///
    /// # Safety
    /// The arguments are those of the kernel in number, order and type, and every address in them leads to as much memory
    /// as the kernel uses with them.
    unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        args: &mut [*mut c_void],
        sizes: &[usize],
    ) -> Result<()>;

    /// A product by the device's library of such.
    ///
    /// # Safety
    /// The addresses lead to matrices of the shapes and types that `gemm` says.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// A new point, not yet in the stream.
    fn mark(&self) -> Result<Box<dyn Mark>>;

    /// From here on work is recorded, not run.
    fn begin_recording(&self) -> Result<()>;

    /// What has been recorded since.
    fn end_recording(&self) -> Result<Box<dyn Recording>>;

    /// The same device as candle knows it; `None` where candle has none.
    fn candle(&self) -> Option<candle_core::Device>;

    /// In which order the emulator runs the blocks of a grid; a device of its own will has no such setting.
    fn set_order(&self, _order: u64) {}
}
