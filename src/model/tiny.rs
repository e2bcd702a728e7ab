//! The checkpoint inside the binary: a small trained model, its tokenizer and text that it has not seen.

use std::path::Path;

use super::blob::Blob;
use super::config::ModelConfig;
use super::json;
use super::safetensors::Safetensors;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::Result;

/// The name under which the embedded model is opened.
pub(super) const NAME: &str = "tiny";

const CONFIG: &[u8] = include_bytes!("../../models/tiny/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../models/tiny/model.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../models/tiny/tokenizer.json");

/// Text in the style of the embedded model's training text, kept out of its training: what its perplexity is measured on.
pub fn tiny_text() -> &'static str {
    include_str!("../../models/tiny/held_out.txt")
}

pub(super) fn config() -> Result<ModelConfig> {
    let path = Path::new("tiny/config.json");
    ModelConfig::from_json(path, &json::parse(path, CONFIG)?)
}

pub(super) fn weights(config: &ModelConfig) -> Result<Weights> {
    let file = Blob::embedded("tiny/model.safetensors", WEIGHTS);
    let weights = Weights::safetensors(Safetensors::single(file)?);
    weights.check(config)?;
    Ok(weights)
}

pub(super) fn tokenizer(config: &ModelConfig) -> Result<Tokenizer> {
    Tokenizer::from_json(Path::new("tiny/tokenizer.json"), TOKENIZER, config)
}
