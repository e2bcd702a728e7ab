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
#[path = "kernels/step.rs"]
mod step;
#[path = "kernels/stored.rs"]
mod stored;
#[path = "kernels/streamed.rs"]
mod streamed;
#[path = "kernels/study.rs"]
mod study;

use std::path::Path;

use candlepower::kernels::attention::{Attention, LayerCache, Places, Queries};
use candlepower::kernels::embed::Gather;
use candlepower::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use candlepower::kernels::norm::RmsNorm;
use candlepower::kernels::quantize::QuantizeAct;
use candlepower::kernels::rope::{HeadNorms, RopeAppend, RopeTable};
use candlepower::kernels::silu_mul::{GateUp, SiluMul};
use candlepower::kernels::{Buf, BufType, Device};
use candlepower::scheme::{CodeFormat, DType, KvFormat, Levels, PackedWeight, Scales};
use half::{bf16, f16};

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const TOKENS: [usize; 6] = [1, 2, 3, 4, 5, 17];
const FEATURES: [usize; 4] = [1, 3, 33, 70];

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

/// A weight as numbers and as what lies on a device.
#[derive(Clone, Copy, Debug)]
enum Form {
    Plain(DType),
    /// Codes, columns per scale (0 for all), type of the scales.
    Packed(CodeFormat, usize, DType),
}

fn forms(k: usize) -> Vec<Form> {
    let mut forms: Vec<Form> = TYPES.map(Form::Plain).into();
    for scales in TYPES {
        forms.push(Form::Packed(CodeFormat::I8, 0, scales));
        for group in [32, 64, 128] {
            if k.is_multiple_of(group) {
                forms.push(Form::Packed(CodeFormat::U4, group, scales));
            }
        }
    }
    forms
}

struct Matrix {
    /// `[n, k]`, exact.
    numbers: Vec<f64>,
    weight: LinearWeight,
}

fn matrix(device: &Device, form: Form, [n, k]: [usize; 2], seed: u64) -> Matrix {
    let mut noise = Noise(seed);
    match form {
        Form::Plain(dtype) => {
            let numbers = noise.numbers(n * k, dtype);
            let data = WeightData::Plain(put(device, &numbers, dtype));
            Matrix {
                numbers: numbers.into_iter().map(f64::from).collect(),
                weight: LinearWeight { n, k, data },
            }
        }
        Form::Packed(format, group, dtype) => {
            let group = if group == 0 { k } else { group };
            let codes = noise.codes(n * k, format);
            let scales: Vec<f32> = (0..n * (k / group))
                .map(|_| 0.01 + 0.1 * noise.number().abs())
                .collect();
            let scales = Scales::new(dtype, &scales);
            let mut packed = vec![0; n * format.row_bytes(k)];
            for (row, packed) in codes.chunks(k).zip(packed.chunks_mut(format.row_bytes(k))) {
                format.pack_row(row, packed);
            }
            let packed = PackedWeight {
                n,
                k,
                format,
                group,
                scale_rows: 1,
                codes: packed,
                scales,
                levels: Levels::Symmetric,
                order: None,
            };
            let number = |code| f64::from(format.value(code));
            let numbers = codes
                .iter()
                .enumerate()
                .map(|(i, &code)| {
                    let scale = packed.scales.get(packed.scale_index(i / k, i % k));
                    (number(code) - number(format.middle())) * f64::from(scale)
                })
                .collect();
            Matrix {
                numbers,
                weight: LinearWeight::from_packed(device, packed).unwrap(),
            }
        }
    }
}

/// What is beside a product.
#[derive(Clone, Copy, Debug)]
struct Beside {
    bias: bool,
    accumulate: bool,
}

const BESIDE: [Beside; 4] = [
    Beside {
        bias: false,
        accumulate: false,
    },
    Beside {
        bias: true,
        accumulate: false,
    },
    Beside {
        bias: false,
        accumulate: true,
    },
    Beside {
        bias: true,
        accumulate: true,
    },
];

