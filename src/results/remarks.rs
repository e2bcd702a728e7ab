//! What must be known to read figures of energy, memory and speed: one sentence each, for a table's foot and a report.

use super::study::{Energy, Speed, Study, Variant};
use super::table::cell_title;
use crate::units::{Bytes, Seconds};

/// Marks an energy whose two sources differ more than they should.
pub(super) const DOUBTED: &str = "?";

/// Every remark, in the order of the columns that they are about.
pub(super) fn remarks(study: &Study) -> Vec<String> {
    let mut lines = elsewhere(study);
    lines.extend(in_turns(study));
    lines.extend(throttled(study));
    lines.extend(memory(study));
    lines.extend(energy(study));
    lines
}

/// Each cell of each variant with the words for it.
fn cells(study: &Study) -> impl Iterator<Item = (String, &Variant, &Speed)> {
    study.variants.iter().flat_map(|variant| {
        let label = study.label(variant);
        let named = move |speed: &Speed| format!("{label}, {}", cell_title(speed.cell()));
        variant.speed.iter().map(move |s| (named(s), variant, s))
    })
}

/// What was measured in another environment than the rest.
fn elsewhere(study: &Study) -> Vec<String> {
    let line = |name: String, environment: usize| {
        (environment > 0).then(|| {
            format!(
                "{name}: measured elsewhere (environment {environment} of manifest.json, counted from 0), so it does not \
                 compare with the rest"
            )
        })
    };
    let scored = study.variants.iter().filter_map(|variant| {
        let found = variant.perplexity.as_ref()?;
        line(
            format!("{}, perplexity", study.label(variant)),
            found.environment,
        )
    });
    let asked = study.variants.iter().flat_map(|variant| {
        let label = study.label(variant);
        let named = move |task: &str| format!("{label}, {task}");
        let tasks = variant.tasks.iter();
        tasks.filter_map(move |task| line(named(&task.name), task.environment))
    });
    let timed = cells(study).filter_map(|(name, _, speed)| line(name, speed.environment));
    scored.chain(asked).chain(timed).collect()
}

/// How the trials of variants alternated, the same in every cell but where one ended early, and whose did not: those that
/// were measured when no other had its turn, as later runs do that measure them again.
fn in_turns(study: &Study) -> Vec<String> {
    let mut lines: Vec<String> = turns(study).into_iter().collect();
    for variant in &study.variants {
        let mut of_model = study.variants.iter().filter(|v| v.model == variant.model);
        let others_did = of_model.any(|v| !std::ptr::eq(v, variant) && takes_turns(v));
        let measured: Vec<&Speed> = variant.speed.iter().filter(|s| s.trials > 0).collect();
        let alone: Vec<&Speed> = measured
            .iter()
            .copied()
            .filter(|speed| speed.blocks == 0)
            .collect();
        if !others_did || alone.is_empty() {
            continue;
        }
        let label = study.label(variant);
        let what = if alone.len() == measured.len() {
            label
        } else {
            let cells = alone.iter().map(|speed| cell_title(speed.cell()));
            format!("{label}, {}", cells.collect::<Vec<_>>().join(" and "))
        };
        lines.push(format!(
            "{what}: timed by itself, not in turns with the others, so whatever changed in between is in the comparison"
        ));
    }
    lines
}

fn takes_turns(variant: &Variant) -> bool {
    variant.speed.iter().any(|speed| speed.blocks > 0)
}

fn turns(study: &Study) -> Option<String> {
    let blocks = cells(study).map(|(_, _, speed)| speed.blocks);
    let blocks = blocks.filter(|blocks| *blocks > 0);
    let (least, most) = blocks.fold((usize::MAX, 0), |(least, most), n| {
        (least.min(n), most.max(n))
    });
    let number = match most {
        0 => return None,
        most if most == least => most.to_string(),
        most => format!("{least} to {most}"),
    };
    Some(format!(
        "variants took turns: the trials of a cell are {number} blocks, between those of the others"
    ))
}

fn throttled(study: &Study) -> Vec<String> {
    let line = |(name, _, speed): (String, &Variant, &Speed)| {
        let found = speed.throttling.as_ref()?;
        let why = found.reasons.join(", ");
        Some(if found.all {
            format!(
                "{name}: every trial was slowed by {why}, so the figures are not the device's own"
            )
        } else {
            let s = if found.left_out == 1 { "" } else { "s" };
            format!(
                "{name}: {} trial{s} slowed by {why} left out, {} to cool",
                found.left_out,
                Seconds(found.cooled_s)
            )
        })
    };
    cells(study).filter_map(line).collect()
}

