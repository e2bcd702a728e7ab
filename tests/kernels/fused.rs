//! Launches that do the work of several: against the ops one after another on the CPU, and bit for bit against the separate
//! launches on the same GPU.

use candlepower::kernels::embed::Gather;
use candlepower::kernels::linear::{
    FusedLinear, Input, Linear, LinearKernel, LinearWeight, Normed, Then, WeightData,
};
use candlepower::kernels::norm::RmsNorm;
use candlepower::kernels::quantize::QuantizeAct;
use candlepower::kernels::sample::{Argmax, NO_TOKEN};
use candlepower::kernels::silu_mul::{GateUp, SiluMul};
use candlepower::kernels::{Buf, BufType, Device};
use candlepower::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

use super::{Noise, TYPES, assert_close, bits, get, gpus, one_gpu, put, put_ids, timed, unit};

const EPS: f32 = 1e-5;

/// A weight of every storage that a fused kernel is compiled for, in canonical form; `None` for plain numbers.
#[derive(Clone, Copy, Debug)]
struct Stored(Option<(CodeFormat, usize, DType, bool)>, DType);

/// What happens to the input on its way to the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Normed,
    /// It becomes codes; where results are stored, they are added to what is there.
    Coded,
    NormedAndCoded,
}

impl Way {
    fn codes(self) -> bool {
        self != Self::Normed
    }

    fn accumulates(self, then: Then) -> bool {
        self == Self::Coded && then == Then::Store
    }
}

fn storages() -> Vec<Stored> {
    use CodeFormat::{E4M3, I8, U4};
    let mut all = Vec::new();
    for x in [DType::BF16, DType::F16] {
        all.push(Stored(None, x));
        for group in [0, 64] {
            all.push(Stored(Some((I8, group, DType::F32, false)), x));
            all.push(Stored(Some((E4M3, group, DType::F32, false)), x));
        }
        for (scales, group) in [(x, 32), (DType::F32, 64)] {
            for zeros in [false, true] {
                all.push(Stored(Some((U4, group, scales, zeros)), x));
            }
        }
    }
    all
}

/// The same weight on the CPU and on `device`, where its rows are paired if that is asked for.
fn weights(stored: Stored, [n, k]: [usize; 2], device: &Device, paired: bool) -> [LinearWeight; 2] {
    let made = |device: &Device| {
        let mut noise = Noise((n * k) as u64);
        let Some((format, group, scales, zeros)) = stored.0 else {
            let numbers = noise.numbers(n * k, stored.1);
            let mut weight = LinearWeight::plain(device, [n, k], stored.1).unwrap();
            let WeightData::Plain(buf) = &mut weight.data else {
                unreachable!("plain was asked for")
            };
            let held = buf.len();
            let mut padded = numbers;
            padded.resize(held, 0.0);
            *buf = put(device, &padded, stored.1);
            return weight;
        };
        let group = if group == 0 { k } else { group };
        let mut codes = noise.codes(n * k, format);
        if format == CodeFormat::E4M3 {
            codes
                .iter_mut()
                .filter(|c| **c & 0x7f == 0x7f)
                .for_each(|c| *c &= 0xfe);
        }
        let mut rows = vec![0; n * format.row_bytes(k)];
        for (row, out) in codes.chunks(k).zip(rows.chunks_mut(format.row_bytes(k))) {
            format.pack_row(row, out);
        }
        let count = n * k.div_ceil(group);
        let numbers: Vec<f32> = (0..count).map(|i| 0.001 * (1 + i % 37) as f32).collect();
        let levels = if zeros {
            Levels::Zeros((0..count).map(|i| [0, 15, 8, 3][i % 4]).collect())
        } else {
            Levels::Symmetric
        };
        let packed = PackedWeight {
            n,
            k,
            format,
            group,
            scale_rows: 1,
            codes: rows,
            scales: Scales::new(scales, &numbers),
            levels,
            order: None,
        };
        LinearWeight::from_packed(device, packed).unwrap()
    };
    let mut on_device = made(device);
    if paired {
        let (weight, _, layout) = on_device.paired(device, None).unwrap();
        assert_eq!(layout, GateUp::Eights);
        on_device = weight;
    }
    [
        made(&Device::Cpu),
        on_device.streamed(device, stored.1).unwrap(),
    ]
}

