//! The `candlepower` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    candlepower::cli::run()
}