/// How much of the memory in use no part accounts for, where that is most.
fn memory(study: &Study) -> Option<String> {
    let shares = cells(study).filter_map(|(name, _, speed)| {
        let memory = speed.memory?;
        let (residual, total) = (memory.residual_bytes?, memory.total.measured_bytes?);
        Some((name, residual, residual as f64 / total.max(1) as f64))
    });
    let (name, bytes, share) = shares.max_by(|a, b| a.2.abs().total_cmp(&b.2.abs()))?;
    let sign = if bytes < 0 { "−" } else { "" };
    Some(format!(
        "memory: at most {sign}{} ({:.2} % of the total; {name}) is in no part of the account",
        Bytes(bytes.unsigned_abs()),
        100.0 * share
    ))
}

fn energy(study: &Study) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (name, _, speed) in cells(study) {
        match &speed.energy {
            // The same for every cell, as a rule: said once.
            Some(Energy::Unavailable { reason }) => {
                let line = format!("no energy: {reason}");
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
            Some(Energy::Measured(used)) => {
                if let Some(why) = &used.rejected {
                    lines.push(format!("{name}: energy is not concluded from: {why}"));
                } else if let (true, Some(percent)) = (used.suspect, used.disagreement_percent) {
                    lines.push(format!(
                        "{DOUBTED} {name}: counter and integrated power differ by {percent:.1} %"
                    ));
                }
            }
            None => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn with_energy(change: impl Fn(&mut crate::results::study::EnergyUse)) -> String {
        let mut study = fixture::study();
        let Some(Energy::Measured(used)) = &mut study.variants[1].speed[0].energy else {
            panic!("the fixture has energy");
        };
        change(used);
        remarks(&study).join("\n")
    }

    #[test]
    fn doubts_about_an_energy_are_told_with_the_cell_that_they_are_about() {
        let usual = with_energy(|_| {});
        assert!(
            !usual.contains("differ") && !usual.contains("concluded"),
            "{usual}"
        );
        let suspect = with_energy(|used| {
            used.suspect = true;
            used.disagreement_percent = Some(7.31);
        });
        assert!(
            suspect.contains("? int8, batch 1 · prompt 512 · generate 128: counter and integrated power differ by 7.3 %"),
            "{suspect}"
        );
        let rejected = with_energy(|used| used.rejected = Some("43 % apart".to_owned()));
        assert!(
            rejected.contains("not concluded from: 43 % apart"),
            "{rejected}"
        );
    }

    #[test]
    fn what_was_slowed_and_what_is_unaccounted_for_is_told() {
        let study = fixture::study();
        let lines = remarks(&study).join("\n");
        assert!(
            lines.contains("1 trial slowed by sw_thermal_slowdown left out, 6.50 s to cool"),
            "{lines}"
        );
        assert!(lines.contains("memory: at most"), "{lines}");
    }

    #[test]
    fn who_took_no_turns_is_told() {
        let mut study = fixture::study();
        let usual = "variants took turns: the trials of a cell are 2 blocks";
        let told = |study: &Study| in_turns(study).join("\n");
        assert!(told(&study).starts_with(usual));
        assert!(!told(&study).contains("by itself"));
        study.variants[1].speed[0].blocks = 0;
        assert!(
            told(&study).contains("int8, batch 1 · prompt 512 · generate 128: timed by itself"),
            "{}",
            told(&study)
        );
        study.variants[1]
            .speed
            .iter_mut()
            .for_each(|s| s.blocks = 0);
        assert!(told(&study).contains("\nint8: timed by itself"));
        for speed in study.variants.iter_mut().flat_map(|v| &mut v.speed) {
            speed.blocks = 0;
        }
        assert_eq!(told(&study), "");
    }

    #[test]
    fn a_reason_for_no_energy_is_told_once() {
        let mut study = fixture::study();
        for speed in study.variants.iter_mut().flat_map(|v| &mut v.speed) {
            speed.energy = Some(Energy::Unavailable {
                reason: "no sensors".to_owned(),
            });
        }
        let lines = remarks(&study).join("\n");
        assert_eq!(lines.matches("no energy: no sensors").count(), 1, "{lines}");
    }
}
