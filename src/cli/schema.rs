//! `candlepower schema`.

use std::process::ExitCode;

use crate::error::Result;
use crate::results;

pub(super) fn run() -> Result<ExitCode> {
    super::print_json(&results::schemas())?;
    Ok(ExitCode::SUCCESS)
}
