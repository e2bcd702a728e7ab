//! Prompts in, tokens out, and when each token was there.
//!
//! On a GPU nothing waits for the host between tokens: each step leaves its tokens on the device as the next one's input
//! and tells them to a mailbox in the host's memory. The host asks for steps ahead, as many as the mailbox has lines, while
//! a thread of its own watches the mailbox and stamps what arrives. On the CPU the host is the device, and stamps after
//! each step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::session::{Engine, Prompt, check_tokens};
use crate::error::{Error, Result};
use crate::kernels::gpu::{Event, Gpu};
use crate::kernels::{Device, Mailbox};
use crate::units::{Clock, Seconds};

/// Steps of a full batch that may be under way at once: enough that a host which is held up for a moment holds up nothing.
pub(super) const LINES: usize = 32;

/// Looks at the mailbox between two that let other threads run.
const LOOKS: usize = 64;

/// How long the host sleeps when it has asked for all that it may.
const NAP: Duration = Duration::from_micros(50);

/// Naps with an idle device after which a missing token is a fault.
const PATIENCE: usize = 20_000;

/// What came of a batch of prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrivals {
    /// When the batch was handed over.
    pub start: Seconds,
    /// When all tokens of a step were visible to the host; those that end the prompts are the first.
    pub at: Vec<Seconds>,
    /// The tokens, `[steps, rows]`.
    pub tokens: Vec<u32>,
    /// How long the device was at it, by its own clock; `None` where it has none, or was told to stop early.
    pub device: Option<DeviceTime>,
}

/// Time by the device's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeviceTime {
    /// The prompts, up to the first tokens.
    pub prefill: Seconds,
    /// All steps after that.
    pub decode: Seconds,
}

