//! The one place that asks NVML. The library is looked up at run time: a machine without it, without a driver or
//! without permission gets a reason, and every run goes on without power figures.

use std::fmt;
use std::sync::OnceLock;

use nvml_wrapper::enum_wrappers::device::{Clock as ClockDomain, TemperatureSensor};
use nvml_wrapper::enums::device::{SampleValue, UsedGpuMemory};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor};

use super::board::Board;
use super::gpu::{
    GpuFacts, GpuProcess, GpuSnapshot, GpuState, PowerReading, Throttle, ThrottleTime,
};
use super::unavailable::Unavailable;
use crate::units::{Bytes, Joules, Seconds, Watts};

/// Which GPU is meant. CUDA's ordinal is none of these: `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` change it, and
/// NVML sees neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuSelector {
    /// NVML's own index, in PCI bus order.
    Index(u32),
    /// The identity that CUDA reports too, as in `GPU-<uuid>` or `MIG-<uuid>`.
    Uuid(String),
    /// The place on the PCI bus, as in `0000:3B:00.0`.
    PciBusId(String),
}

impl GpuSelector {
    /// The GPU with this identity from CUDA (`cuDeviceGetUuid`).
    pub fn from_cuda_uuid(bytes: [u8; 16]) -> Self {
        let mut uuid = String::from("GPU");
        for (i, byte) in bytes.into_iter().enumerate() {
            if [0, 4, 6, 8, 10].contains(&i) {
                uuid.push('-');
            }
            uuid.push_str(&format!("{byte:02x}"));
        }
        Self::Uuid(uuid)
    }
}

impl fmt::Display for GpuSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "GPU {index}"),
            Self::Uuid(uuid) => f.write_str(uuid),
            Self::PciBusId(bus_id) => write!(f, "GPU at {bus_id}"),
        }
    }
}

/// A GPU that NVML knows.
#[derive(Debug)]
pub struct NvmlGpu {
    device: Device<'static>,
}

impl NvmlGpu {
    /// The GPU that `selector` names.
    ///
    /// # Errors
    /// Why NVML has no such GPU, or why there is no NVML.
    pub fn open(selector: &GpuSelector) -> Result<Self, Unavailable> {
        let nvml = library()?;
        let device = match selector {
            GpuSelector::Index(index) => nvml.device_by_index(*index),
            GpuSelector::Uuid(uuid) => nvml.device_by_uuid(uuid.as_str()),
            GpuSelector::PciBusId(bus_id) => nvml.device_by_pci_bus_id(bus_id.as_str()),
        };
        match device {
            Ok(device) => Ok(Self { device }),
            Err(error) => Err(Unavailable::because(format!("NVML: {selector}: {error}"))),
        }
    }

    /// Everything that can be asked now.
    pub fn snapshot(&self) -> GpuSnapshot {
        let power = self.power().unwrap_or_default();
        GpuSnapshot {
            state: self.state(),
            power_instant: power.instant,
            power_average: power.average,
            energy: power.energy,
            memory_total: self.device.memory_info().ok().map(|info| Bytes(info.total)),
            utilization_percent: self.device.utilization_rates().ok().map(|rates| rates.gpu),
            processes: self.processes(),
        }
    }
}

impl Board for NvmlGpu {
    fn facts(&self) -> GpuFacts {
        let (device, nvml) = (&self.device, self.device.nvml());
        GpuFacts {
            name: device.name().ok(),
            uuid: device.uuid().ok(),
            pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
            compute_capability: device
                .cuda_compute_capability()
                .ok()
                .map(|capability| (capability.major, capability.minor)),
            driver: nvml.sys_driver_version().ok(),
            cuda_driver: nvml.sys_cuda_driver_version().ok().map(cuda_version),
            vbios: device.vbios_version().ok(),
            memory_total: device.memory_info().ok().map(|info| Bytes(info.total)),
            power_limit: watts(device.enforced_power_limit()),
            power_limit_default: watts(device.power_management_limit_default()),
            max_sm_clock_mhz: device.max_clock_info(ClockDomain::SM).ok(),
            max_memory_clock_mhz: device.max_clock_info(ClockDomain::Memory).ok(),
            application_sm_clock_mhz: device.applications_clock(ClockDomain::SM).ok(),
            pcie_generation: device.current_pcie_link_gen().ok(),
            pcie_width: device.current_pcie_link_width().ok(),
            mig: device.mig_mode().ok().map(|mode| mode.current != 0),
            ecc: device
                .is_ecc_enabled()
                .ok()
                .map(|ecc| ecc.currently_enabled),
            persistence: device.is_in_persistent_mode().ok(),
        }
    }

    fn power(&self) -> Result<PowerReading, Unavailable> {
        const FIELDS: [FieldId; 3] = [
            FieldId(field_id::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION),
            FieldId(field_id::NVML_FI_DEV_POWER_INSTANT),
            FieldId(field_id::NVML_FI_DEV_POWER_AVERAGE),
        ];
        let answers = self
            .device
            .field_values_for(&FIELDS)
            .map_err(|error| Unavailable::because(format!("NVML: {error}")))?;
        // By position: the ids in the answers may be renumbered for the driver at hand.
        let mut milli = answers
            .into_iter()
            .map(|answer| answer.and_then(|sample| sample.value).ok().map(number));
        // A poll that comes too early for the sensor is answered with zero watts now and then.
        let mut next = || milli.next().flatten().filter(|&value| value > 0.0);
        Ok(PowerReading {
            energy: next().map(|mj| Joules(mj / 1e3)),
            instant: next().map(|mw| Watts(mw / 1e3)),
            average: next().map(|mw| Watts(mw / 1e3)),
        })
    }

