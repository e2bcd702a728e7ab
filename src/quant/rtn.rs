//! Rounding to nearest: every weight by itself, to the step of its group's grid that is nearest.

use rayon::prelude::*;

use half::{bf16, f16};

use super::grid::{Form, Grid, code, pack};
use crate::error::{Error, Result};
use crate::kernels::linear::{LinearWeight, WeightData};
use crate::kernels::quantize::QuantizeRows;
use crate::kernels::{Buf, Device};
use crate::scheme::{DType, Elem, Levels, PackedWeight, Scales};

/// `weights [n, k]` on these grids.
pub(super) fn to_nearest(
    weights: &[f32],
    [n, k]: [usize; 2],
    grids: &[Grid],
    form: Form,
) -> PackedWeight {
    let mut codes = vec![0; n * k];
    codes
        .par_chunks_mut(form.group)
        .zip(weights.par_chunks(form.group))
        .zip(grids)
        .for_each(|((codes, weights), grid)| {
            for (out, &w) in codes.iter_mut().zip(weights) {
                *out = code(form.format, grid.nearest(w));
            }
        });
    pack(&codes, grids, [n, k], form)
}

/// `weights [n, k]`, symmetric and over the whole range of each group: the op that quantises weights as they are loaded,
/// so that the same codes come out.
pub(super) fn by_op(weights: &[f32], [n, k]: [usize; 2], form: Form) -> Result<PackedWeight> {
    let op = QuantizeRows {
        rows: n,
        k,
        format: form.format,
        group: form.group,
    };
    let shape = [n, k];
    let mut out = LinearWeight::packed(&Device::Cpu, shape, form.format, form.group, form.scales)?;
    let narrow = match form.scales {
        DType::F32 => Buf::from_vec(weights.to_vec()),
        DType::F16 => Buf::from_vec(narrow::<f16>(weights)),
        DType::BF16 => Buf::from_vec(narrow::<bf16>(weights)),
    };
    op.run(&Device::Cpu, &narrow, &mut out, 0)?;
    let WeightData::Packed(bufs) = out.data else {
        return Err(Error::Internal("rounded weights are not packed".into()));
    };
    let scales = match form.scales {
        DType::F32 => Scales::F32(bufs.scales.host()?.to_vec()),
        DType::F16 => Scales::F16(bufs.scales.host()?.to_vec()),
        DType::BF16 => Scales::BF16(bufs.scales.host()?.to_vec()),
    };
    Ok(PackedWeight {
        n,
        k,
        format: form.format,
        group: form.group,
        scale_rows: 1,
        codes: bufs.codes.host()?.to_vec(),
        scales,
        levels: Levels::Symmetric,
        order: None,
    })
}

fn narrow<T: Elem>(weights: &[f32]) -> Vec<T> {
    weights.par_iter().map(|&w| T::from_f32(w)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::grid::{dequantise, grids, of_range};
    use super::*;
    use crate::scheme::CodeFormat;

    #[test]
    fn the_op_and_the_grids_agree_where_nothing_is_rounded_but_codes() {
        let weights: Vec<f32> = (0..4 * 64)
            .map(|i| (i * 31 % 89) as f32 / 50.0 - 0.8)
            .collect();
        for (format, group) in [(CodeFormat::U4, 32), (CodeFormat::I8, 64)] {
            let form = Form {
                format,
                group,
                symmetric: true,
                scales: DType::F32,
            };
            let by_op = by_op(&weights, [4, 64], form).unwrap();
            let grids = grids(&weights, 64, form, |group| of_range(group, form));
            let by_grids = to_nearest(&weights, [4, 64], &grids, form);
            assert_eq!(by_op, by_grids);
            for (w, q) in weights.iter().zip(dequantise(&by_op)) {
                assert!((w - q).abs() <= 0.12, "{w} {q}");
            }
        }
    }
}
