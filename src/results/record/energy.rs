//! What the work of a cell draws, and what is known of how well that was measured.

use crate::units::{Joules, Seconds, Watts};

/// What the work of a cell draws.
#[derive(Debug, Clone, PartialEq)]
pub enum Energy {
    /// Nothing is known.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// Found over two windows after the trials.
    Measured(Box<EnergyUse>),
}

/// Energy over two windows after the trials of a cell, one of prefill and one of decode. Gross: all that the board drew,
/// idle power included.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnergyUse {
    /// Drawn while prompts were processed.
    pub prefill: Joules,
    /// Drawn while tokens were generated.
    pub decode: Joules,
    /// How long prompts were processed.
    pub prefill_time: Seconds,
    /// How long tokens were generated.
    pub decode_time: Seconds,
    /// Prompt tokens processed, over the whole batch.
    pub prompt_tokens: u64,
    /// Tokens generated in the decode window, over the whole batch.
    pub generated_tokens: u64,
    /// Mean power of the decode window, its pauses included.
    pub mean_power: Option<Watts>,
    /// What the board draws before anything is opened on it.
    pub idle_power_without_context: Option<Watts>,
    /// What the board draws with the model loaded and nothing running; of variants that take turns, with all of them
    /// loaded.
    pub idle_power: Option<Watts>,
    /// What it draws right after work, its clocks still up.
    pub after_work_power: Option<Watts>,
    /// The limit in force.
    pub power_limit: Option<Watts>,
    /// The mean clock of the multiprocessors from the beginning of the prefill window to the end of the decode window, in
    /// MHz.
    pub sm_clock_mhz: Option<f64>,
    /// The mean memory clock, in MHz.
    pub memory_clock_mhz: Option<f64>,
    /// The highest temperature, in °C.
    pub temperature_c: Option<f64>,
    /// Each reason the device gave for lowering its clocks.
    pub throttle_reasons: Vec<String>,
    /// How the prefill's energy was found.
    pub prefill_check: Option<EnergyCheck>,
    /// How the decode's was.
    pub decode_check: Option<EnergyCheck>,
    /// Why nothing shall be concluded from the figures, which are kept all the same.
    pub rejected: Option<String>,
    /// What reading the sensors cost.
    pub sampling: Option<Sampling>,
    /// What is not known, each with its reason.
    pub missing: Vec<String>,
}

/// How the energy of a window was found, and what the other source says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EnergyCheck {
    /// Where the figure is from: `counter` or `integral`.
    pub source: String,
    /// Ticks of the counter in the window.
    pub ticks: Option<usize>,
    /// Bound on what polling leaves unsure of the time between the first and the last tick, as a share.
    pub edge_error: Option<f64>,
    /// By integrating power.
    pub integrated: Option<Joules>,
    /// How far the integral lies from the counter, as a share of the counter.
    pub disagreement: Option<f64>,
    /// Whether that is more than should be.
    pub suspect: bool,
    /// Rounds of the work in the window.
    pub rounds: u64,
    /// Pauses of random lengths between them, lest rounds keep step with the sensor; part of the window.
    pub pauses: Seconds,
    /// The mean clock of the multiprocessors in the window, in MHz; unknown of old records.
    pub sm_clock_mhz: Option<f64>,
}

/// What reading the sensors cost, on a thread of their own.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    /// Queries.
    pub reads: usize,
    /// Mean time of one.
    pub mean: Seconds,
    /// 99th percentile of it; `None` of fewer than a hundred.
    pub p99: Option<Seconds>,
    /// The longest.
    pub max: Seconds,
    /// Share of the time that was spent in them.
    pub share: f64,
}

impl EnergyUse {
    /// Joules per prompt token; `None` if there was none, or the figures are rejected.
    pub fn per_prompt_token(&self) -> Option<f64> {
        per_token(self.prefill_work()?, self.prompt_tokens)
    }

    /// Joules per generated token; `None` if there was none, or the figures are rejected.
    pub fn per_generated_token(&self) -> Option<f64> {
        per_token(self.decode_work()?, self.generated_tokens)
    }

    /// Joules per prompt token above the idle draw; `None` if that is unknown.
    pub fn net_per_prompt_token(&self) -> Option<f64> {
        let idle = self.idle_over(self.prefill_time, self.prefill_check.as_ref())?;
        per_token(self.prefill_work()? - idle, self.prompt_tokens)
    }

