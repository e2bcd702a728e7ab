//! `candlepower report`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::judge::{AxisFlag, GoalFlags};
use super::progress::{say, width};
use crate::error::Result;
use crate::results::study::QualityAxis;
use crate::results::{Store, Study, export, table};

#[derive(ClapArgs)]
#[command(after_help = "Example:
  candlepower report candlepower-study")]
pub(super) struct Args {
    /// The folder of a finished study
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
    let old = export::read(&args.run)?;
    let store = Store::open(&args.run)?;
    // Environment and command are those of the run; the figures come from its records.
    let study = Study::from_records(old.environment, old.command, store.records());
    let kept = match old.quality_axis {
        QualityAxis::KlDivergence => Some(AxisFlag::Kl),
        QualityAxis::TaskError => Some(AxisFlag::Tasks),
        QualityAxis::Perplexity | QualityAxis::BitsPerByte => None,
    };
    let study = match args.quality_axis.or(kept) {
        Some(axis) => axis.apply(study)?,
        None => study,
    };
    let study = args.goal.apply(study, &old.goal);
    export::write(&study, store.dir())?;
    if args.json {
        super::print_json(&study)?;
    } else {
        super::print(&table::study(&study, width()));
    }
    say(&format!(
        "written: {}",
        args.run.join("report.html").display()
    ));
    Ok(ExitCode::SUCCESS)
}
