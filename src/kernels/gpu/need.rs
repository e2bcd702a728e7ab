//! How much memory the launches of a model's steps need beside their arguments, before any of them.

use super::device::Gpu;
use super::driver::Facts;
use super::workspace::{Scratch, WorkspaceNeed};
use super::{fill, flash, linear};
use crate::kernels::attention::Attention;
use crate::scheme::DType;

/// A product of every step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductNeed {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// The most tokens that a step multiplies with it.
    pub tokens: usize,
    /// Whether results are added to what is there.
    pub accumulates: bool,
    /// Whether the weight is plain in the type of the activations, so that nothing dequantises it.
    pub plain: bool,
    /// Whether inputs are codes.
    pub codes: bool,
    /// Whether the columns of the weight stand in an order of their own.
    pub ordered: bool,
}

/// What steps launch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepNeed {
    /// The type of activations.
    pub act: DType,
    /// Every product.
    pub products: Vec<ProductNeed>,
    /// Attention, with the most tokens that are alone in their slots.
    pub attention: Attention,
}

impl StepNeed {
    /// The most that any step's launches need on `gpu`.
    pub fn on(&self, gpu: &Gpu) -> WorkspaceNeed {
        let mut need = self.of(gpu.facts());
        if gpu.is_timed() {
            // Which kernel is the fastest is found where results are not wanted, with nothing in the cache.
            for product in &self.products {
                need.at_least(Scratch::Unwanted, linear::unwanted_bytes(product, self.act));
            }
            need.at_least(Scratch::Eviction, fill::eviction_bytes(gpu.facts()));
        }
        need
    }

    fn of(&self, facts: &Facts) -> WorkspaceNeed {
        let mut need = WorkspaceNeed::default();
        for product in &self.products {
            linear::add_need(product, self.act, facts, &mut need);
        }
        flash::add_need(&self.attention, self.act, facts, &mut need);
        need
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::attention::Queries;
    use crate::scheme::KvFormat;

    fn llama_8b(codes: bool) -> StepNeed {
        let product = |n, k, accumulates| ProductNeed {
            n,
            k,
            tokens: 8192,
            accumulates,
            plain: false,
            codes,
            ordered: false,
        };
        StepNeed {
            act: DType::BF16,
            products: vec![
                product(6144, 4096, false),
                product(4096, 4096, true),
                product(28_672, 4096, false),
                product(4096, 14_336, true),
            ],
            attention: Attention {
                tokens: 256,
                heads: 32,
                kv_heads: 8,
                head_dim: 128,
                capacity: 4096,
                kv: KvFormat::Auto,
                scale: 1.0,
                queries: Queries::Single,
            },
        }
    }

    #[test]
    fn a_large_model_needs_little_beside_its_own() {
        for codes in [false, true] {
            let need = llama_8b(codes).of(&Facts::h100());
            assert!(need.bytes().0 > 1 << 20, "{codes}: {need:?}");
            assert!(need.bytes().0 < 192 << 20, "{codes}: {need:?}");
            assert_eq!(need.of(Scratch::Sums) > 0, codes);
            assert!(need.of(Scratch::Dequantized) > 0);
            assert_eq!(need.of(Scratch::Unwanted), 0);
        }
    }

    #[test]
    fn in_f32_no_launch_needs_anything() {
        let need = StepNeed {
            act: DType::F32,
            ..llama_8b(false)
        };
        assert_eq!(need.of(&Facts::h100()), WorkspaceNeed::default());
    }
}
