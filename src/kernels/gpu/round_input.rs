//! A product's input rounded to eight bits and back.

use super::device::Gpu;
use super::launch::{Op, launch};
use crate::error::Result;
use crate::kernels::Buf;
use crate::kernels::round_input::RoundInput;
use crate::scheme::InputNumber;

const THREADS: u32 = 256;

/// `round_input.cu`.
pub(crate) fn round_input(gpu: &Gpu, shape: &RoundInput, x: &Buf, out: &mut Buf) -> Result<()> {
    let op = Op {
        gpu,
        name: "round_input",
    };
    let RoundInput {
        tokens,
        width,
        rounding,
    } = *shape;
    if tokens == 0 || width == 0 {
        return Ok(());
    }
    let dtype = x.dtype()?;
    let number = match rounding.number {
        InputNumber::Int8 => "int8",
        InputNumber::E4M3 => "e4m3",
    };
    let (columns, fixed) = shape.sharing();
    let x = op.reads("x", x, x.kind(), &[tokens, width])?;
    let kind = out.kind();
    let out = match out.dtype()? == dtype {
        true => op.writes("out", out, kind, 0, &[tokens, width])?,
        false => return Err(op.bug("rounded inputs of another type")),
    };
    let (width, columns) = (op.dim("width", width)?, op.dim("columns", columns)?);
    // Not a scale: one is found.
    let fixed = fixed.unwrap_or(0.0);
    let grid = op.grid(tokens, 1, THREADS)?;
    let name = format!("round_input_{number}_{dtype}");
    // SAFETY: the arguments of round_input.cu; both arrays hold their shapes, and there is at least one column.
    unsafe { launch!(gpu, &name, grid; x, out, width, columns, fixed) }
}
