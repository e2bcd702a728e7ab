//! GGUF files: one file with weights, configuration and tokenizer.
//!
//! Reading order: `cursor` (bounded reads) · `file` (header into metadata and a tensor table) · `config` (metadata into a
//! [`ModelConfig`]) · `blocks` (quantised blocks into floats) · `packed` (some of them
//! kept as they are) · `tensors` (weights under their usual names) · `vocab`
//! (metadata into a tokenizer).

mod blocks;
mod config;
mod cursor;
mod file;
mod packed;
mod tensors;
mod vocab;

use std::path::Path;

pub(super) use self::tensors::GgufWeights;
use super::blob::Blob;
use super::config::ModelConfig;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::Result;

/// Everything that a file holds.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) config: ModelConfig,
    pub(super) weights: Weights,
    pub(super) tokenizer: Option<Tokenizer>,
}

/// Opens a file: reads its header, checks that every tensor of its configuration is there, and builds its tokenizer if
/// `with_tokenizer` asks for it and it has one.
pub(super) fn open(path: &Path, with_tokenizer: bool) -> Result<Opened> {
    let file = file::GgufFile::read(Blob::open(path)?)?;
    let config = config::read(&file)?;
    let tokenizer = match with_tokenizer {
        true => vocab::build(&file.metadata, &config)?,
        false => None,
    };
    let weights = Weights::gguf(GgufWeights::new(file, &config));
    weights.check(&config)?;
    Ok(Opened {
        config,
        weights,
        tokenizer,
    })
}
