//! Products with packed weights of every form that a checkpoint may come in, by the CPU's reference, against plain loops
//! in f64 that read the codes by the definitions of their formats.

#[path = "packed_products/forms.rs"]
mod forms;

use candlepower::error::Error;
use candlepower::kernels::linear::{Input, LevelBufs, Linear, LinearWeight, WeightData};
use candlepower::kernels::quantize::QuantizeRows;
use candlepower::kernels::{Buf, Device};
use candlepower::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};
use forms::{Form, KINDS, Kind, Matrix, Noise, forms, matrix, named, shapes};
use half::{bf16, f16};

/// Every number of tokens up to where weights are no longer widened in registers, and more.
fn token_counts() -> Vec<usize> {
    (1..=17).chain([33, 64, 65, 200]).collect()
}

fn on_cpu(packed: &PackedWeight) -> LinearWeight {
    LinearWeight::from_packed(&Device::Cpu, packed.clone()).unwrap()
}

fn put(numbers: &[f32], dtype: DType) -> Buf {
    match dtype {
        DType::F32 => Buf::from_vec(numbers.to_vec()),
        DType::F16 => Buf::from_vec(numbers.iter().map(|&x| f16::from_f32(x)).collect()),
        DType::BF16 => Buf::from_vec(numbers.iter().map(|&x| bf16::from_f32(x)).collect()),
    }
}

fn get(buf: &Buf) -> Vec<f32> {
    match buf.dtype().unwrap() {
        DType::F32 => buf.host::<f32>().unwrap().to_vec(),
        DType::F16 => buf
            .host::<f16>()
            .unwrap()
            .iter()
            .map(|x| x.to_f32())
            .collect(),
        DType::BF16 => buf
            .host::<bf16>()
            .unwrap()
            .iter()
            .map(|x| x.to_f32())
            .collect(),
    }
}

/// `x [tokens, k]` times a weight, in f32, with nothing beside it.
fn product(weight: &LinearWeight, x: &[f32]) -> Vec<f32> {
    let tokens = x.len() / weight.k;
    let mut out = Buf::from_vec(vec![f32::NAN; tokens * weight.n]);
    Linear {
        tokens,
        accumulate: false,
    }
    .run(
        &Device::Cpu,
        Input::Float(&put(x, DType::F32)),
        weight,
        None,
        &mut out,
    )
    .unwrap();
    get(&out)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The largest relative error of rounding to `dtype`.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2.0_f64.powi(-24),
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
    }
}

/// One product in activations of type `act` and its judgement.
fn check_product(matrix: &Matrix, tokens: usize, act: DType, beside: [bool; 2], what: &str) {
    let PackedWeight { n, k, .. } = matrix.packed;
    let [with_bias, accumulate] = beside;
    let mut noise = Noise(tokens as u64);
    let x = noise.numbers(tokens * k, act);
    let bias = noise.numbers(n, act);
    // What lies behind the output is no product's business.
    let behind = [123.0; 9];
    let before = [noise.numbers(tokens * n, act), behind.to_vec()].concat();
    let mut out = put(&before, act);
    let bias_held = put(&bias, act);
    Linear { tokens, accumulate }
        .run(
            &Device::Cpu,
            Input::Float(&put(&x, act)),
            &on_cpu(&matrix.packed),
            with_bias.then_some(&bias_held),
            &mut out,
        )
        .unwrap();
    let got = get(&out);
    assert_eq!(got[tokens * n..], behind, "{what}");
    for (t, x) in x.chunks(k).enumerate() {
        for i in 0..n {
            let row = i * k..(i + 1) * k;
            let terms = x.iter().zip(&matrix.numbers[row.clone()]);
            let sizes = x.iter().zip(&matrix.sizes[row]);
            let mut truth: f64 = terms.map(|(x, w)| f64::from(*x) * w).sum();
            let mut size: f64 = sizes.map(|(x, w)| f64::from(x.abs()) * w).sum();
            let added = [(with_bias, bias[i]), (accumulate, before[t * n + i])];
            for (_, y) in added.iter().filter(|(there, _)| *there) {
                (truth, size) = (truth + f64::from(*y), size + f64::from(y.abs()));
            }
            let tolerance =
                unit(act) * truth.abs() + 2.0 * (k as f64 + 6.0) * 2.0_f64.powi(-24) * size + 1e-30;
            let got = f64::from(got[t * n + i]);
            let error = (got - truth).abs();
            assert!(
                error <= tolerance,
                "{what}, {tokens} tokens, [{n}, {k}], {act}: token {t}, row {i}: {got} instead of {truth}, off by \
                 {error:e} of {tolerance:e}"
            );
        }
    }
}

