//! Ops that work row by row: rounding to codes, rows picked by number, norms, gated values.

use candlepower::kernels::embed::Gather;
use candlepower::kernels::norm::RmsNorm;
use candlepower::kernels::quantize::QuantizeAct;
use candlepower::kernels::silu_mul::{GateUp, SiluMul};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::DType;

use super::{Noise, TYPES, assert_close, devices, get, put, put_ids, unit};

#[test]
fn quantised_inputs_stay_within_half_a_step() {
    for device in devices() {
        for act in TYPES {
            let (tokens, width) = (5, 100);
            let mut x = Noise(9).numbers(tokens * width, act);
            x[width..2 * width].fill(0.0);
            let held = put(&device, &x, act);
            let mut codes = device.alloc(BufType::U8, tokens * width).unwrap();
            let mut scales = device.alloc(BufType::Float(DType::F32), tokens).unwrap();
            QuantizeAct { tokens, width }
                .run(&device, &held, &mut codes, &mut scales)
                .unwrap();
            let codes: Vec<u8> = device.download(&codes, 0..tokens * width).unwrap();
            let scales = get(&device, &scales);
            for (i, x) in x.iter().enumerate() {
                let scale = f64::from(scales[i / width]);
                assert!(scale > 0.0, "{act}: token {}", i / width);
                let back = f64::from(codes[i].cast_signed()) * scale;
                let error = (back - f64::from(*x)).abs();
                assert!(
                    error <= scale * 0.5001,
                    "{act}: {x} came back as {back}, step {scale}"
                );
            }
        }
    }
}

#[test]
fn rows_are_picked_in_any_order_and_type() {
    for device in devices() {
        for (rows, width) in [(1, 1), (7, 3), (33, 70), (5, 256)] {
            let count = 2 * rows + 1;
            let ids: Vec<u32> = (0..count)
                .map(|i| u32::try_from(i * 5 % rows).unwrap())
                .collect();
            for table_type in TYPES {
                let table = Noise(rows as u64).numbers(rows * width, table_type);
                let held = put(&device, &table, table_type);
                for out_type in TYPES {
                    let mut out = device
                        .alloc(BufType::Float(out_type), count * width)
                        .unwrap();
                    let gather = Gather { count, rows, width };
                    gather
                        .run(&device, &put_ids(&device, &ids), &held, &mut out)
                        .unwrap();
                    let row = |&id: &u32| {
                        table[id as usize * width..][..width]
                            .iter()
                            .map(|&x| out_type.round(x))
                    };
                    let truth: Vec<f32> = ids.iter().flat_map(row).collect();
                    assert_eq!(
                        get(&device, &out),
                        truth,
                        "{rows} x {width}, {table_type} to {out_type}"
                    );
                }
            }
        }
    }
}

#[test]
fn an_id_outside_the_table_is_refused() {
    let table = put(&Device::Cpu, &[1.0, 2.0, 3.0], DType::F32);
    let mut out = put(&Device::Cpu, &[0.0], DType::F32);
    let gather = Gather {
        count: 1,
        rows: 3,
        width: 1,
    };
    let ids = put_ids(&Device::Cpu, &[3]);
    let error = gather
        .run(&Device::Cpu, &ids, &table, &mut out)
        .unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
}

#[test]
fn norms_equal_plain_loops_in_every_type() {
    for device in devices() {
        for (rows, width) in [(1, 1), (3, 7), (17, 64), (5, 100), (33, 256)] {
            for act in TYPES {
                let mut noise = Noise(width as u64);
                // Rows of very different size.
                let x: Vec<f32> = (0..rows * width)
                    .map(|i| {
                        act.round(
                            noise.number()
                                * 10.0_f32.powi(i32::try_from(i / width % 5).unwrap() - 2),
                        )
                    })
                    .collect();
                let weight = noise.numbers(width, act);
                let eps = 1e-5;
                let mut out = device.alloc(BufType::Float(act), rows * width).unwrap();
                let norm = RmsNorm { rows, width, eps };
                norm.run(
                    &device,
                    &put(&device, &x, act),
                    &put(&device, &weight, act),
                    &mut out,
                )
                .unwrap();
                let truth: Vec<f64> = (0..rows * width)
                    .map(|i| {
                        let row = &x[i / width * width..][..width];
                        let mean =
                            row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                        f64::from(x[i]) / (mean + f64::from(eps)).sqrt()
                            * f64::from(weight[i % width])
                    })
                    .collect();
                // Rounded twice: before the weight and after it.
                let relative = 2.0 * unit(act) + (width as f64 + 8.0) * 2.0_f64.powi(-24);
                let least = if act == DType::F16 {
                    2.0_f64.powi(-24)
                } else {
                    1e-30
                };
                let tolerance = |i: usize| 1.01 * relative * truth[i].abs() + least;
                assert_close(
                    &get(&device, &out),
                    &truth,
                    tolerance,
                    &format!("{rows} x {width}, {act}, {}", device.kind()),
                );
            }
        }
    }
}

#[test]
fn gated_values_equal_the_formula_in_every_type() {
    for device in devices() {
        for (rows, width, layout) in [
            (1, 1, GateUp::Halves),
            (3, 17, GateUp::Halves),
            (5, 104, GateUp::Halves),
            (5, 104, GateUp::Eights),
            (2, 256, GateUp::Eights),
        ] {
            for act in TYPES {
                let mut noise = Noise(rows as u64);
                let mut x: Vec<f32> = (0..2 * rows * width)
                    .map(|_| act.round(noise.number() * 12.0))
                    .collect();
                // Where e^-x leaves f32: silu is 0 and x itself there.
                (x[0], x[1]) = (-120.0, 120.0);
                let mut out = device.alloc(BufType::Float(act), rows * width).unwrap();
                let op = SiluMul {
                    rows,
                    width,
                    layout,
                };
                op.run(&device, &put(&device, &x, act), &mut out).unwrap();
                let truth: Vec<f64> = (0..rows * width)
                    .map(|i| {
                        let (at, apart) = match layout {
                            GateUp::Halves => (i % width, width),
                            GateUp::Eights => (i % width / 8 * 16 + i % 8, 8),
                        };
                        let at = i / width * 2 * width + at;
                        let (gate, up) = (f64::from(x[at]), f64::from(x[at + apart]));
                        gate / (1.0 + (-gate).exp()) * up
                    })
                    .collect();
                let tolerance = |i: usize| (2.0 * unit(act) + 4e-6) * truth[i].abs() + 1e-6;
                assert_close(
                    &get(&device, &out),
                    &truth,
                    tolerance,
                    &format!("{rows} x {width}, {layout:?}, {act}, {}", device.kind()),
                );
            }
        }
    }
}
