use half::f16;
use proptest::prelude::*;

use super::*;
use crate::scheme::DType;

/// Numbers that follow from a seed (SplitMix64).
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.bits() % end as u64).unwrap()
    }
}

const NF4_LIKE: [f32; 16] = [
    -1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72,
    1.0,
];

/// Every kind of levels that a format may have.
fn kinds(format: CodeFormat) -> usize {
    match format {
        CodeFormat::U4 => 4,
        CodeFormat::I8 => 2,
        CodeFormat::E4M3 => 1,
    }
}

/// Any weight that passes its check.
fn any_weight() -> impl Strategy<Value = PackedWeight> {
    let formats = prop_oneof![
        Just(CodeFormat::U4),
        Just(CodeFormat::I8),
        Just(CodeFormat::E4M3)
    ];
    let shape = (1..9_usize, 1..7_usize, 1..40_usize, 1..5_usize, 1..10_usize);
    (formats, shape, 0..4_usize, any::<bool>(), any::<u64>()).prop_map(
        |(format, (n, blocks, odd, group, scale_rows), kind, ordered, seed)| {
            let k = match format {
                CodeFormat::U4 => blocks * BLOCK,
                _ => (blocks - 1) * BLOCK + odd,
            };
            let group = if group == 4 {
                k
            } else {
                (group * BLOCK).min(k)
            };
            weight(
                format,
                [n, k],
                [group, scale_rows.min(n)],
                kind,
                ordered,
                seed,
            )
        },
    )
}

fn weight(
    format: CodeFormat,
    [n, k]: [usize; 2],
    [group, scale_rows]: [usize; 2],
    kind: usize,
    ordered: bool,
    seed: u64,
) -> PackedWeight {
    let mut noise = Noise(seed);
    let mut codes = Vec::new();
    for _ in 0..n {
        let row: Vec<u8> = (0..k).map(|_| any_code(&mut noise, format)).collect();
        let mut packed = vec![0; format.row_bytes(k)];
        format.pack_row(&row, &mut packed);
        codes.extend(packed);
    }
    let count = n.div_ceil(scale_rows) * k.div_ceil(group);
    let scales: Vec<f32> = (0..count)
        .map(|_| (0.5 + noise.below(1000) as f32 / 1000.0) * 0.01)
        .collect();
    let levels = match kind % kinds(format) {
        0 => Levels::Symmetric,
        1 => Levels::Zeros((0..count).map(|_| any_code(&mut noise, format)).collect()),
        2 => {
            let low = |s: &f32| -s * noise.below(16) as f32;
            Levels::Offsets(Scales::new(
                DType::F16,
                &scales.iter().map(low).collect::<Vec<_>>(),
            ))
        }
        _ => Levels::Codebook(NF4_LIKE),
    };
    let order = ordered.then(|| {
        let mut order: Vec<u32> = (0..u32::try_from(k).unwrap()).collect();
        for i in (1..k).rev() {
            order.swap(i, noise.below(i + 1));
        }
        order
    });
    PackedWeight {
        n,
        k,
        format,
        group,
        scale_rows,
        codes,
        scales: Scales::new(DType::F16, &scales),
        levels,
        order,
    }
}

fn any_code(noise: &mut Noise, format: CodeFormat) -> u8 {
    let code = u8::try_from(noise.below(256)).unwrap();
    match format {
        CodeFormat::U4 => code & 15,
        CodeFormat::E4M3 if is_e4m3_nan(code) => 0,
        // Zero has two codes; the second would not come back.
        CodeFormat::E4M3 if code == 0x80 => 0,
        _ => code,
    }
}

/// The code of the level of a group that lies nearest to `w`.
fn nearest(weight: &PackedWeight, w: f32, at: usize) -> u8 {
    let last = if weight.format == CodeFormat::U4 {
        15
    } else {
        255
    };
    let distance = |code: u8| f64::from((weight.weight(code, at) - w).abs());
    (0..=last)
        .filter(|&code| !distance(code).is_nan())
        .min_by(|&a, &b| distance(a).total_cmp(&distance(b)))
        .unwrap()
}

