//! Weights that are not quantised.

use half::{bf16, f16};

use super::{Blocks, Rows, halves};
use crate::kernels::device::HostElem;
use crate::kernels::simd::{LANES, Simd};
use crate::scheme::{BLOCK, DType, Elem};

#[derive(Clone, Copy)]
pub(crate) struct Plain<'a, W> {
    pub(crate) w: &'a [W],
    pub(crate) k: usize,
}

impl<'a, W: Elem + HostElem> Rows for Plain<'a, W> {
    type Row = Blocks<'a, W>;
    type Group<S: Simd> = ();
    fn k(&self) -> usize {
        self.k
    }
    #[inline(always)]
    fn row(&self, row: usize) -> Self::Row {
        self.w[row * self.k..][..self.k].as_chunks()
    }
    #[inline(always)]
    fn group<S: Simd>(&self, _s: S, _row: Self::Row, _group: usize) {}
    #[inline(always)]
    fn load<S: Simd>(s: S, row: Self::Row, block: usize, _group: ()) -> (S::V, S::V) {
        let (low, high) = halves(&row.0[block]);
        (widened(s, low), widened(s, high))
    }
    fn one(&self, row: Self::Row, column: usize) -> f32 {
        row.1[column % BLOCK].to_f32()
    }
}

/// Sixteen plain weights as f32.
#[inline(always)]
fn widened<S: Simd, W: Elem + HostElem>(s: S, x: &[W; LANES]) -> S::V {
    match W::DTYPE {
        DType::F32 => s.load(bytemuck::cast_ref::<[W; LANES], [f32; LANES]>(x)),
        DType::F16 => s.load_f16(bytemuck::cast_ref::<[W; LANES], [f16; LANES]>(x)),
        DType::BF16 => s.load_bf16(bytemuck::cast_ref::<[W; LANES], [bf16; LANES]>(x)),
    }
}
