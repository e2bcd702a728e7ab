//! The product on the CPU.
//!
//! Every output is one chain of sixteen-lane multiply-adds along K, whatever the number of tokens, so a token's result
//! has the same bits alone and in any batch. Weights are widened in registers (a few tokens) or a cache-sized panel at a
//! time (many); a whole widened weight never exists.

mod few;
mod integers;
mod panel;

use std::borrow::Cow;
use std::cell::RefCell;

use rayon::prelude::*;

use super::rows::{ByteGroups, ByteRows, E4M3, Groups, I8, NibbleTables, Nibbles, Plain, Rows};
use super::{Input, LevelBufs, Linear, LinearPlan, LinearWeight, PackedBufs, WeightData};
use crate::error::{Error, Result};
use crate::kernels::Buf;
use crate::kernels::device::{HostElem, with_dtype};
use crate::kernels::parallel::{for_column_tiles, least};
use crate::kernels::simd::{NIBBLES, dispatch};
use crate::scheme::{BLOCK, CodeFormat, DType, Elem};
use few::FewTask;
use panel::{PanelMemory, PanelTask};

/// Rows of the innermost tile.
pub(super) const TILE: usize = 4;
/// Tokens up to which weights are widened in registers.
pub(super) const FEW: usize = 16;
/// Rows of one parallel task of a product of few tokens.
const TASK_ROWS: usize = 32;

impl Linear {
    /// The CPU face; `out` has exactly the op's shape.
    pub(super) fn reference<T: Elem + HostElem>(
        &self,
        input: Input<'_>,
        weight: &LinearWeight,
        bias: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        if T::DTYPE == DType::F32 {
            let bias = bias.map(bytemuck::cast_slice);
            let epilogue = Epilogue {
                bias,
                accumulate: self.accumulate,
            };
            return self.products(input, weight, epilogue, bytemuck::cast_slice_mut(out));
        }
        // The kernels exist for f32 outputs only, a third of the code; narrower ones take a second pass.
        let mut sums = vec![0.0; out.len()];
        self.products(
            input,
            weight,
            Epilogue {
                bias: None,
                accumulate: false,
            },
            &mut sums,
        )?;
        out.par_chunks_mut(weight.n)
            .zip(sums.par_chunks(weight.n))
            .for_each(|(out, sums)| {
                for (column, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias[column].to_f32());
                    let residual = if self.accumulate { out.to_f32() } else { 0.0 };
                    *out = T::from_f32(sum + bias + residual);
                }
            });
        Ok(())
    }

    /// The CPU face for matrices one below the other: the results of each stand beside those of the others.
    pub(super) fn reference_apart<T: Elem + HostElem>(
        &self,
        input: Input<'_>,
        parts: &[LinearWeight],
        bias: Option<&[T]>,
        out: &mut [T],
    ) -> Result<()> {
        let stride = parts.iter().map(|part| part.n).sum::<usize>().max(1);
        let mut first = 0;
        let mut narrow = Vec::new();
        for part in parts {
            let columns = first..first + part.n;
            narrow.clear();
            out.chunks_exact(stride)
                .for_each(|row| narrow.extend_from_slice(&row[columns.clone()]));
            let bias = bias.map(|bias| &bias[columns.clone()]);
            self.reference::<T>(input, part, bias, &mut narrow)?;
            let rows = narrow.chunks_exact(part.n.max(1));
            for (row, narrow) in out.chunks_exact_mut(stride).zip(rows) {
                row[columns.clone()].copy_from_slice(narrow);
            }
            first = columns.end;
        }
        Ok(())
    }

    fn products(
        &self,
        input: Input<'_>,
        weight: &LinearWeight,
        epilogue: Epilogue<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let k = weight.k;
        let order = match &weight.data {
            WeightData::Plain(_) | WeightData::Streamed(_) | WeightData::Apart(_) => None,
            WeightData::Packed(packed) => {
                packed.check(weight.n, k)?;
                packed.order.as_ref()
            }
        };
        let order = order.map(Buf::host::<u32>).transpose()?;
        let x = match input {
            Input::Float(x) => with_dtype!(x.dtype()?, X => {
                widen(&x.host::<X>()?[..self.tokens * k], k, order)
            }),
            Input::Int8 { codes, scales } => {
                let scales = scales.host::<f32>()?;
                let x = widen_codes(&codes.host::<u8>()?[..self.tokens * k], k, order);
                return integers::products(&x, &scales[..self.tokens], weight, epilogue, out);
            }
        };
        let plan = self.plan(weight.n, k, rayon::current_num_threads());
        let job = Job {
            x: &x,
            tokens: self.tokens,
            plan,
            n: weight.n,
            epilogue,
        };
        match &weight.data {
            WeightData::Plain(w) => with_dtype!(w.dtype()?, W => {
                job.run(Plain { w: w.host::<W>()?, k }, out);
            }),
            WeightData::Packed(packed) => job.run_packed(packed, k, out)?,
            WeightData::Streamed(_) | WeightData::Apart(_) => {
                return Err(Error::Internal(
                    "a weight of a GPU, or several, on the CPU".into(),
                ));
            }
        }
        Ok(())
    }
}

/// `out [tokens, n] = x [tokens, k] wᵀ` for `w [n, k]`, on the CPU, for those who hold slices; with the bits that
/// [`Linear`] gives.
pub fn multiply(x: &[f32], w: &[f32], k: usize, out: &mut [f32]) {
    let (tokens, n) = (x.len() / k, w.len() / k);
    assert!(out.len() == tokens * n && k > 0);
    let shape = Linear {
        tokens,
        accumulate: false,
    };
    let job = Job {
        x: &widen(x, k, None),
        tokens,
        plan: shape.plan(n, k, rayon::current_num_threads()),
        n,
        epilogue: Epilogue {
            bias: None,
            accumulate: false,
        },
    };
    job.run(Plain { w, k }, out);
}

