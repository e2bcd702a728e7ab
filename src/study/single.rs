//! One variant outside a sweep: its perplexity, its text, its logits.

use super::plan::{EngineKind, QualityPlan};
use super::quality;
use super::quantise::Quantising;
use super::run::{Stage, Watcher};
use super::runner::{Runner, activation_dtype};
use crate::engine::{DeviceWeights, Engine, Limits, Prompt, Sampler, Sampling};
use crate::error::{Error, Result};
use crate::kernels::Device;
use crate::measure::Interrupt;
use crate::model::{Model, Tokenizer};
use crate::scheme::{DType, KvFormat, Variant};
use crate::stats;

/// What is scored, with what.
pub struct Scoring<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its weights are turned into.
    pub variant: &'a Variant,
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it runs.
    pub device: &'a Device,
    /// Tokens of one forward pass; a whole segment where `None`.
    pub chunk: Option<usize>,
    /// The text and the protocol.
    pub plan: &'a QualityPlan,
    /// How variants are made that are not made on loading.
    pub quantising: &'a Quantising,
}

/// A perplexity with all that it takes to recompute it.
#[derive(Debug, Clone, PartialEq)]
pub struct TextScore {
    /// The type of activations.
    pub act: DType,
    /// The name of the protocol.
    pub protocol: String,
    /// Tokens of a segment.
    pub context: usize,
    /// The name of the text.
    pub text: String,
    /// A hash of the scored part of the text.
    pub digest: String,
    /// The perplexity.
    pub value: f64,
    /// Its standard error, from the means of the segments; `None` for a single one.
    pub stderr: Option<f64>,
    /// Sum of the negative log-likelihoods, in nats.
    pub nll_sum: f64,
    /// Tokens that were predicted.
    pub tokens_scored: u64,
    /// Segments.
    pub segments: usize,
    /// Tokens of the whole text.
    pub tokens_total: u64,
    /// Bits per byte of the scored text.
    pub bits_per_byte: f64,
    /// The sum of each segment.
    pub segment_nll: Vec<f64>,
}

/// Scores a text.
///
/// # Errors
/// If the text is missing or too short, or the model fails.
pub fn score_text(
    wish: &Scoring<'_>,
    interrupt: &Interrupt,
    watcher: &mut dyn Watcher,
) -> Result<TextScore> {
    let text = quality::prepare(wish.plan, wish.model)?;
    watcher.text(&wish.model.name, text.format, text.tokens.ids.len());
    let act = activation_dtype(wish.act, wish.device, wish.model);
    let name = &wish.variant.name;
    let kind = EngineKind::Candlepower;
    let variants = std::slice::from_ref(wish.variant);
    let samples = wish
        .quantising
        .samples(wish.model, variants, Some(&text.tokens.ids))?;
    // Quantising is work of the same order as scoring: half of the whole, where it happens.
    let mut begin = 0.0;
    let source = wish.quantising.source(
        wish.model,
        wish.variant,
        samples.as_ref(),
        wish.device,
        act,
        &mut |at| {
            begin = 0.5;
            watcher.progress(name, &Stage::Quantise, at.share, at.share / 2.0);
            interrupt.check()
        },
    )?;
    if let Some(told) = source.told() {
        watcher.quantised(name, &told);
    }
    let mut runner = Runner::load(
        kind,
        source.model(),
        source.variant(),
        act,
        wish.kv,
        wish.device,
        &interrupt.flag(),
        &mut |done, total| {
            let share = done as f64 / total.max(1) as f64;
            watcher.progress(name, &Stage::Load, share, begin);
            interrupt.check()
        },
    )?;
    let chunk = wish.chunk.unwrap_or(wish.plan.protocol.context);
    let found = quality::run(&mut runner, wish.plan, &text, chunk, |done, total| {
        let share = done as f64 / total.max(1) as f64;
        let overall = begin + (1.0 - begin) * share;
        watcher.progress(name, &Stage::Quality, share, overall);
        interrupt.check()
    })?;
    let nll_sum: f64 = found.segments.iter().map(|s| s.nll).sum();
    let tokens_scored: u64 = found.segments.iter().map(|s| s.tokens).sum();
    let mean = nll_sum / tokens_scored as f64;
    let means: Vec<f64> = found
        .segments
        .iter()
        .map(|s| s.nll / s.tokens as f64)
        .collect();
    let bytes = found.bytes_scored.unwrap_or_default() as f64;
    Ok(TextScore {
        act,
        protocol: text.task.protocol.clone(),
        context: wish.plan.protocol.context,
        text: text.task.text.name.clone(),
        digest: text.task.text.digest.clone(),
        value: mean.exp(),
        // The error of exp(x) is that of x times the value.
        stderr: stats::standard_error(&means).map(|e| e * mean.exp()),
        nll_sum,
        tokens_scored,
        segments: found.segments.len(),
        tokens_total: found.tokens_total,
        bits_per_byte: nll_sum / (std::f64::consts::LN_2 * bytes),
        segment_nll: found.segments.iter().map(|s| s.nll).collect(),
    })
}

