//! A product with what goes before and after it: the norm of its input and its rounding to codes, and the gated activation
//! or the greedy choice. One launch on a GPU, for a few tokens.

use super::{Input, Linear, LinearWeight};
use crate::error::{Error, Result};
use crate::kernels::device::{Buf, BufType, Device};
use crate::kernels::embed::Gather;
use crate::kernels::norm::RmsNorm;
use crate::kernels::quantize::QuantizeAct;
use crate::kernels::sample::Argmax;
use crate::kernels::silu_mul::{GateUp, SiluMul};
use crate::kernels::{Cost, check_len, gpu};
use crate::scheme::DType;

/// An input that is yet to be normalised, or rounded, or both.
#[derive(Clone, Copy)]
pub struct Normed<'a> {
    /// `[rows, k]`.
    pub x: &'a Buf,
    /// Which rows are meant, u32 `[tokens]`; the first ones where `None`.
    pub rows: Option<&'a Buf>,
    /// The weight of the norm, `[k]`, of the type of `x`; `None` where there is no norm, of inputs that become codes.
    pub weight: Option<&'a Buf>,
    /// Keeps the root from vanishing.
    pub eps: f32,
}

impl<'a> Normed<'a> {
    /// The first rows of `x`.
    pub const fn all(x: &'a Buf, weight: &'a Buf, eps: f32) -> Self {
        Self {
            x,
            rows: None,
            weight: Some(weight),
            eps,
        }
    }

    /// The first rows of `x` as they are.
    pub const fn as_is(x: &'a Buf) -> Self {
        Self {
            x,
            rows: None,
            weight: None,
            eps: 0.0,
        }
    }
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It is stored: `[tokens, n]` of any floating-point type.
    Store,
    /// Gate and up, in [`GateUp::Eights`], are multiplied: `[tokens, n / 2]`.
    Gate,
    /// The largest of each token is looked for, as [`Argmax`] does: u32 `[tokens]`.
    Pick,
}

/// [`RmsNorm`], then [`Linear`], then [`SiluMul`] or [`Argmax`] where asked for. Or, where the weight's codes are
/// multiplied with codes, [`QuantizeAct`] before the product, after a norm or without one. Gives the bits of the separate
/// ops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusedLinear {
    /// Rows of the input.
    pub tokens: usize,
    /// Whether they become codes.
    pub codes: bool,
    /// What becomes of the product.
    pub then: Then,
    /// Whether what is stored is added to what is there; for [`Then::Store`].
    pub accumulate: bool,
}

impl FusedLinear {
    /// Of inputs that stay numbers; results replace what is there.
    pub const fn new(tokens: usize, then: Then) -> Self {
        Self {
            tokens,
            codes: false,
            then,
            accumulate: false,
        }
    }

    /// Traffic and arithmetic with `weight`, activations of type `act`, which are `normed` first or not, and results of
    /// type `out` where they are stored: the arithmetic of the separate ops, without the traffic between them.
    pub fn cost(&self, weight: &LinearWeight, act: DType, normed: bool, out: DType) -> Cost {
        let (m, n, k) = (self.tokens as f64, weight.n as f64, weight.k as f64);
        let (written, after) = match self.then {
            Then::Store => (m * n * out.size() as f64, 0.0),
            Then::Gate => (m * n / 2.0 * out.size() as f64, 5.0 * m * n / 2.0),
            Then::Pick => (4.0 * m, 0.0),
        };
        let before = 4.0 * f64::from(normed) + 3.0 * f64::from(self.codes);
        let norm_weight = if normed { k } else { 0.0 };
        Cost {
            read: weight.bytes() as f64
                + (m * k + norm_weight) * act.size() as f64
                + if self.accumulate { written } else { 0.0 },
            written,
            flops: 2.0 * m * n * k + before * m * k + after,
        }
    }

    /// The most tokens for which a GPU should do this in one launch with `weight` and activations of type `act`, which may
    /// become `codes`; 0 where it has no kernel for that, and on the CPU, which has nothing to launch.
    pub fn most_tokens(device: &Device, weight: &LinearWeight, act: DType, codes: bool) -> usize {
        match device {
            Device::Cpu => 0,
            Device::Gpu(gpu) => gpu::fused_tokens(gpu.facts(), weight, act, codes).worth,
        }
    }