/// One product and its judgement; gives what came out.
fn check_product(
    device: &Device,
    matrix: &Matrix,
    tokens: usize,
    [x_type, out_type]: [DType; 2],
    beside: Beside,
    what: &str,
) -> Vec<f32> {
    let LinearWeight { n, k, .. } = matrix.weight;
    let mut noise = Noise(77);
    let x = noise.numbers(tokens * k, x_type);
    let before = noise.numbers(tokens * n, out_type);
    let bias = noise.numbers(n, out_type);
    let mut out = put(device, &before, out_type);
    let on_device = put(device, &bias, out_type);
    let product = Linear {
        tokens,
        accumulate: beside.accumulate,
    };
    let x_on_device = put(device, &x, x_type);
    product
        .run(
            device,
            Input::Float(&x_on_device),
            &matrix.weight,
            beside.bias.then_some(&on_device),
            &mut out,
        )
        .unwrap();
    let got = get(device, &out);
    let (mut truth, mut sizes) = (Vec::new(), Vec::new());
    for t in 0..tokens {
        for i in 0..n {
            let terms = (0..k).map(|j| f64::from(x[t * k + j]) * matrix.numbers[i * k + j]);
            let (mut sum, mut size) =
                terms.fold((0.0, 0.0), |(sum, size), y| (sum + y, size + y.abs()));
            let added = [
                (beside.bias, bias[i]),
                (beside.accumulate, before[t * n + i]),
            ];
            for (_, y) in added.iter().filter(|(there, _)| *there) {
                (sum, size) = (sum + f64::from(*y), size + f64::from(y.abs()));
            }
            truth.push(sum);
            sizes.push(size);
        }
    }
    // A library's product on a GPU rounds what it is added to once more.
    let roundings = if matches!(device, Device::Cpu) {
        1.0
    } else {
        2.0
    };
    let sums = 2.0 * (k as f64 + 4.0) * 2.0_f64.powi(-24);
    let tolerance = |i: usize| {
        let rounded = if roundings > 1.0 {
            sizes[i]
        } else {
            truth[i].abs()
        };
        roundings * unit(out_type) * rounded + sums * sizes[i] + 1e-30
    };
    let shape = format!(
        "{what}, {tokens} tokens, [{n}, {k}], {x_type} to {out_type}, {beside:?}, {}",
        device.kind()
    );
    assert_close(&got, &truth, tolerance, &shape);
    got
}

/// Pairs of input and output types that the engine uses.
const PAIRS: [[DType; 2]; 5] = [
    [DType::F32, DType::F32],
    [DType::F16, DType::F16],
    [DType::BF16, DType::BF16],
    [DType::F16, DType::F32],
    [DType::BF16, DType::F32],
];

