//! The charts of the report: inline SVG without a script, a font or a colour of its own. Colours come from the page's
//! style sheet by class, so one drawing serves light, dark and print.

mod by_batch;
mod by_tokens;
mod marker;
mod memory;
mod scale;
mod spread;
mod svg;
mod tradeoff;

pub(super) use by_batch::{Figure, by_batch};
pub(super) use by_tokens::by_tokens;
#[cfg(test)]
pub(super) use marker::COLOURS;
pub(super) use marker::legend_marker;
pub(super) use memory::memory;
pub(super) use spread::spread;
pub(super) use tradeoff::tradeoff;

use super::format;
use super::study::Study;

/// The width of a chart that spans the page, in SVG units; one unit is one CSS pixel at full size.
const WIDE: f64 = 1040.0;

/// The width of a chart that shares a row with another.
const HALF: f64 = 510.0;

/// How wide a character of a label is at most, about: which font the reader has is not known here.
const CHARACTER: f64 = 7.6;

/// The longest label that a chart shows whole.
const LONGEST_LABEL: usize = 30;

/// The label of each variant as charts show it.
fn labels(study: &Study) -> Vec<String> {
    study
        .variants
        .iter()
        .map(|variant| format::shortened(&study.label(variant), LONGEST_LABEL))
        .collect()
}

/// Room for these labels to the left of a chart.
fn label_room<'a>(labels: impl Iterator<Item = &'a String>) -> f64 {
    let longest = labels.map(|label| label.chars().count()).max().unwrap_or(0);
    longest as f64 * CHARACTER + 14.0
}
