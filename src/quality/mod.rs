//! How well a variant predicts: texts by content, and the protocols that score them. Knows the engine, not the clock.

mod corpus;
#[cfg(feature = "hub")]
mod parquet;
mod perplexity;

pub use corpus::{Text, TextFormat};
pub use perplexity::{Protocol, Scored, Segment, perplexity};
