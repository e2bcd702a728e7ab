//! A comparison as a document, `candlepower.comparison/1`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::record;
use super::super::study::Interval;
use super::figures::Found;
use super::side::Side;
use crate::stats;
use crate::stats::contrast::Between;
use crate::stats::verdict::Verdict as Told;

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.comparison/1")]
    V1,
}

/// One side against another, figure by figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Comparison {
    /// The version of this document.
    pub schema: Version,
    /// What is compared with.
    pub base: RunNote,
    /// What is compared.
    pub other: RunNote,
    /// A smaller difference of a time, a rate or an energy does not count.
    pub margin_percent: f64,
    /// A smaller difference of a perplexity does not count.
    pub quality_margin_percent: f64,
    /// A smaller difference of a task's score does not count.
    #[serde(default)]
    pub task_margin_percent: f64,
    /// What is allowed for from run to run where both sides have one: the standard deviation of a figure. Null where
    /// nothing can be, so that single runs of each side have ratios and no verdicts.
    pub run_noise_percent: Option<f64>,
    /// What differs between the two that may explain a difference.
    pub warnings: Vec<String>,
    /// What only one side measured.
    pub unmatched: Vec<Unmatched>,
    /// Every figure that both have.
    pub points: Vec<Point>,
}

/// A side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunNote {
    /// The path or paths as they were given.
    pub name: String,
    /// How many runs there are.
    pub runs: usize,
    /// When the first began, RFC 3339.
    pub started: Option<String>,
    /// The version of the program that made it.
    pub tool_version: Option<String>,
    /// The commit of that.
    pub git_commit: Option<String>,
    /// The device.
    pub device: Option<String>,
}

impl RunNote {
    pub(super) fn of(side: &Side) -> Self {
        let environment = side.runs.iter().find_map(|run| run.environment.as_ref());
        let subject = side.runs.iter().find_map(|run| run.records.first());
        let subject = subject.map(|record| &record.subject);
        Self {
            name: side.label.clone(),
            runs: side.runs.len(),
            started: environment.and_then(|e| e.started.clone()),
            tool_version: subject.map(|s| s.tool_version.clone()),
            git_commit: environment.and_then(|e| e.git_commit.clone()),
            device: subject.map(|s| s.device.clone()),
        }
    }
}

/// A point that only one side measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unmatched {
    /// The side that did.
    pub measured_by: Whose,
    /// The variant, and the cell, the text and its protocol, or the task.
    pub what: String,
    /// Why the other side has no figure, where it tried.
    pub reason: Option<String>,
}

/// A side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// What is compared with.
    Base,
    /// What is compared.
    Other,
}

/// What is compared of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The median time to first token.
    TtftMs,
    /// The median inter-token latency.
    ItlMs,
    /// Generated tokens of the whole batch per second of decode.
    DecodeTokensPerSecond,
    /// Decode energy per generated token, gross.
    JPerGeneratedToken,
    /// Perplexity, paired segment by segment.
    Perplexity,
    /// What a task is compared by, such as its accuracy, paired document by document.
    TaskScore,
}

impl Metric {
    /// Each of them.
    pub const ALL: [Self; 6] = [
        Self::TtftMs,
        Self::ItlMs,
        Self::DecodeTokensPerSecond,
        Self::JPerGeneratedToken,
        Self::Perplexity,
        Self::TaskScore,
    ];

    /// How a table names it, with its unit.
    pub const fn short(self) -> &'static str {
        match self {
            Self::TtftMs => "TTFT ms",
            Self::ItlMs => "ITL ms",
            Self::DecodeTokensPerSecond => "tokens/s",
            Self::JPerGeneratedToken => "J/token",
            Self::Perplexity => "perplexity",
            Self::TaskScore => "score",
        }
    }

    /// Whether more of it is better.
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::DecodeTokensPerSecond | Self::TaskScore)
    }

    /// Whether it is a time, or per time: what can be told in clock cycles.
    pub(super) const fn is_timed(self) -> bool {
        matches!(
            self,
            Self::TtftMs | Self::ItlMs | Self::DecodeTokensPerSecond
        )
    }
}

