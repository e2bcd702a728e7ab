//! What the device can do at best, measured on it: the yardstick beside every speed. Reading and copying at several
//! sizes, and on a GPU with several amounts of bytes in flight; large products of every type; what a launch alone takes.

mod bandwidth;
mod launches;
mod products;

use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::trial::{StopRule, Until, WarmUp};
use crate::measure::{Interrupt, SystemClock};
use crate::results::environment::{Ceiling, Ceilings, LeftOut};
use crate::results::microbench::record::Timing;
use crate::units::Seconds;

use super::microbench::timer::{Call, Heat, Timer};

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What figures are held against, in a second or two.
    Brief,
    /// Every size and way.
    Full,
}

/// Names of the limits that figures are held against.
const READ: &str = "read";
const COPY: &str = "copy";
const MATMUL: &str = "matmul ";

/// Measures what `device` can do.
///
/// What fails, for want of memory perhaps, is left out with its reason: a run can do without.
///
/// # Errors
/// If the user interrupts.
pub fn ceilings(device: &Device, effort: Effort, interrupt: &Interrupt) -> Result<Ceilings> {
    let clock = SystemClock::new();
    let rule = match effort {
        Effort::Brief => rule(5, 0.1, 1.0),
        Effort::Full => rule(10, 0.3, 3.0),
    };
    let warm_up = WarmUp {
        min_trials: 1,
        ..WarmUp::default()
    };
    let bed = Bed {
        device,
        effort,
        timer: Timer::new(device, &clock, interrupt, rule, warm_up),
    };
    let mut found = Found::default();
    type Measure = fn(&Bed<'_>, &mut Found) -> Result<()>;
    let parts: [(&str, Measure); 3] = [
        ("bandwidth", bandwidth::measure),
        ("products", products::measure),
        ("launches", launches::measure),
    ];
    for (name, measure) in parts {
        match measure(&bed, &mut found) {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => found.left_out(name, &error.to_string()),
            Ok(()) => {}
        }
    }
    Ok(found.ceilings())
}

const fn rule(trials: usize, least: f64, most: f64) -> StopRule {
    StopRule {
        min_trials: trials,
        min_time: Seconds(least),
        until: Until::NOTHING,
        max_trials: None,
        max_time: Some(Seconds(most)),
    }
}

/// Where ceilings are measured.
struct Bed<'a> {
    device: &'a Device,
    effort: Effort,
    timer: Timer<'a>,
}

impl Bed<'_> {
    /// Times a call on one set of buffers.
    fn time(&self, call: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<Timing> {
        let call: &mut Call<'_> = &mut |_| call();
        self.timer.time(call, 1, 0, Heat::Warm)
    }

    /// Whether the device is real: an emulated one shows that the code runs, at sizes that take no time.
    fn is_emulated(&self) -> bool {
        self.device.kind() == "emulator"
    }
}

/// What has been found.
#[derive(Default)]
struct Found {
    rows: Vec<Ceiling>,
    left_out: Vec<LeftOut>,
}

impl Found {
    /// A rate: `amount` per call.
    fn rate(&mut self, name: String, amount: f64, unit: &str, how: String, timing: &Timing) {
        let (best, median) = best_and_median(timing);
        self.rows.push(Ceiling {
            name,
            best: amount / best,
            median: amount / median,
            unit: unit.to_owned(),
            how,
        });
    }

    /// A time.
    fn time(&mut self, name: &str, how: String, timing: &Timing) {
        let (best, median) = best_and_median(timing);
        self.rows.push(Ceiling {
            name: name.to_owned(),
            best,
            median,
            unit: "s".to_owned(),
            how,
        });
    }

    fn left_out(&mut self, name: impl Into<String>, reason: &str) {
        self.left_out.push(LeftOut {
            name: name.into(),
            reason: reason.to_owned(),
        });
    }

    fn ceilings(self) -> Ceilings {
        let best = |name: &str| {
            let of_name = self.rows.iter().filter(|row| row.name == name);
            of_name.map(|row| row.best / 1e9).reduce(f64::max)
        };
        let product = |row: &Ceiling| {
            let name = row.name.strip_prefix(MATMUL)?;
            Some((name.to_owned(), row.best / 1e12))
        };
        Ceilings {
            read_gb_per_s: best(READ),
            copy_gb_per_s: best(COPY),
            matmul_tflop_per_s: self.rows.iter().filter_map(product).collect(),
            measured: self.rows,
            left_out: self.left_out,
        }
    }
}

fn best_and_median(timing: &Timing) -> (f64, f64) {
    let mut seconds = timing.samples_s.clone();
    seconds.sort_by(f64::total_cmp);
    (seconds[0], seconds[seconds.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_best_of_their_rows() {
        let timing = |seconds: &[f64]| Timing {
            samples_s: seconds.to_vec(),
            calls: 1,
            copies: 1,
            rotated_bytes: 0,
            warmup_samples: 0,
            stop_reason: "enough".to_owned(),
        };
        let mut found = Found::default();
        for (name, seconds) in [
            ("read", [2.0, 4.0, 3.0]),
            ("read", [1.0, 8.0, 9.0]),
            ("read, 8 MiB", [0.1; 3]),
        ] {
            found.rate(
                name.to_owned(),
                1e9,
                "B/s",
                String::new(),
                &timing(&seconds),
            );
        }
        found.rate(
            "matmul bf16".into(),
            5e12,
            "FLOP/s",
            String::new(),
            &timing(&[2.0]),
        );
        found.time("launch", String::new(), &timing(&[1e-6]));
        found.left_out("matmul fp8", "no kernel");
        let ceilings = found.ceilings();
        assert_eq!(ceilings.read_gb_per_s, Some(1.0));
        assert_eq!(ceilings.copy_gb_per_s, None);
        assert_eq!(ceilings.matmul_tflop_per_s["bf16"], 2.5);
        assert_eq!((ceilings.measured.len(), ceilings.left_out.len()), (5, 1));
        assert_eq!(ceilings.measured[0].median, 1e9 / 3.0);
    }
}
