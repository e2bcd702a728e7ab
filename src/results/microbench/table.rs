//! A run of the microbenchmark in a terminal: a table per shape, who is the fastest where, and the plans.

use super::super::columns::{Column, column, filled, laid_out};
use super::super::format;
use super::document::{Cell, Figures, Library, Microbench, Shape, Verified};
use super::record::{Record, Verification};
use crate::units::{Seconds, three_digits};

/// Marks the fastest variant of a number of tokens.
const MARK: &str = "●";

/// Every shape, at most `width` columns wide where that is possible at all.
pub fn microbench(document: &Microbench, width: usize) -> String {
    let line = |text: String| format::wrapped(&text, width) + "\n";
    let mut parts: Vec<String> = place(document).map(line).into_iter().collect();
    for shape in &document.shapes {
        let mut part = line(shape.title());
        let columns = columns(shape);
        if !columns.is_empty() {
            part += &(laid_out(columns, width) + "\n");
        }
        part += &below(shape).into_iter().map(line).collect::<String>();
        parts.push(part);
    }
    let notes: String = notes(document).into_iter().map(line).collect();
    parts.push(notes);
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// The device, and what it was found to do at best.
fn place(document: &Microbench) -> Option<String> {
    let environment = &document.environment;
    let name = environment.device.name.as_ref()?;
    let reference = document
        .cells()
        .filter_map(|(_, cell)| cell.figures.as_ref())
        .any(|figures| figures.cpu_reference);
    let threads = environment
        .threads
        .filter(|_| reference)
        .map_or_else(String::new, |n| format!(", CPU reference, {n} threads"));
    let mut limits = Vec::new();
    if let Some(ceilings) = &environment.ceilings {
        limits.extend(
            ceilings
                .read_gb_per_s
                .map(|rate| format!("read {} GB/s", three_digits(rate))),
        );
        let products = ceilings.matmul_tflop_per_s.iter();
        limits.extend(
            products.map(|(name, rate)| format!("matmul {name} {} TFLOP/s", format::plain(*rate))),
        );
    }
    Some(format!(
        "{name}{threads}{}",
        if limits.is_empty() {
            String::new()
        } else {
            format!(" · measured ceilings: {}", limits.join(", "))
        }
    ))
}

/// The table of one shape, rows by tokens, then by variant; empty if nothing was timed.
pub(super) fn columns(shape: &Shape) -> Vec<Column> {
    let variants = shape.variants();
    let mut rows: Vec<&Cell> = shape.cells.iter().collect();
    rows.sort_by_key(|cell| {
        let place = variants.iter().position(|name| *name == cell.variant);
        (cell.tokens, place)
    });
    if rows.iter().all(|cell| cell.figures.is_none()) {
        return Vec::new();
    }
    let of = |head: &str, weight, figure: &dyn Fn(&Figures) -> Option<String>| {
        column(
            head,
            weight,
            rows.iter()
                .map(|cell| cell.figures.as_ref().and_then(figure)),
        )
    };
    let mark = |cell: &&Cell| is_fastest(shape, cell).then(|| MARK.to_owned());
    let columns = vec![
        column("", 250, rows.iter().map(mark)).blank(),
        column(
            "variant",
            255,
            rows.iter().map(|cell| Some(cell.variant.clone())),
        ),
        column(
            "M",
            254,
            rows.iter().map(|cell| Some(cell.tokens.to_string())),
        ),
        of("cold\nµs ± CI", 253, &|f| Some(time_with_interval(f))),
        of("warm\nµs", 16, &|f| Some(format::plain(f.warm.us.p50))),
        of("read floor\nµs", 15, &|f| {
            Some(format::plain(f.read_floor.us.p50))
        }),
        of("of floor\n%", 20, &|f| {
            Some(percent(f.percent_of_read_floor))
        }),
        of("GB/s", 14, &|f| Some(three_digits(f.gb_per_s))),
        of("TFLOP/s", 11, &|f| {
            (f.tflop_per_s > 0.0).then(|| format::plain(f.tflop_per_s))
        }),
        of("of ceiling\n%", 18, &|f| {
            let limit = f.limit.as_deref()?;
            let name = limit.strip_prefix("matmul ").unwrap_or(limit);
            Some(format!("{} {name}", percent(f.percent_of_limit?)))
        }),
        of("predicted\nµs", 12, &|f| f.predicted_us.map(format::plain)),
        of("library\nµs", 13, &|f| match &f.peer {
            Library::Measured { cold, .. } => Some(format::plain(cold.us.p50)),
            Library::Unavailable { .. } => None,
        }),
        of("quartiles\n%", 5, &|f| {
            f.cold.quartiles_percent.map(|x| format!("{x:.1}"))
        }),
        of("n", 4, &|f| Some(f.cold.us.n.to_string())),
    ];
    filled(columns)
}

/// Whether no other variant is faster at this number of tokens; never where there is no other.
fn is_fastest(shape: &Shape, cell: &Cell) -> bool {
    let Some(own) = cell.cold_us() else {
        return false;
    };
    let mut others = shape
        .cells
        .iter()
        .filter(|other| other.tokens == cell.tokens && other.variant != cell.variant)
        .filter_map(Cell::cold_us)
        .peekable();
    others.peek().is_some() && others.all(|other| own < other)
}

fn time_with_interval(figures: &Figures) -> String {
    let time = format::plain(figures.cold.us.p50);
    match figures.cold.half_width_percent() {
        Some(percent) => format!("{time} {}", format::half_width(percent, 10.0)),
        None => time,
    }
}

/// A share of a whole in percent.
fn share(x: f64) -> String {
    format!("{} %", percent(100.0 * x))
}

fn percent(x: f64) -> String {
    if x < 99.95 {
        format!("{x:.1}")
    } else {
        format!("{x:.0}")
    }
}

/// Who is the fastest where, the plans, and what failed.
pub(super) fn below(shape: &Shape) -> Vec<String> {
    let mut lines: Vec<String> = fastest(shape).into_iter().collect();
    lines.extend(verified(shape));
    lines.extend(
        plans(shape)
            .into_iter()
            .map(|(whose, plan)| format!("plan of {whose}: {plan}")),
    );
    lines.extend(
        failures(shape)
            .into_iter()
            .map(|(what, reason)| format!("{what} failed: {reason}")),
    );
    lines
}

/// `fastest: w4a16 to M = 70, then bf16`; `None` where there was nothing to compare.
pub(super) fn fastest(shape: &Shape) -> Option<String> {
    let mut text = format!("fastest: {}", shape.fastest.first()?.variant);
    for reign in &shape.fastest[1..] {
        text += &format!(
            " up to M ≈ {}, then {}",
            three_digits(reign.from_tokens),
            reign.variant
        );
    }
    Some(text)
}

/// What the verification found where nothing was to be timed; `None` where there is no such cell.
pub(super) fn verified(shape: &Shape) -> Option<String> {
    let found = shape.cells.iter().filter_map(|cell| cell.verified.as_ref());
    let found: Vec<&Verification> = found.map(|verified| &verified.verification).collect();
    let elements: u64 = found.iter().map(|found| found.elements).sum();
    let worst = found.iter().map(|found| found.worst).reduce(f64::max)?;
    let cells = if found.len() == 1 { "cell" } else { "cells" };
    Some(format!(
        "verified: {} {cells}, {elements} elements, the largest error {} of what it may be",
        found.len(),
        share(worst)
    ))
}

/// The plans, with the variants that share them: `M 1–8: this; M 16: that`.
pub(super) fn plans(shape: &Shape) -> Vec<(String, String)> {
    let mut groups: Vec<(Vec<String>, String)> = Vec::new();
    for variant in shape.variants() {
        let own = shape.cells.iter().filter(|cell| cell.variant == variant);
        let text = plans_of(own);
        match groups.iter_mut().find(|(_, same)| *same == text) {
            _ if text.is_empty() => {}
            Some((variants, _)) => variants.push(variant),
            None => groups.push((vec![variant], text)),
        }
    }
    let groups = groups.into_iter();
    groups
        .map(|(variants, text)| (variants.join(", "), text))
        .collect()
}

/// The plans of one variant, neighbours with the same one together.
fn plans_of<'a>(cells: impl Iterator<Item = &'a Cell>) -> String {
    let mut runs: Vec<([usize; 2], &str)> = Vec::new();
    for cell in cells {
        let Some(own) = cell.plan() else {
            continue;
        };
        match runs.last_mut() {
            Some((tokens, plan)) if *plan == own => tokens[1] = cell.tokens,
            _ => runs.push(([cell.tokens; 2], own)),
        }
    }
    let runs = runs.into_iter().map(|([first, last], plan)| {
        if first == last {
            format!("M {first}: {plan}")
        } else {
            format!("M {first}–{last}: {plan}")
        }
    });
    runs.collect::<Vec<_>>().join("; ")
}

