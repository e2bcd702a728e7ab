//! Points of pretended time, and recorded work.

use std::any::Any;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::driver::{Grid, Mark, Recording};
use super::super::gemm::Gemm;
use super::Emulator;
use crate::error::{Error, Result};
use crate::units::Seconds;

/// What every launch, copy and product is said to take. The host's time would say nothing of a GPU, and differ from run to
/// run.
const PRETENDED: Seconds = Seconds(1e-6);

/// A count of what was done before it.
pub(super) struct EmulatedMark {
    emulator: Arc<Emulator>,
    done: AtomicU64,
}

/// Not in the stream yet.
const NOWHERE: u64 = u64::MAX;

impl EmulatedMark {
    pub(super) fn new(emulator: &Arc<Emulator>) -> Self {
        Self {
            emulator: Arc::clone(emulator),
            done: AtomicU64::new(NOWHERE),
        }
    }

    fn done(&self) -> Result<u64> {
        match self.done.load(Ordering::Relaxed) {
            NOWHERE => Err(Error::Internal("an event that was never recorded".into())),
            done => Ok(done),
        }
    }
}

impl Mark for EmulatedMark {
    fn record(&self) -> Result<()> {
        let mut state = self.emulator.state();
        state.arena.fault()?;
        self.done.store(state.done, Ordering::Relaxed);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.done().map(drop)
    }

    fn since(&self, start: &dyn Mark) -> Result<Seconds> {
        let start: &Self = start
            .any()
            .downcast_ref()
            .ok_or_else(|| Error::Internal("an event of another device".into()))?;
        let steps = self.done()? as f64 - start.done()? as f64;
        Ok(Seconds(steps * PRETENDED.0))
    }

    fn any(&self) -> &dyn Any {
        self
    }
}

/// A piece of recorded work.
pub(super) enum Recorded {
    Launch {
        kernel: String,
        grid: Grid,
        args: Vec<Argument>,
    },
    Copy {
        from: u64,
        to: u64,
        bytes: usize,
    },
    Gemm(Gemm),
}

/// A copy of an argument, padding and all, aligned for any type that a kernel takes.
pub(super) struct Argument(Vec<Chunk>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Chunk([MaybeUninit<u8>; 64]);

/// What records a launch; the copies are made when it is called.
///
/// # Safety
/// `args` leads to as many readable values as there are `sizes`, of these sizes, until it has been called.
pub(super) unsafe fn recorded_launch(
    kernel: &str,
    grid: Grid,
    args: &[*mut c_void],
    sizes: &[usize],
) -> impl FnOnce() -> Recorded {
    move || Recorded::Launch {
        kernel: kernel.to_owned(),
        grid,
        args: args
            .iter()
            .zip(sizes)
            .map(|(&place, &size)| {
                let blank = Chunk([MaybeUninit::uninit(); 64]);
                let mut copy = vec![blank; size.div_ceil(size_of::<Chunk>())];
                // SAFETY: the value is there by contract, and the copy has at least its size.
                unsafe {
                    let from = place.cast_const().cast::<MaybeUninit<u8>>();
                    std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr().cast(), size);
                }
                Argument(copy)
            })
            .collect(),
    }
}

/// Steps that are run one after another.
pub(super) struct EmulatedRecording {
    emulator: Arc<Emulator>,
    steps: Vec<Recorded>,
}

impl EmulatedRecording {
    pub(super) fn new(emulator: &Arc<Emulator>, steps: Vec<Recorded>) -> Self {
        Self {
            emulator: Arc::clone(emulator),
            steps,
        }
    }
}

impl Recording for EmulatedRecording {
    unsafe fn launch(&self) -> Result<()> {
        self.emulator.state().arena.fault()?;
        for step in &self.steps {
            // SAFETY: what was asked for was sound then, and its memory is still there by contract.
            unsafe {
                match step {
                    Recorded::Launch { kernel, grid, args } => {
                        let mut places: Vec<*mut c_void> = args
                            .iter()
                            .map(|argument| argument.0.as_ptr().cast_mut().cast())
                            .collect();
                        self.emulator.run(kernel, *grid, &mut places)?;
                    }
                    Recorded::Copy { from, to, bytes } => {
                        self.emulator.run_copy(*from, *to, *bytes)?
                    }
                    Recorded::Gemm(product) => self.emulator.run_gemm(product)?,
                }
            }
        }
        Ok(())
    }
}
