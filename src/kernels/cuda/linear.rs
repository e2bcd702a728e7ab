//! Products with a weight matrix: our own kernels for few tokens and for packed weights, cuBLAS for plain ones.

use cudarc::cublas::{result::gemm_ex, sys};
use cudarc::driver::{DeviceRepr, LaunchConfig};

use super::gpu::{Gpu, fault};
use super::launch::{Address, Op, WARP, elem_type, launch};
use super::quantize::check_group;
use crate::error::Result;
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::{Buf, BufType};
use crate::scheme::{CodeFormat, DType};

/// Tokens that one pass of the `few` kernels serves.
const FEW_TOKENS: usize = 8;

/// Threads of a block of the `few` kernels: one warp per output feature.
const FEW_THREADS: u32 = 128;

/// Tokens and features of a block of the `many` kernels.
const TILE: usize = 64;

/// Threads of a block of the `many` kernels.
const TILE_THREADS: u32 = 256;

/// Threads of a block of `add_bias`.
const BIAS_THREADS: u32 = 256;

/// The largest K whose sum of products of int8 codes fits an i32.
const MAX_INT8_K: usize = 131_071;

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// `linear_few_*`: reads every weight once per eight tokens.
    Few,
    /// `linear_many_*`: widens weights into shared memory, each used by 64 tokens.
    Many,
    /// cuBLAS; plain weights of the input's type only.
    Gemm,
}

impl Method {
    /// The method for this many tokens of type `x`. `plain` is the type of a weight that is not quantised.
    fn choose(tokens: usize, x: DType, plain: Option<DType>) -> Self {
        if tokens <= FEW_TOKENS {
            Self::Few
        } else if plain == Some(x) {
            Self::Gemm
        } else {
            Self::Many
        }
    }
}

/// `WeightArgs` of `common/weight.cuh`.
#[repr(C)]
struct WeightArgs {
    data: Address,
    scales: Address,
    scale_type: u32,
    group: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl DeviceRepr for WeightArgs {}

/// `Epilogue` of `common/epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Epilogue {
    out: Address,
    bias: Address,
    row_stride: u32,
    first_column: u32,
    accumulate: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl DeviceRepr for Epilogue {}

/// `W8A8Args` of `linear_w8a8.cu`.
#[repr(C)]
struct W8A8Args {
    x: Address,
    x_scales: Address,
    w: Address,
    w_scales: Address,
    w_scale_type: u32,
}

// SAFETY: the layout of the C++ struct of the same name: the same fields in the same order, none of them a reference.
unsafe impl DeviceRepr for W8A8Args {}

/// `linear.cu`, `linear_w8a8.cu` or cuBLAS. Our kernels round the whole sum once; cuBLAS finds a bias in `out`, where it
/// lies rounded together with what was there.
pub(crate) fn linear(
    gpu: &Gpu,
    shape: &Linear,
    input: Input<'_>,
    weight: &LinearWeight,
    bias: Option<&Buf>,
    out: &mut Buf,
) -> Result<()> {
    let op = Op {
        gpu,
        name: "linear",
    };
    let tokens = shape.tokens;
    let (n, k) = (weight.n, weight.k);
    if tokens == 0 || n == 0 {
        return Ok(());
    }
    let out_type = out.dtype()?;
    let kind = BufType::Float(out_type);
    let epilogue = Epilogue {
        out: op.writes("out", out, kind, 0, &[tokens, n])?,
        bias: bias.map_or(Ok(Address::NULL), |bias| op.reads("bias", bias, kind, &[n]))?,
        row_stride: op.dim("n", n)?,
        first_column: 0,
        accumulate: u32::from(shape.accumulate),
    };
    let (storage, weight_args) = weight_args(op, weight)?;
    let product = Product {
        op,
        tokens,
        n,
        k,
        out_type,
        epilogue,
    };
    match input {
        Input::Float(x) => {
            let x_type = x.dtype()?;
            let x = op.reads("x", x, x.kind(), &[tokens, k])?;
            let plain = match &weight.data {
                WeightData::Plain(data) => Some(data.dtype()?),
                WeightData::Packed(_) => None,
            };
            match Method::choose(tokens, x_type, plain) {
                Method::Few => {
                    product.launch("few", product.few_grid()?, x, x_type, storage, weight_args)
                }
                Method::Many => product.launch(
                    "many",
                    product.many_grid()?,
                    x,
                    x_type,
                    storage,
                    weight_args,
                ),
                Method::Gemm => product.gemm(x, x_type, weight_args.data),
            }
        }
        Input::Int8 { codes, scales } => {
            if storage != "int8" || weight.group() != Some(k) || k > MAX_INT8_K {
                return Err(op.bug(&format!(
                    "int8 inputs and {storage} weights with {:?} of {k} columns per scale: expected int8 with one scale \
                     per row of at most {MAX_INT8_K}",
                    weight.group()
                )));
            }
            product.launch_w8a8(W8A8Args {
                x: op.reads("codes", codes, BufType::U8, &[tokens, k])?,
                x_scales: op.reads("scales", scales, BufType::Float(DType::F32), &[tokens])?,
                w: weight_args.data,
                w_scales: weight_args.scales,
                w_scale_type: weight_args.scale_type,
            })
        }
    }
}

/// The storage as kernel names have it, and the arguments, once the arrays are known to hold the weight.
fn weight_args(op: Op<'_>, weight: &LinearWeight) -> Result<(&'static str, WeightArgs)> {
    let (n, k) = (weight.n, weight.k);
    match &weight.data {
        WeightData::Plain(data) => {
            let args = WeightArgs {
                data: op.reads("weight", data, data.kind(), &[n, k])?,
                scales: Address::NULL,
                scale_type: 0,
                group: op.dim("k", k)?,
            };
            Ok((data.dtype()?.name(), args))
        }
        WeightData::Packed(packed) => {
            packed.check_simple("products on a GPU", k)?;
            let (format, group) = (packed.format, packed.group);
            check_group(op, format, k, group)?;
            let (codes, scales) = (&packed.codes, &packed.scales);
            let args = WeightArgs {
                data: op.reads("codes", codes, BufType::U8, &[n, format.row_bytes(k)])?,
                scales: op.reads("scales", scales, scales.kind(), &[n, k / group])?,
                scale_type: elem_type(scales.dtype()?),
                group: op.dim("group", group)?,
            };
            let storage = if format == CodeFormat::U4 {
                "int4"
            } else {
                "int8"
            };
            Ok((storage, args))
        }
    }
}

/// A product whose output has been checked.
struct Product<'a> {
    op: Op<'a>,
    tokens: usize,
    n: usize,
    k: usize,
    out_type: DType,
    epilogue: Epilogue,
}