/// What happens to a sum before it is stored.
#[derive(Clone, Copy)]
struct Epilogue<'a> {
    bias: Option<&'a [f32]>,
    accumulate: bool,
}

impl Epilogue<'_> {
    #[inline(always)]
    fn store(&self, sum: f32, column: usize, out: &mut f32) {
        let bias = self.bias.map_or(0.0, |bias| bias[column]);
        let residual = if self.accumulate { *out } else { 0.0 };
        *out = sum + bias + residual;
    }
}

/// `x [tokens, k]` as f32, each row in the order of the weight's codes and padded by zeros to a multiple of 32; borrowed
/// where it is that already.
fn widen<'a, T: Elem + HostElem>(x: &'a [T], k: usize, order: Option<&[u32]>) -> Cow<'a, [f32]> {
    if T::DTYPE == DType::F32 && k.is_multiple_of(BLOCK) && order.is_none() {
        return bytemuck::cast_slice(x).into();
    }
    rearranged(x, k, order, T::to_f32).into()
}

/// `codes [tokens, k]` in the same way, as i16.
fn widen_codes(codes: &[u8], k: usize, order: Option<&[u32]>) -> Vec<i16> {
    rearranged(codes, k, order, |code| i16::from(code.cast_signed()))
}

fn rearranged<T: Copy + Sync, U: Copy + Default + Send>(
    x: &[T],
    k: usize,
    order: Option<&[u32]>,
    widen: impl Fn(T) -> U + Sync,
) -> Vec<U> {
    let padded = k.next_multiple_of(BLOCK);
    let mut wide = vec![U::default(); x.len() / k * padded];
    wide.par_chunks_exact_mut(padded)
        .with_min_len(least(k))
        .zip(x.par_chunks_exact(k))
        .for_each(|(wide, x)| match order {
            None => wide.iter_mut().zip(x).for_each(|(w, &x)| *w = widen(x)),
            Some(order) => {
                for (w, &input) in wide.iter_mut().zip(order) {
                    *w = widen(x[input as usize]);
                }
            }
        });
    wide
}

/// A product whose input is ready.
#[derive(Clone, Copy)]
struct Job<'a> {
    /// `[tokens, k padded to 32]`.
    x: &'a [f32],
    tokens: usize,
    plan: LinearPlan,
    n: usize,
    epilogue: Epilogue<'a>,
}

impl Job<'_> {
    fn run_packed(self, packed: &PackedBufs, k: usize, out: &mut [f32]) -> Result<()> {
        let (codes, groups) = (packed.codes.host::<u8>()?, Groups::of(packed, k)?);
        let per_row = packed.group >= k;
        match (packed.format, &packed.levels) {
            (CodeFormat::U4, LevelBufs::Symmetric) => {
                self.run(Nibbles::<false> { codes, groups, k }, out);
            }
            (CodeFormat::U4, LevelBufs::Zeros(_)) => {
                self.run(Nibbles::<true> { codes, groups, k }, out);
            }
            (CodeFormat::U4, levels) => {
                let table = match levels {
                    LevelBufs::Codebook(book) => book.host::<f32>()?,
                    _ => &NIBBLES,
                };
                let table = table.first_chunk().expect("checked for 16 levels");
                let nibbles = Nibbles { codes, groups, k };
                self.run(NibbleTables { nibbles, table }, out);
            }
            (CodeFormat::I8, LevelBufs::Symmetric) if per_row => {
                self.run(ByteRows::<I8>::new(codes, groups, k), out);
            }
            (CodeFormat::I8, LevelBufs::Symmetric) => {
                self.run(ByteGroups::<I8, false>::new(codes, groups, k), out);
            }
            (CodeFormat::I8, LevelBufs::Zeros(_)) => {
                self.run(ByteGroups::<I8, true>::new(codes, groups, k), out);
            }
            (CodeFormat::E4M3, LevelBufs::Symmetric) if per_row => {
                self.run(ByteRows::<E4M3>::new(codes, groups, k), out);
            }
            (CodeFormat::E4M3, LevelBufs::Symmetric) => {
                self.run(ByteGroups::<E4M3, false>::new(codes, groups, k), out);
            }
            _ => {
                let form = packed.in_words();
                return Err(Error::Internal(format!("no CPU kernel for {form}")));
            }
        }
        Ok(())
    }

    fn run<R: Rows>(self, rows: R, out: &mut [f32]) {
        let tile = match self.plan {
            LinearPlan::Registers => TASK_ROWS,
            LinearPlan::Panels { rows } => rows,
        };
        let each = tile * rows.k() * self.tokens;
        let tiles = match self.plan {
            LinearPlan::Registers => Vec::new(),
            LinearPlan::Panels { .. } => panel::tiles_of(self.x, rows.k().next_multiple_of(BLOCK)),
        };
        for_column_tiles(out, self.n, tile, each, |columns| match self.plan {
            LinearPlan::Registers => dispatch(FewTask {
                job: self,
                rows,
                columns,
            }),
            LinearPlan::Panels { .. } => PANEL.with_borrow_mut(|memory| {
                dispatch(PanelTask {
                    job: self,
                    x: &tiles,
                    rows,
                    columns,
                    memory,
                });
            }),
        });
    }
}

thread_local! {
    static PANEL: RefCell<PanelMemory> = RefCell::default();
}
