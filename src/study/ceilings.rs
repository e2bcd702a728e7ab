//! What the device can do at best, measured on it: the yardstick beside every speed.

use crate::error::Result;
use crate::kernels::fill::Filling;
use crate::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use crate::kernels::stream::{CopyAll, ReadAll};
use crate::kernels::{Buf, BufType, Cost, Device};
use crate::measure::SystemClock;
use crate::results::environment::Ceilings;
use crate::scheme::DType;
use crate::units::{Clock, Seconds};

/// A measured limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceiling {
    /// What it limits: `read`, `copy`, or `matmul` with its type.
    pub name: String,
    /// The best of the repetitions, in bytes per second or operations per second.
    pub best: f64,
    /// The median of the repetitions.
    pub median: f64,
    /// `B/s` or `FLOP/s`.
    pub unit: &'static str,
    /// What was done, in a few words.
    pub how: String,
}

/// Bytes of a streamed buffer: far beyond any cache.
const CPU_STREAM: usize = 256 << 20;
const GPU_STREAM: usize = 2 << 30;
/// An emulated GPU has no speed; this shows that the code runs.
const EMULATED_STREAM: usize = 4 << 20;
/// Repetitions of each; the first is thrown away.
const REPEATS: usize = 8;

/// Measures reading, copying and multiplying on `device`; takes a few seconds.
///
/// # Errors
/// If memory is short or the device fails.
pub fn ceilings(device: &Device, clock: &dyn Clock) -> Result<Vec<Ceiling>> {
    let (stream, square, types): (usize, usize, &[DType]) = match device {
        Device::Cpu => (CPU_STREAM, 1024, &[DType::F32]),
        Device::Gpu(gpu) if gpu.kind() == "emulator" => (EMULATED_STREAM, 64, &[DType::BF16]),
        Device::Gpu(_) => (GPU_STREAM, 8192, &[DType::BF16, DType::F16, DType::F32]),
    };
    let count = stream / 4;
    let f32s = BufType::Float(DType::F32);
    let mut from = device.alloc(f32s, count)?;
    Filling::Uniform {
        stream: 1,
        amplitude: 1.0,
    }
    .run(device, &mut from, 0, count)?;
    let size = format!("{} MiB of f32", stream >> 20);
    let mut found = Vec::new();
    let read = ReadAll::new(count);
    let mut flags = device.alloc(BufType::U32, read.results(device))?;
    let times = repeat(device, clock, || read.run(device, &from, &mut flags))?;
    found.push(traffic("read", &times, read.cost(), &size));
    let mut to = device.alloc(f32s, count)?;
    let copy = CopyAll { count };
    let times = repeat(device, clock, || copy.run(device, &from, &mut to))?;
    found.push(traffic("copy", &times, copy.cost(), &size));
    drop((from, to));
    for &dtype in types {
        found.push(matmul(device, clock, dtype, square)?);
    }
    Ok(found)
}

/// [`ceilings`] in the terms of a study's environment.
///
/// # Errors
/// As [`ceilings`].
pub fn ceilings_of(device: &Device) -> Result<Ceilings> {
    let found = ceilings(device, &SystemClock::new())?;
    let gb = |name: &str| found.iter().find(|c| c.name == name).map(|c| c.best / 1e9);
    let matmul = |c: &Ceiling| Some((c.name.strip_prefix("matmul ")?.to_owned(), c.best / 1e12));
    Ok(Ceilings {
        read_gb_per_s: gb("read"),
        copy_gb_per_s: gb("copy"),
        matmul_tflop_per_s: found.iter().filter_map(matmul).collect(),
    })
}

fn matmul(device: &Device, clock: &dyn Clock, dtype: DType, n: usize) -> Result<Ceiling> {
    let noise = |stream| -> Result<Buf> {
        let mut buf = device.alloc(BufType::Float(dtype), n * n)?;
        // Random data: zeros draw less power and run faster than anything real.
        Filling::Uniform {
            stream,
            amplitude: 1.0,
        }
        .run(device, &mut buf, 0, n * n)?;
        Ok(buf)
    };
    let (x, weight) = (
        noise(2)?,
        LinearWeight {
            n,
            k: n,
            data: WeightData::Plain(noise(3)?),
        },
    );
    let mut out = device.alloc(BufType::Float(dtype), n * n)?;
    let product = Linear {
        tokens: n,
        accumulate: false,
    };
    let times = repeat(device, clock, || {
        product.run(device, Input::Float(&x), &weight, None, &mut out)
    })?;
    let flops = product.cost(&weight, dtype).flops;
    let (best, median) = best_and_median(&times);
    Ok(Ceiling {
        name: format!("matmul {dtype}"),
        best: flops / best,
        median: flops / median,
        unit: "FLOP/s",
        how: format!("{n} x {n} x {n}, random data"),
    })
}

fn traffic(name: &str, times: &[Seconds], cost: Cost, how: &str) -> Ceiling {
    let (best, median) = best_and_median(times);
    Ceiling {
        name: name.to_owned(),
        best: cost.bytes() / best,
        median: cost.bytes() / median,
        unit: "B/s",
        how: how.to_owned(),
    }
}

fn repeat(
    device: &Device,
    clock: &dyn Clock,
    mut work: impl FnMut() -> Result<()>,
) -> Result<Vec<Seconds>> {
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..=REPEATS {
        device.synchronize()?;
        let start = clock.now();
        work()?;
        device.synchronize()?;
        times.push(clock.now() - start);
    }
    times.remove(0);
    Ok(times)
}

fn best_and_median(times: &[Seconds]) -> (f64, f64) {
    let mut seconds: Vec<f64> = times.iter().map(|t| t.0).collect();
    seconds.sort_by(f64::total_cmp);
    (seconds[0], seconds[seconds.len() / 2])
}
