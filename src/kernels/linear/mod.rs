//! `out = x Wᵀ (+ bias) (+ out)`: nearly all bytes and all arithmetic of a language model.

mod cpu;
mod fused;
mod rows;
mod weight;

use std::fmt;

use super::device::{Buf, Device, with_dtype};
pub use super::gpu::LinearKernel;
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::DType;
pub use cpu::multiply;
pub use fused::{FusedLinear, Normed, Then};
pub use weight::{LevelBufs, LinearWeight, PackedBufs, WeightData};

/// The input of a product.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// `[tokens, k]`; its type may differ from the output's, as before logits.
    Float(&'a Buf),
    /// What [`super::quantize::QuantizeAct`] made: int8 codes `[tokens, k]` as bytes, and f32 scales `[tokens]`. Only
    /// for symmetric [`CodeFormat::I8`](crate::scheme::CodeFormat::I8) weights.
    Int8 {
        /// Codes.
        codes: &'a Buf,
        /// One scale per token.
        scales: &'a Buf,
    },
}

/// Shapes and epilogue of one product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Rows of the input.
    pub tokens: usize,
    /// Whether the product is added to what `out` holds (the residual) instead of replacing it.
    pub accumulate: bool,
}

/// How a product is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearPlan {
    /// One pass over the weights, each widened in registers and used by every token there.
    Registers,
    /// Rows of weights are widened a panel of this many at a time, each panel used by every token.
    Panels {
        /// Rows per panel.
        rows: usize,
    },
}

impl fmt::Display for LinearPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers => f.write_str("weights widened in registers"),
            Self::Panels { rows } => write!(f, "weights widened in panels of {rows} rows"),
        }
    }
}

/// f32 bytes of a panel: what stays in a core's second-level cache beside the inputs.
const PANEL_BYTES: usize = 256 << 10;

impl Linear {
    /// Traffic and arithmetic with `weight`, inputs of type `x` (`None`: codes and their scales) and results of type `out`.
    pub fn cost(&self, weight: &LinearWeight, x: Option<DType>, out: DType) -> Cost {
        let (m, n, k) = (self.tokens as f64, weight.n as f64, weight.k as f64);
        let out = m * n * out.size() as f64;
        let input = match x {
            Some(x) => m * k * x.size() as f64,
            None => m * k + 4.0 * m,
        };
        Cost {
            read: weight.bytes() as f64 + input + if self.accumulate { out } else { 0.0 },
            written: out,
            flops: 2.0 * m * n * k,
        }
    }

    /// The way that the CPU computes a product with a weight `[n, k]` on `threads` threads.
    pub fn plan(&self, n: usize, k: usize, threads: usize) -> LinearPlan {
        if self.tokens <= cpu::FEW {
            return LinearPlan::Registers;
        }
        let fits = PANEL_BYTES / (4 * k.max(1));
        // Four panels a thread even out threads that start late.
        let fair = n.div_ceil(4 * threads.max(1));
        let rows = fits.min(fair).clamp(cpu::TILE, 64);
        LinearPlan::Panels {
            rows: rows / cpu::TILE * cpu::TILE,
        }
    }

    /// The kernels of a GPU that may compute a product of inputs of type `x` (`None`: codes) with `weight`, the one that is
    /// taken first; empty on the CPU.
    pub fn kernels(
        &self,
        device: &Device,
        x: Option<DType>,
        weight: &LinearWeight,
    ) -> Vec<LinearKernel> {
        match device {
            Device::Cpu => Vec::new(),
            Device::Gpu(gpu) => super::gpu::linear_kernels(gpu, self, x, weight),
        }
    }

    /// Computes `out [tokens, n] = input Wᵀ`, plus `bias [n]`, plus `out` itself if it accumulates. Sums are f32 (or
    /// exact, for int8 inputs); the result is rounded once.
    ///
    /// # Errors
    /// If a buffer is shorter than the shapes say, or of a type that does not fit.
    pub fn run(
        &self,
        device: &Device,
        input: Input<'_>,
        weight: &LinearWeight,
        bias: Option<&Buf>,
        out: &mut Buf,
    ) -> Result<()> {
        match input {
            Input::Float(x) => check_len("linear input", x, self.tokens * weight.k)?,
            Input::Int8 { codes, scales } => {
                check_len("linear input codes", codes, self.tokens * weight.k)?;
                check_len("linear input scales", scales, self.tokens)?;
            }
        }
        check_len("linear output", out, self.tokens * weight.n)?;
        if let Some(bias) = bias {
            check_len("linear bias", bias, weight.n)?;
        }
        match device {
            Device::Cpu => {
                let dtype = out.dtype()?;
                with_dtype!(dtype, T => {
                    let bias = bias.map(Buf::host::<T>).transpose()?;
                    let out = &mut out.host_mut::<T>()?[..self.tokens * weight.n];
                    match &weight.data {
                        WeightData::Apart(parts) => self.reference_apart::<T>(input, parts, bias, out),
                        _ => self.reference::<T>(input, weight, bias, out),
                    }
                })
            }
            Device::Gpu(gpu) => super::gpu::linear(gpu, self, input, weight, bias, out),
        }
    }
}
