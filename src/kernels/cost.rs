//! What an op must at least do, for rooflines.

use std::iter::Sum;
use std::ops::Add;

/// Traffic and arithmetic of an op, from its shapes alone: every byte counted once, as if caches were perfect for
/// activations and useless for weights.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes read from memory.
    pub read: f64,
    /// Bytes written to memory.
    pub written: f64,
    /// Floating-point or integer operations; a multiply-add is two.
    pub flops: f64,
}

impl Cost {
    /// Bytes in both directions.
    pub fn bytes(&self) -> f64 {
        self.read + self.written
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            read: self.read + other.read,
            written: self.written + other.written,
            flops: self.flops + other.flops,
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}
