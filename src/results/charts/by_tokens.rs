//! The time of an op at one shape against the number of tokens, one line per variant, both axes logarithmic: with the
//! time in which the same bytes could be read, the roofline, and where one variant overtakes another.

use super::super::format;
use super::super::microbench::document::{Cell, Figures, Library, Shape};
use super::marker::{self, RADIUS};
use super::scale::Scale;
use super::svg::{Anchor, Svg};
use super::{CHARACTER, LONGEST_LABEL, WIDE, label_room};

const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = HEIGHT - 50.0;

/// The height of a label's box.
const LINE: f64 = 15.0;

/// The least distance of two numbers below the horizontal axis.
const TICK_ROOM: f64 = 34.0;

/// The chart; `None` unless some variant was timed at two numbers of tokens. `colours` names every variant of the
/// page, so that a variant looks alike in all charts.
pub(in super::super) fn by_tokens(shape: &Shape, colours: &[String]) -> Option<String> {
    let names = shape.variants();
    let lines: Vec<Line<'_>> = names
        .iter()
        .map(|name| Line::of(shape, name, colours))
        .filter(|line| !line.cells.is_empty())
        .collect();
    if lines.iter().all(|line| line.cells.len() < 2) {
        return None;
    }
    let labels: Vec<String> = lines.iter().map(|line| line.label.clone()).collect();
    let right = WIDE - (label_room(labels.iter()) + 8.0).max(48.0);
    let tokens = || lines.iter().flat_map(Line::tokens);
    let x = Scale::log(tokens().map(|m| m as f64), (LEFT, right));
    let times = lines.iter().flat_map(|line| {
        line.cells.iter().flat_map(|(_, f)| {
            let spread = [f.cold.us.ci95_low, f.cold.us.ci95_high, f.predicted_us];
            let known = [Some(f.cold.us.p50), Some(f.read_floor.us.p50)];
            spread.into_iter().chain(known).flatten()
        })
    });
    let y = Scale::log(times, (BOTTOM, TOP));
    let axes = Axes { x, y, right };
    let mut svg = Svg::new(
        WIDE,
        HEIGHT,
        &format!("Time against tokens, {}", shape.title()),
    );
    axes.draw(&mut svg, tokens().collect());
    for line in &lines {
        line.draw_bounds(&mut svg, &axes);
    }
    draw_crossings(&mut svg, &axes, shape);
    for line in &lines {
        line.draw(&mut svg, &axes);
    }
    draw_labels(&mut svg, &axes, &lines);
    Some(svg.finish())
}

struct Axes {
    x: Scale,
    y: Scale,
    right: f64,
}

impl Axes {
    fn place(&self, tokens: f64, us: f64) -> (f64, f64) {
        (self.x.at(tokens), self.y.at(us))
    }

    fn draw(&self, svg: &mut Svg, mut tokens: Vec<usize>) {
        for (figure, text) in self.y.ticks() {
            let place = self.y.at(figure);
            svg.line("grid", (LEFT, place), (self.right, place));
            svg.text("tick", (LEFT - 8.0, place + 4.0), Anchor::End, &text);
        }
        svg.line("axis", (LEFT, BOTTOM), (self.right, BOTTOM));
        tokens.sort_unstable();
        tokens.dedup();
        let mut last = f64::NEG_INFINITY;
        for m in tokens {
            let place = self.x.at(m as f64);
            svg.line("axis", (place, BOTTOM), (place, BOTTOM + 4.0));
            if place - last >= TICK_ROOM {
                svg.text(
                    "tick",
                    (place, BOTTOM + 19.0),
                    Anchor::Middle,
                    &m.to_string(),
                );
                last = place;
            }
        }
        svg.text(
            "axis-name",
            (f64::midpoint(LEFT, self.right), HEIGHT - 8.0),
            Anchor::Middle,
            "tokens (M)",
        );
        svg.upward_text(
            "axis-name",
            (16.0, f64::midpoint(TOP, BOTTOM)),
            "µs per call, cold",
        );
    }
}

/// One variant.
struct Line<'a> {
    label: String,
    colour: usize,
    cells: Vec<(&'a Cell, &'a Figures)>,
}

impl<'a> Line<'a> {
    fn of(shape: &'a Shape, name: &str, colours: &[String]) -> Self {
        let own = shape.cells.iter().filter(|cell| cell.variant == name);
        Self {
            label: format::shortened(name, LONGEST_LABEL),
            colour: colours.iter().position(|other| other == name).unwrap_or(0),
            cells: own
                .filter_map(|cell| Some((cell, cell.figures.as_ref()?)))
                .collect(),
        }
    }

    fn tokens(&self) -> impl Iterator<Item = usize> {
        self.cells.iter().map(|(cell, _)| cell.tokens)
    }

