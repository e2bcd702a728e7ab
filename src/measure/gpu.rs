//! What is known of a GPU: facts that stay, and its state at a moment. Plain data; [`super::nvml`] fills it.
//!
//! Every figure is optional: a driver, a permission or a MIG slice may withhold any of them.

use crate::units::{Bytes, Joules, Seconds, Watts};

/// What does not change while a program runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuFacts {
    /// Product name, as in `NVIDIA H200`.
    pub name: Option<String>,
    /// Identity that NVML and CUDA share, as in `GPU-<uuid>`.
    pub uuid: Option<String>,
    /// Place on the PCI bus, as in `00000000:3B:00.0`.
    pub pci_bus_id: Option<String>,
    /// CUDA compute capability, major and minor.
    pub compute_capability: Option<(i32, i32)>,
    /// Version of the kernel driver, as in `580.82.07`.
    pub driver: Option<String>,
    /// Newest CUDA version that the driver takes, as in `13.0`.
    pub cuda_driver: Option<String>,
    /// Version of the board's firmware.
    pub vbios: Option<String>,
    /// Memory on the board.
    pub memory_total: Option<Bytes>,
    /// Power limit in force, whoever set it.
    pub power_limit: Option<Watts>,
    /// Power limit that the board is shipped with.
    pub power_limit_default: Option<Watts>,
    /// Highest clock of the multiprocessors, in MHz.
    pub max_sm_clock_mhz: Option<u32>,
    /// Highest clock of the memory, in MHz.
    pub max_memory_clock_mhz: Option<u32>,
    /// Clock of the multiprocessors that applications are set to, in MHz; newer boards have no such setting.
    pub application_sm_clock_mhz: Option<u32>,
    /// Generation of the PCIe link in use.
    pub pcie_generation: Option<u32>,
    /// Lanes of the PCIe link in use.
    pub pcie_width: Option<u32>,
    /// Whether the board is split into MIG instances. Power and energy then are those of the whole board.
    pub mig: Option<bool>,
    /// Whether memory errors are corrected.
    pub ecc: Option<bool>,
    /// Whether the driver stays loaded between programs. Without it the energy counter may restart.
    pub persistence: Option<bool>,
}

/// What changes slowly: clocks, heat, throttling and memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuState {
    /// Clock of the multiprocessors, in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Clock of the memory, in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// What holds the clocks down.
    pub throttle: Option<Throttle>,
    /// Memory in use on the whole device, by every process and the driver.
    pub memory_used: Option<Bytes>,
}

/// Energy and power at one moment: what a sampler reads at every step, in one call to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PowerReading {
    /// Energy since the driver was loaded.
    pub energy: Option<Joules>,
    /// Power now.
    pub instant: Option<Watts>,
    /// Power over the last second.
    pub average: Option<Watts>,
}

/// For how long heat and the power supply have slowed the device since the driver was loaded, by its own counters (NVML
/// fields of clock event reasons, in nanoseconds). Unlike the mask of a moment they miss nothing between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ThrottleTime {
    /// The driver lowered the clocks because of heat.
    pub sw_thermal: Option<Seconds>,
    /// The board did.
    pub hw_thermal: Option<Seconds>,
    /// The power supply asked for it.
    pub hw_power_brake: Option<Seconds>,
}

impl ThrottleTime {
    /// What slowed the device between `before` and this, by the names of [`Throttle::names`].
    pub fn since(&self, before: &Self) -> Vec<&'static str> {
        let counters = [
            ("sw_thermal_slowdown", before.sw_thermal, self.sw_thermal),
            ("hw_thermal_slowdown", before.hw_thermal, self.hw_thermal),
            (
                "hw_power_brake_slowdown",
                before.hw_power_brake,
                self.hw_power_brake,
            ),
        ];
        let moved = |(_, before, after): &(&str, Option<Seconds>, Option<Seconds>)| {
            before.zip(*after).is_some_and(|(a, b)| b > a)
        };
        let moved = counters.into_iter().filter(moved);
        moved.map(|(name, _, _)| name).collect()
    }
}

