//! What layers are given when the model reads a text: which tokens, and what is kept of the inputs.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::linalg::{add_gram, mirror};
use crate::error::{Error, Result};

/// Runs of tokens of one length that the model reads for calibration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Tokens of each run.
    pub length: usize,
    /// The runs.
    pub rows: Vec<Vec<u32>>,
}

impl Samples {
    /// Cuts a tokenised text into runs of `length` tokens that do not overlap, and takes `count` of them by `seed`.
    ///
    /// # Errors
    /// If the text is too short; the message says how many runs it has.
    pub fn draw(ids: &[u32], count: usize, length: usize, seed: u64) -> Result<Self> {
        if length < 2 {
            return Err(Error::Usage(
                "--calibration-length must be at least 2 tokens".into(),
            ));
        }
        let mut rows: Vec<&[u32]> = ids.chunks_exact(length).collect();
        if rows.len() < count || count == 0 {
            return Err(Error::Config(format!(
                "the calibration text has {} tokens, so {} runs of {length}, not {count}: lower --calibration-samples or \
                 --calibration-length, or give a longer text",
                ids.len(),
                rows.len()
            )));
        }
        rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let rows = rows[..count].iter().map(|row| row.to_vec()).collect();
        Ok(Self { length, rows })
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.length * self.rows.len()
    }

    /// A hash of all tokens, with the algorithm in front.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(self.length as u64).to_le_bytes());
        for row in &self.rows {
            hasher.update(bytemuck::cast_slice(row));
        }
        format!("blake3:{}", hasher.finalize().to_hex())
    }

    /// The share of the runs of 16 tokens in here that also occur in `scored`, 0 to 1: a text that a model is scored on
    /// must not be one that it was quantised for.
    pub fn overlap(&self, scored: &[u32]) -> f64 {
        const RUN: usize = 16;
        let known: std::collections::HashSet<&[u32]> = scored.windows(RUN).collect();
        let runs = || self.rows.iter().flat_map(|row| row.windows(RUN));
        let shared = runs().filter(|run| known.contains(run)).count();
        shared as f64 / runs().count().max(1) as f64
    }
}

/// What is kept of the inputs that the linear layers of a site share.
pub(super) struct Statistics {
    pub(super) k: usize,
    pub(super) tokens: u64,
    /// `[k, k]`: the sum over tokens of `x xᵀ`; the lower triangle only until [`Statistics::finish`].
    pub(super) gram: Vec<f32>,
    /// `[k]`: the sum of magnitudes.
    pub(super) sum: Vec<f64>,
    /// `[k]`: the largest magnitude.
    pub(super) largest: Vec<f32>,
}

impl Statistics {
    pub(super) fn new(k: usize) -> Self {
        Self {
            k,
            tokens: 0,
            gram: vec![0.0; k * k],
            sum: vec![0.0; k],
            largest: vec![0.0; k],
        }
    }

    /// Takes in `x [tokens, k]`.
    pub(super) fn add(&mut self, x: &[f32]) {
        self.tokens += (x.len() / self.k) as u64;
        for token in x.chunks_exact(self.k) {
            let channels = self.sum.iter_mut().zip(&mut self.largest).zip(token);
            for ((sum, largest), x) in channels {
                let x = x.abs();
                *sum += f64::from(x);
                *largest = largest.max(x);
            }
        }
        add_gram(x, self.k, &mut self.gram);
    }

    /// To be called once, after the last token: completes the Gram matrix and divides it by the number of tokens.
    pub(super) fn finish(&mut self) {
        let tokens = self.tokens.max(1) as f32;
        mirror(&mut self.gram, self.k);
        self.gram.iter_mut().for_each(|x| *x /= tokens);
    }

    /// Mean magnitudes, `[k]`.
    pub(super) fn means(&self) -> Vec<f64> {
        let tokens = self.tokens.max(1) as f64;
        self.sum.iter().map(|sum| sum / tokens).collect()
    }

    /// What would have been kept of inputs whose channels had been divided by `scales [k]`.
    pub(super) fn divide(&mut self, scales: &[f32]) {
        for (row, si) in self.gram.chunks_exact_mut(self.k).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(x, sj)| *x /= si * sj);
        }
        let channels = self.sum.iter_mut().zip(&mut self.largest).zip(scales);
        for ((sum, largest), &s) in channels {
            *sum /= f64::from(s);
            *largest /= s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_drawn_by_seed_and_do_not_overlap() {
        let ids: Vec<u32> = (0..1005).collect();
        let drawn = |seed| Samples::draw(&ids, 6, 100, seed).unwrap();
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
        assert_ne!(drawn(1).digest(), drawn(2).digest());
        let mut firsts: Vec<u32> = drawn(3).rows.iter().map(|row| row[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 6);
        assert!(firsts.iter().all(|first| first.is_multiple_of(100)));
        let error = Samples::draw(&ids, 11, 100, 0).unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.to_string().contains("10 runs of 100"), "{error}");
    }

    #[test]
    fn a_text_that_is_scored_is_recognised_wherever_it_is_cut() {
        let scored: Vec<u32> = (0..2000).map(|i| i * i % 977).collect();
        let same = Samples::draw(&scored[7..], 5, 128, 0).unwrap();
        assert_eq!(same.overlap(&scored), 1.0);
        let other: Vec<u32> = (0..2000).map(|i| i * 31 % 1009).collect();
        assert_eq!(
            Samples::draw(&other, 5, 128, 0).unwrap().overlap(&scored),
            0.0
        );
    }

    #[test]
    fn dividing_statistics_is_taking_them_of_divided_inputs() {
        let x: Vec<f32> = (0..5 * 4).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
        let scales = [0.5, 2.0, 4.0, 1.0];
        let mut divided = Statistics::new(4);
        let halves: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, x)| x / scales[i % 4])
            .collect();
        divided.add(&halves);
        divided.finish();
        let mut after = Statistics::new(4);
        after.add(&x);
        after.finish();
        after.divide(&scales);
        for (a, b) in after.gram.iter().zip(&divided.gram) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        assert_eq!(after.largest, divided.largest);
        assert_eq!(after.means(), divided.means());
    }
}
