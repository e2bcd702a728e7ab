//! What the weights of a group may become: a scale, a zero point, and the steps between them.
//!
//! Ranges become grids as compressed-tensors has them (`quantization/utils/helpers.py`): a symmetric scale is the largest
//! magnitude over half the number of codes, so over 7.5 or 127.5; an asymmetric range always holds 0, and its zero point
//! is a code. Scales are rounded to the type in which they are stored before a weight is divided by them, so that codes
//! are the nearest ones to what a kernel makes of them.

use rayon::prelude::*;

use crate::scheme::{CodeFormat, DType, Levels, PackedWeight, Scales};

/// How a matrix is quantised, whatever finds its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// How codes are written: as integers, so not [`CodeFormat::E4M3`].
    pub(super) format: CodeFormat,
    /// Columns per scale; divides K.
    pub(super) group: usize,
    /// Whether there are no zero points.
    pub(super) symmetric: bool,
    /// The type of the scales.
    pub(super) scales: DType,
}

/// The levels of one group: `(v - zero) * scale` for whole `v` from `low` to `high`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Grid {
    pub(super) scale: f32,
    pub(super) zero: f32,
    low: f32,
    high: f32,
}

/// Adding and subtracting it rounds to whole numbers, half to even, where magnitudes are below 2^22.
const ROUND: f32 = 12_582_912.0;

impl Grid {
    /// The grid over a range; `low` is at most and `high` at least 0.
    pub(super) fn over(low: f32, high: f32, form: Form) -> Self {
        let (first, last) = form.format.range();
        let middle = form.format.value(form.format.middle());
        let wanted = if form.symmetric {
            high.max(-low) / ((last - first) / 2.0)
        } else {
            (high - low) / (last - first)
        };
        let scale = form.scales.round(wanted);
        // A group of zeros, or of numbers so small that their scale is, gets any scale but 0.
        let scale = if scale == 0.0 { 1.0 } else { scale };
        let zero = if form.symmetric {
            middle
        } else {
            (first - low / scale).clamp(first, last).round_ties_even()
        };
        Self {
            scale,
            zero,
            low: first,
            high: last,
        }
    }

    /// The step nearest to `w`, half to even.
    #[inline(always)]
    pub(super) fn nearest(self, w: f32) -> f32 {
        let step = (w / self.scale + self.zero).max(self.low).min(self.high);
        (step + ROUND) - ROUND
    }

    /// The weight that a step stands for.
    #[inline(always)]
    pub(super) fn value(self, step: f32) -> f32 {
        (step - self.zero) * self.scale
    }

    /// What `w` becomes.
    #[inline(always)]
    pub(super) fn rounded(self, w: f32) -> f32 {
        self.value(self.nearest(w))
    }
}

/// The byte that names a step.
#[inline(always)]
pub(super) fn code(format: CodeFormat, step: f32) -> u8 {
    match format {
        CodeFormat::U4 => step as u8,
        CodeFormat::I8 | CodeFormat::E4M3 => (step as i8).cast_unsigned(),
    }
}

/// Smallest and largest of a group, with 0 among them.
pub(super) fn range(group: &[f32]) -> (f32, f32) {
    group
        .iter()
        .fold((0.0, 0.0), |(low, high), &w| (w.min(low), w.max(high)))
}

/// One grid per group of every row of `weights [n, k]`, `[n, k / group]`, each made by `of`.
pub(super) fn grids(
    weights: &[f32],
    k: usize,
    form: Form,
    of: impl Fn(&[f32]) -> Grid + Sync + Send,
) -> Vec<Grid> {
    debug_assert!(k.is_multiple_of(form.group));
    weights.par_chunks(form.group).map(of).collect()
}

/// The grid over all of a group.
pub(super) fn of_range(group: &[f32], form: Form) -> Grid {
    let (low, high) = range(group);
    Grid::over(low, high, form)
}

/// Shrunken ranges that [`of_least_error`] tries, and by how much each is smaller than the one before.
const TRIES: usize = 20;
const STEP: f32 = 0.01;
/// The power of the errors that it adds up: large ones count more than in a sum of squares.
const NORM: f32 = 2.4;

/// The grid over the part of a group's range that has the least sum of errors to the power of 2.4, from all of it down to
/// 81 %: LLM Compressor's `mse` observer (`observers/mse.py`), each group on its own and without its early stop.
pub(super) fn of_least_error(group: &[f32], form: Form) -> Grid {
    let (low, high) = range(group);
    let error = |grid: Grid| -> f32 {
        let errors = group.iter().map(|&w| (grid.rounded(w) - w).abs());
        errors.map(|e| e.powf(NORM)).sum()
    };
    let mut best = Grid::over(low, high, form);
    let mut least = error(best);
    for i in 1..TRIES {
        let share = 1.0 - i as f32 * STEP;
        let grid = Grid::over(low * share, high * share, form);
        let found = error(grid);
        if found < least {
            (best, least) = (grid, found);
        }
    }
    best
}

