//! `candlepower logits`, a command for checking.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags, variants_help};
use super::switches::FuseFlag;
use crate::error::Result;
use crate::scheme::Variant;
use crate::study;

#[derive(ClapArgs)]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    #[arg(long, help = variants_help(""), default_value = "f32", value_name = "VARIANT")]
    variant: Variant,
    /// Token ids
    #[arg(long, required = true, value_delimiter = ',', value_name = "LIST")]
    ids: Vec<u32>,
    /// Prints JSON (it always does)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    from: ModelFlags,
    #[command(flatten)]
    calibration: CalibrationFlags,
    #[command(flatten)]
    device: EngineFlags,
    #[command(flatten)]
    fuse: FuseFlag,
    #[command(flatten)]
    cache: KvFlag,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let device = args.device.open_switched(&args.fuse)?;
    let model = args
        .from
        .open(&args.model, std::slice::from_ref(&args.variant))?;
    let logits = study::logits(
        &model,
        &args.variant,
        &args
            .calibration
            .quantising(std::slice::from_ref(&args.variant))?,
        args.device.dtype,
        args.cache.kv,
        &device,
        &args.ids,
    )?;
    let rows: Vec<&[f32]> = logits.chunks_exact(model.config.vocab).collect();
    super::print(&format!("{}\n", json!({ "logits": rows })))?;
    Ok(ExitCode::SUCCESS)
}