impl Engine {
    /// Runs prompts of any lengths and `steps - 1` decode steps after them, taking the most likely token each time.
    /// `go_on` sees the tokens of every step but the last and says whether there shall be another.
    ///
    /// # Errors
    /// If there is no room in the cache, a prompt is empty, a token is outside the vocabulary, all logits are NaN, or the
    /// device fails; [`Error::Interrupted`] where it is told to stop.
    pub fn generate(
        &mut self,
        prompts: &[Prompt<'_>],
        steps: usize,
        clock: &dyn Clock,
        go_on: &mut (dyn FnMut(&[u32]) -> bool + Send),
    ) -> Result<Arrivals> {
        self.check(prompts)?;
        self.check_room(prompts, steps)?;
        match self.device.clone() {
            // All of it on the pool: a hand-over between threads at every step would be part of every latency.
            cpu @ Device::Cpu => cpu.enter(|| self.generate_here(prompts, steps, clock, go_on)),
            Device::Gpu(gpu) => self.generate_ahead(&gpu, prompts, steps, clock, go_on),
        }
    }

    fn check_room(&self, prompts: &[Prompt<'_>], steps: usize) -> Result<()> {
        let limits = self.limits();
        if prompts.is_empty() || prompts.len() > limits.slots || steps == 0 {
            return Err(Error::Internal(format!(
                "{steps} tokens of {} prompts in {} slots",
                prompts.len(),
                limits.slots
            )));
        }
        for prompt in prompts {
            let end = prompt.start + prompt.tokens.len() + steps - 1;
            if prompt.tokens.is_empty() || end > limits.capacity {
                return Err(Error::Internal(format!(
                    "a prompt of {} tokens that goes on to position {end} of {}",
                    prompt.tokens.len(),
                    limits.capacity
                )));
            }
        }
        Ok(())
    }

    fn generate_here(
        &mut self,
        prompts: &[Prompt<'_>],
        steps: usize,
        clock: &dyn Clock,
        go_on: &mut (dyn FnMut(&[u32]) -> bool + Send),
    ) -> Result<Arrivals> {
        let start = clock.now();
        let mut next = self.prefill(prompts)?;
        let mut at = vec![clock.now()];
        let mut tokens = next.clone();
        for step in 1..steps {
            if !go_on(&next) {
                break;
            }
            let continued: Vec<Prompt<'_>> = prompts
                .iter()
                .zip(next.chunks(1))
                .map(|(prompt, tokens)| Prompt {
                    slot: prompt.slot,
                    start: prompt.start + prompt.tokens.len() + step - 1,
                    tokens,
                })
                .collect();
            next = self.prefill(&continued)?;
            at.push(clock.now());
            tokens.extend(&next);
        }
        Ok(Arrivals {
            start,
            at,
            tokens,
            device: None,
        })
    }

    fn generate_ahead(
        &mut self,
        gpu: &Gpu,
        prompts: &[Prompt<'_>],
        steps: usize,
        clock: &dyn Clock,
        go_on: &mut (dyn FnMut(&[u32]) -> bool + Send),
    ) -> Result<Arrivals> {
        let mailbox = self.mailbox.clone();
        let watch = Watch {
            mailbox: &mailbox,
            first: self.told,
            rows: prompts.len(),
            steps,
            clock,
            seen: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        };
        let events = [gpu.event()?, gpu.event()?, gpu.event()?];
        let (start, asked, stamps) = thread::scope(|scope| {
            let watcher = scope.spawn(|| watch.stamps());
            let start = clock.now();
            let asked = self.ask(gpu, prompts, &watch, &events, go_on);
            watch.over.store(true, Ordering::Relaxed);
            (start, asked, watcher.join())
        });
        let mut at = stamps.map_err(|_| Error::Internal("the watch on tokens failed".into()))?;
        // Steps that nobody waits for any more must not run into those of the next call.
        let settled = gpu.synchronize();
        let tokens = asked?;
        settled?;
        let taken = tokens.len() / prompts.len();
        at.truncate(taken);
        let device = (taken == steps)
            .then(|| {
                Ok::<_, Error>(DeviceTime {
                    prefill: gpu.elapsed(&events[0], &events[1])?,
                    decode: gpu.elapsed(&events[1], &events[2])?,
                })
            })
            .transpose()?;
        Ok(Arrivals {
            start,
            at,
            tokens,
            device,
        })
    }

    /// Asks for everything, never for more than the mailbox can hold, and takes the tokens that have been seen.
    fn ask(
        &mut self,
        gpu: &Gpu,
        prompts: &[Prompt<'_>],
        watch: &Watch<'_>,
        [begin, first, last]: &[Event; 3],
        go_on: &mut (dyn FnMut(&[u32]) -> bool + Send),
    ) -> Result<Vec<u32>> {
        let slots: Vec<u32> = prompts.iter().map(|p| p.slot as u32).collect();
        // Of the prompts' last tokens: every step moves one on from there.
        let positions: Vec<u32> = prompts
            .iter()
            .map(|p| (p.start + p.tokens.len() - 1) as u32)
            .collect();
        self.feed(&slots, &positions)?;
        gpu.record(begin)?;
        self.begin(prompts)?;
        gpu.record(first)?;
        if watch.steps == 1 {
            gpu.record(last)?;
        }
        let lines = watch.mailbox.lines(watch.rows);
        let (mut asked, mut taken, mut naps) = (1, 0, 0);
        let mut tokens = Vec::with_capacity(watch.steps * watch.rows);
        loop {
            self.check_stop()?;
            while taken < watch.seen.load(Ordering::Acquire) {
                let step = watch.tokens(taken);
                check_tokens(&step)?;
                tokens.extend(&step);
                (taken, naps) = (taken + 1, 0);
                if taken == watch.steps || !go_on(&step) {
                    return Ok(tokens);
                }
            }
            if asked < watch.steps && asked - taken < lines {
                self.next_step(watch.rows)?;
                asked += 1;
                if asked == watch.steps {
                    gpu.record(last)?;
                }
                continue;
            }
            // A fault of the device shows here; without one, what it has done is about to be seen.
            if gpu.is_idle()? {
                naps += 1;
                if naps > PATIENCE {
                    return Err(Error::Internal(format!(
                        "the device is done, but the tokens of step {taken} have not arrived"
                    )));
                }
            }
            thread::sleep(NAP);
        }
    }
}

/// Who looks for the tokens of one batch.
struct Watch<'a> {
    mailbox: &'a Mailbox,
    /// Number of the first step.
    first: u32,
    rows: usize,
    steps: usize,
    clock: &'a dyn Clock,
    /// Steps whose tokens are all there.
    seen: AtomicUsize,
    /// Nobody waits any more.
    over: AtomicBool,
}

impl Watch<'_> {
    fn token(&self, step: usize, row: usize) -> Option<u32> {
        let number = self.first.wrapping_add(step as u32);
        let line = number as usize % self.mailbox.lines(self.rows);
        self.mailbox.token(line * self.rows + row, number)
    }

    /// The tokens of a step that has been seen and not yet made room.
    fn tokens(&self, step: usize) -> Vec<u32> {
        (0..self.rows)
            .filter_map(|row| self.token(step, row))
            .collect()
    }

    /// When each step's tokens were all there.
    fn stamps(&self) -> Vec<Seconds> {
        let mut at = Vec::with_capacity(self.steps);
        let mut row = 0;
        while at.len() < self.steps {
            if self.token(at.len(), row).is_some() {
                row += 1;
                if row == self.rows {
                    at.push(self.clock.now());
                    self.seen.store(at.len(), Ordering::Release);
                    row = 0;
                }
                continue;
            }
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            for _ in 0..LOOKS {
                if self.token(at.len(), row).is_some() {
                    break;
                }
                std::hint::spin_loop();
            }
            thread::yield_now();
        }
        at
    }
}
