//! What a run of the microbenchmark is told.

use super::super::plan::{check_models, check_variants};
use super::ops::OpEntry;
use crate::error::{Error, Result};
use crate::measure::trial::{StopRule, WarmUp};
use crate::model::ModelSpec;
use crate::scheme::{DType, KvFormat, Variant};

/// Everything that a run of the microbenchmark is told.
#[derive(Debug, Clone)]
pub struct MicrobenchPlan {
    /// The ops, in the order in which they run.
    pub ops: Vec<&'static OpEntry>,
    /// The models whose shapes are taken; no weight of theirs is read.
    pub models: Vec<ModelSpec>,
    /// Shapes `[n, k]` of products, beside the models' own.
    pub shapes: Vec<[usize; 2]>,
    /// Rows of the input.
    pub tokens: Vec<usize>,
    /// What weights are turned into.
    pub variants: Vec<Variant>,
    /// The type of the activations; the device's default where `None`.
    pub act: Option<DType>,
    /// Positions that a token's attention sees at most, each its own cells; the default where there are none.
    pub contexts: Vec<usize>,
    /// Formats of the KV cache, each its own cells.
    pub kv: Vec<KvFormat>,
    /// Verifies cells and times none.
    pub verify_only: bool,
    /// How often a cell is sampled.
    pub rule: StopRule,
    /// What runs before the first counted sample.
    pub warm_up: WarmUp,
    /// Chooses the data and the elements that are compared.
    pub seed: u64,
    /// Measures cells anew that are on record.
    pub force: bool,
}

/// Positions that attention sees where nobody says otherwise.
const CONTEXT: usize = 1024;

impl MicrobenchPlan {
    /// Refuses what cannot be run whatever the device.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub fn check(&self) -> Result<()> {
        let usage = |what: String| Err(Error::Usage(what));
        if self.tokens.contains(&0) {
            return usage("--m must be at least 1".into());
        }
        for (i, [n, k]) in self.shapes.iter().enumerate() {
            if *n == 0 || *k == 0 {
                return usage(format!("--shape {n},{k}: both must be at least 1"));
            }
            if self.shapes[..i].contains(&[*n, *k]) {
                return usage(format!("--shape {n},{k} is given twice: give it once"));
            }
        }
        check_models(&self.models)?;
        check_variants(&self.variants)?;
        for variant in &self.variants {
            if !variant.is_made_on_load() {
                return usage(format!(
                    "--variants {variant}: single ops run on made-up weights, for which no way of choosing codes matters: \
                     leave all but the bits and the group out"
                ));
            }
        }
        if self.models.is_empty() && self.ops.iter().any(|op| op.needs_model) {
            let op = self.ops.iter().find(|op| op.needs_model);
            let name = op.map_or("", |op| op.name);
            return usage(format!(
                "--op {name} takes its sizes from a --model, not from --shape"
            ));
        }
        if !self.ops.iter().any(|op| op.uses_context) {
            if !self.contexts.is_empty() {
                return usage(
                    "--context is for --op rope, attention, append_attend and attention_prefill"
                        .into(),
                );
            }
            if self.kv != [KvFormat::Auto] {
                return usage(
                    "--kv-cache is for --op rope, attention, append_attend and attention_prefill"
                        .into(),
                );
            }
        }
        if self.contexts.contains(&0) {
            return usage("--context must be at least 1".into());
        }
        for (i, kv) in self.kv.iter().enumerate() {
            if self.kv[..i].contains(kv) {
                return usage(format!("--kv-cache names '{kv}' twice"));
            }
        }
        Ok(())
    }

    /// Positions that tokens see.
    pub(super) fn contexts(&self) -> Vec<usize> {
        if self.contexts.is_empty() {
            vec![CONTEXT]
        } else {
            self.contexts.clone()
        }
    }
}
