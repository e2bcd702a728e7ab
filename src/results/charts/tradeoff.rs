//! Quality against decode speed in one cell, with the Pareto front.

use super::super::format;
use super::super::record::Cell;
use super::super::study::{Interval, QualityAxis, Study, Variant};
use super::super::table::cell_title;
use super::marker::{self, RADIUS};
use super::scale::{Origin, Scale};
use super::svg::{Anchor, Svg};
use super::{CHARACTER, WIDE, labels};
use crate::stats;

const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = WIDE - 24.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = HEIGHT - 52.0;

/// The height of a label's box.
const LINE: f64 = 15.0;

/// A place in the drawing.
type Place = (f64, f64);

/// Left, top, right and bottom of something drawn.
type Extent = [f64; 4];

/// What is drawn for one variant.
struct Dot {
    variant: usize,
    label: String,
    speed: f64,
    speed_ends: Option<Interval>,
    loss: f64,
    loss_ends: Option<Interval>,
    on_front: bool,
    tip: String,
}

/// The chart; `None` unless some variant has both a quality and a decode speed in this cell.
pub(in super::super) fn tradeoff(study: &Study, cell: Cell) -> Option<String> {
    let dots = dots(study, cell);
    if dots.is_empty() {
        return None;
    }
    let ends = |ends: Option<Interval>, x: f64| ends.map_or([x, x], |e| [e.low, e.high]);
    let x = Scale::over(
        dots.iter().flat_map(|dot| ends(dot.speed_ends, dot.speed)),
        (LEFT, RIGHT),
        Origin::Free,
    );
    let y = Scale::over(
        dots.iter().flat_map(|dot| ends(dot.loss_ends, dot.loss)),
        (BOTTOM, TOP),
        Origin::Free,
    );
    let axis = study.quality_axis.name();
    let label = format!(
        "{axis} against decode tokens per second, {}",
        cell_title(cell)
    );
    let mut svg = Svg::new(WIDE, HEIGHT, &label);
    draw_axes(&mut svg, &x, &y, axis);
    let stairs = staircase(&x, &y, &dots);
    draw_front(&mut svg, &stairs);
    let places: Vec<Place> = dots.iter().map(|d| (x.at(d.speed), y.at(d.loss))).collect();
    for (dot, &place) in dots.iter().zip(&places) {
        draw_dot(&mut svg, &x, &y, dot, place);
    }
    let mut taken: Vec<Extent> = stairs
        .windows(2)
        .map(|step| spanned(step[0], step[1]))
        .collect();
    for (dot, &at) in dots.iter().zip(&places) {
        taken.push([at.0 - 8.0, at.1 - 8.0, at.0 + 8.0, at.1 + 8.0]);
        taken.extend(bars(&x, &y, dot, at).map(|(from, to)| spanned(from, to)));
    }
    for (dot, (at, anchor)) in dots.iter().zip(label_places(&dots, &places, taken)) {
        let class = if dot.on_front { "name strong" } else { "name" };
        svg.text(class, at, anchor, &dot.label);
    }
    Some(svg.finish())
}

fn dots(study: &Study, cell: Cell) -> Vec<Dot> {
    let labels = labels(study);
    let of = |(place, variant): (usize, &Variant)| {
        let quality = study.quality(variant)?;
        let speed = variant.at(cell)?;
        let rate = speed.decode_tokens_per_second?;
        let axis = study.quality_axis;
        let shown = format::quality_with_error(axis, quality.value, quality.stderr);
        let gain = format::or_none(speed.speedup_vs_base, format::factor);
        let front = if speed.on_pareto_front {
            "\non the Pareto front"
        } else {
            ""
        };
        Some(Dot {
            variant: place,
            label: labels[place].clone(),
            speed: rate,
            speed_ends: speed.decode_tokens_per_second_ci95,
            loss: quality.value,
            loss_ends: loss_ends(study, variant),
            on_front: speed.on_pareto_front,
            tip: format!(
                "{}\n{} {shown}\n{} tok/s decode ({gain} base){front}",
                study.label(variant),
                axis.name(),
                format::rate(rate)
            ),
        })
    };
    study.variants.iter().enumerate().filter_map(of).collect()
}

