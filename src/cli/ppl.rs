//! `candlepower ppl`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{
    CalibrationFlags, EngineFlags, FormatFlag, KvFlag, ModelFlags, parse_positive, quality_plan,
};
use super::progress::{Progress, say};
use crate::error::Result;
use crate::measure::Interrupt;
use crate::scheme::Variant;
use crate::study::{Scoring, score_text};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower ppl
  candlepower ppl --model DIR --text wiki.test.raw --context 2048 --variant int8 --json")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse)
    #[arg(long, default_value = "bf16", value_name = "VARIANT")]
    variant: Variant,
    /// Text to score: a file, or wikitext2 (from the hub) [default: the text that comes with tiny]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// How the file becomes a text
    #[arg(long, value_enum, default_value_t = FormatFlag::Auto)]
    text_format: FormatFlag,
    /// Tokens of a segment [default: 2048; 256 with tiny]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Scores this many segments from the start [default: all]
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    segments: Option<usize>,
    /// Prints JSON
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

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let plan = quality_plan(
        args.text.as_ref(),
        args.text_format,
        args.context,
        args.segments,
        &args.model,
    );
    let device = args.device.open()?;
    let model = args.from.open(&args.model, &args.variant)?;
    let quantising = args.calibration.quantising();
    let scoring = Scoring {
        model: &model,
        variant: &args.variant,
        act: args.device.dtype,
        kv: args.cache.kv,
        device: &device,
        chunk: args.device.chunk,
        plan: &plan,
        quantising: &quantising,
    };
    let mut progress = Progress::new();
    let found = score_text(&scoring, interrupt, &mut progress);
    progress.finish();
    let found = found?;
    if args.json {
        super::print_json(&json!({
            "model": model.name,
            "variant": args.variant.name,
            "activation_dtype": found.act.name(),
            "kv_cache": args.cache.kv.name(),
            "device": device.kind(),
            "protocol": found.protocol,
            "context": found.context,
            "text": found.text,
            "text_digest": found.digest,
            "value": found.value,
            "stderr": found.stderr,
            "nll_sum": found.nll_sum,
            "tokens_scored": found.tokens_scored,
            "segments": found.segments,
            "tokens_total": found.tokens_total,
            "bits_per_byte": found.bits_per_byte,
            "segment_nll": found.segment_nll,
        }))?;
    } else {
        let stderr = found
            .stderr
            .map_or_else(String::new, |e| format!(" ± {e:.4}"));
        let cache = match args.cache.kv.codes() {
            Some(_) => format!(", KV cache in {}", args.cache.kv),
            None => String::new(),
        };
        super::print(&format!(
            "perplexity {:.4}{stderr}  {} {}{cache} on {} ({} protocol, context {}, {} segments, {} tokens scored of {}, {:.4} \
             bits per byte)\n",
            found.value,
            model.name,
            args.variant,
            found.text,
            found.protocol,
            found.context,
            found.segments,
            found.tokens_scored,
            found.tokens_total,
            found.bits_per_byte
        ));
    }
    if found.stderr.is_none() {
        say("one segment has no standard error");
    }
    Ok(ExitCode::SUCCESS)
}
