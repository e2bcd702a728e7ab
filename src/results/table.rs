//! A study in a terminal, in two parts: what the variants are and how good, then, cell by cell, how fast.

use super::columns::{Column, column, filled, laid_out};
use super::format;
use super::goal::Choice;
use super::record::Cell;
use super::remarks::{DOUBTED, remarks};
use super::study::{Perplexity, Speed, Study, Utilisation, Variant};
use super::tasks::table as tasks;
use super::{quality as perplexities, trials};
use crate::units::{Bytes, Joules, Seconds, three_digits};

/// Marks a variant that nothing beats in both quality and speed.
const MARK: &str = "●";

/// The whole study, at most `width` columns wide where that is possible at all.
pub fn study(study: &Study, width: usize) -> String {
    whole(study, quality(study, width), width)
}

/// The quality part alone: what `ppl` prints. Empty if there is no variant.
pub fn quality(study: &Study, width: usize) -> String {
    let columns = quality_columns(study);
    if study.variants.is_empty() {
        return String::new();
    }
    let title = format::wrapped(&quality_title(study), width);
    let variants = format!("{title}\n{}\n", laid_out(columns, width));
    let tasks = tasks::shown(study, width);
    match tasks.as_str() {
        "" => variants,
        tasks => format!("{variants}\n{tasks}"),
    }
}

/// The speed part alone: what `bench` prints.
pub fn speed(study: &Study, width: usize) -> String {
    whole(study, String::new(), width)
}

