//! `candlepower export`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};

use crate::error::{Error, Result};
use crate::results::{card, export, latest, store, tasks};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower export candlepower-study --format model-card
  candlepower export candlepower-study/study.json --format csv > study.csv")]
pub(super) struct Args {
    /// The folder of a study, or a study.json
    run: PathBuf,
    /// What it becomes
    #[arg(long, value_enum)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The table of a model's card, in Markdown: a column for each variant, with the recovery against the base
    ModelCard,
    /// The tables of a study in Markdown
    Markdown,
    /// A row for each variant and cell
    Csv,
    /// A row for each variant, task and figure
    TasksCsv,
    /// study.json
    Json,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    // An interrupted run has no study.json yet.
    let unfinished = latest::is_there(&args.run) && !args.run.join(export::STUDY).is_file();
    let study = match unfinished {
        true => latest::assemble(&args.run, &store::read(&args.run)?)?,
        false => export::read(&args.run)?,
    };
    let text = match args.format {
        Format::ModelCard => card::model_card(&study),
        Format::Markdown => export::markdown(&study),
        Format::Json => export::json(&study)?,
        Format::Csv => text_of(export::csv(&study)?)?,
        Format::TasksCsv => match tasks::csv(&study)? {
            Some(rows) => text_of(rows)?,
            None => {
                return Err(Error::Config(format!(
                    "{} has no tasks: score some with study --tasks",
                    args.run.display()
                )));
            }
        },
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn text_of(csv: Vec<u8>) -> Result<String> {
    String::from_utf8(csv).map_err(|e| Error::Internal(format!("a table in CSV: {e}")))
}
