//! What NVML knows of a GPU, as rows for people.

use crate::measure::{GpuFacts, GpuSnapshot};
use crate::units::Bytes;

/// A row for every figure that the driver gives; a name never depends on the value.
pub(super) fn rows(facts: &GpuFacts, now: &GpuSnapshot) -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| (name.to_owned(), value)));
    };
    row("driver", facts.driver.clone());
    row("CUDA driver", facts.cuda_driver.clone());
    row("VBIOS", facts.vbios.clone());
    row("PCI bus", facts.pci_bus_id.clone());
    let link = facts.pcie_generation.zip(facts.pcie_width);
    row(
        "PCIe link",
        link.map(|(generation, lanes)| format!("generation {generation}, {lanes} lanes")),
    );
    row("MIG", facts.mig.map(on));
    row("ECC", facts.ecc.map(on));
    row("persistence", facts.persistence.map(on));
    let state = &now.state;
    row(
        "SM clock",
        clock(state.sm_clock_mhz, facts.max_sm_clock_mhz),
    );
    row(
        "memory clock",
        clock(state.memory_clock_mhz, facts.max_memory_clock_mhz),
    );
    row(
        "temperature",
        state.temperature_celsius.map(|t| format!("{t} °C")),
    );
    row(
        "throttled by",
        state.throttle.map(|throttle| {
            let names: Vec<&str> = throttle.names().collect();
            if names.is_empty() {
                "nothing".to_owned()
            } else {
                names.join(", ")
            }
        }),
    );
    row("power", now.power_instant.map(|watts| watts.to_string()));
    row(
        "mean power",
        now.power_average
            .map(|watts| format!("{watts} over the last second")),
    );
    row(
        "power limit",
        facts
            .power_limit
            .map(|limit| match facts.power_limit_default {
                Some(usual) if usual != limit => format!("{limit} (shipped with {usual})"),
                _ => limit.to_string(),
            }),
    );
    row(
        "energy",
        now.energy
            .map(|energy| format!("{energy} since the driver was loaded")),
    );
    row(
        "memory used",
        state
            .memory_used
            .map(|used| used_of(used, now.memory_total.or(facts.memory_total))),
    );
    row(
        "utilization",
        now.utilization_percent
            .map(|percent| format!("{percent} %")),
    );
    row(
        "processes",
        now.processes
            .as_ref()
            .map(|processes| processes.len().to_string()),
    );
    rows
}

fn on(state: bool) -> String {
    if state { "on" } else { "off" }.to_owned()
}

fn clock(now: Option<u32>, most: Option<u32>) -> Option<String> {
    let now = now?;
    Some(match most {
        Some(most) => format!("{now} MHz of {most}"),
        None => format!("{now} MHz"),
    })
}

fn used_of(used: Bytes, total: Option<Bytes>) -> String {
    match total {
        Some(total) => format!("{used} of {total}"),
        None => used.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::gpu::{GpuProcess, GpuState, Throttle};
    use crate::units::Watts;

    #[test]
    fn every_figure_has_a_row_of_its_own_and_what_is_not_known_has_none() {
        let facts = GpuFacts {
            driver: Some("580.82.07".into()),
            max_sm_clock_mhz: Some(1980),
            power_limit: Some(Watts(500.0)),
            power_limit_default: Some(Watts(700.0)),
            memory_total: Some(Bytes(141 << 30)),
            mig: Some(false),
            ..GpuFacts::default()
        };
        let now = GpuSnapshot {
            state: GpuState {
                sm_clock_mhz: Some(1755),
                memory_clock_mhz: Some(3201),
                temperature_celsius: Some(41),
                throttle: Some(Throttle::from_bits(0x005)),
                memory_used: Some(Bytes(3 << 30)),
            },
            power_instant: Some(Watts(120.5)),
            utilization_percent: Some(7),
            processes: Some(vec![GpuProcess {
                pid: 1,
                memory: None,
            }]),
            ..GpuSnapshot::default()
        };
        let rows = rows(&facts, &now);
        let rows: Vec<(&str, &str)> = rows
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            rows,
            [
                ("driver", "580.82.07"),
                ("MIG", "off"),
                ("SM clock", "1755 MHz of 1980"),
                ("memory clock", "3201 MHz"),
                ("temperature", "41 °C"),
                ("throttled by", "gpu_idle, sw_power_cap"),
                ("power", "120 W"),
                ("power limit", "500 W (shipped with 700 W)"),
                ("memory used", "3.00 GiB of 141 GiB"),
                ("utilization", "7 %"),
                ("processes", "1"),
            ]
        );
        assert!(super::rows(&GpuFacts::default(), &GpuSnapshot::default()).is_empty());
        let idle = GpuSnapshot {
            state: GpuState {
                throttle: Some(Throttle::default()),
                ..GpuState::default()
            },
            ..GpuSnapshot::default()
        };
        let rows = super::rows(&GpuFacts::default(), &idle);
        assert_eq!(rows, [("throttled by".to_owned(), "nothing".to_owned())]);
    }
}
