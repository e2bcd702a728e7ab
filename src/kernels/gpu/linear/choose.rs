//! Which kernel a product gets: the one that a plan predicts, or, on a real device, the one that its clock says is fastest,
//! found once per storage, shape and number of tokens, and kept for later runs where there is a folder for it.

use std::collections::HashMap;
use std::path::Path;

use super::kept::Kept;
use super::plan::{LinearKernel, Problem, bucket};
use super::{Outcome, Product};
use crate::error::Result;
use crate::kernels::gpu::driver::Facts;
use crate::kernels::gpu::fill;
use crate::kernels::gpu::workspace::Scratch;

/// How many of the kernels that a plan finds are tried: nearly all, for what it predicts of parts of columns is rough, and
/// each takes a millisecond.
const TRIED: usize = 40;
/// Runs of each that count, after one that does not.
const RUNS: usize = 4;

/// What was chosen so far.
#[derive(Default)]
pub(in crate::kernels::gpu) struct Choices {
    found: HashMap<Problem, LinearKernel>,
    /// From earlier runs; each is looked at before it is used.
    earlier: HashMap<Problem, LinearKernel>,
    kept: Option<Kept>,
    forced: Option<LinearKernel>,
    /// Nothing shares a launch.
    pub(super) unfused: bool,
}

impl Choices {
    /// The kernel for a problem, if it was chosen.
    pub(super) fn of(&self, problem: &Problem) -> Option<LinearKernel> {
        self.forced
            .or_else(|| self.found.get(&key(problem)).copied())
    }

    /// Starts from what earlier runs on this device found and kept in `folder`, and keeps what this one finds there. How
    /// many choices there were.
    pub(in crate::kernels::gpu) fn keep_in(
        &mut self,
        folder: &Path,
        facts: &Facts,
        kernels: &str,
    ) -> usize {
        let kept = Kept::new(folder, facts, kernels);
        self.earlier = kept.read();
        self.kept = Some(kept);
        self.earlier.len()
    }

    /// Takes what earlier runs chose, if it is one of `candidates`.
    fn recall(&mut self, problem: &Problem, candidates: &[LinearKernel]) -> Option<LinearKernel> {
        let kernel = self.earlier.remove(&key(problem))?;
        candidates.contains(&kernel).then(|| {
            self.found.insert(key(problem), kernel);
            kernel
        })
    }

    fn remember(&mut self, problem: &Problem, kernel: LinearKernel) {
        self.found.insert(key(problem), kernel);
        // What cannot be kept is found again by the next run; a measurement does not fail for it.
        if let Some(kept) = &self.kept
            && kept.write(&self.found).is_err()
        {
            self.kept = None;
        }
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

/// Where runs that tell the time leave results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spare {
    /// Where they are wanted: the run that counts replaces them.
    InPlace,
    /// Where nobody looks, for what lies in their place is needed, or there is no room for them.
    Elsewhere,
}

/// Chooses, and remembers it.
pub(super) fn choose(
    product: &Product<'_>,
    problem: &Problem,
    spare: Spare,
) -> Result<LinearKernel> {
    let gpu = product.op.gpu;
    let candidates = problem.candidates(gpu.facts());
    if !gpu.is_timed() || gpu.is_recording() {
        // Not remembered: the next call may be able to find out.
        return Ok(candidates[0]);
    }
    if let Some(kernel) = gpu.choices().recall(problem, &candidates) {
        return Ok(kernel);
    }
    let mut best = (f64::INFINITY, candidates[0]);
    for &kernel in candidates.iter().take(TRIED) {
        let seconds = time(product, problem, kernel, spare)?;
        if seconds < best.0 {
            best = (seconds, kernel);
        }
    }
    gpu.choices().remember(problem, best.1);
    Ok(best.1)
}

/// Seconds that `kernel` takes where weights come from memory: the fastest run, each after the second-level cache was
/// filled with something else.
fn time(
    product: &Product<'_>,
    problem: &Problem,
    kernel: LinearKernel,
    spare: Spare,
) -> Result<f64> {
    let op = product.op;
    let gpu = op.gpu;
    let out = match spare {
        Spare::InPlace => product.outcome.out,
        Spare::Elsewhere => {
            let rows = product.tokens * product.outcome.row_stride as usize;
            gpu.scratch(Scratch::Unwanted, rows * product.out_type.size())?
        }
    };
    let trial = Product {
        outcome: Outcome {
            out,
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

#[cfg(test)]
mod tests {
    use super::super::storage::Storage;
    use super::*;

    #[test]
    fn a_choice_serves_its_neighbours_and_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let problem = |tokens| Problem {
            storage: Storage::Codes,
            n: 512,
            k: 1024,
            tokens,
        };
        let candidates = problem(20).candidates(&Facts::h100());
        let chosen = candidates[1];
        let mut first = Choices::default();
        assert_eq!(first.keep_in(folder.path(), &Facts::h100(), "build"), 0);
        assert_eq!(first.recall(&problem(20), &candidates), None);
        first.remember(&problem(20), chosen);
        assert_eq!(first.of(&problem(32)), Some(chosen));
        assert_eq!(first.of(&problem(33)), None);

        let mut second = Choices::default();
        assert_eq!(second.keep_in(folder.path(), &Facts::h100(), "build"), 1);
        assert_eq!(second.of(&problem(32)), None);
        assert_eq!(second.recall(&problem(32), &candidates), Some(chosen));
        assert_eq!(second.of(&problem(17)), Some(chosen));
    }

    #[test]
    fn a_kept_choice_that_is_no_candidate_is_found_anew() {
        let folder = tempfile::tempdir().unwrap();
        let problem = Problem {
            storage: Storage::Codes,
            n: 512,
            k: 1024,
            tokens: 4,
        };
        let mut first = Choices::default();
        first.keep_in(folder.path(), &Facts::h100(), "build");
        first.remember(&problem, LinearKernel::Any);
        let mut second = Choices::default();
        second.keep_in(folder.path(), &Facts::h100(), "build");
        assert_eq!(
            second.recall(&problem, &problem.candidates(&Facts::h100())),
            None
        );
        assert_eq!(second.of(&problem), None);
    }
}