/// Everything that can be asked at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GpuSnapshot {
    /// Clocks, heat, throttling and memory.
    pub state: GpuState,
    /// Power now (NVML field 186). On A100 and H100 the sensor looks only a quarter of the time (Yang, Adamek, Armour,
    /// "Part-time Power Measurements", SC24).
    pub power_instant: Option<Watts>,
    /// Power averaged over the last second (NVML field 185); A100 has none.
    pub power_average: Option<Watts>,
    /// Energy since the driver was loaded (NVML field 83), counted in millijoules.
    pub energy: Option<Joules>,
    /// Memory on the device.
    pub memory_total: Option<Bytes>,
    /// Percent of the last sixth to full second in which any kernel ran. It says nothing of how full the device was.
    pub utilization_percent: Option<u32>,
    /// Processes with a compute context on the device, this one too if it has one. Process ids are the host's, which
    /// inside a container may not be the ones seen there: look before making a context to learn of others.
    pub processes: Option<Vec<GpuProcess>>,
}

/// A process that uses the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its id on the host.
    pub pid: u32,
    /// The device memory it holds, where the driver tells.
    pub memory: Option<Bytes>,
}

/// How many of `processes` are none of `ours`. Where none of ours is among them, the ids are those that the host knows
/// processes by, which inside a container are others; as many of them as we have `contexts` are then ours, so ask while
/// all of these are there.
pub fn others(processes: &[GpuProcess], ours: &[u32], contexts: usize) -> usize {
    let others = processes.iter().filter(|p| !ours.contains(&p.pid)).count();
    if others == processes.len() {
        others.saturating_sub(contexts)
    } else {
        others
    }
}

/// Reasons that hold a GPU's clocks down, as the bit mask of NVML (`nvmlClocksEventReason*` in `nvml.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Throttle(u64);

/// Each reason's bit and the name that `nvidia-smi` prints.
const REASONS: [(u64, &str); 9] = [
    (0x001, "gpu_idle"),
    (0x002, "applications_clocks_setting"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
];

/// Too hot, or cut by the power supply: figures taken under these are not the device's own. A software power cap is not
/// among them, since a 700 W board meets it in every long prefill.
const FAULTS: u64 = 0x008 | 0x020 | 0x040 | 0x080;

impl Throttle {
    /// From the mask as NVML gives it.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The mask as NVML gives it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The names of the reasons, in the order of their bits; a bit without a name is left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        REASONS
            .into_iter()
            .filter(move |(bit, _)| self.0 & bit != 0)
            .map(|(_, name)| name)
    }

    /// The part of it that is heat and the power supply.
    #[must_use]
    pub const fn faults(self) -> Self {
        Self(self.0 & FAULTS)
    }

    /// Whether heat or the power supply slows the device, so that what is timed meanwhile is not valid.
    pub const fn is_fault(self) -> bool {
        self.0 & FAULTS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_bits_have_names_and_only_heat_and_supply_are_faults() {
        let capped = Throttle::from_bits(0x005);
        assert!(capped.names().eq(["gpu_idle", "sw_power_cap"]));
        assert!(!capped.is_fault());
        let hot = Throttle::from_bits(0x8000_0048);
        assert!(hot.names().eq(["hw_slowdown", "hw_thermal_slowdown"]));
        assert!(hot.is_fault());
        assert_eq!(Throttle::default().names().count(), 0);
    }

    #[test]
    fn only_the_counters_of_heat_and_supply_that_moved_are_named() {
        let time = |sw, hw| ThrottleTime {
            sw_thermal: Some(Seconds(sw)),
            hw_thermal: Some(Seconds(hw)),
            hw_power_brake: None,
        };
        let (before, after) = (time(1.0, 0.5), time(1.0, 0.6));
        assert_eq!(after.since(&before), ["hw_thermal_slowdown"]);
        assert!(before.since(&before).is_empty());
        // Counters that start over, with the driver, say nothing.
        assert!(before.since(&after).is_empty());
        assert!(after.since(&ThrottleTime::default()).is_empty());
    }

    #[test]
    fn others_leave_out_our_processes_whatever_ids_the_host_gives_them() {
        let processes = |pids: &[u32]| -> Vec<GpuProcess> {
            let process = |&pid| GpuProcess { pid, memory: None };
            pids.iter().map(process).collect()
        };
        assert_eq!(others(&processes(&[7, 8]), &[7], 1), 1);
        assert_eq!(others(&processes(&[7, 8]), &[7, 8], 2), 0);
        assert_eq!(others(&processes(&[31_007]), &[7], 1), 0);
        assert_eq!(others(&processes(&[31_007, 31_008]), &[7], 1), 1);
        assert_eq!(others(&processes(&[31_007, 31_008]), &[7, 8], 2), 0);
        assert_eq!(others(&[], &[7], 1), 0);
    }
}
