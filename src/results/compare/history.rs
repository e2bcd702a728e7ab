//! Many runs of the same questions: each against the first, or against the one before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::columns::{Column, column, filled, laid_out};
use super::super::export::{escaped, markdown_table};
use super::super::format;
use super::document::{Comparison, Metric, Point, Verdict};
use super::side::Side;
use super::{Rules, compare};
use crate::error::Result;

/// The versions of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// The first.
    #[serde(rename = "candlepower.history/1")]
    V1,
}

/// What each run is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// The first run.
    First,
    /// The run before it.
    Previous,
}

/// Runs in their order, each compared with one before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// The version of this document.
    pub schema: Version,
    /// What each is compared with.
    pub against: Reference,
    /// A comparison for every run but the first.
    pub comparisons: Vec<Comparison>,
}

impl History {
    /// Compares each side but the first.
    ///
    /// # Errors
    /// As [`compare`].
    pub fn of(sides: &[Side], against: Reference, rules: &Rules) -> Result<Self> {
        let reference = |place: usize| match against {
            Reference::First => &sides[0],
            Reference::Previous => &sides[place],
        };
        let others = sides.iter().skip(1).enumerate();
        Ok(Self {
            schema: Version::V1,
            against,
            comparisons: others
                .map(|(place, other)| compare(reference(place), other, rules))
                .collect::<Result<_>>()?,
        })
    }

    /// In a terminal of so many columns: a table for every variant and cell, a row for every run.
    pub fn table(&self, width: usize) -> String {
        let line = |text: &String| format::wrapped(text, width) + "\n";
        let mut parts = vec![self.warnings().iter().map(line).collect()];
        for (title, columns) in self.tables() {
            parts.push(format!("{}{}\n", line(&title), laid_out(columns, width)));
        }
        parts.push(line(&self.note()));
        parts.retain(|part: &String| !part.is_empty());
        parts.join("\n")
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        for (title, columns) in self.tables() {
            out += &format!("**{}**\n\n{}\n", escaped(&title), markdown_table(&columns));
        }
        for text in self.warnings().into_iter().chain([self.note()]) {
            out += &format!("{}\n\n", escaped(&text));
        }
        out
    }

    fn warnings(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for comparison in &self.comparisons {
            for warning in &comparison.warnings {
                let text = format!("{}: {warning}", comparison.other.name);
                if !all.contains(&text) {
                    all.push(text);
                }
            }
        }
        all
    }

    fn note(&self) -> String {
        let whom = match self.against {
            Reference::First => "the first run",
            Reference::Previous => "the run before",
        };
        format!(
            "changes are against {whom}; ▲ slower or worse, ▼ faster or better, = equivalent, ? inconclusive"
        )
    }

    /// A table for each variant and cell or text.
    fn tables(&self) -> Vec<(String, Vec<Column>)> {
        let mut seen: Vec<&Point> = Vec::new();
        for point in self.comparisons.iter().flat_map(|c| &c.points) {
            let same = |other: &&&Point| same_question(other, point);
            if seen.iter().find(same).is_none() {
                seen.push(point);
            }
        }
        seen.into_iter()
            .map(|point| {
                let title = format!("{} · {}", point.variant, point.place());
                (title, self.columns(point))
            })
            .collect()
    }

    /// A row for the first run and one for each comparison; two columns for each figure.
    fn columns(&self, of: &Point) -> Vec<Column> {
        let find = |comparison: &'_ Comparison, metric| {
            let points = comparison.points.iter();
            let mut own = points.filter(|p| same_question(p, of) && p.metric == metric);
            own.next().cloned()
        };
        let first = self.comparisons.first();
        let names = first.map(|c| c.base.name.clone()).into_iter();
        let names = names.chain(self.comparisons.iter().map(|c| c.other.name.clone()));
        let mut columns = vec![column("run", 255, names.map(Some))];
        for (place, metric) in Metric::ALL.into_iter().enumerate() {
            let weight = 100 - 10 * place as u8;
            let points: Vec<Option<Point>> =
                self.comparisons.iter().map(|c| find(c, metric)).collect();
            let base = points
                .first()
                .and_then(|p| Some(format::plain(p.as_ref()?.base)));
            let values = points
                .iter()
                .map(|p| Some(format::plain(p.as_ref()?.other)));
            columns.push(column(
                metric.short(),
                weight,
                [base].into_iter().chain(values),
            ));
            let changes = points.iter().map(|p| p.as_ref().map(change));
            columns.push(column(
                "change",
                weight - 1,
                [None].into_iter().chain(changes),
            ));
        }
        filled(columns)
    }
}

fn same_question(one: &Point, other: &Point) -> bool {
    one.variant == other.variant && one.is_of(other.cell, other.text.as_deref())
}

fn change(point: &Point) -> String {
    let mark = match point.verdict {
        Verdict::Slower | Verdict::Worse => '▲',
        Verdict::Faster | Verdict::Better => '▼',
        Verdict::Equivalent => '=',
        Verdict::Inconclusive => '?',
    };
    format!("{} {mark}", format::change(point.ratio))
}
