//! Rows picked by number: the embedding table by token id, the hidden states by token.

use super::device::{Buf, Device, HostElem, with_dtype};
use super::{Cost, check_len};
use crate::error::{Error, Result};
use crate::scheme::{DType, Elem};

/// `out[i] = table[ids[i]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gather {
    /// Rows to pick.
    pub count: usize,
    /// Rows of the table.
    pub rows: usize,
    /// Numbers per row.
    pub width: usize,
}

impl Gather {
    /// Traffic for a table and an output of these types.
    pub fn cost(&self, table: DType, act: DType) -> Cost {
        let numbers = (self.count * self.width) as f64;
        Cost {
            read: numbers * table.size() as f64,
            written: numbers * act.size() as f64,
            flops: 0.0,
        }
    }

    /// Picks `ids [count]` (u32) from `table [rows, width]` into `out [count, width]`, rounding to its type.
    ///
    /// # Errors
    /// If a buffer is too short or, on the CPU, an id lies outside the table.
    pub fn run(&self, device: &Device, ids: &Buf, table: &Buf, out: &mut Buf) -> Result<()> {
        check_len("ids", ids, self.count)?;
        check_len("table", table, self.rows * self.width)?;
        check_len("rows", out, self.count * self.width)?;
        match device {
            Device::Cpu => with_dtype!(table.dtype()?, W => with_dtype!(out.dtype()?, T => {
                self.reference::<W, T>(ids.host()?, table.host()?, out.host_mut()?)
            })),
            Device::Gpu(gpu) => super::gpu::gather(gpu, self, ids, table, out),
        }
    }

    fn reference<W: Elem + HostElem, T: Elem>(
        &self,
        ids: &[u32],
        table: &[W],
        out: &mut [T],
    ) -> Result<()> {
        for (&id, out) in ids[..self.count]
            .iter()
            .zip(out.chunks_exact_mut(self.width))
        {
            let id = id as usize;
            if id >= self.rows {
                return Err(Error::Config(format!(
                    "token id {id} is outside the vocabulary of {}",
                    self.rows
                )));
            }
            let row = &table[id * self.width..][..self.width];
            out.iter_mut()
                .zip(row)
                .for_each(|(out, x)| *out = T::from_f32(x.to_f32()));
        }
        Ok(())
    }
}
