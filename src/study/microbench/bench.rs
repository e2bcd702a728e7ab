//! What an op offers to be judged and timed: several sets of buffers, one call on one of them, and a judge.

use std::collections::BTreeMap;

use super::judge::Judgement;
use super::timer::{Heat, Timer};
use crate::error::{Error, Result};
use crate::kernels::{Cost, Device};
use crate::results::microbench::record::{Peer, Timing};
use crate::units::Bytes;

/// What a cell is, apart from the number of tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    pub(super) op: &'static str,
    pub(super) sizes: BTreeMap<String, usize>,
    pub(super) roles: Vec<String>,
    pub(super) variant: String,
    pub(super) act: String,
}

/// One op at one shape in one variant: what is prepared once for all numbers of tokens.
pub(super) trait Family {
    fn identity(&self) -> &Identity;

    /// Makes the buffers for `tokens` rows and fills them.
    ///
    /// # Errors
    /// If the memory is not there or the shape fits no kernel.
    fn prepare<'a>(&'a mut self, bed: &Bed<'_>, tokens: usize) -> Result<Box<dyn Bench + 'a>>;
}

/// What an op has to prepare for a plan.
pub(super) type Families = Vec<Box<dyn Family>>;

/// An op that is ready to be judged and timed.
pub(super) trait Bench: Send {
    fn facts(&self) -> &Facts;

    /// How it is computed, once it has been.
    fn plan(&self) -> String;

    /// Computes once and compares.
    ///
    /// # Errors
    /// If the op itself fails.
    fn judge(&mut self) -> Result<Judgement>;

    /// Asks for one call on set `copy`, which may still be under way afterwards.
    ///
    /// # Errors
    /// If the op fails.
    fn call(&mut self, copy: usize) -> Result<()>;

    /// The vendor's library at the same shape, timed in the same way.
    ///
    /// # Errors
    /// If it fails.
    fn peer(&mut self, timer: &Timer<'_>) -> Result<Peer>;
}

/// The vendor's library in the place of our own kernels.
pub(super) struct Library<'a> {
    /// Its name, and what it is asked for.
    pub(super) name: String,
    /// Puts it there, or takes it away again.
    pub(super) take_over: Box<dyn Fn(bool) + Send + 'a>,
}

/// What is known of an op before it runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts {
    /// The least that a call moves and computes.
    pub(super) cost: Cost,
    /// The type of the matrix product that bounds its arithmetic, where one does.
    pub(super) product: Option<&'static str>,
    /// Sets of buffers.
    pub(super) copies: usize,
    /// Bytes of all sets.
    pub(super) bytes: u64,
}

/// Times the calls of a bench.
///
/// # Errors
/// If a call fails or the user interrupts.
pub(super) fn timed(bench: &mut dyn Bench, timer: &Timer<'_>, heat: Heat) -> Result<Timing> {
    let (copies, bytes) = match heat {
        Heat::Cold => (bench.facts().copies, bench.facts().bytes),
        Heat::Warm => (1, bench.facts().bytes / bench.facts().copies as u64),
    };
    timer.time(&mut |copy| bench.call(copy), copies, bytes, heat)
}

/// Where benches are prepared.
pub(super) struct Bed<'a> {
    pub(super) device: &'a Device,
    /// Bytes of the last-level cache, or a guess where the system does not tell.
    pub(super) cache: u64,
    /// Memory that the buffers of one bench may take.
    pub(super) room: Bytes,
    /// The fewest tokens of the run: a family's weights are copied for them.
    pub(super) fewest: usize,
    /// Chooses data and samples.
    pub(super) seed: u64,
}

/// Copies of all buffers exceed the cache this many times: a buffer is long gone when its turn comes again.
const CACHES: u64 = 4;

/// More copies than these are more bookkeeping than traffic.
const MOST_COPIES: u64 = 8192;

impl Bed<'_> {
    /// How many copies of buffers of `bytes` are wanted and fit.
    ///
    /// # Errors
    /// [`Error::Config`] if not even one does.
    pub(super) fn copies(&self, bytes: u64) -> Result<usize> {
        // An emulated GPU has no cache; two copies show that they take turns.
        let most = match self.device.kind() {
            "emulator" => 2,
            _ => MOST_COPIES,
        };
        let wanted = (CACHES * self.cache).div_ceil(bytes.max(1)).clamp(2, most);
        match wanted.min(self.room.0 / bytes.max(1)) {
            0 => Err(Error::Config(format!(
                "its buffers take {}, but only {} may be used: choose a smaller shape or fewer tokens",
                Bytes(bytes),
                self.room
            ))),
            copies => Ok(copies as usize),
        }
    }
}

/// A call on a set of buffers, which has this number.
pub(super) type Calling<'a, S> = Box<dyn Fn(&mut S, usize) -> Result<()> + Send + 'a>;

/// A call on a set, and the comparison of what it left there.
pub(super) type Judging<'a, S> = Box<dyn Fn(&mut S) -> Result<Judgement> + Send + 'a>;

/// A bench made of sets of buffers that are alike, and two functions of a set.
pub(super) struct Rotated<'a, S> {
    pub(super) facts: Facts,
    pub(super) sets: Vec<S>,
    pub(super) plan: Box<dyn Fn() -> String + Send + 'a>,
    pub(super) call: Calling<'a, S>,
    pub(super) judge: Judging<'a, S>,
    /// The library that does the same, or why there is none.
    pub(super) library: std::result::Result<Library<'a>, String>,
}

/// Why an op that only models have stands alone.
pub(super) const NO_LIBRARY: &str = "no library's op is like it";

impl<S: Send> Bench for Rotated<'_, S> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn plan(&self) -> String {
        (self.plan)()
    }

    fn judge(&mut self) -> Result<Judgement> {
        (self.judge)(&mut self.sets[0])
    }

    fn call(&mut self, copy: usize) -> Result<()> {
        (self.call)(&mut self.sets[copy], copy)
    }

    fn peer(&mut self, timer: &Timer<'_>) -> Result<Peer> {
        let name = match &self.library {
            Ok(library) => library.name.clone(),
            Err(reason) => {
                return Ok(Peer::Unavailable {
                    reason: reason.clone(),
                });
            }
        };
        self.let_library_work(true);
        let timing = timed(self, timer, Heat::Cold);
        self.let_library_work(false);
        Ok(Peer::Measured {
            name,
            timing: timing?,
        })
    }
}

impl<S> Rotated<'_, S> {
    fn let_library_work(&self, on: bool) {
        if let Ok(library) = &self.library {
            (library.take_over)(on);
        }
    }
}

/// A family whose buffers are all made anew for every number of tokens.
pub(super) struct Made<F> {
    pub(super) identity: Identity,
    pub(super) make: F,
}

impl<F> Family for Made<F>
where
    F: Fn(&Bed<'_>, usize) -> Result<Box<dyn Bench>>,
{
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn prepare<'a>(&'a mut self, bed: &Bed<'_>, tokens: usize) -> Result<Box<dyn Bench + 'a>> {
        (self.make)(bed, tokens)
    }
}
