//! Products by themselves: of every weight, with what is beside them, and of codes.

use candlepower::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

use super::{Noise, TYPES, assert_close, bits, devices, get, put, put_bytes, timed, unit};

const TOKENS: [usize; 6] = [1, 2, 3, 4, 5, 17];
const FEATURES: [usize; 4] = [1, 3, 33, 70];

/// A weight as numbers and as what lies on a device.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
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

pub(super) struct Matrix {
    /// `[n, k]`, exact.
    pub(super) numbers: Vec<f64>,
    pub(super) weight: LinearWeight,
}

pub(super) fn matrix(device: &Device, form: Form, [n, k]: [usize; 2], seed: u64) -> Matrix {
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
pub(super) struct Beside {
    bias: bool,
    accumulate: bool,
}

pub(super) const BESIDE: [Beside; 4] = [
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
pub(super) fn check_product(
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
