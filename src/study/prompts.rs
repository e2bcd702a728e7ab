//! Prompts of random tokens, no two alike, so that nothing can be cached between rows or trials.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `count` token ids below `vocab`: a function of the seed and of where in the run they are used.
pub fn random_tokens(seed: u64, trial: u64, row: u64, count: usize, vocab: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(trial << 20 | row);
    (0..count)
        .map(|_| rng.random_range(0..vocab as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_by_row_and_trial_and_repeat_by_seed() {
        let make = |seed, trial, row| random_tokens(seed, trial, row, 32, 1000);
        assert_eq!(make(1, 2, 3), make(1, 2, 3));
        let all = [make(1, 2, 3), make(1, 2, 4), make(1, 3, 3), make(2, 2, 3)];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
            assert!(a.iter().all(|&t| t < 1000));
        }
    }
}
