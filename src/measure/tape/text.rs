//! A tape as text: CSV with units in the names of its columns, lines that begin with `#` aside.

use serde::{Deserialize, Serialize};

use super::{Sample, Tape};
use crate::measure::gpu::{GpuState, Throttle};
use crate::units::{Bytes, Joules, Seconds, Watts};

/// A sample as a line; what was not read is empty.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    at_s: f64,
    cost_s: f64,
    energy_j: Option<f64>,
    power_w: Option<f64>,
    average_w: Option<f64>,
    sm_clock_mhz: Option<u32>,
    memory_clock_mhz: Option<u32>,
    temperature_c: Option<u32>,
    throttle_mask: Option<u64>,
    memory_used_bytes: Option<u64>,
}

impl Tape {
    /// Reads what [`Tape::to_csv`] has written.
    ///
    /// # Errors
    /// The line at fault and what is wrong with it, or that time runs backwards.
    pub fn from_csv(text: &str) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new()
            .comment(Some(b'#'))
            .from_reader(text.as_bytes());
        let mut samples: Vec<Sample> = Vec::new();
        for line in reader.deserialize::<Line>() {
            let sample = Sample::from(line.map_err(|error| error.to_string())?);
            let before = samples.last().map_or(Seconds(f64::NEG_INFINITY), |s| s.at);
            // Not less, so that NaN fails.
            if !(sample.at > before && sample.at.0.is_finite()) {
                return Err(format!("after {before:?} comes {:?}", sample.at));
            }
            samples.push(sample);
        }
        Ok(Self::of(samples))
    }

    /// The samples as CSV, to be replayed elsewhere.
    pub fn to_csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for sample in &self.samples {
            let written = writer.serialize(Line::from(*sample));
            written.expect("plain data goes to memory");
        }
        let bytes = writer.into_inner().expect("plain data goes to memory");
        String::from_utf8(bytes).expect("numbers are text")
    }
}

impl From<Line> for Sample {
    fn from(line: Line) -> Self {
        let state = GpuState {
            sm_clock_mhz: line.sm_clock_mhz,
            memory_clock_mhz: line.memory_clock_mhz,
            temperature_celsius: line.temperature_c,
            throttle: line.throttle_mask.map(Throttle::from_bits),
            memory_used: line.memory_used_bytes.map(Bytes),
        };
        Self {
            at: Seconds(line.at_s),
            cost: Seconds(line.cost_s),
            energy: line.energy_j.map(Joules),
            power: line.power_w.map(Watts),
            average: line.average_w.map(Watts),
            state: (state != GpuState::default()).then_some(state),
        }
    }
}

impl From<Sample> for Line {
    fn from(sample: Sample) -> Self {
        let state = sample.state.unwrap_or_default();
        Self {
            at_s: sample.at.0,
            cost_s: sample.cost.0,
            energy_j: sample.energy.map(|x| x.0),
            power_w: sample.power.map(|x| x.0),
            average_w: sample.average.map(|x| x.0),
            sm_clock_mhz: state.sm_clock_mhz,
            memory_clock_mhz: state.memory_clock_mhz,
            temperature_c: state.temperature_celsius,
            throttle_mask: state.throttle.map(Throttle::bits),
            memory_used_bytes: state.memory_used.map(|bytes| bytes.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_survives_its_text() {
        let state = GpuState {
            sm_clock_mhz: Some(1980),
            throttle: Some(Throttle::from_bits(0x24)),
            memory_used: Some(Bytes(7)),
            ..GpuState::default()
        };
        let tape = Tape::of(vec![
            Sample {
                at: Seconds(0.1),
                cost: Seconds(0.001),
                energy: Some(Joules(5.25)),
                power: Some(Watts(70.5)),
                average: Some(Watts(71.0)),
                state: Some(state),
            },
            Sample {
                at: Seconds(0.12),
                ..Sample::default()
            },
        ]);
        let text = format!("# a comment\n{}", tape.to_csv());
        assert_eq!(Tape::from_csv(&text), Ok(tape));
    }

    #[test]
    fn what_is_no_tape_says_where() {
        let head = "at_s,cost_s,energy_j,power_w,average_w,sm_clock_mhz,memory_clock_mhz,temperature_c,throttle_mask,memory_used_bytes\n";
        for (line, word) in [
            ("1,0,x,,,,,,,\n", "line: 2"),
            ("1,0\n", "fields"),
            ("2,0,,,,,,,,\n1,0,,,,,,,,\n", "after"),
            ("nan,0,,,,,,,,\n", "after"),
        ] {
            let error = Tape::from_csv(&format!("{head}{line}")).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
