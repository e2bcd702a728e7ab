//! `candlepower report`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::judge::{AxisFlag, GoalFlags};
use super::progress::{say, width};
use crate::error::{Error, Result};
use crate::results::study::QualityAxis;
use crate::results::{Store, export, latest, table};

#[derive(ClapArgs)]
#[command(after_help = "Example:
  candlepower report candlepower-study")]
pub(super) struct Args {
    /// The folder of a study, finished or not
    run: PathBuf,
    /// What quality means on the Pareto front [default: as the study had it]
    #[arg(long, value_enum)]
    quality_axis: Option<AxisFlag>,
    #[command(flatten)]
    goal: GoalFlags,
    /// Prints study.json instead of the table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    // To open a store would make the folder.
    if !latest::is_there(&args.run) {
        return Err(Error::Config(format!(
            "{} is not the folder of a study: it has neither manifest.json nor study.json; give the --out of one",
            args.run.display()
        )));
    }
    let store = Store::open(&args.run)?;
    let study = latest::assemble(store.dir(), store.records())?;
    // How it was judged is in study.json, if that is of the same command: an interrupted run leaves an earlier one's.
    let old = export::read(store.dir()).ok();
    let old = old.filter(|old| old.command == study.command);
    let kept = match old.as_ref().map(|old| old.quality_axis) {
        Some(QualityAxis::KlDivergence) => Some(AxisFlag::Kl),
        Some(QualityAxis::TaskError) => Some(AxisFlag::Tasks),
        Some(QualityAxis::Perplexity | QualityAxis::BitsPerByte) | None => None,
    };
    let study = match args.quality_axis.or(kept) {
        Some(axis) => axis.apply(study)?,
        None => study,
    };
    let goal = old.map(|old| old.goal).unwrap_or_default();
    let study = args.goal.apply(study, &goal);
    export::write(&study, store.dir())?;
    if args.json {
        super::print_json(&study)?;
    } else {
        super::print(&table::study(&study, width()))?;
    }
    say(&format!(
        "written: {}",
        args.run.join("report.html").display()
    ));
    Ok(ExitCode::SUCCESS)
}
