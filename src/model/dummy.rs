//! Weights that need no file: a function of seed, name and position that host and device compute alike, so that any
//! shape can be timed without a download.

use std::collections::HashMap;
use std::ops::Range;

use super::config::ModelConfig;
use super::host::HostSliceMut;
use crate::error::Result;
use crate::scheme::DType;

/// Distance between the inputs of neighbouring elements: 2^64 divided by the golden ratio, as in SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The value of element `index` of a stream: uniform in [-1, 1), a multiple of 2^-23 and so exact in f32.
pub fn uniform(stream: u64, index: u64) -> f32 {
    let bits = finalise(stream.wrapping_add(index.wrapping_mul(GOLDEN))) >> 40;
    2.0 * (bits as f32 / (1u32 << 24) as f32) - 1.0
}

/// The output function of SplitMix64.
const fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Where dummy weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dummy {
    /// Chooses the weights; the same seed gives the same model.
    pub seed: u64,
}

/// What a dummy tensor is filled with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DummyFill {
    /// One value everywhere.
    Constant(f32),
    /// `amplitude * uniform(stream, flat index)`.
    Uniform {
        /// The largest magnitude.
        amplitude: f32,
    },
}

impl Dummy {
    /// The stream of a tensor: depends on its name and the seed, not on what else the model holds.
    pub fn stream(&self, name: &str) -> u64 {
        // FNV-1a spells the name into 64 bits; the finaliser spreads them.
        let spelled = name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        finalise(spelled ^ finalise(self.seed.wrapping_add(GOLDEN)))
    }

    /// How a tensor is filled: norms with ones, biases with almost nothing, matrices so that a product keeps the
    /// variance of its input.
    pub fn scale(&self, name: &str, shape: &[usize]) -> DummyFill {
        if name.ends_with("norm.weight") {
            return DummyFill::Constant(1.0);
        }
        match shape {
            // A uniform value in [-a, a) has the variance a² / 3; K of them with unit inputs add up to a² K / 3.
            [_, k] => DummyFill::Uniform {
                amplitude: (3.0 / *k as f32).sqrt(),
            },
            _ => DummyFill::Uniform { amplitude: 0.01 },
        }
    }
}

/// The tensors of a configuration, filled on demand.
#[derive(Debug)]
pub(super) struct DummyWeights {
    pub(super) dummy: Dummy,
    pub(super) dtype: DType,
    shapes: HashMap<String, Vec<usize>>,
}

impl DummyWeights {
    pub(super) fn new(config: &ModelConfig, seed: u64) -> Self {
        let tensors = config.tensors().into_iter();
        Self {
            dummy: Dummy { seed },
            dtype: config.dtype,
            shapes: tensors.map(|t| (t.name, t.shape)).collect(),
        }
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// Rows of `width` elements, for a range that has been checked.
    pub(super) fn read_rows(
        &self,
        name: &str,
        shape: &[usize],
        rows: Range<usize>,
        mut out: HostSliceMut<'_>,
    ) -> Result<()> {
        let width = out.len() / rows.len().max(1);
        let stream = self.dummy.stream(name);
        let fill = self.dummy.scale(name, shape);
        let mut values = vec![0.0; width];
        for (i, row) in rows.enumerate() {
            let first = row as u64 * width as u64;
            for (value, index) in values.iter_mut().zip(first..) {
                *value = match fill {
                    DummyFill::Constant(value) => value,
                    DummyFill::Uniform { amplitude } => amplitude * uniform(stream, index),
                };
            }
            out.put(i * width, &values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned_because_a_kernel_repeats_them() {
        // The first outputs of SplitMix64 seeded with 0, but for the increment before the first.
        assert_eq!(finalise(GOLDEN), 0xE220_A839_7B1D_CDAF);
        let top = (0xE220_A839_7B1D_CDAFu64 >> 40) as f32;
        assert_eq!(uniform(0, 1), top / 8_388_608.0 - 1.0);
        assert_eq!(uniform(0, 0), -1.0);
    }

    #[test]
    fn values_are_uniform_and_streams_differ() {
        let dummy = Dummy { seed: 7 };
        let stream = dummy.stream("model.norm.weight");
        let n = 100_000u32;
        let values: Vec<f64> = (0..n)
            .map(|i| uniform(stream, u64::from(i)).into())
            .collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let square = values.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.01, "{square}");
        assert_ne!(stream, dummy.stream("model.norm.weighu"));
        assert_ne!(stream, Dummy { seed: 8 }.stream("model.norm.weight"));
    }
}
