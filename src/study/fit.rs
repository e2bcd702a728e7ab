//! Whether a cell can run at all, found before any weight is read.

use super::bench::limits;
use super::plan::{EngineKind, Plan, positions};
use crate::engine::{Footprint, WeightSource};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::kernels::attention::Attention;
use crate::measure::memory::HostMemory;
use crate::model::Model;
use crate::scheme::{DType, KvFormat, Variant};
use crate::units::Bytes;

/// Refuses what cannot run before any weight is read: heads without a kernel, the model's context, the device's memory.
pub(super) fn check_fit(
    plan: &Plan,
    device: &Device,
    model: &Model,
    variant: &Variant,
    act: DType,
    kv: KvFormat,
) -> Result<()> {
    let config = &model.config;
    if plan.engine == EngineKind::Candlepower {
        Attention::check_head_dim(device, config.head_dim)?;
    }
    let free = match device.memory() {
        Some((free, _)) => Some(Bytes(free)),
        None => HostMemory::available(),
    };
    for cell in &plan.cells {
        let needed = positions(cell);
        if needed > config.max_positions {
            return Err(Error::Config(format!(
                "depth {} + prompt {} + generate {} = {needed} positions, but the context of {} is {}",
                cell.depth, cell.prompt, cell.generate, model.name, config.max_positions
            )));
        }
        if plan.engine != EngineKind::Candlepower {
            continue;
        }
        let source = WeightSource::of(model, variant)?;
        let limits = limits(plan, device, cell, kv);
        let need = Footprint::predict(config, variant, act, &source, limits, device)?;
        if let Some(free) = free.filter(|&free| need.total() > free) {
            let most = limits.most_slots(free, |l| {
                Footprint::predict(config, variant, act, &source, l, device).ok()
            });
            let advice = if most == 0 {
                "no batch fits".to_owned()
            } else {
                format!("--batch {most} is the largest that fits")
            };
            return Err(Error::Config(format!(
                "{} in {variant}, batch {}, {needed} positions needs {} ({} weights, {} cache, {} scratch), but {free} \
                 are free: {advice}",
                model.name,
                cell.batch,
                need.total(),
                need.weights,
                need.kv,
                need.scratch()
            )));
        }
    }
    Ok(())
}
