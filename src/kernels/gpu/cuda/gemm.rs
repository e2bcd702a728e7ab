//! Products by cuBLAS.

use cudarc::cublas::{CudaBlas, result::gemm_ex, sys};

use super::super::gemm::Gemm;
use super::fault;
use crate::error::{Error, Result};
use crate::scheme::DType;

/// cuBLAS computes column-major: seen so, `out` is `[n, tokens]`, and the weight, `[k, n]`, is transposed.
///
/// # Safety
/// The addresses lead to matrices of the shapes and types that `gemm` says.
pub(super) unsafe fn gemm(blas: &CudaBlas, gemm: &Gemm) -> Result<()> {
    let int = |what: &str, value: usize| {
        i32::try_from(value)
            .map_err(|_| Error::Internal(format!("{what} = {value} is too large for cuBLAS")))
    };
    let (tokens, n, k) = (
        int("tokens", gemm.tokens)?,
        int("n", gemm.n)?,
        int("k", gemm.k)?,
    );
    let alpha = 1.0_f32;
    let beta = if gemm.accumulate { 1.0_f32 } else { 0.0 };
    // SAFETY: the handle lives as long as the GPU and works on its stream; x is [tokens, k], the weight [n, k] and out
    // [tokens, n]; alpha and beta are f32, as an f32 computation wants them, and cuBLAS reads them before it returns.
    unsafe {
        gemm_ex(
            *blas.handle(),
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            n,
            tokens,
            k,
            (&raw const alpha).cast(),
            gemm.weight.as_ptr(),
            cuda_type(gemm.x_type),
            k,
            gemm.x.as_ptr(),
            cuda_type(gemm.x_type),
            k,
            (&raw const beta).cast(),
            gemm.out.as_ptr(),
            cuda_type(gemm.out_type),
            n,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .map_err(|e| fault("cublasGemmEx", e))
}

fn cuda_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}
