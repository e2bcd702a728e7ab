//! Quantities with their units, how they print, and the clock through which time enters.

use std::fmt;

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
        pub struct $name(pub f64);

        impl std::ops::Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }

        impl std::ops::Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }

        impl std::iter::Sum for $name {
            fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
                Self(parts.map(|part| part.0).sum())
            }
        }
    };
}

quantity!(
    /// A span of time, or a reading of a [`Clock`], in seconds.
    Seconds
);
quantity!(
    /// Energy in joules.
    Joules
);
quantity!(
    /// Power in watts.
    Watts
);

/// An amount of memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Bytes(pub u64);

impl Seconds {
    /// The span in milliseconds.
    pub fn millis(self) -> f64 {
        self.0 * 1e3
    }
}

impl std::ops::Div<Seconds> for Joules {
    type Output = Watts;
    fn div(self, time: Seconds) -> Watts {
        Watts(self.0 / time.0)
    }
}

impl fmt::Display for Seconds {
    /// Three significant digits from microseconds to days: `850 µs`, `12.3 ms`, `4.56 s`, `3m 20s`, `2h 05m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        match s.abs() {
            a if a < 1e-3 => write!(f, "{} µs", three_digits(s * 1e6)),
            a if a < 1.0 => write!(f, "{} ms", three_digits(s * 1e3)),
            a if a < 100.0 => write!(f, "{} s", three_digits(s)),
            a if a < 3600.0 => write!(f, "{:.0}m {:02.0}s", (s / 60.0).floor(), (s % 60.0).floor()),
            _ => write!(
                f,
                "{:.0}h {:02.0}m",
                (s / 3600.0).floor(),
                (s % 3600.0 / 60.0).floor()
            ),
        }
    }
}

impl fmt::Display for Joules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.abs() {
            j if j < 1.0 => write!(f, "{} mJ", three_digits(self.0 * 1e3)),
            j if j < 1e4 => write!(f, "{} J", three_digits(self.0)),
            _ => write!(f, "{} kJ", three_digits(self.0 / 1e3)),
        }
    }
}

impl fmt::Display for Watts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} W", three_digits(self.0))
    }
}

impl fmt::Display for Bytes {
    /// Binary multiples with three significant digits: `512 B`, `3.50 MiB`, `14.9 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        if value < 1024.0 {
            return write!(f, "{} B", self.0);
        }
        let mut unit = "";
        for name in units {
            value /= 1024.0;
            unit = name;
            if value < 1000.0 {
                break;
            }
        }
        write!(f, "{} {unit}", three_digits(value))
    }
}

/// `x` with three significant digits, never in scientific notation: `0.123`, `1.23`, `12.3`, `123`, `12345`.
pub fn three_digits(x: f64) -> String {
    match x.abs() {
        a if a == 0.0 || !a.is_finite() => format!("{x}"),
        a if a < 0.9995 => format!("{x:.3}"),
        a if a < 9.995 => format!("{x:.2}"),
        a if a < 99.95 => format!("{x:.1}"),
        _ => format!("{x:.0}"),
    }
}

/// A source of time. What measures is handed one, so that tests can script it.
pub trait Clock: Send + Sync {
    /// Seconds since an arbitrary origin; never decreases.
    fn now(&self) -> Seconds;

    /// Lets `span` pass. Unless the clock has a way of its own, the thread sleeps.
    fn wait(&self, span: Seconds) {
        if span.0 > 0.0 {
            std::thread::sleep(std::time::Duration::from_secs_f64(span.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_print_with_three_digits_and_their_unit() {
        let shown = [0.00085, 0.0123, 4.561, 99.99, 200.4, 7500.0].map(|s| Seconds(s).to_string());
        assert_eq!(
            shown,
            ["850 µs", "12.3 ms", "4.56 s", "100 s", "3m 20s", "2h 05m"]
        );
        let shown = [512, 3_670_016, 16_000_000_000].map(|b| Bytes(b).to_string());
        assert_eq!(shown, ["512 B", "3.50 MiB", "14.9 GiB"]);
    }
}
