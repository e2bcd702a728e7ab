//! The gated activation of the feed-forward layer: `silu(gate) * up`.

use rayon::prelude::*;

use super::device::{Buf, Device, HostElem, with_dtype};
use super::parallel::least;
use super::simd::{LANES, Simd, Work, dispatch};
use super::{Cost, check_len};
use crate::error::Result;
use crate::scheme::{DType, Elem};

/// `out = gate / (1 + e^-gate) * up`, where a row of the input is the gate, then the other factor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SiluMul {
    /// Rows.
    pub rows: usize,
    /// Numbers per row of the output; half of a row of the input.
    pub width: usize,
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
                    let (gate, up) = x.split_at(self.width);
                    dispatch(Row { gate, up, out });
                });
                Ok(())
            }),
            Device::Gpu(gpu) => super::gpu::silu_mul(gpu, self, gate_up, out),
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
        SiluMul { rows, width }
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
