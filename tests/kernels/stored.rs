//! What checkpoints ask for beside our own variants: matrices that stand apart, inputs rounded in their own type, and the
//! size of packed weights on a device.

use candlepower::kernels::linear::{Input, Linear, LinearWeight, WeightData};
use candlepower::kernels::round_input::RoundInput;
use candlepower::kernels::{BufType, Device};
use candlepower::scheme::{
    CodeFormat, DType, InputNumber, InputRounding, InputScale, Levels, PackedForm, PackedWeight,
    Scales,
};

use super::{Form, Noise, TYPES, devices, get, gpus, matrix, put};

#[test]
fn matrices_that_stand_apart_give_what_each_gives_alone() {
    let k = 64;
    let forms = [
        (Form::Packed(CodeFormat::U4, 32, DType::F16), 33),
        (Form::Plain(DType::BF16), 3),
        (Form::Packed(CodeFormat::I8, 0, DType::F32), 70),
    ];
    for device in devices() {
        for act in [DType::F32, DType::BF16] {
            for (tokens, accumulate) in [(1, false), (5, true), (17, false)] {
                let product = Linear { tokens, accumulate };
                let n: usize = forms.iter().map(|(_, n)| n).sum();
                let parts = || -> Vec<LinearWeight> {
                    let part = |&(form, n)| matrix(&device, form, [n, k], n as u64).weight;
                    let streamed = |weight: LinearWeight| weight.streamed(&device, act).unwrap();
                    forms.iter().map(part).map(streamed).collect()
                };
                let x = put(&device, &Noise(5).numbers(tokens * k, act), act);
                let before = Noise(6).numbers(tokens * n, act);
                let bias = Noise(7).numbers(n, act);
                let mut out = put(&device, &before, act);
                let whole = LinearWeight::apart(parts()).unwrap();
                assert_eq!((whole.n, whole.k), (n, k));
                let held_bias = put(&device, &bias, act);
                product
                    .run(
                        &device,
                        Input::Float(&x),
                        &whole,
                        Some(&held_bias),
                        &mut out,
                    )
                    .unwrap();
                let got = get(&device, &out);
                let mut first = 0;
                for part in parts() {
                    let columns = first..first + part.n;
                    let own: Vec<f32> = before
                        .chunks(n)
                        .flat_map(|row| row[columns.clone()].to_vec())
                        .collect();
                    let mut out = put(&device, &own, act);
                    let bias = put(&device, &bias[columns.clone()], act);
                    product
                        .run(&device, Input::Float(&x), &part, Some(&bias), &mut out)
                        .unwrap();
                    let alone = get(&device, &out);
                    let of_whole: Vec<f32> = got
                        .chunks(n)
                        .flat_map(|row| row[columns.clone()].to_vec())
                        .collect();
                    assert_eq!(
                        of_whole,
                        alone,
                        "{act}, {tokens}, {columns:?}, {}",
                        device.kind()
                    );
                    first = columns.end;
                }
            }
        }
    }
    let apart = |widths: [usize; 2]| {
        let part = |k| matrix(&Device::Cpu, Form::Plain(DType::F32), [2, k], 1).weight;
        LinearWeight::apart(widths.map(part).into())
    };
    assert!(apart([4, 4]).is_ok() && apart([4, 5]).is_err());
    assert!(LinearWeight::apart(Vec::new()).is_err());
}

#[test]
fn inputs_are_rounded_on_a_gpu_as_on_the_cpu() {
    let rounded = |device: &Device, x: &[f32], op: RoundInput, act: DType| {
        let mut out = device.alloc(BufType::Float(act), x.len()).unwrap();
        op.run(device, &put(device, x, act), &mut out).unwrap();
        get(device, &out)
    };
    for device in gpus() {
        for act in TYPES {
            for (tokens, width) in [(1, 1), (3, 70), (5, 300)] {
                let mut x = Noise(width as u64).numbers(tokens * width, act);
                x[0] = 0.0;
                if tokens > 1 {
                    x[width..2 * width].fill(0.0);
                    x[2 * width + 7] = f32::NAN;
                }
                for number in [InputNumber::Int8, InputNumber::E4M3] {
                    for scale in [
                        InputScale::Token,
                        InputScale::Columns(32),
                        InputScale::Columns(128),
                        InputScale::Fixed(0.003),
                    ] {
                        let op = RoundInput {
                            tokens,
                            width,
                            rounding: InputRounding { number, scale },
                        };
                        let bits = |device| -> Vec<Option<u32>> {
                            let out = rounded(device, &x, op, act);
                            out.iter()
                                .map(|x| (!x.is_nan()).then_some(x.to_bits()))
                                .collect()
                        };
                        assert_eq!(bits(&device), bits(&Device::Cpu), "{op:?} in {act}");
                    }
                }
            }
        }
    }
}

/// Four-bit codes with a zero point for every 128, as most checkpoints of AWQ and GPTQ have them.
fn asymmetric([n, k]: [usize; 2]) -> PackedWeight {
    let (format, group) = (CodeFormat::U4, 128);
    let groups = n * k / group;
    PackedWeight {
        n,
        k,
        format,
        group,
        scale_rows: 1,
        codes: vec![0x5a; n * format.row_bytes(k)],
        scales: Scales::new(DType::F16, &vec![0.5; groups]),
        levels: Levels::Zeros(vec![7; groups]),
        order: None,
    }
}

#[test]
fn a_packed_weight_takes_what_its_size_in_a_file_says() {
    for device in devices() {
        let [n, k] = [128, 512];
        let packed = asymmetric([n, k]);
        assert_eq!(PackedForm::of(&packed).bytes(), packed.bytes());
        let weight = LinearWeight::from_packed(&device, packed).unwrap();
        let weight = weight.streamed(&device, DType::F16).unwrap();
        let repacked = matches!(weight.data, WeightData::Streamed(_));
        assert_eq!(repacked, matches!(device, Device::Gpu(_)));
        // In a file a zero point has four bits.
        let in_file = n * k / 2 + n * k / 128 * 2 + n * k / 128 / 2;
        let ratio = weight.bytes() as f64 / in_file as f64;
        assert!((1.0..=1.02).contains(&ratio), "{}: {ratio}", device.kind());
    }
}
