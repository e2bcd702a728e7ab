//! Which kernel a product gets: the one that a plan predicts, or, on a real device, the one that its clock says is fastest,
//! found once per storage, shape and number of tokens.

use std::collections::HashMap;

use super::plan::{LinearKernel, Problem, bucket};
use super::{Outcome, Product};
use crate::error::Result;
use crate::kernels::gpu::fill;
use crate::kernels::gpu::workspace::Scratch;

/// How many of the kernels that a plan finds are tried.
const TRIED: usize = 10;
/// Runs of each that count, after one that does not.
const RUNS: usize = 4;

/// What was chosen so far.
#[derive(Default)]
pub(in crate::kernels::gpu) struct Choices {
    found: HashMap<Problem, LinearKernel>,
    forced: Option<LinearKernel>,
}

impl Choices {
    /// The kernel for a problem, if it was chosen.
    pub(super) fn of(&self, problem: &Problem) -> Option<LinearKernel> {
        self.forced
            .or_else(|| self.found.get(&key(problem)).copied())
    }

    /// Every product gets this kernel, whether it fits or not; `None` to choose again.
    pub(in crate::kernels::gpu) fn force(&mut self, kernel: Option<LinearKernel>) {
        self.forced = kernel;
    }
}

/// Problems that share a choice.
fn key(problem: &Problem) -> Problem {
    Problem {
        tokens: bucket(problem.tokens),
        ..*problem
    }
}

/// Chooses, and remembers it.
pub(super) fn choose(product: &Product<'_>, problem: &Problem) -> Result<LinearKernel> {
    let gpu = product.op.gpu;
    let candidates = problem.candidates(gpu.facts());
    if !gpu.is_timed() || gpu.is_recording() {
        // Not remembered: the next call may be able to find out.
        return Ok(candidates[0]);
    }
    let mut best = (f64::INFINITY, candidates[0]);
    for &kernel in candidates.iter().take(TRIED) {
        let seconds = time(product, problem, kernel)?;
        if seconds < best.0 {
            best = (seconds, kernel);
        }
    }
    gpu.choices().found.insert(key(problem), best.1);
    Ok(best.1)
}

/// Seconds that `kernel` takes where weights come from memory: the fastest run, each after the second-level cache was
/// filled with something else. Results go where nobody looks.
fn time(product: &Product<'_>, problem: &Problem, kernel: LinearKernel) -> Result<f64> {
    let op = product.op;
    let gpu = op.gpu;
    let bytes = product.tokens * product.weight.n * product.out_type.size();
    let trial = Product {
        outcome: Outcome {
            out: gpu.scratch(Scratch::Unwanted, bytes)?,
            ..product.outcome
        },
        ..*product
    };
    trial.run(problem, kernel)?;
    let (start, end) = (gpu.event()?, gpu.event()?);
    let mut fastest = f64::INFINITY;
    for _ in 0..RUNS {
        fill::evict_cache(gpu)?;
        gpu.record(&start)?;
        trial.run(problem, kernel)?;
        gpu.record(&end)?;
        fastest = fastest.min(gpu.elapsed(&start, &end)?.0);
    }
    Ok(fastest)
}
