//! Products by cuBLASLt, each by the algorithm that was fastest when a product of its shape was first asked for.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::super::gemm::{Gemm, Numbers};
use super::fault;
use crate::error::{Error, Result};
use crate::scheme::DType;

/// Memory that an algorithm may use beside its matrices: what cuBLAS itself takes on these GPUs.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are tried.
const ASKED: usize = 16;
/// Runs of each that count, after one that does not.
const RUNS: usize = 3;

/// cuBLASLt on one stream.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: the library allows a handle to be used by any thread, and by several; plans are read and made under a lock.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

/// Products that share a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    tokens: usize,
    n: usize,
    k: usize,
    row_stride: usize,
    numbers: Numbers,
    accumulate: bool,
}

/// Descriptors of a product, and the algorithm chosen for it.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made in `described` and is destroyed here alone. A failure leaves nothing to be done.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            for layout in [self.weight, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: the handle is not used after this. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Lt {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let workspace = stream
            .alloc_zeros::<u8>(WORKSPACE)
            .map_err(|e| fault("memory for cuBLASLt", e))?;
        Ok(Self {
            handle: result::create_handle().map_err(failed("starting cuBLASLt"))?,
            stream: Arc::clone(stream),
            workspace,
            plans: Mutex::default(),
        })
    }

    /// Asks for a product. Of a shape that is new, the algorithms are timed first, unless work is being recorded, when the
    /// library's own favourite is taken and not kept.
    ///
    /// # Safety
    /// The addresses lead to matrices of the shapes and types that `gemm` says.
    pub(super) unsafe fn gemm(&self, gemm: &Gemm, recording: bool) -> Result<()> {
        let shape = Shape {
            tokens: gemm.tokens,
            n: gemm.n,
            k: gemm.k,
            row_stride: gemm.row_stride,
            numbers: gemm.numbers,
            accumulate: gemm.accumulate,
        };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&shape) {
            // SAFETY: by contract.
            return unsafe { self.run(plan, gemm, gemm.out.as_ptr()) };
        }
        let (mut plan, algorithms) = self.described(&shape)?;
        if !recording && algorithms.len() > 1 {
            // SAFETY: by contract; results go to memory of their own.
            plan.algorithm = unsafe { self.fastest(&mut plan, gemm, &algorithms) }?;
        }
        // SAFETY: by contract.
        unsafe { self.run(&plan, gemm, gemm.out.as_ptr()) }?;
        if !recording {
            plans.insert(shape, plan);
        }
        Ok(())
    }

    /// The library computes column by column: seen so, `out` is `[n, tokens]`, and the weight, `[k, n]`, is transposed.
    /// With it, what the library thinks are the best algorithms, of which there is at least one.
    fn described(&self, shape: &Shape) -> Result<(Plan, Vec<sys::cublasLtMatmulAlgo_t>)> {
        let (inputs, results) = match shape.numbers {
            Numbers::Float(inputs, results) => (cuda_type(inputs), cuda_type(results)),
            Numbers::Codes => (
                sys::cudaDataType_t::CUDA_R_8I,
                sys::cudaDataType_t::CUDA_R_32I,
            ),
        };
        let (compute, scale) = match shape.numbers {
            Numbers::Float(..) => (
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            ),
            Numbers::Codes => (
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32I,
                sys::cudaDataType_t::CUDA_R_32I,
            ),
        };
        let describing = "describing a product to cuBLASLt";
        let layout = |dtype, rows: usize, columns: usize, stride: usize| {
            result::create_matrix_layout(dtype, rows as u64, columns as u64, stride as i64)
                .map_err(failed(describing))
        };
        let mut plan = Plan {
            operation: result::create_matmul_desc(compute, scale).map_err(failed(describing))?,
            weight: layout(inputs, shape.k, shape.n, shape.k)?,
            x: layout(inputs, shape.k, shape.tokens, shape.k)?,
            out: layout(results, shape.n, shape.tokens, shape.row_stride)?,
            // Overwritten below; the library knows no empty one.
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // CUBLAS_OP_T; the bindings of cuBLASLt leave the type out.
        let transposed = 1_i32;
        // SAFETY: the descriptor has just been made, and the value is of the attribute's type.
        unsafe {
            result::set_matmul_desc_attribute(
                plan.operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        }
        .map_err(failed(describing))?;
        let algorithms = self.algorithms(&plan)?;
        plan.algorithm = algorithms.first().copied().ok_or_else(|| {
            Error::Device(format!(
                "cuBLASLt has no algorithm for {} x {} x {} of {:?}",
                shape.tokens, shape.n, shape.k, shape.numbers
            ))
        })?;
        Ok((plan, algorithms))
    }

    fn algorithms(&self, plan: &Plan) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let asking = "asking cuBLASLt for algorithms";
        let preference = result::create_matmul_pref().map_err(failed(asking))?;
        let room = WORKSPACE;
        let mut found = 0;
        // SAFETY: plain numbers, which the library fills.
        let mut results: [sys::cublasLtMatmulHeuristicResult_t; ASKED] =
            unsafe { std::mem::zeroed() };
        // SAFETY: all descriptors live until the call returns, and there is room for as many results as are asked for.
        let outcome = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const room).cast(),
                size_of_val(&room),
            )
            .and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    plan.operation,
                    plan.weight,
                    plan.x,
                    plan.out,
                    plan.out,
                    preference,
                    ASKED as i32,
                    results.as_mut_ptr(),
                    &raw mut found,
                )
                .result()
            })
        };
        // SAFETY: made above and not used any more.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        outcome.map_err(failed(asking))?;
        let usable = results
            .iter()
            .take(usize::try_from(found).unwrap_or(0))
            .filter(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(usable.map(|result| result.algo).collect())
    }

    /// # Safety
    /// As [`Lt::gemm`].
    unsafe fn fastest(
        &self,
        plan: &mut Plan,
        gemm: &Gemm,
        algorithms: &[sys::cublasLtMatmulAlgo_t],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let timing = "timing cuBLASLt";
        let element = match gemm.numbers {
            Numbers::Float(_, results) => results.size(),
            Numbers::Codes => 4,
        };
        let unwanted = self
            .stream
            .alloc_zeros::<u8>(gemm.tokens * gemm.row_stride * element)
            .map_err(|e| fault(timing, e))?;
        let out = unwanted.device_ptr(&self.stream).0 as *mut c_void;
        let event = || {
            self.stream
                .context()
                .new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|e| fault(timing, e))
        };
        let (start, end) = (event()?, event()?);
        let mut best = (f32::INFINITY, plan.algorithm);
        for &algorithm in algorithms {
            plan.algorithm = algorithm;
            // An algorithm that fails after all is passed over.
            // SAFETY: by contract; `out` has room for the result.
            if unsafe { self.run(plan, gemm, out) }.is_err() {
                continue;
            }
            start.record(&self.stream).map_err(|e| fault(timing, e))?;
            for _ in 0..RUNS {
                // SAFETY: as above.
                unsafe { self.run(plan, gemm, out) }?;
            }
            end.record(&self.stream).map_err(|e| fault(timing, e))?;
            let time = start.elapsed_ms(&end).map_err(|e| fault(timing, e))?;
            if time < best.0 {
                best = (time, algorithm);
            }
        }
        Ok(best.1)
    }

    /// # Safety
    /// The addresses of `gemm`, but for its `out`, and `out` lead to matrices of the plan's shapes and types.
    unsafe fn run(&self, plan: &Plan, gemm: &Gemm, out: *mut c_void) -> Result<()> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        let (whole_one, whole_zero) = (1_i32, 0_i32);
        let (alpha, nothing, something) = match gemm.numbers {
            Numbers::Float(..) => (
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&zero).cast(),
                ptr::from_ref(&one).cast(),
            ),
            Numbers::Codes => (
                ptr::from_ref(&whole_one).cast::<c_void>(),
                ptr::from_ref(&whole_zero).cast::<c_void>(),
                ptr::from_ref(&whole_one).cast::<c_void>(),
            ),
        };
        let workspace = self.workspace.device_ptr(&self.stream).0 as *mut c_void;
        // SAFETY: by contract; the factors are of the scale type, and the library reads them before it returns; the
        // workspace is as large as the algorithm was told and used by this stream alone.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                alpha,
                if gemm.accumulate { something } else { nothing },
                gemm.weight.as_ptr(),
                plan.weight,
                gemm.x.as_ptr(),
                plan.x,
                out,
                plan.out,
                out,
                plan.out,
                &raw const plan.algorithm,
                workspace,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}

fn failed(doing: &str) -> impl Fn(CublasError) -> Error + '_ {
    move |e| fault(doing, e)
}

fn cuda_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}
