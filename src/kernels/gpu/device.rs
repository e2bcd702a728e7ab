//! One GPU: its stream, and what is recorded and timed on it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::driver::{Driver, Facts, Follows, Grid, Mark, Recording};
use super::emulator;
use super::gemm::Gemm;
use super::launch::Address;
use super::linear::{Choices, LinearKernel};
use super::memory::{Capture, Kept, outside};
use super::step::{Gathering, OneLaunch};
use super::workspace::{Scratch, Workspace, WorkspaceNeed};
use crate::error::{Error, Result};
use crate::units::{Bytes, Seconds};

/// A GPU with the kernels of this program loaded. One host thread at a time drives it.
pub struct Gpu {
    // Goes before the driver, whose memory it is.
    workspace: Mutex<Workspace>,
    choices: Mutex<Choices>,
    pub(super) driver: Box<dyn Driver>,
    pub(super) capture: Arc<Capture>,
    /// The ops that are to become one launch, while they are asked for.
    gathering: Mutex<Option<Gathering>>,
    overlaps: AtomicBool,
    persistent: AtomicBool,
    is_timed: AtomicBool,
    pub(super) outside_at_open: Option<u64>,
}

/// Work that was recorded by [`Gpu::capture`]. It keeps the memory that it uses.
pub struct Graph {
    // Goes before the memory.
    recording: Box<dyn Recording>,
    _kept: Kept,
}

impl Graph {
    /// Puts all of it into the GPU's stream.
    ///
    /// # Errors
    /// If the device fails.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: the graph has kept the memory.
        unsafe { self.recording.launch() }
    }
}

/// A point in a GPU's stream, to measure time from or to.
pub struct Event(Box<dyn Mark>);

impl Gpu {
    /// Opens GPU `ordinal` and loads every kernel, so that no later call has to.
    ///
    /// # Errors
    /// [`Error::NoDevice`] if there is no such GPU, or none that the kernels were compiled for.
    #[cfg(feature = "cuda")]
    pub fn open(ordinal: usize) -> Result<Self> {
        Ok(Self::new(Box::new(super::cuda::Cuda::open(ordinal)?)))
    }

    /// The kernels that were compiled for the host into the libraries of `folder`.
    ///
    /// # Errors
    /// If there are none, or one is not such a library.
    pub fn emulated(folder: &Path) -> Result<Self> {
        Ok(Self::new(Box::new(emulator::open(folder)?)))
    }

    fn new(driver: Box<dyn Driver>) -> Self {
        Self {
            outside_at_open: outside(&*driver).ok(),
            workspace: Mutex::default(),
            choices: Mutex::default(),
            is_timed: AtomicBool::new(driver.kind() == "cuda"),
            driver,
            capture: Arc::default(),
            gathering: Mutex::default(),
            overlaps: AtomicBool::new(true),
            persistent: AtomicBool::new(false),
        }
    }