#[test]
fn products_equal_plain_loops_in_every_form() {
    for (turn, form) in forms().into_iter().enumerate() {
        for shape in shapes(form.format) {
            let matrix = matrix(form, shape, (turn * 1000 + shape[1]) as u64);
            for tokens in [1, 2, 3, 4, 17, 33] {
                check_product(
                    &matrix,
                    tokens,
                    DType::F32,
                    [false; 2],
                    &format!("{form:?}"),
                );
            }
        }
    }
}

#[test]
fn products_equal_plain_loops_for_every_number_of_tokens() {
    for (turn, form) in forms().into_iter().enumerate().filter(|(i, _)| i % 3 == 0) {
        let k = if form.format == CodeFormat::U4 {
            160
        } else {
            150
        };
        let matrix = matrix(form, [37, k], turn as u64);
        for tokens in token_counts() {
            let act = [DType::F32, DType::F16, DType::BF16][tokens % 3];
            let beside = [tokens % 2 == 0, tokens % 4 < 2];
            check_product(&matrix, tokens, act, beside, &format!("{form:?}"));
        }
    }
}

/// A column alone shows its weight, not rounded again: so neither tile, nor group, nor place of a column can be mistaken.
#[test]
fn one_hot_inputs_give_the_dequantised_weight() {
    for (turn, form) in forms().into_iter().enumerate() {
        for shape in shapes(form.format) {
            let [n, k] = shape;
            let matrix = matrix(form, shape, turn as u64);
            let weight = on_cpu(&matrix.packed);
            let mut hot = vec![0.0; k * k];
            (0..k).for_each(|i| hot[i * k + i] = 1.0);
            let rows: Vec<Vec<f32>> = (0..n).map(|i| matrix.packed.dequantise_row(i)).collect();
            for (row, numbers) in rows.iter().zip(matrix.numbers.chunks(k)) {
                for (got, truth) in row.iter().zip(numbers) {
                    let error = (f64::from(*got) - truth).abs();
                    assert!(
                        error <= truth.abs() * 1e-6 + 1e-7,
                        "{form:?}: {got} {truth}"
                    );
                }
            }
            for tokens in [1, k] {
                let out: Vec<f32> = hot
                    .chunks(tokens * k)
                    .flat_map(|x| product(&weight, x))
                    .collect();
                for (column, out) in out.chunks(n).enumerate() {
                    let truth: Vec<f32> = rows.iter().map(|row| row[column]).collect();
                    assert_eq!(
                        out, truth,
                        "{form:?}, {shape:?}, {tokens} tokens, column {column}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_gives_the_same_bits_alone_and_in_a_batch() {
    for (turn, form) in forms().into_iter().enumerate() {
        let k = if form.format == CodeFormat::U4 {
            160
        } else {
            150
        };
        let weight = on_cpu(&matrix(form, [70, k], turn as u64).packed);
        let x = Noise(3).numbers(33 * k, DType::F32);
        let together = bits(&product(&weight, &x));
        for size in [1, 2, 3, 4, 5, 16, 17] {
            let apart: Vec<f32> = x
                .chunks(size * k)
                .flat_map(|x| product(&weight, x))
                .collect();
            assert!(bits(&apart) == together, "{form:?}, {size} at a time");
        }
    }
}

/// Integers all the way, with each group's number as its scale: any code, zero point or scale taken from a neighbour gives
/// another integer.
#[test]
fn extreme_codes_and_zero_points_and_scales_that_count_groups_are_exact() {
    for (format, extremes) in [(CodeFormat::U4, [0, 15]), (CodeFormat::I8, [0x80, 0x7f])] {
        for (group, scale_rows) in [(32, 1), (64, 2), (192, 1), (192, 6)] {
            for zero in [extremes[0], extremes[1], format.middle()] {
                let (n, k) = (6, 192);
                let (groups, tall) = (k / group, n / scale_rows);
                let code = |i: usize| extremes[(i / 5 + i / k) % 2];
                let codes: Vec<u8> = (0..n * k).map(code).collect();
                let width = format.row_bytes(k);
                let mut packed = vec![0; n * width];
                for (row, out) in codes.chunks(k).zip(packed.chunks_mut(width)) {
                    format.pack_row(row, out);
                }
                let scales: Vec<f32> = (0..tall * groups).map(|i| 1.0 + i as f32).collect();
                let weight = on_cpu(&PackedWeight {
                    n,
                    k,
                    format,
                    group,
                    scale_rows,
                    codes: packed,
                    scales: Scales::new(DType::BF16, &scales),
                    levels: Levels::Zeros(vec![zero; tall * groups]),
                    order: None,
                });
                for tokens in [1, 5, 17] {
                    let x: Vec<f32> = (0..tokens * k).map(|i| (i % 3) as f32 - 1.0).collect();
                    let out = product(&weight, &x);
                    for (at, got) in out.iter().enumerate() {
                        let (t, i) = (at / n, at % n);
                        let terms = (0..k).map(|j| {
                            let step = named(format, codes[i * k + j]) - named(format, zero);
                            let scale = scales[i / scale_rows * groups + j / group];
                            f64::from(x[t * k + j]) * step * f64::from(scale)
                        });
                        let truth: f64 = terms.sum();
                        assert_eq!(
                            f64::from(*got),
                            truth,
                            "{format:?} {group} {scale_rows} {zero}"
                        );
                    }
                }
            }
        }
    }
}

/// Scales are powers of two, so that nothing is rounded.
#[test]
fn integer_inputs_meet_groups_blocks_and_orders_exactly() {
    for form in forms() {
        if (form.format, form.kind) != (CodeFormat::I8, Kind::Symmetric) {
            continue;
        }
        for shape in shapes(form.format) {
            let [n, k] = shape;
            let mut packed = matrix(form, shape, 9).packed;
            let two = |i: usize| 2.0_f32.powi(i32::try_from(i % 4).unwrap() - 6);
            let scales: Vec<f32> = (0..packed.scales.len()).map(two).collect();
            packed.scales = Scales::new(form.scales, &scales);
            for tokens in [1, 3, 4, 17] {
                let mut noise = Noise(tokens as u64);
                let x: Vec<u8> = (0..tokens * k)
                    .map(|_| noise.code(CodeFormat::I8))
                    .collect();
                let x_scales: Vec<f32> = (0..tokens).map(two).collect();
                let (codes, held) = (Buf::from_vec(x.clone()), Buf::from_vec(x_scales.clone()));
                let input = Input::Int8 {
                    codes: &codes,
                    scales: &held,
                };
                let mut out = Buf::from_vec(vec![f32::NAN; tokens * n]);
                let product = Linear {
                    tokens,
                    accumulate: false,
                };
                product
                    .run(&Device::Cpu, input, &on_cpu(&packed), None, &mut out)
                    .unwrap();
                let rows: Vec<Vec<f32>> = (0..n).map(|i| packed.dequantise_row(i)).collect();
                for (at, got) in get(&out).into_iter().enumerate() {
                    let (t, row) = (at / n, &rows[at % n]);
                    let x = x[t * k..][..k]
                        .iter()
                        .map(|&code| named(CodeFormat::I8, code));
                    let sum: f64 = x.zip(row).map(|(x, w)| x * f64::from(*w)).sum();
                    let truth = sum * f64::from(x_scales[t]);
                    assert_eq!(
                        f64::from(got),
                        truth,
                        "{form:?}, {shape:?}, {tokens} tokens"
                    );
                }
            }
        }
    }
}

#[test]
fn integer_inputs_refuse_all_but_symmetric_integer_weights() {
    let input = (Buf::from_vec(vec![1_u8; 64]), Buf::from_vec(vec![1.0_f32]));
    let refused = |weight: &LinearWeight| {
        let input = Input::Int8 {
            codes: &input.0,
            scales: &input.1,
        };
        let mut out = Buf::from_vec(vec![0.0_f32; weight.n]);
        let product = Linear {
            tokens: 1,
            accumulate: false,
        };
        product.run(&Device::Cpu, input, weight, None, &mut out)
    };
    for (format, kind) in KINDS {
        let form = Form {
            format,
            kind,
            group: 32,
            scale_rows: 2,
            scales: DType::F32,
            ordered: false,
        };
        let said = refused(&on_cpu(&matrix(form, [4, 64], 1).packed));
        if (format, kind) == (CodeFormat::I8, Kind::Symmetric) {
            said.unwrap();
            continue;
        }
        let error = said.unwrap_err();
        assert_eq!(error.exit_code(), 64, "{error}");
        let said = error.to_string();
        assert!(
            said.contains("int8 inputs need symmetric i8 weights"),
            "{said}"
        );
        assert!(said.contains(&format!("{} codes", format.name())), "{said}");
    }
    let plain = LinearWeight::plain(&Device::Cpu, [4, 64], DType::BF16).unwrap();
    let said = refused(&plain).unwrap_err().to_string();
    assert!(said.contains("not quantised"), "{said}");
}

#[test]
fn the_cpu_takes_the_parts_as_they_are() {
    for form in forms() {
        let packed = matrix(form, [6, 160], 1).packed;
        let (codes, bytes) = (packed.codes.as_ptr(), packed.bytes());
        let order = packed.order.as_ref().map(Vec::as_ptr);
        let weight = LinearWeight::from_packed(&Device::Cpu, packed).unwrap();
        assert_eq!(weight.bytes(), bytes, "{form:?}");
        let WeightData::Packed(held) = &weight.data else {
            unreachable!()
        };
        assert_eq!(held.codes.host::<u8>().unwrap().as_ptr(), codes);
        let held = held.order.as_ref();
        assert_eq!(
            held.map(|order| order.host::<u32>().unwrap().as_ptr()),
            order
        );
    }
}

fn zeros_by_group() -> PackedWeight {
    let form = Form {
        format: CodeFormat::U4,
        kind: Kind::Zeros,
        group: 32,
        scale_rows: 1,
        scales: DType::F32,
        ordered: true,
    };
    matrix(form, [4, 64], 1).packed
}

#[test]
fn a_weight_that_fits_no_product_is_refused_before_it() {
    let mut packed = zeros_by_group();
    packed.levels = Levels::Zeros(vec![16; 8]);
    let Err(Error::Internal(said)) = LinearWeight::from_packed(&Device::Cpu, packed) else {
        panic!("a zero point of 16 passed");
    };
    assert!(
        said.contains("zero point of row 0, group 0 is 16"),
        "{said}"
    );
    // Parts that were put together by hand are looked at, too.
    let shorten: [fn(&mut WeightData); 4] = [
        |data| packed_of(data).codes = Buf::from_vec(vec![0_u8; 127]),
        |data| packed_of(data).scales = Buf::from_vec(vec![1.0_f32; 7]),
        |data| packed_of(data).levels = LevelBufs::Zeros(Buf::from_vec(vec![0_u8; 7])),
        |data| packed_of(data).order = Some(Buf::from_vec(vec![0_u32; 63])),
    ];
    let x = Buf::from_vec(vec![0.0_f32; 64]);
    for shorten in shorten {
        let mut weight = on_cpu(&zeros_by_group());
        shorten(&mut weight.data);
        let mut out = Buf::from_vec(vec![0.0_f32; 4]);
        let product = Linear {
            tokens: 1,
            accumulate: false,
        };
        let said = product.run(&Device::Cpu, Input::Float(&x), &weight, None, &mut out);
        assert!(said.unwrap_err().to_string().contains("are needed"));
    }
}

fn packed_of(data: &mut WeightData) -> &mut candlepower::kernels::linear::PackedBufs {
    match data {
        WeightData::Packed(packed) => packed,
        WeightData::Plain(_) | WeightData::Streamed(_) | WeightData::Apart(_) => {
            unreachable!("made of a packed weight, on the CPU")
        }
    }
}

#[test]
fn rounding_to_nearest_knows_its_own_form_only() {
    let mut weight = on_cpu(&zeros_by_group());
    let op = QuantizeRows {
        rows: 4,
        k: 64,
        format: CodeFormat::U4,
        group: 32,
    };
    let source = Buf::from_vec(vec![0.5_f32; 4 * 64]);
    let error = op.run(&Device::Cpu, &source, &mut weight, 0).unwrap_err();
    let said = error.to_string();
    assert_eq!(error.exit_code(), 64, "{said}");
    assert!(
        said.contains("zero points") && said.contains("activation order"),
        "{said}"
    );
}
