//! What must be the same for two runs to compare, and what should be.

use std::collections::BTreeSet;

use super::super::environment::Environment;
use super::super::record::{Body, Energy, Record};
use super::figures::clock_of;
use super::side::{Run, Side};
use super::{Pair, document};

/// Clocks that differ by less are the same.
const SAME_CLOCK: f64 = 0.01;

/// Marks the commit of a build of changed files; the hash behind it, which older builds lack, tells which.
const DIRTY: &str = "-dirty";

/// The first digits of a commit, with the mark of changed files.
fn short_commit(commit: &str) -> String {
    let (digits, mark) = commit.split_at(commit.find(DIRTY).unwrap_or(commit.len()));
    digits.chars().take(12).chain(mark.chars()).collect()
}

/// What differs.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// What forbids a comparison.
    pub(super) grave: Vec<String>,
    /// What may explain a difference.
    pub(super) light: Vec<String>,
}

impl Differences {
    /// Says each thing once, however many runs it holds of.
    fn put(list: &mut Vec<String>, what: String) {
        if !list.contains(&what) {
            list.push(what);
        }
    }

    fn compare(
        list: &mut Vec<String>,
        what: &str,
        base: Option<impl ToString>,
        other: Option<impl ToString>,
    ) {
        // What one side does not know is no difference.
        let (Some(base), Some(other)) = (base, other) else {
            return;
        };
        let (base, other) = (base.to_string(), other.to_string());
        if base != other {
            Self::put(list, format!("{what}: {base} and {other}"));
        }
    }
}

/// Whether the base ran on a GPU; of what is unknown, no.
pub(super) fn on_gpu(side: &Side) -> bool {
    let known = side.runs.iter().filter_map(|run| run.environment.as_ref());
    let mut kinds = known.filter_map(|environment| environment.device.kind.as_deref());
    kinds.next().is_some_and(|kind| kind != "cpu")
}

/// Holds every run against the first of the base.
pub(super) fn check(base: &Side, other: &Side) -> Differences {
    let mut found = Differences::default();
    let first = &base.runs[0];
    for run in base.runs[1..].iter().chain(&other.runs) {
        devices(first, run, &mut found.grave);
        if let (Some(base), Some(other)) = (&first.environment, &run.environment) {
            environments(base, other, &mut found);
        }
    }
    for run in base.runs.iter().chain(&other.runs) {
        if run.records.iter().any(|record| record.environment > 0) {
            let what = format!("{} has records of several environments", run.label);
            Differences::put(&mut found.light, what);
        }
    }
    let runs = base.runs.iter().chain(&other.runs);
    for run in runs.filter(|run| run.environment.is_none()) {
        let what = format!(
            "{} has neither study.json nor manifest.json: driver, power limit and host are not compared",
            run.label
        );
        Differences::put(&mut found.light, what);
    }
    found
}

/// Records name their device, whatever else is known.
fn devices(base: &Run, other: &Run, list: &mut Vec<String>) {
    let device = |run: &Run| run.records.first().map(|r| r.subject.device.clone());
    Differences::compare(list, "device", device(base), device(other));
}

fn environments(base: &Environment, other: &Environment, found: &mut Differences) {
    let grave = &mut found.grave;
    let (was, is) = (&base.device, &other.device);
    Differences::compare(grave, "kind of device", was.kind.clone(), is.kind.clone());
    let watts = |limit: Option<f64>| limit.map(|watts| format!("{watts:.0} W"));
    let limits = (watts(was.power_limit_watts), watts(is.power_limit_watts));
    Differences::compare(grave, "power limit", limits.0, limits.1);
    let mhz = |clock: Option<u32>| clock.map(|clock| format!("{clock} MHz"));
    for (what, was, is) in [
        (
            "highest SM clock",
            was.max_sm_clock_mhz,
            is.max_sm_clock_mhz,
        ),
        (
            "highest memory clock",
            was.max_memory_clock_mhz,
            is.max_memory_clock_mhz,
        ),
        (
            "SM clock of applications",
            was.application_sm_clock_mhz,
            is.application_sm_clock_mhz,
        ),
    ] {
        Differences::compare(grave, what, mhz(was), mhz(is));
    }
    if was.kind.as_deref() == Some("cpu") {
        Differences::compare(grave, "cores", base.cpu.cores, other.cpu.cores);
        Differences::compare(grave, "threads", base.threads, other.threads);
    }
    let light = &mut found.light;
    Differences::compare(light, "driver", was.driver.clone(), is.driver.clone());
    Differences::compare(light, "CUDA", was.cuda.clone(), is.cuda.clone());
    Differences::compare(
        light,
        "host",
        base.cpu.model.clone(),
        other.cpu.model.clone(),
    );
    Differences::compare(light, "operating system", base.os.clone(), other.os.clone());
    let features = |e: &Environment| Some(e.features.join(", "));
    Differences::compare(light, "features", features(base), features(other));
    let commit = |e: &Environment| e.git_commit.as_deref().map(short_commit);
    Differences::compare(light, "commit", commit(base), commit(other));
    if let (Some(commit), true) = (commit(base), base.git_commit == other.git_commit)
        && commit.ends_with(DIRTY)
    {
        let what = format!(
            "commit: both were built from changes to {commit} that are not on record, and may differ"
        );
        Differences::put(light, what);
    }
    let version = |e: &Environment| Some(e.tool_version.clone());
    Differences::compare(light, "version", version(base), version(other));
    let settings: BTreeSet<&String> = base.extra.keys().chain(other.extra.keys()).collect();
    for name in settings {
        let of =
            |e: &Environment| Some(e.extra.get(name).map_or("unset", String::as_str).to_owned());
        Differences::compare(light, name, of(base), of(other));
    }
}

