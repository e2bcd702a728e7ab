//! From the samples of a cell to its figures.

use super::record;
use super::roofline::{Cost, Limits};
use super::study::{
    DeviceFigures, Histogram, Interval, SeriesKind, Speed, Stats, Steadiness, Throttling,
    Utilisation,
};
use crate::stats::{self, Ratio, Summary, steady};
use crate::units::Seconds;

/// Bins of an inter-token histogram.
const BINS: usize = 48;

/// A cell without numbers.
pub(super) fn failed(cell: record::Cell, reason: &str) -> Speed {
    Speed {
        failed: true,
        reason: Some(reason.to_owned()),
        ..empty(cell)
    }
}

/// The figures of a measured cell; the comparison to a base and the front come later.
pub(super) fn measured(cell: record::Cell, speed: &record::Speed) -> Speed {
    let trials = &speed.trials;
    let each = |figure: fn(&record::Trial) -> Option<Seconds>| {
        let samples: Vec<f64> = trials
            .iter()
            .filter_map(figure)
            .map(Seconds::millis)
            .collect();
        Summary::of(&samples).map(Stats::from)
    };
    let gaps: Vec<Vec<f64>> = trials
        .iter()
        .map(|trial| trial.itl.iter().map(|gap| gap.millis()).collect())
        .collect();
    let steadiness = |figure: fn(&record::Trial) -> f64| {
        let series: Vec<f64> = trials.iter().map(figure).collect();
        steady::classify(&series).map(Steadiness::from)
    };
    let prefill = rates(trials, |trial| (cell.batch * cell.prompt, trial.prefill));
    let decode = rates(trials, |trial| (cell.batch * trial.itl.len(), trial.decode));
    Speed {
        trials: trials.len(),
        warmup_trials: speed.warmup_trials,
        stop_reason: speed.stop_reason.clone(),
        ttft_ms: each(|trial| (trial.ttft.0 > 0.0).then_some(trial.ttft)),
        itl_ms: Summary::of_trials(&gaps).map(Stats::from),
        tpot_ms: each(|trial| {
            let steps = trial.itl.len();
            (steps > 0).then(|| Seconds(trial.decode.0 / steps as f64))
        }),
        e2e_ms: each(|trial| Some(trial.e2e)),
        ttft_steadiness: steadiness(|trial| trial.ttft.0),
        itl_steadiness: steadiness(|trial| trial.decode.0 / trial.itl.len().max(1) as f64),
        itl_histogram: histogram(gaps.concat()),
        prefill_tokens_per_second: stats::rate(&prefill),
        prefill_tokens_per_second_ci95: stats::rate_interval(&prefill).map(Interval::from),
        decode_tokens_per_second: stats::rate(&decode),
        decode_tokens_per_second_ci95: stats::rate_interval(&decode).map(Interval::from),
        prefill_utilisation: speed.work.as_ref().and_then(|work| {
            utilisation(work.prefill, &work.limits, seconds_each(trials, prefilled))
        }),
        decode_utilisation: speed.work.as_ref().and_then(|work| {
            utilisation(
                work.decode_step?,
                &work.limits,
                seconds_each(trials, decoded),
            )
        }),
        device: device(trials),
        memory: Some(speed.memory.into()),
        energy: Some((&speed.energy).into()),
        throttling: throttling(&speed.throttling),
        blocks: speed.blocks.len(),
        ..empty(cell)
    }
}

fn empty(cell: record::Cell) -> Speed {
    Speed {
        batch: cell.batch,
        prompt_tokens: cell.prompt,
        generated_tokens: cell.generate,
        depth: cell.depth,
        failed: false,
        reason: None,
        trials: 0,
        warmup_trials: 0,
        stop_reason: None,
        ttft_ms: None,
        itl_ms: None,
        tpot_ms: None,
        e2e_ms: None,
        ttft_steadiness: None,
        itl_steadiness: None,
        itl_histogram: None,
        prefill_tokens_per_second: None,
        prefill_tokens_per_second_ci95: None,
        decode_tokens_per_second: None,
        decode_tokens_per_second_ci95: None,
        speedup_vs_base: None,
        speedup_vs_base_ci95: None,
        ppl_percent_per_speed_percent: None,
        task_percent_per_speed_percent: None,
        goal_seconds: None,
        goal_joules: None,
        prefill_utilisation: None,
        decode_utilisation: None,
        device: None,
        memory: None,
        energy: None,
        throttling: None,
        blocks: 0,
        environment: 0,
        on_pareto_front: false,
    }
}

