//! Rotary position embedding: the inverse frequencies of every scaling rule that the supported families use.

use std::f64::consts::PI;

use serde_json::{Value, json};

/// How positions turn into rotation angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the geometric series of wavelengths.
    pub theta: f64,
    /// What stretches the series for long contexts.
    pub scaling: RopeScaling,
}

/// A rule that stretches the wavelengths.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// The plain series.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The rule of Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// The divisor of the lowest frequencies.
        factor: f64,
        /// Waves longer than `original / low` are stretched in full.
        low: f64,
        /// Waves shorter than `original / high` are kept.
        high: f64,
        /// Positions that the model was first trained on.
        original: usize,
    },
    /// One divisor per frequency, `[head_dim / 2]`: the tensor `rope_freqs.weight` of a GGUF file.
    Factors(Vec<f32>),
}

impl RopeScaling {
    /// As `rope_scaling` of a config.json says it; `None` where no key can.
    pub(super) fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Llama3 {
                factor,
                low,
                high,
                original,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
            Self::Factors(_) => return None,
        })
    }
}

impl Rope {
    /// Whether every parameter is in the range where the formulas hold.
    pub(super) fn is_sound(&self) -> bool {
        let sound = |x: f64| x.is_finite() && x > 0.0;
        let scaling = match &self.scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => sound(*factor),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => sound(*factor) && sound(*low) && high.is_finite() && high > low && *original > 0,
            RopeScaling::Factors(factors) => factors.iter().all(|&f| sound(f64::from(f))),
        };
        sound(self.theta) && scaling
    }

    /// Radians per position of each pair of components, `[head_dim / 2]`; the pair `i` is (`i`, `i + head_dim / 2`).
    ///
    /// Missing entries of [`RopeScaling::Factors`] count as 1.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = self.theta.powf(-2.0 * i as f64 / head_dim as f64);
                self.scaling.apply(i, plain)
            })
            .collect()
    }
}

impl RopeScaling {
    fn apply(&self, i: usize, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Factors(factors) => frequency / factors.get(i).map_or(1.0, |&f| f64::from(f)),
            Self::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let waves = *original as f64 * frequency / (2.0 * PI);
                // 0 where fewer than `low` waves fit into the original context, 1 from `high` waves on.
                let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(factor: f64, head_dim: usize, expected: &[(usize, f64)]) {
        let rope = Rope {
            theta: 5e5,
            scaling: RopeScaling::Llama3 {
                factor,
                low: 1.0,
                high: 4.0,
                original: 8192,
            },
        };
        let found = rope.inverse_frequencies(head_dim);
        for &(i, want) in expected {
            assert!(
                (found[i] / want - 1.0).abs() < 1e-6,
                "{i}: {} for {want}",
                found[i]
            );
        }
    }

    #[test]
    fn llama3_scaling_gives_the_reference_frequencies() {
        check(
            8.0,
            128,
            &[
                (28, 0.003_211_446_1),
                (29, 0.002_166_570_6),
                (30, 0.001_371_893_7),
                (34, 0.000_178_507_79),
                (35, 9.556_212_2e-5),
                (36, 7.784_655_5e-5),
                (63, 3.068_925_9e-7),
            ],
        );
        check(
            32.0,
            64,
            &[
                (14, 0.003_211_446_0),
                (15, 0.001_290_547_9),
                (16, 0.000_429_556_80),
                (17, 9.708_287_8e-5),
                (18, 1.946_163_8e-5),
                (31, 9.418_306_7e-8),
            ],
        );
    }

    #[test]
    fn factors_and_linear_scaling_divide() {
        let with = |scaling| {
            Rope {
                theta: 1e4,
                scaling,
            }
            .inverse_frequencies(8)
        };
        let plain = with(RopeScaling::None);
        assert_eq!(plain[0], 1.0);
        let linear = with(RopeScaling::Linear { factor: 4.0 });
        let factors = with(RopeScaling::Factors(vec![4.0; 4]));
        for i in 0..4 {
            assert_eq!(linear[i], plain[i] / 4.0);
            assert_eq!(factors[i], linear[i]);
        }
    }
}
