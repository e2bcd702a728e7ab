//! Moving factors from the inputs of linear layers into their weights, where what makes the input can take the inverse: a
//! norm, or the rows of a linear layer whose outputs the input is made of one by one.

use super::awq;
use super::calibration::Statistics;
use super::grid::Form;
use super::layer::{HostLayer, Matrix, Site, UP, VALUE};
use super::smoothquant;
use crate::error::Result;
use crate::scheme::{DType, Method};

/// What was moved at one site.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Moved {
    pub(super) awq_ratio: Option<f64>,
    pub(super) smoothquant_strength: Option<f64>,
}

/// Scales a layer as `method` wants it. `forms` and `statistics` are by site; the latter become those of the scaled layer.
///
/// # Errors
/// If a product fails.
pub(super) fn scale(
    layer: &mut HostLayer,
    statistics: &mut [Statistics; 4],
    forms: &[Option<Form>; 4],
    method: Method,
    dtype: DType,
) -> Result<[Moved; 4]> {
    let mut moved = [Moved::default(); 4];
    for site in Site::ALL {
        let at = site.index();
        let Some(form) = forms[at] else { continue };
        let found = if method.has_awq() {
            if !has_source(layer, site) {
                continue;
            }
            let found = awq::search(&statistics[at], layer.at(site), form);
            moved[at].awq_ratio = found.ratio;
            if found.ratio.is_none() {
                continue;
            }
            found.scales
        } else if method.has_smoothquant() && matches!(site, Site::Qkv | Site::GateUp) {
            let strength = smoothquant::STRENGTH;
            moved[at].smoothquant_strength = Some(f64::from(strength));
            smoothquant::scales(&statistics[at], layer.at(site), strength)
        } else {
            continue;
        };
        fold(layer, &mut statistics[at], site, found, dtype);
    }
    Ok(moved)
}

/// Whether what makes the input of `site` can take factors: grouped heads share values, so attention's output cannot be
/// scaled channel by channel unless every head has its own.
fn has_source(layer: &HostLayer, site: Site) -> bool {
    match site {
        Site::Qkv | Site::GateUp | Site::Down => true,
        Site::Output => layer.matrices[VALUE].n == layer.matrices[site.members().start].k,
    }
}

/// Divides the input of `site` by `scales` in what makes it, and multiplies them into the weights that read it.
fn fold(
    layer: &mut HostLayer,
    statistics: &mut Statistics,
    site: Site,
    mut scales: Vec<f32>,
    dtype: DType,
) {
    match site {
        Site::Qkv => divide_norm(&mut layer.attention_norm, &mut scales, dtype),
        Site::GateUp => divide_norm(&mut layer.mlp_norm, &mut scales, dtype),
        Site::Output => divide_rows(&mut layer.matrices[VALUE], &scales),
        Site::Down => divide_rows(&mut layer.matrices[UP], &scales),
    }
    for matrix in &mut layer.matrices[site.members()] {
        for row in matrix.weights.chunks_exact_mut(matrix.k) {
            row.iter_mut().zip(&scales).for_each(|(w, s)| *w *= s);
        }
    }
    statistics.divide(&scales);
}

/// Divides a norm, which is stored in `dtype`; `scales` become the factors that it was divided by once rounded, so that
/// the weights undo exactly what was done.
fn divide_norm(norm: &mut [f32], scales: &mut [f32], dtype: DType) {
    for (w, s) in norm.iter_mut().zip(scales) {
        let divided = dtype.round(*w / *s);
        let factor = *w / divided;
        if factor.is_finite() && factor > 0.0 {
            (*w, *s) = (divided, factor);
        } else {
            // A channel that is 0 whatever its factor, or would become it.
            *s = 1.0;
        }
    }
}

fn divide_rows(matrix: &mut Matrix, scales: &[f32]) {
    for (row, s) in matrix.weights.chunks_exact_mut(matrix.k).zip(scales) {
        row.iter_mut().for_each(|w| *w /= s);
    }
    if let Some(bias) = &mut matrix.bias {
        bias.iter_mut().zip(scales).for_each(|(b, s)| *b /= s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_and_the_weights_after_it_undo_each_other() {
        let mut norm = vec![0.731_f32, -1.3, 0.0, 2.5];
        let mut scales = vec![1.37_f32, 0.21, 3.0, 1e30];
        norm.iter_mut().for_each(|w| *w = DType::BF16.round(*w));
        let before = norm.clone();
        divide_norm(&mut norm, &mut scales, DType::BF16);
        for ((after, s), before) in norm.iter().zip(&scales).zip(&before) {
            assert_eq!(DType::BF16.round(*after), *after);
            assert!((after * s - before).abs() <= 1e-6 * before.abs());
        }
        assert_eq!(scales[2], 1.0);
    }
}
