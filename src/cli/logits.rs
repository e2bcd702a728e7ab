//! `candlepower logits`, a command for checking.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags};
use crate::error::Result;
use crate::scheme::Variant;
use crate::study;

#[derive(ClapArgs)]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse)
    #[arg(long, default_value = "f32", value_name = "VARIANT")]
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
    cache: KvFlag,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let device = args.device.open()?;
    let model = args.from.open(&args.model, &args.variant)?;
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
