//! What a product by a device's library is told.

use super::launch::Address;
use crate::scheme::DType;

/// `out [tokens, n] = x [tokens, k] weight [n, k]ᵀ`, row by row in memory, summed in f32.
#[derive(Clone, Copy)]
pub(super) struct Gemm {
    pub(super) tokens: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) x: Address,
    /// Of the weight too.
    pub(super) x_type: DType,
    pub(super) weight: Address,
    pub(super) out: Address,
    pub(super) out_type: DType,
    /// Whether the product is added to what `out` holds.
    pub(super) accumulate: bool,
}
