//! Two programs measured by turns. Each run is a process of its own, so that what differs from run to run is measured
//! instead of allowed for, and whatever drifts hits both alike.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use super::turns::turns;
use crate::error::{Error, Result};
use crate::measure::Interrupt;

/// How often it is looked whether a run has ended, or the user wants to stop.
const TICK: Duration = Duration::from_millis(20);

/// One of the two.
#[derive(Debug, Clone)]
pub struct Contender {
    /// What it is called, as part of a folder's name too.
    pub name: String,
    /// Its file.
    pub program: PathBuf,
}

/// Runs each program `rounds` times with `arguments` and a folder of its own in `dir`, which it goes on in if something is
/// there: forward, backward, backward, forward. `tell` is told the round and the name before each. Gives the folders of
/// each, in the order of `contenders`.
///
/// # Errors
/// If a program does not start or ends with another code than that of success or of failed points.
pub fn in_turns(
    contenders: &[Contender; 2],
    arguments: &[OsString],
    rounds: usize,
    dir: &Path,
    interrupt: &Interrupt,
    tell: &mut dyn FnMut(usize, &str),
) -> Result<[Vec<PathBuf>; 2]> {
    let mut folders = [Vec::new(), Vec::new()];
    for round in 1..=rounds {
        for number in turns(round, &[0, 1]) {
            interrupt.check()?;
            let contender = &contenders[number];
            tell(round, &contender.name);
            let folder = dir.join(format!("{}-{round}", contender.name));
            let status = run(contender, arguments, &folder, interrupt)?;
            match status.code() {
                Some(0 | SOME_FAILED) => folders[number].push(folder),
                Some(code) if code == i32::from(Error::Interrupted.exit_code()) => {
                    return Err(Error::Interrupted);
                }
                _ => {
                    return Err(Error::Config(format!(
                        "{} ended with {status} in round {round}; what it said is above",
                        contender.program.display()
                    )));
                }
            }
        }
    }
    Ok(folders)
}

/// The exit code of a run whose points failed in part.
const SOME_FAILED: i32 = 3;

fn run(
    contender: &Contender,
    arguments: &[OsString],
    folder: &Path,
    interrupt: &Interrupt,
) -> Result<ExitStatus> {
    // In the group of this process, so that a terminal's Ctrl-C reaches it too: it knows best what to finish.
    let mut process = Command::new(&contender.program)
        .args(arguments)
        .arg("--out")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| Error::reading(&contender.program, "cannot start", e))?;
    loop {
        let ended = process.try_wait().map_err(|e| {
            Error::Internal(format!(
                "cannot wait for {}: {e}",
                contender.program.display()
            ))
        })?;
        if let Some(status) = ended {
            return Ok(status);
        }
        if interrupt.is_aborted() {
            // It may have ended by itself, which is as good.
            let _ = process.kill();
            let _ = process.wait();
            return Err(Error::Interrupted);
        }
        thread::sleep(TICK);
    }
}