    fn state(&self) -> GpuState {
        let device = &self.device;
        GpuState {
            sm_clock_mhz: device.clock_info(ClockDomain::SM).ok(),
            memory_clock_mhz: device.clock_info(ClockDomain::Memory).ok(),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            throttle: device
                .current_throttle_reasons()
                .ok()
                .map(|reasons| Throttle::from_bits(reasons.bits())),
            memory_used: device.memory_info().ok().map(|info| Bytes(info.used)),
        }
    }

    fn throttle_time(&self) -> ThrottleTime {
        const FIELDS: [FieldId; 3] = [
            FieldId(field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN),
            FieldId(field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN),
            FieldId(field_id::NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN),
        ];
        let Ok(answers) = self.device.field_values_for(&FIELDS) else {
            return ThrottleTime::default();
        };
        let mut times = answers.into_iter().map(|answer| {
            let value = answer.and_then(|sample| sample.value).ok().map(number)?;
            Some(Seconds(value / 1e9))
        });
        let mut next = || times.next().flatten();
        ThrottleTime {
            sw_thermal: next(),
            hw_thermal: next(),
            hw_power_brake: next(),
        }
    }

    fn processes(&self) -> Option<Vec<GpuProcess>> {
        let processes = self.device.running_compute_processes().ok()?;
        let plain = processes.into_iter().map(|process| GpuProcess {
            pid: process.pid,
            memory: match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(Bytes(bytes)),
                UsedGpuMemory::Unavailable => None,
            },
        });
        Some(plain.collect())
    }
}

/// How many GPUs NVML sees, whatever CUDA is allowed to see.
///
/// # Errors
/// Why there is no NVML.
pub fn device_count() -> Result<u32, Unavailable> {
    library()?.device_count().map_err(|error| explain(&error))
}

/// NVML, loaded on first use and kept until the process ends: a device borrows it, and lives in threads.
fn library() -> Result<&'static Nvml, Unavailable> {
    static LIBRARY: OnceLock<Result<Nvml, Unavailable>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| Nvml::init().map_err(|error| explain(&error)))
        .as_ref()
        .map_err(Clone::clone)
}

/// The reason in words that say what to do.
fn explain(error: &NvmlError) -> Unavailable {
    Unavailable::because(match error {
        NvmlError::LibloadingError(cause) => {
            format!("NVML is not installed, it comes with the NVIDIA driver ({cause})")
        }
        NvmlError::DriverNotLoaded => "NVML: the NVIDIA driver is not loaded".to_owned(),
        NvmlError::NoPermission => "NVML: no permission to talk to the NVIDIA driver".to_owned(),
        NvmlError::LibRmVersionMismatch => {
            "NVML: library and driver differ in version; reboot after a driver update".to_owned()
        }
        other => format!("NVML: {other}"),
    })
}

/// Milliwatts as watts; zero means that the board has no such figure.
fn watts(milliwatts: Result<u32, NvmlError>) -> Option<Watts> {
    match milliwatts {
        Ok(0) | Err(_) => None,
        Ok(milliwatts) => Some(Watts(f64::from(milliwatts) / 1e3)),
    }
}

fn number(value: SampleValue) -> f64 {
    match value {
        SampleValue::F64(value) => value,
        SampleValue::U32(value) => f64::from(value),
        SampleValue::U64(value) => value as f64,
        SampleValue::I64(value) => value as f64,
    }
}

/// `13000` as `13.0`.
fn cuda_version(version: i32) -> String {
    let (major, minor) = (
        cuda_driver_version_major(version),
        cuda_driver_version_minor(version),
    );
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cuda_uuid_becomes_the_name_that_nvml_looks_up() {
        let bytes = std::array::from_fn(|i| (i * 0x11) as u8);
        let selector = GpuSelector::from_cuda_uuid(bytes);
        let uuid = "GPU-00112233-4455-6677-8899-aabbccddeeff";
        assert_eq!(selector, GpuSelector::Uuid(uuid.to_owned()));
    }

    #[test]
    fn a_gpu_that_is_not_there_has_a_reason() {
        let nobody = GpuSelector::from_cuda_uuid([0; 16]);
        let reason = NvmlGpu::open(&nobody).unwrap_err().to_string();
        assert!(reason.starts_with("NVML"), "{reason}");
    }

    #[test]
    fn a_missing_library_and_a_missing_driver_are_told_apart() {
        assert!(
            explain(&NvmlError::DriverNotLoaded)
                .reason
                .contains("driver is not loaded")
        );
        let absent = Nvml::builder()
            .lib_path("no-such-library.so".as_ref())
            .init();
        let reason = explain(&absent.unwrap_err()).reason;
        assert!(reason.starts_with("NVML is not installed"), "{reason}");
    }

    #[test]
    fn versions_and_limits_are_read_as_nvml_packs_them() {
        assert_eq!(cuda_version(12_080), "12.8");
        assert_eq!(watts(Ok(700_000)), Some(Watts(700.0)));
        assert_eq!(watts(Ok(0)), None);
    }
}
