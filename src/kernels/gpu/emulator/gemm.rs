//! In the place of a GPU's library of products: plain loops, in f32 or in exact integers.

use half::{bf16, f16};

use super::super::gemm::{Gemm, Numbers};
use crate::scheme::DType;

/// `out = x weightᵀ`, or `out += ...`, with one sum per element in the order of `k`.
///
/// # Safety
/// The addresses lead to host memory with matrices of the shapes and types that `gemm` says.
pub(super) unsafe fn gemm(gemm: &Gemm) {
    let Gemm { tokens, n, k, .. } = *gemm;
    let (x, weight, out) = (gemm.x.get(), gemm.weight.get(), gemm.out.get());
    for t in 0..tokens {
        for i in 0..n {
            let at = t * gemm.row_stride + i;
            // SAFETY: t is less than `tokens`, i than `n` and j than `k`, the dimensions of the matrices.
            unsafe {
                match gemm.numbers {
                    Numbers::Float(inputs, results) => {
                        let mut sum = 0.0_f32;
                        for j in 0..k {
                            let x = load(x, inputs, t * k + j);
                            sum = x.mul_add(load(weight, inputs, i * k + j), sum);
                        }
                        if gemm.accumulate {
                            sum += load(out, results, at);
                        }
                        store(out, results, at, sum);
                    }
                    Numbers::Codes => {
                        let code = |from: u64, at: usize| i32::from((from as *const i8).add(at).read());
                        let sum: i32 = (0..k)
                            .map(|j| code(x, t * k + j) * code(weight, i * k + j))
                            .sum();
                        let target = (out as *mut i32).add(at);
                        let before = if gemm.accumulate { target.read() } else { 0 };
                        target.write(before + sum);
                    }
                }
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
