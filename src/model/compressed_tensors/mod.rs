//! Checkpoints of compressed-tensors, the format of LLM Compressor, vLLM and RedHatAI's models.

mod config;
mod targets;

pub use config::{
    ActOrder, Arguments, Block, Dynamic, Format, METHOD, Number, QuantizationConfig, Scheme,
    Strategy,
};
