//! SmoothQuant (Xiao et al. 2022, `mit-han-lab/smoothquant`): channels of an input that are large are divided by a factor
//! that their weights are multiplied by, so that one scale per token leaves the other channels enough steps.

use super::calibration::Statistics;
use super::layer::Matrix;

/// How far outliers are moved: 0 not at all, 1 all the way into the weights.
pub(super) const STRENGTH: f32 = 0.5;

/// The factors of the input channels, `[k]`: `max|x|^a / max|w|^(1 - a)`, with the maximum over all rows that read the
/// channel.
pub(super) fn scales(statistics: &Statistics, members: &[Matrix], strength: f32) -> Vec<f32> {
    let mut weights = vec![0.0_f32; statistics.k];
    for row in members.iter().flat_map(|m| m.weights.chunks_exact(m.k)) {
        for (largest, w) in weights.iter_mut().zip(row) {
            *largest = largest.max(w.abs());
        }
    }
    let channels = statistics.largest.iter().zip(&weights);
    channels
        .map(|(&x, &w)| {
            let scale = x.powf(strength) / w.powf(1.0 - strength);
            // A channel that is never there, or that no weight reads, is left alone.
            match scale.is_finite() && scale > 0.0 {
                true => scale.max(1e-5),
                false => 1.0,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the research notes, by the rule of the paper's code.
    #[test]
    fn scales_equal_those_of_the_papers_rule() {
        let mut statistics = Statistics::new(5);
        statistics.largest = vec![0.5, 8.0, 1.0, 100.0, 0.0];
        let weights = vec![0.2, -0.1, 0.1, 0.05, 1.0, -0.1, 0.05, -0.4, 0.01, 1.0];
        let matrix = Matrix {
            n: 2,
            k: 5,
            weights,
            bias: None,
        };
        for (strength, truth) in [
            (0.5, [1.581_138_7, 8.944_272, 1.581_138_8, 44.721_355, 1.0]),
            (0.8, [0.792_446_6, 8.365_116, 1.201_124_4, 72.477_97, 1.0]),
        ] {
            let found = scales(&statistics, std::slice::from_ref(&matrix), strength);
            for (found, truth) in found.iter().zip(truth) {
                assert!((found - truth).abs() < 1e-4 * truth, "{found} {truth}");
            }
        }
    }
}