/// A packed weight of codes, one a byte, `[n, k]`, and their grids.
pub(super) fn pack(codes: &[u8], grids: &[Grid], [n, k]: [usize; 2], form: Form) -> PackedWeight {
    let width = form.format.row_bytes(k);
    let mut packed = vec![0; n * width];
    packed
        .par_chunks_mut(width)
        .zip(codes.par_chunks(k))
        .for_each(|(out, row)| form.format.pack_row(row, out));
    let scales: Vec<f32> = grids.iter().map(|grid| grid.scale).collect();
    let levels = if form.symmetric {
        Levels::Symmetric
    } else {
        let zeros = grids.iter().map(|grid| code(form.format, grid.zero));
        Levels::Zeros(zeros.collect())
    };
    PackedWeight {
        n,
        k,
        format: form.format,
        group: form.group,
        scale_rows: 1,
        codes: packed,
        scales: Scales::new(form.scales, &scales),
        levels,
        order: None,
    }
}

/// All of a packed weight in f32, `[n, k]`.
pub(super) fn dequantise(weight: &PackedWeight) -> Vec<f32> {
    let mut out = vec![0.0; weight.n * weight.k];
    out.par_chunks_mut(weight.k)
        .enumerate()
        .for_each(|(i, row)| row.copy_from_slice(&weight.dequantise_row(i)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const U4: Form = Form {
        format: CodeFormat::U4,
        group: 32,
        symmetric: true,
        scales: DType::F32,
    };

    /// The matrix of the vectors CT-6, run through compressed-tensors 0.20, in groups of 4.
    const W: [f32; 16] = [
        0.10, -0.70, 0.35, 0.05, 1.50, -0.20, 0.75, -1.00, //
        -0.02, 0.01, 0.03, -0.04, 0.60, 0.50, -0.10, 0.20,
    ];

    #[test]
    fn grids_and_codes_with_zero_points_equal_those_of_compressed_tensors() {
        let form = Form {
            group: 4,
            symmetric: false,
            ..U4
        };
        let grids = grids(&W, 8, form, |group| of_range(group, form));
        let scales: Vec<f32> = grids.iter().map(|g| g.scale).collect();
        for (scale, truth) in scales
            .iter()
            .zip([0.07, 0.166_666_7, 0.004_666_67, 0.046_666_67])
        {
            assert!((scale - truth).abs() < 1e-7, "{scale} {truth}");
        }
        // The package's codes are signed: 8 less.
        let zeros: Vec<f32> = grids.iter().map(|g| g.zero - 8.0).collect();
        assert_eq!(zeros, [2.0, -2.0, 1.0, -6.0]);
        let codes: Vec<f32> = W
            .chunks(4)
            .zip(&grids)
            .flat_map(|(group, grid)| group.iter().map(|&w| grid.nearest(w) - 8.0))
            .collect();
        let truth = [
            3.0, -8.0, 7.0, 3.0, 7.0, -3.0, 2.0, -8.0, -3.0, 3.0, 7.0, -8.0, 7.0, 5.0, -8.0, -2.0,
        ];
        assert_eq!(codes, truth);
    }

    #[test]
    fn the_range_of_least_error_is_that_of_llm_compressor() {
        // Run through llmcompressor 0.14: a row that keeps its range and one that gives up 9 %.
        let mut rows = [[0.0_f32; 32]; 2];
        rows[0] = std::array::from_fn(|i| (((29 * i + 7) % 41) as f32 - 20.0) / 40.0);
        rows[1] = std::array::from_fn(|i| (((17 * i + 3) % 23) as f32 - 11.0) / 20.0);
        (rows[0][5], rows[1][9]) = (1.3, -1.9);
        for (row, truth) in rows.iter().zip([0.173_333_33, 0.230_533_33]) {
            let found = of_least_error(row, U4).scale;
            assert!((found - truth).abs() < 1e-6, "{found} {truth}");
        }
    }

    #[test]
    fn a_group_of_zeros_stays_zero() {
        for symmetric in [true, false] {
            let grid = of_range(&[0.0; 32], Form { symmetric, ..U4 });
            assert_eq!(grid.rounded(0.0), 0.0);
        }
    }

    #[test]
    fn what_is_packed_reads_back_as_the_values_of_its_grids() {
        for (format, symmetric) in [
            (CodeFormat::U4, true),
            (CodeFormat::U4, false),
            (CodeFormat::I8, true),
            (CodeFormat::I8, false),
        ] {
            let form = Form {
                format,
                symmetric,
                scales: DType::BF16,
                ..U4
            };
            let weights: Vec<f32> = (0..3 * 64)
                .map(|i| (i * 29 % 97) as f32 / 40.0 - 0.9)
                .collect();
            let grids = grids(&weights, 64, form, |group| of_range(group, form));
            let steps = weights.iter().enumerate();
            let steps: Vec<f32> = steps.map(|(i, &w)| grids[i / 32].nearest(w)).collect();
            let codes: Vec<u8> = steps.iter().map(|&step| code(format, step)).collect();
            let packed = pack(&codes, &grids, [3, 64], form);
            packed.check().unwrap();
            let values: Vec<f32> = steps
                .iter()
                .enumerate()
                .map(|(i, &step)| grids[i / 32].value(step))
                .collect();
            assert_eq!(dequantise(&packed), values, "{format:?} {symmetric}");
        }
    }
}
