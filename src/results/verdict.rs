//! What a study says, in a sentence or two.

use super::format;
use super::goal::Choice;
use super::record::Cell;
use super::study::{QualityAxis, Study, Variant};
use super::tasks::table as tasks;
use crate::units::{Joules, Seconds};

/// A change of perplexity that few would notice: within this share of the base.
const SLIGHT: f64 = 0.01;

/// The verdict at the first cell, that is the smallest batch; empty if nothing was measured.
pub(super) fn verdict(study: &Study) -> String {
    let measured: Vec<&Variant> = study.variants.iter().filter(|v| !v.failed).collect();
    match measured.as_slice() {
        [] => String::new(),
        [single] => alone(study, single),
        _ if study.models.len() > 1 => across_models(study, &measured),
        _ => {
            let text = against_base(study, &measured);
            text.unwrap_or_else(|| by_quality(study, &measured)) + &goal(study)
        }
    }
}

/// One variant: its own figures.
fn alone(study: &Study, variant: &Variant) -> String {
    let mut parts = Vec::new();
    if let Some(quality) = study.quality(variant) {
        let axis = study.quality_axis;
        let shown = format::quality_with_error(axis, quality.value, quality.stderr);
        parts.push(match axis {
            QualityAxis::Perplexity => format!("has a perplexity of {shown}"),
            QualityAxis::BitsPerByte => format!("needs {shown} bits per byte"),
            QualityAxis::KlDivergence => format!("has a divergence of {shown} nats per token"),
            QualityAxis::TaskError => format!("has a task error of {shown} %"),
        });
    }
    if let Some((cell, rate)) = first_rate(study, variant) {
        parts.push(format!(
            "decodes {} tokens/s at {}",
            format::rate(rate),
            place(cell)
        ));
    }
    match parts.is_empty() {
        true => format!("{} has no figures yet.", study.label(variant)),
        false => format!("{} {}.", study.label(variant), parts.join(" and ")),
    }
}

/// Variants of one model: the fastest with its price, and the fastest that costs next to nothing.
fn against_base(study: &Study, measured: &[&Variant]) -> Option<String> {
    let base = measured.iter().find(|variant| variant.base)?;
    let (cell, _) = first_rate(study, base)?;
    let gain = |variant: &Variant, cell| variant.at(cell)?.speedup_vs_base;
    let fastest = best(measured, |variant| gain(variant, cell))?;
    let name = study.label(base);
    if fastest.base {
        let second = best(&without(measured, fastest), |variant| gain(variant, cell))?;
        let factor = format::factor(gain(second, cell)?);
        let mut text = format!(
            "Nothing is faster than {name} at {}: the next, {}, reaches {factor}.",
            place(cell),
            study.label(second)
        ) + doubt(second, cell);
        // What holds for the smallest batch need not hold for the largest.
        if let Some((last, variant, factor)) = last_of_axis(study, cell).and_then(|last| {
            let variant = best(measured, |variant| gain(variant, last))?;
            Some((last, variant, gain(variant, last)?))
        }) && factor > 1.0
        {
            text += &format!(
                " At {}, {} decodes fastest, {}{}.",
                place(last),
                study.label(variant),
                format::factor(factor),
                cost(variant)
            );
            text += doubt(variant, last);
        }
        return Some(text);
    }
    let later = last_of_axis(study, cell).and_then(|last| {
        let factor = format::factor(gain(fastest, last)?);
        Some(format!(" ({factor} at batch {})", last.batch))
    });
    let mut text = format!(
        "{} decodes fastest, {} {name} at {}{}{}.",
        study.label(fastest),
        format::factor(gain(fastest, cell)?),
        place(cell),
        later.unwrap_or_default(),
        cost(fastest)
    ) + doubt(fastest, cell);
    let slight = |variant: &Variant| ratio(variant).is_some_and(|ratio| ratio < 1.0 + SLIGHT);
    let cheap: Vec<&Variant> = measured
        .iter()
        .copied()
        .filter(|v| !v.base && slight(v))
        .collect();
    match best(&cheap, |variant| gain(variant, cell)) {
        _ if slight(fastest) => {}
        Some(variant) if gain(variant, cell)? > 1.0 => {
            text += &format!(
                " Within 1 % of {name}’s perplexity, the fastest is {}: {} for {}.",
                study.label(variant),
                format::factor(gain(variant, cell)?),
                format::change(ratio(variant)?)
            );
        }
        _ if ratio(fastest).is_some() => {
            text += &format!(" None that is faster stays within 1 % of {name}’s perplexity.");
        }
        _ => {}
    }
    Some(text)
}

