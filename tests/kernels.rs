//! The ops through the public API against plain loops in f64, at shapes that no tile divides: the CPU's references, the
//! GPU's kernels compiled for the host and launched as on a GPU, and, where the build and the machine have one, the GPU
//! itself.

#[path = "kernels/append.rs"]
mod append;
#[path = "kernels/arrays.rs"]
mod arrays;
#[path = "kernels/attention.rs"]
mod attention;
#[path = "emulator/mod.rs"]
mod build;
#[path = "kernels/driver.rs"]
mod driver;
#[path = "kernels/engine.rs"]
mod engine;
#[path = "kernels/fused.rs"]
mod fused;
#[path = "kernels/generate.rs"]
mod generate;
#[path = "kernels/logits.rs"]
mod logits;
#[path = "kernels/microbench.rs"]
mod microbench;
#[path = "kernels/mutations.rs"]
mod mutations;
#[path = "kernels/products.rs"]
mod products;
#[path = "kernels/rope.rs"]
mod rope;
#[path = "kernels/rows.rs"]
mod rows;
#[path = "kernels/step.rs"]
mod step;
#[path = "kernels/stored.rs"]
mod stored;
#[path = "kernels/streamed.rs"]
mod streamed;
#[path = "kernels/study.rs"]
mod study;

use std::path::Path;

use candlepower::kernels::{Buf, BufType, Device};
use candlepower::scheme::{CodeFormat, DType};
use half::{bf16, f16};
use products::{BESIDE, Form, check_product, matrix};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Everything that computes.
fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(gpus()).collect()
}

/// Emulated GPUs that run their blocks forward, backward and interleaved, and the GPU where there is one; that one alone
/// where `CANDLEPOWER_TEST_GPU=only` says so, because a machine with a GPU has better things to do than to emulate one.
fn gpus() -> Vec<Device> {
    some_gpus(&[0, 1, 77])
}

/// The same with these orders of blocks.
fn some_gpus(orders: &[u64]) -> Vec<Device> {
    let real = Device::cuda(0);
    if only_real_gpus() {
        return vec![real.expect("CANDLEPOWER_TEST_GPU=only, but there is no GPU")];
    }
    orders
        .iter()
        .map(|&order| emulated(order))
        .chain(real)
        .collect()
}

/// The emulated GPU, for what would take several too long; or the real one, where only that is wanted.
fn one_gpu(order: u64) -> Device {
    some_gpus(&[order]).remove(0)
}

fn only_real_gpus() -> bool {
    std::env::var("CANDLEPOWER_TEST_GPU").is_ok_and(|which| which == "only")
}

/// An emulated GPU that runs the blocks of a grid in this order.
fn emulated(order: u64) -> Device {
    kernel_device(&build::kernels(), order)
}

/// The same with the kernels of `folder`.
fn kernel_device(folder: &Path, order: u64) -> Device {
    let device = Device::emulated(folder).unwrap();
    if let Device::Gpu(gpu) = &device {
        gpu.set_emulated_order(order);
    }
    device
}

/// Numbers in -1 .. 1, the same for the same seed (SplitMix64).
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// Numbers that `dtype` holds exactly.
    fn numbers(&mut self, count: usize, dtype: DType) -> Vec<f32> {
        (0..count).map(|_| dtype.round(self.number())).collect()
    }

    fn codes(&mut self, count: usize, format: CodeFormat) -> Vec<u8> {
        let last = if format == CodeFormat::U4 { 15 } else { 255 };
        (0..count).map(|_| self.bits() as u8 & last).collect()
    }
}

/// The largest relative error of rounding to `dtype`.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2.0_f64.powi(-24),
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
    }
}

/// A buffer of `dtype` on `device`.
fn put(device: &Device, numbers: &[f32], dtype: DType) -> Buf {
    let mut buf = device.alloc(BufType::Float(dtype), numbers.len()).unwrap();
    match dtype {
        DType::F32 => device.upload(&mut buf, 0, numbers),
        DType::F16 => {
            let halves: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
            device.upload(&mut buf, 0, &halves)
        }
        DType::BF16 => {
            let halves: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
            device.upload(&mut buf, 0, &halves)
        }
    }
    .unwrap();
    buf
}

fn put_ids(device: &Device, ids: &[u32]) -> Buf {
    let mut buf = device.alloc(BufType::U32, ids.len()).unwrap();
    device.upload(&mut buf, 0, ids).unwrap();
    buf
}

fn put_bytes(device: &Device, bytes: &[u8]) -> Buf {
    let mut buf = device.alloc(BufType::U8, bytes.len()).unwrap();
    device.upload(&mut buf, 0, bytes).unwrap();
    buf
}

fn get(device: &Device, buf: &Buf) -> Vec<f32> {
    let all = 0..buf.len();
    match buf.dtype().unwrap() {
        DType::F32 => device.download(buf, all).unwrap(),
        DType::F16 => {
            let halves: Vec<f16> = device.download(buf, all).unwrap();
            halves.into_iter().map(f16::to_f32).collect()
        }
        DType::BF16 => {
            let halves: Vec<bf16> = device.download(buf, all).unwrap();
            halves.into_iter().map(bf16::to_f32).collect()
        }
    }
}

/// Fails unless every number lies within its tolerance; a NaN never does.
fn assert_close(got: &[f32], truth: &[f64], tolerance: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), truth.len(), "{what}");
    for (i, (got, truth)) in got.iter().zip(truth).enumerate() {
        let error = (f64::from(*got) - truth).abs();
        assert!(
            error <= tolerance(i),
            "{what}: element {i}: {got} instead of {truth}, off by {error:e} of {:e}",
            tolerance(i)
        );
    }
}

/// An emulated GPU that asks its clock which kernel is the fastest, as real ones do.
fn timed() -> Device {
    let device = emulated(0);
    if let Device::Gpu(gpu) = &device {
        gpu.set_timed(true);
    }
    device
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
