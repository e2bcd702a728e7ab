//! The memory pool that a GPU's allocations come from. Neither cudarc nor candle touches its settings.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUmemPool_attribute as Attribute};
use cudarc::driver::{CudaContext, DriverError, result};

use super::super::driver::Pool;

/// What the pool keeps: all. The driver's own default, nothing, gives unused memory back at every wait of the host, and
/// taking it anew is a call into the kernel in the middle of whatever is timed.
const RELEASE_THRESHOLD: u64 = u64::MAX;

/// The pool of the device of `context`.
fn pool_of(context: &CudaContext) -> Result<sys::CUmemoryPool, DriverError> {
    // SAFETY: the device is that of a context, which has it from the driver.
    unsafe { result::device::get_mem_pool(context.cu_device()) }
}

fn get(pool: sys::CUmemoryPool, attribute: Attribute) -> Result<u64, DriverError> {
    let mut value = 0_u64;
    // SAFETY: the pool is the device's; all attributes that are asked for here are cuuint64_t.
    unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }?;
    Ok(value)
}

fn set(pool: sys::CUmemoryPool, attribute: Attribute, mut value: u64) -> Result<(), DriverError> {
    // SAFETY: as above; the driver reads the value before the call returns.
    unsafe { result::mem_pool::set_attribute(pool, attribute, (&raw mut value).cast()) }
}

/// Makes the pool keep what it has once taken.
pub(super) fn keep(context: &Arc<CudaContext>) -> Result<(), DriverError> {
    let pool = pool_of(context)?;
    set(
        pool,
        Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
        RELEASE_THRESHOLD,
    )
}

/// What the pool holds.
pub(super) fn account(context: &Arc<CudaContext>) -> Result<Pool, DriverError> {
    let pool = pool_of(context)?;
    Ok(Pool {
        used: get(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        used_peak: get(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
        reserved: get(pool, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
        release_threshold: get(pool, Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD)?,
    })
}

/// Gives unused memory back and resets the peaks; nothing is under way.
pub(super) fn settle(context: &Arc<CudaContext>) -> Result<(), DriverError> {
    let pool = pool_of(context)?;
    // SAFETY: the pool is the device's.
    unsafe { result::mem_pool::trim_to(pool, 0) }?;
    // Zero is the one value that may be written: the peak then begins at what is in use.
    set(pool, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
    set(pool, Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH, 0)
}
