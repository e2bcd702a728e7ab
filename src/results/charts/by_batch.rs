//! A figure over batch sizes, one line per variant, each point with its interval.

use super::super::format;
use super::super::record::Cell;
use super::super::study::{Interval, Speed, Study};
use super::HALF;
use super::marker::{self, RADIUS};
use super::scale::{Origin, Scale};
use super::svg::{Anchor, Svg};

const HEIGHT: f64 = 300.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = HALF - 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 46.0;

/// Neighbours stand this far apart, so that their intervals do not hide each other.
const DODGE: f64 = 7.0;

/// The same where there is a single batch size, and so room.
const WIDE_DODGE: f64 = 48.0;

/// A figure of a cell that can be followed over batch sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Figure {
    /// Generated tokens per second of the whole batch.
    DecodeRate,
    /// Decode rate over the base's.
    Speedup,
    /// Median inter-token latency.
    Itl,
    /// Median time to first token.
    Ttft,
    /// Prompt tokens per second of the whole batch.
    PrefillRate,
    /// Joules per generated token.
    EnergyPerToken,
}

impl Figure {
    /// All figures, in the order in which they are shown.
    pub(in super::super) const ALL: [Self; 6] = [
        Self::DecodeRate,
        Self::Speedup,
        Self::Itl,
        Self::Ttft,
        Self::PrefillRate,
        Self::EnergyPerToken,
    ];

    /// What the figure is, with its unit.
    pub(in super::super) const fn name(self) -> &'static str {
        match self {
            Self::DecodeRate => "Decode rate, tokens/s",
            Self::Speedup => "Decode rate over the base’s",
            Self::PrefillRate => "Prefill rate, tokens/s",
            Self::Itl => "Inter-token latency, p50, ms",
            Self::Ttft => "Time to first token, p50, ms",
            Self::EnergyPerToken => "Energy per generated token, J (gross)",
        }
    }

    /// The figure and its 95 % interval.
    fn of(self, speed: &Speed) -> Option<(f64, Option<Interval>)> {
        let latency = |stats: Option<super::super::study::Stats>| {
            let stats = stats?;
            let ends = stats.ci95_low.zip(stats.ci95_high);
            Some((stats.p50, ends.map(|(low, high)| Interval { low, high })))
        };
        match self {
            Self::DecodeRate => Some((
                speed.decode_tokens_per_second?,
                speed.decode_tokens_per_second_ci95,
            )),
            Self::PrefillRate => Some((
                speed.prefill_tokens_per_second?,
                speed.prefill_tokens_per_second_ci95,
            )),
            // Where nothing was decoded, the speed-up is that of the prefill, which this chart is not about.
            Self::Speedup => speed
                .decode_tokens_per_second
                .and(speed.speedup_vs_base)
                .map(|ratio| (ratio, speed.speedup_vs_base_ci95)),
            Self::Itl => latency(speed.itl_ms),
            Self::Ttft => latency(speed.ttft_ms),
            Self::EnergyPerToken => Some((speed.energy_use()?.j_per_generated_token?, None)),
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::DecodeRate | Self::PrefillRate => "tok/s",
            Self::Speedup => "× the base",
            Self::Itl | Self::Ttft => "ms",
            Self::EnergyPerToken => "J/token",
        }
    }
}

/// A point of a line.
struct Dot {
    variant: usize,
    slot: usize,
    value: f64,
    ends: Option<Interval>,
}

