//! `candlepower generate`.

use std::process::ExitCode;

use clap::Args as ClapArgs;
use serde_json::json;

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags, first_given, variants_help};
use super::parse;
use super::speed::EngineFlag;
use super::switches::FuseFlag;
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
    #[arg(long, help = variants_help(""), default_value = "bf16", value_name = "VARIANT")]
    variant: Variant,
    /// A prompt; several run as one batch
    #[arg(long, required = true, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Tokens to generate at most
    #[arg(long = "gen", default_value_t = 64, value_name = "N", value_parser = parse::positive)]
    generate: usize,
    /// Goes on past the model's end token
    #[arg(long)]
    ignore_eos: bool,
    /// Divides logits before drawing; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = parse::temperature)]
    temperature: f32,
    /// Draws from the K most likely tokens; 0 from all [default: 0]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draws from the fewest tokens that together have this probability [default: 1]
    #[arg(long, value_name = "P", value_parser = parse::probability)]
    top_p: Option<f32>,
    /// Seed of the draws [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
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
    fuse: FuseFlag,
    #[command(flatten)]
    cache: KvFlag,
}

impl Args {
    /// How tokens are drawn; not at all where the most likely one is taken.
    ///
    /// # Errors
    /// [`Error::Usage`] for what is about draws where there are none.
    fn sampling(&self) -> Result<Option<Sampling>> {
        let of_draws = [
            (self.top_k.is_some(), "--top-k"),
            (self.top_p.is_some(), "--top-p"),
            (self.seed.is_some(), "--seed"),
        ];
        match (self.temperature > 0.0, first_given(&of_draws)) {
            (true, _) => Ok(Some(Sampling {
                temperature: self.temperature,
                top_k: self.top_k.unwrap_or(0),
                top_p: self.top_p.unwrap_or(1.0),
                seed: self.seed.unwrap_or(0),
            })),
            (false, None) => Ok(None),
            (false, Some(flag)) => Err(Error::Usage(format!(
                "{flag} is for tokens that are drawn, and at temperature 0 the most likely one is taken: add \
                 --temperature, as in 0.8, or leave it out"
            ))),
        }
    }
}

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let sampling = args.sampling()?;
    if args.engine != EngineFlag::Candlepower {
        let own = [
            (args.fuse.is_given(), "--fuse"),
            (args.device.chunk.is_some(), "--chunk"),
        ];
        if let Some(flag) = first_given(&own) {
            return Err(Error::Usage(format!(
                "{flag} is for candlepower's engine: candle's fuses nothing and takes a prompt whole"
            )));
        }
    }
    let device = args.device.open_switched(&args.fuse)?;
    let model = args
        .from
        .open(&args.model, std::slice::from_ref(&args.variant))?;
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
