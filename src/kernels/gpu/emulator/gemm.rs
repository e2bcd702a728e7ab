//! In the place of a GPU's library of products: plain loops in f32.

use half::{bf16, f16};

use super::super::gemm::Gemm;
use crate::scheme::DType;

/// `out = x weightᵀ`, or `out += ...`, with one f32 sum per element in the order of `k`.
///
/// # Safety
/// The addresses lead to host memory with matrices of the shapes and types that `gemm` says.
pub(super) unsafe fn gemm(gemm: &Gemm) {
    let Gemm { tokens, n, k, .. } = *gemm;
    for t in 0..tokens {
        for i in 0..n {
            let at = t * n + i;
            // SAFETY: t is less than `tokens`, i than `n` and j than `k`, the dimensions of the matrices.
            unsafe {
                let mut sum = 0.0_f32;
                for j in 0..k {
                    let x = load(gemm.x.get(), gemm.x_type, t * k + j);
                    let w = load(gemm.weight.get(), gemm.x_type, i * k + j);
                    sum = x.mul_add(w, sum);
                }
                if gemm.accumulate {
                    sum += load(gemm.out.get(), gemm.out_type, at);
                }
                store(gemm.out.get(), gemm.out_type, at, sum);
            }
        }
    }
}

/// # Safety
/// An array of this type with an element `index` begins at `address`.
unsafe fn load(address: u64, dtype: DType, index: usize) -> f32 {
    // SAFETY: by contract; allocations are aligned for every type.
    unsafe {
        match dtype {
            DType::F32 => (address as *const f32).add(index).read(),
            DType::F16 => (address as *const f16).add(index).read().to_f32(),
            DType::BF16 => (address as *const bf16).add(index).read().to_f32(),
        }
    }
}

/// # Safety
/// As [`load`].
unsafe fn store(address: u64, dtype: DType, index: usize, value: f32) {
    // SAFETY: by contract; allocations are aligned for every type.
    unsafe {
        match dtype {
            DType::F32 => (address as *mut f32).add(index).write(value),
            DType::F16 => (address as *mut f16).add(index).write(f16::from_f32(value)),
            DType::BF16 => (address as *mut bf16)
                .add(index)
                .write(bf16::from_f32(value)),
        }
    }
}
