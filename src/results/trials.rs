//! How many trials the figures of a cell are of, why there were no more, and whether they had settled.

use super::study::{SeriesKind, Speed, Steadiness, Study, Variant};
use super::table::cell_title;

/// Trials that it takes to judge whether a series had settled.
const JUDGED: usize = 10;
/// So many cells are named one by one.
const NAMED: usize = 3;

/// `12 enough`: the trials of a cell and what ended them.
pub(super) fn ended(speed: &Speed) -> Option<String> {
    let reason = speed.stop_reason.as_deref().map(in_a_word);
    let words = [Some(speed.trials.to_string()), reason];
    (speed.trials > 0).then(|| words.into_iter().flatten().collect::<Vec<_>>().join(" "))
}

fn in_a_word(reason: &str) -> String {
    match reason {
        "noise_stable" => "stable".to_owned(),
        other => other.replace('_', " "),
    }
}

/// The same in a sentence.
fn in_words(reason: &str) -> String {
    match reason {
        "enough" => "with as many and as long as asked for".to_owned(),
        "precise" => "once medians were known as precisely as asked for".to_owned(),
        "noise_stable" => "once more of them no longer changed the noise".to_owned(),
        "trial_limit" => "at the limit of their number".to_owned(),
        "time_limit" => "at the limit of their time".to_owned(),
        "throttled" => "once heat or the power supply had slowed more of them than not".to_owned(),
        other => format!("by {}", other.replace('_', " ")),
    }
}

/// How many trials cells have and why no more, cells that ended otherwise than most by name; `None` without a cell.
pub(super) fn note(study: &Study) -> Option<String> {
    let cells: Vec<(&Variant, &Speed)> = study
        .variants
        .iter()
        .flat_map(|variant| variant.speed.iter().map(move |speed| (variant, speed)))
        .filter(|(_, speed)| speed.trials > 0)
        .collect();
    let counts = || cells.iter().map(|(_, speed)| speed.trials);
    let (least, most) = (counts().min()?, counts().max()?);
    let number = match most {
        most if most == least => format!("{most} of each cell"),
        most => format!("{least} to {most} of a cell"),
    };
    let mut line = format!("trials: {number}");
    for (place, (reason, own)) in by_reason(&cells).into_iter().enumerate() {
        line += &match place {
            0 => format!(", ended {}", in_words(reason)),
            _ => format!("; but {} {}", named(study, &own), in_words(reason)),
        };
    }
    let unjudged = cells
        .iter()
        .filter(|(_, speed)| speed.ttft_steadiness.is_none() && speed.itl_steadiness.is_none());
    match unjudged.count() {
        0 => {}
        all if all == cells.len() => {
            line += &format!("; of fewer than {JUDGED} it is not judged whether they had settled");
        }
        some => {
            line += &format!(
                "; in {some} there are fewer than {JUDGED}, of which it is not judged whether they had settled"
            );
        }
    }
    Some(line)
}

/// Cells by what ended their trials, the most frequent reason first; those that do not tell are left out.
fn by_reason<'a>(
    cells: &[(&'a Variant, &'a Speed)],
) -> Vec<(&'a str, Vec<(&'a Variant, &'a Speed)>)> {
    let mut found: Vec<(&str, Vec<(&Variant, &Speed)>)> = Vec::new();
    for &(variant, speed) in cells {
        let Some(reason) = speed.stop_reason.as_deref() else {
            continue;
        };
        match found.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, own)) => own.push((variant, speed)),
            None => found.push((reason, vec![(variant, speed)])),
        }
    }
    found.sort_by_key(|(_, own)| std::cmp::Reverse(own.len()));
    found
}

/// Cells by name, or how many they are.
fn named(study: &Study, cells: &[(&Variant, &Speed)]) -> String {
    if cells.len() > NAMED {
        return format!("in {} cells", cells.len());
    }
    let names = cells.iter().map(|(variant, speed)| {
        let (label, cell) = (study.label(variant), cell_title(speed.cell()));
        format!("{label}, {cell}")
    });
    format!("in {}", names.collect::<Vec<_>>().join(" and "))
}

/// Series of trials that had not settled, or not from the start.
pub(super) fn unsteady(study: &Study) -> Vec<String> {
    let mut lines = Vec::new();
    for variant in &study.variants {
        for speed in &variant.speed {
            let series = [
                ("TTFT", speed.ttft_steadiness),
                ("ITL", speed.itl_steadiness),
            ];
            let said: Vec<String> = series
                .into_iter()
                .filter_map(|(name, found)| told(name, found?))
                .collect();
            if !said.is_empty() {
                lines.push(format!(
                    "{}, {}: {} of {} trials; the figures are of all",
                    study.label(variant),
                    cell_title(speed.cell()),
                    said.join(" and "),
                    speed.trials
                ));
            }
        }
    }
    lines
}

/// What is to be said of a series that is not flat.
fn told(name: &str, found: Steadiness) -> Option<String> {
    let from = found.from_trial;
    match found.kind {
        SeriesKind::Flat => None,
        SeriesKind::WarmUp => Some(format!("{name} was slower before trial {from}")),
        SeriesKind::Slowdown => Some(format!("{name} was faster before trial {from}")),
        SeriesKind::NoSteadyState => Some(format!("{name} had not settled by trial {from}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn with_reasons(reasons: &[&str]) -> String {
        let mut study = fixture::study();
        let speeds = study.variants.iter_mut().flat_map(|v| &mut v.speed);
        for (place, speed) in speeds.enumerate() {
            let reason = reasons.get(place).copied().unwrap_or("enough");
            speed.stop_reason = Some(reason.to_owned());
        }
        note(&study).unwrap()
    }

    #[test]
    fn cells_that_ended_otherwise_are_named() {
        assert_eq!(
            with_reasons(&[]),
            "trials: 12 of each cell, ended with as many and as long as asked for"
        );
        assert_eq!(
            with_reasons(&["time_limit"]),
            "trials: 12 of each cell, ended with as many and as long as asked for; but in bf16, \
             batch 1 · prompt 512 · generate 128 at the limit of their time"
        );
        let many = with_reasons(&["noise_stable"; 4]);
        assert!(
            many.ends_with("but in 4 cells once more of them no longer changed the noise"),
            "{many}"
        );
    }

    #[test]
    fn few_trials_say_that_steadiness_is_not_judged() {
        let mut study = fixture::study();
        let speed = &mut study.variants[0].speed[0];
        assert_eq!(ended(speed).unwrap(), "12 time");
        (speed.trials, speed.stop_reason) = (3, None);
        (speed.ttft_steadiness, speed.itl_steadiness) = (None, None);
        assert_eq!(ended(speed).unwrap(), "3");
        let told = note(&study).unwrap();
        assert!(
            told.starts_with("trials: 3 to 12 of a cell, ended by time; in 1 there are fewer"),
            "{told}"
        );
        for speed in study.variants.iter_mut().flat_map(|v| &mut v.speed) {
            (speed.ttft_steadiness, speed.itl_steadiness) = (None, None);
        }
        let told = note(&study).unwrap();
        assert!(
            told.contains("; of fewer than 10 it is not judged"),
            "{told}"
        );
        study.variants.clear();
        assert_eq!(note(&study), None);
    }
}
