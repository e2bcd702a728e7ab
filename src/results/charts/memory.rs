//! Where the device memory went in one cell: a stacked bar per variant.

use super::super::record::Cell;
use super::super::study::{Amount, Memory, Study};
use super::super::table::cell_title;
use super::scale::{Origin, Scale};
use super::svg::{Anchor, Svg};
use super::{WIDE, label_room, labels};
use crate::units::Bytes;

const ROW: f64 = 32.0;
const BAR: f64 = 18.0;
const TOP: f64 = 6.0;

/// Room to the right for the total.
const FIGURES: f64 = 96.0;

/// The parts of a bar: name and class.
const PARTS: [(&str, &str); 4] = [
    ("weights", "m0"),
    ("KV cache", "m1"),
    ("activations", "m2"),
    ("other", "m3"),
];

/// The chart; `None` if no variant has a ledger in this cell.
pub(in super::super) fn memory(study: &Study, cell: Cell) -> Option<String> {
    let labels = labels(study);
    let rows: Vec<(&String, Memory)> = study
        .variants
        .iter()
        .zip(&labels)
        .filter_map(|(variant, label)| Some((label, variant.at(cell)?.memory?)))
        .filter(|(_, memory)| total(memory) > 0)
        .collect();
    if rows.is_empty() {
        return None;
    }
    let left = label_room(rows.iter().map(|(label, _)| *label));
    let right = WIDE - FIGURES;
    let bottom = TOP + ROW * rows.len() as f64;
    // Stacked lengths compare only on a linear axis, however far the totals are apart.
    let most = rows.iter().map(|(_, memory)| total(memory)).max()?;
    let (unit, divisor) = unit_of(most);
    let x = Scale::over(
        [0.0, most as f64 / divisor].into_iter(),
        (left, right),
        Origin::Zero,
    );
    let title = format!("Memory, {}", cell_title(cell));
    let mut svg = Svg::new(WIDE, bottom + 44.0, &title);
    for (figure, text) in x.ticks() {
        svg.line("grid", (x.at(figure), TOP), (x.at(figure), bottom));
        svg.text("tick", (x.at(figure), bottom + 18.0), Anchor::Middle, &text);
    }
    let name = format!("memory, {unit}");
    svg.text(
        "axis-name",
        (f64::midpoint(left, right), bottom + 38.0),
        Anchor::Middle,
        &name,
    );
    for (place, (label, memory)) in rows.iter().enumerate() {
        let top = TOP + ROW * place as f64 + (ROW - BAR) / 2.0;
        svg.text("name", (left - 10.0, top + 13.5), Anchor::End, label);
        draw_bar(&mut svg, memory, top, &|bytes| x.at(bytes as f64 / divisor));
    }
    Some(svg.finish())
}

fn draw_bar(svg: &mut Svg, memory: &Memory, top: f64, x: &dyn Fn(u64) -> f64) {
    let mut from = 0;
    for ((name, class), bytes) in PARTS.into_iter().zip(parts(memory)) {
        if bytes == 0 {
            continue;
        }
        let (start, end) = (x(from), x(from + bytes));
        svg.group("dot", &format!("{name} {}", Bytes(bytes)), |svg| {
            svg.rect(&format!("part {class}"), (start, top), (end - start, BAR));
        });
        from += bytes;
    }
    if let Some(predicted) = memory.total.predicted_bytes {
        let tip = format!("predicted total {}", Bytes(predicted));
        svg.group("dot", &tip, |svg| {
            svg.line(
                "predicted",
                (x(predicted), top - 4.0),
                (x(predicted), top + BAR + 4.0),
            );
        });
    }
    let text = Bytes(total(memory)).to_string();
    let furthest = from.max(memory.total.predicted_bytes.unwrap_or(0));
    svg.text(
        "figure",
        (x(furthest) + 8.0, top + 13.5),
        Anchor::Start,
        &text,
    );
}

/// Weights, cache, activations, and what the total has beyond them.
fn parts(memory: &Memory) -> [u64; 4] {
    let bytes = |amount: Amount| amount.best().map_or(0, |bytes| bytes.0);
    let known = [memory.weights, memory.kv, memory.activations].map(bytes);
    let other = bytes(memory.total).saturating_sub(known.iter().sum());
    [known[0], known[1], known[2], other]
}

fn total(memory: &Memory) -> u64 {
    parts(memory).iter().sum()
}

fn unit_of(bytes: u64) -> (&'static str, f64) {
    match bytes {
        b if b >= 1 << 30 => ("GiB", (1u64 << 30) as f64),
        b if b >= 1 << 20 => ("MiB", (1u64 << 20) as f64),
        _ => ("KiB", 1024.0),
    }
}