/// The buffers of one case on one device.
struct Case {
    x: Buf,
    rows: Option<Buf>,
    norm: Buf,
    bias: Option<Buf>,
    way: Way,
}

/// `tokens` rows of `x`, the last of `tokens + 2` first where rows are picked.
fn case(
    device: &Device,
    [n, k]: [usize; 2],
    tokens: usize,
    act: DType,
    out: DType,
    picked: bool,
    biased: bool,
) -> Case {
    let mut noise = Noise(tokens as u64 * 31 + k as u64);
    let held = tokens + 2;
    let x = noise.numbers(held * k, act);
    let norm: Vec<f32> = noise
        .numbers(k, act)
        .iter()
        .map(|x| act.round(1.0 + x / 2.0))
        .collect();
    let bias = noise.numbers(n, out);
    let ids: Vec<u32> = (0..tokens)
        .map(|t| u32::try_from(held - 1 - t).unwrap())
        .collect();
    Case {
        x: put(device, &x, act),
        rows: picked.then(|| put_ids(device, &ids)),
        norm: put(device, &norm, act),
        bias: biased.then(|| put(device, &bias, out)),
        way: Way::Normed,
    }
}

impl Case {
    fn input(&self) -> Normed<'_> {
        Normed {
            x: &self.x,
            rows: self.rows.as_ref(),
            weight: (self.way != Way::Coded).then_some(&self.norm),
            eps: EPS,
        }
    }
}

/// What results are added to, where they are.
fn before(device: &Device, count: usize, out: DType) -> Buf {
    put(device, &vec![0.375; count], out)
}

/// What the separate launches give: gather, norm, product, activation or choice.
fn apart(
    device: &Device,
    case: &Case,
    weight: &LinearWeight,
    tokens: usize,
    then: Then,
    out: DType,
) -> Vec<u32> {
    let (n, k) = (weight.n, weight.k);
    let kind = case.x.kind();
    let mut x = device.alloc(kind, tokens * k).unwrap();
    let count = u32::try_from(tokens).unwrap();
    let all = put_ids(device, &(0..count).collect::<Vec<_>>());
    let gather = Gather {
        count: tokens,
        rows: tokens + 2,
        width: k,
    };
    gather
        .run(device, case.rows.as_ref().unwrap_or(&all), &case.x, &mut x)
        .unwrap();
    let mut normed = device.alloc(kind, tokens * k).unwrap();
    let norm = RmsNorm {
        rows: tokens,
        width: k,
        eps: EPS,
    };
    if case.way == Way::Coded {
        normed = x;
    } else {
        norm.run(device, &x, &case.norm, &mut normed).unwrap();
    }
    let mut codes = device.alloc(BufType::U8, tokens * k).unwrap();
    let mut scales = device.alloc(BufType::Float(DType::F32), tokens).unwrap();
    let input = if case.way.codes() {
        let op = QuantizeAct { tokens, width: k };
        op.run(device, &normed, &mut codes, &mut scales).unwrap();
        Input::Int8 {
            codes: &codes,
            scales: &scales,
        }
    } else {
        Input::Float(&normed)
    };
    let product = Linear {
        tokens,
        accumulate: case.way.accumulates(then),
    };
    let mut y = before(device, tokens * n, out);
    product
        .run(device, input, weight, case.bias.as_ref(), &mut y)
        .unwrap();
    match then {
        Then::Store => bits(&get(device, &y)),
        Then::Gate => {
            let mut gated = device.alloc(BufType::Float(out), tokens * n / 2).unwrap();
            let silu = SiluMul {
                rows: tokens,
                width: n / 2,
                layout: GateUp::Eights,
            };
            silu.run(device, &y, &mut gated).unwrap();
            bits(&get(device, &gated))
        }
        Then::Pick => {
            let mut picked = device.alloc(BufType::U32, tokens).unwrap();
            let op = Argmax {
                rows: tokens,
                vocab: n,
            };
            op.run(device, &y, &mut picked).unwrap();
            device.download(&picked, 0..tokens).unwrap()
        }
    }
}

