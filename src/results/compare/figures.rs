//! What of the records of one question is compared.

use super::super::quality;
use super::super::record::{
    Body, Cell, Energy, EnergyUse, Perplexity, QualityTask, Record, Speed, TaskAnswers,
};
use super::super::recovery::{Recoveries, Recovery, Scored};
use super::super::table::cell_title;
use super::document::Metric;
use crate::stats::contrast::{Contrast, Series, Spread};
use crate::stats::{Interval, Ratio, mean, paired_test};

/// A figure of both sides, before it is judged.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) metric: Metric,
    pub(super) base: f64,
    pub(super) other: f64,
    /// The logarithm of the other's over the base's.
    pub(super) ln_ratio: f64,
    pub(super) interval: Option<Interval>,
    pub(super) p_value: Option<f64>,
    pub(super) spread: Option<Spread>,
    /// The logarithm of the other's mean SM clock over the base's.
    pub(super) ln_clocks: Option<f64>,
    /// Why no more may be said.
    pub(super) reason: Option<String>,
}

/// The cell, the text and its protocol, or the task.
pub(super) fn matter(record: &Record) -> String {
    match &record.body {
        Body::Speed { cell, .. } => cell_title(*cell),
        Body::Task { task, outcome } => {
            let main = outcome.as_ref().ok().and_then(TaskAnswers::main);
            let measure = main.map_or_else(String::new, |figure| match figure.filter.as_str() {
                "none" => format!(" ({})", figure.metric),
                filter => format!(" ({},{filter})", figure.metric),
            });
            let shots = match task.shots {
                0 => String::new(),
                shots => format!(" · {shots}-shot"),
            };
            format!(
                "{}{measure} · {} documents{shots}",
                task.name, task.documents
            )
        }
        Body::Quality { task, .. } => {
            let stride = task
                .stride
                .map_or_else(String::new, |tokens| format!(" · stride {tokens}"));
            format!(
                "{} · protocol {} · context {}{stride}",
                task.text.name, task.protocol, task.context
            )
        }
    }
}

/// What a record asks, in words.
pub(super) fn question(record: &Record) -> String {
    format!("{}, {}", record.subject.variant, matter(record))
}

/// Every figure that both sides have.
pub(super) fn of(base: &[&Record], other: &[&Record], run_noise: Option<f64>) -> Vec<Found> {
    let (base_speeds, other_speeds) = (speeds(base), speeds(other));
    if base_speeds.is_empty() || other_speeds.is_empty() {
        let quality = perplexities(base, other).or_else(|| scores(base, other));
        return quality.into_iter().collect();
    }
    let ln_clocks = |metric: Metric| {
        let clock = clock_behind(metric)?;
        let clocks = mean_clock(&base_speeds, clock).zip(mean_clock(&other_speeds, clock));
        clocks.map(|(base, other)| (other / base).ln())
    };
    let timed = |metric: Metric| -> Option<Found> {
        let side = |speeds: &[(Cell, &Speed)]| -> Option<Vec<Series>> {
            speeds
                .iter()
                .map(|(cell, speed)| series(metric, *cell, speed))
                .collect()
        };
        let (base, other) = (side(&base_speeds)?, side(&other_speeds)?);
        let contrast = Contrast::of(&base, &other, run_noise)?;
        let figure = |runs: &[Series]| {
            let logs: Option<Vec<f64>> = runs.iter().map(|r| Some(r.figure()?.ln())).collect();
            mean(&logs?).map(f64::exp)
        };
        let single = base.len() == 1 && other.len() == 1;
        // What is so of every figure is said once, beside the table.
        let unspread = contrast.spread.is_none() && !(single && run_noise.is_none());
        let reason = unspread.then(|| match metric {
            Metric::JPerGeneratedToken => "energy has one window a run, so no spread".to_owned(),
            _ => "a single trial has no spread".to_owned(),
        });
        Some(Found {
            metric,
            base: figure(&base)?,
            other: figure(&other)?,
            ln_ratio: contrast.ln_ratio,
            interval: contrast.interval(),
            p_value: contrast.p_value(),
            spread: contrast.spread,
            ln_clocks: ln_clocks(metric),
            reason,
        })
    };
    Metric::ALL.into_iter().filter_map(timed).collect()
}

