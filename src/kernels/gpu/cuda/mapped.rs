//! Memory of the host that kernels write while the host reads it.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cudarc::driver::{CudaStream, sys};

use super::super::driver::{Mapped, Memory};
use crate::error::{Error, Result};

/// Pinned and mapped, so that a kernel's store goes straight to it.
struct MappedWords {
    start: NonNull<AtomicU64>,
    address: u64,
    words: usize,
    stream: Arc<CudaStream>,
}

// SAFETY: plain memory of the process that any thread may use; atomic words are shared.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

/// `words` zeros.
pub(super) fn alloc(stream: &Arc<CudaStream>, words: usize) -> Result<Box<dyn Mapped>> {
    let cannot = |e: &dyn std::fmt::Display| {
        Error::Device(format!(
            "cannot allocate {words} words of pinned memory on the host: {e}"
        ))
    };
    stream.context().bind_to_thread().map_err(|e| cannot(&e))?;
    // The driver refuses to allocate nothing.
    let bytes = words.max(1) * size_of::<u64>();
    let mut start: *mut c_void = std::ptr::null_mut();
    // SAFETY: the driver writes one pointer.
    unsafe { sys::cuMemHostAlloc(&raw mut start, bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP) }
        .result()
        .map_err(|e| cannot(&e))?;
    let start = NonNull::new(start.cast::<AtomicU64>())
        .ok_or_else(|| Error::Device("the driver gave no pinned memory".into()))?;
    // SAFETY: the allocation has this many bytes, and nothing else knows of it yet.
    unsafe { start.as_ptr().cast::<u8>().write_bytes(0, bytes) };
    let mut memory = MappedWords {
        start,
        address: 0,
        words,
        stream: Arc::clone(stream),
    };
    // SAFETY: the driver writes one address, of an allocation that is mapped.
    unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut memory.address, start.as_ptr().cast(), 0) }
        .result()
        .map_err(|e| cannot(&e))?;
    Ok(Box::new(memory))
}

impl Memory for MappedWords {
    fn address(&self) -> u64 {
        self.address
    }

    fn bytes(&self) -> usize {
        self.words * size_of::<u64>()
    }
}

impl Mapped for MappedWords {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: as many words lie there as long as `self` does; whoever writes one does so at once.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // Unlike memory of the pool, this is gone at once, so nothing in the stream may be about to write to it. What fails
        // here was told where it failed first.
        let _ = self.stream.synchronize();
        // SAFETY: allocated by the driver's own call, and freed once.
        let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
    }
}
