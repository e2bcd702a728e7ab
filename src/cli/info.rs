//! `candlepower info`.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::DeviceFlags;
use crate::error::Result;
use crate::measure::Interrupt;
use crate::model::presets;
use crate::results::environment::{Ceiling, Ceilings};
use crate::study::{self, Effort};
use crate::units::{Bytes, Seconds, three_digits};

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

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let device = args.device.open()?;
    let mut environment = study::environment(&device);
    let ceilings = if args.no_ceilings {
        Ceilings::default()
    } else {
        study::ceilings(&device, Effort::Full, interrupt)?
    };
    let gpu = study::gpu_facts(&device);
    let names: Vec<String> = presets()?.into_iter().map(|preset| preset.name).collect();
    if args.json {
        let (measured, left_out) = (ceilings.measured.clone(), ceilings.left_out.clone());
        environment.ceilings = (!args.no_ceilings).then_some(ceilings);
        super::print_json(&json!({
            "environment": environment,
            "gpu": gpu.as_ref().map_or_else(|why| json!({"unavailable": why}), |facts| json!(facts)),
            "ceilings": measured,
            "ceilings_left_out": left_out,
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
    let left_out = ceilings.left_out.iter();
    let rows: Vec<(&str, String)> = ceilings
        .measured
        .iter()
        .map(|ceiling| (ceiling.name.as_str(), shown(ceiling)))
        .chain(left_out.map(|gone| (gone.name.as_str(), format!("left out: {}", gone.reason))))
        .collect();
    let widest = rows.iter().map(|(name, _)| name.chars().count()).max();
    for (name, text) in &rows {
        super::print(&format!(
            "{name:<width$} {text}\n",
            width = widest.unwrap_or(0).max(14)
        ));
    }
    super::print(&format!("{:<14} {}\n", "presets", names.join(", ")));
    Ok(ExitCode::SUCCESS)
}

fn shown(ceiling: &Ceiling) -> String {
    let of = |x: f64| match ceiling.unit.as_str() {
        "B/s" => format!("{} GB/s", three_digits(x / 1e9)),
        "FLOP/s" => format!("{} TFLOP/s", three_digits(x / 1e12)),
        _ => Seconds(x).to_string(),
    };
    format!(
        "{} at best, {} in the median ({})",
        of(ceiling.best),
        of(ceiling.median),
        ceiling.how
    )
}
