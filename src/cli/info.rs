//! `candlepower info`.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::DeviceFlags;
use crate::error::Result;
use crate::measure::SystemClock;
use crate::model::presets;
use crate::study::{self, Ceiling};
use crate::units::{Bytes, three_digits};

#[derive(ClapArgs)]
#[command(after_help = "Example:
  candlepower info --json")]
pub(super) struct Args {
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Leaves the measured ceilings out
    #[arg(long)]
    no_ceilings: bool,
    #[command(flatten)]
    device: DeviceFlags,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let device = args.device.open()?;
    let environment = study::environment(&device);
    let ceilings = if args.no_ceilings {
        Vec::new()
    } else {
        study::ceilings(&device, &SystemClock::new())?
    };
    let gpu = study::gpu_facts(&device);
    let names: Vec<String> = presets()?.into_iter().map(|preset| preset.name).collect();
    if args.json {
        let ceilings: Vec<_> = ceilings
            .iter()
            .map(|c| json!({"name": c.name, "best": c.best, "median": c.median, "unit": c.unit, "how": c.how}))
            .collect();
        super::print_json(&json!({
            "environment": environment,
            "gpu": gpu.as_ref().map_or_else(|why| json!({"unavailable": why}), |facts| json!(facts)),
            "ceilings": ceilings,
            "presets": names,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let none = || "unknown".to_owned();
    let device_facts = &environment.device;
    let mut lines = vec![
        (
            "program",
            format!(
                "candlepower {} [{}]",
                environment.tool_version,
                environment.features.join(", ")
            ),
        ),
        (
            "commit",
            environment.git_commit.clone().unwrap_or_else(none),
        ),
        ("device", device_facts.name.clone().unwrap_or_else(none)),
        (
            "memory",
            device_facts
                .memory_bytes
                .map_or_else(none, |b| Bytes(b).to_string()),
        ),
        ("CPU", environment.cpu.model.clone().unwrap_or_else(none)),
        (
            "threads",
            environment.threads.map_or_else(none, |n| n.to_string()),
        ),
        ("system", environment.os.clone().unwrap_or_else(none)),
    ];
    match &gpu {
        Ok(facts) => lines.extend(
            facts
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        ),
        Err(why) => lines.push(("GPU sensors", format!("unavailable: {why}"))),
    }
    for (name, value) in lines {
        super::print(&format!("{name:<14} {value}\n"));
    }
    for ceiling in &ceilings {
        super::print(&format!("{:<14} {}\n", ceiling.name, shown(ceiling)));
    }
    super::print(&format!("{:<14} {}\n", "presets", names.join(", ")));
    Ok(ExitCode::SUCCESS)
}

fn shown(ceiling: &Ceiling) -> String {
    let (scale, unit) = if ceiling.unit == "B/s" {
        (1e9, "GB/s")
    } else {
        (1e12, "TFLOP/s")
    };
    let of = |x: f64| three_digits(x / scale);
    format!(
        "{} {unit} at best, {} in the median ({})",
        of(ceiling.best),
        of(ceiling.median),
        ceiling.how
    )
}
