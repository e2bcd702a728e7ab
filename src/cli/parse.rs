//! Single numbers of flags. What makes no sense whatever the command is refused here, with what does.

use crate::units::Seconds;

/// A whole number above 0.
pub(super) fn positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(0) | Err(_) => Err("expected a whole number above 0".into()),
        Ok(n) => Ok(n),
    }
}

/// A number of turns: as many forward as backward, so that each variant goes first as often as last.
pub(super) fn turns(s: &str) -> Result<usize, String> {
    match positive(s) {
        Ok(n) if n == 1 || n % 2 == 0 => Ok(n),
        _ => Err("expected 1 or an even number, half of the turns in reverse order".into()),
    }
}

/// A share from a percentage.
pub(super) fn percent(s: &str) -> Result<f64, String> {
    match number_before(s, "%") {
        Some(x) => Ok(x / 100.0),
        None => Err("expected a percentage, such as 2% or 0.5%".into()),
    }
}

/// A share that an interval can be as narrow as, from a percentage.
pub(super) fn precision(s: &str) -> Result<f64, String> {
    match number_before(s, "%") {
        Some(x) if x > 0.0 && x < 100.0 => Ok(x / 100.0),
        _ => Err("expected a percentage above 0 and below 100, such as 2% or 0.5%".into()),
    }
}

/// A percentage as it is, since hundredths of one would not all come back.
pub(super) fn recovery(s: &str) -> Result<f64, String> {
    number_before(s, "%").ok_or_else(|| "expected a percentage, such as 99 or 98.5".into())
}

pub(super) fn seconds(s: &str) -> Result<Seconds, String> {
    match number_before(s, "s") {
        Some(x) => Ok(Seconds(x)),
        None => Err("expected seconds, such as 3 or 0.5".into()),
    }
}

/// Seconds above 0.
pub(super) fn some_seconds(s: &str) -> Result<Seconds, String> {
    match seconds(s) {
        Ok(time) if time.0 == 0.0 => Err("expected seconds above 0".into()),
        other => other,
    }
}

/// What logits are divided by.
pub(super) fn temperature(s: &str) -> Result<f32, String> {
    match s.parse::<f32>() {
        Ok(x) if x.is_finite() && x >= 0.0 => Ok(x),
        _ => Err("expected a number of at least 0, such as 0.8".into()),
    }
}

/// A probability above 0.
pub(super) fn probability(s: &str) -> Result<f32, String> {
    match s.parse::<f32>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("expected a number above 0 and at most 1, such as 0.95".into()),
    }
}

/// A finite number of at least 0, with or without its unit behind it.
fn number_before(s: &str, unit: &str) -> Option<f64> {
    let number = s.strip_suffix(unit).unwrap_or(s).trim_end();
    let number = number.parse::<f64>().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_with_or_without_their_unit() {
        assert_eq!(percent("2 %"), Ok(0.02));
        assert_eq!(percent("0"), Ok(0.0));
        assert_eq!(recovery("98.5%"), Ok(98.5));
        assert_eq!(seconds("0.5s"), Ok(Seconds(0.5)));
        assert_eq!(precision("1%"), Ok(0.01));
        assert_eq!((positive("3"), temperature("0")), (Ok(3), Ok(0.0)));
        assert_eq!((turns("1"), turns("2"), turns("8")), (Ok(1), Ok(2), Ok(8)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let never = ["", "NaN", "inf", "-1", "x", "1%%", "1 2", "1ss"];
        for s in never {
            assert!(percent(s).is_err() && precision(s).is_err(), "{s}");
            assert!(recovery(s).is_err() && seconds(s).is_err(), "{s}");
            assert!(some_seconds(s).is_err() && positive(s).is_err(), "{s}");
            assert!(temperature(s).is_err() && probability(s).is_err(), "{s}");
        }
        for s in ["0", "0%", "100%", "250"] {
            assert!(precision(s).is_err(), "{s}");
        }
        assert!(some_seconds("0").is_err() && positive("0").is_err());
        for s in ["0", "3", "7", "-2", "x", ""] {
            assert!(turns(s).is_err(), "{s}");
        }
        assert!(probability("0").is_err() && probability("1.01").is_err());
    }
}
