//! Whole arrays: filled, rounded, read and copied, the same on every device.

use candlepower::kernels::fill::Filling;
use candlepower::kernels::linear::{LinearWeight, WeightData};
use candlepower::kernels::quantize::{QuantizeAct, QuantizeRows};
use candlepower::kernels::stream::{CopyAll, Nothing, ReadAll, ReadPlan};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::{CodeFormat, DType};

use super::{Noise, TYPES, bits, devices, get, gpus, put, put_ids};

#[test]
fn a_gpu_fills_with_the_same_bits_and_only_where_it_is_told() {
    for device in gpus() {
        for act in TYPES {
            for (offset, count) in [(0, 1), (3, 999), (1, 70_001)] {
                for filling in [
                    Filling::Constant(-0.3),
                    Filling::Uniform {
                        stream: 12_345,
                        amplitude: 0.02,
                    },
                ] {
                    let fill = |device: &Device| {
                        let mut buf = put(device, &vec![5.0; offset + count + 7], act);
                        filling.run(device, &mut buf, offset, count).unwrap();
                        get(device, &buf)
                    };
                    assert!(
                        bits(&fill(&device)) == bits(&fill(&Device::Cpu)),
                        "{filling:?}, {act}, {offset}, {count}, {}",
                        device.kind()
                    );
                }
            }
        }
    }
}

/// Numbers of very different size, a group of zeros, ties, and one number so small that its scale vanishes.
fn awkward(count: usize, group: usize, dtype: DType) -> Vec<f32> {
    let mut noise = Noise(count as u64);
    let mut numbers: Vec<f32> = (0..count)
        .map(|i| dtype.round(noise.number() * 10.0_f32.powi((i / group % 4) as i32 - 2)))
        .collect();
    numbers[..group].fill(0.0);
    if count >= 3 * group {
        numbers[group..2 * group].fill(dtype.round(0.5));
        numbers[2 * group..3 * group].fill(0.0);
        numbers[2 * group] = dtype.round(1e-7);
    }
    numbers
}

#[test]
fn a_gpu_rounds_weights_to_the_same_codes_and_scales() {
    for device in gpus() {
        for dtype in TYPES {
            for (format, k, group) in [
                (CodeFormat::I8, 100, 100),
                (CodeFormat::I8, 96, 32),
                (CodeFormat::U4, 96, 32),
                (CodeFormat::U4, 256, 64),
                (CodeFormat::U4, 256, 128),
            ] {
                let rows = 5;
                let numbers = awkward(rows * k, group, dtype);
                let op = QuantizeRows {
                    rows,
                    k,
                    format,
                    group,
                };
                let round = |device: &Device| {
                    // Two rows stay free, before and after.
                    let shape = [rows + 2, k];
                    let mut weight =
                        LinearWeight::packed(device, shape, format, group, dtype).unwrap();
                    op.run(device, &put(device, &numbers, dtype), &mut weight, 1)
                        .unwrap();
                    let WeightData::Packed(packed) = &weight.data else {
                        unreachable!("packed was asked for")
                    };
                    // A GPU has room for whole tiles.
                    let count = (rows + 2) * format.row_bytes(k);
                    let codes: Vec<u8> = device.download(&packed.codes, 0..count).unwrap();
                    (codes, get(device, &packed.scales))
                };
                let (got, truth) = (round(&device), round(&Device::Cpu));
                assert!(
                    got == truth,
                    "{op:?}, {dtype}, {}: {got:?}\ninstead of {truth:?}",
                    device.kind()
                );
            }
        }
    }
}

#[test]
fn a_gpu_rounds_inputs_to_the_same_codes_and_scales() {
    for device in gpus() {
        for act in TYPES {
            for width in [1, 33, 100, 513] {
                let tokens = 6;
                let numbers = awkward(tokens * width, width, act);
                let round = |device: &Device| {
                    let mut codes = device.alloc(BufType::U8, tokens * width).unwrap();
                    let mut scales = device.alloc(BufType::Float(DType::F32), tokens).unwrap();
                    let x = put(device, &numbers, act);
                    QuantizeAct { tokens, width }
                        .run(device, &x, &mut codes, &mut scales)
                        .unwrap();
                    let codes: Vec<u8> = device.download(&codes, 0..tokens * width).unwrap();
                    (codes, get(device, &scales))
                };
                assert!(
                    round(&device) == round(&Device::Cpu),
                    "{width}, {act}, {}",
                    device.kind()
                );
            }
        }
    }
}

/// Any numbers' bits; their exclusive or changes with every one of them.
fn any_numbers(count: usize) -> Vec<f32> {
    let mut noise = Noise(count as u64);
    (0..count).map(|_| noise.number()).collect()
}

#[test]
fn readers_read_every_element_in_every_way() {
    for device in devices() {
        let blocks = match &device {
            Device::Cpu => 1,
            Device::Gpu(gpu) => gpu.facts().multiprocessors,
        };
        for count in [1, 3, 4, 255, 1024, 4099, 20_000, 20_000 * blocks.min(8)] {
            let numbers = any_numbers(count);
            let truth = numbers.iter().fold(0, |all, x| all ^ x.to_bits());
            let x = put(&device, &numbers, DType::F32);
            for plan in ReadPlan::ALL {
                let op = ReadAll { count, plan };
                let results = op.results(&device);
                let mut out = put_ids(&device, &vec![u32::MAX; results]);
                op.run(&device, &x, &mut out).unwrap();
                let found: Vec<u32> = device.download(&out, 0..results).unwrap();
                let found = found.iter().fold(0, |all, x| all ^ x);
                assert_eq!(found, truth, "{count}, {plan}, {}", device.kind());
            }
        }
    }
}

#[test]
fn copies_are_whole_and_leave_the_rest_alone() {
    for device in devices() {
        for count in [1, 3, 4, 255, 1024, 4099, 50_001] {
            let numbers = any_numbers(count);
            let x = put(&device, &numbers, DType::F32);
            let mut copy = put(&device, &vec![7.0; count], DType::F32);
            CopyAll { count }.run(&device, &x, &mut copy).unwrap();
            assert!(get(&device, &copy) == numbers, "{count}, {}", device.kind());
        }
    }
}

#[test]
fn nothing_can_be_launched_and_recorded() {
    for device in devices() {
        for overlaps in [false, true] {
            Nothing { overlaps }.run(&device).unwrap();
            if let Device::Gpu(gpu) = &device {
                let graph =
                    gpu.capture(|| (0..3).try_for_each(|_| Nothing { overlaps }.run(&device)));
                graph.unwrap().launch().unwrap();
            }
            device.synchronize().unwrap();
        }
    }
}