    /// Joules per generated token above the idle draw; `None` if that is unknown.
    pub fn net_per_generated_token(&self) -> Option<f64> {
        let idle = self.idle_over(self.decode_time, self.decode_check.as_ref())?;
        per_token(self.decode_work()? - idle, self.generated_tokens)
    }

    /// Mean power of the prefill window; `None` if it took no time.
    pub fn prefill_power(&self) -> Option<Watts> {
        (self.prefill_time.0 > 0.0).then(|| self.prefill / self.prefill_time)
    }

    /// The mean SM clock while prompts were taken in, in MHz: prompts draw more power than decoding, which may lower it. Of
    /// old records, that of all work.
    pub fn prefill_sm_clock(&self) -> Option<f64> {
        self.sm_clock_of(self.prefill_check.as_ref())
    }

    /// The mean SM clock while tokens were generated, in MHz; of old records, that of all work.
    pub fn decode_sm_clock(&self) -> Option<f64> {
        self.sm_clock_of(self.decode_check.as_ref())
    }

    fn sm_clock_of(&self, check: Option<&EnergyCheck>) -> Option<f64> {
        let own = check.and_then(|check| check.sm_clock_mhz);
        own.or(self.sm_clock_mhz).filter(|clock| *clock > 0.0)
    }

    /// Whether counter and integral differ more than they should in one of the windows.
    pub fn is_suspect(&self) -> bool {
        let checks = [&self.prefill_check, &self.decode_check];
        checks.into_iter().flatten().any(|check| check.suspect)
    }

    fn prefill_work(&self) -> Option<Joules> {
        self.work(self.prefill, self.prefill_check.as_ref())
    }

    fn decode_work(&self) -> Option<Joules> {
        self.work(self.decode, self.decode_check.as_ref())
    }

    /// The energy of a window less that of its pauses, in which the board is as it is right after work.
    fn work(&self, gross: Joules, check: Option<&EnergyCheck>) -> Option<Joules> {
        if self.rejected.is_some() {
            return None;
        }
        let pauses = pauses_of(check);
        if pauses.0 == 0.0 {
            return Some(gross);
        }
        Some(gross - Joules(self.after_work_power?.0 * pauses.0))
    }

    /// What the idle board would have drawn while the work of a window ran.
    fn idle_over(&self, time: Seconds, check: Option<&EnergyCheck>) -> Option<Joules> {
        Some(Joules(self.idle_power?.0 * (time - pauses_of(check)).0))
    }
}

fn pauses_of(check: Option<&EnergyCheck>) -> Seconds {
    check.map_or(Seconds(0.0), |check| check.pauses)
}

fn per_token(energy: Joules, tokens: u64) -> Option<f64> {
    (tokens > 0).then(|| energy.0 / tokens as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> EnergyUse {
        EnergyUse {
            decode: Joules(1000.0),
            decode_time: Seconds(10.0),
            generated_tokens: 100,
            idle_power_without_context: Some(Watts(15.0)),
            idle_power: Some(Watts(20.0)),
            ..EnergyUse::default()
        }
    }

    #[test]
    fn gross_and_net_are_per_token_of_their_own_window() {
        let used = usage();
        assert_eq!(used.per_generated_token(), Some(10.0));
        assert_eq!(used.net_per_generated_token(), Some(8.0));
        assert_eq!(used.per_prompt_token(), None);
        assert_eq!(used.prefill_power(), None);
    }

    #[test]
    fn pauses_are_no_work() {
        let paused = EnergyUse {
            after_work_power: Some(Watts(50.0)),
            decode_check: Some(EnergyCheck {
                pauses: Seconds(2.0),
                ..EnergyCheck::default()
            }),
            ..usage()
        };
        assert_eq!(paused.per_generated_token(), Some(9.0));
        // 900 J in 8 s, of which the idle board would have drawn 160.
        assert_eq!(paused.net_per_generated_token(), Some(7.4));
        let unknown = EnergyUse {
            after_work_power: None,
            ..paused
        };
        assert_eq!(unknown.per_generated_token(), None);
    }

    #[test]
    fn nothing_is_concluded_from_rejected_figures() {
        let rejected = EnergyUse {
            rejected: Some("43 % apart".to_owned()),
            ..usage()
        };
        assert_eq!(rejected.per_generated_token(), None);
        assert_eq!(rejected.net_per_generated_token(), None);
    }
}
