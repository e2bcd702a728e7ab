//! In which order variants take turns.

/// The order of a round, counted from one. Forward, backward, backward, forward, and over again: of two variants ABBA BAAB,
/// so that a drift that is linear in time adds the same to each.
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
