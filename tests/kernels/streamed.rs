//! Products by the streaming kernels: every storage, every kernel that a plan may choose for it, at shapes that no tile
//! divides, against plain loops in f64.

use candlepower::kernels::linear::{Input, Linear, LinearKernel, LinearWeight};
use candlepower::kernels::{Buf, Device};
use candlepower::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

use super::{Noise, assert_close, get, gpus, one_gpu, put, put_bytes, unit};

/// What the codes of a packed weight are and how their scales lie.
#[derive(Clone, Copy, Debug)]
struct Packing {
    format: CodeFormat,
    /// Columns per scale; 0 for all.
    group: usize,
    scale_rows: usize,
    scales: DType,
    zeros: bool,
    ordered: bool,
}

const fn packing(format: CodeFormat, group: usize, scales: DType) -> Packing {
    Packing {
        format,
        group,
        scale_rows: 1,
        scales,
        zeros: false,
        ordered: false,
    }
}

/// A weight, and its numbers where the input finds them.
struct Weight {
    numbers: Vec<f64>,
    packed: PackedWeight,
}

fn weight(packing: Packing, [n, k]: [usize; 2], noise: &mut Noise) -> Weight {
    let codes = noise.codes(n * k, packing.format);
    weight_of(packing, [n, k], codes, noise)
}

/// The weight of these codes.
fn weight_of(
    packing: Packing,
    [n, k]: [usize; 2],
    mut codes: Vec<u8>,
    noise: &mut Noise,
) -> Weight {
    let format = packing.format;
    let scale_rows = packing.scale_rows.min(n);
    let group = if packing.group == 0 { k } else { packing.group };
    if format == CodeFormat::E4M3 {
        // The two codes of NaN become the largest numbers.
        codes
            .iter_mut()
            .filter(|c| **c & 0x7f == 0x7f)
            .for_each(|c| *c &= 0xfe);
    }
    let count = n.div_ceil(scale_rows) * k.div_ceil(group);
    // No two groups alike, so that one in the place of another shows.
    let scales: Vec<f32> = (0..count).map(|i| 0.01 * (1.0 + (i % 97) as f32)).collect();
    let levels = if packing.zeros {
        Levels::Zeros((0..count).map(|i| [0, 15, 8, 3, 12][i % 5]).collect())
    } else {
        Levels::Symmetric
    };
    let order = packing.ordered.then(|| {
        let mut order: Vec<u32> = (0..u32::try_from(k).unwrap()).collect();
        for i in (1..k).rev() {
            order.swap(i, usize::try_from(noise.bits() % (i as u64 + 1)).unwrap());
        }
        order
    });
    let mut rows = vec![0; n * format.row_bytes(k)];
    for (row, out) in codes.chunks(k).zip(rows.chunks_mut(format.row_bytes(k))) {
        format.pack_row(row, out);
    }
    let packed = PackedWeight {
        n,
        k,
        format,
        group,
        scale_rows,
        codes: rows,
        scales: Scales::new(packing.scales, &scales),
        levels,
        order,
    };
    let mut numbers = vec![0.0; n * k];
    for row in 0..n {
        for column in 0..k {
            let at = packed.scale_index(row, column);
            let zero = match &packed.levels {
                Levels::Zeros(zeros) => f64::from(format.value(zeros[at])),
                _ => f64::from(format.value(format.middle())),
            };
            let code = f64::from(format.value(codes[row * k + column]));
            let input = packed
                .order
                .as_ref()
                .map_or(column, |order| order[column] as usize);
            numbers[row * k + input] = (code - zero) * f64::from(packed.scales.get(at));
        }
    }
    Weight { numbers, packed }
}

/// What is added to a product, and its type.
#[derive(Clone, Copy, Debug)]
struct Rest {
    out: DType,
    bias: bool,
    accumulate: bool,
}

