//! Axes: from figures to places, and the ticks between.

use super::super::format;

/// Beyond this ratio of largest to smallest an axis is logarithmic.
const LOG_RATIO: f64 = 20.0;

/// A linear or logarithmic axis.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
    step: f64,
}

/// What an axis must show besides the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Zero too, unless the figures span decades: lengths and heights are compared.
    Zero,
    /// Nothing else: places are compared.
    Free,
}

impl Scale {
    /// An axis over these figures, from the place `from` to the place `to`; figures that are not finite are passed over.
    pub(super) fn over(
        figures: impl Iterator<Item = f64>,
        (from, to): (f64, f64),
        origin: Origin,
    ) -> Self {
        let (mut low, mut high) = figures
            .filter(|x| x.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
                (low.min(x), high.max(x))
            });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let log = low > 0.0 && high / low > LOG_RATIO;
        if log {
            let margin = (high / low).powf(0.06);
            (low, high) = (low / margin, high * margin);
        } else {
            // A single figure, or several alike, still needs an extent.
            let extent = (high - low).max(high.abs() * 0.02).max(1e-9);
            low = match origin {
                Origin::Zero => low.min(0.0),
                Origin::Free => low - 0.09 * extent,
            };
            high += 0.09 * extent;
        }
        let step = nice_step(high - low);
        Self {
            low,
            high,
            from,
            to,
            log,
            step,
        }
    }

    /// A logarithmic axis over these figures, however near they are; those that are not positive are passed over.
    pub(super) fn log(figures: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Self {
        let (mut low, mut high) = figures
            .filter(|x| x.is_finite() && *x > 0.0)
            .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), x| {
                (low.min(x), high.max(x))
            });
        if low > high {
            (low, high) = (1.0, 10.0);
        }
        let margin = (high / low).powf(0.06).max(1.05);
        (low, high) = (low / margin, high * margin);
        Self {
            low,
            high,
            from,
            to,
            log: true,
            step: nice_step(high - low),
        }
    }

    /// The place of a figure, held within the axis.
    pub(super) fn at(&self, x: f64) -> f64 {
        let share = if self.log {
            (x.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (x - self.low) / (self.high - self.low)
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Whether equal distances mean equal ratios.
    pub(super) fn is_log(&self) -> bool {
        self.log
    }

    /// The marked figures with their texts.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let by_ratio = if self.log { self.log_ticks() } else { vec![] };
        let figures = Some(by_ratio).filter(|ticks| ticks.len() > 1);
        let figures: Vec<f64> = figures.unwrap_or_else(|| {
            let first = (self.low / self.step - 1e-9).ceil() as i64;
            let last = (self.high / self.step + 1e-9).floor() as i64;
            (first..=last).map(|i| i as f64 * self.step).collect()
        });
        figures
            .into_iter()
            .map(|x| (x, self.tick_text(x)))
            .collect()
    }

    fn log_ticks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let digits: &[f64] = match decades {
            d if d <= 2.5 => &[1.0, 2.0, 5.0],
            d if d <= 4.0 => &[1.0, 3.0],
            _ => &[1.0],
        };
        let (first, last) = (
            self.low.log10().floor() as i32,
            self.high.log10().ceil() as i32,
        );
        let every = usize::try_from((last - first) / 7).unwrap_or(0).max(1);
        (first..=last)
            .step_by(every)
            .flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)))
            .filter(|x| (self.low..=self.high).contains(x))
            .collect()
    }

    /// Thousands and millions by their letter once the axis is long enough for it.
    fn tick_text(&self, x: f64) -> String {
        match self.high {
            high if high < 1e4 || x == 0.0 => self.plain_tick(x),
            _ if x.abs() >= 1e9 => format!("{x:.0e}"),
            _ if x.abs() >= 1e6 => format!("{}M", rounded(x / 1e6)),
            _ if x.abs() >= 1e3 => format!("{}k", rounded(x / 1e3)),
            _ => self.plain_tick(x),
        }
    }

    fn plain_tick(&self, x: f64) -> String {
        if self.log && self.high / self.low > 2.0 {
            return match x {
                x if x >= 1.0 => format::grouped(x.round() as u64),
                x if x >= 1e-3 => rounded(x).to_string(),
                x => format!("{x:.0e}"),
            };
        }
        let decimals = (-self.step.log10().floor()).clamp(0.0, 9.0) as usize;
        if decimals == 0 && x >= 0.0 {
            format::grouped(x.round() as u64)
        } else {
            format!("{x:.decimals$}")
        }
    }
}

/// Without the dust of binary fractions.
fn rounded(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

/// One, two or five times a power of ten, so that about five steps make the extent.
fn nice_step(extent: f64) -> f64 {
    let rough = extent / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let digit = match rough / power {
        d if d <= 1.5 => 1.0,
        d if d <= 3.5 => 2.0,
        d if d <= 7.5 => 5.0,
        _ => 10.0,
    };
    digit * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let scale = Scale::over([0.3, 4.9].into_iter(), (0.0, 100.0), Origin::Zero);
        assert_eq!(texts(&scale), ["0", "1", "2", "3", "4", "5"]);
        let scale = Scale::over([21.1, 23.2].into_iter(), (0.0, 100.0), Origin::Free);
        assert_eq!(texts(&scale), ["21.0", "21.5", "22.0", "22.5", "23.0"]);
        let scale = Scale::over([12.0, 4000.0].into_iter(), (0.0, 100.0), Origin::Zero);
        assert!(scale.is_log());
        assert_eq!(
            texts(&scale),
            ["10", "30", "100", "300", "1\u{202f}000", "3\u{202f}000"]
        );
    }

    #[test]
    fn every_figure_has_a_place() {
        for figures in [
            vec![],
            vec![0.0],
            vec![5.0; 3],
            vec![f64::NAN, 1.0],
            vec![1e-6, 1e9],
        ] {
            for origin in [Origin::Zero, Origin::Free] {
                let scale = Scale::over(figures.iter().copied(), (10.0, 110.0), origin);
                assert!(scale.ticks().len() < 30);
                for &x in figures.iter().filter(|x| x.is_finite()) {
                    assert!((10.0..=110.0).contains(&scale.at(x)), "{x} in {scale:?}");
                }
            }
        }
        let rates = Scale::over([0.0, 44_000.0].into_iter(), (0.0, 1.0), Origin::Zero);
        assert_eq!(texts(&rates), ["0", "10k", "20k", "30k", "40k"]);
        let near = Scale::log([11.2, 11.9].into_iter(), (0.0, 1.0));
        assert!(
            near.is_log() && texts(&near).len() > 1,
            "{:?}",
            texts(&near)
        );
        let far = Scale::log([0.5, 900.0].into_iter(), (0.0, 1.0));
        assert_eq!(
            texts(&far),
            ["1", "3", "10", "30", "100", "300", "1\u{202f}000"]
        );
        let down = Scale::over([0.0, 10.0].into_iter(), (100.0, 0.0), Origin::Zero);
        assert_eq!(down.at(0.0), 100.0);
        assert!(down.at(10.0) < 15.0);
    }
}
