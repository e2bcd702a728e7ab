//! `candlepower bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{CalibrationFlags, EngineFlags, ModelFlags, SpeedFlags};
use super::progress::{Progress, say, width};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::results::{Store, Study, table};
use crate::scheme::Variant;
use crate::study::{self, Plan};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower bench --batch 1,8 --prompt 512 --gen 128
  candlepower bench --model qwen3-0.6b --weights dummy --variants bf16,w4a16 --depth 0,2048
  candlepower bench --model model.gguf --variants bf16 --engine candle")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, a hub id such as org/name, or a preset
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse)
    #[arg(
        long,
        default_value = "bf16",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    variants: Vec<Variant>,
    /// Keeps the records in this folder; a second run goes on where the first ended
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measures points anew that are on record
    #[arg(long)]
    force: bool,
    /// Prints JSON instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: ModelFlags,
    #[command(flatten)]
    calibration: CalibrationFlags,
    #[command(flatten)]
    device: EngineFlags,
    #[command(flatten)]
    speed: SpeedFlags,
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let plan = Plan {
        models: vec![args.from.spec(&args.model)],
        variants: args.variants.clone(),
        cells: args.speed.cells(),
        quality: None,
        quantising: args.calibration.quantising(),
        act: args.device.dtype,
        engine: args.speed.engine.kind(),
        graphs: args.speed.graphs(),
        chunk: args.device.chunk,
        rule: args.speed.rule(),
        warm_up: args.speed.warm_up(),
        energy_window: args.speed.energy_window,
        seed: args.speed.seed,
        force: args.force,
    };
    plan.check()?;
    let device = args.device.open()?;
    plan.check_device(&device)?;
    let mut environment = study::environment(&device);
    // What cannot be opened is said before anything is measured.
    study::check_inputs(&plan)?;
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::io(std::env::temp_dir(), "cannot create a folder in", e))?;
    let dir = args
        .out
        .clone()
        .unwrap_or_else(|| scratch.path().to_owned());
    let mut store = Store::open(&dir)?;
    environment.ceilings = args.speed.ceilings(&device, interrupt)?;
    let mut progress = Progress::new();
    let outcome = study::run(
        &plan,
        &device,
        &environment,
        &mut store,
        interrupt,
        &mut progress,
    );
    progress.finish();
    let outcome = outcome?;
    let study = Study::from_records(environment, std::env::args().collect(), &outcome.records);
    if args.json {
        super::print_json(&study)?;
    } else {
        say("");
        super::print(&table::speed(&study, width()));
    }
    if outcome.interrupted {
        say("interrupted");
        return Ok(ExitCode::from(Error::Interrupted.exit_code()));
    }
    Ok(ExitCode::from(if outcome.failed > 0 {
        super::SOME_FAILED
    } else {
        0
    }))
}
