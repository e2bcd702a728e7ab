//! How inter-token latencies are spread in one cell: a histogram per variant on a common axis.

use super::super::format;
use super::super::record::Cell;
use super::super::study::{Histogram, Stats, Study};
use super::super::table::cell_title;
use super::marker;
use super::scale::{Origin, Scale};
use super::svg::{Anchor, Svg};
use super::{WIDE, label_room, labels};

/// The height of a row.
const ROW: f64 = 46.0;

/// The height that the fullest bin of a row reaches.
const PEAK: f64 = 36.0;

/// Room to the right for the figures.
const FIGURES: f64 = 190.0;

const TOP: f64 = 8.0;

/// One variant.
struct Row<'a> {
    variant: usize,
    label: String,
    stats: Stats,
    histogram: &'a Histogram,
}

/// The chart; `None` if no variant has a histogram in this cell.
pub(in super::super) fn spread(study: &Study, cell: Cell) -> Option<String> {
    let labels = labels(study);
    let rows: Vec<Row> = study
        .variants
        .iter()
        .enumerate()
        .filter_map(|(variant, entry)| {
            let speed = entry.at(cell)?;
            Some(Row {
                variant,
                label: labels[variant].clone(),
                stats: speed.itl_ms?,
                histogram: speed.itl_histogram.as_ref()?,
            })
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let left = label_room(rows.iter().map(|row| &row.label));
    let right = WIDE - FIGURES;
    let bottom = TOP + ROW * rows.len() as f64;
    let x = Scale::over(
        rows.iter()
            .flat_map(|row| [row.histogram.low_ms, end(row.histogram)]),
        (left, right),
        Origin::Free,
    );
    let title = format!("Spread of inter-token latency, {}", cell_title(cell));
    let mut svg = Svg::new(WIDE, bottom + 44.0, &title);
    for (figure, text) in x.ticks() {
        svg.line("grid", (x.at(figure), TOP), (x.at(figure), bottom));
        svg.text("tick", (x.at(figure), bottom + 18.0), Anchor::Middle, &text);
    }
    let log = if x.is_log() { ", log scale" } else { "" };
    let name = format!("inter-token latency, ms{log} — less is better");
    svg.text(
        "axis-name",
        (f64::midpoint(left, right), bottom + 38.0),
        Anchor::Middle,
        &name,
    );
    for (place, row) in rows.iter().enumerate() {
        let floor = TOP + ROW * (place + 1) as f64;
        draw_row(&mut svg, &x, row, floor, (left, right));
    }
    Some(svg.finish())
}

/// Where the last bin ends.
fn end(histogram: &Histogram) -> f64 {
    histogram.low_ms + histogram.bin_ms * histogram.counts.len() as f64
}

fn draw_row(svg: &mut Svg, x: &Scale, row: &Row, floor: f64, (left, right): (f64, f64)) {
    let Row {
        stats, histogram, ..
    } = row;
    let beyond = match histogram.above {
        0 => String::new(),
        n => format!(
            "\n{n} beyond the drawn range, the largest {} ms",
            format::plain(stats.max)
        ),
    };
    let p99 = format::or_none(stats.p99, format::plain);
    let tip = format!(
        "{}\n{} steps from {} to {} ms\nmean {}, p50 {}, p99 {p99} ms{beyond}",
        row.label,
        stats.n,
        format::plain(stats.min),
        format::plain(stats.max),
        format::plain(stats.mean),
        format::plain(stats.p50),
    );
    let colour = marker::colour(row.variant);
    svg.group("dot", &tip, |svg| {
        svg.rect("hit", (left, floor - ROW), (right - left, ROW));
        svg.path(&format!("hill {colour}"), &hill(x, histogram, floor), true);
        svg.line("axis", (left, floor), (right, floor));
        let middle = x.at(stats.p50);
        svg.line("median", (middle, floor - PEAK - 3.0), (middle, floor));
    });
    svg.text("name", (left - 10.0, floor - 6.0), Anchor::End, &row.label);
    let figures = format!("p50 {} · p99 {p99} ms", format::plain(stats.p50));
    svg.text(
        "figure",
        (right + 14.0, floor - 6.0),
        Anchor::Start,
        &figures,
    );
}

/// The outline of a histogram that stands on `floor`.
fn hill(x: &Scale, histogram: &Histogram, floor: f64) -> Vec<(f64, f64)> {
    let most = histogram.counts.iter().copied().max().unwrap_or(0).max(1);
    let mut points = vec![(x.at(histogram.low_ms), floor)];
    for (bin, &count) in histogram.counts.iter().enumerate() {
        let low = histogram.low_ms + histogram.bin_ms * bin as f64;
        let top = floor - PEAK * count as f64 / most as f64;
        // Samples that are all alike have no width; a hair's breadth shows where they are.
        let high = x.at(low + histogram.bin_ms).max(x.at(low) + 0.8);
        points.extend([(x.at(low), top), (high, top)]);
    }
    points.push((points[points.len() - 1].0, floor));
    points
}