/// The logits after every token of `ids`, `[ids, vocab]`.
///
/// # Errors
/// If the model fails or a token is outside its vocabulary.
pub fn logits(
    model: &Model,
    variant: &Variant,
    quantising: &Quantising,
    act: Option<DType>,
    kv: KvFormat,
    device: &Device,
    ids: &[u32],
) -> Result<Vec<f32>> {
    let act = activation_dtype(act, device, model);
    let samples = quantising.samples(model, std::slice::from_ref(variant), None)?;
    let source = quantising.source(model, variant, samples.as_ref(), device, act, &mut |_| {
        Ok(())
    })?;
    let (model, variant) = (source.model(), source.variant());
    let weights = DeviceWeights::load(model, variant, act, device, &mut |_, _| Ok(()))?;
    let mut engine = Engine::new(
        device.clone(),
        weights,
        Limits::new(1, ids.len(), ids.len()).with_kv(kv),
    )?;
    Ok(engine
        .logits(&[Prompt {
            slot: 0,
            start: 0,
            tokens: ids,
        }])?
        .concat())
}

/// What text is wanted, from what.
pub struct Generation<'a> {
    /// The model.
    pub model: &'a Model,
    /// What its weights are turned into.
    pub variant: &'a Variant,
    /// The type of activations; the device's default where `None`.
    pub act: Option<DType>,
    /// How the KV cache is held.
    pub kv: KvFormat,
    /// Where it runs.
    pub device: &'a Device,
    /// How variants are made that are not made on loading.
    pub quantising: &'a Quantising,
    /// What runs it.
    pub engine: EngineKind,
    /// Tokens of one forward pass; the longest prompt's where `None`.
    pub chunk: Option<usize>,
    /// The prompts; one batch.
    pub prompts: &'a [String],
    /// Tokens to generate for each, at most.
    pub tokens: usize,
    /// Whether the model's end token is a token like any other.
    pub ignore_eos: bool,
    /// How to draw; the most likely token where `None`.
    pub sampling: Option<Sampling>,
}

/// What came of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The prompt.
    pub prompt: String,
    /// Its tokens.
    pub prompt_ids: Vec<u32>,
    /// The generated tokens; an end token is the last.
    pub ids: Vec<u32>,
    /// Their text, without the end token.
    pub text: String,
}

