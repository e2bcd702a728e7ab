//! `candlepower bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{CalibrationFlags, EngineFlags, ModelFlags, SpeedFlags};
use super::progress::{Progress, say, width};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::results::{Store, Study, table, waterfall};
use crate::scheme::Variant;
use crate::study::{self, Outcome, Plan, Switches};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower bench --batch 1,8 --prompt 512 --gen 128
  candlepower bench --model qwen3-0.6b --weights dummy --variants bf16,w4a16 --depth 0,2048
  candlepower bench --model model.gguf --variants bf16 --engine candle
  candlepower bench --model llama-3.1-8b --weights dummy --batch 1 --prompt 128 --ablate")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, a hub id such as org/name, or a preset
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse)
    /// [default: bf16; for a quantised checkpoint as-is]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    variants: Vec<Variant>,
    /// Keeps the records in this folder; a second run goes on where the first ended
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measures points anew that are on record
    #[arg(long)]
    force: bool,
    /// Measures every cell by ever more of the engine, from candle's models and launches one by one up to the whole, and shows
    /// what each part is worth
    #[arg(long, conflicts_with_all = ["engine", "graphs", "pdl", "fuse"])]
    ablate: bool,
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
    let models = vec![args.from.spec(&args.model)];
    let variants = if args.variants.is_empty() {
        study::default_variants(&models, &["bf16"], &["as-is"])?
    } else {
        args.variants.clone()
    };
    let plan = Plan {
        models,
        variants,
        cells: args.speed.cells(),
        quality: None,
        tasks: None,
        quantising: args.calibration.quantising(),
        act: args.device.dtype,
        kv: args.speed.kv.clone(),
        engine: args.speed.engine.kind(),
        switches: Switches {
            fuse: args.device.fuse(),
            ..args.speed.switches()
        },
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
    study::check_inputs(&plan)?
        .iter()
        .for_each(|note| say(note));
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::io(std::env::temp_dir(), "cannot create a folder in", e))?;
    let dir = args
        .out
        .clone()
        .unwrap_or_else(|| scratch.path().to_owned());
    let mut store = Store::open(&dir)?;
    environment.ceilings = args.speed.ceilings(&device, interrupt)?;
    let stages = if args.ablate {
        study::stages(&plan, &device)
    } else {
        vec![plan]
    };
    let mut progress = Progress::new();
    let mut outcome = Outcome::default();
    for stage in &stages {
        let ran = study::run(
            stage,
            &device,
            &environment,
            &mut store,
            interrupt,
            &mut progress,
        );
        progress.finish();
        outcome.add(ran?);
        if outcome.interrupted {
            break;
        }
    }
    let study = Study::from_records(environment, std::env::args().collect(), &outcome.records);
    if args.json {
        super::print_json(&study)?;
    } else {
        say("");
        super::print(&if args.ablate {
            let engines: Vec<String> = stages.iter().map(Plan::engine_name).collect();
            waterfall(&study, &engines, width())
        } else {
            table::speed(&study, width())
        });
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