/// What has no figures, cells with the same reason together.
pub(super) fn failures(shape: &Shape) -> Vec<(String, String)> {
    let mut groups: Vec<(&str, &str, Vec<String>)> = Vec::new();
    for cell in &shape.cells {
        let Some(reason) = &cell.reason else {
            continue;
        };
        let tokens = cell.tokens.to_string();
        match groups.last_mut() {
            Some((variant, same, all)) if *variant == cell.variant && same == reason => {
                all.push(tokens);
            }
            _ => groups.push((&cell.variant, reason, vec![tokens])),
        }
    }
    groups
        .into_iter()
        .map(|(variant, reason, tokens)| {
            (
                format!("{variant}, M {}", tokens.join(" ")),
                reason.to_owned(),
            )
        })
        .collect()
}

/// What the columns mean.
fn notes(document: &Microbench) -> Vec<String> {
    let figures: Vec<&Figures> = document
        .cells()
        .filter_map(|(_, cell)| cell.figures.as_ref())
        .collect();
    let Some(first) = figures.first() else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    if document
        .shapes
        .iter()
        .any(|shape| !shape.fastest.is_empty())
    {
        lines.push(format!("{MARK} the fastest variant at this M, cold"));
    }
    lines.push(
        "cold: buffers that no cache holds; warm: the same ones again; read floor: a plain kernel that only reads as many \
         bytes as the op moves, cold"
            .to_owned(),
    );
    if figures.iter().any(|f| f.limit.is_some()) {
        lines.push(
            "of ceiling: what bytes and operations leave at best by the measured ceilings, and which of them binds".to_owned(),
        );
    }
    if figures.iter().any(|f| f.cpu_reference) {
        lines.push(format!(
            "CPU reference ({}): the ops that a GPU's results are held to; it says nothing about the speed of a GPU",
            first.timer
        ));
    }
    let mut peers: Vec<&str> = figures.iter().filter_map(|f| library_name(f)).collect();
    peers.sort_unstable();
    peers.dedup();
    if !peers.is_empty() {
        lines.push(format!("library: {}", peers.join(", ")));
    }
    lines
}

