//! `candlepower export`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};

use crate::error::{Error, Result};
use crate::results::{card, export};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower export candlepower-study --format model-card
  candlepower export candlepower-study/study.json --format csv > study.csv")]
pub(super) struct Args {
    /// The folder of a finished study, or a study.json
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
    /// study.json
    Json,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let study = export::read(&args.run)?;
    let text = match args.format {
        Format::ModelCard => card::model_card(&study),
        Format::Markdown => export::markdown(&study),
        Format::Json => export::json(&study)?,
        Format::Csv => String::from_utf8(export::csv(&study)?)
            .map_err(|e| Error::Internal(format!("study.csv: {e}")))?,
    };
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}