/// The bar of a quality. Within one model it is the paired interval of the difference to the base, which is what decides
/// between variants; across tokenizers nothing pairs, and the bar is the figure's own.
fn loss_ends(study: &Study, variant: &Variant) -> Option<Interval> {
    if study.quality_axis == QualityAxis::TaskError {
        let average = variant.task_average.filter(|_| !variant.base)?;
        let (versus_base, ends) = (average.versus_base?, average.versus_base?.difference_ci95?);
        // An error falls where the average rises.
        let error = |difference: f64| 100.0 * (1.0 - versus_base.base_value - difference);
        return Some(Interval {
            low: error(ends.high),
            high: error(ends.low),
        });
    }
    let perplexity = variant.perplexity.as_ref()?;
    match study.quality_axis {
        QualityAxis::Perplexity => {
            let delta = perplexity.delta_vs_base?;
            let base = perplexity.value - delta.value;
            Some(Interval {
                low: base + delta.ci95_low?,
                high: base + delta.ci95_high?,
            })
        }
        QualityAxis::BitsPerByte => {
            let (value, error) = (perplexity.bits_per_byte?, perplexity.bits_per_byte_stderr?);
            Some(stats::Interval::normal(value, error).into())
        }
        QualityAxis::TaskError => None,
        QualityAxis::KlDivergence => {
            let divergence = perplexity.divergence?;
            Some(stats::Interval::normal(divergence.mean_kl, divergence.stderr?).into())
        }
    }
}

fn draw_axes(svg: &mut Svg, x: &Scale, y: &Scale, axis: &str) {
    for (figure, text) in y.ticks() {
        let place = y.at(figure);
        svg.line("grid", (LEFT, place), (RIGHT, place));
        svg.text("tick", (LEFT - 8.0, place + 4.0), Anchor::End, &text);
    }
    for (figure, text) in x.ticks() {
        let place = x.at(figure);
        svg.line("grid", (place, TOP), (place, BOTTOM));
        svg.text("tick", (place, BOTTOM + 18.0), Anchor::Middle, &text);
    }
    svg.line("axis", (LEFT, BOTTOM), (RIGHT, BOTTOM));
    let log = |scale: &Scale| if scale.is_log() { ", log scale" } else { "" };
    let name = format!("decode, tokens/s{} — more is better →", log(x));
    svg.text("axis-name", (RIGHT, HEIGHT - 8.0), Anchor::End, &name);
    let name = format!("← less is better — {axis}{}", log(y));
    svg.upward_text("axis-name", (16.0, f64::midpoint(TOP, BOTTOM)), &name);
}

/// The staircase through the front; everything above and left of it is beaten by some variant. Empty without a front.
fn staircase(x: &Scale, y: &Scale, dots: &[Dot]) -> Vec<Place> {
    let mut front: Vec<Place> = dots
        .iter()
        .filter(|dot| dot.on_front)
        .map(|dot| (x.at(dot.speed), y.at(dot.loss)))
        .collect();
    front.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let mut stairs = Vec::new();
    let mut reached = LEFT;
    for &(to_x, to_y) in &front {
        // Up first, then along: a point beats only what is slower than itself.
        stairs.extend([(reached, to_y), (to_x, to_y)]);
        reached = to_x;
    }
    stairs.extend(front.last().map(|last| (last.0, TOP)));
    stairs
}

fn draw_front(svg: &mut Svg, stairs: &[Place]) {
    if stairs.is_empty() {
        return;
    }
    let mut region = stairs.to_vec();
    region.push((LEFT, TOP));
    svg.path("beaten", &region, true);
    svg.path("front", stairs, false);
}

