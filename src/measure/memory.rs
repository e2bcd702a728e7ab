//! Memory of this process on the host.

use std::fs;
use std::io;

use crate::units::Bytes;

/// Host memory of this process. Both figures come from `/proc/self/status` and are absent where the system has no such
/// file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostMemory {
    /// Memory resident now (`VmRSS`), mapped files included.
    pub resident: Option<Bytes>,
    /// Most memory resident since the process began or the peak was reset (`VmHWM`).
    pub peak: Option<Bytes>,
}

impl HostMemory {
    /// As it stands now.
    pub fn now() -> Self {
        fs::read_to_string("/proc/self/status")
            .map(|status| Self::parse(&status))
            .unwrap_or_default()
    }

    /// Memory that the system could give now without swapping (`MemAvailable` of `proc_meminfo(5)`); absent where the
    /// system has no such file.
    pub fn available() -> Option<Bytes> {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(Bytes(kibibytes * 1024))
    }

    /// Reads the form described in `proc_pid_status(5)`.
    fn parse(status: &str) -> Self {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
            Some(Bytes(kibibytes * 1024))
        };
        Self {
            resident: field("VmRSS:"),
            peak: field("VmHWM:"),
        }
    }
}

/// Makes the peak of [`HostMemory`] start over, by the `5` of `proc_pid_clear_refs(5)`. The peak is the whole
/// process's.
///
/// # Errors
/// The system's word where it does not offer this, as some containers do not.
fn reset_peak() -> io::Result<()> {
    fs::write("/proc/self/clear_refs", "5")
}

/// Finds the most host memory that was resident between two moments. One at a time: the peak is the process's, and
/// starting a second meter cuts the first one's span short.
#[derive(Debug, Clone, Copy)]
pub struct PeakMeter {
    before: HostMemory,
    was_reset: bool,
}

/// The most host memory over a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peak {
    /// The peak, or a lower bound of it.
    pub bytes: Bytes,
    /// Whether it is the peak itself. It is a lower bound where the system could not reset the peak and an earlier one
    /// was higher.
    pub is_exact: bool,
}

impl PeakMeter {
    /// Starts a span.
    pub fn start() -> Self {
        let was_reset = reset_peak().is_ok();
        Self {
            before: HostMemory::now(),
            was_reset,
        }
    }

    /// The peak since the start; `None` where the system does not tell.
    pub fn peak(&self) -> Option<Peak> {
        self.peak_at(HostMemory::now())
    }

    fn peak_at(&self, after: HostMemory) -> Option<Peak> {
        if self.was_reset || after.peak? > self.before.peak? {
            return Some(Peak {
                bytes: after.peak?,
                is_exact: true,
            });
        }
        Some(Peak {
            bytes: self.before.resident?.max(after.resident?),
            is_exact: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_status_file_is_read_in_kibibytes() {
        let status =
            "Name:\tcandle\nVmPeak:\t 9000 kB\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nThreads:\t4\n";
        let memory = HostMemory::parse(status);
        assert_eq!(memory.resident, Some(Bytes(MIB)));
        assert_eq!(memory.peak, Some(Bytes(2 * MIB)));
        assert_eq!(
            HostMemory::parse("VmRSS:\tmany kB\n"),
            HostMemory::default()
        );
    }

    #[test]
    fn a_peak_is_exact_when_it_was_reset_or_has_risen() {
        let memory = |resident, peak| HostMemory {
            resident: Some(Bytes(resident)),
            peak: Some(Bytes(peak)),
        };
        let meter = |was_reset| PeakMeter {
            before: memory(10, 50),
            was_reset,
        };
        let peak = |bytes, is_exact| {
            Some(Peak {
                bytes: Bytes(bytes),
                is_exact,
            })
        };
        assert_eq!(meter(true).peak_at(memory(20, 30)), peak(30, true));
        assert_eq!(meter(false).peak_at(memory(20, 60)), peak(60, true));
        assert_eq!(meter(false).peak_at(memory(20, 50)), peak(20, false));
        assert_eq!(meter(true).peak_at(HostMemory::default()), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_of_this_process_covers_what_it_touches() {
        let meter = PeakMeter::start();
        let touched = std::hint::black_box(vec![1_u8; 64 * MIB as usize]);
        let peak = meter.peak().unwrap();
        drop(touched);
        assert!(peak.bytes >= Bytes(64 * MIB), "{peak:?}");
    }
}
