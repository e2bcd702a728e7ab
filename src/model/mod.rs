//! What a model is and where its parts come from: the configuration of every family, the weights by their names in the
//! transformers library, and the tokenizer, read from a folder of safetensors, a GGUF file, the hub or the binary itself.
//! Knows nothing of kernels, devices or time; opening reads headers only, weights are read row by row when asked for.
//!
//! Reading order: [`ModelConfig`] (`config`, parsed by `config_json`; `rope`) · [`Model::open`] (`open`) and what it
//! chooses from (`directory`, `hub`, `preset`, `tiny`, `gguf`) · [`Weights`] (`weights`) over one file per storage
//! (`safetensors`, `gguf`, `dummy`), all on positioned reads (`blob`) and one conversion (`host`) · `quantised` and one
//! file per quantised format ([`compressed_tensors`], `gptq`, `awq`, `fp8`, `bitsandbytes`) · what is left over (`surplus`)
//! · [`Tokenizer`] (`tokenizer_config`).
//!
//! Files are treated as hostile: every length, offset and product is checked before it is used, nothing is allocated on a
//! header's word beyond what the file could hold, and whatever is wrong becomes an error that names file and tensor.

mod awq;
mod bitsandbytes;
mod blob;
pub mod compressed_tensors;
mod config;
mod config_json;
mod config_write;
mod directory;
mod dummy;
mod fp8;
mod gguf;
mod gptq;
mod host;
pub mod hub;
mod json;
mod open;
mod preset;
mod quantised;
mod rope;
mod safetensors;
mod surplus;
mod tiny;
mod tokenizer;
mod tokenizer_config;
mod weights;

pub use config::{Family, ModelConfig, TensorSpec};
pub use dummy::{Dummy, DummyFill, uniform};
pub use host::HostSliceMut;
pub use open::{Model, ModelSpec, Origin, OriginKind, WeightsChoice};
pub use preset::{Preset, presets};
pub use quantised::{StoredLinear, StoredScheme};
pub use rope::{Rope, RopeScaling};
pub use tiny::tiny_text;
pub use tokenizer::{TokenisedText, Tokenizer};
pub use weights::Weights;