/// The ends of a dot's bars: sideways for the speed, upright for the quality.
fn bars(x: &Scale, y: &Scale, dot: &Dot, at: Place) -> impl Iterator<Item = (Place, Place)> {
    let speed = dot
        .speed_ends
        .map(|ends| ((x.at(ends.low), at.1), (x.at(ends.high), at.1)));
    let loss = dot
        .loss_ends
        .map(|ends| ((at.0, y.at(ends.low)), (at.0, y.at(ends.high))));
    speed.into_iter().chain(loss)
}

fn draw_dot(svg: &mut Svg, x: &Scale, y: &Scale, dot: &Dot, at: Place) {
    let colour = marker::colour(dot.variant);
    svg.group("dot", &dot.tip, |svg| {
        for (from, to) in bars(x, y, dot, at) {
            bar(svg, &colour, from, to);
        }
        svg.rect("hit", (at.0 - 12.0, at.1 - 12.0), (24.0, 24.0));
        marker::draw(svg, dot.variant, at, RADIUS + 1.0);
    });
}

fn bar(svg: &mut Svg, colour: &str, from: Place, to: Place) {
    svg.line(&format!("bar {colour}"), from, to);
    let (dx, dy) = if from.1 == to.1 {
        (0.0, 3.5)
    } else {
        (3.5, 0.0)
    };
    for end in [from, to] {
        svg.line(
            &format!("bar {colour}"),
            (end.0 - dx, end.1 - dy),
            (end.0 + dx, end.1 + dy),
        );
    }
}

fn spanned(one: Place, other: Place) -> Extent {
    [
        one.0.min(other.0),
        one.1.min(other.1),
        one.0.max(other.0),
        one.1.max(other.1),
    ]
}

/// Beside, above or below its point: the first place where a label meets nothing that is drawn and no earlier label.
fn label_places(dots: &[Dot], places: &[Place], mut taken: Vec<Extent>) -> Vec<(Place, Anchor)> {
    let mut chosen = Vec::new();
    for (dot, &at) in dots.iter().zip(places) {
        let width = dot.label.chars().count() as f64 * CHARACTER;
        let candidates = candidates(at);
        let best = candidates
            .iter()
            .find(|&&candidate| is_free(extent(candidate, width), &taken));
        let fallback = usize::from(at.0 > f64::midpoint(LEFT, RIGHT));
        let best = *best.unwrap_or(&candidates[fallback]);
        taken.push(extent(best, width));
        chosen.push(best);
    }
    chosen
}

/// Where a label may stand, best first: beside its point, under it, over it, then the corners.
fn candidates((x, y): Place) -> [(Place, Anchor); 8] {
    [
        ((x + 13.0, y + 4.5), Anchor::Start),
        ((x - 13.0, y + 4.5), Anchor::End),
        ((x, y + 24.0), Anchor::Middle),
        ((x, y - 14.0), Anchor::Middle),
        ((x + 10.0, y + 21.0), Anchor::Start),
        ((x + 10.0, y - 12.0), Anchor::Start),
        ((x - 10.0, y - 12.0), Anchor::End),
        ((x - 10.0, y + 21.0), Anchor::End),
    ]
}

fn extent(((x, y), anchor): (Place, Anchor), width: f64) -> Extent {
    let left = match anchor {
        Anchor::Start => x,
        Anchor::Middle => x - width / 2.0,
        Anchor::End => x - width,
    };
    [left, y - LINE + 3.0, left + width, y + 3.0]
}

fn is_free(b: Extent, taken: &[Extent]) -> bool {
    let inside = b[0] >= LEFT && b[2] <= WIDE && b[1] >= 0.0 && b[3] <= BOTTOM;
    let meets = |t: &Extent| b[0] <= t[2] && t[0] <= b[2] && b[1] <= t[3] && t[1] <= b[3];
    inside && !taken.iter().any(meets)
}