fn fused(
    device: &Device,
    case: &Case,
    weight: &LinearWeight,
    tokens: usize,
    then: Then,
    out: DType,
) -> Buf {
    let width = match then {
        Then::Store => weight.n,
        Then::Gate => weight.n / 2,
        Then::Pick => 1,
    };
    let accumulate = case.way.accumulates(then);
    let mut y = match then {
        Then::Pick => device.alloc(BufType::U32, tokens * width).unwrap(),
        _ => before(device, tokens * width, out),
    };
    let op = FusedLinear {
        codes: case.way.codes(),
        accumulate,
        ..FusedLinear::new(tokens, then)
    };
    op.run(device, case.input(), weight, case.bias.as_ref(), &mut y)
        .unwrap();
    y
}

/// One fused product of every kind against the separate launches, with columns in every number of parts.
fn check(device: &Device, stored: Stored, [n, k]: [usize; 2], tokens: usize, way: Way) {
    let Device::Gpu(gpu) = device else {
        panic!("the CPU has nothing to fuse");
    };
    let act = stored.1;
    for (then, out) in [
        (Then::Store, act),
        (Then::Gate, act),
        (Then::Pick, DType::F32),
    ] {
        let n = if then == Then::Gate {
            n.next_multiple_of(16)
        } else {
            n
        };
        let shape = [n, k];
        let [on_cpu, weight] = weights(stored, shape, device, then == Then::Gate);
        let picked = then == Then::Pick || tokens % 2 == 1;
        let biased = then != Then::Pick && tokens != 2;
        let case_on = |device: &Device| Case {
            way,
            ..case(device, shape, tokens, act, out, picked, biased)
        };
        let here = case_on(device);
        let product = Linear {
            tokens,
            accumulate: false,
        };
        let mut parts = Vec::new();
        let input = (!way.codes()).then_some(act);
        for kernel in product.kernels(device, input, &weight) {
            let LinearKernel::Few { splits, .. } = kernel else {
                continue;
            };
            if parts.contains(&splits) {
                continue;
            }
            parts.push(splits);
            gpu.force_linear(Some(kernel));
            let truth = apart(device, &here, &weight, tokens, then, out);
            let y = fused(device, &here, &weight, tokens, then, out);
            gpu.force_linear(None);
            let got = match then {
                Then::Pick => device.download(&y, 0..tokens).unwrap(),
                _ => bits(&get(device, &y)),
            };
            assert!(
                got == truth,
                "{stored:?}, {shape:?}, {tokens} tokens, {way:?}, {then:?} in {splits} parts on {}",
                device.kind()
            );
        }
        assert!(
            !parts.is_empty(),
            "{stored:?}, {shape:?}, {tokens} tokens: no kernel"
        );
        // The gate's rows are paired on the device alone.
        if then == Then::Store {
            let there = case_on(&Device::Cpu);
            let truth = get(
                &Device::Cpu,
                &fused(&Device::Cpu, &there, &on_cpu, tokens, then, out),
            );
            let got = get(device, &fused(device, &here, &weight, tokens, then, out));
            let truth: Vec<f64> = truth.into_iter().map(f64::from).collect();
            let largest = truth.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            // A sum in another order may round a normed number to its neighbour.
            let tolerance = |i: usize| 2.0 * unit(act) * truth[i].abs() + unit(act) * largest;
            assert_close(
                &got,
                &truth,
                tolerance,
                &format!("{stored:?}, {shape:?}, {tokens} tokens"),
            );
        }
    }
}

#[test]
fn fused_products_give_the_bits_of_separate_launches_for_every_storage() {
    let device = one_gpu(0);
    for (i, stored) in storages().into_iter().enumerate() {
        for (j, shape) in [[33, 64], [150, 640]].into_iter().enumerate() {
            for (t, tokens) in [1, 2, 3, 5, 8].into_iter().enumerate() {
                // A single token and another number of them for each.
                if t == 0 || t == 1 + (i + j) % 4 {
                    check(&device, stored, shape, tokens, Way::Normed);
                }
            }
        }
    }
}

