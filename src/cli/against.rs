//! `candlepower bench --against-program`: this build and another, measured by turns and compared.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command};

use super::compare::{Asked, COMPARISON, RuleFlags};
use super::isolation::this_program;
use super::parse;
use super::progress::{say, width};
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::results::compare::{Run, Side, compare};
use crate::study::{Contender, programs_in_turns};

#[derive(Args)]
#[command(next_help_heading = "Comparison")]
pub(super) struct AgainstFlags {
    /// Compares what is measured with a run on record (several of the same thing with commas), measured before and so not
    /// in turn with it. With --json, it is the comparison that is printed
    #[arg(long, value_name = "RUN", conflicts_with = "ablate", group = COMPARISON)]
    pub(super) against: Option<String>,
    /// Compares with another build of this program: both are measured now, by turns, in several runs each, whose spread
    /// tells what differs from run to run. With --out, the folder holds them all
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "ablate"], group = COMPARISON)]
    pub(super) against_program: Option<PathBuf>,
    /// Runs of each program; of an even number half are in reverse order, so that whatever drifts hits both alike
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = parse::positive, requires = "against_program")]
    pub(super) rounds: usize,
}

/// The flags that are about the comparison, not for the runs that it starts, each with whether it takes a value.
fn of_the_comparison() -> Vec<(String, bool)> {
    let command = RuleFlags::augment_args(AgainstFlags::augment_args(Command::new("")));
    let flags = command.get_arguments().filter_map(|flag| {
        let name = format!("--{}", flag.get_long()?);
        Some((name, flag.get_action().takes_values()))
    });
    let shared = [("--out".to_owned(), true), ("--json".to_owned(), false)];
    flags.chain(shared).collect()
}

/// The command line of one run: that of this process without what is about the comparison.
fn arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let own_flags = of_the_comparison();
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
        match own_flags.iter().find(|(own, _)| own == flag) {
            Some((_, takes_value)) => skip = *takes_value && !value,
            None => kept.push(argument),
        }
    }
    kept
}

/// Measures by turns, compares, prints. A regression is what the exit code tells first, then points that failed.
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
        .map_err(|e| Error::writing(std::env::temp_dir(), "cannot create a folder in", e))?;
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
        super::print(&comparison.table(width()))?;
    }
    let mut records = sides
        .iter()
        .flat_map(|side| &side.runs)
        .flat_map(|run| &run.records);
    let failed = records.any(|record| record.failure().is_some());
    Ok(rules.verdict(&[comparison], Asked::TheSame, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gets_what_is_not_about_the_comparison() {
        let line = "candlepower bench --batch 1,2 --against-program old --out=dir --gen 4 --json --rounds=3 --fail-on 2% \
                    --task-margin 3% --run-noise=1% --across-hardware --force";
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
