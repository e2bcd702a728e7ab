//! What GPUs do beside running kernels: recorded work, points of time, memory. And what only the emulator does: notice a
//! launch that is not as the kernel wants it, and a kernel that leaves its memory.

use std::sync::Arc;

use candlepower::error::Result;
use candlepower::kernels::gpu::{Gpu, names};
use candlepower::kernels::linear::{Input, Linear};
use candlepower::kernels::norm::RmsNorm;
use candlepower::kernels::stream::CopyAll;
use candlepower::kernels::{Buf, BufType, Device};
use candlepower::scheme::DType;

use super::build::{Mutation, mutated};
use super::{Form, emulated, get, gpus, matrix, put};

fn gpu(device: &Device) -> &Arc<Gpu> {
    match device {
        Device::Gpu(gpu) => gpu,
        Device::Cpu => panic!("the CPU is no GPU"),
    }
}

#[test]
fn every_kernel_is_launched_and_every_launch_has_its_kernel() {
    assert_eq!(gpu(&emulated(0)).kernels(), names());
}

#[test]
fn recorded_work_runs_when_it_is_launched_as_often_as_it_is() {
    for device in gpus() {
        // Few tokens by our kernels, many by the library.
        for tokens in [3, 20] {
            let matrix = matrix(&device, Form::Plain(DType::BF16), [33, 64], 1);
            let x = put(&device, &vec![0.5; tokens * 64], DType::BF16);
            let before = vec![1.0; tokens * 33];
            let mut out = put(&device, &before, DType::F32);
            let mut copy = put(&device, &vec![0.0; tokens * 33], DType::F32);
            let product = Linear {
                tokens,
                accumulate: true,
            };
            let count = tokens * 33;
            let graph = gpu(&device)
                .capture(|| {
                    // What the graph alone knows of stays as long as it does.
                    let (x, matrix) = (x, matrix);
                    product.run(&device, Input::Float(&x), &matrix.weight, None, &mut out)?;
                    CopyAll { count }.run(&device, &out, &mut copy)
                })
                .unwrap();
            assert_eq!(get(&device, &out), before, "{}", device.kind());
            let other = put(&device, &vec![9.0; tokens * 64], DType::BF16);
            graph.launch().unwrap();
            let once = get(&device, &copy);
            graph.launch().unwrap();
            let twice = get(&device, &copy);
            assert_eq!(get(&device, &out), twice);
            assert!(once.iter().any(|&x| x != 1.0), "{once:?}");
            for (once, twice) in once.iter().zip(twice) {
                let (one, two) = (once - 1.0, twice - 1.0);
                assert!((two - 2.0 * one).abs() < 1e-5, "{one} once, {two} twice");
            }
            drop(other);
        }
    }
}

#[test]
fn what_the_host_waits_for_is_not_recorded() {
    for device in gpus() {
        let gpu = gpu(&device);
        let mut buf = put(&device, &[1.0, 2.0], DType::F32);
        let event = gpu.event().unwrap();
        let mut refused = |work: &mut dyn FnMut(&mut Buf) -> Result<()>| {
            let error = gpu.capture(|| work(&mut buf)).err().expect("refused");
            assert!(error.to_string().contains("recorded"), "{error}");
        };
        refused(&mut |_| device.alloc(BufType::U8, 1).map(drop));
        refused(&mut |buf| device.upload(buf, 0, &[3.0_f32]));
        refused(&mut |buf| device.download::<f32>(buf, 0..1).map(drop));
        refused(&mut |_| device.synchronize());
        refused(&mut |_| gpu.record(&event));
        refused(&mut |_| gpu.capture(|| Ok(())).map(drop));
        // It goes on as if nothing had been.
        device.upload(&mut buf, 0, &[3.0_f32]).unwrap();
        assert_eq!(get(&device, &buf), [3.0, 2.0]);
    }
}