/// Where it was measured, a part before the cells, the cells, and the notes; empty if there is no variant.
fn whole(study: &Study, before: String, width: usize) -> String {
    if study.variants.is_empty() {
        return String::new();
    }
    let line = |text: String| format::wrapped(&text, width) + "\n";
    let mut parts: Vec<String> = place(study).map(line).into_iter().collect();
    parts.push(before);
    let cells = study.cells();
    parts.extend(cells.into_iter().map(|cell| speed_in(study, cell, width)));
    parts.push(notes(study).into_iter().map(line).collect());
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// The device and the type of the activations, in one line; `None` if the device has no name.
fn place(study: &Study) -> Option<String> {
    let environment = &study.environment;
    let name = environment.device.name.as_ref()?;
    let threads = (environment.device.kind.as_deref() == Some("cpu"))
        .then_some(environment.threads)
        .flatten()
        .map_or_else(String::new, |n| format!(" · CPU, {n} threads"));
    let mut types: Vec<&str> = Vec::new();
    for variant in &study.variants {
        if !types.contains(&variant.activation_dtype.as_str()) {
            types.push(&variant.activation_dtype);
        }
    }
    Some(format!(
        "{name}{threads} · activations in {}",
        types.join(", ")
    ))
}

/// Empty if nothing was measured in this cell.
fn speed_in(study: &Study, cell: Cell, width: usize) -> String {
    let columns = speed_columns(study, cell);
    if columns.is_empty() {
        return String::new();
    }
    let title = format::wrapped(&cell_title(cell), width);
    format!("{title}\n{}\n", laid_out(columns, width))
}

/// What the quality part is about, in one line.
pub(super) fn quality_title(study: &Study) -> String {
    let measured = study.variants.iter().find_map(|v| v.perplexity.as_ref());
    let names = study.model_names();
    match measured {
        Some(p) => format!(
            "{names} · text: {} · protocol {} · context {} · {} tokens scored",
            p.text.name, p.protocol, p.context, p.tokens_scored
        ),
        None => names,
    }
}

/// The shape of the work in words.
pub(super) fn cell_title(cell: Cell) -> String {
    let depth = match cell.depth {
        0 => String::new(),
        depth => format!(" · depth {depth}"),
    };
    format!(
        "batch {} · prompt {} · generate {}{depth}",
        cell.batch, cell.prompt, cell.generate
    )
}

/// What the variants are and how good. Columns without a figure are left out.
pub(super) fn quality_columns(study: &Study) -> Vec<Column> {
    let axis = study.text_axis();
    let rows: Vec<&Variant> = study.variants.iter().collect();
    let of = |head: &str, weight, figure: &dyn Fn(&Variant) -> Option<String>| {
        column(head, weight, rows.iter().map(|variant| figure(variant)))
    };
    let scored = |figure: fn(&Perplexity) -> Option<String>| {
        move |variant: &Variant| variant.perplexity.as_ref().and_then(figure)
    };
    let columns = vec![
        of("variant", 255, &|v| Some(study.label(v))),
        of("bits", 6, &|v| Some(v.scheme.bits.to_string())),
        of("group", 3, &|v| v.scheme.group_size.map(|g| g.to_string())),
        of("weights", 7, &|v| Some(Bytes(v.weight_bytes?).to_string())),
        of(&format!("{} ± se", axis.short()), 10, &|v| {
            let quality = v.quality(axis)?;
            Some(format::quality_with_error(
                axis,
                quality.value,
                quality.stderr,
            ))
        }),
        of("Δ ppl [95 % CI]", 9, &scored(|p| Some(interval(p)))),
        of(
            "change",
            8,
            &scored(|p| Some(format::change(p.delta_vs_base?.ratio))),
        ),
        of("tasks ± se\n%", 6, &|v| {
            let average = v.task_average?;
            Some(format::share_with_error(average.value, average.stderr))
        }),
        of("recovery ± CI\nof tasks", 9, &|v| {
            tasks::recovery(v.task_average?.versus_base?)
        }),
        of(
            "KL to base\nnats/token",
            5,
            &scored(|p| Some(format::plain(p.divergence?.mean_kl))),
        ),
        of(
            "same\ntop-1",
            4,
            &scored(|p| Some(format!("{:.1} %", 100.0 * p.divergence?.top1_agreement))),
        ),
    ];
    filled(columns)
}

fn interval(perplexity: &Perplexity) -> String {
    let Some(delta) = perplexity.delta_vs_base else {
        return "base".to_owned();
    };
    match (delta.ci95_low, delta.ci95_high) {
        (Some(low), Some(high)) => {
            let [value, low, high] = format::differences([delta.value, low, high]);
            format!("{value} [{low}, {high}]")
        }
        _ => format::difference(delta.value),
    }
}

/// How fast the variants are in one cell. Columns without a figure are left out, and all of them if nothing was measured.
pub(super) fn speed_columns(study: &Study, cell: Cell) -> Vec<Column> {
    let axis = study.quality_axis;
    let tokens = format::rounded(study.goal.tokens);
    let rows: Vec<(&Variant, Option<&Speed>)> = study
        .variants
        .iter()
        .map(|v| (v, v.at(cell).filter(|speed| !speed.failed)))
        .collect();
    if rows.iter().all(|(_, speed)| speed.is_none()) {
        return Vec::new();
    }
    let of = |head: &str, weight, figure: &dyn Fn(&Speed) -> Option<String>| {
        column(
            head,
            weight,
            rows.iter().map(|(_, speed)| speed.and_then(figure)),
        )
    };
    let columns = vec![
        of("", 250, &|s| s.on_pareto_front.then(|| MARK.to_owned())).blank(),
        column(
            "variant",
            255,
            rows.iter().map(|(v, _)| Some(study.label(v))),
        ),
        column(
            axis.short(),
            4,
            rows.iter()
                .map(|(v, _)| Some(format::quality(axis, study.quality(v)?.value))),
        ),
        of("prefill\ntok/s", 7, &|s| {
            s.prefill_tokens_per_second.map(three_digits)
        }),
        of("decode\ntok/s ± CI", 12, &|s| {
            let rate = s.decode_tokens_per_second?;
            let interval = s.decode_tokens_per_second_ci95;
            Some(format::with_half_width(three_digits(rate), rate, interval))
        }),
        of("prefill\n% of limit", 5, &|s| {
            of_limit(s.prefill_utilisation.as_ref()?)
        }),
        of("decode\n% of limit", 8, &|s| {
            of_limit(s.decode_utilisation.as_ref()?)
        }),
        of("vs base\n± CI", 11, &|s| {
            let ratio = s.speedup_vs_base?;
            let interval = s.speedup_vs_base_ci95;
            Some(format::with_half_width(
                format::factor(ratio),
                ratio,
                interval,
            ))
        }),
        of("ppl %\n/ % faster", 2, &|s| {
            s.ppl_percent_per_speed_percent.map(format::plain)
        }),
        of("tasks %\n/ % faster", 2, &|s| {
            s.task_percent_per_speed_percent.map(format::plain)
        }),
        of("ITL p50\nms", 10, &|s| Some(format::plain(s.itl_ms?.p50))),
        of("ITL p99\nms", 3, &|s| s.itl_ms?.p99.map(format::plain)),
        of("host gap\n%", 2, &|s| {
            Some(format!("{:.1}", s.device?.host_gap_percent?))
        }),
        of("TTFT p50\nms", 9, &|s| Some(format::plain(s.ttft_ms?.p50))),
        of(&format!("{tokens} tokens\nat goal"), 4, &|s| {
            Some(Seconds(s.goal_seconds?).to_string())
        }),
        of(&format!("{tokens} tokens\nJ at goal"), 3, &|s| {
            Some(Joules(s.goal_joules?).to_string() + doubt(s))
        }),
        of("memory", 8, &|s| Some(s.memory?.total.best()?.to_string())),
        of("energy\nJ/token", 6, &|s| {
            let per_token = s.energy_use()?.j_per_generated_token?;
            Some(format::plain(per_token) + doubt(s))
        }),
        of("trials\nended by", 1, &trials::ended),
    ];
    filled(columns)
}

/// The mark of an energy that is in doubt.
fn doubt(speed: &Speed) -> &'static str {
    match speed.energy_use() {
        Some(used) if used.suspect => DOUBTED,
        _ => "",
    }
}