/// Says where the SM clocks of the two sides differ the most, if they do.
pub(super) fn clocks(pairs: &[Pair<'_>]) -> Option<String> {
    let apart = pairs.iter().filter_map(|pair| {
        let (base, other) = (clock_of(&pair.base)?, clock_of(&pair.other)?);
        Some((other / base - 1.0, base, other))
    });
    let (share, base, other) = apart.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
    (share.abs() > SAME_CLOCK).then(|| {
        format!(
            "SM clock: up to {:+.1} % apart ({base:.0} and {other:.0} MHz)",
            100.0 * share
        )
    })
}

/// Says why clocks were lowered, if it was not for the same reasons on both sides.
pub(super) fn throttling(pairs: &[Pair<'_>]) -> Option<String> {
    let reasons = |records: Vec<&Record>| -> BTreeSet<String> {
        records.into_iter().flat_map(throttle_reasons).collect()
    };
    let base = reasons(pairs.iter().flat_map(|p| p.base.clone()).collect());
    let other = reasons(pairs.iter().flat_map(|p| p.other.clone()).collect());
    let shown = |reasons: BTreeSet<String>| match reasons.is_empty() {
        true => "nothing".to_owned(),
        false => reasons.into_iter().collect::<Vec<_>>().join(", "),
    };
    (base != other).then(|| format!("throttled by: {} and {}", shown(base), shown(other)))
}

fn throttle_reasons(record: &Record) -> Vec<String> {
    match &record.body {
        Body::Speed {
            outcome: Ok(speed), ..
        } => match &speed.energy {
            Energy::Measured(used) => used.throttle_reasons.clone(),
            Energy::Unavailable { .. } => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// What a comparison allows for from run to run, and how to know better; `None` if the runs tell it themselves.
pub(super) fn advice(comparison: &document::Comparison) -> Option<String> {
    let single = comparison.base.runs == 1 && comparison.other.runs == 1;
    single.then(|| match comparison.run_noise_percent {
        Some(percent) => format!(
            "one run each: {percent:.1} % (standard deviation) is allowed for from run to run, or what a run wandered itself if \
             that is more; several runs of a side, with commas as in A1,A2 B1,B2, tell it"
        ),
        None => "one run each on a CPU, which is shared with whatever else runs: ratios without verdicts. Several runs of a \
                 side, with commas as in A1,A2 B1,B2, tell what differs from run to run; bench --against-program makes them by \
                 turns; --run-noise states it"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn builds_of_changed_files_are_the_same_only_if_their_changes_are() {
        let said = |base: &str, other: &str| {
            let of = |commit: &str| Environment {
                git_commit: Some(commit.to_owned()),
                ..fixture::environment()
            };
            let mut found = Differences::default();
            environments(&of(base), &of(other), &mut found);
            assert!(found.grave.is_empty());
            found.light.join("\n")
        };
        let commit = "3f1c0a9d5be24f7f8b6f0c2f8f1f4b7f0e4a9c11";
        let changed = |mark: &str| format!("{commit}-dirty{mark}");
        assert_eq!(said(commit, commit), "");
        assert_eq!(said(&changed("-01"), &changed("-01")), "");
        assert_eq!(
            said(&changed("-01"), &changed("-02")),
            "commit: 3f1c0a9d5be2-dirty-01 and 3f1c0a9d5be2-dirty-02"
        );
        assert_eq!(
            said(commit, &changed("")),
            "commit: 3f1c0a9d5be2 and 3f1c0a9d5be2-dirty"
        );
        let unknown = said(&changed(""), &changed(""));
        assert!(
            unknown.contains("changes to 3f1c0a9d5be2-dirty that are not on record"),
            "{unknown}"
        );
    }
}
