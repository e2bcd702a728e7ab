//! The account of memory of one cell: predicted before anything is allocated, measured after the trials.

use super::facts;
use super::target::Target;
use crate::engine::Footprint;
use crate::error::Result;
use crate::kernels::Device;
use crate::kernels::gpu::Gpu;
use crate::measure::gpu_memory_of_this_process as own_memory;
use crate::measure::memory::HostMemory;
use crate::results::record::{Amount, Memory};
use crate::units::Bytes;

/// Begins an account: what the cells before left unused goes back to the device, and peaks start at what is held now. The
/// cell's own memory has been allocated.
pub(super) fn begin(device: &Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        Device::Gpu(gpu) => gpu.settle_pool(),
    }
}

/// The account since [`begin`]; `predicted` is what the cell was thought to take. Where the device is `shared` with
/// variants that take turns, what this process holds of it stands for what is in use.
pub(super) fn account(
    device: &Device,
    runner: &dyn Target,
    predicted: Option<Footprint>,
    shared: bool,
) -> Memory {
    let held = runner.footprint();
    let weights = runner.weight_bytes();
    let predicted_rest = predicted.map(|f| rest(f.total(), f.weights, f.kv));
    let memory = Memory {
        weights: Amount {
            predicted: predicted.map(|f| f.weights),
            measured: Some(weights),
        },
        kv: Amount {
            predicted: predicted.map(|f| f.kv),
            measured: held.map(|f| f.kv),
        },
        activations: Amount {
            predicted: predicted_rest,
            measured: held.map(|f| rest(f.total(), f.weights, f.kv)),
        },
        other: Amount::default(),
        // Of the CPU's memory, what this process has resident.
        total: Amount {
            predicted: predicted.map(|f| f.total()),
            measured: HostMemory::now().resident,
        },
    };
    match device {
        Device::Cpu => memory,
        Device::Gpu(gpu) => {
            let own = || facts::selector(device).and_then(|gpu| own_memory(&gpu));
            on_gpu(gpu, memory, shared.then(own))
        }
    }
}

/// The same where an allocator tells how much there was at most, and the device what else is in use of it.
fn on_gpu(gpu: &Gpu, memory: Memory, own: Option<Option<Bytes>>) -> Memory {
    let pool = gpu.pool().ok();
    let outside = match own {
        None => gpu.outside().ok(),
        Some(own) => own
            .zip(pool)
            .map(|(own, pool)| own.0.saturating_sub(pool.reserved)),
    };
    let before = gpu.outside_at_open();
    let peak = pool.map(|pool| Bytes(pool.used_peak));
    let predicted = memory.total.predicted.zip(before);
    Memory {
        activations: Amount {
            measured: match (peak, memory.weights.measured, memory.kv.measured) {
                (Some(peak), Some(weights), Some(kv)) => Some(rest(peak, weights, kv)),
                _ => None,
            },
            ..memory.activations
        },
        other: Amount {
            predicted: before.map(Bytes),
            measured: outside.map(Bytes),
        },
        total: Amount {
            predicted: predicted.map(|(parts, before)| Bytes(parts.0.saturating_add(before))),
            measured: pool
                .zip(outside)
                .map(|(pool, outside)| Bytes(pool.reserved + outside)),
        },
        ..memory
    }
}

/// What of `all` is neither weights nor cache.
fn rest(all: Bytes, weights: Bytes, kv: Bytes) -> Bytes {
    Bytes(all.0.saturating_sub(weights.0).saturating_sub(kv.0))
}
