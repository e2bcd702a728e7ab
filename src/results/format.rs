//! How figures read: one way for the terminal, Markdown and the report.

use super::study::{Interval, QualityAxis};
use crate::units::three_digits;

/// Stands where there is no figure.
pub(super) const NONE: &str = "–";

/// A figure if there is one.
pub(super) fn or_none<T>(figure: Option<T>, show: impl Fn(T) -> String) -> String {
    figure.map_or_else(|| NONE.to_owned(), show)
}

/// A figure on the quality axis, without its spread.
pub(super) fn quality(axis: QualityAxis, value: f64) -> String {
    if axis == QualityAxis::KlDivergence {
        return plain(value);
    }
    let digits = decimals(axis, value);
    format!("{value:.digits$}")
}

/// A figure on the quality axis with its standard error.
pub(super) fn quality_with_error(axis: QualityAxis, value: f64, stderr: Option<f64>) -> String {
    if let (QualityAxis::KlDivergence, Some(stderr)) = (axis, stderr) {
        return format!("{} ± {}", plain(value), plain(stderr));
    }
    if axis == QualityAxis::KlDivergence {
        return plain(value);
    }
    let digits = decimals(axis, value);
    match stderr {
        Some(stderr) => format!("{value:.digits$} ± {stderr:.digits$}"),
        None => format!("{value:.digits$}"),
    }
}

/// A difference of perplexities, with its sign: three digits after the point where it is small.
pub(super) fn difference(value: f64) -> String {
    let [shown] = differences([value]);
    shown
}

/// Differences that belong together, all with the digits of the largest.
pub(super) fn differences<const N: usize>(values: [f64; N]) -> [String; N] {
    let largest = values
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    values.map(|value| match largest {
        a if a < 0.9995 => format!("{value:+.3}"),
        a if a < 99.995 => format!("{value:+.2}"),
        a if a < 1e6 => format!("{value:+.0}"),
        _ => format!("{value:+.1e}"),
    })
}

/// A ratio to a base as a change in percent, with its sign.
pub(super) fn change(ratio: f64) -> String {
    let percent = 100.0 * (ratio - 1.0);
    match percent.abs() {
        a if a < 9.995 => format!("{percent:+.2} %"),
        a if a < 999.5 => format!("{percent:+.1} %"),
        _ => format!("×{}", plain(ratio)),
    }
}

/// A factor such as a speed-up.
pub(super) fn factor(ratio: f64) -> String {
    format!(
        "{}×",
        if ratio < 9.995 {
            format!("{ratio:.2}")
        } else {
            three_digits(ratio)
        }
    )
}

/// Half of an interval in percent of its figure, with a decimal where it is below `fine`.
pub(super) fn half_width(percent: f64, fine: f64) -> String {
    match percent {
        // As rounded it would be that.
        _ if percent < fine - 0.05 => format!("±{percent:.1} %"),
        // Two trials may say no more than this, and the digits beyond say nothing.
        _ if percent >= 100.5 => "±>100 %".to_owned(),
        _ => format!("±{percent:.0} %"),
    }
}

/// A figure, as it is shown without, with half of its interval as a share of it.
pub(super) fn with_half_width(shown: String, figure: f64, interval: Option<Interval>) -> String {
    match interval.map(|ends| 50.0 * (ends.high - ends.low) / figure) {
        Some(percent) => format!("{shown} {}", half_width(percent, 1.0)),
        None => shown,
    }
}

/// Three significant digits, and powers of ten beyond a million.
pub(super) fn plain(x: f64) -> String {
    match x.abs() {
        a if a > 0.0 && a < 9.995e-5 => format!("{x:.2e}"),
        a if a > 0.0 && a < 0.09995 => {
            let digits = (2.0 - a.log10().floor()) as usize;
            format!("{x:.digits$}")
        }
        a if a < 1e7 => three_digits(x),
        _ => format!("{x:.2e}"),
    }
}

/// A whole number in groups of three, with the narrow blank that no line breaks at.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A round number in one letter: `1M`, `250k`.
pub(super) fn rounded(n: u64) -> String {
    match n {
        n if n >= 1_000_000 && n.is_multiple_of(1_000_000) => format!("{}M", n / 1_000_000),
        n if n >= 1000 && n.is_multiple_of(1000) => format!("{}k", n / 1000),
        n => n.to_string(),
    }
}

/// A share in percent with its standard error.
pub(super) fn percent_with_error(percent: f64, stderr: Option<f64>) -> String {
    match stderr {
        Some(stderr) => format!("{percent:.2} ± {stderr:.2} %"),
        None => format!("{percent:.2} %"),
    }
}

/// A figure of a task, mostly a share, in percent with its standard error.
pub(super) fn share_with_error(value: f64, stderr: Option<f64>) -> String {
    let percent = percent_with_error(100.0 * value, stderr.map(|stderr| 100.0 * stderr));
    percent.trim_end_matches(" %").to_owned()
}

/// A rate in tokens per second: grouped when large.
pub(super) fn rate(x: f64) -> String {
    if (1000.0..1e12).contains(&x) {
        grouped(x.round() as u64)
    } else {
        plain(x)
    }
}

/// A text of at most this many characters, its end cut off.
pub(super) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

/// A text in lines of at most this many characters, broken at blanks, all but the first indented; a word too long
/// for a line is cut.
pub(super) fn wrapped(text: &str, width: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    let cut: Vec<String> = lines.iter().map(|line| shortened(line, width)).collect();
    cut.join("\n")
}

fn decimals(axis: QualityAxis, value: f64) -> usize {
    match (axis, value.abs()) {
        (QualityAxis::BitsPerByte, _) => 4,
        (QualityAxis::TaskError, _) => 2,
        (_, a) if a < 99.995 => 3,
        (_, a) if a < 9999.5 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(
            quality_with_error(QualityAxis::Perplexity, 20.9134, Some(0.0412)),
            "20.913 ± 0.041"
        );
        assert_eq!(quality(QualityAxis::BitsPerByte, 0.98765), "0.9877");
        assert_eq!(quality(QualityAxis::Perplexity, 48_211.4), "48211");
        assert_eq!(
            [0.0123, -2.0341, 1234.5].map(difference),
            ["+0.012", "-2.03", "+1234"]
        );
        assert_eq!(
            [1.0011, 1.25, 40.0].map(change),
            ["+0.11 %", "+25.0 %", "×40.0"]
        );
        assert_eq!([1.834, 12.34].map(factor), ["1.83×", "12.3×"]);
        assert_eq!(differences([149.2, 72.91, 218.4]), ["+149", "+73", "+218"]);
        let ends = |low, high| Some(Interval { low, high });
        let half = |x, ends| with_half_width(three_digits(x), x, ends);
        assert_eq!(half(2271.0, ends(2148.0, 2412.0)), "2271 ±6 %");
        assert_eq!(half(50.0, ends(49.8, 50.2)), "50.0 ±0.4 %");
        assert_eq!(half(50.0, None), "50.0");
        assert_eq!(half(50.0, ends(-10.0, 110.0)), "50.0 ±>100 %");
        assert_eq!(rate(1_234_567.8), "1\u{202f}234\u{202f}568");
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(
            [1.2e-5, 0.00121, 0.0724, 0.123].map(plain),
            ["1.20e-5", "0.00121", "0.0724", "0.123"]
        );
        assert_eq!(wrapped("one two three", 8), "one two\n  three");
        assert_eq!(shortened("w4a16:g64:awq", 8), "w4a16:g…");
        assert_eq!(or_none(None::<f64>, plain), NONE);
    }
}
