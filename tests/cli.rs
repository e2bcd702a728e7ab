//! The program from outside: what it writes, prints and exits with, for good input and bad.

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/common.rs"]
mod common;
#[path = "cli/compare.rs"]
mod compare;
#[path = "cli/eval.rs"]
mod eval;
#[path = "cli/folder.rs"]
mod folder;
#[cfg(unix)]
#[path = "cli/interrupt.rs"]
mod interrupt;
#[cfg(unix)]
#[path = "cli/isolation.rs"]
mod isolation;
#[path = "cli/kernels.rs"]
mod kernels;
#[path = "cli/measurement.rs"]
mod measurement;
#[path = "cli/quality.rs"]
mod quality;
#[cfg(unix)]
#[path = "cli/quantize.rs"]
mod quantize;
#[path = "cli/study.rs"]
mod study;
#[path = "cli/study_tasks.rs"]
mod study_tasks;
