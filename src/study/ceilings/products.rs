//! Large square products of random numbers, of every type that has a kernel. Zeros would draw less power and run faster
//! than anything real.

use super::{Bed, Effort, Found, MATMUL};
use crate::error::Result;
use crate::kernels::fill::Filling;
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::quantize::{QuantizeAct, QuantizeRows};
use crate::kernels::{Buf, BufType, Device};
use crate::scheme::{CodeFormat, DType};

/// Rows that are quantised at once.
const PIECE: usize = 1024;

pub(super) fn measure(bed: &Bed<'_>, found: &mut Found) -> Result<()> {
    let n = match bed.device {
        Device::Cpu => 1024,
        Device::Gpu(_) if bed.is_emulated() => 64,
        Device::Gpu(_) => 8192,
    };
    let floats: &[DType] = match (bed.device, bed.effort) {
        (Device::Cpu, Effort::Brief) => &[DType::F32],
        (Device::Cpu, Effort::Full) => &[DType::F32, DType::BF16, DType::F16],
        (Device::Gpu(_), _) => &[DType::BF16, DType::F16],
    };
    for &dtype in floats {
        float(bed, found, dtype, n)?;
    }
    int8(bed, found, n)?;
    found.left_out(
        format!("{MATMUL}fp8"),
        "no kernel multiplies fp8 inputs: fp8 weights meet 16-bit ones",
    );
    Ok(())
}

fn noise(bed: &Bed<'_>, dtype: DType, count: usize, stream: u64) -> Result<Buf> {
    let mut buf = bed.device.alloc(BufType::Float(dtype), count)?;
    let noise = Filling::Uniform {
        stream,
        amplitude: 1.0,
    };
    noise.run(bed.device, &mut buf, 0, count)?;
    Ok(buf)
}

fn how(bed: &Bed<'_>, n: usize) -> String {
    let whose = match bed.device {
        Device::Cpu => ", by the CPU reference",
        Device::Gpu(_) => "",
    };
    format!("{n} x {n} x {n}, random data{whose}")
}

fn float(bed: &Bed<'_>, found: &mut Found, dtype: DType, n: usize) -> Result<()> {
    let device = bed.device;
    let x = noise(bed, dtype, n * n, 2)?;
    let mut weight = LinearWeight::plain(device, [n, n], dtype)?;
    if let WeightData::Plain(w) = &mut weight.data {
        let noise = Filling::Uniform {
            stream: 3,
            amplitude: 1.0,
        };
        noise.run(device, w, 0, n * n)?;
    }
    let weight = weight.streamed(device, dtype)?;
    let mut out = device.alloc(BufType::Float(dtype), n * n)?;
    let product = product(n);
    let timing =
        bed.time(&mut || product.run(device, Input::Float(&x), &weight, None, &mut out))?;
    let flops = product.cost(&weight, Some(dtype), dtype).flops;
    found.rate(
        format!("{MATMUL}{dtype}"),
        flops,
        "FLOP/s",
        how(bed, n),
        &timing,
    );
    Ok(())
}

fn int8(bed: &Bed<'_>, found: &mut Found, n: usize) -> Result<()> {
    let device = bed.device;
    let act = match device {
        Device::Cpu => DType::F32,
        Device::Gpu(_) => DType::BF16,
    };
    let mut weight = LinearWeight::packed(device, [n, n], CodeFormat::I8, n, act)?;
    for first in (0..n).step_by(PIECE) {
        let rows = PIECE.min(n - first);
        let source = noise(bed, act, rows * n, 4 + first as u64)?;
        let op = QuantizeRows {
            rows,
            k: n,
            format: CodeFormat::I8,
            group: n,
        };
        op.run(device, &source, &mut weight, first)?;
    }
    let weight = weight.streamed(device, act)?;
    let x = noise(bed, act, n * n, 5)?;
    let mut codes = device.alloc(BufType::U8, n * n)?;
    let mut scales = device.alloc(BufType::Float(DType::F32), n)?;
    let round = QuantizeAct {
        tokens: n,
        width: n,
    };
    round.run(device, &x, &mut codes, &mut scales)?;
    let mut out = device.alloc(BufType::Float(act), n * n)?;
    let product = product(n);
    let input = Input::Int8 {
        codes: &codes,
        scales: &scales,
    };
    let timing = bed.time(&mut || product.run(device, input, &weight, None, &mut out))?;
    let flops = product.cost(&weight, None, act).flops;
    found.rate(
        format!("{MATMUL}int8"),
        flops,
        "FLOP/s",
        how(bed, n),
        &timing,
    );
    Ok(())
}

const fn product(n: usize) -> Linear {
    Linear {
        tokens: n,
        accumulate: false,
    }
}
