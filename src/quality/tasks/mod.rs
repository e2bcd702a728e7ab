//! Tasks with right and wrong answers, scored by lm_eval's rules: several choices by log-likelihood, a last word, free text
//! through filters. Definitions are YAML files in lm_eval's keys; the usual ones are in the binary.
//!
//! Reading order: [`Suite`] (`suite`: tasks by name) · [`Task`] (`task`, by `keys` out of `yaml`) · [`Documents`]
//! (`document`: rows to requests, through `rows`, `repository`, `template`) · [`Encoder`] (`encode`: requests to tokens) ·
//! `score` and `generate` (what the model says) · [`Sample`], [`TaskScore`], [`SuiteScore`] (`results`, by `metric` and
//! `filter`) · [`Work`] (`work`, all of it for one task) · [`layout()`] (results as lm_eval lays them out).
//!
//! `python`, `pattern` and `random` are what of Python shows through in definitions and in the choice of examples.

mod document;
mod encode;
mod filter;
mod generate;
mod keys;
mod layout;
mod metric;
mod pattern;
mod python;
mod random;
mod repository;
mod results;
mod rows;
mod score;
mod suite;
mod task;
mod template;
mod text;
mod work;
mod yaml;

pub use document::{Document, Documents, EXAMPLE_SEED, Gold, Limit, Request};
pub use encode::{Encoded, Encoder};
pub use layout::{LmEvalResults, Provenance, layout};
pub use metric::{Metric, Output};
pub use results::{Answer, Figure, GroupScore, Sample, SuiteScore, TaskScore};
pub use score::LogLikelihood;
pub use suite::{Group, Suite};
pub use task::Task;
pub use template::Row;
pub use work::Work;
