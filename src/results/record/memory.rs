//! The account of device memory.

use crate::units::Bytes;

/// Where the device memory went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Weights with scales and zeros.
    pub weights: Amount,
    /// The key-value cache.
    pub kv: Amount,
    /// Whatever else the program has asked for, at its high-water mark: activations, logits, workspaces of its own kernels.
    pub activations: Amount,
    /// Outside of the program's own pool: context, modules, workspaces of libraries, and on a GPU that is shared other
    /// programs. Predicted as what it was before anything was loaded. Not told apart on the CPU.
    pub other: Amount,
    /// In use on the device; on the CPU, what this process has resident. Predicted as the sum of the parts.
    pub total: Amount,
}

/// One line of the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Computed before the run.
    pub predicted: Option<Bytes>,
    /// Found after it.
    pub measured: Option<Bytes>,
}

impl Amount {
    /// What was measured, or else predicted.
    pub fn best(self) -> Option<Bytes> {
        self.measured.or(self.predicted)
    }

    /// Measured less predicted, in bytes.
    pub fn error(self) -> Option<i64> {
        Some(difference(self.measured?, self.predicted?))
    }
}

impl Memory {
    /// What is in use on the device beyond the sum of the parts, in bytes; negative where the parts claim more. `None`
    /// where the device does not tell or a part is not known, as on the CPU. Never spread over the parts.
    pub fn residual(&self) -> Option<i64> {
        let parts = [self.weights, self.kv, self.activations, self.other];
        let sum = parts
            .into_iter()
            .try_fold(0_u64, |sum, part| Some(sum.saturating_add(part.best()?.0)))?;
        Some(difference(self.total.measured?, Bytes(sum)))
    }
}

/// `a − b`, at the limit of the type where it does not fit.
fn difference(a: Bytes, b: Bytes) -> i64 {
    i64::try_from(i128::from(a.0) - i128::from(b.0)).unwrap_or(if a > b {
        i64::MAX
    } else {
        i64::MIN
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_residual_is_what_no_part_accounts_for() {
        let measured = |bytes| Amount {
            measured: Some(Bytes(bytes)),
            ..Amount::default()
        };
        let mut memory = Memory {
            weights: measured(100),
            kv: Amount {
                predicted: Some(Bytes(50)),
                measured: None,
            },
            activations: measured(10),
            other: measured(30),
            total: measured(230),
        };
        assert_eq!(memory.residual(), Some(40));
        memory.kv.measured = Some(Bytes(120));
        assert_eq!(memory.kv.error(), Some(70));
        assert_eq!(memory.residual(), Some(-30));
        memory.other = Amount::default();
        assert_eq!(memory.residual(), None);
    }

    #[test]
    fn differences_stop_at_the_ends_of_the_type() {
        assert_eq!(difference(Bytes(u64::MAX), Bytes(0)), i64::MAX);
        assert_eq!(difference(Bytes(0), Bytes(u64::MAX)), i64::MIN);
    }
}
