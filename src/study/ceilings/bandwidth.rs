//! Reading and copying, from sizes that the last cache holds to sizes far beyond it.

use super::{Bed, COPY, Effort, Found, READ};
use crate::error::Result;
use crate::kernels::fill::Filling;
use crate::kernels::stream::{CopyAll, ReadAll, ReadPlan};
use crate::kernels::{Buf, BufType, Device};
use crate::measure;
use crate::scheme::DType;
use crate::units::Bytes;

/// The cache that is assumed where the system does not tell.
const UNKNOWN_CACHE: usize = 32 << 20;

/// Bytes of the largest buffer.
const MOST_ON_CPU: usize = 256 << 20;
const MOST_ON_GPU: usize = 2 << 30;
const MOST_EMULATED: usize = 1 << 20;

/// From this many caches on, a buffer is read from memory.
const BEYOND: usize = 4;

pub(super) fn measure(bed: &Bed<'_>, found: &mut Found) -> Result<()> {
    let (cache, most) = match bed.device {
        Device::Cpu => {
            let known = measure::environment::largest_cache();
            (known.map_or(UNKNOWN_CACHE, |c| c.0 as usize), MOST_ON_CPU)
        }
        Device::Gpu(gpu) if bed.is_emulated() => (gpu.facts().cache_bytes, MOST_EMULATED),
        Device::Gpu(gpu) => (gpu.facts().cache_bytes, MOST_ON_GPU),
    };
    let largest = most.max(BEYOND * cache * usize::from(!bed.is_emulated()));
    let sizes = match bed.effort {
        Effort::Brief => vec![largest],
        Effort::Full => sizes(cache, largest),
    };
    let count = largest / 4;
    let kind = BufType::Float(DType::F32);
    let mut from = bed.device.alloc(kind, count)?;
    let noise = Filling::Uniform {
        stream: 1,
        amplitude: 1.0,
    };
    noise.run(bed.device, &mut from, 0, count)?;
    for &size in &sizes {
        for &plan in plans(bed, size == largest) {
            let op = ReadAll {
                count: size / 4,
                plan,
            };
            let mut out = bed.device.alloc(BufType::U32, op.results(bed.device))?;
            let timing = bed.time(&mut || op.run(bed.device, &from, &mut out))?;
            let how = match bed.device {
                Device::Cpu => of_size(size),
                Device::Gpu(_) => format!("{}, {plan}", of_size(size)),
            };
            let name = name(READ, size, size == largest);
            found.rate(name, op.cost().bytes(), "B/s", how, &timing);
        }
    }
    for &size in &sizes {
        let op = CopyAll { count: size / 4 };
        let mut to = bed.device.alloc(kind, op.count)?;
        let timing = bed.time(&mut || op.run(bed.device, &from, &mut to))?;
        let name = name(COPY, size, size == largest);
        let how = format!("{}, bytes in both directions", of_size(size));
        found.rate(name, op.cost().bytes(), "B/s", how, &timing);
    }
    drop::<Buf>(from);
    Ok(())
}

/// A quarter of the cache, all of it, and what is beyond, up to `largest`.
fn sizes(cache: usize, largest: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = [cache / 4, cache, BEYOND * cache]
        .into_iter()
        .filter(|&size| size >= 1 << 16 && size < largest)
        .map(|size| size / 4096 * 4096)
        .collect();
    sizes.push(largest);
    sizes
}

/// How a GPU is made to read: in every way at the size that counts.
fn plans(bed: &Bed<'_>, counts: bool) -> &'static [ReadPlan] {
    match (bed.device, bed.effort) {
        (Device::Gpu(_), _) if counts => &ReadPlan::ALL,
        _ => &[ReadPlan::PLENTY],
    }
}

/// The limit itself beyond the cache; its size too within.
fn name(limit: &str, size: usize, counts: bool) -> String {
    if counts {
        limit.to_owned()
    } else {
        format!("{limit}, {}", Bytes(size as u64))
    }
}

fn of_size(size: usize) -> String {
    format!("{} of f32", Bytes(size as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rise_from_within_the_cache_to_beyond() {
        let mib = |n: usize| n << 20;
        assert_eq!(
            sizes(mib(32), mib(512)),
            [mib(8), mib(32), mib(128), mib(512)]
        );
        assert_eq!(sizes(mib(400), mib(512)), [mib(100), mib(400), mib(512)]);
        assert_eq!(sizes(0, mib(1)), [mib(1)]);
    }
}
