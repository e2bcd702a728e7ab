//! `candlepower study`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{WeightsFlag, first_given, variants_help};
use super::isolation;
use super::judge::{AxisFlag, GoalFlags};
use super::measure::{MeasureFlags, UsualVariants};
use super::parse;
use super::progress::{Progress, say, width};
use super::tasks::TaskFlags;
use super::text::TextFlags;
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::model::{Model, ModelSpec};
use crate::quality::tasks::Suite;
use crate::results::goal::Goal;
use crate::results::{Store, Study, export, table};
use crate::scheme::Variant;
use crate::study::{self, EngineKind, Plan, QualityPlan, TaskPlan};

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
    #[arg(
        long,
        help = variants_help(
            "; each model's first is its base [default: bf16,int8,w4a16; for a quantised checkpoint bf16,as-is]"
        ),
        value_delimiter = ',',
        value_name = "LIST"
    )]
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
    pub(super) measure: MeasureFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Tokens of a scored segment [default: 2048, of llama.cpp 512, or as many as every model takes; 256 with tiny]
    #[arg(long, value_name = "N", value_parser = parse::positive, help_heading = "Quality")]
    ppl_context: Option<usize>,
    /// Scores this many segments (of lm_eval, documents) from the start [default: all]
    #[arg(long, value_name = "N", value_parser = parse::positive, help_heading = "Quality")]
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

/// What is measured of a model where no variants are named.
const USUAL: UsualVariants = UsualVariants {
    plain: &["bf16", "int8", "w4a16"],
    quantised: &["bf16", "as-is"],
};

impl Args {
    /// What is measured, and a word on how the text is cut if that is not as usual.
    fn plan(&self) -> Result<(Plan, Option<String>)> {
        let speed = self.measure.plan(&self.model, &self.variants, &USUAL)?;
        let (quality, note) = self.quality(&speed)?.unzip();
        self.check_axis(&speed, quality.as_ref())?;
        let plan = Plan {
            quality,
            tasks: self.tasks()?,
            force: self.force,
            ..speed
        };
        Ok((plan, note.flatten()))
    }

    /// Why no text is scored.
    fn unscored(&self) -> Option<&'static str> {
        let own = self.measure.speed.engine.kind() == EngineKind::Candlepower;
        match self.measure.from.weights {
            _ if self.no_ppl => Some("--no-ppl leaves that out"),
            WeightsFlag::Dummy => Some("--weights dummy predicts nothing"),
            WeightsFlag::Stored if !own => {
                Some("--engine candle or candle-gguf has no logits to score")
            }
            WeightsFlag::Stored => None,
        }
    }

    /// The text that is scored, if any, and a word on how it is cut if that is not as usual.
    fn quality(&self, speed: &Plan) -> Result<Option<(QualityPlan, Option<String>)>> {
        if let Some(why) = self.unscored() {
            let own = [
                (self.ppl_context.is_some(), "--ppl-context"),
                (self.ppl_segments.is_some(), "--ppl-segments"),
            ];
            return match self.text.given().or_else(|| first_given(&own)) {
                Some(flag) => Err(Error::Usage(format!(
                    "{flag} is for perplexity, and {why}: leave one of the two out"
                ))),
                None => Ok(None),
            };
        }
        // What they take matters only where nobody says how long segments are.
        let asked: &[ModelSpec] = match self.ppl_context {
            Some(_) => &[],
            None => &speed.models,
        };
        let models = asked.iter().map(Model::open).collect::<Result<Vec<_>>>()?;
        let (protocol, note) = self
            .text
            .protocol(self.ppl_context, self.ppl_segments, &models);
        let base = match (self.no_kl, speed.variants.len() * speed.kv.len()) {
            (true, _) => {
                self.text.without_base("leave --no-kl out")?;
                None
            }
            (false, 1) => {
                self.text
                    .without_base("a single variant has nothing to be compared with")?;
                None
            }
            (false, _) => Some(self.text.base(Some(self.out.join("base-logits")))?),
        };
        let plan = QualityPlan {
            base,
            under_load: !self.no_load_check,
            ..self.text.plan(protocol)?
        };
        Ok(Some((plan, note)))
    }

    /// Refuses an axis without figures.
    fn check_axis(&self, speed: &Plan, quality: Option<&QualityPlan>) -> Result<()> {
        let compared = quality.is_some_and(|quality| quality.base.is_some());
        let wrong = match (self.quality_axis, self.unscored()) {
            (Some(AxisFlag::Kl), _) if !(compared && speed.models.len() == 1) => {
                "--quality-axis kl needs several variants of one model, scored on a text by candlepower's engine".into()
            }
            (Some(AxisFlag::Tasks), _) if self.tasks.is_empty() => {
                "--quality-axis tasks needs --tasks".into()
            }
            (Some(AxisFlag::Ppl), Some(why)) => {
                format!("--quality-axis ppl needs perplexity, and {why}")
            }
            _ => return Ok(()),
        };
        Err(Error::Usage(wrong))
    }

    /// The tasks that are scored, if any.
    fn tasks(&self) -> Result<Option<TaskPlan>> {
        if self.tasks.is_empty() {
            return Ok(None);
        }
        if self.measure.from.weights == WeightsFlag::Dummy {
            return Err(Error::Usage(
                "--tasks needs a model's own weights: those of --weights dummy answer nothing"
                    .into(),
            ));
        }
        Ok(Some(TaskPlan {
            under_load: !self.no_load_check,
            ..self.how.plan(Suite::find(&self.tasks)?)
        }))
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let MeasureFlags {
        device: on,
        speed,
        isolation: workers,
        ..
    } = &args.measure;
    let (plan, note) = args.plan()?;
    plan.check()?;
    if workers.is_worker() {
        isolation::work(&[plan], &on.open_quietly()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let isolation = workers.of_plan(0)?;
    let device = on.open()?;
    plan.check_device(&device)?;
    note.iter()
        .chain(&speed.without_energy(&device))
        .for_each(|note| say(note));
    let mut environment = study::environment(&device);
    // What cannot be opened leaves no folder behind.
    study::check_inputs(&plan)?
        .iter()
        .for_each(|note| say(note));
    let mut store = Store::open(&args.out)?;
    let command: Vec<String> = std::env::args().collect();
    let manifest = study::manifest(&plan, environment.clone(), command.clone())?;
    store.enter(manifest, args.mix)?;
    environment.ceilings = speed.ceilings(&device, interrupt)?;
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
