//! By what a study judges its variants: flags of `study` and `report`.

use clap::{Args, ValueEnum};

use super::parse;
use crate::error::Result;
use crate::results::Study;
use crate::results::goal::Goal;
use crate::results::study::QualityAxis;

/// What quality means on the Pareto front.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AxisFlag {
    /// Perplexity, or bits per byte where tokenizers differ
    Ppl,
    /// Divergence from the base
    Kl,
    /// Task error: 100 less the average of the tasks in percent
    Tasks,
}

impl AxisFlag {
    /// The study on this axis.
    pub(super) fn apply(self, study: Study) -> Result<Study> {
        match self {
            Self::Ppl => {
                let axis = study.text_axis();
                study.on_axis(axis)
            }
            Self::Tasks => study.on_axis(QualityAxis::TaskError),
            Self::Kl => study.on_axis(QualityAxis::KlDivergence),
        }
    }
}

/// What many tokens take at little loss.
#[derive(Args)]
#[command(next_help_heading = "Quality")]
pub(super) struct GoalFlags {
    /// Time and energy are told of variants that keep at least this much of the base's quality, in percent: of the average
    /// of the tasks, without tasks of its perplexity [default: 99]
    #[arg(long, value_name = "PERCENT", value_parser = parse::recovery)]
    at_recovery: Option<f64>,
    /// Time and energy are told for decoding this many tokens [default: 1000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    for_tokens: Option<u64>,
}

impl GoalFlags {
    /// The study with this goal; what is not given stays as `usual`.
    pub(super) fn apply(&self, study: Study, usual: &Goal) -> Study {
        study.with_goal(
            self.for_tokens.unwrap_or(usual.tokens),
            self.at_recovery.unwrap_or(usual.recovery_percent),
        )
    }
}