/// Generates text from prompts, side by side.
///
/// # Errors
/// If the model has no tokenizer, a prompt is empty or too long, or the model fails.
pub fn generate(wish: &Generation<'_>, interrupt: &Interrupt) -> Result<Vec<Generated>> {
    let no_tokenizer = || {
        Error::Config(format!(
            "{} has no tokenizer: give --tokenizer FILE",
            wish.model.name
        ))
    };
    let tokenizer = wish.model.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
    let prompt_ids = wish
        .prompts
        .iter()
        .map(|p| tokenizer.encode(p, true))
        .collect::<Result<Vec<_>>>()?;
    if prompt_ids.iter().any(Vec::is_empty) {
        return Err(Error::Usage("--prompt is empty".into()));
    }
    let act = activation_dtype(wish.act, wish.device, wish.model);
    let flag = interrupt.flag();
    let variants = std::slice::from_ref(wish.variant);
    let samples = wish.quantising.samples(wish.model, variants, None)?;
    let source = wish.quantising.source(
        wish.model,
        wish.variant,
        samples.as_ref(),
        wish.device,
        act,
        &mut |_| interrupt.check(),
    )?;
    let mut runner = Runner::load(
        wish.engine,
        source.model(),
        source.variant(),
        act,
        wish.kv,
        wish.device,
        &flag,
        &mut |_, _| interrupt.check(),
    )?;
    let ids = if matches!(runner, Runner::Candle(_)) {
        if wish.sampling.is_some() {
            return Err(Error::Usage(
                "candle's engines are greedy: leave --temperature out".into(),
            ));
        }
        prompt_ids
            .iter()
            .map(|ids| by_candle(&mut runner, ids, wish, tokenizer))
            .collect::<Result<Vec<_>>>()?
    } else {
        by_own(&mut runner, &prompt_ids, wish, tokenizer)?
    };
    let rows = wish.prompts.iter().zip(prompt_ids).zip(ids);
    rows.map(|((prompt, prompt_ids), ids)| {
        let end = ids
            .iter()
            .rposition(|id| !is_end(*id, wish, tokenizer))
            .map_or(0, |last| last + 1);
        let text = tokenizer.decode(&ids[..end])?;
        Ok(Generated {
            prompt: prompt.clone(),
            prompt_ids,
            ids,
            text,
        })
    })
    .collect()
}

fn is_end(id: u32, wish: &Generation<'_>, tokenizer: &Tokenizer) -> bool {
    !wish.ignore_eos && tokenizer.eos().contains(&id)
}

fn by_candle(
    runner: &mut Runner,
    prompt: &[u32],
    wish: &Generation<'_>,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>> {
    let mut ids = runner.prefill(&[prompt.to_vec()], 0)?;
    while ids.len() < wish.tokens && !is_end(ids[ids.len() - 1], wish, tokenizer) {
        let next = runner.decode(&ids[ids.len() - 1..], prompt.len() + ids.len() - 1)?;
        ids.extend(next);
    }
    Ok(ids)
}

/// All prompts as one ragged batch; a finished row leaves it.
fn by_own(
    runner: &mut Runner,
    prompts: &[Vec<u32>],
    wish: &Generation<'_>,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let limits = Limits::new(
        prompts.len(),
        longest + wish.tokens,
        wish.chunk.unwrap_or(longest.max(prompts.len())),
    );
    let engine = runner.own(limits)?;
    let mut rows = prompts.to_vec();
    let mut samplers: Vec<Sampler> = wish.sampling.map_or_else(Vec::new, |s| {
        (0..rows.len() as u64).map(|i| Sampler::new(s, i)).collect()
    });
    let mut open: Vec<usize> = (0..rows.len()).collect();
    let mut held = vec![0; rows.len()];
    while !open.is_empty() {
        let step: Vec<Prompt<'_>> = open
            .iter()
            .map(|&slot| Prompt {
                slot,
                start: held[slot],
                tokens: &rows[slot][held[slot]..],
            })
            .collect();
        let next = if samplers.is_empty() {
            engine.prefill(&step)?
        } else {
            let mut of_open: Vec<&mut Sampler> = samplers
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| open.contains(i))
                .map(|(_, s)| s)
                .collect();
            engine.prefill_sampled(&step, &mut of_open)?
        };
        for (&slot, token) in open.iter().zip(next) {
            held[slot] = rows[slot].len();
            rows[slot].push(token);
        }
        let done = |slot: usize| {
            let made = rows[slot].len() - prompts[slot].len();
            made >= wish.tokens || is_end(rows[slot][rows[slot].len() - 1], wish, tokenizer)
        };
        open.retain(|&slot| !done(slot));
    }
    Ok(rows
        .into_iter()
        .zip(prompts)
        .map(|(row, prompt)| row[prompt.len()..].to_vec())
        .collect())
}
