//! `candlepower study`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{
    CalibrationFlags, EngineFlags, ModelFlags, SpeedFlags, TextFlags, WeightsFlag, parse_positive,
};
use super::isolation::{self, IsolationFlags};
use super::judge::{AxisFlag, GoalFlags};
use super::progress::{Progress, say, width};
use super::tasks::TaskFlags;
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::model::ModelSpec;
use crate::quality::tasks::Suite;
use crate::results::goal::Goal;
use crate::results::{Store, Study, export, table};
use crate::scheme::Variant;
use crate::study::{self, EngineKind, Plan, Switches, TaskPlan};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower study
  candlepower study --variants bf16,w4a16 --kv-cache auto,int8,fp8
  candlepower study --model DIR --variants bf16,int8,w4a16 --batch 1,4 --prompt 64 --gen 32 --text FILE --out OUT
  candlepower study --model DIR --variants bf16,int8,w4a16 --tasks arc_easy,piqa --limit 200 --quality-axis tasks
  candlepower study --model llama-3.1-8b --weights dummy --variants bf16,w8a8,w4a16 --batch 1-64*2 --no-ppl")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, a hub id such as org/name, or a preset; commas between several
    #[arg(
        long,
        default_value = "tiny",
        value_delimiter = ',',
        value_name = "MODEL"
    )]
    model: Vec<String>,
    /// as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse); each model's
    /// first is its base [default: bf16,int8,w4a16; for a quantised checkpoint bf16,as-is]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    variants: Vec<Variant>,
    /// Folder of the results; a second run with the same folder goes on where the first ended
    #[arg(long, default_value = "candlepower-study", value_name = "DIR")]
    out: PathBuf,
    /// Measures points anew that are on record
    #[arg(long)]
    force: bool,
    /// Adds to a run that was measured on another device, by another version, with another number of threads or under
    /// another power limit; each record says where it comes from
    #[arg(long)]
    mix: bool,
    /// Prints study.json instead of the table
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
    #[command(flatten)]
    pub(super) isolation: IsolationFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Tokens of a scored segment [default: 2048, of llama.cpp 512; 256 with tiny]
    #[arg(long, value_name = "N", help_heading = "Quality")]
    ppl_context: Option<usize>,
    /// Scores this many segments (of lm_eval, documents) from the start [default: all]
    #[arg(long, value_name = "N", value_parser = parse_positive, help_heading = "Quality")]
    ppl_segments: Option<usize>,
    /// Tasks to score as `eval` does, by name or file: their average and what is left of the base's
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "LIST",
        help_heading = "Tasks"
    )]
    tasks: Vec<String>,
    #[command(flatten)]
    how: TaskFlags,
    /// What quality means on the Pareto front [default: ppl; with --tasks and without perplexity, tasks]
    #[arg(long, value_enum, help_heading = "Quality")]
    quality_axis: Option<AxisFlag>,
    #[command(flatten)]
    goal: GoalFlags,
    /// Leaves out how far predictions are from the base's
    #[arg(long, help_heading = "Quality")]
    no_kl: bool,
    /// Leaves out whether losses and answers depend on what runs beside a sequence
    #[arg(long, help_heading = "Quality")]
    no_load_check: bool,
    /// Leaves perplexity out
    #[arg(long, help_heading = "Quality")]
    no_ppl: bool,
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        // Made-up weights predict nothing.
        let wanted = !self.no_ppl && self.from.weights != WeightsFlag::Dummy;
        let (context, segments) = (self.ppl_context, self.ppl_segments);
        let mut quality = self.text.plan(context, segments, &self.model[0])?;
        if self.no_kl {
            self.text.without_base("leave --no-kl out")?;
        } else {
            quality.base = Some(self.text.base(Some(self.out.join("base-logits")))?);
        }
        quality.under_load = !self.no_load_check;
        let models: Vec<ModelSpec> = self
            .model
            .iter()
            .map(|source| self.from.spec(source))
            .collect();
        let variants = if self.variants.is_empty() {
            study::default_variants(&models, &["bf16", "int8", "w4a16"], &["bf16", "as-is"])?
        } else {
            self.variants.clone()
        };
        let compared = wanted && !self.no_kl && self.speed.engine.kind() == EngineKind::Candlepower;
        let comparable = self.model.len() == 1 && variants.len() > 1;
        if self.quality_axis == Some(AxisFlag::Kl) && !(compared && comparable) {
            return Err(Error::Usage(
                "--quality-axis kl needs several variants of one model, scored on a text by candlepower's engine".into(),
            ));
        }
        if self.quality_axis == Some(AxisFlag::Tasks) && self.tasks.is_empty() {
            return Err(Error::Usage("--quality-axis tasks needs --tasks".into()));
        }
        if self.quality_axis == Some(AxisFlag::Ppl) && !wanted {
            return Err(Error::Usage(
                "--quality-axis ppl needs perplexity: leave --no-ppl and --weights dummy out"
                    .into(),
            ));
        }
        if !self.tasks.is_empty() && self.from.weights == WeightsFlag::Dummy {
            return Err(Error::Usage(
                "--tasks needs a model's own weights: those of --weights dummy answer nothing"
                    .into(),
            ));
        }
        let tasks = match self.tasks.is_empty() {
            true => None,
            false => Some(TaskPlan {
                under_load: !self.no_load_check,
                ..self.how.plan(Suite::find(&self.tasks)?)
            }),
        };
        Ok(Plan {
            models,
            quantising: self.calibration.quantising(&variants)?,
            variants,
            cells: self.speed.cells(),
            quality: wanted.then_some(quality),
            tasks,
            act: self.device.dtype,
            kv: self.speed.kv.clone(),
            engine: self.speed.engine.kind(),
            switches: Switches {
                fuse: self.device.fuse(),
                ..self.speed.switches()
            },
            chunk: self.device.chunk,
            rule: self.speed.rule(),
            turns: self.isolation.turns,
            warm_up: self.speed.warm_up(),
            energy: self.speed.energy(),
            seed: self.speed.seed,
            force: self.force,
        })
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let plan = args.plan()?;
    plan.check()?;
    if args.isolation.is_worker() {
        isolation::work(&[plan], &args.device.open_quietly()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let isolation = args.isolation.of_plan(0)?;
    let device = args.device.open()?;
    plan.check_device(&device)?;
    let mut environment = study::environment(&device);
    // What cannot be opened leaves no folder behind.
    study::check_inputs(&plan)?
        .iter()
        .for_each(|note| say(note));
    let mut store = Store::open(&args.out)?;
    let command: Vec<String> = std::env::args().collect();
    let manifest = study::manifest(&plan, environment.clone(), command.clone())?;
    store.enter(manifest, args.mix)?;
    environment.ceilings = args.speed.ceilings(&device, interrupt)?;
    if let Some(ceilings) = &environment.ceilings {
        store.note_ceilings(ceilings)?;
    }
    let mut progress = Progress::new();
    let outcome = study::run(
        &plan,
        device,
        &environment,
        &isolation,
        &mut store,
        interrupt,
        &mut progress,
    );
    progress.finish();
    let outcome = outcome?;
    let study = Study::from_records(environment, command, &outcome.records);
    if outcome.interrupted {
        say("interrupted: what was finished is on record, the same command goes on from there");
        return Ok(ExitCode::from(Error::Interrupted.exit_code()));
    }
    let study = match args.quality_axis {
        Some(axis) => axis.apply(study)?,
        None => study,
    };
    let study = args.goal.apply(study, &Goal::default());
    let written = export::write(&study, store.dir())?;
    if args.json {
        super::print_json(&study)?;
    } else {
        say("");
        super::print(&table::study(&study, width()))?;
    }
    say(&format!(
        "\nwritten: {} (beside it study.json, {}study.csv and records.jsonl)",
        args.out.join("report.html").display(),
        if written.len() > 3 { "tasks.csv, " } else { "" }
    ));
    Ok(ExitCode::from(if outcome.failed > 0 {
        super::SOME_FAILED
    } else {
        0
    }))
}
