//! The user's wish to stop, seen by every loop that runs long.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::units::{Clock, Seconds};

/// Longest time that somebody who waits does not look at the flag.
const LOOK: Seconds = Seconds(0.1);

/// A flag that is raised once, by the handler of Ctrl-C for one, and looked at between units of work. All clones share
/// it. Because every loop that runs long looks at it, how often it was looked at shows whether work goes on.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    requested: Arc<AtomicBool>,
    aborted: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    /// Whether this clone goes on until the unit of work at hand is given up.
    patient: bool,
}

impl Interrupt {
    /// A flag that nobody has raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag for good.
    pub fn request(&self) {
        // Nothing else is published through the flag, so no ordering beyond its own is needed.
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Raises the flag and says that the unit of work at hand is not wanted any more either.
    pub fn abort(&self) {
        self.request();
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// Whether the unit of work at hand is to be given up.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// The same flag for whoever finishes a unit of work that has begun: [`Interrupt::check`] passes until it is given up.
    pub fn patient(&self) -> Self {
        Self {
            patient: true,
            ..self.clone()
        }
    }

    /// How often [`Interrupt::check`] was called so far.
    pub fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    /// The flag itself, for what must not know of this type; of a [patient](Interrupt::patient) one, that of giving up.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(match self.patient {
            true => &self.aborted,
            false => &self.requested,
        })
    }

    /// Whether the flag has been raised.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Passes unless the flag has been raised; of a [patient](Interrupt::patient) one, unless the work has been given up.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once it has.
    pub fn check(&self) -> Result<()> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let over = match self.patient {
            true => self.is_aborted(),
            false => self.is_requested(),
        };
        if over {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    /// Lets `span` pass by `clock`, unless the flag is raised meanwhile.
    ///
    /// # Errors
    /// [`Error::Interrupted`] once it is.
    pub fn wait(&self, span: Seconds, clock: &dyn Clock) -> Result<()> {
        let end = clock.now() + span;
        loop {
            self.check()?;
            let left = end - clock.now();
            if left <= Seconds(0.0) {
                return Ok(());
            }
            clock.wait(Seconds(left.0.min(LOOK.0)));
        }
    }
}

/// Ends the process without any farewell: nothing is flushed, no driver is shut down, nothing can hang.
pub fn leave_at_once(code: u8) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(i32::from(code));
    #[cfg(not(unix))]
    std::process::exit(i32::from(code));
}

/// Ends the process as the system does when it runs out of memory.
pub fn kill_this_process() -> ! {
    #[cfg(unix)]
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
    std::process::abort()
}

/// The name of a signal, such as `SIGSEGV`.
#[cfg(unix)]
pub fn signal_name(number: i32) -> String {
    let name = match number {
        signal_hook::consts::SIGKILL => Some("SIGKILL"),
        _ => signal_hook::low_level::signal_name(number),
    };
    name.map_or_else(|| format!("signal {number}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::clock::VirtualClock;

    #[test]
    fn who_is_patient_goes_on_until_the_work_is_given_up() {
        let interrupt = Interrupt::new();
        let patient = interrupt.patient();
        interrupt.request();
        assert!(interrupt.check().is_err() && interrupt.flag().load(Ordering::Relaxed));
        assert!(patient.check().is_ok() && !patient.flag().load(Ordering::Relaxed));
        assert!(patient.is_requested());
        interrupt.abort();
        assert!(patient.check().is_err() && patient.flag().load(Ordering::Relaxed));
    }

    #[test]
    fn waiting_takes_its_time_and_ends_with_a_request() {
        let (clock, interrupt) = (VirtualClock::new(), Interrupt::new());
        interrupt.wait(Seconds(2.05), &clock).unwrap();
        assert!((clock.now().0 - 2.05).abs() < 1e-6, "{:?}", clock.now());
        interrupt.request();
        let ended = interrupt.wait(Seconds(1.0), &clock);
        assert!(matches!(ended, Err(Error::Interrupted)));
    }

    #[test]
    fn a_request_on_one_clone_is_seen_by_all() {
        let interrupt = Interrupt::new();
        let handler = interrupt.clone();
        assert!(interrupt.check().is_ok());
        handler.request();
        assert!(matches!(interrupt.check(), Err(Error::Interrupted)));
        assert_eq!(handler.looks(), 2);
        assert!(!interrupt.is_aborted());
    }

    #[cfg(unix)]
    #[test]
    fn signals_have_names() {
        assert_eq!(signal_name(9), "SIGKILL");
        assert_eq!(signal_name(11), "SIGSEGV");
        assert_eq!(signal_name(1000), "signal 1000");
    }

    #[test]
    fn an_abort_is_a_request_too() {
        let interrupt = Interrupt::new();
        interrupt.abort();
        assert!(interrupt.is_requested() && interrupt.is_aborted());
    }
}
