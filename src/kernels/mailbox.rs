//! Words of the host's memory that a device writes while the host watches: how tokens arrive without anyone waiting for
//! the device.

use std::sync::atomic::{AtomicU64, Ordering};

use super::device::Device;
use super::gpu::GpuMailbox;
use crate::error::Result;

/// The words. Each holds a token below and, above, one more than the number of the step that it belongs to.
pub struct Mailbox(Memory);

enum Memory {
    Host(Box<[AtomicU64]>),
    Gpu(GpuMailbox),
}

impl Device {
    /// `words` words, all zero, that ops on this device can write.
    ///
    /// # Errors
    /// If the memory is not there.
    pub fn mailbox(&self, words: usize) -> Result<Mailbox> {
        let memory = match self {
            Self::Cpu => Memory::Host((0..words).map(|_| AtomicU64::new(0)).collect()),
            Self::Gpu(gpu) => Memory::Gpu(gpu.mailbox(words)?),
        };
        Ok(Mailbox(memory))
    }
}

impl Mailbox {
    /// All of it.
    pub fn words(&self) -> &[AtomicU64] {
        match &self.0 {
            Memory::Host(words) => words,
            Memory::Gpu(mailbox) => mailbox.words(),
        }
    }

    /// How many lines of `width` words it has.
    pub fn lines(&self, width: usize) -> usize {
        self.words().len().checked_div(width).unwrap_or(0)
    }

    /// The token in word `index`, once the device has put the one of `step` there.
    pub fn token(&self, index: usize, step: u32) -> Option<u32> {
        let word = self.words()[index].load(Ordering::Acquire);
        ((word >> 32) as u32 == step.wrapping_add(1)).then_some(word as u32)
    }

    /// What a device does, for the one that is the host itself.
    pub(super) fn write(&self, index: usize, step: u32, token: u32) {
        let word = u64::from(step.wrapping_add(1)) << 32 | u64::from(token);
        self.words()[index].store(word, Ordering::Release);
    }

    /// The words on the GPU.
    pub(super) fn gpu(&self) -> Result<&GpuMailbox> {
        match &self.0 {
            Memory::Gpu(mailbox) => Ok(mailbox),
            Memory::Host(_) => Err(crate::error::Error::Internal(
                "expected a mailbox of the GPU".into(),
            )),
        }
    }
}