#[test]
fn products_equal_plain_loops_for_every_weight() {
    for device in devices() {
        for k in [32, 96, 100, 256] {
            for n in FEATURES {
                for form in forms(k) {
                    let matrix = matrix(&device, form, [n, k], (n * 1000 + k) as u64);
                    for tokens in TOKENS {
                        for (pair, beside) in PAIRS.iter().zip(BESIDE.iter().cycle().skip(tokens)) {
                            check_product(
                                &device,
                                &matrix,
                                tokens,
                                *pair,
                                *beside,
                                &format!("{form:?}"),
                            );
                        }
                    }
                }
            }
        }
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

#[test]
fn products_are_right_whose_kernels_are_found_by_the_clock() {
    let device = timed();
    for form in [
        Form::Plain(DType::BF16),
        Form::Packed(CodeFormat::I8, 0, DType::BF16),
        Form::Packed(CodeFormat::U4, 32, DType::BF16),
    ] {
        let Matrix { numbers, weight } = matrix(&device, form, [33, 128], 3);
        let weight = weight.streamed(&device, DType::BF16).unwrap();
        let matrix = Matrix { numbers, weight };
        for (tokens, beside) in [(1, BESIDE[0]), (5, BESIDE[3]), (20, BESIDE[2])] {
            // Once as it is chosen, once as it was chosen.
            for _ in 0..2 {
                let pair = [DType::BF16, DType::BF16];
                check_product(&device, &matrix, tokens, pair, beside, &format!("{form:?}"));
            }
        }
    }
}

#[test]
fn products_take_a_bias_and_a_residual_in_every_type() {
    for device in devices() {
        for form in forms(96) {
            let matrix = matrix(&device, form, [33, 96], 5);
            for tokens in [1, 5] {
                for pair in PAIRS {
                    for beside in BESIDE {
                        check_product(&device, &matrix, tokens, pair, beside, &format!("{form:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_gives_the_same_bits_alone_and_in_a_batch() {
    let device = Device::Cpu;
    for k in [32, 96, 100, 256] {
        for form in forms(k) {
            let n = 70;
            let matrix = matrix(&device, form, [n, k], 11);
            for act in TYPES {
                let x = Noise(3).numbers(17 * k, act);
                let run = |x: &[f32]| {
                    let tokens = x.len() / k;
                    let mut out = device.alloc(BufType::Float(act), tokens * n).unwrap();
                    let product = Linear {
                        tokens,
                        accumulate: false,
                    };
                    let x = put(&device, x, act);
                    product
                        .run(&device, Input::Float(&x), &matrix.weight, None, &mut out)
                        .unwrap();
                    get(&device, &out)
                };
                let together = run(&x);
                for size in TOKENS {
                    let apart: Vec<f32> = x.chunks(size * k).flat_map(run).collect();
                    assert!(
                        bits(&apart) == bits(&together),
                        "{form:?}, K {k}, {act}, {size} at a time"
                    );
                }
            }
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn integer_products_are_exact() {
    for device in devices() {
        for k in [32, 96, 100, 256] {
            for n in FEATURES {
                for tokens in TOKENS {
                    for extreme in [false, true] {
                        integer_product(&device, [tokens, n, k], extreme);
                    }
                }
            }
        }
    }
}

/// Scales are powers of two, so that nothing is rounded before the end.
fn integer_product(device: &Device, [tokens, n, k]: [usize; 3], extreme: bool) {
    let mut noise = Noise((tokens * n * k) as u64);
    let mut codes = |count| {
        let codes = noise.codes(count, CodeFormat::I8).into_iter();
        let codes = codes.map(u8::cast_signed).collect::<Vec<i8>>();
        // The smallest codes give the largest sums, and are where unsigned tricks go wrong.
        if extreme {
            vec![-128; codes.len()]
        } else {
            codes
        }
    };
    let (x, w) = (codes(tokens * k), codes(n * k));
    let two = |i: usize| 2.0_f32.powi(i32::try_from(i % 3).unwrap() - 6);
    let x_scales: Vec<f32> = (0..tokens).map(two).collect();
    let w_scales: Vec<f32> = (0..n).map(|i| two(i + 2)).collect();
    let bytes = |codes: &[i8]| codes.iter().map(|q| q.cast_unsigned()).collect::<Vec<u8>>();
    let x_codes = put_bytes(device, &bytes(&x));
    let x_held = put(device, &x_scales, DType::F32);
    for scale_type in TYPES {
        let packed = PackedWeight {
            n,
            k,
            format: CodeFormat::I8,
            group: k,
            scale_rows: 1,
            codes: bytes(&w),
            scales: Scales::new(scale_type, &w_scales),
            levels: Levels::Symmetric,
            order: None,
        };
        let weight = LinearWeight::from_packed(device, packed).unwrap();
        for out_type in TYPES {
            for beside in BESIDE {
                let bias: Vec<f32> = (0..n).map(|i| i as f32 - 8.0).collect();
                let before: Vec<f32> = (0..tokens * n).map(|i| (i % 37) as f32).collect();
                let mut out = put(device, &before, out_type);
                let bias_held = put(device, &bias, out_type);
                let input = Input::Int8 {
                    codes: &x_codes,
                    scales: &x_held,
                };
                let product = Linear {
                    tokens,
                    accumulate: beside.accumulate,
                };
                product
                    .run(
                        device,
                        input,
                        &weight,
                        beside.bias.then_some(&bias_held),
                        &mut out,
                    )
                    .unwrap();
                let truth: Vec<f32> = (0..tokens * n)
                    .map(|at| {
                        let (t, i) = (at / n, at % n);
                        let sum: i32 = (0..k)
                            .map(|j| i32::from(x[t * k + j]) * i32::from(w[i * k + j]))
                            .sum();
                        let mut sum =
                            f64::from(sum) * f64::from(x_scales[t]) * f64::from(w_scales[i]);
                        sum += if beside.bias { f64::from(bias[i]) } else { 0.0 };
                        sum += if beside.accumulate {
                            f64::from(before[at])
                        } else {
                            0.0
                        };
                        assert_eq!(f64::from(sum as f32), sum, "the test's numbers fit f32");
                        out_type.round(sum as f32)
                    })
                    .collect();
                let got = get(device, &out);
                let what = format!(
                    "{tokens} tokens, [{n}, {k}], {scale_type} to {out_type}, {beside:?}, {}",
                    device.kind()
                );
                assert!(got == truth, "{what}: {got:?}\ninstead of {truth:?}");
            }
        }
    }
}

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

/// Five tokens of two sequences, out of order, with and without norms of heads.
#[test]
fn rotated_heads_and_the_cache_equal_plain_loops() {
    for device in devices() {
        for act in TYPES {
            for normed in [false, true] {
                rope(&device, act, normed);
            }
        }
    }
}

fn rope(device: &Device, act: DType, normed: bool) {
    let (tokens, heads, kv_heads, head_dim, capacity, slots) = (5, 6, 2, 16, 11, 3);
    let attention = Attention {
        tokens,
        heads,
        kv_heads,
        head_dim,
        capacity,
        kv: KvFormat::Auto,
        scale: 1.0,
        queries: Queries::Runs,
    };
    let slot = [2_u32, 0, 2, 2, 0];
    let position = [0_u32, 10, 3, 1, 7];
    let frequencies: Vec<f32> = (0..head_dim / 2)
        .map(|i| 1.0 / 10.0_f32.powf(i as f32 / 4.0))
        .collect();
    let mut noise = Noise(21);
    let width = (heads + 2 * kv_heads) * head_dim;
    let before = noise.numbers(tokens * width, act);
    let norms = [noise.numbers(head_dim, act), noise.numbers(head_dim, act)];
    let held = norms.each_ref().map(|norm| put(device, norm, act));
    let eps = 1e-6;
    let mut qkv = put(device, &before, act);
    let cached = slots * kv_heads * capacity * head_dim;
    let empty = vec![-3.0; cached];
    let mut cache = LayerCache::plain(put(device, &empty, act), put(device, &empty, act));
    let table = RopeTable::new(device, &frequencies, capacity).unwrap();
    let (slots_held, positions_held) = (put_ids(device, &slot), put_ids(device, &position));
    let places = Places {
        slots: &slots_held,
        positions: &positions_held,
    };
    let head_norms = normed.then_some(HeadNorms {
        q: &held[0],
        k: &held[1],
        eps,
    });
    RopeAppend(attention)
        .run(device, &mut qkv, head_norms, &table, places, &mut cache)
        .unwrap();

    let mut truth: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
    let half = head_dim / 2;
    for t in 0..tokens {
        for head in 0..heads + kv_heads {
            let x = &mut truth[t * width + head * head_dim..][..head_dim];
            if normed {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                let norm = &norms[usize::from(head >= heads)];
                x.iter_mut()
                    .zip(norm)
                    .for_each(|(x, w)| *x = *x / (mean + f64::from(eps)).sqrt() * f64::from(*w));
            }
            for i in 0..half {
                let angle = f64::from(position[t]) * f64::from(frequencies[i]);
                let (a, b) = (x[i], x[i + half]);
                (x[i], x[i + half]) = (
                    a * angle.cos() - b * angle.sin(),
                    b * angle.cos() + a * angle.sin(),
                );
            }
        }
    }
    let tolerance = |_: usize| 8.0 * unit(act) + 1e-5;
    let what = format!("{act}, norms {normed}, {}", device.kind());
    let got = get(device, &qkv);
    // Values pass through untouched, and the cache holds what the rows hold; everything else of it is as it was.
    assert_close(&got, &truth, tolerance, &what);
    let (mut k, mut v) = (empty.clone(), empty);
    for t in 0..tokens {
        for head in 0..kv_heads {
            let at =
                ((slot[t] as usize * kv_heads + head) * capacity + position[t] as usize) * head_dim;
            let from = |first: usize| &got[t * width + (first + head) * head_dim..][..head_dim];
            k[at..at + head_dim].copy_from_slice(from(heads));
            v[at..at + head_dim].copy_from_slice(from(heads + kv_heads));
        }
    }
    for t in 0..tokens {
        let values = (heads + kv_heads) * head_dim..width;
        assert_eq!(
            got[t * width..][values.clone()],
            before[t * width..][values],
            "{what}"
        );
    }
    assert_eq!(get(device, &cache.k), k, "{what}: keys");
    assert_eq!(get(device, &cache.v), v, "{what}: values");
}

#[test]
fn a_position_beyond_the_cache_is_an_error() {
    let device = Device::Cpu;
    let attention = Attention {
        tokens: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        capacity: 2,
        kv: KvFormat::Auto,
        scale: 1.0,
        queries: Queries::Runs,
    };
    let mut qkv = put(&device, &[0.5; 12], DType::F32);
    let zeros = || put(&device, &[0.0; 8], DType::F32);
    let mut cache = LayerCache::plain(zeros(), zeros());
    let table = RopeTable::new(&device, &[1.0, 0.5], 2).unwrap();
    let (slots, positions) = (put_ids(&device, &[0]), put_ids(&device, &[2]));
    let places = Places {
        slots: &slots,
        positions: &positions,
    };
    assert!(
        RopeAppend(attention)
            .run(&device, &mut qkv, None, &table, places, &mut cache)
            .is_err()
    );
}

#[test]
fn buffers_that_are_too_short_are_refused() {
    let device = Device::Cpu;
    let matrix = matrix(&device, Form::Plain(DType::F32), [3, 32], 1);
    let x = put(&device, &[0.0; 63], DType::F32);
    let mut out = put(&device, &[0.0; 6], DType::F32);
    let product = Linear {
        tokens: 2,
        accumulate: false,
    };
    assert!(
        product
            .run(&device, Input::Float(&x), &matrix.weight, None, &mut out)
            .is_err()
    );
    let x = put(&device, &[0.0; 64], DType::F32);
    let mut short = put(&device, &[0.0; 5], DType::F32);
    assert!(
        product
            .run(&device, Input::Float(&x), &matrix.weight, None, &mut short)
            .is_err()
    );
    let bias = put(&device, &[0.0; 2], DType::F32);
    assert!(
        product
            .run(
                &device,
                Input::Float(&x),
                &matrix.weight,
                Some(&bias),
                &mut out
            )
            .is_err()
    );
    assert!(
        product
            .run(&device, Input::Float(&x), &matrix.weight, None, &mut out)
            .is_ok()
    );
}
