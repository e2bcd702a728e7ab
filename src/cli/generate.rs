//! `candlepower generate`.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{CalibrationFlags, EngineFlag, EngineFlags, KvFlag, ModelFlags, parse_positive};
use crate::engine::Sampling;
use crate::error::{Error, Result};
use crate::measure::Interrupt;
use crate::scheme::Variant;
use crate::study::{Generation, generate};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower generate --prompt 'A candle is' --gen 40
  candlepower generate --model DIR --prompt 'One' --prompt 'Two' --temperature 0.8 --top-p 0.95 --seed 1")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    /// as-is, bf16, f16, f32, int8, w8a8, w4a16 (with :g64 or :g32, :gptq, :awq, :smoothquant, :asym, :mse)
    #[arg(long, default_value = "bf16", value_name = "VARIANT")]
    variant: Variant,
    /// A prompt; several run as one batch
    #[arg(long, required = true, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Tokens to generate at most
    #[arg(long = "gen", default_value_t = 64, value_name = "N", value_parser = parse_positive)]
    generate: usize,
    /// Goes on past the model's end token
    #[arg(long)]
    ignore_eos: bool,
    /// Divides logits before drawing; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Draws from the K most likely tokens; 0 from all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Draws from the fewest tokens that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// What runs the model; candle's engines are greedy
    #[arg(long, value_enum, default_value_t = EngineFlag::Candlepower)]
    engine: EngineFlag,
    /// Prints JSON with token ids
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
    if !(args.temperature >= 0.0 && args.top_p > 0.0 && args.top_p <= 1.0) {
        return Err(Error::Usage(
            "--temperature must be at least 0, --top-p above 0 and at most 1".into(),
        ));
    }
    if args.device.fuse().is_some() && args.engine != EngineFlag::Candlepower {
        return Err(Error::Usage(
            "--fuse is for candlepower's engine: candle's fuses nothing".into(),
        ));
    }
    let device = args.device.open()?;
    let model = args.from.open(&args.model, &args.variant)?;
    let sampling = (args.temperature > 0.0).then_some(Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    });
    let quantising = args
        .calibration
        .quantising(std::slice::from_ref(&args.variant))?;
    let wish = Generation {
        model: &model,
        variant: &args.variant,
        act: args.device.dtype,
        kv: args.cache.kv,
        device: &device,
        quantising: &quantising,
        engine: args.engine.kind(),
        chunk: args.device.chunk,
        prompts: &args.prompt,
        tokens: args.generate,
        ignore_eos: args.ignore_eos,
        sampling,
    };
    let texts = generate(&wish, interrupt)?;
    if args.json {
        let rows: Vec<_> = texts
            .iter()
            .map(|t| json!({"prompt": t.prompt, "prompt_ids": t.prompt_ids, "ids": t.ids, "text": t.text}))
            .collect();
        super::print_json(&rows)?;
    } else {
        for text in texts {
            super::print(&format!("{}{}\n", text.prompt, text.text))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