#[test]
fn events_measure_what_lies_between_them() {
    for device in gpus() {
        let gpu = gpu(&device);
        let (start, end) = (gpu.event().unwrap(), gpu.event().unwrap());
        assert!(gpu.elapsed(&start, &end).is_err(), "neither is recorded");
        let count = 1 << 16;
        let x = put(&device, &vec![1.0; count], DType::F32);
        let mut out = put(&device, &vec![0.0; count], DType::F32);
        gpu.record(&start).unwrap();
        for _ in 0..3 {
            CopyAll { count }.run(&device, &x, &mut out).unwrap();
        }
        gpu.record(&end).unwrap();
        let time = gpu.elapsed(&start, &end).unwrap().0;
        if device.kind() == "emulator" {
            assert!((time - 3e-6).abs() < 1e-12, "{time}");
        } else {
            assert!(time > 0.0 && time < 1.0, "{time}");
        }
    }
}

#[test]
fn memory_is_counted_and_given_back() {
    let device = emulated(0);
    let (free, total) = device.memory().unwrap();
    assert!(free == total && total > 0);
    let buf = device.alloc(BufType::U32, 1000).unwrap();
    assert_eq!(device.memory().unwrap(), (free - 4000, total));
    drop(buf);
    assert_eq!(device.memory().unwrap(), (free, total));
    let too_much = usize::try_from(total).unwrap() + 1;
    let error = device.alloc(BufType::U8, too_much).err().expect("refused");
    assert_eq!(error.exit_code(), 75, "{error}");
}

fn norm(device: &Device, width: usize) -> Result<Buf> {
    let x = put(device, &vec![1.0; 3 * width], DType::F32);
    let weight = put(device, &vec![1.0; width], DType::F32);
    let mut out = device.alloc(BufType::Float(DType::F32), 3 * width)?;
    let norm = RmsNorm {
        rows: 3,
        width,
        eps: 1e-6,
    };
    norm.run(device, &x, &weight, &mut out)?;
    Ok(out)
}

#[test]
fn a_buffer_of_another_device_is_refused() {
    let (one, other) = (emulated(0), emulated(0));
    let out = norm(&one, 8).unwrap();
    let mut copy = one.alloc(BufType::Float(DType::F32), 24).unwrap();
    let error = CopyAll { count: 24 }
        .run(&other, &out, &mut copy)
        .unwrap_err();
    assert!(error.to_string().contains("another device"), "{error}");
    assert!(other.download::<f32>(&out, 0..1).is_err());
}

/// What `norm` says when this is changed in its kernel.
fn said_of(change: (&'static str, &'static str)) -> String {
    said_in("norm.cu", change)
}

/// The same of a change in a file that it includes.
fn said_in(file: &'static str, (from, to): (&'static str, &'static str)) -> String {
    let folder = mutated(&["norm"], &[Mutation { file, from, to }]);
    let device = Device::emulated(&folder).unwrap();
    norm(&device, 100).err().expect("a fault").to_string()
}

#[test]
fn a_kernel_that_writes_outside_its_buffer_is_named() {
    let beyond = ("row[first + i] = from", "row[first + i + 1] = from");
    let said = said_in("common/norm.cuh", beyond);
    assert!(
        said.contains("'rms_norm_f32'") && said.contains("byte 1200 of a buffer of 1200"),
        "{said}"
    );
    let said = said_of(("T* to = out +", "T* to = out - 2 +"));
    assert!(
        said.contains("'rms_norm_f32'") && said.contains("byte -8 of a buffer of 1200"),
        "{said}"
    );
}

#[test]
fn an_argument_of_another_size_is_named() {
    const FROM: &str = "T* weight, T* out, unsigned width, float eps) {   ";
    let said = said_of((FROM, "T* weight, T* out, unsigned width, double eps) { "));
    assert!(
        said.contains("argument 4") && said.contains("'rms_norm_f32'"),
        "{said}"
    );
    let said = said_of((
        FROM,
        "T* weight, T* out, unsigned width, float eps, int more) { ",
    ));
    assert!(
        said.contains("6 arguments") && said.contains("'rms_norm_f32'"),
        "{said}"
    );
}

#[test]
fn a_folder_without_kernels_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Device::emulated(folder.path())
        .err()
        .expect("nothing there");
    assert_eq!(error.exit_code(), 69, "{error}");
    std::fs::write(folder.path().join("norm.so"), "no library").unwrap();
    let error = Device::emulated(folder.path()).err().expect("no library");
    assert!(error.to_string().contains("norm.so"), "{error}");
    assert_eq!(error.exit_code(), 65, "{error}");
}
