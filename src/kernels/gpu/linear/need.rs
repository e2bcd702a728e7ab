//! How much memory the launches of a product may need beside their arguments.

use super::fused::FusedKernel;
use super::geometry::{MOST_FEW, MOST_FUSED, ROWS};
use super::library::{self, tokens_at_once};
use super::plan::{LinearKernel, Problem};
use super::storage::Storage;
use crate::kernels::gpu::driver::Facts;
use crate::kernels::gpu::need::ProductNeed;
use crate::kernels::gpu::workspace::{Scratch, WorkspaceNeed};
use crate::scheme::DType;

/// Adds what any launch of `product` may need, whichever kernel is chosen for whatever number of tokens.
pub(in crate::kernels::gpu) fn add_need(
    product: &ProductNeed,
    act: DType,
    facts: &Facts,
    need: &mut WorkspaceNeed,
) {
    let ProductNeed { n, k, tokens, .. } = *product;
    if act == DType::F32 || n == 0 || k == 0 || tokens == 0 {
        return;
    }
    if product.ordered {
        let each = k * if product.codes { 1 } else { act.size() };
        need.at_least(Scratch::Ordered, tokens.saturating_mul(each));
    }
    let storages = Storage::all().into_iter().filter(|&storage| match storage {
        Storage::Codes => product.codes,
        Storage::Plain(x) => product.plain && x == act,
        Storage::Int8 { x, .. } | Storage::E4m3 { x, .. } | Storage::Int4 { x, .. } => {
            !product.plain && x == act
        }
    });
    for storage in storages {
        let problem = Problem {
            storage,
            n,
            k,
            tokens,
        };
        let (sums, counters) = problem.most_workspace(facts);
        need.at_least(Scratch::Partial, sums.saturating_mul(4));
        need.at_least(Scratch::Counters, counters.saturating_mul(4));
        for tokens in 1..=tokens.min(MOST_FUSED) {
            add_fused(&Problem { tokens, ..problem }, facts, need);
        }
        match problem.library() {
            Some(LinearKernel::Dequantized { tiles }) => {
                need.at_least(Scratch::Dequantized, tiles * ROWS * k * act.size());
            }
            Some(LinearKernel::Library) if storage == Storage::Codes => {
                let rows = tokens.min(tokens_at_once(n));
                need.at_least(Scratch::Sums, rows.saturating_mul(n).saturating_mul(4));
            }
            _ => {}
        }
    }
}

/// Of a launch that norms its inputs, in as many parts as the product alone may be summed in.
fn add_fused(problem: &Problem, facts: &Facts, need: &mut WorkspaceNeed) {
    for alone in problem.candidates(facts) {
        let Some(kernel) = FusedKernel::choose(problem, alone, facts) else {
            continue;
        };
        let groups = problem.groups(kernel.tiles);
        let blocks = kernel.blocks(problem, facts);
        // Whether it picks is the step's business; the best of each block are few numbers.
        let (numbers, counters) = kernel.workspace(groups, blocks);
        need.at_least(Scratch::Partial, numbers * 4);
        need.at_least(Scratch::Counters, counters * 4);
    }
}

/// Bytes of results that nobody keeps, of the runs that tell which kernel is the fastest: results that are not added to
/// others go where they are wanted, but for launches that want something else of them.
pub(in crate::kernels::gpu) fn unwanted_bytes(product: &ProductNeed, act: DType) -> usize {
    let tokens = if product.accumulates {
        product.tokens
    } else {
        product.tokens.min(MOST_FUSED)
    };
    // Picks come of f32 numbers.
    let size = if product.accumulates { act.size() } else { 4 };
    tokens.saturating_mul(product.n).saturating_mul(size)
}

impl Problem {
    /// The most f32 numbers and counters of [`LinearKernel::workspace`] for up to as many tokens as these. A choice serves
    /// up to twice as many tokens as it was made for.
    fn most_workspace(&self, facts: &Facts) -> (usize, usize) {
        let (mut numbers, mut counters) = (0, 0);
        let mut add = |(n, c): (usize, usize)| {
            numbers = numbers.max(n);
            counters = counters.max(c);
        };
        for tokens in 1..=self.tokens.min(MOST_FEW) {
            let few = Self { tokens, ..*self };
            few.candidates(facts)
                .into_iter()
                .for_each(|kernel| add(kernel.workspace(&few)));
        }
        if self.tokens > library::FEWEST_TOKENS {
            for kernel in self.tiled_in_parts() {
                add(kernel.most_workspace(self, facts));
            }
        }
        (numbers, counters)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_kernel_that_may_be_chosen_needs_more(
            n in 1_usize..9000, k8 in 1_usize..600, most in 1_usize..700, share in 0.0..1.0_f64
        ) {
            let facts = Facts::h100();
            let tokens = ((most as f64 * share) as usize).max(1);
            for storage in Storage::all() {
                let all = Problem { storage, n, k: k8 * 32, tokens: most };
                let (numbers, counters) = all.most_workspace(&facts);
                // A choice is made at the first number of tokens of its bucket that comes up.
                let first = super::super::plan::bucket(tokens) / 2 + 1;
                let (here, chosen_at) = (Problem { tokens, ..all }, Problem { tokens: first.min(tokens), ..all });
                for problem in [here, chosen_at] {
                    for kernel in problem.candidates(&facts) {
                        let (n, c) = kernel.workspace(&here);
                        prop_assert!(n <= numbers && c <= counters, "{storage:?} {kernel}: {n} {c}, {numbers} {counters}");
                    }
                }
            }
        }
    }
}