fn speeds<'a>(records: &[&'a Record]) -> Vec<(Cell, &'a Speed)> {
    let measured = records.iter().filter_map(|record| match &record.body {
        Body::Speed {
            cell,
            outcome: Ok(speed),
        } => Some((*cell, speed)),
        _ => None,
    });
    measured.collect()
}

/// What one run says of a figure; `None` if it says nothing.
fn series(metric: Metric, cell: Cell, speed: &Speed) -> Option<Series> {
    let trials = &speed.trials;
    match metric {
        Metric::TtftMs => {
            let first = trials.iter().map(|trial| vec![trial.ttft.millis()]);
            Some(Series::Samples(first.collect()))
        }
        Metric::ItlMs => {
            let decoded = trials.iter().filter(|trial| !trial.itl.is_empty());
            let gaps = decoded.map(|trial| trial.itl.iter().map(|gap| gap.millis()).collect());
            Some(Series::Samples(gaps.collect()))
        }
        Metric::DecodeTokensPerSecond => {
            let decoded = trials.iter().filter(|trial| !trial.itl.is_empty());
            let rates = decoded.map(|trial| Ratio {
                part: (cell.batch * trial.itl.len()) as f64,
                whole: trial.decode.0,
            });
            Some(Series::Ratios(rates.collect()))
        }
        Metric::JPerGeneratedToken => match &speed.energy {
            Energy::Measured(used) => {
                let joules = per_token(used).ok()?;
                Some(Series::Ratios(vec![Ratio {
                    part: joules,
                    whole: 1.0,
                }]))
            }
            Energy::Unavailable { .. } => None,
        },
        Metric::Perplexity | Metric::TaskScore => None,
    }
}

/// Joules per generated token as tables show them, or why there are none to compare.
fn per_token(used: &EnergyUse) -> Result<f64, String> {
    let joules = used.per_generated_token().filter(|joules| *joules > 0.0);
    let unknown = || "what a token drew, without pauses, is not known".to_owned();
    joules.ok_or_else(|| used.rejected.clone().unwrap_or_else(unknown))
}

/// Why energies that both sides measured are not compared; `None` where they are, or where a run has none.
pub(super) fn without_energy(base: &[&Record], other: &[&Record]) -> Option<String> {
    let what = question(base.first()?);
    let (base, other) = (energies(base)?, energies(other)?);
    let sides = [("the base", base), ("the other", other)];
    sides.into_iter().find_map(|(whose, runs)| {
        let why = runs.into_iter().find_map(|used| per_token(used).err())?;
        Some(format!(
            "{what}: J/token is left out, since {whose} has none: {why}"
        ))
    })
}

/// What each of these runs drew; `None` if one of them does not know, or there is none.
fn energies<'a>(records: &[&'a Record]) -> Option<Vec<&'a EnergyUse>> {
    let speeds = speeds(records).into_iter();
    let all: Vec<&EnergyUse> = speeds
        .map(|(_, speed)| match &speed.energy {
            Energy::Measured(used) => Some(&**used),
            Energy::Unavailable { .. } => None,
        })
        .collect::<Option<_>>()?;
    (!all.is_empty()).then_some(all)
}

/// A clock that a run has on record.
type Clock = fn(&EnergyUse) -> Option<f64>;

/// The clock of the work that a figure is a time of, or per time.
fn clock_behind(metric: Metric) -> Option<Clock> {
    let clock: Clock = match metric {
        Metric::TtftMs => EnergyUse::prefill_sm_clock,
        _ => EnergyUse::decode_sm_clock,
    };
    metric.is_timed().then_some(clock)
}

/// The mean SM clock of all runs, where each has it on record.
fn mean_clock(speeds: &[(Cell, &Speed)], clock: Clock) -> Option<f64> {
    let clocks: Option<Vec<f64>> = speeds
        .iter()
        .map(|(_, speed)| match &speed.energy {
            Energy::Measured(used) => clock(used),
            Energy::Unavailable { .. } => None,
        })
        .collect();
    mean(&clocks?)
}

