//! The memory of a GPU: allocations, copies from and to the host, and who keeps what while work is recorded.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Gpu;
use super::driver::{Driver, Mapped, Memory, Pool};
use crate::error::{Error, Result};

/// An allocation on a GPU.
pub struct GpuBytes {
    memory: Arc<dyn Memory>,
    capture: Arc<Capture>,
}

/// The memory that the graph in the making must keep; `None` while none is made.
#[derive(Default)]
pub(super) struct Capture(Mutex<Option<Kept>>);

/// Memory that work which was recorded uses.
pub(super) type Kept = Vec<Arc<dyn Memory>>;

impl Capture {
    pub(super) fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        // A panic elsewhere leaves the list as it was before or after one push.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, memory: &Arc<dyn Memory>) {
        if let Some(kept) = &mut *self.kept() {
            kept.push(Arc::clone(memory));
        }
    }
}

impl GpuBytes {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.memory.bytes()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for GpuBytes {
    /// Memory that is given back while a graph is recorded would become part of the graph, so the graph takes it over.
    fn drop(&mut self) {
        self.capture.keep(&self.memory);
    }
}

/// Words of the host's memory that kernels write while the host watches.
pub struct GpuMailbox {
    words: Arc<dyn Mapped>,
    // The same memory, as everything else that kernels use.
    bytes: GpuBytes,
}

impl GpuMailbox {
    /// All of them.
    pub fn words(&self) -> &[AtomicU64] {
        self.words.words()
    }
}

impl Gpu {
    /// Free and total memory in bytes; the free part is what all programs on the GPU have left, and what this one's pool
    /// keeps unused.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let ((free, total), pool) = (self.driver.memory()?, self.driver.pool()?);
        Ok((free + pool.reserved.saturating_sub(pool.used), total))
    }

    /// What the allocator holds.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn pool(&self) -> Result<Pool> {
        self.driver.pool()
    }

    /// Waits for all work, gives unused memory back to the device, and lets the pool's peak begin at what is used now.
    ///
    /// # Errors
    /// If the device fails, or a graph is being recorded.
    pub fn settle_pool(&self) -> Result<()> {
        self.not_recorded("an account of memory")?;
        self.driver.synchronize()?;
        self.driver.settle_pool()
    }

    /// Bytes in use on the device outside of the pool: context, modules, workspaces of libraries, other programs.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn outside(&self) -> Result<u64> {
        outside(&*self.driver)
    }

    /// The same as it was before anything was loaded; `None` if the driver did not answer.
    pub fn outside_at_open(&self) -> Option<u64> {
        self.outside_at_open
    }

    /// Allocates `bytes`, all zero.
    ///
    /// # Errors
    /// If the memory is not there, or a graph is being recorded.
    pub fn alloc(&self, bytes: usize) -> Result<GpuBytes> {
        self.not_recorded("an allocation")?;
        Ok(GpuBytes {
            memory: self.driver.alloc(bytes)?.into(),
            capture: Arc::clone(&self.capture),
        })
    }

    /// `words` words of the host's memory, all zero, for kernels to write.
    ///
    /// # Errors
    /// If the memory is not there, or a graph is being recorded.
    pub fn mailbox(&self, words: usize) -> Result<GpuMailbox> {
        self.not_recorded("an allocation")?;
        let words: Arc<dyn Mapped> = self.driver.alloc_mapped(words)?.into();
        Ok(GpuMailbox {
            bytes: GpuBytes {
                memory: words.clone(),
                capture: Arc::clone(&self.capture),
            },
            words,
        })
    }

    /// Copies `source` to `target`, from byte `offset` on.
    ///
    /// # Errors
    /// If it does not fit, the device fails, or a graph is being recorded.
    pub fn upload(&self, target: &mut GpuBytes, offset: usize, source: &[u8]) -> Result<()> {
        self.not_recorded("an upload")?;
        let to = self.part("upload", target, offset, source.len())?;
        if source.is_empty() {
            return Ok(());
        }
        // SAFETY: the bytes have just been found within the allocation.
        unsafe { self.driver.upload(to, source) }
    }

    /// Copies `source`, from byte `offset` on, to `target`, after all work before it is done.
    ///
    /// # Errors
    /// If there are fewer bytes, the device fails, now or in that work, or a graph is being recorded.
    pub fn download(&self, source: &GpuBytes, offset: usize, target: &mut [u8]) -> Result<()> {
        self.not_recorded("a download")?;
        let from = self.part("download", source, offset, target.len())?;
        if target.is_empty() {
            return self.driver.synchronize();
        }
        // SAFETY: the bytes have just been found within the allocation.
        unsafe { self.driver.download(from, target) }
    }

    /// Copies all of `source` to the start of `target`.
    ///
    /// # Errors
    /// If it does not fit, or the device fails.
    pub fn copy(&self, source: &GpuBytes, target: &mut GpuBytes) -> Result<()> {
        let bytes = source.len();
        let from = self.part("copy", source, 0, bytes)?;
        let to = self.part("copy", target, 0, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both have that many bytes, and two allocations do not overlap: one is borrowed mutably.
        unsafe { self.driver.copy(from, to, bytes) }
    }

    /// Where an allocation begins, for work that is about to be asked for. A graph that records this work keeps the
    /// memory.
    ///
    /// # Errors
    /// If it belongs to another device.
    pub(super) fn address(&self, bytes: &GpuBytes) -> Result<u64> {
        if !Arc::ptr_eq(&self.capture, &bytes.capture) {
            return Err(Error::Internal("a buffer of another device".into()));
        }
        self.capture.keep(&bytes.memory);
        Ok(bytes.memory.address())
    }

    /// Has the graph in the making, if there is one, keep this memory.
    pub(super) fn keep(&self, memory: &Kept) {
        memory.iter().for_each(|memory| self.capture.keep(memory));
    }

    /// As [`Gpu::address`], of a mailbox.
    ///
    /// # Errors
    /// If it belongs to another device.
    pub(super) fn mailbox_address(&self, mailbox: &GpuMailbox) -> Result<u64> {
        self.address(&mailbox.bytes)
    }

    /// Where byte `offset` lies, once `count` bytes are known to follow it.
    fn part(&self, doing: &str, bytes: &GpuBytes, offset: usize, count: usize) -> Result<u64> {
        let end = offset.checked_add(count);
        if end.is_none_or(|end| end > bytes.len()) {
            return Err(Error::Internal(format!(
                "{doing} of {count} bytes at {offset}: the buffer has {}",
                bytes.len()
            )));
        }
        Ok(self.address(bytes)? + offset as u64)
    }
}

/// What is in use beyond what the pool has taken.
pub(super) fn outside(driver: &dyn Driver) -> Result<u64> {
    let ((free, total), pool) = (driver.memory()?, driver.pool()?);
    Ok(total.saturating_sub(free).saturating_sub(pool.reserved))
}
