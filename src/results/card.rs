//! The table that publishers of quantised models print on a model's card, in Markdown: a column for each variant, a row
//! for each figure, the recovery against the base among them.

use std::fmt::Write;

use super::columns::{Column, column};
use super::export::{escaped, markdown_table};
use super::format::{self, or_none};
use super::record::Cell;
use super::study::{QualityAxis, Scheme, Speed, Study, Variant};
use super::table;
use super::tasks::table::{recovery, rows as rows_of};
use crate::units::{Bytes, Joules, Seconds, three_digits};

/// Tokens that time and energy are told for.
const TOKENS: f64 = 1000.0;

/// One row: what it says, and the figure of each variant.
struct Row {
    what: String,
    figures: Vec<Option<String>>,
}

/// The tables of a study's models, with what they stand on.
pub fn model_card(study: &Study) -> String {
    let mut names: Vec<&str> = Vec::new();
    for variant in &study.variants {
        if !names.contains(&variant.model.as_str()) {
            names.push(&variant.model);
        }
    }
    let mut out = String::new();
    for name in names {
        let of_model = study.variants.iter().filter(|v| v.model == name);
        let variants: Vec<&Variant> = of_model.filter(|v| !v.failed).collect();
        if variants.is_empty() {
            continue;
        }
        let title = escaped(name);
        let _ = write!(out, "## {title}\n\n{}\n", table_of(study, &variants));
    }
    for note in table::quality_notes(study) {
        let _ = writeln!(out, "- {}", escaped(&note));
    }
    if study.variants.iter().any(|v| v.perplexity.is_some()) {
        out += "- recovery: 100 × the base's perplexity over the variant's; ± one standard error over segments; [ ] 95 % paired \
                interval\n";
    }
    if study.variants.iter().any(|v| v.task_average.is_some()) {
        out += "- tasks are scored by lm_eval's rules; their recovery: 100 × the variant's figure over the base's, ± half of \
                its 95 % interval with documents paired; the average gives every task the same weight, a group counting as one\n";
    }
    if let Some(device) = &study.environment.device.name {
        let version = &study.environment.tool_version;
        let _ = writeln!(
            out,
            "- measured on {} by candlepower {version}",
            escaped(device)
        );
    }
    if !study.command.is_empty() {
        let _ = write!(out, "\n```sh\n{}\n```\n", study.command_line());
    }
    out
}

fn table_of(study: &Study, variants: &[&Variant]) -> String {
    let mut rows = stored(variants);
    rows.extend(quality(variants));
    rows.extend(tasks(variants));
    let cells = study.cells();
    for &cell in &cells {
        rows.extend(speed(variants, cell));
        rows.extend(goal(study, variants, cell));
    }
    rows.retain(|row| row.figures.iter().any(Option::is_some));
    // The head of the first column is what lays names out to the left.
    let whats = rows.iter().map(|row| Some(row.what.clone()));
    let mut columns: Vec<Column> = vec![column("variant", 0, whats)];
    for (place, variant) in variants.iter().enumerate() {
        let figures = rows.iter().map(|row| row.figures[place].clone());
        columns.push(column(&study.label(variant), 0, figures));
    }
    markdown_table(&columns)
}

fn row(
    what: impl Into<String>,
    variants: &[&Variant],
    figure: impl Fn(&Variant) -> Option<String>,
) -> Row {
    Row {
        what: what.into(),
        figures: variants.iter().map(|variant| figure(variant)).collect(),
    }
}

fn stored(variants: &[&Variant]) -> Vec<Row> {
    vec![
        row("Weights", variants, |v| Some(scheme(&v.scheme))),
        row("Size", variants, |v| {
            Some(Bytes(v.weight_bytes?).to_string())
        }),
    ]
}

fn scheme(scheme: &Scheme) -> String {
    let mut text = format!("{} bit", scheme.bits);
    if let Some(group) = scheme.group_size {
        text += &format!(", groups of {group}");
    }
    if scheme.method != "none" {
        text += &format!(", {}", scheme.method);
    }
    if scheme.activations != "float" {
        text += &format!(", inputs {}", scheme.activations);
    }
    text
}

fn quality(variants: &[&Variant]) -> Vec<Row> {
    let protocol = variants.iter().find_map(|v| v.perplexity.as_ref());
    let Some(protocol) = protocol else {
        return Vec::new();
    };
    let name = format!(
        "Perplexity ({}, context {}, {})",
        protocol.protocol, protocol.context, protocol.text.name
    );
    let ppl = QualityAxis::Perplexity;
    let of = |v: &Variant| v.perplexity.clone();
    vec![
        row(name, variants, |v| {
            let quality = v.quality(ppl)?;
            Some(format::quality_with_error(
                ppl,
                quality.value,
                quality.stderr,
            ))
        }),
        row("Δ perplexity", variants, |v| {
            let delta = of(v)?.delta_vs_base?;
            let ends = [delta.value, delta.ci95_low?, delta.ci95_high?];
            let [value, low, high] = format::differences(ends);
            Some(format!("{value} [{low}, {high}]"))
        }),
        row("Recovery", variants, |v| {
            Some(format!("{:.2} %", of(v)?.recovery_percent?))
        }),
        row(
            "KL divergence from the base (nats per token)",
            variants,
            |v| {
                let axis = QualityAxis::KlDivergence;
                let quality = v.quality(axis).filter(|_| !v.base)?;
                Some(format::quality_with_error(
                    axis,
                    quality.value,
                    quality.stderr,
                ))
            },
        ),
        row("Same most likely token", variants, |v| {
            Some(format!(
                "{:.2} %",
                100.0 * of(v)?.divergence?.top1_agreement
            ))
        }),
        row("Bits per byte", variants, |v| {
            Some(format!("{:.4}", of(v)?.bits_per_byte?))
        }),
    ]
}