/// The shape of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Shape {
    /// Sequences side by side.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt_tokens: usize,
    /// Tokens generated for each.
    pub generated_tokens: usize,
    /// Tokens already in the cache before the prompt.
    pub depth: usize,
}

impl From<record::Cell> for Shape {
    fn from(cell: record::Cell) -> Self {
        Self {
            batch: cell.batch,
            prompt_tokens: cell.prompt,
            generated_tokens: cell.generate,
            depth: cell.depth,
        }
    }
}

impl From<Shape> for record::Cell {
    fn from(shape: Shape) -> Self {
        Self {
            batch: shape.batch,
            prompt: shape.prompt_tokens,
            generate: shape.generated_tokens,
            depth: shape.depth,
        }
    }
}

/// One figure of both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// The variant, with what tells it from others here.
    pub variant: String,
    /// The cell; null of a perplexity and of a task.
    pub cell: Option<Shape>,
    /// The text and its protocol, or the task and how many documents there are; null of a speed.
    pub text: Option<String>,
    /// What is compared.
    pub metric: Metric,
    /// The base's figure; the geometric mean of several runs.
    pub base: f64,
    /// The other's.
    pub other: f64,
    /// The other's over the base's.
    pub ratio: f64,
    /// Its 95 % interval; null where nothing was repeated.
    pub ratio_ci95: Option<Interval>,
    /// How likely so large a difference is by chance.
    pub p_value: Option<f64>,
    /// The same among all cells of the metric, by Holm's method.
    pub p_holm: Option<f64>,
    /// What differs from run to run, as it is in the interval: the standard deviation of a figure.
    pub run_noise_percent: Option<f64>,
    /// Where that is from.
    pub run_noise_from: Option<NoiseFrom>,
    /// The ratio in cycles of the SM clock, where that is on record.
    pub ratio_in_cycles: Option<f64>,
    /// What may be said.
    pub verdict: Verdict,
    /// Why no more may be said.
    pub reason: Option<String>,
}

/// Where the noise between runs is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoiseFrom {
    /// A side has several runs.
    Runs,
    /// How a run wandered from one quarter to the next.
    Wandering,
    /// Allowed for.
    Allowed,
}

impl From<Between> for NoiseFrom {
    fn from(source: Between) -> Self {
        match source {
            Between::Runs => Self::Runs,
            Between::Wandering => Self::Wandering,
            Between::Allowed => Self::Allowed,
        }
    }
}

/// What may be said of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The other takes less time.
    Faster,
    /// The other takes more time.
    Slower,
    /// The other is better in something that is no time.
    Better,
    /// The other is worse in something that is no time.
    Worse,
    /// No difference that counts.
    Equivalent,
    /// It may be either.
    Inconclusive,
}

impl Verdict {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Faster => "faster",
            Self::Slower => "slower",
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Equivalent => "equivalent",
            Self::Inconclusive => "inconclusive",
        }
    }

    /// All that may be said, worst first.
    pub(super) const ALL: [Self; 6] = [
        Self::Slower,
        Self::Worse,
        Self::Faster,
        Self::Better,
        Self::Inconclusive,
        Self::Equivalent,
    ];

    fn of(told: Told, metric: Metric) -> Self {
        let up = match told {
            Told::Equivalent => return Self::Equivalent,
            Told::Inconclusive => return Self::Inconclusive,
            Told::Higher => true,
            Told::Lower => false,
        };
        match (metric.is_timed(), up == metric.more_is_better()) {
            (true, true) => Self::Faster,
            (true, false) => Self::Slower,
            (false, true) => Self::Better,
            (false, false) => Self::Worse,
        }
    }
}