/// A sentence where the interval of the ratio to the base holds one; empty where it does not, or there is none.
fn doubt(variant: &Variant, cell: Cell) -> &'static str {
    let ends = variant
        .at(cell)
        .and_then(|speed| speed.speedup_vs_base_ci95);
    match ends.is_some_and(|ends| ends.low <= 1.0 && 1.0 <= ends.high) {
        true => " Its interval leaves open whether that is so.",
        false => "",
    }
}

/// Who reaches the goal soonest and with the least energy; empty if nobody does.
fn goal(study: &Study) -> String {
    let goal = &study.goal;
    let (Some(of), Some(fastest)) = (goal.of, &goal.fastest) else {
        return String::new();
    };
    let at = |choice: &Choice| format!("{}, batch {}", choice.variant, choice.batch);
    let energy = goal.most_frugal.as_ref().map_or_else(String::new, |least| {
        let whose = if at(least) == at(fastest) {
            "the same".to_owned()
        } else {
            at(least)
        };
        format!(", with the least energy {} ({whose})", Joules(least.cost))
    });
    format!(
        " At a recovery of {} % of {} or more, {} tokens take {} at least ({}){energy}.",
        goal.recovery_percent,
        of.name(),
        format::grouped(goal.tokens),
        Seconds(fastest.cost),
        at(fastest)
    )
}

/// No speed: who predicts best.
fn by_quality(study: &Study, measured: &[&Variant]) -> String {
    let loss = |variant: &Variant| Some(-study.quality(variant)?.value);
    match best(measured, loss) {
        Some(variant) => alone(study, variant).replacen(" has ", " predicts best: it has ", 1),
        None => String::new(),
    }
}

/// Several models: who predicts best and who is fastest.
fn across_models(study: &Study, measured: &[&Variant]) -> String {
    let loss = |variant: &Variant| Some(-study.quality(variant)?.value);
    let mut text = String::new();
    if let Some((variant, quality)) =
        best(measured, loss).and_then(|variant| Some((variant, study.quality(variant)?)))
    {
        let axis = study.quality_axis;
        text = format!(
            "{} predicts best, with {} {}",
            study.label(variant),
            format::quality(axis, quality.value),
            axis.name()
        );
    }
    let first = study.cells().first().copied();
    let rate = |variant: &Variant| variant.at(first?)?.decode_tokens_per_second;
    if let Some((variant, rate)) = best(measured, rate).and_then(|v| Some((v, rate(v)?))) {
        let join = if text.is_empty() { "" } else { "; " };
        let at = first.map_or(String::new(), |cell| format!(" at {}", place(cell)));
        text += &format!(
            "{join}{} decodes fastest, with {} tokens/s{at}",
            study.label(variant),
            format::rate(rate)
        );
    }
    if text.is_empty() { text } else { text + "." }
}

fn best<'a>(
    variants: &[&'a Variant],
    figure: impl Fn(&Variant) -> Option<f64>,
) -> Option<&'a Variant> {
    variants
        .iter()
        .filter_map(|variant| Some((figure(variant)?, *variant)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, variant)| variant)
}

fn without<'a>(variants: &[&'a Variant], one: &Variant) -> Vec<&'a Variant> {
    variants
        .iter()
        .copied()
        .filter(|variant| !std::ptr::eq::<Variant>(*variant, one))
        .collect()
}