/// A row for each task, and how much of the base's figure is left, as publishers have it.
fn tasks(variants: &[&Variant]) -> Vec<Row> {
    let mut rows = Vec::new();
    for task in rows_of(variants.iter().copied()) {
        let of = |variant: &Variant| {
            let mut own = variant.tasks.iter();
            own.find(|other| other.is_same(task)).cloned()
        };
        let measure = or_none(task.measure(), |measure| measure);
        let shots = task.num_fewshot.filter(|&shots| shots > 0);
        let shots = shots.map_or_else(String::new, |shots| format!(", {shots}-shot"));
        let name = format!("{} ({measure}{shots}, %)", task.name);
        rows.push(row(name, variants, |v| {
            let task = of(v)?;
            Some(format::share_with_error(task.value?, task.stderr))
        }));
        rows.push(row(format!("Recovery, {}", task.name), variants, |v| {
            recovery(of(v)?.versus_base?)
        }));
    }
    rows.push(row("Average of tasks (%)", variants, |v| {
        let average = v.task_average?;
        Some(format::share_with_error(average.value, average.stderr))
    }));
    rows.push(row("Recovery, average of tasks", variants, |v| {
        recovery(v.task_average?.versus_base?)
    }));
    rows
}

/// What the goal takes, of variants that keep enough.
fn goal(study: &Study, variants: &[&Variant], cell: Cell) -> Vec<Row> {
    let goal = &study.goal;
    let row_of = |what: &str, figure: &dyn Fn(&Speed) -> Option<String>| {
        let title = format!(
            "{what} for {} tokens at a recovery of {} % or more{}",
            format::grouped(goal.tokens),
            goal.recovery_percent,
            goal.of
                .map_or_else(String::new, |of| format!(" ({})", of.name()))
        );
        let at = table::cell_title(cell);
        row(format!("{title}, {at}"), variants, |v| figure(v.at(cell)?))
    };
    vec![
        row_of("Time", &|s| Some(Seconds(s.goal_seconds?).to_string())),
        row_of("Energy", &|s| Some(Joules(s.goal_joules?).to_string())),
    ]
}

fn speed(variants: &[&Variant], cell: Cell) -> Vec<Row> {
    let at = table::cell_title(cell);
    let of = |what: &str, figure: &dyn Fn(&Speed) -> Option<String>| {
        row(format!("{what}, {at}"), variants, |v| figure(v.at(cell)?))
    };
    vec![
        of("Decode (tokens/s)", &|s| {
            let gain = or_none(s.speedup_vs_base, format::factor);
            Some(format!(
                "{} ({gain})",
                three_digits(s.decode_tokens_per_second?)
            ))
        }),
        of("Prefill (tokens/s)", &|s| {
            s.prefill_tokens_per_second.map(three_digits)
        }),
        of("Time to first token (ms, median)", &|s| {
            Some(format::plain(s.ttft_ms?.p50))
        }),
        of("Time for 1000 tokens", &|s| {
            Some(Seconds(TOKENS / s.decode_tokens_per_second?).to_string())
        }),
        of("Energy for 1000 tokens", &|s| {
            Some(Joules(TOKENS * s.energy_use()?.j_per_generated_token?).to_string())
        }),
        of("Memory", &|s| Some(s.memory?.total.best()?.to_string())),
        of("Perplexity lost per percent faster (%)", &|s| {
            s.ppl_percent_per_speed_percent.map(format::plain)
        }),
        of("Task average lost per percent faster (%)", &|s| {
            s.task_percent_per_speed_percent.map(format::plain)
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn a_card_has_a_column_for_each_variant_and_the_recovery() {
        let card = model_card(&fixture::study());
        let rows: Vec<&str> = card.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.len() > 10, "{card}");
        // Five variants and what the row says.
        assert!(
            rows.iter().all(|row| row.matches(" | ").count() == 5),
            "{card}"
        );
        let recovery = rows
            .iter()
            .find(|row| row.starts_with("| Recovery"))
            .unwrap();
        assert!(recovery.contains("| 100.00 %"), "{recovery}");
        for what in [
            "KL divergence",
            "Same most likely token",
            "Decode (tokens/s), batch 64",
            "Energy for 1000 tokens",
            "noise floor",
            "candlepower study",
        ] {
            assert!(card.contains(what), "{what}:\n{card}");
        }
    }

    #[test]
    fn every_task_has_its_recovery() {
        let card = model_card(&fixture::task_study());
        for what in [
            "| mmlu (acc, %)",
            "| Recovery, mmlu |",
            "| mmlu_anatomy (acc, 5-shot, %)",
            "| arc_easy (acc, 5-shot, %)",
            "| Average of tasks (%)",
            "| Task average lost per percent faster (%), batch 1 ·",
            "tokens at a recovery of 99 % or more (task average), batch 64 ·",
            "| Recovery, average of tasks | 100.00 ± 0.51 % |",
        ] {
            assert!(card.contains(what), "{what}:\n{card}");
        }
    }

    #[test]
    fn what_failed_is_left_out_and_nothing_makes_nothing() {
        let card = model_card(&fixture::small_study());
        assert!(!card.contains("w8a8"), "{card}");
        assert_eq!(
            model_card(&Study::from_records(Default::default(), vec![], &[])),
            ""
        );
        let extreme = model_card(&fixture::extreme_study());
        assert_eq!(extreme.matches("\n## ").count() + 1, 2, "{extreme}");
    }
}
