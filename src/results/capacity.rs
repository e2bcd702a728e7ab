//! What of a model fits into some memory: the form in which it is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::columns::{column, filled, laid_out};
use super::format;
use crate::units::Bytes;

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.capacity/1")]
    V1,
}

/// Every variant of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Capacity {
    /// The version of this document.
    pub schema: Version,
    /// The model's name.
    pub model: String,
    /// The type of activations.
    pub activation_dtype: String,
    /// The format of the KV cache; `auto` is the type of the activations.
    pub kv_cache: String,
    /// The memory that it is to fit into.
    pub memory_bytes: u64,
    /// Positions that the model was made for.
    pub longest_context: usize,
    /// Tokens of one step, for which scratch is counted.
    pub chunk: usize,
    /// The variants.
    pub variants: Vec<VariantCapacity>,
}

/// One variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VariantCapacity {
    /// Its name.
    pub variant: String,
    /// Its weights.
    pub weight_bytes: u64,
    /// Keys and values of one token.
    pub kv_bytes_per_token: u64,
    /// The largest batch for each context.
    pub batches: Vec<AtContext>,
    /// The longest context for each batch.
    pub contexts: Vec<AtBatch>,
}

/// The largest batch at a context; 0 where not one sequence fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AtContext {
    /// Positions of each sequence.
    pub context: usize,
    /// Sequences.
    pub batch: usize,
}

/// The longest context at a batch, as far as the model goes; 0 where not one position fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AtBatch {
    /// Sequences.
    pub batch: usize,
    /// Positions of each.
    pub context: usize,
}

impl Capacity {
    /// A table with a row for each variant.
    pub fn table(&self, width: usize) -> String {
        let rows = &self.variants;
        let of = |head: String, weight, figure: &dyn Fn(&VariantCapacity) -> Option<String>| {
            column(&head, weight, rows.iter().map(figure))
        };
        let number = |n: usize| {
            if n == 0 {
                "none".to_owned()
            } else {
                n.to_string()
            }
        };
        let mut columns = vec![
            of("variant".into(), 255, &|v| Some(v.variant.clone())),
            of("weights".into(), 200, &|v| {
                Some(Bytes(v.weight_bytes).to_string())
            }),
            of("cache\nper token".into(), 100, &|v| {
                Some(Bytes(v.kv_bytes_per_token).to_string())
            }),
        ];
        let first = rows.first();
        for i in 0..first.map_or(0, |v| v.batches.len()) {
            let context = rows[0].batches[i].context;
            columns.push(of(format!("batch at\n{context}"), 150, &|v| {
                Some(number(v.batches[i].batch))
            }));
        }
        for i in 0..first.map_or(0, |v| v.contexts.len()) {
            let batch = rows[0].contexts[i].batch;
            columns.push(of(format!("context at\nbatch {batch}"), 120, &|v| {
                Some(number(v.contexts[i].context))
            }));
        }
        let title = format!(
            "{} in {} · activations {} · cache {} · steps of {} tokens · context up to {}",
            self.model,
            Bytes(self.memory_bytes),
            self.activation_dtype,
            match self.kv_cache.as_str() {
                "auto" => &self.activation_dtype,
                format => format,
            },
            self.chunk,
            self.longest_context
        );
        format!(
            "{}\n{}\n",
            format::wrapped(&title, width),
            laid_out(filled(columns), width)
        )
    }
}