/// Tokens and seconds of each trial; empty if no trial has tokens, so that no rate of zero is claimed.
fn rates(
    trials: &[record::Trial],
    figure: impl Fn(&record::Trial) -> (usize, Seconds),
) -> Vec<Ratio> {
    trials
        .iter()
        .map(figure)
        .filter(|(tokens, _)| *tokens > 0)
        .map(|(tokens, time)| Ratio {
            part: tokens as f64,
            whole: time.0,
        })
        .collect()
}

/// What the device's clock says; `None` unless it was read in every trial.
fn device(trials: &[record::Trial]) -> Option<DeviceFigures> {
    let read: Vec<_> = trials
        .iter()
        .map(|trial| Some((trial, trial.device?)))
        .collect::<Option<_>>()?;
    let sum = |figure: &dyn Fn(&(&record::Trial, record::DeviceTime)) -> f64| -> f64 {
        read.iter().map(figure).sum()
    };
    let steps = sum(&|(trial, _)| trial.itl.len() as f64);
    let (host, own) = (sum(&|(t, _)| t.decode.0), sum(&|(_, d)| d.decode.0));
    let decoded = steps > 0.0 && host > 0.0;
    Some(DeviceFigures {
        prefill_ms: 1e3 * sum(&|(_, d)| d.prefill.0) / read.len().max(1) as f64,
        itl_ms: decoded.then(|| 1e3 * own / steps),
        host_gap_percent: decoded.then(|| 100.0 * (host - own) / host),
    })
}

/// A trial's prefill: once, and the seconds that it took.
fn prefilled(trial: &record::Trial) -> (usize, Seconds) {
    (1, trial.prefill)
}

/// A trial's decode: so many steps, and the seconds that they took.
fn decoded(trial: &record::Trial) -> (usize, Seconds) {
    (trial.itl.len(), trial.decode)
}

/// Seconds for each of what was done: the sum over the sum. `None` where nothing was.
fn seconds_each(
    trials: &[record::Trial],
    figure: impl Fn(&record::Trial) -> (usize, Seconds),
) -> Option<f64> {
    stats::rate(&rates(trials, figure)).map(|rate| 1.0 / rate)
}

/// How near work of this cost comes to the limits when it takes so long.
fn utilisation(cost: Cost, limits: &Limits, seconds: Option<f64>) -> Option<Utilisation> {
    let seconds = seconds.filter(|s| s.is_finite() && *s > 0.0)?;
    let gb_per_s = cost.bytes() / seconds / 1e9;
    let tflop_per_s = cost.flops / seconds / 1e12;
    let bound = limits.bound(&cost);
    Some(Utilisation {
        cost,
        gb_per_s,
        tflop_per_s,
        percent_of_read: limits.read_gb_per_s.map(|rate| 100.0 * gb_per_s / rate),
        percent_of_matmul: limits
            .product_tflop_per_s
            .map(|rate| 100.0 * tflop_per_s / rate),
        floor_ms: bound.as_ref().map(|bound| 1e3 * bound.seconds),
        percent_of_limit: bound.as_ref().map(|bound| 100.0 * bound.seconds / seconds),
        limit: bound.map(|bound| bound.limit),
    })
}

/// Counts up to a little beyond the 99th percentile, so that one hiccup does not squeeze the rest into a single bin.
fn histogram(mut samples: Vec<f64>) -> Option<Histogram> {
    if samples.is_empty() || samples.iter().any(|x| !x.is_finite()) {
        return None;
    }
    samples.sort_unstable_by(f64::total_cmp);
    let low = samples[0];
    let last = samples[samples.len() - 1];
    let high =
        stats::quantile(&samples, 0.99).map_or(last, |p99| (p99 + 0.25 * (p99 - low)).min(last));
    let bin = (high - low) / BINS as f64;
    if bin <= 0.0 {
        return Some(Histogram {
            low_ms: low,
            bin_ms: 0.0,
            counts: vec![samples.len() as u64],
            above: 0,
        });
    }
    let mut counts = vec![0; BINS];
    let mut above = 0;
    for x in samples {
        match ((x - low) / bin) as usize {
            place if place < BINS => counts[place] += 1,
            _ if x <= high => counts[BINS - 1] += 1,
            _ => above += 1,
        }
    }
    Some(Histogram {
        low_ms: low,
        bin_ms: bin,
        counts,
        above,
    })
}

