//! `candlepower ppl`.

use std::process::ExitCode;

use clap::Args as ClapArgs;

use super::args::{CalibrationFlags, EngineFlags, KvFlag, ModelFlags, cache_folder, variants_help};
use super::lines::{entry, wrapped};
use super::parse;
use super::progress::{Progress, say, width};
use super::switches::FuseFlag;
use super::text::TextFlags;
use crate::error::Result;
use crate::measure::Interrupt;
use crate::quality::Rule;
use crate::results::scored_text::{ScoredText, Subject};
use crate::results::study::Perplexity;
use crate::scheme::Variant;
use crate::study::{QualityPlan, Scoring, TextScore, score_text};

#[derive(ClapArgs)]
#[command(after_help = "Examples:
  candlepower ppl
  candlepower ppl --model DIR --text wiki.test.raw --context 2048 --variant int8 --json
  candlepower ppl --model model.gguf --text wiki.test.raw --protocol llama.cpp
  candlepower ppl --model DIR --text wiki.test.raw --base bf16 --variant w4a16
  candlepower ppl --model DIR --text docs.jsonl --field body --protocol lm_eval --context 4096")]
pub(super) struct Args {
    /// tiny, a folder, a .gguf file, or a hub id such as org/name
    #[arg(long, default_value = "tiny", value_name = "MODEL")]
    model: String,
    #[arg(long, help = variants_help(""), default_value = "bf16", value_name = "VARIANT")]
    variant: Variant,
    /// Tokens of a segment [default: 2048, of llama.cpp 512, or as many as the model takes; 256 with tiny]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    context: Option<usize>,
    /// Scores this many segments (of lm_eval, documents) from the start [default: all]
    #[arg(long, value_name = "N", value_parser = parse::positive)]
    segments: Option<usize>,
    /// Compares with this variant: divergence of the predictions, and the paired difference of the losses
    #[arg(long, value_name = "VARIANT")]
    base: Option<Variant>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    text: TextFlags,
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

pub(super) fn run(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let base = match &args.base {
        Some(_) => {
            let usual = cache_folder().map(|folder| folder.join("base-logits"));
            Some(args.text.base(usual)?)
        }
        None => {
            args.text
                .without_base("name what to compare with by --base")?;
            None
        }
    };
    let device = args.device.open_switched(&args.fuse)?;
    let model = args
        .from
        .open(&args.model, std::slice::from_ref(&args.variant))?;
    let (protocol, note) = args.text.protocol(args.context, args.segments, [&model]);
    let plan = QualityPlan {
        base,
        ..args.text.plan(protocol)?
    };
    note.iter().for_each(|note| say(note));
    let variants: Vec<Variant> = std::iter::once(&args.variant)
        .chain(&args.base)
        .cloned()
        .collect();
    let quantising = args.calibration.quantising(&variants)?;
    let scoring = Scoring {
        model: &model,
        variant: &args.variant,
        act: args.device.dtype,
        kv: args.cache.kv,
        device: &device,
        chunk: args.device.chunk,
        plan: &plan,
        base: args.base.as_ref(),
        quantising: &quantising,
    };
    let mut progress = Progress::new();
    let found = score_text(&scoring, interrupt, &mut progress);
    progress.finish();
    let score = found?;
    let TextScore {
        act,
        perplexity: found,
        base,
    } = score;
    let alone = found.stderr.is_none();
    if args.json {
        let subject = Subject {
            model: model.name.clone(),
            variant: args.variant.name.clone(),
            activation_dtype: act.name().to_owned(),
            kv_cache: args.cache.kv.name().to_owned(),
            device: device.kind().to_owned(),
        };
        let base = args.base.as_ref().map(|base| base.name.clone()).zip(base);
        super::print_json(&ScoredText::new(subject, found, base))?;
    } else {
        let width = width();
        let cache = match args.cache.kv.codes() {
            Some(_) => format!(", KV cache in {}", args.cache.kv),
            None => String::new(),
        };
        let variant = format!("{}{cache}", args.variant);
        super::print(&described(&found, &model.name, &variant, width))?;
        if let (Some(base), Some(variant)) = (&base, &args.base) {
            super::print(&compared(base, &found, &variant.name, width))?;
        }
    }
    if alone {
        say("one segment has no standard error");
    }
    Ok(ExitCode::SUCCESS)
}

/// A perplexity in a line or two, or as many as the width asks for, with the protocol that it is of.
fn described(found: &Perplexity, model: &str, variant: &str, width: usize) -> String {
    let with_error = |value: f64, stderr: Option<f64>| {
        let stderr = stderr.map_or_else(String::new, |e| format!(" ± {e:.4}"));
        format!("{value:.4}{stderr}")
    };
    let mut facts = vec![
        format!("{} protocol", found.protocol),
        format!("context {}", found.context),
    ];
    facts.extend(found.stride.map(|stride| format!("stride {stride}")));
    facts.push(format!("{} segments", found.segments));
    facts.push(format!(
        "{} tokens scored of {}",
        found.tokens_scored, found.tokens_total
    ));
    let bits = |bits: f64| format!("{bits:.4} bits per byte");
    facts.extend(found.bits_per_byte.map(bits));
    let of_llama = found
        .stderr_over_tokens
        .filter(|_| found.protocol == Rule::LlamaCpp.name());
    facts.extend(of_llama.map(|e| format!("± {e:.4} over tokens, as llama.cpp has it")));
    let text = format!(
        "perplexity {}  {model} {variant} on {} ({})",
        with_error(found.value, found.stderr),
        found.text.name,
        facts.join(", ")
    );
    let mut text = wrapped(&text, 2, width) + "\n";
    if let (Some(word), Some(byte)) = (found.word_perplexity, found.byte_perplexity) {
        text += &format!("word perplexity {word:.4}, byte perplexity {byte:.4}\n");
    }
    text
}

/// What a comparison with a base came to.
fn compared(base: &Perplexity, found: &Perplexity, name: &str, width: usize) -> String {
    let mut text = format!("against {name}, whose perplexity is {:.4}:\n", base.value);
    let mut line =
        |what: &str, figures: String| text += &entry(&format!("  {what}"), 21, &figures, width);
    let error = |e: Option<f64>| e.map_or_else(String::new, |e| format!(" ± {e:.2e}"));
    if let Some(delta) = &found.delta_vs_base {
        let ends = delta.ln_ratio_ci95;
        let ends = ends.map_or_else(String::new, |e| {
            format!(" [{:+.2e}, {:+.2e}]", e.low, e.high)
        });
        let p = delta.p_value;
        let p = p.map_or_else(String::new, |p| format!(", p = {p:.4} by flipping signs"));
        line(
            "perplexity ratio",
            format!("{:.6}{}", delta.ratio, error(delta.ratio_stderr)),
        );
        line(
            "Δ ln perplexity",
            format!(
                "{:+.3e}{}{ends}{p}",
                delta.ln_ratio,
                error(delta.ln_ratio_stderr)
            ),
        );
        line(
            "  were it unpaired",
            error(delta.ln_ratio_stderr_unpaired).trim().to_owned(),
        );
    }
    if let Some(d) = &found.divergence {
        let or_dash = |x: Option<f64>| x.map_or_else(|| "–".to_owned(), |x| format!("{x:.2e}"));
        line(
            "KL, nats per token",
            format!("{:.3e}{}", d.mean_kl, error(d.stderr)),
        );
        line(
            "  over tokens",
            format!(
                "median {}, p90 {}, p99 {}, max {}",
                or_dash(d.median_kl),
                or_dash(d.p90_kl),
                or_dash(d.p99_kl),
                or_dash(d.max_kl)
            ),
        );
        let percent = |x: f64| 100.0 * x;
        if let Some(floor) = &base.noise_floor {
            let of = format!(
                "{:.3e}, the base against itself in another batch size",
                floor.mean_kl
            );
            line("  noise floor", of);
        }
        let agreement = d.top1_stderr.map(percent);
        let agreement = agreement.map_or_else(String::new, |e| format!(" ± {e:.3}"));
        line(
            "same top token",
            format!("{:.3}{agreement} %", percent(d.top1_agreement)),
        );
        if let (Some(mean), Some(rms)) = (d.mean_delta_p, d.rms_delta_p) {
            let shift = format!("mean {:+.4} %, RMS {:.4} %", percent(mean), percent(rms));
            line("Δp of the text", shift);
        }
        if let (Some(k), Some(outside)) = (d.top_k, d.outside_top_k) {
            let kept = format!("{k} of the base, which leaves {:.3} %", percent(outside));
            line("tokens kept", kept);
        }
    }
    text
}