#[test]
fn inputs_become_codes_on_the_way_with_the_bits_of_separate_launches() {
    let device = one_gpu(77);
    for act in [DType::BF16, DType::F16] {
        let stored = Stored(Some((CodeFormat::I8, 0, act, false)), act);
        for way in [Way::Coded, Way::NormedAndCoded] {
            for (shape, tokens) in [
                ([33, 64], 1),
                ([150, 640], 1),
                ([150, 640], 3),
                ([33, 2096], 8),
            ] {
                check(&device, stored, shape, tokens, way);
            }
        }
    }
}

#[test]
fn fused_products_are_cut_as_those_whose_kernels_are_found_by_the_clock() {
    let device = timed();
    let [plain, codes] = [0, storages().len() - 1].map(|i| storages().swap_remove(i));
    for (stored, tokens) in [(plain, 1), (codes, 1), (codes, 5)] {
        check(&device, stored, [150, 640], tokens, Way::Normed);
    }
}

/// Nibbles in groups, more tiles than blocks, rows that end within a step: everything that is fused against the CPU.
pub(super) fn int4_by_the_cpu(device: &Device) {
    let act = DType::BF16;
    let stored = Stored(Some((CodeFormat::U4, 32, act, false)), act);
    for (shape, tokens) in [([288, 1120], 1), ([160, 672], 3)] {
        let [n, k] = shape;
        let [on_cpu, weight] = weights(stored, shape, device, false);
        let [_, paired] = weights(stored, shape, device, true);
        let case_on = |device: &Device| case(device, shape, tokens, act, DType::F32, true, false);
        let (here, there) = (case_on(device), case_on(&Device::Cpu));
        let results = fused(
            &Device::Cpu,
            &there,
            &on_cpu,
            tokens,
            Then::Store,
            DType::F32,
        );
        let results = get(&Device::Cpu, &results);
        let largest = results.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        // A sum in another order may round a normed number to its neighbour.
        let off = unit(act) * f64::from(largest);
        let what = format!("{shape:?}, {tokens} tokens");

        let stored = fused(device, &here, &weight, tokens, Then::Store, DType::F32);
        let truth: Vec<f64> = results.iter().copied().map(f64::from).collect();
        assert_close(&get(device, &stored), &truth, |_| off, &what);

        let gated = fused(device, &here, &paired, tokens, Then::Gate, DType::F32);
        let gate = |i: usize| truth[i / (n / 2) * n + i % (n / 2)];
        let up = |i: usize| truth[i / (n / 2) * n + n / 2 + i % (n / 2)];
        let truth_gated: Vec<f64> = (0..tokens * n / 2)
            .map(|i| gate(i) / (1.0 + (-gate(i)).exp()) * up(i))
            .collect();
        let tolerance = |i: usize| 2.0 * off * (1.0 + gate(i).abs() + up(i).abs());
        assert_close(&get(device, &gated), &truth_gated, tolerance, &what);

        let picked = fused(device, &here, &weight, tokens, Then::Pick, DType::F32);
        let picked: Vec<u32> = device.download(&picked, 0..tokens).unwrap();
        for (row, token) in truth.chunks(n).zip(picked) {
            let most = row.iter().fold(f64::NEG_INFINITY, |most, x| most.max(*x));
            let found = row.get(token as usize).copied();
            assert!(
                found.is_some_and(|x| x >= most - 2.0 * off),
                "{what}: {token}, {k} columns"
            );
        }
    }
}

#[test]
fn the_order_of_blocks_changes_nothing_of_fused_products() {
    for device in gpus() {
        int4_by_the_cpu(&device);
        let stored = Stored(Some((CodeFormat::U4, 32, DType::BF16, false)), DType::BF16);
        check(&device, stored, [150, 1312], 1, Way::Normed);
        check(&device, Stored(None, DType::F16), [150, 72], 8, Way::Normed);
    }
}

