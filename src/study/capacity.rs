//! What of a model fits into some memory, by calculation: nothing is loaded and nothing is tried.

use super::bench::chunk_for;
use super::plan::check_variants;
use super::runner::activation_dtype;
use crate::engine::{Footprint, Limits, WeightSource};
use crate::error::Result;
use crate::kernels::Device;
use crate::measure::memory::HostMemory;
use crate::model::Model;
use crate::results::capacity::{AtBatch, AtContext, Capacity, VariantCapacity, Version};
use crate::scheme::{DType, KvFormat, Variant};
use crate::units::Bytes;

/// What is asked.
pub struct Question<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its variants.
    pub variants: &'a [Variant],
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it would run.
    pub device: &'a Device,
    /// Memory to fit into; what the device has free where `None`.
    pub memory: Option<Bytes>,
    /// Tokens of one step; the device's default where `None`.
    pub chunk: Option<usize>,
    /// Positions of each sequence, for which the largest batch is wanted.
    pub contexts: &'a [usize],
    /// Batches, for which the longest context is wanted.
    pub batches: &'a [usize],
}

/// The largest batch for each context and the longest context for each batch, of every variant.
///
/// # Errors
/// If the model has no such variant, or one is named twice.
pub fn capacity(question: &Question<'_>) -> Result<Capacity> {
    let Question {
        model,
        device,
        variants,
        ..
    } = *question;
    check_variants(variants)?;
    let act = activation_dtype(question.act, device, model);
    let free = || match device.memory() {
        Some((free, _)) => Some(Bytes(free)),
        None => HostMemory::available(),
    };
    let memory = question.memory.or_else(free).unwrap_or(Bytes(0));
    let chunk = chunk_for(question.chunk, device);
    let most = model.config.max_positions;
    let of = |variant: &Variant| -> Result<VariantCapacity> {
        let source = WeightSource::of(model, variant)?;
        let predict = |slots, positions| {
            let limits = Limits::new(slots, positions, chunk).with_kv(question.kv);
            Footprint::predict(&model.config, variant, act, &source, limits, device)
        };
        // An error would be of the variant, not of the numbers; it shows here.
        let one = predict(1, 1)?;
        let fits = |slots, positions| predict(slots, positions).is_ok_and(|f| f.total() <= memory);
        let contexts = question.contexts.iter().filter(|&&context| context <= most);
        Ok(VariantCapacity {
            variant: variant.name.clone(),
            weight_bytes: one.weights.0,
            kv_bytes_per_token: one.kv.0,
            batches: contexts
                .map(|&context| AtContext {
                    context,
                    batch: largest(usize::MAX / 2, |batch| fits(batch, context)),
                })
                .collect(),
            contexts: question
                .batches
                .iter()
                .map(|&batch| AtBatch {
                    batch,
                    context: largest(most, |context| fits(batch, context)),
                })
                .collect(),
        })
    };
    Ok(Capacity {
        schema: Version::V1,
        model: model.name.clone(),
        activation_dtype: act.name().to_owned(),
        kv_cache: question.kv.name().to_owned(),
        memory_bytes: memory.0,
        longest_context: most,
        chunk,
        variants: variants.iter().map(of).collect::<Result<_>>()?,
    })
}

/// The largest number up to `most` that fits, where all below one that fits do; 0 if not even 1 does.
fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    // By doubling first, so that sums of sizes stay far from the largest number.
    let mut step = 1;
    while step < high && fits(step) {
        low = step;
        step = step.saturating_mul(2);
    }
    high = high.min(step);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_fits_is_found() {
        for edge in [0, 1, 2, 3, 7, 8, 9, 1000] {
            assert_eq!(largest(500, |n| n <= edge), edge.min(500), "{edge}");
        }
        assert_eq!(largest(0, |_| true), 0);
        assert_eq!(largest(1, |_| true), 1);
    }
}