proptest! {
    #[test]
    fn requantising_a_dequantised_weight_gives_the_same_codes(weight in any_weight()) {
        prop_assert_eq!(weight.check(), Ok(()));
        for row in 0..weight.n {
            let numbers = weight.dequantise_row(row);
            for (column, code) in weight.row_codes(row).into_iter().enumerate() {
                let input = weight.order.as_ref().map_or(column, |order| order[column] as usize);
                let (w, at) = (numbers[input], weight.scale_index(row, column));
                prop_assert_eq!(nearest(&weight, w, at), code);
                // Where levels are even steps, a division finds them as well.
                let scale = weight.scales.get(at);
                let steps = match &weight.levels {
                    Levels::Symmetric => w / scale + weight.format.value(weight.format.middle()),
                    Levels::Zeros(zeros) => w / scale + weight.format.value(zeros[at]),
                    Levels::Offsets(offsets) => (w - offsets.get(at)) / scale,
                    Levels::Codebook(_) => continue,
                };
                if weight.format != CodeFormat::E4M3 {
                    prop_assert_eq!(steps.round_ties_even(), weight.format.value(code));
                }
            }
        }
    }

    #[test]
    fn stacked_weights_have_the_rows_of_their_parts(
        weight in any_weight(),
        heights in proptest::collection::vec((1..9_usize, 1..10_usize), 0..3),
        seed in any::<u64>(),
    ) {
        let kind = match &weight.levels {
            Levels::Symmetric => 0,
            Levels::Zeros(_) => 1,
            Levels::Offsets(_) => 2,
            Levels::Codebook(_) => 3,
        };
        let mut parts = vec![weight];
        for (n, scale_rows) in heights {
            let first = &parts[0];
            let rows = [first.group, scale_rows.min(n)];
            let mut part = super::tests::weight(first.format, [n, first.k], rows, kind, false, seed);
            part.order.clone_from(&first.order);
            parts.push(part);
        }
        let rows = |weight: &PackedWeight| -> Vec<Vec<f32>> {
            (0..weight.n).map(|i| weight.dequantise_row(i)).collect()
        };
        let apart: Vec<Vec<f32>> = parts.iter().flat_map(rows).collect();
        let stacked = PackedWeight::stack(parts).unwrap();
        prop_assert_eq!(stacked.check(), Ok(()));
        prop_assert_eq!(rows(&stacked), apart);
    }
}

#[test]
fn stacking_repeats_no_more_scales_than_it_must() {
    let part = |n, scale_rows| weight(CodeFormat::E4M3, [n, 256], [128, scale_rows], 0, false, 1);
    let blocks = PackedWeight::stack(vec![part(512, 128), part(128, 128), part(200, 128)]).unwrap();
    assert_eq!(
        (blocks.scale_rows, blocks.scales.len()),
        (128, (4 + 1 + 2) * 2)
    );
    let tensors =
        PackedWeight::stack(vec![part(576, 576), part(192, 192), part(192, 192)]).unwrap();
    assert_eq!((tensors.scale_rows, tensors.scales.len()), (192, 5 * 2));
    let rows = PackedWeight::stack(vec![part(7, 1), part(6, 6)]).unwrap();
    assert_eq!((rows.scale_rows, rows.scales.len()), (1, 13 * 2));
}

#[test]
fn weights_that_differ_do_not_stack() {
    let one = || weight(CodeFormat::U4, [4, 64], [32, 1], 0, false, 1);
    let other = |change: fn(&mut PackedWeight)| {
        let mut other = one();
        change(&mut other);
        PackedWeight::stack(vec![one(), other]).unwrap_err()
    };
    let cases: [(fn(&mut PackedWeight), &str); 6] = [
        (|w| w.k = 32, "K"),
        (|w| w.format = CodeFormat::I8, "the format of their codes"),
        (|w| w.group = 64, "their groups"),
        (
            |w| w.scales = Scales::F32(vec![1.0; 8]),
            "the type of their scales",
        ),
        (
            |w| w.levels = Levels::Zeros(vec![0; 8]),
            "what their codes stand for",
        ),
        (
            |w| w.order = Some((0..64).collect()),
            "their activation order",
        ),
    ];
    for (change, what) in cases {
        let error = other(change);
        assert!(error.ends_with(&format!("differ in {what}")), "{error}");
    }
}