impl Point {
    /// A figure before it is judged, of a variant, cell and text to be filled in.
    pub(super) fn of(found: Found) -> Self {
        Self {
            variant: String::new(),
            cell: None,
            text: None,
            metric: found.metric,
            base: found.base,
            other: found.other,
            ratio: found.ln_ratio.exp(),
            ratio_ci95: found.interval.map(|ends| ends.map(f64::exp).into()),
            p_value: found.p_value,
            p_holm: None,
            run_noise_percent: found.spread.map(|spread| 100.0 * spread.between),
            run_noise_from: found.spread.map(|spread| spread.source.into()),
            ratio_in_cycles: found.ln_clocks.map(|clocks| {
                let cycles = if found.metric.more_is_better() {
                    found.ln_ratio - clocks
                } else {
                    found.ln_ratio + clocks
                };
                cycles.exp()
            }),
            verdict: Verdict::Inconclusive,
            reason: found.reason,
        }
    }

    /// Finds the verdict: in time first, then, where it says that there is a difference, in clock cycles, which must say
    /// the same (the idea is that of NVBench's comparison).
    pub(super) fn judge(&mut self, margin: f64) {
        let (Some(ends), Some(p)) = (self.ends(), self.p_holm) else {
            return;
        };
        let told = Told::of(ends, p, margin);
        self.verdict = Verdict::of(told, self.metric);
        match (told, self.ratio_in_cycles) {
            (Told::Lower | Told::Higher, Some(cycles)) if !self.is_so_in_cycles(told) => {
                self.verdict = Verdict::Inconclusive;
                self.reason = Some(format!(
                    "the clocks differ: {:+.1} % in time is {:+.1} % in cycles",
                    100.0 * (self.ratio - 1.0),
                    100.0 * (cycles - 1.0)
                ));
            }
            (Told::Inconclusive, _) if !ends.contains(0.0) => {
                self.reason = Some(format!("p = {p:.2} among all cells"));
            }
            _ => {}
        }
    }

    /// The interval of the logarithm of the ratio.
    fn ends(&self) -> Option<stats::Interval> {
        let ends = self.ratio_ci95?;
        Some(stats::Interval {
            low: ends.low.ln(),
            high: ends.high.ln(),
        })
    }

    /// Whether the difference, if any, is this one in clock cycles too; so it is where those are not on record.
    fn is_so_in_cycles(&self, told: Told) -> bool {
        let (Some(ends), Some(p), Some(cycles)) = (self.ends(), self.p_holm, self.ratio_in_cycles)
        else {
            return true;
        };
        let shift = cycles.ln() - self.ratio.ln();
        let in_cycles = stats::Interval {
            low: ends.low + shift,
            high: ends.high + shift,
        };
        Told::of(in_cycles, p, 0.0) == told
    }

    /// By what share the other is worse: the change as a table shows it, above zero whether times grew or rates fell.
    pub fn loss(&self) -> f64 {
        match self.metric.more_is_better() {
            true => 1.0 - self.ratio,
            false => self.ratio - 1.0,
        }
    }

    /// Whether the other is worse, not by chance, and by more than this share. The verdict has no part in it: what is
    /// equivalent within a margin may be worse by more than a smaller threshold, and the surer that is, the less it may
    /// pass.
    pub fn is_regression(&self, threshold: f64) -> bool {
        let (Some(ends), Some(p)) = (self.ends(), self.p_holm) else {
            return false;
        };
        let worse = match self.metric.more_is_better() {
            true => Told::Lower,
            false => Told::Higher,
        };
        Told::of(ends, p, 0.0) == worse && self.is_so_in_cycles(worse) && self.loss() > threshold
    }
}

impl Comparison {
    /// Every figure that is worse by more than this share.
    pub fn regressions(&self, threshold: f64) -> Vec<&Point> {
        let points = self.points.iter();
        points.filter(|p| p.is_regression(threshold)).collect()
    }
}
