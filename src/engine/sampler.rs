//! From logits to a token: temperature, top-k, top-p, seeded.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// How tokens are drawn. Filters apply in this order: temperature, top-k, top-p, as in transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Chooses the random stream.
    pub seed: u64,
}

/// A stream of draws for one sequence.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of sequence `index`: its draws depend on the seed and the index, not on the batch.
    pub fn new(sampling: Sampling, index: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(index);
        Self { sampling, rng }
    }

    /// Draws a token from `logits`.
    ///
    /// # Errors
    /// If a logit is NaN or all are negative infinity.
    pub fn pick(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.iter().any(|x| x.is_nan()) {
            return Err(Error::NotFinite("a logit is NaN".into()));
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let likelier = |&a: &u32, &b: &u32| {
            logits[b as usize]
                .total_cmp(&logits[a as usize])
                .then(a.cmp(&b))
        };
        if self.sampling.temperature <= 0.0 {
            return order
                .into_iter()
                .min_by(likelier)
                .ok_or_else(|| Error::Internal("no logits".into()));
        }
        let k = match self.sampling.top_k {
            0 => order.len(),
            k => k.min(order.len()),
        };
        if k < order.len() {
            order.select_nth_unstable_by(k, likelier);
            order.truncate(k);
        }
        order.sort_unstable_by(likelier);
        let most = order
            .first()
            .map_or(f32::NEG_INFINITY, |&i| logits[i as usize]);
        if most == f32::NEG_INFINITY {
            return Err(Error::NotFinite("every logit is negative infinity".into()));
        }
        let weight = |i: &u32| {
            (f64::from(logits[*i as usize] - most) / f64::from(self.sampling.temperature)).exp()
        };
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let enough = weights.iter().position(|w| {
            sum += w;
            sum >= f64::from(self.sampling.top_p) * total
        });
        weights.truncate(enough.map_or(weights.len(), |last| last + 1));
        Ok(order[self.draw(&weights)])
    }

    /// An index drawn in proportion to the weights.
    fn draw(&mut self, weights: &[f64]) -> usize {
        let mut left = unit(&mut self.rng) * weights.iter().sum::<f64>();
        for (i, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return i;
            }
        }
        weights.len() - 1
    }
}

/// Uniform in `[0, 1)`.
fn unit(rng: &mut impl Rng) -> f64 {
    rng.random::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn counts(sampling: Sampling) -> [usize; 5] {
        let mut counts = [0; 5];
        let mut sampler = Sampler::new(sampling, 0);
        (0..20_000).for_each(|_| counts[sampler.pick(&LOGITS).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let plain = Sampling {
            temperature: 2.0,
            top_k: 0,
            top_p: 1.0,
            seed: 7,
        };
        let weights = LOGITS.map(|x| f64::from(x / 2.0).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts(plain).into_iter().zip(weights) {
            let (p, n) = (weight / total, 20_000.0);
            assert!(
                (count as f64 - n * p).abs() < 4.5 * (n * p * (1.0 - p)).sqrt(),
                "{count} {p}"
            );
        }
        assert_eq!(counts(plain), counts(plain));
        assert_ne!(counts(plain), counts(Sampling { seed: 8, ..plain }));
    }

    #[test]
    fn filters_keep_only_the_likely() {
        let base = Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            seed: 1,
        };
        let kept = |s| counts(s).map(|n| n > 0);
        assert_eq!(
            kept(Sampling { top_k: 2, ..base }),
            [false, true, false, true, false]
        );
        assert_eq!(
            kept(Sampling { top_p: 0.5, ..base }),
            [false, true, false, true, false]
        );
        assert_eq!(
            kept(Sampling {
                temperature: 0.0,
                ..base
            }),
            [false, true, false, false, false]
        );
        assert!(Sampler::new(base, 0).pick(&[f32::NAN, 1.0]).is_err());
    }
}