    /// Computes `out`, which is as [`Then`] says, from `input` and `weight`, plus `bias [n]` of out's type (f32 where
    /// nothing is stored).
    ///
    /// # Errors
    /// If a buffer is shorter than the shapes say, or of a type that does not fit; on a GPU also if it has no kernel for so
    /// many tokens.
    pub fn run(
        &self,
        device: &Device,
        input: Normed<'_>,
        weight: &LinearWeight,
        bias: Option<&Buf>,
        out: &mut Buf,
    ) -> Result<()> {
        let rows = if input.rows.is_some() { 1 } else { self.tokens };
        check_len("fused input", input.x, rows * weight.k)?;
        match input.weight {
            Some(norm) => check_len("norm weight", norm, weight.k)?,
            None if self.codes => {}
            None => {
                return Err(Error::Internal(
                    "nothing happens to the input of a fused product".into(),
                ));
            }
        }
        if self.accumulate && self.then != Then::Store {
            return Err(Error::Internal(format!("{:?} adds to nothing", self.then)));
        }
        if let Some(rows) = input.rows {
            check_len("numbers of rows", rows, self.tokens)?;
        }
        if let Some(bias) = bias {
            check_len("linear bias", bias, weight.n)?;
        }
        let width = match self.then {
            Then::Store => weight.n,
            Then::Gate if weight.n.is_multiple_of(16) => weight.n / 2,
            Then::Gate => {
                let n = weight.n;
                return Err(Error::Internal(format!(
                    "{n} rows are not eights of gate and up"
                )));
            }
            Then::Pick => 1,
        };
        check_len("fused output", out, self.tokens * width)?;
        match device {
            Device::Cpu => self.reference(device, input, weight, bias, out),
            Device::Gpu(gpu) => gpu::fused_linear(gpu, self, input, weight, bias, out),
        }
    }

    /// The ops one after another.
    fn reference(
        &self,
        device: &Device,
        input: Normed<'_>,
        weight: &LinearWeight,
        bias: Option<&Buf>,
        out: &mut Buf,
    ) -> Result<()> {
        let (tokens, k) = (self.tokens, weight.k);
        let kind = input.x.kind();
        let mut picked = None;
        if let Some(ids) = input.rows {
            let rows = input.x.len() / k.max(1);
            let gather = Gather {
                count: tokens,
                rows,
                width: k,
            };
            gather.run(
                device,
                ids,
                input.x,
                picked.insert(device.alloc(kind, tokens * k)?),
            )?;
        }
        let mut x = picked.as_ref().unwrap_or(input.x);
        let mut normed = device.alloc(kind, tokens * k)?;
        if let Some(of_norm) = input.weight {
            let norm = RmsNorm {
                rows: tokens,
                width: k,
                eps: input.eps,
            };
            norm.run(device, x, of_norm, &mut normed)?;
            x = &normed;
        }
        let mut rounded = None;
        if self.codes {
            let op = QuantizeAct { tokens, width: k };
            let (codes, scales) = rounded.insert((
                device.alloc(BufType::U8, tokens * k)?,
                device.alloc(BufType::Float(DType::F32), tokens)?,
            ));
            op.run(device, x, codes, scales)?;
        }
        let x = match &rounded {
            Some((codes, scales)) => Input::Int8 { codes, scales },
            None => Input::Float(x),
        };
        let product = Linear {
            tokens,
            accumulate: self.accumulate,
        };
        let product = |out: &mut Buf| product.run(device, x, weight, bias, out);
        let whole = |kind| device.alloc(kind, tokens * weight.n);
        match self.then {
            Then::Store => product(out),
            Then::Gate => {
                let mut gate_up = whole(out.kind())?;
                product(&mut gate_up)?;
                let gate = SiluMul {
                    rows: tokens,
                    width: weight.n / 2,
                    layout: GateUp::Eights,
                };
                gate.run(device, &gate_up, out)
            }
            Then::Pick => {
                let mut logits = whole(BufType::Float(DType::F32))?;
                product(&mut logits)?;
                let pick = Argmax {
                    rows: tokens,
                    vocab: weight.n,
                };
                pick.run(device, &logits, out)
            }
        }
    }
}
