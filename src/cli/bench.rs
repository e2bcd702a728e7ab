//! `candlepower bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::against::{self, AgainstFlags};
use super::args::variants_help;
use super::compare::{Asked, RuleFlags};
use super::isolation;
use super::measure::{MeasureFlags, UsualVariants};
use super::progress::{Progress, say, width};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::results::compare::{Run, Side, compare, repeated};
use crate::results::{Store, Study, export, table, waterfall};
use crate::scheme::Variant;
use crate::study::{self, Outcome, Plan};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower bench --batch 1,8 --prompt 512 --gen 128
  candlepower bench --model qwen3-0.6b --weights dummy --variants bf16,w4a16 --depth 0,2048
  candlepower bench --against last-week --fail-on 2%
  candlepower bench --against-program ./candlepower-before --rounds 6 --fail-on 2%
  candlepower bench --model model.gguf --variants bf16 --engine candle
  candlepower bench --model llama-3.1-8b --weights dummy --batch 1 --prompt 128 --ablate")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, a hub id such as org/name, or a preset
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    #[arg(
        long,
        help = variants_help(" [default: bf16; for a quantised checkpoint as-is]"),
        value_delimiter = ',',
        value_name = "LIST"
    )]
    variants: Vec<Variant>,
    /// Keeps the records in this folder; a second run goes on where the first ended
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measures points anew that are on record
    #[arg(long, requires = "out")]
    force: bool,
    /// Adds to a run that was measured on another device, by another version, with another number of threads or under
    /// another power limit; each record says where it comes from
    #[arg(long, requires = "out")]
    mix: bool,
    /// Measures every cell by ever more of the engine, from candle's models and launches one by one up to the whole, and
    /// shows what each part is worth
    #[arg(long, conflicts_with_all = ["engine", "graphs", "pdl", "fuse", "persistent"])]
    ablate: bool,
    /// Prints JSON instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) measure: MeasureFlags,
    #[command(flatten)]
    against: AgainstFlags,
    #[command(flatten)]
    rules: RuleFlags,
}

/// What is measured of a model where no variants are named.
const USUAL: UsualVariants = UsualVariants {
    plain: &["bf16"],
    quantised: &["as-is"],
};

/// What is measured, one plan after another.
fn stages(args: &Args, plan: Plan, device: &Device) -> Vec<Plan> {
    match args.ablate {
        true => study::stages(&plan, device),
        false => vec![plan],
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let MeasureFlags {
        device: on,
        speed,
        isolation: workers,
        ..
    } = &args.measure;
    let models = std::slice::from_ref(&args.model);
    let plan = Plan {
        force: args.force,
        ..args.measure.plan(models, &args.variants, &USUAL)?
    };
    plan.check()?;
    if workers.is_worker() {
        let device = on.open_quietly()?;
        isolation::work(&stages(args, plan, &device), &device)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(program) = &args.against.against_program {
        let (rounds, out) = (args.against.rounds, args.out.as_deref());
        return against::run(program, rounds, out, args.json, &args.rules, interrupt);
    }
    if let Some(list) = &args.against.against
        && let Some([first, again]) = repeated(Side::paths(list).chain(args.out.as_deref()))
    {
        return Err(Error::Usage(format!(
            "--against {list}: {} and {} are the same run; give each run once, and another --out than --against",
            first.display(),
            again.display()
        )));
    }
    // What cannot be read is said before anything is measured.
    let baseline = args
        .against
        .against
        .as_deref()
        .map(Side::open)
        .transpose()?;
    let device = on.open()?;
    plan.check_device(&device)?;
    speed
        .without_energy(&device)
        .iter()
        .for_each(|note| say(note));
    let mut environment = study::environment(&device);
    // What cannot be opened is said before anything is measured.
    study::check_inputs(&plan)?
        .iter()
        .for_each(|note| say(note));
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::writing(std::env::temp_dir(), "cannot create a folder in", e))?;
    let dir = args
        .out
        .clone()
        .unwrap_or_else(|| scratch.path().to_owned());
    let mut store = Store::open(&dir)?;
    let command: Vec<String> = std::env::args().collect();
    if args.out.is_some() {
        let manifest = study::manifest(&plan, environment.clone(), command.clone())?;
        store.enter(manifest, args.mix)?;
    }
    environment.ceilings = speed.ceilings(&device, interrupt)?;
    if let Some(ceilings) = &environment.ceilings {
        store.note_ceilings(ceilings)?;
    }
    let stages = stages(args, plan, &device);
    let engines: Vec<String> = stages.iter().map(|s| s.engine_on(&device)).collect();
    let mut progress = Progress::new();
    let mut outcome = Outcome::default();
    let mut device = Some(device);
    for (number, stage) in stages.iter().enumerate() {
        let ran = study::run(
            stage,
            // A run lets go of its device.
            device.take().map_or_else(|| on.open_quietly(), Ok)?,
            &environment,
            &workers.of_plan(number)?,
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
    let study = Study::from_records(environment, command, &outcome.records);
    // The environment is in it, for whoever compares with this run.
    store.write(export::STUDY, export::json(&study)?.as_bytes())?;
    if args.json && baseline.is_none() {
        super::print_json(&study)?;
    } else if !args.json {
        say("");
        super::print(&if args.ablate {
            waterfall(&study, &engines, width())
        } else {
            table::speed(&study, width())
        })?;
    }
    if outcome.interrupted {
        say("interrupted");
        return Ok(ExitCode::from(Error::Interrupted.exit_code()));
    }
    let failed = outcome.failed;
    if let Some(baseline) = baseline {
        let own = Side::single(Run::made(&study, outcome.records));
        let comparison = compare(&baseline, &own, &args.rules.rules())?;
        if args.json {
            super::print_json(&comparison)?;
        } else {
            super::print(&format!("\n{}", comparison.table(width())))?;
        }
        return Ok(args
            .rules
            .verdict(&[comparison], Asked::Anything, failed > 0));
    }
    Ok(ExitCode::from(if failed > 0 {
        super::SOME_FAILED
    } else {
        0
    }))
}
