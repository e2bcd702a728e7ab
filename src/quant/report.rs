//! What quantising did to each linear layer.

use serde::Serialize;

/// One linear layer of the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleReport {
    /// Its name, as in `model.layers.0.mlp.up_proj`.
    pub module: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Bits of a weight; 16 where it was kept plain.
    pub bits: usize,
    /// Columns per scale; absent where it was kept plain.
    pub group: Option<usize>,
    /// What the errors are of: `outputs` on the calibration text, or `weights` where none was read.
    pub error_of: &'static str,
    /// Squared error of rounding to nearest over the whole range of each group, as a share of the squared values.
    pub error_rtn: Option<f64>,
    /// The same of what was written.
    pub error: Option<f64>,
    /// The exponent of AWQ's search for the input of this layer; absent where no scales were better.
    pub awq_ratio: Option<f64>,
    /// The exponent of SmoothQuant for the input of this layer.
    pub smoothquant_strength: Option<f64>,
    /// The share of groups whose range was made smaller.
    pub clipped: Option<f64>,
    /// What GPTQ added to the diagonal, as a share of its mean.
    pub dampening: Option<f64>,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// Its number, from 0.
    pub layer: usize,
    /// The time that it took, reading to writing.
    pub seconds: f64,
    /// Its linear layers.
    pub modules: Vec<ModuleReport>,
}

impl LayerReport {
    /// The mean over its modules of the errors of what was written, and of rounding to nearest.
    pub fn errors(&self) -> Option<(f64, f64)> {
        let both = self
            .modules
            .iter()
            .filter_map(|m| Some((m.error?, m.error_rtn?)));
        let (count, sums) = both.fold((0, (0.0, 0.0)), |(n, (a, b)), (x, y)| {
            (n + 1, (a + x, b + y))
        });
        (count > 0).then(|| (sums.0 / f64::from(count), sums.1 / f64::from(count)))
    }
}
