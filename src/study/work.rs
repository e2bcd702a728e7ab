//! What the work of a cell costs at least, by the ops' own accounts.

use crate::engine::{DeviceWeights, StepPlan, StepWork};
use crate::kernels::attention::Queries;
use crate::kernels::{self, Device};
use crate::results::environment::Ceilings;
use crate::results::record::{Cell, Work};
use crate::results::roofline::{Cost, Limits};
use crate::scheme::{DType, KvFormat};

/// The cost of a trial of `cell`, whose prompts go in steps of `chunk` tokens with the cache in the format `kv`, and the
/// ceilings that bound it.
pub(super) fn of_cell(
    (weights, plan): (&DeviceWeights, StepPlan),
    cell: &Cell,
    chunk: usize,
    kv: KvFormat,
    device: &Device,
    ceilings: Option<&Ceilings>,
) -> Work {
    let product = match device {
        _ if weights.has_codes() => "int8",
        // The CPU's products are of f32 whatever is stored.
        Device::Cpu => DType::F32.name(),
        Device::Gpu(_) => weights.act.name(),
    };
    let cost_of = |step: &StepWork| weights.step_cost(device, plan, step, kv);
    Work {
        prefill: wire(prefill(cell, chunk).iter().map(cost_of).sum()),
        decode_step: (cell.generate > 1).then(|| wire(cost_of(&decode(cell)))),
        limits: Limits::of(ceilings, Some(product)),
    }
}

fn wire(cost: kernels::Cost) -> Cost {
    Cost {
        read_bytes: cost.read,
        written_bytes: cost.written,
        flops: cost.flops,
    }
}

/// The steps of a prefill: prompts one after another, cut wherever a step is full.
fn prefill(cell: &Cell, chunk: usize) -> Vec<StepWork> {
    let total = cell.batch * cell.prompt;
    (0..total)
        .step_by(chunk.max(1))
        .map(|first| {
            let end = (first + chunk.max(1)).min(total);
            let mut step = StepWork {
                tokens: end - first,
                queries: Queries::Single,
                seen: 0.0,
                cached: 0.0,
                logits: 0,
                picks: false,
            };
            let mut at = first;
            while at < end {
                let from = at % cell.prompt;
                let to = (from + end - at).min(cell.prompt);
                // Token i of a prompt sees depth + i + 1 positions.
                let count = (to - from) as f64;
                let mean = (cell.depth + 1) as f64 + (from + to - 1) as f64 / 2.0;
                step.seen += count * mean;
                step.cached += (cell.depth + to) as f64;
                step.logits += usize::from(to == cell.prompt);
                // Tokens of a prompt are neighbours.
                if to - from > 1 {
                    step.queries = Queries::Runs;
                }
                at += to - from;
            }
            step
        })
        .collect()
}

/// The mean step of decoding: one token of each sequence, half of the generated ones behind it.
fn decode(cell: &Cell) -> StepWork {
    let context = (cell.depth + cell.prompt) as f64 + cell.generate as f64 / 2.0;
    let seen = cell.batch as f64 * context;
    StepWork {
        tokens: cell.batch,
        queries: Queries::Single,
        seen,
        cached: seen,
        logits: cell.batch,
        picks: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: Cell = Cell {
        batch: 3,
        prompt: 10,
        generate: 5,
        depth: 100,
    };

    #[test]
    fn every_token_of_a_prefill_is_counted_once_whatever_the_chunk() {
        let seen: f64 = 3.0 * (1..=10).map(|i| f64::from(100 + i)).sum::<f64>();
        for chunk in [1, 7, 10, 13, 30, 1000] {
            let steps = prefill(&CELL, chunk);
            assert_eq!(steps.iter().map(|step| step.tokens).sum::<usize>(), 30);
            assert_eq!(steps.iter().map(|step| step.logits).sum::<usize>(), 3);
            let all: f64 = steps.iter().map(|step| step.seen).sum();
            assert!((all - seen).abs() < 1e-9, "{chunk}: {all} {seen}");
        }
        // In one step every position is read once; in steps of one token, again for each.
        assert_eq!(prefill(&CELL, 30)[0].cached, 330.0);
        let cached: f64 = prefill(&CELL, 1).iter().map(|step| step.cached).sum();
        assert!((cached - seen).abs() < 1e-9);
    }

    #[test]
    fn tokens_of_a_prefill_are_alone_where_no_two_of_a_prompt_are_in_a_step() {
        let queries = |cell: &Cell, chunk| -> Vec<Queries> {
            prefill(cell, chunk)
                .iter()
                .map(|step| step.queries)
                .collect()
        };
        let short = Cell { prompt: 1, ..CELL };
        assert_eq!(queries(&short, 30), [Queries::Single]);
        assert_eq!(queries(&CELL, 30), [Queries::Runs]);
        assert!(queries(&CELL, 1).iter().all(|&q| q == Queries::Single));
        // The second step begins with the last token of the first prompt and goes on with eight of the second.
        assert_eq!(queries(&CELL, 9)[1], Queries::Runs);
    }

    #[test]
    fn the_mean_step_of_decoding_stands_in_the_middle() {
        // Steps 1 to 4 see 111 to 114 positions.
        let step = decode(&CELL);
        assert_eq!((step.tokens, step.logits), (3, 3));
        assert!(step.picks);
        assert_eq!(step.seen, 3.0 * 112.5);
    }
}