/// What is to be said of slowed trials; `None` if there was none.
fn throttling(found: &record::Throttling) -> Option<Throttling> {
    let slowed = found.left_out.iter().flat_map(|trial| &trial.reasons);
    let mut reasons: Vec<String> = slowed.chain(&found.counted).cloned().collect();
    reasons.sort_unstable();
    reasons.dedup();
    (!reasons.is_empty()).then_some(Throttling {
        left_out: found.left_out.len(),
        all: !found.counted.is_empty(),
        reasons,
        cooled_s: found.cooled.0,
    })
}

impl From<Summary> for Stats {
    fn from(summary: Summary) -> Self {
        Self {
            mean: summary.mean,
            p50: summary.p50,
            p90: summary.p90,
            p95: summary.p95,
            p99: summary.p99,
            min: summary.min,
            max: summary.max,
            n: summary.n,
            ci95_low: summary.median_interval.map(|ends| ends.low),
            ci95_high: summary.median_interval.map(|ends| ends.high),
        }
    }
}

impl From<steady::Steadiness> for Steadiness {
    fn from(found: steady::Steadiness) -> Self {
        Self {
            kind: match found.kind {
                steady::Kind::Flat => SeriesKind::Flat,
                steady::Kind::WarmUp => SeriesKind::WarmUp,
                steady::Kind::Slowdown => SeriesKind::Slowdown,
                steady::Kind::NoSteadyState => SeriesKind::NoSteadyState,
            },
            from_trial: found.from + 1,
        }
    }
}