/// The first cell where the variant decoded.
fn first_rate(study: &Study, variant: &Variant) -> Option<(Cell, f64)> {
    study
        .cells()
        .into_iter()
        .find_map(|cell| Some((cell, variant.at(cell)?.decode_tokens_per_second?)))
}

/// The largest batch of the same shape; `None` if there is no other.
fn last_of_axis(study: &Study, first: Cell) -> Option<Cell> {
    let same_shape = |cell: &Cell| {
        Cell {
            batch: first.batch,
            ..*cell
        } == first
    };
    study
        .cells()
        .into_iter()
        .rfind(same_shape)
        .filter(|&last| last != first)
}

fn ratio(variant: &Variant) -> Option<f64> {
    Some(variant.perplexity.as_ref()?.delta_vs_base?.ratio)
}

fn cost(variant: &Variant) -> String {
    let delta = variant.perplexity.as_ref().and_then(|p| p.delta_vs_base);
    let perplexity = delta.map(|delta| {
        format!(
            "for {} perplexity ({})",
            format::difference(delta.value),
            format::change(delta.ratio)
        )
    });
    let tasks = variant.task_average.and_then(|average| {
        let recovery = tasks::recovery(average.versus_base?)?;
        Some(format!("with a task average of {recovery} of the base’s"))
    });
    let costs = perplexity.into_iter().chain(tasks);
    costs.map(|cost| format!(", {cost}")).collect()
}

fn place(cell: Cell) -> String {
    format!("batch {}", cell.batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fixture;

    #[test]
    fn the_verdict_names_the_fastest_and_the_bargain() {
        let text = verdict(&fixture::study());
        assert!(text.starts_with("w4a16 decodes fastest, 1."), "{text}");
        assert!(!text.contains("leaves open"), "{text}");
        assert!(text.contains("at batch 1 (1."), "{text}");
        assert!(
            text.contains("Within 1 % of bf16’s perplexity, the fastest is int8"),
            "{text}"
        );
    }

    #[test]
    fn what_the_intervals_leave_open_is_said() {
        let mut study = fixture::study();
        for variant in &mut study.variants {
            for speed in &mut variant.speed {
                let ends = &mut speed.speedup_vs_base_ci95;
                *ends = ends.map(|ends| crate::results::study::Interval { low: 0.9, ..ends });
            }
        }
        let text = verdict(&study);
        assert!(
            text.contains(". Its interval leaves open whether that is so."),
            "{text}"
        );
    }

    #[test]
    fn tasks_are_part_of_the_price_and_the_goal_is_told() {
        let text = verdict(&fixture::task_study());
        assert!(
            text.contains("perplexity (+9.81 %), with a task average of 93."),
            "{text}"
        );
        assert!(
            text.contains(
                "At a recovery of 99 % of task average or more, 1\u{202f}000\u{202f}000 tokens take"
            ),
            "{text}"
        );
        assert!(
            text.contains("at least (int8, batch 64), with the least energy"),
            "{text}"
        );
    }

    #[test]
    fn every_study_gets_a_sentence_or_nothing() {
        let usual = fixture::usual();
        let of = |records: &[super::super::Record]| {
            verdict(&Study::from_records(
                fixture::environment(),
                vec![],
                records,
            ))
        };
        assert_eq!(of(&[]), "");
        assert!(of(&fixture::records_of(&usual[..1], &[1])).contains("has a perplexity of"));
        assert!(of(&fixture::records_of(&usual, &[])).contains("predicts best: it has"));
        assert!(verdict(&fixture::extreme_study()).contains("decodes fastest, with"));
        let mut slower = usual[..2].to_vec();
        slower[1].faster = 0.5;
        let text = of(&fixture::records_of(&slower, &[1]));
        assert!(text.starts_with("Nothing is faster than bf16"), "{text}");
        assert!(!text.contains("decodes fastest"), "{text}");
    }
}