/// Runs a product by every kernel that may compute it; how many there were.
fn by_every_kernel(
    device: &Device,
    weight: &LinearWeight,
    numbers: &[f64],
    (x, on_device): (&[f64], Input<'_>),
    x_type: Option<DType>,
    rest: Rest,
    what: &str,
) -> usize {
    let LinearWeight { n, k, .. } = *weight;
    let tokens = x.len() / k;
    let product = Linear {
        tokens,
        accumulate: rest.accumulate,
    };
    let mut noise = Noise(5);
    let before = noise.numbers(tokens * n, rest.out);
    let bias = noise.numbers(n, rest.out);
    let (mut truth, mut sizes) = (Vec::new(), Vec::new());
    for t in 0..tokens {
        for i in 0..n {
            let added = [(rest.bias, bias[i]), (rest.accumulate, before[t * n + i])];
            let added = added
                .iter()
                .filter(|(there, _)| *there)
                .map(|(_, y)| f64::from(*y));
            let terms = (0..k).map(|j| x[t * k + j] * numbers[i * k + j]);
            let (sum, size) = terms
                .chain(added)
                .fold((0.0, 0.0), |(sum, size), y| (sum + y, size + y.abs()));
            truth.push(sum);
            sizes.push(size);
        }
    }
    let Device::Gpu(gpu) = device else {
        panic!("the CPU has no streaming kernels");
    };
    let kernels = product.kernels(device, x_type, weight);
    let bias = put(device, &bias, rest.out);
    for &kernel in &kernels {
        let mut out = put(device, &before, rest.out);
        gpu.force_linear(Some(kernel));
        let done = product.run(
            device,
            on_device,
            weight,
            rest.bias.then_some(&bias),
            &mut out,
        );
        gpu.force_linear(None);
        let what = format!("{what}, {tokens} tokens, [{n}, {k}], {rest:?}, {kernel}");
        done.unwrap_or_else(|e| panic!("{what}: {e}"));
        // A library rounds what it is added to once more, and dequantised weights are rounded to the input's type.
        let (roundings, of_weights) = match kernel {
            LinearKernel::Library => (2.0, 0.0),
            LinearKernel::Dequantized { .. } => (2.0, x_type.map_or(0.0, unit)),
            _ => (1.0, 0.0),
        };
        let sums = 2.0 * (k as f64 + 4.0) * 2.0_f64.powi(-24);
        let tolerance = |i: usize| {
            let rounded: f64 = if roundings > 1.0 { sizes[i] } else { truth[i] };
            roundings * unit(rest.out) * rounded.abs() + (sums + of_weights) * sizes[i] + 1e-30
        };
        assert_close(&get(device, &out), &truth, tolerance, &what);
    }
    kernels.len()
}

/// A packed weight times inputs of a 16-bit type.
fn check(
    device: &Device,
    packing: Packing,
    shape: [usize; 2],
    tokens: usize,
    x_type: DType,
    rest: Rest,
) -> usize {
    let mut noise = Noise(shape[0] as u64 * 7 + tokens as u64);
    let weight = weight(packing, shape, &mut noise);
    let x = noise.numbers(tokens * shape[1], x_type);
    check_with(device, packing, weight, x, x_type, rest)
}

/// The same with these inputs.
fn check_with(
    device: &Device,
    packing: Packing,
    Weight { numbers, packed }: Weight,
    x: Vec<f32>,
    x_type: DType,
    rest: Rest,
) -> usize {
    packed.check().unwrap();
    let weight = LinearWeight::from_packed(device, packed).unwrap();
    let weight = weight.streamed(device, x_type).unwrap();
    let on_device = put(device, &x, x_type);
    let x: Vec<f64> = x.into_iter().map(f64::from).collect();
    let what = format!("{packing:?}, {x_type}");
    by_every_kernel(
        device,
        &weight,
        &numbers,
        (&x, Input::Float(&on_device)),
        Some(x_type),
        rest,
        &what,
    )
}

const PLAIN_REST: Rest = Rest {
    out: DType::F32,
    bias: false,
    accumulate: false,
};

fn rests(x_type: DType) -> [Rest; 3] {
    [
        PLAIN_REST,
        Rest {
            out: x_type,
            bias: true,
            accumulate: false,
        },
        Rest {
            out: x_type,
            bias: true,
            accumulate: true,
        },
    ]
}

/// Every form of packed weight that has a streaming kernel.
fn packings() -> Vec<Packing> {
    use CodeFormat::{E4M3, I8, U4};
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    for scales in [BF16, F16, F32] {
        for group in [0, 32, 64, 128] {
            all.push(packing(U4, group, scales));
        }
    }
    for group in [0, 32, 128] {
        all.push(Packing {
            zeros: true,
            ..packing(U4, group, F16)
        });
    }
    all.push(Packing {
        zeros: true,
        scale_rows: 2,
        ..packing(U4, 64, F32)
    });
    for format in [I8, E4M3] {
        all.extend([0, 64, 128].map(|group| packing(format, group, F32)));
        all.push(packing(format, 0, BF16));
        all.push(Packing {
            scale_rows: 128,
            ..packing(format, 128, F32)
        });
        all.push(Packing {
            scale_rows: 1 << 20,
            ..packing(format, 0, F32)
        });
    }
    all.push(Packing {
        ordered: true,
        ..packing(U4, 32, BF16)
    });
    all.push(Packing {
        ordered: true,
        ..packing(I8, 0, F32)
    });
    all
}

/// Nibbles with several tiles, steps, groups and parts, by every kernel for one token and for many.
pub(super) fn int4_in_parts(device: &Device) {
    for tokens in [1, 40] {
        let packing = packing(CodeFormat::U4, 128, DType::BF16);
        check(
            device,
            packing,
            [150, 1280],
            tokens,
            DType::BF16,
            PLAIN_REST,
        );
    }
}

#[test]
fn every_packed_form_equals_plain_loops_by_every_kernel() {
    let device = one_gpu(0);
    let mut runs = 0;
    for (i, packing) in packings().into_iter().enumerate() {
        for (j, (n, k)) in [(5, 128), (70, 640), (33, 1152)].into_iter().enumerate() {
            for (t, tokens) in [1, 5, 13, 17, 33].into_iter().enumerate() {
                let x_type = [DType::BF16, DType::F16][(i + j + t) % 2];
                let rest = rests(x_type)[(i + t) % 3];
                runs += check(&device, packing, [n, k], tokens, x_type, rest);
            }
        }
    }
    assert!(runs > 1000, "{runs}");
}

/// One of every kind of streamed weight.
fn kinds() -> [Packing; 7] {
    use CodeFormat::{E4M3, I8, U4};
    [
        packing(U4, 32, DType::BF16),
        packing(U4, 0, DType::F32),
        Packing {
            zeros: true,
            ..packing(U4, 64, DType::F16)
        },
        packing(I8, 0, DType::BF16),
        packing(I8, 64, DType::F32),
        packing(E4M3, 0, DType::F32),
        packing(E4M3, 64, DType::F32),
    ]
}

/// No two columns, rows or groups may change places, and none may be lost, in repacking or on the way to the result.
#[test]
fn one_hot_inputs_bring_every_weight_from_its_place_by_every_kernel() {
    let device = one_gpu(0);
    let mut runs = 0;
    let mut shapes = Noise(11);
    let mut below = |most: u64| usize::try_from(shapes.bits() % most).unwrap();
    for packing in kinds() {
        let (n, k) = (1 + below(70), 32 * (2 + below(6)));
        // One token; 16; as many as the products of warpgroups take.
        for (tokens, columns) in [(1, 5), (16, k), (64, k)] {
            for first in (0..columns).step_by(tokens) {
                let mut noise = Noise(n as u64);
                let weight = weight(packing, [n, k], &mut noise);
                let mut x = vec![0.0; tokens * k];
                for (token, row) in x.chunks_mut(k).enumerate() {
                    row[(first + token) % k] = 1.0;
                }
                runs += check_with(&device, packing, weight, x, DType::BF16, PLAIN_REST);
            }
        }
    }
    assert!(runs > 400, "{runs}");
}

#[test]
fn the_largest_codes_and_inputs_of_both_signs_are_summed_by_every_kernel() {
    let device = one_gpu(0);
    for packing in kinds() {
        let ends: [u8; 2] = match packing.format {
            CodeFormat::U4 => [0, 15],
            CodeFormat::I8 => [0x80, 0x7f],
            CodeFormat::E4M3 => [0xfe, 0x7e],
        };
        let (n, k) = (33, 192);
        for tokens in [1, 8, 16, 33, 65] {
            let mut noise = Noise(3);
            let codes = (0..n * k).map(|i| ends[(i / 3 + i / k) % 2]).collect();
            let weight = weight_of(packing, [n, k], codes, &mut noise);
            let x = (0..tokens * k).map(|i| if i % 7 < 4 { 1024.0 } else { -1024.0 });
            check_with(
                &device,
                packing,
                weight,
                x.collect(),
                DType::F16,
                PLAIN_REST,
            );
        }
    }
}

#[test]
fn the_order_of_blocks_changes_nothing() {
    for device in gpus() {
        for packing in [
            packing(CodeFormat::U4, 128, DType::BF16),
            packing(CodeFormat::I8, 0, DType::BF16),
        ] {
            for tokens in [1, 7, 16, 64] {
                check(
                    &device,
                    packing,
                    [150, 1280],
                    tokens,
                    DType::BF16,
                    rests(DType::BF16)[2],
                );
            }
        }
    }
}

#[test]
fn blocks_of_many_tokens_end_where_the_tokens_do() {
    let device = one_gpu(0);
    for (packing, tokens) in [
        (packing(CodeFormat::U4, 128, DType::BF16), 130),
        (packing(CodeFormat::I8, 0, DType::F32), 200),
        (packing(CodeFormat::E4M3, 64, DType::F32), 128),
    ] {
        let rest = rests(DType::BF16)[1];
        check(&device, packing, [70, 320], tokens, DType::BF16, rest);
    }
}

#[test]
fn forms_that_no_streaming_kernel_takes_have_one_for_any_shape() {
    use CodeFormat::{I8, U4};
    let scales = |count: usize| Scales::new(DType::F16, &vec![0.25; count]);
    let book = std::array::from_fn(|i| (i as f32 - 6.0) * 0.125 - 0.01 * (i * i) as f32);
    for device in gpus() {
        for (format, group, levels) in [(U4, 32, None), (U4, 64, Some(book)), (I8, 32, None)] {
            for tokens in [1, 3, 70] {
                let (n, k) = (33, 192);
                let mut noise = Noise(tokens as u64);
                let count = n * k / group;
                let codes = noise.codes(n * k, format);
                let mut rows = vec![0; n * format.row_bytes(k)];
                for (row, out) in codes.chunks(k).zip(rows.chunks_mut(format.row_bytes(k))) {
                    format.pack_row(row, out);
                }
                let levels = match (format, levels) {
                    (_, Some(book)) => Levels::Codebook(book),
                    (U4, None) => {
                        let offsets: Vec<f32> = (0..count).map(|i| (i % 13) as f32 - 6.5).collect();
                        Levels::Offsets(Scales::new(DType::BF16, &offsets))
                    }
                    (_, None) => Levels::Zeros((0..count).map(|i| (i * 37 % 256) as u8).collect()),
                };
                let packed = PackedWeight {
                    n,
                    k,
                    format,
                    group,
                    scale_rows: 1,
                    codes: rows,
                    scales: scales(count),
                    levels,
                    order: None,
                };
                packed.check().unwrap();
                let numbers: Vec<f64> = (0..n)
                    .flat_map(|row| packed.dequantise_row(row))
                    .map(f64::from)
                    .collect();
                let what = format!("{} with {}", format.name(), packed.levels.name());
                let weight = LinearWeight::from_packed(&device, packed).unwrap();
                let x_type = [DType::BF16, DType::F16][tokens % 2];
                let weight = weight.streamed(&device, x_type).unwrap();
                let x = noise.numbers(tokens * k, x_type);
                let on_device = put(&device, &x, x_type);
                let x: Vec<f64> = x.into_iter().map(f64::from).collect();
                let input = (&x[..], Input::Float(&on_device));
                let rest = rests(x_type)[tokens % 3];
                by_every_kernel(&device, &weight, &numbers, input, Some(x_type), rest, &what);
            }
        }
    }
}

#[test]
fn rows_that_end_within_a_step_get_nothing_from_beyond() {
    let device = one_gpu(0);
    for (packing, k) in [
        (packing(CodeFormat::U4, 32, DType::BF16), 96),
        (packing(CodeFormat::U4, 0, DType::F32), 32),
        (packing(CodeFormat::U4, 0, DType::BF16), 160),
        (
            Packing {
                zeros: true,
                ..packing(CodeFormat::U4, 32, DType::F16)
            },
            160,
        ),
        (packing(CodeFormat::I8, 0, DType::F32), 16),
        (packing(CodeFormat::I8, 0, DType::F16), 80),
        (packing(CodeFormat::E4M3, 0, DType::F32), 112),
        // Not a whole number of 16-byte pieces: the kernels for any shape.
        (packing(CodeFormat::I8, 0, DType::F32), 100),
        (packing(CodeFormat::E4M3, 0, DType::F32), 7),
    ] {
        for tokens in [1, 6, 12, 65] {
            for x_type in [DType::BF16, DType::F16] {
                check(&device, packing, [40, k], tokens, x_type, PLAIN_REST);
            }
        }
    }
}

#[test]
fn plain_weights_equal_plain_loops_by_every_kernel() {
    for device in gpus() {
        for x_type in [DType::BF16, DType::F16] {
            for (n, k) in [(5, 8), (33, 72), (150, 640), (64, 100)] {
                for tokens in [1, 8, 9, 33, 65] {
                    let mut noise = Noise(k as u64);
                    let numbers = noise.numbers(n * k, x_type);
                    let mut weight = LinearWeight::plain(&device, [n, k], x_type).unwrap();
                    fill(&device, &mut weight, &numbers);
                    let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
                    let x = noise.numbers(tokens * k, x_type);
                    let on_device = put(&device, &x, x_type);
                    let x: Vec<f64> = x.into_iter().map(f64::from).collect();
                    let rest = rests(x_type)[tokens % 3];
                    let input = (&x[..], Input::Float(&on_device));
                    by_every_kernel(
                        &device,
                        &weight,
                        &numbers,
                        input,
                        Some(x_type),
                        rest,
                        "plain",
                    );
                }
            }
        }
    }
}

/// Puts numbers into the rows of a plain weight.
fn fill(device: &Device, weight: &mut LinearWeight, numbers: &[f32]) {
    let candlepower::kernels::linear::WeightData::Plain(buf) = &mut weight.data else {
        unreachable!("plain was asked for")
    };
    match buf.dtype().unwrap() {
        DType::F32 => device.upload(buf, 0, numbers),
        DType::F16 => {
            let halves: Vec<_> = numbers.iter().map(|&x| half::f16::from_f32(x)).collect();
            device.upload(buf, 0, &halves)
        }
        DType::BF16 => {
            let halves: Vec<_> = numbers.iter().map(|&x| half::bf16::from_f32(x)).collect();
            device.upload(buf, 0, &halves)
        }
    }
    .unwrap();
}

#[test]
fn codes_times_codes_are_exact_by_every_kernel() {
    for device in gpus() {
        for (n, k) in [(5, 64), (48, 640), (33, 112)] {
            for tokens in [1, 8, 11, 33, 65] {
                let mut noise = Noise(tokens as u64);
                let Weight { numbers, packed } =
                    weight(packing(CodeFormat::I8, 0, DType::BF16), [n, k], &mut noise);
                let weight = LinearWeight::from_packed(&device, packed).unwrap();
                let weight = weight.streamed(&device, DType::BF16).unwrap();
                let codes = noise.codes(tokens * k, CodeFormat::I8);
                let scales: Vec<f32> = (0..tokens).map(|t| 0.5 + t as f32).collect();
                let x: Vec<f64> = codes
                    .iter()
                    .enumerate()
                    .map(|(i, &code)| f64::from(code.cast_signed()) * f64::from(scales[i / k]))
                    .collect();
                let (codes, scales): (Buf, Buf) = (
                    put_bytes(&device, &codes),
                    put(&device, &scales, DType::F32),
                );
                let input = Input::Int8 {
                    codes: &codes,
                    scales: &scales,
                };
                let rest = rests(DType::BF16)[tokens % 3];
                by_every_kernel(&device, &weight, &numbers, (&x, input), None, rest, "codes");
            }
        }
    }
}