impl From<stats::Interval> for Interval {
    fn from(interval: stats::Interval) -> Self {
        Self {
            low: interval.low,
            high: interval.high,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(ttft: f64, steps: &[f64]) -> record::Trial {
        let itl: Vec<Seconds> = steps.iter().copied().map(Seconds).collect();
        let decode = itl.iter().copied().sum();
        record::Trial {
            ttft: Seconds(ttft),
            prefill: Seconds(ttft / 2.0),
            decode,
            e2e: Seconds(ttft) + decode,
            itl,
            device: None,
        }
    }

    #[test]
    fn what_the_device_did_not_take_is_the_hosts() {
        let clocked = |own| record::Trial {
            device: Some(record::DeviceTime {
                prefill: Seconds(0.05),
                decode: Seconds(own),
            }),
            ..trial(0.2, &[0.01, 0.03])
        };
        let figures = measured(CELL, &speed(vec![clocked(0.036), clocked(0.04)]));
        let device = figures.device.unwrap();
        assert!((device.prefill_ms - 50.0).abs() < 1e-9);
        assert!((device.itl_ms.unwrap() - 19.0).abs() < 1e-9);
        assert!((device.host_gap_percent.unwrap() - 5.0).abs() < 1e-9);
        // One trial without makes it none: a mean over some would not be the cell's.
        let some = measured(CELL, &speed(vec![clocked(0.036), trial(0.2, &[0.01])]));
        assert_eq!(some.device, None);
    }

    fn speed(trials: Vec<record::Trial>) -> record::Speed {
        record::Speed {
            trials,
            warmup_trials: 1,
            blocks: Vec::new(),
            stop_reason: None,
            memory: record::Memory::default(),
            energy: record::Energy::Unavailable {
                reason: "not asked".to_owned(),
            },
            work: None,
            throttling: record::Throttling::default(),
            configuration: None,
        }
    }

    #[test]
    fn slowed_trials_are_left_out_and_said() {
        let slowed = |reason: &str| record::ThrottledTrial {
            reasons: vec![reason.to_owned()],
            trial: trial(9.0, &[9.0]),
        };
        let mut speed = speed(vec![trial(0.2, &[0.01])]);
        assert_eq!(measured(CELL, &speed).throttling, None);
        speed.throttling = record::Throttling {
            left_out: vec![slowed("sw_thermal_slowdown"), slowed("hw_slowdown")],
            counted: Vec::new(),
            cooled: Seconds(4.5),
        };
        let figures = measured(CELL, &speed);
        assert_eq!(figures.ttft_ms.unwrap().max, 200.0);
        let expected = Throttling {
            left_out: 2,
            all: false,
            reasons: vec!["hw_slowdown".into(), "sw_thermal_slowdown".into()],
            cooled_s: 4.5,
        };
        assert_eq!(figures.throttling, Some(expected));
    }

    const CELL: record::Cell = record::Cell {
        batch: 2,
        prompt: 100,
        generate: 3,
        depth: 0,
    };

    #[test]
    fn rates_count_the_whole_batch_and_latencies_one_step() {
        let trials = vec![trial(0.2, &[0.01, 0.03]), trial(0.4, &[0.02, 0.02])];
        let figures = measured(CELL, &speed(trials));
        // 2 × 2 × 100 tokens in 0.1 + 0.2 s; 2 × 2 × 2 tokens in 0.08 s.
        assert!((figures.prefill_tokens_per_second.unwrap() - 400.0 / 0.3).abs() < 1e-9);
        assert!((figures.decode_tokens_per_second.unwrap() - 100.0).abs() < 1e-9);
        assert_eq!(figures.itl_ms.unwrap().n, 4);
        assert!((figures.tpot_ms.unwrap().mean - 20.0).abs() < 1e-9);
        assert!((figures.ttft_ms.unwrap().p50 - 300.0).abs() < 1e-9);
        assert_eq!(figures.ttft_ms.unwrap().p90, None);
    }

    #[test]
    fn utilisation_is_of_the_time_that_was_taken() {
        let cost = |bytes, flops| Cost {
            read_bytes: bytes,
            written_bytes: 0.0,
            flops,
        };
        let limits = Limits {
            read_gb_per_s: Some(1000.0),
            product: Some("bf16".to_owned()),
            product_tflop_per_s: Some(100.0),
        };
        let mut speed = speed(vec![trial(0.2, &[0.01, 0.03]), trial(0.4, &[0.02, 0.02])]);
        speed.work = Some(Box::new(record::Work {
            prefill: cost(1e9, 6e12),
            decode_step: Some(cost(1e10, 1e10)),
            limits,
        }));
        let figures = measured(CELL, &speed);
        // 20 ms a step, of which 10 are bytes; 150 ms a prefill, of which 60 are operations.
        let decode = figures.decode_utilisation.unwrap();
        assert_eq!(decode.limit.as_deref(), Some("read"));
        assert!((decode.percent_of_limit.unwrap() - 50.0).abs() < 1e-9);
        assert!((decode.percent_of_read.unwrap() - 50.0).abs() < 1e-9);
        assert!((decode.percent_of_matmul.unwrap() - 0.5).abs() < 1e-9);
        let prefill = figures.prefill_utilisation.unwrap();
        assert_eq!(prefill.limit.as_deref(), Some("matmul bf16"));
        assert!((prefill.percent_of_limit.unwrap() - 40.0).abs() < 1e-9);
        assert!((prefill.floor_ms.unwrap() - 60.0).abs() < 1e-9);
        speed.work = None;
        assert_eq!(measured(CELL, &speed).decode_utilisation, None);
    }

    #[test]
    fn a_cell_that_warmed_up_says_so() {
        let of = |slow: usize, step: f64| {
            let level = |i: usize| step * if i < slow { 1.2 } else { 1.0 };
            let trials = (0..30).map(|i| trial(0.2, &[level(i); 4]));
            measured(CELL, &speed(trials.collect()))
        };
        let warming = of(8, 0.01).itl_steadiness.unwrap();
        assert_eq!((warming.kind, warming.from_trial), (SeriesKind::WarmUp, 9));
        let flat = of(8, 0.01).ttft_steadiness.unwrap();
        assert_eq!((flat.kind, flat.from_trial), (SeriesKind::Flat, 1));
        let few = measured(CELL, &speed(vec![trial(0.2, &[0.01]); 9]));
        assert_eq!((few.ttft_steadiness, few.itl_steadiness), (None, None));
    }

    #[test]
    fn a_cell_without_decode_has_no_decode_figures() {
        let figures = measured(CELL, &speed(vec![trial(0.2, &[])]));
        assert_eq!(figures.itl_ms, None);
        assert_eq!(figures.tpot_ms, None);
        assert_eq!(figures.decode_tokens_per_second, None);
        assert_eq!(figures.itl_histogram, None);
        assert!(figures.prefill_tokens_per_second.is_some());
        let nothing = measured(CELL, &speed(vec![]));
        assert_eq!(nothing.prefill_tokens_per_second, None);
    }

    #[test]
    fn a_histogram_counts_every_sample_once() {
        let mut samples: Vec<f64> = (0..1000).map(|i| 10.0 + f64::from(i % 50) / 10.0).collect();
        samples.push(500.0);
        let h = histogram(samples).unwrap();
        assert_eq!(h.counts.iter().sum::<u64>() + h.above, 1001);
        assert_eq!(h.above, 1);
        assert!(h.low_ms + h.bin_ms * BINS as f64 <= 17.0);
        assert_eq!(histogram(vec![2.0; 7]).unwrap().counts, [7]);
    }
}