impl Product<'_> {
    /// `linear_<method>_*` with `x [tokens, k]` and a checked weight.
    fn launch(
        &self,
        method: &str,
        grid: LaunchConfig,
        x: Address,
        x_type: DType,
        storage: &str,
        weight: WeightArgs,
    ) -> Result<()> {
        let (tokens, n, k) = self.dims()?;
        let name = format!("linear_{method}_{storage}_{x_type}_{}", self.out_type);
        // SAFETY: the arguments of linear.cu; every array holds its shape.
        unsafe { launch!(self.op.gpu, &name, grid; weight, x, self.epilogue, tokens, n, k) }
    }

    /// `linear_w8a8_*` with checked input and weight.
    fn launch_w8a8(&self, args: W8A8Args) -> Result<()> {
        let (tokens, n, k) = self.dims()?;
        let (method, grid) = if self.tokens <= FEW_TOKENS {
            ("few", self.few_grid()?)
        } else {
            ("many", self.many_grid()?)
        };
        let name = format!("linear_w8a8_{method}_{}", self.out_type);
        // SAFETY: the arguments of linear_w8a8.cu; every array holds its shape.
        unsafe { launch!(self.op.gpu, &name, grid; args, self.epilogue, tokens, n, k) }
    }

    /// By cuBLAS, which computes column-major: seen so, `out` is `[n, tokens]`, and the weight, `[k, n]`, is transposed.
    /// `x [tokens, k]` and `weight [n, k]` are both of type `x_type`.
    fn gemm(&self, x: Address, x_type: DType, weight: Address) -> Result<()> {
        let op = self.op;
        let int = |what: &str, value: usize| {
            i32::try_from(value)
                .map_err(|_| op.bug(&format!("{what} = {value} is too large for cuBLAS")))
        };
        let (tokens, n, k) = (
            int("tokens", self.tokens)?,
            int("n", self.n)?,
            int("k", self.k)?,
        );
        // cuBLAS adds to what is there but knows no bias along this dimension, so the bias goes there first.
        let has_bias = !self.epilogue.bias.is_null();
        if has_bias {
            let name = format!("add_bias_{}", self.out_type);
            let grid = op.grid(self.tokens, 1, BIAS_THREADS)?;
            let features = op.dim("n", self.n)?;
            // SAFETY: the arguments of add_bias in linear.cu; the arrays of the epilogue hold the shape.
            unsafe { launch!(op.gpu, &name, grid; self.epilogue, features) }?;
        }
        let alpha = 1.0_f32;
        let beta = if has_bias || self.epilogue.accumulate != 0 {
            1.0_f32
        } else {
            0.0
        };
        // SAFETY: the handle lives as long as the GPU and works on its stream; x is [tokens, k], the weight [n, k] and out
        // [tokens, n]; alpha and beta are f32, as an f32 computation wants them, and cuBLAS reads them before it returns.
        unsafe {
            gemm_ex(
                *op.gpu.blas().handle(),
                sys::cublasOperation_t::CUBLAS_OP_T,
                sys::cublasOperation_t::CUBLAS_OP_N,
                n,
                tokens,
                k,
                (&raw const alpha).cast(),
                weight.as_ptr(),
                cuda_type(x_type),
                k,
                x.as_ptr(),
                cuda_type(x_type),
                k,
                (&raw const beta).cast(),
                self.epilogue.out.as_ptr(),
                cuda_type(self.out_type),
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .map_err(|e| fault("cublasGemmEx", e))
    }

    fn dims(&self) -> Result<(u32, u32, u32)> {
        let op = self.op;
        Ok((
            op.dim("tokens", self.tokens)?,
            op.dim("n", self.n)?,
            op.dim("k", self.k)?,
        ))
    }

    fn few_grid(&self) -> Result<LaunchConfig> {
        let features_per_block = FEW_THREADS as usize / WARP;
        self.op.grid(
            self.n.div_ceil(features_per_block),
            self.tokens.div_ceil(FEW_TOKENS),
            FEW_THREADS,
        )
    }

    fn many_grid(&self) -> Result<LaunchConfig> {
        self.op.grid(
            self.n.div_ceil(TILE),
            self.tokens.div_ceil(TILE),
            TILE_THREADS,
        )
    }
}

fn cuda_type(dtype: DType) -> sys::cudaDataType_t {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_gets_what_it_can_do() {
        use Method::{Few, Gemm, Many};
        assert_eq!(Method::choose(1, DType::BF16, Some(DType::BF16)), Few);
        assert_eq!(Method::choose(9, DType::BF16, Some(DType::BF16)), Gemm);
        assert_eq!(Method::choose(9, DType::BF16, Some(DType::F32)), Many);
        assert_eq!(Method::choose(9, DType::F16, None), Many);
    }
}
