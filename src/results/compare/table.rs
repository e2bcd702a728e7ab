//! A comparison in a terminal and in Markdown.

use std::fmt::Write;

use super::super::columns::{Column, column, filled, laid_out};
use super::super::export::{escaped, markdown_table};
use super::super::format;
use super::super::study::Interval;
use super::super::table::cell_title;
use super::conditions;
use super::document::{Comparison, Metric, Point, Shape, Unmatched, Verdict, Whose};

impl Comparison {
    /// In a terminal of so many columns.
    pub fn table(&self, width: usize) -> String {
        let line = |text: String| format::wrapped(&text, width) + "\n";
        let mut parts = vec![line(self.title())];
        parts.push(self.warnings.iter().cloned().map(line).collect());
        for (title, points) in self.groups() {
            let columns = columns(&points);
            parts.push(format!("{}{}\n", line(title), laid_out(columns, width)));
        }
        parts.push(self.notes().into_iter().map(line).collect());
        parts.push(line(self.tally()));
        parts.retain(|part| !part.is_empty());
        parts.join("\n")
    }

    /// As Markdown, for the summary of a job or a pull request; what is worse by more than `threshold` comes first.
    pub fn markdown(&self, threshold: Option<f64>) -> String {
        let mut out = format!("**{}**\n\n{}\n", escaped(&self.title()), self.tally());
        for text in threshold.map(|t| self.failure(t)).into_iter().flatten() {
            let _ = write!(out, "\n**{}**\n", escaped(&text));
        }
        for (title, points) in self.groups() {
            let _ = write!(out, "\n{}\n\n", escaped(&title));
            out += &markdown_table(&columns(&points));
        }
        for note in self.warnings.iter().cloned().chain(self.notes()) {
            let _ = write!(out, "\n{}\n", escaped(&note));
        }
        out
    }

    /// What is worse by more than `threshold`, each in a line with the change that the table shows; nothing if there is
    /// nothing.
    pub fn failure(&self, threshold: f64) -> Vec<String> {
        let of = |point: &&Point| {
            format!(
                "regression beyond {}: {}, {}: {} {}",
                percent(threshold),
                point.variant,
                point.place(),
                point.metric.short(),
                change(point.ratio, point.ratio_ci95)
            )
        };
        self.regressions(threshold).iter().map(of).collect()
    }

    /// What the base measured and the other did not, each in a line; `tried` leaves out what the other did not try.
    pub fn lost(&self, tried: bool) -> Vec<String> {
        let lost = self
            .unmatched
            .iter()
            .filter(|lost| lost.measured_by == Whose::Base && (lost.reason.is_some() || !tried));
        lost.map(|lost| format!("not compared: {}", self.whereabouts(lost)))
            .collect()
    }

    /// Which side has what the other has not, and why.
    fn whereabouts(&self, lost: &Unmatched) -> String {
        let (own, other) = match lost.measured_by {
            Whose::Base => (&self.base.name, &self.other.name),
            Whose::Other => (&self.other.name, &self.base.name),
        };
        match &lost.reason {
            Some(reason) => format!("{}: in {own}; in {other} it failed: {reason}", lost.what),
            None => format!("{}: in {own} alone", lost.what),
        }
    }

    fn title(&self) -> String {
        let name = |side: &super::document::RunNote| match side.runs {
            1 => side.name.clone(),
            n => format!("{} ({n} runs)", side.name),
        };
        format!("{} against {}", name(&self.other), name(&self.base))
    }

    /// Points by cell or text, in the order of the base.
    pub(super) fn groups(&self) -> Vec<(String, Vec<&Point>)> {
        let mut groups: Vec<(String, Vec<&Point>)> = Vec::new();
        for point in &self.points {
            let title = point.place();
            match groups.iter_mut().find(|(own, _)| *own == title) {
                Some((_, points)) => points.push(point),
                None => groups.push((title, vec![point])),
            }
        }
        groups
    }

    fn notes(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for point in &self.points {
            if let Some(reason) = &point.reason {
                lines.push(format!(
                    "{}, {}, {}: {reason}",
                    point.variant,
                    point.place(),
                    point.metric.short()
                ));
            }
        }
        for lost in &self.unmatched {
            lines.push(self.whereabouts(lost));
        }
        lines.extend(conditions::advice(self));
        let of = |metric| self.points.iter().any(|point| point.metric == metric);
        let margins = [
            (
                Metric::Perplexity,
                "perplexity",
                self.quality_margin_percent,
            ),
            (
                Metric::TaskScore,
                "a task's score",
                self.task_margin_percent,
            ),
        ];
        let quality: String = margins
            .into_iter()
            .filter(|(metric, ..)| of(*metric))
            .map(|(_, name, margin)| format!(", of {name} {}", percent(margin / 100.0)))
            .collect();
        lines.push(format!(
            "a difference counts from {} on{quality}; verdicts hold for all cells of a figure together (Holm, 5 %)",
            percent(self.margin_percent / 100.0)
        ));
        lines
    }

    /// How many figures there are of each verdict.
    fn tally(&self) -> String {
        let count = |verdict| self.points.iter().filter(|p| p.verdict == verdict).count();
        let parts: Vec<String> = Verdict::ALL
            .into_iter()
            .map(|verdict| (count(verdict), verdict.name()))
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        format!("{} figures: {}", self.points.len(), parts.join(", "))
    }
}

impl Point {
    /// The cell, the text and its protocol, or the task.
    pub(super) fn place(&self) -> String {
        match (self.cell, &self.text) {
            (Some(cell), _) => cell_title(cell.into()),
            (None, Some(text)) => text.clone(),
            (None, None) => String::new(),
        }
    }

    /// The cell that the point is of, or else its text.
    pub(super) fn is_of(&self, cell: Option<Shape>, text: Option<&str>) -> bool {
        self.cell == cell && self.text.as_deref() == text
    }
}

fn columns(points: &[&Point]) -> Vec<Column> {
    let of = |head: &str, weight, figure: &dyn Fn(&Point) -> Option<String>| {
        column(head, weight, points.iter().map(|point| figure(point)))
    };
    filled(vec![
        of("variant", 255, &|p| Some(p.variant.clone())),
        of("figure", 250, &|p| Some(p.metric.short().to_owned())),
        of("base", 4, &|p| Some(format::plain(p.base))),
        of("this", 5, &|p| Some(format::plain(p.other))),
        of("change [95 % CI]", 10, &|p| {
            Some(change(p.ratio, p.ratio_ci95))
        }),
        of("in cycles", 2, &|p| {
            Some(format::change(p.ratio_in_cycles?))
        }),
        of("verdict", 240, &|p| Some(p.verdict.name().to_owned())),
    ])
}

/// `+1.0 % [+0.6, +1.4]`.
fn change(ratio: f64, interval: Option<Interval>) -> String {
    let percent = |ratio: f64| 100.0 * (ratio - 1.0);
    match interval {
        Some(ends) => {
            let all = [ratio, ends.low, ends.high].map(percent);
            let digits = usize::from(all.iter().all(|x| x.abs() < 99.95))
                + usize::from(all.iter().all(|x| x.abs() < 0.995));
            let [value, low, high] = all.map(|x| format!("{x:+.digits$}"));
            format!("{value} % [{low}, {high}]")
        }
        None => format::change(ratio),
    }
}

fn percent(share: f64) -> String {
    let shown = format!("{:.2}", 100.0 * share);
    let trimmed = shown.trim_end_matches('0').trim_end_matches('.');
    format!("{trimmed} %")
}
