//! The commands: each parses, calls, prints; nothing is computed here. The only place that reads flags and prints.

mod against;
mod args;
mod bench;
mod compare;
mod eval;
mod export;
mod generate;
mod info;
mod isolation;
mod judge;
mod kernels;
mod lines;
mod list;
mod logits;
mod measure;
mod parse;
mod ppl;
mod progress;
mod quantize;
mod report;
mod schema;
mod signals;
mod speed;
mod study;
mod switches;
mod tasks;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::measure::Interrupt;

/// Finished, but some points failed, or could not be compared though they must.
const SOME_FAILED: u8 = 3;
/// A comparison found a regression.
const REGRESSION: u8 = 4;

#[derive(Parser)]
#[command(
    name = "candlepower",
    version,
    about = "Measures what a language model gives on a GPU when nothing stands between the two: speed, memory, energy \
             and quality of quantised variants",
    after_help = "Without a model, commands run `tiny`, a small model inside this program:\n  candlepower study",
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Quality against speed, memory and energy for several variants: table, records, JSON, CSV and an HTML report
    Study(study::Args),
    /// Speed alone: TTFT, ITL and tokens/s over batch, prompt, generated tokens and depth
    Bench(bench::Args),
    /// Perplexity of one variant on a text, alone or against a base
    Ppl(ppl::Args),
    /// Accuracy on tasks, scored by lm_eval's rules; of several variants, each against the first
    Eval(eval::Args),
    /// Generates text from prompts, greedily or sampled
    Generate(generate::Args),
    /// Writes a quantised checkpoint that vLLM, transformers and this program load
    Quantize(quantize::Args),
    /// Single ops by shape, tokens and variant: verified, timed, and held against what the device can do
    Kernels(kernels::Args),
    /// The device, its measured ceilings, and the environment
    Info(info::Args),
    /// Two runs against each other, or many: faster, slower, equivalent or inconclusive, figure by figure
    Compare(compare::Args),
    /// Writes study.json, study.csv and report.html of a run anew from its records
    Report(report::Args),
    /// Prints a finished study as something else: the table of a model card, Markdown, CSV, JSON
    Export(export::Args),
    /// Prints the JSON Schema of records, of study.json, and of what other commands print as JSON
    Schema,
    /// Prints the logits after every token of a sequence
    #[command(hide = true)]
    Logits(logits::Args),
}

/// Parses the command line, runs the command, and gives the exit code: 0 done, 2 usage, 3 finished but some points
/// failed or, with `--fail-on`, are missing, 4 regression found, 64 bad configuration, 65 corrupt model or data, 69 no
/// device, 70 internal, 74 an output that cannot be written, 75 transient device fault or no room, 130 interrupted.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let interrupt = Interrupt::new();
    match signals::watch(&interrupt, is_worker(&cli.command))
        .and_then(|()| dispatch(cli.command, &interrupt))
    {
        Ok(code) => code,
        Err(error) => {
            progress::say(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether this process works for another, which alone hears the user.
fn is_worker(command: &Command) -> bool {
    match command {
        Command::Study(args) => args.measure.isolation.is_worker(),
        Command::Bench(args) => args.measure.isolation.is_worker(),
        _ => false,
    }
}

fn dispatch(command: Command, interrupt: &Interrupt) -> Result<ExitCode> {
    match command {
        Command::Study(args) => study::run(&args, interrupt),
        Command::Bench(args) => bench::run(&args, interrupt),
        Command::Ppl(args) => ppl::run(&args, interrupt),
        Command::Eval(args) => eval::run(&args, interrupt),
        Command::Generate(args) => generate::run(&args, interrupt),
        Command::Quantize(args) => quantize::run(&args, interrupt),
        Command::Kernels(args) => kernels::run(&args, interrupt),
        Command::Info(args) => info::run(&args, interrupt),
        Command::Compare(args) => compare::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Schema => schema::run(),
        Command::Logits(args) => logits::run(&args),
    }
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: &str) -> Result<()> {
    use std::io::{ErrorKind, Write};
    let mut stdout = std::io::stdout().lock();
    // What stays in the buffer is written at the end of the process, where nobody hears of an error.
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::writing("standard output", "cannot write", e))
        }
        _ => Ok(()),
    }
}

/// Writes JSON to standard output, indented.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Internal(format!("cannot write JSON: {e}")))?;
    print(&(text + "\n"))
}
