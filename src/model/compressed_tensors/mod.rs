//! Checkpoints of compressed-tensors, the format of LLM Compressor, vLLM and RedHatAI's models.

mod config;
mod read;
mod targets;

pub use config::{
    ActOrder, Arguments, Block, Dynamic, Format, METHOD, Number, QuantizationConfig, Scheme,
    Strategy,
};
pub(super) use read::reader;
