//! Whether heat or the power supply slowed the device during a trial, and waiting until they no longer do.

use super::board::Board;
use super::gpu::ThrottleTime;
use super::interrupt::Interrupt;
use crate::error::Result;
use crate::units::{Clock, Seconds};

/// How long a device that was slowed is left alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cooling {
    /// Time between two looks at it.
    pub look: Seconds,
    /// It has cooled down once it is this many degrees below what it had.
    pub degrees: u32,
    /// Longest wait after one trial.
    pub most: Seconds,
    /// Trials of one cell that are made again; those beyond stay as they are.
    pub retries: usize,
}

impl Default for Cooling {
    fn default() -> Self {
        Self {
            look: Seconds(0.5),
            degrees: 5,
            most: Seconds(30.0),
            retries: 10,
        }
    }
}

/// A look at a board before a trial, to be compared with one after it. Both are outside of what is timed.
#[derive(Debug)]
pub struct ThrottleWatch<'b> {
    board: Option<&'b dyn Board>,
    before: ThrottleTime,
}

impl<'b> ThrottleWatch<'b> {
    /// Looks at `board` before a trial; nothing is ever slow where there is none.
    pub fn start(board: Option<&'b dyn Board>) -> Self {
        Self {
            board,
            before: board.map(Board::throttle_time).unwrap_or_default(),
        }
    }

    /// What has slowed the device since: by the counters, or where a board has none of them, by what it says now.
    pub fn reasons(&self) -> Vec<&'static str> {
        let Some(board) = self.board else {
            return Vec::new();
        };
        let after = board.throttle_time();
        if after != ThrottleTime::default() {
            return after.since(&self.before);
        }
        let faults = board.state().throttle.map(|mask| mask.faults());
        faults
            .map(|mask| mask.names().collect())
            .unwrap_or_default()
    }
}

impl Cooling {
    /// Waits until nothing slows the board and it has cooled, or for as long as that may take; how long it was.
    ///
    /// # Errors
    /// [`Interrupted`](crate::error::Error::Interrupted).
    pub fn wait(
        &self,
        board: &dyn Board,
        clock: &dyn Clock,
        interrupt: &Interrupt,
    ) -> Result<Seconds> {
        let begin = clock.now();
        let hot = board.state().temperature_celsius;
        loop {
            interrupt.wait(self.look, clock)?;
            let state = board.state();
            let slowed = state.throttle.is_some_and(|mask| mask.is_fault());
            let warm = hot
                .zip(state.temperature_celsius)
                .is_some_and(|(hot, now)| now + self.degrees > hot);
            let waited = clock.now() - begin;
            if !(slowed || warm) || waited >= self.most {
                return Ok(waited);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::clock::VirtualClock;
    use crate::measure::gpu::{GpuFacts, GpuProcess, GpuState, PowerReading, Throttle};
    use crate::measure::unavailable::Unavailable;

    /// Cools by a degree a second from 90 °C, and is slowed above 88 °C.
    #[derive(Debug)]
    struct Oven {
        clock: VirtualClock,
        has_counters: bool,
    }

    impl Board for Oven {
        fn facts(&self) -> GpuFacts {
            GpuFacts::default()
        }

        fn power(&self) -> std::result::Result<PowerReading, Unavailable> {
            Ok(PowerReading::default())
        }

        fn state(&self) -> GpuState {
            let celsius = 90 - (self.clock.now().0 as u32).min(60);
            GpuState {
                temperature_celsius: Some(celsius),
                throttle: Some(Throttle::from_bits(if celsius > 88 { 0x24 } else { 0x4 })),
                ..GpuState::default()
            }
        }

        fn throttle_time(&self) -> ThrottleTime {
            if !self.has_counters {
                return ThrottleTime::default();
            }
            ThrottleTime {
                sw_thermal: Some(Seconds(self.clock.now().0.min(2.0))),
                hw_thermal: Some(Seconds(7.0)),
                hw_power_brake: None,
            }
        }

        fn processes(&self) -> Option<Vec<GpuProcess>> {
            None
        }
    }

    fn oven(has_counters: bool) -> Oven {
        Oven {
            clock: VirtualClock::new(),
            has_counters,
        }
    }

    #[test]
    fn a_trial_is_slowed_if_a_counter_moved_meanwhile_whatever_the_board_says_now() {
        let oven = oven(true);
        let watch = ThrottleWatch::start(Some(&oven));
        assert!(watch.reasons().is_empty());
        oven.clock.advance(Seconds(10.0));
        assert_eq!(watch.reasons(), ["sw_thermal_slowdown"]);
        let later = ThrottleWatch::start(Some(&oven));
        oven.clock.advance(Seconds(10.0));
        assert!(later.reasons().is_empty());
    }

    #[test]
    fn a_board_without_counters_is_asked_what_slows_it_now() {
        let oven = oven(false);
        let watch = ThrottleWatch::start(Some(&oven));
        // A power cap is no fault.
        assert_eq!(watch.reasons(), ["sw_thermal_slowdown"]);
        oven.clock.advance(Seconds(10.0));
        assert!(watch.reasons().is_empty());
        assert!(ThrottleWatch::start(None).reasons().is_empty());
    }

    #[test]
    fn cooling_ends_when_nothing_slows_the_board_and_it_has_cooled_or_time_is_up() {
        let interrupt = Interrupt::new();
        let waits = |cooling: Cooling| {
            let oven = oven(true);
            cooling.wait(&oven, &oven.clock, &interrupt).unwrap().0
        };
        assert!((waits(Cooling::default()) - 5.0).abs() < 0.51);
        let brief = Cooling {
            most: Seconds(2.0),
            ..Cooling::default()
        };
        assert!((waits(brief) - 2.0).abs() < 0.51);
        let only_the_mask = Cooling {
            degrees: 0,
            ..Cooling::default()
        };
        assert!((waits(only_the_mask) - 2.0).abs() < 0.51);
    }
}
