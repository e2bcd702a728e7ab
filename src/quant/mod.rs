//! Weights in, packed weights out: this program's own quantisers, what they look at, and the checkpoint that they write.
//! Knows nothing of texts, scores or records.
//!
//! Reading order: [`Quantisation`] (`quantise`: a whole run, layer by layer) · `layer` (one decoder layer on the host) ·
//! `assign` (which linear layer becomes what) · `calibration` and `decoder` (the model reads the calibration text; what is
//! kept of the inputs) · `transform` over `awq` and `smoothquant` (factors that move from inputs into weights) · `grid`
//! (ranges, scales, zero points) · `rtn` and `gptq` (codes) · `linalg` · `checkpoint` (the files) · `report` ·
//! `sensitivity`.
//!
//! A method is at most one transformation followed by one way of rounding, and all of them judge errors by the Gram matrix
//! of a layer's inputs, so one pass over the calibration text serves any of them. Peak memory is that of one layer in f32
//! twice, the Gram matrices of its four inputs, and the residual stream of all calibration tokens.

mod assign;
mod awq;
mod calibration;
mod checkpoint;
mod decoder;
mod gptq;
mod grid;
mod layer;
mod linalg;
mod quantise;
mod report;
mod rtn;
mod sensitivity;
mod smoothquant;
mod transform;

pub use assign::{Kept, Place};
pub use calibration::Samples;
pub use checkpoint::REPORT;
pub use layer::Site;
pub use quantise::{
    Progress, Quantisation, Watch, cached_folder, content_key, no_calibration, plain_dtype,
};
pub use report::{LayerReport, ModuleReport};
pub use sensitivity::Sensitivity;
