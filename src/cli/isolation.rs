//! Where the points of a study are measured: child processes of this program, or this process.

use std::ffi::OsString;
use std::io::{BufReader, stdin, stdout};
use std::path::PathBuf;

use clap::Args;

use super::parse;
use super::switches::Switch;
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::study::{self, Faults, Isolation, Launch, Plan};
use crate::units::Seconds;

/// The flag that makes a process work for another; nobody else gives it.
const WORKER: &str = "--worker";
/// Names failures that tests want to happen.
const FAULT: &str = "CANDLEPOWER_FAULT";
/// How long a child process may give no sign of life, unless a limit is given.
const PATIENCE: Seconds = Seconds(1800.0);

#[derive(Args)]
#[command(next_help_heading = "Isolation")]
pub(super) struct IsolationFlags {
    /// Whether each variant runs in a child process, so that a crash, a hang or a lack of memory costs one point, or in
    /// this one, as a debugger wants it
    #[arg(long, value_enum, default_value_t = Switch::On, value_name = "on|off")]
    isolate: Switch,
    /// Seconds after which a child process that gives no sign of life is ended [default: 1800]
    #[arg(long, value_name = "SECONDS", value_parser = parse::some_seconds)]
    hang_limit: Option<Seconds>,
    /// Turns that the variants of a model take at each cell, its trials divided among them, so that whatever drifts hits
    /// all alike: an even number, half of them in reverse order; 1 times each variant after the other
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = parse::turns)]
    pub(super) turns: usize,
    /// Works for another process of this program
    #[arg(long, hide = true)]
    worker: bool,
}

impl IsolationFlags {
    /// Whether this process works for another.
    pub(super) fn is_worker(&self) -> bool {
        self.worker
    }

    /// Refuses what is for child processes where there are none.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the flag.
    pub(super) fn check(&self) -> Result<()> {
        match (self.isolate, self.hang_limit) {
            (Switch::Off, Some(_)) => Err(Error::Usage(
                "--hang-limit is for child processes: leave --isolate off out".into(),
            )),
            _ => Ok(()),
        }
    }

    /// How the plan of this number among those of the command line is run.
    ///
    /// # Errors
    /// If it is not known which program this is.
    pub(super) fn of_plan(&self, number: usize) -> Result<Isolation> {
        if self.isolate == Switch::Off {
            if !faults()?.is_empty() {
                return Err(Error::Usage(format!(
                    "{FAULT} is for child processes: leave --isolate off out"
                )));
            }
            return Ok(Isolation::Here);
        }
        let mut arguments = std::env::args_os();
        let name = arguments
            .next()
            .unwrap_or_else(|| OsString::from("candlepower"));
        let launch = Launch {
            program: this_program()?,
            name,
            arguments: arguments.chain([OsString::from(WORKER)]).collect(),
            patience: self.hang_limit.unwrap_or(PATIENCE),
        };
        Ok(Isolation::Children(launch, number))
    }
}

/// Works for the process at the other end of the pipes: `plans` are what the command line stands for.
pub(super) fn work(plans: &[Plan], device: &Device) -> Result<()> {
    let input = BufReader::new(stdin());
    study::serve(plans, device, &faults()?, input, stdout())
}

fn faults() -> Result<Faults> {
    Faults::parse(&std::env::var(FAULT).unwrap_or_default())
}

/// The file that this process runs, even if another has taken its place since.
pub(super) fn this_program() -> Result<PathBuf> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe()
        .map_err(|e| Error::Internal(format!("cannot find the program that is running: {e}")))
}
