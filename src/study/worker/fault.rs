//! Failures on purpose, so that tests see what becomes of a run in which something fails.

use std::thread;
use std::time::Duration;

use super::message::Fault;
use crate::error::{Error, Result};
use crate::measure::interrupt::kill_this_process;

/// What goes wrong, and at which points of the plan, counted from one over all variants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<(Kind, usize)>);

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// There is no room.
    OutOfMemory,
    /// The device fails, and would fail at everything from then on.
    Device,
    /// The process panics.
    Panic,
    /// Nothing happens any more.
    Hang,
    /// The process is killed.
    Kill,
    /// The answer is none.
    Garbage,
}

impl Faults {
    /// Reads a list such as `oom@2,panic@3`.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the part at fault.
    pub fn parse(text: &str) -> Result<Self> {
        let one = |part: &str| {
            let (kind, point) = part.split_once('@')?;
            let kind = match kind {
                "oom" => Kind::OutOfMemory,
                "device" => Kind::Device,
                "panic" => Kind::Panic,
                "hang" => Kind::Hang,
                "kill" => Kind::Kill,
                "garbage" => Kind::Garbage,
                _ => return None,
            };
            Some((kind, point.parse().ok()?))
        };
        let parts = text.split(',').filter(|part| !part.is_empty());
        let faults = parts.map(|part| {
            one(part).ok_or_else(|| {
                Error::Usage(format!(
                    "'{part}' is no fault: expected oom, device, panic, hang, kill or garbage with a point, as in oom@2"
                ))
            })
        });
        faults.collect::<Result<_>>().map(Self)
    }

    /// Whether nothing is to go wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails at this point, if it is one of those to fail at; `say` writes a line that is no message.
    pub(super) fn strike(&self, point: usize, say: impl Fn(&str)) -> Result<(), Fault> {
        let struck = self.0.iter().find(|(_, at)| *at == point);
        let Some((kind, _)) = struck else {
            return Ok(());
        };
        let on_purpose = format!("on purpose at point {point}");
        match kind {
            Kind::OutOfMemory => Err(Error::OutOfMemory(format!("no room, {on_purpose}")).into()),
            Kind::Device => {
                let text = format!("CUDA_ERROR_ILLEGAL_ADDRESS, {on_purpose}");
                Err(Error::Device(text).into())
            }
            Kind::Panic => panic!("{on_purpose}"),
            Kind::Hang => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            Kind::Kill => kill_this_process(),
            Kind::Garbage => {
                say("this is no message");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_what_is_no_fault_is_named() {
        let faults = Faults::parse("oom@2,panic@3").unwrap();
        assert_eq!(faults.0, [(Kind::OutOfMemory, 2), (Kind::Panic, 3)]);
        assert!(faults.strike(1, |_| ()).is_ok());
        assert!(faults.strike(2, |_| ()).is_err());
        assert!(Faults::parse("").unwrap().is_empty());
        for wrong in ["oom", "oom@x", "flood@1"] {
            let error = Faults::parse(wrong).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