#[test]
fn a_check_names_what_does_not_fit() {
    let fault = |kind, format, change: fn(&mut PackedWeight)| {
        let mut weight = weight(format, [6, 96], [32, 2], kind, true, 3);
        weight.check().unwrap();
        change(&mut weight);
        weight.check().unwrap_err()
    };
    use CodeFormat::{E4M3, I8, U4};
    type Case = (usize, CodeFormat, fn(&mut PackedWeight), &'static str);
    let cases: [Case; 20] = [
        (0, U4, |w| w.group = 0, "groups of 0 columns"),
        (0, U4, |w| w.group = 48, "groups of 48 columns"),
        (0, I8, |w| w.group = 128, "groups of 128 columns"),
        (0, U4, |w| (w.k, w.group) = (80, 32), "K = 80"),
        (0, U4, |w| w.scale_rows = 0, "0 rows share a scale"),
        (0, U4, |w| w.scale_rows = 7, "7 rows share a scale"),
        (0, U4, |w| w.n = usize::MAX / 8, "bytes of codes"),
        (
            0,
            I8,
            |w| w.codes.truncate(575),
            "575 bytes of codes where 6 rows of 96",
        ),
        (0, I8, |w| w.scale_rows = 3, "9 scales where 2 rows of 3"),
        (
            1,
            U4,
            |w| w.levels = Levels::Zeros(vec![8; 8]),
            "8 zero points where 3 rows of 3",
        ),
        (
            2,
            U4,
            |w| w.levels = Levels::Offsets(Scales::F32(vec![])),
            "0 offsets",
        ),
        (
            0,
            E4M3,
            |w| w.levels = Levels::Zeros(vec![0; 9]),
            "e4m3 codes cannot have zero points",
        ),
        (
            0,
            I8,
            |w| w.levels = Levels::Codebook([0.0; 16]),
            "i8 codes cannot have a codebook",
        ),
        (
            0,
            I8,
            |w| w.scales = Scales::F32([1.0, 1.0, 1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0].into()),
            "the scale of row 2, group 1 is NaN",
        ),
        (
            0,
            E4M3,
            |w| w.codes[97] = 0xff,
            "row 1, column 1 is 0xff, which is NaN",
        ),
        (
            1,
            U4,
            |w| w.levels = Levels::Zeros(vec![0, 15, 0, 0, 0, 0, 16, 0, 0]),
            "the zero point of row 4, group 0 is 16",
        ),
        (
            2,
            U4,
            |w| w.levels = Levels::Offsets(Scales::F16(vec![f16::NEG_INFINITY; 9])),
            "the offset of row 0, group 0 is -inf",
        ),
        (
            3,
            U4,
            |w| w.levels = Levels::Codebook(std::array::from_fn(|i| 1.0 / (i as f32 - 3.0))),
            "level 3 of the codebook is inf",
        ),
        (
            0,
            I8,
            |w| w.order = Some(vec![0; 95]),
            "an order of 95 columns",
        ),
        (
            0,
            I8,
            |w| w.order = Some((1..97).collect()),
            "column 95 takes input 96: K is 96",
        ),
    ];
    for (kind, format, change, what) in cases {
        let error = fault(kind, format, change);
        assert!(error.starts_with("packed weight ["), "{error}");
        assert!(error.contains(what), "{error}: expected {what}");
    }
    let error = fault(0, I8, |w| {
        w.order.as_mut().unwrap()[95] = w.order.as_ref().unwrap()[2]
    });
    assert!(
        error.contains("column 95 takes input") && error.ends_with("again"),
        "{error}"
    );
}

#[test]
fn bytes_are_those_of_the_parts() {
    let weight = |kind, ordered| weight(CodeFormat::U4, [6, 96], [32, 2], kind, ordered, 5).bytes();
    let symmetric = 6 * 48 + 3 * 3 * 2;
    assert_eq!(weight(0, false), symmetric);
    assert_eq!(weight(1, false), symmetric + 9);
    assert_eq!(weight(2, false), symmetric + 18);
    assert_eq!(weight(3, false), symmetric + 64);
    assert_eq!(weight(0, true), symmetric + 4 * 96);
}
