//! Which variants take turns, and in which order.

use std::ops::Range;

use super::fit::fit_together;
use super::job::Job;
use super::plan::Plan;
use super::run::Watcher;
use crate::kernels::Device;

/// Variants that are measured together: those that take turns, else each alone.
pub(super) struct Group {
    pub(super) jobs: Range<usize>,
    pub(super) takes_turns: bool,
}

/// The variants of a model take turns if the plan wants that and all of them fit the device at once.
pub(super) fn groups(
    plan: &Plan,
    device: &Device,
    jobs: &[Job<'_>],
    watcher: &mut dyn Watcher,
) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut start = 0;
    for of_model in jobs.chunk_by(|a, b| std::ptr::eq(a.model, b.model)) {
        let jobs = start..start + of_model.len();
        start = jobs.end;
        let wanted = plan.turns > 1 && of_model.len() > 1 && !plan.cells.is_empty();
        let takes_turns = wanted && fit_together(plan, device, of_model);
        if wanted && !takes_turns {
            watcher.note(
                &of_model[0].model.name,
                "variants do not fit side by side, so each is timed after the other",
            );
        }
        groups.push(Group { jobs, takes_turns });
    }
    groups
}

/// The order of a round, counted from one. Forward, backward, backward, forward, and over again: of two variants ABBA BAAB,
/// so that a drift that is linear in time adds the same to each after every even number of rounds. Where there are fewer
/// trials than rounds some rounds make none, and of an odd number of trials one is left over.
pub(super) fn turns(round: usize, of: &[usize]) -> Vec<usize> {
    let mut order = of.to_vec();
    if matches!(round % 4, 2 | 3) {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_drift_hits_all_variants_alike() {
        for variants in 2..5 {
            let of: Vec<usize> = (0..variants).collect();
            for rounds in [2, 4, 8] {
                let mut sums = vec![0; variants];
                let order = (1..=rounds).flat_map(|round| turns(round, &of));
                for (moment, variant) in order.enumerate() {
                    sums[variant] += moment;
                }
                assert!(sums.iter().all(|&sum| sum == sums[0]), "{rounds}: {sums:?}");
            }
        }
    }

    #[test]
    fn a_drift_that_speeds_up_hits_two_variants_alike_as_well() {
        let mut sums = [0, 0];
        let order = (1..=4).flat_map(|round| turns(round, &[0, 1]));
        for (moment, variant) in order.enumerate() {
            sums[variant] += moment * moment;
        }
        assert_eq!(sums[0], sums[1]);
    }
}
