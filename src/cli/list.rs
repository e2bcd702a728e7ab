//! Lists and ranges of numbers, as llama-bench has them: `1,2,4`, `512-8192*2`, `128-512+128`. Ranges may overlap: a number
//! that comes again is the same number.

use std::str::FromStr;

/// Most numbers of a list: a typing error must not become a week of work.
const MOST: usize = 1000;

/// Numbers in the order given, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbers(pub(super) Vec<usize>);

impl Numbers {
    /// Numbers of what there must be some of.
    pub(super) fn above_zero(s: &str) -> Result<Self, String> {
        let numbers: Self = s.parse()?;
        match numbers.0.contains(&0) {
            true => Err("expected whole numbers above 0".into()),
            false => Ok(numbers),
        }
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut numbers = Vec::new();
        for part in s.split(',') {
            range(part.trim(), &mut numbers)?;
        }
        Ok(Self(numbers))
    }
}

/// One number, or `first-last`, with `*factor` or `+step` behind (default `+1`).
fn range(part: &str, out: &mut Vec<usize>) -> Result<(), String> {
    let number = |s: &str| {
        s.parse::<usize>()
            .map_err(|_| format!("'{s}' in '{part}' is not a whole number"))
    };
    let mut add = |n: usize| {
        if !out.contains(&n) {
            out.push(n);
        }
        match out.len() > MOST {
            true => Err(format!("'{part}' is more than {MOST} numbers")),
            false => Ok(()),
        }
    };
    let Some((first, rest)) = part.split_once('-') else {
        return add(number(part)?);
    };
    let (last, grow): (_, Box<dyn Fn(usize) -> Option<usize>>) =
        if let Some((last, factor)) = rest.split_once('*') {
            let factor = number(factor)?;
            if factor < 2 {
                return Err(format!("'{part}': a factor must be at least 2"));
            }
            (last, Box::new(move |n| n.checked_mul(factor)))
        } else {
            let (last, step) = rest.split_once('+').unwrap_or((rest, "1"));
            let step = number(step)?;
            if step == 0 {
                return Err(format!("'{part}': a step must be at least 1"));
            }
            (last, Box::new(move |n| n.checked_add(step)))
        };
    let (mut n, last) = (number(first)?, number(last)?);
    if n > last || n == 0 && rest.contains('*') {
        return Err(format!("'{part}' is an empty or endless range"));
    }
    loop {
        add(n)?;
        match grow(n) {
            Some(next) if next <= last => n = next,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges_mean_what_llama_bench_means() {
        let parse = |s: &str| s.parse::<Numbers>().map(|n| n.0);
        assert_eq!(parse("1,2,4").unwrap(), [1, 2, 4]);
        assert_eq!(parse("512-8192*2").unwrap(), [512, 1024, 2048, 4096, 8192]);
        assert_eq!(parse("128-512+128").unwrap(), [128, 256, 384, 512]);
        assert_eq!(parse("3-5, 9").unwrap(), [3, 4, 5, 9]);
        assert_eq!(parse("1,1,4,1-5").unwrap(), [1, 4, 2, 3, 5]);
        assert_eq!(parse("0,2").unwrap(), [0, 2]);
        assert!(Numbers::above_zero("0,2").is_err());
        for bad in [
            "", "x", "1,,2", "4-2", "1-9*1", "0-8*2", "1-9+0", "1-100000", "-3",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
