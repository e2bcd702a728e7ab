//! What the targets share: opening a checkpoint and reading all of it.

use std::path::Path;

use candlepower::model::{HostSliceMut, Model, ModelSpec, WeightsChoice};

/// The folder of the fixtures.
pub const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

/// Opens `source` and reads every tensor. Errors are what should come of most inputs.
pub fn exercise(source: &Path) {
    let spec = ModelSpec {
        source: source.display().to_string(),
        revision: None,
        weights: WeightsChoice::AsStored,
        tokenizer: None,
    };
    let Ok(model) = Model::open(&spec) else {
        return;
    };
    let mut row = Vec::new();
    for tensor in model.config.tensors() {
        if model.weights.stored_linear(&tensor.name).is_some() {
            let _ = model.weights.read_packed(&tensor.name);
        }
        row.resize(tensor.shape.last().copied().unwrap_or(0), 0.0);
        let _ = model
            .weights
            .read_rows(&tensor.name, 0..1, HostSliceMut::F32(&mut row));
    }
}
