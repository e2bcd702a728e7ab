//! `candlepower info`: the device, with `--power` its power sensors, or with `--model` what of a model fits into its
//! memory.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{DeviceFlags, ModelFlags, variants_help};
use super::lines::entry;
use super::list::Numbers;
use super::parse;
use super::progress::width;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::model::{Model, WeightsChoice, presets};
use crate::results::environment::Ceiling;
use crate::results::info::{Gpu, Info};
use crate::scheme::{DType, KvFormat, Variant};
use crate::study::{self, Effort};
use crate::units::{Bytes, Seconds, three_digits};

/// Characters of the names that stand beside what is known.
const NAMES: usize = 14;

#[derive(ClapArgs)]
#[command(after_help = "Example:
  candlepower info --json
  candlepower info --power --device cuda
  candlepower info --model llama-3.1-8b --variants bf16,w4a16 --memory 80GiB --context 2048,8192")]
pub(super) struct Args {
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Leaves the measured ceilings out
    #[arg(long)]
    no_ceilings: bool,
    /// Tests the GPU's power sensors instead, in some 30 seconds: how often they renew themselves, over how long they
    /// average, what a query costs, and whether energy counter and integrated power agree
    #[arg(long, conflicts_with = "model")]
    power: bool,
    /// Keeps what the sensors read as CSV in this file
    #[arg(long, value_name = "FILE", requires = "power")]
    tape: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceFlags,
    #[command(flatten)]
    fit: FitFlags,
    #[command(flatten)]
    from: ModelFlags,
}

#[derive(ClapArgs)]
#[command(next_help_heading = "What fits")]
struct FitFlags {
    /// Says by calculation which batches and contexts of this model fit: tiny, a folder, a .gguf file, a hub id, or a
    /// preset
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    #[arg(
        long,
        help = variants_help(""),
        default_value = "bf16,int8,w4a16",
        value_delimiter = ',',
        value_name = "LIST",
        requires = "model"
    )]
    variants: Vec<Variant>,
    /// Memory to fit into, such as 80GiB [default: what the device has free]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "model")]
    memory: Option<Bytes>,
    /// Positions of each sequence, for which the largest batch is wanted
    #[arg(
        long,
        default_value = "512,2048,8192",
        value_name = "LIST",
        value_parser = Numbers::above_zero,
        requires = "model"
    )]
    context: Numbers,
    /// Batches, for which the longest context is wanted
    #[arg(
        long,
        default_value = "1,8,64",
        value_name = "LIST",
        value_parser = Numbers::above_zero,
        requires = "model"
    )]
    batch: Numbers,
    /// Type of activations [default: the device's]
    #[arg(long, value_name = "DTYPE", requires = "model")]
    dtype: Option<DType>,
    /// How the KV cache is held: auto (in the type of the activations), int8 or fp8
    #[arg(
        long = "kv-cache",
        default_value_t = KvFormat::Auto,
        value_name = "FORMAT",
        requires = "model"
    )]
    kv: KvFormat,
    /// Tokens of one step [default: the device's]
    #[arg(long, value_name = "N", value_parser = parse::positive, requires = "model")]
    chunk: Option<usize>,
}

/// A size with a unit: `80GiB`, `24GB`, `512MiB`.
fn parse_bytes(s: &str) -> Result<Bytes, String> {
    let units = [
        ("GiB", 1_u64 << 30),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
    ];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((s.strip_suffix(name)?, unit)))
        .ok_or("expected a size such as 80GiB or 24GB")?;
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("'{number}' is no number"))?;
    if !(number > 0.0 && number * (unit as f64) < 1e18) {
        return Err("expected a size above 0".into());
    }
    Ok(Bytes((number * unit as f64) as u64))
}

/// What of a model fits.
fn fit(args: &Args, device: &Device, name: &str) -> Result<ExitCode> {
    let mut spec = args.from.spec(name)?;
    // A preset has no weights, and needs none to be counted.
    if presets()?.iter().any(|preset| preset.name == name) {
        spec.weights = WeightsChoice::Dummy { seed: 0 };
    }
    let found = study::capacity(&study::Question {
        model: &Model::open(&spec)?,
        variants: &args.fit.variants,
        act: args.fit.dtype,
        kv: args.fit.kv,
        device,
        memory: args.fit.memory,
        chunk: args.fit.chunk,
        contexts: &args.fit.context.0,
        batches: &args.fit.batch.0,
    })?;
    if args.json {
        super::print_json(&found)?;
    } else {
        super::print(&found.table(width()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the power sensors are worth.
fn power(args: &Args, device: &Device, interrupt: &Interrupt) -> Result<ExitCode> {
    let (card, tape) = study::power_self_test(device, interrupt)?;
    if let Some(file) = &args.tape {
        std::fs::write(file, tape.to_csv()).map_err(|e| Error::writing(file, "cannot write", e))?;
    }
    if args.json {
        super::print_json(&card)?;
    } else {
        for (name, value) in card.rows() {
            super::print(&entry(&name, NAMES, &value, width()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    if let (None, Some(flag)) = (&args.fit.model, args.from.given()) {
        return Err(Error::Usage(format!(
            "{flag} is for a model: name it with --model"
        )));
    }
    let device = args.device.open()?;
    if args.power {
        return power(args, &device, interrupt);
    }
    if let Some(model) = &args.fit.model {
        return fit(args, &device, model);
    }
    let environment = study::environment(&device);
    let ceilings = match args.no_ceilings {
        true => None,
        false => Some(study::ceilings(&device, Effort::Full, interrupt)?),
    };
    let gpu = study::gpu_facts(&device);
    let names: Vec<String> = presets()?.into_iter().map(|preset| preset.name).collect();
    let info = Info::new(environment, gpu, ceilings, names);
    match args.json {
        true => super::print_json(&info)?,
        false => super::print(&shown(&info, width()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything in lines of a name and what there is to say of it.
fn shown(info: &Info, width: usize) -> String {
    let environment = &info.environment;
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
    match &info.gpu {
        Gpu::Known(facts) => lines.extend(
            facts
                .iter()
                .map(|(name, value)| (name.as_str(), value.clone())),
        ),
        Gpu::Unknown { unavailable } => {
            lines.push(("GPU sensors", format!("unavailable: {unavailable}")));
        }
    }
    let left_out = info.ceilings_left_out.iter();
    let ceilings: Vec<(&str, String)> = info
        .ceilings
        .iter()
        .map(|ceiling| (ceiling.name.as_str(), figures(ceiling)))
        .chain(left_out.map(|gone| (gone.name.as_str(), format!("left out: {}", gone.reason))))
        .collect();
    let widest = ceilings.iter().map(|(name, _)| name.chars().count()).max();
    let widest = widest.unwrap_or(0).max(NAMES);
    let lines = lines
        .iter()
        .map(|(name, said)| entry(name, NAMES, said, width));
    let ceilings = ceilings
        .iter()
        .map(|(name, said)| entry(name, widest, said, width));
    let presets = entry("presets", NAMES, &info.presets.join(", "), width);
    lines.chain(ceilings).chain([presets]).collect()
}

fn figures(ceiling: &Ceiling) -> String {
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