#[test]
fn rows_from_outside_and_all_nan_give_no_token_and_only_theirs() {
    let device = one_gpu(77);
    let stored = Stored(None, DType::BF16);
    let [_, weight] = weights(stored, [150, 64], &device, false);
    let mut case = case(&device, [150, 64], 3, DType::BF16, DType::F32, true, false);
    case.rows = Some(put_ids(&device, &[1, 5, 2]));
    let y = fused(&device, &case, &weight, 3, Then::Pick, DType::F32);
    let picked: Vec<u32> = device.download(&y, 0..3).unwrap();
    assert!(picked[0] < 150 && picked[2] < 150, "{picked:?}");
    assert_eq!(picked[1], NO_TOKEN);
    let y = fused(&device, &case, &weight, 3, Then::Store, DType::F32);
    let stored = get(&device, &y);
    let broken = stored.chunks(150).map(|row| row.iter().all(|x| x.is_nan()));
    assert!(broken.eq([false, true, false]));
}

#[test]
fn of_equal_results_the_first_is_picked() {
    for device in gpus() {
        // Every row of the weight is the same, so all results of a token are.
        let mut weight = LinearWeight::plain(&device, [160, 64], DType::BF16).unwrap();
        weight.data = WeightData::Plain(put(&device, &vec![0.5; 160 * 64], DType::BF16));
        for tokens in [1, 4] {
            let case = case(
                &device,
                [160, 64],
                tokens,
                DType::BF16,
                DType::F32,
                true,
                false,
            );
            let y = fused(&device, &case, &weight, tokens, Then::Pick, DType::F32);
            let picked: Vec<u32> = device.download(&y, 0..tokens).unwrap();
            assert_eq!(picked, vec![0; tokens], "{}", device.kind());
        }
    }
}

#[test]
fn what_cannot_be_fused_is_refused_and_planned_for() {
    let device = one_gpu(0);
    let [_, weight] = weights(Stored(None, DType::BF16), [33, 64], &device, false);
    let most = FusedLinear::most_tokens(&device, &weight, DType::BF16, false);
    assert!((1..=8).contains(&most), "{most}");
    assert_eq!(
        FusedLinear::most_tokens(&device, &weight, DType::F32, false),
        0
    );
    assert_eq!(
        FusedLinear::most_tokens(&Device::Cpu, &weight, DType::BF16, false),
        0
    );
    let case = case(
        &device,
        [33, 64],
        16,
        DType::BF16,
        DType::BF16,
        false,
        false,
    );
    let mut out = device.alloc(BufType::Float(DType::BF16), 16 * 33).unwrap();
    let op = |tokens, then| FusedLinear::new(tokens, then);
    let many = op(16, Then::Store).run(&device, case.input(), &weight, None, &mut out);
    let said = many.unwrap_err().to_string();
    assert!(
        said.contains("16 tokens") && said.contains("8 at most"),
        "{said}"
    );
    let odd = op(1, Then::Gate).run(&device, case.input(), &weight, None, &mut out);
    assert!(odd.unwrap_err().to_string().contains("33 rows"));
}

