//! The tapes of `tests/fixtures/tapes`. No board has recorded them: they are what sensors would read of a scripted power.

use std::fs;
use std::path::PathBuf;

use super::{Sample, Tape};
use crate::measure::gpu::{GpuFacts, GpuState, Throttle};
use crate::measure::sampler::Recording;
use crate::units::{Bytes, Joules, Seconds, Watts};

/// Milliseconds of a tape, between two polls, and between two ticks of the counter.
const LENGTH: u32 = 12_000;
const POLL: u32 = 20;
const TICK: u32 = 100;

/// A board's power in each millisecond, and what its sensors make of it.
pub(crate) struct Script {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) power: fn(u32) -> f64,
    /// What the power reading shows of it.
    factor: f64,
    /// Whether there is an energy counter.
    counter: bool,
    /// When the counter starts over.
    reset: Option<u32>,
}

const PLAIN: Script = Script {
    name: "constant-load",
    about: "400 W throughout",
    power: |_| 400.0,
    factor: 1.0,
    counter: true,
    reset: None,
};

pub(crate) const SCRIPTS: [Script; 5] = [
    PLAIN,
    Script {
        name: "square-wave",
        about: "100 W and 300 W in turns of 200 ms",
        power: |ms| {
            if (ms / 200).is_multiple_of(2) {
                100.0
            } else {
                300.0
            }
        },
        ..PLAIN
    },
    Script {
        name: "counter-reset",
        about: "400 W throughout; the driver is loaded anew after 3 s",
        reset: Some(3_000),
        ..PLAIN
    },
    Script {
        name: "no-counter",
        about: "400 W throughout, on a board without an energy counter",
        counter: false,
        ..PLAIN
    },
    Script {
        name: "idle-disagreement",
        about: "70 W throughout, of which the power reading shows 43 % less",
        power: |_| 70.0,
        factor: 0.57,
        ..PLAIN
    },
];

impl Script {
    /// Joules that the board really draws from one millisecond to another.
    pub(crate) fn joules(&self, from: u32, to: u32) -> f64 {
        (from..to).map(|ms| (self.power)(ms) / 1e3).sum()
    }

    fn tape(&self) -> Tape {
        let (mut millijoules, mut shown) = (5e6, 5e6);
        let mut samples = Vec::new();
        for ms in 0..=LENGTH {
            if self.reset == Some(ms) {
                millijoules = 0.0;
            }
            if ms.is_multiple_of(TICK) {
                shown = millijoules;
            }
            if ms.is_multiple_of(POLL) {
                samples.push(self.sample(ms, shown / 1e3));
            }
            millijoules += (self.power)(ms);
        }
        Tape::of(samples)
    }

    fn sample(&self, ms: u32, joules: f64) -> Sample {
        let state = GpuState {
            sm_clock_mhz: Some(1_980),
            memory_clock_mhz: Some(2_619),
            temperature_celsius: Some(45),
            throttle: Some(Throttle::default()),
            memory_used: Some(Bytes(20 << 30)),
        };
        Sample {
            at: Seconds(f64::from(ms) / 1e3),
            cost: Seconds(0.0004),
            energy: self.counter.then_some(Joules(joules)),
            power: Some(Watts((self.power)(ms) * self.factor)),
            average: None,
            state: ms.is_multiple_of(5 * POLL).then_some(state),
        }
    }

    fn text(&self) -> String {
        let about = self.about;
        let head = "Synthetic: what sensors would read of a scripted board. Written by `write_the_tapes` in";
        format!(
            "# {head}\n# src/measure/tape/recorded.rs.\n# {about}.\n{}",
            self.tape().to_csv()
        )
    }

    fn path(&self) -> PathBuf {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tapes"));
        folder.join(self.name).with_extension("csv")
    }

    /// The tape as it is on the disk.
    pub(crate) fn recording(&self) -> Recording {
        let text = fs::read_to_string(self.path()).unwrap();
        Recording {
            tape: Tape::from_csv(&text).unwrap(),
            facts: GpuFacts {
                power_limit: Some(Watts(500.0)),
                ..GpuFacts::default()
            },
            processes: Some(Vec::new()),
        }
    }
}

/// The script of this name.
pub(crate) fn script(name: &str) -> &'static Script {
    SCRIPTS.iter().find(|script| script.name == name).unwrap()
}

#[test]
fn the_tapes_on_the_disk_are_those_of_their_scripts() {
    for script in &SCRIPTS {
        let text = fs::read_to_string(script.path()).unwrap_or_default();
        assert!(
            text == script.text(),
            "{} is another: `cargo test write_the_tapes -- --ignored` writes it anew",
            script.path().display()
        );
    }
}

#[test]
#[ignore = "writes into the checkout"]
fn write_the_tapes() {
    for script in &SCRIPTS {
        fs::write(script.path(), script.text()).unwrap();
    }
}
