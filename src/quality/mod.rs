//! How well a variant predicts: texts by content, and the protocols that score them; tasks with right and wrong answers.
//! Knows the engine, not the clock.

mod corpus;
#[cfg(feature = "hub")]
mod parquet;
mod perplexity;
pub mod tasks;

pub use corpus::{Text, TextFormat};
pub use perplexity::{Protocol, Scored, Segment, perplexity};
