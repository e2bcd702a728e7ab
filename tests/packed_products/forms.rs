//! Packed weights of every form, and what they mean by the definitions of their formats.

use candlepower::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

/// Numbers that follow from a seed (SplitMix64).
pub(crate) struct Noise(pub(crate) u64);

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

    /// In -1 .. 1.
    fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize, dtype: DType) -> Vec<f32> {
        (0..count).map(|_| dtype.round(self.number())).collect()
    }

    /// Any code but the two of NaN.
    pub(crate) fn code(&mut self, format: CodeFormat) -> u8 {
        let code = u8::try_from(self.below(256)).unwrap();
        match format {
            CodeFormat::U4 => code & 15,
            CodeFormat::E4M3 if code & 0x7f == 0x7f => code ^ 1,
            _ => code,
        }
    }
}

/// What the codes of a weight stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Symmetric,
    Zeros,
    Offsets,
    Codebook,
}

/// All that distinguishes one form of a packed weight from another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    pub(crate) format: CodeFormat,
    pub(crate) kind: Kind,
    /// Columns per scale; 0 for all.
    pub(crate) group: usize,
    /// Rows per scale; 0 for all.
    pub(crate) scale_rows: usize,
    pub(crate) scales: DType,
    pub(crate) ordered: bool,
}

pub(crate) const KINDS: [(CodeFormat, Kind); 7] = [
    (CodeFormat::U4, Kind::Symmetric),
    (CodeFormat::U4, Kind::Zeros),
    (CodeFormat::U4, Kind::Offsets),
    (CodeFormat::U4, Kind::Codebook),
    (CodeFormat::I8, Kind::Symmetric),
    (CodeFormat::I8, Kind::Zeros),
    (CodeFormat::E4M3, Kind::Symmetric),
];

/// Every kind with every granularity of scales; the type of the scales and the order of the columns take turns.
pub(crate) fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for (format, kind) in KINDS {
        for group in [0, 32, 64, 128] {
            for scale_rows in [1, 5, 128, 0] {
                let turn = forms.len();
                forms.push(Form {
                    format,
                    kind,
                    group,
                    scale_rows,
                    scales: [DType::F32, DType::F16, DType::BF16][turn % 3],
                    ordered: turn % 2 == 1,
                });
            }
        }
    }
    forms
}

/// Shapes `[n, k]`: K of one block and of less, of one group, of groups of which the last is short, and of no whole
/// block; N smaller than a tile, no multiple of one, and of more than one task.
pub(crate) fn shapes(format: CodeFormat) -> Vec<[usize; 2]> {
    let mut shapes = vec![[1, 32], [3, 128], [70, 96], [33, 288], [130, 64]];
    if format != CodeFormat::U4 {
        shapes.extend([[5, 7], [33, 100], [6, 161]]);
    }
    shapes
}

const BOOK: [f32; 16] = [
    -1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72,
    1.0,
];

/// A weight, and what it means by the definitions.
pub(crate) struct Matrix {
    pub(crate) packed: PackedWeight,
    /// `[n, k]` in the order of the input.
    pub(crate) numbers: Vec<f64>,
    /// The magnitudes that rounding errors of each number are relative to.
    pub(crate) sizes: Vec<f64>,
}

pub(crate) fn matrix(form: Form, [n, k]: [usize; 2], seed: u64) -> Matrix {
    let mut noise = Noise(seed);
    let Form { format, kind, .. } = form;
    let group = if form.group == 0 || form.group > k {
        k
    } else {
        form.group
    };
    let scale_rows = if form.scale_rows == 0 {
        n
    } else {
        form.scale_rows.min(n)
    };
    let codes: Vec<u8> = (0..n * k).map(|_| noise.code(format)).collect();
    let groups = k.div_ceil(group);
    let count = n.div_ceil(scale_rows) * groups;
    let mut held = |range: f32| -> Vec<f32> {
        let numbers = (0..count).map(|_| range * (0.2 + noise.number().abs()));
        numbers.map(|x| form.scales.round(x)).collect()
    };
    let (scales, offsets) = (held(0.05), held(-0.5));
    let zeros: Vec<u8> = (0..count).map(|_| noise.code(format)).collect();
    let order = form.ordered.then(|| {
        let mut order: Vec<u32> = (0..u32::try_from(k).unwrap()).collect();
        (1..k).rev().for_each(|i| order.swap(i, noise.below(i + 1)));
        order
    });
    let (mut numbers, mut sizes) = (vec![0.0; n * k], vec![0.0; n * k]);
    for (i, &code) in codes.iter().enumerate() {
        let (row, column) = (i / k, i % k);
        let at = row / scale_rows * groups + column / group;
        let scale = f64::from(scales[at]);
        let (number, size) = match kind {
            Kind::Symmetric if format == CodeFormat::U4 => {
                let number = scale * (f64::from(code) - 8.0);
                (number, number.abs())
            }
            Kind::Symmetric => {
                let number = scale * named(format, code);
                (number, number.abs())
            }
            Kind::Zeros => {
                let number = scale * (named(format, code) - named(format, zeros[at]));
                (number, number.abs())
            }
            Kind::Offsets => {
                let (product, offset) = (scale * named(format, code), f64::from(offsets[at]));
                (product + offset, product.abs() + offset.abs())
            }
            Kind::Codebook => {
                let number = scale * f64::from(BOOK[usize::from(code)]);
                (number, number.abs())
            }
        };
        let input = order
            .as_ref()
            .map_or(column, |order| order[column] as usize);
        (numbers[row * k + input], sizes[row * k + input]) = (number, size);
    }
    let width = format.row_bytes(k);
    let mut packed = vec![0; n * width];
    for (row, out) in codes.chunks(k).zip(packed.chunks_mut(width)) {
        format.pack_row(row, out);
    }
    let packed = PackedWeight {
        n,
        k,
        format,
        group,
        scale_rows,
        codes: packed,
        scales: Scales::new(form.scales, &scales),
        levels: match kind {
            Kind::Symmetric => Levels::Symmetric,
            Kind::Zeros => Levels::Zeros(zeros),
            Kind::Offsets => Levels::Offsets(Scales::new(form.scales, &offsets)),
            Kind::Codebook => Levels::Codebook(BOOK),
        },
        order,
    };
    packed.check().unwrap();
    Matrix {
        packed,
        numbers,
        sizes,
    }
}

/// The number that a code names, by the definition of its format.
pub(crate) fn named(format: CodeFormat, code: u8) -> f64 {
    match format {
        CodeFormat::U4 => f64::from(code),
        CodeFormat::I8 => f64::from(code) - if code >= 128 { 256.0 } else { 0.0 },
        CodeFormat::E4M3 => {
            let (sign, exponent, mantissa) = (code / 128, i32::from(code / 8 % 16), code % 8);
            let size = if exponent == 0 {
                f64::from(mantissa) * 2.0_f64.powi(-9)
            } else {
                f64::from(8 + mantissa) * 2.0_f64.powi(exponent - 10)
            };
            if sign == 1 { -size } else { size }
        }
    }
}