/// `62.1 read`: the share of the measured ceiling that binds, and which it is.
fn of_limit(utilisation: &Utilisation) -> Option<String> {
    let limit = utilisation.limit.as_deref()?;
    let name = limit.strip_prefix("matmul ").unwrap_or(limit);
    Some(format!(
        "{} {name}",
        format::plain(utilisation.percent_of_limit?)
    ))
}

/// What the marks mean, and why figures are missing.
fn notes(study: &Study) -> Vec<String> {
    let mut lines = Vec::new();
    if study.variants.iter().any(|variant| variant.on_pareto_front) {
        let axis = study.quality_axis.name();
        lines.push(format!(
            "{MARK} on the Pareto front of {axis} and decode tok/s (point estimates)"
        ));
    }
    let mut speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    if speeds.any(|speed| speed.decode_tokens_per_second_ci95.is_some()) {
        lines.push("± CI: half of the 95 % interval over the trials of this run".to_owned());
    }
    let mut speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    if speeds.any(Speed::has_limit) {
        lines.push(
            "% of limit: of what bytes and operations leave at best by the measured ceilings, and which of them binds"
                .to_owned(),
        );
    }
    lines.extend(goal_note(study));
    lines.extend(tasks::mark(study));
    lines.extend(quality_notes(study));
    let mut speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    if speeds.any(|speed| speed.device.is_some_and(|d| d.host_gap_percent.is_some())) {
        lines.push(
            "host gap: the part of the inter-token latency that the device, by its own clock, did not take"
                .to_owned(),
        );
    }
    lines.extend(remarks(study));
    lines.extend(speed_notes(study));
    for variant in &study.variants {
        let label = study.label(variant);
        if let Some(reason) = &variant.reason {
            let verb = if variant.failed {
                "failed"
            } else {
                "has no perplexity"
            };
            lines.push(format!("{label} {verb}: {reason}"));
        }
        for task in &variant.tasks {
            if let Some(reason) = &task.reason {
                lines.push(format!("{label}, {}: {reason}", task.name));
            }
        }
        for speed in &variant.speed {
            if let Some(reason) = &speed.reason {
                lines.push(format!("{label}, {}: {reason}", cell_title(speed.cell())));
            }
        }
    }
    lines
}