    /// `cuda` or `emulator`.
    pub fn kind(&self) -> &'static str {
        self.driver.kind()
    }

    /// What it is.
    pub fn facts(&self) -> &Facts {
        self.driver.facts()
    }

    /// The same GPU as candle knows it; it shares the stream.
    ///
    /// # Errors
    /// If candle has no such device.
    pub fn candle_device(&self) -> Result<candle_core::Device> {
        self.driver.candle().ok_or_else(|| {
            Error::Usage(format!(
                "candle's own models do not run on the device '{}'",
                self.kind()
            ))
        })
    }

    /// The kernels that are loaded, sorted.
    #[doc(hidden)]
    pub fn kernels(&self) -> Vec<String> {
        let mut kernels = self.driver.kernels();
        kernels.sort_unstable();
        kernels
    }

    /// In which order the emulator runs the blocks of a grid: 0 forward, 1 backward, else the seed of a random
    /// interleaving. A real GPU has its own mind.
    #[doc(hidden)]
    pub fn set_emulated_order(&self, order: u64) {
        self.driver.set_order(order);
    }

    /// Whether a kernel may start while the one before it still runs.
    pub fn overlaps(&self) -> bool {
        self.overlaps.load(Ordering::Relaxed)
    }

    /// Whether a kernel may start while the one before it still runs (programmatic dependent launch, from compute
    /// capability 9 on), which is the habit. What has been recorded keeps the way that it was recorded in.
    pub fn set_overlap(&self, overlaps: bool) {
        self.overlaps.store(overlaps, Ordering::Relaxed);
    }

    /// Waits until everything that was asked for is done.
    ///
    /// # Errors
    /// What the device says of work that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.not_recorded("a synchronisation")?;
        self.driver.synchronize()
    }

    /// Whether everything that was asked for is done; does not wait.
    ///
    /// # Errors
    /// What the device says of work that failed, or a graph is being recorded.
    pub fn is_idle(&self) -> Result<bool> {
        self.not_recorded("a question")?;
        self.driver.is_idle()
    }

    /// Records what `work` asks of this GPU, without running it. Launches, products and copies within the GPU can be
    /// recorded; nothing can that the host waits for, or that allocates.
    ///
    /// # Errors
    /// Those of `work`; if a graph is being recorded already, or the device fails.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.not_recorded("another graph")?;
        self.driver.begin_recording()?;
        *self.capture.kept() = Some(Vec::new());
        let done = work();
        // Ends in any case: what follows is meant to be run.
        let recording = self.driver.end_recording();
        let kept = self.capture.kept().take().unwrap_or_default();
        done?;
        Ok(Graph {
            recording: recording?,
            _kept: kept,
        })
    }

    /// Whether decode steps of one sequence are one launch, where there is a kernel for them.
    pub fn persistent(&self) -> bool {
        self.persistent.load(Ordering::Relaxed)
    }

    /// Whether decode steps of one sequence are one launch (`step.cu`, a persistent kernel) where there is a kernel for
    /// them; a GPU begins without. What has been recorded stays as it is.
    pub fn set_persistent(&self, persistent: bool) {
        self.persistent.store(persistent, Ordering::Relaxed);
    }

    /// Collects what `work` asks of this GPU, without running it, to be run as one launch; or the reason why it cannot be.
    ///
    /// # Errors
    /// Those of `work`; if a graph is being recorded, or the device fails.
    pub fn gather(
        &self,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<std::result::Result<OneLaunch, String>> {
        self.not_recorded("ops for one launch")?;
        *self.capture.kept() = Some(Vec::new());
        *self.gathering() = Some(Gathering::default());
        let done = work();
        // Both end in any case: what follows is meant to be run.
        let gathered = self.gathering().take().unwrap_or_default();
        let kept = self.capture.kept().take().unwrap_or_default();
        done?;
        gathered.finish(self, kept)
    }

    /// The ops that are to become one launch, if they are being collected.
    pub(super) fn gathering(&self) -> MutexGuard<'_, Option<Gathering>> {
        lock(&self.gathering)
    }

    /// How many blocks of this kernel run at the same time on the whole device.
    ///
    /// # Errors
    /// If there is no such kernel, or the driver does not answer.
    pub(super) fn resident_blocks(&self, kernel: &str, threads: u32, shared: u32) -> Result<usize> {
        self.driver.resident_blocks(kernel, threads, shared)
    }

    /// A new point of time, not yet in the stream.
    ///
    /// # Errors
    /// If the device fails.
    pub fn event(&self) -> Result<Event> {
        self.driver.mark().map(Event)
    }

    /// Puts `event` behind everything that was asked for.
    ///
    /// # Errors
    /// If the device fails, or a graph is being recorded.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.not_recorded("an event")?;
        event.0.record()
    }

    /// The time that the device took from `start` to `end`; waits for both.
    ///
    /// # Errors
    /// If one has not been recorded, or the work before it failed.
    pub fn elapsed(&self, start: &Event, end: &Event) -> Result<Seconds> {
        self.not_recorded("a measurement")?;
        start.0.wait()?;
        end.0.wait()?;
        end.0.since(&*start.0)
    }

    /// Memory for a launch that is about to be asked for; see [`Workspace`].
    ///
    /// # Errors
    /// If there is not as much yet and a graph is being recorded, or the memory is not there.
    pub(super) fn scratch(&self, purpose: Scratch, bytes: usize) -> Result<Address> {
        lock(&self.workspace).get(self, purpose, bytes)
    }

    /// Holds the memory that launches will need beside their arguments, so that none of them has to ask for it.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn reserve(&self, need: &WorkspaceNeed) -> Result<()> {
        lock(&self.workspace).reserve(self, need)
    }

    /// The memory that is held for launches beside their arguments.
    pub fn workspace_bytes(&self) -> Bytes {
        lock(&self.workspace).bytes()
    }

    /// Which kernels products get.
    pub(super) fn choices(&self) -> MutexGuard<'_, Choices> {
        lock(&self.choices)
    }

    /// Which kernel is the fastest for a product is found once and kept in `folder` for later runs on such a device with
    /// the same kernels. How many choices are there already; a device without a clock has none to keep.
    pub fn keep_choices(&self, folder: &Path) -> usize {
        let Some(kernels) = self.driver.kernels_hash() else {
            return 0;
        };
        self.choices().keep_in(folder, self.facts(), kernels)
    }

    /// Every product gets this kernel, whether it fits or not, for tests and microbenchmarks; `None` to choose again.
    #[doc(hidden)]
    pub fn force_linear(&self, kernel: Option<LinearKernel>) {
        self.choices().force(kernel);
    }

    /// Whether its clock says anything about speed, so that it is asked which kernel is the fastest. A real GPU's does; the
    /// emulator's does not, but can be asked all the same, to see that asking works.
    pub(super) fn is_timed(&self) -> bool {
        self.is_timed.load(Ordering::Relaxed)
    }

    /// See [`Gpu::is_timed`].
    #[doc(hidden)]
    pub fn set_timed(&self, is_timed: bool) {
        self.is_timed.store(is_timed, Ordering::Relaxed);
    }

    /// Whether a graph is being recorded.
    pub(super) fn is_recording(&self) -> bool {
        self.capture.kept().is_some()
    }

    /// Refuses what cannot be part of a recording.
    pub(super) fn not_recorded(&self, what: &str) -> Result<()> {
        if self.is_recording() {
            return Err(Error::Internal(format!(
                "{what} while a graph is being recorded"
            )));
        }
        Ok(())
    }

    /// Launches a kernel; [`super::launch::launch!`] is how.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(super) unsafe fn launch(
        &self,
        kernel: &str,
        grid: Grid,
        args: &mut [*mut std::ffi::c_void],
        sizes: &[usize],
    ) -> Result<()> {
        if let Some(gathering) = &mut *self.gathering() {
            gathering.cannot(kernel);
            return Ok(());
        }
        let follows = match grid.follows {
            Follows::Overlapping if !self.overlaps() => Follows::Done,
            other => other,
        };
        let grid = Grid { follows, ..grid };
        // SAFETY: by contract.
        unsafe { self.driver.launch(kernel, grid, args, sizes) }
    }

    /// A product by the device's library.
    ///
    /// # Safety
    /// As [`Driver::gemm`].
    pub(super) unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if let Some(gathering) = &mut *self.gathering() {
            gathering.cannot("a product by the library");
            return Ok(());
        }
        // SAFETY: by contract.
        unsafe { self.driver.gemm(gemm) }
    }
}

/// The lock, also after a panic elsewhere: what it guards is whole between any two calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
