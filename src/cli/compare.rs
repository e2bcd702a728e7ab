//! `candlepower compare`.

use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::parse;
use super::progress::{say, width};
use crate::error::{Error, Result};
use crate::results::compare::{Comparison, History, Reference, Rules, Side, compare, repeated};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower compare before after --fail-on 2%
  candlepower compare before1,before2,before3 after1,after2,after3
  candlepower compare monday tuesday wednesday --previous --markdown")]
pub(super) struct Args {
    /// Folders of runs, the base first; with commas, several runs of the same thing, whose spread then counts. More than
    /// two make a history
    #[arg(required = true, num_args = 2.., value_name = "RUN", group = COMPARISON)]
    runs: Vec<String>,
    /// In a history, each run against the one before it instead of the first
    #[arg(long)]
    previous: bool,
    /// Prints Markdown instead of the table
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Prints JSON instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    rules: RuleFlags,
}

/// What makes a command compare, without which rules are of no use.
pub(super) const COMPARISON: &str = "comparison";

/// By what runs are judged.
#[derive(ClapArgs)]
#[command(next_help_heading = "Comparison")]
pub(super) struct RuleFlags {
    /// Exit code 4 if a figure is worse by more than this, and not by chance, also where a margin is larger; else 3 if
    /// a point of the base failed or is missing
    #[arg(long, value_name = "PERCENT", value_parser = parse::percent, requires = COMPARISON)]
    pub(super) fail_on: Option<f64>,
    /// Smaller differences of times, rates and energy do not count
    #[arg(long, default_value = "1%", value_name = "PERCENT", value_parser = parse::percent, requires = COMPARISON)]
    margin: f64,
    /// Smaller differences of perplexity do not count
    #[arg(long, default_value = "0.1%", value_name = "PERCENT", value_parser = parse::percent, requires = COMPARISON)]
    quality_margin: f64,
    /// Smaller differences of a task's score do not count
    #[arg(long, default_value = "1%", value_name = "PERCENT", value_parser = parse::percent, requires = COMPARISON)]
    task_margin: f64,
    /// What a figure differs by from run to run (standard deviation), where each side is a single run [default: 0.2% on a
    /// GPU; on a CPU unknown, so that single runs get no verdict]
    #[arg(long, value_name = "PERCENT", value_parser = parse::percent, requires = COMPARISON)]
    run_noise: Option<f64>,
    /// Compares runs of other hardware, power limit or number of threads all the same
    #[arg(long, requires = COMPARISON)]
    across_hardware: bool,
}

impl RuleFlags {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            margin: self.margin,
            quality_margin: self.quality_margin,
            task_margin: self.task_margin,
            run_noise: self.run_noise,
            across_hardware: self.across_hardware,
        }
    }

    /// The exit code after these comparisons, where points may have `failed`. With a threshold, says on standard error
    /// what is beyond it, and what could not be judged since the other side has no figure.
    pub(super) fn verdict(
        &self,
        comparisons: &[Comparison],
        asked: Asked,
        failed: bool,
    ) -> ExitCode {
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        if let Some(threshold) = self.fail_on {
            for comparison in comparisons {
                found.extend(comparison.failure(threshold));
                lost.extend(comparison.lost(asked == Asked::Anything));
            }
        }
        found.iter().chain(&lost).for_each(|line| say(line));
        if !found.is_empty() {
            ExitCode::from(super::REGRESSION)
        } else if failed || !lost.is_empty() {
            ExitCode::from(super::SOME_FAILED)
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// What the other side of a comparison was asked to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// What the base was, so that what is missing was lost.
    TheSame,
    /// What its own command line says, which may be less.
    Anything,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if let Some([first, again]) = repeated(args.runs.iter().flat_map(|list| Side::paths(list))) {
        return Err(Error::Usage(format!(
            "{} and {} are the same run, which is no comparison and has no spread: give each run once",
            first.display(),
            again.display()
        )));
    }
    let sides = args
        .runs
        .iter()
        .map(|list| Side::open(list))
        .collect::<Result<Vec<_>>>()?;
    let rules = args.rules.rules();
    if let [base, other] = sides.as_slice() {
        if args.previous {
            return Err(Error::Usage(
                "--previous is for a history: give more than two runs".into(),
            ));
        }
        let comparison = compare(base, other, &rules)?;
        if args.json {
            super::print_json(&comparison)?;
        } else if args.markdown {
            super::print(&comparison.markdown(args.rules.fail_on))?;
        } else {
            super::print(&comparison.table(width()))?;
        }
        return Ok(args.rules.verdict(&[comparison], Asked::TheSame, false));
    }
    let reference = match args.previous {
        true => Reference::Previous,
        false => Reference::First,
    };
    let history = History::of(&sides, reference, &rules)?;
    if args.json {
        super::print_json(&history)?;
    } else if args.markdown {
        super::print(&history.markdown())?;
    } else {
        super::print(&history.table(width()))?;
    }
    Ok(args
        .rules
        .verdict(&history.comparisons, Asked::TheSame, false))
}