/// What must be known to read the speeds: what the interval of a ratio is, why a percentile is missing, how many trials
/// there were, and which had not settled.
pub(super) fn speed_notes(study: &Study) -> Vec<String> {
    speedup_note(study)
        .into_iter()
        .chain(missing_percentile(study))
        .chain(trials::note(study))
        .chain(trials::unsteady(study))
        .collect()
}

/// How the interval of a ratio to the base came about; `None` if there is none.
fn speedup_note(study: &Study) -> Option<String> {
    let mut speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    let shown = speeds.any(|speed| speed.speedup_vs_base_ci95.is_some());
    shown.then(|| {
        "vs base: its interval is paired by turn where both took as many turns, else over the trials of each"
            .to_owned()
    })
}

/// Why some cells have no ITL p99; `None` if all that decoded have one.
fn missing_percentile(study: &Study) -> Option<String> {
    let speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    let few = speeds.filter_map(|speed| speed.itl_ms.filter(|itl| itl.p99.is_none()));
    let most = few.map(|itl| itl.n).max()?;
    Some(format!(
        "ITL p99 takes 100 steps; where there is none, there were {most} or fewer"
    ))
}

/// What the columns of the goal stand for; `None` where nothing reaches it.
pub(super) fn goal_note(study: &Study) -> Option<String> {
    let mut speeds = study.variants.iter().flat_map(|variant| &variant.speed);
    if !speeds.any(|s| s.goal_seconds.is_some() || s.goal_joules.is_some()) {
        return None;
    }
    let goal = &study.goal;
    let at = |choice: &Choice| format!("{}, batch {}", choice.variant, choice.batch);
    let least_time = goal.fastest.as_ref();
    let least_energy = goal.most_frugal.as_ref();
    let best: Vec<String> = [
        least_time.map(|choice| format!("{} ({})", Seconds(choice.cost), at(choice))),
        least_energy.map(|choice| format!("{} ({})", Joules(choice.cost), at(choice))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let best = match best.as_slice() {
        [] => String::new(),
        best => format!("; at best {}", best.join(" and ")),
    };
    Some(format!(
        "at goal: to decode {} tokens, of variants whose recovery of {} is at least {} %{best}",
        format::grouped(goal.tokens),
        goal.of?.name(),
        goal.recovery_percent
    ))
}

/// Why a perplexity is not held against its base's.
fn not_compared(study: &Study) -> impl Iterator<Item = String> {
    study.variants.iter().filter_map(|variant| {
        let base = study.base_of(variant)?.perplexity.as_ref()?;
        let what = perplexities::apart(base, variant.perplexity.as_ref()?)?;
        let label = study.label(variant);
        Some(format!(
            "{label}: {what}, so its perplexity has no Δ and no recovery"
        ))
    })
}

/// What must be known to read the quality figures: what does not compare, how much of a divergence is noise, and whether
/// losses depend on what runs beside a sequence.
pub(super) fn quality_notes(study: &Study) -> Vec<String> {
    let mut lines = tasks::under_load(study);
    lines.extend(not_compared(study));
    let mut differing = Vec::new();
    let mut same: Vec<String> = Vec::new();
    let mut checked = 0;
    for variant in &study.variants {
        let Some(perplexity) = &variant.perplexity else {
            continue;
        };
        let label = study.label(variant);
        if let Some(floor) = &perplexity.noise_floor {
            lines.push(format!(
                "noise floor: {label} against itself in another batch size, KL {} nats/token, same top-1 {:.2} %",
                format::plain(floor.mean_kl),
                100.0 * floor.top1_agreement
            ));
        }
        checked += usize::from(!perplexity.under_load.is_empty());
        for found in &perplexity.under_load {
            let how = if found.batch > 1 {
                format!("at batch {}", found.batch)
            } else {
                format!("in chunks of {}", found.chunk)
            };
            if !found.equal {
                differing.push(format!(
                    "{label}: {how}, losses differ from those of a sequence alone by {:+.1e} nats/token, of a token by up to {:.1e}",
                    found.loss_difference, found.largest_difference
                ));
            } else if !same.contains(&how) {
                same.push(how);
            }
        }
    }
    if differing.is_empty() && checked > 0 {
        lines.push(format!(
            "under load: losses {} are those of a sequence alone, to the bit",
            same.join(" and ")
        ));
    }
    lines.extend(differing);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    fn widest(text: &str) -> usize {
        text.lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn the_table_fits_the_terminal() {
        let usual = fixture::study();
        for width in [60, 80, 100, 140] {
            for shown in [
                study(&usual, width),
                study(&fixture::task_study(), width),
                study(&fixture::extreme_study(), width),
            ] {
                assert!(widest(&shown) <= width, "{width}:\n{shown}");
            }
        }
    }

    #[test]
    fn a_hundred_columns_hold_every_speed_figure() {
        let shown = study(&fixture::study(), 100);
        for head in [
            "variant",
            "bits",
            "weights",
            "ppl ± se",
            "95 % CI",
            "prefill",
            "decode",
            "vs base",
        ] {
            assert!(shown.contains(head), "{head}:\n{shown}");
        }
        for head in [
            "ITL p50",
            "TTFT p50",
            "memory",
            "J/token",
            "● on the Pareto front",
        ] {
            assert!(shown.contains(head), "{head}:\n{shown}");
        }
        assert!(shown.contains("batch 64 · prompt 512 · generate 128"));
        assert!(
            shown.contains("noise floor: bf16 against itself"),
            "{shown}"
        );
        assert!(
            shown.contains("w4a16: at batch 64, losses differ"),
            "{shown}"
        );
    }

    #[test]
    fn a_ratio_to_the_base_has_an_interval() {
        let mut usual = fixture::study();
        usual.variants[1].speed[0].speedup_vs_base = Some(2.0);
        usual.variants[1].speed[0].speedup_vs_base_ci95 = Some(crate::results::study::Interval {
            low: 1.9,
            high: 2.1,
        });
        let shown = study(&usual, 100);
        assert!(shown.contains("2.00× ±5 %"), "{shown}");
        assert!(
            shown.contains("paired by turn where both took as many turns"),
            "{shown}"
        );
        let base = &usual.variants[0];
        assert!(base.speed.iter().all(|s| s.speedup_vs_base_ci95.is_none()));
    }

    #[test]
    fn how_many_trials_there_were_and_why_no_more_is_told() {
        let mut usual = fixture::study();
        for (place, speed) in usual.variants[2].speed.iter_mut().enumerate() {
            speed.trials = 4 + place;
            speed.stop_reason = Some("time_limit".to_owned());
            speed.ttft_steadiness = None;
            speed.itl_steadiness = None;
        }
        let shown = study(&usual, 250);
        for text in ["12 time", "4 time limit", "trials: 4 to 12 of a cell"] {
            assert!(shown.contains(text), "{text}:\n{shown}");
        }
        assert!(
            speed(&usual, 80).contains("trials: 4 to 12"),
            "whatever the width"
        );
    }

    #[test]
    fn what_failed_is_said_below() {
        let shown = study(&fixture::small_study(), 100);
        assert!(shown.contains("w8a8 failed: out of memory"), "{shown}");
    }

    #[test]
    fn tasks_have_columns_and_a_table_of_their_own() {
        let shown = study(&fixture::task_study(), 160);
        for text in [
            "tasks ± se",
            "of tasks",
            "100.00 ± 0.51 %",
            "1M tokens",
            "at goal: to decode",
            "recovery of task average is at least 99 %",
            "w4a16:g64, mmlu_anatomy: the device was lost",
        ] {
            assert!(shown.contains(text), "{text}:\n{shown}");
        }
        assert!(shown.contains(tasks::Detail::Whole.title()), "{shown}");
    }

    #[test]
    fn parts_stand_alone() {
        let usual = fixture::study();
        assert!(!quality(&usual, 100).contains("decode"));
        assert!(!speed(&usual, 100).contains("95 % CI"));
        let empty = Study::from_records(fixture::environment(), vec![], &[]);
        assert_eq!(study(&empty, 100), "");
    }
}
