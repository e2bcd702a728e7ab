//! How well a variant predicts: texts by content, the protocols that cut them, and their losses; tasks with right and wrong
//! answers. Knows the engine, not the clock.

mod base;
mod corpus;
mod divergence;
#[cfg(feature = "hub")]
mod parquet;
mod perplexity;
mod protocol;
pub mod tasks;
mod wikitext;

pub use base::{Header as BaseHeader, Recorder};
pub use corpus::{Document, FIELD, Reading, Text, TextFormat};
pub use divergence::{Comparison, Divergence, SegmentDivergence};
pub use perplexity::{Segment, Target, Witness, perplexity};
pub use protocol::{Layout, Protocol, Rule, Window};
