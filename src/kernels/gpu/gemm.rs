//! What a product by a device's library is told.

use super::launch::Address;
use crate::scheme::DType;

/// Types of the numbers of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Numbers {
    /// Type of x and the weight, and of what comes out; sums are f32.
    Float(DType, DType),
    /// Two's complement bytes, and exact i32 sums. `k` and `n` are multiples of 4.
    Codes,
}

/// `out [tokens, n] = x [tokens, k] weight [n, k]ᵀ`, row by row in memory.
#[derive(Clone, Copy)]
pub(super) struct Gemm {
    pub(super) tokens: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) x: Address,
    pub(super) weight: Address,
    pub(super) numbers: Numbers,
    pub(super) out: Address,
    /// Elements from one row of `out` to the next.
    pub(super) row_stride: usize,
    /// Whether the product is added to what `out` holds.
    pub(super) accumulate: bool,
}
