//! `candlepower schema`.

use std::process::ExitCode;

use crate::error::Result;
use crate::study;

pub(super) fn run() -> Result<ExitCode> {
    super::print_json(&study::schemas())?;
    Ok(ExitCode::SUCCESS)
}
