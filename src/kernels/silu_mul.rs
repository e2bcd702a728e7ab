//! The gated activation of the feed-forward layer: `silu(gate) * up`.

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::parallel::least;
use super::quantize::{QuantizeAct, round_row};
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// Where gate and up, the other factor, lie: in the rows of the matrix that gives them, and so in each row of what it
/// gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateUp {
    /// All of the gate, then all of the other.
    Halves,
    /// Eight of the gate, the eight of the other that belong to them, and so on: both are in one tile of a GPU's products.
    Eights,
}

/// `out = gate / (1 + e^-gate) * up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiluMul {
    /// Rows.
    pub rows: usize,
    /// Numbers per row of the output; half of a row of the input.
    pub width: usize,
    /// Where the factors lie in a row of the input.
    pub layout: GateUp,
}

impl SiluMul {
    /// Traffic and arithmetic in activations of type `act`.
    pub fn cost(&self, act: DType) -> Cost {
        let bytes = (self.rows * self.width * act.size()) as f64;
        Cost {
            read: 2.0 * bytes,
            written: bytes,
            flops: 5.0 * (self.rows * self.width) as f64,
        }
    }

    /// `gate_up [rows, 2 width]` into `out [rows, width]`.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run(&self, device: &Device, gate_up: &Buf, out: &mut Buf) -> Result<()> {
        let numbers = self.rows * self.width;
        check_len("gate and up", gate_up, 2 * numbers)?;
        check_len("gated output", out, numbers)?;
        match device {
            Device::Cpu => with_dtype!(out.dtype()?, T => {
                let gate_up = &gate_up.host::<T>()?[..2 * numbers];
                let out = &mut out.host_mut::<T>()?[..numbers];
                let rows = out.par_chunks_mut(self.width).zip(gate_up.par_chunks(2 * self.width));
                rows.with_min_len(least(2 * self.width)).for_each(|(out, x)| {
                    self.row(x, out);
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::silu_mul(gpu, self, gate_up, out),
        }
    }

    /// Traffic and arithmetic of [`SiluMul::run_to_codes`] for activations of type `act`.
    pub fn cost_to_codes(&self, act: DType) -> Cost {
        let quantize = QuantizeAct {
            tokens: self.rows,
            width: self.width,
        };
        let (silu, codes) = (self.cost(act), quantize.cost(act));
        Cost {
            read: silu.read,
            written: codes.written,
            flops: silu.flops + codes.flops,
        }
    }

    /// `gate_up [rows, 2 width]` into int8 codes `[rows, width]` (as bytes) with a scale per row, `[rows]` (f32): what
    /// [`SiluMul::run`] and [`QuantizeAct`] give, bit for bit, in one launch.
    ///
    /// # Errors
    /// If a buffer is too short or of another type.
    pub fn run_to_codes(
        &self,
        device: &Device,
        gate_up: &Buf,
        codes: &mut Buf,
        scales: &mut Buf,
    ) -> Result<()> {
        let numbers = self.rows * self.width;
        check_len("gate and up", gate_up, 2 * numbers)?;
        check_len("activation codes", codes, numbers)?;
        check_len("activation scales", scales, self.rows)?;
        match device {
            Device::Cpu => with_dtype!(gate_up.dtype()?, T => {
                let gate_up = &gate_up.host::<T>()?[..2 * numbers];
                let codes = &mut codes.host_mut::<u8>()?[..numbers];
                let scales = &mut scales.host_mut::<f32>()?[..self.rows];
                let rows = codes.par_chunks_mut(self.width).zip(scales).zip(gate_up.par_chunks(2 * self.width));
                let blank = || vec![T::from_f32(0.0); self.width];
                rows.with_min_len(least(2 * self.width)).for_each_init(blank, |row, ((codes, scale), x)| {
                    self.row(x, row);
                    *scale = round_row(row, codes);
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::silu_mul_to_codes(gpu, self, gate_up, codes, scales),
        }
    }

    /// One row on the CPU.
    fn row<T: Elem + HostElem>(&self, x: &[T], out: &mut [T]) {
        match self.layout {
            GateUp::Halves => {
                let (gate, up) = x.split_at(self.width);
                dispatch(Row { gate, up, out });
            }
            GateUp::Eights => {
                for (x, out) in x.chunks(16).zip(out.chunks_mut(8)) {
                    let (gate, up) = x.split_at(x.len() / 2);
                    dispatch(Row { gate, up, out });
                }
            }
        }
    }
}

struct Row<'a, T> {
    gate: &'a [T],
    up: &'a [T],
    out: &'a mut [T],
}

impl<T: Elem + HostElem> Work for Row<'_, T> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let inputs = self.gate.chunks(LANES).zip(self.up.chunks(LANES));
        for (out, (gate, up)) in self.out.chunks_mut(LANES).zip(inputs) {
            let mut wide = [[0.0; LANES]; 2];
            for (wide, x) in wide.iter_mut().zip([gate, up]) {
                wide.iter_mut()
                    .zip(x)
                    .for_each(|(wide, x)| *wide = x.to_f32());
            }
            let (gate, up) = (s.load(&wide[0]), s.load(&wide[1]));
            let e = s.exp(s.sub(s.splat(0.0), gate));
            let y = s.mul(s.div(gate, s.add(s.splat(1.0), e)), up);
            s.store(y, &mut wide[0]);
            out.iter_mut()
                .zip(wide[0])
                .for_each(|(out, y)| *out = T::from_f32(y));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gated_values_equal_the_formula() {
        let (rows, width) = (3, 21);
        let x: Vec<f32> = (0..2 * rows * width)
            .map(|i| (i as f32 * 7.1).sin() * 9.0)
            .collect();
        let mut out = Buf::from_vec(vec![0.0_f32; rows * width]);
        SiluMul {
            rows,
            width,
            layout: GateUp::Halves,
        }
        .run(&Device::Cpu, &Buf::from_vec(x.clone()), &mut out)
        .unwrap();
        for (i, out) in out.host::<f32>().unwrap().iter().enumerate() {
            let at = i / width * 2 * width + i % width;
            let (gate, up) = (f64::from(x[at]), f64::from(x[at + width]));
            let truth = gate / (1.0 + (-gate).exp()) * up;
            assert!(
                (f64::from(*out) - truth).abs() <= 1e-6 * truth.abs().max(1.0),
                "{out} {truth}"
            );
        }
    }
}