/// The mean SM clock of all these records, where each has it.
pub(super) fn clock_of(records: &[&Record]) -> Option<f64> {
    mean_clock(&speeds(records), |used| {
        used.sm_clock_mhz.filter(|clock| *clock > 0.0)
    })
}

/// Perplexities, paired segment by segment. Runs of one side have the same losses but for the order of sums, so the first
/// of each is compared.
fn perplexities(base: &[&Record], other: &[&Record]) -> Option<Found> {
    let scored = |records: &[&Record]| records.iter().find_map(|record| perplexity(record));
    let (base, mut other) = (scored(base)?, scored(other)?);
    quality::compare(&base, &mut other);
    let same = base.segment_nll == other.segment_nll;
    let delta = other.delta_vs_base;
    let mut interval = delta.and_then(|d| d.ln_ratio_ci95).map(|ends| Interval {
        low: ends.low,
        high: ends.high,
    });
    let mut p_value = delta.and_then(|d| d.p_value);
    let mut reason = None;
    if same {
        // To the bit: a single segment has no interval, and needs none.
        (interval, p_value) = (Some(Interval::around(0.0, 0.0)), Some(1.0));
    } else if let Some(what) = quality::apart(&base, &other) {
        reason = Some(what.to_owned());
    } else if interval.is_none() {
        reason = Some("a single segment has no spread".to_owned());
    }
    Some(Found {
        metric: Metric::Perplexity,
        base: base.value,
        other: other.value,
        ln_ratio: (other.value / base.value).ln(),
        interval,
        p_value,
        spread: None,
        ln_clocks: None,
        reason,
    })
}

/// Scores of a task, paired document by document, those of the first run of each side.
fn scores(base: &[&Record], other: &[&Record]) -> Option<Found> {
    let (base, other) = (answers(base)?, answers(other)?);
    let found = paired(base, other)?;
    // A score that fell to zero is a loss of all of it, whose logarithm is no number but compares like one.
    let ratio = found.ratio?.max(0.0);
    // A ratio may be as low as zero, whose logarithm has no end.
    let interval = found
        .ratio_interval
        .map(|ends| ends.map(|ratio| ratio.max(0.0).ln()));
    let differences = || -> Option<Vec<Ratio>> {
        let pairs = base.main()?.values.iter().zip(&other.main()?.values);
        let difference = |(base, other): (&f64, &f64)| Ratio {
            part: other - base,
            whole: 1.0,
        };
        Some(pairs.map(difference).collect())
    };
    Some(Found {
        metric: Metric::TaskScore,
        base: found.base,
        other: found.value,
        ln_ratio: ratio.ln(),
        interval,
        p_value: found.p_value.or_else(|| paired_test(&differences()?)),
        spread: None,
        ln_clocks: None,
        reason: interval
            .is_none()
            .then(|| "a single document has no spread".to_owned()),
    })
}

/// Why a task that both sides scored has no figure here; `None` where it has, and of all that is no task.
pub(super) fn without(base: &[&Record], other: &[&Record]) -> Option<String> {
    let what = question(base.first()?);
    let (base, other) = (answers(base)?, answers(other)?);
    let why = match (base.main(), paired(base, other)) {
        (None, _) => "no figure of which more is better",
        (_, None) => "other documents in either",
        (_, Some(found)) if found.ratio.is_none() => "the base scores zero, so there is no ratio",
        _ => return None,
    };
    Some(format!("{what} is left out: {why}"))
}

fn answers<'a>(records: &[&'a Record]) -> Option<&'a TaskAnswers> {
    records.iter().find_map(|record| match &record.body {
        Body::Task { outcome, .. } => outcome.as_ref().ok(),
        _ => None,
    })
}

fn paired(base: &TaskAnswers, other: &TaskAnswers) -> Option<Recovery> {
    let of = |answers| {
        [Scored {
            name: "",
            groups: &[],
            answers,
        }]
    };
    Recoveries::new(&of(base), &of(other))?.tasks.pop()
}

fn perplexity(record: &Record) -> Option<super::super::study::Perplexity> {
    let (task, found): (&QualityTask, &Perplexity) = match &record.body {
        Body::Quality {
            task,
            outcome: Ok(found),
        } => (task, found),
        _ => return None,
    };
    quality::perplexity(task, found)
}