/// The chart over cells that differ in batch alone; `None` if there is nothing to compare.
pub(in super::super) fn by_batch(study: &Study, cells: &[Cell], figure: Figure) -> Option<String> {
    let mut dots = Vec::new();
    for (variant, entry) in study.variants.iter().enumerate() {
        for (slot, &cell) in cells.iter().enumerate() {
            if let Some((value, ends)) = entry.at(cell).and_then(|speed| figure.of(speed)) {
                dots.push(Dot {
                    variant,
                    slot,
                    value,
                    ends,
                });
            }
        }
    }
    // A single point needs no chart, and bases alone no comparison with themselves.
    let only_bases = dots.iter().all(|dot| study.variants[dot.variant].base);
    if dots.len() < 2 || (figure == Figure::Speedup && only_bases) {
        return None;
    }
    let figures = dots.iter().flat_map(|dot| {
        dot.ends
            .map_or([dot.value; 2], |ends| [ends.low, ends.high])
    });
    let y = Scale::over(figures, (BOTTOM, TOP), Origin::Zero);
    let mut svg = Svg::new(HALF, HEIGHT, &format!("{} by batch size", figure.name()));
    draw_axes(&mut svg, &y, cells);
    let shown: Vec<usize> = (0..study.variants.len())
        .filter(|&variant| dots.iter().any(|dot| dot.variant == variant))
        .collect();
    for (place, &variant) in shown.iter().enumerate() {
        let room = (RIGHT - LEFT) / cells.len() as f64;
        let wished = if cells.len() == 1 { WIDE_DODGE } else { DODGE };
        let dodge = wished.min(0.7 * room / shown.len() as f64);
        let shift = (place as f64 - (shown.len() - 1) as f64 / 2.0) * dodge;
        let label = study.label(&study.variants[variant]);
        let own: Vec<&Dot> = dots.iter().filter(|dot| dot.variant == variant).collect();
        draw_line(&mut svg, &y, cells, &own, shift, &label, figure);
    }
    Some(svg.finish())
}

fn slot_centre(slot: usize, slots: usize) -> f64 {
    LEFT + (slot as f64 + 0.5) * (RIGHT - LEFT) / slots as f64
}

fn draw_axes(svg: &mut Svg, y: &Scale, cells: &[Cell]) {
    for (figure, text) in y.ticks() {
        let place = y.at(figure);
        svg.line("grid", (LEFT, place), (RIGHT, place));
        svg.text("tick", (LEFT - 8.0, place + 4.0), Anchor::End, &text);
    }
    svg.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    for (slot, cell) in cells.iter().enumerate() {
        let place = slot_centre(slot, cells.len());
        svg.text(
            "tick",
            (place, BOTTOM + 18.0),
            Anchor::Middle,
            &cell.batch.to_string(),
        );
    }
    let name = if y.is_log() {
        "batch size (vertical log scale)"
    } else {
        "batch size"
    };
    svg.text(
        "axis-name",
        (f64::midpoint(LEFT, RIGHT), HEIGHT - 8.0),
        Anchor::Middle,
        name,
    );
}

fn draw_line(
    svg: &mut Svg,
    y: &Scale,
    cells: &[Cell],
    dots: &[&Dot],
    shift: f64,
    label: &str,
    figure: Figure,
) {
    let Some(variant) = dots.first().map(|dot| dot.variant) else {
        return;
    };
    let colour = marker::colour(variant);
    let place = |dot: &Dot| (slot_centre(dot.slot, cells.len()) + shift, y.at(dot.value));
    let line: Vec<(f64, f64)> = dots.iter().map(|dot| place(dot)).collect();
    if line.len() > 1 {
        svg.path(&format!("series {colour}"), &line, false);
    }
    for dot in dots {
        let at = place(dot);
        let spread = dot.ends.map_or(String::new(), |ends| {
            format!(
                " [{}, {}]",
                format::plain(ends.low),
                format::plain(ends.high)
            )
        });
        let tip = format!(
            "{label}, batch {}\n{}{spread} {}",
            cells[dot.slot].batch,
            format::plain(dot.value),
            figure.unit()
        );
        svg.group("dot", &tip, |svg| {
            if let Some(ends) = dot.ends {
                svg.line(
                    &format!("bar {colour}"),
                    (at.0, y.at(ends.low)),
                    (at.0, y.at(ends.high)),
                );
            }
            svg.rect("hit", (at.0 - 8.0, at.1 - 8.0), (16.0, 16.0));
            marker::draw(svg, variant, at, RADIUS - 1.0);
        });
    }
}