fn library_name(figures: &Figures) -> Option<&str> {
    match &figures.peer {
        Library::Measured { name, .. } => Some(name),
        Library::Unavailable { .. } => None,
    }
}

/// What came of a cell, in a few words.
pub fn outcome(record: &Record) -> String {
    let cell = Cell::of(record);
    match (cell.figures, cell.verified) {
        (Some(figures), _) => format!(
            "{} cold, {} % of the read floor",
            Seconds(figures.cold.us.p50 * 1e-6),
            percent(figures.percent_of_read_floor)
        ),
        (None, Some(Verified { verification, .. })) => {
            format!(
                "verified, {} of the error it may have",
                share(verification.worst)
            )
        }
        (None, None) => "no figures".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::record::Outcome;
    use super::*;

    fn widest(text: &str) -> usize {
        text.lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn the_table_fits_and_holds_the_main_figures() {
        let document = fixture::document();
        for width in [60, 80, 100, 140] {
            let shown = microbench(&document, width);
            assert!(widest(&shown) <= width, "{width}:\n{shown}");
        }
        let shown = microbench(&document, 100);
        for text in [
            "linear 6144 × 4096 · llama-3.1-8b qkv",
            "variant",
            "of floor",
            "of ceiling",
            "warm",
            "GB/s",
            "fastest: w4a16 up to M ≈",
            ", then bf16",
            "plan of bf16, int8, w4a16: M 1–1024: stripes of 64 rows",
            "w4a16, M 8 failed: not timed",
        ] {
            assert!(shown.contains(text), "{text}:\n{shown}");
        }
    }

    #[test]
    fn cells_that_were_only_verified_say_so_in_a_line() {
        let mut records = fixture::records();
        records.truncate(11);
        for record in &mut records {
            let Outcome::Ok { result } = &record.outcome else {
                panic!("{record:?}");
            };
            record.outcome = Outcome::Verified {
                plan: result.plan.clone(),
                verification: result.verification.clone(),
            };
            assert_eq!(record.failure(), None);
            assert!(outcome(record).contains("verified, 31.0 %"));
        }
        let shown = microbench(&fixture::document_of(&records), 100);
        assert!(
            shown.contains("verified: 11 cells, 45056 elements, the largest error 31.0 %"),
            "{shown}"
        );
        assert!(shown.contains("plan of bf16: M 1–1024: stripes"), "{shown}");
        assert!(!shown.contains("cold"), "{shown}");
    }

    #[test]
    fn one_variant_of_each_number_of_tokens_is_marked() {
        let document = fixture::document();
        let shown = laid_out(columns(&document.shapes[1]), 100);
        assert_eq!(shown.matches(MARK).count(), 11, "{shown}");
    }
}
