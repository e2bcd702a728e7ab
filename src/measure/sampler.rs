//! The thread that reads a GPU's sensors beside a timed loop.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::board::Board;
use super::gpu::{GpuFacts, GpuProcess, PowerReading};
use super::nvml::{GpuSelector, NvmlGpu};
use super::tape::{Sample, Tape};
use super::unavailable::Unavailable;
use super::window::Window;
use crate::units::{Clock, Seconds};

/// Time between two readings unless told otherwise: a fifth of the energy counter's usual tick, so that a tick is
/// placed to within a tenth of its period, and well above the few milliseconds that a query may take.
pub const DEFAULT_PERIOD: Seconds = Seconds(0.02);

/// Every so many readings, clocks, heat, throttling and memory are read too: about as often as they change.
const STATE_EVERY: usize = 5;

/// Where readings come from.
#[derive(Debug)]
pub enum PowerSource {
    /// A board, asked by a thread.
    Board(Arc<dyn Board>),
    /// A recording, at the pace of the clock: whoever samples from one reading of the clock to another gets what was
    /// read between the two.
    Tape(Box<Recording>),
    /// Nowhere.
    None(Unavailable),
}

/// What was once read from a board.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// The readings, by the clock that replays them.
    pub tape: Tape,
    /// What the board is.
    pub facts: GpuFacts,
    /// Who used it; `None` if that is not known.
    pub processes: Option<Vec<GpuProcess>>,
}

impl PowerSource {
    /// The sensors of a GPU, or the reason why they cannot be used.
    pub fn of_gpu(selector: &GpuSelector) -> Self {
        match NvmlGpu::open(selector) {
            Ok(gpu) if gpu.facts().mig == Some(true) => Self::None(Unavailable::because(format!(
                "{selector} is split into MIG instances, and power is counted for the whole board"
            ))),
            Ok(gpu) => Self::Board(Arc::new(gpu)),
            Err(unavailable) => Self::None(unavailable),
        }
    }

    /// Nowhere, because of `reason`.
    pub fn none(reason: impl Into<String>) -> Self {
        Self::None(Unavailable::because(reason))
    }

    /// The board itself, where there is one to ask.
    pub fn board(&self) -> Option<&dyn Board> {
        match self {
            Self::Board(board) => Some(board.as_ref()),
            Self::Tape(_) | Self::None(_) => None,
        }
    }

    /// What the board is, as far as is known.
    pub fn facts(&self) -> GpuFacts {
        match self {
            Self::Board(board) => board.facts(),
            Self::Tape(recording) => recording.facts.clone(),
            Self::None(_) => GpuFacts::default(),
        }
    }

    /// Who uses the board; `None` where that is not known.
    pub fn processes(&self) -> Option<Vec<GpuProcess>> {
        match self {
            Self::Board(board) => board.processes(),
            Self::Tape(recording) => recording.processes.clone(),
            Self::None(_) => None,
        }
    }
}

/// Readings under way. [`Sampler::stop`] gives the tape; dropping ends the thread and loses the tape.
#[derive(Debug)]
pub struct Sampler(Reader);

enum Reader {
    Thread(Thread),
    /// A recording, from a reading of the clock on.
    Replay {
        tape: Tape,
        clock: Arc<dyn Clock>,
        from: Seconds,
    },
    /// Nothing is read, for the reason on the tape.
    Nothing(Tape),
    /// The thread has been waited for.
    Stopped,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "a thread that reads",
            Self::Replay { .. } => "a recording",
            Self::Nothing(_) => "nothing",
            Self::Stopped => "stopped",
        })
    }
}

#[derive(Debug)]
struct Thread {
    stop: Arc<AtomicBool>,
    handle: JoinHandle<Tape>,
}

impl Sampler {
    /// Starts reading `source` every `period`, with time stamps of `clock`. Never fails: what is in the way ends up on
    /// the tape.
    pub fn start(source: &PowerSource, period: Seconds, clock: Arc<dyn Clock>) -> Self {
        Self(match source {
            PowerSource::Tape(recording) => Reader::Replay {
                tape: recording.tape.clone(),
                from: clock.now(),
                clock,
            },
            PowerSource::None(unavailable) => Reader::Nothing(Tape::missing(unavailable.clone())),
            PowerSource::Board(board) => match Thread::spawn(Arc::clone(board), period, clock) {
                Ok(thread) => Reader::Thread(thread),
                Err(error) => Reader::Nothing(Tape::missing(Unavailable::because(format!(
                    "no thread for the power sampler: {error}"
                )))),
            },
        })
    }

    /// Takes one last reading, so that the tape reaches past every window that has ended, and hands the tape over.
    pub fn stop(mut self) -> Tape {
        match std::mem::replace(&mut self.0, Reader::Stopped) {
            Reader::Thread(thread) => thread.join(),
            Reader::Replay { tape, clock, from } => tape.during(Window::new(from, clock.now())),
            Reader::Nothing(tape) => tape,
            Reader::Stopped => Tape::default(),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Reader::Thread(thread) = std::mem::replace(&mut self.0, Reader::Stopped) {
            thread.join();
        }
    }
}

impl Thread {
    fn spawn(
        board: Arc<dyn Board>,
        period: Seconds,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let handle = thread::Builder::new()
            .name("power-sampler".to_owned())
            .spawn(move || record(&*board, period, &*clock, &stopped))?;
        Ok(Self { stop, handle })
    }

    fn join(self) -> Tape {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread from its wait between two readings.
        self.handle.thread().unpark();
        self.handle
            .join()
            .unwrap_or_else(|_| Tape::missing(Unavailable::because("the power sampler panicked")))
    }
}

/// One sample, and the word of a failure.
fn read(board: &dyn Board, with_state: bool, clock: &dyn Clock) -> (Sample, Option<Unavailable>) {
    let begin = clock.now();
    let (power, fault) = match board.power() {
        Ok(power) => (power, None),
        Err(fault) => (PowerReading::default(), Some(fault)),
    };
    let answered = clock.now();
    let state = with_state.then(|| board.state());
    let sample = Sample {
        at: Seconds((begin.0 + answered.0) / 2.0),
        cost: clock.now() - begin,
        energy: power.energy,
        power: power.instant,
        average: power.average,
        state,
    };
    (sample, fault)
}

/// Reads until `stop` is set, and once more after.
fn record(board: &dyn Board, period: Seconds, clock: &dyn Clock, stop: &AtomicBool) -> Tape {
    let mut tape = Tape::default();
    let mut due = clock.now();
    loop {
        let last = stop.load(Ordering::Relaxed);
        let with_state = last || tape.samples.len().is_multiple_of(STATE_EVERY);
        let (sample, fault) = read(board, with_state, clock);
        tape.samples.push(sample);
        tape.fault = tape.fault.or(fault);
        if last {
            return tape;
        }
        // Readings that were missed are not made up for: a burst of them would disturb what is timed.
        due = Seconds((due.0 + period.0).max(clock.now().0));
        wait_until(due, clock, stop);
    }
}

/// Waits for `due`, or until `stop` is set.
fn wait_until(due: Seconds, clock: &dyn Clock, stop: &AtomicBool) {
    // In a loop, since a parked thread may wake for no reason.
    while !stop.load(Ordering::Relaxed) {
        let left = (due - clock.now()).0;
        if left <= 0.0 {
            return;
        }
        thread::park_timeout(Duration::from_secs_f64(left));
    }
}

#[cfg(test)]
mod tests;