    fn path(
        &self,
        svg: &mut Svg,
        axes: &Axes,
        class: &str,
        time: impl Fn(&Figures) -> Option<f64>,
    ) {
        let points: Vec<(f64, f64)> = self
            .cells
            .iter()
            .filter_map(|(cell, figures)| Some(axes.place(cell.tokens as f64, time(figures)?)))
            .collect();
        if points.len() > 1 {
            let class = format!("{class} {}", marker::colour(self.colour));
            svg.path(&class, &points, false);
        }
    }

    fn draw_bounds(&self, svg: &mut Svg, axes: &Axes) {
        self.path(svg, axes, "roof", |f| f.predicted_us);
        self.path(svg, axes, "floor", |f| Some(f.read_floor.us.p50));
    }

    fn draw(&self, svg: &mut Svg, axes: &Axes) {
        self.path(svg, axes, "library", |f| match &f.peer {
            Library::Measured { cold, .. } => Some(cold.us.p50),
            Library::Unavailable { .. } => None,
        });
        self.path(svg, axes, "series", |f| Some(f.cold.us.p50));
        let colour = marker::colour(self.colour);
        for (cell, figures) in &self.cells {
            let at = axes.place(cell.tokens as f64, figures.cold.us.p50);
            svg.group("dot", &self.tip(cell, figures), |svg| {
                let ends = figures.cold.us.ci95_low.zip(figures.cold.us.ci95_high);
                if let Some((low, high)) = ends {
                    let end = |us| (at.0, axes.y.at(us));
                    svg.line(&format!("bar {colour}"), end(low), end(high));
                }
                svg.rect("hit", (at.0 - 8.0, at.1 - 8.0), (16.0, 16.0));
                marker::draw(svg, self.colour, at, RADIUS - 1.0);
            });
        }
    }

    fn tip(&self, cell: &Cell, figures: &Figures) -> String {
        let mut tip = format!(
            "{}, M {}\n{} µs, {:.1} % of the read floor\n{} GB/s, {} TFLOP/s",
            self.label,
            cell.tokens,
            format::plain(figures.cold.us.p50),
            figures.percent_of_read_floor,
            format::plain(figures.gb_per_s),
            format::plain(figures.tflop_per_s),
        );
        if let (Some(limit), Some(percent)) = (&figures.limit, figures.percent_of_limit) {
            tip += &format!("\n{percent:.1} % of the ceiling ({limit})");
        }
        if let Library::Measured { name, speedup, .. } = &figures.peer {
            tip += &format!("\n{} over {name}", format::factor(*speedup));
        }
        tip + "\n" + &figures.plan
    }
}

/// A line up from where one variant overtakes another, with both names.
fn draw_crossings(svg: &mut Svg, axes: &Axes, shape: &Shape) {
    // Labels that would touch go to a second row.
    let mut taken = [f64::NEG_INFINITY; 2];
    for pair in shape.fastest.windows(2) {
        let (x, y) = axes.place(pair[1].from_tokens, pair[1].at_us);
        let text = format!(
            "{} → {}, M ≈ {}",
            format::shortened(&pair[0].variant, LONGEST_LABEL),
            format::shortened(&pair[1].variant, LONGEST_LABEL),
            format::plain(pair[1].from_tokens)
        );
        let half = 0.5 * CHARACTER * text.chars().count() as f64;
        let centre = x.clamp(LEFT + half, (axes.right - half).max(LEFT + half));
        let row = usize::from(centre - half < taken[0]);
        taken[row] = centre + half;
        let top = TOP - 20.0 + row as f64 * LINE;
        svg.line("cross", (x, top + 4.0), (x, y));
        svg.text("figure", (centre, top), Anchor::Middle, &text);
        svg.path("ring", &ring((x, y)), true);
    }
}

/// A circle, as a path.
fn ring((x, y): (f64, f64)) -> Vec<(f64, f64)> {
    (0..24)
        .map(|i| std::f64::consts::TAU * f64::from(i) / 24.0)
        .map(|angle| (x + 8.0 * angle.cos(), y + 8.0 * angle.sin()))
        .collect()
}

/// Each name at the end of its line, pushed apart where they would overlap.
fn draw_labels(svg: &mut Svg, axes: &Axes, lines: &[Line<'_>]) {
    let mut ends: Vec<(f64, &str)> = lines
        .iter()
        .filter_map(|line| {
            let (_, figures) = line.cells.last()?;
            Some((axes.y.at(figures.cold.us.p50), line.label.as_str()))
        })
        .collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let room = ends.len() as f64 * LINE;
    let mut lowest = f64::NEG_INFINITY;
    for (i, (y, label)) in ends.iter().enumerate() {
        // No label may push those after it below the axis.
        let left = room - i as f64 * LINE;
        let place = y.min(BOTTOM + LINE - left).max(lowest + LINE);
        lowest = place;
        svg.text(
            "name",
            (axes.right + 12.0, place + 4.0),
            Anchor::Start,
            label,
        );
    }
}
