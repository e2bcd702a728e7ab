//! What becomes of Ctrl-C and of the signals with which systems ask programs to end.

use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::measure::interrupt::leave_at_once;

/// What whoever looks at the interrupt has time for before the process ends, such as ending its children.
const GRACE: Duration = Duration::from_millis(200);

/// The first Ctrl-C, SIGTERM or SIGHUP ends after the cell or the step at hand and keeps what is on record, the second ends
/// at once.
/// SIGUSR1, with which schedulers announce the end of a job's time, is as good as the first and never a second. A worker
/// ignores them all: it gets them where a whole group of processes does, and the process that it works for decides.
pub(super) fn watch(interrupt: &Interrupt, is_worker: bool) -> Result<()> {
    let interrupt = interrupt.clone();
    let heard = move |may_abort: bool| {
        if is_worker {
            return;
        }
        if may_abort && interrupt.is_requested() {
            interrupt.abort();
            thread::sleep(GRACE);
            leave_at_once(Error::Interrupted.exit_code());
        }
        interrupt.request();
    };
    listen(heard).map_err(|e| Error::Internal(format!("cannot watch for signals: {e}")))
}

#[cfg(unix)]
fn listen(heard: impl Fn(bool) + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    thread::spawn(move || {
        signals
            .forever()
            .for_each(|signal| heard(signal != SIGUSR1))
    });
    Ok(())
}

#[cfg(not(unix))]
fn listen(heard: impl Fn(bool) + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || heard(true))
}
