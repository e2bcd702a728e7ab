//! `candlepower bench --against-program`: this build and another, measured by turns and compared.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::args::parse_positive;
use super::compare::RuleFlags;
use super::isolation::this_program;
use super::progress::{say, width};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::results::compare::{Run, Side, compare};
use crate::study::{Contender, programs_in_turns};

#[derive(Args)]
#[command(next_help_heading = "Comparison")]
pub(super) struct AgainstFlags {
    /// Compares what is measured with a run on record (several of the same thing with commas), measured before and so not in
    /// turn with it. With --json, it is the comparison that is printed
    #[arg(long, value_name = "RUN", conflicts_with = "ablate")]
    pub(super) against: Option<String>,
    /// Compares with another build of this program: both are measured now, by turns, in several runs each, whose spread
    /// tells what differs from run to run. With --out, the folder holds them all
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "ablate"])]
    pub(super) against_program: Option<PathBuf>,
    /// Runs of each program
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = parse_positive, requires = "against_program")]
    pub(super) rounds: usize,
}

/// Flags that are about the comparison, not for the runs that it starts: with a value, and alone.
const WITH_VALUE: [&str; 7] = [
    "--against-program",
    "--rounds",
    "--out",
    "--fail-on",
    "--margin",
    "--quality-margin",
    "--run-noise",
];
const ALONE: [&str; 2] = ["--json", "--across-hardware"];

/// The command line of one run: that of this process without what is about the comparison.
fn arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in own.skip(1) {
        if std::mem::take(&mut skip) {
            continue;
        }
        let name = argument.to_string_lossy();
        let (flag, value) = name
            .split_once('=')
            .map_or((&*name, false), |(flag, _)| (flag, true));
        if WITH_VALUE.contains(&flag) {
            skip = !value;
        } else if !ALONE.contains(&flag) {
            kept.push(argument);
        }
    }
    kept
}

/// Measures by turns, compares, prints.
pub(super) fn run(
    program: &Path,
    rounds: usize,
    out: Option<&Path>,
    json: bool,
    rules: &RuleFlags,
    interrupt: &Interrupt,
) -> Result<ExitCode> {
    if rounds < 2 {
        return Err(Error::Usage(
            "--rounds 1 tells nothing of what differs from run to run: give 2 or more".into(),
        ));
    }
    let scratch = tempfile::tempdir()
        .map_err(|e| Error::io(std::env::temp_dir(), "cannot create a folder in", e))?;
    let dir = out.unwrap_or(scratch.path());
    let contenders = [
        Contender {
            name: "base".to_owned(),
            program: program.to_owned(),
        },
        Contender {
            name: "this".to_owned(),
            program: this_program()?,
        },
    ];
    let labels = [program.as_os_str(), OsStr::new("this build")];
    let folders = programs_in_turns(
        &contenders,
        &arguments(std::env::args_os()),
        rounds,
        dir,
        interrupt,
        &mut |round, name| say(&format!("round {round} of {rounds}: {name}")),
    )?;
    let sides = folders.iter().zip(labels).map(|(folders, label)| {
        let runs = folders.iter().map(|folder| Run::open(folder));
        Ok(Side {
            label: label.to_string_lossy().into_owned(),
            runs: runs.collect::<Result<_>>()?,
        })
    });
    let sides = sides.collect::<Result<Vec<Side>>>()?;
    let comparison = compare(&sides[0], &sides[1], &rules.rules())?;
    if json {
        super::print_json(&comparison)?;
    } else {
        super::print(&comparison.table(width()));
    }
    Ok(rules.verdict(&[comparison]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gets_what_is_not_about_the_comparison() {
        let line = "candlepower bench --batch 1,2 --against-program old --out=dir --gen 4 --json --rounds=3 --fail-on 2% \
                    --across-hardware --force";
        let kept = arguments(line.split_whitespace().map(OsString::from));
        let expected = "bench --batch 1,2 --gen 4 --force";
        assert_eq!(
            kept,
            expected
                .split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>()
        );
    }
}
