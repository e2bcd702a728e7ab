//! Where one variant stops being the fastest and another begins.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::Shape;

/// A stretch of tokens over which one variant is the fastest, by the medians of cold calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reign {
    /// The fastest variant.
    pub variant: String,
    /// The tokens from which on it is: the smallest that were measured, or where its line crosses the line of the variant
    /// before it, both straight between neighbours on logarithmic axes.
    pub from_tokens: f64,
    /// The time there, in microseconds.
    pub at_us: f64,
}

/// Figures closer than this share are a tie, and the reigning variant stays: the last digits are noise.
const TIE: f64 = 0.01;

/// Who is the fastest over all numbers of tokens at which at least two variants were timed. Empty where no two were.
pub(super) fn reigns(shape: &Shape) -> Vec<Reign> {
    let variants = shape.variants();
    let time = |variant: &str, tokens: usize| {
        let mut cells = shape.cells.iter();
        cells
            .find(|cell| cell.variant == variant && cell.tokens == tokens)
            .and_then(super::document::Cell::cold_us)
    };
    let mut tokens: Vec<usize> = shape.cells.iter().map(|cell| cell.tokens).collect();
    tokens.sort_unstable();
    tokens.dedup();
    tokens.retain(|&m| variants.iter().filter_map(|v| time(v, m)).nth(1).is_some());

    let mut reigns: Vec<Reign> = Vec::new();
    let mut before: Option<usize> = None;
    for &m in &tokens {
        let timed = variants.iter().filter_map(|v| Some((v, time(v, m)?)));
        let Some((fastest, best)) = timed.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        let reigning = reigns.last().map(|reign| reign.variant.clone());
        let held = reigning.as_ref().and_then(|name| time(name, m));
        if held.is_none_or(|held| best < (1.0 - TIE) * held) {
            let crossing = reigning.zip(before).and_then(|(old, before)| {
                let ends = |variant: &str| Some([time(variant, before)?, time(variant, m)?]);
                crossing([before, m], ends(&old)?, ends(fastest)?)
            });
            let (from_tokens, at_us) = crossing.unwrap_or((m as f64, best));
            reigns.push(Reign {
                variant: fastest.clone(),
                from_tokens,
                at_us,
            });
        }
        before = Some(m);
    }
    reigns
}

/// Where two lines meet between two numbers of tokens, straight on logarithmic axes.
fn crossing([from, to]: [usize; 2], old: [f64; 2], new: [f64; 2]) -> Option<(f64, f64)> {
    let gap = |i: usize| (new[i] / old[i]).ln();
    let (before, after) = (gap(0), gap(1));
    if before < 0.0 || after >= before {
        return None;
    }
    let share = before / (before - after);
    let between = |a: f64, b: f64| (a.ln() + share * (b.ln() - a.ln())).exp();
    Some((between(from as f64, to as f64), between(old[0], old[1])))
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn lines_cross_where_their_ratio_is_one() {
        // 2 against 1 before, 2 against 4 after: they meet in the middle, on the logarithmic axis.
        let (m, us) = crossing([4, 16], [1.0, 4.0], [2.0, 2.0]).unwrap();
        assert!((m - 8.0).abs() < 1e-9 && (us - 2.0).abs() < 1e-9);
        assert_eq!(crossing([4, 16], [2.0, 4.0], [1.0, 1.0]), None);
    }

    #[test]
    fn four_bits_win_few_tokens_and_sixteen_many() {
        let document = fixture::document();
        let names: Vec<&str> = document.shapes[0]
            .fastest
            .iter()
            .map(|reign| reign.variant.as_str())
            .collect();
        assert_eq!((names[0], names[names.len() - 1]), ("w4a16", "bf16"));
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
        let reigns = &document.shapes[0].fastest;
        assert_eq!(reigns[0].from_tokens, 1.0);
        let from: Vec<f64> = reigns.iter().map(|reign| reign.from_tokens).collect();
        assert!(
            from.is_sorted() && from[from.len() - 1] <= 512.0,
            "{from:?}"
        );
    }

    #[test]
    fn a_single_variant_reigns_over_nobody() {
        let mut records = fixture::records();
        records.retain(|record| record.subject.variant == "bf16");
        let document = fixture::document_of(&records);
        assert!(document.shapes.iter().all(|shape| shape.fastest.is_empty()));
    }
}
