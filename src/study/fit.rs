//! Whether a cell can run at all, found before any weight is read.

use super::bench::limits;
use super::job::Job;
use super::plan::{EngineKind, Plan, positions};
use crate::engine::{Footprint, WeightSource};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::kernels::attention::Attention;
use crate::measure::memory::HostMemory;
use crate::units::Bytes;

/// What a process holds beside weights, cache and scratch: on the host, and on a GPU with its context and the libraries in
/// it.
const PROCESS_BYTES: u64 = 64 << 20;
const CONTEXT_BYTES: u64 = 1 << 30;
/// The share of the free memory that variants which take turns may fill.
const FILLED: f64 = 0.9;

/// Whether the largest cells of these variants fit the device's memory all at once, so that they can take turns.
pub(super) fn fit_together(plan: &Plan, device: &Device, jobs: &[Job<'_>]) -> bool {
    let need_of = |job: &Job<'_>| -> Option<u64> {
        let source = WeightSource::of(job.model, job.variant).ok()?;
        let needs = plan.cells.iter().map(|cell| {
            let limits = limits(plan, device, cell, job.kv);
            let config = &job.model.config;
            Footprint::predict(config, job.variant, job.act, &source, limits, device).ok()
        });
        needs.map(|need| Some(need?.total().0)).max()?
    };
    let own = match device {
        Device::Cpu => PROCESS_BYTES,
        Device::Gpu(_) => CONTEXT_BYTES,
    };
    let need: Option<u64> = jobs.iter().map(|job| Some(need_of(job)? + own)).sum();
    match (need, free(device)) {
        (Some(need), Some(free)) => need as f64 <= FILLED * free.0 as f64,
        _ => false,
    }
}

fn free(device: &Device) -> Option<Bytes> {
    match device.memory() {
        Some((free, _)) => Some(Bytes(free)),
        None => HostMemory::available(),
    }
}

/// Refuses what cannot run before any weight is read: heads without a kernel, the model's context, the device's memory.
pub(super) fn check_fit(plan: &Plan, device: &Device, job: &Job<'_>) -> Result<()> {
    let Job {
        model,
        variant,
        act,
        kv,
        ..
    } = *job;
    let config = &model.config;
    if plan.engine == EngineKind::Candlepower {
        Attention::check_head_dim(device, config.head_dim)?;
    }
    let free = free(device);
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
