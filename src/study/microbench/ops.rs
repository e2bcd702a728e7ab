//! The table of what the microbenchmark can run.

use super::bench::Families;
use super::plan::MicrobenchPlan;
use super::{heads, linear, rows};
use crate::error::Result;
use crate::kernels::Device;
use crate::model::Model;
use crate::scheme::{DType, Variant, WeightScheme};

/// An op of the microbenchmark.
#[derive(Debug)]
pub struct OpEntry {
    /// The name on the command line and in records.
    pub name: &'static str,
    /// What it is, in a few words.
    pub what: &'static str,
    /// Whether it takes its sizes from a model alone.
    pub needs_model: bool,
    /// Whether the length of the context is one of its sizes.
    pub uses_context: bool,
    /// What there is to prepare for a plan.
    pub(super) families: fn(&Sizes<'_>) -> Result<Families>,
}

/// Every op, the default one first.
pub const OPS: [OpEntry; 9] = [
    linear::ENTRY,
    rows::QUANTIZE,
    rows::NORM,
    rows::SILU_MUL,
    rows::ARGMAX,
    heads::ROPE,
    heads::ATTENTION,
    heads::APPEND_ATTEND,
    heads::PREFILL,
];

/// Where ops take their sizes from.
pub(super) struct Sizes<'a> {
    pub(super) plan: &'a MicrobenchPlan,
    pub(super) models: &'a [Model],
    pub(super) device: &'a Device,
}

impl Sizes<'_> {
    /// The type of the activations beside `variant`: what was asked for, else f32 on the CPU and the variant's own
    /// 16-bit type, or bf16, on a GPU.
    pub(super) fn act(&self, variant: &Variant) -> DType {
        match (self.plan.act, self.device, variant.weights) {
            (Some(act), ..) => act,
            (None, Device::Cpu, _) => DType::F32,
            (None, _, WeightScheme::Plain(dtype)) => dtype,
            (None, _, _) => DType::BF16,
        }
    }

    /// The types of the activations of all variants, each once: what ops without weights are run in.
    pub(super) fn acts(&self) -> Vec<DType> {
        let mut acts = Vec::new();
        for act in self.plan.variants.iter().map(|variant| self.act(variant)) {
            if !acts.contains(&act) {
                acts.push(act);
            }
        }
        acts
    }
}