#[test]
fn rows_are_paired_with_their_scales_and_biases_and_only_where_they_are_eights() {
    use CodeFormat::{E4M3, I8, U4};
    let device = one_gpu(0);
    for (format, group, scale_rows, levels) in [
        (U4, 32, 1, "zeros"),
        (U4, 32, 1, "offsets"),
        (U4, 64, 1, "book"),
        (I8, 64, 1, ""),
        (E4M3, 32, 16, ""),
        (E4M3, 64, 48, ""),
    ] {
        let (n, k) = (48, 64);
        let mut noise = Noise(9);
        let codes: Vec<u8> = noise
            .codes(n * k, format)
            .iter()
            .map(|c| c & 0x3f)
            .collect();
        let mut rows = vec![0; n * format.row_bytes(k)];
        for (row, out) in codes.chunks(k).zip(rows.chunks_mut(format.row_bytes(k))) {
            format.pack_row(row, out);
        }
        let count = n.div_ceil(scale_rows) * (k / group);
        let scales: Vec<f32> = (0..count).map(|i| 0.01 * (1 + i) as f32).collect();
        let scales = Scales::new(DType::F32, &scales);
        let packed = PackedWeight {
            n,
            k,
            format,
            group,
            scale_rows,
            codes: rows,
            levels: match levels {
                "zeros" => Levels::Zeros((0..count).map(|i| (i % 16) as u8).collect()),
                "offsets" => Levels::Offsets(scales.clone()),
                "book" => Levels::Codebook(std::array::from_fn(|i| i as f32 - 5.0)),
                _ => Levels::Symmetric,
            },
            scales,
            order: None,
        };
        let x = noise.numbers(k, DType::F32);
        let bias = noise.numbers(n, DType::F32);
        let run = |device: &Device| {
            let weight = LinearWeight::from_packed(device, packed.clone()).unwrap();
            let bias = put(device, &bias, DType::F32);
            let (weight, bias, layout) = weight.paired(device, Some(bias)).unwrap();
            let mut out = put(device, &vec![0.0; n], DType::F32);
            let x = put(device, &x, DType::F32);
            let op = Linear {
                tokens: 1,
                accumulate: false,
            };
            op.run(device, Input::Float(&x), &weight, bias.as_ref(), &mut out)
                .unwrap();
            (get(device, &out), layout)
        };
        let ((on_cpu, halves), (on_gpu, eights)) = (run(&Device::Cpu), run(&device));
        assert_eq!((halves, eights), (GateUp::Halves, GateUp::Eights));
        let truth: Vec<f64> = (0..n)
            .map(|row| row / 16 * 8 + row % 8 + if row % 16 < 8 { 0 } else { n / 2 })
            .map(|row| f64::from(on_cpu[row]))
            .collect();
        assert_close(
            &on_gpu,
            &truth,
            |i| 1e-4 * (1.0 + truth[i].abs()),
            &format!("{format:?} {levels}"),
        );
    }
    let odd = LinearWeight::plain(&device, [20, 64], DType::BF16).unwrap();
    assert_eq!(odd.paired(&device, None).unwrap().2, GateUp::Halves);
}

#[test]
fn norms_and_activations_become_the_codes_of_separate_launches() {
    let devices = std::iter::once(Device::Cpu).chain(gpus());
    for device in devices {
        for act in TYPES {
            for (rows, width) in [(1, 8), (3, 96), (2, 100), (5, 2056)] {
                let mut noise = Noise(width as u64);
                let x = put(&device, &noise.numbers(rows * width, act), act);
                let weight = put(&device, &noise.numbers(width, act), act);
                let quantize = QuantizeAct {
                    tokens: rows,
                    width,
                };
                let room = || {
                    let codes = device.alloc(BufType::U8, rows * width).unwrap();
                    (
                        codes,
                        device.alloc(BufType::Float(DType::F32), rows).unwrap(),
                    )
                };
                let both = |(codes, scales): &(Buf, Buf)| {
                    let codes: Vec<u8> = device.download(codes, 0..rows * width).unwrap();
                    (codes, bits(&get(&device, scales)))
                };
                let what = format!("{rows} x {width}, {act}, {}", device.kind());
                let mut between = device.alloc(BufType::Float(act), rows * width).unwrap();

                let norm = RmsNorm {
                    rows,
                    width,
                    eps: EPS,
                };
                let (mut apart, mut at_once) = (room(), room());
                norm.run(&device, &x, &weight, &mut between).unwrap();
                quantize
                    .run(&device, &between, &mut apart.0, &mut apart.1)
                    .unwrap();
                norm.run_to_codes(&device, &x, &weight, &mut at_once.0, &mut at_once.1)
                    .unwrap();
                assert!(both(&apart) == both(&at_once), "norm of {what}");

                let gate_up = put(&device, &noise.numbers(2 * rows * width, act), act);
                for layout in [GateUp::Halves, GateUp::Eights] {
                    if layout == GateUp::Eights && width % 8 != 0 {
                        continue;
                    }
                    let silu = SiluMul {
                        rows,
                        width,
                        layout,
                    };
                    let (mut apart, mut at_once) = (room(), room());
                    silu.run(&device, &gate_up, &mut between).unwrap();
                    quantize
                        .run(&device, &between, &mut apart.0, &mut apart.1)
                        .unwrap();
                    silu.run_to_codes(&device, &gate_up, &mut at_once.0, &mut at_once.1)
                        .unwrap();
                    assert!(both(&apart) == both(&at_once), "{layout:?} of {what}");
                }
            }
        }
    }
}
